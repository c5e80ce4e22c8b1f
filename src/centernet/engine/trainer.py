"""Training: a single update and the loop over an epoch, the same for every task."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ..datasets.loader import SkippedImages, TrainLoader, finish_batch, to_device
from ..errors import UserError
from ..options import Options, learning_rate
from .averaging import ModelEma
from .ddp import distribute, without_effect
from .evaluate import report_skipped, show_maps
from .nan_guard import NanGuard
from .optim import frozen_modules, keep_frozen_in_eval, set_learning_rate
from .precision import MixedPrecision
from .processes import Distributed
from .progress import Progress
from .run_directory import RunDirectory
from .run_state import TrainingState, random_state, scaler_problem, set_random_state
from .signals import STOP, ShutdownHandler, ShutdownRequested

FLUSH = 10  # read losses back at most every FLUSH iterations, to avoid a device sync on every step
PATIENCE = 1.0  # seconds between two reads where iterations are slower than that
CONTINUE, SAVE = 0, -1  # what a read of the losses requests, if it is not the number of a signal


class Trainer:
    """A model, its optimizer and what else changes with every update.

    Attributes:
        network: the model itself.
        frozen: names of the modules that ``--freeze`` keeps as they are.
        model: the model in its distributed wrapper, if there are several processes; otherwise the same.
        loss: the criterion of the task.
        averaged: exponential moving average of the weights (``--ema``), or None.
        state: the position of the training.
        nan_guard: what to do about losses that are not finite.
        saved: time of the last checkpoint within an epoch.
        images_per_second: over all epochs so far, without validation.
    """

    def __init__(
        self,
        opt: Options,
        task,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        env: Distributed,
        state: TrainingState | None = None,
    ) -> None:
        self.opt, self.task, self.optimizer, self.env = opt, task, optimizer, env
        self.state = state or TrainingState()
        self.network = model
        self.frozen = frozen_modules(opt)
        self.precision = MixedPrecision(opt.amp, env.device, skip_bad=opt.on_nan == "skip", clip_grad=opt.clip_grad)
        self.averaged = ModelEma(model, opt.ema) if opt.ema else None
        self.model = distribute(model, opt, env)
        if opt.compile:
            model.compile()
        self.loss = task.criterion(opt)
        self.nan_guard = NanGuard(opt, env)
        self.trained_images, self.trained_seconds = 0, 0.0
        self.saved = time.monotonic()

    @property
    def images_per_second(self) -> float:
        return self.trained_images / max(self.trained_seconds, 1e-9)

    def step(self, batch: dict) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Make one update from a finished batch; return the network's outputs and this process's share of the losses.

        With ``--accumulate`` the outputs are those of the first micro-batch, the losses those of all.
        """
        counts = self.env.sum(self.loss.normalizers(batch))
        micro_batches = split(batch, self.opt.accumulate)
        self.optimizer.zero_grad(set_to_none=True)
        first: list[dict[str, Tensor]] = []
        sums: dict[str, Tensor] = {}
        with self.precision.rollback_if_skipped(self.network):
            for k, micro_batch in enumerate(micro_batches):
                # The processes exchange gradients once, with those of the last micro-batch.
                local = k + 1 < len(micro_batches) and self.env.world_size > 1
                with self.model.no_sync() if local else contextlib.nullcontext():  # type: ignore[operator]
                    outputs = self.precision.forward(self.model, micro_batch["input"])
                    loss, terms = self.loss(outputs, micro_batch, counts)
                    if not loss.requires_grad:
                        raise UserError("--eval_oracle_*: replace all that the network learns; they are for --test")
                    if self.env.world_size > 1:
                        loss = loss + without_effect(outputs)
                    # The wrapper averages the gradients over the processes; the shares have to be summed instead.
                    with contextlib.nullcontext() if local else self.env.collective():
                        self.precision.backward(loss * self.env.world_size)
                first = first or outputs
                sums = {name: value.detach() + sums.get(name, 0) for name, value in terms.items()}
            self.precision.update(self.optimizer)
        if self.averaged is not None:
            self.averaged.update()
        return first, sums

    @contextlib.contextmanager
    def evaluation_model(self) -> Iterator[nn.Module]:
        """Yield the model to validate, with ``--ema`` using the averaged weights."""
        with self.averaged.applied() if self.averaged is not None else contextlib.nullcontext():
            yield self.network

    def snapshot(self) -> dict:
        """Return the state of the training for a checkpoint. Collective: call on all processes."""
        state = self.state
        parts = self.env.gather((random_state(self.env.device), state.unusable)) or []
        state.random = [random for random, _ in parts]
        # In place: the epoch continues to add to it.
        state.unusable[:] = sorted(set(state.unusable).union(*(unusable for _, unusable in parts)))
        state.scaler = self.precision.scaler.state_dict()
        if self.averaged is not None:
            state.ema = {"updates": self.averaged.updates, "state_dict": self.averaged.state}
        return state.to_dict()

    def resume(self) -> None:
        """Restore random generators, loss scale and averages from a resumed state; log what cannot be used."""
        state, log = self.state, self.env.print
        if len(state.random) == self.env.world_size:  # with a different world size the continuation is not exact
            if problem := set_random_state(state.random[self.env.rank], self.env.device):
                log(f"warning: the random state of the checkpoint {problem}; seeded from --seed instead")
        if state.scaler and self.precision.scaler.is_enabled():
            if problem := scaler_problem(state.scaler):
                log(f"warning: the loss scale of the checkpoint cannot be used ({problem}); it starts again")
            else:
                self.precision.scaler.load_state_dict(state.scaler)
        if self.averaged is None and state.ema:
            log("note: without --ema the running averages of the checkpoint are dropped; the weights are validated")
        if self.averaged is not None and not state.ema and state.iteration:
            log(f"note: --ema {self.opt.ema:g}: the checkpoint has no running averages; they start from its weights")
        if state.ema and self.averaged is not None:
            if problems := self.averaged.load(state.ema):
                shown = ", ".join(problems[:4]) + (f" ... {len(problems)} in all" if len(problems) > 4 else "")
                log(f"warning: running averages of the checkpoint reinitialized from the weights: {shown}")
        state.ema = {}  # the next checkpoint stores the current averages


