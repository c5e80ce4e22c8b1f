"""COCO-style JSON of your own dataset: find it and its images, and complete fields that tools omit."""

import math
import mmap
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from ..errors import UserError
from .coco_file import canonical_id, is_id, match_ids, read_annotation_file
from .issues import ERROR, NOTE, Issue, Report, ignore_issue, report_elsewhere, short
from .layout import (
    SPLIT_NAMES,
    Layout,
    choose_only,
    hull,
    is_other_split,
    is_split_name,
    option_of,
    refuse_duplicates,
    split_rank,
)
from .paths import PathFinder, folders, is_image_name, is_outside, plain_parts, spelling_key, walk

# Files of COCO in the same folder that hold other things than boxes.
KEYPOINTS_JSON = "person_keypoints"
OTHER_JSON = ("captions", KEYPOINTS_JSON, "stuff", "panoptic", "image_info")
LABELME_KEYS = (b'"shapes"', b'"imageData"', b'"imagePath"')
ENCODINGS = ("utf-8", "utf-16-le", "utf-16-be")  # of JSON files; PowerShell writes UTF-16
HEAD = 4096  # bytes


@dataclass
class CocoLayout(Layout):
    """A JSON file with images, annotations and categories.

    Attributes:
        searched: the folder in which images are looked for that ``images`` does not have; None: no other.
    """

    style = "coco"
    searched: Path | None = field(default=None, kw_only=True)

    @classmethod
    def find(cls, root: Path, split: str, images: Path | None) -> "CocoLayout | None":
        path = choose(_of_split(root, split, _json_files(root)), split)
        if path is None:
            return None
        if not _looks_like_coco(path):  # its error counts only if nothing else is found
            return cls(root, split, path, images or root)
        return cls.open(root, split, path, images)

    @classmethod
    def find_keypoints(cls, root: Path, split: str, images: Path | None) -> "CocoLayout | None":
        """Find the files ``person_keypoints_*.json`` of COCO and CVAT, which ``find`` leaves out."""
        files = _json_files(root, keypoints=True)
        path = choose(_of_split(root, split, files), split)
        if path is not None:
            return cls.open(root, split, path, images)
        if split != "train" or any(_of_split(root, other, files) for other in SPLIT_NAMES):
            return None
        path = choose(files, split)
        return None if path is None else cls.open(root, split, path, images, undivided=True)

    @classmethod
    def find_undivided(cls, root: Path, images: Path | None) -> "CocoLayout | None":
        files = [path for path in _json_files(root) if not is_split_name(path.stem) and _looks_like_coco(path)]
        path = choose(files, "train")
        return None if path is None else cls.open(root, "train", path, images, undivided=True)

    @classmethod
    def open(cls, root: Path, split: str, path: Path, images: Path | None, undivided: bool = False) -> "CocoLayout":
        """Return the layout of the JSON file ``path`` with the folder of its images.

        Raises:
            UserError: the file cannot be read, or its first images are not found.
        """
        if images is not None:
            return cls(root, split, path, images, undivided=undivided)
        names = [name for name in _first_images(path) if isinstance(name, str)]
        layout = cls(root, split, path, root, undivided=undivided, searched=root)
        found = [sum(os.path.isfile(folder / name) for name in names) for folder in layout.candidates]
        if any(found):
            layout.images = layout.candidates[found.index(max(found))]
        elif not any(layout.find_file(name) for name in names):
            first = str(names[0])[:80] if names else "it names none"
            raise UserError(
                f"{path}: its images ({first}) were not found in {root} and its folders; specify their folder "
                f"with --{option_of(split)}_images"
            )
        return layout

    @property
    def is_doubtful(self) -> bool:
        return not _looks_like_coco(self.annotations)

    @cached_property
    def candidates(self) -> list[Path]:
        """Return folders that may contain the images, those named like the split first; omit those of other splits."""
        home = self.annotations.parent
        around = [folder for folder in (home, home.parent) if folder.is_relative_to(self.root)]
        bases = [one for folder in dict.fromkeys([*around, self.root]) for one in (folder, folder / "images")]
        subfolders = [inner for base in bases for inner in folders(base)]
        subfolders = [folder for folder in subfolders if not is_other_split(self.split, folder.name)]
        subfolders.sort(key=lambda folder: split_rank(self.split, folder.name) is None)
        return list(dict.fromkeys([home, *bases, *subfolders]))

    @cached_property
    def finder(self) -> PathFinder:
        return PathFinder([self.images, *(self.candidates if self.images == self.root else ())])

    @cached_property
    def by_name(self) -> dict[str, list[Path]]:
        """Return all images below the image folder and ``searched``, by the ``spelling_key`` of their base name."""
        found = defaultdict(list)
        for folder in dict.fromkeys(filter(None, (self.images, self.searched))):
            for path in walk(folder):
                parts = path.relative_to(folder).parts[:-1]
                if is_image_name(path.name) and not any(is_other_split(self.split, part) for part in parts):
                    found[spelling_key(path.name)].append(path)
        return {key: list(dict.fromkeys(paths)) for key, paths in found.items()}

    @cached_property
    def folders_of_copies(self) -> set[Path]:
        """Return the folders with images whose names are not unique, such as frames of two videos."""
        return {path.parent for paths in self.by_name.values() if len(paths) > 1 for path in paths}

    def find_file(self, name: str) -> Path | None:
        """Return the image of a file_name: at the stated place, or the only one of that name in another folder.

        Raises:
            UserError: a name without folders fits images in several folders.
        """
        found = self.finder.find(name)
        if found is not None and not any(found.is_relative_to(folder) for folder in (self.images, self.root)):
            found = None  # an absolute path of this machine: a foreign file must not lead out of its folder
        if found is not None:
            return found if found.is_file() else None
        if len(plain_parts(name)) != 1:
            return None
        paths = self.by_name.get(spelling_key(name), [])
        paths = [path for path in paths if path.name == name] or paths
        inside = [path for path in paths if path.is_relative_to(self.finder.bases[0])]
        paths = inside or [path for path in paths if path.parent not in self.folders_of_copies]
        if len(paths) > 1:
            raise UserError(f"the file_name {short(name)} fits several images, among them {paths[0]} and {paths[1]}")
        return paths[0] if paths else None

    def read(self, report: Report) -> dict:
        content = read_annotation_file(self.annotations, report)
        content["images"] = self._images(content["images"], report)
        categories = self._categories(content["categories"], content["annotations"], report)
        ids = {category["id"] for category in categories}
        annotations = [
            annotation
            for k, entry in enumerate(content["annotations"], start=1)
            if (annotation := self._annotation(k, entry, report)) is not None
        ]
        annotations = match_ids(self.annotations, annotations, "category_id", ids, report)
        return {"images": content["images"], "annotations": annotations, "categories": categories}

    def _images(self, images: list[dict], report: Report) -> list[dict]:
        """Return the images with file names that lead to existing files where these are found."""
        names: list[Any] = [image.get("file_name") for image in images]
        found: dict[int, Path] = {}
        listed: dict[str, set[str]] = {}
        kept = list(range(len(images)))
        for k, name in enumerate(names):
            if not isinstance(name, str) or not name or len(name) > 4096 or "\0" in name:
                continue  # reported with the other entries of images
            folder, _, base = name.rpartition("/")
            if not is_outside(name):
                if folder not in listed:
                    place = self.images / folder
                    listed[folder] = set(os.listdir(place)) if place.is_dir() else set()
                if base in listed[folder]:
                    continue
            try:
                path = self.find_file(name)
            except UserError as error:
                report(Issue(ERROR, "file names that fit several images", self.annotations, f"image {k + 1}: {error}"))
                kept.remove(k)
                continue
            if path is not None:
                found[k] = path
        if found:
            here = [k for k in kept if k not in found and isinstance(names[k], str) and not is_outside(names[k])]
            before = self.images
            placed = self.place([*found.values(), *(before / names[k] for k in here)])
            for k, name in zip([*found, *here], placed, strict=True):
                images[k] = {**images[k], "file_name": name}
            report_elsewhere(report, self.annotations, [(names[k], path) for k, path in found.items()])
        return [images[k] for k in kept]

    def _categories(self, entries: list, annotations: list[dict], report: Report) -> list[dict]:
        categories, ids = [], set()
        for category in entries:
            if (
                not isinstance(category, dict)
                or not is_id(category.get("id"))
                or not isinstance(category.get("name"), (int, str))
                or not str(category["name"]).strip()
            ):
                text = f"a category has no id or no name: {str(category)[:80]}"
                report(Issue(ERROR, "categories without id or name", self.annotations, text))
            elif category["id"] in ids:
                text = f"duplicate category id {category['id']}"
                report(Issue(ERROR, "duplicate category ids", self.annotations, text))
            else:
                number = int(category["id"]) if isinstance(category["id"], float) else category["id"]
                ids.add(number)
                above = category.get("supercategory")
                above = str(above).strip() if above not in (None, "", "none") else ""
                name = str(category["name"]).strip()
                categories.append({**category, "id": number, "name": name, "supercategory": above})
        stated = [annotation.get("category_id") for annotation in annotations]
        used = {canonical_id(value) for value in stated if is_id(value)}
        # Some tools put a heading above the classes: a category without objects that is the parent of the others.
        parents = {category["supercategory"] for category in categories}
        categories = [
            category
            for category in categories
            if canonical_id(category["id"]) in used or category["name"] not in parents or category["supercategory"]
        ]
        names = [category["name"] for category in categories]
        for name in {name for name in names if names.count(name) > 1}:
            unused = [c for c in categories if c["name"] == name and canonical_id(c["id"]) not in used]
            for category in unused[: names.count(name) - 1]:
                categories.remove(category)
                text = f"the category {category['id']} has no objects and the name of another one, {name}"
                report(Issue(NOTE, "categories that exist twice", self.annotations, text))
        refuse_duplicates(self.annotations, [category["name"] for category in categories])
        return categories

    def _annotation(self, number: int, entry: dict, report: Report) -> dict | None:
        """Return an annotation with a box of numbers and what scoring needs; None if it has been reported."""

        def refuse(kind: str, text: str) -> None:
            report(Issue(ERROR, kind, self.annotations, f"annotation {number} {text}"))

        box = entry.get("bbox")
        if box in (None, [], [0, 0, 0, 0]) and (around := segmentation_box(entry.get("segmentation"))) is not None:
            box = around
            text = f"annotation {number} has no bbox; it is the one around its segmentation"
            report(Issue(NOTE, "boxes that follow from segmentations", self.annotations, text))
        if not isinstance(box, list):
            refuse("annotations without a box", "has no bbox [x, y, width, height]")
            return None
        bad = [key for key in ("image_id", "category_id") if not is_id(entry.get(key))]
        if bad:
            refuse(f"annotations without a valid {bad[0]}", f"has the {bad[0]} {str(entry.get(bad[0]))[:40]}")
            return None
        try:
            x, y, w, h = box = [float(value) for value in box]
            if not all(map(math.isfinite, box)):
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            text = f"has a bbox that is not [x, y, width, height]: {str(entry.get('bbox'))[:80]}"
            refuse("boxes that are not four finite numbers", text)
            return None
        filled = {"id": number, "iscrowd": 0, "area": w * h, "ignore": 0}
        filled.update((key, value) for key, value in entry.items() if value is not None)
        for key in ("iscrowd", "area", "ignore"):
            try:
                value = float(filled[key])
                if not math.isfinite(value):
                    raise ValueError
            except (TypeError, ValueError, OverflowError):
                refuse("fields that scoring needs", f"has the {key} {short(filled[key])}, which is not a number")
                return None
            if isinstance(filled[key], str):
                filled[key] = value
        return {**filled, "bbox": box}

    def class_names(self, content: dict) -> list[str]:
        return [category["name"] for category in content["categories"]]


