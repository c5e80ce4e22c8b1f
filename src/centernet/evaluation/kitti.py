"""KITTI object detection metric: AP of 2D boxes, of ground-plane boxes and of 3D boxes, and orientation similarity.

The rules are those of the benchmark's offline program (``evaluate_object_3d_offline``), in this process and without
compiled code. ``overlaps="official"`` selects the overlaps of the benchmark, ``"reference"`` those of the program that
the reference ships, which are lower on the ground and in 3D and with which the published numbers were measured.

Coordinates are the camera's: x right, y down, z forward, meters; a location is the middle of a box's bottom face.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import UserError
from ..utils import files
from . import kitti_text
from .kitti_text import CLASS_NAMES, image_name
from .kitti_text import write_results as write_results  # belongs to reading and scoring them
from .results import finite_rows
from .voc import round_as_text

CLASSES = ("Car", "Pedestrian", "Cyclist")
LEVELS = ("easy", "moderate", "hard")
METRICS = ("AP2D", "AOS", "APBEV", "AP3D")
RECALL_POINTS = (11, 40)

# For easy, moderate, hard: an object counts if it is at least that high, and no more occluded or truncated than that.
MIN_HEIGHT = (40, 25, 25)  # pixels
MAX_OCCLUSION = (0, 1, 2)
MAX_TRUNCATION = (0.15, 0.30, 0.50)

# Classes that resemble a class: detections on them are neither true nor false positives.
NEIGHBORS = {"Car": "Van", "Pedestrian": "Person_sitting"}

# Overlap that a true positive exceeds.
_STRICT = {"Car": 0.7, "Pedestrian": 0.5, "Cyclist": 0.5}
_MILD = {"Car": 0.5, "Pedestrian": 0.25, "Cyclist": 0.25}
MIN_OVERLAP = {
    "official": {"AP2D": _STRICT, "APBEV": _STRICT, "AP3D": _STRICT},
    "reference": {"AP2D": _STRICT, "APBEV": _MILD, "AP3D": _MILD},
}

SAMPLES = 41  # of the precision-recall curve
# How the benchmark's program calls the metrics in what it prints and in the names of its files.
PROGRAM_NAMES = {"AP2D": "detection", "AOS": "orientation", "APBEV": "detection_ground", "AP3D": "detection_3d"}
PAIRS_AT_ONCE = 500_000  # of object and detection that are compared at once: about 100 MB of temporaries
_CODE = {name: code for code, name in enumerate(CLASS_NAMES)}


@dataclass
class Labels:
    """The objects of one image, one row each: the content of a label file, or with ``score`` of a result file.

    names (n,) str of ``CLASS_NAMES``; truncated (n,) float64, share outside the image; occluded (n,) int64, 0 to 3;
    alpha (n,) float64 observation angle; bbox (n, 4) float64 x1, y1, x2, y2 in 0-based pixels; dimensions (n, 3)
    float64 height, width, length in meters; location (n, 3) float64; rotation_y (n,) float64; score (n,) float64, NaN
    for objects. Angles in radians.
    """

    names: np.ndarray
    truncated: np.ndarray
    occluded: np.ndarray
    alpha: np.ndarray
    bbox: np.ndarray
    dimensions: np.ndarray
    location: np.ndarray
    rotation_y: np.ndarray
    score: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    @property
    def rows(self) -> np.ndarray:
        """Return (n, 13) float64 [alpha, x1, y1, x2, y2, h, w, l, x, y, z, rotation_y, score]."""
        columns = (self.alpha, self.bbox, self.dimensions, self.location, self.rotation_y, self.score)
        return np.column_stack([np.asarray(column, dtype=np.float64) for column in columns])


def _labels(names: Sequence[str], truncated, occluded, rows) -> Labels:
    rows = np.asarray(rows, dtype=np.float64).reshape(len(names), 13)
    return Labels(
        names=np.array(names, dtype="U14"),
        truncated=np.asarray(truncated, dtype=np.float64),
        occluded=np.asarray(occluded, dtype=np.int64),
        alpha=rows[:, 0],
        bbox=rows[:, 1:5],
        dimensions=rows[:, 5:8],
        location=rows[:, 8:11],
        rotation_y=rows[:, 11],
        score=rows[:, 12],
    )


def read_labels(path: str | Path, with_scores: bool = False) -> Labels:
    """Read one label file, or ``with_scores`` one result file.

    Raises UserError naming file and line if it is not such a file; see ``kitti_text.read_label_lines``.
    """
    lines = kitti_text.read_label_lines(path, with_scores)
    return _labels(
        [line.name for line in lines],
        [line.truncated for line in lines],
        [line.occluded for line in lines],
        [(*line.numbers, line.score) for line in lines],
    )


def read_folder(folder: str | Path, ids: Sequence[int | str] | None = None, with_scores: bool = False) -> list[Labels]:
    """Read ``folder/000007.txt`` for each of ``ids`` (numbers, or names of six digits), in that order.

    Without ``ids``: every such file in the folder, in the order of their names.
    """
    folder = Path(folder)
    names = names_in(folder) if ids is None else [image_name(i) for i in ids]
    return [read_labels(folder / f"{name}.txt", with_scores) for name in names]


def names_in(folder: str | Path) -> list[str]:
    """Return the names of the images with a text file in ``folder``, ascending. Raises UserError if there are none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    names = sorted(path.stem for path in folder.glob("*.txt") if path.stem.isascii() and path.stem.isdigit())
    if not names:
        raise UserError(f"{folder}: holds no files 000000.txt, 000001.txt, ...")
    return names


