"""Detection in images: test scales, flip test, merging. ``tasks/`` holds what is particular to a task."""

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from .datasets.base import CocoStyleDataset
from .datasets.loader import apply_color, as_tensor, black_image
from .datasets.worker import check_worker_resources, init_worker
from .engine import processes
from .engine.precision import MixedPrecision, set_precision, warn_if_emulated
from .errors import UserError
from .evaluation.results import drop_non_finite
from .models import create_model, load_model, read_checkpoint
from .models.fuse import fuse
from .options import Options, apply_model_metadata, check_sizes
from .tasks import build_task
from .tasks.base import Detections, Task
from .transforms import color_matrix
from .utils.failures import OPEN_FILES, explain
from .utils.images import MAX_PIXELS, read_image
from .visualization import build_visualizer

TIMES = ("tot", "load", "pre", "net", "dec", "post", "merge")

_process: int | None = None  # the one that has run a network


def create_detector(opt: Options, device: torch.device | None = None, log=print) -> "Detector":
    """Return the detector of a checkpoint.

    A checkpoint with model metadata (``checkpoint["model"]``) needs no options but ``--load_model``; for others, such
    as the reference's, ``--arch`` and ``--dataset`` have to describe the network.

    Args:
        opt: finished options; the detector's ``opt`` is a copy, completed by the checkpoint.
        device: device of the network; None: the one of ``--device`` and ``--gpus``.
        log: called with messages about what was loaded.

    Raises:
        UserError: no checkpoint, one that cannot be read or used, or options that contradict it.
    """
    if not opt.load_model:
        raise UserError("--load_model: needs the checkpoint of the network that is to detect")
    use_own_threads()
    if device is None:
        device = processes.start(opt).device
    set_precision(opt.precision, device, log)
    warn_if_emulated(opt.amp, device, log)
    opt, model = load_network(opt, log)
    return Detector(build_task(opt), fuse(model.to(device)), device)


def load_network(opt: Options, log=print) -> tuple[Options, torch.nn.Module]:
    """Return the options completed by the checkpoint ``--load_model``, and its network on the CPU."""
    metadata = read_checkpoint(opt.load_model).get("model")
    if isinstance(metadata, dict):
        opt = apply_model_metadata(opt, metadata)
    else:
        check_sizes(opt)
    model = create_model(opt.arch, opt.heads, opt.head_conv)
    load_model(model, opt.load_model, log=log)
    return opt, model


