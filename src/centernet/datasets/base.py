"""The base class of datasets."""

import hashlib
import os
from argparse import Namespace
from collections.abc import Callable, Container, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..conversion.coco_file import is_id, read_annotation_file
from ..conversion.issues import IssueLog, Report, ignore_issue, raise_error
from ..errors import UserError
from ..evaluation import analysis
from ..utils.images import read_image
from .annotations import Annotations, box_issues, gc_disabled, refuse_nothing_to_learn, sizes_of, validate
from .outlines import Outlines

MAX_SHOWN = 5  # problems that are shown of those of one kind

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class DatasetTask(Protocol):
    """The part of ``tasks.base.Task`` that reading a dataset needs."""

    @property
    def opt(self) -> Any:
        """Return the options."""

    @property
    def has_keypoints(self) -> bool:
        """Return whether the task learns keypoints."""

    @property
    def can_augment(self) -> bool:
        """Return whether samples can be composed of several images."""

    def encode(self, image: np.ndarray, objects: dict[str, np.ndarray], rng: Any, train: bool) -> dict:
        """Return a sample of an image and its objects."""

    def read_objects(self, annotations: list[dict], class_of: dict) -> dict[str, np.ndarray]:
        """Return annotations as arrays with one row per object; raise ValueError if they do not fit the task."""

    def detected_boxes(self, rows: np.ndarray) -> np.ndarray:
        """Return [x1, y1, x2, y2, score] of rows of results."""


