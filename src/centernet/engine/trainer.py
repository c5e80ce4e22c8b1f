"""The training step, the epoch, and validation. The same for every task."""

import contextlib
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from progress.bar import Bar
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from ..datasets.base import CocoStyleDataset
from ..datasets.loader import EvalBatches, Samples, SkippedImages, finish_batch, make_loader, no_detections, to_device
from ..errors import UserError
from ..models.weights import write_checkpoint
from ..options import loss_weights, process_shares
from ..visualization import show_or_save
from .averaging import ModelEma
from .precision import Precision
from .processes import Processes
from .run_directory import RunDirectory
from .run_state import TrainingState, random_state, set_random_state
from .signals import STOP, ShutdownHandler, ShutdownRequested

FLUSH = 10  # iterations between two looks at the losses: the device is not waited for in between
PATIENCE = 1.0  # seconds between two looks, where iterations are slower than that
MAX_SKIPPED = 50  # updates in a row that --on_nan skip leaves out before it gives up
GO_ON, SAVE = 0, -1  # what a look at the losses asks for, besides the number of a signal


class Trainer:
    """Trains and validates a network.

    Attributes:
        model: the network, in a distributed wrapper if there are several processes.
        state: where the training stands.
        save: called on all processes when a checkpoint is due within an epoch.
        images_per_second: of all epochs of training so far, validation left out.
    """

    def __init__(
        self,
        opt,
        task,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        processes: Processes,
        run: RunDirectory | None,
        state: TrainingState | None = None,
        requests: ShutdownHandler | None = None,
    ) -> None:
        self.opt, self.task, self.optimizer, self.processes, self.run = opt, task, optimizer, processes, run
        self.state, self.requests = state or TrainingState(), requests or ShutdownHandler()
        self.save: Callable[[], None] = lambda: None
        self.network = model
        self.precision = Precision(opt.amp, processes.device, skip_bad=opt.on_nan == "skip")
        self.averaged = ModelEma(model, opt.ema) if opt.ema else None
        self.model = distribute(model, opt, processes)
        if opt.compile:
            model.compile()
        self.loss = task.Loss(opt)
        self.pin_memory = processes.device.type != "cpu"
        self.trained_images, self.trained_seconds = 0, 0.0
        self.saved = time.monotonic()
        self.bad_in_a_row = 0

    @property
    def images_per_second(self) -> float:
        return self.trained_images / max(self.trained_seconds, 1e-9)

    def snapshot(self) -> dict:
        """The state of the training for a checkpoint. Called on all processes."""
        state = self.state
        parts = self.processes.gather((random_state(self.processes.device), state.unusable)) or []
        state.random = [random for random, _ in parts]
        # In place: the epoch goes on adding to it.
        state.unusable[:] = sorted(set(state.unusable).union(*(unusable for _, unusable in parts)))
        state.scaler = self.precision.scaler.state_dict()
        if self.averaged is not None:
            state.ema = {"updates": self.averaged.updates, "state_dict": self.averaged.state}
        return state.to_dict()

    def resume(self) -> None:
        """Give generators, loss scale and averages what a resumed state says of them."""
        state = self.state
        if len(state.random) == self.processes.count:  # with other processes there is no right continuation
            set_random_state(state.random[self.processes.rank], self.processes.device)
        if state.scaler and self.precision.scaler.is_enabled():
            self.precision.scaler.load_state_dict(state.scaler)
        if state.ema and self.averaged is not None:
            self.averaged.load(state.ema)
        state.ema = {}  # it goes into the next checkpoint as it is then

    def step(self, batch: dict) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """One update from a finished batch. Returns the network's outputs and this process's share of the losses.

        Of the pieces of ``--accumulate`` the outputs are those of the first, the losses those of all.
        """
        counts = self.processes.sum(self.loss.counts(batch))
        pieces = split(batch, self.opt.accumulate)
        self.optimizer.zero_grad(set_to_none=True)
        first, sums = None, None
        with self.precision.keeping(self.network):
            for k, piece in enumerate(pieces):
                # The processes exchange gradients once, when those of the last piece are there.
                alone = k + 1 < len(pieces) and self.processes.count > 1
                with self.model.no_sync() if alone else contextlib.nullcontext():
                    outputs = self.precision.forward(self.model, piece["input"])
                    loss, parts = self.loss(outputs, piece, counts)
                    # The wrapper averages the gradients over the processes; the shares have to be added up instead.
                    self.precision.backward(loss * self.processes.count)
                parts = {name: value.detach() for name, value in parts.items()}
                first = outputs if first is None else first
                sums = parts if sums is None else {name: value + parts[name] for name, value in sums.items()}
            self.precision.update(self.optimizer)
        if self.averaged is not None:
            self.averaged.update()
        return first, sums

    def train(self, epoch: int, loader: DataLoader) -> dict[str, float]:
        """One epoch, or what is left of it. Returns the averages of the loss parts, and ``time`` in minutes.

        Raises ShutdownRequested after a checkpoint on a signal, and UserError when a loss is not finite.
        """
        self.model.train()
        state, self.loader = self.state, loader
        loader.batch_sampler.epoch, loader.batch_sampler.start = epoch, state.done
        state.begin_epoch(len(self.loss.names))
        progress = Progress(self.opt, "train", epoch, len(loader), self.processes.is_main, state.done)
        seconds_before, skipped, updates_before = state.seconds, state.skipped, self.precision.updates(self.optimizer)
        waiting: list[Tensor] = []
        bad_images = SkippedImages(loader.dataset.dataset, state.unusable)
        every, flushed, begun = 1, time.perf_counter(), state.done
        for i, batch in enumerate(loader, state.done):
            bad_images.add(batch)
            batch = finish_batch(to_device(batch, self.processes.device), self.task, self.opt)
            progress.data_ready()
            outputs, parts = self.step(batch)
            waiting.append(torch.stack([parts[name].detach().float() for name in self.loss.names]))
            if self.opt.debug > 0:
                self._show(batch, outputs[-1], f"{epoch}_{i}_")
            if len(waiting) >= every or i + 1 == len(loader) or self.opt.print_iter > 0:
                seconds = time.perf_counter() - flushed
                values, seconds, wish = self._gather(waiting, seconds)
                flushed, waiting = time.perf_counter(), []
                every = max(1, min(FLUSH, round(PATIENCE * len(values) / max(seconds, 1e-9))))
                self._record(epoch, values, self.opt.batch_size * len(values) / max(seconds, 1e-9))
                state.seconds += seconds
                updates = self.precision.updates(self.optimizer)
                if updates is not None:
                    state.skipped = skipped + (i + 1 - begun) - (updates - updates_before)
                if wish != GO_ON and i + 1 < len(loader):
                    self._save_within(wish, epoch, i + 1)
            progress.step(i, self._averages())
        progress.finish()
        self._report(bad_images, f"epoch {epoch}, training (the next ones took their place)")
        if state.skipped:
            why = " in 16 bits (--amp fp16); a few at the start are normal" if self.opt.amp == "fp16" else ""
            self.processes.print(
                f"epoch {epoch}: {state.skipped} of {len(loader)} updates were left out, their gradients were not "
                f"finite{why}"
            )
        self.trained_images += self.opt.batch_size * (len(loader) - begun)
        self.trained_seconds += state.seconds - seconds_before
        return {**self._averages(), "time": state.seconds / 60}

    def _averages(self) -> dict[str, float]:
        """Of the epoch so far."""
        state = self.state
        return {name: value / max(state.counted, 1) for name, value in zip(self.loss.names, state.sums, strict=True)}

    def _gather(self, waiting: list[Tensor], seconds: float) -> tuple[Tensor, float, int]:
        """The losses (iterations, parts) of all processes, the mean of their times, and what is to be done now.

        All processes come to the same answer: a signal may have reached one of them before the others.
        """
        requests, losses = self.requests, torch.stack(waiting)
        minutes = (time.monotonic() - self.saved) / 60
        save = requests.save or (self.processes.is_main and 0 < self.opt.save_minutes <= minutes)
        requests.save = False
        more = [seconds, float(save), *(float(requests.stop == number) for number in STOP)]
        everything = self.processes.sum(torch.cat([losses.flatten(), losses.new_tensor(more)])).cpu()
        seconds, save, *stops = everything[losses.numel() :].tolist()
        wish = next((int(number) for number, count in zip(STOP, stops, strict=True) if count), SAVE if save else GO_ON)
        return everything[: losses.numel()].view(losses.shape), seconds / self.processes.count, wish

    def _save_within(self, wish: int, epoch: int, done: int) -> None:
        """A checkpoint within an epoch, after which the run ends if a signal wants it."""
        self.save()
        self.saved = time.monotonic()
        if wish != SAVE:
            self.processes.barrier()  # nobody leaves while it is being written
            name, file = signal.Signals(wish).name, f"{self.opt.save_dir}/model_last.pth"
            raise ShutdownRequested(
                wish, f"stopped by {name} after iteration {done} of epoch {epoch}; --resume goes on from {file}"
            )
        self.processes.print(f"epoch {epoch}: checkpoint after iteration {done}")

    def _record(self, epoch: int, values: Tensor, speed: float) -> None:
        """Write and add up the losses of the last iterations, and look for one that is not a number."""
        state, lr = self.state, self.optimizer.param_groups[0]["lr"]
        finite = values.isfinite().all(1).tolist()
        rows = [(epoch, state.iteration + k + 1, row, lr, speed) for k, row in enumerate(values.tolist())]
        if self.run is not None:
            self.run.write_losses(rows)
        for good, (_, iteration, row, _, _) in zip(finite, rows, strict=True):
            if good:
                state.sums = [total + value for total, value in zip(state.sums, row, strict=True)]
                state.counted += 1
                self.bad_in_a_row = 0
            else:
                self._not_finite(epoch, iteration, state.done, row)
            state.iteration, state.done = iteration, state.done + 1

    def _not_finite(self, epoch: int, iteration: int, place: int, row: list[float]) -> None:
        """The loss of an iteration, the ``place``-th of its epoch from 0, is not a number: stop, or say so."""
        opt = self.opt
        parts = ", ".join(f"{name} {value:g}" for name, value in zip(self.loss.names, row, strict=True))
        what = f"iteration {iteration} of epoch {epoch}: the loss is not finite ({parts})"
        keys = self.loader.batch_sampler.whole(place)
        dataset = self.loader.dataset.dataset
        names = ", ".join(f"{dataset.image_ids[index]} ({dataset.file_names[index]})" for _, index in keys[:4])
        images = f"images {names}{f' and {len(keys) - 4} more' if len(keys) > 4 else ''}"
        self.bad_in_a_row += 1
        if opt.on_nan == "skip" and self.bad_in_a_row < MAX_SKIPPED:
            if self.bad_in_a_row <= 3:
                self.processes.print(f"warning: {what}; its update is left out; {images}")
            return
        if opt.on_nan == "skip":
            what += f", as in the {MAX_SKIPPED - 1} before it"
        path = self._dump(iteration, place, keys)
        self.processes.barrier()  # all have written their share
        raise UserError(f"{what}; {images}; the batch is in {path}; try a lower --lr, or --on_nan skip")

    def _dump(self, iteration: int, place: int, keys: list[tuple[int, int]]) -> Path:
        """Write this process's share of a batch to the run folder: ids, names, and what the loader gives."""
        samples, batches = self.loader.dataset, self.loader.batch_sampler
        share = keys[batches.share]
        path = Path(self.opt.save_dir) / f"not_finite_{iteration}_rank{self.processes.rank}.pth"
        ids = [samples.dataset.image_ids[index] for _, index in share]
        names = [samples.dataset.file_names[index] for _, index in share]
        batch = self.loader.collate_fn([samples[key] for key in share])
        batch.pop("meta", None)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_checkpoint(path, {"iteration": iteration, "image_ids": ids, "file_names": names, "batch": batch})
        return path

    def evaluate(self, epoch: int, dataset: CocoStyleDataset) -> dict[str, float]:
        """Validate, write results.json, and score it as the dataset does.

        Returns:
            Average losses, ``time`` in minutes, and scores in [0, 1], by name; the same on all processes.
        """
        opt, processes = self.opt, self.processes
        # Images of one size go through together; with --keep_res each has its own.
        batch_size = 1 if opt.keep_res else max(process_shares(opt, processes.count))
        batches = EvalBatches(len(dataset), batch_size, processes.rank, processes.count, opt.num_iters)
        workers = min(opt.num_workers, len(batches))
        loader = make_loader(Samples(dataset, opt, train=False), batches, workers, self.pin_memory)
        with self.averaged.in_place() if self.averaged is not None else contextlib.nullcontext():
            losses, results = self.validate(epoch, loader)
        scores = {}
        if self.run is not None:
            path = self.run.path / "results.json"
            try:
                dataset.save_results(results, path)
            except OSError as error:
                raise UserError(f"{error.filename or path}: results cannot be written ({error.strerror})") from error
            scores = dataset.evaluate(results)
            self.run.validated = (dataset, results)
        processes.barrier()  # scoring may take long
        return processes.share({**losses, **scores})

    @torch.no_grad()
    def validate(self, epoch: int, loader: DataLoader) -> tuple[dict[str, float], dict | None]:
        """Losses and detections of the validation images.

        Returns:
            The averages over images of each image's loss parts, and ``time`` in minutes; and on rank 0 the
            results ``{image id: {class from 1: rows}}``.
        """
        self.processes.broadcast_buffers(self.network)
        self.network.eval()
        progress = Progress(self.opt, "val", epoch, len(loader), self.processes.is_main)
        names = self.loss.names
        sums, count = torch.zeros(len(names), dtype=torch.float64), 0
        results: dict[int, dict] = {}
        bad_images = SkippedImages(loader.dataset.dataset)
        started = time.perf_counter()
        for i, batch in enumerate(loader):
            usable = bad_images.add(batch)
            batch = finish_batch(to_device(batch, self.processes.device), self.task, self.opt)
            progress.data_ready()
            outputs = self.precision.forward(self.network, batch["input"])
            values = torch.stack([self._image_loss(outputs, batch, k) for k in range(len(batch["input"]))])
            sums += values.cpu()[usable].sum(0).double()
            count += int(usable.sum())
            dets = self.task.decode(self.task.with_oracle(outputs[-1], batch, self.opt), self.opt)
            metas = batch["meta"]
            found = self.task.post_process(dets, metas, self.opt)
            for meta, detections, seen in zip(metas, found, usable.tolist(), strict=True):
                results[meta["img_id"]] = detections if seen else no_detections(detections)
            if self.opt.debug > 0:
                self._show(batch, outputs[-1], f"{epoch}_val_{i}_")
            progress.step(i, {name: value / max(count, 1) for name, value in zip(names, sums.tolist(), strict=True)})
        progress.finish()
        self._report(bad_images, f"epoch {epoch}, validation (scored as if nothing was found)")
        total = torch.tensor([*sums.tolist(), count], dtype=torch.float64)
        total = self.processes.sum(total)
        averages = dict(zip(names, (total[:-1] / total[-1].clamp(min=1)).tolist(), strict=True))
        parts = self.processes.gather(results)
        merged = {key: value for part in parts for key, value in part.items()} if parts else None
        return {**averages, "time": (time.perf_counter() - started) / 60}, merged

    def _report(self, bad_images: SkippedImages, title: str) -> None:
        """Say which images of an epoch could not be used."""
        indices = [index for part in self.processes.gather(bad_images.indices) or [] for index in part]
        if indices:
            named = self.run.path / "skipped_images.txt" if self.run is not None else None
            self.processes.print(bad_images.report(title, indices, named))

    def _image_loss(self, outputs: list[dict[str, Tensor]], batch: dict, k: int) -> Tensor:
        """The loss parts of one image of a batch, as if it had come alone."""
        one = [{name: value[k : k + 1] for name, value in output.items()} for output in outputs]
        alone = {name: value[k : k + 1] for name, value in batch.items()}
        _, parts = self.loss(one, alone)
        return torch.stack([parts[name].float() for name in self.loss.names])

    def _show(self, batch: dict, output: dict[str, Tensor], name: str) -> None:
        """Show or save what the network sees, for ``--debug``."""
        images = self.task.debug_images(batch, self.task.with_oracle(output, batch, self.opt), self.opt)
        show_or_save(images, self.opt.debug_dir, name, show=self.opt.debug < 4)


