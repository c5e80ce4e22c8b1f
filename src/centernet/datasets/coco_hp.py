"""COCO 2017 keypoints: ``coco/annotations/person_keypoints_{train,val}2017.json``, ``coco/{train,val}2017/``."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..conversion.coco_file import is_id
from ..conversion.issues import Report, raise_error
from ..errors import UserError
from ..evaluation import analysis
from ..evaluation import coco as coco_evaluation
from .coco import COCO, TEST_FILE


class COCOHP(COCO):
    """Persons with the 17 joints of ``ops/keypoints.py``.

    Training uses the images with a person in them, whether or not its joints are labeled; validation uses all.
    """

    name = "coco_hp"
    tasks = ("multi_pose",)
    class_names: Sequence[str] = ("person",)
    category_ids = (1,)
    max_objs = 32
    scored_fields = ("area", "iscrowd", "num_keypoints")
    # AP and AR of the joints' similarity (OKS), then the scores of the boxes.
    score_names: tuple[str, ...] = (
        *coco_evaluation.KEYPOINT_SCORES,
        *(f"box_{name}" for name in coco_evaluation.BOX_SCORES),
    )

    def find_annotations(self, folder: Path, split: str) -> Path:
        return folder / "annotations" / (TEST_FILE if split == "test" else f"person_keypoints_{split}2017.json")

    def read_content(self, report: Report = raise_error) -> dict:
        content = super().read_content(report)
        if self.split == "train":
            ids = (annotation.get("image_id") for annotation in content["annotations"])
            occupied = {image_id for image_id in ids if is_id(image_id)}
            # An image without a valid id is kept, so that it is reported.
            content["images"] = [i for i in content["images"] if not is_id(i.get("id")) or i["id"] in occupied]
            if not content["images"]:
                raise UserError(f"{self.annotation_file}: none of its images has a person to learn from")
        return content

    def evaluate(self, results: dict[int | str, dict[int, np.ndarray]]) -> dict[str, float]:
        if self.split == "test":  # scored by COCO's evaluation server
            return {}
        scores, self.tables = score_keypoints(self.filtered_annotations(), self._to_results(results))
        return scores

    def analyze(self, results: dict[int | str, dict[int, np.ndarray]]) -> dict:
        """Also return ``joints``, see :func:`joints_of_classes`."""
        keypoints = self.opt.keypoints
        classes = [(self.category_ids[0], self.class_names[0], keypoints.names, keypoints.sigmas)]
        joints = joints_of_classes(self.filtered_annotations(), self._to_results(results), classes)
        return {**super().analyze(results), "joints": joints}

    def _to_results(self, results: dict[int | str, dict[int, np.ndarray]]) -> list[dict]:
        return coco_evaluation.to_keypoint_results(results, rounded=self.rounded_results)


def score_keypoints(
    content: dict, results: list[dict], sigmas: Mapping[int | str, Sequence[float]] | None = None
) -> tuple[dict[str, float], str]:
    """Score poses, entries as in ``results.json``, as joints and as boxes.

    ``sigmas``: of the joints by category id, see ``evaluation.coco.evaluate``; None: those of COCO's persons.

    Returns the scores in [0, 1] by name, and the two tables that pycocotools prints. Raises UserError when the
    annotations lack what the scores need.
    """
    try:
        joints = coco_evaluation.evaluate_content(content, results, "keypoints", sigmas)
        boxes = coco_evaluation.evaluate_content(content, results, "bbox")
    except KeyError as error:
        raise UserError(f"an annotation lacks {error}, which scoring needs") from error
    scores = {name: joints[name] for name in coco_evaluation.KEYPOINT_SCORES}
    scores.update({f"box_{name}": boxes[name] for name in coco_evaluation.BOX_SCORES})
    scores.update({f"AP/{name}": value for name, value in joints["per_class"].items()})
    return scores, f"keypoints\n{joints['summary']}\nboxes\n{boxes['summary']}"


def joints_of_classes(
    content: dict, results: list[dict], classes: Iterable[tuple[int | str, str, Sequence[str], Sequence[float]]]
) -> list[dict]:
    """Return how well the joints of each class are placed: ``class``, and the values of ``analysis.joint_scores``.

    ``classes``: category id, name, and names and sigmas of the joints of each class.
    """
    scores = []
    for category, name, joints, sigmas in classes:
        persons = [one for one in content["annotations"] if one["category_id"] == category]
        poses = [one for one in results if one["category_id"] == category]
        scores.append({"class": name, **analysis.joint_scores(persons, poses, sigmas, joints)})
    return scores
