"""Drawings of poses: boxes, skeletons and the heatmaps of joints; left is blue, right is red."""

import re

import cv2
import numpy as np
from torch import Tensor

from ..ops.keypoints import COCO_PERSON, KeypointSchema
from ..tasks.base import Detections, Objects
from .base import Visualizer, with_class
from .canvas import FAR, Canvas

LEFT, RIGHT, MIDDLE = (255, 0, 0), (0, 0, 255), (255, 0, 255)  # BGR
RADIUS, THICKNESS = 3, 2  # of joints and bones, in units of the canvas
IS_RIGHT = re.compile(r"right|(?<![a-z])r(?![a-z])", re.IGNORECASE)  # names of joints of the right side


def joint_colors(keypoints: KeypointSchema) -> list[tuple[int, int, int]]:
    """Return the color of each joint: blue and red for those of the left and right side; without sides all differ."""
    if not keypoints.flip_pairs:
        hues = np.linspace(0, 180, len(keypoints), endpoint=False).astype(np.uint8)  # OpenCV's are half of a circle
        hsv = np.stack([hues, *np.full((2, len(hues)), 255, np.uint8)], axis=1)[None]
        return [(int(b), int(g), int(r)) for b, g, r in cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0]]
    colors = [MIDDLE] * len(keypoints)
    for one, other in keypoints.flip_pairs:
        left, right = (other, one) if IS_RIGHT.search(keypoints.names[one]) else (one, other)
        colors[left], colors[right] = LEFT, RIGHT
    return colors


JOINT_COLORS = joint_colors(COCO_PERSON)


def bone_color(a: int, b: int, colors: list[tuple[int, int, int]] = JOINT_COLORS) -> tuple[int, int, int]:
    """Return the color of the side on which a bone between two joints is; the nose is on the side of its neighbor."""
    sides = {colors[joint] for joint in (a, b)} - {MIDDLE}
    return sides.pop() if len(sides) == 1 else MIDDLE


def draw_skeleton(
    canvas: Canvas,
    joints: np.ndarray,
    seen: np.ndarray | None = None,
    keypoints: KeypointSchema = COCO_PERSON,
    cls: int = 0,
) -> None:
    """Draw an object's joints as discs, and the bones between them as lines.

    ``joints`` (2J,) or (J, 2) x and y in pixels; ``seen`` (J,) bool: which joints to draw, None: all; ``cls``: the
    object's class (from 0), which determines its bones. A bone is left out where a coordinate of its ends is not above
    0, a joint where it is not finite.
    """
    colors = joint_colors(keypoints)
    joints = np.asarray(joints, dtype=np.float64).reshape(len(keypoints), 2)
    drawn = np.asarray((np.isfinite(joints) & (np.abs(joints) < FAR)).all(axis=1))
    if seen is not None:
        drawn &= np.asarray(seen, dtype=bool)
    for a, b in keypoints.bones_of(cls):
        if drawn[a] and drawn[b] and joints[[a, b]].min() > 0:
            canvas.line(joints[a], joints[b], bone_color(a, b, colors), THICKNESS)
    for joint in np.flatnonzero(drawn):
        canvas.disc(joints[joint], colors[joint], RADIUS)


class MultiPoseVisualizer(Visualizer):
    """Drawings of ``tasks.multi_pose``."""

    def heat_maps(self, maps: dict[str, Tensor]) -> dict[str, tuple[Tensor, np.ndarray | None]]:
        """Return the maps of centers and of joints."""
        found: dict[str, tuple[Tensor, np.ndarray | None]] = {"hm": (maps["hm"], None)}
        if "hm_hp" in maps:
            found["hmhp"] = (maps["hm_hp"], np.array(joint_colors(self.opt.keypoints)))
        return found

    def scores(self, output: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the score maps of the first image; with ``--mse_loss`` joints are learned without a sigmoid."""
        scores = super().scores(output)
        if "hm_hp" in output and self.opt.mse_loss:
            scores["hm_hp"] = output["hm_hp"][0].float()
        return scores

    def draw_dets(self, image: np.ndarray, dets: np.ndarray, scores: bool = True) -> np.ndarray:
        """Draw persons (n, 6 + 2J) in output pixels on the network's input."""
        return self.persons(image, self._rows(dets), dets[:, -1], self.opt.center_thresh, scores=scores)

    def draw_meta(self, image: np.ndarray, meta: dict) -> np.ndarray:
        """Draw the persons of a sample, with their labeled joints, on the network's input."""
        labeled = meta["labeled"]
        dets = meta["gt_det"][: len(labeled)]
        return self.persons(image, self._rows(dets), dets[:, -1], self.opt.center_thresh, labeled, scores=False)

    def network_images(self, image: np.ndarray, output: dict[str, Tensor], dets: Tensor) -> dict[str, np.ndarray]:
        """Draw one test scale: the heatmaps of centers and of joints."""
        return self.overlays(image, "pred", self.scores(output))

    def draw_results(self, image: np.ndarray, results: Detections) -> np.ndarray:
        """Draw the persons whose score exceeds ``--vis_thresh``."""
        rows = with_class(results)
        return self.persons(image, rows[:, :-1], rows[:, -1], self.opt.vis_thresh)

    def draw_objects(self, image: np.ndarray, objects: Objects) -> np.ndarray:
        """Draw the persons of an image with their labeled joints."""
        joints = objects["joints"]
        points = joints[:, :, :2].reshape(-1, 2 * joints.shape[1])
        rows = np.hstack([objects["boxes"], np.ones((len(joints), 1)), points])
        return self.persons(image, rows, objects["cls"], self.opt.vis_thresh, joints[:, :, 2] > 0, scores=False)

    def persons(
        self,
        image: np.ndarray,
        rows: np.ndarray,
        cls: np.ndarray,
        threshold: float,
        visible: np.ndarray | None = None,
        scores: bool = True,
    ) -> np.ndarray:
        """Draw boxes and skeletons of the rows (n, 5 + 2J) whose score exceeds ``threshold``.

        ``cls`` (n,): classes from 0; ``visible`` (n, J) bool: joints to draw, None: all of the class.
        """
        keypoints, canvas = self.opt.keypoints, self.canvas(image)
        canvas.boxes(np.hstack([rows[:, :5], cls[:, None]]), self.opt.class_names, threshold, scores)
        for k in np.flatnonzero(rows[:, 4] > threshold):
            seen = np.isin(np.arange(len(keypoints)), keypoints.joints_of(int(cls[k])))
            if visible is not None:
                seen &= visible[k]
            draw_skeleton(canvas, rows[k, 5:], seen, keypoints, int(cls[k]))
        return canvas.finish()

    def _rows(self, dets: np.ndarray) -> np.ndarray:
        return self.to_input(dets, [k for k in range(dets.shape[1]) if k != 4])[:, :-1]
