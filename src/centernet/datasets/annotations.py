"""Check COCO-style annotations: one set of rules for training, scoring and check_data.py.

Each problem is passed to ``report`` as an ``Issue``. Where ``report`` returns from an error, what it concerns is left
out.
"""

import contextlib
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..conversion.coco_file import are_ids, is_id, match_ids, name_problem
from ..conversion.issues import ERROR, LEFT_OUT, NOTE, Issue, IssueLog, Report, short
from ..conversion.layout import MANY_CORNERS, MIN_BOXES
from ..errors import UserError
from ..ops.arrays import numbers

Read = Callable[[list[dict]], dict[str, np.ndarray]]
# Less than this fraction of the annotations and of the images with any is "nearly nothing" to learn from.
NEARLY_NOTHING = 0.1
MANY_FRACTIONS = 0.5  # of the boxes, from which those within one pixel are taken for fractions of the image


@contextlib.contextmanager
def gc_disabled() -> Iterator[None]:
    """Disable Python's search for cyclic garbage, which would double the time of reading a large file."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass
class Annotations:
    """The images and annotations of a file that can be used.

    Attributes:
        images: entries with a unique id and a file name inside the image folder.
        annotations: entries of these images, of known categories, with a box that a task can read.
        boxes: (n, 4) float64, the ``bbox`` of each annotation.
        objects: the arrays of the task's ``read_objects``, n rows each.
    """

    images: list[dict]
    annotations: list[dict]
    boxes: np.ndarray
    objects: dict[str, np.ndarray]


def validate(
    path: Path,
    content: dict,
    *,
    categories: Set,
    read: Read,
    scored_fields: Sequence[str] = (),
    report: Report,
) -> Annotations:
    """Return what of an annotation file can be used, and report the rest.

    Args:
        path: of the annotation file, for messages.
        content: ``images`` and ``annotations``, lists of dicts.
        categories: the known category ids.
        read: the task's reading of annotations, which decides whether they fit it.
        scored_fields: fields that have to be numbers, because scoring needs them.
        report: takes each issue.

    Raises:
        UserError: no image can be used, or what ``report`` raises.
    """
    images, ambiguous = _usable_images(path, content["images"], report)
    if not images:
        raise UserError(f"{path}: none of its images can be used")
    names = {image["id"]: image["file_name"] for image in images}
    annotations = match_ids(path, content["annotations"], "image_id", names.keys() | ambiguous, report)
    annotations = match_ids(path, annotations, "category_id", categories, report)
    annotations = _of_known_images(path, annotations, names, ambiguous, report)
    usable, boxes, objects = _usable_annotations(path, annotations, names, categories, read, scored_fields, report)
    return Annotations(images, usable, boxes, objects)


def _usable_images(path: Path, images: Sequence[dict], report: Report) -> tuple[list[dict], set[int | str]]:
    """Return the images with a unique id and a name inside the image folder, and the ids that several files have.

    None of these files is returned, because their annotations cannot be separated. A repeated entry counts once.
    """
    by_id: dict[int | str, list[dict]] = {}
    for k, image in enumerate(images, start=1):
        kind, problem = _image_problem(image)
        if problem is not None:
            report(Issue(ERROR, kind, path, f"image number {k} {problem}"))
        else:
            by_id.setdefault(image["id"], []).append(image)
    usable, ambiguous = [], set()
    for image_id, entries in by_id.items():
        names = list(dict.fromkeys(image["file_name"] for image in entries))
        if len(names) == 1:
            usable.append(entries.pop(0))
        else:
            ambiguous.add(image_id)
        for _ in entries:
            text = f"duplicate image id {short(image_id)} ({', '.join(map(short, names[:3]))})"
            report(Issue(ERROR, "duplicate image ids", path, text))
    return usable, ambiguous


def _image_problem(image: Mapping) -> tuple[str, str | None]:
    for field in ("id", "file_name"):
        if field not in image:
            return "images without id or file_name", f"lacks '{field}'"
    problem = name_problem(image["file_name"])
    if problem is not None:
        return "file names that cannot be used", problem
    if not is_id(image["id"]):
        text = f"({short(image['file_name'])}) has the id {short(image['id'])}, neither an integer nor a string"
        return "ids that are neither numbers nor strings", text
    return "", None


def _of_known_images(path: Path, annotations: list[dict], ids: Mapping, ambiguous: Set, report: Report) -> list[dict]:
    """Return the annotations of the images ``ids``; those of others are harmless, and reported."""
    with contextlib.suppress(TypeError):  # of something that is not an id
        if {annotation.get("image_id") for annotation in annotations} <= ids.keys():
            return annotations

    def is_unlisted(annotation: dict) -> bool:
        image_id = annotation.get("image_id")
        return is_id(image_id) and image_id not in ids

    for annotation in filter(is_unlisted, annotations):
        what = "duplicate image ids" if annotation["image_id"] in ambiguous else "images that are not listed"
        text = f"annotation {short(annotation.get('id'))} of the image {short(annotation['image_id'])}"
        report(Issue(LEFT_OUT, f"annotations of {what}", path, text))
    return [annotation for annotation in annotations if not is_unlisted(annotation)]


def _usable_annotations(
    path: Path,
    annotations: list[dict],
    names: Mapping[int | str, str],
    categories: Set,
    read: Read,
    scored_fields: Sequence[str],
    report: Report,
) -> tuple[list[dict], np.ndarray, dict[str, np.ndarray]]:
    """Return the annotations that can be learned from and scored, their boxes, and what ``read`` returns."""

    def check(some: list[dict]) -> tuple[str, str] | tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return (kind, text) of what is wrong with one of them, or boxes and objects."""
        for field in scored_fields:
            if not all(isinstance(annotation.get(field), (int, float)) for annotation in some):
                return "fields that scoring needs", f"has {_field(some[0], field)}, which scoring needs to be a number"
        try:
            if not are_ids([one["image_id"] for one in some]):
                return "annotations without a valid image_id", f"has {_field(some[0], 'image_id')}"
            known = [one["category_id"] for one in some]
            if not (are_ids(known) and categories >= set(known)):
                return "unknown categories", f"has the unknown category_id {short(some[0]['category_id'])}"
            boxes = numbers([annotation["bbox"] for annotation in some], "bbox", (4,))
            if not np.isfinite(boxes).all():
                return "boxes that are not finite", f"has {_field(some[0], 'bbox')}, which is not finite"
            if (boxes[:, 2:] < 0).any():
                return "boxes of negative size", f"has {_field(some[0], 'bbox')}, whose width or height is negative"
            objects = read(some)
            for name, values in objects.items():
                if not np.isfinite(values).all():
                    return "values that are not finite", f"has {name} that are not finite: {short(values.tolist())}"
        except KeyError as error:
            return "annotations without a field", f"lacks '{error.args[0]}'"
        except (TypeError, ValueError, OverflowError) as error:
            return "malformed annotations", f"is malformed: {error}"
        return boxes, objects

    if not annotations:
        return annotations, np.zeros((0, 4)), read([])
    found = check(annotations)  # all at once, which is fast
    if not isinstance(found[0], str):
        return annotations, *found
    usable = []
    for k, annotation in enumerate(annotations, start=1):
        kind, text = check([annotation])
        if not isinstance(kind, str):
            usable.append(annotation)
            continue
        number: Any = annotation.get("id")
        image_id: Any = annotation.get("image_id")
        where = f"annotation {number if is_id(number) else f'number {k}'}"
        if is_id(image_id):
            where += f" of {short(names[image_id])}"
        report(Issue(ERROR, kind, path, f"{where} {text}"))
    boxes = numbers([annotation["bbox"] for annotation in usable], "bbox", (4,))
    return usable, boxes, read(usable)


