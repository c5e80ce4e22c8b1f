"""COCO's detection and keypoint metrics through pycocotools, and result lists in COCO's form."""

import contextlib
import io
from collections.abc import Mapping, Sequence

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from centernet.errors import UserError
from centernet.evaluation.results import check_entries, check_ids, finite_rows
from centernet.evaluation.voc import round_as_text

BOX_SCORES = (
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
    "AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip
KEYPOINT_SCORES = (
    "AP", "AP50", "AP75", "AP_medium", "AP_large",
    "AR", "AR50", "AR75", "AR_medium", "AR_large",
)  # fmt: skip

MANY_PAIRS = 20_000  # of objects and detections in an image, from which NumPy is faster than pycocotools' loops
PAIRS_AT_ONCE = 200_000  # of persons and detections whose joints are compared at once: about 100 MB of temporaries


def to_results(detections: Mapping, category_ids: Sequence[int | str], rounded: bool = False) -> list[dict]:
    """Return box detections as the list of COCO's ``results.json``.

    Args:
        detections: ``{image id: {class from 1: rows}}`` with rows [x1, y1, x2, y2, score] in pixels; not modified.
            Rows of 13 columns or more give ``extreme_points`` from columns 5 to 12. Rows that are not finite are left
            out.
        category_ids: ``category_ids[k]`` is the COCO id of class k + 1.
        rounded: round every number, scores too, to two decimals as the reference does (``convert_eval_format`` of its
            COCO dataset), for comparison with its files. Otherwise nothing is rounded.

    Returns:
        Entries with ``image_id``, ``category_id``, ``bbox`` [x, y, width, height] and ``score``.
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


def to_keypoint_results(
    detections: Mapping,
    rounded: bool = False,
    category_ids: Sequence[int | str] = (1,),
    joints: Sequence[Sequence[int]] | None = None,
) -> list[dict]:
    """Return pose detections as the list of COCO's keypoint ``results.json``.

    Like :func:`to_results`, with rows of 5 + 2J columns [x1, y1, x2, y2, score, J joints (x, y)]. ``keypoints`` are J
    times (x, y, visibility 1).

    Args:
        detections: ``{image id: {class from 1: rows}}``; not modified.
        rounded: see :func:`to_results`.
        category_ids: COCO id of each class; of persons 1.
        joints: which joints each class has, in the order of its category; None: all of a row.
    """
    results = []
    for image_id, classes in detections.items():
        for category, rows in classes.items():
            cls = int(category) - 1
            for numbers in _convert(rows, rounded):
                entry = _entry(image_id, category_ids[cls], numbers)
                points = list(zip(numbers[5::2], numbers[6::2], strict=True))
                own = points if joints is None else [points[joint] for joint in joints[cls]]
                entry["keypoints"] = [value for x, y in own for value in (x, y, 1.0)]
                results.append(entry)
    return results


def evaluate(
    coco_gt: COCO,
    results: Sequence[Mapping],
    iou_type: str = "bbox",
    sigmas: Mapping[int, Sequence[float]] | None = None,
) -> dict:
    """Score ``results`` on all images of ``coco_gt``. Prints nothing.

    Args:
        coco_gt: the annotations.
        results: entries as from :func:`to_results`; not modified.
        iou_type: ``bbox`` or ``keypoints``.
        sigmas: of the joints of each category, for OKS; None: those of COCO's persons for all. Categories that are not
            listed are not scored as keypoints.

    Returns:
        The summary metrics of pycocotools by name, ``BOX_SCORES`` (12) or ``KEYPOINT_SCORES`` (10), as fractions of 1,
        -1 where no object exists; ``per_class``, AP by category name (-1 likewise); and ``summary``, the
        table that pycocotools prints.

    Raises:
        UserError: a result has an image or category that ``coco_gt`` does not have, or a number that is not finite.
    """
    check_ids(results, set(coco_gt.getImgIds()), set(coco_gt.getCatIds()))
    if not _are_finite(results):
        check_entries(results, joints=iou_type == "keypoints")
    if iou_type == "keypoints" and sigmas is not None:
        results = [result for result in results if result["category_id"] in sigmas]
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        coco_eval = CrowdedCOCOeval(coco_gt, _as_coco(coco_gt, results), iou_type)
        if iou_type == "keypoints" and sigmas is not None:
            coco_eval.sigmas = {category: np.array(values, dtype=np.float64) for category, values in sigmas.items()}
            coco_eval.params.catIds = sorted(coco_eval.sigmas)
        coco_eval.evaluate()
        coco_eval.accumulate()
        output.truncate(0)
        output.seek(0)
        coco_eval.summarize()

    names = BOX_SCORES if iou_type == "bbox" else KEYPOINT_SCORES
    scores: dict = {name: float(value) for name, value in zip(names, coco_eval.stats, strict=True)}
    # precision: overlap thresholds x recalls x categories x object sizes x detections per image
    precision = coco_eval.eval["precision"][:, :, :, 0, -1]
    scores["per_class"] = {
        coco_gt.cats[category]["name"]: _mean_precision(precision[:, :, k])
        for k, category in enumerate(coco_eval.params.catIds)
    }
    scores["summary"] = output.getvalue().rstrip("\n")
    return scores


def evaluate_content(
    content: Mapping,
    results: Sequence[Mapping],
    iou_type: str = "bbox",
    sigmas: Mapping[int | str, Sequence[float]] | None = None,
) -> dict:
    """Score ``results`` on annotations with any ids, strings included; returns what :func:`evaluate` returns.

    ``content`` has the lists ``images``, ``annotations`` and ``categories`` of a COCO file. Annotations of images that
    it does not list are left out. ``sigmas`` by category id of ``content``, see :func:`evaluate`.

    Raises:
        UserError: an annotation or a result has a category that ``content`` does not list, a result an image that it
            does not list, or a number is not finite.
    """
    coco_gt, renumber = numbered_annotations(content)
    check_ids(results, renumber.images.keys(), renumber.categories.keys())
    numbered = None if sigmas is None else {renumber.categories[one]: values for one, values in sigmas.items()}
    return evaluate(coco_gt, renumber.entries(results), iou_type, numbered)


class Renumbering:
    """New ids from 1 for the images and categories of a COCO file.

    pycocotools sorts ids, and takes an annotation with the id 0 for none, so ids are replaced before scoring.

    Attributes:
        images, categories: old id to new id.
    """

    def __init__(self, content: Mapping) -> None:
        self.images = {image["id"]: k for k, image in enumerate(content["images"], start=1)}
        self.categories = {category["id"]: k for k, category in enumerate(content["categories"], start=1)}

    def entries(self, entries: Sequence[Mapping]) -> list[dict]:
        """Return copies of annotations or results with new ids, their own included."""
        return [
            {
                **entry,
                "id": k,
                "image_id": self.images[entry["image_id"]],
                "category_id": self.categories[entry["category_id"]],
            }
            for k, entry in enumerate(entries, start=1)
        ]


def numbered_annotations(content: Mapping) -> tuple[COCO, Renumbering]:
    """Return the annotations of a COCO file with new ids as a COCO object, and how ids were replaced.

    Raises:
        UserError: an annotation has an unknown category or a number that is not finite.
    """
    renumber = Renumbering(content)
    annotations = [one for one in content["annotations"] if one["image_id"] in renumber.images]
    for one in annotations:
        if one["category_id"] not in renumber.categories:
            raise UserError(f"annotation {one.get('id')} has the unknown category_id {one['category_id']!r}")
    numbers = [[*one["bbox"], one.get("area", 0)] for one in annotations]
    for values, what in ((numbers, "bbox or area"), ([one.get("keypoints", []) for one in annotations], "keypoints")):
        if not _all_finite(values):
            bad = next(k for k, row in enumerate(values) if not _all_finite([row]))
            raise UserError(f"annotation {annotations[bad].get('id')} has a {what} that is not finite numbers")
    coco_gt = COCO()
    coco_gt.dataset = {
        "images": [{**image, "id": renumber.images[image["id"]]} for image in content["images"]],
        "categories": [{**one, "id": renumber.categories[one["id"]]} for one in content["categories"]],
        "annotations": renumber.entries(annotations),
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco_gt.createIndex()
    return coco_gt, renumber


class CrowdedCOCOeval(COCOeval):
    """pycocotools' evaluation, with matching and joint similarity in NumPy where an image has very many objects.

    The loops of pycocotools over detections and objects take minutes for an image with 100,000 objects. The results are
    the same (joint similarities to rounding).

    Attributes:
        sigmas: of the joints by category id, where categories have different joints; empty: the same for all.
    """

    sigmas: Mapping[int, np.ndarray] = {}

    def evaluateImg(self, imgId, catId, aRng, maxDet):
        """Match the detections of one image and category, as the method of the base class does."""
        gts, dts = self._gts[imgId, catId], self._dts[imgId, catId]
        if len(gts) * min(len(dts), maxDet) < MANY_PAIRS:
            return super().evaluateImg(imgId, catId, aRng, maxDet)
        low, high = aRng
        area, flag = np.array([g["area"] for g in gts]), np.array([bool(g["ignore"]) for g in gts])
        ignored = flag | (area < low) | (area > high)
        order = np.argsort(ignored, kind="stable")
        ignored, crowd = ignored[order], np.array([bool(gts[k]["iscrowd"]) for k in order])
        gt_ids = np.array([gts[k]["id"] for k in order])
        dts = [dts[k] for k in np.argsort([-d["score"] for d in dts], kind="stable")[:maxDet]]
        ious = self.ious[imgId, catId][:, order]

        thresholds = self.params.iouThrs
        gt_matches, dt_matches = np.zeros((len(thresholds), len(gts))), np.zeros((len(thresholds), len(dts)))
        dt_ignored = np.zeros((len(thresholds), len(dts)), dtype=bool)
        for d, row in enumerate(ious):
            near = np.flatnonzero(row >= min(thresholds[0], 1 - 1e-10))
            for t, threshold in enumerate(thresholds):
                # A crowd may be matched any number of times. Regular objects come before ignored ones.
                free = near[(row[near] >= min(threshold, 1 - 1e-10)) & ((gt_matches[t, near] == 0) | crowd[near])]
                regular = free[~ignored[free]]
                candidates = regular if len(regular) else free
                if len(candidates):
                    best = candidates[len(candidates) - 1 - np.argmax(row[candidates][::-1])]  # of equals the last
                    gt_matches[t, best], dt_matches[t, d] = dts[d]["id"], gt_ids[best]
                    dt_ignored[t, d] = ignored[best]
        outside = np.array([d["area"] < low or d["area"] > high for d in dts])
        return {
            "image_id": imgId,
            "category_id": catId,
            "aRng": aRng,
            "maxDet": maxDet,
            "dtIds": [d["id"] for d in dts],
            "gtIds": gt_ids.tolist(),
            "dtMatches": dt_matches,
            "gtMatches": gt_matches,
            "dtScores": [d["score"] for d in dts],
            "gtIgnore": ignored.astype(int),
            "dtIgnore": dt_ignored | ((dt_matches == 0) & outside),
        }

    def computeOks(self, imgId, catId):
        """Return the joint similarity (detections, persons) of one image, as the method of the base class does."""
        gts, dts = self._gts[imgId, catId], self._dts[imgId, catId]
        if catId in self.sigmas:
            self.params.kpt_oks_sigmas = self.sigmas[catId]
        if len(gts) * min(len(dts), self.params.maxDets[-1]) < MANY_PAIRS:
            return super().computeOks(imgId, catId)
        order = np.argsort([-d["score"] for d in dts], kind="stable")[: self.params.maxDets[-1]]
        joints = np.array([dts[k]["keypoints"] for k in order], dtype=np.float64).reshape(len(order), -1, 3)
        step = max(1, PAIRS_AT_ONCE // len(order))
        return np.concatenate(
            [
                object_keypoint_similarity(joints, gts[k : k + step], self.params.kpt_oks_sigmas)
                for k in range(0, len(gts), step)
            ],
            axis=1,
        )


def joint_similarity(joints: np.ndarray, persons: Sequence[Mapping], sigmas: np.ndarray) -> np.ndarray:
    """Return the similarity (detections, persons, J) in [0, 1] of every single joint, of which OKS is the mean.

    Args:
        joints: (detections, J, 2 or more), x and y in pixels.
        persons: annotations with ``keypoints``, ``bbox`` and ``area``. Of a person without labeled joints the distance
            is that from the doubled box.
        sigmas: (J,) as in ``pycocotools.cocoeval.Params.kpt_oks_sigmas``.
    """
    true = np.array([one["keypoints"] for one in persons], dtype=np.float64).reshape(len(persons), -1, 3)
    boxes = np.array([one["bbox"] for one in persons], dtype=np.float64)
    area = np.array([one["area"] for one in persons], dtype=np.float64)
    found = joints[:, None, :, :2]
    low, high = boxes[:, :2] - boxes[:, 2:], boxes[:, :2] + 2 * boxes[:, 2:]
    outside = np.maximum(0, low[:, None] - found) + np.maximum(0, found - high[:, None])
    labeled = np.any(true[:, :, 2] > 0, axis=1, keepdims=True)[:, :, None]
    distance = np.where(labeled, found - true[None, :, :, :2], outside)
    error = (distance**2).sum(-1) / (2 * sigmas) ** 2 / (area[:, None] + np.spacing(1)) / 2
    return np.exp(-error)


def object_keypoint_similarity(joints: np.ndarray, persons: Sequence[Mapping], sigmas: np.ndarray) -> np.ndarray:
    """Return OKS (detections, persons): the mean of ``joint_similarity`` over the labeled joints, or over all."""
    similarity = joint_similarity(joints, persons, sigmas)
    visible = [[v > 0 for v in one["keypoints"][2::3]] for one in persons]
    counted = np.array([row if any(row) else [True] * len(row) for row in visible])
    return (similarity * counted).sum(-1) / counted.sum(-1)


def _convert(rows, rounded: bool) -> list[list[float]]:
    """Return the rows that are finite as lists of floats, with width and height instead of the second corner."""
    # The reference subtracts in float32; the second decimal can depend on it.
    rows = np.array(rows, dtype=np.float32 if rounded else np.float64)
    if rows.size == 0:
        return []
    with np.errstate(invalid="ignore", over="ignore"):
        rows[:, 2:4] -= rows[:, 0:2]
    rows = finite_rows(rows)
    return round_as_text(rows, 2).tolist() if rounded else rows.tolist()


def _entry(image_id, category_id: int | str, numbers: list[float]) -> dict:
    return {"image_id": _plain(image_id), "category_id": _plain(category_id), "bbox": numbers[:4], "score": numbers[4]}


def _plain(value):
    """Return an id as a JSON value."""
    return value if isinstance(value, str) else int(value)


def _are_finite(results: Sequence[Mapping]) -> bool:
    numbers = [[*result["bbox"], result["score"]] for result in results]
    if any(len(row) != 5 for row in numbers) or not _all_finite(numbers):
        return False
    areas = [[row[2] * row[3]] for row in numbers]
    return _all_finite(areas) and _all_finite([result.get("keypoints", []) for result in results])


def _all_finite(rows: Sequence[Sequence[float]]) -> bool:
    """Return whether rows contain only finite numbers; they may differ in length."""
    try:
        values = np.array([value for row in rows for value in row])
        return not values.size or (values.dtype.kind in "iuf" and bool(np.isfinite(values).all()))
    except (TypeError, ValueError):
        return False


def _as_coco(coco_gt: COCO, results: Sequence[Mapping]) -> COCO:
    """Return ``results`` as a COCO object, like ``COCO.loadRes``, which fails without any and changes the entries."""
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
