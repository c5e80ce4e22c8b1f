"""The images in the report of a test: curves, and drawings of missed objects and false alarms."""

from typing import Any

import cv2
import numpy as np

from ..datasets.loader import black_image
from ..errors import UserError
from ..visualization import build_visualizer
from .page_plots import page_curves, page_panel
from .pages import inline_image
from .panels import Panel, Series
from .plots import draw_score_curves

LONGER_SIDE = 640  # pixels of a drawing
SHOWN_CLASSES = 8  # of which the curves are shown at first, those with the most objects: as many as a page has colors


def score_curves(analysis: dict) -> dict[str, Any]:
    """Return precision, recall and F1 over the score threshold, and precision over recall, for a page.

    Plots of all classes, or without Plotly an image of the most frequent ones.

    Args:
        analysis: what ``evaluation.analysis.analyze`` returns.
    """
    classes = sorted(analysis["classes"], key=lambda entry: -entry["objects"])
    classes = [entry for entry in classes if entry["objects"] or entry["detections"]]
    curves = [(entry["name"], entry["thresholds"], entry["curve"]) for entry in classes]
    if len(curves) > 1:
        curves.insert(0, ("all classes", analysis["thresholds"], {"recall": [], "precision": []}))
    panels = [Panel(name, f"{name} over the score threshold", False, True) for name in ("precision", "recall", "f1")]
    panels[2].title = "F1 over the score threshold"
    panels.append(Panel("curve", "precision over recall", False, True))
    for k, (_, thresholds, curve) in enumerate(curves):
        color = k if len(curves) == 1 else k - 1 if k else None  # all classes: that of the text
        columns = [(thresholds["threshold"], thresholds[panel.name]) for panel in panels[:3]]
        for panel, (x, y) in zip(panels, [*columns, (curve["recall"], curve["precision"])], strict=True):
            panel.series.append(Series("line", panel.title.partition(" ")[0], k, color, np.array(x), np.array(y)))
    axes = ("score threshold", "score threshold", "score threshold", "recall")
    data = [page_panel(panel, (0, 1), x) for panel, x in zip(panels, axes, strict=True)]
    names, shown = [name for name, _, _ in curves], SHOWN_CLASSES + 1
    return page_curves(data, names, lambda file: draw_score_curves(panels, names[:shown], file), shown)


def draw_missed(dataset, index: int, result: dict, box: list[float], threshold: float) -> dict[str, Any]:
    """Draw a missed object alone, and the detections in its image.

    Args:
        dataset: the dataset.
        index: of the image.
        result: ``{class from 1: rows}``, its detections.
        box: of the object.
        threshold: detections with a lower score are not drawn.

    Returns:
        ``left`` and ``right``, images as URLs, and ``stacked``: whether they are too wide to be side by side.
    """
    visualizer = build_visualizer(dataset.task)
    visualizer.opt = dataset.opt.replace(vis_thresh=np.nextafter(threshold, -1))  # drawn above it
    image, objects = _read_image(dataset, index), dataset.read_objects(index)
    boxes = np.asarray(dataset.task.ground_truth_boxes(objects), dtype=np.float64)
    one = np.abs(boxes - box).sum(axis=1).argmin(keepdims=True)
    alone = {name: values[one] if name in dataset.objects else values for name, values in objects.items()}
    true = visualizer.ground_truth_images(image, alone)
    return _pair(true, visualizer.result_images(image, result, dataset.picture_info(index)))


def draw_false_alarm(dataset, index: int, result: dict, cls: int, box: list[float], score: float) -> dict[str, Any]:
    """Draw a detection alone, and the objects in its image; as :func:`draw_missed`, with the class from 0."""
    visualizer = build_visualizer(dataset.task)
    visualizer.opt = dataset.opt.replace(vis_thresh=-1.0)
    image = _read_image(dataset, index)
    rows = dataset.task.detected_boxes(np.asarray(result[cls + 1], dtype=np.float64))
    one = np.abs(rows - [*box, score]).sum(axis=1).argmin(keepdims=True)
    alone = {k: np.asarray(rows)[one if k == cls + 1 else slice(0)] for k, rows in result.items()}
    found = visualizer.result_images(image, alone, dataset.picture_info(index))
    return _pair(found, visualizer.ground_truth_images(image, dataset.read_objects(index)))


def _read_image(dataset, index: int) -> np.ndarray:
    try:
        return dataset.read_image(index)
    except UserError:  # has been reported by the test
        return black_image(dataset, index)


def _pair(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the first drawing of each."""
    images = [next(iter(drawings.values())) for drawings in (left, right)]
    height, width = images[0].shape[:2]
    return {"left": _jpeg(images[0]), "right": _jpeg(images[1]), "stacked": width > 2 * height}


def _jpeg(image: np.ndarray) -> str:
    factor = LONGER_SIDE / max(image.shape[:2])
    if factor < 1:
        size = [max(1, round(side * factor)) for side in image.shape[1::-1]]
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return inline_image(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes(), "jpeg")
