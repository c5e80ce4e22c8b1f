"""COCO-style annotation files: reading them, and what of them can be used.

``complain`` is a function that is called with each mistake in one line. Where it returns, what the mistake concerns is
left out.
"""

import contextlib
import gc
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path

import numpy as np

from ..errors import UserError

Complain = Callable[[str], None]
LONGEST_NAME = 4096  # characters of an image's file name
SHOWN = 80  # characters of a value in a message


def refuse(problem: str) -> None:
    """Take no mistake in annotations."""
    raise UserError(problem)


def ignore(problem: str) -> None:
    """Leave out what was told before."""


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Without Python's search for cyclic garbage, which takes as long again as reading a large file; it has none."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def is_id(value) -> bool:
    """Whether a value can be the id of something."""
    return isinstance(value, (int, str)) or (isinstance(value, float) and value.is_integer())


def _are_ids(values: Sequence) -> bool:
    return {*map(type, values)} <= {int, str} or all(map(is_id, values))


def read_annotation_file(path: Path, complain: Complain = refuse) -> dict:
    """A COCO-style JSON file, whose images and annotations are objects.

    Raises UserError when it is missing, is no JSON, or lacks a part.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such annotation file; see docs/DATA.md")
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file ({error})") from error
    except MemoryError as error:
        raise UserError(f"{path}: too large for the memory of this machine") from error
    for part in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise UserError(f"{path}: not a COCO-style annotation file, it has no list '{part}'")
    if not content["images"]:
        raise UserError(f"{path}: it lists no images")
    for part, kind in (("images", "image"), ("annotations", "annotation")):
        if {*map(type, content[part])} <= {dict}:
            continue
        for k, entry in enumerate(content[part], start=1):
            if not isinstance(entry, dict):
                complain(f"{path}: {kind} number {k} is malformed, no object with fields: {_short(entry)}")
        content[part] = [entry for entry in content[part] if isinstance(entry, dict)]
    return content


def usable_images(path: Path, images: Sequence[dict], complain: Complain) -> list[dict]:
    """The images of an annotation file with an id of their own and a name inside the folder of images."""
    usable, ids = [], set()
    for k, image in enumerate(images, start=1):
        lacking = next((f"lacks '{field}'" for field in ("id", "file_name") if field not in image), None)
        problem = lacking or name_problem(image["file_name"])
        if problem is None and not is_id(image["id"]):
            problem = f"has the id {_short(image['id'])}, which is neither a whole number nor a text"
        if problem is not None:
            complain(f"{path}: image number {k} {problem}")
        elif image["id"] in ids:
            complain(f"{path}: the image id {image['id']} is there more than once")
        else:
            ids.add(image["id"])
            usable.append(image)
    return usable


def name_problem(name) -> str | None:
    """What is wrong with the file name of an image; None when it is one inside of the folder of images."""
    if not isinstance(name, str) or not name:
        return f"has the file_name {_short(name)}, which is no text"
    if len(name) > LONGEST_NAME or "\0" in name:
        return f"has a file_name that no file can have, {len(name)} characters: {_short(name)}"
    if ".." in re.split(r"[/\\]", name) or re.match(r"[/\\]|[A-Za-z]:[/\\]", name):
        return f"has the file_name {_short(name)}, which leads out of the folder of images"
    return None


def of_known_images(path: Path, annotations: list[dict], ids: Mapping, notes: list[str]) -> list[dict]:
    """Without the annotations of other images than ``ids``, which are harmless: a line in ``notes`` tells of them."""
    with contextlib.suppress(TypeError):  # of an id that is none
        if {annotation.get("image_id") for annotation in annotations} <= ids.keys():
            return annotations

    def is_stranger(annotation: dict) -> bool:
        image_id = annotation.get("image_id")
        return is_id(image_id) and image_id not in ids

    strangers = [annotation for annotation in annotations if is_stranger(annotation)]
    if not strangers:
        return annotations
    first = f"annotation {_short(strangers[0].get('id'))} of the image {_short(strangers[0]['image_id'])}"
    notes.append(f"note: {path}: annotations of images that are not there, left out: {len(strangers)}, first {first}")
    return [annotation for annotation in annotations if not is_stranger(annotation)]


def usable_annotations(
    path: Path,
    annotations: list[dict],
    names: Mapping[int | str, str],
    categories: Set,
    read: Callable[[list[dict]], dict[str, np.ndarray]],
    scored_fields: Sequence[str],
    complain: Complain,
) -> tuple[list[dict], np.ndarray, dict[str, np.ndarray]]:
    """The annotations that can be learned from, and scored; their ``bbox`` (n, 4) float64; and what ``read`` gives.

    Args:
        path: of the annotation file, for messages.
        annotations: of the file; ``of_known_images``.
        names: file names of the usable images by id.
        categories: ids of those that are known.
        read: the task's reading of annotations, which says whether they fit it.
        scored_fields: what must be a number besides.
        complain: see above.
    """

    def problem(some: list[dict]) -> str | tuple[np.ndarray, dict[str, np.ndarray]]:
        """What is wrong with one of them, or what was read."""
        for field in scored_fields:
            if not all(isinstance(annotation.get(field), (int, float)) for annotation in some):
                return f"has {_field(some[0], field)}, which scoring needs to be a number"
        try:
            if not _are_ids([one["image_id"] for one in some]):
                return f"has {_field(some[0], 'image_id')}"
            known = [one["category_id"] for one in some]
            if not (_are_ids(known) and categories.issuperset(known)):
                return f"has the unknown category_id {_short(some[0]['category_id'])}"
            boxes = numbers([annotation["bbox"] for annotation in some], "bbox", (4,))
            if not np.isfinite(boxes).all():
                return f"has {_field(some[0], 'bbox')}, which is not finite"
            if (boxes[:, 2:] < 0).any():
                return f"has {_field(some[0], 'bbox')}, whose width or height is negative"
            objects = read(some)
            for name, values in objects.items():
                if not np.isfinite(values).all():
                    return f"has {name} that are not finite: {_short(values.tolist())}"
        except KeyError as error:
            return f"lacks '{error.args[0]}'"
        except (TypeError, ValueError, OverflowError) as error:
            return f"is malformed: {error}"
        return boxes, objects

    if not annotations or not isinstance(found := problem(annotations), str):  # all at once, which is quick
        return annotations, *(found if annotations else (np.zeros((0, 4)), read([])))
    usable = []
    for k, annotation in enumerate(annotations, start=1):
        reason = problem([annotation])
        if not isinstance(reason, str):
            usable.append(annotation)
        else:
            number, image_id = annotation.get("id"), annotation.get("image_id")
            where = f"annotation {number if is_id(number) else f'number {k}'}"
            if is_id(image_id):
                where += f" of {_short(names[image_id])}"
            complain(f"{path}: {where} {reason}")
    return usable, numbers([annotation["bbox"] for annotation in usable], "bbox", (4,)), read(usable)


def numbers(values: Sequence, what: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values of JSON as float64 of the shape (n, *shape); ValueError when they are no numbers or of another form."""
    try:
        array = np.array(values)
    except ValueError:  # rows of different lengths
        array = np.zeros(0, dtype=object)
    if array.shape == (0,) and not values:
        array = array.reshape(0, *shape)
    if array.dtype == object or array.shape != (len(values), *shape):
        form = f"{' x '.join(map(str, shape))} numbers" if shape else "a number"
        raise ValueError(f"its {what} is not {form}: {_short(values[0])}")
    if array.dtype.kind not in "iuf":
        raise ValueError(f"its {what} is not made of numbers: {_short(values[0])}")
    return array.astype(np.float64)


