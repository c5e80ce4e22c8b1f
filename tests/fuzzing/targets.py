"""Readers of foreign files as targets of a fuzzer: each takes bytes and may only return or raise ``UserError``."""

import contextlib
import io
import json
import math
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from tests.helpers.broken_layouts import keypoints_of_coco, keypoints_of_yolo, yolo_with_a_yaml
from tests.helpers.layouts import parse, voc_devkit_form
from tests.helpers.logs import INFO, VAL
from tests.helpers.logs import TRAIN as TRAIN_LOG
from tests.helpers.tool_exports import cvat_xml, label_studio_coco, labelme_flat

from centernet.analysis.compare import compare
from centernet.analysis.library import read_library
from centernet.analysis.panels import log_panels
from centernet.analysis.read import read_curve, read_info, read_run
from centernet.conversion.yaml_file import read_yaml
from centernet.datasets.custom import Custom
from centernet.errors import UserError
from centernet.evaluation.coco import BOX_SCORES, evaluate_content
from centernet.evaluation.kitti_text import read_calib, read_image_names, read_label_lines
from centernet.evaluation.results import read_results
from centernet.models.weights import read_safetensors
from centernet.tasks import build_task
from centernet.utils.images import image_size, read_image

Target = Callable[[Path, bytes], None]
TARGETS: dict[str, tuple[Target, list[bytes]]] = {}
LAYOUTS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {}


def target(*seeds: bytes | str) -> Callable[[Target], Target]:
    """Register ``(folder, content)``, with contents to start from."""

    def register(function: Target) -> Target:
        TARGETS[function.__name__] = function, [one.encode() if isinstance(one, str) else one for one in seeds]
        return function

    return register


