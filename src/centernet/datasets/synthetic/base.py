"""Shared by the synthetic datasets: generation on first use, the loop over splits, and textured backgrounds."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from ...conversion.preparation import prepare_once
from ...errors import UserError
from ...utils.files import write_bytes
from ..base import IMAGENET_MEAN, IMAGENET_STD


class SyntheticDataset:
    """Base of the synthetic datasets; comes before the class of the dataset whose layout is drawn.

    A subclass draws one scene; the drawing depends on nothing but ``seed``, the image id and the code.

    Attributes:
        name: of the dataset and of its folder.
        seed: of the random numbers, with the image id.
        version: of the drawing; a folder of another version is drawn again.
        splits: split name to number of images; image ids count from 1 through all of them.
        image_name: the file name of an image by its id, as a format.
        pretrained: none, since natural images have little to do with these.
    """

    name: str
    seed = 2019
    version = 1
    splits: dict[str, int] = {"train": 320, "val": 80}
    image_name = "{:06d}.jpg"
    class_names: Sequence[str]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    pretrained = "none"

    @classmethod
    def draw_scene(cls, rng: np.random.Generator) -> tuple[np.ndarray, dict, list[dict]]:
        """Draw one scene.

        Returns:
            The image (H, W, 3) uint8 in BGR order, further fields of its entry, and its annotations in the form of the
            annotation file, without ids.
        """
        raise NotImplementedError

    @classmethod
    def path_of_annotations(cls, folder: Path, split: str) -> Path:
        """Return the path of the annotation file of a split."""
        raise NotImplementedError

    @classmethod
    def images_of(cls, folder: Path, split: str) -> Path:
        """Return the folder of the images of a split."""
        return folder / "images"

    @classmethod
    def categories(cls) -> list[dict]:
        """Return the categories of the annotation files."""
        return [{"supercategory": "none", "id": k, "name": name} for k, name in enumerate(cls.class_names, start=1)]

    def find_annotations(self, folder: Path, split: str) -> Path:
        return self.path_of_annotations(folder, split)

    def find_images(self, folder: Path, split: str) -> Path:
        return self.images_of(folder, split)

    @classmethod
    def locate(cls, data_path: Path) -> Path:
        """Return the folder of the dataset's name below the data path, or that itself; it need not exist yet."""
        if data_path.exists() and not data_path.is_dir():
            raise UserError(f"--data_path {data_path}: not a folder")
        return data_path if (data_path / f"{cls.name}_version").is_file() else data_path / cls.name

    @classmethod
    def prepare(cls, folder: Path, log=print) -> None:
        """Draw all images on first use."""
        marker = folder / f"{cls.name}_version"

        def is_complete() -> bool:
            return marker.is_file() and marker.read_bytes().strip() == str(cls.version).encode()

        def make(_: bool) -> None:
            log(f"{folder}: drawing the images of --dataset {cls.name} (once)")
            first = 1
            for split, count in cls.splits.items():
                content = cls.draw_split(range(first, first + count), cls.images_of(folder, split))
                path = cls.path_of_annotations(folder, split)
                path.parent.mkdir(exist_ok=True)
                write_bytes(path, json.dumps(content).encode(), sync=False)
                first += count
            if hasattr(os, "sync"):
                os.sync()  # the marker must not reach the disk before the rest
            write_bytes(marker, f"{cls.version}\n".encode())

        prepare_once(folder, cls.name, is_complete, make)

    @classmethod
    def draw_split(cls, image_ids: range, image_folder: Path) -> dict:
        """Write the images ``image_ids`` and return their annotations as the annotation file has them."""
        image_folder.mkdir(parents=True, exist_ok=True)
        images: list[dict] = []
        annotations: list[dict] = []
        for image_id in image_ids:
            image, fields, objects = cls.draw_scene(np.random.default_rng((cls.seed, image_id)))
            file_name = cls.image_name.format(image_id)
            write_image(image_folder / file_name, image)
            images.append({"file_name": file_name, "id": image_id, **fields})
            for entry in objects:
                annotations.append({"id": len(annotations) + 1, "image_id": image_id, **entry})
        return {"images": images, "annotations": annotations, "categories": cls.categories()}


def write_image(path: Path, image: np.ndarray) -> None:
    """Write an image (H, W, 3) uint8 in BGR order; JPEG has quality 95. All reach the disk at the end of a drawing."""
    options = [cv2.IMWRITE_JPEG_QUALITY, 95] if path.suffix in (".jpg", ".jpeg") else []  # other encoders warn of it
    write_bytes(path, cv2.imencode(path.suffix, image, options)[1].tobytes(), sync=False)


def size_fields(image: np.ndarray) -> dict:
    """Return the size of an image (H, W, 3) as fields of its entry."""
    return {"height": image.shape[0], "width": image.shape[1]}


def box_fields(x: float, y: float, w: float, h: float) -> dict:
    """Return a box as fields of an annotation: ``bbox``, ``area``, its rectangle as ``segmentation``, ``iscrowd``."""
    rectangle = [x, y, x, y + h, x + w, y + h, x + w, y]
    return {"bbox": [x, y, w, h], "area": w * h, "segmentation": [rectangle], "iscrowd": 0}


def smooth_noise(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Return smooth random values (height, width) float32 around 0 with about ``cells`` spots along a side."""
    coarse = rng.normal(size=(cells, cells)).astype(np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def striped_background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return a dull background (height, width, 3): two scales of noise, sometimes stripes."""
    texture = 18 * smooth_noise(rng, height, width, 4) + 10 * smooth_noise(rng, height, width, 24)
    if rng.random() < 0.5:
        angle, wave = rng.uniform(0, np.pi), rng.uniform(5, 16)
        y, x = np.mgrid[:height, :width]
        texture += rng.uniform(6, 18) * np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / wave)
    tint = rng.uniform(60, 190) + rng.uniform(-18, 18, 3)
    return tint + texture[:, :, None]