def from_rows(rows: Mapping[int, Any], class_names: Sequence[str], decimals: int | None = None) -> Labels:
    """Return a detector's result for one image as if it had been written and read.

    ``rows`` is ``{class from 1: rows of 13}`` as in ``kitti_text.result_text``; ``decimals=2`` rounds as the
    reference's result files do, None keeps the numbers. Rows that are not finite are left out.
    """
    filled = {category: np.asarray(part, dtype=np.float64) for category, part in rows.items() if len(part)}
    for category, part in filled.items():
        if part.ndim != 2 or part.shape[1] != 13:
            raise UserError(f"detections of {class_names[category - 1]} must be rows of 13, not of shape {part.shape}")
    filled = {category: finite_rows(part) for category, part in filled.items()}
    together = np.concatenate(list(filled.values())) if filled else np.zeros((0, 13))
    if decimals is not None:
        together = round_as_text(together, decimals)
    names = [class_names[category - 1] for category, part in filled.items() for _ in range(len(part))]
    return _labels(names, np.zeros(len(names)), np.zeros(len(names)), together)


def from_annotations(annotations: Sequence[Mapping], names: Mapping[int, str]) -> Labels:
    """Return the objects of one image from a converted annotation file.

    ``names`` is category id to class name. The second corner, which the file stores as a width and a height, is rounded
    to six decimals, so that it equals the label file's.
    """
    rows = []
    for a in annotations:
        x, y, w, h = a["bbox"]
        corner = (round(x + w, 6), round(y + h, 6))
        rows.append((a["alpha"], x, y, *corner, *a["dim"], *a["location"], a["rotation_y"], math.nan))
    return _labels(
        [names[a["category_id"]] for a in annotations],
        [a["truncated"] for a in annotations],
        [a["occluded"] for a in annotations],
        rows,
    )


