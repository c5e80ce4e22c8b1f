"""What a dataset is, and the reading of images."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..conversion.coco_file import is_id, read_annotation_file
from ..conversion.issues import IssueLog, Report, ignore_issue, raise_error
from ..errors import UserError
from .annotations import Annotations, box_issues, gc_disabled, refuse_nothing_to_learn, sizes_of, validate
from .images import read_image

if TYPE_CHECKING:
    from ..tasks.base import Task

SHOWN = 5  # problems that are shown of those of one kind

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class CocoStyleDataset:
    """Images and annotations of one split, read from a COCO-style JSON file.

    A dataset is a subclass with the class attributes below; they are known without reading anything, unless it
    overrides ``describe``. The rest of the code never asks for a dataset's name.

    Attributes:
        name: what ``--dataset`` calls it.
        folder_names: how its folder may be called below ``--data_path``; the first is the usual one.
        tasks: what can be learned from its annotations.
        class_names: in the order of the network's classes; empty when they come from the data.
        category_ids: category id of the annotation file of each class.
        mean, std: of pixels in [0, 1], in the order in which they are applied to B, G, R.
        default_resolution: (height, width) of the network's input.
        max_objs: annotations of an image that are used.
        score_names: the keys of ``evaluate`` that say how good a detector is, the usual one first.
        rounded_results: write and score results with two decimals, where the reference does so.
        ignored_categories: category ids that belong to no class and are no mistake.
        scored_fields: of annotations, what must be a number to score them.
        pretrained: default of ``--pretrained`` for a training from scratch.

    An instance has ``task``, ``folder``, ``split``, ``annotation_file``, ``image_folder``, ``image_ids``,
    ``file_names``, ``sizes`` (n, 2) int32, width and height as the annotations state them or 0, and ``notes``, lines
    to be printed at the start; its ``class_names`` are those of the options. ``tables`` is what the original evaluator
    prints of the last ``evaluate``, lines that programs read; empty if it has none.
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
    ignored_categories: tuple[int, ...] = ()
    scored_fields: tuple[str, ...] = ()
    pretrained = "imagenet"
    tables = ""

    @classmethod
    def is_root(cls, folder: Path) -> bool:
        """Whether ``folder`` is one of this dataset (complete or to be prepared)."""
        return (folder / "annotations").is_dir()

    @classmethod
    def locate(cls, data_path: Path) -> Path:
        """The dataset's folder: ``data_path`` itself or the one of the usual name in it.

        Raises UserError when there is none.
        """
        candidates = [data_path / name for name in cls.folder_names] + [data_path]
        for folder in candidates:
            if folder.is_dir() and cls.is_root(folder):
                return folder
        state = "holds no" if data_path.is_dir() else "does not exist, so there is no"
        raise UserError(
            f"--data_path {data_path}: this folder {state} dataset {cls.name} (looked for annotations/ in "
            f"{' and '.join(str(folder) for folder in candidates)}); see docs/DATA.md, or try --dataset sample"
        )

    @classmethod
    def describe(cls, opt) -> dict:
        """What the options take from the dataset: these attributes, and ``main_score``, the first of the scores."""
        names = ("class_names", "category_ids", "mean", "std", "default_resolution", "max_objs")
        return {**{name: getattr(cls, name) for name in names}, "main_score": cls.score_names[0]}

    @classmethod
    def prepare(cls, folder: Path, log=print) -> None:
        """Make what is missing and can be made from what is there. Nothing by default."""

    @gc_disabled()
    def __init__(self, task: "Task", split: str) -> None:
        """Read and check the annotations of ``split`` (train, val, or test) for a task. Raises UserError."""
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
        refuse_nothing_to_learn(self.annotation_file, usable, log, train=split == "train")
        self.notes: list[str] = log.lines()

    def validate(self, content: dict, report: Report) -> Annotations:
        """Return what of ``content`` can be learned from, and for the validation split scored; report the rest."""
        return validate(
            self.annotation_file,
            content,
            categories={*self.classes_of(content), *self.ignored_categories},
            read=lambda annotations: self._read(annotations, content),
            scored_fields=self.scored_fields if self.split == "val" else (),
            report=report,
        )

    def _read(self, annotations: list[dict], content: dict) -> dict[str, np.ndarray]:
        return self.task.read_objects(annotations, self.classes_of(content))

    @gc_disabled()
    def filtered_annotations(self) -> dict:
        """The annotations as they are scored: read once more, without what is left out, with ids that tell them apart.

        Annotations whose ids are there twice are numbered anew, because pycocotools would take one for all; so are
        those with the id 0, which it takes for none.
        """
        content = self.read_content(ignore_issue)
        usable = self.validate(content, ignore_issue)
        content = {**content, "images": usable.images, "annotations": usable.annotations}
        ids = {annotation["id"] for annotation in content["annotations"] if is_id(annotation.get("id"))}
        if len(ids) < len(content["annotations"]) or 0 in ids:
            content["annotations"] = [{**one, "id": k} for k, one in enumerate(content["annotations"], start=1)]
        return content

    def check_images_exist(self) -> None:
        """Look for the files of the images; their contents are seen when they are needed.

        Raises UserError when some are missing, unless the options say that they are to be skipped. A training that is
        resumed goes on without them.
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
                raise UserError(f"{text} (--on_bad_image skip goes on without them)")
            self.notes.append(f"note: {text}")

    @classmethod
    def unread(cls, task: "Task", split: str) -> "CocoStyleDataset":
        """The dataset before anything of it is read: with the names of its files, without ids and objects."""
        dataset = cls.__new__(cls)
        dataset._find_files(task, split)
        return dataset

    @property
    def opt(self):
        """The options of the task."""
        return self.task.opt

    def _find_files(self, task: "Task", split: str) -> None:
        self.task, self.split = task, split
        self.folder = self.locate(Path(self.opt.data_dir))
        self.class_names, self.category_ids = list(self.opt.class_names), list(self.opt.category_ids)
        self.annotation_file = self.find_annotations(self.folder, split)
        self.image_folder = self.find_images(self.folder, split)

    def find_annotations(self, folder: Path, split: str) -> Path:
        """The annotation file of ``train`` or ``val``."""
        raise NotImplementedError

    def find_images(self, folder: Path, split: str) -> Path:
        """The folder of the images of ``train`` or ``val``."""
        raise NotImplementedError

    def read_content(self, report: Report = raise_error) -> dict:
        """Read the annotations of the split in COCO's form: ``images``, ``annotations``, ``categories``.

        What ``report`` returns from is left out.
        """
        return read_annotation_file(self.annotation_file, report)

    def classes_of(self, content: dict) -> dict[int | str, int]:
        """Category id of ``content`` to class from 0."""
        return {category: k for k, category in enumerate(self.category_ids)}

    def order(self, images: list[dict]) -> list[dict]:
        """The order in which the images are numbered; the file's by default."""
        return images

    def __len__(self) -> int:
        return len(self.image_ids)

    def summary(self) -> str:
        """What tells these images and objects from others, in a few words."""
        digest = hashlib.sha256()
        for names in (self.image_ids, self.file_names):
            digest.update("\n".join(map(str, names)).encode(errors="replace"))
        for name in sorted(self.objects):
            digest.update(np.ascontiguousarray(self.objects[name]).tobytes())
        return f"{len(self)} images with {self.start[-1]} objects (digest {digest.hexdigest()[:12]})"

    def read_image(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8, B, G, R.

        Raises UserError with the file's name when it cannot be read or has another size than the annotations say.
        """
        path = os.path.join(self.image_folder, self.file_names[index])
        image = read_image(path, self.opt.max_image_pixels)
        stated, size = tuple(self.sizes[index].tolist()), (image.shape[1], image.shape[0])
        if stated not in (size, (0, 0)):
            turned = ", perhaps because its EXIF data turn it" if stated == size[::-1] else ""
            raise UserError(
                f"{path}: this image is {size[0]} x {size[1]}{turned}, but {self.annotation_file} says {stated[0]} x "
                f"{stated[1]}, so its boxes would be wrong"
            )
        return image

    def read_objects(self, index: int) -> dict[str, np.ndarray]:
        """The arrays of the task's ``read_objects`` for one image."""
        part = slice(self.start[index], self.start[index + 1])
        return {name: values[part] for name, values in self.objects.items()}

    def picture_info(self, index: int) -> dict:
        """What a detector needs to know of an image besides its pixels, such as the camera. Nothing by default."""
        return {}

    def default_image_info(self) -> dict:
        """The same of most of the images, in plain values: the checkpoint keeps it for images that come alone."""
        return {}

    def save_results(self, results: dict[int | str, dict[int, np.ndarray]], path: Path) -> Path:
        """Write ``{image id: {class from 1: rows}}`` in the reference's format to ``path``, or where it has its place.

        Returns the file or folder.
        """
        raise NotImplementedError

    def evaluate(self, results: dict[int | str, dict[int, np.ndarray]]) -> dict[str, float]:
        """Scores in [0, 1] by name, ``score_names`` first, then one entry ``AP/<class>`` a class."""
        raise NotImplementedError
