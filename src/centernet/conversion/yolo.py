"""YOLO-style labels of your own dataset: data.yaml, folders and lists of images, and a text file per image.

Labels of poses are boxes followed by keypoints, as defined by ``kpt_shape`` in data.yaml.
"""

import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError
from ..ops.keypoints import MAX_JOINTS, numbered_names
from ..utils.images import image_size
from .issues import ERROR, LEFT_OUT, NOTE, Issue, Report, short
from .keypoints import JOINT_FIELDS
from .layout import (
    MANY_CORNERS,
    MIN_BOXES,
    NAMES_FILES,
    SPLIT_NAMES,
    Layout,
    best_fits,
    choose_only,
    common_folder,
    hull,
    is_plain_split_name,
    is_split_name,
    make_annotation,
    option_of,
    read_lines,
    read_names,
    refuse_duplicates,
    remedy,
    report_left_out,
    split_rank,
    split_spellings,
)
from .paths import PathFinder, counterpart, folders, has_images, is_hidden, is_image_name, walk
from .yaml_file import MAX_BYTES, read_yaml

YAML_FILES = ("data.yaml", "dataset.yaml", "data.yml", "dataset.yml")
NAMES_KEY = re.compile(rb"""(?im)(^|[{,])[ \t]*["']?names["']?[ \t]*:""")  # other YAML files may have the word
IMAGE_FOLDERS, LABEL_FOLDERS = ("images", "Images", "IMAGES"), ("labels", "Labels", "LABELS")
# Files that are common among images, and not reported.
OTHER_SUFFIXES = {
    *(".txt", ".xml", ".json", ".csv", ".yaml", ".yml", ".md", ".cache", ".names", ".data", ".labels", ".npy", ".npz"),
    *(".db", ".ini", ".zip", ".tar", ".gz", ".pdf", ".html", ".py", ".log"),
}
MAX_LINE = 4096  # bytes
MAX_FRACTION = 1.5  # coordinates are fractions of the image; boxes may extend beyond it
CONFIDENCE = "label lines with a confidence, which is not used"
# Polygons are taken for boxes with keypoints if most can be read so, and some have a second corner far from the others.
MOST, SOME, AT_LEAST = 0.9, 0.2, 3
TOLERANCE = 0.01  # fraction of the image by which keypoints may be outside of their box, and boxes outside of the image


