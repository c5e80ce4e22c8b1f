"""Why a detector has its score: curves, thresholds, confusion, error types, joints, and depth by distance.

Boxes here are [x1, y1, x2, y2] in pixels. Everything works on :class:`Objects` and :class:`Detections`, which any
dataset's annotations and results can be converted to (:func:`from_content`, :func:`from_arrays`). Results are plain
dicts, lists and numbers for JSON; a value that does not exist (such as the AP of a class without objects) is None.

The error types are those of TIDE (Bolya et al., arXiv 2008.08115), the AP is COCO's: the mean of 101 interpolated
precisions. Objects that are ignored (crowds, difficult ones) count neither for nor against a detection.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import UserError
from .coco import joint_similarity
from .kitti import Labels

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
MAX_DETECTIONS = 100  # per image and class
# Square roots of areas in pixels, as COCO divides objects.
SIZES = {"all": (0.0, 1e5), "small": (0.0, 32.0), "medium": (32.0, 96.0), "large": (96.0, 1e5)}
FOREGROUND, BACKGROUND = 0.5, 0.1  # TIDE's thresholds of overlap
ERRORS = ("classification", "localization", "both", "duplicate", "background", "missed")
PAIRS_AT_ONCE = 4_000_000  # of detection and object whose overlap is computed at once: about 200 MB of temporaries
CURVE_POINTS = 101
WORST_CASES = 24  # of each kind


@dataclass
class Objects:
    """The objects of a dataset.

    Attributes:
        image: (n,) int64 index of the image.
        cls: (n,) int64 class from 0.
        boxes: (n, 4) float64.
        ignored: (n,) bool, counts neither for nor against a detection.
        crowd: (n,) bool, an ignored region that any number of detections may match, by the share of their own area.
        area: (n,) float64 pixels, by which objects are divided into sizes; that of the segmentation where it is known.
    """

    image: np.ndarray
    cls: np.ndarray
    boxes: np.ndarray
    ignored: np.ndarray
    crowd: np.ndarray
    area: np.ndarray

    def __len__(self) -> int:
        return len(self.image)


@dataclass
class Detections:
    """Detections, best first.

    Attributes:
        image: (n,) int64 index of the image.
        cls: (n,) int64 class from 0.
        boxes: (n, 4) float64.
        score: (n,) float64, descending.
        source: (n,) int64 index of each in what they were made from.
    """

    image: np.ndarray
    cls: np.ndarray
    boxes: np.ndarray
    score: np.ndarray
    source: np.ndarray

    def __len__(self) -> int:
        return len(self.image)

    def take(self, which: np.ndarray) -> "Detections":
        """Return some of them, by index or mask, in their order."""
        columns = (self.image, self.cls, self.boxes, self.score, self.source)
        return Detections(*(values[which] for values in columns))


def from_arrays(
    images: Sequence, objects: Sequence[Mapping[str, np.ndarray]], results: Mapping, boxes_of: Callable | None = None
) -> tuple[Objects, Detections]:
    """Convert the objects and results of a dataset.

    Args:
        images: the image ids, in the order of ``objects``.
        objects: for each image ``boxes`` (n, 4) and ``cls`` (n,), negative for ignored objects of any class; perhaps
            ``ignored``, ``crowd`` and ``area``, (n,) each.
        results: ``{image id: {class from 1: rows}}``; images without an entry have no detections.
        boxes_of: rows to (n, 5) [x1, y1, x2, y2, score]; the first five columns by default.
    """
    cls = _joined([one["cls"] for one in objects], (), np.int64)
    boxes = _joined([one["boxes"] for one in objects], (4,), np.float64)
    none = [np.zeros(len(one["cls"]), dtype=bool) for one in objects]
    crowd = _joined([one.get("crowd", no) for one, no in zip(objects, none, strict=True)], (), bool)
    ignored = _joined([one.get("ignored", no) for one, no in zip(objects, none, strict=True)], (), bool)
    areas = [one.get("area", _area(_joined([one["boxes"]], (4,), np.float64))) for one in objects]
    image = np.repeat(np.arange(len(images)), [len(one["cls"]) for one in objects])
    truth = Objects(image, cls, boxes, ignored | crowd | (cls < 0), crowd, _joined(areas, (), np.float64))

    parts, of_image, of_class = [], [], []
    for k, image_id in enumerate(images):
        for category, rows in results.get(image_id, {}).items():
            rows = np.asarray(rows, dtype=np.float64)
            if rows.size:
                parts.append(boxes_of(rows) if boxes_of is not None else rows[:, :5])
                of_image.append(np.full(len(rows), k))
                of_class.append(np.full(len(rows), int(category) - 1))
    rows = _joined(parts, (5,), np.float64)
    return truth, _sorted(_joined(of_image, (), np.int64), _joined(of_class, (), np.int64), rows)


def from_dataset(dataset, results: Mapping, boxes_of: Callable | None = None) -> tuple[Objects, Detections]:
    """Convert the objects of a dataset (``datasets.base.CocoStyleDataset``) and its results.

    ``results`` is ``{image id: {class from 1: rows}}``; only its images count. ``boxes_of`` as for :func:`from_arrays`,
    ``detected_boxes`` of the task.
    """
    content = dataset.filtered_annotations()
    classes = dataset.classes_of(content)
    by_image: dict = {image_id: [] for image_id in dataset.image_ids if image_id in results}
    for one in content["annotations"]:
        if one["image_id"] in by_image:
            by_image[one["image_id"]].append(one)
    objects = [
        {
            "boxes": _corners([one["bbox"] for one in of_image]),
            "cls": np.array([classes.get(one["category_id"], -1) for one in of_image], dtype=np.int64),
            "ignored": np.array([bool(one.get("ignore", 0)) for one in of_image], dtype=bool),
            "crowd": np.array([bool(one.get("iscrowd", 0)) for one in of_image], dtype=bool),
            "area": np.array([one.get("area", one["bbox"][2] * one["bbox"][3]) for one in of_image]),
        }
        for of_image in by_image.values()
    ]
    return from_arrays(list(by_image), objects, results, boxes_of)


def from_content(content: Mapping, results: Sequence[Mapping]) -> tuple[Objects, Detections, list[str]]:
    """Convert the annotations of a COCO file and results in COCO's form; also return the class names.

    Raises:
        UserError: a result has an unknown image or category.
    """
    from .results import check_ids

    images = {image["id"]: k for k, image in enumerate(content["images"])}
    classes = {category["id"]: k for k, category in enumerate(content["categories"])}
    check_ids(results, images.keys(), classes.keys())
    annotations = [one for one in content["annotations"] if one["image_id"] in images]
    boxes = _corners([one["bbox"] for one in annotations])
    crowd = np.array([bool(one.get("iscrowd", 0)) for one in annotations], dtype=bool)
    truth = Objects(
        image=np.array([images[one["image_id"]] for one in annotations], dtype=np.int64),
        cls=np.array([classes[one["category_id"]] for one in annotations], dtype=np.int64),
        boxes=boxes,
        ignored=crowd | np.array([bool(one.get("ignore", 0)) for one in annotations], dtype=bool),
        crowd=crowd,
        area=np.array([one.get("area", one["bbox"][2] * one["bbox"][3]) for one in annotations], dtype=np.float64),
    )
    score = np.array([one["score"] for one in results], dtype=np.float64)
    rows = np.column_stack([_corners([one["bbox"] for one in results]), score])
    image = np.array([images[one["image_id"]] for one in results], dtype=np.int64)
    cls = np.array([classes[one["category_id"]] for one in results], dtype=np.int64)
    return truth, _sorted(image, cls, rows), [str(category["name"]) for category in content["categories"]]


def analyze(truth: Objects, found: Detections, class_names: Sequence[str], iou: float = FOREGROUND) -> dict:
    """Return everything about the boxes of a dataset.

    Args:
        truth, found: objects and detections; of each image and class the best 100 detections count.
        class_names: in the order of the classes.
        iou: overlap from which a detection matches an object, for all but the AP over several overlaps.

    Returns:
        * ``scores``: ``AP`` (overlaps 0.5 to 0.95), ``AP50``, ``AP75``, ``AP_small``, ``AP_medium``, ``AP_large``,
          means over the classes with objects;
        * ``classes``: for each class its ``name``, ``objects``, ``detections``, the scores, ``curve`` (``recall`` and
          ``precision`` of 101 points at ``iou``), ``thresholds`` (see :func:`threshold_curves`), and ``best``: the
          ``threshold`` with the highest F1, and ``precision``, ``recall``, ``f1`` there;
        * ``best``: the same for all classes together;
        * ``confusion``: see :func:`confusion_matrix`, at the best threshold;
        * ``errors``: see :func:`error_types`;
        * ``worst``: see :func:`worst_cases`, at the best threshold.
    """
    found = best_of_each(found, MAX_DETECTIONS)
    overlaps = Overlaps.of(truth, found)
    classes = []
    for k, name in enumerate(class_names):
        objects = int(np.sum((truth.cls == k) & ~truth.ignored))
        matched = match(truth, found, overlaps, iou, cls=k)
        curves = threshold_curves(matched, objects)
        classes.append(
            {
                "name": str(name),
                "objects": objects,
                "detections": int(np.sum(found.cls == k)),
                **_class_scores(truth, found, overlaps, k),
                "curve": _interpolated(matched, objects),
                "thresholds": curves,
                "best": _best(curves),
            }
        )
    scores = {name: _mean([entry[name] for entry in classes]) for name in _SCORES}
    everything = match(truth, found, overlaps, iou)
    curves = threshold_curves(everything, int(np.sum(~truth.ignored)))
    best = _best(curves)
    threshold = best["threshold"] if best is not None else 0.0
    return {
        "iou": float(iou),
        "scores": scores,
        "classes": classes,
        "thresholds": curves,
        "best": best,
        "confusion": confusion_matrix(truth, found, class_names, threshold, iou),
        "errors": error_types(truth, found, class_names, iou),
        "worst": worst_cases(truth, found, class_names, threshold, iou),
    }


def best_of_each(found: Detections, limit: int) -> Detections:
    """Return the ``limit`` best detections of each image and class."""
    groups = found.image * (found.cls.max(initial=0) + 1) + found.cls
    order = np.argsort(groups, kind="stable")
    sizes = np.unique(groups[order], return_counts=True)[1]
    place = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return found.take(np.sort(order[place < limit]))


# Overlaps and matching


@dataclass
class Overlaps:
    """The pairs of detections and objects of one image that overlap, ordered by detection.

    Attributes:
        detection, object: (p,) indices.
        iou: (p,) intersection over union; of crowds the share of the detection's own area.
    """

    detection: np.ndarray
    object: np.ndarray
    iou: np.ndarray

    @classmethod
    def of(cls, truth: Objects, found: Detections, least: float = 0.0) -> "Overlaps":
        """Return the pairs of any two classes with more than ``least`` overlap, computed in bounded memory."""
        by_image = np.argsort(truth.image, kind="stable")
        images = max(truth.image.max(initial=-1), found.image.max(initial=-1)) + 1
        counts = np.bincount(truth.image, minlength=images)
        start = np.cumsum(counts) - counts
        size = counts[found.image] if len(found) else np.zeros(0, dtype=np.int64)
        ends = np.cumsum(size)
        parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        limits = np.arange(PAIRS_AT_ONCE, ends[-1:].sum(), PAIRS_AT_ONCE)
        for rows in np.split(np.arange(len(found)), np.searchsorted(ends, limits)):
            count = size[rows]
            d = np.repeat(rows, count)
            place = np.arange(len(d)) - np.repeat(np.cumsum(count) - count, count)
            o = by_image[np.repeat(start[found.image[rows]], count) + place] if len(d) else np.zeros(0, dtype=np.int64)
            iou = box_iou(found.boxes[d], truth.boxes[o], truth.crowd[o])
            near = iou > least
            parts.append((d[near], o[near], iou[near]))
        return cls(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def only(self, which: np.ndarray) -> "Overlaps":
        """Return some of the pairs, by mask."""
        return Overlaps(self.detection[which], self.object[which], self.iou[which])


def box_iou(a: np.ndarray, b: np.ndarray, crowd: np.ndarray | None = None) -> np.ndarray:
    """Return the overlap (n,) of boxes ``a[i]`` and ``b[i]``, (n, 4) each; for ``crowd`` the share of ``a``'s area."""
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    inter = np.where((sides > 0).all(axis=1), sides[:, 0] * sides[:, 1], 0.0)
    union = _area(a) + (_area(b) - inter if crowd is None else np.where(crowd, 0.0, _area(b) - inter))
    return np.divide(inter, union, out=np.zeros(len(a)), where=union > 0)


