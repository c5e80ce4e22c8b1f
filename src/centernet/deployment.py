"""Exported files and real images: calibrate with them, compare detections with PyTorch's, measure latency."""

import importlib
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from .conversion.paths import IMAGE_SUFFIXES
from .datasets.base import CocoStyleDataset
from .detector import Detector, prepare
from .engine import processes, setup
from .errors import UserError
from .evaluation.analysis import box_iou
from .evaluation.results import format_score, score_exists
from .ops import tensorrt
from .options import Options
from .tasks import build_task
from .utils.images import read_image

SPLITS = ("train", "val", "test")
MIN_SCORE = 0.1  # detections of lower scores are not compared
MIN_IOU, MAX_SCORE_DIFFERENCE = 0.99, 0.01  # tolerance of --verify without --int8
MIN_MATCHED_INT8 = 0.9  # fraction of detections that --int8 must find where no score decides
WARM_UP, REPEATS = 5, 50

Images = list[tuple[Any, Callable[[], np.ndarray], dict]]  # image id, function that reads it, metadata
Results = dict[Any, dict[int, np.ndarray]]  # image id to class id from 1 to rows


class Runtime(nn.Module):
    """An exported file in the place of a network.

    Attributes:
        title: name and version of the program that runs it.
    """

    def __init__(self, path: Path, kind: str, names: Sequence[str], threads: int) -> None:
        """Open ``path``, whose outputs are ``names``. Raises UserError where a package is missing."""
        super().__init__()
        self.names = tuple(names)
        self.call: Callable[[np.ndarray], Sequence]
        self.title, self.call = RUNTIMES[kind](path, threads)

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        """Map (B, 3, H, W) to the outputs of the file by name, as a network with one stack does."""
        outputs = self.call(np.ascontiguousarray(x.numpy()))
        return [{name: torch.as_tensor(value) for name, value in zip(self.names, outputs, strict=True)}]


def _onnxruntime(path: Path, threads: int) -> tuple[str, Callable]:
    onnxruntime = require("onnxruntime", "--verify and --benchmark of .onnx files")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return f"ONNX Runtime {onnxruntime.__version__}", lambda x: session.run(None, {"input": x})


def _openvino(path: Path, threads: int) -> tuple[str, Callable]:
    openvino = require("openvino", "--verify and --benchmark of .xml files")
    # Some processors compute in bfloat16 by default, where differences exceed the tolerance.
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(str(path), "CPU", settings)
    version = openvino.__version__.partition("-")[0]
    return f"OpenVINO {version}", lambda x: list(model({"input": x}, share_outputs=False).values())


def _tensorrt(path: Path, threads: int) -> tuple[str, Callable]:
    engine = tensorrt.Engine(path.read_bytes())
    return engine.title, engine


def _torch_export(path: Path, threads: int) -> tuple[str, Callable]:
    module = torch.export.load(path).module()
    return "torch.export", lambda x: module(torch.from_numpy(x))


def _torchscript(path: Path, threads: int) -> tuple[str, Callable]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated; see export._torchscript
        warnings.simplefilter("ignore", DeprecationWarning)
        module = torch.jit.load(str(path))
    return "TorchScript", lambda x: module(torch.from_numpy(x))


RUNTIMES: dict[str, Callable[[Path, int], tuple[str, Callable]]] = {
    "onnx": _onnxruntime,
    "openvino": _openvino,
    "tensorrt": _tensorrt,
    "pt2": _torch_export,
    "torchscript": _torchscript,
}


