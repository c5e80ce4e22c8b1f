"""The synthetic sample of poses: a few hundred images of drawn stick figures, in COCO's layout.

One to three figures per image face the viewer in front of textured backgrounds; they vary in size, pose and color, hide
parts of each other, and some are cut off by the image's edge. Limbs of the left side are blue, those of the right
side red, legs darker than arms. The drawing depends on nothing but the constants below.
"""

from pathlib import Path

import cv2
import numpy as np

from ...ops.keypoints import JOINT_NAMES, NUM_JOINTS, SKELETON
from ..coco_hp import COCOHP
from .base import SyntheticDataset, box_fields, size_fields, striped_background
from .shapes import FINE, SIZE

TALL = (64, 116)  # least and greatest height of a figure, in pixels
MIN_SEEN = 0.6  # of a figure's pixels, inside the image
MAX_HIDDEN = 0.4  # of those, by the figures drawn over it

# Where joints are on a figure of height 1 that stands upright: (x, y) from the top of the head, its left on the right.
HEAD, HEAD_RADIUS = (0.0, 0.09), 0.085
FACE = {"nose": (0.0, 0.115), "left_eye": (0.035, 0.075), "left_ear": (0.085, 0.09)}
TRUNK = {"left_shoulder": (0.12, 0.23), "left_hip": (0.07, 0.53)}
UPPER_ARM, LOWER_ARM, UPPER_LEG, LOWER_LEG = 0.17, 0.16, 0.23, 0.22
LIMB = 0.078  # how thick arms and legs are

# OpenCV's hues, 0 to 180.
SIDE_HUES = {"left": 110, "right": 0}
SKIN_HUE, TRUNK_HUES = 14, (35, 85)


class SyntheticPoses(SyntheticDataset, COCOHP):
    """Stick figures with the 17 joints of a person."""

    name = "sample_hp"
    folder_names = ("sample_hp",)
    image_name = "{:012d}.jpg"
    default_resolution = (96, 96)
    max_objs = 8

    @classmethod
    def path_of_annotations(cls, folder: Path, split: str) -> Path:
        return folder / "annotations" / f"person_keypoints_{split}2017.json"

    @classmethod
    def images_of(cls, folder: Path, split: str) -> Path:
        return folder / f"{split}2017"

    @classmethod
    def categories(cls) -> list[dict]:
        skeleton = [[a + 1, b + 1] for a, b in SKELETON]
        person = {"supercategory": "person", "id": 1, "name": "person"}
        return [{**person, "keypoints": JOINT_NAMES, "skeleton": skeleton}]

    @classmethod
    def draw_scene(cls, rng: np.random.Generator) -> tuple[np.ndarray, dict, list[dict]]:
        image, figures = draw_image(rng)
        return image, size_fields(image), [_annotation(figure) for figure in figures]


def _annotation(figure: dict) -> dict:
    joints = figure["keypoints"]
    labeled = int((joints[:, 2] > 0).sum())
    fields = {**box_fields(*figure["bbox"]), "area": figure["area"]}
    return {"category_id": 1, **fields, "keypoints": joints.reshape(-1).tolist(), "num_keypoints": labeled}


def draw_image(rng: np.random.Generator) -> tuple[np.ndarray, list[dict]]:
    """Return an image (H, W, 3) uint8 and its figures, back to front.

    A figure has ``bbox`` (x, y, w, h) in whole pixels and ``area``, both of what can be seen of it, and ``keypoints``
    (17, 3) [x, y, visibility]: 2 seen, 1 behind another figure, and zeros outside the image.
    """
    height, width = [(SIZE, SIZE), (SIZE, 96), (96, SIZE)][rng.choice(3, p=[0.6, 0.2, 0.2])]
    image = striped_background(rng, height, width)
    masks: list[tuple[np.ndarray, float]] = []
    joints: list[np.ndarray] = []
    for _ in range(rng.integers(1, 4)):
        for _attempt in range(10):
            pose, tall = _pose(rng, height, width)
            paint, mask, share = _figure(rng, pose, tall, height, width)
            visible = [other * (1 - mask) for other, _ in masks]
            kept = all(now.sum() > (1 - MAX_HIDDEN) * full for now, (_, full) in zip(visible, masks, strict=True))
            if share > MIN_SEEN and kept:
                masks = [(now, full) for now, (_, full) in zip(visible, masks, strict=True)] + [(mask, mask.sum())]
                joints.append(pose)
                image = image * (1 - mask[:, :, None]) + paint * mask[:, :, None]
                break
    image = image + rng.normal(0, 4, image.shape)
    figures = [_described(points, mask, (width, height)) for points, (mask, _) in zip(joints, masks, strict=True)]
    return image.clip(0, 255).astype(np.uint8), figures


