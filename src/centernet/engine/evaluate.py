"""Validation: losses and detections of a dataset's images, and the dataset's scores."""

import time
from typing import Any

import torch
from torch import Tensor, nn

from ..datasets.base import CocoStyleDataset
from ..datasets.loader import EvalBatches, Samples, SkippedImages, finish_batch, make_loader, no_detections, to_device
from ..errors import UserError
from ..evaluation.results import drop_non_finite, dropped_note
from ..options import Options, process_shares
from ..tasks.base import Task
from ..visualization import build_visualizer, show_or_save
from .precision import MixedPrecision
from .processes import Distributed
from .progress import Progress
from .run_directory import RunDirectory

Results = dict[Any, dict[int, Any]]  # image id to class id from 1 to rows


def evaluate(
    opt: Options,
    task: Task,
    model: nn.Module,
    dataset: CocoStyleDataset,
    env: Distributed,
    run: RunDirectory | None = None,
    epoch: int = 0,
) -> dict[str, float]:
    """Validate a model, write ``results.json``, and score it as the dataset does. Call it on all processes.

    Args:
        opt: the options.
        task: the task.
        model: the unwrapped network on its device.
        dataset: the validation images.
        env: the processes of the run.
        run: run directory on rank 0, None on the others.
        epoch: number of the epoch, for messages.

    Returns:
        Average losses, ``time`` in minutes, and scores in [0, 1], by name; the same on all processes.
    """
    losses, results = predict(opt, task, model, dataset, env, run, epoch)
    scores: dict[str, float] = {}
    if run is not None:
        path = run.path / "results.json"
        results, dropped = drop_non_finite(results or {})
        if dropped:
            env.print(dropped_note(dropped))
        try:
            dataset.save_results(results, path)
        except OSError as error:
            raise UserError(f"{error.filename or path}: results cannot be written ({error.strerror})") from error
        dataset.scored_images = results if len(results) < len(dataset) else None
        scores = dataset.evaluate(results)
        if dataset.tables:
            env.print(dataset.tables)
        run.validated = (dataset, results)
    env.barrier()  # scoring may take long
    return env.broadcast({**losses, **scores})


@torch.no_grad()
def predict(
    opt: Options,
    task: Task,
    model: nn.Module,
    dataset: CocoStyleDataset,
    env: Distributed,
    run: RunDirectory | None,
    epoch: int,
) -> tuple[dict[str, float], Results | None]:
    """Compute losses and detections of a dataset's images. Call it on all processes.

    Returns:
        The averages over images of each image's losses, and ``time`` in minutes; and on rank 0 the detections,
        ``{image id: {class id from 1: rows}}``.
    """
    precision, criterion = MixedPrecision(opt.amp, env.device), task.criterion(opt)
    # Images of one size are batched; with --keep_res each image has its own size.
    batch_size = 1 if opt.keep_res else max(process_shares(opt, env.world_size))
    loader = _eval_loader(opt, dataset, env, batch_size)
    env.broadcast_buffers(model)
    model.eval()
    progress = Progress(opt, "val", epoch, len(loader), batch_size * env.world_size, env.is_main)
    sums, count = torch.zeros(len(criterion.names), dtype=torch.float64), 0
    results: Results = {}
    skipped = SkippedImages(dataset)
    started = time.perf_counter()
    for i, batch in enumerate(loader):
        usable = skipped.add(batch)
        batch = finish_batch(to_device(batch, env.device), task)
        progress.data_ready()
        outputs = precision.forward(model, batch["input"])
        values = torch.stack([_image_losses(criterion, outputs, batch, k) for k in range(len(batch["input"]))])
        sums += values.cpu()[usable].sum(0).double()
        count += int(usable.sum())
        dets = task.decode(criterion.with_oracle(outputs[-1], batch))
        detections = task.postprocess(dets, batch["meta"])
        for meta, found, seen in zip(batch["meta"], detections, usable.tolist(), strict=True):
            results[meta["img_id"]] = found if seen else no_detections(found)
        if opt.debug > 0:
            show_maps(opt, task, batch, outputs[-1], f"{epoch}_val_{i}_")
        progress.step(i, dict(zip(criterion.names, (sums / max(count, 1)).tolist(), strict=True)))
    progress.finish()
    report_skipped(skipped, f"epoch {epoch}, validation (scored as if nothing was found)", env, run)
    total = env.sum(torch.tensor([*sums.tolist(), count], dtype=torch.float64))
    averages = dict(zip(criterion.names, (total[:-1] / total[-1].clamp(min=1)).tolist(), strict=True))
    parts = env.gather(results)
    merged = {key: value for part in parts for key, value in part.items()} if parts else None
    return {**averages, "time": (time.perf_counter() - started) / 60}, merged


def report_skipped(skipped: SkippedImages, title: str, env: Distributed, run: RunDirectory | None) -> None:
    """Print which images of an epoch could not be used by any of the processes."""
    indices = [index for part in env.gather(skipped.indices) or [] for index in part]
    if indices:
        env.print(skipped.report(title, indices, run.path / "skipped_images.txt" if run is not None else None))


def show_maps(opt: Options, task: Task, batch: dict, output: dict[str, Tensor], name: str) -> None:
    """Show or save targets and predictions of a batch, for ``--debug``."""
    images = build_visualizer(task).training_images(batch, task.criterion(opt).with_oracle(output, batch))
    show_or_save(images, opt.debug_dir, name, show=opt.debug < 4)


def _eval_loader(opt: Options, dataset: CocoStyleDataset, env: Distributed, batch_size: int):
    batches = EvalBatches(len(dataset), batch_size, env.rank, env.world_size, opt.num_iters)
    workers = min(opt.num_workers, len(batches))
    return make_loader(Samples(dataset, train=False), batches, workers, env.device.type != "cpu")


def _image_losses(criterion, outputs: list[dict[str, Tensor]], batch: dict, k: int) -> Tensor:
    """Return the losses of image ``k`` of a batch, as if it were a batch by itself."""
    one = [{name: value[k : k + 1] for name, value in output.items()} for output in outputs]
    alone = {name: value[k : k + 1] for name, value in batch.items()}
    _, terms = criterion(one, alone)
    return torch.stack([terms[name].float() for name in criterion.names])
