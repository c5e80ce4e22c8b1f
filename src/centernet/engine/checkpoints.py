"""The checkpoint files of a training: what ``--load_model`` and ``--resume`` read, and what a run writes."""

import contextlib

import torch
from torch import nn

from ..models.weights import read_checkpoint, read_last, restore_training, restore_weights, save_model
from ..options import Options
from .processes import Distributed
from .run_directory import RunDirectory
from .run_state import KEY, TrainingState, resumed_state
from .trainer import Trainer

LAST = "model_last.pth"  # what --resume reads; the previous one is kept as model_last.pth.bak


def load(
    opt: Options, model: nn.Module, optimizer: torch.optim.Optimizer, env: Distributed, log=print
) -> TrainingState:
    """Restore model and optimizer from ``--load_model``, with ``--resume``, and return the training state.

    With ``--resume`` the previous checkpoint is used if the newest is corrupt. One process reads the file, so it need
    not exist on every machine.
    """
    if not opt.load_model:
        return TrainingState()
    found = None
    if env.is_main:
        found = read_last(opt.load_model, log) if opt.resume else (read_checkpoint(opt.load_model), opt.load_model)
    checkpoint, path = env.broadcast(found)
    if not opt.resume:
        restore_weights(model, checkpoint, path, log)
        return TrainingState()
    epoch = restore_training(model, optimizer, checkpoint, path, log)
    return resumed_state(checkpoint, epoch, path) if "optimizer" in checkpoint else TrainingState()


class Checkpoints:
    """Writes the checkpoints of a run: the reference's entries, and what resuming and inference need in addition.

    ``metadata`` is what inference needs to rebuild the model (``options.model_metadata``).
    """

    def __init__(self, metadata: dict, trainer: Trainer, env: Distributed, run: RunDirectory | None) -> None:
        self.metadata, self.trainer, self.env, self.run = metadata, trainer, env, run

    def save(self, name: str = LAST) -> None:
        """Save a resumable checkpoint. Collective: call on every rank; rank 0 writes."""
        self._write(name, {KEY: self.trainer.snapshot()}, self.trainer.optimizer)

    def save_best(self) -> None:
        """Save ``model_best.pth``, without the optimizer; with ``--ema`` the averages, which were validated."""
        with self.trainer.averaged.applied() if self.trainer.averaged is not None else contextlib.nullcontext():
            self._write("model_best.pth", {}, None)

    def _write(self, name: str, content: dict, optimizer: torch.optim.Optimizer | None) -> None:
        if self.run is None:
            return
        self.run.sync()
        state = self.trainer.state
        content = {**content, "best": state.best, "model": self.metadata}
        path = self.run.path / name
        save_model(path, state.epoch, self.trainer.network, optimizer, content, backup=name == LAST)