def run(name: str, folder: Path, content: bytes) -> None:
    """Run a target: nothing but a one-line ``UserError`` may be raised, and nothing printed matters."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            TARGETS[name][0](folder, content)
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 3000, str(error)[:5000]


def put(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@target(
    "epoch,iteration,loss,lr\n1,1,2.5,0.001\n1,2,2.25,0.001\n",
    "step;loss\n1;2.5\n2;2.25\n",
    "Iter[1] step_train_loss 2.5\nIter[2] step_train_loss 2.25\n",
    "Iteration 12/200 - Loss: 2.5\nIteration 13/200 - Loss: 2.25\n",
    'DLLL {"type": "LOG", "step": [1, 2], "data": {"loss": 2.5, "rank": 0}}\n',
    "DLL 2026-01-01 - Epoch: 0 Iteration: 1  train.loss : 2.5\n",
    "ctdet/x| train: [1][0/924]|Tot: 0:00:01 |ETA: 0:00:01 |loss 2.3456 |hm_loss 1.2 |Net 0.5s\n",
    "1/20 [=>....] - ETA: 3s - loss: 2.5\n2/20 [==>...] - ETA: 3s - loss: 2.25\n",
    b"\xff\xfel\x00o\x00s\x00s\x00:\x001\x00\n\x00",
)
def logs(folder: Path, content: bytes) -> None:
    curve = read_curve(put(folder, "train.log", content))
    assert curve.loss.dtype == np.float64 and curve.loss.ndim == 1 and len(curve.loss)
    compare(curve, curve)


@target(TRAIN_LOG + "%%" + VAL + "%%" + json.dumps(INFO))
def run_directories(folder: Path, content: bytes) -> None:
    parts = content.split(b"%%")
    for name, part in zip(("train_log.csv", "val_log.csv", "opt.json"), parts, strict=False):
        put(folder, name, part)
    for read in (read_info, read_curve):
        with contextlib.suppress(UserError):
            read(folder)
    log_panels([read_run(folder)])


RUNS = [{"file": f"seed_{k}.csv", "seed": k, "score": 0.5} for k in range(1, 5)]
LIBRARY = {"iterations": 2, "runs": RUNS, "score": "mAP", "limits": {"pointwise": 2, "simultaneous": 4}, "recipe": {}}


@target(json.dumps(LIBRARY) + "%%iteration,loss\n1,2.5\n2,2.25\n")
def libraries(folder: Path, content: bytes) -> None:
    info, _, curve = content.partition(b"%%")
    put(folder, "library.json", info)
    for k in range(1, 5):
        put(folder, f"seed_{k}.csv", curve)
    read_library(folder)


CONTENT = {
    "images": [{"id": 1, "file_name": "a.png", "width": 32, "height": 24}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 9, 9], "area": 81, "iscrowd": 0}],
    "categories": [{"id": 1, "name": "a"}],
}


@target(
    json.dumps([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 9, 9], "score": 0.5}]),
    json.dumps([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 9, 9], "score": 1, "keypoints": [1, 2, 1] * 17}]),
)
def results(folder: Path, content: bytes) -> None:
    scores = evaluate_content(CONTENT, read_results(put(folder, "results.json", content)))
    assert all(-1 <= scores[name] <= 1 for name in BOX_SCORES)


@target(
    "path: .\ntrain: [images/train]\nval: images/val\nnames:\n  0: hen house\n  1: fox\nkpt_shape: [2, 3]\nnc: 2\n",
    "names: [a, b]\nbase: &a {x: 1}\nother: [*a, 1]\n",
)
def yaml_files(folder: Path, content: bytes) -> None:
    assert isinstance(read_yaml(put(folder, "data.yaml", content)), dict)


@target(
    "Car 0.00 0 1.85 387.63 181.54 423.81 203.12 1.67 1.87 3.69 -16.53 2.39 58.49 1.57\n",
    "P2: 7.2e+02 0 6.1e+02 4.5e+01 0 7.2e+02 1.7e+02 2.1e-01 0 0 1 2.7e-03\n",
    "000001\n000002\n",
)
def kitti_texts(folder: Path, content: bytes) -> None:
    path = put(folder, "000007.txt", content)
    with contextlib.suppress(UserError):
        assert all(math.isfinite(v) for line in read_label_lines(path) for v in line.numbers)
    with contextlib.suppress(UserError):
        assert np.isfinite(read_calib(path)).all()
    for read in (read_image_names, lambda path: read_label_lines(path, with_scores=True)):
        with contextlib.suppress(UserError):
            read(path)


HEADER = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "__metadata__": {"a": "b"}}).encode()


@target(len(HEADER).to_bytes(8, "little") + HEADER + bytes(8))
def safetensors_files(folder: Path, content: bytes) -> None:
    read_safetensors(put(folder, "a.safetensors", content))


def encoded(suffix: str) -> bytes:
    return cv2.imencode(suffix, np.random.default_rng(0).integers(0, 255, (9, 11, 3), dtype=np.uint8))[1].tobytes()


@target(*map(encoded, (".jpg", ".png", ".bmp", ".webp", ".tif")))
def images(folder: Path, content: bytes) -> None:
    path = put(folder, "a.jpg", content)
    with contextlib.suppress(UserError):
        assert min(image_size(path)) > 0
    image = read_image(str(path), max_pixels=1 << 22)
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


def layout(name: str, write: Callable[[Path], None], file: str, *others: str, task: str = "ctdet") -> None:
    """Register a dataset in which one of its files has any content; the first byte chooses the file."""
    files = (file, *others)

    def read(folder: Path, content: bytes) -> None:
        root = folder / "data"
        if not root.is_dir():
            write(root)
            for one in files:
                (folder / one.replace("/", "%")).write_bytes((root / one).read_bytes())
        chosen = files[(content[0] if content else 0) % len(files)]
        (root / chosen).write_bytes(content[1:])
        try:
            opt = parse(root, "--val_intervals", "0", "--on_bad_image", "skip", task=task)
            dataset = Custom(build_task(opt), "train")
            dataset.check_images_exist()
            dataset.evaluate({image_id: {} for image_id in dataset.image_ids})
        except SystemExit as ended:
            assert ended.code == 2, ended.code
        finally:
            (root / chosen).write_bytes((folder / chosen.replace("/", "%")).read_bytes())

    TARGETS[name] = read, []
    LAYOUTS[name] = write, files


layout("coco_files", label_studio_coco, "result.json")
layout("cvat_files", cvat_xml, "annotations.xml")
layout("labelme_files", labelme_flat, "t1.json")
layout("voc_files", voc_devkit_form, "Annotations/t1.xml", "ImageSets/Main/train.txt")
layout("yolo_files", yolo_with_a_yaml, "data.yaml", "labels/train/t1.txt")
layout("yolo_pose_files", keypoints_of_yolo, "data.yaml", "labels/train/1.txt", task="multi_pose")
layout("coco_keypoint_files", keypoints_of_coco, "train.json", task="multi_pose")


def seeds(name: str, folder: Path) -> list[bytes]:
    """Return contents of a target that are valid."""
    if name not in LAYOUTS:
        return TARGETS[name][1]
    write, files = LAYOUTS[name]
    write(folder / "seeds")
    return [bytes([k]) + (folder / "seeds" / file).read_bytes() for k, file in enumerate(files)]