class CocoStyleDataset:
    """Images and annotations of one split, read from a COCO-style JSON file.

    A dataset is a subclass with the class attributes below; they are known without reading anything, unless it
    overrides ``describe``. The rest of the code never asks for a dataset's name.

    Attributes:
        name: value of ``--dataset``.
        folder_names: possible names of its folder below ``--data_path``, the usual one first.
        tasks: names of the tasks that can be trained on its annotations.
        class_names: in the order of the network's classes; empty when they come from the data.
        category_ids: category id of each class in the annotation file.
        mean, std: of pixels in [0, 1], in the order in which they are applied to BGR.
        default_resolution: (height, width) of the network's input.
        max_objs: number of annotations used per image.
        score_names: keys of ``evaluate`` by which ``--metric`` can select the best model, the default first.
        rounded_results: write and score results with two decimals, where the reference does so.
        scored_images: ids of the images whose objects are scored; None: all. Set where not all are looked at.
        ignored_categories: valid category ids that do not belong to a class.
        scored_fields: fields of annotations that must be numbers, because scoring needs them.
        pretrained: default of ``--pretrained`` for a training from scratch.

    An instance has ``task``, ``folder``, ``split``, ``annotation_file``, ``image_folder``, ``image_ids``,
    ``file_names``, ``sizes`` (n, 2) int32, annotated width and height, or 0, ``outlines`` of the objects, None unless
    ``--copy_paste`` needs them, and ``notes``, lines to print at the start; its ``class_names`` are those of the
    options. ``tables`` holds the tables that the original evaluator prints for the last ``evaluate``, which programs
    parse; empty if it prints none.
    """

    name: str
    folder_names: tuple[str, ...]
    tasks: tuple[str, ...] = ("ctdet",)
    class_names: Sequence[str] = ()
    category_ids: Sequence[int | str] = ()
    mean: tuple[float, ...]
    std: tuple[float, ...]
    default_resolution: tuple[int, int]
    max_objs: int
    score_names: tuple[str, ...]
    rounded_results = False
    scored_images: Container | None = None
    ignored_categories: tuple[int, ...] = ()
    scored_fields: tuple[str, ...] = ()
    pretrained = "imagenet"
    tables = ""

    @classmethod
    def is_root(cls, folder: Path) -> bool:
        """Return whether ``folder`` contains this dataset, complete or to be prepared."""
        return (folder / "annotations").is_dir()

    @classmethod
    def locate(cls, data_path: Path) -> Path:
        """Return the dataset's folder: a subfolder of ``data_path`` with one of its names, or ``data_path`` itself.

        Raises UserError if neither contains the dataset.
        """
        candidates = [data_path / name for name in cls.folder_names] + [data_path]
        for folder in candidates:
            if folder.is_dir() and cls.is_root(folder):
                return folder
        if data_path.exists() and not data_path.is_dir():
            raise UserError(
                f"--data_path {data_path}: this is a file; name the folder of the dataset {cls.name}, see docs/DATA.md"
            )
        state = "holds no" if data_path.is_dir() else "does not exist, so there is no"
        raise UserError(
            f"--data_path {data_path}: this folder {state} dataset {cls.name} (looked for annotations/ in "
            f"{' and '.join(str(folder) for folder in candidates)}); see docs/DATA.md, or try --dataset sample"
        )

    @classmethod
    def describe(cls, opt: Namespace) -> dict:
        """Return the attributes that become options, and ``main_score``, the first of ``score_names``."""
        names = ("class_names", "category_ids", "mean", "std", "default_resolution", "max_objs")
        return {**{name: getattr(cls, name) for name in names}, "main_score": cls.score_names[0]}

    @classmethod
    def prepare(cls, folder: Path, log=print) -> None:
        """Convert or generate missing files. The default does nothing."""

    @gc_disabled()
    def __init__(self, task: DatasetTask | Namespace, split: str) -> None:
        """Read and check the annotations of ``split`` (train, val, or test) for a task, or for finished options.

        Raises UserError.
        """
        if isinstance(task, Namespace):
            from ..tasks import build_task  # tasks are above datasets

            task = build_task(task)  # type: ignore[arg-type]
        self._find_files(task, split)
        log = IssueLog(self.opt.on_bad_image != "skip", " (--on_bad_image skip leaves it out)")
        content = self.read_content(log)
        usable = self.validate(content, log)
        images = self.order(usable.images)
        self.image_ids = [image["id"] for image in images]
        self.file_names = [os.fspath(image["file_name"]) for image in images]
        self.sizes = sizes_of(images)
        # A few large arrays instead of many small objects: little memory, and none of it is copied by the workers.
        number = {image_id: k for k, image_id in enumerate(self.image_ids)}
        owners = np.array([number[annotation["image_id"]] for annotation in usable.annotations], dtype=np.int64)
        by_image = owners.argsort(kind="stable")
        self.start = np.cumsum([0, *np.bincount(owners, minlength=len(self))])
        self.objects = {name: values[by_image] for name, values in usable.objects.items()}
        box_issues(self.annotation_file, usable, self.sizes[owners], log)
        refuse_nothing_to_learn(self.annotation_file, usable, log, split == "train", self.sizes[owners])
        self.notes: list[str] = log.lines()
        if split == "val" and not self.start[-1]:
            self.notes.append(f"note: {self.annotation_file}: no objects, so there will be no score")
        self.outlines = None
        if split == "train" and self.task.can_augment and self.opt.copy_paste > 0:
            self.outlines = Outlines([usable.annotations[k] for k in by_image])
            if not len(self.outlines):
                self.notes.append(f"note: {without_outlines(self.annotation_file)}")

    def validate(self, content: dict, report: Report) -> Annotations:
        """Return what of ``content`` can be learned from, and for the validation split scored; report the rest."""
        return validate(
            self.annotation_file,
            content,
            categories={*self.classes_of(content), *self.ignored_categories},
            read=self.reader(content),
            scored_fields=self.scored_fields if self.split == "val" else (),
            report=report,
        )

    def reader(self, content: dict) -> Callable[[list[dict]], dict[str, np.ndarray]]:
        """Return the task's reading of annotations of ``content``; it is called for each one where some are wrong."""
        return partial(self.task.read_objects, class_of=self.classes_of(content))

    @gc_disabled()
    def filtered_annotations(self) -> dict:
        """Read the annotations again for scoring, without invalid entries and with unique ids.

        Those of ``scored_images``, if it is set.

        If ids are duplicated or one is 0, all annotations are renumbered, because pycocotools keeps only one of each id
        and treats 0 as unmatched.
        """
        content = self.read_content(ignore_issue)
        usable = self.validate(content, ignore_issue)
        content = {**content, "images": usable.images, "annotations": usable.annotations}
        if self.scored_images is not None:
            content["images"] = [image for image in usable.images if image["id"] in self.scored_images]
            content["annotations"] = [one for one in usable.annotations if one["image_id"] in self.scored_images]
        ids = {annotation["id"] for annotation in content["annotations"] if is_id(annotation.get("id"))}
        if len(ids) < len(content["annotations"]) or 0 in ids:
            content["annotations"] = [{**one, "id": k} for k, one in enumerate(content["annotations"], start=1)]
        return content

    def check_images_exist(self) -> None:
        """Check that the image files exist, without reading them.

        Raises UserError if some are missing, unless ``--on_bad_image skip`` is set or the training is resumed, which
        add a note instead.
        """
        present: dict[str, set[str]] = {}
        missing = []
        for name in self.file_names:
            folder, _, base = name.rpartition("/")
            if folder not in present:
                try:
                    present[folder] = set(os.listdir(os.path.join(self.image_folder, folder)))
                except OSError:
                    present[folder] = set()
            # A file system may also know a name in another spelling.
            if base not in present[folder] and not os.path.exists(os.path.join(self.image_folder, name)):
                missing.append(name)
        if missing:
            text = f"{self.image_folder}: {len(missing)} of {len(self)} images are missing, the first is {missing[0]}"
            if self.opt.on_bad_image != "skip" and not self.opt.resume:
                raise UserError(f"{text} (--on_bad_image skip continues without them)")
            self.notes.append(f"note: {text}")

    def count_shared_images(self, other: "CocoStyleDataset") -> int:
        """Return how many images of this split are the same files as images of ``other``."""
        return len(self.paths_of(self.file_names) & other.paths_of(other.file_names))

    def paths_of(self, file_names: Iterable[str | os.PathLike]) -> set[str]:
        """Return the absolute paths of images of this split, without ``..``."""
        folder = os.path.realpath(self.image_folder)
        return {os.path.normpath(os.path.join(folder, name)) for name in file_names}

    @classmethod
    def uninitialized(cls, task: DatasetTask, split: str) -> "CocoStyleDataset":
        """Return the dataset with the paths of its files, but without reading annotations."""
        dataset = cls.__new__(cls)
        dataset._find_files(task, split)
        return dataset

    @property
    def opt(self):
        """Return the options of the task."""
        return self.task.opt

    def _find_files(self, task: DatasetTask, split: str) -> None:
        self.task, self.split = task, split
        self.folder = self.locate(Path(self.opt.data_dir))
        self.class_names, self.category_ids = list(self.opt.class_names), list(self.opt.category_ids)
        self.annotation_file = self.find_annotations(self.folder, split)
        self.image_folder = self.find_images(self.folder, split)

    def find_annotations(self, folder: Path, split: str) -> Path:
        """Return the annotation file of ``train`` or ``val``."""
        raise NotImplementedError

    def find_images(self, folder: Path, split: str) -> Path:
        """Return the image folder of ``train`` or ``val``."""
        raise NotImplementedError

    def read_content(self, report: Report = raise_error) -> dict:
        """Read the annotations of the split in COCO format: ``images``, ``annotations``, ``categories``.

        Entries with issues from which ``report`` returns are left out.
        """
        return read_annotation_file(self.annotation_file, report)

    def classes_of(self, content: dict) -> dict[int | str, int]:
        """Return the class, from 0, of each category id of ``content``."""
        return {category: k for k, category in enumerate(self.category_ids)}

    def order(self, images: list[dict]) -> list[dict]:
        """Return the images in the order in which they are indexed; by default that of the file."""
        return images

    def __len__(self) -> int:
        return len(self.image_ids)

    def summary(self) -> str:
        """Return the number of images and objects and a digest that identifies them."""
        digest = hashlib.sha256()
        for names in (self.image_ids, self.file_names):
            digest.update("\n".join(map(str, names)).encode(errors="replace"))
        for name in sorted(self.objects):
            digest.update(np.ascontiguousarray(self.objects[name]).tobytes())
        return f"{len(self)} images with {self.start[-1]} objects (digest {digest.hexdigest()[:12]})"

    def read_image(self, index: int) -> np.ndarray:
        """Read an image as (H, W, 3) uint8, BGR.

        Raises UserError with the file name if it cannot be read or does not have its annotated size.
        """
        path = os.path.join(self.image_folder, self.file_names[index])
        image = read_image(path, self.opt.max_image_pixels)
        stated, size = tuple(self.sizes[index].tolist()), (image.shape[1], image.shape[0])
        if stated not in (size, (0, 0)):
            rotated = ", perhaps because of its EXIF orientation" if stated == size[::-1] else ""
            raise UserError(
                f"{path}: this image is {size[0]} x {size[1]}{rotated}, but {self.annotation_file} states {stated[0]} "
                f"x {stated[1]}, so its boxes would be wrong"
            )
        return image

    def read_objects(self, index: int) -> dict[str, np.ndarray]:
        """Return the arrays of the task's ``read_objects`` for one image."""
        part = slice(self.start[index], self.start[index + 1])
        return {name: values[part] for name, values in self.objects.items()}

    def read_outlines(self, index: int) -> np.ndarray:
        """Return the outlines (n,) of the objects of one image; see :class:`Outlines`."""
        assert self.outlines is not None
        return self.outlines.of(range(self.start[index], self.start[index + 1]))

    def picture_info(self, index: int) -> dict:
        """Return metadata of an image that detection needs, such as the camera calibration; empty by default."""
        return {}

    def default_image_info(self) -> dict:
        """Return the most common metadata as plain values, which checkpoints store for images outside of datasets."""
        return {}

    def save_results(self, results: dict[int | str, dict[int, np.ndarray]], path: Path) -> Path:
        """Write ``{image id: {class from 1: rows}}`` in the reference's format, by default to ``path``.

        Returns the file or folder that was written.
        """
        raise NotImplementedError

    def evaluate(self, results: dict[int | str, dict[int, np.ndarray]]) -> dict[str, float]:
        """Score detections, and return scores in [0, 1] by name: ``score_names``, then ``AP/<class>`` per class."""
        raise NotImplementedError

    def analyze(self, results: dict[int | str, dict[int, np.ndarray]]) -> dict:
        """Explain the scores of detections, as plain values for JSON.

        Returns the curves, confusions and errors of the boxes (``evaluation.analysis.analyze``). Subclasses add
        ``joints`` and ``distances``.
        """
        truth, found = analysis.from_dataset(self, results, self.task.detected_boxes)
        return analysis.analyze(truth, found, self.class_names)


def without_outlines(annotation_file: Path) -> str:
    """Return the note about ``--copy_paste`` with a dataset that has only boxes."""
    return f"--copy_paste has no effect: no object of {annotation_file} has an outline (docs/DATA.md)"
