"""The KITTI object benchmark (label, camera and image files) converted to COCO-style JSON, and its folders arranged.

Needs the standard library only, so that data can be prepared before anything is installed. The folder of the
benchmark, ``data/kitti``, holds ``training/{image_2,label_2,calib}``, ``testing/{image_2,calib}`` and the image sets
``ImageSets_{3dop,subcnn}/{train,val,trainval,test}.txt``; ``ImageSets_NAME`` holds a split of your own.
"""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import UserError
from ..evaluation.kitti_text import CLASS_NAMES, read_calib, read_image_names, read_label_lines
from ..utils.files import link_or_copy, write_bytes, write_errors, write_json
from .preparation import prepare_once

PUBLISHED_SPLITS = ("3dop", "subcnn")
PARTS = ("train", "val")
CATEGORIES = tuple({"name": name, "id": number} for number, name in enumerate(CLASS_NAMES, start=1))
NO_OBJECT = "DontCare"


def annotation_file(split: str, part: str) -> str:
    """Return the name of a JSON file: ``kitti_3dop_train.json``; ``kitti_trainval.json`` or ``kitti_test.json``."""
    return f"kitti_{split}_{part}.json" if part in PARTS else f"kitti_{part}.json"


def image_set_file(root: str | Path, split: str, part: str) -> Path:
    """Return the path of the list of the images of one part of one split."""
    return Path(root) / f"ImageSets_{split}" / f"{part}.txt"


def check_split_name(split: str) -> None:
    """Raise UserError for a split name that cannot be part of a file name."""
    if not re.fullmatch(r"\w[\w.-]{0,99}", split):
        raise UserError(f"--kitti_split {split[:40]!r}: not a name; ImageSets_NAME holds the lists of the split NAME")


def find_splits(root: str | Path) -> list[str]:
    """Return the names of the splits of which ``root`` has an ``ImageSets_NAME``, the published ones first."""
    own = sorted(path.name.removeprefix("ImageSets_") for path in Path(root).glob("ImageSets_*") if path.is_dir())
    return [*PUBLISHED_SPLITS, *(name for name in own if name not in PUBLISHED_SPLITS)]


def image_sets(root: str | Path) -> list[tuple[str, str]]:
    """Return the (split, train | val) pairs that ``root`` has lists of."""
    return [
        (split, part) for split in find_splits(root) for part in PARTS if image_set_file(root, split, part).is_file()
    ]


def check_image_sets(root: str | Path) -> list[tuple[str, str]]:
    """Return ``image_sets``. Raises UserError when there are none."""
    present = image_sets(root)
    if not present:
        raise UserError(f"{root}: holds no image set of KITTI (looked for ImageSets_{{3dop,subcnn}}/{{train,val}}.txt)")
    return present


