"""VOC-style XML of your own dataset: image sets or folders of XML files, and their images."""

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path

from ..errors import UserError
from .coco_file import name_problem
from .issues import ERROR, NOTE, Issue, Report, report_elsewhere, short
from .layout import (
    NAMES_FILES,
    Layout,
    best_fits,
    choose_only,
    is_split_name,
    make_annotation,
    option_of,
    read_lines,
    report_left_out,
    split_spellings,
)
from .paths import PathFinder, folders, has_images, is_hidden, is_image_name, is_outside, plain_parts, walk
from .voc_devkit import read_annotation

IMAGE_FOLDERS = ("JPEGImages", "images", "Images")
LABEL_FOLDERS = ("Annotations", "annotations", "labels", "Labels")
IMAGE_SETS = (("ImageSets", "Main"), ("ImageSets",))  # the folders that image sets are in
SUFFIXES = (".xml", ".XML")


@dataclass
class VocLayout(Layout):
    """XML files, one per image. ``annotations`` is an image set (.txt) or ``labels``, the folder of the XML files."""

    style = "voc"
    names_from_objects = True
    labels: Path

    @classmethod
    def find(cls, root: Path, split: str, images: Path | None) -> "VocLayout | None":
        bases = _find_bases(root)
        whole = [base for base in bases if base == root or len(bases) == 1 or not is_split_name(base.name)]
        if len(whole) > 1:
            names = ", ".join(folder.name for folder in whole)
            raise UserError(f"--data_path {root}: contains several VOC folders ({names}); choose one")
        for base in whole:
            labels = _find_labels(base)
            assert labels is not None  # it is a base
            image_set = _find_image_set(base, split)
            if image_set is not None:
                return cls(root, split, image_set, images or find_images(labels, root), labels)
            part = choose_only(best_fits(split, folders(labels), has_xml), split)
            if part is not None:
                return cls(root, split, part, images or find_images(part, root), part)
        folder = choose_only(best_fits(split, folders(root), has_xml), split)
        if folder is None:
            return None
        labels = _find_labels(folder) or folder
        return cls(root, split, labels, images or (find_images(labels, root) if labels != folder else folder), labels)

    @classmethod
    def find_undivided(cls, root: Path, images: Path | None) -> "VocLayout | None":
        base = next(iter(_find_bases(root)), root)
        labels = _find_labels(base) or root
        if not has_xml(labels):
            return None
        everything = base / "ImageSets" / "Main" / "default.txt"  # CVAT's name
        annotations = everything if everything.is_file() else labels
        return cls(root, "train", annotations, images or find_images(labels, root), labels, undivided=True)

    @classmethod
    def open(cls, root: Path, split: str, path: Path, images: Path | None) -> "VocLayout":
        """Return the layout of a folder of XML files or of an image set."""
        if path.is_dir():
            return cls(root, split, path, images or find_images(path, root), path)
        base = base_of_image_set(path) or root
        labels = _find_labels(base)
        if labels is None:
            missing = base / LABEL_FOLDERS[0]
            problem = f"the folder of its XML files, {missing}, " + (
                "has none" if missing.is_dir() else "does not exist"
            )
            raise UserError(f"--{option_of(split)}_annotations {path}: {problem}")
        return cls(root, split, path, images or find_images(labels, root), labels)

    @cached_property
    def finder(self) -> PathFinder:
        places = [*_around(self.labels, self.root)[:1], self.labels, self.root]
        return PathFinder([self.images, self.root, *(folder / name for folder in places for name in IMAGE_FOLDERS)])

    def read(self, report: Report) -> dict:
        images: list[dict] = []
        annotations: list[dict] = []
        names = set()
        paths: list[Path] = []
        used: dict[Path, Path] = {}
        elsewhere: dict[str, Path] = {}
        for path in self._files(report):
            problems: list[UserError] = []
            try:
                record = read_annotation(path, needs_size=False, whole_pixels=False, on_object_error=problems.append)
            except UserError as error:
                text = str(error).removeprefix(f"{path}: ")
                report(Issue(ERROR, "XML files that cannot be read", path, text))
                continue
            for problem in problems:
                text = str(problem).removeprefix(f"{path}: ")
                report(Issue(ERROR, "objects that cannot be read", path, text))
            stated = self._stated_images(path, record["filename"])
            found_as, image = self._find_image_of(path, stated)
            if image in used:
                text = f"describes {image}, as {used[image]} does; remove one of them"
                report(Issue(ERROR, "images with several XML files", path, text))
                continue
            if image is None:  # reported with the other images that do not exist
                image = self.images / stated[-1]
                if not is_image_name(image.name) or os.path.exists(image):
                    image = self.images / f"{stated[0]}.jpg"
            else:
                used[image] = path
                if not self.is_stated(found_as, image):
                    elsewhere[found_as] = image
            paths.append(image)
            name = path.relative_to(self.labels).with_suffix("").as_posix()
            images.append({"id": name, "width": record["width"], "height": record["height"]})
            for item in record["objects"]:
                # VOC counts pixels from 1. Tools that count from 0 write boxes that begin there.
                left, top = max(item["xmin"] - 1, 0), max(item["ymin"] - 1, 0)
                box = [left, top, max(item["xmax"] - left, 0), max(item["ymax"] - top, 0)]
                names.add(item["name"])
                annotations.append(make_annotation(len(annotations) + 1, name, item["name"], box, item["difficult"]))
        self._report_unlabeled(used, report)
        report_elsewhere(report, self.annotations, list(elsewhere.items()))
        for entry, file_name in zip(images, self.place(paths), strict=True):
            entry["file_name"] = file_name
        categories = [{"id": name, "name": name} for name in sorted(names)]
        return {"images": images, "annotations": annotations, "categories": categories}

    def _stated_images(self, path: Path, filename: str) -> list[str]:
        """Return the names that the image of an XML file may have: that of the XML file, and ``filename`` in it."""
        inside = path.relative_to(self.labels).with_suffix("")
        parts = plain_parts(filename)
        stated = [filename] if len(parts) > 1 else []
        return [inside.as_posix(), *stated, *((inside.parent / part).as_posix() for part in parts[-1:])]

    def _find_image_of(self, path: Path, stated: Sequence[str]) -> tuple[str, Path | None]:
        """Return the image of an XML file, and the stated name that led to it.

        One that is where it is stated comes first. One with the name of another XML file is not that of this one.
        """
        elsewhere: tuple[str, Path | None] = ("", None)
        for name in stated:
            image = self.find_image(name)
            if image is None:
                continue
            is_stated = self.is_stated(name, image)
            if is_stated and (name == stated[0] or not self._is_of_other_file(image, path)):
                return name, image
            if elsewhere[1] is None and not self._is_of_other_file(image, path):
                elsewhere = name, image
        return elsewhere

    def _is_of_other_file(self, image: Path, path: Path) -> bool:
        """Return whether an image has the name of another XML file than ``path``."""
        bases = [base for base in self.finder.bases if image.is_relative_to(base)]
        places = [image, *(self.labels / image.relative_to(base) for base in bases)]
        owners = [owner for place in places for suffix in SUFFIXES if (owner := place.with_suffix(suffix)).is_file()]
        return bool(owners) and path not in owners

    def _report_unlabeled(self, used: Collection[Path], report: Report) -> None:
        """Report the images without an XML file, unless the split's images are those of a list or folder of several."""
        if self.annotations == self.labels and (self.undivided or self.is_for_split(self.images)):
            unlabeled = (path for path in walk(self.images) if is_image_name(path.name) and path not in used)
            report_left_out(report, "images without an XML file", unlabeled)

    def _files(self, report: Report) -> list[Path]:
        """Return the XML files of the split."""
        if self.annotations.is_dir():
            hidden: list[Path] = []
            files = [path for path in walk(self.annotations, hidden) if path.suffix.lower() == ".xml"]
            report_left_out(
                report, "XML files in hidden folders", (path for path in hidden if path.suffix.lower() == ".xml")
            )
            return files
        lines: dict[Path, int] = {}
        for number, line in enumerate(read_lines(self.annotations), start=1):
            if not line:
                continue
            path = self._find_xml(line)
            if path is not None:
                if lines.setdefault(path, number) != number:
                    text = f"line {number} names {short(line)}, as line {lines[path]} does"
                    report(Issue(NOTE, "lines of image sets that name a file again", self.annotations, text))
                continue
            problem = name_problem(line) if is_outside(line) else f"names {short(line)}, which has no XML file in "
            text = f"line {number} {problem}" + ("" if is_outside(line) else str(self.labels))
            report(Issue(ERROR, "lines of image sets without an XML file", self.annotations, text))
        return list(lines)

    def _find_xml(self, line: str) -> Path | None:
        """Return the XML file of a line of an image set.

        It is a name, or the path of an image or XML file on any machine; in sets of one class a number follows. Other
        spellings of a name (``paths.spelling_key``) are the last resort, provided that only one fits.
        """
        candidates = list(_xml_candidates(line))
        paths = (self.labels.joinpath(*parts) for parts in candidates)
        found = next((path for path in paths if len(path.name) < 256 and os.path.isfile(path)), None)
        if found is None:
            similar = next(filter(None, (self.finder.similar(self.labels, parts) for parts in candidates)), [])
            found = similar[0] if len(similar) == 1 else None
        return found


