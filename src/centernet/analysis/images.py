"""Score the detections of single images, and draw them next to the ground truth."""

from dataclasses import dataclass

import numpy as np

from ..datasets.loader import black_image
from ..errors import UserError
from ..evaluation.analysis import box_iou
from ..visualization import build_visualizer

MIN_IOU = 0.5  # of a detection that finds an object


@dataclass
class ImageScore:
    """Detection quality of one image.

    Attributes:
        index: position in the dataset.
        objects, found, false: objects, those of them that were detected, and detections without an object.
    """

    index: int
    objects: int
    found: int
    false: int

    @property
    def f1(self) -> float:
        """Return the harmonic mean of precision and recall, in [0, 1]; 1 without objects and detections."""
        return 2 * self.found / max(self.objects + self.found + self.false, 1) if self.objects or self.false else 1.0


def score_images(dataset, results: dict) -> list[ImageScore]:
    """Score each image of ``results``, ``{image id: {class from 1: rows}}``.

    A detection above ``--vis_thresh`` finds the object of its class with which it has the highest IoU, if that is at
    least 0.5 and no detection with a higher score has found the object. Detections on objects without a class
    (KITTI's ignored ones) count as neither found nor false.
    """
    task, threshold = dataset.task, dataset.opt.vis_thresh
    scores = []
    for index, image_id in enumerate(dataset.image_ids):
        if image_id not in results:
            continue
        objects = dataset.read_objects(index)
        boxes, classes = np.asarray(task.ground_truth_boxes(objects), dtype=np.float64), objects["cls"]
        found = false = 0
        detected, rows = _shown(task, results[image_id], threshold)
        for cls in np.unique(detected):
            own = rows[detected == cls]
            own = own[np.argsort(-own[:, 4], kind="stable")]
            hits, misses = match_detections(own[:, :4], boxes[classes == cls - 1], boxes[classes < 0])
            found, false = found + hits, false + misses
        scores.append(ImageScore(index, int((classes >= 0).sum()), found, false))
    return scores


def _shown(task, result: dict, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the classes from 1 (n,) and boxes with scores (n, 5) float64 of the detections above a threshold."""
    parts = {cls: task.detected_boxes(np.asarray(rows, dtype=np.float64)) for cls, rows in result.items() if len(rows)}
    if not parts:
        return np.zeros(0, np.int64), np.zeros((0, 5))
    boxes = np.concatenate(list(parts.values()))
    classes = np.repeat(list(parts), [len(rows) for rows in parts.values()])
    return classes[boxes[:, 4] > threshold], boxes[boxes[:, 4] > threshold]


def classes_in(dataset, index: int, result: dict) -> list[str]:
    """Return the names of the classes of an image's objects and of its detections above ``--vis_thresh``."""
    task, threshold = dataset.task, dataset.opt.vis_thresh
    found = {int(cls) for cls in dataset.read_objects(index)["cls"] if cls >= 0}
    found.update(int(cls) - 1 for cls in _shown(task, result, threshold)[0])
    return [str(dataset.class_names[cls]) for cls in sorted(found)]


def match_detections(detections: np.ndarray, boxes: np.ndarray, ignored: np.ndarray) -> tuple[int, int]:
    """Return how many ``boxes`` are found by ``detections``, best first, and how many detections find nothing.

    Args:
        detections, boxes, ignored: (n, 4) float64 x1, y1, x2, y2. Detections on ignored boxes do not count.
    """
    overlaps, free = _iou(detections, boxes), np.ones(len(boxes), dtype=bool)
    excused = np.any(_iou(detections, ignored) >= MIN_IOU, axis=1)
    false = 0
    for row, is_excused in zip(overlaps, excused, strict=True):
        row = np.where(free, row, 0)
        if row.size and row.max() >= MIN_IOU:
            free[row.argmax()] = False
        elif not is_excused:
            false += 1
    return int((~free).sum()), false


def _iou(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the IoU of boxes (n, 4) and (m, 4) as (n, m); 0 for boxes without an area."""
    pairs = box_iou(np.repeat(one, len(other), axis=0), np.tile(other, (len(one), 1)))
    return np.nan_to_num(pairs.reshape(len(one), len(other)))


def prediction_and_truth(dataset, index: int, result: dict) -> tuple[np.ndarray, np.ndarray]:
    """Draw the detections of an image and its ground truth, both (H, W, 3) uint8 in BGR order.

    An unreadable image is replaced by a black one; it has already been reported.
    """
    visualizer = build_visualizer(dataset.task)
    try:
        image = dataset.read_image(index)
    except UserError:
        image = black_image(dataset, index)
    predicted = visualizer.result_images(image, result, dataset.picture_info(index))
    true = visualizer.ground_truth_images(image, dataset.read_objects(index))
    return next(iter(predicted.values()), image), next(iter(true.values()), image)
