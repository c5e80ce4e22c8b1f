"""PASCAL VOC detection score: average precision per class and its mean, without files or subprocesses.

The rules are those of the VOC development kit as the reference runs them (``voc_ap`` and ``voc_eval`` of its re-scoring
script): a detection is right if it overlaps a not yet taken object of its image and class by more than the threshold.
Boxes are inclusive pixel coordinates, so widths and heights carry a +1.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from centernet.errors import UserError

# Pairs of detection and object that are compared at once: about 100 MB of temporaries.
PAIRS_AT_ONCE = 1_000_000


def voc_ap(rec, prec, use_07_metric: bool = False) -> float:
    """Average precision of one recall/precision curve (reference function ``voc_ap``).

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
    """AP of every class and their mean.

    ``ground_truth[i]`` lists the objects of image i: mappings with ``name``, ``bbox`` ([x1, y1, x2, y2] in 1-based
    pixels) and ``difficult`` (0 or 1, 0 if absent). ``detections[c][i]`` holds the rows [x1, y1, x2, y2, score]
    (0-based pixels) of class ``classes[c]`` in image i, as lists or an array (n, 5). ``results.json`` has one list
    more, the background in front: pass ``results[1:]``.

    ``use_diff`` counts difficult objects as ordinary ones; otherwise neither they nor the detections on them count.
    ``rounded`` rounds as the official result files do, coordinates to one decimal and scores to three, which creates
    ties among low scores; equal scores keep the order of the detections.

    Returns ``{"ap": {class: AP}, "mean_ap": mean}``. As in the reference the mean is over all classes, those without
    any object included: they count 0 with the 2007 metric, and with the area metric a class that has detections but
    no object is NaN and makes the mean NaN.

    Raises ``UserError`` when the detections do not fit the classes or the images.
    """
    if len(detections) != len(classes):
        raise UserError(f"detections of {len(detections)} classes do not fit {len(classes)} class names")
    truth = _Objects(ground_truth)
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
    """Recall and precision after each detection in order of falling score, and AP, of the one class ``name``.

    Arguments as for :func:`evaluate`, but ``detections[i]`` holds the rows of this class in image i.
    Returns float64 arrays ``rec`` and ``prec`` of one value a detection, and ``ap`` (reference function ``voc_eval``).
    """
    truth = ground_truth if isinstance(ground_truth, _Objects) else _Objects(ground_truth)
    image, rows = _collect_detections(detections, truth.images, name)
    boxes, scores = rows[:, :4] + 1.0, rows[:, 4]
    if rounded:
        boxes, scores = round_as_text(boxes, 1), round_as_text(scores, 3)
    order = np.argsort(-scores, kind="stable")
    boxes, image = boxes[order], image[order]

    objects, difficult, table = truth.of_class(name)
    if use_diff:
        difficult[:] = False
    best, overlap = _best_object(boxes, image, objects, table)

    hit = np.flatnonzero(overlap > ovthresh)
    # The detections are in order of score, so the first one of each object takes it and the others are false.
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
    """The contents of the reference's PASCAL ``results.json``.

    ``detections`` is ``{image id: {class from 1: rows [x1, y1, x2, y2, score]}}``. Returns
    ``results[class][image]``, lists of rows of floats, class 0 (background) always empty, images in the order of
    ``image_ids``. What ``detections`` lacks, a class or an image, has no rows.
    """
    results: list[list[list]] = [[[] for _ in image_ids] for _ in range(num_classes + 1)]
    for i, image_id in enumerate(image_ids):
        for category, rows in detections.get(image_id, {}).items():
            results[category][i] = np.asarray(rows).tolist()
    return results


def ground_truth(annotations: Sequence[Mapping], image_ids: Sequence, names: Mapping) -> list[list[dict]]:
    """COCO-style annotations as :func:`evaluate` wants them, with the 1-based corners of VOC's XML files.

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
    """``{image id: {class from 1: rows}}`` as :func:`evaluate` wants it: ``[class from 0][image]``."""
    empty = np.zeros((0, 5), dtype=np.float32)
    return [[detections.get(i, {}).get(cls, empty) for i in image_ids] for cls in range(1, num_classes + 1)]


def round_as_text(values, decimals: int) -> np.ndarray:
    """What ``float(f"{value:.{decimals}f}")`` gives, for a whole array; float64, same shape.

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
    """Image index (n,) and rows (n, 5) float64 of all detections of a class, in the order of the images."""
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
    """The objects of all images as arrays, so that those of a class are found quickly."""

    def __init__(self, ground_truth: Sequence[Sequence[Mapping]]) -> None:
        self.images = len(ground_truth)
        objects = [one for of_image in ground_truth for one in of_image]
        self.image = np.repeat(np.arange(self.images), [len(of_image) for of_image in ground_truth])
        self.names = np.array([one["name"] for one in objects], dtype=object)
        self.boxes = np.array([one["bbox"] for one in objects], dtype=np.float64).reshape(-1, 4)
        self.difficult = np.array([bool(one.get("difficult", 0)) for one in objects], dtype=bool)

    def of_class(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes (n + 1, 4) and difficult flags (n,) of a class, and which of them each image has.

        The last box is a filler that overlaps nothing. The third array (images, most objects in an image) holds
        indices of boxes, the filler's where an image has fewer.
        """
        own = np.flatnonzero(self.names == name)
        boxes = np.vstack([self.boxes[own], [[np.inf, np.inf, -np.inf, -np.inf]]])
        counts = np.bincount(self.image[own], minlength=self.images)
        table = np.full((self.images, counts.max(initial=0)), len(own))
        table[np.arange(table.shape[1]) < counts[:, None]] = np.arange(len(own))
        return boxes, self.difficult[own], table


def _best_object(boxes, image, objects, table) -> tuple[np.ndarray, np.ndarray]:
    """For each detection the object of its image that it overlaps most (the first of equals), and that overlap."""
    best = np.full(len(boxes), len(objects) - 1)
    overlap = np.zeros(len(boxes))
    if table.shape[1] == 0:
        return best, overlap
    compared = np.flatnonzero(table[image, 0] < len(objects) - 1)
    step = max(1, PAIRS_AT_ONCE // table.shape[1])
    for start in range(0, len(compared), step):
        rows = compared[start : start + step]
        candidates = table[image[rows]]
        found = _overlaps(boxes[rows, None], objects[candidates])
        choice = np.argmax(found, axis=1)[:, None]
        best[rows] = np.take_along_axis(candidates, choice, 1)[:, 0]
        overlap[rows] = np.take_along_axis(found, choice, 1)[:, 0]
    return best, overlap


def _overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (..., 4) with inclusive coordinates, broadcast."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        width = np.minimum(a[..., 2], b[..., 2]) - np.maximum(a[..., 0], b[..., 0]) + 1.0
        height = np.minimum(a[..., 3], b[..., 3]) - np.maximum(a[..., 1], b[..., 1]) + 1.0
        intersection = np.maximum(width, 0.0) * np.maximum(height, 0.0)
        area_a = (a[..., 2] - a[..., 0] + 1.0) * (a[..., 3] - a[..., 1] + 1.0)
        area_b = (b[..., 2] - b[..., 0] + 1.0) * (b[..., 3] - b[..., 1] + 1.0)
        return intersection / (area_a + area_b - intersection)