class Detector:
    """A network with everything that is needed to detect in images.

    Attributes:
        task: the task, whose ``opt`` are completed by the checkpoint.
        device: where the network is.
        visualizer: drawings of the results.
    """

    def __init__(self, task: Task, model: torch.nn.Module, device: torch.device) -> None:
        self.opt = task.detector_options(task.opt)
        self.task, self.device = type(task)(self.opt), device
        self.visualizer = build_visualizer(self.task)
        self.precision = MixedPrecision(self.opt.amp, device)
        self.model = model.to(device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    @torch.inference_mode()
    def run(self, images, info=None) -> dict | list[dict]:
        """Detect in one image or in several.

        Args:
            images: an image: an array (H, W, 3) uint8 in BGR order, a path, a PIL image, a function that returns
                one of these, or the result of ``prepare``; or a list of images. Crops of one size, of all images and
                test scales, pass the network as one batch.
            info: metadata of the image that the task needs in addition to its pixels (``picture_info`` of its dataset),
                or a list of it; missing entries are those of ``--calib`` or the checkpoint. Prepared images already
                contain it.

        Returns:
            For each image ``results``, ``{class id from 1: (n, 5) float32}`` with rows [x1, y1, x2, y2, score] in
            image pixels (other tasks than ctdet have longer rows), and the seconds of each stage in ``TIMES``: ``net``
            is the network alone, ``dec`` includes averaging the flip test; several images share the time equally.
            With ``--debug`` also ``images``, drawings by name, whose time is not counted. Detections that are not
            finite are dropped; ``dropped`` is their number, absent if there are none. A list for a list.

        Raises:
            UserError: an image that cannot be read or has another form.
        """
        if not isinstance(images, (list, tuple)):
            return self._run([images], [info])[0]
        if not images:
            return []
        return self._run(images, info if info is not None else [None] * len(images))

    def _run(self, images: Sequence, infos: Sequence[dict | None]) -> list[dict]:
        use_own_threads()
        seconds = dict.fromkeys(TIMES, 0.0)
        started = last = time.perf_counter()

        def lap(name: str) -> None:
            nonlocal last
            if self.device.type != "cpu":
                torch.accelerator.synchronize()
            now = time.perf_counter()
            seconds[name] += now - last
            last = now

        arrays = [image if isinstance(image, dict) else as_array(image, self.opt.max_image_pixels) for image in images]
        lap("load")
        prepared = [
            array if isinstance(array, dict) else prepare(array, self.task, info)
            for array, info in zip(arrays, infos, strict=True)
        ]
        places = [(k, scale) for k, one in enumerate(prepared) for scale in one["images"]]
        groups = [[places[i] for i in members] for members in _same_size([prepared[k]["images"][s] for k, s in places])]
        decoded, views = [], {}
        for group in groups:
            crops = np.stack([np.asarray(prepared[k]["images"][scale]) for k, scale in group])
            batch = self.normalized(crops)
            lap("pre")
            output = self.precision.forward(self.model, batch)[-1]
            lap("net")
            decoded.append(self.task.decode(output, flipped=self.opt.flip_test))
            lap("dec")
            if self.opt.debug >= 2:
                for i, place in enumerate(group):
                    of_one = {name: values[i : i + 1] for name, values in output.items()}
                    views[place] = crops[i], of_one, decoded[-1][i : i + 1]
        decoded = _to_cpu(decoded)
        lap("dec")
        found: dict[tuple, Detections] = {}
        dropped: Counter[int] = Counter()
        for group, dets in zip(groups, decoded, strict=True):
            metas = [prepared[k]["meta"][scale] for k, scale in group]
            for place, of_view in zip(group, self.task.to_image_coords(dets, metas), strict=True):
                finite, count = drop_non_finite({place: of_view})
                found.update(finite)
                dropped[place[0]] += count
        detections = [[found[k, scale] for scale in one["images"]] for k, one in enumerate(prepared)]
        lap("post")
        results = [self.task.merge_scales(per_scale) for per_scale in detections]
        lap("merge")
        seconds["tot"] = last - started
        shares = {name: value / len(prepared) for name, value in seconds.items()}
        answers: list[dict] = [{"results": result, **shares} for result in results]
        for k in +dropped:
            answers[k]["dropped"] = dropped[k]
        if self.opt.debug > 0:
            for k, one in enumerate(prepared):
                of_image = {scale: views[k, scale] for scale in one["images"] if (k, scale) in views}
                answers[k]["images"] = self._draw(one, results[k], of_image)
        return answers

    def normalized(self, crops: np.ndarray) -> torch.Tensor:
        """Return the network's input (B, 3, h, w) float32 of crops (B, h, w, 3) uint8.

        With ``--flip_test`` (2B, 3, h, w), the flipped copies after the images.
        """
        colors = np.stack([color_matrix(crop, None, self.opt.mean, self.opt.std) for crop in crops])
        batch = apply_color(*(torch.from_numpy(array).to(self.device) for array in (crops, colors)))
        return torch.cat([batch, batch.flip(3)]) if self.opt.flip_test else batch

    def _draw(self, prepared: dict, results: Detections, views: dict[float, tuple]) -> dict[str, np.ndarray]:
        images = {}
        for scale, view in views.items():
            drawn = self.visualizer.network_images(*view)
            images.update({f"{name}_{scale:.1f}": drawing for name, drawing in drawn.items()})
        meta = next(iter(prepared["meta"].values()))
        return {**images, **self.visualizer.result_images(np.asarray(prepared["image"]), results, meta)}


def use_own_threads() -> None:
    """Use one thread of PyTorch in a process that was forked from one that has run a network.

    The threads of that process do not exist in this one, where PyTorch would wait for them forever.
    """
    global _process
    if _process not in (None, os.getpid()):
        torch.set_num_threads(1)
    _process = os.getpid()


def as_array(image, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Return a path, a PIL image, an array or the result of a function as an array (H, W, 3) uint8 in BGR order.

    Raises:
        UserError: an image that cannot be read, or anything else.
    """
    if callable(image):
        image = image()
    if isinstance(image, (str, os.PathLike)):
        return read_image(image, max_pixels)
    if hasattr(image, "convert") and hasattr(image, "size"):  # PIL images can be converted to R, G, B
        # convert() would clip 16-bit values; read_image takes their upper 8 bits. PGM files of 16 bits have the mode I.
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
            gray = (np.asarray(image, dtype=np.uint16) >> 8).astype(np.uint8)
            image = np.repeat(gray[:, :, None], 3, axis=2)
        else:
            image = np.ascontiguousarray(np.asarray(image.convert("RGB"))[:, :, ::-1])
    is_array = isinstance(image, np.ndarray)
    if is_array and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
        return image
    form = f"{image.dtype} {image.shape}" if is_array else type(image).__name__
    raise UserError(f"an image must be a path or an array (height, width, 3) of uint8 in BGR order, this one is {form}")


def _same_size(cuts: list) -> list[list[int]]:
    """Return the indices of images, grouped by their height and width."""
    groups: dict = {}
    for k, image in enumerate(cuts):
        groups.setdefault(tuple(image.shape[:2]), []).append(k)
    return list(groups.values())


def _to_cpu(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return tensors of one dtype on the CPU, copied together to wait for the device only once."""
    joined = torch.cat([tensor.flatten() for tensor in tensors]).cpu()
    parts = joined.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def prepare(image: np.ndarray, task: Task, info: dict | None = None) -> dict:
    """Return an image at all test scales in the form that ``Detector.run`` accepts; needs no network.

    Args:
        image: (H, W, 3) uint8, BGR.
        task: the detector's.
        info: further metadata for the task; missing entries are taken from ``opt.picture_info``.

    Returns:
        ``image``; ``images``, scale to (h, w, 3) uint8, the network's view; ``meta``, scale to its ``c``, ``s``,
        ``output_size`` (width, height) and ``scale``.
    """
    image = as_array(image, task.opt.max_image_pixels)
    prepared: dict[str, Any] = {"image": image, "images": {}, "meta": {}}
    for scale in task.opt.test_scales:
        prepared["images"][scale], meta = task.crop(image, scale)
        prepared["meta"][scale] = {**meta, **task.opt.picture_info, **(info or {})}
    return prepared


class PreparedImages(Dataset):
    """Images of a dataset, read and prepared, as (image id, dict of ``prepare``), for loader workers.

    The dict also has ``skipped``: whether the image could not be read and was replaced by a black one.
    """

    def __init__(self, dataset: CocoStyleDataset, indices: Sequence[int], task: Task) -> None:
        self.dataset, self.indices, self.task = dataset, indices, task

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, k: int) -> tuple[int, dict]:
        index = self.indices[k]
        skipped = False
        try:
            image = self.dataset.read_image(index)
        except UserError as error:
            # Evaluation must never silently drop images, and too many open files are not the fault of the image.
            if self.task.opt.on_bad_image != "skip" or explain(error) == OPEN_FILES:
                raise
            skipped, image = True, black_image(self.dataset, index)
        prepared = prepare(image, self.task, self.dataset.picture_info(index))
        return self.dataset.image_ids[index], {**prepared, "skipped": skipped}


def prefetch(dataset: CocoStyleDataset, indices: Sequence[int], task: Task) -> DataLoader:
    """Return (image id, prepared image) of the images ``indices`` in order, from ``--num_workers`` that read ahead."""
    num_workers = min(task.opt.num_workers, len(indices), os.cpu_count() or 1)
    if num_workers > 0:
        check_worker_resources(num_workers)
    return DataLoader(
        PreparedImages(dataset, indices, task),
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_shared,  # type: ignore[arg-type]  # called with single samples
        worker_init_fn=init_worker,
    )


def batches(images: Iterable[tuple], size: int) -> Iterator[list[tuple]]:
    """Group (image id, prepared image) into lists of at most ``size`` images whose crops have the same sizes.

    At most four times ``size`` images wait for their list to be complete, so their order may change.
    """
    waiting: dict[tuple, list] = {}
    count = 0
    for image_id, image in images:
        key = tuple(tuple(view.shape) for view in image["images"].values())
        waiting.setdefault(key, []).append((image_id, image))
        count += 1
        full = key if len(waiting[key]) == size else None
        if full is None and count > 4 * size:
            full = max(waiting, key=lambda k: len(waiting[k]))
        if full is not None:
            ready = waiting.pop(full)
            count -= len(ready)
            yield ready
    yield from waiting.values()


def _shared(sample: tuple[int, dict]) -> tuple[int, dict]:
    # Tensors are sent through shared memory. Arrays would fill the pipe, and a worker whose reader was killed would
    # block forever.
    image_id, prepared = sample
    images = {scale: as_tensor(view) for scale, view in prepared["images"].items()}
    return image_id, {**prepared, "image": as_tensor(prepared["image"]), "images": images}
