"""Drawings of poses: boxes, skeletons and the heat maps of joints; left is blue, right is red."""

import cv2
import numpy as np
from torch import Tensor

from ..ops.keypoints import FLIP_PAIRS, NUM_JOINTS, SKELETON
from ..tasks.base import Detections, Objects
from .base import Visualizer

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


class MultiPoseVisualizer(Visualizer):
    """Drawings of ``tasks.multi_pose``."""

    def heat_maps(self, maps: dict[str, Tensor]) -> dict[str, tuple[Tensor, np.ndarray | None]]:
        """Return the maps of centers and of joints."""
        found: dict[str, tuple[Tensor, np.ndarray | None]] = {"hm": (maps["hm"], None)}
        if "hm_hp" in maps:
            found["hmhp"] = (maps["hm_hp"], np.array(JOINT_COLORS))
        return found

    def scores(self, output: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the score maps of the first image; with ``--mse_loss`` joints are learned without a sigmoid."""
        scores = super().scores(output)
        if "hm_hp" in output and self.opt.mse_loss:
            scores["hm_hp"] = output["hm_hp"][0].float()
        return scores

    def draw_dets(self, image: np.ndarray, dets: np.ndarray) -> np.ndarray:
        """Draw persons (n, 6 + 2J) in output pixels on the network's input."""
        return self.persons(image, self._rows(dets), self.opt.center_thresh)

    def draw_meta(self, image: np.ndarray, meta: dict) -> np.ndarray:
        """Draw the persons of a sample, with their labeled joints, on the network's input."""
        labeled = meta["labeled"]
        return self.persons(image, self._rows(meta["gt_det"][: len(labeled)]), self.opt.center_thresh, labeled)

    def network_images(self, image: np.ndarray, output: dict[str, Tensor], dets: Tensor) -> dict[str, np.ndarray]:
        """Draw one test scale: the heat maps of centers and of joints."""
        return self.overlays(image, "pred", self.scores(output))

    def draw_results(self, image: np.ndarray, results: Detections) -> np.ndarray:
        """Draw the persons whose score exceeds ``--vis_thresh``."""
        return self.persons(image, results[1], self.opt.vis_thresh)

    def draw_objects(self, image: np.ndarray, objects: Objects) -> np.ndarray:
        """Draw the persons of an image with their labeled joints."""
        joints = objects["joints"]
        points = joints[:, :, :2].reshape(-1, 2 * joints.shape[1])
        rows = np.hstack([objects["boxes"], np.ones((len(joints), 1)), points])
        return self.persons(image, rows, self.opt.vis_thresh, joints[:, :, 2] > 0)

    def persons(
        self, image: np.ndarray, rows: np.ndarray, threshold: float, visible: np.ndarray | None = None
    ) -> np.ndarray:
        """Draw boxes and skeletons of the rows (n, 5 + 2J) whose score exceeds ``threshold``.

        ``visible`` (n, J) bool: joints to draw; None: all.
        """
        image = self.boxes(image, np.hstack([rows[:, :5], np.zeros((len(rows), 1))]), threshold)
        for k in np.flatnonzero(rows[:, 4] > threshold):
            image = draw_skeleton(image, rows[k, 5:], None if visible is None else visible[k])
        return image

    def _rows(self, dets: np.ndarray) -> np.ndarray:
        return self.to_input(dets, [k for k in range(dets.shape[1]) if k != 4])[:, :-1]