def split(batch: dict, count: int) -> list[dict]:
    """A batch in at most ``count`` pieces of about one size; what belongs to all images goes into each."""
    size = len(batch["input"])
    ends = [size * k // count for k in range(count + 1)]
    return [
        {name: value if name == "pixels" else value[a:b] for name, value in batch.items()}
        for a, b in zip(ends, ends[1:], strict=False)
        if a < b
    ]


def distribute(model: nn.Module, opt, processes: Processes) -> nn.Module:
    """Wrap a model in ``DistributedDataParallel`` if several processes train it."""
    if processes.count == 1 or opt.test:
        return model
    for name in getattr(model, "unused_parameters", ()):
        model.get_parameter(name).requires_grad_(False)  # it never gets a gradient, and DDP would wait for one
    if opt.sync_bn:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    # Heads with a zero loss weight receive no gradient, so DDP needs find_unused_parameters.
    switched_off = any(getattr(opt, name) == 0 for name in loss_weights(opt.task)) or any(
        value for name, value in vars(opt).items() if name.startswith("eval_oracle_")
    )
    with warnings.catch_warnings():
        # The replacement that the newest PyTorch recommends does not exist in the oldest that is supported.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        wrapped = DistributedDataParallel(
            model,
            device_ids=None if processes.device.type == "cpu" else [processes.device.index],
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            find_unused_parameters=switched_off,
        )
    if not switched_off:
        _rebuild_buckets(wrapped, side=opt.pad + 1)
    return wrapped


