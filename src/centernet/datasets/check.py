"""A look at a dataset before training: what is wrong with it, what is in it, and what the network will see."""

import math
import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from ..errors import UserError
from . import get_dataset
from .annotations import is_id, name_problem
from .base import CocoStyleDataset
from .images import read_image
from .loader import Samples, collate, finish_batch

EXAMPLES = 5  # of a kind of problem that are shown
SIZES = (0, 8, 16, 32, 64, 128, 256, math.inf)  # square roots of areas in the network's input
BAR, LONGEST = 40, 200  # characters
CELL = 256  # pixels of an image in the grid


@dataclass
class Report:
    """What was found in one split.

    Attributes:
        problems: kind of mistake to its places. They would stop a training or teach it something wrong.
        remarks: kind of peculiarity to its places. They are allowed.
        images, objects: how many there are.
        classes: class name to number of objects.
        sizes: number of objects in each interval of ``SIZES``.
    """

    split: str
    annotation_file: Path
    problems: dict[str, list[str]] = field(default_factory=dict)
    remarks: dict[str, list[str]] = field(default_factory=dict)
    images: int = 0
    objects: int = 0
    classes: Counter = field(default_factory=Counter)
    sizes: list[int] = field(default_factory=lambda: [0] * (len(SIZES) - 1))

    def problem(self, kind: str, place: str) -> None:
        """Note a mistake."""
        self.problems.setdefault(kind, []).append(_short(place))

    def remark(self, kind: str, place: str) -> None:
        """Note a peculiarity."""
        self.remarks.setdefault(kind, []).append(_short(place))

    def lines(self) -> Iterator[str]:
        """The report as text."""
        yield f"{self.split}: {self.annotation_file}"
        yield f"  {self.images} images, {self.objects} objects of {len(+self.classes)} classes"
        for title, found in (("PROBLEM", self.problems), ("note", self.remarks)):
            for kind, places in found.items():
                more = f", ... {len(places)} in all" if len(places) > EXAMPLES else ""
                yield f"  {title}: {kind}: {'; '.join(places[:EXAMPLES])}{more}"
        occurring = +self.classes
        width = max((len(name) for name in occurring), default=0)
        highest = max(self.classes.values(), default=0)
        yield "  objects of each class:"
        for name, count in occurring.items():
            yield f"    {name:{width}}  {count:7d} {_bar(count, highest)}"
        yield "  size of the objects in the network's input (square root of the area, pixels):"
        for low, high, count in zip(SIZES, SIZES[1:], self.sizes, strict=False):
            interval = f"{low:g} to {high:g}" if math.isfinite(high) else f"from {low:g}"
            yield f"    {interval:>10}  {count:7d} {_bar(count, max(self.sizes))}"


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _bar(count: int, highest: int) -> str:
    return "#" * math.ceil(BAR * count / max(highest, 1))


def check_split(opt, split: str, progress: Callable[[Iterable, int], Iterable] = lambda items, _: items) -> Report:
    """Read all annotations and all images of one split, and report.

    ``progress`` wraps the images, of which it is told the number. Raises UserError when there is nothing to check.
    """
    dataset = get_dataset(opt.dataset).unread(opt, split)
    report = Report(split, dataset.annotation_file)
    content = dataset.read_content(lambda text: report.problem("annotations that cannot be read", text))
    images = _check_image_entries(content["images"], report)
    for image_id, size in _read_images(dataset, images, progress, report):
        images[image_id]["size"] = size
    _check_objects(dataset, content, images, report)
    return report


def _check_image_entries(images: list, report: Report) -> dict:
    """The images by id, without those that have none or an old one."""
    by_id: dict = {}
    files: Counter = Counter()
    for k, image in enumerate(images, start=1):
        if not isinstance(image.get("file_name"), str) or "id" not in image:
            report.problem("images without id or file_name", f"number {k}: {str(image)[:60]}")
        elif (problem := name_problem(image["file_name"])) is not None:
            report.problem("file names that cannot be used", f"image {str(image['id'])[:60]} {problem}")
        elif not is_id(image["id"]):
            report.problem("ids that are neither numbers nor words", f"image {image['file_name']}: {image['id']}")
        elif image["id"] in by_id:
            report.problem("image ids that are there twice", f"{image['id']} ({image['file_name']})")
        else:
            by_id[image["id"]] = dict(image)
            files[image["file_name"]] += 1
    for name, count in files.items():
        if count > 1:
            report.remark("files that several images share", f"{name} ({count} times)")
    report.images = len(by_id)
    return by_id


def _read_images(dataset: CocoStyleDataset, images: dict, progress, report: Report) -> Iterator[tuple]:
    """(id, (width, height)) of each image that can be read; the others are reported."""

    def read(item: tuple) -> tuple:
        image_id, image = item
        try:
            path = os.path.join(dataset.image_folder, image["file_name"])
            height, width = read_image(path, dataset.opt.max_image_pixels).shape[:2]
        except UserError as error:
            return image_id, None, str(error)
        return image_id, (width, height), ""

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for image_id, size, error in progress(pool.map(read, images.items()), len(images)):
            image = images[image_id]
            if size is None:
                missing = "no such file" in error
                report.problem("missing images" if missing else "images that cannot be read", image["file_name"])
                continue
            stated = (image.get("width"), image.get("height"))
            if None not in stated and stated != size:
                text = f"{image['file_name']} is {size[0]} x {size[1]}, not {stated[0]} x {stated[1]}"
                report.problem("images of another size than stated", text)
            yield image_id, size