@dataclass
class YoloLayout(Layout):
    """Label files of one line per object.

    Attributes:
        places: folders of images, and text files that list images.
        labels: the folder of the label files; None: in ``labels/`` for ``images/``, or next to the images.
        description: the data.yaml that applies, if any.
    """

    style = "yolo"
    places: tuple[Path, ...]
    labels: Path | None = None
    description: Path | None = None

    @classmethod
    def find(cls, root: Path, split: str, images: Path | None) -> "YoloLayout | None":
        if images is None:
            places, description = _described_places(root, split)
            if places:
                return cls.open(root, split, places, description=description)
        # The forms of layouts in the order of preference among names that fit equally well.
        among_images = folders(root / "images") if images is None else []
        in_root = folders(root) if images is None else []
        lists = [path for name in split_spellings(split) if (path := root / f"{name}.txt").is_file()][:1]
        lists = lists or best_fits(split, sorted(root.glob("*.txt")), _lists_images)  # such as autosplit_train.txt
        forms = {
            **{folder: (0, folder.name) for folder in among_images},
            **{folder / "images": (1, folder.name) for folder in in_root},
            **{folder: (2, folder.name) for folder in in_root if is_plain_split_name(folder.name)},
            **{path: (3, path.stem) for path in lists},
        }
        ranks = {
            path: (rank, not is_plain_split_name(name), form)
            for path, (form, name) in forms.items()
            if (rank := split_rank(split, name)) is not None and (path.is_file() or has_images(path))
        }
        places = [path for path, rank in ranks.items() if rank == min(ranks.values())]
        if places:
            choose_only([place for place in places if place in lists], split)
            layout = cls.open(root, split, places, images)
            layout.remarks = tuple(_remarks(split, places, among_images))
            return layout
        return cls.open(root, split, [images]) if images is not None and images.is_dir() else None

    @classmethod
    def find_undivided(cls, root: Path, images: Path | None) -> "YoloLayout | None":
        for folder in (root / "images", root / "obj_train_data", root):
            if not folder.is_dir() or not has_images(folder) or any(is_split_name(one.name) for one in folders(folder)):
                continue
            layout = cls.open(root, "train", [folder], undivided=True)
            if find_yaml(root) or any(path.is_relative_to(root) for path in layout.names_files):
                return layout
        return None

    @classmethod
    def open(
        cls,
        root: Path,
        split: str,
        places: Sequence[Path],
        images: Path | None = None,
        labels: Path | None = None,
        description: Path | None = None,
        undivided: bool = False,
    ) -> "YoloLayout":
        """Return the layout of ``places``, which are folders of images or lists."""
        if images is None:
            folders = [place for place in places if place.is_dir()]
            images = places[0] if len(places) == len(folders) == 1 else common_folder([root, *folders])
        annotations = description if description and len(places) > 1 else places[0]
        return cls(root, split, annotations, images, tuple(places), labels, description, undivided=undivided)

    @classmethod
    def describe(cls, root: Path, split: str, description: Path) -> "YoloLayout":
        """Return the layout of a split that a YAML file describes."""
        places, _ = _described_places(root, split, description)
        if not places:
            raise UserError(f"--{option_of(split)}_annotations {description}: names no images for {split}")
        return cls.open(root, split, places, description=description)

    @property
    def is_doubtful(self) -> bool:
        return not self.names_files and find_yaml(self.root) is None

    @cached_property
    def finder(self) -> PathFinder:
        lists = [place.parent for place in self.places if not place.is_dir()]
        return PathFinder([*lists, self.images, self.root])

    # Images and labels

    def read(self, report: Report) -> dict:
        paths, labels_of = [], {}
        for image in self._images(report):
            paths.append(image)
            labels_of[image] = self.label_file(image)
        present = {label for label in labels_of.values() if label.is_file()}
        paths.extend(self._unknown_extensions(labels_of, present, report))
        images: list[dict] = []
        annotations: list[dict] = []
        outlines, boxes = [], []
        sizes = {}
        for image in paths:
            try:
                sizes[image] = image_size(image)
            except UserError as error:
                text = str(error).removeprefix(f"{image}: ")
                report(Issue(ERROR, "images that cannot be read", image, text))
        readable = [image for image in paths if image in sizes]
        if readable and not present:
            label = labels_of[readable[-1]]
            raise UserError(f"{self.annotations}: none of the {len(readable)} images has labels; looked for {label}")
        names, kpt_shape = self.class_names({}), self._kpt_shape()
        for image, file_name in zip(readable, self.place(readable), strict=True):
            width, height = sizes[image]
            images.append({"id": file_name, "file_name": file_name, "width": width, "height": height})
            label = labels_of[image]
            for one in self._read_label(label, len(names), kpt_shape, report) if label in present else ():
                left, top = (one.x - one.w / 2) * width, (one.y - one.h / 2) * height
                box = [left, top, one.w * width, one.h * height]
                outline = [(x * width, y * height) for x, y in one.outline]
                annotation = make_annotation(len(annotations) + 1, file_name, one.cls, box, outline=outline)
                if one.outline:
                    outlines.append(one.outline)
                else:
                    boxes.append((one.x, one.y, one.w, one.h))
                if one.keypoints:
                    annotation["keypoints"] = [v for x, y, seen in one.keypoints for v in (x * width, y * height, seen)]
                annotations.append(annotation)
        if "kpt_shape" not in self.content and are_poses(outlines):
            raise UserError(
                f"{self.annotations}: its labels seem to be boxes with keypoints; state kpt_shape: "
                f"[{len(outlines[0]) - 2}, 2] in data.yaml, or kpt_shape: [0, 0] if they are polygons"
            )
        if are_corners(boxes):
            raise UserError(
                f"{self.annotations}: many of its boxes reach out of their images, so its labels seem to be corners; a "
                f"label is class x y width height, with x and y of the center"
            )
        self._report_unused_labels(present, report)
        self._report_shared_labels(
            [(labels_of[image], image) for image in readable if labels_of[image] in present], report
        )
        categories = [{"id": k, "name": name, **self._joints(k, name, kpt_shape)} for k, name in enumerate(names)]
        self._report_names(report)
        return {"images": images, "annotations": annotations, "categories": categories}

    def _images(self, report: Report) -> Iterable[Path]:
        """Yield the images of all places, each of them once; those of lists need not exist."""
        seen = set()
        for place in self.places:
            if place.is_dir():
                hidden: list[Path] = []
                images = [path for path in walk(place, hidden) if is_image_name(path.name)]
                report_left_out(report, "images in hidden folders", (p for p in hidden if is_image_name(p.name)))
            else:
                images = [self.finder.find(line) or place.parent / line for line in filter(None, read_lines(place))]
            for image in images:
                plain = os.path.abspath(image)
                if plain in seen:
                    text = f"{image} is used once"
                    report(Issue(NOTE, "images that are listed more than once", place, text))
                else:
                    seen.add(plain)
                    yield image

    def _unknown_extensions(self, labels_of: dict, present: set[Path], report: Report) -> Iterable[Path]:
        """Yield the labeled images whose extension is not one of an image; report what is left out."""
        for place in filter(Path.is_dir, self.places):
            for path in walk(place):
                if is_image_name(path.name) or path.suffix.lower() in OTHER_SUFFIXES:
                    continue
                label = self.label_file(path)
                if label in present or not label.is_file():
                    report(Issue(LEFT_OUT, "files without the extension of an image", path, "not used"))
                    continue
                labels_of[path] = label
                present.add(label)
                yield path

    def label_file(self, image: Path) -> Path:
        """Return where the labels of an image are: ``labels``, ``labels/`` for ``images/``, or next to it."""
        if self.labels is not None:
            inside = image.relative_to(self.images) if image.is_relative_to(self.images) else Path(image.name)
            folder = (self.labels / inside).parent
        else:
            folder = self._label_folder(image.parent)
        path = folder / f"{image.stem}.txt"
        if not path.is_file():
            similar = self.finder.similar(folder, [path.name])
            others = [*similar[: len(similar) == 1], *([image.parent / path.name] if self.labels is None else [])]
            path = next((other for other in others if other.is_file()), path)
        return path

    def _label_folder(self, folder: Path) -> Path:
        known = self.__dict__.setdefault("_label_folders", {})
        if folder not in known:
            known[folder] = counterpart(folder, IMAGE_FOLDERS, LABEL_FOLDERS) or folder
        return known[folder]

    def _read_label(self, path: Path, classes: int, kpt_shape: tuple[int, int] | None, report: Report) -> "list[Label]":
        """Return the objects of the lines of a label file."""
        rows: list[Label] = []
        try:
            lines = read_lines(path)
        except UserError as error:
            report(Issue(ERROR, "label files that cannot be read", path, str(error).removeprefix(f"{path}: ")))
            return rows
        for number, line in enumerate(lines, start=1):
            if not line:
                continue
            try:
                label = read_label(line, kpt_shape)
            except ValueError as error:
                text = f"line {number} is not a label ({error}): {line[:60]!r}"
                report(Issue(ERROR, "label lines that cannot be read", path, text))
                continue
            if not 0 <= label.cls < classes:
                text = f"line {number} has the class {label.cls}, there are {classes} names"
                report(Issue(ERROR, "labels of unknown classes", path, text))
                continue
            if label.has_confidence:
                report(Issue(NOTE, CONFIDENCE, path, f"line {number} has six columns"))
            rows.append(label)
        return rows

    def _report_shared_labels(self, pairs: Iterable[tuple[Path, Path]], report: Report) -> None:
        """Report label files that belong to several images, given pairs of label file and image."""
        images_of: dict[Path, list[str]] = defaultdict(list)
        for label, image in pairs:
            images_of[label].append(image.name)
        for label, names in images_of.items():
            if len(names) > 1:
                report(Issue(NOTE, "label files that several images share", label, f"is used for {', '.join(names)}"))

    def _report_unused_labels(self, present: set[Path], report: Report) -> None:
        """Report label files that belong to no image of any split."""
        if self.labels is None and not all(place.is_dir() for place in self.places):
            return  # a list may take some of the images of a folder
        folders = {self.labels} if self.labels is not None else {self._label_folder(place) for place in self.places}
        for folder in sorted(folders):
            for path in walk(folder):
                if path.suffix.lower() == ".txt" and path not in present and path.name not in NAMES_FILES:
                    if self.labels is not None or folder not in self.places:
                        report(Issue(LEFT_OUT, "label files without an image", path, "not used"))

    # Names

    @cached_property
    def content(self) -> dict:
        """Return the content of data.yaml; empty if it does not exist or cannot be read without PyYAML."""
        path = self.description or find_yaml(self.root)
        if path is None:
            return {}
        try:
            return _read_description(path)
        except ImportError:
            if self.names_files:
                return {}
            raise UserError(
                f"{path}: reading it needs `pip install pyyaml`; or write the class names, one per line, into "
                f"{self.root / NAMES_FILES[0]}"
            ) from None

    @cached_property
    def names_files(self) -> list[Path]:
        """Return the files of class names: in the dataset's folder, else next to the labels."""
        found = list(_names_files(self.root))
        if found:
            return found[:1]
        folders = (
            [self.labels] if self.labels else [self._label_folder(place) for place in self.places if place.is_dir()]
        )
        folders += [folder.parent for folder in folders] + [place for place in self.places if place.is_dir()]
        return [path for folder in dict.fromkeys(folders) for path in list(_names_files(folder))[:1]]

    def class_names(self, content: dict) -> list[str]:
        listed = self._names_of_yaml()
        files = [(path, read_names(path)) for path in self.names_files]
        names = listed or (files[0][1] if files else [])
        where = self.annotations
        if not listed:
            for path, other in files[1:]:
                if other != names:
                    raise UserError(f"{path}: its class names are not those of {files[0][0]}; remove the wrong file")
            where = files[0][0] if files else where
        if not names:
            yamls = [path.name for path in _yaml_files_with_names(self.root)]
            several = len(yamls) > 1 and self.description is None and find_yaml(self.root) is None
            hint = f"; it has {', '.join(yamls)}: rename the right one to data.yaml" if several else ""
            raise UserError(
                f"{self.root}: needs the names of the classes, one per line in {NAMES_FILES[0]}, or in data.yaml{hint}"
            )
        refuse_duplicates(where, names)
        return names

    def _names_of_yaml(self) -> list[str]:
        path = self.description or find_yaml(self.root)
        named = self.content.get("names")
        if isinstance(named, dict):
            numbered = [named.get(str(number)) for number in range(len(named))]
            if None in numbered:
                raise UserError(f"{path}: its names are not numbered from 0 without gaps")
            named = numbered
        if not named:
            return []
        if not isinstance(named, list) or not all(isinstance(name, str) and name for name in named):
            raise UserError(f"{path}: its names are not a list of strings")
        count = self.content.get("nc")
        if isinstance(count, str) and count.isdigit() and int(count) != len(named):
            raise UserError(f"{path}: nc is {count}, but there are {len(named)} names")
        return named

    def _report_names(self, report: Report) -> None:
        """Report sources of class names that were not used and differ."""
        listed = self._names_of_yaml()
        for path in self.names_files:
            if listed and read_names(path) != listed:
                where = self.description or find_yaml(self.root)
                text = f"differs from the names in {where}, which are used"
                report(Issue(NOTE, "files of other class names, not used", path, text))
        other = find_yaml(self.root)
        if other is not None and not listed and self.description is None and not self.content:
            try:
                read_yaml(other)
            except ImportError:
                text = f"not read without `pip install pyyaml`; the class names are those of {self.names_files[0]}"
                report(Issue(NOTE, "descriptions that were not read", other, text))

    def _kpt_shape(self) -> tuple[int, int] | None:
        """Return number and dimensions of the keypoints that follow each box; None if there are none."""
        shape = self.content.get("kpt_shape")
        if not shape:
            return None
        if not isinstance(shape, list) or len(shape) != 2 or not all(str(n).isdigit() for n in shape):
            raise UserError(f"{self.annotations}: kpt_shape is {short(shape)}, not [number, 2 or 3]")
        count, dimensions = int(shape[0]), int(shape[1])
        if count > MAX_JOINTS or (count and dimensions not in (2, 3)):
            raise UserError(f"{self.annotations}: kpt_shape is {short(shape)}, not [number, 2 or 3]")
        return (count, dimensions) if count else None

    def _joints(self, cls: int, name: str, kpt_shape: tuple[int, int] | None) -> dict:
        """Return the fields of a class's category that data.yaml states about its joints; they are checked when used.

        ``kpt_names`` may be one list, or a list by number of the class.
        """
        if kpt_shape is None:
            return {}
        names = self.content.get("kpt_names")
        if isinstance(names, dict):
            names = names.get(str(cls), names.get(name))
        stated = {field: self.content[field] for field in JOINT_FIELDS if self.content.get(field)}
        return {"keypoints": names or list(numbered_names(kpt_shape[0])), "kpt_shape": kpt_shape, **stated}


