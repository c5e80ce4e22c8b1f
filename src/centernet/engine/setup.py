"""The parts of a run, built from its options."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..datasets import get_dataset, read_dataset
from ..datasets.base import CocoStyleDataset
from ..datasets.loader import Samples, TrainBatches, TrainLoader, class_repeat_factors
from ..errors import UserError
from ..evaluation.results import format_score, score_exists
from ..models import create_model, read_checkpoint
from ..models.weights import restore_weights, save_model
from ..options import NEVER, Options, process_shares
from ..tasks.base import Task
from .precision import check_amp, set_precision, warn_if_emulated
from .processes import Distributed
from .run_state import TrainingState

# Scores that the line of an epoch leaves out: recall, and AP by size, which the tables above it and val_log.csv have.
DETAIL = re.compile(r"^(box_)?(AR\d*|A[PR]_(small|medium|large))$")


def configure_backends(opt: Options, env: Distributed) -> None:
    """Seed PyTorch, and set numerical precision and algorithm search. Raises UserError for an impossible ``--amp``."""
    check_amp(opt.amp, env.device)
    warn_if_emulated(opt.amp, env.device, log=env.print)
    named = "gpus" in opt.given and opt.gpus != [-1] and opt.device == "auto"
    if named and env.device.type == "cpu" and (len(opt.gpus) == 1 or env.world_size > 1):  # else engine.launch says so
        env.print(f"note: --gpus {opt.gpus_str}: no accelerator on this machine, so the CPU is used")
    torch.manual_seed(opt.seed)
    set_precision(opt.precision, env.device, log=env.print)
    if opt.precision == "tf32" and env.device.type == "cpu":
        env.print("note: --precision tf32 has no effect on a CPU")
    torch.backends.cudnn.benchmark = not opt.not_cuda_benchmark and not opt.test


def prepare_dataset(opt: Options, env: Distributed) -> None:
    """Convert or generate what the dataset lacks, once per machine."""
    dataset = get_dataset(opt.dataset)
    env.local_main_process_first(lambda: dataset.prepare(dataset.locate(Path(opt.data_dir)), log=env.print))


def build_datasets(task: Task, env: Distributed) -> tuple[CocoStyleDataset | None, CocoStyleDataset | None]:
    """Return the training and the validation split, None for one that the run does not need.

    Raises UserError when images are missing or a batch has more images than the training split.
    """
    opt = task.opt
    train_set = open_split(task, "train", env) if not opt.test else None
    val_set = open_split(task, "val", env) if validates(opt) else None
    if train_set is not None and opt.batch_size > len(train_set):
        raise UserError(f"--batch_size {opt.batch_size}: there are only {len(train_set)} images to train on")
    if env.is_main and train_set is not None and val_set is not None:
        shared = val_set.count_shared_images(train_set)
        if shared:
            env.print(
                f"note: {shared} of the {len(val_set)} validation images are also trained on: scores will be too high"
            )
    return train_set, val_set


def open_split(task: Task, split: str, env: Distributed) -> CocoStyleDataset:
    """Read the annotations of a split, look for its images, and print the notes about it."""
    dataset = read_dataset(task, split, env)
    dataset.check_images_exist()
    for note in dataset.notes:
        env.print(note)
    return dataset


def build_model(opt: Options, env: Distributed) -> nn.Module:
    """Return the network, initialized but not yet on its device; one process per machine downloads weights."""
    pretrained = None if opt.resume else opt.pretrained
    return env.local_main_process_first(
        lambda: create_model(opt.arch, opt.heads, opt.head_conv, pretrained, log=env.print)
    )


def to_device(model: nn.Module, env: Distributed) -> nn.Module:
    """Move a model to its device. Convolutions are faster when the channels of a pixel are adjacent in memory."""
    return model.to(env.device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def load_weights(opt: Options, model: nn.Module, env: Distributed) -> None:
    """Load the weights of ``--load_model``, if it is given; one process reads the file."""
    if opt.load_model:
        checkpoint = env.broadcast(read_checkpoint(opt.load_model) if env.is_main else None)
        restore_weights(model, checkpoint, opt.load_model, log=env.print)


def save_initial_weights(opt: Options, model: nn.Module, metadata: dict[str, Any], env: Distributed) -> None:
    """Write the weights that the training starts from to ``--save_init``, if it is given.

    Trainings with ``--load_model`` of this file start equal on all machines, and see equal batches.

    Args:
        opt: options; with ``--load_model`` those weights are loaded first.
        model: the network, not yet on its device.
        metadata: ``options.model_metadata`` of the network.
        env: the processes, of which rank 0 writes.
    """
    if opt.save_init:
        load_weights(opt, model, env)
        if env.is_main:
            save_model(opt.save_init, 0, model, None, {"model": metadata})
        env.print(f"initial weights: {opt.save_init}")


def build_train_loader(opt: Options, dataset: CocoStyleDataset, env: Distributed) -> TrainLoader:
    """Return the loader of this process's share of the training batches."""
    shares = process_shares(opt, env.world_size)
    factors = class_repeat_factors(dataset, opt.repeat_threshold) if opt.repeat_threshold else None
    batches = TrainBatches(len(dataset), shares, env.rank, opt.seed, opt.num_iters, factors)
    return TrainLoader(Samples(dataset, train=True), batches, opt.num_workers, env.device.type != "cpu")


