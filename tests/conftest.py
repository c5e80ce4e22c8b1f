"""Shared by all tests: one thread each, and a tiny generated dataset."""

import functools
import json
import signal

import cv2
import numpy as np
import pytest
import torch
from tests.helpers.training import run_here

from centernet.datasets.pascal import PascalVOC

torch.set_num_threads(1)
cv2.setNumThreads(1)
# A command in the background of a script, or under nohup, ignores these signals, and so would trainings of the tests.
for name, handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
    if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is signal.SIG_IGN:
        signal.signal(getattr(signal, name), handler)


@pytest.fixture(autouse=True)
def restored_signal_handlers():
    """Restore the handlers that a test replaces, such as one that initializes a loader worker in this process."""
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    yield
    for number, handler in handlers.items():
        if signal.getsignal(number) is not handler and handler is not None:
            signal.signal(number, handler)


TINY_SPLITS = {"pascal_trainval0712.json": 6, "pascal_test2007.json": 4}


@pytest.fixture
def tiny_voc(tmp_path):
    """Return a data path with ``voc/``: 6 + 4 images of colored rectangles, annotated with VOC's 20 classes.

    Images have ids 1 to 10 and two sizes, and two objects of different classes each. The second object of every
    third image is difficult.
    """
    folder = tmp_path / "data" / "voc"
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    categories = [{"supercategory": "none", "id": k + 1, "name": name} for k, name in enumerate(PascalVOC.class_names)]
    image_id = 0
    for file_name, count in TINY_SPLITS.items():
        images, annotations = [], []
        for _ in range(count):
            image_id += 1
            width, height = (64, 48) if image_id % 2 else (48, 64)
            image = np.full((height, width, 3), 90, np.uint8)
            boxes = [(3 + image_id, 5, 24, 18), (8, 28, 30 - image_id, 16)]
            for place, (x, y, w, h) in enumerate(boxes):
                image[y : y + h, x : x + w] = (25 * image_id, 250 - 20 * image_id, 120 + 60 * place)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": (2 * image_id + place) % 20 + 1,
                        "bbox": [x, y, w, h],
                        "area": w * h,
                        "segmentation": [[x, y, x, y + h, x + w, y + h, x + w, y]],
                        "iscrowd": 0,
                        "ignore": int(place == 1 and image_id % 3 == 0),
                    }
                )
            name = f"{image_id:06d}.jpg"
            assert cv2.imwrite(str(folder / "images" / name), image)
            images.append({"file_name": name, "height": height, "width": width, "id": image_id})
        content = {"images": images, "type": "instances", "annotations": annotations, "categories": categories}
        (folder / "annotations" / file_name).write_text(json.dumps(content))
    return folder.parent


@pytest.fixture
def main():
    """Run main.py in this process, which saves its start; gives its exit status and what it printed."""
    return functools.partial(run_here, "main", "ctdet")