def require(name: str, purpose: str) -> Any:
    """Import a package. Raises UserError with ``purpose``, the options that need it, if it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{purpose}: needs a package that is missing: pip install {name}") from error


def check_exported(path: Path, kind: str, reference: nn.Module, model: nn.Module, opt: Options, log=print) -> None:
    """Do what ``--verify`` and ``--benchmark`` ask for.

    Args:
        path: the exported file.
        kind: its format.
        reference: the exported module (``export.Exported``).
        model: the network of the checkpoint on the CPU, not changed.
        opt: finished options.
        log: called with lines for the user.

    Raises:
        UserError: a missing package, images that cannot be used, or detections beyond tolerance.
    """
    names = ("dets",) if opt.with_decode else tuple(opt.heads)
    before = torch.get_num_threads()
    torch.set_num_threads(opt.threads)
    try:
        runtime = Runtime(path, kind, names, opt.threads)
        if opt.benchmark:
            for line in benchmark(runtime, reference, opt):
                log(line)
        if opt.verify:
            verify(runtime, model, opt, log)
    finally:
        torch.set_num_threads(before)


def verify(runtime: Runtime, model: nn.Module, opt: Options, log=print) -> None:
    """Compare detections of an exported file with PyTorch's on the images of ``--verify``, and log a table.

    Raises:
        UserError: no usable images, nothing found, or a difference beyond tolerance.
    """
    images, dataset = find_images(opt, opt.verify, "verify", log)
    detector = Detector(build_task(opt), model, torch.device("cpu"))
    expected = detect(detector, images)
    found = detect(runtime_detector(runtime, opt), images)
    columns: list[list[str]] = [["detections", *(str(_count(detector, results)) for results in (expected, found))]]
    drop, decides = None, False  # of the main score, and whether it shows how good the exported file is
    if dataset is not None:
        scores = [dataset.evaluate(results) for results in (expected, found)]
        name = next(iter(scores[0]), None)  # the main score; none without annotations
        if name is not None:
            before, after = (one[name] for one in scores)
            columns.append([name, format_score(before), format_score(after)])
            if score_exists(before) and score_exists(after):
                drop, decides = before - after, before > 0  # a score of 0 cannot drop
                columns.append(["drop", "", f"{drop:+.4f}"])
    comparison = compare(expected, found, detector)
    log(f"{len(images)} images of {opt.verify}, detections of scores above {MIN_SCORE:g}:")
    for line in table(
        ["", *(column[0] for column in columns)], [f"PyTorch {torch.__version__}", runtime.title], columns
    ):
        log(line)
    log(comparison.text)
    if not comparison.count:
        raise UserError(f"--verify {opt.verify}: nothing is found in these images; use images with objects")
    limit = opt.max_ap_drop
    if drop is not None and drop > limit:
        raise UserError(f"--max_ap_drop {limit:g}: the score drops by {drop:.4f}; the exported file is not kept")
    if opt.int8:
        accepted = decides or comparison.matched >= MIN_MATCHED_INT8 * comparison.count
    else:
        accepted = comparison.within_tolerance
    if not accepted:
        raise UserError(f"--verify {opt.verify}: detections differ beyond tolerance; the exported file is not kept")


def calibration_inputs(model: nn.Module, opt: Options, log=print) -> Iterator[np.ndarray]:
    """Return the network's inputs (B, 3, H, W) float32 for ``--calibration_images`` of ``--calibration``.

    Every test scale of an image is an input, prepared as the detector does. Images are read when they are needed.

    Raises:
        UserError: no such data, or no images; while reading, an image that cannot be read.
    """
    images, _ = find_images(opt, opt.calibration, "calibration", log)
    places = np.unique(np.linspace(0, len(images) - 1, min(opt.calibration_images, len(images))).round().astype(int))
    log(f"calibration with {len(places)} of {len(images)} images of {opt.calibration}")
    detector = Detector(build_task(opt), model, torch.device("cpu"))

    def inputs() -> Iterator[np.ndarray]:
        for _, read, info in (images[k] for k in places):
            for view in prepare(read(), detector.task, info)["images"].values():
                yield np.ascontiguousarray(detector.normalized(np.asarray(view)[None]).numpy())

    return inputs()


def find_images(opt: Options, data: str, option: str, log=print) -> tuple[Images, CocoStyleDataset | None]:
    """Return the images of ``data``, and its dataset if it is the name of a split.

    Args:
        opt: finished options.
        data: ``train``, ``val`` or ``test``, of ``--dataset``; or an image or a folder of images.
        option: the option that gives ``data``, for error messages.
        log: called with notes about the data.

    Raises:
        UserError: no such data, or no images.
    """
    if data in SPLITS:
        env = processes.start(opt.replace(device="cpu"))
        setup.prepare_dataset(opt, env)
        dataset = setup.open_split(build_task(opt), data, env)
        reading = lambda k: lambda: dataset.read_image(k)  # noqa: E731
        return [(name, reading(k), dataset.picture_info(k)) for k, name in enumerate(dataset.image_ids)], dataset
    path = Path(data).expanduser()
    if not path.exists():
        raise UserError(f"--{option} {data}: not a split ({', '.join(SPLITS)}) and no such file or folder")
    files = (
        sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES) if path.is_dir() else [path]
    )
    if not files:
        raise UserError(f"--{option} {data}: no images in this folder ({', '.join(sorted(IMAGE_SUFFIXES))})")
    reading_file = lambda file: lambda: read_image(file, opt.max_image_pixels)  # noqa: E731
    return [(str(file), reading_file(file), {}) for file in files], None


def runtime_detector(runtime: Runtime, opt: Options) -> Detector:
    """Return a detector whose network is an exported file, with or without decoding."""
    detector = Detector(build_task(opt), runtime, torch.device("cpu"))
    if runtime.names == ("dets",):
        detector.task.decode = lambda output, **_: output["dets"]  # type: ignore[method-assign]
    return detector


def detect(detector: Detector, images: Images) -> Results:
    """Return the detections of images, one by one."""
    return {name: cast(dict, detector.run(read, info))["results"] for name, read, info in images}


class Comparison:
    """Differences of detections, collected over images.

    Attributes:
        count: number of PyTorch's detections above MIN_SCORE.
        matched: number of those with a detection of the same class at IoU 0.5 and above. Sides below a pixel, also
            negative ones, count as a pixel: boxes without an area would not even match themselves.
        ious, differences: IoU and absolute score difference of each matched pair.
    """

    def __init__(self) -> None:
        self.count = self.matched = 0
        self.ious: list[float] = []
        self.differences: list[float] = []

    @property
    def text(self) -> str:
        """Return the comparison in one line."""
        if not self.matched:
            return f"matched 0 of {self.count}"
        return (
            f"matched {self.matched} of {self.count}; IoU mean {np.mean(self.ious):.4f}, minimum {min(self.ious):.4f}; "
            f"score difference mean {np.mean(self.differences):.5f}, maximum {max(self.differences):.5f}"
        )

    @property
    def within_tolerance(self) -> bool:
        """Return whether 99 % are matched, at a mean IoU of 0.99, with scores that differ by at most 0.01."""
        return (
            self.matched >= 0.99 * self.count
            and float(np.mean(self.ious)) >= MIN_IOU
            and max(self.differences) <= MAX_SCORE_DIFFERENCE
        )


def compare(expected: Results, found: Results, detector: Detector) -> Comparison:
    """Match detections above MIN_SCORE with those of the same image and class, best score first."""
    comparison = Comparison()
    for name, classes in expected.items():
        for cls, rows in classes.items():
            boxes = _boxes(detector, rows)
            boxes = boxes[boxes[:, 4] > MIN_SCORE]
            others = _boxes(detector, found[name][cls])
            comparison.count += len(boxes)
            sized, other_sized = _at_least_a_pixel(boxes[:, :4]), _at_least_a_pixel(others[:, :4])
            free = np.ones(len(others), dtype=bool)
            for k in np.argsort(-boxes[:, 4], kind="stable"):
                if not free.any():
                    break
                ious = np.where(free, box_iou(sized[[k] * len(others)], other_sized), -1)
                best = int(ious.argmax())
                if ious[best] >= 0.5:
                    free[best] = False
                    comparison.matched += 1
                    comparison.ious.append(float(ious[best]))
                    comparison.differences.append(float(abs(boxes[k, 4] - others[best, 4])))
    return comparison


def _boxes(detector: Detector, rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float64)
    return detector.task.detected_boxes(rows) if len(rows) else np.zeros((0, 5))


def _at_least_a_pixel(boxes: np.ndarray) -> np.ndarray:
    """Return boxes (n, 4) of the same centers, with sides of one pixel at least."""
    small = boxes[:, 2:] - boxes[:, :2] < 1
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    low, high = np.where(small, center - 0.5, boxes[:, :2]), np.where(small, center + 0.5, boxes[:, 2:])
    return np.hstack([low, high])


def _count(detector: Detector, results: Results) -> int:
    boxes = [_boxes(detector, rows) for classes in results.values() for rows in classes.values()]
    return sum(int((rows[:, 4] > MIN_SCORE).sum()) for rows in boxes)


def table(header: Sequence[str], names: Sequence[str], columns: Sequence[Sequence[str]]) -> list[str]:
    """Return lines of a table whose rows begin with ``names``; each of ``columns`` is its title and its values."""
    rows = [list(header), *([name, *(column[k + 1] for column in columns)] for k, name in enumerate(names))]
    widths = [max(len(row[k]) for row in rows) for k in range(len(header))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def benchmark(runtime: Runtime, reference: nn.Module, opt: Options) -> list[str]:
    """Return lines with the latency of an exported file and of the exported module in PyTorch."""
    x = torch.randn(1, 3, opt.input_h, opt.input_w, generator=torch.Generator().manual_seed(0))
    array = x.numpy()
    lines = [
        f"latency per image at {opt.input_w} x {opt.input_h}, {opt.threads} thread(s), "
        f"{REPEATS} runs, {platform.machine()} with {os.cpu_count()} cores:"
    ]
    with torch.inference_mode():
        for title, call in ((f"PyTorch {torch.__version__}", lambda: reference(x)),
                            (runtime.title, lambda: runtime.call(array))):  # fmt: skip
            median, p90 = np.percentile(_milliseconds(call), [50, 90])
            lines.append(f"  {title}: median {median:.2f} ms, p90 {p90:.2f} ms")
    return lines


def _milliseconds(call: Callable[[], Any]) -> list[float]:
    for _ in range(WARM_UP):
        call()
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        call()
        times.append((time.perf_counter() - started) * 1e3)
    return times