def convert_images(
    root: str | Path, names: Sequence[str], labeled: bool = True, log: Callable[[str], None] = print
) -> dict:
    """Convert the images ``names`` of ``training`` (or of ``testing``, not ``labeled``) to a COCO-style dict.

    Keys images, annotations, categories. An image is ``{"file_name": "000007.png", "id": 7, "calib"}`` with the 3 x 4
    matrix P2. Category ids count from 1 in the order of ``CLASS_NAMES``, annotation ids from 1 in the order of names
    and lines. An annotation has ``image_id``, ``id``, ``category_id``, ``dim`` [height, width, length] and ``location``
    [x, y, z] in meters, ``bbox`` [x1, y1, x2 - x1, y2 - y1], ``depth`` (z), ``alpha``, ``rotation_y``, ``truncated``
    (the fraction of the label file; the reference truncates it to an integer) and ``occluded``. DontCare regions are
    annotations too.

    An object behind the camera is logged, with file and line, and kept.

    Raises:
        UserError: a file is missing, and errors of ``read_label_lines`` and ``read_calib``.
    """
    subfolder = Path(root) / ("training" if labeled else "testing")
    images: list[dict] = []
    annotations: list[dict] = []
    for name in names:
        image_id = int(name)
        images.append(
            {"file_name": f"{name}.png", "id": image_id, "calib": read_calib(subfolder / "calib" / f"{name}.txt")}
        )
        path = subfolder / "label_2" / f"{name}.txt"
        for line in read_label_lines(path) if labeled else ():
            alpha, x1, y1, x2, y2, height, width, length, x, y, z, rotation_y = line.numbers
            if z <= 0 and line.name != NO_OBJECT:
                log(f"{path}: line {line.line}: this {line.name} lies behind the camera (z = {z:g} m); kept unchanged")
            annotations.append(
                {
                    "image_id": image_id,
                    "id": len(annotations) + 1,
                    "category_id": CLASS_NAMES.index(line.name) + 1,
                    "dim": [height, width, length],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "depth": z,
                    "alpha": alpha,
                    "truncated": line.truncated,
                    "occluded": line.occluded,
                    "location": [x, y, z],
                    "rotation_y": rotation_y,
                }
            )
    return {"images": images, "annotations": annotations, "categories": list(CATEGORIES)}


def convert_devkit(
    root: str | Path,
    out_dir: str | Path | None = None,
    log: Callable[[str], None] = print,
    overwrite: bool = True,
) -> list[Path]:
    """Write the annotation files of every image set that ``root`` has into ``out_dir``; return their paths.

    ``kitti_NAME_{train,val}.json`` of each ``ImageSets_NAME``, and of the first split that lists them
    ``kitti_trainval.json`` and ``kitti_test.json`` (images of ``testing``, without annotations). Everything is read
    before the first file is written. Missing lists are logged.

    Args:
        root: the folder of the benchmark.
        out_dir: ``root/annotations`` by default.
        log: takes one line of text.
        overwrite: replace existing files; else keep them.

    Raises:
        UserError: errors of ``convert_images``, an image set with invalid or duplicate names, or a folder without
            any train or val list.
    """
    root = Path(root)
    out_dir = root / "annotations" if out_dir is None else Path(out_dir)
    present = check_image_sets(root)
    for split in find_splits(root):
        for part in PARTS:
            if (split, part) not in present:
                log(f"{image_set_file(root, split, part)} is missing: no {annotation_file(split, part)}")
    for part, subfolder in (("trainval", "training"), ("test", "testing")):
        if _split_listing(root, part) is None:
            log(f"no ImageSets_*/{part}.txt in {root}: no {annotation_file('', part)}")
        elif not (root / subfolder / "calib").is_dir():
            log(f"{root / subfolder / 'calib'} is missing: no {annotation_file('', part)}")
    contents = {}
    for split, part in wanted_parts(root):
        path = out_dir / annotation_file(split, part)
        if overwrite or not path.is_file():
            names = read_image_names(image_set_file(root, split, part))
            contents[path] = convert_images(root, names, labeled=part != "test", log=log)
    with write_errors(out_dir):
        out_dir.mkdir(parents=True, exist_ok=True)
    for path, content in contents.items():
        write_json(path, content)
        log(f"{path}: {len(content['images'])} images, {len(content['annotations'])} annotations")
    return list(contents)


def _split_listing(root: Path, part: str) -> str | None:
    return next((split for split in find_splits(root) if image_set_file(root, split, part).is_file()), None)


def wanted_parts(root: Path) -> list[tuple[str, str]]:
    """Return the (split, part) pairs that can be converted: of all splits, then trainval and test of the first."""
    parts = image_sets(root)
    for part, subfolder in (("trainval", "training"), ("test", "testing")):
        split = _split_listing(root, part)
        if split is not None and (root / subfolder / "calib").is_dir():
            parts.append((split, part))
    return parts


