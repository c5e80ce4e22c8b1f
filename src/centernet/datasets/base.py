"""What a data set is, and the reading of COCO-style annotation files."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from ..errors import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def refuse(problem: str) -> None:
    """Take no mistake in annotations."""
    raise UserError(problem)


# Of an annotation file, without which nothing goes; keypoints for poses.
FIELDS = ("id", "file_name", "image_id", "category_id", "bbox", "keypoints")


class CocoStyleDataset:
    """Pictures and annotations of one split, read from a COCO-style JSON file.

    A data set is a subclass with the class attributes below; they are known without reading anything, unless it
    overrides ``describe``. The rest of the code never asks for a data set's name.

    Attributes:
        name: what ``--dataset`` calls it.
        folder_names: how its folder may be called below ``--data_path``; the first is the usual one.
        tasks: what can be learned from its annotations.
        class_names: in the order of the network's classes; empty when they come from the data.
        category_ids: category id of the annotation file of each class.
        mean, std: of pixels in [0, 1], in the order in which they are applied to B, G, R.
        default_resolution: (height, width) of the network's input.
        max_objs: annotations of a picture that are used.
        score_names: the keys of ``evaluate`` that say how good a detector is, the usual one first.
        rounded_results: write and score results with two decimals, where the reference does so.
        ignored_categories: category ids that belong to no class and are no mistake.
        pretrained: default of ``--pretrained`` for a training from scratch.

    An instance has ``opt``, ``folder``, ``split``, ``annotation_file``, ``image_folder``, ``image_ids`` and
    ``file_names``; its ``class_names`` are those of the options.
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
    pretrained = "imagenet"

    @classmethod
    def is_root(cls, folder: Path) -> bool:
        """Whether ``folder`` is one of this data set (complete or to be prepared)."""
        return (folder / "annotations").is_dir()

    @classmethod
    def locate(cls, data_path: Path) -> Path:
        """The data set's folder: ``data_path`` itself or the one of the usual name in it.

        Raises UserError when there is none.
        """
        candidates = [data_path / name for name in cls.folder_names] + [data_path]
        for folder in candidates:
            if folder.is_dir() and cls.is_root(folder):
                return folder
        state = "holds no" if data_path.is_dir() else "does not exist, so there is no"
        raise UserError(
            f"--data_path {data_path}: this folder {state} data set {cls.name} (looked for annotations/ in "
            f"{' and '.join(str(folder) for folder in candidates)}); see docs/DATA.md, or try --dataset sample"
        )

    @classmethod
    def describe(cls, opt) -> dict:
        """What the options take from the data set: these attributes, and ``main_score``, the first of the scores."""
        names = ("class_names", "category_ids", "mean", "std", "default_resolution", "max_objs")
        return {**{name: getattr(cls, name) for name in names}, "main_score": cls.score_names[0]}

    @classmethod
    def prepare(cls, folder: Path, log=print) -> None:
        """Make what is missing and can be made from what is there. Nothing by default."""

    def __init__(self, opt, split: str) -> None:
        """Read the annotations of ``split`` (train, val, or test) as the options say. Raises UserError."""
        from ..tasks import get_task  # here, because the tasks use this package

        self._find_files(opt, split)
        content = self.read_content()
        class_of = self.classes_of(content)
        task = get_task(opt.task)
        try:
            images = self.order(content["images"])
            self.image_ids = [image["id"] for image in images]
            self.file_names = [os.fspath(image["file_name"]) for image in images]
            by_image: dict[int | str, list[dict]] = {image_id: [] for image_id in self.image_ids}
            if len(by_image) < len(images):
                seen = set()
                twice = next(i for i in self.image_ids if i in seen or seen.add(i))
                raise UserError(f"{self.annotation_file}: the picture id {twice} is there more than once")
            for annotation in content["annotations"]:
                if annotation["image_id"] in by_image:
                    by_image[annotation["image_id"]].append(annotation)
            # A few large arrays instead of many small objects: little memory, and none of it is copied by the workers.
            self.start = np.cumsum([0] + [len(by_image[image_id]) for image_id in self.image_ids])
            everything = [annotation for image_id in self.image_ids for annotation in by_image[image_id]]
            self.objects = task.read_objects(everything, class_of)
        except KeyError as error:
            key = error.args[0]
            reason = f"lacks '{key}'" if key in FIELDS else f"has the unknown category_id {key}"
            raise UserError(f"{self.annotation_file}: a picture or an annotation {reason}") from error
        except (TypeError, ValueError) as error:
            raise UserError(f"{self.annotation_file}: a picture or an annotation is malformed ({error})") from error

    @classmethod
    def unread(cls, opt, split: str) -> "CocoStyleDataset":
        """The data set before anything of it is read: with the names of its files, without ids and objects."""
        dataset = cls.__new__(cls)
        dataset._find_files(opt, split)
        return dataset

    def _find_files(self, opt, split: str) -> None:
        self.opt = opt
        self.split = split
        self.folder = self.locate(Path(opt.data_dir))
        self.class_names, self.category_ids = list(opt.class_names), list(opt.category_ids)
        self.annotation_file = self.find_annotations(self.folder, split)
        self.image_folder = self.find_images(self.folder, split)

    def find_annotations(self, folder: Path, split: str) -> Path:
        """The annotation file of ``train`` or ``val``."""
        raise NotImplementedError

    def find_images(self, folder: Path, split: str) -> Path:
        """The folder of the pictures of ``train`` or ``val``."""
        raise NotImplementedError

    def read_content(self, complain: Callable[[str], None] = refuse) -> dict:
        """The annotations of the split in COCO's form: ``images``, ``annotations``, ``categories``.

        ``complain`` is called with a line for what is wrong in a place that can be left out.
        """
        return read_annotation_file(self.annotation_file)

    def classes_of(self, content: dict) -> dict[int | str, int]:
        """Category id of ``content`` to class from 0."""
        return {category: k for k, category in enumerate(self.category_ids)}

    def order(self, images: list[dict]) -> list[dict]:
        """The order in which the pictures are numbered; the file's by default."""
        return images

    def __len__(self) -> int:
        return len(self.image_ids)

    def summary(self) -> str:
        """What tells these pictures and objects from others, in a few words."""
        digest = hashlib.sha256()
        for names in (self.image_ids, self.file_names):
            digest.update("\n".join(map(str, names)).encode(errors="replace"))
        for name in sorted(self.objects):
            digest.update(np.ascontiguousarray(self.objects[name]).tobytes())
        return f"{len(self)} pictures with {self.start[-1]} objects (digest {digest.hexdigest()[:12]})"

    def read_image(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8, B, G, R. Raises UserError with the file's name when it cannot be read."""
        return read_image(os.path.join(self.image_folder, self.file_names[index]))

    def read_objects(self, index: int) -> dict[str, np.ndarray]:
        """The arrays of the task's ``read_objects`` for one picture."""
        part = slice(self.start[index], self.start[index + 1])
        return {name: values[part] for name, values in self.objects.items()}

    def picture_info(self, index: int) -> dict:
        """What a detector needs to know of a picture besides its pixels, such as the camera. Nothing by default."""
        return {}

    def save_results(self, results: dict[int | str, dict[int, np.ndarray]], path: Path) -> Path:
        """Write ``{image id: {class from 1: rows}}`` in the reference's format to ``path``, or where it has its place.

        Returns the file or folder.
        """
        raise NotImplementedError

    def evaluate(self, results: dict[int, dict[int, np.ndarray]]) -> dict[str, float]:
        """Scores in [0, 1] by name, ``score_names`` first, then one entry ``AP/<class>`` a class."""
        raise NotImplementedError


def read_annotation_file(path: Path) -> dict:
    """A COCO-style JSON file. Raises UserError when it is missing, is no JSON, or lacks a part."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such annotation file; see docs/DATA.md")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file ({error})") from error
    for part in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise UserError(f"{path}: not a COCO-style annotation file, it has no list '{part}'")
    if not content["images"]:
        raise UserError(f"{path}: it lists no pictures")
    return content


def read_image(path: str) -> np.ndarray:
    """(H, W, 3) uint8, B, G, R, as OpenCV's colour reading defines it; UserError names a file that cannot be read."""
    try:
        image = cv2.imread(path, cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise UserError(f"{path}: this picture cannot be read ({error.err})") from error
    if image is None:
        reason = "it is no picture or damaged" if os.path.isfile(path) else "there is no such file"
        raise UserError(f"{path}: this picture cannot be read, {reason}")
    return image
