"""LabelMe's JSON of your own dataset: one file per image, with shapes, also written by X-AnyLabeling."""

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .coco import is_labelme
from .issues import ERROR, LEFT_OUT, NOTE, Issue, Report, report_elsewhere, short
from .layout import Layout, Point, best_fits, choose_only, hull, is_split_name, make_annotation, report_left_out
from .paths import IMAGE_SUFFIXES, PathFinder, counterpart, folders, is_image_name, plain_parts, walk

NO_CLASSES = ("__ignore__", "_background_")  # entries of LabelMe's labels.txt
LABEL_FOLDERS = ("annotations", "Annotations", "labels", "json", "jsons")
IMAGE_FOLDERS = ("images", "Images", "JPEGImages")


@dataclass
class LabelMeLayout(Layout):
    """A folder of JSON files, ``annotations``, with the images next to them or at their ``imagePath``."""

    style = "labelme"
    names_from_objects = True

    @classmethod
    def find(cls, root: Path, split: str, images: Path | None) -> "LabelMeLayout | None":
        places = (root, *(root / name for name in LABEL_FOLDERS), root / "images")
        found = best_fits(split, (folder for place in places for folder in folders(place)), has_labelme)
        folder = choose_only([one for one in found if one.parent == found[0].parent], split)
        return None if folder is None else cls(root, split, folder, images or folder)

    @classmethod
    def find_undivided(cls, root: Path, images: Path | None) -> "LabelMeLayout | None":
        if any(is_split_name(path.name) for path in root.iterdir() if path.is_dir()) or not has_labelme(root):
            return None
        return cls(root, "train", root, images or root, undivided=True)

    @cached_property
    def finder(self) -> PathFinder:
        siblings = counterpart(self.annotations, LABEL_FOLDERS, IMAGE_FOLDERS)
        return PathFinder([self.images, *filter(None, [siblings]), self.root, self.root / "images"])

    def class_names(self, content: dict) -> list[str]:
        return [name for name in super().class_names(content) if name not in NO_CLASSES]

    def read(self, report: Report) -> dict:
        images: list[dict] = []
        annotations: list[dict] = []
        names, placed, used = set(), [], set()
        elsewhere: list[tuple[str, Path]] = []
        for path in self._files(report):
            record = self._read_file(path, report)
            if record is None:
                continue
            image = self._find_image(path, record)
            if image is None:
                embedded = "; its image is embedded, write it to a file" if record.get("imageData") else ""
                text = f"its image {short(record.get('imagePath'))} was not found{embedded}"
                report(Issue(ERROR, "images that were not found", path, text))
                continue
            if image in used:
                report(Issue(ERROR, "images with several JSON files", path, f"describes {image}, as another file does"))
                continue
            used.add(image)
            placed.append(image)
            stated = record.get("imagePath")
            stated = stated if isinstance(stated, str) else ""
            if not self._is_stated(path, stated, image):
                elsewhere.append((stated or path.name, image))
            size = {"width": record.get("imageWidth"), "height": record.get("imageHeight")}
            images.append({**size, "annotations": list(self._objects(path, record["shapes"], report))})
        for entry, name in zip(images, self.place(placed), strict=True):
            entry.update(id=name, file_name=name)
            for label, box, outline in entry.pop("annotations"):
                names.add(label)
                annotations.append(make_annotation(len(annotations) + 1, name, label, box, outline=outline))
        self._report_images(used, report)
        report_elsewhere(report, self.annotations, elsewhere)
        categories = [{"id": name, "name": name} for name in sorted(names)]
        return {"images": images, "annotations": annotations, "categories": categories}

    def _files(self, report: Report) -> Iterable[Path]:
        hidden: list[Path] = []
        yield from (path for path in walk(self.annotations, hidden) if path.suffix.lower() == ".json")
        report_left_out(report, "JSON files in hidden folders", (p for p in hidden if p.suffix.lower() == ".json"))

    def _read_file(self, path: Path, report: Report) -> dict | None:
        try:
            record = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            report(Issue(ERROR, "JSON files that cannot be read", path, f"not a JSON file ({error})"))
            return None
        if not isinstance(record, dict) or not isinstance(record.get("shapes"), list):
            report(Issue(LEFT_OUT, "JSON files without shapes", path, "has no list 'shapes', as LabelMe writes it"))
            return None
        return record

    def _find_image(self, path: Path, record: dict) -> Path | None:
        """Return the image of the same name next to its JSON file or in ``images/``, or the one that the file names."""
        for folder in self._image_folders(path):
            for suffix in IMAGE_SUFFIXES:
                for candidate in (folder / f"{path.stem}{suffix}", folder / f"{path.stem}{suffix.upper()}"):
                    if candidate.is_file():
                        return candidate
        inside = path.relative_to(self.annotations).with_suffix("").as_posix()
        name = record.get("imagePath")
        found = self.find_image(inside) or self.find_image(path.stem)
        return found or (self.find_image(name) if isinstance(name, str) and name else None)

    def _image_folders(self, path: Path) -> list[Path]:
        """Return where the image of a JSON file is expected: next to it, or in the same place of the image folder."""
        inside = path.parent.relative_to(self.annotations)
        siblings = counterpart(path.parent, LABEL_FOLDERS, IMAGE_FOLDERS)
        inner = [siblings] if siblings is not None and siblings.is_relative_to(self.root) else []
        return list(dict.fromkeys([path.parent, self.images / inside, *inner]))

    def _is_stated(self, path: Path, stated: str, image: Path) -> bool:
        """Return whether an image is where it is expected and as its JSON file names it."""
        at = os.path.normpath(path.parent / stated.replace("\\", "/"))
        return at == os.path.normpath(image) or (
            image.parent in self._image_folders(path) and (plain_parts(stated) or [image.name])[-1] == image.name
        )

    def _objects(self, path: Path, shapes: list, report: Report) -> Iterable[tuple[str, list[float], list[Point]]]:
        """Yield label, box [x, y, width, height], and corners of each object; none unless it is one polygon.

        Shapes of the same label and ``group_id`` are the visible parts of one object, as in LabelMe's own converters.
        """
        parts_of: dict[tuple[str, str], list[tuple[list[float], list[Point]]]] = {}
        for group, label, box, corners in self._shapes(path, shapes, report):
            parts_of.setdefault((label, group), []).append((box, corners))
        for (label, group), parts in parts_of.items():
            if len(parts) == 1:
                yield label, *parts[0]
                continue
            text = f"{len(parts)} shapes ({label[:40]}) of the {group[:40]}"
            report(Issue(NOTE, "shapes of a group, used as one object", path, text))
            yield label, hull([point for (x, y, w, h), _ in parts for point in ((x, y), (x + w, y + h))]), []

    def _shapes(self, path: Path, shapes: list, report: Report) -> Iterable[tuple[str, str, list[float], list[Point]]]:
        """Yield the group, label, box, and corners of each shape; one without ``group_id`` is a group of its own."""
        for number, shape in enumerate(shapes, start=1):
            try:
                label, kind = shape["label"], shape.get("shape_type") or "polygon"
                points = [(float(x), float(y)) for x, y in shape["points"]]
                label = label.strip() if isinstance(label, str) else ""
                if not label or not points:
                    raise ValueError("no label or no points")
                if not all(math.isfinite(value) for point in points for value in point):
                    raise ValueError("not finite")
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
                report(Issue(ERROR, "shapes that cannot be read", path, f"shape {number} is malformed ({error})"))
                continue
            group = f"shape {number}" if shape.get("group_id") is None else f"group {shape['group_id']}"
            if kind == "circle" and len(points) == 2:  # center, and a point of the circle
                (x, y), radius = points[0], math.dist(*points)
                yield group, label, [x - radius, y - radius, 2 * radius, 2 * radius], []
            elif len(points) == 1:
                report(Issue(LEFT_OUT, "points, which are not boxes", path, f"shape {number} ({label[:40]})"))
            else:
                yield group, label, hull(points), points if kind == "polygon" else []

    def _report_images(self, used: set[Path], report: Report) -> None:
        unlabeled = (path for path in walk(self.annotations) if is_image_name(path.name) and path not in used)
        report_left_out(report, "images without a JSON file", unlabeled)


def has_labelme(folder: Path) -> bool:
    """Return whether there is a JSON file of LabelMe in ``folder`` or below it, without YOLO's label next to it."""
    if not folder.is_dir():
        return False
    for path in walk(folder):
        if path.suffix.lower() == ".json" and is_labelme(path):
            return not path.with_suffix(".txt").is_file()
    return False
