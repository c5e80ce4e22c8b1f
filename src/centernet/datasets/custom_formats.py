"""Your own dataset: finding its parts in a folder, and reading COCO-, VOC- and YOLO-style annotations into one form.

The form is COCO's: ``{"images": [{"id", "file_name", "width", "height"}], "annotations": [{"id", "image_id",
"category_id", "bbox", "area", "iscrowd", "ignore"}], "categories": [{"id", "name"}]}``, boxes [x, y, width, height] in
pixels from 0.
"""

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..errors import UserError
from .annotations import Complain, ignore, is_id, name_problem, read_annotation_file, refuse
from .images import image_size
from .voc_devkit import read_annotation

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
# How the parts of a dataset are called in names of files and folders; the first name that is found counts.
SPLIT_NAMES = {
    "train": ("train", "trainval", "training"),
    "val": ("val", "valid", "validation", "dev", "test"),
    "test": ("test", "val", "valid", "validation", "dev"),
}
NAMES_FILES = ("classes.txt", "classes.names", "obj.names", "names.txt", "labels.txt", "_darknet.labels")
# Files of COCO in the same folder that hold other things than boxes.
OTHER_JSON = ("captions", "person_keypoints", "stuff", "panoptic", "image_info")


@dataclass(frozen=True)
class Source:
    """Where one split is.

    Attributes:
        style: coco, voc or yolo.
        split: train, val or test.
        root: the dataset's folder.
        annotations: coco: the JSON file; voc: an image set (.txt) or a folder of XML files; yolo: a list of images
            (.txt) or the folder of the images.
        images: the folder that the names of images begin at.
        labels: the folder of the XML files or labels; None where each lies beside its image or is told by its path.
    """

    style: str
    split: str
    root: Path
    annotations: Path
    images: Path
    labels: Path | None = None


# Finding


def find_source(
    root: Path, split: str, annotations: str = "", images: str = "", style: str | None = None
) -> Source | None:
    """Where ``split`` of the dataset in ``root`` is; None when nothing there looks like it.

    Args:
        root: the dataset's folder.
        split: train, val or test.
        annotations, images: what the user named, as a path or one below ``root``; empty: to be found.
        style: the only one to look for; None: coco, voc and yolo, in this order.

    Raises:
        UserError: a named path that is not there, several files that could be meant, or no images.
    """
    option = "val" if split == "test" else split
    image_folder = _named(root, images, f"--{option}_images")
    if annotations:
        path = _named(root, annotations, f"--{option}_annotations")
        return _named_source(root, split, path, image_folder)
    finders = {"coco": _find_coco, "voc": _find_voc, "yolo": _find_yolo}
    for find in finders.values() if style is None else (finders[style],):
        source = find(root, split, image_folder)
        if source is not None:
            return source
    return None


def _named(root: Path, text: str, option: str) -> Path | None:
    if not text:
        return None
    for path in (Path(text).expanduser(), root / text):
        if path.exists():
            return path
    raise UserError(f"{option} {text}: there is no such file or folder, nor below {root}")


def _named_source(root: Path, split: str, path: Path, images: Path | None) -> Source:
    option = "val" if split == "test" else split
    if path.suffix.lower() == ".json":
        return _coco_source(root, split, path, images)
    if path.is_dir():
        if any(path.glob("*.xml")):
            return Source("voc", split, root, path, images or _voc_images(path), path)
        if _has_images(path):
            return Source("yolo", split, root, path, path)
        if any(path.glob("*.txt")):
            folder = images or _beside(path, "labels", "images")
            if folder is None:
                raise UserError(f"--{option}_annotations {path}: name the images' folder with --{option}_images")
            return Source("yolo", split, root, folder, folder, path)
        raise UserError(f"--{option}_annotations {path}: this folder holds neither XML files nor labels")
    first = next(iter(_lines(path)), "")
    if Path(first).suffix.lower() in IMAGE_SUFFIXES:
        return Source("yolo", split, root, path, images or root)
    base = path.parents[2] if len(path.parents) > 2 and path.parent.name == "Main" else root
    labels = base / "Annotations"
    if not labels.is_dir():
        raise UserError(f"--{option}_annotations {path}: there is no folder {labels} with the XML files of its images")
    return Source("voc", split, root, path, images or _voc_images(labels), labels)


