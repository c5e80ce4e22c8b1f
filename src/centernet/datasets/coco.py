"""COCO 2017 detection: ``coco/annotations/instances_{train,val}2017.json``, ``coco/{train,val}2017/``."""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pycocotools.coco

from ..conversion import coco_extreme
from ..conversion.coco_file import read_annotation_file
from ..conversion.issues import Report, raise_error
from ..evaluation import coco as coco_evaluation
from ..utils import files
from .base import CocoStyleDataset

# Of pixels in BGR order, like the images.
COCO_MEAN = (0.40789654, 0.44719302, 0.47026115)
COCO_STD = (0.28863828, 0.27408164, 0.27809835)

TEST_FILE = "image_info_test-dev2017.json"  # of test.py --trainval; without annotations


class COCO(CocoStyleDataset):
    """The 80 classes of COCO."""

    name = "coco"
    folder_names: tuple[str, ...] = ("coco",)
    tasks: tuple[str, ...] = ("ctdet", "exdet")
    # fmt: off
    class_names: Sequence[str] = (
        "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
        "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
        "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
        "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
        "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
        "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
        "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
        "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear",
        "hair drier", "toothbrush",
    )
    category_ids: Sequence[int | str] = (
        *range(1, 12), *range(13, 26), 27, 28, *range(31, 45), *range(46, 66), 67, 70, *range(72, 83), *range(84, 91),
    )
    # fmt: on
    mean: tuple[float, ...] = COCO_MEAN
    std: tuple[float, ...] = COCO_STD
    default_resolution = (512, 512)
    max_objs = 128
    score_names: tuple[str, ...] = coco_evaluation.BOX_SCORES
    scored_fields: tuple[str, ...] = ("area", "iscrowd")

    def find_annotations(self, folder: Path, split: str) -> Path:
        if split == "test":
            return folder / "annotations" / TEST_FILE
        instances = folder / "annotations" / f"instances_{split}2017.json"
        return coco_extreme.extreme_file(instances) if self.opt.annotations == "exdet" else instances

    def find_images(self, folder: Path, split: str) -> Path:
        return folder / f"{split}2017"

    def read_content(self, report: Report = raise_error) -> dict:
        if self.split == "test":
            return read_annotation_file(self.annotation_file, report, annotated=False)
        if self.opt.annotations == "exdet":  # its points are found once, in the segmentations
            coco_extreme.prepare(self.folder / "annotations" / f"instances_{self.split}2017.json")
        return super().read_content(report)

    def save_results(self, results: dict[int | str, dict[int, np.ndarray]], path: Path) -> Path:
        files.write_json(path, self._to_results(results), allow_nan=False)
        return path

    def evaluate(self, results: dict[int | str, dict[int, np.ndarray]]) -> dict[str, float]:
        if self.split == "test":  # scored by COCO's evaluation server
            return {}
        ground_truth = pycocotools.coco.COCO()
        ground_truth.dataset = self.filtered_annotations()
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools announces every step
            ground_truth.createIndex()
        scores = coco_evaluation.evaluate(ground_truth, self._to_results(results))
        self.tables = scores["summary"]
        numbers = {name: scores[name] for name in coco_evaluation.BOX_SCORES}
        return {**numbers, **{f"AP/{name}": value for name, value in scores["per_class"].items()}}

    def _to_results(self, results: dict[int | str, dict[int, np.ndarray]]) -> list[dict]:
        return coco_evaluation.to_results(results, self.category_ids, rounded=self.rounded_results)
