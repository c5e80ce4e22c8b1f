"""PASCAL VOC: XML annotations, and the devkit converted to COCO-style JSON with its images in one folder.

Needs the standard library only, so that data can be prepared before anything is installed.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from xml.etree import ElementTree

from ..errors import UserError
from ..utils.files import link_or_copy, read_json, write_errors, write_json
from .preparation import prepare_once
from .xml_file import parse_xml, text_of

# fmt: off
CLASS_NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
# fmt: on
# In this order, because the ids of the merged file follow from it.
TRAINVAL_SETS = (("2012", "train"), ("2012", "val"), ("2007", "train"), ("2007", "val"))
TEST_SETS = (("2007", "test"),)
TRAINVAL_FILE = "pascal_trainval0712.json"
# Documents of the reference call the first file by the second name.
TEST_FILES = ("pascal_test2007.json", "pascal_test2017.json")

# Words that labeling tools write for flags.
FLAG_WORDS = {"true": 1, "yes": 1, "false": 0, "no": 0, "none": 0, "null": 0, "unspecified": 0}


def annotation_file(year: str, image_set: str) -> str:
    """Return the name of the JSON file of an image set, such as ``pascal_train2007.json``."""
    return f"pascal_{image_set}{year}.json"


# XML


def _number(element: ElementTree.Element, tag: str, path: Path, default: str | None = None) -> float:
    text = text_of(element, tag, path, default)
    try:
        number = float(text)
        int(number)  # raises if not finite
    except (ValueError, OverflowError):
        raise UserError(f"{path}: <{tag}> is {text[:40]!r}, not a number") from None
    return number


def _flag(element: ElementTree.Element, tag: str, path: Path) -> int:
    word = text_of(element, tag, path, "0").lower()
    return FLAG_WORDS[word] if word in FLAG_WORDS else int(_number(element, tag, path, "0"))


def read_annotation(
    path: str | Path,
    needs_size: bool = True,
    whole_pixels: bool = True,
    on_object_error: Callable[[UserError], None] | None = None,
) -> dict:
    """Read one annotation file of VOC.

    Args:
        path: the XML file.
        needs_size: refuse a missing or empty image size, which some labeling tools write; else it is None.
        whole_pixels: truncate coordinates to integers, as the usual readers do (two files of VOC2012 have fractions:
            281.7 becomes 281).
        on_object_error: called with the error of an object, which is left out; None: raise it.

    Returns:
        ``{"filename", "width", "height", "objects"}``; an object is ``{"name", "pose", "truncated", "difficult",
        "xmin", "ymin", "xmax", "ymax"}`` in the order of the file. Coordinates are pixels as VOC counts them: from 1,
        both ends inside the box. A missing ``difficult`` or ``truncated`` is 0, a missing ``pose`` "Unspecified", a
        missing file name that of the XML file with .jpg.

    Raises:
        UserError: the file cannot be read, is not well-formed, declares a document type or entities, lacks its size or
            the name or box of an object, or a size or box is empty.
    """
    path = Path(path)
    root = parse_xml(path)
    size = root.find("size")
    if size is None and needs_size:
        raise UserError(f"{path}: has no <size>")
    default = None if needs_size else "0"
    width: int | None
    height: int | None
    width, height = (
        (0, 0) if size is None else tuple(int(_number(size, tag, path, default)) for tag in ("width", "height"))
    )
    if width < 1 or height < 1:
        if needs_size:
            raise UserError(f"{path}: <size> is {width} x {height}")
        width = height = None

    objects = []
    for element in root.findall("object"):
        try:
            objects.append(_read_object(element, path, whole_pixels))
        except UserError as error:
            if on_object_error is None:
                raise
            on_object_error(error)
    filename = text_of(root, "filename", path, f"{path.stem}.jpg") if needs_size else _file_name(root, path)
    return {"filename": filename, "width": width, "height": height, "objects": objects}


def _file_name(root: ElementTree.Element, path: Path) -> str:
    """Return the stated file name; the bytes of an unknown encoding do not matter, since images are found by name."""
    return (root.findtext("filename") or "").strip() or f"{path.stem}.jpg"


def _read_object(element: ElementTree.Element, path: Path, whole_pixels: bool) -> dict:
    name = text_of(element, "name", path)
    box = element.find("bndbox")
    if box is None:
        raise UserError(f"{path}: the object {name[:40]!r} has no <bndbox>")
    corners = {tag: _number(box, tag, path) for tag in ("xmin", "ymin", "xmax", "ymax")}
    if whole_pixels:
        corners = {tag: int(value) for tag, value in corners.items()}
    if corners["xmax"] < corners["xmin"] or corners["ymax"] < corners["ymin"]:
        raise UserError(f"{path}: the box of {name[:40]!r} ends before it begins: {list(corners.values())}")
    flags = {tag: _flag(element, tag, path) for tag in ("truncated", "difficult")}
    return {"name": name, "pose": text_of(element, "pose", path, "Unspecified"), **flags, **corners}


# Conversion of the devkit


def _image_set_file(devkit: str | Path, year: str, image_set: str) -> Path:
    return Path(devkit) / f"VOC{year}" / "ImageSets" / "Main" / f"{image_set}.txt"


def image_sets(devkit: str | Path) -> list[tuple[str, str]]:
    """Return the (year, image set) pairs that ``devkit`` has, in the order of conversion."""
    return [entry for entry in TRAINVAL_SETS + TEST_SETS if _image_set_file(devkit, *entry).is_file()]


def check_image_sets(devkit: str | Path) -> list[tuple[str, str]]:
    """Return ``image_sets``. Raises UserError when there are none."""
    present = image_sets(devkit)
    if not present:
        raise UserError(f"{devkit}: holds no VOC image set (looked for VOC2007 and VOC2012, ImageSets/Main/*.txt)")
    return present


def _image_names(devkit: str | Path, year: str, image_set: str) -> list[str]:
    path = _image_set_file(devkit, year, image_set)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the image set cannot be read ({error})") from None
    names = [line.split()[0] for line in lines if line.strip()]
    for name in names:
        _image_id(name, path)
    return names


def _image_id(name: str, image_set_file: Path) -> int:
    digits = name.replace("_", "")
    if not (digits.isascii() and digits.isdigit()):
        raise UserError(f"{image_set_file}: {name[:40]!r} is not the name of a VOC image (000005 or 2008_000002)")
    return int(digits)


def convert_image_set(devkit: str | Path, year: str, image_set: str, class_names: Sequence[str]) -> dict:
    """Convert one image set to a COCO-style dict with the keys images, type, annotations, categories.

    The image id is the number in the image's name without its underscore (000005 becomes 5, 2008_000002 becomes
    2008000002), so that the years do not collide. Category ids count from 1 in the order of ``class_names``, annotation
    ids from 1 in the order of the image set. ``bbox`` is ``[xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1]``
    with its rectangle as ``segmentation``; ``ignore`` is VOC's ``difficult``; ``iscrowd`` is 0.

    Raises:
        UserError: errors of read_annotation, a class that is not in ``class_names``, or an image set that cannot be
            read, or names something twice or something that has no number.
    """
    category_ids = {name: number for number, name in enumerate(class_names, start=1)}
    images: list[dict] = []
    annotations: list[dict] = []
    seen = set()
    set_file = _image_set_file(devkit, year, image_set)
    for name in _image_names(devkit, year, image_set):
        image_id = _image_id(name, set_file)
        if image_id in seen:
            raise UserError(f"{set_file}: names the image {name} twice")
        seen.add(image_id)
        path = Path(devkit) / f"VOC{year}" / "Annotations" / f"{name}.xml"
        record = read_annotation(path)
        # The devkit finds an image by the name of its annotation; <filename> is not always kept up to date.
        images.append(
            {"file_name": f"{name}.jpg", "height": record["height"], "width": record["width"], "id": image_id}
        )
        for item in record["objects"]:
            if item["name"] not in category_ids:
                raise UserError(
                    f"{path}: the class {item['name'][:40]!r} is not one of the {len(category_ids)} known classes"
                )
            left, top, right, bottom = item["xmin"] - 1, item["ymin"] - 1, item["xmax"], item["ymax"]
            annotations.append(
                {
                    "segmentation": [[left, top, left, bottom, right, bottom, right, top]],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": 0,
                    "image_id": image_id,
                    "bbox": [left, top, right - left, bottom - top],
                    "category_id": category_ids[item["name"]],
                    "id": len(annotations) + 1,
                    "ignore": item["difficult"],
                }
            )
    categories = [{"supercategory": "none", "id": number, "name": name} for name, number in category_ids.items()]
    return {"images": images, "type": "instances", "annotations": annotations, "categories": categories}


def merge(parts: list[dict]) -> dict:
    """Merge converted image sets into one; the parts stay as they are.

    Images and annotations follow each other; an annotation id grows by the number of annotations of the parts before
    it; ``type`` and ``categories`` are the first part's.

    Raises:
        UserError: no part is given, a part lacks a key, its categories differ from the first part's, or two parts have
            the same image id.
    """
    if not parts:
        raise UserError("no annotation files to merge")
    images: list[dict] = []
    annotations: list[dict] = []
    seen = set()
    for number, part in enumerate(parts, start=1):
        where = f"annotation file {number} of {len(parts)} to merge"
        missing = [key for key in ("images", "type", "annotations", "categories") if key not in part]
        if missing:
            raise UserError(f"{where}: has no {', '.join(missing)}")
        if part["categories"] != parts[0]["categories"]:
            raise UserError(f"{where}: its categories differ from those of the first")
        offset = len(annotations)
        try:
            annotations += [{**annotation, "id": annotation["id"] + offset} for annotation in part["annotations"]]
            image_ids = [image["id"] for image in part["images"]]
        except (KeyError, TypeError):
            raise UserError(f"{where}: an image or annotation in it has no id") from None
        for image_id in image_ids:
            if image_id in seen:
                raise UserError(f"{where}: duplicate image id {image_id}")
            seen.add(image_id)
        images += part["images"]
    first = parts[0]
    return {"images": images, "type": first["type"], "annotations": annotations, "categories": first["categories"]}


def merge_files(folder: Path) -> tuple[Path, dict]:
    """Merge the four training files in ``folder`` into ``pascal_trainval0712.json``; return its path and content."""
    parts = []
    for entry in TRAINVAL_SETS:
        parts.append(read_json(folder / annotation_file(*entry)))
        if not isinstance(parts[-1], dict):
            raise UserError(f"{folder / annotation_file(*entry)}: not an object with images and annotations")
    target, merged = folder / TRAINVAL_FILE, merge(parts)
    write_json(target, merged)
    return target, merged


def convert_devkit(
    devkit: str | Path,
    out_dir: str | Path,
    class_names: Sequence[str] = CLASS_NAMES,
    log: Callable[[str], None] = print,
    overwrite: bool = True,
) -> list[Path]:
    """Write the annotation files of every image set that ``devkit`` has; return their paths.

    ``pascal_{train,val}{2012,2007}.json``, the merged ``pascal_trainval0712.json``, and ``pascal_test2007.json``.
    Everything is read before the first file is written. Missing years and image sets are logged and left out.

    Args:
        devkit: the folder VOCdevkit.
        out_dir: the folder of the files.
        class_names: in the order of the category ids.
        log: takes one line of text.
        overwrite: replace existing files; else keep them.

    Raises:
        UserError: errors of convert_image_set, or a devkit without any of these image sets.
    """
    out_dir = Path(out_dir)
    present = check_image_sets(devkit)
    absent_years = [year for year in ("2007", "2012") if not (Path(devkit) / f"VOC{year}").is_dir()]
    for year in absent_years:
        log(f"VOC{year} is missing in {devkit}: continuing without it")
    for year, image_set in TRAINVAL_SETS + TEST_SETS:
        if (year, image_set) not in present and year not in absent_years:
            log(f"{_image_set_file(devkit, year, image_set)} is missing: no {annotation_file(year, image_set)}")

    contents = {}
    for entry in TRAINVAL_SETS:
        if entry in present:
            contents[annotation_file(*entry)] = convert_image_set(devkit, *entry, class_names)
    if contents:
        contents[TRAINVAL_FILE] = merge(list(contents.values()))
    for entry in TEST_SETS:
        if entry in present:
            contents[annotation_file(*entry)] = convert_image_set(devkit, *entry, class_names)
    with write_errors(out_dir):
        out_dir.mkdir(parents=True, exist_ok=True)
    written = []
    for name, content in contents.items():
        path = out_dir / name
        if overwrite or not path.is_file():
            write_json(path, content)
            written.append(path)
            log(f"{path}: {len(content['images'])} images, {len(content['annotations'])} boxes")
    return written


def link_images(devkit: str | Path, images_dir: str | Path, log: Callable[[str], None] = print) -> int:
    """Link every image of VOC2007, then VOC2012 into ``images_dir``; return how many images the devkit has.

    A hard link where the file system supports it, else a symbolic link, else a copy. An existing image of the same size
    is kept, so this can be run again.

    Raises:
        UserError: the folder cannot be written, or an image set names images that are in neither place.
    """
    devkit, images_dir = Path(devkit), Path(images_dir)
    total = 0
    made: dict[str, int] = {}
    try:
        images_dir.mkdir(parents=True, exist_ok=True)
        for year in ("2007", "2012"):
            for source in sorted((devkit / f"VOC{year}" / "JPEGImages").glob("*.jpg")):
                how = link_or_copy(source, images_dir / source.name)
                total += 1
                if how:
                    made[how] = made.get(how, 0) + 1
    except OSError as error:
        raise UserError(f"{images_dir}: the images cannot be placed there ({error})") from None

    missing = []
    for year, image_set in image_sets(devkit):
        names = _image_names(devkit, year, image_set)
        missing += [f"VOC{year}/JPEGImages/{name}.jpg" for name in names if not (images_dir / f"{name}.jpg").exists()]
    if missing:
        raise UserError(f"{devkit}: images that the image sets name are missing: {missing[0]}, {len(missing)} in all")
    new = ", ".join(f"{number} by {how}" for how, number in made.items()) or "all existed"
    log(f"{images_dir}: {total} images of the devkit ({new})")
    return total


def find_devkit(folder: Path) -> Path | None:
    """Return the VOCdevkit folder: ``folder`` itself or the one in it; None if there is none."""
    for devkit in (folder / "VOCdevkit", folder):
        if any((devkit / year / "Annotations").is_dir() for year in ("VOC2007", "VOC2012")):
            return devkit
    return None


def prepare(folder: Path, class_names: Sequence[str] = CLASS_NAMES, log: Callable[[str], None] = print) -> None:
    """Convert the devkit in ``folder`` into ``annotations/`` and ``images/`` where something of it is missing.

    Raises:
        UserError: there is neither an annotation file nor a devkit, or the conversion fails.
    """
    annotations, devkit = folder / "annotations", find_devkit(folder)
    if devkit is None:
        if any(annotations.glob("pascal_*.json")):
            return
        raise UserError(f"{folder}: no annotations/pascal_*.json and no VOCdevkit; see docs/DATA.md")

    def is_complete() -> bool:
        present = {*image_sets(devkit)}
        trainval = (annotations / TRAINVAL_FILE).is_file() or present.isdisjoint(TRAINVAL_SETS)
        test = any((annotations / name).is_file() for name in TEST_FILES) or present.isdisjoint(TEST_SETS)
        return trainval and test and (folder / "images").is_dir() and any(annotations.glob("pascal_*.json"))

    def make(overwrite: bool) -> None:
        log(f"{folder}: converting {devkit} (once)")
        link_images(devkit, folder / "images", log=log)
        convert_devkit(devkit, annotations, class_names, log=log, overwrite=overwrite)

    prepare_once(folder, "pascal", is_complete, make)
