"""VOC-style XML of your own dataset: image sets or folders of XML files, and their images."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..errors import UserError
from .coco_file import name_problem
from .issues import ERROR, Issue, Report, short
from .layout import (
    Layout,
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


@dataclass
class VocLayout(Layout):
    """XML files, one per image. ``annotations`` is an image set (.txt) or ``labels``, the folder of the XML files."""

    style = "voc"
    names_from_objects = True
    labels: Path

    @classmethod
    def find(cls, root: Path, split: str, images: Path | None) -> "VocLayout | None":
        bases = _find_bases(root)
        of_split = [base for base in bases if base != root and is_split_name(base.name)]
        whole = [base for base in bases if base not in of_split]
        if len(whole) > 1:
            names = ", ".join(folder.name for folder in whole)
            raise UserError(f"--data_path {root}: contains several VOC folders ({names}); choose one")
        for base in whole:
            labels = base / "Annotations"
            for name in split_spellings(split):
                for image_set in (base / "ImageSets" / "Main" / f"{name}.txt", base / f"{name}.txt"):
                    if image_set.is_file():
                        return cls(root, split, image_set, images or find_images(labels), labels)
            for name in split_spellings(split):
                if (labels / name).is_dir():
                    return cls(root, split, labels / name, images or find_images(labels / name), labels / name)
        for name in split_spellings(split):
            folder = root / name
            labels = folder / "Annotations" if folder in of_split else folder
            if has_xml(labels):
                return cls(root, split, labels, images or (find_images(labels) if labels != folder else folder), labels)
        return None

    @classmethod
    def find_undivided(cls, root: Path, images: Path | None) -> "VocLayout | None":
        base = next(iter(_find_bases(root)), None)
        labels = base / "Annotations" if base is not None else root
        if not has_xml(labels):
            return None
        everything = labels.parent / "ImageSets" / "Main" / "default.txt"  # CVAT's name
        annotations = everything if base is not None and everything.is_file() else labels
        return cls(root, "train", annotations, images or find_images(labels), labels, undivided=True)

    @classmethod
    def open(cls, root: Path, split: str, path: Path, images: Path | None) -> "VocLayout":
        """Return the layout of a folder of XML files or of an image set."""
        if path.is_dir():
            return cls(root, split, path, images or find_images(path), path)
        base = path.parents[2] if len(path.parents) > 2 and path.parent.name == "Main" else root
        labels = base / "Annotations"
        if not labels.is_dir():
            raise UserError(
                f"--{option_of(split)}_annotations {path}: the folder of its XML files, {labels}, does not exist"
            )
        return cls(root, split, path, images or find_images(labels), labels)

    @cached_property
    def finder(self) -> PathFinder:
        return PathFinder([self.images, self.root, *(self.labels.parent / name for name in IMAGE_FOLDERS)])

    def read(self, report: Report) -> dict:
        images: list[dict] = []
        annotations: list[dict] = []
        names = set()
        found: list[Path | None] = []
        for path in self._files(report):

            def refuse(error: UserError, path: Path = path) -> None:
                report(Issue(ERROR, "objects that cannot be read", path, str(error).removeprefix(f"{path}: ")))

            try:
                record = read_annotation(path, needs_size=False, whole_pixels=False, on_object_error=refuse)
            except UserError as error:
                text = str(error).removeprefix(f"{path}: ")
                report(Issue(ERROR, "XML files that cannot be read", path, text))
                continue
            name = path.relative_to(self.labels).with_suffix("").as_posix()
            image = self.find_image(name) or self.find_image(path.stem) or self.find_image(record["filename"])
            found.append(image)
            stated = plain_parts(record["filename"])[-1:]
            missing = stated[0] if stated and os.path.splitext(stated[0])[1] else f"{name}.jpg"
            images.append({"id": name, "file_name": missing, "width": record["width"], "height": record["height"]})
            for item in record["objects"]:
                # VOC counts pixels from 1. Tools that count from 0 write boxes that begin there.
                left, top = max(item["xmin"] - 1, 0), max(item["ymin"] - 1, 0)
                box = [left, top, max(item["xmax"] - left, 0), max(item["ymax"] - top, 0)]
                names.add(item["name"])
                annotations.append(make_annotation(len(annotations) + 1, name, item["name"], box, item["difficult"]))
        placed = iter(self.place([image for image in found if image is not None]))
        for entry, image in zip(images, found, strict=True):
            if image is not None:
                entry["file_name"] = next(placed)
        categories = [{"id": name, "name": name} for name in sorted(names)]
        return {"images": images, "annotations": annotations, "categories": categories}

    def _files(self, report: Report) -> list[Path]:
        """Return the XML files of the split."""
        if self.annotations.is_dir():
            hidden: list[Path] = []
            files = [path for path in walk(self.annotations, hidden) if path.suffix.lower() == ".xml"]
            report_left_out(
                report, "XML files in hidden folders", (path for path in hidden if path.suffix.lower() == ".xml")
            )
            return files
        files = []
        for number, line in enumerate(read_lines(self.annotations), start=1):
            if not line:
                continue
            path = self._find_xml(line)
            if path is not None:
                files.append(path)
                continue
            problem = name_problem(line) if is_outside(line) else f"names {short(line)}, which has no XML file in "
            text = f"line {number} {problem}" + ("" if is_outside(line) else str(self.labels))
            report(Issue(ERROR, "lines of image sets without an XML file", self.annotations, text))
        return files

    def _find_xml(self, line: str) -> Path | None:
        """Return the XML file of a line of an image set.

        It is a name, or the path of an image or XML file on any machine; in sets of one class a number follows.
        """
        for text in dict.fromkeys([line, line.rsplit(maxsplit=1)[0], line.split()[0]]):
            parts = plain_parts(text)
            if not parts:
                continue
            stem = os.path.splitext(parts[-1])[0]
            is_file = is_image_name(parts[-1]) or parts[-1].lower().endswith(".xml")
            for name in (parts[-1], *([stem] if is_file else [])):
                for k in range(len(parts)):
                    path = self.labels.joinpath(*parts[k:-1], f"{name}.xml")
                    if len(path.name) < 256 and os.path.isfile(path):
                        return path
        return None


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


def _find_bases(root: Path) -> list[Path]:
    """Return the folders in the form of a year of VOC: ``root`` itself, those in it, and those in its VOCdevkit."""
    candidates = [root, *folders(root), *folders(root / "VOCdevkit")]
    return [folder for folder in candidates if has_xml(folder / "Annotations")]


def find_images(labels: Path) -> Path:
    """Return the folder of the images that belong to a folder of XML files. Raises UserError if there is none."""
    siblings = [labels.parent / name for name in IMAGE_FOLDERS]
    if labels.name == "Annotations":
        candidates = [*siblings, labels, labels.parent]
    else:
        above = labels.parent.parent
        candidates = [above / name / labels.name for name in IMAGE_FOLDERS] + [labels, *siblings]
        candidates += [above / name for name in IMAGE_FOLDERS] + [labels / name for name in IMAGE_FOLDERS]
        candidates += [labels.parent]
    for folder in candidates:
        if folder.is_dir() and not is_hidden(folder.name) and has_images(folder):
            return folder
    raise UserError(
        f"{labels}: the images of its XML files were not found; specify their folder with --train_images "
        "or --val_images"
    )
