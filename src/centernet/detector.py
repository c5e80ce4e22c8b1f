"""Picture in, detections out: test scales, flip test, merging. What is particular to a task is in ``tasks/``."""

import os
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from .datasets.augmentation import View, color_matrix
from .datasets.base import CocoStyleDataset, read_image
from .datasets.loader import apply_color, as_tensor, black_picture, start_worker
from .engine import processes
from .engine.precision import Precision
from .errors import UserError
from .models import create_model, load_model, read_checkpoint
from .models.fuse import fuse
from .opts import use_model_card
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
        opt = use_model_card(opt, card)
    model = create_model(opt.arch, opt.heads, opt.head_conv)
    load_model(model, opt.load_model, log=log)
    return opt, model


class Detector:
    """A network and what it takes to use it on pictures.

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
    def run(self, pictures, info=None) -> dict | list[dict]:
        """Detect in a picture, or in several at once.

        Args:
            pictures: a picture: an array (H, W, 3) uint8 in B, G, R order, a path, a PIL image, a function that gives
                one of these, or what ``prepare`` gives for one; or a list of pictures. Cuts of one size, of whichever
                picture and test scale, go through the network together.
            info: what the task needs to know of the picture besides its pixels (``picture_info`` of its data set), or
                a list of it; for what it lacks, what ``--calib`` or the checkpoint says. Prepared pictures have it
                already.

        Returns:
            For each picture ``results``, ``{class id from 1: (n, 5) float32}`` with rows [x1, y1, x2, y2, score] in
            picture pixels (tasks other than ctdet have longer rows), and the seconds that it took by ``TIMES``: ``net``
            is the network alone, ``dec`` decodes and averages the flip test; of several pictures each has its share.
            With ``--debug`` also ``pictures``, drawings by name, whose time is not counted. A list for a list.

        Raises:
            UserError: a picture that cannot be read or has another form.
        """
        if not isinstance(pictures, (list, tuple)):
            return self._run([pictures], [info])[0]
        if not pictures:
            return []
        return self._run(pictures, info if info is not None else [None] * len(pictures))

    def _run(self, pictures: Sequence, infos: Sequence[dict | None]) -> list[dict]:
        seconds = dict.fromkeys(TIMES, 0.0)
        started = last = time.perf_counter()

        def lap(name: str) -> None:
            nonlocal last
            if self.device.type != "cpu":
                torch.accelerator.synchronize()
            now = time.perf_counter()
            seconds[name] += now - last
            last = now

        arrays = [picture if isinstance(picture, dict) else as_array(picture) for picture in pictures]
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
            batch = self.normalised(cuts)
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
        for group, dets in zip(groups, decoded, strict=True):
            metas = [prepared[k]["meta"][scale] for k, scale in group]
            found.update(zip(group, self.task.to_picture(dets, metas, self.opt), strict=True))
        detections = [[found[k, scale] for scale in one["images"]] for k, one in enumerate(prepared)]
        lap("post")
        results = [self.task.merge_outputs(of_scales, self.opt) for of_scales in detections]
        lap("merge")
        seconds["tot"] = last - started
        shares = {name: value / len(prepared) for name, value in seconds.items()}
        answers = [{"results": result, **shares} for result in results]
        if self.opt.debug > 0:
            for k, one in enumerate(prepared):
                meta = next(iter(one["meta"].values()))
                seen = [(scale, *views[k, scale]) for scale in one["images"] if (k, scale) in views]
                answers[k]["pictures"] = self._draw(np.asarray(one["image"]), results[k], seen, meta)
        return answers

    def normalised(self, cuts: np.ndarray) -> torch.Tensor:
        """Cuts (B, h, w, 3) uint8 to the network's input (B, 3, h, w) float32; with ``--flip_test`` (2B, ...).

        The mirror images come after the pictures.
        """
        colors = np.stack([color_matrix(cut, None, self.opt.mean, self.opt.std) for cut in cuts])
        batch = apply_color(*(torch.from_numpy(array).to(self.device) for array in (cuts, colors)))
        return torch.cat([batch, batch.flip(3)]) if self.opt.flip_test else batch

    def _draw(self, image: np.ndarray, results: dict, views: list[tuple], meta: dict) -> dict[str, np.ndarray]:
        pictures = {}
        for scale, view, output, dets in views:
            drawn = self.task.network_pictures(view, output, dets, self.opt)
            pictures.update({f"{name}_{scale:.1f}": drawing for name, drawing in drawn.items()})
        return {**pictures, **self.task.result_pictures(image, results, self.opt, meta)}


def as_array(picture) -> np.ndarray:
    """A path, a PIL image or an array as (H, W, 3) uint8 in B, G, R order, or of a function that gives one.

    Raises UserError for anything else.
    """
    if callable(picture):
        picture = picture()
    if isinstance(picture, (str, os.PathLike)):
        return read_image(os.fspath(picture))
    if hasattr(picture, "convert") and hasattr(picture, "size"):  # PIL's pictures are R, G, B or can be made so
        return np.ascontiguousarray(np.asarray(picture.convert("RGB"))[:, :, ::-1])
    if isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3:
        return picture
    form = f"{picture.dtype} {picture.shape}" if isinstance(picture, np.ndarray) else type(picture).__name__
    raise UserError(
        f"a picture must be a path or an array (height, width, 3) of uint8 in BGR order, this one is {form}"
    )


def _same_size(cuts: list) -> list[list[int]]:
    """The indices of pictures, grouped by their height and width."""
    groups: dict = {}
    for k, picture in enumerate(cuts):
        groups.setdefault(tuple(picture.shape[:2]), []).append(k)
    return list(groups.values())


def _to_cpu(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Tensors of one type on the CPU, brought there all at once: the device is waited for only once."""
    joined = torch.cat([tensor.flatten() for tensor in tensors]).cpu()
    parts = joined.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def prepare(image: np.ndarray, opt, info: dict | None = None) -> dict:
    """A picture as ``Detector.run`` takes it, at all test scales, made without the network.

    Args:
        image: (H, W, 3) uint8, B, G, R.
        opt: finished options (the detector's).
        info: what goes into ``meta`` besides, for the task; what it lacks is taken from ``opt.picture_info``.

    Returns:
        ``image``; ``images``, scale to (h, w, 3) uint8, the cut that the network sees; ``meta``, scale to its ``c``,
        ``s``, ``output_size`` (width, height) and ``scale``.
    """
    image = as_array(image)
    prepared: dict[str, Any] = {"image": image, "images": {}, "meta": {}}
    for scale in opt.test_scales:
        prepared["images"][scale], meta = cut(image, scale, opt)
        prepared["meta"][scale] = {**meta, **opt.picture_info, **(info or {})}
    return prepared