def box_issues(path: Path, usable: Annotations, sizes: np.ndarray, report: Report) -> None:
    """Report boxes that are allowed, but perhaps not intended.

    Args:
        path: of the annotation file.
        usable: what ``validate`` has returned.
        sizes: (n, 2), width and height of the image of each annotation, 0 where they are not known.
        report: takes each issue.
    """
    boxes = usable.boxes
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    known = (sizes > 0).all(1)
    empty = (boxes[:, 2:] == 0).any(1)
    fractions = ~empty & (boxes <= 1).all(1)
    outside = known & ~empty & ((low >= sizes) | (high <= 0)).any(1)
    across = known & ~empty & ~outside & ((low < -1) | (high > sizes + 1)).any(1)
    for severity, found, kind in (
        (LEFT_OUT, empty, "boxes without an area"),
        (LEFT_OUT, outside, "boxes outside of their image"),
        (NOTE, across, "boxes that reach out of their image and are clipped"),
        (NOTE, fractions, "boxes within one pixel, perhaps fractions of the image"),
    ):
        names = {image["id"]: image["file_name"] for image in usable.images} if found.any() else {}
        for k in np.flatnonzero(found):
            one = usable.annotations[int(k)]
            text = f"annotation {short(one.get('id'))} of {short(names[one['image_id']])}: {short(one['bbox'])}"
            if bool(np.asarray(known)[k]):
                text += f" in {sizes[k][0]} x {sizes[k][1]}"
            report(Issue(severity, kind, path, text))


