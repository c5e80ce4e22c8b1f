"""Picture in, detections out: test scales, flip test, merging. What is particular to a task is in ``tasks/``."""

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from .datasets.augmentation import View, color_matrix
from .datasets.base import CocoStyleDataset, read_image
from .datasets.loader import apply_color, start_worker
from .engine import processes
from .errors import UserError
from .models import create_model, load_model, read_checkpoint
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
    card = read_checkpoint(opt.load_model).get("model")
    if isinstance(card, dict):
        opt = use_model_card(opt, card)
    model = create_model(opt.arch, opt.heads, opt.head_conv)
    load_model(model, opt.load_model, log=log)
    return Detector(opt, model, device)


class Detector:
    """A network and what it takes to use it on pictures.

    Attributes:
        opt: the options, completed by the checkpoint.
        device: where the network is.
    """

    def __init__(self, opt, model: torch.nn.Module, device: torch.device) -> None:
        self.opt, self.device, self.task = opt, device, get_task(opt.task)
        self.model = model.to(device, memory_format=torch.channels_last).eval()

    @torch.inference_mode()
    def run(self, picture: np.ndarray | str | os.PathLike | dict) -> dict:
        """Detect.

        Args:
            picture: (H, W, 3) uint8 in B, G, R order, the path of a picture, or what ``prepare`` gives for one.

        Returns:
            ``results``, ``{class id from 1: (n, 5) float32}`` with rows [x1, y1, x2, y2, score] in picture pixels, and
            the seconds that it took by ``TIMES``: ``net`` is the network alone, ``dec`` decodes and averages the flip
            test. With ``--debug`` also ``pictures``, drawings by name, whose time is not counted.

        Raises:
            UserError: a picture that cannot be read or has another form.
        """
        seconds = dict.fromkeys(TIMES, 0.0)
        started = last = time.perf_counter()

        def lap(name: str) -> None:
            nonlocal last
            if self.device.type != "cpu":
                torch.accelerator.synchronize()
            now = time.perf_counter()
            seconds[name] += now - last
            last = now

        prepared = picture if isinstance(picture, dict) else None
        if isinstance(picture, (str, os.PathLike)):
            picture = read_image(os.fspath(picture))
        lap("load")
        if prepared is None:
            prepared = prepare(picture, self.opt)
        detections, views = [], []
        for scale, view in prepared["images"].items():
            view = np.asarray(view)
            batch = self.normalised(view)
            lap("pre")
            output = self.model(batch)[-1]
            lap("net")
            dets = self.task.decode(output, self.opt, mirrored=self.opt.flip_test)
            lap("dec")
            detections += self.task.to_picture(dets, [prepared["meta"][scale]], self.opt)
            lap("post")
            if self.opt.debug >= 2:
                views.append((scale, view, output, dets))
        results = self.task.merge_outputs(detections, self.opt)
        lap("merge")
        seconds["tot"] = last - started
        found = {"results": results, **seconds}
        if self.opt.debug > 0:
            found["pictures"] = self._draw(np.asarray(prepared["image"]), results, views)
        return found

    def normalised(self, view: np.ndarray) -> torch.Tensor:
        """(h, w, 3) uint8 to the network's input (1, 3, h, w) float32; with ``--flip_test`` (2, ...), mirrored last."""
        color = color_matrix(view, None, self.opt.mean, self.opt.std)
        batch = apply_color(*(torch.from_numpy(array).to(self.device)[None] for array in (view, color)))
        return torch.cat([batch, batch.flip(3)]) if self.opt.flip_test else batch

    def _draw(self, image: np.ndarray, results: dict, views: list[tuple]) -> dict[str, np.ndarray]:
        pictures = {}
        for scale, view, output, dets in views:
            drawn = self.task.network_pictures(view, output, dets, self.opt)
            pictures.update({f"{name}_{scale:.1f}": drawing for name, drawing in drawn.items()})
        return {**pictures, **self.task.result_pictures(image, results, self.opt)}


def prepare(image: np.ndarray, opt) -> dict:
    """A picture as ``Detector.run`` takes it, at all test scales, made without the network.

    Args:
        image: (H, W, 3) uint8, B, G, R.
        opt: finished options (the detector's).

    Returns:
        ``image``; ``images``, scale to (h, w, 3) uint8, the cut that the network sees; ``meta``, scale to its ``c``,
        ``s``, ``output_size`` (width, height) and ``scale``.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        form = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise UserError(f"a picture must be an array (height, width, 3) of uint8, this one is {form}")
    prepared = {"image": image, "images": {}, "meta": {}}
    for scale in opt.test_scales:
        prepared["images"][scale], prepared["meta"][scale] = cut(image, scale, opt)
    return prepared


def cut(image: np.ndarray, scale: float, opt) -> tuple[np.ndarray, dict]:
    """Resize a picture by ``scale`` and cut out what the network sees (``pre_process``).

    At a fixed resolution the extent of the cut is that of the unscaled picture, as in the reference: a scale below 1
    shows the picture smaller in a black frame, one above 1 loses its borders. ``--keep_res`` shows all of it.
    """
    height, width = image.shape[:2]
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
    """What a loader process runs: pictures of a data set, read and prepared, as (image id, ``prepare``'s dict)."""

    def __init__(self, dataset: CocoStyleDataset, indices: Sequence[int], opt) -> None:
        self.dataset, self.indices, self.opt = dataset, indices, opt

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, k: int) -> tuple[int, dict]:
        index = self.indices[k]
        return self.dataset.image_ids[index], prepare(self.dataset.read_image(index), self.opt)


def prefetch(dataset: CocoStyleDataset, indices: Sequence[int], opt) -> DataLoader:
    """(image id, prepared picture) of the pictures ``indices``, from a process that reads ahead."""
    pictures = PreparedPictures(dataset, indices, opt)
    return DataLoader(pictures, batch_size=None, num_workers=1, collate_fn=_shared, worker_init_fn=start_worker)


def paths(dataset: CocoStyleDataset, indices: Sequence[int]) -> Iterator[tuple[int, Path]]:
    """(image id, file) of the pictures ``indices``, for a detector that reads and prepares them itself."""
    return ((dataset.image_ids[index], Path(dataset.image_folder, dataset.file_names[index])) for index in indices)


def _shared(sample: tuple[int, dict]) -> tuple[int, dict]:
    # Tensors travel through shared memory. Arrays would fill the pipe, and a loader process whose reader was killed
    # would wait for ever to get rid of them.
    image_id, prepared = sample
    images = {scale: torch.from_numpy(view) for scale, view in prepared["images"].items()}
    return image_id, {**prepared, "image": torch.from_numpy(prepared["image"]), "images": images}