def _rebuild_buckets(wrapped: DistributedDataParallel, side: int) -> None:
    """Run one backward pass whose gradients are discarded, so that every update uses the same gradient buckets.

    DDP assigns parameters to buckets anew after its first iteration (unless it looks for unused parameters). The
    buckets decide the order in which the gradients of the processes are added, so if the first iteration were one of
    the training, a resumed run would differ in the last bits.
    """
    buffers = [(buffer, buffer.clone()) for buffer in wrapped.buffers()]
    weight = next(wrapped.parameters())
    # Two of the smallest images: batch normalization needs more than one value per channel.
    outputs = wrapped.train()(torch.zeros(2, 3, side, side, device=weight.device, dtype=weight.dtype))
    sum(value.sum() for output in outputs for value in output.values()).backward()
    wrapped.zero_grad(set_to_none=True)
    for buffer, before in buffers:
        buffer.copy_(before)


class Progress:
    """The moving bar, or with ``--print_iter`` a line now and then, with the reference's status text."""

    def __init__(self, opt, phase: str, epoch: int, length: int, active: bool, done: int = 0) -> None:
        self.opt, self.phase, self.epoch, self.length, self.active = opt, phase, epoch, length, active
        self.begun = done
        self.title = f"{opt.task}/{opt.exp_id}"
        self.bar = Bar(self.title, max=max(length, 1), check_tty=True) if active else None
        if active and done:
            self.bar.index = done
        self.mark = time.perf_counter()
        self.data = self.data_sum = self.total = 0.0

    def data_ready(self) -> None:
        """The next batch is on the device."""
        self.data = time.perf_counter() - self.mark
        self.data_sum += self.data

    def step(self, i: int, averages: dict[str, float]) -> None:
        """Iteration ``i`` (from 0) is done; ``averages`` of the losses so far."""
        now = time.perf_counter()
        self.total += now - self.mark
        self.mark = now
        if not self.active:
            return
        text = f"{self.phase}: [{self.epoch}][{i}/{self.length}]|Tot: {self.bar.elapsed_td} |ETA: {self.bar.eta_td} "
        text += "".join(f"|{name} {value:.4f} " for name, value in averages.items())
        if not self.opt.hide_data_time:
            count = i + 1 - self.begun
            data, net = self.data_sum / count, self.total / count
            text += f"|Data {self.data:.3f}s({data:.3f}s) |Net {net:.3f}s"
        if self.opt.print_iter > 0:
            if i % self.opt.print_iter == 0:
                print(f"{self.title}| {text}", flush=True)
        else:
            self.bar.suffix = text.replace("%", "%%")
            self.bar.next()

    def finish(self) -> None:
        """The epoch is over."""
        if self.active and self.opt.print_iter == 0:
            self.bar.finish()
