"""From dataset to batches on the device."""

import copy
import multiprocessing
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from ..engine.failures import OPEN_FILES, explain
from ..engine.signals import ignore_signals_in_worker
from ..errors import UserError
from ..tasks import get_task
from ..utils import environment
from .augmentation import sample_rng
from .base import SHOWN, CocoStyleDataset

MOST_IN_A_ROW = 100  # images that cannot be used: then it is no accident
MOST_PIXELS = 1 << 26  # of an image that is made up
FILES, FILES_PER_WORKER = 12, 3  # open files that loader processes take in the process that reads from them
MANY_FILES = 1024  # a limit of open files that is enough for any number of tensors on their way


class Samples(Dataset):
    """What the workers run: ``(epoch, index)`` to a sample, by the task's ``make_sample``."""

    def __init__(self, dataset: CocoStyleDataset, opt, train: bool) -> None:
        self.dataset, self.opt, self.train = dataset, opt, train
        self.task = get_task(opt.task)

        # An image that cannot be used does not end a training, but no score may change without a word.
        self.skips = opt.on_bad_image == "skip" or (opt.on_bad_image == "auto" and not opt.test)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        """A sample; ``skipped`` is the index of the first image that could not be used for it, or -1.

        In training the next image of the dataset that can be used takes its place, with its own random numbers, so
        that batches keep their size and do not depend on workers or processes. Elsewhere the sample is a black image.
        """
        epoch, index = key
        skipped = -1
        try:
            image = self.dataset.read_image(index)
        except UserError as error:
            if not self.skips or explain(error) == OPEN_FILES:  # it is not the image that is bad
                raise
            skipped = index
            if self.train:
                index, image = self._next_usable(index, error)
            else:
                image = black_image(self.dataset, index)
        draws = sample_rng(self.opt.seed, epoch, index) if self.train else None
        sample = self.task.make_sample(image, self.dataset.read_objects(index), self.opt, draws, self.train)
        sample["skipped"] = np.array(skipped, dtype=np.int64)
        if "meta" in sample:
            sample["meta"]["img_id"] = self.dataset.image_ids[index]
        return sample

    def _next_usable(self, index: int, last: UserError) -> tuple[int, np.ndarray]:
        tries = min(len(self.dataset), MOST_IN_A_ROW) - 1
        for other in ((index + k) % len(self.dataset) for k in range(1, tries + 1)):
            try:
                return other, self.dataset.read_image(other)
            except UserError as error:
                last = error
        raise UserError(f"{tries + 1} images in a row cannot be used, the last because: {last}")


def black_image(dataset: CocoStyleDataset, index: int) -> np.ndarray:
    """What stands for an image that cannot be used, in its stated size if there is one."""
    width, height = dataset.sizes[index].tolist()
    if min(width, height) < 1 or width * height > MOST_PIXELS:
        width, height = 64, 64
    return np.zeros((height, width, 3), dtype=np.uint8)