def cut(image: np.ndarray, scale: float, opt) -> tuple[np.ndarray, dict]:
    """Resize a picture by ``scale`` and cut out what the network sees (``pre_process``).

    At a fixed resolution the extent of the cut is that of the unscaled picture, as in the reference: a scale below 1
    shows the picture smaller in a black frame, one above 1 loses its borders. ``--keep_res`` shows all of it.
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
        raise UserError(f"--test_scales {scale:g}: nothing is left of a picture of {width} x {height}")
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


class PreparedPictures(Dataset):
    """What a loader process runs: pictures of a data set, read and prepared, as (image id, ``prepare``'s dict).

    The dict says besides whether the picture was ``skipped``, so that there is a black one in its place.
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
        except UserError:
            if self.opt.on_bad_image != "skip":  # a score may not change without a word
                raise
            skipped, image = True, black_picture(self.dataset, index)
        picture = prepare(image, self.opt, self.dataset.picture_info(index))
        return self.dataset.image_ids[index], {**picture, "skipped": skipped}


def prefetch(dataset: CocoStyleDataset, indices: Sequence[int], opt) -> DataLoader:
    """(image id, prepared picture) of the pictures ``indices`` in order, from ``--num_workers`` that read ahead."""
    return DataLoader(
        PreparedPictures(dataset, indices, opt),
        batch_size=None,
        num_workers=min(opt.num_workers, len(indices), os.cpu_count() or 1),
        collate_fn=_shared,  # type: ignore[arg-type]  # a sample comes alone, not in a list
        worker_init_fn=start_worker,
    )


def batches(pictures: Iterable[tuple], size: int) -> Iterator[list[tuple]]:
    """Lists of at most ``size`` of the (image id, prepared picture), those of one list with cuts of the same sizes.

    At most four such lists wait until they are full; pictures come out in another order then.
    """
    waiting: dict[tuple, list] = {}
    count = 0
    for image_id, picture in pictures:
        key = tuple(tuple(view.shape) for view in picture["images"].values())
        waiting.setdefault(key, []).append((image_id, picture))
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