def train_one_epoch(
    trainer: Trainer,
    epoch: int,
    loader: TrainLoader,
    run: RunDirectory | None = None,
    shutdown: ShutdownHandler | None = None,
    save: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Train an epoch, or what is left of it. Call it on all processes.

    Args:
        trainer: what is trained.
        epoch: number of the epoch, from 1.
        loader: the training batches.
        run: run directory on rank 0, None on the others.
        shutdown: what signals have requested.
        save: writes a checkpoint; called on all processes.

    Returns:
        The averages of the losses, and ``time`` in minutes.

    Raises:
        ShutdownRequested: a signal, after a checkpoint.
        UserError: a loss is not finite (``--on_nan stop``).
    """
    opt, state, env, names = trainer.opt, trainer.state, trainer.env, trainer.loss.names
    trainer.model.train()
    keep_frozen_in_eval(trainer.network, trainer.frozen)
    loader.batch_sampler.epoch, loader.batch_sampler.start = epoch, state.done
    state.begin_epoch(len(names))
    first, seconds_before = state.done, state.seconds
    progress = Progress(opt, "train", epoch, len(loader), opt.batch_size, env.is_main, first)
    reader = LossReader(trainer, epoch, loader, run, shutdown or ShutdownHandler())
    skipped = SkippedImages(loader.dataset.dataset, state.unusable)
    for i, batch in enumerate(loader, first):
        skipped.add(batch)
        batch = finish_batch(to_device(batch, env.device), trainer.task)
        progress.data_ready()
        set_learning_rate(trainer.optimizer, learning_rate(opt, epoch, i, len(loader)))
        outputs, losses = trainer.step(batch)
        reader.add(losses)
        if opt.debug > 0:
            show_maps(opt, trainer.task, batch, outputs[-1], f"{epoch}_{i}_")
        last = i + 1 == len(loader)
        if reader.is_due or last or opt.print_iter > 0:
            request = reader.read()
            if request != CONTINUE and not last:
                progress.clear()
                save_within_epoch(trainer, request, epoch, i + 1, save)
        progress.step(i, _averages(trainer))
    progress.finish()
    report_skipped(skipped, f"epoch {epoch}, training (replaced by the next readable image)", env, run)
    if state.skipped:
        why = " in float16 (--amp fp16); a few at the start are normal" if opt.amp == "fp16" else ""
        env.print(
            f"epoch {epoch}: {state.skipped} of {len(loader)} updates were skipped, because their gradients were not "
            f"finite{why}"
        )
    trainer.trained_images += opt.batch_size * (len(loader) - first)
    trainer.trained_seconds += state.seconds - seconds_before
    return {**_averages(trainer), "time": state.seconds / 60}


def save_within_epoch(trainer: Trainer, request: int, epoch: int, iterations: int, save: Callable[[], None]) -> None:
    """Save a mid-epoch checkpoint; stop afterwards if a signal requested it."""
    save()
    trainer.saved = time.monotonic()
    if request == SAVE:
        trainer.env.print(f"epoch {epoch}: checkpoint after iteration {iterations}")
        return
    trainer.env.barrier()  # no process leaves while the checkpoint is being written
    name, file = signal.Signals(request).name, f"{trainer.opt.save_dir}/model_last.pth"
    raise ShutdownRequested(
        request, f"stopped by {name} after iteration {iterations} of epoch {epoch}; --resume continues from {file}"
    )


class LossReader:
    """Reads losses back from the device every few iterations, sums them over the processes, and records them."""

    def __init__(
        self, trainer: Trainer, epoch: int, loader: TrainLoader, run: RunDirectory | None, shutdown: ShutdownHandler
    ) -> None:
        self.trainer, self.epoch, self.loader, self.run, self.shutdown = trainer, epoch, loader, run, shutdown
        self.pending: list[Tensor] = []
        self.interval, self.last_read = 1, time.perf_counter()
        self.first, self.skipped_before = trainer.state.done, trainer.state.skipped
        self.updates_before = trainer.precision.updates(trainer.optimizer)

    @property
    def is_due(self) -> bool:
        return len(self.pending) >= self.interval

    def add(self, losses: dict[str, Tensor]) -> None:
        """Add the losses of an iteration, which stay on the device."""
        self.pending.append(torch.stack([losses[name].detach().float() for name in self.trainer.loss.names]))

    def read(self) -> int:
        """Read and record the pending losses. Returns a request: CONTINUE, SAVE, or the number of a signal."""
        state, precision = self.trainer.state, self.trainer.precision
        values, seconds, request = self._gather(time.perf_counter() - self.last_read)
        self.last_read, self.pending = time.perf_counter(), []
        self.interval = max(1, min(FLUSH, round(PATIENCE * len(values) / max(seconds, 1e-9))))
        self.record(values, self.trainer.opt.batch_size * len(values) / max(seconds, 1e-9))
        state.seconds += seconds
        updates = precision.updates(self.trainer.optimizer)
        if updates is not None and self.updates_before is not None:
            state.skipped = self.skipped_before + (state.done - self.first) - (updates - self.updates_before)
        return request

    def _gather(self, seconds: float) -> tuple[Tensor, float, int]:
        """Return the losses (iterations, terms) of all processes, the mean of their times, and what is requested.

        All processes come to the same answer: a signal may have reached one of them before the others.
        """
        env, shutdown, losses = self.trainer.env, self.shutdown, torch.stack(self.pending)
        minutes = (time.monotonic() - self.trainer.saved) / 60
        save = shutdown.save or (env.is_main and 0 < self.trainer.opt.save_minutes <= minutes)
        shutdown.save = False
        flags = [seconds, float(save), *(float(shutdown.stop == number) for number in STOP)]
        with env.collective():  # the device, too, may be waiting for another process
            total = env.sum(torch.cat([losses.flatten(), losses.new_tensor(flags)])).cpu()
        seconds, save, *stops = total[losses.numel() :].tolist()
        stop = next((int(number) for number, count in zip(STOP, stops, strict=True) if count), CONTINUE)
        request = stop or (SAVE if save else CONTINUE)
        return total[: losses.numel()].view(losses.shape), seconds / env.world_size, request

    def record(self, values: Tensor, speed: float) -> None:
        """Log and add up losses (iterations, terms), and look for one that is not finite."""
        trainer, state, names = self.trainer, self.trainer.state, self.trainer.loss.names
        finite, opt, length = values.isfinite().all(1).tolist(), trainer.opt, len(self.loader)
        rows = [
            (self.epoch, state.iteration + k + 1, row, learning_rate(opt, self.epoch, state.done + k, length), speed)
            for k, row in enumerate(values.tolist())
        ]
        if self.run is not None:
            self.run.write_losses(rows)
        for good, (_, iteration, row, _, _) in zip(finite, rows, strict=True):
            if good:
                state.sums = [total + value for total, value in zip(state.sums, row, strict=True)]
                state.counted += 1
                trainer.nan_guard.finite()
            else:
                losses = dict(zip(names, row, strict=True))
                trainer.nan_guard.not_finite(self.epoch, iteration, state.done, losses, self.loader)
            state.iteration, state.done = iteration, state.done + 1


def _averages(trainer: Trainer) -> dict[str, float]:
    """Return the average losses of the epoch so far."""
    state = trainer.state
    return {name: value / max(state.counted, 1) for name, value in zip(trainer.loss.names, state.sums, strict=True)}


def split(batch: dict, count: int) -> list[dict]:
    """Split a batch into at most ``count`` micro-batches of about one size; what belongs to all goes into each."""
    size = len(batch["input"])
    ends = [size * k // count for k in range(count + 1)]
    return [
        {name: value if name == "num_target_pixels" else value[a:b] for name, value in batch.items()}
        for a, b in zip(ends, ends[1:], strict=False)
        if a < b
    ]
