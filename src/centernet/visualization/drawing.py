"""Colors of classes, heatmaps, network inputs, and showing or saving images.

Images are (height, width, 3) uint8 in BGR order, as OpenCV has them; no function changes its arguments. ``theme``
is the value of ``--debugger_theme``: ``white`` shows heatmaps in dark colors on white, ``black`` in bright colors
on black.
"""

import functools
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from centernet.errors import UserError
from centernet.utils import files

THEMES = ("white", "black")
HEAT_MAP_SHARE = 0.7  # of a blended image
WINDOW_SECONDS = 30  # after which a display that does not answer is none
WHITE_THEME_LIMIT = 153  # brightest channel of a color on white

# Class k has the k-th point of the sequence k · (1/g, 1/g², 1/g³) mod 1, with g⁴ = g + 1, as hue, saturation and value:
# its points keep apart as well as possible however many there are.
COLOR_STEPS = 1.2207440846057596 ** -np.arange(1.0, 4.0)


def class_colors(num_classes: int, theme: str = "white") -> np.ndarray:
    """Return colors of classes, (num_classes, 3) uint8 BGR, all different up to a thousand classes at least.

    A class has the same hue in both themes regardless of ``num_classes``. For the white theme colors are scaled to
    at most 153, so that they stand out from white. (They are not the reference's, whose table ends at 80 classes.)
    """
    _check_theme(theme)
    point = np.arange(num_classes)[:, None] * COLOR_STEPS % 1.0
    hue, saturation, value = point[:, :1], 1.0 - 0.5 * point[:, 1:2], 1.0 - 0.35 * point[:, 2:]
    # From hue, saturation and value to blue, green and red: how far a channel falls below the value.
    sector = (np.array([1.0, 3.0, 5.0]) + hue * 6.0) % 6.0
    bgr = value * (1.0 - saturation * np.clip(np.minimum(sector, 4.0 - sector), 0.0, 1.0))
    limit = WHITE_THEME_LIMIT if theme == "white" else 255
    return np.rint(bgr * limit).astype(np.uint8)


def heat_map_image(hm: np.ndarray, theme: str, size: tuple[int, int], colors: np.ndarray | None = None) -> np.ndarray:
    """Return a heatmap in ``colors`` (C, 3) or those of its classes on black, enlarged to ``size`` = (height, width).

    ``hm`` (C, h, w) float with values from 0 to 1. Each pixel is the maximum over the channels of value · color; for
    the white theme colors are inverted here and :func:`blend` inverts them back, which makes the background white.
    """
    hm = np.clip(np.nan_to_num(np.asarray(hm, dtype=np.float32)), 0.0, 1.0)
    colors = (class_colors(len(hm), theme) if colors is None else colors).astype(np.float32)
    if theme == "white":
        colors = 255.0 - colors
    image = np.zeros((*hm.shape[1:], 3), dtype=np.float32)
    for channel, color in zip(hm, colors, strict=True):
        np.maximum(image, channel[:, :, None] * color, out=image)
    height, width = size
    return cv2.resize(np.rint(image).astype(np.uint8), (width, height), interpolation=cv2.INTER_LINEAR)


def blend(image: np.ndarray, colored: np.ndarray, theme: str) -> np.ndarray:
    """Return 0.3 · ``image`` + 0.7 · ``colored`` (inverted for the white theme) of :func:`heat_map_image`."""
    _check_theme(theme)
    if theme == "white":
        colored = 255 - colored
    mixed = image * (1.0 - HEAT_MAP_SHARE) + colored * HEAT_MAP_SHARE
    return np.rint(mixed).astype(np.uint8)


def overlay_heat_map(image: np.ndarray, hm: np.ndarray, theme: str, colors: np.ndarray | None = None) -> np.ndarray:
    """Return an image blended with a heatmap; arguments as for :func:`heat_map_image`."""
    return blend(image, heat_map_image(hm, theme, image.shape[:2], colors), theme)


def restore_image(input_chw: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Return the image (h, w, 3) uint8 from which a normalized network input (3, h, w) float, BGR, was made.

    ``mean`` and ``std`` hold the three numbers of the normalization, as fractions of 255, in any shape.
    """
    image = np.asarray(input_chw, dtype=np.float32).transpose(1, 2, 0)
    image = (image * np.reshape(std, 3) + np.reshape(mean, 3)) * 255.0
    return np.rint(np.clip(np.nan_to_num(image), 0, 255)).astype(np.uint8)


def show_or_save(images: Mapping[str, np.ndarray], folder: str | Path, prefix: str, show: bool, delay: int = 0) -> int:
    """Show each image in a window of its name, or write it to ``<folder>/<prefix><name>.png``.

    ``show`` opens windows and waits ``delay`` milliseconds for a key (0: until one is pressed). Without a display the
    files are written instead, which is reported once per directory. Returns the code of the pressed key, or -1.

    Raises:
        UserError: a file cannot be written.
    """
    if show and has_display():
        try:
            for name, image in images.items():
                cv2.imshow(name, image)
            return cv2.waitKey(delay)
        except cv2.error:  # OpenCV built without windows (opencv-python-headless)
            pass
    if show:
        _report_once(f"no display: images go to {folder}")
    for name, image in images.items():
        path = Path(folder) / f"{prefix}{name}.png"
        with files.write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(path, cv2.imencode(".png", image)[1].tobytes(), sync=False)
    return -1


def has_display() -> bool:
    """Return whether windows can be opened.

    A variable such as ``DISPLAY`` may name a display that cannot be reached, and OpenCV may have no windows.
    """
    if not sys.platform.startswith("linux"):
        return True
    displays = os.environ.get("DISPLAY"), os.environ.get("WAYLAND_DISPLAY")
    return any(displays) and _opens_window(displays)


@functools.cache
def _opens_window(displays: tuple[str | None, ...]) -> bool:
    """Return whether OpenCV opens a window on these displays; tried in a process that it may end, as Qt does."""
    code = "import cv2; cv2.namedWindow('test'); cv2.destroyAllWindows()"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=WINDOW_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


@functools.cache
def _report_once(message: str) -> None:
    print(message, file=sys.stderr)


def _check_theme(theme: str) -> None:
    if theme not in THEMES:
        raise UserError(f"unknown theme {theme}: choose from {', '.join(THEMES)}")
