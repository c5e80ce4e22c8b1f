"""The generated sample: a few hundred images drawn by code, in VOC layout. It runs when there is no dataset.

Objects of five classes in front of textured grounds; they overlap, vary in size, color and shape, and some are cut off
by the image's edge. The drawing depends on nothing but the constants below.
"""

import json
from pathlib import Path

import cv2
import numpy as np

from .base import IMAGENET_MEAN, IMAGENET_STD
from .generated import SyntheticDataset, smooth_noise, striped_ground, write_file, write_image
from .pascal import PascalVOC

SEED = 2019
VERSION = 1  # of the drawing; a folder of another version is drawn anew
SPLITS = {"pascal_trainval0712.json": 320, "pascal_test2007.json": 80}  # images
SIZE = 128  # of an image's longer side
FINE = 4  # objects are drawn this much larger and scaled down, for smooth edges
MAX_HIDDEN = 0.5  # of an object, by the objects drawn over it


class Sample(SyntheticDataset, PascalVOC):
    """Five classes of drawn objects."""

    name = "sample"
    folder_names = ("sample",)
    class_names = ("ball", "box", "cone", "leaf", "ring")
    category_ids = (1, 2, 3, 4, 5)
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    default_resolution = (96, 96)
    max_objs = 16
    version = VERSION

    @classmethod
    def draw(cls, folder: Path) -> None:
        (folder / "images").mkdir(exist_ok=True)
        first = 1
        for file_name, count in SPLITS.items():
            content = draw_split(range(first, first + count), folder / "images", cls.class_names)
            write_file(folder / "annotations" / file_name, json.dumps(content).encode())
            first += count


def draw_split(image_ids: range, image_folder: Path, class_names: tuple[str, ...]) -> dict:
    """Write the images ``image_ids`` and return their annotations in the form of VOC's JSON files."""
    images, annotations = [], []
    for image_id in image_ids:
        image, objects = draw_image(np.random.default_rng((SEED, image_id)))
        name = f"{image_id:06d}.jpg"
        write_image(image_folder / name, image)
        height, width = image.shape[:2]
        images.append({"file_name": name, "height": height, "width": width, "id": image_id})
        for cls, (x, y, w, h) in objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": cls + 1,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "segmentation": [[x, y, x, y + h, x + w, y + h, x + w, y]],
                    "iscrowd": 0,
                    "ignore": 0,
                }
            )
    categories = [{"supercategory": "none", "id": k + 1, "name": name} for k, name in enumerate(class_names)]
    return {"images": images, "type": "instances", "annotations": annotations, "categories": categories}


def draw_image(rng: np.random.Generator) -> tuple[np.ndarray, list[tuple[int, tuple[int, int, int, int]]]]:
    """One image (H, W, 3) uint8 and its objects: (class from 0, (x, y, w, h) in whole pixels), back to front."""
    height, width = [(SIZE, SIZE), (SIZE, 96), (96, SIZE)][rng.choice(3, p=[0.6, 0.2, 0.2])]
    image = striped_ground(rng, height, width)
    masks, objects = [], []
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
    """Where an object is: (height, width) float32 coverage in [0, 1]."""
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
    turn = np.deg2rad(degrees)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return (corners @ rotation.T + center * FINE).astype(np.int32)


def _paint(rng: np.random.Generator, cls: int, height: int, width: int) -> np.ndarray:
    """An object's color, from its class's family of hues, with some texture and light."""
    hue = [0, 110, 25, 62, 150][cls] + rng.uniform(-9, 9)  # OpenCV's hues, 0 to 180: red, blue, orange, green, violet
    hsv = np.uint8([[[hue % 180, rng.uniform(150, 250), rng.uniform(130, 245)]]])
    color = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0].astype(np.float32)
    y, x = np.mgrid[:height, :width]
    angle = rng.uniform(0, 2 * np.pi)
    light = 1 + 0.25 * ((x / width - 0.5) * np.cos(angle) + (y / height - 0.5) * np.sin(angle))
    return color * light[:, :, None] + (8 * smooth_noise(rng, height, width, 16))[:, :, None]