def _xml_candidates(line: str) -> Iterator[list[str]]:
    """Yield the parts of the paths, below the folder of the XML files, that a line of an image set may stand for."""
    for text in dict.fromkeys([line, line.rsplit(maxsplit=1)[0], line.split()[0]]):
        parts = plain_parts(text)
        if not parts:
            continue
        stem = os.path.splitext(parts[-1])[0]
        is_file = is_image_name(parts[-1]) or parts[-1].lower().endswith(".xml")
        for name in (parts[-1], *([stem] if is_file else [])):
            for k, suffix in product(range(len(parts)), SUFFIXES):
                yield [*parts[k:-1], f"{name}{suffix}"]


def has_xml(folder: Path) -> bool:
    """Return whether there is an XML file of VOC in ``folder`` or below it."""
    if not folder.is_dir():
        return False
    return any(path.suffix.lower() == ".xml" and not is_cvat(path) for path in walk(folder))


def is_cvat(path: Path) -> bool:
    """Return whether an XML file is one of CVAT, by its first bytes: a root element <annotations>."""
    try:
        with open(path, "rb") as file:
            return b"<annotations" in file.read(1024).replace(b"\0", b"")
    except OSError:
        return False


def _find_labels(base: Path) -> Path | None:
    """Return the folder of the XML files of a folder in the form of a year of VOC; None if there is none."""
    return next((folder for name in LABEL_FOLDERS if has_xml(folder := base / name) and not _has_yolo(folder)), None)