def choose(paths: Sequence[Path], split: str) -> Path | None:
    """Return the only path, or the only one that looks like COCO. Raises UserError when several do."""
    if len(paths) > 1:
        paths = [path for path in paths if _looks_like_coco(path)] or paths
    return choose_only(paths, split)


def _of_split(root: Path, split: str, files: Sequence[Path]) -> list[Path]:
    """Return the files whose name, or that of their folder, fits a split best."""
    ranks: dict[Path, int] = {}
    for path in files:
        rank = split_rank(split, path.stem)
        if rank is None:
            inside = path.parent.relative_to(root).parts
            rank = split_rank(split, inside[0]) if inside else None
        if rank is not None:
            ranks.setdefault(path, rank)
    return [path for path, rank in ranks.items() if rank == min(ranks.values())]


def _json_files(root: Path, keypoints: bool = False) -> list[Path]:
    """Return the JSON files that may be COCO's, in the usual folders; with ``keypoints`` those named after them."""
    files = []
    inner = folders(root)
    for folder in (root / "annotations", root, *inner, *(one / "annotations" for one in inner)):
        found = sorted(folder.glob("*.[jJ][sS][oO][nN]"))
        for path in found:
            if path.suffix != ".json" and path.with_suffix(".json") in found:
                continue
            named = path.stem.startswith(KEYPOINTS_JSON) if keypoints else not path.stem.startswith((".", *OTHER_JSON))
            if named and path not in files and not is_labelme(path):
                files.append(path)
    return files


