"""Detections as people and other programs want them: a line of text, JSON entries, YOLO labels, and crops."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .options import Options

# What follows box and score in the rows of a task, by the first column of each.
KEYPOINTS = {"multi_pose": 5}
BOX_3D = {"alpha": (0,), "dimensions": (5, 6, 7), "location": (8, 9, 10), "rotation_y": (11,)}
YOLO_DIGITS = 6  # decimals of numbers in label files


@dataclass
class Detection:
    """A detection above the threshold.

    Attributes:
        cls: number of the class, from 1.
        name: name of the class.
        score: in [0, 1].
        box: x1, y1, x2, y2 in image pixels.
        more: further values by name: keypoints with their names, or a 3D box.
        missing_joints: how many more keypoints the class with the most of them has.
    """

    cls: int
    name: str
    score: float
    box: tuple[float, float, float, float]
    more: dict[str, Any] = field(default_factory=dict)
    missing_joints: int = 0


def detections_above(results: dict[int, np.ndarray], task, opt: Options) -> list[Detection]:
    """Return the detections of an image above ``--vis_thresh``, best first.

    ``results`` are ``{class id from 1: rows}`` of the task.
    """
    found = []
    for cls, rows in results.items():
        rows = np.asarray(rows, dtype=np.float64)
        if not len(rows):
            continue
        name = opt.class_names[cls - 1] if cls <= len(opt.class_names) else str(cls)
        missing = _missing_joints(opt, cls - 1) if opt.task in KEYPOINTS else 0
        for row, (x1, y1, x2, y2, score) in zip(rows.tolist(), task.detected_boxes(rows).tolist(), strict=True):
            if score > opt.vis_thresh:
                found.append(Detection(cls, name, score, (x1, y1, x2, y2), _more(opt, cls - 1, row), missing))
    return sorted(found, key=lambda one: -one.score)


def _more(opt: Options, cls: int, row: list[float]) -> dict[str, Any]:
    if opt.task in KEYPOINTS:
        numbers, joints = row[KEYPOINTS[opt.task] :], opt.keypoints.joints_of(cls)
        points = [list(pair) for pair in zip(numbers[::2], numbers[1::2], strict=True)]
        names = [opt.keypoints.names[joint] for joint in joints]
        return {"keypoints": [points[joint] for joint in joints], "keypoint_names": names}
    if opt.task == "ddd":
        return {
            name: [row[k] for k in columns] if len(columns) > 1 else row[columns[0]] for name, columns in BOX_3D.items()
        }
    return {}


def _missing_joints(opt: Options, cls: int) -> int:
    counts = [len(opt.keypoints.joints_of(k)) for k in range(len(opt.class_names))]
    return max(counts) - counts[cls]


def summary(names: Sequence[str] | Counter) -> str:
    """Return the number of detections of each class in one line, such as ``3 person, 1 car``."""
    return ", ".join(f"{count} {name}" for name, count in Counter(names).most_common()) or "nothing"


def json_entry(image: str, size: tuple[int, int], detections: Sequence[Detection], frame: int | None = None) -> dict:
    """Return an image's entry for ``--save_json``; ``size`` is (width, height), boxes are [x, y, width, height]."""
    entry: dict[str, Any] = {"image": image, "width": size[0], "height": size[1]}
    if frame is not None:
        entry["frame"] = frame
    entry["detections"] = [
        {
            "class": one.name,
            "class_id": one.cls,
            "score": _rounded(one.score, 4),
            "bbox": _xywh(one),
            **_plain(one.more),
        }
        for one in detections
    ]
    return entry


def _xywh(detection: Detection) -> list[float]:
    x1, y1, x2, y2 = detection.box
    return [_rounded(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value if isinstance(value, str) else _rounded(value, 4)


def _rounded(value: float, digits: int) -> float:
    return round(float(value), digits)


def yolo_lines(size: tuple[int, int], detections: Sequence[Detection]) -> str:
    """Return an image's label file for ``--save_txt``.

    A line is the class from 0, center, width and height in shares of the image's ``size`` (width, height), and for
    keypoints x and y of each, as in YOLO's labels. Boxes are clipped to the image, and left out if no area remains.
    Keypoints outside of the image are written as ``0 0``, which stands for one that is not labeled. Lines have the same
    number of keypoints, as many as the class with the most of them has: others are filled with zeros.
    """
    scale = np.array([*size, *size], dtype=np.float64)
    lines = []
    for one in detections:
        x1, y1, x2, y2 = np.clip(np.array(one.box) / scale, 0, 1)
        numbers = [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
        if round(min(numbers[2:]), YOLO_DIGITS) <= 0:
            continue
        for x, y in np.reshape(one.more.get("keypoints", []), (-1, 2)) / size:
            numbers += [x, y] if min(x, y) >= 0 and max(x, y) <= 1 else [0.0, 0.0]
        numbers += [0.0] * (2 * one.missing_joints)
        lines.append(" ".join([str(one.cls - 1), *(f"{number:.{YOLO_DIGITS}f}" for number in numbers)]) + "\n")
    return "".join(lines)


def crop(image: np.ndarray, detection: Detection) -> np.ndarray | None:
    """Return the part of an image (H, W, 3) in a detection's box, None if nothing of the box is in the image."""
    height, width = image.shape[:2]
    x1, y1 = (max(0, int(np.floor(value))) for value in detection.box[:2])
    x2, y2 = (min(limit, int(np.ceil(value))) for value, limit in zip(detection.box[2:], (width, height), strict=True))
    return image[y1:y2, x1:x2] if x1 < x2 and y1 < y2 else None
