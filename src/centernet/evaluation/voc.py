"""PASCAL VOC detection metric: average precision per class and its mean, without files or subprocesses.

The rules are those of the VOC development kit as the reference runs them (``voc_ap`` and ``voc_eval`` of its re-scoring
script): a detection is a true positive if it overlaps an unmatched object of its image and class by more than the
threshold. Boxes are inclusive pixel coordinates, so widths and heights carry a +1.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from centernet.errors import UserError
from centernet.evaluation.results import finite_rows

PAIRS_AT_ONCE = 1_000_000  # of detection and object that are compared at once: about 100 MB of temporaries


def voc_ap(rec, prec, use_07_metric: bool = False) -> float:
    """Return the average precision of one recall/precision curve (reference function ``voc_ap``).

    ``rec`` and ``prec`` are sequences of equal length, ``rec`` ascending. ``use_07_metric`` averages the best precision
    at the recalls 0, 0.1, ..., 1 (VOC 2007); otherwise the area under the monotone envelope of the curve (VOC 2010 on).
    A recall of NaN (a class without objects) gives 0 with the 2007 metric and NaN with the area.
    """
    rec = np.asarray(rec, dtype=np.float64)
    prec = np.asarray(prec, dtype=np.float64)
    if use_07_metric:
        best = [np.max(prec[rec >= t], initial=0.0) for t in np.arange(0.0, 1.1, 0.1)]
        return float(sum(best) / 11.0)
    rec = np.concatenate(([0.0], rec, [1.0]))
    prec = np.concatenate(([0.0], prec, [0.0]))
    envelope = np.maximum.accumulate(prec[::-1])[::-1]
    return float(np.sum((rec[1:] - rec[:-1]) * envelope[1:]))


def evaluate(
    ground_truth: Sequence[Sequence[Mapping]],
    detections: Sequence[Sequence],
    classes: Sequence[str],
    use_07_metric: bool = True,
    ovthresh: float = 0.5,
    use_diff: bool = False,
    rounded: bool = True,
) -> dict:
    """Return the AP of every class and their mean.

    Args:
        ground_truth: ``ground_truth[i]`` lists the objects of image i: mappings with ``name``, ``bbox`` ([x1, y1, x2,
            y2] in 1-based pixels) and ``difficult`` (0 or 1, 0 if absent).
        detections: ``detections[c][i]`` holds the rows [x1, y1, x2, y2, score] (0-based pixels) of class ``classes[c]``
            in image i, as lists or an array (n, 5). ``results.json`` has one list more, the background in front: pass
            ``results[1:]``.
        classes: class names.
        use_07_metric: mean of eleven precisions (VOC 2007) instead of the area under the curve.
        ovthresh: overlap that a true positive exceeds.
        use_diff: count difficult objects like the others; otherwise neither they nor detections on them count.
        rounded: round as the official result files do, coordinates to one decimal and scores to three, which creates
            ties among low scores; equal scores keep the order of the detections.

    Returns:
        ``{"ap": {class: AP}, "mean_ap": mean}``. As in the reference the mean is over all classes, those without
        objects included: they count 0 with the 2007 metric, and with the area metric a class that has detections but
        no object is NaN and makes the mean NaN.

    Raises:
        UserError: the detections do not fit the classes or the images, or a number is not finite.
    """
    if len(detections) != len(classes):
        raise UserError(f"detections of {len(detections)} classes do not fit {len(classes)} class names")
    truth = _Objects(ground_truth)
    if not np.isfinite(truth.boxes).all():
        raise UserError("VOC evaluation: an object of the ground truth has a box that is not finite")
    for name, of_class in zip(classes, detections, strict=True):
        if not np.isfinite(_collect_detections(of_class, truth.images, name)[1]).all():
            raise UserError(f"VOC evaluation: a detection of {name} is not finite")
    ap = {
        name: evaluate_class(truth, of_class, name, use_07_metric, ovthresh, use_diff, rounded)[2]
        for name, of_class in zip(classes, detections, strict=True)
    }
    return {"ap": ap, "mean_ap": float(np.mean(list(ap.values()))) if ap else float("nan")}


def evaluate_class(
    ground_truth: "Sequence[Sequence[Mapping]] | _Objects",
    detections: Sequence,
    name: str,
    use_07_metric: bool = True,
    ovthresh: float = 0.5,
    use_diff: bool = False,
    rounded: bool = True,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return recall and precision after each detection in order of descending score, and the AP, of class ``name``.

    Args:
        ground_truth, use_07_metric, ovthresh, use_diff, rounded: as for :func:`evaluate`.
        detections: ``detections[i]`` holds the rows of this class in image i. A row that is not finite is a false
            positive.
        name: the class.

    Returns:
        Float64 arrays ``rec`` and ``prec`` with one value per detection, and ``ap`` (reference function ``voc_eval``).
    """
    truth = ground_truth if isinstance(ground_truth, _Objects) else _Objects(ground_truth)
    image, rows = _collect_detections(detections, truth.images, name)
    boxes, scores = rows[:, :4] + 1.0, rows[:, 4]
    if rounded:
        boxes, scores = round_as_text(boxes, 1), round_as_text(scores, 3)
    order = np.argsort(-scores, kind="stable")
    boxes, image = boxes[order], image[order]

    objects, difficult, start = truth.of_class(name)
    if use_diff:
        difficult[:] = False
    best, overlap = _best_object(boxes, image, objects, start)

    hit = np.flatnonzero(overlap > ovthresh)
    # Detections are in order of score: the first one of each object is the true positive, the others are duplicates.
    taken, first = np.unique(best[hit], return_index=True)
    true = np.zeros(len(boxes), dtype=bool)
    true[hit[first]] = ~difficult[taken]
    false = np.ones(len(boxes), dtype=bool)
    false[hit] = ~difficult[best[hit]]
    false &= ~true

    true_sum, false_sum = np.cumsum(true), np.cumsum(false)
    with np.errstate(divide="ignore", invalid="ignore"):
        rec = true_sum / np.count_nonzero(~difficult)
    prec = true_sum / np.maximum(true_sum + false_sum, np.finfo(np.float64).eps)
    return rec, prec, voc_ap(rec, prec, use_07_metric)


