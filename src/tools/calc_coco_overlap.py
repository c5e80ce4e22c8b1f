"""Count COCO objects that share a center cell, overlap, or fit no anchor, and objects by size.

    python src/tools/calc_coco_overlap.py [--annotations data/coco/annotations/instances_train2017.json]

Prints the pairs of objects whose centers fall into one cell of the output grid (of any class, and of one class), the
pairs of one class whose boxes overlap by more than 0.5, the objects that no anchor of a Faster R-CNN with an FPN-less
backbone overlaps by 0.5 or more, and the numbers of small, medium and large objects (section 3 and appendix of
"Objects as Points" argue with these). The tool of the reference has one function for each; this one prints all.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from centernet.conversion.coco_file import read_annotation_file
from centernet.errors import UserError
from centernet.ops.arrays import numbers
from centernet.utils.help import HelpFormatter
from centernet.utils.tool import tool

DEFAULT = Path(__file__).resolve().parents[2] / "data" / "coco" / "annotations" / "instances_train2017.json"
CELL = 4  # pixels of a cell of the output grid
STRIDE, SHORT_SIDE = 16, 800  # of the anchors; of the image that they lie on
ANCHOR_SIZES, ANCHOR_RATIOS = (32, 64, 128, 256, 512), (0.5, 1.0, 2.0)
MIN_OVERLAP = 0.5
SIZES = ("small", "medium", "large")
SIZE_LIMITS = (32**2, 96**2)  # areas in pixels


@tool
def main(argv: list[str] | None = None) -> None:
    """Read an annotation file and print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--annotations", type=Path, default=DEFAULT, help="annotation file (%(default)s)")
    path = parser.parse_args(argv).annotations
    content = read_annotation_file(path)
    try:
        boxes = numbers([annotation["bbox"] for annotation in content["annotations"]], "bbox", (4,))
        image_ids = [annotation["image_id"] for annotation in content["annotations"]]
        classes = np.array([hash(annotation["category_id"]) for annotation in content["annotations"]])
        crowd = np.array([bool(annotation.get("iscrowd", 0)) for annotation in content["annotations"]], dtype=bool)
        sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
        shapes = numbers([sizes[image_id] for image_id in image_ids], "image size", (2,))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: an image or annotation is malformed ({error!r})") from None
    number = {image_id: k for k, image_id in enumerate(dict.fromkeys(image_ids))}
    images = np.array([number[image_id] for image_id in image_ids], dtype=np.int64)
    for text, value in statistics(boxes, images, classes, crowd, shapes).items():
        print(f"{text}: {value}")


def statistics(
    boxes: np.ndarray, images: np.ndarray, classes: np.ndarray, crowd: np.ndarray, shapes: np.ndarray
) -> dict[str, int]:
    """Return all numbers by their description.

    Args:
        boxes: (n, 4), x, y, width, height.
        images, classes: (n,) integers.
        crowd: (n,) bool.
        shapes: (n, 2), height and width of the image of each box.
    """
    kept = ~crowd
    size = np.searchsorted(SIZE_LIMITS, boxes[:, 2] * boxes[:, 3], side="right")
    unmatched = best_anchor_overlap(boxes, shapes) < MIN_OVERLAP
    numbers_of = {
        "objects": len(boxes),
        "pairs of objects with one center cell": same_cell_pairs(boxes, images, np.zeros_like(classes)),
        "pairs of objects of one class with one center cell, without crowds": same_cell_pairs(
            boxes[kept], images[kept], classes[kept]
        ),
        f"pairs of objects of one class with an overlap above {MIN_OVERLAP}, without crowds": overlapping_pairs(
            boxes[kept], images[kept], classes[kept]
        ),
        f"objects without an anchor of an overlap of {MIN_OVERLAP}": int(unmatched.sum()),
    }
    for k, name in enumerate(SIZES):
        numbers_of[f"{name} objects"] = int((size == k).sum())
        numbers_of[f"{name} objects without an anchor"] = int((unmatched & (size == k)).sum())
    return numbers_of


def same_cell_pairs(boxes: np.ndarray, images: np.ndarray, classes: np.ndarray) -> int:
    """Return the number of pairs of objects of one image and class whose centers fall into one cell."""
    cells = ((boxes[:, :2] + boxes[:, 2:] / 2) // CELL).astype(np.int64)
    counts = Counter(map(tuple, np.column_stack([images, classes, cells]).tolist()))
    return sum(count * (count - 1) // 2 for count in counts.values())


def overlapping_pairs(boxes: np.ndarray, images: np.ndarray, classes: np.ndarray) -> int:
    """Return the number of pairs of objects of one image and class whose IoU (widths + 1) is above ``MIN_OVERLAP``."""
    order = np.lexsort([classes, images])
    boxes, groups = boxes[order], np.column_stack([images, classes])[order]
    starts = np.flatnonzero(np.r_[True, (groups[1:] != groups[:-1]).any(1)]) if len(boxes) else np.zeros(0, int)
    pairs = 0
    for start, end in zip(starts, [*starts[1:], len(boxes)], strict=True):
        some = boxes[start:end]
        low, high = some[:, :2], some[:, :2] + some[:, 2:]
        both = (np.minimum(high[:, None], high) - np.maximum(low[:, None], low) + 1).clip(0).prod(2)
        area = (some[:, 2:] + 1).prod(1)
        overlap = both / (area[:, None] + area - both)
        pairs += int((np.triu(overlap, 1) > MIN_OVERLAP).sum())
    return pairs


def best_anchor_overlap(boxes: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """Return (n,), the largest IoU of each box with an anchor.

    Anchors have ``ANCHOR_SIZES`` and ``ANCHOR_RATIOS`` around the middle of each cell of ``STRIDE`` pixels of the
    image, scaled to a short side of ``SHORT_SIDE``. Of one form the anchor with the nearest middle overlaps most.
    """
    scale = (SHORT_SIDE / shapes.min(1))[:, None]
    low, size = boxes[:, :2] * scale, boxes[:, 2:] * scale
    last = np.maximum(shapes[:, ::-1] * scale // STRIDE - 1, 0)
    middle = (STRIDE - 1) / 2 + STRIDE * np.rint((low + size / 2 - (STRIDE - 1) / 2) / STRIDE).clip(0, last)
    best = np.zeros(len(boxes))
    for side in ANCHOR_SIZES:
        for ratio in ANCHOR_RATIOS:  # height to width
            half = np.array([side / np.sqrt(ratio), side * np.sqrt(ratio)]) / 2
            both = (np.minimum(middle + half, low + size) - np.maximum(middle - half, low)).clip(0).prod(1)
            best = np.maximum(best, both / (size.prod(1) + 4 * half.prod() - both))
    return best


if __name__ == "__main__":
    sys.exit(main())
