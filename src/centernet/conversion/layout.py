"""Base class and helpers of the layouts of custom datasets.

A layout is one split of a dataset in one style: it locates its files, and reads them into COCO's format:
``{"images": [{"id", "file_name", "width", "height"}], "annotations": [{"id", "image_id", "category_id", "bbox",
"area", "iscrowd", "ignore"}], "categories": [{"id", "name"}]}``, boxes [x, y, width, height] in pixels from 0.
"""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from ..errors import UserError
from .issues import ERROR, LEFT_OUT, NOTE, Issue, Report
from .paths import IMAGE_SUFFIXES, PathFinder, is_hidden, is_image_name, is_outside, plain_parts

Point = tuple[float, float]  # x, y in pixels

# Words that name a split in names of files and folders; the first match is used.
SPLIT_NAMES = {
    "train": ("train", "trainval", "training"),
    "val": ("val", "valid", "validation", "eval", "evaluation", "dev", "test", "testing"),
    "test": ("test", "testing", "val", "valid", "validation", "eval", "evaluation", "dev"),
}
SYNONYMS = {"training": "train", "valid": "val", "validation": "val", "evaluation": "eval", "testing": "test"}
WORD = re.compile("[A-Z]+(?![a-z])|[A-Z]?[a-z]+")  # trainSet2017: train, Set
AFFIX = re.compile("^mini|(set|data|images|labels)$")  # of words that are written as one: trainset, minival
# Boxes of which so many reach out of their images are taken for corners [x1, y1, x2, y2] if all fit as such.
MIN_BOXES, MANY_CORNERS = 10, 0.25
NAMES_FILES = ("classes.txt", "classes.names", "obj.names", "names.txt", "labels.txt", "_darknet.labels")


