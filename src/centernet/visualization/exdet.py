"""Drawings of extreme points: boxes, points, and the octagons that they span."""

import numpy as np
import torch
from torch import Tensor

from ..tasks.base import Detections, Objects
from ..tasks.exdet import SIDES, ground_truth_rows
from .base import Visualizer, with_class


class ExdetVisualizer(Visualizer):
    """Drawings of ``tasks.exdet``."""

    def heat_maps(self, maps: dict[str, Tensor]) -> dict[str, tuple[Tensor, np.ndarray | None]]:
        """Return the maps of all extreme points in one, and those of the centers."""
        extreme = torch.stack([maps[f"hm_{side}"] for side in SIDES]).amax(0)
        return {"hm": (extreme, None), "hm_c": (maps["hm_c"], None)}

    def draw_dets(self, image: np.ndarray, dets: np.ndarray, scores: bool = True) -> np.ndarray:
        """Draw detections (n, 14) in output pixels, after soft-NMS, on the network's input."""
        rows = dets[dets[:, 4] > 0]
        by_class = {cls + 1: rows[rows[:, 13] == cls, :13] for cls in range(self.opt.num_classes)}
        rows = with_class(self.task.merge_scales([by_class]))
        return self.points(image, self.to_input(rows, [*range(4), *range(5, 13)]), self.opt.center_thresh, scores)

    def draw_meta(self, image: np.ndarray, meta: dict) -> np.ndarray:
        """Draw the ground truth of a sample on the network's input."""
        rows = self.to_input(meta["gt_det"], [*range(4), *range(5, 13)])
        return self.points(image, rows, self.opt.center_thresh, scores=False)

    def draw_results(self, image: np.ndarray, results: Detections) -> np.ndarray:
        """Draw the rows of results whose score exceeds ``--vis_thresh``."""
        return self.points(image, with_class(results), self.opt.vis_thresh)

    def draw_objects(self, image: np.ndarray, objects: Objects) -> np.ndarray:
        """Draw the boxes and points of the objects of an image."""
        rows = ground_truth_rows(objects["points"], objects["cls"])
        return self.points(image, rows, self.opt.vis_thresh, scores=False)

    def points(self, image: np.ndarray, rows: np.ndarray, threshold: float, scores: bool = True) -> np.ndarray:
        """Draw boxes, octagons and extreme points of the rows (n, 14) whose score exceeds ``threshold``."""
        canvas = self.canvas(image)
        rows = rows[np.isfinite(rows).all(axis=1) & (rows[:, 4] > threshold)]
        rows = rows[np.argsort(rows[:, 4], kind="stable")]
        canvas.boxes(rows[:, [0, 1, 2, 3, 4, 13]], self.opt.class_names, threshold, scores)
        height, width = image.shape[:2]
        for row in rows:
            color, points = canvas.color(int(row[13])), row[5:13].reshape(4, 2).clip(-1, [width, height])
            canvas.outline(octagon(row[5:13].reshape(4, 2)).clip(-1, [width, height]), color)
            for point in points:
                canvas.disc(point, color, edge=(255, 255, 255))
        return canvas.finish()


def octagon(points: np.ndarray) -> np.ndarray:
    """Return the outline (8, 2) of extreme points (4, 2): a quarter of each side of the box around each point.

    "Extreme points to octagon", section 4.4 of the paper; the segments are clipped at the corners of the box.
    """
    (tx, top), (left, ly), (bx, bottom), (right, ry) = points
    dx, dy = (right - left) / 8, (bottom - top) / 8
    corners = [(tx + dx, top), (tx - dx, top), (left, ly - dy), (left, ly + dy)]
    corners += [(bx - dx, bottom), (bx + dx, bottom), (right, ry + dy), (right, ry - dy)]
    low, high = np.minimum([left, top], [right, bottom]), np.maximum([left, top], [right, bottom])
    return np.clip(np.array(corners, dtype=np.float64), low, high)