def _has_yolo(folder: Path) -> bool:
    """Return whether a folder ``labels`` has YOLO's labels, too, from which or to which XML files were converted."""
    return folder.name.lower() == "labels" and any(
        path.suffix == ".txt" and path.name not in NAMES_FILES for path in walk(folder)
    )


def _find_bases(root: Path) -> list[Path]:
    """Return the folders in the form of a year of VOC: ``root`` itself, those in it, and those in its VOCdevkit."""
    candidates = [root, *folders(root), *folders(root / "VOCdevkit")]
    return [folder for folder in candidates if _find_labels(folder) is not None]


def _find_image_set(base: Path, split: str) -> Path | None:
    """Return the image set of a split in a folder in the form of a year of VOC; None if there is none."""
    places = [*(base.joinpath(*parts) for parts in IMAGE_SETS), base]
    candidates = (place / f"{name}.txt" for name in split_spellings(split) for place in places)
    return next((path for path in candidates if path.is_file()), None)


def base_of_image_set(path: Path) -> Path | None:
    """Return the folder in the form of a year of VOC that an image set is in; None if it is in no such folder."""
    bases = [path.parents[len(parts)] for parts in IMAGE_SETS if path.parent.parts[-len(parts) :] == parts]
    return next((base for base in bases if _find_labels(base) is not None), None)


def _around(labels: Path, root: Path) -> list[Path]:
    """Return the two folders around a folder of XML files; only those in ``root`` if ``labels`` is in it."""
    place, outer = Path(os.path.abspath(labels)), Path(os.path.abspath(root))
    around = [labels.parent, labels.parent.parent]
    if not place.is_relative_to(outer):  # the user has named it
        return around
    return around[: len(place.relative_to(outer).parts)]


def find_images(labels: Path, root: Path) -> Path:
    """Return the folder of the images that belong to a folder of XML files in ``root``.

    Raises:
        UserError: there is none.
    """
    around = _around(labels, root)
    siblings = [folder / name for folder in around[:1] for name in IMAGE_FOLDERS]
    if labels.name in LABEL_FOLDERS:
        candidates = [*siblings, labels, *around[:1]]
    else:
        outer = [folder / name for folder in around[1:] for name in IMAGE_FOLDERS]
        candidates = [folder / labels.name for folder in outer] + [labels, *siblings, *outer]
        candidates += [labels / name for name in IMAGE_FOLDERS] + around[:1]
    for folder in candidates:
        if folder.is_dir() and not is_hidden(folder.name) and has_images(folder):
            return folder
    raise UserError(
        f"{labels}: the images of its XML files were not found; specify their folder with --train_images "
        "or --val_images"
    )
