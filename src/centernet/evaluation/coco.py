"""COCO detection and keypoint scores through pycocotools, and result lists in COCO's form."""

import contextlib
import io
from collections.abc import Mapping, Sequence

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from centernet.errors import UserError
from centernet.evaluation.voc import round_as_text

BOX_SCORES = (
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
    "AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip
KEYPOINT_SCORES = (
    "AP", "AP50", "AP75", "AP_medium", "AP_large",
    "AR", "AR50", "AR75", "AR_medium", "AR_large",
)  # fmt: skip


def to_results(detections: Mapping, category_ids: Sequence[int], rounded: bool = False) -> list[dict]:
    """Box detections as the list that COCO's ``results.json`` holds.

    ``detections`` is ``{image id: {class from 1: rows}}`` with rows [x1, y1, x2, y2, score] in pixels; they are not
    modified. ``category_ids[k]`` is the COCO id of class k + 1. Rows of 13 columns or more give ``extreme_points``
    from columns 5 to 12. Each entry has ``image_id``, ``category_id``, ``bbox`` [x, y, width, height] and ``score``.

    ``rounded`` rounds every number, scores too, to two decimals as the reference does (``convert_eval_format`` of its
    COCO dataset), for comparison with its files; otherwise nothing is rounded.
    """
    results = []
    for image_id, classes in detections.items():
        for category, rows in classes.items():
            for numbers in _convert(rows, rounded):
                entry = _entry(image_id, category_ids[int(category) - 1], numbers)
                if len(numbers) > 5:
                    entry["extreme_points"] = numbers[5:13]
                results.append(entry)
    return results


def to_keypoint_results(detections: Mapping, rounded: bool = False) -> list[dict]:
    """Pose detections as the list that COCO's keypoint ``results.json`` holds; the category is always 1, person.

    Like :func:`to_results`, with rows of 39 columns [x1, y1, x2, y2, score, 17 joints (x, y)]. ``keypoints`` are 17
    times (x, y, visibility 1).
    """
    results = []
    for image_id, classes in detections.items():
        for rows in classes.values():
            for numbers in _convert(rows, rounded):
                entry = _entry(image_id, 1, numbers)
                joints = numbers[5:39]
                entry["keypoints"] = [v for x, y in zip(joints[::2], joints[1::2], strict=True) for v in (x, y, 1.0)]
                results.append(entry)
    return results


def evaluate(coco_gt: COCO, results: Sequence[Mapping], iou_type: str = "bbox") -> dict:
    """Score ``results`` (as from :func:`to_results`, not modified) on all images of ``coco_gt``. Prints nothing.

    ``iou_type`` is ``bbox`` or ``keypoints``. Returns the summary numbers of pycocotools by name, ``BOX_SCORES`` (12)
    or ``KEYPOINT_SCORES`` (10), as fractions of 1, -1 where there is no object to find; besides ``per_class``, AP by
    category name (-1 likewise), and ``summary``, the table that pycocotools prints.

    Raises ``UserError`` if a result belongs to an image that ``coco_gt`` does not have.
    """
    strangers = {result["image_id"] for result in results} - set(coco_gt.getImgIds())
    if strangers:
        raise UserError(f"results have image {min(strangers)}, which the annotation file does not have")
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        coco_eval = COCOeval(coco_gt, _as_coco(coco_gt, results), iou_type)
        coco_eval.evaluate()
        coco_eval.accumulate()
        output.truncate(0)
        output.seek(0)
        coco_eval.summarize()

    names = BOX_SCORES if iou_type == "bbox" else KEYPOINT_SCORES
    scores: dict = {name: float(value) for name, value in zip(names, coco_eval.stats, strict=True)}
    # precision: overlap thresholds x recalls x categories x object sizes x detections an image
    precision = coco_eval.eval["precision"][:, :, :, 0, -1]
    scores["per_class"] = {
        coco_gt.cats[category]["name"]: _mean_precision(precision[:, :, k])
        for k, category in enumerate(coco_eval.params.catIds)
    }
    scores["summary"] = output.getvalue().rstrip("\n")
    return scores


def evaluate_content(content: Mapping, results: Sequence[Mapping], iou_type: str = "bbox") -> dict:
    """Score ``results`` on annotations that may have any ids, strings too; what :func:`evaluate` returns.

    ``content`` has the lists ``images``, ``annotations`` and ``categories`` of a COCO file. Results of a category that
    it lacks are left out, as are classes without objects.
    """
    # pycocotools sorts ids, and takes an annotation with the id 0 for none.
    images = {image["id"]: k for k, image in enumerate(content["images"], start=1)}
    used = {annotation["category_id"] for annotation in content["annotations"]}
    present = [category for category in content["categories"] if category["id"] in used]
    categories = {category["id"]: k for k, category in enumerate(present, start=1)}
    strangers = [result["image_id"] for result in results if result["image_id"] not in images]
    if strangers:
        raise UserError(f"results have image {strangers[0]}, which the annotation file does not have")

    def numbered(entries) -> list[dict]:
        return [
            {
                **entry,
                "id": k,
                "image_id": images[entry["image_id"]],
                "category_id": categories[entry["category_id"]],
            }
            for k, entry in enumerate(entries, start=1)
            if entry["category_id"] in categories
        ]

    coco_gt = COCO()
    coco_gt.dataset = {
        "images": [{**image, "id": images[image["id"]]} for image in content["images"]],
        "categories": [{**category, "id": categories[category["id"]]} for category in present],
        "annotations": numbered(a for a in content["annotations"] if a["image_id"] in images),
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco_gt.createIndex()
    return evaluate(coco_gt, numbered(results), iou_type)


def _convert(rows, rounded: bool) -> list[list[float]]:
    """Rows as lists of floats, with width and height in place of the second corner."""
    # The reference subtracts in float32; the second decimal can depend on it.
    rows = np.array(rows, dtype=np.float32 if rounded else np.float64)
    if rows.size == 0:
        return []
    rows[:, 2:4] -= rows[:, 0:2]
    return round_as_text(rows, 2).tolist() if rounded else rows.tolist()


def _entry(image_id, category_id: int, numbers: list[float]) -> dict:
    return {"image_id": _plain(image_id), "category_id": _plain(category_id), "bbox": numbers[:4], "score": numbers[4]}


def _plain(value):
    """An id as JSON can have it."""
    return value if isinstance(value, str) else int(value)


def _as_coco(coco_gt: COCO, results: Sequence[Mapping]) -> COCO:
    """``results`` as a COCO object, made as by ``COCO.loadRes``, which fails without any and changes the entries."""
    coco = COCO()
    coco.dataset = {
        "images": coco_gt.dataset["images"],
        "categories": coco_gt.dataset["categories"],
        "annotations": [
            {**result, "id": k, "area": result["bbox"][2] * result["bbox"][3], "iscrowd": 0}
            for k, result in enumerate(results, start=1)
        ],
    }
    coco.createIndex()
    return coco


def _mean_precision(precision: np.ndarray) -> float:
    known = precision[precision > -1]
    return float(np.mean(known)) if known.size else -1.0