def refuse_nothing_to_learn(
    path: Path, usable: Annotations, log: IssueLog, train: bool, sizes: np.ndarray | None = None
) -> None:
    """Raise UserError when nothing, or nearly nothing, of a file is left to learn from or to score against.

    Ids that do not match, coordinates as fractions and the like would otherwise train to the end on nothing. ``sizes``
    are those of ``box_issues``.
    """
    boxes = usable.boxes
    cls = usable.objects.get("cls")
    counts = (boxes[:, 2:] > 0).all(1) & (True if cls is None else cls >= 0)  # a negative class is ignored in training
    kept, left_out = int(counts.sum()), log.count(ERROR, LEFT_OUT)
    owners = {annotation["image_id"] for annotation, counted in zip(usable.annotations, counts, strict=True) if counted}
    purpose = "learn from" if train else "score against"
    reasons = "; ".join(log.lines()[:3])
    reasons = f" ({reasons})" if reasons else ""
    if kept == 0 and (train or left_out):
        raise UserError(f"{path}: no object is left to {purpose} in {len(usable.images)} images{reasons}")
    if len(owners) < NEARLY_NOTHING * len(usable.images) and kept < NEARLY_NOTHING * (kept + left_out):
        raise UserError(
            f"{path}: nearly nothing is left to {purpose}, {kept} objects in {len(owners)} of {len(usable.images)} "
            f"images{reasons}"
        )
    within_a_pixel = int((boxes[counts] <= 1).all(1).sum())
    if within_a_pixel > MANY_FRACTIONS * kept:
        raise UserError(
            f"{path}: {within_a_pixel} of {kept} boxes lie within one pixel, so they seem to be fractions of the "
            f"image; a bbox is [x, y, width, height] in pixels"
        )
    if sizes is not None:
        known = counts & (sizes > 0).all(1)
        low, high, size = boxes[known, :2], boxes[known, 2:], sizes[known]
        reaching = int((low + high > size + 1).any(1).sum())
        fit = bool(((low >= 0) & (high > low) & (high <= size + 1)).all())
        if len(low) >= MIN_BOXES and fit and reaching > MANY_CORNERS * len(low):
            raise UserError(
                f"{path}: {reaching} of {len(low)} boxes reach out of their images, so they seem to be corners; a bbox "
                f"is [x, y, width, height] in pixels"
            )


def scored_content(path: Path, content: dict, log: IssueLog) -> dict:
    """Return the content of an annotation file as it is scored, checked and repaired as in training.

    Raises:
        UserError: it has errors, or no object to score against while some are left out.
    """
    categories = {category["id"] for category in content["categories"]}
    usable = validate(
        path, content, categories=categories, read=lambda _: {}, scored_fields=("area", "iscrowd"), report=log
    )
    refuse_nothing_to_learn(path, usable, log, train=False)
    return {**content, "images": usable.images, "annotations": usable.annotations}


def sizes_of(images: Sequence[dict]) -> np.ndarray:
    """Return (n, 2) int32, the width and height that an annotation file states for each image, or 0."""
    sizes = np.zeros((len(images), 2), dtype=np.int32)
    for row, image in zip(sizes, images, strict=True):
        size: tuple[Any, Any] = image.get("width"), image.get("height")
        if all(isinstance(side, int) and 0 < side < 1 << 31 for side in size):
            row[:] = size
    return sizes


def _field(entry: Mapping, name: str) -> str:
    return f"the {name} {short(entry[name])}" if name in entry else f"no {name}"
