"""The synthetic sample of the task exdet: a few hundred images of drawn polygons, in COCO's layout.

Convex and star-shaped polygons of four classes in front of textured backgrounds, rotated, stretched and of many sizes;
their segmentations are exact, so their extreme points are too. The drawing depends on nothing but the constants below.
"""

from pathlib import Path

import cv2
import numpy as np

from ...conversion.coco_extreme import add_extreme_points
from ..coco import COCO
from .base import SyntheticDataset, size_fields, smooth_noise

SIZE = 96  # of an image's longer side
FINE = 4  # polygons are drawn this much larger and scaled down, for smooth edges
GAP = 2  # pixels between the boxes of objects, and from them to the image's edge
CORNERS = (3, 6, 4, 6)  # corners of a class's polygons; of stars their points
INNER = (1.0, 1.0, 0.38, 0.5)  # how far the corners between a star's points are from its middle; 1: no star
HUES = (0, 110, 28, 150)  # of a class's colors, 0 to 180: red, blue, orange, violet


class SyntheticPolygons(SyntheticDataset, COCO):
    """Four classes of drawn polygons."""

    name = "sample_ex"
    folder_names = ("sample_ex",)
    tasks = ("exdet", "ctdet")
    seed = 2020
    image_name = "{:06d}.png"
    class_names = ("triangle", "hexagon", "cross", "star")
    category_ids = (1, 2, 3, 4)
    default_resolution = (96, 96)
    max_objs = 8

    @classmethod
    def path_of_annotations(cls, folder: Path, split: str) -> Path:
        return folder / "annotations" / f"instances_extreme_{split}.json"  # it serves both tasks

    @classmethod
    def draw_split(cls, image_ids: range, image_folder: Path) -> dict:
        content = super().draw_split(image_ids, image_folder)
        add_extreme_points(content)
        return content

    @classmethod
    def draw_scene(cls, rng: np.random.Generator) -> tuple[np.ndarray, dict, list[dict]]:
        image, objects = draw_image(rng)
        return image, size_fields(image), [_annotation(k, polygon) for k, polygon in objects]


def _annotation(cls: int, polygon: np.ndarray) -> dict:
    low, high = polygon.min(0), polygon.max(0)
    return {
        "category_id": cls + 1,
        "bbox": np.round([*low, *(high - low)], 2).tolist(),
        "area": round(_area(polygon), 2),
        "segmentation": [polygon.flatten().tolist()],
        "iscrowd": 0,
    }


def draw_image(rng: np.random.Generator) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """Return an image (H, W, 3) uint8 and its objects, which do not touch: (class from 0, corners (n, 2) in pixels)."""
    height, width = [(SIZE, SIZE), (SIZE, 72), (72, SIZE)][rng.choice(3, p=[0.6, 0.2, 0.2])]
    image = _background(rng, height, width)
    objects, boxes = [], np.zeros((0, 4))
    for _ in range(rng.integers(1, 5)):
        for _attempt in range(20):
            cls = int(rng.integers(len(CORNERS)))
            polygon = _polygon(rng, cls, height, width)
            low, high = polygon.min(0) - GAP, polygon.max(0) + GAP
            outside = (low < 0).any() or (high > [width, height]).any()
            apart = (boxes[:, :2] > high).any(1) | (boxes[:, 2:] < low).any(1)
            if not outside and apart.all():
                boxes = np.vstack([boxes, [*low, *high]])
                objects.append((cls, polygon))
                mask = np.zeros((height * FINE, width * FINE), np.uint8)
                # A corner at 0 is the left edge of the first pixel, as in COCO's segmentations.
                cv2.fillPoly(mask, [np.rint(polygon * FINE - 0.5).astype(np.int32)], 255)
                cover = cv2.resize(mask, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
                image = image * (1 - cover[:, :, None]) + _color(rng, cls) * cover[:, :, None]
                break
    image = image + rng.normal(0, 4, image.shape)
    return image.clip(0, 255).astype(np.uint8), objects


def _polygon(rng: np.random.Generator, cls: int, height: int, width: int) -> np.ndarray:
    """Return the corners (n, 2) of a polygon of a class, in pixels, to two decimals; it may lie partly outside."""
    size = float(np.exp(rng.uniform(np.log(16), np.log(60))))
    count = CORNERS[cls]
    radii = np.ones(count)
    if INNER[cls] < 1:
        count, radii = 2 * count, np.tile([1, INNER[cls]], count)
    radii = radii * rng.uniform(0.85, 1.1, count)
    angles = rng.uniform(0, 2 * np.pi) + 2 * np.pi * (np.arange(count) + rng.uniform(-0.12, 0.12, count)) / count
    corners = np.column_stack([np.cos(angles), np.sin(angles)]) * radii[:, None] * size / 2
    stretch = np.sqrt(rng.uniform(0.7, 1.4))
    center = [rng.uniform(0, width), rng.uniform(0, height)]
    return np.round(corners * [stretch, 1 / stretch] + center, 2)


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return a dull background with two scales of smooth noise."""
    texture = np.zeros((height, width), np.float32)
    for cells, strength in ((4, 18), (20, 10)):
        texture += strength * smooth_noise(rng, height, width, cells)
    return (rng.uniform(60, 190) + rng.uniform(-18, 18, 3)) + texture[:, :, None]


def _color(rng: np.random.Generator, cls: int) -> np.ndarray:
    hue = (HUES[cls] + rng.uniform(-9, 9)) % 180
    hsv = np.array([[[hue, rng.uniform(150, 250), rng.uniform(130, 245)]]]).astype(np.uint8)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0].astype(np.float32)


def _area(polygon: np.ndarray) -> float:
    x, y = polygon.T
    return float(abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2)
