"""The Python interface: ``from centernet import CenterNet``.

Everything is done by the programs' own functions; keyword arguments are the options of the command line.
"""

import math
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import torch

from . import cli, found
from .datasets import DATASETS
from .detector import as_array, create_detector
from .engine import signals
from .errors import UserError
from .export import export_checkpoint
from .models import read_checkpoint
from .options import OptionParser, Options
from .options.table import GENERAL
from .tasks import all_specs, get_spec
from .tasks.base import Task
from .tasks.option import DEMO, EXPORT, TEST, TRAIN
from .utils import files
from .utils.failures import OPEN_FILES, explain
from .video import Source, find_sources, frames, name_of, open_video, without_login
from .visualization import build_visualizer

# Options that make a program do something else, or that name what is an argument or a result here; and what to use.
PROGRAM_OPTIONS = {
    "dry_run": "",
    "prepare_only": "",
    "test": "CenterNet(FILE).validate() scores a checkpoint",
}
OBJECT_OPTIONS = {
    **PROGRAM_OPTIONS,
    "load_model": "the checkpoint is the first argument of CenterNet()",
    "resume": "",
    "save_init": "",
    "demo": "predict() takes images and videos",
    "output_dir": "results have save()",
    "save_json": "results have to_dict()",
    "save_txt": "results have boxes and classes",
    "save_crops": "results have image and boxes",
    "output": "it is the argument of export()",
}
SAVED_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")  # kept by drawings saved to a folder
ONE_IMAGE = (np.ndarray, bytes, bytearray, dict)  # iterable, but no list of images