def to_results(detections: Mapping, image_ids: Sequence[int], num_classes: int) -> list:
    """Return the content of the reference's PASCAL ``results.json``.

    ``detections`` is ``{image id: {class from 1: rows [x1, y1, x2, y2, score]}}``. Returns
    ``results[class][image]``, lists of rows of floats, class 0 (background) always empty, images in the order of
    ``image_ids``. Classes and images that ``detections`` lacks have no rows; rows that are not finite are left out.
    """
    results: list[list[list]] = [[[] for _ in image_ids] for _ in range(num_classes + 1)]
    for i, image_id in enumerate(image_ids):
        for category, rows in detections.get(image_id, {}).items():
            results[category][i] = finite_rows(rows).tolist()
    return results


def ground_truth(annotations: Sequence[Mapping], image_ids: Sequence, names: Mapping) -> list[list[dict]]:
    """Convert COCO-style annotations to the objects of :func:`evaluate`, with the 1-based corners of VOC's XML files.

    ``names`` is category id to class name; ``ignore`` of an annotation is VOC's *difficult*. Objects of other images
    than ``image_ids`` are left out.
    """
    by_image: dict = {image_id: [] for image_id in image_ids}
    for annotation in annotations:
        if annotation["image_id"] in by_image:
            x, y, w, h = annotation["bbox"]
            by_image[annotation["image_id"]].append(
                {
                    "name": names[annotation["category_id"]],
                    "bbox": [x + 1, y + 1, x + w, y + h],
                    "difficult": int(annotation.get("ignore", 0)),
                }
            )
    return [by_image[image_id] for image_id in image_ids]


def by_class(detections: Mapping, image_ids: Sequence, num_classes: int) -> list[list[np.ndarray]]:
    """Convert ``{image id: {class from 1: rows}}`` to the detections of :func:`evaluate`: ``[class from 0][image]``.

    Rows that are not finite are left out.
    """
    empty = np.zeros((0, 5), dtype=np.float32)
    classes = range(1, num_classes + 1)
    return [[finite_rows(detections.get(i, {}).get(cls, empty)) for i in image_ids] for cls in classes]


