"""PASCAL VOC 07+12: trained on trainval, validated on test 2007.

``voc/annotations/pascal_trainval0712.json``, ``pascal_test2007.json`` and ``voc/images/``; when they are missing and
there is a ``VOCdevkit``, they are made from it.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..conversion import voc_devkit
from ..evaluation import voc
from ..utils import files
from .base import IMAGENET_MEAN, IMAGENET_STD, CocoStyleDataset


class PascalVOC(CocoStyleDataset):
    """The 20 classes of VOC."""

    name = "pascal"
    folder_names: tuple[str, ...] = ("voc", "VOC")
    class_names: Sequence[str] = voc_devkit.CLASS_NAMES
    category_ids: Sequence[int | str] = tuple(range(1, 21))
    # RGB statistics, applied to BGR images: what the reference does and what its weights expect.
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    default_resolution = (384, 384)
    max_objs = 50
    score_names: tuple[str, ...] = ("mAP",)

    train_file = voc_devkit.TRAINVAL_FILE
    val_files = voc_devkit.TEST_FILES

    @classmethod
    def is_root(cls, folder: Path) -> bool:
        return (folder / "annotations").is_dir() or voc_devkit.find_devkit(folder) is not None

    @classmethod
    def prepare(cls, folder: Path, log=print) -> None:
        """Convert a VOCdevkit into ``annotations/`` and ``images/`` where something of these is missing."""
        voc_devkit.prepare(folder, cls.class_names, log)

    def find_annotations(self, folder: Path, split: str) -> Path:
        names = (self.train_file,) if split == "train" else self.val_files
        paths = [folder / "annotations" / name for name in names]
        return next((path for path in paths if path.is_file()), paths[0])

    def find_images(self, folder: Path, split: str) -> Path:
        return folder / "images"

    def order(self, images: list[dict]) -> list[dict]:
        return sorted(images, key=lambda image: image["id"])

    def save_results(self, results: dict[int | str, dict[int, np.ndarray]], path: Path) -> Path:
        files.write_json(path, voc.to_results(results, self.image_ids, len(self.class_names)), allow_nan=False)
        return path

    def evaluate(self, results: dict[int | str, dict[int, np.ndarray]]) -> dict[str, float]:
        truth, found = self.ground_truth(), voc.by_class(results, self.image_ids, len(self.class_names))
        scores = voc.evaluate(truth, found, self.class_names)
        return {"mAP": scores["mean_ap"], **{f"AP/{name}": value for name, value in scores["ap"].items()}}

    def ground_truth(self) -> list[list[dict]]:
        """Return the objects of each image for the official evaluation, with the 1-based corners of the XML files."""
        names = dict(zip(self.category_ids, self.class_names, strict=True))
        return voc.ground_truth(self.filtered_annotations()["annotations"], self.image_ids, names)