def is_labelme(path: Path) -> bool:
    """Return whether a JSON file looks like one of LabelMe, by its first bytes."""
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError:
        return False
    return any(key in head for key in LABELME_KEYS) and b'"images"' not in head


def _looks_like_coco(path: Path) -> bool:
    """Return whether a JSON file has COCO's keys, without parsing it: it may be large."""
    keys = ('"images"', '"annotations"')
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return any(all(content.find(key.encode(code)) >= 0 for key in keys) for code in ENCODINGS)
    except (OSError, ValueError):  # a ValueError: an empty file
        return False


def _first_images(path: Path) -> list:
    changed = path.stat() if path.is_file() else None
    return _read_first_images(path, changed and (changed.st_mtime_ns, changed.st_size))


@lru_cache(maxsize=8)
def _read_first_images(path: Path, version) -> list:
    """Return some file names of an annotation file, which is read once in each ``version``: it may be large."""
    return [image.get("file_name") for image in read_annotation_file(path, ignore_issue)["images"][:5]]


def segmentation_box(segmentation) -> list[float] | None:
    """Return the box [x, y, width, height] around COCO polygons or a run-length mask; None if there is none."""
    try:
        if isinstance(segmentation, list) and segmentation:
            points = [xy for polygon in segmentation for xy in zip(polygon[0::2], polygon[1::2], strict=True)]
            return hull([(float(x), float(y)) for x, y in points])
        if isinstance(segmentation, dict):
            import pycocotools.mask

            mask = segmentation
            if isinstance(mask["counts"], list):
                mask = pycocotools.mask.frPyObjects(mask, *mask["size"])
            box = [float(value) for value in pycocotools.mask.toBbox(mask)]
            return box if box[2] > 0 and box[3] > 0 else None
    except Exception:  # malformed in whichever way: then it has no box either
        return None
    return None