class Label(NamedTuple):
    """An object of a label file, in fractions of the image.

    Attributes:
        cls: class from 0.
        x, y: center of the box.
        w, h: size of the box.
        has_confidence: whether a confidence followed the box.
        keypoints: x, y and visibility (0: not labeled, 1: hidden, 2: visible) of each joint.
        outline: corners (x, y) of a polygon, of which the box is the hull.
    """

    cls: int
    x: float
    y: float
    w: float
    h: float
    has_confidence: bool = False
    keypoints: tuple[tuple[float, float, float], ...] = ()
    outline: tuple[tuple[float, float], ...] = ()


def read_label(line: str, kpt_shape: tuple[int, int] | None = None) -> Label:
    """Read a label line: a box, a box with a confidence, a box with keypoints, or the corners of an outline.

    Args:
        line: ``class x y width height``, then nothing, a confidence, or the keypoints; or ``class x1 y1 x2 y2 x3 ...``.
        kpt_shape: number and dimensions of the keypoints, as in data.yaml.

    Raises:
        ValueError: the line has another form; the message names it.
    """
    parts = line.split()
    cls, values = float(parts[0]), [float(part) for part in parts[1:]]
    if not cls.is_integer():
        raise ValueError("the class is not an integer")
    if not all(map(math.isfinite, values)):
        raise ValueError("not finite")
    has_confidence = len(values) == 5
    hint = "; keypoints need kpt_shape in data.yaml" if kpt_shape is None and len(values) > 5 else ""
    keypoints: tuple[tuple[float, float, float], ...] = ()
    outline: tuple[tuple[float, float], ...] = ()
    if kpt_shape is not None and len(values) > 5:
        if len(values) != 4 + kpt_shape[0] * kpt_shape[1]:
            wanted = 5 + kpt_shape[0] * kpt_shape[1]
            raise ValueError(f"kpt_shape {list(kpt_shape)} asks for {wanted} columns, there are {len(parts)}")
        keypoints = read_keypoints(values[4:], kpt_shape[1])
        values = values[:4]
    if any(abs(value) > MAX_FRACTION for value in values):
        raise ValueError(f"coordinates are fractions of the image, from 0 to 1{hint}")
    if len(values) in (4, 5):
        x, y, w, h = values[:4]
    elif len(values) >= 6 and len(values) % 2 == 0:
        outline = tuple(zip(values[0::2], values[1::2], strict=True))
        left, top, w, h = hull(outline)
        x, y = left + w / 2, top + h / 2
    else:
        raise ValueError(f"needs a class and x, y, width, height{hint}")
    if w < 0 or h < 0:
        raise ValueError("a negative size")
    return Label(int(cls), x, y, w, h, has_confidence, keypoints, outline)


