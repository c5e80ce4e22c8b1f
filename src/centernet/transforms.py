"""Crop, flip, rotation and color jitter of an image, with one code path for random and for replayed samples.

The random numbers of a sample come from ``sample_rng(seed, epoch, index)`` only, so that a sample does not depend on
the worker or process that creates it, nor on the order. ``replayed_rng`` feeds recorded numbers to the same code.
"""

from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from .ops.image import affine_transform, get_affine_transform

# Principal components of the colors of ImageNet in BGR order (Krizhevsky et al., 2012), one per column.
EIG_VAL = np.array([0.2141788, 0.01817699, 0.00341571], dtype=np.float32)
EIG_VEC = np.array(
    [
        [-0.58752847, -0.69563484, 0.41340352],
        [-0.5832747, 0.00994535, -0.81221408],
        [-0.56089297, 0.71832671, 0.41158938],
    ],
    dtype=np.float32,
)
GRAY = np.array([0.114, 0.587, 0.299])  # weights of B, G, R
CROP_SCALES = np.arange(0.6, 1.4, 0.1)  # eight values, without 1.4
JITTER = 0.4  # brightness, contrast and saturation are multiplied by 1 + U(-0.4, 0.4)
LIGHTING_STD = 0.1


class AugmentationRng:
    """Random numbers in the order in which a sample requests them, drawn from ``rng`` or read from a record.

    A record has the form ``{"draws": [[function, value], ...], "color": {"order", "alpha", "lighting"} or None}``.
    """

    def __init__(self, rng: np.random.Generator | None = None, record: dict | None = None) -> None:
        self.rng = rng
        self.draws = list(record["draws"]) if record else []
        self.recorded_color = record.get("color") if record else None

    def _next(self, function: str, draw: Callable[[np.random.Generator], Any]) -> float:
        if self.rng is not None:
            return float(draw(self.rng))
        if not self.draws or self.draws[0][0] != function:
            raise ValueError(f"the record gives {self.draws[:1]} where the sample requests {function}")
        return float(self.draws.pop(0)[1])

    def choice(self, values: Sequence[float] | np.ndarray) -> float:
        """Return one of ``values``."""
        return self._next("choice", lambda rng: rng.choice(values))

    def randint(self, low: int, high: int) -> float:
        """Return an integer in [low, high)."""
        return self._next("randint", lambda rng: rng.integers(low, high))

    def randn(self) -> float:
        """Return a standard normal number."""
        return self._next("randn", lambda rng: rng.standard_normal())

    def random(self) -> float:
        """Return a number in [0, 1)."""
        return self._next("random", lambda rng: rng.random())

    def color(self) -> dict | None:
        """Return order and strengths of the color jitter: ``order`` of names, ``alpha`` by name, ``lighting`` (3)."""
        if self.rng is None:
            return self.recorded_color
        names = ["brightness", "contrast", "saturation"]
        return {
            "order": [names[i] for i in self.rng.permutation(3)],
            "alpha": dict(zip(names, 1 + self.rng.uniform(-JITTER, JITTER, 3), strict=True)),
            "lighting": self.rng.normal(0, LIGHTING_STD, 3),
        }


def sample_rng(seed: int, epoch: int, index: int) -> AugmentationRng:
    """Return the random numbers of one image in one epoch."""
    return AugmentationRng(rng=np.random.default_rng((seed, epoch, index)))


def replayed_rng(record: dict) -> AugmentationRng:
    """Return recorded random numbers."""
    return AugmentationRng(record=record)


@dataclass
class View:
    """The part of an image that the network sees: ``scale`` image pixels around ``center`` fill the input's width.

    Attributes:
        center: (2,) float32, x and y in the (flipped) image.
        scale: a number, or (width, height) with ``--keep_res``.
        flipped: whether the image is flipped horizontally first.
        input_size, output_size: (width, height) of the network's input and of its output maps.
        rot: rotation around ``center`` in degrees.
        exact: flip and clip boxes exactly (``--exact_boxes``). The reference flips and clips the coordinates of pixels,
            so that boxes move by a pixel when they are flipped and end one output pixel before the map's edge.
    """

    center: np.ndarray
    scale: float | np.ndarray
    flipped: bool
    input_size: tuple[int, int]
    output_size: tuple[int, int]
    rot: float = 0.0
    exact: bool = False

    def warp(self, image: np.ndarray) -> np.ndarray:
        """Return the crop of an image (H, W, 3) uint8 in the input's size; bilinear, black outside."""
        if self.flipped:
            image = cv2.flip(image, 1)
        matrix = get_affine_transform(self.center, self.scale, self.rot, self.input_size)
        # OpenCV computes the same values from four channels as from three, in half the time.
        image = cv2.cvtColor(image, cv2.COLOR_BGR2BGRA)
        image = cv2.warpAffine(image, matrix, self.input_size, flags=cv2.INTER_LINEAR)
        return cv2.cvtColor(image, cv2.COLOR_BGRA2BGR)

    def output_matrix(self, rotated: bool = False) -> np.ndarray:
        """Return the 2x3 map from the (flipped) image to output pixels; boxes are mapped without the rotation."""
        return get_affine_transform(self.center, self.scale, self.rot if rotated else 0, self.output_size)

    def flip_points(self, points: np.ndarray, image_width: int) -> np.ndarray:
        """Return image points (..., 2) or more columns as points of the flipped image if the view is flipped."""
        if not self.flipped:
            return points
        points = points.copy()
        points[..., 0] = image_width - points[..., 0] - 1
        return points

    def clip(self, points: np.ndarray) -> np.ndarray:
        """Return output points (..., 2) clipped to the output map, float32."""
        return points.clip(0, np.array(self.output_size) - 1).astype(np.float32)

    def boxes_to_output(self, boxes: np.ndarray, image_width: int) -> np.ndarray:
        """Return boxes (n, 4) [x1, y1, x2, y2] of the image in output pixels, clipped to the map, float32."""
        corners = self.flip_points(boxes.reshape(-1, 2, 2), image_width + 1 if self.exact else image_width)
        if self.flipped:
            corners = np.stack([corners[:, [1, 0], 0], corners[:, :, 1]], axis=2)
        corners = affine_transform(corners, self.output_matrix()).astype(np.float32)
        if self.exact:
            return corners.clip(0, np.array(self.output_size, dtype=np.float32)).reshape(-1, 4)
        return self.clip(corners).reshape(-1, 4)


