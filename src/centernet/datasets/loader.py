"""Batches of samples: sampling order, loader workers, and the transfer to the device."""

import copy
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from ..errors import UserError
from ..policies import PLAIN_SHARE, Policy, policy_of
from ..tasks.base import Detections, Objects, Task
from ..transforms import sample_rng
from ..utils.failures import OPEN_FILES, explain
from .augment import OUTLINES, augment, repeat_factors
from .base import MAX_SHOWN, CocoStyleDataset
from .worker import check_worker_resources, init_worker

MAX_BAD_IN_A_ROW = 100  # unreadable images, after which training stops
MAX_PIXELS = 1 << 26  # of a black replacement image
MOSAIC_SCALE = 2  # largest side of a mosaic, as a multiple of the input size


class Samples(Dataset):
    """Samples of a dataset by ``(epoch, index)``, made by its task's ``encode``; runs in the workers."""

    def __init__(self, dataset: CocoStyleDataset, train: bool) -> None:
        self.dataset, self.task, self.opt, self.train = dataset, dataset.task, dataset.opt, train
        # An unreadable image does not stop training, but evaluation must never silently drop images.
        self.skips = self.opt.on_bad_image == "skip" or (self.opt.on_bad_image == "auto" and not self.opt.test)
        policy = policy_of(self.opt) if train and self.task.can_augment else Policy()
        self.policy = policy if policy != Policy() else None

    def __getitem__(self, key: tuple[int, int]) -> dict:
        """Return a sample; its entry ``skipped`` is the index of an unreadable image that was replaced, or -1.

        In training the next readable image of the dataset replaces it, with its own random numbers, so that batches
        keep their size and do not depend on workers or processes. Otherwise the sample is a black image.
        """
        epoch, index = key
        skipped = -1
        try:
            image = self.dataset.read_image(index)
        except UserError as error:
            if not self.skips or explain(error) == OPEN_FILES:  # not caused by the image
                raise
            skipped = index
            if self.train:
                index, image = self._next_usable(index, error)
            else:
                image = black_image(self.dataset, index)
        if self.policy is None:
            objects = self.dataset.read_objects(index)
        else:
            image, objects = self._augmented(self.policy, epoch, index, image)
        rng = sample_rng(self.opt.seed, epoch, index) if self.train else None
        sample = self.task.encode(image, objects, rng, self.train)
        sample["skipped"] = np.array(skipped, dtype=np.int64)
        if "meta" in sample:
            sample["meta"]["img_id"] = self.dataset.image_ids[index]
        return sample

    def _augmented(self, policy: Policy, epoch: int, index: int, image: np.ndarray) -> tuple[np.ndarray, Objects]:
        """Return an image and its objects, augmented and possibly composed with other images."""
        plain = self.opt.num_epochs * PLAIN_SHARE if self.opt.plain_epochs < 0 else self.opt.plain_epochs
        if epoch > self.opt.num_epochs - plain:
            policy = policy.without_composition()

        def read(other: int) -> tuple[np.ndarray, Objects]:
            if other == index:
                return image, self._objects(index)
            try:
                return self.dataset.read_image(other), self._objects(other)
            except UserError as error:
                if not self.skips:
                    raise
                usable, replacement = self._next_usable(other, error)
                return replacement, self._objects(usable)

        max_side = MOSAIC_SCALE * max(self.opt.input_h, self.opt.input_w)
        return augment(read, len(self.dataset), policy, self.opt.seed, epoch, index, max_side)

    def _objects(self, index: int) -> Objects:
        objects = self.dataset.read_objects(index)
        return objects if self.dataset.outlines is None else {**objects, OUTLINES: self.dataset.read_outlines(index)}

    def _next_usable(self, index: int, last: UserError) -> tuple[int, np.ndarray]:
        tries = min(len(self.dataset), MAX_BAD_IN_A_ROW) - 1
        for other in ((index + k) % len(self.dataset) for k in range(1, tries + 1)):
            try:
                return other, self.dataset.read_image(other)
            except UserError as error:
                last = error
        raise UserError(f"{tries + 1} images in a row cannot be used, the last because: {last}")


def black_image(dataset: CocoStyleDataset, index: int) -> np.ndarray:
    """Return a black image in place of an unreadable one, in its annotated size if there is one."""
    width, height = dataset.sizes[index].tolist()
    if min(width, height) < 1 or width * height > MAX_PIXELS:
        width, height = 64, 64
    return np.zeros((height, width, 3), dtype=np.uint8)


def no_detections(detections: Detections) -> Detections:
    """Return the (empty) detections of an unreadable image in the form of those of other images."""
    return {cls: rows[:0] for cls, rows in detections.items()}


