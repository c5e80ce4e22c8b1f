"""Drawings of 3D boxes: in the image, and in a bird's-eye view of the scene.

``results`` are ``{class from 1: (n, 13) rows}`` of ``tasks.ddd``. Images are (height, width, 3) uint8 in BGR order; no
function changes its arguments.
"""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from torch import Tensor

from ..ops.box3d import NEAREST, compute_box_3d, ddd2locrot, project_to_image
from ..ops.image import get_affine_transform
from ..tasks.base import Detections, Objects
from ..tasks.ddd import DEFAULT_CALIB, ddd_post_process
from .base import Visualizer
from .canvas import FONT, Canvas, class_label
from .drawing import restore_image

GROUND_TRUTH_THRESH = 0.5  # ground truth has score 1
CLOSEST_BOX = 1.0  # meters; a box whose middle is nearer is left out
FRONT = (0, 1, 5, 4)  # the corners of the face in the direction of the length
EDGES = ((0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7))

BIRD_SIZE = 640  # pixels
BIRD_METERS = 64.0  # that they stand for: half of them to each side, all of them ahead
BIRD_GRID = 10  # meters between the lines of the grid
BIRD_GROUND, BIRD_LINES, BIRD_TEXT = (230, 230, 230), (205, 205, 205), (110, 110, 110)
BIRD_FOUND = (250, 152, 12)
BIRD_TRUE = (12, 49, 250)


def draw_boxes_3d(
    canvas: Canvas,
    results: Mapping[int, np.ndarray],
    calib: np.ndarray,
    threshold: float,
    class_names: Sequence[str] = (),
    scores: bool = True,
) -> None:
    """Draw the edges of the boxes whose score exceeds ``threshold``, the nearest last, and their distance in meters.

    A cross marks the front face. Boxes within a meter of the camera and rows that are not finite are left out.

    Args:
        canvas: with the image of the camera.
        results: class from 1 to rows (n, 13).
        calib: (3, 4) projection matrix of the camera.
        threshold: of the score.
        class_names: see ``class_label``.
        scores: whether labels have the score; ground truth has none.
    """
    for cls, row in sorted(_shown(results, threshold), key=lambda shown: -shown[1][10]):
        if row[10] <= CLOSEST_BOX:
            continue
        corners = compute_box_3d(row[5:8], row[8:11], row[11])
        color = canvas.color(cls - 1)
        for one, other in EDGES:
            _line(canvas, corners[one], corners[other], calib, color, 2)
        for one, other in (FRONT[0::2], FRONT[1::2]):
            _line(canvas, corners[one], corners[other], calib, color, 1)
        name = class_label(class_names, cls - 1)
        text = f"{name} {row[12]:.2f} {row[10]:.0f} m" if scores else f"{name} {row[10]:.0f} m"
        if corners[:, 2].min() > NEAREST:
            canvas.label(text, project_to_image(corners.astype(np.float64), calib), color)


def _line(canvas: Canvas, start: np.ndarray, end: np.ndarray, calib: np.ndarray, color, width: float) -> None:
    """Draw the part of an edge that lies in front of the camera."""
    if max(start[2], end[2]) <= NEAREST:
        return
    points = np.stack([start, end]).astype(np.float64)
    for k in range(2):
        if points[k, 2] < NEAREST:
            share = (NEAREST - points[k, 2]) / (points[1 - k, 2] - points[k, 2])
            points[k] += share * (points[1 - k] - points[k])
    first, last = project_to_image(points, calib)
    canvas.line(first, last, color, width)