@dataclass
class Matches:
    """Outcomes of detections, those of one class or all, best first.

    Attributes:
        detection: (n,) indices of the detections.
        object: (n,) index of the object that each matches, -1 for none.
        score: (n,) their scores.
        ignored: (n,) bool, matched to an ignored object: neither true nor false.
    """

    detection: np.ndarray
    object: np.ndarray
    score: np.ndarray
    ignored: np.ndarray

    @property
    def true(self) -> np.ndarray:
        """Return (n,) bool: true positives."""
        return (self.object >= 0) & ~self.ignored

    @property
    def false(self) -> np.ndarray:
        """Return (n,) bool: false positives."""
        return (self.object < 0) & ~self.ignored


def match(
    truth: Objects, found: Detections, overlaps: Overlaps, iou: float, cls: int | None = None, ignored=None
) -> Matches:
    """Match detections to objects of their class as pycocotools does, best first.

    A detection takes the free object with the largest overlap of at least ``iou`` (of equals the last in the order of
    the objects); only if there is none, an ignored one.

    Args:
        truth, found, overlaps: objects, detections, and their overlaps.
        iou: overlap from which they match.
        cls: match the detections of this class alone.
        ignored: (objects,) bool instead of ``truth.ignored``.
    """
    ignored = truth.ignored if ignored is None else ignored
    which = np.arange(len(found)) if cls is None else np.flatnonzero(found.cls == cls)
    near = (overlaps.iou >= min(iou, 1 - 1e-10)) & (found.cls[overlaps.detection] == truth.cls[overlaps.object])
    # Of ignored objects without a class (KITTI's DontCare) the class is -1: they excuse detections of any class.
    near |= (overlaps.iou >= min(iou, 1 - 1e-10)) & (truth.cls[overlaps.object] < 0)
    if cls is not None:
        near &= found.cls[overlaps.detection] == cls
    d, o, value = overlaps.detection[near], overlaps.object[near], overlaps.iou[near]
    order = np.lexsort((-o, -value, ignored[o], d))
    d, o = d[order], o[order]
    taken = np.zeros(len(truth), dtype=bool)
    result = np.full(len(found), -1, dtype=np.int64)
    for a, b in zip(d.tolist(), o.tolist(), strict=True):
        if result[a] < 0 and (not taken[b] or truth.crowd[b]):
            taken[b] = True
            result[a] = b
    matched = result[which]
    return Matches(which, matched, found.score[which], np.append(ignored, False)[matched])