@dataclass
class Layout(ABC):
    """One split of a dataset.

    Attributes:
        style: name of the annotation style.
        names_from_objects: whether the classes are the occurring ones, unless a file lists them.
        root: the dataset's folder.
        split: train, val or test.
        annotations: the file or folder of the annotations.
        images: the folder that the file names of images are relative to.
        undivided: there are no splits, so all images are used for training.
        remarks: what was noticed when the split was found.
    """

    style: ClassVar[str]
    names_from_objects: ClassVar[bool] = False
    root: Path
    split: str
    annotations: Path
    images: Path
    undivided: bool = field(default=False, kw_only=True)
    remarks: tuple[Issue, ...] = field(default=(), kw_only=True)

    @classmethod
    @abstractmethod
    def find(cls, root: Path, split: str, images: Path | None) -> "Layout | None":
        """Find a split in ``root``; return None if nothing matches this style. ``images`` is given by the user.

        Raises:
            UserError: several files match, or the images are missing.
        """

    @classmethod
    def find_undivided(cls, root: Path, images: Path | None) -> "Layout | None":
        """Find annotations without splits; return None if there are none of this style."""
        return None

    @abstractmethod
    def read(self, report: Report) -> dict:
        """Read the annotations of the split into the form above, without entries from which ``report`` returns."""

    def class_names(self, content: dict) -> list[str]:
        """Return the names of the classes in order; ``content`` is what ``read`` has returned.

        Raises:
            UserError: there are none, or duplicates.
        """
        path, names = self.names_file
        refuse_duplicates(path or self.annotations, names)
        return names or sorted({str(category["name"]) for category in content["categories"]})

    def read_checked(self, report: Report) -> dict:
        """Read the annotations as ``read`` does; without any image raise UserError with the first reason."""
        first: list[Issue] = []

        def remember(issue: Issue) -> None:
            if issue.severity == ERROR and not first:
                first.append(issue)
            report(issue)

        if self.undivided:
            text = "nothing divides these images into training and validation, so all of them are trained on"
            report(Issue(NOTE, "datasets that are not divided", self.annotations, text))
        for remark in self.remarks:
            report(remark)
        content = self.read(remember)
        if not content["images"]:
            text = f"{self.annotations}: it lists no images; specify others with {remedy(self.split)}"
            raise UserError(first[0].line if first else text)
        return content

    @property
    def is_doubtful(self) -> bool:
        """Return whether the files may belong to another style, so that all others are looked for first."""
        return False

    @property
    def option(self) -> str:
        """Return the prefix of the options of this split, as in ``--train_images``."""
        return option_of(self.split)

    @cached_property
    def names_file(self) -> tuple[Path | None, list[str]]:
        """Return the file of class names in the dataset's folder, and its names."""
        for path in (*(self.root / name for name in NAMES_FILES), *sorted(self.root.glob("*.names"))):
            if path.is_file() and not is_hidden(path.name):
                return path, read_names(path)
        return None, []

    @cached_property
    def finder(self) -> PathFinder:
        """Return the finder of images by their names in annotations."""
        return PathFinder([self.images, self.root, self.root / "images"])

    @property
    def image_folders(self) -> list[Path]:
        """Return the folders that file names of images are relative to."""
        return [self.images]

    def find_image(self, name: str) -> Path | None:
        """Return the image ``name`` below the finder's folders, as given or with another extension in any case.

        One at the stated place comes before those that are found without leading folders of ``name``.
        """
        parts = plain_parts(name)
        if not parts:
            return None
        if is_outside(name):  # an absolute path of this machine must not lead out of the dataset
            name = "/".join(parts)
        given = self.finder.find(name) if is_image_name(name) else None
        if given is not None and not given.is_file():
            given = None
        if given is not None and self.is_stated(name, given):
            return given
        stem = os.path.splitext(parts[-1])[0] if is_image_name(name) else parts[-1]
        places = (base.joinpath(*parts[k:-1]) for k in range(len(parts)) for base in self.finder.bases)
        similar = (image for place in places if (image := self._images_in(place).get(stem)) is not None)
        other = next((image for image in similar if image.is_file()), None)
        return other if given is None or (other is not None and self.is_stated(name, other)) else given

    def _images_in(self, folder: Path) -> dict[str, Path]:
        """Return the images in a folder by their names without extension, the most common extension first."""
        known = self.__dict__.setdefault("_listings", {})
        if folder not in known:
            try:
                names = sorted(filter(is_image_name, os.listdir(folder)))
            except (OSError, ValueError):
                names = []
            names.sort(key=lambda name: IMAGE_SUFFIXES.index(os.path.splitext(name)[1].lower()))
            known[folder] = {os.path.splitext(name)[0]: folder / name for name in reversed(names)}
        return known[folder]

    def is_stated(self, name: str, image: Path) -> bool:
        """Return whether an image is in the folder that ``name`` states."""
        parts = plain_parts(name)[:-1]
        return not is_outside(name) and image.parent in (folder.joinpath(*parts) for folder in self.image_folders)

    def is_for_split(self, folder: Path) -> bool:
        """Return whether a folder in ``root``, or one around it, has a name of the split."""
        parts = folder.relative_to(self.root).parts if folder.is_relative_to(self.root) else ()
        return any(split_rank(self.split, part) is not None for part in parts)

    def place(self, images: Sequence[Path]) -> list[str]:
        """Return the paths of existing images relative to ``images``, which becomes a folder that contains all."""
        outside = [image for image in images if not image.is_relative_to(self.images)]
        if outside:
            self.images = common_folder([self.images, *(image.parent for image in outside)])
        return [
            Path(os.path.abspath(image) if outside else image).relative_to(self.images).as_posix() for image in images
        ]


def report_left_out(report: Report, kind: str, paths: Iterable[Path]) -> None:
    """Report files that are not used."""
    for path in paths:
        report(Issue(LEFT_OUT, kind, path, "not used"))


def option_of(split: str) -> str:
    """Return the prefix of the options of a split: train or val."""
    return "train" if split == "train" else "val"


def remedy(split: str) -> str:
    """Return the options that help where a split is not found."""
    option = option_of(split)
    return f"--{option}_annotations" + (", or use --val_intervals 0" if option == "val" else "")