def are_poses(outlines: Sequence[Sequence[tuple[float, float]]]) -> bool:
    """Return whether the polygons of a dataset are boxes with keypoints: all of one length, with the points in the box.

    Small polygons may all seem so, but their second corner, which would be the size of the box, is not far from the
    others. That of a parallelogram never is.
    """
    if len({len(outline) for outline in outlines}) != 1 or len(outlines[0]) < 4:
        return False
    fitting = far = 0
    for (x, y), (w, h), *points in outlines:
        labeled = [point for point in points if point != (0, 0)]
        in_image = min(w, h) > 0 and _holds((0.5, 0.5, 1 - w, 1 - h), (x, y))
        if in_image and all(_holds((x, y, w, h), point) for point in labeled):
            fitting += 1
            left, top, width, height = hull([(x, y), *labeled])
            around = (left + width / 2, top + height / 2, 3 * width, 3 * height)
            far += not _holds((x, y, w, h), (w, h)) and not _holds(around, (w, h))
    return fitting >= MOST * len(outlines) and far >= max(AT_LEAST, SOME * len(outlines))


def are_corners(boxes: Sequence[tuple[float, float, float, float]]) -> bool:
    """Return whether the boxes (x, y, w, h) of a dataset are corners (x1, y1, x2, y2), which fit the images."""
    reaching = sum(max(abs(x - 0.5) + w / 2, abs(y - 0.5) + h / 2) > 0.5 + TOLERANCE for x, y, w, h in boxes)
    fit = all(0 <= x < w <= 1 + TOLERANCE and 0 <= y < h <= 1 + TOLERANCE for x, y, w, h in boxes)
    return len(boxes) >= MIN_BOXES and fit and reaching > MANY_CORNERS * len(boxes)