class SkippedImages:
    """The images of a pass over a dataset that could not be read.

    Attributes:
        indices: their indices in the dataset, those of this process; appended to the given list.
    """

    def __init__(self, dataset: CocoStyleDataset, indices: list[int] | None = None) -> None:
        self.dataset = dataset
        self.indices = [] if indices is None else indices

    def add(self, batch: dict) -> Tensor:
        """Collect those of a batch, and return (B,) bool: which samples are not affected.

        Call it before the batch is moved to the device, because it reads ``skipped`` on the CPU.
        """
        self.indices += [index for index in batch["skipped"].tolist() if index >= 0]
        return batch["skipped"] < 0

    def report(self, title: str, indices: Iterable[int] | None = None, named: Path | None = None) -> str | None:
        """Return a message about the skipped images; None if there are none.

        Args:
            title: start of the message.
            indices: those of all processes; None: those of this one.
            named: text file with a line for each image that was ever skipped; new ones are appended.
        """
        indices = sorted(set(self.indices if indices is None else indices))
        if not indices:
            return None
        reasons = []
        for index in indices if named is not None else indices[:MAX_SHOWN]:
            try:
                self.dataset.read_image(index)
                path = os.path.join(self.dataset.image_folder, self.dataset.file_names[index])
                reasons.append(f"{path}: was unusable before, but can be read now")
            except UserError as error:
                reasons.append(str(error))
        if named is not None:
            old = set(named.read_text(encoding="utf-8").splitlines()) if named.is_file() else set()
            with named.open("a", encoding="utf-8") as file:
                file.writelines(f"{reason}\n" for reason in reasons if reason not in old)
        more = f"; all are in {named}" if named is not None and len(indices) > MAX_SHOWN else ""
        return f"{title}: {len(indices)} image(s) could not be used: {'; '.join(reasons[:MAX_SHOWN])}{more}"


class TrainBatches(Sampler):
    """Batches of ``(epoch, index)`` for one process: its share of every global batch of a shuffled epoch.

    The images of the global batch of an iteration depend on seed and epoch only, not on the number of processes. The
    incomplete batch at the end of an epoch is dropped.

    Attributes:
        epoch: set before each epoch; it is passed on with the indices, so that workers persist through all epochs.
        start: iterations of that epoch to leave out, because a resumed run has already done them.
    """

    def __init__(
        self,
        length: int,
        shares: list[int],
        rank: int,
        seed: int,
        num_iters: int = -1,
        factors: np.ndarray | None = None,
    ) -> None:
        """Plan the batches; ``factors`` (number of images,) float are average occurrences per epoch, None means 1."""
        self.factors = factors
        if factors is not None:
            length = int(factors.sum())
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
        """Return the global batch of iteration ``i``, from 0, of the epoch."""
        return self._keys(self._order(), i)

    def _order(self) -> np.ndarray:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(self.length)
        if self.factors is None:
            return order
        # Systematic sampling: every epoch has the same length, and each image occurs its factor's floor or ceiling.
        ends = np.cumsum(self.factors) * (self.length / self.factors.sum())
        places = np.minimum(np.arange(self.length) + rng.random(), ends[-1] * (1 - 1e-12))
        return np.searchsorted(ends, places, side="right")[order]

    def _keys(self, order: np.ndarray, i: int) -> list[tuple[int, int]]:
        return [(self.epoch, int(index)) for index in order[i * self.batch_size : (i + 1) * self.batch_size]]


def class_repeat_factors(dataset: CocoStyleDataset, threshold: float) -> np.ndarray:
    """Return how often each image of a dataset occurs per epoch (``repeat_factors`` of its classes).

    Objects that only mark regions to be ignored (negative classes) do not count.

    Raises:
        UserError: the objects of the task have no classes.
    """
    if "cls" not in dataset.objects:
        raise UserError(f"--repeat_threshold: the objects of task {dataset.opt.task} have no classes")
    classes = dataset.objects["cls"]
    of_images = [classes[a:b] for a, b in zip(dataset.start, dataset.start[1:], strict=False)]
    return repeat_factors([cls[cls >= 0] for cls in of_images], threshold)


class EvalBatches(Sampler):
    """Every image once, in order, distributed round-robin over the processes; the last batch may be smaller."""

    def __init__(self, length: int, batch_size: int, rank: int = 0, processes: int = 1, num_iters: int = -1) -> None:
        indices = list(range(length))[: num_iters if num_iters >= 0 else None][rank::processes]
        self.batches = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter([[(0, index) for index in batch] for batch in self.batches])


def make_loader(samples: Samples, batches: Any, num_workers: int, pin_memory: bool) -> "DataLoader | TrainLoader":
    """Return the loader of batches of samples, made by ``num_workers`` processes; those of training persist."""
    if samples.train:
        return TrainLoader(samples, batches, num_workers, pin_memory)
    return _data_loader(samples, batches, num_workers, pin_memory)