def sampling_plan(opt: Options, images: int) -> list[int]:
    """Return what determines the images of an iteration, for ``TrainingState.plan``."""
    plan = [images, opt.batch_size, opt.seed, opt.num_iters]
    return plan if not opt.repeat_threshold else [*plan, round(opt.repeat_threshold * 1e6)]


class Metric:
    """The value that selects ``model_best.pth``: the loss, one of its terms, or a score.

    ``--metric`` if it is given, else the main score of the dataset: the loss indicates little about detections.
    """

    def __init__(self, opt: Options, losses: Sequence[str], val_set: CocoStyleDataset | None) -> None:
        """Choose the metric; ``losses`` names the loss and its terms. Raises UserError for an unknown metric."""
        self.name = opt.metric if "metric" in opt.given else opt.main_score
        self.lower_is_better = self.name in (*losses, "time")
        scores = () if val_set is None else val_set.score_names
        if val_set is not None and not self.lower_is_better and self.name not in scores:
            raise UserError(f"--metric {self.name}: choose from {', '.join((*losses, 'time', *scores))}")

    def improve(self, best: dict[str, float], values: dict[str, float]) -> bool:
        """Return whether ``values`` of a validation are the best so far, and if so store them in ``best``."""
        value, before = values[self.name], best.get(self.name)
        # The score of data without any object is not a number, or -1.
        if before is None or not score_exists(before):
            better = True
        else:
            better = value < before if self.lower_is_better else value > before
        if better:
            best.clear()
            best[self.name] = value
        return better


def validates(opt: Options) -> bool:
    """Return whether the run validates at all."""
    return opt.test or 0 < opt.val_intervals < NEVER


def validation_due(opt: Options, epoch: int) -> bool:
    """Return whether an epoch ends with a validation: every ``--val_intervals``-th one does, and the last."""
    return validates(opt) and (epoch % opt.val_intervals == 0 or epoch == opt.num_epochs)


def out_of_patience(opt: Options, state: TrainingState) -> bool:
    """Return whether ``--patience`` validations in a row were no better than the best one before them.

    After resuming with another ``--metric`` they are counted again from zero.
    """
    return 0 < opt.patience <= state.stale and opt.metric in state.best


def format_metrics(values: dict[str, float], per_class: bool = False) -> str:
    """Return losses and scores in one line; with ``per_class`` all scores, followed by a line for each class."""
    shown = [name for name in values if "/" not in name and (per_class or not DETAIL.search(name))]
    line = " | ".join(f"{name} {format_score(values[name])}" for name in shown)
    classes = [f"{name} {format_score(value)}" for name, value in values.items() if "/" in name] if per_class else []
    return "\n".join([line, *classes])


def describe_run(opt: Options, images: int, iterations: int, env: Distributed) -> str:
    """Return what a training is about to do, in one line."""
    return (
        f"{opt.task}/{opt.exp_id}: {opt.arch} on {opt.dataset}, {images} images, input {opt.input_w} x {opt.input_h}, "
        f"{opt.num_epochs} epochs of {iterations} iterations of {opt.batch_size} images, "
        f"{env.world_size} process(es) on {env.device.type}"
    )


def describe_resume(state: TrainingState, opt: Options) -> str:
    """Return where a resumed training continues: epoch and iteration, both from 1."""
    if state.logged >= opt.num_epochs:
        return f"already trained for {state.logged} epochs; --num_epochs {opt.num_epochs} leaves none to train"
    if state.unlogged is not None:
        return f"resuming at the validation of epoch {state.epoch}"
    return f"resuming at epoch {state.epoch + 1}, iteration {state.done + 1}"