def _check_objects(dataset: CocoStyleDataset, content: dict, images: dict, report: Report) -> None:
    opt = dataset.opt
    try:
        class_of = dataset.classes_of(content)
    except UserError as error:
        report.problem("classes", str(error))
        class_of = {}
    report.classes = Counter(dict.fromkeys(dataset.class_names, 0))
    used = {str(category) for category in class_of}
    annotation_ids: set = set()
    boxes_of: dict = {}
    for k, annotation in enumerate(content["annotations"], start=1):
        where = f"annotation {annotation.get('id', f'number {k}')}"
        report.objects += 1
        number = annotation.get("id")
        if isinstance(number, (int, str)):
            if number in annotation_ids:
                report.remark("annotation ids that are there twice", str(number))
            annotation_ids.add(number)
        image_id, category = annotation.get("image_id"), annotation.get("category_id")
        if not is_id(image_id) or image_id not in images:
            report.problem("objects of images that are not listed", f"{where} (image {image_id})")
            continue
        if isinstance(category, int) and category in dataset.ignored_categories:
            continue
        if not is_id(category) or category not in class_of:
            hint = " (as text and as number)" if str(category) in used else ""
            report.problem("unknown categories", f"{where}: {category}{hint}")
            continue
        report.classes[dataset.class_names[class_of[category]]] += 1
        image = images[image_id]
        where += f" in {image['file_name']}"
        box = _box(annotation.get("bbox"))
        if box is None:
            report.problem("boxes that are not four numbers", f"{where}: {annotation.get('bbox')}")
            continue
        if not all(math.isfinite(value) for value in box):
            report.problem("boxes that are not finite", f"{where}: {box}")
            continue
        x, y, w, h = box
        if w <= 0 or h <= 0:
            report.problem("empty boxes", f"{where}: {box}")
            continue
        same = boxes_of.setdefault(image_id, Counter())
        same[(category, *box)] += 1
        if same[(category, *box)] == 2:
            report.remark("objects that are there twice", f"{where}: {box}")
        size = image.get("size")
        if size is not None:
            width, height = size
            if x >= width or y >= height or x + w <= 0 or y + h <= 0:
                report.problem("boxes outside of their image", f"{where}: {box} in {width} x {height}")
                continue
            if x < -1 or y < -1 or x + w > width + 1 or y + h > height + 1:
                report.remark("boxes that reach over the border", f"{where}: {box} in {width} x {height}")
            shrink = max(opt.input_h, opt.input_w) / max(width, height)
            side = math.sqrt(w * h) * shrink
            report.sizes[bisect_right(SIZES, side) - 1 if math.isfinite(side) else -1] += 1
    if not boxes_of:
        report.problem("no objects", f"none in {report.images} images to {report.split} with")
    empty = [image["file_name"] for image_id, image in images.items() if image_id not in boxes_of]
    for name in empty:
        report.remark("images without objects", name)
    for image_id, boxes in boxes_of.items():
        if boxes.total() > opt.max_objs:
            text = f"{images[image_id]['file_name']} ({boxes.total()})"
            report.remark(f"images with more objects than the {opt.max_objs} that are used", text)
    for name, count in report.classes.items():
        if count == 0:
            report.remark("classes without objects", name)


def _box(values) -> list[float] | None:
    try:
        box = [float(value) for value in values if not isinstance(value, str)]
    except (TypeError, ValueError, OverflowError):
        return None
    return box if len(box) == 4 else None


def sample_grids(opt, task, count: int) -> dict[str, np.ndarray]:
    """Augmented training samples with their targets as the network will see them, as grids of images by name.

    Raises UserError when the dataset cannot be trained on; images that cannot be read are left out.
    """
    opt.debug = 1  # so that samples carry what is drawn of them
    opt.on_bad_image = "error"  # so that what cannot be read is told, not replaced
    samples = Samples(get_dataset(opt.dataset)(opt, "train"), opt, train=True)
    found: dict[str, list[np.ndarray]] = {}
    # The samples of the first epoch, from all over the dataset.
    for index in np.linspace(0, len(samples.dataset) - 1, min(count, len(samples.dataset))).astype(int):
        try:
            batch = finish_batch(collate([samples[1, int(index)]]), task, opt)
        except UserError:
            continue
        for name, image in task.debug_images(batch, None, opt).items():
            found.setdefault(name, []).append(image)
    return {name: _grid(images) for name, images in found.items()}


def _grid(images: list[np.ndarray]) -> np.ndarray:
    """Images side by side in a square of cells, no larger than ``CELL`` pixels each."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    height, width = images[0].shape[:2]
    shrink = min(1.0, CELL / max(height, width))
    height, width = round(height * shrink), round(width * shrink)
    grid = np.full((rows * (height + 2), columns * (width + 2), 3), 255, np.uint8)
    for k, image in enumerate(images):
        y, x = (k // columns) * (height + 2), (k % columns) * (width + 2)
        grid[y : y + height, x : x + width] = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return grid