def evaluate(
    ground_truth: Sequence[Labels],
    detections: Sequence[Labels],
    classes: Sequence[str] = CLASSES,
    overlaps: str = "official",
    recall_points: Sequence[int] = RECALL_POINTS,
) -> dict:
    """Return all scores of every class.

    Args:
        ground_truth, detections: the labels of image i, for the same images in the same order.
        classes: some of ``CLASSES``.
        overlaps: a key of ``MIN_OVERLAP``.
        recall_points: 11 (recalls 0, 0.1, ..., 1) and 40 (1/40, ..., 1; the benchmark's since 2019).

    Returns:
        ``{class: {metric: scores}}`` with the metrics AP2D (box in the image), AOS (the same, weighted with the
        similarity of the observation angles), APBEV (rectangle on the ground) and AP3D. ``scores`` has

        * ``"ap"``: ``{recall points: (easy, moderate, hard)}`` in [0, 1];
        * ``"precision"``: (3, 41) float64, best precision (for AOS: similarity) from each sampled recall on;
        * ``"recall"``: (3, 41) float64 recalls that belong to them, 0 beyond the last one that is reached;
        * ``"count"``: (3,) int64 objects that count;
        * ``"evaluated"``: whether the benchmark's program reports it. It skips a class without detections, or without
          detections that have a position on the ground or a height; their scores are 0 here.

        AOS is absent if any detection has the alpha -10, which stands for an unknown angle. At a threshold without true
        and false positives the precision is 0 (the program divides by zero).

    Raises:
        UserError: the lists do not fit each other, an argument is unknown, or an object or a detection has a number
            that is not finite.
    """
    if len(ground_truth) != len(detections):
        raise UserError(f"detections of {len(detections)} images do not fit labels of {len(ground_truth)}")
    for name, value, known in (
        *(("class", name, CLASSES) for name in classes),
        ("overlaps", overlaps, tuple(MIN_OVERLAP)),
        *(("recall points", number, RECALL_POINTS) for number in recall_points),
    ):
        if value not in known:
            raise UserError(f"KITTI evaluation: {name} {value!r} is none of {', '.join(map(str, known))}")
    objects, found = _Flat.of(ground_truth), _Flat.of(detections)
    # Objects have no score.
    for labels, columns, what in ((objects, slice(12), "an object"), (found, slice(13), "a detection")):
        bad = np.flatnonzero(~np.isfinite(labels.rows[:, columns]).all(axis=1))
        if len(bad):
            raise UserError(f"KITTI evaluation: {what} of image {labels.image[bad[0]]} (from 0) is not finite")
    similarity = not np.any(found.alpha == kitti_text.NO_ALPHA)
    result: dict = {name: {} for name in classes}
    for metric in ("AP2D", "APBEV", "AP3D"):
        least = MIN_OVERLAP[overlaps][metric]
        floor = min((least[name] for name in classes), default=1.0)
        pairs, covered = _overlapping(objects, found, metric, floor)
        for name in classes:
            curves = [
                _curve(objects, found, pairs, covered, name, level, least[name], similarity and metric == "AP2D")
                for level in range(len(LEVELS))
            ]
            evaluated = bool(np.any((found.code == _CODE[name]) & found.placed(metric)))
            scores = {
                "recall": np.stack([c.recall for c in curves]),
                "count": np.array([c.num_objects for c in curves]),
            }
            for key in (metric, "AOS") if similarity and metric == "AP2D" else (metric,):
                precision = np.stack([c.similarity if key == "AOS" else c.precision for c in curves])
                ap = {n: tuple(average_precision(row, n) for row in precision) for n in recall_points}
                result[name][key] = {"ap": ap, "precision": precision, **scores, "evaluated": evaluated}
    return result


def named_scores(result: Mapping, recall_points: int = 40) -> dict[str, float]:
    """Return the result of ``evaluate`` as one flat dict for logs, such as ``{"AP3D/Car_moderate": 0.12}``; in [0, 1].

    ``recall_points`` has to be among those of ``evaluate``. In the order AP2D, AOS, APBEV, AP3D, then classes, then
    levels; without AOS where there is none.
    """
    return {
        f"{metric}/{name}_{level}": value
        for metric in METRICS
        for name, of_class in result.items()
        if metric in of_class
        for level, value in zip(LEVELS, of_class[metric]["ap"][recall_points], strict=True)
    }


