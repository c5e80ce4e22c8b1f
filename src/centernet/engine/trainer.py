"""The training step, the epoch, and validation. The same for every task."""

import time
import warnings

import torch
from progress.bar import Bar
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from ..datasets.base import CocoStyleDataset
from ..datasets.loader import EvalBatches, Samples, finish_batch, make_loader, to_device
from ..errors import UserError
from ..opts import LOSS_WEIGHTS, process_shares
from ..visualization import show_or_save
from .precision import Precision
from .processes import Processes
from .run_folder import RunFolder

FLUSH = 10  # iterations between two looks at the losses: the device is not waited for in between


class Trainer:
    """Trains and validates a network.

    Attributes:
        model: the network, in a distributed wrapper if there are several processes.
        iteration: training iterations done so far, over all epochs.
        images_per_second: of all epochs of training so far, validation left out.
    """

    def __init__(
        self, opt, task, model: nn.Module, optimizer: torch.optim.Optimizer, processes: Processes, run: RunFolder | None
    ) -> None:
        self.opt, self.task, self.optimizer, self.processes, self.run = opt, task, optimizer, processes, run
        self.network = model
        self.precision = Precision(opt.amp, processes.device)
        self.model = distribute(model, opt, processes)
        self.loss = task.Loss(opt)
        self.loss.total = processes.sum
        self.local_loss = task.Loss(opt)
        self.iteration = 0
        self.pin_memory = processes.device.type != "cpu"
        self.trained_images, self.trained_seconds = 0, 0.0

    @property
    def images_per_second(self) -> float:
        return self.trained_images / max(self.trained_seconds, 1e-9)

    def step(self, batch: dict) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """One update from a finished batch. Returns the network's outputs and this process's share of the losses."""
        outputs = self.precision.forward(self.model, batch["input"])
        loss, parts = self.loss(outputs, batch)
        self.optimizer.zero_grad(set_to_none=True)
        # The wrapper averages the gradients over the processes; the shares have to be added up instead.
        self.precision.update(loss * self.processes.count, self.optimizer)
        return outputs, parts

    def train(self, epoch: int, loader: DataLoader) -> dict[str, float]:
        """One epoch. Returns the averages of the loss parts, and ``time`` in minutes."""
        self.model.train()
        progress = Progress(self.opt, "train", epoch, len(loader), self.processes.is_main)
        names, sums, done = self.loss.names, torch.zeros(len(self.loss.names), dtype=torch.float64), 0
        updates_before = self.precision.updates(self.optimizer)
        waiting: list[Tensor] = []
        flushed = started = time.perf_counter()
        for i, batch in enumerate(loader):
            batch = finish_batch(to_device(batch, self.processes.device), self.task, self.opt)
            progress.data_ready()
            outputs, parts = self.step(batch)
            waiting.append(torch.stack([parts[name].detach().float() for name in names]))
            if self.opt.debug > 0:
                self._show(batch, outputs[-1], f"{epoch}_{i}_")
            if len(waiting) == FLUSH or i + 1 == len(loader) or self.opt.print_iter > 0:
                values = self.processes.sum(torch.stack(waiting)).cpu()
                now = time.perf_counter()
                speed = self.opt.batch_size * len(waiting) / (now - flushed)
                self._record(epoch, values, speed)
                sums += values.double().sum(0)
                done += len(waiting)
                waiting, flushed = [], now
            progress.step(i, {name: value / max(done, 1) for name, value in zip(names, sums.tolist(), strict=True)})
        progress.finish()
        updates = self.precision.updates(self.optimizer)
        if updates is not None and (left_out := len(loader) - (updates - updates_before)):
            self.processes.print(
                f"epoch {epoch}: {left_out} of {len(loader)} updates were left out, their gradients were not finite in "
                f"16 bits (--amp {self.opt.amp}); a few at the start are normal"
            )
        seconds = time.perf_counter() - started
        self.trained_images += self.opt.batch_size * len(loader)
        self.trained_seconds += seconds
        averages = {name: value / max(done, 1) for name, value in zip(names, sums.tolist(), strict=True)}
        return {**averages, "time": seconds / 60}

    def _record(self, epoch: int, values: Tensor, speed: float) -> None:
        """Write the losses of the last iterations; end the run when one is not a number."""
        lr = self.optimizer.param_groups[0]["lr"]
        rows = [(epoch, self.iteration + k + 1, row, lr, speed) for k, row in enumerate(values.tolist())]
        self.iteration += len(rows)
        if self.run is not None:
            self.run.write_losses(rows)
        for _, iteration, row, _, _ in rows:
            if not torch.tensor(row).isfinite().all():
                parts = ", ".join(f"{name} {value:g}" for name, value in zip(self.loss.names, row, strict=True))
                raise UserError(
                    f"iteration {iteration} of epoch {epoch}: the loss is not finite ({parts}); try a lower --lr"
                )

    def evaluate(self, epoch: int, dataset: CocoStyleDataset) -> dict[str, float]:
        """Validate, write results.json, and score it as the data set does.

        Returns:
            Average losses, ``time`` in minutes, and scores in [0, 1], by name; the same on all processes.
        """
        opt, processes = self.opt, self.processes
        # Pictures of one size go through together; with --keep_res each has its own.
        batch_size = 1 if opt.keep_res else max(process_shares(opt, processes.count))
        batches = EvalBatches(len(dataset), batch_size, processes.rank, processes.count, opt.num_iters)
        workers = min(opt.num_workers, len(batches))
        loader = make_loader(Samples(dataset, opt, train=False), batches, workers, self.pin_memory)
        losses, results = self.validate(epoch, loader)
        scores = {}
        if self.run is not None:
            dataset.save_results(results, self.run.path / "results.json")
            scores = dataset.evaluate(results)
        return processes.share({**losses, **scores})

    @torch.no_grad()
    def validate(self, epoch: int, loader: DataLoader) -> tuple[dict[str, float], dict | None]:
        """Losses and detections of the validation pictures.

        Returns:
            The averages over pictures of each picture's loss parts, and ``time`` in minutes; and on rank 0 the
            results ``{image id: {class from 1: rows}}``.
        """
        self.processes.share_buffers(self.network)
        self.network.eval()
        progress = Progress(self.opt, "val", epoch, len(loader), self.processes.is_main)
        names = self.local_loss.names
        sums, count = torch.zeros(len(names), dtype=torch.float64), 0
        results: dict[int, dict] = {}
        started = time.perf_counter()
        for i, batch in enumerate(loader):
            batch = finish_batch(to_device(batch, self.processes.device), self.task, self.opt)
            progress.data_ready()
            outputs = self.precision.forward(self.network, batch["input"])
            values = torch.stack([self._picture_loss(outputs, batch, k) for k in range(len(batch["input"]))])
            sums += values.sum(0).cpu().double()
            count += len(values)
            dets = self.task.decode(self.task.with_oracle(outputs[-1], batch, self.opt), self.opt)
            metas = batch["meta"]
            for meta, detections in zip(metas, self.task.post_process(dets, metas, self.opt), strict=True):
                results[meta["img_id"]] = detections
            if self.opt.debug > 0:
                self._show(batch, outputs[-1], f"{epoch}_val_{i}_")
            progress.step(i, {name: value / count for name, value in zip(names, sums.tolist(), strict=True)})
        progress.finish()
        total = torch.tensor([*sums.tolist(), count], dtype=torch.float64)
        total = self.processes.sum(total)
        averages = dict(zip(names, (total[:-1] / total[-1].clamp(min=1)).tolist(), strict=True))
        parts = self.processes.gather(results)
        merged = {key: value for part in parts for key, value in part.items()} if parts else None
        return {**averages, "time": (time.perf_counter() - started) / 60}, merged

    def _picture_loss(self, outputs: list[dict[str, Tensor]], batch: dict, k: int) -> Tensor:
        """The loss parts of one picture of a batch, as if it had come alone."""
        one = [{name: value[k : k + 1] for name, value in output.items()} for output in outputs]
        alone = {name: value[k : k + 1] for name, value in batch.items()}
        _, parts = self.local_loss(one, alone)
        return torch.stack([parts[name].float() for name in self.local_loss.names])

    def _show(self, batch: dict, output: dict[str, Tensor], name: str) -> None:
        """Show or save what the network sees, for ``--debug``."""
        pictures = self.task.debug_pictures(batch, self.task.with_oracle(output, batch, self.opt), self.opt)
        show_or_save(pictures, self.opt.debug_dir, name, show=self.opt.debug < 4)