def _named_for(split: str, name: str) -> int | None:
    """How well a name fits a split: 0 is best, None not at all."""
    words = name.lower()
    if split != "train" and "train" in words:
        return None
    return next((k for k, word in enumerate(SPLIT_NAMES[split]) if word in words), None)


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []


def _best(found: list[tuple[int, Path]], split: str) -> Path | None:
    """The path that fits best. Raises UserError when several fit equally."""
    if not found:
        return None
    rank = min(rank for rank, _ in found)
    paths = [path for other, path in found if other == rank]
    if len(paths) > 1:
        option = "val" if split == "test" else split
        raise UserError(f"--{option}_annotations: several files could be meant: {_some(paths)}; name one")
    return paths[0]


def _some(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths[:5])) + (f", ... {len(paths)} in all" if len(paths) > 5 else "")


def _find_coco(root: Path, split: str, images: Path | None) -> Source | None:
    found = []
    for folder in (root / "annotations", root, *_folders(root)):
        for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
            if path.stem.startswith(OTHER_JSON):
                continue
            rank = _named_for(split, path.stem)
            if rank is None and folder not in (root, root / "annotations"):
                rank = _named_for(split, folder.name)
            if rank is not None and (rank, path) not in found:
                found.append((rank, path))
    path = _best(found, split)
    return None if path is None else _coco_source(root, split, path, images)


def _coco_source(root: Path, split: str, path: Path, images: Path | None) -> Source:
    """With the folder in which the first images of the file are."""
    if images is not None:
        return Source("coco", split, root, path, images)
    changed = path.stat() if path.is_file() else None
    names = _first_images(path, changed and (changed.st_mtime_ns, changed.st_size))
    subfolders = [*_folders(root), *_folders(root / "images")]
    subfolders.sort(key=lambda folder: _named_for(split, folder.name) is None)  # those of the split's name first
    candidates = [path.parent, root, root / "images", *subfolders]
    found = [sum(os.path.isfile(folder / name) for name in names) for folder in candidates]
    if any(found):
        return Source("coco", split, root, path, candidates[found.index(max(found))])
    option = "val" if split == "test" else split
    first = names[0][:80] if names else "it names none"
    raise UserError(
        f"{path}: its images ({first}) were not found in {root} and its folders; name their folder with "
        f"--{option}_images"
    )


@lru_cache(maxsize=8)
def _first_images(path: Path, version) -> list[str]:
    """Some file names of an annotation file, which is read once in each ``version``: it may be large."""
    images = read_annotation_file(path, ignore)["images"][:5]
    return [image["file_name"] for image in images if name_problem(image.get("file_name")) is None]


def _voc_bases(root: Path) -> list[Path]:
    """Folders in the form of a year of VOC: ``root`` itself, one in it, or one in its VOCdevkit."""
    candidates = [root, *_folders(root), *_folders(root / "VOCdevkit")]
    return [folder for folder in candidates if (folder / "Annotations").is_dir()]


def _find_voc(root: Path, split: str, images: Path | None) -> Source | None:
    bases = _voc_bases(root)
    if len(bases) > 1:
        raise UserError(
            f"--data_path {root}: holds several VOC folders ({', '.join(folder.name for folder in bases)}); name one"
        )
    for base in bases:
        labels = base / "Annotations"
        for name in SPLIT_NAMES[split]:
            for image_set in (base / "ImageSets" / "Main" / f"{name}.txt", base / f"{name}.txt"):
                if image_set.is_file():
                    return Source("voc", split, root, image_set, images or _voc_images(labels), labels)
        for name in SPLIT_NAMES[split]:
            if (labels / name).is_dir():
                return Source("voc", split, root, labels / name, images or _voc_images(labels / name), labels / name)
        if any(labels.glob("*.xml")) and split != "test":
            raise UserError(
                f"{base}: nothing says which images are for the split {split}; write their names, one a line, into "
                f"{base / 'ImageSets' / 'Main' / f'{split}.txt'}"
            )
    for name in SPLIT_NAMES[split]:
        folder = root / name
        if folder.is_dir() and any(folder.glob("*.xml")):
            return Source("voc", split, root, folder, images or folder, folder)
    return None


