"""Image in, detections out: test scales, flip test, merging. What is particular to a task is in ``tasks/``."""

import os
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from .datasets.augmentation import View, color_matrix
from .datasets.base import CocoStyleDataset
from .datasets.images import MAX_PIXELS, read_image
from .datasets.loader import apply_color, as_tensor, black_image, check_worker_resources, start_worker
from .engine import processes
from .engine.failures import OPEN_FILES, explain
from .engine.precision import Precision
from .errors import UserError
from .evaluation.results import drop_non_finite
from .models import create_model, load_model, read_checkpoint
from .models.fuse import fuse
from .options import apply_model_metadata
from .tasks import get_task

TIMES = ("tot", "load", "pre", "net", "dec", "post", "merge")


def create_detector(opt, device: torch.device | None = None, log=print) -> "Detector":
    """The detector of a checkpoint.

    A checkpoint that describes its network (``checkpoint["model"]``) needs no options but ``--load_model``; for others,
    such as the reference's, ``--arch`` and ``--dataset`` say what they hold.

    Args:
        opt: finished options; they stay as they are, the completed ones are the detector's ``opt``.
        device: where to compute; None: what ``--device`` and ``--gpus`` say.
        log: what is called with the lines that say what was loaded.

    Raises:
        UserError: no checkpoint, one that cannot be read or used, or options that contradict it.
    """
    if not opt.load_model:
        raise UserError("--load_model: needs the checkpoint of the network that is to detect")
    if device is None:
        device = processes.start(opt).device
    opt, model = load_network(opt, log)
    return Detector(opt, fuse(model.to(device)), device)


def load_network(opt, log=print) -> tuple[Namespace, torch.nn.Module]:
    """The network of ``--load_model`` on the CPU, and the options completed by what its checkpoint says about it."""
    card = read_checkpoint(opt.load_model).get("model")
    if isinstance(card, dict):
        opt = apply_model_metadata(opt, card)
    model = create_model(opt.arch, opt.heads, opt.head_conv)
    load_model(model, opt.load_model, log=log)
    return opt, model