def distribute(model: nn.Module, opt, processes: Processes) -> nn.Module:
    """Wrap the network for several processes; alone it stays as it is."""
    if processes.count == 1:
        return model
    for name in getattr(model, "unused_parameters", ()):
        model.get_parameter(name).requires_grad_(False)  # it never gets a gradient, and the wrapper would wait for one
    if opt.sync_bn:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    # Heads whose loss is switched off get no gradient, which the wrapper has to be told.
    switched_off = any(getattr(opt, name) == 0 for name in LOSS_WEIGHTS) or any(
        value for name, value in vars(opt).items() if name.startswith("eval_oracle_")
    )
    with warnings.catch_warnings():
        # Its successor, which the newest PyTorch recommends, does not exist in the oldest that is supported.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return DistributedDataParallel(
            model,
            device_ids=None if processes.device.type == "cpu" else [processes.device.index],
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            find_unused_parameters=switched_off,
        )


class Progress:
    """The moving bar, or with ``--print_iter`` a line now and then, with the reference's status text."""

    def __init__(self, opt, phase: str, epoch: int, length: int, active: bool) -> None:
        self.opt, self.phase, self.epoch, self.length, self.active = opt, phase, epoch, length, active
        self.title = f"{opt.task}/{opt.exp_id}"
        self.bar = Bar(self.title, max=max(length, 1), check_tty=True) if active else None
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
            data, net = self.data_sum / (i + 1), self.total / (i + 1)
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
