"""The size of an image is checked in its header, before anything is decoded."""

import io
import struct
import warnings
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from centernet.detector import as_array
from centernet.errors import UserError
from centernet.options import OptionParser
from centernet.utils import images
from centernet.utils.images import MAX_PIXELS, image_size, is_truncated_jpeg, read_image
from centernet.video import open_video

FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "bmp": "BMP", "tif": "TIFF", "gif": "GIF", "jp2": "JPEG2000"}
REAL = (14000, 13000)  # an aerial image: more than Pillow takes by itself


def encoded(suffix: str, width: int = 40, height: int = 30) -> bytes:
    buffer = io.BytesIO()
    gray = np.linspace(0, 255, width * height).reshape(height, width).astype(np.uint8)
    Image.fromarray(gray).convert("RGB").save(buffer, FORMATS[suffix])
    return buffer.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """A valid 1-bit PNG file, black; some kilobytes for any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    compressor, line = zlib.compressobj(9), bytes(1 + (width + 7) // 8)
    pixels = b"".join(compressor.compress(line) for _ in range(height)) + compressor.flush()
    return images.PNG_SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def forbid_decoding(monkeypatch):
    def decode(*_):
        raise AssertionError("the image was decoded")

    monkeypatch.setattr(cv2, "imdecode", decode)


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_limit_is_checked_before_decoding(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(encoded(suffix))
    assert image_size(path) == (40, 30)
    if suffix != "jp2":  # not in every build of OpenCV
        assert read_image(path, 1200).shape == (30, 40, 3)
    forbid_decoding(monkeypatch)
    with pytest.raises(UserError, match=r"a\.\w+: cannot read image: its header states 40 x 30, .* 1199 .*--max_"):
        read_image(path, 1199)


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'


@pytest.mark.parametrize("metadata", ["exif", "xmp", "both"])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif"])
def test_the_size_is_that_of_the_decoded_image(tmp_path, suffix, metadata):
    """OpenCV applies an orientation of EXIF, and none of XMP."""
    exif = Image.Exif()
    exif[274] = 6 if metadata == "exif" else 1
    more = {"exif": {"exif": exif}, "xmp": {"xmp": XMP}, "both": {"exif": exif, "xmp": XMP}}[metadata]
    path = tmp_path / f"a.{suffix}"
    try:
        Image.new("RGB", (40, 30)).save(path, **more)
        height, width = read_image(path).shape[:2]
    except (OSError, ValueError, KeyError, UserError):
        pytest.skip("not in this build of Pillow or OpenCV")
    assert image_size(path) == (width, height)


def test_a_bomb_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of_size(30000, 30000))
    forbid_decoding(monkeypatch)
    with pytest.raises(UserError, match="30000 x 30000"):
        read_image(path)
    with pytest.raises(UserError, match="30000 x 30000"):
        as_array(path)


@pytest.mark.parametrize("between", [b"", b"\xff\xff\xff", b"junk\x00", b"\xff\x01\xff\x00"])
def test_jpeg_sizes_behind_padding_and_junk(tmp_path, between, monkeypatch):
    """libjpeg skips what is between segments, so a size behind it counts, too."""
    content = encoded("jpg")
    (tmp_path / "a.jpg").write_bytes(content[:2] + between + content[2:])
    assert not is_truncated_jpeg(content[:2] + between + content[2:])
    forbid_decoding(monkeypatch)
    with pytest.raises(UserError, match="40 x 30"):
        read_image(tmp_path / "a.jpg", 100)


def test_pillow_keeps_its_limit_and_its_warnings_elsewhere(tmp_path):
    (tmp_path / "a.png").write_bytes(png_of_size(*REAL))
    assert REAL[0] * REAL[1] > Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert image_size(tmp_path / "a.png") == REAL
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "a.png").close()
    assert REAL[0] * REAL[1] < MAX_PIXELS


@pytest.mark.slow
def test_a_real_large_image_is_read(tmp_path):
    (tmp_path / "a.png").write_bytes(png_of_size(*REAL))
    assert read_image(tmp_path / "a.png").shape == (REAL[1], REAL[0], 3)


def test_the_option_has_the_limit_of_the_function():
    assert OptionParser().parse(["ctdet"]).max_image_pixels == MAX_PIXELS


def test_errors_of_opencv_are_lines(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(encoded("png"))
    for error, reason in ((cv2.error("x"), ""), (MemoryError(), "out of memory")):
        monkeypatch.setattr(cv2, "imdecode", lambda *_, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(UserError, match=rf"a\.png: cannot read image \(.*{reason}"):
            read_image(tmp_path / "a.png")


def test_a_name_that_the_locale_lacks_is_read(tmp_path, monkeypatch):
    """Annotation files and file names are UTF-8, independent of the locale."""
    (tmp_path / "方块.png").write_bytes(encoded("png"))

    def ascii_only(path):
        if isinstance(path, str):
            path.encode("ascii")
        return path

    monkeypatch.setattr(images.os, "fsencode", ascii_only)
    assert read_image(str(tmp_path / "方块.png")).shape == (30, 40, 3)


def test_large_frames_of_a_video_are_refused(tmp_path):
    path = str(tmp_path / "a.avi")
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    open_video(path).release()
    with pytest.raises(UserError, match=r"--demo .*a\.avi: its frames are 64 x 48, .*--max_image_pixels"):
        open_video(path, 64 * 48 - 1)
