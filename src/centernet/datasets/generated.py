"""Datasets that are drawn by code on first use, so that everything can be tried without data."""

import os
from pathlib import Path

import cv2
import numpy as np

from ..errors import UserError
from ..utils.files import write_bytes


class SyntheticDataset:
    """What such datasets have in common; to be named before the class that says what is in them.

    Attributes:
        name: of the dataset and of its folder.
        version: of the drawing; a folder of another version is drawn anew.
        pretrained: none, since real images have little to do with these.
    """

    name: str
    version: int
    pretrained = "none"

    @classmethod
    def locate(cls, data_path: Path) -> Path:
        """The folder of the dataset's name below the data path, or that itself; it need not exist yet."""
        if data_path.exists() and not data_path.is_dir():
            raise UserError(f"--data_path {data_path}: not a folder")
        return data_path if (data_path / f"{cls.name}_version").is_file() else data_path / cls.name

    @classmethod
    def prepare(cls, folder: Path, log=print) -> None:
        """Draw the images on first use."""
        marker = folder / f"{cls.name}_version"
        if marker.is_file() and marker.read_text().strip() == str(cls.version):
            return
        log(f"{folder}: drawing the images of --dataset {cls.name} (once)")
        try:
            (folder / "annotations").mkdir(parents=True, exist_ok=True)
            cls.draw(folder)
            if hasattr(os, "sync"):
                os.sync()  # the marker must not reach the disk before the rest
            write_bytes(marker, f"{cls.version}\n".encode())
        except OSError as error:
            raise UserError(f"{folder}: the sample cannot be written there ({error})") from error

    @classmethod
    def draw(cls, folder: Path) -> None:
        """Write images and annotations of all splits below ``folder``, which has a folder ``annotations``."""
        raise NotImplementedError


def write_file(path: Path, content: bytes) -> None:
    """Write a file of the sample. They reach the disk together, before the marker does."""
    write_bytes(path, content, sync=False)


def write_image(path: Path, image: np.ndarray) -> None:
    """Write an image (H, W, 3) uint8 in BGR order; JPEG has quality 95."""
    write_file(path, cv2.imencode(path.suffix, image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes())


def smooth_noise(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Smooth random values (height, width) float32 around 0 with about ``cells`` spots along a side."""
    coarse = rng.normal(size=(cells, cells)).astype(np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def striped_ground(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A dull ground (height, width, 3) for objects to be drawn on: two scales of noise, sometimes stripes."""
    texture = 18 * smooth_noise(rng, height, width, 4) + 10 * smooth_noise(rng, height, width, 24)
    if rng.random() < 0.5:
        angle, wave = rng.uniform(0, np.pi), rng.uniform(5, 16)
        y, x = np.mgrid[:height, :width]
        texture += rng.uniform(6, 18) * np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / wave)
    tint = rng.uniform(60, 190) + rng.uniform(-18, 18, 3)
    return tint + texture[:, :, None]