def sizes_of(images: Sequence[dict]) -> np.ndarray:
    """(n, 2) int32, the width and height that an annotation file states of each image; 0 where it does not."""
    sizes = np.zeros((len(images), 2), dtype=np.int32)
    for row, image in zip(sizes, images, strict=True):
        size = image.get("width"), image.get("height")
        if all(isinstance(side, int) and 0 < side < 1 << 31 for side in size):
            row[:] = size
    return sizes


def box_notes(path: Path, annotations: Sequence[dict], boxes: np.ndarray, sizes: np.ndarray) -> list[str]:
    """A line for each kind of box that is allowed, but perhaps not meant.

    ``annotations`` are usable ones, ``boxes`` (n, 4) what they say, ``sizes`` (n, 2) those of their images, 0 where
    they are not known.
    """
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    known = (sizes > 0).all(1)
    empty = (boxes[:, 2:] == 0).any(1)
    outside = known & ~empty & ((low >= sizes) | (high <= 0)).any(1)
    across = known & ~empty & ~outside & ((low < -1) | (high > sizes + 1)).any(1)
    notes = []
    for found, what in (
        (empty, "boxes without an area, which are left out"),
        (outside, "boxes outside of their image, which are left out"),
        (across, "boxes that reach out of their image and are cut off there"),
    ):
        if found.any():
            first = annotations[int(found.argmax())]
            text = f"{_short(first.get('id'))} in the image {_short(first['image_id'])}: {_short(first['bbox'])}"
            notes.append(f"note: {path}: {what}: {found.sum()}, the first is annotation {text}")
    return notes


def _field(entry: Mapping, name: str) -> str:
    return f"the {name} {_short(entry[name])}" if name in entry else f"no {name}"


def _short(value) -> str:
    try:
        text = repr(value)
    except RecursionError:
        return f"a {type(value).__name__} in many others"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
