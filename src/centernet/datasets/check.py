"""Check a dataset before training: what is wrong with it, what is in it, and what the network will see."""

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

from ..conversion.coco_file import is_id
from ..conversion.issues import ERROR, LEFT_OUT, NOTE, Issue, IssueLog
from ..conversion.keypoints import describe_schema
from ..errors import UserError
from ..ops.keypoints import COCO_PERSON
from ..tasks.base import Task
from ..utils.images import read_image
from ..utils.text import printable
from . import get_dataset
from .annotations import Annotations, box_issues, refuse_nothing_to_learn, sizes_of
from .base import CocoStyleDataset, without_outlines
from .loader import Samples, collate, finish_batch
from .outlines import Outlines

MAX_EXAMPLES = 5  # of a kind of problem that are shown
SIZES = (0, 8, 16, 32, 64, 128, 256, math.inf)  # square roots of areas in the network's input
BAR_LENGTH, MAX_LENGTH = 40, 200  # characters
CELL = 512  # pixels of an image in the grid
TITLES = {ERROR: "PROBLEM", LEFT_OUT: "PROBLEM: left out", NOTE: "note"}


@dataclass
class Report:
    """Problems and statistics of one split.

    Attributes:
        split: train or val.
        annotation_file: the file or folder of the annotations.
        log: errors, which stop a training; what is left out of it; and notes.
        images, objects: how many can be used.
        classes: class name to number of objects.
        sizes: number of objects in each interval of ``SIZES``.
        joints: name of a joint to number of objects in which it is labeled.
        paths: absolute paths of the images.
    """

    split: str
    annotation_file: Path
    log: IssueLog = field(default_factory=lambda: IssueLog(raise_errors=False))
    images: int = 0
    objects: int = 0
    classes: Counter = field(default_factory=Counter)
    sizes: list[int] = field(default_factory=lambda: [0] * (len(SIZES) - 1))
    joints: dict[str, int] = field(default_factory=dict)
    paths: set[str] = field(default_factory=set)

    @property
    def problems(self) -> int:
        """Return the number of errors, and of images, annotations and files that are left out."""
        return self.log.count(ERROR, LEFT_OUT)

    def add(self, severity: str, kind: str, text: str) -> None:
        """Report an issue of the annotation file."""
        self.log(Issue(severity, kind, self.annotation_file, text))

    def compare(self, training: "Report") -> None:
        """Report images that are also in the training split."""
        if shared := self.paths & training.paths:
            text = f"{len(shared)} of the {self.images} images are also trained on, so scores will be too high"
            self.add(NOTE, "images of both splits", text)

    def lines(self) -> Iterator[str]:
        """Yield the report as lines of text."""
        yield f"{self.split}: {self.annotation_file}"
        yield f"  {self.images} images, {self.objects} objects of {len(+self.classes)} classes"
        for severity, kinds in self.log.issues.items():
            for kind, issues in kinds.items():
                more = f", ... {len(issues)} in all" if len(issues) > MAX_EXAMPLES else ""
                places = "; ".join(self._place(issue) for issue in issues[:MAX_EXAMPLES])
                yield f"  {TITLES[severity]}: {kind}: {places}{more}"
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
        if self.joints:
            yield "  objects in which each keypoint is labeled:"
        width = max((len(name) for name in self.joints), default=0)
        for name, count in self.joints.items():
            yield f"    {name:{width}}  {count:7d} {_bar(count, max(self.joints.values()))}"

    def _place(self, issue: Issue) -> str:
        text = printable(issue.text if issue.path == self.annotation_file else issue.line)
        return text if len(text) <= MAX_LENGTH else f"{text[: MAX_LENGTH - 3]}..."


def _bar(count: int, highest: int) -> str:
    return "#" * math.ceil(BAR_LENGTH * count / max(highest, 1))


def check_split(
    task: Task, split: str, progress: Callable[[Iterable, int], Iterable] = lambda items, _: items
) -> Report:
    """Read all annotations and all images of one split, and return a report.

    ``progress`` wraps the images; it also gets their number.

    Raises:
        UserError: there is nothing to check.
    """
    dataset = get_dataset(task.opt.dataset).uninitialized(task, split)
    report = Report(split, dataset.annotation_file)
    content = dataset.read_content(report.log)
    try:
        usable = dataset.validate(content, report.log)
        class_of = dataset.classes_of(content)
    except UserError as error:
        report.add(ERROR, "datasets that cannot be used", str(error).removeprefix(f"{dataset.annotation_file}: "))
        return report
    report.images, report.objects = len(usable.images), len(usable.annotations)
    report.paths = dataset.paths_of(image["file_name"] for image in usable.images)
    if task.has_keypoints:
        labeled = (usable.objects["joints"][:, :, 2] > 0).sum(0).tolist()
        report.joints = dict(zip(task.opt.keypoints.names, labeled, strict=True))
        if task.opt.keypoints is not COCO_PERSON:
            report.add(NOTE, "keypoints of the data", describe_schema(task.opt.keypoints))
    if split == "train" and task.can_augment and task.opt.copy_paste > 0 and not len(Outlines(usable.annotations)):
        report.add(NOTE, "options without effect", without_outlines(dataset.annotation_file))
    sizes = _image_sizes(dataset, usable.images, progress, report)
    number = {image["id"]: k for k, image in enumerate(usable.images)}
    owners = np.array([number[annotation["image_id"]] for annotation in usable.annotations], dtype=np.int64)
    _check_objects(dataset, usable, class_of, sizes, owners, report)
    try:
        refuse_nothing_to_learn(dataset.annotation_file, usable, report.log, split == "train", sizes[owners])
    except UserError as error:
        report.add(ERROR, "no objects", str(error).removeprefix(f"{dataset.annotation_file}: "))
    return report