# Curves and AP


def average_precision(matched: Matches, objects: int) -> float | None:
    """Return COCO's AP of one class: the mean of 101 interpolated precisions; None without objects."""
    if not objects:
        return None
    recall, precision = _recall_precision(matched, objects)
    return float(_precision_at(recall, precision).mean())


def threshold_curves(matched: Matches, objects: int) -> dict[str, list[float]]:
    """Return precision, recall and F1 over the score threshold, from the highest score down.

    ``{"threshold", "precision", "recall", "f1"}``, lists of at most 102 points whose thresholds are about evenly
    spaced, that with the highest F1 among them. A detection counts if its score is at least the threshold.
    """
    score = matched.score[~matched.ignored]
    true = np.cumsum(matched.true[~matched.ignored])
    # Detections of equal score are above a threshold together.
    last = np.flatnonzero(np.diff(score, append=-np.inf)) if len(score) else np.zeros(0, dtype=np.int64)
    true, total = true[last], last + 1.0
    precision, recall = true / np.maximum(total, 1), true / max(objects, 1)
    f1 = 2 * true / np.maximum(total + objects, 1)
    shown = np.arange(len(last))
    if len(last) > CURVE_POINTS:
        thresholds = np.linspace(score[0], score[-1], CURVE_POINTS)
        shown = np.searchsorted(-score[last], -thresholds, side="right") - 1  # the lowest score of at least each
        shown = np.union1d(shown, [int(np.argmax(f1))])
    columns = {"threshold": score[last], "precision": precision, "recall": recall, "f1": f1}
    return {name: [float(value) for value in values[shown]] for name, values in columns.items()}