def prepare(folder: Path, log: Callable[[str], None] = print) -> None:
    """Convert the label files in ``folder`` and arrange its images where something of it is missing.

    Raises:
        UserError: there are neither annotation files nor label files, or the conversion fails.
    """
    annotations, has_labels = folder / "annotations", (folder / "training" / "label_2").is_dir()
    if not has_labels:
        if any(annotations.glob("kitti_*.json")):
            return
        raise UserError(f"{folder}: no annotations/kitti_*.json and no training/label_2; see docs/DATA.md")

    def is_complete() -> bool:
        # kitti_trainval.json and kitti_test.json are extras: files made for the reference may lack them.
        needed = [annotations / annotation_file(*entry) for entry in image_sets(folder)]
        return all(path.is_file() for path in needed) and any(annotations.glob("kitti_*.json"))

    def make(overwrite: bool) -> None:
        log(f"{folder}: converting the label files (once)")
        if (folder / "training" / "image_2").is_dir():
            arrange(folder, log=log)
        convert_devkit(folder, annotations, log=log, overwrite=overwrite)

    prepare_once(folder, "kitti", is_complete, make)


def arrange(root: str | Path, log: Callable[[str], None] = print) -> None:
    """Make the folders next to KITTI's own: ``images/{trainval,test}`` and ``training/label_val``.

    ``images/trainval`` and ``images/test`` show the images of ``training`` and ``testing``: a symbolic link of the
    folder where the file system supports it, else hard links or copies of the images. ``training/label_val`` has copies
    of the label files of all images that any split validates on. Existing files are kept; this can be run again.

    Raises:
        UserError: something cannot be written, or an image or label that an image set names is missing.
    """
    root = Path(root)
    for part, subfolder in (("trainval", "training"), ("test", "testing")):
        source = root / subfolder / "image_2"
        if source.is_dir():
            _show_folder(source, root / "images" / part, log)
        elif part == "trainval":
            raise UserError(f"{source}: no such folder with KITTI's images")
    names = set()
    for split, part in image_sets(root):
        path = image_set_file(root, split, part)
        listed = read_image_names(path)
        missing = [name for name in listed if not (root / "training" / "image_2" / f"{name}.png").is_file()]
        if missing:
            raise UserError(
                f"{path}: images that it names are missing in {root / 'training' / 'image_2'}: "
                f"{missing[0]}.png, {len(missing)} in all"
            )
        names |= set(listed) if part == "val" else set()
    target = root / "training" / "label_val"
    copied = 0
    for name in sorted(names):
        copied += _copy_label(root / "training" / "label_2" / f"{name}.txt", target / f"{name}.txt")
    log(f"{target}: {len(names)} label files ({copied} new)")


def _copy_label(source: Path, target: Path) -> bool:
    """Copy a file unless an equal one exists; return whether it was copied."""
    try:
        content = source.read_bytes()
        if target.is_file() and target.read_bytes() == content:
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError:
        raise UserError(f"{source}: no such label file") from None
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror})") from None
    write_bytes(target, content)
    return True


def _show_folder(source: Path, target: Path, log: Callable[[str], None]) -> None:
    """Make ``target`` show the images of ``source``."""
    try:
        if target.exists() and target.samefile(source):
            return None
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_symlink() and not target.exists():
            target.unlink(missing_ok=True)  # it pointed to the former location of the data
        if not target.exists():
            try:
                # Relative, so that the data folder can be moved as a whole.
                target.symlink_to(os.path.relpath(source.resolve(), target.parent.resolve()), target_is_directory=True)
                log(f"{target}: symbolic link to {source}")
                return None
            except FileExistsError:  # another process was faster
                return _show_folder(source, target, log)
            except OSError:
                target.mkdir(exist_ok=True)
        made = [link_or_copy(image, target / image.name) for image in sorted(source.glob("*.png"))]
        log(f"{target}: {sum(how is not None for how in made)} new images of {source}")
    except OSError as error:
        raise UserError(f"{target}: the images of {source} cannot be placed there ({error.strerror})") from None
