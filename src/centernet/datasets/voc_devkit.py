"""The PASCAL VOC devkit (XML files and image sets) as COCO-style JSON, and its images in one folder.

Needs the standard library only, so that the data can be prepared before anything is installed.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

from centernet.errors import UserError
from centernet.utils import files

# In this order, because the ids of the merged file follow from it.
TRAINVAL_SETS = (("2012", "train"), ("2012", "val"), ("2007", "train"), ("2007", "val"))
TEST_SETS = (("2007", "test"),)
TRAINVAL_FILE = "pascal_trainval0712.json"


def annotation_file(year: str, image_set: str) -> str:
    """Name of the JSON file of one image set, such as ``pascal_train2007.json``."""
    return f"pascal_{image_set}{year}.json"


def _parse_xml(path: Path) -> ElementTree.Element:
    def refuse(*_):
        raise UserError(f"{path}: declares a document type or entities, which no VOC annotation needs; not read")

    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    # Entities can only be declared inside a DOCTYPE: refused there, nothing is ever expanded or fetched.
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(path.read_bytes(), True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such annotation file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (expat.ExpatError, LookupError, ValueError) as error:  # the last two: an unknown or false encoding
        raise UserError(f"{path}: not well-formed XML ({error})") from None
    return builder.close()


def _text(node: ElementTree.Element, tag: str, path: Path, default: str | None = None) -> str:
    text = (node.findtext(tag) or "").strip()
    if text:
        return text
    if default is None:
        raise UserError(f"{path}: <{node.tag}> has no <{tag}>")
    return default


def _integer(node: ElementTree.Element, tag: str, path: Path, default: str | None = None) -> int:
    text = _text(node, tag, path, default)
    try:
        return int(float(text))
    except (ValueError, OverflowError):
        raise UserError(f"{path}: <{tag}> is {text[:40]!r}, not a number") from None


def read_annotation(path: str | Path, needs_size: bool = True) -> dict:
    """One annotation file of VOC.

    Returns ``{"filename", "width", "height", "objects"}``; an object is ``{"name", "pose", "truncated", "difficult",
    "xmin", "ymin", "xmax", "ymax"}`` in the order of the file. Coordinates are whole pixels as VOC counts them: from 1,
    both ends inside the box. Two files of VOC2012 have fractions; they are cut off (281.7 → 281), as the usual readers
    do. A missing ``difficult`` or ``truncated`` is 0, a missing ``pose`` "Unspecified", a missing
    file name that of the XML file with .jpg.

    Raises UserError, naming the file, when it cannot be read, is not well-formed, declares a document type or entities,
    or lacks its size or the name or box of an object, and when a size or box is empty. With ``needs_size`` False a
    missing or empty size, which some labeling tools write, is None.
    """
    path = Path(path)
    root = _parse_xml(path)
    size = root.find("size")
    if size is None and needs_size:
        raise UserError(f"{path}: has no <size>")
    width, height = (0, 0) if size is None else (_integer(size, "width", path), _integer(size, "height", path))
    if width < 1 or height < 1:
        if needs_size:
            raise UserError(f"{path}: <size> is {width} x {height}")
        width = height = None

    objects = []
    for node in root.findall("object"):
        name = _text(node, "name", path)
        box = node.find("bndbox")
        if box is None:
            raise UserError(f"{path}: the object {name[:40]!r} has no <bndbox>")
        corners = {tag: _integer(box, tag, path) for tag in ("xmin", "ymin", "xmax", "ymax")}
        if corners["xmax"] < corners["xmin"] or corners["ymax"] < corners["ymin"]:
            raise UserError(f"{path}: the box of {name[:40]!r} ends before it begins: {list(corners.values())}")
        flags = {tag: _integer(node, tag, path, "0") for tag in ("truncated", "difficult")}
        objects.append({"name": name, "pose": _text(node, "pose", path, "Unspecified"), **flags, **corners})
    filename = _text(root, "filename", path, f"{path.stem}.jpg")
    return {"filename": filename, "width": width, "height": height, "objects": objects}


def _image_set_file(devkit: str | Path, year: str, image_set: str) -> Path:
    return Path(devkit) / f"VOC{year}" / "ImageSets" / "Main" / f"{image_set}.txt"


def _image_names(devkit: str | Path, year: str, image_set: str) -> list[str]:
    path = _image_set_file(devkit, year, image_set)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
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
    """One image set as a COCO-style dict with the keys images, type, annotations, categories.

    The image id is the number in the image's name without its underscore (000005 → 5, 2008_000002 → 2008000002), so
    the years do not collide. Category ids count from 1 in the order of ``class_names``, annotation ids from 1 in the
    order of the image set. ``bbox`` is ``[xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1]`` with its rectangle as
    ``segmentation``; ``ignore`` is VOC's ``difficult``; ``iscrowd`` is 0.

    Raises UserError for what read_annotation refuses, for a class that is not in ``class_names``, and for an image set
    that cannot be read, or names something twice or something that has no number.
    """
    category_ids = {name: number for number, name in enumerate(class_names, start=1)}
    images, annotations = [], []
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
    """Several converted image sets as one; the parts stay as they are.

    Images and annotations follow each other; an annotation id grows by the number of annotations of the parts before
    it; ``type`` and ``categories`` are the first part's. Raises UserError when there is no part, when a part lacks a
    key, when its categories differ from the first part's, and when two parts have the same image id.
    """
    if not parts:
        raise UserError("there is no annotation file to merge")
    images, annotations, seen = [], [], set()
    for number, part in enumerate(parts, start=1):
        where = f"annotation file {number} of {len(parts)} to merge"
        missing = [key for key in ("images", "type", "annotations", "categories") if key not in part]
        if missing:
            raise UserError(f"{where}: has no {', '.join(missing)}")
        if part["categories"] != parts[0]["categories"]:
            raise UserError(f"{where}: has other categories than the first")
        offset = len(annotations)
        try:
            annotations += [{**annotation, "id": annotation["id"] + offset} for annotation in part["annotations"]]
            image_ids = [image["id"] for image in part["images"]]
        except (KeyError, TypeError):
            raise UserError(f"{where}: an image or annotation in it has no id") from None
        for image_id in image_ids:
            if image_id in seen:
                raise UserError(f"{where}: the image id {image_id} is there a second time")
            seen.add(image_id)
        images += part["images"]
    first = parts[0]
    return {"images": images, "type": first["type"], "annotations": annotations, "categories": first["categories"]}


def read_json(path: str | Path) -> dict:
    """Return the object in a JSON file. Raises UserError when it cannot be read or holds no object."""
    data = files.read_json(path)
    if not isinstance(data, dict):
        raise UserError(f"{path}: holds a {type(data).__name__}, not an object with images and annotations")
    return data


def write_json(path: str | Path, data: dict) -> None:
    """Write ``data`` as JSON, and the folder if it is missing. Raises UserError when it cannot be written."""
    with files.write_errors(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, data)


def _counts(data: dict) -> str:
    return f"{len(data['images'])} images, {len(data['annotations'])} boxes"


def convert_devkit(
    devkit: str | Path, out_dir: str | Path, class_names: Sequence[str], log: Callable[[str], None] = print
) -> list[Path]:
    """Write the annotation files of every image set that ``devkit`` has; returns their paths.

    ``pascal_{train,val}{2012,2007}.json``, the merged ``pascal_trainval0712.json``, and ``pascal_test2007.json``. What
    the devkit lacks is said through ``log`` and left out of the merge. A file is replaced only by a whole one.
    Raises UserError for what convert_image_set refuses and for a devkit without any of these image sets.
    """
    out_dir = Path(out_dir)
    written = []

    def write(file_name: str, data: dict) -> None:
        write_json(out_dir / file_name, data)
        written.append(out_dir / file_name)
        log(f"{out_dir / file_name}: {_counts(data)}")

    present = [entry for entry in TRAINVAL_SETS + TEST_SETS if _image_set_file(devkit, *entry).is_file()]
    if not present:
        raise UserError(f"{devkit}: holds no VOC image set (looked for VOC2007 and VOC2012, ImageSets/Main/*.txt)")
    absent_years = [year for year in ("2007", "2012") if not (Path(devkit) / f"VOC{year}").is_dir()]
    for year in absent_years:
        log(f"VOC{year} is missing in {devkit}: going on without it")
    for year, image_set in TRAINVAL_SETS + TEST_SETS:
        if (year, image_set) not in present and year not in absent_years:
            log(f"{_image_set_file(devkit, year, image_set)} is missing: no {annotation_file(year, image_set)}")

    trainval = []
    for year, image_set in TRAINVAL_SETS:
        if (year, image_set) in present:
            trainval.append(convert_image_set(devkit, year, image_set, class_names))
            write(annotation_file(year, image_set), trainval[-1])
    if trainval:
        write(TRAINVAL_FILE, merge(trainval))
    for year, image_set in TEST_SETS:
        if (year, image_set) in present:
            write(annotation_file(year, image_set), convert_image_set(devkit, year, image_set, class_names))
    return written


def link_images(devkit: str | Path, images_dir: str | Path, log: Callable[[str], None] = print) -> int:
    """Show every image of VOC2007, then VOC2012 in ``images_dir``; returns how many images the devkit has.

    A hard link where the file system can, else a symbolic link, else a copy. An image that is there already with the
    same size is kept, so this can be run again. Raises UserError when the folder cannot be written, and when an image
    set names images that are in neither place: with the first of them and their number.
    """
    devkit, images_dir = Path(devkit), Path(images_dir)
    total = 0
    made: dict[str, int] = {}
    try:
        images_dir.mkdir(parents=True, exist_ok=True)
        for year in ("2007", "2012"):
            for source in sorted((devkit / f"VOC{year}" / "JPEGImages").glob("*.jpg")):
                how = files.link_or_copy(source, images_dir / source.name)
                total += 1
                if how:
                    made[how] = made.get(how, 0) + 1
    except OSError as error:
        raise UserError(f"{images_dir}: the images cannot be placed there ({error})") from None

    missing = []
    for year, image_set in TRAINVAL_SETS + TEST_SETS:
        if _image_set_file(devkit, year, image_set).is_file():
            names = _image_names(devkit, year, image_set)
            missing += [
                f"VOC{year}/JPEGImages/{name}.jpg" for name in names if not (images_dir / f"{name}.jpg").exists()
            ]
    if missing:
        raise UserError(f"{devkit}: images that the image sets name are missing: {missing[0]}, {len(missing)} in all")
    new = ", ".join(f"{number} by {how}" for how, number in made.items()) or "all there already"
    log(f"{images_dir}: {total} images of the devkit ({new})")
    return total