def _pose(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, float]:
    """Return the joints (17, 2) of a figure with the middle of its head as a last row, and its height, in pixels."""
    at = {name: np.array(place) for name, place in (FACE | TRUNK).items()}
    for name in [name for name in at if name.startswith("left")]:
        at[name.replace("left", "right")] = at[name] * (-1, 1)
    for side, outward in (("left", 1), ("right", -1)):
        arm, leg = rng.uniform(8, 150), rng.uniform(-4, 32)
        at[f"{side}_elbow"] = at[f"{side}_shoulder"] + UPPER_ARM * _direction(outward * arm)
        at[f"{side}_wrist"] = at[f"{side}_elbow"] + LOWER_ARM * _direction(outward * (arm + rng.uniform(-40, 60)))
        at[f"{side}_knee"] = at[f"{side}_hip"] + UPPER_LEG * _direction(outward * leg)
        at[f"{side}_ankle"] = at[f"{side}_knee"] + LOWER_LEG * _direction(outward * (leg - rng.uniform(-8, 25)))
    points = np.array([at[name] for name in JOINT_NAMES] + [np.array(HEAD)])
    tall, lean = rng.uniform(*TALL), np.deg2rad(rng.normal(0, 10))
    rotation = np.array([[np.cos(lean), -np.sin(lean)], [np.sin(lean), np.cos(lean)]])
    middle = np.array([rng.uniform(0.1, 0.9) * width, rng.uniform(0.35, 0.65) * height])
    return (points - (0, 0.5)) @ rotation.T * tall + middle, tall


def _direction(degrees: float) -> np.ndarray:
    """Return the unit vector of an angle: downwards at 0, to the right of the image at 90."""
    return np.array([np.sin(np.deg2rad(degrees)), np.cos(np.deg2rad(degrees))])


def _figure(
    rng: np.random.Generator, pose: np.ndarray, tall: float, height: int, width: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return colors (height, width, 3), coverage (height, width) in [0, 1], and the share of it inside the image."""
    margin = SIZE // 2  # around the image, so that what is cut off can be measured
    size = (height + 2 * margin, width + 2 * margin)
    paint = np.zeros((size[0] * FINE, size[1] * FINE, 3), np.uint8)
    mask = np.zeros(paint.shape[:2], np.uint8)
    places = np.rint((pose + margin + 0.5) * FINE - 0.5).astype(int).tolist()
    at = dict(zip((*JOINT_NAMES, "head"), places, strict=True))

    def color(hue: float, saturation: float, value: float) -> list[int]:
        hsv = np.array([[[(hue + rng.uniform(-7, 7)) % 180, saturation, value]]]).astype(np.uint8)
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0].tolist()

    def line(names: list[str], shade: list[int], thick: float) -> None:
        thickness = max(1, round(thick * tall * FINE))
        for one, two in zip(names, names[1:], strict=False):
            for canvas, ink in ((paint, shade), (mask, 255)):
                cv2.line(canvas, at[one], at[two], ink, thickness)

    def disc(name: str, shade: list[int], radius: float) -> None:
        for canvas, ink in ((paint, shade), (mask, 255)):
            cv2.circle(canvas, at[name], max(1, round(radius * tall * FINE)), ink, cv2.FILLED)

    shades = {side: (hue, rng.uniform(170, 250), rng.uniform(190, 250)) for side, hue in SIDE_HUES.items()}
    for side, (hue, saturation, value) in shades.items():
        line([f"{side}_hip", f"{side}_knee", f"{side}_ankle"], color(hue, saturation, 0.6 * value), LIMB)
    trunk = color(rng.uniform(*TRUNK_HUES), rng.uniform(90, 200), rng.uniform(110, 230))
    corners = np.array([at[name] for name in ("left_shoulder", "right_shoulder", "right_hip", "left_hip")])
    for canvas, ink in ((paint, trunk), (mask, 255)):
        cv2.fillPoly(canvas, [corners], ink)
    line(["left_shoulder", "right_shoulder"], trunk, LIMB)
    for side, (hue, saturation, value) in shades.items():
        line([f"{side}_shoulder", f"{side}_elbow", f"{side}_wrist"], color(hue, saturation, value), LIMB)
    skin = color(SKIN_HUE, rng.uniform(60, 130), rng.uniform(170, 250))
    for ear in ("left_ear", "right_ear"):
        disc(ear, skin, 0.03)
    disc("head", skin, HEAD_RADIUS)
    for eye in ("left_eye", "right_eye"):
        disc(eye, [30, 20, 20], 0.019)
    disc("nose", color(0, 160, 150), 0.018)

    mask = cv2.resize(mask, size[::-1], interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    whole = mask.sum()
    inside = (slice(margin, margin + height), slice(margin, margin + width))
    colors = cv2.resize(paint, size[::-1], interpolation=cv2.INTER_AREA).astype(np.float32)[inside]
    mask = mask[inside]
    # The colors of a partly covered pixel are mixed with black; return the figure's own.
    return colors / np.maximum(mask, 1e-3)[:, :, None], mask, float(mask.sum() / whole)


def _described(pose: np.ndarray, mask: np.ndarray, size: tuple[int, int]) -> dict:
    points = pose[:NUM_JOINTS].round(1)
    inside = ((points >= 0) & (points <= np.array(size) - 1)).all(1)
    x, y = points.round().astype(int).clip(0, np.array(size) - 1).T
    keypoints = np.column_stack([points, np.where(mask[y, x] > 0.5, 2, 1)])
    keypoints[~inside] = 0
    box = cv2.boundingRect((mask > 0.5).astype(np.uint8))
    return {"bbox": box, "area": round(float(mask.sum()), 1), "keypoints": keypoints}
