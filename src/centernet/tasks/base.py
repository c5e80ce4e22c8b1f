"""The interface of a task: everything that training, testing, export and drawing need to know of it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import cv2
import numpy as np
from torch import Tensor

from ..errors import UserError
from ..ops.image import transform_preds
from ..ops.nms import soft_nms
from ..options.table import Options
from ..transforms import AugmentationRng, View
from .criterion import Criterion
from .specs import TaskSpec

Objects = dict[str, np.ndarray]  # the annotated objects of an image, arrays with one row per object
Detections = dict[int, np.ndarray]  # rows by class id from 1


class Task(TaskSpec, ABC):
    """Targets, loss, decoding and results of a task whose options and heads are a ``TaskSpec``.

    Attributes:
        target_inputs: arrays of a sample that only ``draw_targets`` needs.
        criterion: class of the loss.
        can_augment: whether its objects are boxes and classes alone, so that ``--augment`` can move them.
        row_length: numbers per row of a result; the first five are [x1, y1, x2, y2, score] unless ``detected_boxes``
            is overridden.
        unflip: functions that undo the flip of the maps of a head (flip test).
        always_nms: whether results are suppressed without ``--nms`` and for a single test scale, too.
        opt: finished options.
    """

    target_inputs: tuple[str, ...]
    criterion: type[Criterion]
    can_augment: ClassVar[bool] = False
    row_length: int = 5
    unflip: Mapping[str, Callable[[Tensor], Tensor]] = {}
    always_nms = False

    def __init__(self, opt: Options) -> None:
        self.opt = opt

    @property
    def heads(self) -> dict[str, int]:
        """Return the channels by head name, in the order of the reference."""
        return self.head_channels(self.opt)

    @classmethod
    def detector_options(cls, opt: Options) -> Options:
        """Return the options of a detector, without the kinds of tests that the task does not support."""
        return opt

    @property
    def max_per_image(self) -> int | None:
        """Return the number of detections per image that a result keeps, with those tied with the last; None: all."""
        return None

    # Targets

    @abstractmethod
    def read_objects(self, annotations: list[dict], class_of: dict) -> Objects:
        """Return the annotations of the annotation file as arrays; ``class_of``: category id to class from 0.

        Raises:
            ValueError: an annotation without the fields of this task, or with other values than numbers.
        """

    @abstractmethod
    def encode(self, image: np.ndarray, objects: Objects, rng: AugmentationRng | None, train: bool) -> dict:
        """Return a sample: crop an image and place its objects in output coordinates. Runs in a loader worker.

        Args:
            image: (H, W, 3) uint8, BGR.
            objects: arrays of ``read_objects``; slot k of the targets belongs to object k, also if others drop out.
            rng: random numbers, needed for training.
            train: augment.

        Returns:
            ``image`` (h, w, 3) uint8; ``color`` (3, 4) float32; arrays of fixed size; ``num_target_pixels`` int64,
            one number per call of ``draw_gaussians``, which is summed over a batch on the host; and outside training
            ``meta``.
        """

    @abstractmethod
    def draw_targets(self, batch: dict) -> dict[str, Tensor]:
        """Return the target maps of a whole batch, drawn on its device."""

    # Detections

    @abstractmethod
    def decode(self, output: dict[str, Tensor], flipped: bool = False) -> Tensor:
        """Decode the raw maps of the last stack to detections (B, n, columns) float32 in output pixels, best first.

        ``flipped``: the batch holds images and then their flipped copies, whose results are averaged (flip test).
        """

    def average_flipped(self, output: dict[str, Tensor]) -> dict[str, Tensor]:
        """Average maps (2B, ...) of B images and of their flipped copies to maps (B, ...) for the flip test.

        Heads that are not in ``unflip`` keep the maps of the images themselves, as the reference does with offsets.
        """
        count = len(next(iter(output.values()))) // 2
        averaged = {name: value[:count] for name, value in output.items()}
        for name in self.unflip.keys() & output.keys():
            averaged[name] = (averaged[name] + self.unflip[name](output[name][count:])) / 2
        return averaged

    @property
    @abstractmethod
    def columns(self) -> list[str]:
        """Return the names of the columns of ``decode``."""

    @abstractmethod
    def to_image_coords(self, dets: Tensor, metas: Sequence[dict]) -> list[Detections]:
        """Transform detections of one test scale to image pixels; one dict of float32 rows by class per image.

        ``metas`` hold ``c``, ``s``, ``output_size`` of each view, and ``scale`` if the image was resized before.
        """

    def merge_scales(self, per_scale: Sequence[Detections]) -> Detections:
        """Join the detections of the test scales of one image.

        Soft-NMS runs for several scales, or with ``--nms``. The slots of rows that it discards keep stale copies of
        other rows in the reference; they are removed here unless ``--keep_discarded`` is given.
        """
        results = {}
        for cls in per_scale[0]:
            rows = np.concatenate(
                [np.asarray(scale[cls], np.float32).reshape(-1, self.row_length) for scale in per_scale]
            )
            if len(per_scale) > 1 or self.opt.nms or self.always_nms:
                kept = soft_nms(rows, Nt=0.5, method=2, moved_columns=self.row_length)
                rows = rows if self.opt.keep_discarded else rows[kept]
            results[cls] = rows
        return results if self.max_per_image is None else keep_best(results, self.max_per_image)

    def postprocess(self, dets: Tensor, metas: Sequence[dict]) -> list[Detections]:
        """Transform detections of whole images at a single scale to results."""
        return [self.merge_scales([image]) for image in self.to_image_coords(dets, metas)]

    def detected_boxes(self, rows: np.ndarray) -> np.ndarray:
        """Return [x1, y1, x2, y2, score] (n, 5) of result rows of one class."""
        return rows[:, :5]

    def ground_truth_boxes(self, objects: Objects) -> np.ndarray:
        """Return the boxes (n, 4) of the objects of an image."""
        return objects["boxes"]

    # Tests

    def crop(self, image: np.ndarray, scale: float) -> tuple[np.ndarray, dict]:
        """Return the network's view (h, w, 3) uint8 of an image at a test scale, and its ``meta`` (``pre_process``).

        At a fixed resolution the extent of the view is that of the unscaled image, as in the reference: a scale below
        1 shows the image smaller in a black frame, one above 1 loses its borders. ``--keep_res`` shows all of it.
        """
        opt, (height, width) = self.opt, image.shape[:2]
        new_height, new_width = int(height * scale), int(width * scale)
        if min(new_height, new_width) < 1:
            raise UserError(f"--test_scales {scale:g}: nothing is left of an image of {width} x {height}")
        if opt.keep_res:
            input_size = ((new_width | opt.pad) + 1, (new_height | opt.pad) + 1)
            center = np.array([new_width // 2, new_height // 2], dtype=np.float32)
            extent = np.array(input_size, dtype=np.float32)
        else:
            input_size = (opt.input_w, opt.input_h)
            center = np.array([new_width / 2.0, new_height / 2.0], dtype=np.float32)
            extent = max(height, width) * 1.0
        output_size = (input_size[0] // opt.down_ratio, input_size[1] // opt.down_ratio)
        view = View(center, extent, False, input_size, output_size)
        if scale != 1:
            image = cv2.resize(image, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
        return view.warp(image), {"c": center, "s": extent, "output_size": output_size, "scale": scale}


def keep_best(results: Detections, count: int) -> Detections:
    """Return the ``count`` rows of the highest score (column 4) of all classes, and those tied with the last."""
    scores = np.hstack([rows[:, 4] for rows in results.values()])
    if len(scores) <= count:
        return results
    limit = np.partition(scores, len(scores) - count)[len(scores) - count]
    return {cls: rows[rows[:, 4] >= limit] for cls, rows in results.items()}


def flip_maps(maps: Tensor) -> Tensor:
    """Flip maps (B, C, H, W) horizontally."""
    return maps.flip(3)


def to_image_points(points: np.ndarray, meta: dict) -> np.ndarray:
    """Transform points (n, 2k) in output pixels to image pixels, float32, by the ``meta`` of their view."""
    mapped = transform_preds(points.reshape(-1, 2), meta["c"], meta["s"], meta["output_size"]).reshape(points.shape)
    return mapped.astype(np.float32) / np.float32(meta.get("scale", 1))