def average_precision(precision: np.ndarray, recall_points: int) -> float:
    """Return the mean of a curve (41,) at 11 recalls from 0 on (every fourth sample), or at 40 (all but the first)."""
    if recall_points == 11:
        return float(np.sum(precision[::4])) / 11.0
    return float(np.sum(precision[1:])) / 40.0


def format_table(result: Mapping, recall_points: Sequence[int] = RECALL_POINTS) -> str:
    """Return the scores of ``evaluate`` in percent as a table, a line per class, metric and number of recall points."""
    lines = [f"{'':34s}" + "".join(f"{level:>10s}" for level in LEVELS)]
    for name, of_class in result.items():
        for metric in METRICS:
            for number in recall_points if metric in of_class else ():
                scores = of_class[metric]
                values = [f"{100 * v:.2f}" if scores["evaluated"] else "-" for v in scores["ap"][number]]
                lines.append(f"{name:12s}{metric:6s}{number:3d} recall points" + "".join(f"{v:>10s}" for v in values))
    return "\n".join(lines)


def program_lines(result: Mapping) -> list[str]:
    """Return the lines with scores that the benchmark's program prints: ``car_detection AP: easy moderate hard``.

    In percent, mean over 11 recalls, in the program's order; classes that it does not evaluate have no line. ``result``
    is that of ``evaluate``, with 11 among its recall points.
    """
    lines = []
    for stem, scores in _evaluated(result):
        values = " ".join(f"{100 * value:.6f}" for value in scores["ap"][11])
        lines.append(f"{stem} AP: {values}")
    return lines


def write_statistics(result: Mapping, folder: str | Path, images: bool = False) -> list[Path]:
    """Write the files of the benchmark's program: ``stats_car_detection.txt``, ``plot/car_detection.txt``, and so on.

    ``stats_*.txt`` have a line of 41 precisions (AOS: similarities) for each of easy, moderate, hard; ``plot/*.txt`` 41
    lines of a recall and the three precisions.

    Args:
        result: that of ``evaluate``, with 11 among its recall points.
        folder: created if missing. The program writes next to the folder of the result files.
        images: also draw ``plot/*.png`` and ``plot/*.pdf``, about a second each.

    Returns:
        The files. Raises UserError if one cannot be written.
    """
    folder = Path(folder)
    with files.write_errors(folder):
        (folder / "plot").mkdir(parents=True, exist_ok=True)
    written = []
    for stem, scores in _evaluated(result):
        precision = scores["precision"]
        lines = "".join("".join(f"{value:f} " for value in row) + "\n" for row in precision)
        rows = np.column_stack([np.arange(SAMPLES) / (SAMPLES - 1), precision.T])
        plot = folder / "plot" / stem
        for path, text in (
            (folder / f"stats_{stem}.txt", lines),
            (plot.with_suffix(".txt"), "".join("{:f} {:f} {:f} {:f}\n".format(*row) for row in rows)),
        ):
            files.write_text(path, text)
            written.append(path)
        if images:
            for path in (plot.with_suffix(".png"), plot.with_suffix(".pdf")):
                _draw_curves(path, stem, rows)
                written.append(path)
    return written


def _evaluated(result: Mapping) -> Iterator[tuple[str, Mapping]]:
    """Yield the name of a curve, such as ``car_detection``, and its scores, in the order of the program."""
    groups = (("AP2D", "AOS"), ("APBEV",), ("AP3D",))
    for group in groups:
        for name, of_class in result.items():
            for metric in group:
                if metric in of_class and of_class[metric]["evaluated"]:
                    yield f"{name.lower()}_{PROGRAM_NAMES[metric]}", of_class[metric]


def _draw_curves(path: Path, title: str, rows: np.ndarray) -> None:
    from matplotlib.figure import Figure  # here, because it takes long to import

    figure = Figure(figsize=(4.5, 3.5), layout="constrained")
    axes = figure.subplots()
    for column, label in enumerate(("Easy", "Moderate", "Hard"), start=1):
        axes.plot(rows[:, 0], rows[:, column], label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="Recall", title=title.replace("_", " "))
    axes.set_ylabel("Orientation similarity" if title.endswith("orientation") else "Precision")
    axes.legend()
    with files.atomic_path(path) as temporary:
        figure.savefig(temporary)


