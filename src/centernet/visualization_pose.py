"""Images of poses for ``--debug``: skeletons and the heat maps of joints; left is blue, right is red.

Images are (height, width, 3) uint8 in BGR order; no function changes its arguments.
"""

import cv2
import numpy as np

from .datasets.joints import FLIP_PAIRS, NUM_JOINTS, SKELETON

LEFT, RIGHT, MIDDLE = (255, 0, 0), (0, 0, 255), (255, 0, 255)  # BGR
RADIUS, THICKNESS = 3, 2  # of joints and bones, in pixels
FAR = 2**14  # pixels; OpenCV draws wrongly where coordinates do not fit into 16 bits


def _colors() -> list[tuple[int, int, int]]:
    colors = [MIDDLE] * NUM_JOINTS
    for left, right in FLIP_PAIRS:
        colors[left], colors[right] = LEFT, RIGHT
    return colors


JOINT_COLORS = _colors()


def bone_color(a: int, b: int) -> tuple[int, int, int]:
    """The color of the side on which a bone between two joints is; the nose is on the side of its neighbor."""
    sides = {JOINT_COLORS[joint] for joint in (a, b)} - {MIDDLE}
    return sides.pop() if len(sides) == 1 else MIDDLE


def draw_skeleton(image: np.ndarray, joints: np.ndarray, seen: np.ndarray | None = None) -> np.ndarray:
    """A copy of ``image`` with a person's joints as discs, and the bones between them as lines.

    ``joints`` (34,) or (17, 2) x and y in pixels; ``seen`` (17,) bool says which joints there are, None: all. A bone
    is left out where a coordinate of its ends is not above 0, a joint where it is not finite.
    """
    image = image.copy()
    joints = np.asarray(joints, dtype=np.float64).reshape(NUM_JOINTS, 2)
    there = np.asarray((np.isfinite(joints) & (np.abs(joints) < FAR)).all(axis=1))
    if seen is not None:
        there &= np.asarray(seen, dtype=bool)
    points = np.where(there[:, None], joints, 0).astype(int).tolist()
    for joint in np.flatnonzero(there):
        cv2.circle(image, points[joint], RADIUS, JOINT_COLORS[joint], cv2.FILLED)
    for a, b in SKELETON:
        if there[a] and there[b] and min(*points[a], *points[b]) > 0:
            cv2.line(image, points[a], points[b], bone_color(a, b), THICKNESS, cv2.LINE_AA)
    return image


def joint_map_image(hm_hp: np.ndarray, theme: str, size: tuple[int, int]) -> np.ndarray:
    """Heat maps of joints in the colors of their sides on black, enlarged to ``size`` = (height, width).

    ``hm_hp`` (17, h, w) float with values from 0 to 1. Each pixel is the maximum over the joints of value · color; for
    the white theme colors are inverted here, and ``visualization.blend`` turns them back.
    """
    hm_hp = np.clip(np.nan_to_num(np.asarray(hm_hp, dtype=np.float32)), 0.0, 1.0)
    image = np.zeros((*hm_hp.shape[1:], 3), dtype=np.float32)
    for channel, color in zip(hm_hp, JOINT_COLORS, strict=True):
        shown = np.array(color if theme == "black" else [255 - part for part in color], dtype=np.float32)
        np.maximum(image, channel[:, :, None] * shown, out=image)
    height, width = size
    return cv2.resize(np.rint(image).astype(np.uint8), (width, height), interpolation=cv2.INTER_LINEAR)
