"""The synthetic sample: a few hundred images of drawn objects, in VOC's layout. The dataset to start with.

Objects of five classes in front of textured backgrounds; they overlap, vary in size, color and shape, and some are cut
off by the image's edge. The drawing depends on nothing but the constants below.
"""

from pathlib import Path

import cv2
import numpy as np

from ..pascal import PascalVOC
from .base import SyntheticDataset, box_fields, size_fields, smooth_noise, striped_background

SIZE = 128  # of an image's longer side
FINE = 4  # objects are drawn this much larger and scaled down, for smooth edges
MAX_HIDDEN = 0.5  # of an object, by the objects drawn over it


class SyntheticShapes(SyntheticDataset, PascalVOC):
    """Five classes of drawn objects."""

    name = "sample"
    folder_names = ("sample",)
    splits = {PascalVOC.train_file: 320, PascalVOC.val_files[0]: 80}
    class_names = ("ball", "box", "cone", "leaf", "ring")
    category_ids = (1, 2, 3, 4, 5)
    default_resolution = (96, 96)
    max_objs = 16

    @classmethod
    def path_of_annotations(cls, folder: Path, split: str) -> Path:
        files = {"train": cls.train_file, "val": cls.val_files[0]}
        return folder / "annotations" / files.get(split, split)

    @classmethod
    def draw_split(cls, image_ids: range, image_folder: Path) -> dict:
        return {"type": "instances", **super().draw_split(image_ids, image_folder)}

    @classmethod
    def draw_scene(cls, rng: np.random.Generator) -> tuple[np.ndarray, dict, list[dict]]:
        image, objects = draw_image(rng)
        entries = [{"category_id": k + 1, **box_fields(*box), "ignore": 0} for k, box in objects]
        return image, size_fields(image), entries


def draw_image(rng: np.random.Generator) -> tuple[np.ndarray, list[tuple[int, tuple[int, int, int, int]]]]:
    """Return an image (H, W, 3) uint8 and its objects: (class from 0, (x, y, w, h) in whole pixels), back to front."""
    height, width = [(SIZE, SIZE), (SIZE, 96), (96, SIZE)][rng.choice(3, p=[0.6, 0.2, 0.2])]
    image = striped_background(rng, height, width)
    masks: list[np.ndarray] = []
    objects: list[tuple] = []
    for _ in range(rng.integers(1, 6)):
        for _attempt in range(10):
            cls = int(rng.integers(5))
            mask = _shape(rng, cls, height, width)
            box = cv2.boundingRect((mask > 0.5).astype(np.uint8))
            visible = [other * (1 - mask) for other in masks]
            kept = all(now.sum() > (1 - MAX_HIDDEN) * full for now, (_, _, full) in zip(visible, objects, strict=True))
            if min(box[2:]) >= 8 and kept:
                masks = [*visible, mask]
                objects.append((cls, box, mask.sum()))
                paint = _paint(rng, cls, height, width)
                image = image * (1 - mask[:, :, None]) + paint * mask[:, :, None]
                break
    image = image + rng.normal(0, 4, image.shape)
    return image.clip(0, 255).astype(np.uint8), [(cls, box) for cls, box, _ in objects]


def _shape(rng: np.random.Generator, cls: int, height: int, width: int) -> np.ndarray:
    """Return the coverage of an object, (height, width) float32 in [0, 1]."""
    size = float(np.exp(rng.uniform(np.log(16), np.log(72))))
    center = np.array([rng.uniform(0, width), rng.uniform(0, height)])
    mask = np.zeros((height * FINE, width * FINE), np.uint8)
    stretch = rng.uniform(0.65, 1.5)
    half = FINE * size / 2 * np.array([np.sqrt(stretch), 1 / np.sqrt(stretch)])
    angle = rng.uniform(0, 360)
    middle = tuple(int(value) for value in center * FINE)
    if cls == 0:  # ball
        cv2.circle(mask, middle, int(FINE * size / 2), 255, -1)
    elif cls == 1:  # box
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half
        cv2.fillPoly(mask, [_placed(corners, rng.uniform(-25, 25), center)], 255)
    elif cls == 2:  # cone
        corners = np.array([[0, -1], [0.9, 1], [-0.9, 1]]) * half
        cv2.fillPoly(mask, [_placed(corners, rng.uniform(-30, 30), center)], 255)
    elif cls == 3:  # leaf
        cv2.ellipse(mask, middle, (int(FINE * size / 2), int(FINE * size / 4.5)), angle, 0, 360, 255, -1)
    else:  # ring
        cv2.ellipse(mask, middle, (int(half[0]), int(half[1])), 0, 0, 360, 255, -1)
        cv2.ellipse(mask, middle, (int(half[0] * 0.5), int(half[1] * 0.5)), 0, 0, 360, 0, -1)
    return cv2.resize(mask, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _placed(corners: np.ndarray, degrees: float, center: np.ndarray) -> np.ndarray:
    angle = np.deg2rad(degrees)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return (corners @ rotation.T + center * FINE).astype(np.int32)


def _paint(rng: np.random.Generator, cls: int, height: int, width: int) -> np.ndarray:
    """Return an object's color, from its class's family of hues, with some texture and light."""
    hue = [0, 110, 25, 62, 150][cls] + rng.uniform(-9, 9)  # OpenCV's hues, 0 to 180: red, blue, orange, green, violet
    hsv = np.array([[[hue % 180, rng.uniform(150, 250), rng.uniform(130, 245)]]]).astype(np.uint8)
    color = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0].astype(np.float32)
    y, x = np.mgrid[:height, :width]
    angle = rng.uniform(0, 2 * np.pi)
    light = 1 + 0.25 * ((x / width - 0.5) * np.cos(angle) + (y / height - 0.5) * np.sin(angle))
    return color * light[:, :, None] + (8 * smooth_noise(rng, height, width, 16))[:, :, None]