@dataclass
class _Flat:
    """The rows of all images in one array, in the order of the images; ``start`` (images + 1,) are their offsets."""

    start: np.ndarray
    image: np.ndarray  # (n,) from 0
    code: np.ndarray  # (n,) index in CLASS_NAMES
    truncated: np.ndarray
    occluded: np.ndarray
    rows: np.ndarray  # (n, 13), see Labels.rows

    @classmethod
    def of(cls, labels: Sequence[Labels]) -> "_Flat":
        counts = np.array([len(one) for one in labels], dtype=np.int64)
        whole = {
            field.name: np.concatenate([np.asarray(getattr(one, field.name)) for one in labels])
            if len(labels)
            else getattr(_labels([], [], [], []), field.name)
            for field in fields(Labels)
        }
        names = whole["names"]
        known, inverse = np.unique(names, return_inverse=True)
        for name in known:
            if name not in _CODE:
                raise UserError(f"KITTI evaluation: {name!r} is none of the classes {', '.join(CLASS_NAMES)}")
        return cls(
            start=np.concatenate(([0], np.cumsum(counts))),
            image=np.repeat(np.arange(len(counts)), counts),
            code=np.array([_CODE[name] for name in known], dtype=np.int64)[inverse],
            truncated=whole["truncated"].astype(np.float64),
            occluded=whole["occluded"].astype(np.int64),
            rows=Labels(**whole).rows,
        )

    @property
    def alpha(self) -> np.ndarray:
        return self.rows[:, 0]

    @property
    def score(self) -> np.ndarray:
        return self.rows[:, 12]

    def placed(self, metric: str) -> np.ndarray:
        """Return (n,) bool: detections that make the program evaluate their class; -1000 is an unknown position."""
        if metric == "AP2D":
            return self.rows[:, 1] >= 0
        return self.rows[:, 8 if metric == "APBEV" else 9] != -1000

    def truth_of(self, name: str, level: int) -> np.ndarray:
        """Return (n,) int8: 0 for the objects that count, 1 for ignored ones, -1 for all others."""
        height = self.rows[:, 4] - self.rows[:, 2]
        too_hard = self.occluded > MAX_OCCLUSION[level]
        too_hard |= self.truncated > MAX_TRUNCATION[level]
        too_hard |= height < MIN_HEIGHT[level]
        state = np.full(len(self.code), -1, dtype=np.int8)
        state[self.code == _CODE[name]] = 0
        state[(self.code == _CODE[name]) & too_hard] = 1
        if name in NEIGHBORS:
            state[self.code == _CODE[NEIGHBORS[name]]] = 1
        return state

    def detections_of(self, name: str, level: int) -> np.ndarray:
        """Return (n,) int8: 0 for detections of the class, 1 for those of any class that are too low, -1 for others."""
        # The program truncates this height to whole pixels; the minima are whole, so it makes no difference.
        height = np.abs(self.rows[:, 4] - self.rows[:, 2])
        state = np.where(self.code == _CODE[name], 0, -1).astype(np.int8)
        state[height < MIN_HEIGHT[level]] = 1
        return state


# Overlaps