def border(size: int) -> int:
    """Return the margin that a crop's center keeps from the image border: 128, halved until under half of ``size``."""
    i = 1
    while size - 128 // i <= 128 // i:
        i *= 2
    return 128 // i


def full_view(height: int, width: int, opt: Namespace, square: bool = False) -> View:
    """Return the whole image, as in validation: scaled to the input, or with ``--keep_res`` padded at its own size.

    ``square``: the input is ``input_res`` wide and high, regardless of ``input_w`` and ``input_h``.
    """
    if opt.keep_res:
        input_w, input_h = (width | opt.pad) + 1, (height | opt.pad) + 1
        scale: float | np.ndarray = np.array([input_w, input_h], dtype=np.float32)
    else:
        input_w, input_h = (opt.input_res, opt.input_res) if square else (opt.input_w, opt.input_h)
        scale = max(height, width) * 1.0
    return View(
        center=np.array([width / 2.0, height / 2.0], dtype=np.float32),
        scale=scale,
        flipped=False,
        input_size=(input_w, input_h),
        output_size=(input_w // opt.down_ratio, input_h // opt.down_ratio),
    )


def random_view(
    height: int, width: int, opt: Namespace, rng: AugmentationRng, square: bool = False, rotates: bool = False
) -> View:
    """Return a random crop: one of eight scales around a random center, with ``--not_rand_crop`` a jittered one.

    ``rotates``: the task supports the rotation of ``--aug_rot`` and ``--rotate``.
    """
    view = full_view(height, width, opt, square)
    if not opt.not_rand_crop:
        random_crop(view, height, width, rng)
    else:
        shift, scale = opt.shift, opt.scale
        view.center[0] += view.scale * np.clip(rng.randn() * shift, -2 * shift, 2 * shift)
        view.center[1] += view.scale * np.clip(rng.randn() * shift, -2 * shift, 2 * shift)
        view.scale = view.scale * np.clip(rng.randn() * scale + 1, 1 - scale, 1 + scale)
    if rotates and rng.random() < opt.aug_rot:
        view.rot = float(np.clip(rng.randn() * opt.rotate, -2 * opt.rotate, 2 * opt.rotate))
    if rng.random() < opt.flip:
        view.flipped = True
        view.center[0] = width - view.center[0] - 1
    return view


def random_crop(view: View, height: int, width: int, rng: AugmentationRng) -> None:
    """Give a view one of eight scales and a random center, in place."""
    view.scale = view.scale * rng.choice(CROP_SCALES)
    view.center[0] = rng.randint(border(width), width - border(width))
    view.center[1] = rng.randint(border(height), height - border(height))


def jitter_by_size(view: View, height: int, width: int, opt: Namespace, rng: AugmentationRng) -> None:
    """Scale a view and shift it by shares of the image's own width and height, in place."""
    shift, scale = opt.shift, opt.scale
    view.scale = view.scale * np.clip(rng.randn() * scale + 1, 1 - scale, 1 + scale)
    view.center[0] += width * np.clip(rng.randn() * shift, -2 * shift, 2 * shift)
    view.center[1] += height * np.clip(rng.randn() * shift, -2 * shift, 2 * shift)


def color_matrix(image: np.ndarray, color: dict | None, mean, std) -> np.ndarray:
    """Return color jitter and normalization as one affine map of the pixel.

    Every step of the jitter is affine: brightness a*x, contrast a*x + (1-a)*m with the mean gray m of the image
    before any change, saturation a*x + (1-a)*gray(x), lighting x + constant. Nothing is clipped.

    Args:
        image: (H, W, 3) uint8, BGR.
        color: jitter of ``AugmentationRng.color``; None: normalization only.
        mean, std: 3 numbers each, of pixels in [0, 1].

    Returns:
        (3, 4) float32 M: normalized pixel = M[:, :3] @ bgr + M[:, 3], with bgr in 0..255.
    """
    linear, constant = np.eye(3), np.zeros(3)
    if color is not None:
        mean_gray = GRAY @ cv2.mean(image)[:3] / 255
        for name in color["order"]:
            alpha = color["alpha"][name]
            linear, constant = linear * alpha, constant * alpha
            if name == "contrast":
                constant = constant + (1 - alpha) * mean_gray
            elif name == "saturation":
                linear = linear + (1 - alpha) * GRAY
        constant = constant + EIG_VEC @ (EIG_VAL * np.asarray(color["lighting"]))
    mean, std = (np.asarray(values, dtype=np.float64).reshape(3) for values in (mean, std))
    matrix = np.column_stack([linear / 255, constant - mean]) / std[:, None]
    return matrix.astype(np.float32)