def choose_only(paths: Sequence[Path], split: str) -> Path | None:
    """Return the only path, or None without any. Raises UserError when there are several."""
    if len(paths) > 1:
        some = ", ".join(map(str, paths[:5])) + (f", ... {len(paths)} in all" if len(paths) > 5 else "")
        raise UserError(f"--{option_of(split)}_annotations: several files match: {some}; choose one")
    return paths[0] if paths else None


def common_folder(paths: Sequence[Path]) -> Path:
    """Return the deepest folder that holds all of ``paths``."""
    return Path(os.path.commonpath([os.path.abspath(path) for path in paths]))


def make_annotation(
    number: int, image_id, category_id, box: Sequence[float], difficult: int = 0, outline: Sequence[Point] = ()
) -> dict:
    """Return an annotation in COCO's format for a box [x, y, width, height], and the corners of an outline if known."""
    polygon = {"segmentation": [[value for point in outline for value in point]]} if outline else {}
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": list(box),
        "area": box[2] * box[3],
        "iscrowd": 0,
        "ignore": difficult,
        **polygon,
    }


def hull(points: Sequence[Sequence[float]]) -> list[float]:
    """Return the box [x, y, width, height] around points (x, y)."""
    xs, ys = [point[0] for point in points], [point[1] for point in points]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def refuse_duplicates(path: Path, names: Sequence[str]) -> None:
    """Raise UserError when a class name occurs more than once."""
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise UserError(f"{path}: the class {twice[0]} is listed more than once")


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file without surrounding blanks, empty ones included."""
    try:
        return [line.strip() for line in path.read_bytes().decode("utf-8-sig").replace("\0", " ").splitlines()]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: cannot be read as text (not UTF-8; save it as UTF-8)") from None


def read_names(path: Path) -> list[str]:
    """Return the class names in a file, one per line. An empty line between names would shift the ids: refused."""
    lines = read_lines(path)
    while lines and not lines[-1]:
        lines.pop()
    if "" in lines:
        raise UserError(f"{path}: line {lines.index('') + 1} is empty, so the class numbers are ambiguous")
    return lines


def split_spellings(split: str) -> list[str]:
    """Return the names of files and folders of a split, the best first: train, Train, TRAIN, trainval, ..."""
    return [spelling for name in SPLIT_NAMES[split] for spelling in (name, name.capitalize(), name.upper())]


def split_rank(split: str, name: str) -> int | None:
    """Return how well the words of a name fit a split: 0 is best, None not at all."""
    words = _split_words(name)
    if split != "train" and not words.isdisjoint(SPLIT_NAMES["train"]):
        return None
    return next((k for k, word in enumerate(SPLIT_NAMES[split]) if word in words), None)


def _split_words(name: str) -> set[str]:
    """Return the words of a name in lower case, in the spelling that ranks."""
    words = {AFFIX.sub("", word.lower()) for word in WORD.findall(name)}
    return {SYNONYMS.get(word, word) for word in words}


def is_plain_split_name(name: str) -> bool:
    """Return whether a name is one word, which may have a number: ``train2``, but not ``train_old``."""
    return len(_split_words(name)) == 1


def best_fits(split: str, paths: Iterable[Path], accept: Callable[[Path], bool]) -> list[Path]:
    """Return the acceptable paths whose names fit a split best; names without other words come first."""
    ranks = {
        path: (rank, not is_plain_split_name(path.name))
        for path in paths
        if (rank := split_rank(split, path.name)) is not None and accept(path)
    }
    return [path for path, rank in ranks.items() if rank == min(ranks.values())]


def is_split_name(name: str) -> bool:
    """Return whether a name of a file or folder fits any split."""
    return any(split_rank(split, name) is not None for split in SPLIT_NAMES)


def is_other_split(split: str, name: str) -> bool:
    """Return whether a name of a file or folder fits another split only."""
    return split_rank(split, name) is None and is_split_name(name)
