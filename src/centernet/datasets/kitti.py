"""KITTI object detection with 3D boxes, seen by one camera: ``kitti/annotations/kitti_{3dop,subcnn}_{train,val}.json``.

The JSON files are made from ``kitti/training/{label_2,calib}`` and the lists in ``kitti/ImageSets_{3dop,subcnn}`` on
first use. Images are in ``kitti/images/trainval``, or where KITTI has them, in ``kitti/training/image_2``. With
``--trainval`` the training reads ``kitti_trainval.json``, and ``test.py`` ``kitti_test.json``.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..conversion import kitti_devkit
from ..conversion.coco_file import is_id
from ..conversion.issues import ERROR, Issue, Report, raise_error
from ..errors import UserError
from ..evaluation import analysis
from ..evaluation import kitti as kitti_evaluation
from ..evaluation.kitti_text import CLASS_NAMES, image_name, write_results
from ..ops.arrays import numbers
from .base import IMAGENET_MEAN, IMAGENET_STD, CocoStyleDataset


class KITTI(CocoStyleDataset):
    """Pedestrians, cars and cyclists, in the split that ``--kitti_split`` names."""

    name = "kitti"
    folder_names: tuple[str, ...] = ("kitti", "KITTI")
    tasks: tuple[str, ...] = ("ddd",)
    class_names: Sequence[str] = CLASS_NAMES[:3]
    category_ids: Sequence[int | str] = (1, 2, 3)
    ignored_categories = (4, 5, 6, 7, 8, 9)  # vans, sitting persons, DontCare and so on
    # RGB statistics, applied to BGR images: what the reference does and what its weights expect.
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    default_resolution = (384, 1280)
    max_objs = 50
    _statistics_folder: Path | None = None  # where results have been saved
    score_names: tuple[str, ...] = (
        "AP3D",
        "APBEV",
        "AP2D",
        "AOS",
    )  # of cars, moderate, as the reference's program has them

    @classmethod
    def is_root(cls, folder: Path) -> bool:
        return (folder / "annotations").is_dir() or (folder / "training" / "label_2").is_dir()

    @classmethod
    def prepare(cls, folder: Path, log=print) -> None:
        """Convert KITTI's label files where annotation files are missing."""
        kitti_devkit.prepare(folder, log)

    def find_annotations(self, folder: Path, split: str) -> Path:
        part, name = "trainval" if split == "train" and self.opt.trainval else split, self.opt.kitti_split
        kitti_devkit.check_split_name(name)
        path = folder / "annotations" / kitti_devkit.annotation_file(name, part)
        if part in kitti_devkit.PARTS and not path.is_file():
            lists = kitti_devkit.image_set_file(folder, name, part)
            raise UserError(f"--kitti_split {name}: there is neither {path} nor {lists}; see docs/DATA.md")
        return path

    def find_images(self, folder: Path, split: str) -> Path:
        part, subfolder = ("test", "testing") if split == "test" else ("trainval", "training")
        arranged = folder / "images" / part
        return arranged if arranged.is_dir() else folder / subfolder / "image_2"

    def read_content(self, report: Report = raise_error) -> dict:
        """Read the annotations, and store the camera matrix of each image in ``calib``."""
        content = super().read_content(report)
        images, self.calib = [], {}
        for image in content["images"]:
            try:
                (calib,) = numbers([image["calib"]], "calib", (3, 4)).astype(np.float32)
                if not np.isfinite(calib).all() or calib[0, 0] <= 0 or calib[1, 1] <= 0:
                    raise ValueError("its focal lengths are not above zero, or a number is not finite")
            except (KeyError, ValueError) as error:
                where = f"the image {image.get('id')} has no 'calib' of 3 x 4 numbers"
                text = where if isinstance(error, KeyError) else f"{where} ({error})"
                report(Issue(ERROR, "images without a camera", self.annotation_file, text))
            else:
                images.append(image)
                if is_id(image.get("id")):
                    self.calib[image["id"]] = calib
        return {**content, "images": images}

    def read_objects(self, index: int) -> dict[str, np.ndarray]:
        return {**super().read_objects(index), **self.picture_info(index)}

    def picture_info(self, index: int) -> dict:
        """Return ``calib`` (3, 4) float32, the projection matrix from camera coordinates in meters to pixels."""
        return {"calib": self.calib[self.image_ids[index]]}

    def default_image_info(self) -> dict:
        """Return the most common ``calib`` of the images."""
        cameras = Counter(tuple(self.calib[image_id].flatten().tolist()) for image_id in self.image_ids)
        return {"calib": np.reshape(cameras.most_common(1)[0][0], (3, 4)).tolist()}

    def save_results(self, results: dict[int | str, dict[int, np.ndarray]], path: Path) -> Path:
        """Write ``000000.txt`` and so on in KITTI's format, and remove those of other images.

        Their folder is ``path`` without its suffix. Statistics are written next to ``results/``, which a training
        writes, and into other folders.
        """
        folder = path.with_suffix("")
        current = {image_name(image_id) for image_id in results}
        for old in folder.glob("[0-9]*.txt"):
            if old.stem not in current:
                old.unlink()
        write_results(results, folder, self.class_names)
        self._statistics_folder = folder.parent if folder.name == "results" else folder
        return folder

    def evaluate(self, results: dict[int | str, dict[int, np.ndarray]]) -> dict[str, float]:
        """Return KITTI's scores for the images in ``results``, rounded to two decimals as in the result files.

        The first are those of cars at the moderate level by the rules of the reference's program: overlaps of 0.5 in
        bird's eye view and 3D, mean over 11 recalls. They are followed by those of every class and level, and
        ``official/...``: the benchmark's overlap of 0.7 and 40 recalls. The test split has no labels and therefore no
        scores.
        """
        if self.split == "test":
            return {}
        ids = [image_id for image_id in self.image_ids if image_id in results]
        truth = self.ground_truth(ids)
        found = [kitti_evaluation.from_rows(results[image_id], self.class_names, decimals=2) for image_id in ids]
        reference = kitti_evaluation.evaluate(truth, found, overlaps="reference", recall_points=(11,))
        official = kitti_evaluation.evaluate(truth, found, overlaps="official", recall_points=(40,))
        self.tables = "\n".join(kitti_evaluation.program_lines(reference))
        if self._statistics_folder is not None:
            kitti_evaluation.write_statistics(reference, self._statistics_folder)
        scores = kitti_evaluation.named_scores(reference, 11)
        main = {name: scores.get(f"{name}/Car_moderate", 0.0) for name in self.score_names}
        others = {f"official/{name}": value for name, value in kitti_evaluation.named_scores(official, 40).items()}
        return {**main, **scores, **others}

    def analyze(self, results: dict[int | str, dict[int, np.ndarray]]) -> dict:
        """Also return ``distances``: errors of the 3D boxes by class and distance (``analysis.distance_errors``)."""
        ids = [image_id for image_id in self.image_ids if image_id in results]
        found = [kitti_evaluation.from_rows(results[image_id], self.class_names) for image_id in ids]
        distances = analysis.distance_errors(self.ground_truth(ids), found, self.class_names)
        return {**super().analyze(results), "distances": distances}

    def ground_truth(self, ids: list[int]) -> list[kitti_evaluation.Labels]:
        """Return the objects of the images ``ids``, from their label files if all exist, else the annotation file."""
        labels = self.folder / "training" / "label_2"
        if all((labels / f"{image_name(image_id)}.txt").is_file() for image_id in ids):
            return kitti_evaluation.read_folder(labels, ids)
        by_image: dict[int, list[dict]] = {image_id: [] for image_id in ids}
        for annotation in self.filtered_annotations()["annotations"]:
            if annotation["image_id"] in by_image:
                by_image[annotation["image_id"]].append(annotation)
        names = dict(enumerate(CLASS_NAMES, start=1))
        try:
            return [kitti_evaluation.from_annotations(by_image[image_id], names) for image_id in ids]
        except KeyError as error:
            raise UserError(
                f"{self.annotation_file}: an annotation lacks {error} and cannot be scored against; "
                f"alternatively provide {labels}"
            ) from error
