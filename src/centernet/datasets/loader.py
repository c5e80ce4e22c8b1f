"""From data set to batches on the device."""

import sys
from collections.abc import Iterator

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..engine.signals import quiet_worker
from ..tasks import get_task
from .augmentation import random_draws
from .base import CocoStyleDataset


class Samples(Dataset):
    """What the workers run: ``(epoch, index)`` to a sample, by the task's ``make_sample``."""

    def __init__(self, dataset: CocoStyleDataset, opt, train: bool) -> None:
        self.dataset, self.opt, self.train = dataset, opt, train
        self.task = get_task(opt.task)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        epoch, index = key
        image = self.dataset.read_image(index)
        draws = random_draws(self.opt.seed, epoch, index) if self.train else None
        sample = self.task.make_sample(image, self.dataset.read_objects(index), self.opt, draws, self.train)
        if "meta" in sample:
            sample["meta"]["img_id"] = self.dataset.image_ids[index]
        return sample


class TrainBatches(Sampler):
    """Batches of ``(epoch, index)`` for one process: its share of every global batch of a shuffled epoch.

    Which pictures make up the global batch of an iteration depends on seed and epoch alone, not on the number of
    processes. The incomplete batch at the end of an epoch is dropped.

    Attributes:
        epoch: set before each epoch; it travels with the indices, so workers can live on through all epochs.
        start: iterations of that epoch to leave out, because a run that is resumed has done them already.
    """

    def __init__(self, length: int, shares: list[int], rank: int, seed: int, num_iters: int = -1) -> None:
        self.length, self.seed = length, seed
        self.batch_size = sum(shares)
        self.share = slice(sum(shares[:rank]), sum(shares[: rank + 1]))
        self.iterations = length // self.batch_size
        if num_iters >= 0:
            self.iterations = min(self.iterations, num_iters)
        self.epoch, self.start = 1, 0

    def __len__(self) -> int:
        return self.iterations

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = self._order()
        for i in range(self.start, self.iterations):
            yield self._keys(order, i)[self.share]

    def whole(self, i: int) -> list[tuple[int, int]]:
        """The global batch of iteration ``i``, from 0, of the epoch."""
        return self._keys(self._order(), i)

    def _order(self) -> np.ndarray:
        return np.random.default_rng((self.seed, self.epoch)).permutation(self.length)

    def _keys(self, order: np.ndarray, i: int) -> list[tuple[int, int]]:
        return [(self.epoch, int(index)) for index in order[i * self.batch_size : (i + 1) * self.batch_size]]


class EvalBatches(Sampler):
    """Every picture once, in order, dealt to the processes in turn; the last batch may be smaller."""

    def __init__(self, length: int, batch_size: int, rank: int = 0, processes: int = 1, num_iters: int = -1) -> None:
        indices = list(range(length))[: num_iters if num_iters >= 0 else None][rank::processes]
        self.batches = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter([[(0, index) for index in batch] for batch in self.batches])


def make_loader(samples: Samples, batches: Sampler, num_workers: int, pin_memory: bool) -> DataLoader:
    """Batches of samples, made by ``num_workers`` processes; those of a training live through all epochs."""
    return DataLoader(
        samples,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0 and samples.train,
        worker_init_fn=start_worker,
        generator=torch.Generator(),  # for the seeds of the workers, which use none; the network's own is left alone
    )


def start_worker(worker: int) -> None:
    """What a loader process does first."""
    # The workers share the cores among each other; OpenCV's and PyTorch's own threads would only get in the way.
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    quiet_worker()
    # When the process that reads is killed, the thread that hands it tensors would print a traceback over the report of
    # the launcher.
    show = sys.excepthook
    sys.excepthook = lambda kind, error, trace: (
        None if issubclass(kind, (ConnectionError, EOFError)) else show(kind, error, trace)
    )


def collate(samples: list[dict]) -> dict:
    """Stack the arrays of samples into tensors (B, ...); ``meta`` becomes a list."""
    batch = {}
    for name in samples[0]:
        values = [sample[name] for sample in samples]
        batch[name] = values if name == "meta" else torch.from_numpy(np.stack(values))
    return batch


def to_device(batch: dict, device: torch.device) -> dict:
    """All tensors of a batch on ``device``; pinned ones are copied without waiting."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


def finish_batch(batch: dict, task, opt) -> dict:
    """Add ``input`` (B, 3, h, w) float32 and the task's target maps to a batch, on its device."""
    return {**batch, "input": apply_color(batch["image"], batch["color"]), **task.draw_targets(batch, opt)}


def apply_color(image: Tensor, color: Tensor) -> Tensor:
    """(B, h, w, 3) uint8 pictures through their (B, 3, 4) colour maps to (B, 3, h, w) float32, channels last."""
    batch, height, width, _ = image.shape
    pixels = image.view(batch, -1, 3).to(color.dtype)
    pixels = torch.baddbmm(color[:, None, :, 3], pixels, color[:, :, :3].transpose(1, 2))
    return pixels.view(batch, height, width, 3).permute(0, 3, 1, 2)
