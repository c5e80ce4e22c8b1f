"""Drawings of any task: heatmaps, boxes and labels."""

import numpy as np
from torch import Tensor

from ..tasks.base import Detections, Objects, Task
from .canvas import Canvas
from .drawing import overlay_heat_map, restore_image


class Visualizer:
    """Drawings of a task by name. Images are (H, W, 3) uint8 in BGR order, and no argument is changed.

    Small images are enlarged in drawings of objects, so that labels are readable (``Canvas``).

    The base class draws boxes of results and ground truth, and the heatmap of the head ``hm``. Subclasses override
    the methods of the first section.

    Attributes:
        result_name: name of the drawing of results.
    """

    def __init__(self, task: Task) -> None:
        self.task, self.opt = task, task.opt
        self.result_name = task.name

    # What differs between tasks

    def heat_maps(self, maps: dict[str, Tensor]) -> dict[str, tuple[Tensor, np.ndarray | None]]:
        """Return what to draw of the score maps of an image: name to (C, h, w), and colors (C, 3) or None."""
        return {"hm": (maps["hm"], None)} if "hm" in maps else {}

    def scores(self, output: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the score maps (C, h, w) of the first image from the raw maps of a batch."""
        return {name: values[0].float().sigmoid() for name, values in output.items() if name.startswith("hm")}

    def draw_dets(self, image: np.ndarray, dets: np.ndarray, scores: bool = True) -> np.ndarray | None:
        """Draw detections (n, columns) of ``Task.decode`` on the network's input; None: no such drawing.

        ``scores``: whether labels have the score, which ground truth lacks.
        """
        return None

    def draw_meta(self, image: np.ndarray, meta: dict) -> np.ndarray | None:
        """Draw the ground truth of a sample on the network's input; None: no such drawing."""
        return self.draw_dets(image, meta["gt_det"], scores=False) if "gt_det" in meta else None

    def draw_results(self, image: np.ndarray, results: Detections) -> np.ndarray:
        """Draw the rows of results whose score exceeds ``--vis_thresh``."""
        rows = with_class({cls: self.task.detected_boxes(rows) for cls, rows in results.items()})
        return self.boxes(image, rows, self.opt.vis_thresh)

    def draw_objects(self, image: np.ndarray, objects: Objects) -> np.ndarray:
        """Draw the objects of an image."""
        boxes, cls = self.task.ground_truth_boxes(objects), objects["cls"][:, None]
        return self.boxes(image, np.hstack([boxes, np.ones_like(cls), cls]), self.opt.vis_thresh, scores=False)

    # Drawings

    def training_images(self, batch: dict, output: dict[str, Tensor] | None) -> dict[str, np.ndarray]:
        """Draw the first image of a training batch: heatmaps and detections, ``gt_`` and ``pred_``.

        ``output``: raw maps of the last stack; None: ground truth only.
        """
        image = restore_image(batch["input"][0].cpu().numpy(), self.opt.mean, self.opt.std)
        images = self.overlays(image, "gt", {name: batch[name][0] for name in self.opt.heads if name in batch})
        drawings = {"out_gt": self.draw_meta(image, batch["meta"][0])}
        if output is not None:
            first = {name: values[:1].detach() for name, values in output.items()}
            images.update(self.overlays(image, "pred", self.scores(first)))
            drawings["out_pred"] = self.draw_dets(image, self.task.decode(first)[0].cpu().numpy())
        return {**images, **{name: drawing for name, drawing in drawings.items() if drawing is not None}}

    def network_images(self, image: np.ndarray, output: dict[str, Tensor], dets: Tensor) -> dict[str, np.ndarray]:
        """Draw one test scale for ``--debug 2``: heatmaps, and detections before merging.

        Args:
            image: (h, w, 3) uint8, the network's input.
            output: its raw maps (B, C, h/4, w/4), of which the first are drawn.
            dets: (B, n, columns) detections of ``Task.decode``.
        """
        images = self.overlays(image, "pred", self.scores(output))
        drawing = self.draw_dets(image, dets[0].cpu().numpy())
        return images if drawing is None else {**images, "out_pred": drawing}

    def result_images(self, image: np.ndarray, results: Detections, meta: dict) -> dict[str, np.ndarray]:
        """Draw results on their image; ``meta`` holds the image's ``picture_info``, such as its camera."""
        return {self.result_name: self.draw_results(image, results)}

    def ground_truth_images(self, image: np.ndarray, objects: Objects) -> dict[str, np.ndarray]:
        """Draw the objects of ``Task.read_objects`` on their image."""
        return {"gt": self.draw_objects(image, objects)}

    # Helpers

    def canvas(self, image: np.ndarray) -> Canvas:
        """Return a canvas with a copy of an image."""
        return Canvas(image, self.opt.debugger_theme)

    def boxes(self, image: np.ndarray, rows: np.ndarray, threshold: float, scores: bool = True) -> np.ndarray:
        """Draw rows (n, 6) [x1, y1, x2, y2, score, class from 0] with labels."""
        canvas = self.canvas(image)
        canvas.boxes(rows, self.opt.class_names, threshold, scores)
        return canvas.finish()

    def to_input(self, dets: np.ndarray, lengths) -> np.ndarray:
        """Return detections with the columns ``lengths`` in pixels of the input instead of the output."""
        dets = np.array(dets, dtype=np.float32)
        dets[:, lengths] *= self.opt.down_ratio
        return dets

    def overlays(self, image: np.ndarray, prefix: str, maps: dict[str, Tensor]) -> dict[str, np.ndarray]:
        """Draw score maps (C, h, w) over an image, which is enlarged if it is small."""
        enlarged = self.canvas(image).image
        return {
            f"{prefix}_{name}": overlay_heat_map(enlarged, hm.cpu().numpy(), self.opt.debugger_theme, colors)
            for name, (hm, colors) in self.heat_maps(maps).items()
        }


def with_class(results: Detections) -> np.ndarray:
    """Return the rows of all classes of results, with the class from 0 as last column."""
    return np.concatenate([np.hstack([rows, np.full((len(rows), 1), cls - 1)]) for cls, rows in results.items()])