def _best(curves: Mapping[str, Sequence[float]]) -> dict[str, float] | None:
    if not curves["f1"]:
        return None
    k = int(np.argmax(curves["f1"]))
    return {name: values[k] for name, values in curves.items()}


_SCORES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")


def _class_scores(truth: Objects, found: Detections, overlaps: Overlaps, cls: int) -> dict[str, float | None]:
    """Return the scores of one class by name, None where it has no objects."""
    near = (found.cls[overlaps.detection] == cls) & np.isin(truth.cls[overlaps.object], (cls, -1))
    overlaps = overlaps.only(near & (overlaps.iou >= IOU_THRESHOLDS[0] - 1e-10))
    by_size = {size: _by_iou(truth, found, overlaps, cls, size) for size in SIZES}
    everything = by_size["all"]
    scores = {"AP": _mean(everything), "AP50": everything[0], "AP75": everything[5]}
    return {**scores, **{f"AP_{size}": _mean(by_size[size]) for size in ("small", "medium", "large")}}


def _by_iou(truth: Objects, found: Detections, overlaps: Overlaps, cls: int, size: str) -> list[float | None]:
    """Return the AP of a class and a range of sizes at each of ``IOU_THRESHOLDS``."""
    low, high = (side**2 for side in SIZES[size])
    ignored = truth.ignored | (truth.area < low) | (truth.area > high)
    objects = int(np.sum((truth.cls == cls) & ~ignored))
    area = _area(found.boxes)
    values: list[float | None] = []
    for iou in IOU_THRESHOLDS:
        matched = match(truth, found, overlaps, iou, cls, ignored)
        # What matches nothing and is of another size is not counted, as by COCO.
        other = (area[matched.detection] < low) | (area[matched.detection] > high)
        matched = replace(matched, ignored=matched.ignored | ((matched.object < 0) & other))
        values.append(average_precision(matched, objects))
    return values


