"""Find the parts of your own dataset: which layout it has, and where each split is."""

from pathlib import Path

from ..errors import UserError
from .coco import CocoLayout
from .cvat import CvatLayout
from .labelme import LabelMeLayout, has_labelme
from .layout import Layout, option_of, read_lines
from .paths import PathFinder, counterpart, folders, has_images, is_image_name, walk
from .voc import VocLayout, base_of_image_set, has_xml, is_cvat
from .yolo import YoloLayout

# In the order in which they are looked for. YOLO comes last, because it requires only a folder of images.
LAYOUTS: dict[str, type[Layout]] = {
    layout.style: layout for layout in (CocoLayout, VocLayout, LabelMeLayout, CvatLayout, YoloLayout)
}
MAX_WRAPPERS = 3  # folders around the dataset, such as archives unpacked into a folder of the same name

DATA_SUFFIXES = (".json", ".xml", ".txt", ".yaml", ".yml", ".names", ".data")


def find_layout(
    root: Path,
    split: str,
    annotations: str = "",
    images: str = "",
    style: str | None = None,
    keypoints: bool = False,
) -> Layout | None:
    """Find ``split`` of the dataset in ``root``; return None if no layout matches.

    Args:
        root: the dataset's folder.
        split: train, val or test.
        annotations, images: what the user named, as a path or one below ``root``; empty: to be found.
        style: the only one to look for; None: all of ``LAYOUTS``.
        keypoints: prefer files of keypoints (``person_keypoints_*.json``), which are left out otherwise.

    Raises:
        UserError: a given path does not exist, several files match, or there are no images.
    """
    option = option_of(split)
    image_folder = named_path(root, images, f"--{option}_images")
    if annotations:
        path = named_path(root, annotations, f"--{option}_annotations")
        assert path is not None  # annotations is not empty
        return open_layout(root, split, path, image_folder)
    layouts = list(LAYOUTS.values()) if style is None else [LAYOUTS[style]]
    for folder in _wrapped(root):
        found: Layout | None = CocoLayout.find_keypoints(folder, split, image_folder) if keypoints else None
        if found is not None:
            return found
        doubtful: Layout | None = None
        for layout in layouts:
            found = layout.find(folder, split, image_folder)
            if found is not None and not found.is_doubtful:
                return found
            doubtful = doubtful or found
        if split == "train" and not _has_other_split(folder, layouts):
            for layout in layouts:
                found = layout.find_undivided(folder, image_folder)
                if found is not None:
                    return found
        if doubtful is not None:
            return doubtful
    return None


def _wrapped(root: Path) -> list[Path]:
    """Return ``root``, or the folder that it contains, while a folder contains only one folder (and a README)."""
    found = [root]
    for _ in range(MAX_WRAPPERS):
        inside = folders(found[-1])
        files = [path for path in found[-1].iterdir() if path.is_file()] if inside else []
        if len(inside) != 1 or any(path.suffix.lower() in DATA_SUFFIXES and not _is_readme(path) for path in files):
            break
        found.append(inside[0])
    return found


def _is_readme(path: Path) -> bool:
    return path.name.lower().startswith(("readme", "license", "."))


def _has_other_split(root: Path, layouts: list[type[Layout]]) -> bool:
    """Return whether test data exists, in which case data without splits is not used entirely for training."""
    try:
        found = [layout.find(root, "val", None) for layout in layouts]
    except UserError:
        return True
    return any(one is not None and not (isinstance(one, CocoLayout) and one.is_doubtful) for one in found)


def named_path(root: Path, text: str, option: str) -> Path | None:
    """Return the path that an option gives, below ``root`` or as given; None if it is empty.

    What exists below ``root`` comes first: the current directory may have a folder of the same name.

    Raises:
        UserError: it does not exist.
    """
    if not text:
        return None
    path = Path(text).expanduser()
    if (root / path).exists():  # root / path is path itself if it is absolute
        return root / path
    found = path if path.exists() else PathFinder([root]).find(text)
    if found is None:
        raise UserError(f"{option} {text}: no such file or folder, neither as given nor below {root}")
    return found


def open_layout(root: Path, split: str, path: Path, images: Path | None) -> Layout:
    """Return the layout of annotations given by the user."""
    option = option_of(split)
    suffix = path.suffix.lower()
    if path.is_dir():
        return _open_folder(root, split, path, images)
    if suffix == ".json":
        return CocoLayout.open(root, split, path, images)
    if suffix == ".xml" and is_cvat(path):
        return CvatLayout(root, split, path, images or path.parent)
    if suffix in (".yaml", ".yml"):
        return YoloLayout.describe(root, split, path)
    first = next(filter(None, read_lines(path)), "")
    # Lines of an image list are paths; those of a VOC image set may have extensions, too.
    if is_image_name(first) and base_of_image_set(path) is None:
        return YoloLayout.open(root, split, [path], images)
    if not first:
        raise UserError(f"--{option}_annotations {path}: it lists no images")
    return VocLayout.open(root, split, path, images)


def _open_folder(root: Path, split: str, path: Path, images: Path | None) -> Layout:
    option = option_of(split)
    if has_labelme(path):
        return LabelMeLayout(root, split, path, images or path)
    if has_xml(path):
        return VocLayout.open(root, split, path, images)
    if has_images(path):
        return YoloLayout.open(root, split, [path])
    if any(file.suffix.lower() == ".txt" for file in walk(path)):
        folder = images or counterpart(path, ("labels",), ("images",))
        if folder is None:
            raise UserError(f"--{option}_annotations {path}: specify the image directory with --{option}_images")
        return YoloLayout.open(root, split, [folder], labels=path)
    raise UserError(f"--{option}_annotations {path}: this folder holds neither XML files nor labels")