def bird_view(
    results: Mapping[int, np.ndarray], threshold: float, truth: Mapping[int, np.ndarray] | None = None
) -> np.ndarray:
    """Draw the scene from above, (640, 640, 3) uint8 for 64 x 64 meters, the camera at the middle of the lower edge.

    Axes are in meters: to the right along the lower edge, ahead along the left one. Detections whose score exceeds
    ``threshold`` are outlines with a thicker front, the objects of ``truth`` are filled.
    """
    image = _ground()
    for _, row in _shown(truth or {}, GROUND_TRUTH_THRESH):
        cv2.fillPoly(image, [_ground_points(row)], BIRD_TRUE, cv2.LINE_AA)
    for _, row in _shown(results, threshold):
        points = _ground_points(row)
        cv2.polylines(image, [points], True, BIRD_FOUND, 2, cv2.LINE_AA)
        cv2.line(image, tuple(points[0].tolist()), tuple(points[1].tolist()), BIRD_FOUND, 5, cv2.LINE_AA)
    return image


def _ground() -> np.ndarray:
    """Return the empty bird's-eye view: a grid of ten meters with axes."""
    image = np.full((BIRD_SIZE, BIRD_SIZE, 3), BIRD_GROUND, dtype=np.uint8)
    last, font = BIRD_SIZE - 1, (FONT, 0.4, BIRD_TEXT, 1, cv2.LINE_AA)
    half = int(BIRD_METERS / 2 // BIRD_GRID) * BIRD_GRID
    for meters in range(-half, half + 1, BIRD_GRID):
        ((x, _),) = _ground_pixels([[meters, 0]]).tolist()
        cv2.line(image, (x, 0), (x, last), BIRD_LINES, 1)
        cv2.putText(image, f"{meters}", (x + 3, last - 4), *font)
    for meters in range(BIRD_GRID, int(BIRD_METERS) + 1, BIRD_GRID):
        ((_, y),) = _ground_pixels([[0, meters]]).tolist()
        cv2.line(image, (0, y), (last, y), BIRD_LINES, 1)
        cv2.putText(image, f"{meters} m", (3, y - 4), *font)
    cv2.circle(image, (BIRD_SIZE // 2, last), 4, BIRD_TEXT, cv2.FILLED, cv2.LINE_AA)  # the camera
    return image


def _ground_points(row: np.ndarray) -> np.ndarray:
    """Return the bottom of a box in the view from above, (4, 2) int32, the front edge first."""
    return _ground_pixels(compute_box_3d(row[5:8], row[8:11], row[11])[:4, [0, 2]])


def _ground_pixels(points) -> np.ndarray:
    """Return pixels (n, 2) int32 of the bird's-eye view for points (n, 2), x and z in meters."""
    x, z = np.asarray(points, dtype=np.float64).T
    pixels = np.stack([x + BIRD_METERS / 2, BIRD_METERS - z], axis=1) * BIRD_SIZE / BIRD_METERS
    return np.clip(pixels, -10 * BIRD_SIZE, 10 * BIRD_SIZE).astype(np.int32)


def _shown(results: Mapping[int, np.ndarray], threshold: float) -> list[tuple[int, np.ndarray]]:
    return [
        (cls, row)
        for cls, rows in results.items()
        for row in np.asarray(rows, dtype=np.float64).reshape(-1, 13)
        if row[12] > threshold and np.isfinite(row).all()
    ]


def unwarp(image: np.ndarray, size: tuple[int, int], center, scale) -> np.ndarray:
    """Return the network's input in its place in an image of ``size`` = (width, height), black around it."""
    matrix = get_affine_transform(center, scale, 0, (image.shape[1], image.shape[0]), inv=1)
    return cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR)


class DddVisualizer(Visualizer):
    """Drawings of ``tasks.ddd``: 2D boxes, 3D boxes and the bird's-eye view, under the names of the reference."""

    def training_images(self, batch: dict, output: dict[str, Tensor] | None) -> dict[str, np.ndarray]:
        """Draw heatmaps, boxes in 2D, boxes in 3D in an image of the original size, and the bird's-eye view."""
        opt, meta = self.opt, batch["meta"][0]
        image = restore_image(batch["input"][0].cpu().numpy(), opt.mean, opt.std)
        maps, dets = {"gt": {"hm": batch["hm"][0]}}, {"gt": (meta["gt_det"][None], GROUND_TRUTH_THRESH)}
        if output is not None:
            first = {name: values[:1].detach() for name, values in output.items()}
            maps["pred"] = self.scores(first)
            dets["pred"] = self.task.decode(first).cpu().numpy(), opt.center_thresh
        images = {f"hm_{name}": self.overlays(image, name, hm)[f"{name}_hm"] for name, hm in maps.items()}
        whole, results = unwarp(image, meta["size"], meta["c"], meta["s"]), {}
        for name, (rows, threshold) in dets.items():
            if opt.reg_bbox:
                images[f"det_{name}"] = self.boxes_2d(image, rows[0], threshold, name == "pred")
            (results[name],) = ddd_post_process(rows, [meta["c"]], [meta["s"]], [meta["calib"]], opt, False)
            images[f"add_{name}"] = self.boxes_3d(whole, results[name], meta, threshold, name == "pred")
        images["bird_pred_gt"] = bird_view(results.get("pred", {}), opt.center_thresh, results["gt"])
        return images

    def network_images(self, image: np.ndarray, output: dict[str, Tensor], dets: Tensor) -> dict[str, np.ndarray]:
        """Draw the heatmap, and the 2D boxes if the network predicts them."""
        images = self.overlays(image, "pred", self.scores(output))
        if self.opt.reg_bbox:
            images["det_pred"] = self.boxes_2d(image, dets[0].cpu().numpy(), self.opt.center_thresh)
        return images

    def result_images(self, image: np.ndarray, results: Detections, meta: dict) -> dict[str, np.ndarray]:
        """Draw the 3D boxes whose score exceeds ``--vis_thresh``, and the bird's-eye view."""
        threshold = self.opt.vis_thresh
        return {"add_pred": self.boxes_3d(image, results, meta, threshold), "bird_pred": bird_view(results, threshold)}

    def ground_truth_images(self, image: np.ndarray, objects: Objects) -> dict[str, np.ndarray]:
        """Draw the 3D boxes of the objects of an image, and the bird's-eye view."""
        calib, results = objects.get("calib", DEFAULT_CALIB), {}
        for cls in range(self.opt.num_classes):
            boxes, dep, dim, alpha = (objects[name][objects["cls"] == cls] for name in ("boxes", "dep", "dim", "alpha"))
            location, rotation_y = ddd2locrot((boxes[:, :2] + boxes[:, 2:]) / 2, alpha, dim, dep[:, 0], calib)
            columns = [alpha[:, None], boxes, dim, location, rotation_y[:, None], np.ones((len(boxes), 1))]
            results[cls + 1] = np.concatenate(columns, axis=1)
        drawing = self.boxes_3d(image, results, objects, GROUND_TRUTH_THRESH, scores=False)
        return {"add_gt": drawing, "bird_gt": bird_view({}, GROUND_TRUTH_THRESH, results)}

    def boxes_3d(
        self, image: np.ndarray, results: Detections, meta: dict, threshold: float, scores: bool = True
    ) -> np.ndarray:
        """Draw 3D boxes with the camera ``calib`` of ``meta``."""
        canvas, calib = self.canvas(image), np.asarray(meta.get("calib", DEFAULT_CALIB))
        draw_boxes_3d(canvas, results, calib, threshold, self.opt.class_names, scores)
        return canvas.finish()

    def boxes_2d(self, image: np.ndarray, dets: np.ndarray, threshold: float, scores: bool = True) -> np.ndarray:
        """Draw the 2D boxes of detections (K, 18) in the network's input."""
        boxes = np.hstack([dets[:, :2] - dets[:, 15:17] / 2, dets[:, :2] + dets[:, 15:17] / 2])
        rows = np.hstack([self.opt.down_ratio * boxes, dets[:, 2:3], dets[:, 17:18]])
        return self.boxes(image, rows, threshold, scores)