def _holds(box: tuple[float, float, float, float], point: tuple[float, float]) -> bool:
    """Return whether a point lies in a box (x, y, w, h), x and y of its center, or hardly outside."""
    return all(abs(point[k] - box[k]) <= box[k + 2] / 2 + TOLERANCE for k in (0, 1))


def read_keypoints(values: Sequence[float], dimensions: int) -> tuple[tuple[float, float, float], ...]:
    """Return (x, y, visibility) of joints that are written with 2 or 3 dimensions.

    Where the visibility is not written, joints at (0, 0) or with a negative coordinate are not labeled, others visible.

    Raises:
        ValueError: a visibility other than 0, 1 and 2, or coordinates that are not fractions of the image.
    """
    if dimensions == 3:
        keypoints = tuple(zip(values[0::3], values[1::3], values[2::3], strict=True))
    else:
        points = zip(values[0::2], values[1::2], strict=True)
        keypoints = tuple((x, y, 0.0 if min(x, y) < 0 or (x, y) == (0, 0) else 2.0) for x, y in points)
    for x, y, visibility in keypoints:
        if visibility not in (0, 1, 2):
            raise ValueError(f"the visibility of a keypoint is {visibility:g}, not 0, 1 or 2")
        if visibility and max(abs(x), abs(y)) > MAX_FRACTION:
            raise ValueError("coordinates of keypoints are fractions of the image, from 0 to 1")
    return keypoints