def _image_sizes(dataset: CocoStyleDataset, images: list[dict], progress, report: Report) -> np.ndarray:
    """Return (n, 2) int32, width and height of each image as it is decoded; 0 for those that cannot be read."""

    def read(image: dict) -> tuple[tuple[int, int], str]:
        try:
            path = os.path.join(dataset.image_folder, image["file_name"])
            height, width = read_image(path, dataset.opt.max_image_pixels).shape[:2]
        except UserError as error:
            return (0, 0), str(error)
        return (width, height), ""

    sizes = np.zeros((len(images), 2), dtype=np.int32)
    stated = sizes_of(images).tolist()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for k, (size, error) in enumerate(progress(pool.map(read, images), len(images))):
            name, sizes[k] = images[k]["file_name"], size
            if error:
                missing = "no such file" in error
                report.add(ERROR, "missing images" if missing else "images that cannot be read", f"{name} ({error})")
            elif all(stated[k]) and stated[k] != [*size]:
                rotated = ", perhaps because of its EXIF orientation" if stated[k] == [*size][::-1] else ""
                text = f"{name} is {size[0]} x {size[1]}, not {stated[k][0]} x {stated[k][1]}{rotated}"
                report.add(ERROR, "images of another size than stated", text)
    shared = Counter(image["file_name"] for image in images)
    for name, count in shared.items():
        if count > 1:
            report.add(NOTE, "files that several images share", f"{name} ({count} times)")
    return sizes


def _check_objects(
    dataset: CocoStyleDataset,
    usable: Annotations,
    class_of: dict,
    sizes: np.ndarray,
    owners: np.ndarray,
    report: Report,
) -> None:
    """Report what is odd about objects, and count them by class and size; ``owners`` are their images' indices."""
    opt = dataset.opt
    names = [image["file_name"] for image in usable.images]
    box_issues(report.annotation_file, usable, sizes[owners], report.log)
    report.classes = Counter(dict.fromkeys(dataset.class_names, 0))
    seen_ids: set = set()
    seen_objects: set = set()
    counts: Counter = Counter()
    for annotation, owner, box in zip(usable.annotations, owners.tolist(), usable.boxes.tolist(), strict=True):
        annotation_id, category = annotation.get("id"), annotation["category_id"]
        if is_id(annotation_id):
            if annotation_id in seen_ids:
                report.add(NOTE, "duplicate annotation ids", f"{annotation_id}")
            seen_ids.add(annotation_id)
        if category not in class_of:  # a category that is ignored
            continue
        counts[owner] += 1
        report.classes[dataset.class_names[class_of[category]]] += 1
        key = (owner, category, *box)
        if key in seen_objects:
            report.add(NOTE, "duplicate objects", f"annotation {annotation_id} in {names[owner]}: {box}")
        seen_objects.add(key)
        side = math.sqrt(box[2] * box[3]) * max(opt.input_h, opt.input_w) / max(*sizes[owner].tolist(), 1)
        if side > 0 and sizes[owner].all():
            report.sizes[bisect_right(SIZES, side) - 1 if math.isfinite(side) else -1] += 1
    for k, name in enumerate(names):
        if not counts[k]:
            report.add(NOTE, "images without objects", name)
        elif counts[k] > opt.max_objs:
            kind = f"images with more objects than the {opt.max_objs} that are used"
            report.add(NOTE, kind, f"{name} ({counts[k]})")
    for name, count in report.classes.items():
        if count == 0:
            report.add(NOTE, "classes without objects", name)


def sample_grids(task: Task, visualizer, count: int) -> dict[str, np.ndarray]:
    """Return augmented training samples with their targets as the network sees them, as grids of images by name.

    Images that cannot be read are left out.

    Raises:
        UserError: the dataset cannot be used for training.
    """
    # Samples carry what drawing needs, and unreadable images are reported, not replaced, unless that is asked for.
    policy = "skip" if task.opt.on_bad_image == "skip" else "error"
    task = type(task)(task.opt.replace(debug=1, on_bad_image=policy))
    samples = Samples(get_dataset(task.opt.dataset)(task, "train"), train=True)
    found: dict[str, list[np.ndarray]] = {}
    # The samples of the first epoch, from all over the dataset.
    for index in np.linspace(0, len(samples.dataset) - 1, min(count, len(samples.dataset))).astype(int):
        try:
            batch = finish_batch(collate([samples[1, int(index)]]), task)
        except UserError:
            continue
        for name, image in visualizer.training_images(batch, None).items():
            found.setdefault(name, []).append(image)
    return {name: _grid(images) for name, images in found.items()}


def _grid(images: list[np.ndarray]) -> np.ndarray:
    """Return images side by side in a square of cells, no larger than ``CELL`` pixels each."""
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
