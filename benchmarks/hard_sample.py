"""Draw a harder sample than the quick start's: twelve shapes, small and thin ones, overlaps, clutter.

``python benchmarks/hard_sample.py DIR`` writes a dataset for ``--dataset custom --data_path DIR`` in COCO's layout:
1,600 training and 400 validation images of 256 x 256 (``--images`` scales both). As in photographs, most objects are
upright, within 20 degrees, and color only suggests the class: the hues of neighboring classes overlap, so a detector
has to learn shapes, too. The drawing depends on nothing but the constants below.
"""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np

SEED = 2026
SIZE = 256
FINE = 3  # objects are drawn this much larger and scaled down, for smooth edges
MIN_SIDE, MAX_SIDE = 10, 120  # pixels, log-uniform
MAX_TURN = np.pi / 9
HUE_DEVIATION = 30  # degrees, as much as the hues of neighboring classes differ
MAX_OBJECTS = 12
MAX_HIDDEN = 0.5  # of an object, by the objects drawn over it
CLASSES = (
    "disc",
    "ring",
    "square",
    "frame",
    "triangle",
    "bar",
    "cross",
    "star",
    "crescent",
    "hexagon",
    "arrow",
    "wave",
)


def main() -> None:
    """Write the dataset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=2000, help="a fifth of them for validation (default: 2000)")
    args = parser.parse_args()
    write(args.folder, args.images)


def write(folder: Path, images: int) -> None:
    """Write ``annotations/{train,val}.json`` and the images in ``images/{train,val}``."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    split_at = images - images // 5
    for split, numbers in (("train", range(1, split_at + 1)), ("val", range(split_at + 1, images + 1))):
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        content: dict = {"images": [], "annotations": []}
        content["categories"] = [{"id": k + 1, "name": name} for k, name in enumerate(CLASSES)]
        for number in numbers:
            image, objects = draw(np.random.default_rng((SEED, number)))
            name = f"{number:05d}.jpg"
            if not cv2.imwrite(str(folder / "images" / split / name), image, [cv2.IMWRITE_JPEG_QUALITY, 92]):
                raise SystemExit(f"{folder / 'images' / split / name}: could not be written")
            content["images"].append({"id": number, "file_name": name, "width": SIZE, "height": SIZE})
            content["annotations"] += [
                {
                    "id": 100 * number + k,
                    "image_id": number,
                    "category_id": cls + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
                for k, (cls, box) in enumerate(objects)
            ]
        (folder / "annotations" / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")


def draw(rng: np.random.Generator) -> tuple[np.ndarray, list[tuple[int, list[int]]]]:
    """Draw one image (SIZE, SIZE, 3) uint8; return it and its objects (class from 0, [x, y, w, h])."""
    image = _ground(rng)
    visible: list[np.ndarray] = []  # visible pixels of each object
    areas: list[float] = []
    objects: list[tuple[int, list[int]]] = []
    for _ in range(int(rng.integers(2, MAX_OBJECTS + 1))):
        cls = int(rng.integers(len(CLASSES)))
        mask = _shape(rng, cls)
        box = list(map(int, cv2.boundingRect((mask > 0.5).astype(np.uint8))))
        left = [other * (1 - mask) for other in visible]
        if min(box[2:]) < 4 or any(o.sum() < (1 - MAX_HIDDEN) * area for o, area in zip(left, areas, strict=True)):
            continue
        visible, areas = [*left, mask], [*areas, float(mask.sum())]
        objects.append((cls, box))
        color = _color(rng, cls) + 14 * _noise(rng, 12)[:, :, None]
        alpha = mask[:, :, None]
        image = image * (1 - alpha) + color * alpha
    image = image + rng.normal(0, rng.uniform(2, 8), image.shape)
    return image.clip(0, 255).astype(np.uint8), objects


def _ground(rng: np.random.Generator) -> np.ndarray:
    """Draw a textured background with clutter that belongs to no class: lines, specks, soft blobs."""
    image = rng.uniform(40, 215, 3) + 25 * _noise(rng, 40)[:, :, None] + 12 * _noise(rng, 8)[:, :, None]
    image = np.ascontiguousarray(np.broadcast_to(image, (SIZE, SIZE, 3)), dtype=np.float32)
    for _ in range(int(rng.integers(0, 10))):
        ends = rng.uniform(-20, SIZE + 20, 4).astype(int).tolist()
        color = rng.uniform(30, 225, 3).tolist()
        cv2.line(image, tuple(ends[:2]), tuple(ends[2:]), color, int(rng.integers(1, 3)), cv2.LINE_AA)
    for _ in range(int(rng.integers(0, 40))):
        cv2.circle(
            image,
            tuple(rng.integers(0, SIZE, 2).tolist()),
            int(rng.integers(1, 3)),
            rng.uniform(0, 255, 3).tolist(),
            -1,
        )
    return image


def _color(rng: np.random.Generator, cls: int) -> np.ndarray:
    """Return a color (3,), BGR in [0, 255], whose hue is normally distributed around that of the class."""
    hue = (cls * 360 / len(CLASSES) + rng.normal(0, HUE_DEVIATION)) % 360
    hsv = np.array([[[hue, rng.uniform(0.3, 1), rng.uniform(0.35, 0.95)]]], np.float32)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0] * 255


def _noise(rng: np.random.Generator, cell: int) -> np.ndarray:
    """Return smooth noise (SIZE, SIZE) with features of about ``cell`` pixels and standard deviation 1."""
    side = SIZE // cell + 2
    return cv2.resize(rng.standard_normal((side, side)).astype(np.float32), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)


def _shape(rng: np.random.Generator, cls: int) -> np.ndarray:
    """Return the coverage (SIZE, SIZE) float32 in [0, 1] of one object, rotated and placed at random."""
    side = float(np.exp(rng.uniform(np.log(MIN_SIDE), np.log(MAX_SIDE)))) * FINE
    center = rng.uniform(0, SIZE, 2) * FINE
    turn = rng.uniform(-MAX_TURN, MAX_TURN)
    stretch = rng.uniform(0.7, 1.4)
    mask = np.zeros((SIZE * FINE, SIZE * FINE), np.uint8)
    half = side / 2 * np.array([np.sqrt(stretch), 1 / np.sqrt(stretch)])

    def fill(points, value: int = 255, scale: float = 1.0) -> None:
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        placed = (np.asarray(points, np.float64) * half * scale) @ rotation.T + center
        cv2.fillPoly(mask, [placed.astype(np.int32)], value)

    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    circle = np.column_stack([np.cos(angles), np.sin(angles)])
    square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * 0.85
    name = CLASSES[cls]
    if name == "disc":
        fill(circle)
    elif name == "ring":
        fill(circle)
        fill(circle, 0, 0.55)
    elif name == "square":
        fill(square)
    elif name == "frame":
        fill(square)
        fill(square, 0, 0.6)
    elif name == "triangle":
        fill(circle[::16])
    elif name == "bar":
        fill(square * [1.2, rng.uniform(0.1, 0.22)])
    elif name == "cross":
        fill(square * [1, 0.3])
        fill(square * [0.3, 1])
    elif name == "star":
        radii = np.where(np.arange(10) % 2, 0.42, 1.0)[:, None]
        fill(radii * np.column_stack([np.cos(np.arange(10) * np.pi / 5), np.sin(np.arange(10) * np.pi / 5)]))
    elif name == "crescent":
        fill(circle)
        fill(circle * 0.85 + [0.5, 0], 0)
    elif name == "hexagon":
        fill(circle[::8])
    elif name == "arrow":
        fill([[-1, -0.25], [0.1, -0.25], [0.1, -0.7], [1, 0], [0.1, 0.7], [0.1, 0.25], [-1, 0.25]])
    else:  # wave
        x = np.linspace(-1, 1, 40)
        y = 0.45 * np.sin(1.5 * np.pi * x)
        fill(np.vstack([np.column_stack([x, y - 0.22]), np.column_stack([x, y + 0.22])[::-1]]))
    return cv2.resize(mask, (SIZE, SIZE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


if __name__ == "__main__":
    main()