def _recall_precision(matched: Matches, objects: int) -> tuple[np.ndarray, np.ndarray]:
    counted = ~matched.ignored
    true, false = np.cumsum(matched.true[counted]), np.cumsum(matched.false[counted])
    return true / max(objects, 1), true / np.maximum(true + false, np.spacing(1.0))


def _precision_at(recall: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Return the best precision at each of ``RECALLS`` or a higher recall, 0 beyond the last, (101,)."""
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return best[np.searchsorted(recall, RECALLS, side="left")]


def _interpolated(matched: Matches, objects: int) -> dict[str, list[float]]:
    if not objects:
        return {"recall": [], "precision": []}
    return {"recall": RECALLS.tolist(), "precision": _precision_at(*_recall_precision(matched, objects)).tolist()}


# Confusion


def confusion_matrix(
    truth: Objects, found: Detections, class_names: Sequence[str], threshold: float, iou: float = FOREGROUND
) -> dict:
    """Count which classes are taken for which, at one score threshold.

    Detections with at least that score and objects are paired regardless of class, the largest overlaps first, each at
    most once, from ``iou`` on. Detections on ignored objects, and nothing else, are left out.

    Returns:
        ``labels``: the class names and ``background``; ``matrix``: (C + 1) x (C + 1) counts, a row for each true class
        and a column for each predicted one. The last row holds detections on background, the last column objects that
        were missed. ``threshold`` and ``iou`` are the arguments.
    """
    found = found.take(found.score >= threshold)
    overlaps = Overlaps.of(truth, found)
    overlaps = overlaps.only(overlaps.iou >= min(iou, 1 - 1e-10))
    count = len(class_names)
    matrix = np.zeros((count + 1, count + 1), dtype=np.int64)
    same = truth.cls[overlaps.object] == found.cls[overlaps.detection]
    regular = ~truth.ignored[overlaps.object]
    # Of equal overlaps the right class, then the better score (detections are in its order).
    order = np.lexsort((overlaps.detection, ~same, -overlaps.iou))
    order = order[regular[order]]
    paired, used = np.zeros(len(truth), dtype=bool), np.zeros(len(found), dtype=bool)
    for k in order:
        d, o = overlaps.detection[k], overlaps.object[k]
        if not (paired[o] or used[d]):
            paired[o] = used[d] = True
            matrix[truth.cls[o], found.cls[d]] += 1
    excused = np.zeros(len(found), dtype=bool)
    excused[overlaps.detection[~regular]] = True
    np.add.at(matrix[count], found.cls[~used & ~excused], 1)
    np.add.at(matrix[:, count], truth.cls[~paired & ~truth.ignored], 1)
    labels = [*map(str, class_names), "background"]
    return {"labels": labels, "matrix": matrix.tolist(), "threshold": float(threshold), "iou": float(iou)}


# Error types


def error_types(
    truth: Objects,
    found: Detections,
    class_names: Sequence[str],
    foreground: float = FOREGROUND,
    background: float = BACKGROUND,
) -> dict:
    """Divide false positives and missed objects into TIDE's error types, and return how much AP each costs.

    A false positive is, by its largest overlaps with objects of its image: ``localization``: between the thresholds
    with its own class; ``classification``: foreground with an object of another class; ``duplicate``: foreground with
    an object of its class that a better detection has matched; ``background``: at most ``background`` with any object;
    ``both``: all others. A ``missed`` object is one that no detection matches and no classification or localization
    error concerns.

    Returns:
        ``AP``: the mean over classes with objects at ``foreground``; ``count``: errors by type; ``dAP``: what the AP
        gains if the errors of one type were fixed, each type alone, as by TIDE: the best classification or localization
        error of an object that is not matched becomes a true positive, the others are removed; a duplicate, background
        or both error is removed; a missed object is not counted. ``dAP_false_positive`` and ``dAP_false_negative`` are
        the gains without any false positives, and without missed objects. ``classes``: counts by class name, of the
        predicted class, for missed objects the true one.
    """
    overlaps = Overlaps.of(truth, found)
    matched = match(truth, found, overlaps, foreground)
    kinds, targets = _classify(truth, found, overlaps, matched, foreground, background)
    objects = np.bincount(truth.cls[~truth.ignored], minlength=len(class_names))

    def mean_ap(state: Matches, cls: np.ndarray, counts: np.ndarray) -> float:
        values = []
        for k in np.flatnonzero(objects):
            part = _of_class(state, cls == k)
            # Without objects, which were all fixed as missed, what is left are false positives.
            values.append(average_precision(part, int(counts[k])) if counts[k] else 0.0 if part.false.any() else None)
        return _mean(values) or 0.0

    ap = mean_ap(matched, found.cls, objects)
    hit = np.zeros(len(truth), dtype=bool)
    hit[matched.object[matched.object >= 0]] = True
    concerned = (kinds == ERRORS.index("classification")) | (kinds == ERRORS.index("localization"))
    covered = np.zeros(len(truth), dtype=bool)
    fixed = np.zeros(len(found), dtype=bool)  # the best error of each object that is not matched
    for k in np.flatnonzero(concerned):
        fixed[k] = not (hit[targets[k]] or covered[targets[k]])
        covered[targets[k]] = True
    missed = ~hit & ~covered & ~truth.ignored

    gains = {}
    for code, kind in enumerate(ERRORS[:-1]):
        wrong = kinds == code
        right = wrong & fixed
        cls = np.where(right, truth.cls[targets], found.cls) if len(truth) else found.cls
        state = replace(matched, object=np.where(right, targets, matched.object))
        gains[kind] = mean_ap(replace(state, ignored=state.ignored | (wrong & ~fixed)), cls, objects) - ap
    fewer = objects - np.bincount(truth.cls[missed], minlength=len(class_names))
    gains["missed"] = mean_ap(matched, found.cls, fewer) - ap
    unmatched = objects - np.bincount(truth.cls[~hit & ~truth.ignored], minlength=len(class_names))
    no_false = replace(matched, ignored=matched.ignored | matched.false)

    counts = {kind: int(np.sum(kinds == code)) for code, kind in enumerate(ERRORS[:-1])}
    classes = {
        str(name): {
            **{kind: int(np.sum((kinds == code) & (found.cls == k))) for code, kind in enumerate(ERRORS[:-1])},
            "missed": int(np.sum(missed & (truth.cls == k))),
        }
        for k, name in enumerate(class_names)
    }
    return {
        "AP": ap,
        "count": {**counts, "missed": int(missed.sum())},
        "dAP": gains,
        "dAP_false_positive": mean_ap(no_false, found.cls, objects) - ap,
        "dAP_false_negative": mean_ap(matched, found.cls, unmatched) - ap,
        "classes": classes,
        "thresholds": {"foreground": float(foreground), "background": float(background)},
    }


def worst_cases(
    truth: Objects,
    found: Detections,
    class_names: Sequence[str],
    threshold: float,
    iou: float = FOREGROUND,
    count: int = WORST_CASES,
) -> dict[str, list[dict]]:
    """Return the largest missed objects and the false alarms with the highest scores, ``count`` of each.

    Returns:
        ``missed``: objects that no detection with at least the score ``threshold`` matches: ``image`` (index),
        ``class``, ``box``, ``area``, and the detection of such a score that overlaps most: its class ``taken_for`` and
        ``overlap``, None and 0 if there is none. ``false_alarms``: detections of any score that match nothing:
        ``image``, ``class``, ``box``, ``score``, ``error`` (one of ``ERRORS``), and the object that a classification or
        localization error concerns: its ``true_class`` and ``overlap``, None and 0 for other errors.
    """
    overlaps = Overlaps.of(truth, found)
    matched = match(truth, found, overlaps, iou)
    names = [str(name) for name in class_names]
    hit = np.zeros(len(truth), dtype=bool)
    hit[matched.object[(matched.object >= 0) & (matched.score >= threshold)]] = True
    shown = overlaps.only(found.score[overlaps.detection] >= threshold)
    overlap, detection = _largest(Overlaps(shown.object, shown.detection, shown.iou), len(truth))
    missed = np.flatnonzero(~hit & ~truth.ignored)
    missed = missed[np.argsort(-truth.area[missed], kind="stable")][:count]

    kinds, targets = _classify(truth, found, overlaps, matched, iou, BACKGROUND)
    false = np.flatnonzero(kinds >= 0)[:count]
    related = np.isin(kinds[false], [ERRORS.index(kind) for kind in ("classification", "localization")])
    own = np.zeros(len(false))
    own[related] = box_iou(found.boxes[false[related]], truth.boxes[targets[false[related]]])
    return {
        "missed": [
            {
                "image": int(truth.image[k]),
                "class": names[truth.cls[k]],
                "box": truth.boxes[k].tolist(),
                "area": float(truth.area[k]),
                "taken_for": names[found.cls[detection[k]]] if overlap[k] else None,
                "overlap": float(overlap[k]),
            }
            for k in missed
        ],
        "false_alarms": [
            {
                "image": int(found.image[k]),
                "class": names[found.cls[k]],
                "box": found.boxes[k].tolist(),
                "score": float(found.score[k]),
                "error": ERRORS[kinds[k]],
                "true_class": names[truth.cls[targets[k]]] if value else None,
                "overlap": float(value),
            }
            for k, value in zip(false, own, strict=True)
        ],
    }


def _classify(
    truth: Objects, found: Detections, overlaps: Overlaps, matched: Matches, foreground: float, background: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return for each detection the error type (index in ``ERRORS``, -1 for none) and the object it concerns, or 0."""
    regular = overlaps.only(~truth.ignored[overlaps.object])
    same = truth.cls[regular.object] == found.cls[regular.detection]
    taken = np.zeros(len(truth), dtype=bool)
    taken[matched.object[matched.object >= 0]] = True
    own, own_object = _largest(regular.only(same), len(found))
    used, _ = _largest(regular.only(same & taken[regular.object]), len(found))
    other, other_object = _largest(regular.only(~same), len(found))
    conditions = {  # in the order in which TIDE tests them
        "localization": (own >= background) & (own < foreground),
        "classification": other >= foreground,
        "duplicate": used >= foreground,
        "background": np.maximum(own, other) <= background,
        "both": np.ones(len(found), dtype=bool),
    }
    kinds = np.full(len(found), -1)
    left = matched.false.copy()
    for kind, holds in conditions.items():
        kinds[left & holds] = ERRORS.index(kind)
        left &= ~holds
    targets = np.zeros(len(found), dtype=np.int64)
    for kind, objects in (("localization", own_object), ("classification", other_object)):
        which = kinds == ERRORS.index(kind)
        targets[which] = objects[which]
    return kinds, targets


def _largest(overlaps: Overlaps, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest overlap of each of ``count`` detections and the object that has it, 0 and 0 for none."""
    order = np.lexsort((overlaps.object, -overlaps.iou, overlaps.detection))
    first = order[np.flatnonzero(np.diff(overlaps.detection[order], prepend=-1))]
    value, which = np.zeros(count), np.zeros(count, dtype=np.int64)
    value[overlaps.detection[first]] = overlaps.iou[first]
    which[overlaps.detection[first]] = overlaps.object[first]
    return value, which


def _of_class(matched: Matches, which: np.ndarray) -> Matches:
    return Matches(matched.detection[which], matched.object[which], matched.score[which], matched.ignored[which])


# Poses and 3D boxes


def joint_scores(
    persons: Sequence[Mapping],
    poses: Sequence[Mapping],
    sigmas: Sequence[float],
    names: Sequence[str],
    iou: float = FOREGROUND,
) -> dict:
    """Return how well each joint is placed, on poses whose box matches a person's.

    Args:
        persons: COCO annotations with ``image_id``, ``bbox``, ``area`` and ``keypoints``.
        poses: results in COCO's form with ``keypoints``.
        sigmas: of each joint, as in ``pycocotools.cocoeval.Params.kpt_oks_sigmas``.
        names: of the joints.
        iou: overlap of the boxes from which they match.

    Returns:
        ``persons`` and ``matched``: how many; ``OKS``: the mean over matched persons with labeled joints; ``joints``:
        for each its ``name``, ``count`` of labeled ones in matched persons, and means over them: ``OKS``, distance
        ``error`` in pixels, and ``relative_error``, in square roots of the person's area.
    """
    images = list(dict.fromkeys(one["image_id"] for one in (*persons, *poses)))
    content = {
        "images": [{"id": image_id} for image_id in images],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [{**one, "category_id": 1} for one in persons],
    }
    truth, found, _ = from_content(content, [{**one, "category_id": 1} for one in poses])
    matched = match(truth, found, Overlaps.of(truth, found), iou)
    pairs = [
        (persons[o], poses[found.source[d]])
        for d, o in zip(matched.detection[matched.true], matched.object[matched.true], strict=True)
    ]
    shape = (len(pairs), len(names), 3)
    real = np.array([person["keypoints"] for person, _ in pairs], dtype=np.float64).reshape(shape)
    guess = np.array([pose["keypoints"] for _, pose in pairs], dtype=np.float64).reshape(shape)
    similarity, scale = np.zeros(shape[:2]), np.ones((len(pairs), 1))
    for k, (person, _) in enumerate(pairs):
        similarity[k] = joint_similarity(guess[k : k + 1], [person], np.asarray(sigmas))[0, 0]
        scale[k] = np.sqrt(max(person["area"], 1e-9))
    labeled, distance = real[:, :, 2] > 0, np.hypot(*(guess - real)[:, :, :2].transpose(2, 0, 1))
    joints = []
    for k, name in enumerate(names):
        known = labeled[:, k]
        columns = {"OKS": similarity, "error": distance, "relative_error": distance / scale}
        means = {column: _mean(values[known, k]) for column, values in columns.items()}
        joints.append({"name": str(name), "count": int(known.sum()), **means})
    with_joints = labeled.any(axis=1)
    oks = (similarity * labeled).sum(1)[with_joints] / labeled.sum(1)[with_joints]
    return {"persons": int(np.sum(~truth.ignored)), "matched": len(pairs), "OKS": _mean(oks), "joints": joints}


def distance_errors(
    truth: Sequence[Labels],
    found: Sequence[Labels],
    classes: Sequence[str],
    edges: Sequence[float] = (0, 10, 20, 30, 40, 60, 100),
    iou: float = FOREGROUND,
) -> dict:
    """Return the errors of depth, size and angle by distance, on detections whose 2D box matches an object's.

    Args:
        truth, found: the labels of image i (``evaluation.kitti``), as for ``kitti.evaluate``.
        classes: names of the classes that are compared.
        edges: limits in meters of the ranges of an object's depth; objects beyond are left out.
        iou: overlap of the 2D boxes from which they match.

    Returns:
        ``{class: [{"from", "to", "objects", "matched", "depth", "depth_bias", "relative_depth", "size", "angle",
        "orientation_similarity"}]}``: objects in the range and how many are matched, then means over the matched ones:
        absolute and signed error of the depth in meters, relative error of the depth, absolute error of a side in
        meters, absolute error of rotation_y in degrees (0 to 180), and (1 + cos) / 2 of it. None without matches.

    Raises:
        UserError: the lists differ in length.
    """
    if len(truth) != len(found):
        raise UserError(f"detections of {len(found)} images do not fit labels of {len(truth)}")
    codes = {name: k for k, name in enumerate(classes)}

    def columns(labels: Sequence[Labels]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return image, class (-1 for others) and row (13,) of the labels of all images."""
        image = np.repeat(np.arange(len(labels)), [len(one) for one in labels])
        cls = _joined([[codes.get(str(name), -1) for name in one.names] for one in labels], (), np.int64)
        return image, cls, _joined([one.rows for one in labels], (13,), np.float64)

    image, cls, real = columns(truth)
    boxes, other = real[:, 1:5], cls < 0
    objects = Objects(image, cls, boxes, other, np.zeros(len(cls), dtype=bool), _area(boxes))
    image, cls, guess = columns(found)
    known = np.flatnonzero(cls >= 0)
    guess = guess[known]
    detections = _sorted(image[known], cls[known], guess[:, [1, 2, 3, 4, 12]])
    matched = match(objects, detections, Overlaps.of(objects, detections), iou)
    o, guess = matched.object[matched.true], guess[detections.source[matched.detection[matched.true]]]
    depth = guess[:, 10] - real[o, 10]
    angle = np.abs((guess[:, 11] - real[o, 11] + np.pi) % (2 * np.pi) - np.pi)
    errors = {
        "depth": np.abs(depth),
        "depth_bias": depth,
        "relative_depth": np.abs(depth) / np.maximum(real[o, 10], 1e-9),
        "size": np.abs(guess[:, 5:8] - real[o, 5:8]).mean(axis=1),
        "angle": np.degrees(angle),
        "orientation_similarity": (1 + np.cos(angle)) / 2,
    }
    result: dict[str, list[dict]] = {}
    for name, code in codes.items():
        result[name] = []
        for low, high in zip(edges[:-1], edges[1:], strict=True):
            inside = (real[:, 10] >= low) & (real[:, 10] < high) & (objects.cls == code)
            pairs = inside[o]
            entry = {"from": float(low), "to": float(high), "objects": int(inside.sum()), "matched": int(pairs.sum())}
            result[name].append({**entry, **{key: _mean(values[pairs]) for key, values in errors.items()}})
    return result


# Arrays


def _sorted(image: np.ndarray, cls: np.ndarray, rows: np.ndarray) -> Detections:
    """Return detections from rows (n, 5), best first; equal scores in the order of images, as by pycocotools."""
    order = np.lexsort((image, -rows[:, 4]))
    return Detections(image[order], cls[order], rows[order, :4], rows[order, 4], order)


def _joined(parts: Sequence, shape: tuple[int, ...], dtype) -> np.ndarray:
    arrays = [np.asarray(part, dtype=dtype).reshape(-1, *shape) for part in parts]
    return np.concatenate(arrays) if arrays else np.zeros((0, *shape), dtype=dtype)


def _corners(boxes: Sequence[Sequence[float]]) -> np.ndarray:
    """Return [x, y, width, height] as corners (n, 4) float64."""
    array = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    array[:, 2:] += array[:, :2]
    return array


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _mean(values) -> float | None:
    """Return the mean of the values that exist, None if none does."""
    known = [float(value) for value in values if value is not None]
    return float(np.mean(known)) if known else None
