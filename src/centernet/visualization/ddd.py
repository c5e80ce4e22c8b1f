"""Drawings of 3D boxes: in the image, and in a bird's-eye view of the scene.

``results`` are ``{class from 1: (n, 13) rows}`` of ``tasks.ddd``. Images are (height, width, 3) uint8 in BGR order; no
function changes its arguments.
"""

from collections.abc import Mapping

import cv2
import numpy as np
from torch import Tensor

from ..ops.box3d import NEAREST, compute_box_3d, ddd2locrot, project_to_image
from ..ops.image import get_affine_transform
from ..tasks.base import Detections, Objects
from ..tasks.ddd import DEFAULT_CALIB, ddd_post_process
from .base import Visualizer
from .drawing import WHITE_THEME_LIMIT, class_colors, restore_image

GROUND_TRUTH_THRESH = 0.5  # ground truth has score 1
CLOSEST_BOX = 1.0  # meters; a box whose middle is nearer is left out
FRONT = (0, 1, 5, 4)  # the corners of the face in the direction of the length
EDGES = ((0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7))

BIRD_SIZE = 384  # pixels
BIRD_METERS = 64.0  # that they stand for: half of them to each side, all of them ahead
BIRD_GROUND = 230
BIRD_FOUND = (250, 152, 12)
BIRD_TRUE = (12, 49, 250)


def draw_boxes_3d(
    image: np.ndarray, results: Mapping[int, np.ndarray], calib: np.ndarray, threshold: float, theme: str
) -> np.ndarray:
    """Return a copy of ``image`` with the edges of boxes whose score exceeds ``threshold``, the nearest last.

    A cross marks the face in front. Boxes within a meter of the camera and rows that are not finite are left out;
    ``calib`` (3, 4) is the camera.
    """
    image = image.copy()
    colors = class_colors(max(results, default=1), theme)
    if theme == "white":
        colors = colors + np.uint8(255 - WHITE_THEME_LIMIT)
    for cls, row in sorted(_shown(results, threshold), key=lambda shown: -shown[1][10]):
        if row[10] <= CLOSEST_BOX:
            continue
        corners = compute_box_3d(row[5:8], row[8:11], row[11])
        color = colors[cls - 1].tolist()
        for one, other in EDGES:
            _line(image, corners[one], corners[other], calib, color, 2)
        for one, other in (FRONT[0::2], FRONT[1::2]):
            _line(image, corners[one], corners[other], calib, color, 1)
    return image


def _line(image: np.ndarray, start: np.ndarray, end: np.ndarray, calib: np.ndarray, color, thickness: int) -> None:
    """Return the part of an edge that lies in front of the camera."""
    if max(start[2], end[2]) <= NEAREST:
        return
    points = np.stack([start, end]).astype(np.float64)
    for k in range(2):
        if points[k, 2] < NEAREST:
            share = (NEAREST - points[k, 2]) / (points[1 - k, 2] - points[k, 2])
            points[k] += share * (points[1 - k] - points[k])
    (x1, y1), (x2, y2) = np.clip(project_to_image(points, calib), -1e6, 1e6).astype(int).tolist()
    cv2.line(image, (x1, y1), (x2, y2), color, thickness, cv2.LINE_AA)


def bird_view(
    results: Mapping[int, np.ndarray], threshold: float, truth: Mapping[int, np.ndarray] | None = None
) -> np.ndarray:
    """Return the bird's-eye view, (384, 384, 3) uint8 for 64 x 64 meters, the camera at the middle of the lower edge.

    Detections whose score exceeds ``threshold`` are outlines with a thicker front, the objects of ``truth`` filled.
    """
    image = np.full((BIRD_SIZE, BIRD_SIZE, 3), BIRD_GROUND, dtype=np.uint8)
    for _, row in _shown(truth or {}, 0.5):
        cv2.fillPoly(image, [_ground_points(row)], BIRD_TRUE)
    for _, row in _shown(results, threshold):
        points = _ground_points(row)
        cv2.polylines(image, [points], True, BIRD_FOUND, 1, cv2.LINE_AA)
        cv2.line(image, tuple(points[0].tolist()), tuple(points[1].tolist()), BIRD_FOUND, 4, cv2.LINE_AA)
    return image


def _ground_points(row: np.ndarray) -> np.ndarray:
    """Return the bottom of a box in the bird's-eye view, (4, 2) int32, the front edge first."""
    corners = compute_box_3d(row[5:8], row[8:11], row[11])[:4]
    x = (corners[:, 0] + BIRD_METERS / 2) * BIRD_SIZE / BIRD_METERS
    y = BIRD_SIZE - corners[:, 2] * BIRD_SIZE / BIRD_METERS
    return np.clip(np.stack([x, y], axis=1), -10 * BIRD_SIZE, 10 * BIRD_SIZE).astype(np.int32)


def _shown(results: Mapping[int, np.ndarray], threshold: float) -> list[tuple[int, np.ndarray]]:
    return [
        (cls, row)
        for cls, rows in results.items()
        for row in np.asarray(rows, dtype=np.float64).reshape(-1, 13)
        if row[12] > threshold and np.isfinite(row).all()
    ]


def unwarp(image: np.ndarray, size: tuple[int, int], center, scale) -> np.ndarray:
    """Return the network's input mapped back into an image of ``size`` = (width, height); black outside."""
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
                images[f"det_{name}"] = self.boxes_2d(image, rows[0], threshold)
            (results[name],) = ddd_post_process(rows, [meta["c"]], [meta["s"]], [meta["calib"]], opt, False)
            images[f"add_{name}"] = self.boxes_3d(whole, results[name], meta, threshold)
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
        drawing = self.boxes_3d(image, results, objects, GROUND_TRUTH_THRESH)
        return {"add_gt": drawing, "bird_gt": bird_view({}, GROUND_TRUTH_THRESH, results)}

    def boxes_3d(self, image: np.ndarray, results: Detections, meta: dict, threshold: float) -> np.ndarray:
        """Draw 3D boxes with the camera ``calib`` of ``meta``."""
        calib = np.asarray(meta.get("calib", DEFAULT_CALIB))
        return draw_boxes_3d(image, results, calib, threshold, self.opt.debugger_theme)

    def boxes_2d(self, image: np.ndarray, dets: np.ndarray, threshold: float) -> np.ndarray:
        """Draw the 2D boxes of detections (K, 18) in the network's input."""
        boxes = np.hstack([dets[:, :2] - dets[:, 15:17] / 2, dets[:, :2] + dets[:, 15:17] / 2])
        return self.boxes(image, np.hstack([self.opt.down_ratio * boxes, dets[:, 2:3], dets[:, 17:18]]), threshold)
