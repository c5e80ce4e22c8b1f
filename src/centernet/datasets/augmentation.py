"""How an image is cut, mirrored and colored. One code path for random samples and for replayed ones.

A sample's random numbers come from ``sample_rng(seed, epoch, index)`` and from nothing else, so a sample is the same
whichever worker or process makes it and whenever. ``replayed_rng`` gives recorded numbers to the same code.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from ..ops.image import get_affine_transform

# Principal components of ImageNet's colors in B, G, R order (Krizhevsky et al., 2012): columns are components.
EIG_VAL = np.array([0.2141788, 0.01817699, 0.00341571], dtype=np.float32)
EIG_VEC = np.array(
    [
        [-0.58752847, -0.69563484, 0.41340352],
        [-0.5832747, 0.00994535, -0.81221408],
        [-0.56089297, 0.71832671, 0.41158938],
    ],
    dtype=np.float32,
)
GRAY = np.array([0.114, 0.587, 0.299])  # of B, G, R
CROP_SCALES = np.arange(0.6, 1.4, 0.1)  # eight values, 1.4 is not among them
JITTER = 0.4  # brightness, contrast and saturation are multiplied by 1 + U(-0.4, 0.4)
LIGHTING_STD = 0.1


class AugmentationRng:
    """Random numbers in the order in which a sample asks for them, drawn from ``rng`` or taken from a record.

    The record has the form ``{"draws": [[function, value], ...], "color": {"order", "alpha", "lighting"} or None}``.
    """

    def __init__(self, rng: np.random.Generator | None = None, record: dict | None = None) -> None:
        self.rng = rng
        self.record = {"draws": list(record["draws"]), "color": record.get("color")} if record else None

    def _next(self, function: str, draw) -> float:
        if self.record is None:
            return draw()
        if not self.record["draws"] or self.record["draws"][0][0] != function:
            raise ValueError(f"the record gives {self.record['draws'][:1]} where the sample asks for {function}")
        return self.record["draws"].pop(0)[1]

    def choice(self, values: Sequence[float]) -> float:
        """One of ``values``."""
        return float(self._next("choice", lambda: self.rng.choice(values)))

    def randint(self, low: int, high: int) -> float:
        """An integer in [low, high)."""
        return float(self._next("randint", lambda: self.rng.integers(low, high)))

    def randn(self) -> float:
        """A standard normal number."""
        return float(self._next("randn", lambda: self.rng.standard_normal()))

    def random(self) -> float:
        """A number in [0, 1)."""
        return float(self._next("random", lambda: self.rng.random()))

    def color(self) -> dict | None:
        """Order and strengths of the color jitter: ``order`` of names, ``alpha`` by name, ``lighting`` (3)."""
        if self.record is not None:
            return self.record["color"]
        names = ["brightness", "contrast", "saturation"]
        return {
            "order": [names[i] for i in self.rng.permutation(3)],
            "alpha": dict(zip(names, 1 + self.rng.uniform(-JITTER, JITTER, 3), strict=True)),
            "lighting": self.rng.normal(0, LIGHTING_STD, 3),
        }


def sample_rng(seed: int, epoch: int, index: int) -> AugmentationRng:
    """The random numbers of one image in one epoch."""
    return AugmentationRng(rng=np.random.default_rng((seed, epoch, index)))


def replayed_rng(record: dict) -> AugmentationRng:
    """Recorded random numbers."""
    return AugmentationRng(record=record)


@dataclass
class View:
    """The part of an image that the network sees: ``scale`` image pixels around ``center`` fill the input's width.

    Attributes:
        center: (2,) float32, x and y in the (mirrored) image.
        scale: a number, or (width, height) with ``--keep_res``.
        flipped: the image is mirrored first.
        input_size, output_size: (width, height) of the network's input and of its output maps.
        rot: degrees by which the image is turned around ``center``.
    """

    center: np.ndarray
    scale: float | np.ndarray
    flipped: bool
    input_size: tuple[int, int]
    output_size: tuple[int, int]
    rot: float = 0.0

    def warp(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 to the input's size; bilinear, black outside."""
        if self.flipped:
            image = cv2.flip(image, 1)
        matrix = get_affine_transform(self.center, self.scale, self.rot, self.input_size)
        # Of four channels OpenCV makes the same values as of three, in half the time.
        image = cv2.cvtColor(image, cv2.COLOR_BGR2BGRA)
        image = cv2.warpAffine(image, matrix, self.input_size, flags=cv2.INTER_LINEAR)
        return cv2.cvtColor(image, cv2.COLOR_BGRA2BGR)

    def output_matrix(self, turned: bool = False) -> np.ndarray:
        """The 2x3 map from the (mirrored) image to output pixels; ``turned``: with the rotation, for points."""
        return get_affine_transform(self.center, self.scale, self.rot if turned else 0, self.output_size)


def border(size: int) -> int:
    """How far a crop's center stays from the image's edge: 128, halved until it is under half of ``size``."""
    i = 1
    while size - 128 // i <= 128 // i:
        i *= 2
    return 128 // i


def full_view(height: int, width: int, opt, square: bool = False) -> View:
    """The whole image, as validation sees it: scaled to the input, or with ``--keep_res`` padded at its own size.

    ``square``: the input is ``input_res`` wide and high, whatever ``input_w`` and ``input_h`` are.
    """
    if opt.keep_res:
        input_w, input_h = (width | opt.pad) + 1, (height | opt.pad) + 1
        scale = np.array([input_w, input_h], dtype=np.float32)
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
    height: int, width: int, opt, draws: AugmentationRng, square: bool = False, turns: bool = False
) -> View:
    """A random cut: by default one of eight scales around a random center, with ``--not_rand_crop`` a jittered one.

    ``turns``: the task takes part in the rotation that ``--aug_rot`` and ``--rotate`` describe.
    """
    view = full_view(height, width, opt, square)
    if not opt.not_rand_crop:
        view.scale = view.scale * draws.choice(CROP_SCALES)
        view.center[0] = draws.randint(border(width), width - border(width))
        view.center[1] = draws.randint(border(height), height - border(height))
    else:
        shift, scale = opt.shift, opt.scale
        view.center[0] += view.scale * np.clip(draws.randn() * shift, -2 * shift, 2 * shift)
        view.center[1] += view.scale * np.clip(draws.randn() * shift, -2 * shift, 2 * shift)
        view.scale = view.scale * np.clip(draws.randn() * scale + 1, 1 - scale, 1 + scale)
    if turns and draws.random() < opt.aug_rot:
        view.rot = float(np.clip(draws.randn() * opt.rotate, -2 * opt.rotate, 2 * opt.rotate))
    if draws.random() < opt.flip:
        view.flipped = True
        view.center[0] = width - view.center[0] - 1
    return view


def color_matrix(image: np.ndarray, color: dict | None, mean, std) -> np.ndarray:
    """Color jitter and normalization as one affine map of the pixel.

    Every step of the jitter is affine: brightness a*x, contrast a*x + (1-a)*m with the mean gray m of the image
    before any change, saturation a*x + (1-a)*gray(x) likewise, lighting x + constant. Nothing is clipped.

    Args:
        image: (H, W, 3) uint8, B, G, R.
        color: what ``AugmentationRng.color`` gives; None: normalization only.
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
