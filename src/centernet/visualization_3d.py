"""Images for ``--debug`` of the 3D task: boxes in the image, and the scene from above.

``results`` are ``{class from 1: (n, 13) rows}`` as ``tasks.ddd`` gives them. Images are (height, width, 3) uint8 in
BGR order; no function changes its arguments.
"""

from collections.abc import Mapping

import cv2
import numpy as np

from .ops.box3d import compute_box_3d, project_to_image
from .ops.image import get_affine_transform
from .visualization import WHITE_THEME_LIMIT, class_colors

NEAREST = 0.1  # meters in front of the camera; edges of a box are cut off there
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
    """A copy of ``image`` with the edges of the boxes whose score exceeds ``threshold``, the nearest last.

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
    """The part of an edge that lies in front of the camera."""
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
    """The scene from above, (384, 384, 3) uint8 for 64 x 64 meters, the camera at the middle of the lower edge.

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
    """The bottom of a box in the view from above, (4, 2) int32, the front edge first."""
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
    """The network's input back in its place in an image of ``size`` = (width, height); black where it shows none."""
    matrix = get_affine_transform(center, scale, 0, (image.shape[1], image.shape[0]), inv=1)
    return cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR)