@dataclass(eq=False)
class Result:
    """The detections in an image above the threshold, best first. It does not hold the network.

    Attributes:
        image: (H, W, 3) uint8, B, G, R.
        path: file, camera or address that it came from; empty for arrays.
        frame: number of the frame of a video, from 1; None for images.
        detections: each with ``name``, ``score`` and ``box``, see ``centernet.found.Detection``.
        seconds: of each stage by name (``centernet.detector.TIMES``).
    """

    image: np.ndarray = field(repr=False)
    path: str
    frame: int | None
    detections: list[found.Detection]
    seconds: dict[str, float]
    _rows: dict[int, np.ndarray] = field(repr=False)
    _task: Task = field(repr=False)
    _threshold: float = field(repr=False)
    _info: dict[str, Any] = field(repr=False)
    _names: "_FileNames" = field(repr=False)
    _name: str = field(default="", repr=False)

    def __len__(self) -> int:
        return len(self.detections)

    def __iter__(self) -> Iterator[found.Detection]:
        return iter(self.detections)

    def __str__(self) -> str:
        return found.summary(self.names)

    @property
    def boxes(self) -> np.ndarray:
        """Return the boxes (n, 4) float32 [x1, y1, x2, y2] in image pixels."""
        return np.array([one.box for one in self.detections], np.float32).reshape(-1, 4)

    @property
    def scores(self) -> np.ndarray:
        """Return the scores (n,) float32."""
        return np.array([one.score for one in self.detections], np.float32)

    @property
    def classes(self) -> np.ndarray:
        """Return the classes (n,) int64, indices into ``CenterNet.names``."""
        return np.array([one.cls - 1 for one in self.detections], np.int64)

    @property
    def names(self) -> list[str]:
        """Return the name of each detection's class."""
        return [one.name for one in self.detections]

    @property
    def keypoints(self) -> list[np.ndarray]:
        """Return the joints of each detection, (J, 2) float32 x, y; without elements for tasks without keypoints."""
        points = [one.more["keypoints"] for one in self.detections if "keypoints" in one.more]
        return [np.array(of_one, np.float32).reshape(-1, 2) for of_one in points]

    @property
    def dimensions(self) -> np.ndarray:
        """Return height, width and length (n, 3) float32 in meters; (0, 3) for tasks other than ddd."""
        return self._of_box_3d("dimensions", 3)

    @property
    def locations(self) -> np.ndarray:
        """Return the positions (n, 3) float32 in the camera's coordinates in meters; (0, 3) for other tasks."""
        return self._of_box_3d("location", 3)

    @property
    def rotations(self) -> np.ndarray:
        """Return the rotations (n,) float32 about the vertical axis in radians; (0,) for other tasks."""
        return self._of_box_3d("rotation_y", 1).reshape(-1)

    def _of_box_3d(self, name: str, length: int) -> np.ndarray:
        values = [one.more[name] for one in self.detections if name in one.more]
        return np.array(values, np.float32).reshape(-1, length)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values as ``demo.py --save_json`` writes them: boxes are [x, y, width, height]."""
        height, width = self.image.shape[:2]
        return found.json_entry(self.path, (width, height), self.detections, self.frame)

    def plot(self) -> np.ndarray:
        """Return the image with its detections drawn, (H, W, 3) uint8 BGR; small images are enlarged."""
        task = self._task
        visualizer = build_visualizer(type(task)(task.opt.replace(vis_thresh=self._threshold)))
        meta = {**task.opt.picture_info, **self._info}
        return next(iter(visualizer.result_images(self.image, self._rows, meta).values()))

    def save(self, path: str | os.PathLike) -> Path:
        """Write the drawing of ``plot`` to an image file and return its path.

        Args:
            path: the file, which is overwritten, or a folder: an existing one, or a path without a suffix. In a folder
                the file is named like the image (``street.jpg``), for frames of a video with their number
                (``clip_000001.jpg``), for arrays ``image_000001.jpg``, counted by the ``CenterNet``. Different images
                of one ``CenterNet`` get different names, an image always the same.

        Raises:
            UserError: the suffix is not one of color images, or the file cannot be written.
        """
        is_folder = os.fspath(path).endswith(("/", os.sep)) or Path(path).is_dir()
        path = Path(path)
        if is_folder or not path.suffix:
            self._name = self._name or self._names.choose(self.path, self.frame)
            path /= self._name
        if not path.suffix or not cv2.haveImageWriter(str(path)):
            raise UserError(f"{path}: an image needs a suffix such as .jpg or .png")
        try:
            written, content = cv2.imencode(path.suffix, self.plot())
        except cv2.error:
            written = False
        if not written:
            raise UserError(f"{path}: {path.suffix} files cannot hold color images; use a suffix such as .jpg or .png")
        with files.write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(path, content.tobytes(), sync=False)
        return path


class _FileNames:
    """Names of files for drawings: always the same for an image, and different for different images."""

    def __init__(self) -> None:
        self.chosen: dict[tuple[str, int | None], str] = {}
        self.taken: set[str] = set()
        self.arrays = 0

    def choose(self, path: str, frame: int | None) -> str:
        """Return a file name for an image, a frame of a video, or an array, whose ``path`` is empty."""
        if not path:
            self.arrays += 1
            return self._free(f"image_{self.arrays:06d}", ".jpg")
        key = (os.path.abspath(path), frame)
        if key not in self.chosen:
            stem, suffix = name_of(path), Path(path).suffix
            if frame is not None:
                stem, suffix = f"{stem}_{frame:06d}", ".jpg"
            self.chosen[key] = self._free(stem, suffix if suffix.lower() in SAVED_SUFFIXES else ".jpg")
        return self.chosen[key]

    def _free(self, stem: str, suffix: str) -> str:
        """Return ``stem`` + ``suffix``, with a number between them if there is such a name already."""
        name, number = f"{stem}{suffix}", 1
        while name.casefold() in self.taken:
            number += 1
            name = f"{stem}_{number}{suffix}"
        self.taken.add(name.casefold())
        return name


class CenterNet:
    """A trained network.

    Attributes:
        weights: its checkpoint.
        task: name of its task.
        names: names of its classes.
        detector: runs it, see ``centernet.detector.Detector``.
    """

    def __init__(self, weights: str | os.PathLike, task: str = "", **options: Any) -> None:
        """Load a checkpoint.

        Args:
            weights: a checkpoint of this project, which describes its network; or one of the reference, which needs
                ``task``, and ``arch`` and ``dataset`` unless they are the defaults of the task.
            task: ``ctdet``, ``multi_pose``, ``ddd`` or ``exdet``; empty: that of the checkpoint.
            options: options of ``demo.py``, ``test.py`` and ``export.py`` for all calls, such as ``flip_test=True``,
                ``keep_res=True``, ``vis_thresh=0.5`` or ``device="cpu"``.

        Raises:
            UserError: a file or an option that cannot be used.
        """
        self.weights = os.fspath(weights)
        if not task:
            metadata = read_checkpoint(self.weights).get("model")
            if not isinstance(metadata, dict) or not isinstance(metadata.get("task"), str):
                raise UserError(
                    f"{self.weights}: this checkpoint does not name its task; add task=, arch= and dataset="
                )
            task = metadata["task"]
        _check_options("CenterNet(FILE, ...)", task, options, (DEMO, TEST, EXPORT), OBJECT_OPTIONS)
        self.task, self._options = task, options
        self.detector = create_detector(self._parse(DEMO, {}), log=_ignore)
        self.names = list(self.detector.opt.class_names)
        self._file_names = _FileNames()

    def __repr__(self) -> str:
        return f"CenterNet({self.weights!r}): {self.detector.opt.arch} for {self.task}, {len(self.names)} classes"

    def predict(
        self, images: Any, threshold: float | None = None, batch_size: int = 1, info: dict | None = None
    ) -> list[Result]:
        """Detect in images and return a result for each.

        Files of a folder that cannot be read are left out with a warning.

        Args:
            images: a path of an image, a video or a folder of them; an array (H, W, 3) uint8 in B, G, R order, such as
                a frame of a video; a PIL image; a tensor (3, H, W) or (H, W, 3) in R, G, B order, uint8 or floats from
                0 to 1; a batch of arrays or tensors; or a list or an iterator of these.
            threshold: score that detections must exceed; None: the option ``vis_thresh``, 0.3.
            batch_size: images that go through the network together.
            info: metadata of the images, such as the camera ``{"calib": (3, 4)}`` of ddd.

        Raises:
            UserError: an image that cannot be read, a folder with no file that can, or an argument that cannot be used.
        """
        return list(self.stream(images, threshold, batch_size, info))

    def stream(
        self, images: Any, threshold: float | None = None, batch_size: int = 1, info: dict | None = None
    ) -> Iterator[Result]:
        """Yield results as ``predict`` returns them, one after the other: for long videos.

        Also takes cameras (``"webcam"`` or a number as text) and addresses (``"rtsp://..."``).
        """
        threshold = self.detector.opt.vis_thresh if threshold is None else threshold
        if not isinstance(threshold, Real) or math.isnan(threshold):
            raise UserError(f"threshold: {threshold!r} is not a number; scores are from 0 to 1")
        if not isinstance(batch_size, Integral) or batch_size < 1:
            raise UserError(f"batch_size: {batch_size!r} is not a positive integer")
        waiting: list[SimpleNamespace] = []
        for one in _read_images(images, self.detector.opt.max_image_pixels):
            waiting.append(one)
            if len(waiting) >= batch_size:
                yield from self._detect(waiting, float(threshold), info)
                waiting = []
        yield from self._detect(waiting, float(threshold), info)

    def _detect(self, inputs: list[SimpleNamespace], threshold: float, info: dict | None) -> Iterator[Result]:
        answers = self.detector.run([one.image for one in inputs], [info] * len(inputs))
        opt = self.detector.opt.replace(vis_thresh=threshold)
        for one, answer in zip(inputs, answers, strict=True):
            rows = answer.pop("results")
            detections = found.detections_above(rows, self.detector.task, opt)
            seconds = {name: value for name, value in answer.items() if isinstance(value, float)}
            given = (rows, self.detector.task, threshold, info or {}, self._file_names)
            yield Result(one.image, one.path, one.frame, detections, seconds, *given)

    @classmethod
    def train(cls, data: str | os.PathLike, arch: str = "", task: str = "ctdet", **options: Any) -> "CenterNet":
        """Train a network in this process as ``main.py`` does, and return its best checkpoint.

        Args:
            data: directory of your own data (``--dataset custom``), or the name of a dataset, such as ``pascal``.
            arch: network, see ``--arch``; empty: the default.
            task: what to learn.
            options: options of ``main.py``, such as ``num_epochs=60, preset="fast", exp_id="mine"``; those of
                ``data_path``, ``device``, ... too.

        Raises:
            UserError: an option or a dataset that cannot be used.
            KeyboardInterrupt: Ctrl-C, or a notebook's interrupt, after a checkpoint: ``resume=True`` continues.
        """
        given = {**_data_options(data), **({"arch": arch} if arch else {}), **options}
        _check_options("CenterNet.train()", task, given, (TRAIN,), PROGRAM_OPTIONS)
        opt = _parse(TRAIN, task, given)
        if len(opt.gpus) > 1:
            raise UserError("gpus: this trains in one process; for several devices start src/main.py")
        main = cli.load(cli.FOLDER / "main.py").main
        signals.run_hosted(lambda: main(opt))
        run = Path(opt.save_dir)
        best = run / "model_best.pth"
        chosen = best if best.is_file() else run / "model_last.pth"
        return cls(chosen, **{name: options[name] for name in ("device", "gpus") if name in options})

    def validate(self, data: str | os.PathLike = "", **options: Any) -> dict[str, float]:
        """Score the network as ``test.py`` does, which writes results and a report, and return the scores by name.

        Args:
            data: as for ``train``; empty: what the network was trained on.
            options: options of ``test.py``, such as ``flip_test=True``.

        Raises:
            UserError: an option or a dataset that cannot be used.
        """
        given = {**(_data_options(data) if data else {}), **options}
        _check_options("validate()", self.task, given, (TEST,), OBJECT_OPTIONS)
        return cli.load(cli.FOLDER / "test.py").main(self._parse(TEST, given))

    def export(self, output: str | os.PathLike, **options: Any) -> Path:
        """Write the network for other programs as ``export.py`` does (docs/EXPORT.md), and return the path.

        Args:
            output: file whose suffix names the format, such as ``model.onnx``.
            options: options of ``export.py``, such as ``with_decode=True``.

        Raises:
            UserError: an option or a file that cannot be used, or a missing package.
        """
        _check_options("export()", self.task, options, (EXPORT,), OBJECT_OPTIONS)
        return export_checkpoint(self._parse(EXPORT, {"output": output, **options}))

    def _parse(self, script: str, options: dict[str, Any]) -> Options:
        return _parse(script, self.task, {**self._options, **options, "load_model": self.weights})


def _ignore(_: str) -> None:
    """Log nothing."""


def _check_options(
    call: str, task: str, options: dict[str, Any], scripts: tuple[str, ...], excluded: dict[str, str]
) -> None:
    """Check the options given to a call, which runs one of ``scripts``; warn about those that have no effect on it.

    Raises:
        UserError: no such option, or one of the excluded.
    """
    spec = get_spec(task)
    every = {**GENERAL, **{option.name: option for other in all_specs().values() for option in other.options}}
    of_task = {**GENERAL, **{option.name: option for option in spec.options}}
    for name, value in options.items():
        if value is None or value is False:
            continue
        if name not in every or name in excluded:
            raise UserError(f"{name}: {call} has no such option; {excluded.get(name) or 'leave it out'}")
        used = name in of_task and name not in spec.ignored_options and {*scripts} & {*of_task[name].scripts}
        if not used:
            warnings.warn(f"{name} has no effect on {call} of {task}", UserWarning, stacklevel=3)


def _parse(script: str, task: str, options: dict[str, Any]) -> Options:
    """Return the finished options of a program. Raises UserError for options that cannot be used."""
    arguments = [task]
    for name, value in options.items():
        if value is True:
            arguments.append(f"--{name}")
        elif value is False:
            if "preset" in options:  # which may have set the flag
                arguments.append(f"--{name}=false")
        elif value is not None:
            values = value if isinstance(value, (list, tuple)) else [value]
            arguments.append(f"--{name}={','.join(str(one) for one in values)}")
    return OptionParser(script, raises=True).parse(arguments)


def _data_options(data: str | os.PathLike) -> dict[str, Any]:
    """Return the options for a dataset given by its name or by the directory of custom data."""
    if isinstance(data, str) and data in DATASETS:
        return {"dataset": data}
    if not Path(data).is_dir():
        raise UserError(f"data {data}: no such directory, and not one of the datasets {', '.join(DATASETS)}")
    return {"dataset": "custom", "data_path": data}


def _read_images(images: Any, max_pixels: int) -> Iterator[SimpleNamespace]:
    """Yield ``image``, ``path`` and ``frame`` of all images, of files, folders, videos and streams in order."""
    if isinstance(images, (str, os.PathLike)):
        try:
            yield from _read_path(os.fspath(images), max_pixels)
        except UserError as error:
            raise UserError(_without_option(error)) from error
    elif isinstance(images, torch.Tensor):
        yield from _read_images(_array_of(images), max_pixels)
    elif isinstance(images, np.ndarray) and images.ndim == 4:
        for image in images:
            yield SimpleNamespace(image=as_array(image, max_pixels), path="", frame=None)
    elif isinstance(images, Iterable) and not isinstance(images, ONE_IMAGE) and not hasattr(images, "convert"):
        for one in images:
            yield from _read_images(one, max_pixels)
    else:
        yield SimpleNamespace(image=as_array(images, max_pixels), path="", frame=None)


def _array_of(tensor: torch.Tensor) -> np.ndarray:
    """Return an image, or a batch of images, in R, G, B order as an array ([B,] H, W, 3) uint8 in B, G, R order."""
    form = f"this one is {str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
    if tensor.ndim not in (3, 4) or 3 not in (tensor.shape[-3], tensor.shape[-1]) or not tensor.numel():
        raise UserError(f"a tensor must be an image (3, height, width) or (height, width, 3), or a batch; {form}")
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        low, high = (float(value) for value in tensor.aminmax())
        if not 0 <= low <= high <= 1:
            raise UserError(f"a tensor of floats must have values from 0 to 1, not {low:.4g} to {high:.4g}")
        tensor = (tensor.float() * 255).round().to(torch.uint8)
    elif tensor.dtype != torch.uint8:
        raise UserError(f"a tensor must be of uint8, or of floats from 0 to 1; {form}")
    if tensor.shape[-3] == 3:
        tensor = tensor.movedim(-3, -1)
    return np.ascontiguousarray(tensor.flip(-1).numpy())


def _read_path(path: str, max_pixels: int) -> Iterator[SimpleNamespace]:
    """Yield the images of a file, folder, video or stream; files of a folder that cannot be read give a warning."""
    sources = find_sources(path)
    failed = 0
    for source in sources:
        images = _read_source(source, max_pixels)
        try:
            first = next(images)
        except UserError as error:
            # Too many open files are not the fault of the file.
            if len(sources) == 1 or explain(error) == OPEN_FILES:
                raise
            failed += 1
            warnings.warn(f"{_without_option(error)}; it is left out", UserWarning, stacklevel=2)
            continue
        yield first
        yield from images
    if failed == len(sources):
        raise UserError(f"{path}: none of its {failed} files can be read")


def _read_source(source: Source, max_pixels: int) -> Iterator[SimpleNamespace]:
    if not source.is_video:
        yield SimpleNamespace(image=as_array(source.path, max_pixels), path=source.path, frame=None)
        return
    number = 0
    shown = without_login(source.path)
    warn = lambda text: warnings.warn(f"{shown}: {text}", UserWarning, stacklevel=2)  # noqa: E731
    for number, frame in enumerate(frames(open_video(source.path, max_pixels), warn), start=1):
        yield SimpleNamespace(image=frame, path=source.path, frame=number)
    if not number:
        raise UserError(f"{shown}: no frame of this video can be read")


def _without_option(error: UserError) -> str:
    """Return the message of an error about ``--demo`` without this option, which calls do not have."""
    return re.sub(r"^--demo(: )?", lambda found: "images: " if found[1] else "", str(error)).lstrip()