def _remarks(split: str, places: Sequence[Path], others: Sequence[Path]) -> Iterable[Issue]:
    """Yield what is to be said about the folders of a split, and those next to them that are in no split."""
    if len(places) > 1:
        above = common_folder(places)
        names = ", ".join(os.path.relpath(place, above) for place in places)
        yield Issue(NOTE, "splits of several folders", above, f"{split} consists of {len(places)} folders: {names}")
    for folder in others if places[0] in others else ():
        is_rest = split == "train" and not is_split_name(folder.name)
        if folder not in places and (is_rest or split_rank(split, folder.name) == split_rank(split, places[0].name)):
            count = sum(is_image_name(path.name) for path in walk(folder))
            if count:
                text = f"not used, {count} image(s)"
                yield Issue(LEFT_OUT, "folders of images that belong to no split", folder, text)


def _lists_images(path: Path) -> bool:
    """Return whether the first line of a text file names an image, unlike those of labels, names, and logs."""
    try:
        with open(path, "rb") as file:
            line = file.readline(MAX_LINE)
    except OSError:
        return False
    return is_image_name(line.decode("utf-8-sig", errors="replace").strip())


def _names_files(folder: Path) -> Iterable[Path]:
    for path in (*(folder / name for name in NAMES_FILES), *sorted(folder.glob("*.names"))):
        if path.is_file() and not is_hidden(path.name):
            yield path