def round_as_text(values, decimals: int) -> np.ndarray:
    """Return ``float(f"{value:.{decimals}f}")`` of every value of an array; float64, same shape.

    Not the same as ``np.round``, which multiplies first and so rounds 2.675 to 2.68, where the text has 2.67.
    """
    values = np.asarray(values, dtype=np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = values * 10.0**decimals
        result = np.rint(scaled) / 10.0**decimals
        from_half = np.abs(scaled - np.floor(scaled) - 0.5)
        # Only next to a half can the rounding of the product change the result. NaN and infinity end up here too.
        doubtful = ~(from_half > 1e-6 + 1e-15 * np.abs(scaled))
    result[doubtful] = [float(f"{value:.{decimals}f}") for value in values[doubtful]]
    return result


def _collect_detections(detections, num_images: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return image index (n,) and rows (n, 5) float64 of all detections of a class, in the order of the images."""
    if len(detections) != num_images:
        raise UserError(f"detections of {name} cover {len(detections)} images, the ground truth {num_images}")
    counts = np.fromiter(map(len, detections), dtype=np.int64, count=num_images)
    filled = [detections[i] for i in np.flatnonzero(counts)]
    try:
        rows = np.concatenate(filled).astype(np.float64) if filled else np.zeros((0, 5))
    except ValueError:  # of different shapes
        rows = None
    if rows is None or rows.ndim != 2 or rows.shape[1] != 5:
        shapes = (np.shape(of_image) for of_image in filled)
        odd = next(shape for shape in shapes if len(shape) != 2 or shape[1] != 5)
        raise UserError(f"detections of {name} must be rows [x1, y1, x2, y2, score], not of shape {odd}")
    return np.repeat(np.arange(num_images), counts), rows


class _Objects:
    """The objects of all images as arrays.

    Attributes:
        images: number of images.
        image, names, boxes, difficult: image index, class name, box (4 numbers) and flag of each object, by image.
    """

    def __init__(self, ground_truth: Sequence[Sequence[Mapping]]) -> None:
        self.images = len(ground_truth)
        objects = [one for of_image in ground_truth for one in of_image]
        self.image = np.repeat(np.arange(self.images), [len(of_image) for of_image in ground_truth])
        self.names = np.array([one["name"] for one in objects], dtype=object)
        self.boxes = np.array([one["bbox"] for one in objects], dtype=np.float64).reshape(-1, 4)
        self.difficult = np.array([bool(one.get("difficult", 0)) for one in objects], dtype=bool)

    def of_class(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return boxes (n, 4) and difficult flags (n,) of a class, and the first of each image, (images + 1,)."""
        own = np.flatnonzero(self.names == name)
        counts = np.bincount(self.image[own], minlength=self.images)
        return self.boxes[own], self.difficult[own], np.concatenate(([0], np.cumsum(counts)))


def _best_object(boxes, image, objects, start) -> tuple[np.ndarray, np.ndarray]:
    """Return for each detection the object of its image with the largest overlap (the first of equals), and that.

    Of a detection without objects in its image the object is 0 and the overlap 0.
    """
    best, overlap = np.zeros(len(boxes), dtype=np.int64), np.zeros(len(boxes))
    counts = np.diff(start)[image]
    compared = np.flatnonzero(counts)
    ends = np.cumsum(counts[compared])
    for rows in np.split(compared, np.searchsorted(ends, np.arange(PAIRS_AT_ONCE, ends[-1:].sum(), PAIRS_AT_ONCE))):
        if not len(rows):
            continue
        # Every detection with every object of its image, one after the other.
        begins = np.cumsum(counts[rows]) - counts[rows]
        place = np.arange(begins[-1] + counts[rows[-1]]) - np.repeat(begins, counts[rows])
        candidates = place + np.repeat(start[image[rows]], counts[rows])
        found = _overlaps(np.repeat(boxes[rows], counts[rows], axis=0), objects[candidates])
        found = np.where(np.isnan(found), np.inf, found)  # of boxes that are not finite: no object is the best one
        highest = np.maximum.reduceat(found, begins)
        first = np.where(found == np.repeat(highest, counts[rows]), place, len(found))
        best[rows] = start[image[rows]] + np.minimum.reduceat(first, begins)
        overlap[rows] = np.where(np.isinf(highest), 0.0, highest)
    return best, overlap


def _overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return intersection over union of boxes (..., 4) with inclusive coordinates, broadcast."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        width = np.minimum(a[..., 2], b[..., 2]) - np.maximum(a[..., 0], b[..., 0]) + 1.0
        height = np.minimum(a[..., 3], b[..., 3]) - np.maximum(a[..., 1], b[..., 1]) + 1.0
        intersection = np.maximum(width, 0.0) * np.maximum(height, 0.0)
        area_a = (a[..., 2] - a[..., 0] + 1.0) * (a[..., 3] - a[..., 1] + 1.0)
        area_b = (b[..., 2] - b[..., 0] + 1.0) * (b[..., 3] - b[..., 1] + 1.0)
        return intersection / (area_a + area_b - intersection)