def _data_loader(samples: Samples, batches: Iterable, num_workers: int, pin_memory: bool) -> DataLoader:
    if num_workers > 0:
        check_worker_resources(num_workers)
    return DataLoader(
        samples,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        worker_init_fn=init_worker,
        generator=torch.Generator(),  # worker seeds are not used; the default generator stays untouched
    )


class TrainLoader:
    """Loader of training batches; iterating over it yields the epoch that its ``batch_sampler`` names.

    At the end of an epoch the workers continue with the next one, so that its first batches are ready when it begins.

    Attributes:
        batch_sampler, dataset, collate_fn: as in ``DataLoader``.
    """

    def __init__(self, samples: Samples, batches: TrainBatches, num_workers: int, pin_memory: bool) -> None:
        self.dataset, self.batch_sampler, self.collate_fn = samples, batches, collate
        self._loader = _data_loader(samples, _Endless(batches, samples.opt.num_epochs), num_workers, pin_memory)
        self._stream: Iterator[dict] | None = None
        self._place: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[dict]:
        epoch, start = self.batch_sampler.epoch, self.batch_sampler.start
        if self._place != (epoch, start):
            self._stream = None  # the workers of another epoch end before new ones start
            self._stream = iter(self._loader)
        self._place = None  # until the whole epoch has been consumed
        try:
            for _ in range(start, len(self)):
                assert self._stream is not None  # no local variable, which would keep the workers
                yield next(self._stream)
            if epoch < self.dataset.opt.num_epochs:
                self._place = epoch + 1, 0
        finally:
            if self._place is None:
                # End the workers now; at exit Python would have to terminate them.
                self._stream = None


class _Endless:
    """The batches of an epoch, from its ``start``, and of the following ones up to the last of the training."""

    def __init__(self, batches: TrainBatches, last_epoch: int) -> None:
        self.batches, self.last_epoch = batches, last_epoch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        ahead = copy.copy(self.batches)  # the original names the epoch that is being trained
        yield from ahead
        while ahead.epoch < self.last_epoch:
            ahead.epoch, ahead.start = ahead.epoch + 1, 0
            yield from ahead


def collate(samples: list[dict]) -> dict:
    """Stack arrays of samples into tensors (B, ...); ``meta`` becomes a list, ``num_target_pixels`` a list of sums."""
    batch: dict[str, Any] = {}
    for name in samples[0]:
        values = [sample[name] for sample in samples]
        if name == "meta":
            batch[name] = values
        elif name == "num_target_pixels":  # stays on the host, to avoid a device sync
            batch[name] = np.sum(values, axis=0).tolist()
        else:
            batch[name] = _stack(values)
    return batch


def _stack(arrays: list[np.ndarray]) -> Tensor:
    shape, dtype = (len(arrays), *arrays[0].shape), arrays[0].dtype
    if get_worker_info() is None:
        return torch.from_numpy(np.stack(arrays))
    # Stack in shared memory, to which the tensor would be copied otherwise (as torch's collation does). If there is no
    # space left, the error is raised and reported here. The thread that would copy it later drops the error, and the
    # main process would wait forever.
    memory = torch.UntypedStorage._new_shared(int(np.prod(shape)) * dtype.itemsize, device="cpu")
    stacked = torch.empty(0, dtype=torch.from_numpy(np.empty(0, dtype)).dtype).set_(memory).view(shape)
    np.stack(arrays, out=stacked.numpy())
    return stacked


def as_tensor(array: np.ndarray) -> Tensor:
    """Return an array as tensor, in a loader worker in shared memory (for the same reason)."""
    tensor = torch.from_numpy(array)
    return tensor.share_memory_() if get_worker_info() is not None else tensor


def to_device(batch: dict, device: torch.device) -> dict:
    """Return a batch with all tensors on ``device``; pinned ones are copied asynchronously."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


def finish_batch(batch: dict, task: Task) -> dict:
    """Return a batch with ``input`` (B, 3, h, w) float32 and the task's target maps added, on its device."""
    return {**batch, "input": apply_color(batch["image"], batch["color"]), **task.draw_targets(batch)}


def apply_color(image: Tensor, color: Tensor) -> Tensor:
    """Apply color maps (B, 3, 4) to images (B, h, w, 3) uint8; returns (B, 3, h, w) float32, channels last."""
    batch, height, width, _ = image.shape
    pixels = image.view(batch, -1, 3).to(color.dtype)
    pixels = torch.baddbmm(color[:, None, :, 3], pixels, color[:, :, :3].transpose(1, 2))
    return pixels.view(batch, height, width, 3).permute(0, 3, 1, 2)