def find_yaml(root: Path) -> Path | None:
    """Return the data.yaml of a dataset: of the usual name, or the only one with names; None when there is none."""
    files = _yaml_files(root)
    for spelled in (str, str.lower):
        for name in YAML_FILES:
            found = [path for path in files if spelled(path.name) == name]
            if len(found) == 1:
                return found[0]
    others = _yaml_files_with_names(root)
    return others[0] if len(others) == 1 else None


def _yaml_files(root: Path) -> list[Path]:
    patterns = ("*.[yY][aA][mM][lL]", "*.[yY][mM][lL]")
    return [path for pattern in patterns for path in sorted(root.glob(pattern)) if path.is_file()]


def _yaml_files_with_names(root: Path) -> list[Path]:
    files = [path for path in _yaml_files(root) if not is_hidden(path.name) and path.stat().st_size <= MAX_BYTES]
    return [path for path in files if NAMES_KEY.search(path.read_bytes())]


def _read_description(path: Path) -> dict:
    """Return the content of data.yaml with its keys in lower case, unless it has both spellings of one."""
    content = read_yaml(path)
    return {(key if key.lower() in content else key.lower()): value for key, value in content.items()}


def _flat(value) -> list[str]:
    """Return the strings in nested lists."""
    if isinstance(value, list):
        return [text for entry in value for text in _flat(entry)]
    return [value] if isinstance(value, str) and value else []


def _described_places(root: Path, split: str, path: Path | None = None) -> tuple[list[Path], Path | None]:
    """Return the folders and lists that data.yaml names for a split, and its path; none when it names none.

    Raises:
        UserError: it names something that is not found, or one place for two splits that it names differently.
    """
    path = path or find_yaml(root)
    if path is None:
        return [], None
    try:
        content = _read_description(path)
    except ImportError:
        return [], None
    bases = [path.parent, root]
    base = content.get("path")
    if isinstance(base, str) and base and (found := PathFinder(bases).find(base)) is not None and found.is_dir():
        bases.insert(0, found)
    finder = PathFinder(bases)
    places = {name: {text: finder.find(text) for text in _flat(content.get(name))} for name in _all_names(content)}
    name = next((name for name in SPLIT_NAMES[split] if places.get(name)), None)
    if name is None:
        return [], None
    taken = {
        found: (other, text)
        for other, texts in places.items()
        if other != name
        for text, found in texts.items()
        if found
    }
    folders: list[Path] = []
    for text, found in places[name].items():
        if found and found in taken and taken[found][1] != text and os.path.basename(text) != found.name:
            found = None
        if found is None:  # exports for training elsewhere name folders of that place
            found = root / name / "images" if (root / name / "images").is_dir() else None
        if found is None:
            raise UserError(
                f"{path}: names the images {text} for {name}, which do not exist below {root}; name the right ones "
                f"with {remedy(split)}"
            )
        if found in taken and taken[found][1] != text:
            other, other_text = taken[found]
            raise UserError(
                f"{path}: the images {text} for {name} and {other_text} for {other} would both be {found}; name the "
                f"right ones with --{option_of(split)}_annotations"
            )
        folders.append(found)
    return list(dict.fromkeys(folders)), path


def _all_names(content: dict) -> list[str]:
    known = {name for names in SPLIT_NAMES.values() for name in names}
    return [name for name in content if name in known]
