"""Datasets of drawn objects with joints, in the layouts of COCO and of YOLO."""

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

SIZE = 96  # pixels of an image's side


@dataclass(frozen=True)
class Kind:
    """A class of objects.

    Attributes:
        name: of the class.
        joints: names of the joints.
        places: their places in an object of size 1 around (0, 0), symmetric about the vertical axis.
        color: of the body, B, G, R.
        skeleton: pairs of joints from 0.
    """

    name: str
    joints: tuple[str, ...]
    places: tuple[tuple[float, float], ...]
    color: tuple[int, int, int]
    skeleton: tuple[tuple[int, int], ...] = ()

    @property
    def flip_index(self) -> list[int]:
        """Return the joint that takes the place of each one in a flipped image: the one on the other side."""
        return [self.places.index((-x, y)) for x, y in self.places]


KITE = Kind(
    "kite",
    ("head", "left_tip", "right_tip", "middle", "tail"),
    ((0.0, -0.5), (0.35, -0.1), (-0.35, -0.1), (0.0, -0.1), (0.0, 0.5)),
    (40, 200, 240),
    ((0, 3), (1, 3), (2, 3), (3, 4)),
)
FISH = Kind(
    "fish",
    ("head", "left_fin", "right_fin", "end"),
    ((0.0, -0.45), (0.4, 0.3), (-0.4, 0.3), (0.0, 0.2)),
    (220, 120, 60),
)
INK = {"head": (255, 255, 255), "tail": (0, 0, 0), "end": (0, 0, 0), "middle": (128, 128, 128)}


def draw_scene(rng: np.random.Generator, kinds: tuple[Kind, ...]) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """Return an image and its objects, one or two side by side, as (class, joints (J, 2) in pixels)."""
    image = rng.integers(0, 50, (SIZE, SIZE, 3), dtype=np.uint8)
    objects = []
    for left in (0, SIZE // 2)[: rng.integers(1, 3)]:
        cls = int(rng.integers(len(kinds)))
        kind, size, lean = kinds[cls], rng.uniform(30, 44), np.deg2rad(rng.uniform(-12, 12))
        turn = np.array([[np.cos(lean), -np.sin(lean)], [np.sin(lean), np.cos(lean)]])
        center = np.array([left + SIZE / 4, SIZE / 2]) + rng.uniform(-1, 1, 2) * (3, 18)
        points = (np.array(kind.places) @ turn.T * size + center).round(1)
        cv2.fillConvexPoly(image, cv2.convexHull(points.round().astype(np.int32)), kind.color)
        for name, (x, y) in zip(kind.joints, points.round().astype(int).tolist(), strict=True):
            cv2.circle(image, (x, y), 2, INK.get(name, (60, 60, 200)), cv2.FILLED)
        objects.append((cls, points))
    return image, objects


def box_of(points: np.ndarray) -> list[float]:
    """Return [x, y, width, height] around joints, with a margin."""
    low, high = points.min(0) - 2, points.max(0) + 2
    return [round(float(value), 1) for value in (*low, *(high - low))]


def scenes(count: int, seed: int, kinds: tuple[Kind, ...]) -> list[tuple[np.ndarray, list[tuple[int, np.ndarray]]]]:
    """Return ``count`` images with their objects."""
    rng = np.random.default_rng(seed)
    return [draw_scene(rng, kinds) for _ in range(count)]


def write_coco(root: Path, counts: dict[str, int], kinds: tuple[Kind, ...] = (KITE, FISH), **fields) -> Path:
    """Write a COCO-style dataset with ``counts`` images per split; ``fields`` are added to every category."""
    for seed, (split, count) in enumerate(counts.items()):
        (root / split).mkdir(parents=True)
        content: dict = {"images": [], "annotations": [], "categories": []}
        for k, kind in enumerate(kinds):
            skeleton = [[a + 1, b + 1] for a, b in kind.skeleton]
            category = {"id": 3 + k, "name": kind.name, "keypoints": list(kind.joints), "skeleton": skeleton}
            content["categories"].append({**category, **fields})
        for number, (image, objects) in enumerate(scenes(count, seed, kinds), start=1):
            cv2.imwrite(str(root / split / f"{number}.png"), image)
            content["images"].append({"id": number, "file_name": f"{number}.png", "width": SIZE, "height": SIZE})
            for cls, points in objects:
                keypoints = np.column_stack([points, np.full(len(points), 2)]).reshape(-1).tolist()
                entry = {"id": len(content["annotations"]) + 1, "image_id": number, "category_id": 3 + cls}
                content["annotations"].append({**entry, "bbox": box_of(points), "keypoints": keypoints})
        (root / f"{split}.json").write_text(json.dumps(content))
    return root


def write_yolo(
    root: Path, counts: dict[str, int], kinds: tuple[Kind, ...] = (KITE,), dimensions: int = 3, more: str = ""
) -> Path:
    """Write the same images as ``write_coco`` in YOLO's layout; all kinds need the same number of joints."""
    for seed, (split, count) in enumerate(counts.items()):
        for folder in ("images", "labels"):
            (root / folder / split).mkdir(parents=True)
        for number, (image, objects) in enumerate(scenes(count, seed, kinds), start=1):
            cv2.imwrite(str(root / "images" / split / f"{number}.png"), image)
            lines = []
            for cls, points in objects:
                x, y, w, h = box_of(points)
                numbers = [(x + w / 2) / SIZE, (y + h / 2) / SIZE, w / SIZE, h / SIZE]
                for point in points / SIZE:
                    numbers += [*point, 2][:dimensions]
                lines.append(" ".join([str(cls), *(f"{number:.9f}" for number in numbers)]))
            (root / "labels" / split / f"{number}.txt").write_text("\n".join(lines) + "\n")
    text = f"train: images/train\nval: images/val\nnames: [{', '.join(kind.name for kind in kinds)}]\n"
    text += f"kpt_shape: [{len(kinds[0].joints)}, {dimensions}]\n{more}"
    (root / "data.yaml").write_text(text)
    return root
