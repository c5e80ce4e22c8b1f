"""CVAT's own XML ("CVAT for images 1.1") of your own dataset: one file for many images."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from xml.etree import ElementTree

from ..errors import UserError
from .issues import ERROR, LEFT_OUT, NOTE, Issue, Report, report_elsewhere, short
from .layout import (
    SPLIT_NAMES,
    Layout,
    Point,
    choose_only,
    hull,
    is_split_name,
    make_annotation,
    report_left_out,
    split_rank,
)
from .paths import PathFinder, folders, is_image_name, walk
from .voc import is_cvat
from .xml_file import REPLACED, parse_xml

WITHOUT_BOX = ("points", "skeleton", "cuboid", "tag")
MAX_WORDS = 4096


@dataclass
class CvatLayout(Layout):
    """An XML file with the root element <annotations>.

    Attributes:
        subsets: whether its images are divided by their attribute ``subset``.
    """

    style = "cvat"
    names_from_objects = True
    subsets: bool = False

    @classmethod
    def find(cls, root: Path, split: str, images: Path | None) -> "CvatLayout | None":
        files = _files(root)
        ranks = {path: rank for path in files if (rank := _rank(root, split, path)) is not None}
        path = choose_only([path for path, rank in ranks.items() if rank == min(ranks.values())], split)
        if path is not None:
            return cls(root, split, path, images or path.parent)
        if len(files) == 1 and best_subsets(files[0], split):
            return cls(root, split, files[0], images or files[0].parent, subsets=True)
        return None

    @classmethod
    def find_undivided(cls, root: Path, images: Path | None) -> "CvatLayout | None":
        path = choose_only([path for path in _files(root) if not is_split_name(path.stem)], "train")
        return None if path is None else cls(root, "train", path, images or path.parent, undivided=True)

    @cached_property
    def finder(self) -> PathFinder:
        folders = [self.images, self.annotations.parent, self.root]
        return PathFinder([*folders, *(folder / "images" for folder in folders)])

    @property
    def image_folders(self) -> list[Path]:
        return self.finder.bases

    @cached_property
    def tree(self) -> ElementTree.Element:
        """Return the root element of the file."""
        return _read_tree(self.annotations, _version(self.annotations))

    def class_names(self, content: dict) -> list[str]:
        listed = self.names_file[1] or _label_names(self.tree)
        others = sorted({category["name"] for category in content["categories"]} - {*listed})
        return [*listed, *others]

    def read(self, report: Report) -> dict:
        if self.tree.find("track") is not None and self.tree.find("image") is None:
            raise UserError(f"{self.annotations}: is 'CVAT for video'; export the task as 'CVAT for images 1.1'")
        elements = [(element, *self._find_image_of(element)) for element in self.tree.findall("image")]
        stated = {path for _, name, path in elements if path is not None and self.is_stated(name, path)}
        self._report_left_out({path for _, _, path in elements if path is not None}, report)
        subsets = best_subsets(self.annotations, self.split) if self.subsets else None
        images: dict[Path, dict] = {}
        annotations: list[dict] = []
        names = set()
        names_of: dict[Path, str] = {}
        elsewhere: dict[str, Path] = {}
        for element, name, path in elements:
            if subsets is not None and (element.get("subset") or "") not in subsets:
                continue
            where = f"the image {short(element.get('name') or '')}"
            if path is not None and not self.is_stated(name, path):
                if path in stated or names_of.setdefault(path, name) != name:
                    path = None  # it is another image of the file
                else:
                    elsewhere[name] = path
            if path is None:
                report(Issue(ERROR, "images that were not found", self.annotations, f"{where} was not found"))
                continue
            objects = list(self._objects(element, where, report))
            if path in images:
                report(Issue(NOTE, "entries that repeat an image", self.annotations, f"{where} is listed again"))
                objects = [one for one in objects if one not in images[path]["annotations"]]
            else:
                size = {"width": _side(element, "width"), "height": _side(element, "height")}
                images[path] = {**size, "annotations": []}
            images[path]["annotations"] += objects
        report_elsewhere(report, self.annotations, list(elsewhere.items()))
        for entry, file_name in zip(images.values(), self.place([*images]), strict=True):
            entry.update(id=file_name, file_name=file_name)
            for label, box, outline in entry.pop("annotations"):
                names.add(label)
                annotations.append(make_annotation(len(annotations) + 1, file_name, label, box, outline=outline))
        categories = [{"id": name, "name": name} for name in sorted({*names, *_label_names(self.tree)})]
        return {"images": [*images.values()], "annotations": annotations, "categories": categories}

    def _find_image_of(self, element: ElementTree.Element) -> tuple[str, Path | None]:
        """Return the name of an image and its file: in a folder of its subset, as projects are exported, or without."""
        name, subset = element.get("name") or "", element.get("subset") or ""
        if not 0 < len(name) < MAX_WORDS:
            return name, None
        if subset and self.finder.find(subset) is not None:
            path = self.find_image(f"{subset}/{name}")
            if path is not None and self.is_stated(f"{subset}/{name}", path):
                return f"{subset}/{name}", path
        return name, self.find_image(name)

    def _report_left_out(self, listed: set[Path], report: Report) -> None:
        """Report subsets that are in no split, and images in no entry, given those in one.

        A folder may also have the images of other files, unless it has a name of the split.
        """
        is_first = self.subsets and self.split == "train"
        if is_first:
            used = {subset for split in SPLIT_NAMES for subset in best_subsets(self.annotations, split)}
            counts = Counter(element.get("subset") or "" for element in self.tree.findall("image"))
            for subset in [subset for subset in counts if subset not in used]:
                text = f"{counts[subset]} image(s) of the subset {short(subset)}"
                report(Issue(LEFT_OUT, "subsets that belong to no split", self.annotations, text))
        if is_first or self.undivided or self.is_for_split(self.images):
            folders = [self.images] if self.is_for_split(self.images) else [self.images, self.root]
            images = {path for folder in folders for path in walk(folder) if is_image_name(path.name)}
            report_left_out(report, "images without an entry", sorted(images - listed))

    def _objects(
        self, image: ElementTree.Element, where: str, report: Report
    ) -> Iterable[tuple[str, list[float], list[Point]]]:
        """Yield label, box [x, y, width, height], and corners of each shape; none unless it is a polygon."""
        for number, shape in enumerate(image, start=1):
            label = (shape.get("label") or "").strip()
            text = f"{where}: shape {number}, <{shape.tag}> {label[:40]}"
            if shape.tag in WITHOUT_BOX:
                report(Issue(LEFT_OUT, "shapes that are not boxes or outlines", self.annotations, text))
                continue
            try:
                if not label or REPLACED in label:
                    raise ValueError("no label")
                box = read_shape(shape)
                if not all(map(math.isfinite, box)):
                    raise ValueError("not finite")
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
                report(Issue(ERROR, "shapes that cannot be read", self.annotations, f"{text} ({reason})"))
                continue
            yield label, box, _corners(shape) if shape.tag == "polygon" else []


def read_shape(shape: ElementTree.Element) -> list[float]:
    """Return the box [x, y, width, height] around a shape of CVAT.

    Raises:
        KeyError: an attribute is missing.
        ValueError: an attribute is not a number, or the kind is unknown.
    """
    value = {name: shape.attrib[name] for name in shape.attrib}
    if shape.tag == "box":
        left, top, right, bottom = (float(value[name]) for name in ("xtl", "ytl", "xbr", "ybr"))
        angle = math.radians(float(value.get("rotation", 0)))
        x, y, w, h = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
        if angle:
            cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
            w, h = w * cos + h * sin, w * sin + h * cos
            return [x - w / 2, y - h / 2, w, h]
        return [left, top, w, h]
    if shape.tag in ("polygon", "polyline"):
        return hull(_corners(shape))
    if shape.tag == "ellipse":
        x, y, rx, ry = (float(value[name]) for name in ("cx", "cy", "rx", "ry"))
        angle = math.radians(float(value.get("rotation", 0)))
        w = math.hypot(rx * math.cos(angle), ry * math.sin(angle))
        h = math.hypot(rx * math.sin(angle), ry * math.cos(angle))
        return [x - w, y - h, 2 * w, 2 * h]
    if shape.tag == "mask":
        return [float(value[name]) for name in ("left", "top", "width", "height")]
    raise ValueError("an unknown kind of shape")


def _corners(shape: ElementTree.Element) -> list[Point]:
    """Return the corners (x, y) of a polygon or polyline."""
    points = (point.split(",") for point in shape.attrib["points"].split(";"))
    return [(float(x), float(y)) for x, y in points]


def best_subsets(path: Path, split: str) -> set[str]:
    """Return the names of the subsets that fit a split best; none if the file has none that do."""
    tree = _read_tree(path, _version(path))
    names = {image.get("subset") or "" for image in tree.findall("image")}
    ranks = {name: rank for name in names if (rank := split_rank(split, name)) is not None}
    return {name for name, rank in ranks.items() if rank == min(ranks.values())}


def _label_names(tree: ElementTree.Element) -> list[str]:
    """Return the names of the labels in the file's description of the task, in its order."""
    names = (label.findtext("name") for meta in tree.findall("meta") for label in meta.iter("label"))
    return list(dict.fromkeys(name.strip() for name in names if name and name.strip() and REPLACED not in name))


def _side(image: ElementTree.Element, name: str) -> int | None:
    text = image.get(name) or ""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def _files(root: Path) -> list[Path]:
    places = (root, root / "annotations", root / "Annotations", *folders(root))
    files = [path for folder in places if folder.is_dir() for path in sorted(folder.glob("*.xml"))]
    return [path for path in dict.fromkeys(files) if not path.name.startswith(".") and is_cvat(path)]


def _rank(root: Path, split: str, path: Path) -> int | None:
    rank = split_rank(split, path.stem)
    return rank if rank is not None or path.parent == root else split_rank(split, path.parent.name)


def _version(path: Path) -> tuple[int, int] | None:
    return (path.stat().st_mtime_ns, path.stat().st_size) if path.is_file() else None


@lru_cache(maxsize=2)
def _read_tree(path: Path, version) -> ElementTree.Element:
    """Return the root element of a file, which is read once in each ``version``: it may be large."""
    return parse_xml(path)
