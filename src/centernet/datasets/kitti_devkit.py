"""The KITTI object benchmark (label, camera and image files) as COCO-style JSON, and its folders in their places.

Needs the standard library only, so that the data can be prepared before anything is installed. The folder of the
benchmark, ``data/kitti``, holds ``training/{image_2,label_2,calib}``, ``testing/{image_2,calib}`` and the image sets
``ImageSets_{3dop,subcnn}/{train,val,trainval,test}.txt``.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from centernet.errors import UserError
from centernet.evaluation.kitti_text import CLASS_NAMES, read_calib, read_image_names, read_label_lines
from centernet.utils import files

SPLITS = ("3dop", "subcnn")
PARTS = ("train", "val")
CATEGORIES = tuple({"name": name, "id": number} for number, name in enumerate(CLASS_NAMES, start=1))
NO_OBJECT = "DontCare"


def annotation_file(split: str, part: str) -> str:
    """Name of a JSON file: ``kitti_3dop_train.json``; ``kitti_trainval.json`` and ``kitti_test.json`` of any split."""
    return f"kitti_{split}_{part}.json" if part in PARTS else f"kitti_{part}.json"


def image_set_file(root: str | Path, split: str, part: str) -> Path:
    """The list of the images of one part of one split."""
    return Path(root) / f"ImageSets_{split}" / f"{part}.txt"


def convert_images(
    root: str | Path, names: Sequence[str], labeled: bool = True, log: Callable[[str], None] = print
) -> dict:
    """The images ``names`` of ``training`` (or of ``testing``, not ``labeled``) as a COCO-style dict.

    Keys images, annotations, categories. An image is ``{"file_name": "000007.png", "id": 7, "calib"}`` with the 3 x 4
    matrix P2. Category ids count from 1 in the order of ``CLASS_NAMES``, annotation ids from 1 in the order of names
    and lines. An annotation has ``image_id``, ``id``, ``category_id``, ``dim`` [height, width, length] and ``location``
    [x, y, z] in meters, ``bbox`` [x1, y1, x2 - x1, y2 - y1], ``depth`` (z), ``alpha``, ``rotation_y``, ``truncated``
    (a share; the reference cuts it off to a whole number) and ``occluded``. DontCare regions are annotations too.

    An object behind the camera is said through ``log``, with file and line, and kept.

    Raises UserError for a missing file and for what ``read_label_lines`` and ``read_calib`` refuse.
    """
    home = Path(root) / ("training" if labeled else "testing")
    images, annotations = [], []
    for name in names:
        image_id = int(name)
        images.append({"file_name": f"{name}.png", "id": image_id, "calib": read_calib(home / "calib" / f"{name}.txt")})
        path = home / "label_2" / f"{name}.txt"
        for line in read_label_lines(path) if labeled else ():
            alpha, x1, y1, x2, y2, height, width, length, x, y, z, rotation_y = line.numbers
            if z <= 0 and line.name != NO_OBJECT:
                log(f"{path}: line {line.line}: this {line.name} lies behind the camera (z = {z:g} m); kept as it is")
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
    root: str | Path, out_dir: str | Path | None = None, log: Callable[[str], None] = print
) -> list[Path]:
    """Write the annotation files of every image set that ``root`` has into ``out_dir``; returns their paths.

    ``kitti_{3dop,subcnn}_{train,val}.json``, and of the first split that lists them ``kitti_trainval.json`` and
    ``kitti_test.json`` (images of ``testing``, without annotations). ``out_dir`` is ``root/annotations`` by default.
    What is missing is said through ``log``. A file is replaced only by a whole one.

    Raises UserError for what ``convert_images`` refuses, for an image set with names that are none or are there
    twice, and for a folder without any train or val list.
    """
    root = Path(root)
    out_dir = root / "annotations" if out_dir is None else Path(out_dir)
    written = []

    def write(split: str, part: str, labeled: bool = True) -> None:
        data = convert_images(root, read_image_names(image_set_file(root, split, part)), labeled, log)
        path = out_dir / annotation_file(split, part)
        with files.write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, data)
        written.append(path)
        log(f"{path}: {len(data['images'])} images, {len(data['annotations'])} annotations")

    present = [(split, part) for split in SPLITS for part in PARTS if image_set_file(root, split, part).is_file()]
    if not present:
        raise UserError(f"{root}: holds no image set of KITTI (looked for ImageSets_{{3dop,subcnn}}/{{train,val}}.txt)")
    for split in SPLITS:
        for part in PARTS:
            if (split, part) in present:
                write(split, part)
            else:
                log(f"{image_set_file(root, split, part)} is missing: no {annotation_file(split, part)}")
    for part, home in (("trainval", "training"), ("test", "testing")):
        split = next((split for split in SPLITS if image_set_file(root, split, part).is_file()), None)
        if split is None:
            log(f"no ImageSets_*/{part}.txt in {root}: no {annotation_file('', part)}")
        elif not (root / home / "calib").is_dir():
            log(f"{root / home / 'calib'} is missing: no {annotation_file(split, part)}")
        else:
            write(split, part, labeled=part == "trainval")
    return written


def arrange(root: str | Path, log: Callable[[str], None] = print) -> None:
    """Make the folders beside KITTI's own: ``images/{trainval,test}`` and ``training/label_val``.

    ``images/trainval`` and ``images/test`` show the images of ``training`` and ``testing``: a symbolic link of the
    folder where the file system can, else hard links or copies of the images. ``training/label_val`` has copies of
    the label files of all images that any split validates on. What is there already is kept; this can be run again.

    Raises UserError when something cannot be written, and when an image or label that an image set names is missing.
    """
    root = Path(root)
    for part, home in (("trainval", "training"), ("test", "testing")):
        source = root / home / "image_2"
        if source.is_dir():
            _show_folder(source, root / "images" / part, log)
        elif part == "trainval":
            raise UserError(f"{source}: there is no such folder with KITTI's images")
    names = set()
    for split in SPLITS:
        for part in PARTS:
            path = image_set_file(root, split, part)
            listed = read_image_names(path) if path.is_file() else []
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
    """Copy a file unless the same is there; returns whether it was copied."""
    try:
        content = source.read_bytes()
        if target.is_file() and target.read_bytes() == content:
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(target, content)
    except FileNotFoundError:
        raise UserError(f"{source}: there is no such label file") from None
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror})") from None
    return True


def _show_folder(source: Path, target: Path, log: Callable[[str], None]) -> None:
    """Make ``target`` show the images of ``source``."""
    try:
        if target.exists() and target.samefile(source):
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_symlink() and not target.exists():
            target.unlink()  # it pointed to where the data was
        if not target.exists():
            try:
                # Relative, so that the data folder can be moved as a whole.
                target.symlink_to(os.path.relpath(source.resolve(), target.parent.resolve()), target_is_directory=True)
                log(f"{target}: symbolic link to {source}")
                return
            except OSError:
                target.mkdir()
        new = sum(files.link_or_copy(image, target / image.name) is not None for image in sorted(source.glob("*.png")))
        log(f"{target}: {new} new images of {source}")
    except OSError as error:
        raise UserError(f"{target}: the images of {source} cannot be placed there ({error.strerror})") from None