def _overlapping(objects: _Flat, found: _Flat, metric: str, floor: float) -> tuple[tuple, np.ndarray]:
    """Return the pairs in which a detection overlaps an object by more than ``floor``, and the cover by DontCare.

    Returns ``(object index (p,), detection index (p,), intersection over union (p,))`` in the order of objects, then
    of detections; and (detections,) float64, the largest share of a detection's own area or volume that is in one
    DontCare region.
    """
    parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    covered = np.zeros(len(found.code))
    dontcare = objects.code == _CODE["DontCare"]
    per_object = np.diff(found.start)[objects.image]
    cut = np.searchsorted(np.cumsum(per_object), np.arange(PAIRS_AT_ONCE, per_object.sum(), PAIRS_AT_ONCE))
    for some in np.split(np.arange(len(objects.code)), cut):
        count = per_object[some]
        o = np.repeat(some, count)
        # 0, 1, ..., count - 1 for each object, from its image's first detection on.
        d = np.arange(len(o)) - np.repeat(np.cumsum(count) - count, count)
        d += np.repeat(found.start[objects.image[some]], count)
        inter, size_o, size_d = _intersection(objects.rows, o, found.rows, d, metric)
        with np.errstate(divide="ignore", invalid="ignore"):
            overlap = inter / (size_d + size_o - inter)
            share = inter / size_d
        near = ~dontcare[o] & (overlap > floor)
        parts.append((o[near], d[near], overlap[near]))
        inside = dontcare[o] & (share > 0)
        np.maximum.at(covered, d[inside], share[inside])
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True)), covered


