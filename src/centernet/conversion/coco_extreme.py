"""Extreme points of COCO's segmentations: ``instances_extreme_*.json`` from ``instances_*.json``.

The extreme point of a side is the middle of the part of the outline that touches the side, where everything within 2 %
of the object's extent counts as touching (section 4.1 of ExtremeNet, arXiv 1901.08043: flat sides have no single
outermost point). They are the training data of the task exdet, in the order top, left, bottom, right.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pycocotools.mask

from ..errors import UserError
from ..utils.files import write_json
from .coco_file import read_annotation_file
from .preparation import prepare_once

TOLERANCE = 0.02  # of the object's width or height
SIDES = ((1, -1), (0, -1), (1, 1), (0, 1))  # top, left, bottom, right: which coordinate, and to which end


def outline_extremes(polygons: list[np.ndarray]) -> np.ndarray:
    """Return the extreme points (4, 2) float64 of an object of one or more polygons (n, 2) of corners in pixels."""
    everything = np.concatenate(polygons)
    low, high = everything.min(0), everything.max(0)
    points = np.empty((4, 2))
    for k, (axis, end) in enumerate(SIDES):
        outermost = high[axis] if end > 0 else low[axis]
        reach = TOLERANCE * (high[axis] - low[axis])
        polygon = next(polygon for polygon in polygons if (polygon[:, axis] == outermost).any())
        touching = np.abs(polygon[:, axis] - outermost) <= reach
        run = _run_around(touching, int(np.argmax(polygon[:, axis] == outermost)))
        along = polygon[run, 1 - axis]
        points[k, axis], points[k, 1 - axis] = outermost, (along.min() + along.max()) / 2
    return points


def _run_around(touching: np.ndarray, start: int) -> np.ndarray:
    """Return the indices of the unbroken run of true values around ``start`` in a closed outline."""
    count = len(touching)
    if touching.all():
        return np.arange(count)
    first = last = start
    while touching[(first - 1) % count]:
        first -= 1
    while touching[(last + 1) % count]:
        last += 1
    return np.arange(first, last + 1) % count


def mask_extremes(mask: np.ndarray) -> np.ndarray:
    """Return the extreme points (4, 2) float64 of a non-empty mask (h, w).

    Pixel (x, y) covers x to x + 1, y to y + 1.
    """
    points = np.empty((4, 2))
    for k, (axis, end) in enumerate(SIDES):
        lines = mask if axis == 1 else mask.T  # look down the columns, or along the rows
        lines = lines[::-1] if end > 0 else lines
        depth = np.where(lines.any(0), lines.argmax(0), len(lines))  # of each line's first pixel
        rows = np.flatnonzero(lines.any(1))
        touching = depth - depth.min() <= TOLERANCE * (rows[-1] - rows[0] + 1)
        first = last = int(depth.argmin())
        while first > 0 and touching[first - 1]:
            first -= 1
        while last + 1 < len(touching) and touching[last + 1]:
            last += 1
        outermost = float(depth.min())
        points[k, axis] = len(lines) - outermost if end > 0 else outermost
        points[k, 1 - axis] = (first + last + 1) / 2
    return points


def extreme_points(annotation: dict, height: int, width: int) -> np.ndarray | None:
    """Return the extreme points (4, 2) float64 of an annotation with polygons or a run-length mask, in pixels.

    ``height`` and ``width`` of the image are those of uncompressed masks. None for a segmentation that is missing,
    empty, or too thin to have an interior.
    """
    shape = annotation.get("segmentation")
    if isinstance(shape, list):
        polygons = [np.asarray(polygon, dtype=np.float64).reshape(-1, 2) for polygon in shape]
        polygons = [polygon for polygon in polygons if len(polygon) >= 3 and np.ptp(polygon, axis=0).all()]
        return outline_extremes(polygons) if polygons else None
    if isinstance(shape, dict):
        if isinstance(shape["counts"], list):
            shape = pycocotools.mask.frPyObjects(shape, height, width)
        mask = pycocotools.mask.decode(shape).astype(bool)
        return mask_extremes(mask) if mask.any() else None
    return None


def middle_of_sides(bbox: list[float]) -> np.ndarray:
    """Return the midpoints of the sides (4, 2) of a box [x, y, w, h], for objects without an outline."""
    x, y, w, h = bbox
    return np.array([[x + w / 2, y], [x, y + h / 2], [x + w / 2, y + h], [x + w, y + h / 2]], dtype=np.float64)


def add_extreme_points(content: dict) -> int:
    """Add ``extreme_points`` to every annotation of a COCO-style content, in place; nothing else changes.

    Crowds are annotations like others. Without an outline the points are the middles of the box's sides.

    Returns:
        The number of annotations without an outline.

    Raises:
        UserError: an entry is malformed; names it.
    """
    without, what, entry = 0, "image", {}
    try:
        sizes = {}
        for entry in content["images"]:
            sizes[entry["id"]] = (entry["height"], entry["width"])
        what = "annotation"
        for entry in content["annotations"]:
            points = extreme_points(entry, *sizes[entry["image_id"]])
            if points is None:
                points = middle_of_sides(entry["bbox"])
                without += 1
            entry["extreme_points"] = np.round(points, 2).tolist()
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        reason = f"lacks or does not know {error}" if isinstance(error, KeyError) else f"is malformed ({error})"
        raise UserError(f"the {what} {entry.get('id', 'without an id')} {reason}") from error
    return without


def convert(source: Path, target: Path, log: Callable[[str], None] = print) -> None:
    """Write ``target``, the annotation file ``source`` with extreme points.

    Raises:
        UserError: ``source`` cannot be used, or has no segmentations, or ``target`` cannot be written.
    """
    content = read_annotation_file(source)
    try:
        without = add_extreme_points(content)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    count = len(content["annotations"])
    if count and without == count:
        raise UserError(f"{source}: none of the annotations has a segmentation, so extreme points cannot be determined")
    write_json(target, content)
    missing = f", {without} of them without an outline: the middles of their box's sides" if without else ""
    log(f"{target}: extreme points of {count} objects{missing}")


def extreme_file(instances: Path) -> Path:
    """Return the path of the extreme points file of an ``instances_*.json``."""
    return instances.with_name(instances.name.replace("instances_", "instances_extreme_", 1))


def prepare(instances: Path, log: Callable[[str], None] = print) -> None:
    """Create the extreme points file if it is missing and ``instances`` exists."""
    target = extreme_file(instances)
    if not instances.is_file():
        return

    def make(_: bool) -> None:
        log(f"{target}: finding extreme points (once)")
        convert(instances, target, log)

    prepare_once(target.parent, target.stem, target.is_file, make)