def _voc_images(labels: Path) -> Path:
    """The folder of the images that belong to a folder of XML files."""
    names = ("JPEGImages", "images", "Images")
    beside = [labels.parent / name for name in names]
    if labels.name == "Annotations":
        candidates = [*beside, labels, labels.parent]
    else:
        above = labels.parent.parent
        candidates = [above / name / labels.name for name in names] + [labels, *beside]
        candidates += [above / name for name in names] + [labels.parent]
    for folder in candidates:
        if folder.is_dir() and _has_images(folder):
            return folder
    raise UserError(
        f"{labels}: the images of its XML files were not found; name their folder with --train_images or --val_images"
    )


def _has_images(folder: Path) -> bool:
    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.iterdir())


def _beside(path: Path, name: str, other: str) -> Path | None:
    """``path`` with its last folder called ``name`` replaced by ``other``, if it is there."""
    parts = list(path.parts)
    for k in range(len(parts) - 1, -1, -1):
        if parts[k] == name:
            twin = Path(*parts[:k], other, *parts[k + 1 :])
            return twin if twin.exists() else None
    return None


def _find_yolo(root: Path, split: str, images: Path | None) -> Source | None:
    described = _read_yaml(root)
    for name in SPLIT_NAMES[split]:
        text = described.get(name)
        if isinstance(text, list) and len(text) == 1:
            text = text[0]
        if isinstance(text, list) and images is None:
            option = "val" if split == "test" else split
            raise UserError(
                f"{root}: its data.yaml names several places for {name}; list their images in a text file and name "
                f"that with --{option}_annotations"
            )
        if isinstance(text, str) and images is None:
            base = root / described["path"] if isinstance(described.get("path"), str) else root
            # Exports for training elsewhere name folders of that place; what they mean lies below this one.
            plain = text.removeprefix("../").removeprefix("./")
            for path in (base / text, root / plain, root / name / "images"):
                if path.exists():
                    return Source("yolo", split, root, path, path if path.is_dir() else root)
            raise UserError(f"{root}: its data.yaml names the images {text} for {name}, which are not there")
    for name in SPLIT_NAMES[split]:
        for path in (root / "images" / name, root / name / "images", root / name):
            if images is None and path.is_dir() and _has_images(path):
                return Source("yolo", split, root, path, path)
        if (root / f"{name}.txt").is_file():
            return Source("yolo", split, root, root / f"{name}.txt", images or root)
    return Source("yolo", split, root, images, images) if images is not None and images.is_dir() else None


# Reading


def read_source(source: Source, complain: Complain = refuse) -> dict:
    """The annotations of a split in the form above.

    ``complain`` is called with each problem in one line; what it concerns is left out when it returns.
    """
    reader = {"coco": _read_coco, "voc": _read_voc, "yolo": _read_yolo}[source.style]
    content = reader(source, complain)
    if not content["images"]:
        raise UserError(f"{source.annotations}: it lists no images")
    return content


def class_names(source: Source, content: dict) -> list[str]:
    """The classes of a dataset in order, from the annotations of one split and what the folder says.

    Raises UserError when there are none, or two of one name.
    """
    if source.style == "coco":
        names = [category["name"] for category in content["categories"]]
    elif source.style == "yolo":
        names = _yolo_names(source.root)
    else:
        names = _names_file(source.root) or sorted({str(category["name"]) for category in content["categories"]})
    _refuse_twins(source.annotations, names)
    if not names:
        raise UserError(f"{source.annotations}: there are no classes")
    return names