def _intersection(rows_a, a, rows_b, b, metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return intersections of the boxes ``a`` of ``rows_a`` (n, 13) with the boxes ``b``, and both sizes; (p,) each."""
    if metric == "AP2D":
        box_a, box_b = rows_a[a, 1:5], rows_b[b, 1:5]
        sides = np.minimum(box_a[:, 2:], box_b[:, 2:]) - np.maximum(box_a[:, :2], box_b[:, :2])
        inter = np.where((sides > 0).all(axis=1), sides[:, 0] * sides[:, 1], 0.0)
        return inter, _area(box_a), _area(box_b)
    ground_a, ground_b = _ground(rows_a), _ground(rows_b)
    reach_a, reach_b = (np.hypot(g[:, 2], g[:, 3]) / 2 for g in (ground_a, ground_b))
    apart = (ground_a[a, 0] - ground_b[b, 0]) ** 2 + (ground_a[a, 1] - ground_b[b, 1]) ** 2
    near = np.flatnonzero(apart < (reach_a[a] + reach_b[b]) ** 2)
    inter = np.zeros(len(a))
    inter[near] = rotated_intersection(ground_a[a[near]], ground_b[b[near]])
    size_a, size_b = (np.abs(g[:, 2] * g[:, 3]) for g in (ground_a, ground_b))
    if metric == "AP3D":
        (h_a, y_a), (h_b, y_b) = ((rows[:, 5], rows[:, 9]) for rows in (rows_a, rows_b))
        common = np.minimum(y_a[a], y_b[b]) - np.maximum(y_a[a] - h_a[a], y_b[b] - h_b[b])
        inter = inter * np.maximum(common, 0.0)
        size_a, size_b = h_a * size_a, h_b * size_b
    return inter, size_a[a], size_b[b]


def _area(box: np.ndarray) -> np.ndarray:
    return (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])


def _ground(rows: np.ndarray) -> np.ndarray:
    """Return rectangles (n, 5) [x, z, length, width, rotation_y] of rows (n, 13)."""
    return rows[:, [8, 10, 7, 6, 11]]


def rotated_intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the area of the intersection of rectangles ``a[i]`` and ``b[i]``, (n,) float64.

    ``a`` and ``b`` are (n, 5) [x, z, length, width, angle]: the length lies along x at angle 0, and the angle rotates x
    towards -z, as ``rotation_y`` of KITTI does. Exact to rounding: ``b`` is clipped at the four sides of ``a``
    (Sutherland and Hodgman). Sides count with their absolute value.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    # In the frame of a: its sides are along the axes, and coordinates are small, so little is lost to rounding.
    sign = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) / 2.0
    polygon = _rotated(sign * np.abs(b[:, None, 2:4]), b[:, 4] - a[:, 4])
    polygon += _rotated((b[:, :2] - a[:, :2])[:, None], -a[:, 4])
    corners = np.full(len(a), 4)
    half = np.abs(a[:, 2:4]) / 2
    for axis in (0, 1):
        for side in (1.0, -1.0):
            polygon, corners = _clip(polygon, corners, half[:, axis, None] - side * polygon[:, :, axis])
    return _polygon_area(polygon, corners)


def _rotated(points: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Rotate points (n, m, 2) of (x, z) by ``angle`` (n,) around the vertical axis, which points down."""
    c, s = np.cos(angle)[:, None], np.sin(angle)[:, None]
    x, z = points[..., 0], points[..., 1]
    return np.stack([c * x + s * z, -s * x + c * z], axis=-1)


def _following(polygon: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Return (n, m), the index of the corner after each; the first after the last."""
    following = np.arange(1, polygon.shape[1] + 1)
    return np.where(following >= corners[:, None], 0, following)


def _clip(polygon: np.ndarray, corners: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Clip polygons at a line.

    ``polygon`` (n, m, 2) has ``corners`` (n,) corners each, the rest of m is not read; ``inside`` (n, m) is the
    signed distance of the corners from the line, positive inside. Returns the clipped polygons and their corners.
    """
    if not polygon.size:
        return polygon, corners
    real = np.arange(polygon.shape[1]) < corners[:, None]
    after = _following(polygon, corners)
    inside_after = np.take_along_axis(inside, after, 1)
    kept = real & (inside >= 0)
    crossing = real & (((inside > 0) & (inside_after < 0)) | ((inside < 0) & (inside_after > 0)))
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(crossing, inside / (inside - inside_after), 0.0)[..., None]
    point = polygon + t * (np.take_along_axis(polygon, after[..., None], 1) - polygon)
    # Each corner that is inside, then the crossing after it, if there is one.
    candidates = np.stack([polygon, point], axis=2).reshape(len(polygon), -1, 2)
    taken = np.stack([kept, crossing], axis=2).reshape(len(polygon), -1)
    left = taken.sum(axis=1)
    result = np.zeros((len(polygon), max(int(left.max()), 1), 2))
    row, column = np.nonzero(taken)
    result[row, (np.cumsum(taken, axis=1) - 1)[row, column]] = candidates[row, column]
    return result, left


def _polygon_area(polygon: np.ndarray, corners: np.ndarray) -> np.ndarray:
    real = np.arange(polygon.shape[1]) < corners[:, None]
    after = np.take_along_axis(polygon, _following(polygon, corners)[..., None], 1)
    twice = polygon[..., 0] * after[..., 1] - polygon[..., 1] * after[..., 0]
    return np.abs(np.where(real, twice, 0.0).sum(axis=1)) / 2


# Matching


class _Curve(NamedTuple):
    precision: np.ndarray  # (41,)
    similarity: np.ndarray  # (41,), AOS; zeros where it is not computed
    recall: np.ndarray  # (41,)
    num_objects: int  # that count


def _curve(objects, found, pairs, covered, name, level, least, similarity) -> _Curve:
    """Match the detections of a class at one level, and sample its precision-recall curve."""
    truth, state = objects.truth_of(name, level), found.detections_of(name, level)
    count = int(np.count_nonzero(truth == 0))
    o, d, overlap = pairs
    usable = (truth[o] >= 0) & (state[d] >= 0) & (overlap > least)
    o, d, overlap = o[usable], d[usable], overlap[usable]
    right = (truth[o] == 0) & (state[d] == 0)

    # First the scores at which the recall is sampled: each object takes the detection with the highest score.
    order, groups = _order(objects, o, (d, -found.score[d]))
    chosen = order[_match(d[order], groups, np.ones((len(o), 1), dtype=bool))[0]]
    thresholds = _thresholds(found.score[d[chosen[right[chosen]]]], count)

    # Then, for each of them, true and false positives: each object takes the largest overlap among the class's
    # detections, or else the first of those that are too low.
    order, groups = _order(objects, o, (d, np.where(state[d] == 1, 0.0, -overlap)))
    enabled = found.score[d[order], None] >= thresholds
    match, column = _match(d[order], groups, enabled)
    chosen = order[match]
    steps = len(thresholds)
    true = np.bincount(column[right[chosen]], minlength=steps)
    matched = np.bincount(column[truth[o[chosen]] == 0], minlength=steps)
    # A detection is false if no object has taken it and it is not mostly in a DontCare region.
    counted = (state == 0) & ~(covered > least)
    rising = np.sort(found.score[counted])
    false = len(rising) - np.searchsorted(rising, thresholds, side="left")
    false = false - np.bincount(column[counted[d[chosen]]], minlength=steps)

    named = true + false

    def sampled(values: np.ndarray, total: np.ndarray) -> np.ndarray:
        curve = np.zeros(SAMPLES)
        curve[:steps] = np.divide(values, total, out=np.zeros(steps), where=total > 0)
        return curve

    recall = sampled(true, true + count - matched)
    precision = np.maximum.accumulate(sampled(true, named)[::-1])[::-1]
    aos = np.zeros(SAMPLES)
    if similarity:
        alike = (1.0 + np.cos(objects.alpha[o] - found.alpha[d])) / 2.0
        ours = right[chosen]
        total = np.bincount(column[ours], weights=alike[chosen[ours]], minlength=steps)
        aos = np.maximum.accumulate(sampled(total, named)[::-1])[::-1]
    return _Curve(precision, aos, recall, count)


def _order(objects: _Flat, o: np.ndarray, keys: tuple) -> tuple[np.ndarray, list[np.ndarray]]:
    """Order the pairs by the round in which their object is matched.

    The objects of an image are matched one after the other, in rounds of one object per image. The first of ``keys``
    counts least, as in ``np.lexsort``. Returns the order (p,), and for each round the positions in it at which the
    pairs of one object begin; a further array holds the end of the last round.
    """
    # The round of an object is its number among those of its image that have a pair at all.
    with_pairs = np.unique(o)
    image = objects.image[with_pairs]
    number = np.arange(len(with_pairs)) - np.searchsorted(image, image, side="left")
    turn = number[np.searchsorted(with_pairs, o)]
    order = np.lexsort((*keys, o, turn))
    begins = np.flatnonzero(np.diff(o[order], prepend=-1))
    rounds = np.searchsorted(turn[order[begins]], np.arange(number.max(initial=-1) + 1), side="left")
    return order, [*np.split(begins, rounds[1:]), np.array([len(o)])]


def _match(d: np.ndarray, groups: list[np.ndarray], enabled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Let each object take its first pair whose detection is enabled and free.

    ``d`` (p,) are the detections of the pairs, in the order of ``_order`` with its ``groups``; ``enabled`` (p, t) for t
    independent thresholds. Returns the positions of the matched pairs and their thresholds, (m,) each.
    """
    slot = np.unique(d, return_inverse=True)[1]
    free = np.ones((slot.max(initial=-1) + 1, enabled.shape[1]), dtype=bool)
    places, columns = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for begins, following in zip(groups[:-1], groups[1:], strict=True):
        if not len(begins):
            continue
        first, end = begins[0], following[0]
        possible = enabled[first:end] & free[slot[first:end]]
        place = np.where(possible, np.arange(first, end)[:, None], len(d))
        place = np.minimum.reduceat(place, begins - first, axis=0)
        row, column = np.nonzero(place < len(d))
        place = place[row, column]
        free[slot[place], column] = False
        places.append(place)
        columns.append(column)
    return np.concatenate(places), np.concatenate(columns)


def _thresholds(scores: np.ndarray, count: int) -> np.ndarray:
    """Return the scores at which recalls 0, 1/40, ..., 1 are reached as nearly as possible, descending, at most 41.

    ``scores`` are those of the true positives, ``count`` is the number of objects.
    """
    scores = np.sort(scores)[::-1]
    taken, recall = [], 0.0
    last = len(scores) - 1
    for i, score in enumerate(scores.tolist()):
        here, there = (i + 1) / count, (i + 2) / count
        if i < last and there - recall < recall - here:
            continue
        taken.append(score)
        recall += 1.0 / (SAMPLES - 1.0)
    return np.array(taken[:SAMPLES])
