"""Image files: their pixels, and their size from the header alone."""

import functools
import io
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import cv2
import numpy as np
from PIL import Image

from ..errors import UserError

MAX_PIXELS = 2**28  # default of --max_image_pixels: 16,384 x 16,384, which takes 0.8 GB of memory
# The formats that OpenCV reads, too, by Pillow's names.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "JPEG2000", "AVIF", "PPM", "SUN")
EXIF_ORIENTATION, SIDEWAYS = 274, (5, 6, 7, 8)
ROTATED_FORMATS = ("JPEG", "MPO", "PNG", "WEBP")  # OpenCV applies the EXIF orientation; Pillow's size of TIFF has it
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
START_OF_FRAME = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers of a JPEG file that are followed by its size

_pillow_limit = threading.Lock()


def read_image(path: str | os.PathLike, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read an image as (H, W, 3) uint8 in BGR order, as OpenCV's ``IMREAD_COLOR`` defines it.

    Grayscale, CMYK, 16-bit and palette images become 8-bit color, alpha is dropped, of an animation the first frame is
    read, and the EXIF orientation is applied. The size in the header is compared with ``max_pixels``
    (``--max_image_pixels``) before anything is decoded, since a small file can hold gigabytes of pixels.

    Raises:
        UserError: naming the file, if it cannot be read, is truncated or corrupt, or is too large.
    """
    name = os.fspath(path)
    content = _read_bytes(name)
    if not content:
        raise UserError(f"{name}: cannot read image: the file is empty")
    if is_truncated_jpeg(content):
        raise UserError(f"{name}: cannot read image: the file is truncated")
    size = _stated_size(content)
    if size is not None and size[0] * size[1] > max_pixels:
        raise UserError(
            f"{name}: cannot read image: its header states {size[0]} x {size[1]}, which is more than the "
            f"{max_pixels} pixels of --max_image_pixels"
        )
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except (cv2.error, MemoryError) as error:
        raise UserError(f"{name}: cannot read image ({getattr(error, 'err', '') or 'out of memory'})") from error
    if image is None:
        raise UserError(f"{name}: cannot read image: not an image file, or corrupt")
    return image


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """Return the width and height with which ``read_image`` reads a file, from its header alone.

    Raises:
        UserError: the file is missing or not an image.
    """
    try:
        with _header(Path(path)) as image:
            width, height = image.size
            for name in ("xmp", "XML:com.adobe.xmp"):  # Pillow takes an orientation from it, OpenCV does not
                image.info.pop(name, None)
            orientation = image.getexif().get(EXIF_ORIENTATION) if image.format in ROTATED_FORMATS else None
    except FileNotFoundError:
        raise UserError(f"{path}: cannot read image: no such file") from None
    except Exception as error:  # a damaged file can raise anything
        raise UserError(f"{path}: cannot read image ({' '.join(str(error).split())[:100]})") from None
    return (height, width) if orientation in SIDEWAYS else (width, height)


def is_truncated_jpeg(content: bytes) -> bool:
    """Return whether ``content`` is a JPEG file without its end, which OpenCV may fill with gray without a warning.

    What follows the end, as some cameras write it, does not matter.
    """
    if not content.startswith(b"\xff\xd8"):
        return False
    end = 2
    for _, at, length in _jpeg_segments(content):
        end = at + 2 + length
    return content.rfind(b"\xff\xd9", end) < 0  # a thumbnail among the segments has its own end


def _read_bytes(path: str) -> bytes:
    try:
        place = _encodable(path)
        if not stat.S_ISREG(os.stat(place).st_mode):  # reading a pipe would never end
            raise UserError(f"{path}: cannot read image: it is not a file")
        with open(place, "rb") as file:
            return file.read()
    except FileNotFoundError as error:
        raise UserError(f"{path}: cannot read image: no such file") from error
    except (OSError, ValueError) as error:  # a ValueError is a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path[:200]}: cannot read image ({reason})") from error


def _encodable(path: str) -> str | bytes:
    """Return the path, as UTF-8 where the encoding of the locale lacks one of its characters."""
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return path.encode("utf-8", "surrogateescape")
    return path


def _stated_size(content: bytes) -> tuple[int, int] | None:
    """Return the width and height in the header of an image file; None where they cannot be found.

    PNG and JPEG are read here because Pillow takes longer for a header than OpenCV for a small image.
    """
    if content.startswith(PNG_SIGNATURE):
        return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
    if content.startswith(b"\xff\xd8"):
        for marker, at, _ in _jpeg_segments(content):
            if marker in START_OF_FRAME:
                height, width = (int.from_bytes(content[at + k : at + k + 2], "big") for k in (5, 7))
                return width, height
        return None
    try:
        with _header(io.BytesIO(content)) as image:
            return image.size
    except Exception:  # OpenCV decides, with its own limit
        return None


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, offset and length of the segments of a JPEG file up to the first one that pixels follow."""
    at = 2
    while (at := content.find(b"\xff", at)) >= 0 and at + 1 < len(content):  # what is between segments is skipped
        marker = content[at + 1]
        if marker in (0xDA, 0xD9):
            return
        if marker == 0xFF:  # padding
            at += 1
        elif marker <= 0x01 or 0xD0 <= marker <= 0xD8:  # markers without a segment
            at += 2
        else:
            length = int.from_bytes(content[at + 2 : at + 4], "big")
            yield marker, at, length
            at += 2 + length


@contextmanager
def _header(source: Path | IO[bytes]) -> Iterator[Image.Image]:
    """Open an image with Pillow without decoding it, and without Pillow's own limit of pixels and its warnings."""
    with _pillow_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image = Image.open(source, formats=_known_formats())
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    with image:
        yield image


@functools.cache
def _known_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)