def no_detections(detections: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """The detections of an image that could not be used: none, in the form of those of others."""
    return {cls: rows[:0] for cls, rows in detections.items()}


class SkippedImages:
    """The images of a pass over a dataset that could not be used.

    Attributes:
        indices: their numbers in the dataset, those of this process; added to the list that is given.
    """

    def __init__(self, dataset: CocoStyleDataset, indices: list[int] | None = None) -> None:
        self.dataset = dataset
        self.indices = [] if indices is None else indices

    def add(self, batch: dict) -> Tensor:
        """Note those of a batch, on whichever device it is. Returns (B,) bool, which of its samples have none of them.

        Looks at ``skipped``, on the CPU: call it before the batch goes to the device.
        """
        self.indices += [index for index in batch["skipped"].tolist() if index >= 0]
        return batch["skipped"] < 0

    def report(self, title: str, indices: Iterable[int] | None = None, named: Path | None = None) -> str | None:
        """What is to be said at the end; None when all could be used.

        Args:
            title: begins the text.
            indices: those of all processes; None: those of this one.
            named: a text file with a line for each image that was ever skipped; new ones are added.
        """
        indices = sorted(set(self.indices if indices is None else indices))
        if not indices:
            return None
        reasons = []
        for index in indices if named is not None else indices[:SHOWN]:
            try:
                self.dataset.read_image(index)
                path = os.path.join(self.dataset.image_folder, self.dataset.file_names[index])
                reasons.append(f"{path}: it could not be used before, now it can")
            except UserError as error:
                reasons.append(str(error))
        if named is not None:
            old = set(named.read_text(encoding="utf-8").splitlines()) if named.is_file() else set()
            with named.open("a", encoding="utf-8") as file:
                file.writelines(f"{reason}\n" for reason in reasons if reason not in old)
        more = f"; all are in {named}" if named is not None and len(indices) > SHOWN else ""
        return f"{title}: {len(indices)} image(s) could not be used: {'; '.join(reasons[:SHOWN])}{more}"


class TrainBatches(Sampler):
    """Batches of ``(epoch, index)`` for one process: its share of every global batch of a shuffled epoch.

    Which images make up the global batch of an iteration depends on seed and epoch alone, not on the number of
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
    """Every image once, in order, dealt to the processes in turn; the last batch may be smaller."""

    def __init__(self, length: int, batch_size: int, rank: int = 0, processes: int = 1, num_iters: int = -1) -> None:
        indices = list(range(length))[: num_iters if num_iters >= 0 else None][rank::processes]
        self.batches = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter([[(0, index) for index in batch] for batch in self.batches])


def make_loader(samples: Samples, batches: Sampler, num_workers: int, pin_memory: bool) -> "DataLoader | TrainLoader":
    """Batches of samples, made by ``num_workers`` processes; those of a training live through all epochs."""
    if samples.train:
        return TrainLoader(samples, batches, num_workers, pin_memory)
    return _data_loader(samples, batches, num_workers, pin_memory)


def check_worker_resources(num_workers: int) -> None:
    """Raise UserError where the system lacks what loader processes need: shared memory, and enough open files."""
    limit = environment.open_file_limit()
    needed = environment.open_files() + FILES + FILES_PER_WORKER * num_workers
    if needed > limit:
        raise UserError(
            f"--num_workers {num_workers}: loader processes need about {needed} open files, but the limit is {limit}; "
            "raise it (ulimit -n 1024), or use fewer (0 needs none)"
        )
    _use_few_files()
    try:
        multiprocessing.get_context().Lock()
        torch.UntypedStorage._new_shared(1, device="cpu")
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"--num_workers {num_workers}: loader processes need shared memory, which cannot be had "
            f"({str(error).splitlines()[0]}); mount /dev/shm (for a container: --shm-size), or use --num_workers 0"
        ) from error


def _use_few_files() -> None:
    """Share tensors by name where few files may be open; by default each one on its way takes an open file."""
    if environment.open_file_limit() < MANY_FILES:
        torch.multiprocessing.set_sharing_strategy("file_system")


def _data_loader(samples: Samples, batches: Iterable, num_workers: int, pin_memory: bool) -> DataLoader:
    if num_workers > 0:
        check_worker_resources(num_workers)
    return DataLoader(
        samples,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        worker_init_fn=start_worker,
        generator=torch.Generator(),  # for the seeds of the workers, which use none; the network's own is left alone
    )


class TrainLoader:
    """The batches of a training; going through it gives those of the epoch that its ``batch_sampler`` names.

    At the end of an epoch the workers go on with the next one, so that its first batches are there when it begins.

    Attributes:
        batch_sampler, dataset, collate_fn: as of a ``DataLoader``.
    """

    def __init__(self, samples: Samples, batches: TrainBatches, num_workers: int, pin_memory: bool) -> None:
        self.dataset, self.batch_sampler, self.collate_fn = samples, batches, collate
        self._loader = _data_loader(samples, _Endless(batches, samples.opt.num_epochs), num_workers, pin_memory)
        self._stream, self._place = None, None

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[dict]:
        epoch, start = self.batch_sampler.epoch, self.batch_sampler.start
        if self._place != (epoch, start):
            self._stream = None  # the workers of another epoch end before there are new ones
            self._stream = iter(self._loader)
        self._place = None  # until all of the epoch has been taken
        try:
            for _ in range(start, len(self)):
                yield next(self._stream)
            if epoch < self.dataset.opt.num_epochs:
                self._place = epoch + 1, 0
        finally:
            if self._place is None:
                # Let the workers end now: at the end of the process Python would have to get rid of them.
                self._stream = None


class _Endless:
    """The batches of an epoch, from its ``start`` on, and of those after it up to the last of the training."""

    def __init__(self, batches: TrainBatches, last_epoch: int) -> None:
        self.batches, self.last_epoch = batches, last_epoch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        ahead = copy.copy(self.batches)  # the original's epoch is the one that is trained
        yield from ahead
        while ahead.epoch < self.last_epoch:
            ahead.epoch, ahead.start = ahead.epoch + 1, 0
            yield from ahead


def start_worker(worker: int) -> None:
    """What a loader process does first."""
    _use_few_files()
    # The workers share the cores among each other; OpenCV's and PyTorch's own threads would only get in the way.
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    ignore_signals_in_worker()
    # When the process that reads is killed, the thread that hands it tensors would print a traceback over the report of
    # the launcher.
    show = sys.excepthook
    sys.excepthook = lambda kind, error, trace: (
        None if issubclass(kind, (ConnectionError, EOFError)) else show(kind, error, trace)
    )


def collate(samples: list[dict]) -> dict:
    """Stack the arrays of samples into tensors (B, ...); ``meta`` becomes a list, ``pixels`` a list of sums."""
    batch = {}
    for name in samples[0]:
        values = [sample[name] for sample in samples]
        if name == "meta":
            batch[name] = values
        elif name == "pixels":  # for the host alone, so that nobody has to wait until the device has counted
            batch[name] = np.sum(values, axis=0).tolist()
        else:
            batch[name] = _stack(values)
    return batch


def _stack(arrays: list[np.ndarray]) -> Tensor:
    shape, dtype = (len(arrays), *arrays[0].shape), arrays[0].dtype
    if get_worker_info() is None:
        return torch.from_numpy(np.stack(arrays))
    # In the memory in which it will travel, where it would be copied to otherwise (as torch's own collation does it).
    # Where there is no room for it, the error comes here and is told. The thread that would do it later, when it is
    # sent, drops it, and the process that reads waits for ever.
    memory = torch.UntypedStorage._new_shared(int(np.prod(shape)) * dtype.itemsize, device="cpu")
    stacked = torch.empty(0, dtype=torch.from_numpy(np.empty(0, dtype)).dtype).set_(memory).view(shape)
    np.stack(arrays, out=stacked.numpy())
    return stacked


def as_tensor(array: np.ndarray) -> Tensor:
    """A tensor of an array, in a loader process in shared memory (for the same reason)."""
    tensor = torch.from_numpy(array)
    return tensor.share_memory_() if get_worker_info() is not None else tensor


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
    """(B, h, w, 3) uint8 images through their (B, 3, 4) color maps to (B, 3, h, w) float32, channels last."""
    batch, height, width, _ = image.shape
    pixels = image.view(batch, -1, 3).to(color.dtype)
    pixels = torch.baddbmm(color[:, None, :, 3], pixels, color[:, :, :3].transpose(1, 2))
    return pixels.view(batch, height, width, 3).permute(0, 3, 1, 2)