class Detector:
    """A network and what it takes to use it on images.

    Attributes:
        opt: the options, completed by the checkpoint.
        device: where the network is.
    """

    def __init__(self, opt, model: torch.nn.Module, device: torch.device) -> None:
        self.device, self.task = device, get_task(opt.task)
        self.opt = self.task.test_options(opt) if hasattr(self.task, "test_options") else opt
        self.precision = Precision(opt.amp, device)
        self.model = model.to(device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    @torch.inference_mode()
    def run(self, images, info=None) -> dict | list[dict]:
        """Detect in an image, or in several at once.

        Args:
            images: an image: an array (H, W, 3) uint8 in B, G, R order, a path, a PIL image, a function that gives
                one of these, or what ``prepare`` gives for one; or a list of images. Cuts of one size, of whichever
                image and test scale, go through the network together.
            info: what the task needs to know of the image besides its pixels (``picture_info`` of its dataset), or
                a list of it; for what it lacks, what ``--calib`` or the checkpoint says. Prepared images have it
                already.

        Returns:
            For each image ``results``, ``{class id from 1: (n, 5) float32}`` with rows [x1, y1, x2, y2, score] in
            image pixels (tasks other than ctdet have longer rows), and the seconds that it took by ``TIMES``: ``net``
            is the network alone, ``dec`` decodes and averages the flip test; of several images each has its share.
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
            array if isinstance(array, dict) else prepare(array, self.opt, info)
            for array, info in zip(arrays, infos, strict=True)
        ]
        places = [(k, scale) for k, one in enumerate(prepared) for scale in one["images"]]
        groups = [[places[i] for i in members] for members in _same_size([prepared[k]["images"][s] for k, s in places])]
        decoded, views = [], {}
        for group in groups:
            cuts = np.stack([np.asarray(prepared[k]["images"][scale]) for k, scale in group])
            batch = self.normalized(cuts)
            lap("pre")
            output = self.precision.forward(self.model, batch)[-1]
            lap("net")
            decoded.append(self.task.decode(output, self.opt, mirrored=self.opt.flip_test))
            lap("dec")
            if self.opt.debug >= 2:
                for i, place in enumerate(group):
                    of_one = {name: values[i : i + 1] for name, values in output.items()}
                    views[place] = cuts[i], of_one, decoded[-1][i : i + 1]
        decoded = _to_cpu(decoded)
        lap("dec")
        found: dict[tuple, dict] = {}
        dropped: Counter[int] = Counter()
        for group, dets in zip(groups, decoded, strict=True):
            metas = [prepared[k]["meta"][scale] for k, scale in group]
            for place, of_view in zip(group, self.task.to_image_coords(dets, metas, self.opt), strict=True):
                finite, count = drop_non_finite({place: of_view})
                found.update(finite)
                dropped[place[0]] += count
        detections = [[found[k, scale] for scale in one["images"]] for k, one in enumerate(prepared)]
        lap("post")
        results = [self.task.merge_outputs(of_scales, self.opt) for of_scales in detections]
        lap("merge")
        seconds["tot"] = last - started
        shares = {name: value / len(prepared) for name, value in seconds.items()}
        answers = [{"results": result, **shares} for result in results]
        for k in +dropped:
            answers[k]["dropped"] = dropped[k]
        if self.opt.debug > 0:
            for k, one in enumerate(prepared):
                meta = next(iter(one["meta"].values()))
                seen = [(scale, *views[k, scale]) for scale in one["images"] if (k, scale) in views]
                answers[k]["images"] = self._draw(np.asarray(one["image"]), results[k], seen, meta)
        return answers

    def normalized(self, cuts: np.ndarray) -> torch.Tensor:
        """Cuts (B, h, w, 3) uint8 to the network's input (B, 3, h, w) float32; with ``--flip_test`` (2B, ...).

        The mirror images come after the images.
        """
        colors = np.stack([color_matrix(cut, None, self.opt.mean, self.opt.std) for cut in cuts])
        batch = apply_color(*(torch.from_numpy(array).to(self.device) for array in (cuts, colors)))
        return torch.cat([batch, batch.flip(3)]) if self.opt.flip_test else batch

    def _draw(self, image: np.ndarray, results: dict, views: list[tuple], meta: dict) -> dict[str, np.ndarray]:
        images = {}
        for scale, view, output, dets in views:
            drawn = self.task.network_images(view, output, dets, self.opt)
            images.update({f"{name}_{scale:.1f}": drawing for name, drawing in drawn.items()})
        return {**images, **self.task.result_images(image, results, self.opt, meta)}


def as_array(image, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A path, a PIL image or an array as (H, W, 3) uint8 in B, G, R order, or of a function that gives one.

    Raises UserError for anything else.
    """
    if callable(image):
        image = image()
    if isinstance(image, (str, os.PathLike)):
        return read_image(image, max_pixels)
    if hasattr(image, "convert") and hasattr(image, "size"):  # PIL's images are R, G, B or can be made so
        return np.ascontiguousarray(np.asarray(image.convert("RGB"))[:, :, ::-1])
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        return image
    form = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    raise UserError(f"an image must be a path or an array (height, width, 3) of uint8 in BGR order, this one is {form}")


def _same_size(cuts: list) -> list[list[int]]:
    """The indices of images, grouped by their height and width."""
    groups: dict = {}
    for k, image in enumerate(cuts):
        groups.setdefault(tuple(image.shape[:2]), []).append(k)
    return list(groups.values())


def _to_cpu(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Tensors of one type on the CPU, brought there all at once: the device is waited for only once."""
    joined = torch.cat([tensor.flatten() for tensor in tensors]).cpu()
    parts = joined.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def prepare(image: np.ndarray, opt, info: dict | None = None) -> dict:
    """An image as ``Detector.run`` takes it, at all test scales, made without the network.

    Args:
        image: (H, W, 3) uint8, B, G, R.
        opt: finished options (the detector's).
        info: what goes into ``meta`` besides, for the task; what it lacks is taken from ``opt.picture_info``.

    Returns:
        ``image``; ``images``, scale to (h, w, 3) uint8, the cut that the network sees; ``meta``, scale to its ``c``,
        ``s``, ``output_size`` (width, height) and ``scale``.
    """
    image = as_array(image, opt.max_image_pixels)
    prepared: dict[str, Any] = {"image": image, "images": {}, "meta": {}}
    for scale in opt.test_scales:
        prepared["images"][scale], meta = cut(image, scale, opt)
        prepared["meta"][scale] = {**meta, **opt.picture_info, **(info or {})}
    return prepared


def cut(image: np.ndarray, scale: float, opt) -> tuple[np.ndarray, dict]:
    """Resize an image by ``scale`` and cut out what the network sees (``pre_process``).

    At a fixed resolution the extent of the cut is that of the unscaled image, as in the reference: a scale below 1
    shows the image smaller in a black frame, one above 1 loses its borders. ``--keep_res`` shows all of it.
    A task with a view of its own (``test_view``) has that one at every scale.
    """
    height, width = image.shape[:2]
    task = get_task(opt.task)
    if hasattr(task, "test_view"):
        view = task.test_view(height, width, opt)
        meta = {"c": view.center, "s": view.scale, "output_size": view.output_size, "size": (width, height)}
        return view.warp(image), {**meta, "scale": scale}
    new_height, new_width = int(height * scale), int(width * scale)
    if min(new_height, new_width) < 1:
        raise UserError(f"--test_scales {scale:g}: nothing is left of an image of {width} x {height}")
    if opt.keep_res:
        input_size = ((new_width | opt.pad) + 1, (new_height | opt.pad) + 1)
        center = np.array([new_width // 2, new_height // 2], dtype=np.float32)
        extent = np.array(input_size, dtype=np.float32)
    else:
        input_size = (opt.input_w, opt.input_h)
        center = np.array([new_width / 2.0, new_height / 2.0], dtype=np.float32)
        extent = max(height, width) * 1.0
    output_size = (input_size[0] // opt.down_ratio, input_size[1] // opt.down_ratio)
    view = View(center, extent, False, input_size, output_size)
    if scale != 1:
        image = cv2.resize(image, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
    return view.warp(image), {"c": center, "s": extent, "output_size": output_size, "scale": scale}


class PreparedImages(Dataset):
    """What a loader process runs: images of a dataset, read and prepared, as (image id, ``prepare``'s dict).

    The dict says besides whether the image was ``skipped``, so that there is a black one in its place.
    """

    def __init__(self, dataset: CocoStyleDataset, indices: Sequence[int], opt) -> None:
        self.dataset, self.indices, self.opt = dataset, indices, opt

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, k: int) -> tuple[int, dict]:
        index = self.indices[k]
        skipped = False
        try:
            image = self.dataset.read_image(index)
        except UserError as error:
            # A score may not change without a word, and where too many files are open it is not the image that is bad.
            if self.opt.on_bad_image != "skip" or explain(error) == OPEN_FILES:
                raise
            skipped, image = True, black_image(self.dataset, index)
        prepared = prepare(image, self.opt, self.dataset.picture_info(index))
        return self.dataset.image_ids[index], {**prepared, "skipped": skipped}


def prefetch(dataset: CocoStyleDataset, indices: Sequence[int], opt) -> DataLoader:
    """(image id, prepared image) of the images ``indices`` in order, from ``--num_workers`` that read ahead."""
    num_workers = min(opt.num_workers, len(indices), os.cpu_count() or 1)
    if num_workers > 0:
        check_worker_resources(num_workers)
    return DataLoader(
        PreparedImages(dataset, indices, opt),
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_shared,  # type: ignore[arg-type]  # a sample comes alone, not in a list
        worker_init_fn=start_worker,
    )


def batches(images: Iterable[tuple], size: int) -> Iterator[list[tuple]]:
    """Lists of at most ``size`` of the (image id, prepared image), those of one list with cuts of the same sizes.

    At most four such lists wait until they are full; images come out in another order then.
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
    # Tensors travel through shared memory. Arrays would fill the pipe, and a loader process whose reader was killed
    # would wait for ever to get rid of them.
    image_id, prepared = sample
    images = {scale: as_tensor(view) for scale, view in prepared["images"].items()}
    return image_id, {**prepared, "image": as_tensor(prepared["image"]), "images": images}