def _refuse_twins(path: Path, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{path}: the class {twice[0]} is there more than once")


def _read_coco(source: Source, complain: Complain) -> dict:
    content = read_annotation_file(source.annotations, complain)
    categories, ids = [], set()
    for category in content["categories"]:
        if not isinstance(category, dict) or not all(isinstance(category.get(k), (int, str)) for k in ("id", "name")):
            complain(f"{source.annotations}: a category has no id or no name: {str(category)[:80]}")
        elif category["id"] in ids:
            complain(f"{source.annotations}: the category id {category['id']} is there more than once")
        else:
            ids.add(category["id"])
            above = category.get("supercategory")
            above = str(above) if above not in (None, "", "none") else ""
            categories.append({**category, "name": str(category["name"]), "supercategory": above})
    used = {str(a.get("category_id")) for a in content["annotations"]}
    # Some tools put a heading above the classes: a category without objects that is the parent of the others.
    parents = {category["supercategory"] for category in categories}
    categories = [
        category
        for category in categories
        if str(category["id"]) in used or category["name"] not in parents or category["supercategory"]
    ]
    _refuse_twins(source.annotations, [category["name"] for category in categories])
    annotations = []
    for k, annotation in enumerate(content["annotations"], start=1):
        where = f"{source.annotations}: annotation {k}"
        if not isinstance(annotation.get("bbox"), list):
            complain(f"{where} has no bbox [x, y, width, height]")
            continue
        keys = [key for key in ("image_id", "category_id") if not is_id(annotation.get(key))]
        if keys:
            complain(f"{where} has the {keys[0]} {str(annotation.get(keys[0]))[:40]}")
            continue
        try:
            x, y, w, h = box = [float(value) for value in annotation["bbox"]]
            if not all(map(math.isfinite, box)):
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            complain(f"{where} has a bbox that is no box [x, y, width, height]: {str(annotation['bbox'])[:80]}")
            continue
        # What scoring needs and some tools leave out.
        filled = {"id": k, "iscrowd": 0, "area": w * h, "ignore": 0}
        filled.update((key, value) for key, value in annotation.items() if value is not None)
        annotations.append({**filled, "bbox": box})
    return {"images": content["images"], "annotations": annotations, "categories": categories}


def _read_voc(source: Source, complain: Complain) -> dict:
    if source.annotations.is_dir():
        files = sorted(source.annotations.glob("*.xml"))
    else:
        files = []
        for line in _lines(source.annotations):
            problem = name_problem(line)
            if problem is None:
                files.append(_voc_file(source.labels, line))
            else:
                complain(f"{source.annotations}: an image {problem}")
    images, annotations, names = [], [], set()
    for path in files:
        try:
            record = read_annotation(path, needs_size=False)
        except UserError as error:
            complain(str(error))
            continue
        image = _find_image(source.images, path.stem, record["filename"])
        images.append({"id": path.stem, "file_name": image, "width": record["width"], "height": record["height"]})
        for item in record["objects"]:
            left, top = item["xmin"] - 1, item["ymin"] - 1  # VOC counts pixels from 1
            box = [left, top, item["xmax"] - left, item["ymax"] - top]
            names.add(item["name"])
            annotations.append(_annotation(len(annotations) + 1, path.stem, item["name"], box, item["difficult"]))
    categories = [{"id": name, "name": name} for name in sorted(names)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _voc_file(folder: Path, line: str) -> Path:
    """The XML file of a line of an image set: a name, in sets of one class followed by a number."""
    whole = folder / f"{line}.xml"
    return whole if os.path.isfile(whole) else folder / f"{line.split()[0]}.xml"


def _find_image(folder: Path, stem: str, named: str) -> str:
    """The name of an XML file's image: its own with any ending, else the one that it states."""
    for ending in IMAGE_SUFFIXES:
        for name in (stem + ending, stem + ending.upper()):
            if (folder / name).is_file():
                return name
    stated = Path(named.replace("\\", "/")).name
    return stated if Path(stated).suffix else f"{stem}.jpg"


def _annotation(number: int, image_id, category_id, box: Sequence[float], difficult: int = 0) -> dict:
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": list(box),
        "area": box[2] * box[3],
        "iscrowd": 0,
        "ignore": difficult,
    }


def _read_yolo(source: Source, complain: Complain) -> dict:
    names = _yolo_names(source.root)
    images, annotations, labeled = [], [], 0
    for image in _yolo_images(source):
        file_name = str(image.relative_to(source.images)) if image.is_relative_to(source.images) else str(image)
        try:
            width, height = image_size(image)
        except UserError as error:
            complain(str(error))
            continue
        images.append({"id": file_name, "file_name": file_name, "width": width, "height": height})
        label = _yolo_label(source, image)
        lines = _lines(label) if label.is_file() else []  # an image without labels has no objects
        labeled += label.is_file()
        for number, line in enumerate(lines, start=1):
            try:
                cls, x, y, w, h = _yolo_box(line)
            except ValueError as error:
                complain(f"{label}: line {number} is no label ({error}): {line[:60]!r}")
                continue
            if not 0 <= cls < len(names):
                complain(f"{label}: line {number} has the class {cls}, there are {len(names)} names")
                continue
            box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
            annotations.append(_annotation(len(annotations) + 1, file_name, cls, box))
    if images and not labeled:
        raise UserError(f"{source.annotations}: none of the {len(images)} images has labels; looked for {label}")
    categories = [{"id": k, "name": name} for k, name in enumerate(names)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _yolo_images(source: Source) -> Iterable[Path]:
    if source.annotations.is_dir():
        return sorted(p for p in source.annotations.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    base = source.annotations.parent
    paths = []
    for line in _lines(source.annotations):
        # Lists made elsewhere begin with folders of that place; what follows them lies below this one.
        shorter = [source.root.joinpath(*Path(line).parts[k:]) for k in range(1, len(Path(line).parts))]
        candidates = [base / line, source.images / line, source.root / line, *shorter]
        paths.append(next((path for path in candidates if os.path.isfile(path)), candidates[0]))
    return paths


def _yolo_label(source: Source, image: Path) -> Path:
    """Where the labels of an image are: in the folder that was named, in ``labels/`` for ``images/``, or beside it."""
    if source.labels is not None:
        inside = image.relative_to(source.images) if image.is_relative_to(source.images) else Path(image.name)
        return (source.labels / inside).with_suffix(".txt")
    twin = _beside(image.parent, "images", "labels")
    return (twin or image.parent) / f"{image.stem}.txt"


def _yolo_box(line: str) -> tuple[int, float, float, float, float]:
    """Class, and center and size as shares of the image, of a label line: a box, or the corners of an outline."""
    parts = line.split()
    cls, values = float(parts[0]), [float(part) for part in parts[1:]]
    if not cls.is_integer():
        raise ValueError("the class is not a whole number")
    if not all(math.isfinite(value) for value in values):
        raise ValueError("not finite")
    if any(abs(value) > 1.5 for value in values):
        raise ValueError("coordinates are shares of the image, from 0 to 1")
    if len(values) == 4:
        x, y, w, h = values
    elif len(values) >= 6 and len(values) % 2 == 0:
        xs, ys = values[0::2], values[1::2]
        x, y, w, h = (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2, max(xs) - min(xs), max(ys) - min(ys)
    else:
        raise ValueError("needs a class and x, y, width, height")
    if w < 0 or h < 0:
        raise ValueError("a negative size")
    return int(cls), x, y, w, h


def _yolo_names(root: Path) -> list[str]:
    names = _names_file(root)
    if names:
        return names
    named = _read_yaml(root).get("names")
    if isinstance(named, dict):
        numbered = {str(number): name for number, name in named.items()}
        named = [numbered.get(str(number)) for number in range(len(numbered))]
        if None in named:
            raise UserError(f"{root}: the names in its data.yaml are not numbered from 0 without gaps")
    if isinstance(named, list) and named:
        return [str(name) for name in named]
    raise UserError(f"{root}: needs the names of the classes, one a line in {NAMES_FILES[0]}, or in data.yaml")


def _names_file(root: Path) -> list[str]:
    """The lines of a file of class names in the dataset's folder; none when there is no such file."""
    for path in (*(root / name for name in NAMES_FILES), *sorted(root.glob("*.names"))):
        if path.is_file():
            return _lines(path)
    return []


def _read_yaml(root: Path) -> dict:
    """The data.yaml of a YOLO dataset; empty when there is none."""
    paths = [path for pattern in ("data.yaml", "dataset.yaml", "data.yml") for path in root.glob(pattern)]
    if not paths:
        return {}
    try:
        import yaml
    except ImportError:
        if _names_file(root):
            return {}
        raise UserError(
            f"{paths[0]}: reading it needs `pip install pyyaml`; or write the class names, one a line, into "
            f"{root / NAMES_FILES[0]}"
        ) from None
    try:
        content = yaml.safe_load(paths[0].read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{paths[0]}: not a readable YAML file ({' '.join(str(error).split())})") from None
    return content if isinstance(content, dict) else {}


def _lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error})") from None
