"""The state of a training beyond weights and optimizer, part of every checkpoint so that resuming is exact."""

import math
import os
import platform
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError
from ..models.tensors import tensor_problem
from ..options import Options, implied_values, recipe
from ..utils import environment
from ..utils.files import read_json
from ..utils.text import printable
from .processes import Distributed

KEY = "run"  # of the checkpoint's entry
LIMIT = 1 << 53  # larger counts are not those of a training


@dataclass
class TrainingState:
    """State needed for resuming in addition to weights and optimizer. Attribute names are keys of checkpoints.

    Attributes:
        epoch: number of epochs whose training is complete.
        iteration: number of iterations so far, over all epochs.
        done: number of iterations in the current epoch, ``epoch + 1``.
        sums, counted: sums of the losses of those iterations that were finite, and their number.
        seconds: duration of those iterations.
        skipped: number of updates among them that were skipped because a gradient was not finite.
        unusable: indices, in the dataset, of images in them that could not be read.
        unlogged: average losses of ``epoch`` while its validation and its log lines are pending; otherwise None.
        best: best value of the metric so far, by the metric's name.
        stale: number of validations since that one, for ``--patience``.
        plan: what determines the images of an iteration; with another plan a partial epoch cannot be continued.
        recipe: the recipe options the run was started with.
        name: identifier of this run among others in the same folder.
        logs: names of the ``logs_<time>`` folders of this run.
        random: for each process, the states of PyTorch's generators: of the CPU and of its accelerator, if any.
        scaler: state of the loss scaler of ``--amp fp16``.
        ema: with ``--ema``, the averages ``state_dict`` and their number of ``updates``.
    """

    epoch: int = 0
    iteration: int = 0
    done: int = 0
    sums: list[float] = field(default_factory=list)
    counted: int = 0
    seconds: float = 0.0
    skipped: int = 0
    unusable: list[int] = field(default_factory=list)
    unlogged: dict[str, float] | None = None
    best: dict[str, float] = field(default_factory=dict)
    stale: int = 0
    plan: list[int] = field(default_factory=list)
    recipe: dict = field(default_factory=dict)
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    logs: list[str] = field(default_factory=list)
    random: list[list[torch.Tensor]] = field(default_factory=list)
    scaler: dict = field(default_factory=dict)
    ema: dict = field(default_factory=dict)

    @property
    def logged(self) -> int:
        """Return the last epoch that has its lines in ``log.txt`` and ``val_log.csv``."""
        return self.epoch if self.unlogged is None else self.epoch - 1

    def begin_epoch(self, losses: int) -> None:
        """Reset the losses, unless the epoch is continued."""
        if self.done == 0:
            self.sums, self.counted, self.seconds, self.skipped = [0.0] * losses, 0, 0.0, 0
            self.unusable = []

    def end_epoch(self, averages: dict[str, float]) -> None:
        """Count an epoch whose training is complete."""
        self.epoch, self.done, self.unlogged = self.epoch + 1, 0, averages

    def to_dict(self) -> dict:
        """Return plain data and tensors, for the checkpoint."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < LIMIT


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


def _are(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _are_named(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(isinstance(k, str) and check(v) for k, v in value.items())


def _is_plain(value: Any, depth: int = 8) -> bool:
    if isinstance(value, (list, tuple)):
        return depth > 0 and all(_is_plain(item, depth - 1) for item in value)
    if isinstance(value, dict):
        return depth > 0 and all(isinstance(k, str) and _is_plain(item, depth - 1) for k, item in value.items())
    return value is None or isinstance(value, (str, bool, int, float))


def _is_name(value: Any) -> bool:
    """Return whether a value is a file name that stays in its folder."""
    return isinstance(value, str) and value not in ("", ".", "..") and not set(value) & set("/\\\0")


# What an entry must be. Position, losses and scores: the training cannot be continued without them.
_CHECKS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("epoch", "iteration", "done", "counted", "skipped", "stale"), _is_count),
    "sums": _are(_is_finite),
    "seconds": lambda value: _is_finite(value) and value >= 0,
    "unusable": _are(_is_count),
    "unlogged": lambda value: value is None or _are_named(_is_number)(value),
    "best": _are_named(_is_number),
    "plan": _are(lambda value: type(value) is int),
    "recipe": _are_named(_is_plain),
    "name": lambda value: isinstance(value, str),
    "logs": _are(_is_name),
    # Checked where they are used; the training can continue without them.
    "random": lambda value: isinstance(value, list),
    "scaler": lambda value: isinstance(value, dict),
    "ema": lambda value: isinstance(value, dict),
}


def resumed_state(checkpoint: dict, epoch: int, source: str) -> TrainingState:
    """Return the state in a checkpoint; of a file without one, such as the reference's, a state after ``epoch``.

    Raises UserError when an entry of the state cannot be right.
    """
    content = checkpoint.get(KEY)
    if content is None:
        best = checkpoint.get("best", {})
        return TrainingState(epoch=epoch, best=dict(best) if _CHECKS["best"](best) else {})
    what = f"{source}: its entry '{KEY}' does not describe a training"
    if not isinstance(content, dict):
        raise UserError(f"{what}; leave out --resume")
    for name, is_right in _CHECKS.items():
        if name in content and not is_right(content[name]):
            raise UserError(f"{what} ({name} is {str(content[name])[:60]}); leave out --resume")
    state = TrainingState(**{name: content[name] for name in _CHECKS if name in content})
    for wrong, reason in (
        (state.epoch != epoch, f"epoch {state.epoch} differs from the checkpoint's, {epoch}"),
        (state.done > state.iteration, f"{state.done} iterations of an epoch, {state.iteration} in total"),
        (state.counted > state.done and state.unlogged is None and state.done > 0, "more losses than iterations"),
        (state.done > 0 and state.unlogged is not None, "an epoch is both complete and partial"),
    ):
        if wrong:
            raise UserError(f"{what} ({reason}); leave out --resume")
    return state


def check_plan(
    state: TrainingState, plan: list[int], iterations: int, loss_names: Sequence[str] | None = None, log=print
) -> None:
    """Fit a resumed state to this run; a partial epoch that cannot be continued is restarted.

    Args:
        state: changed in place.
        plan: as in ``TrainingState``; its first value is the number of training images.
        iterations: number of iterations per epoch.
        loss_names: names of the loss terms.
        log: called with a line for the user.
    """
    changed = []
    if not state.plan:  # a file without a state
        state.iteration = state.epoch * iterations
    elif state.plan != plan:
        changed.append("data, --batch_size, --seed, --num_iters or --repeat_threshold")
    if loss_names is not None and len(state.sums) not in (0, len(loss_names)):
        changed.append("the terms of the loss")
    if state.done and (changed or state.done >= iterations):
        why = f"{' and '.join(changed) or 'the length of the epoch'} have changed since"
        log(f"epoch {state.epoch + 1} was left after {state.done} iterations, but {why}: it starts again")
        state.iteration -= state.done
        state.done = 0
    state.unusable = [index for index in state.unusable if index < plan[0]]
    state.plan = plan


def check_recipe(state: TrainingState, opt: Options, log=print) -> None:
    """Log options that affect the loss curve and differ from the original run."""
    current, implied = recipe(opt), implied_values(opt.task)
    if not state.recipe:  # a file of the reference does not state its recipe
        implied = {}
    before = {**current, **implied, **state.recipe}
    if opt.resume:  # where the run started from
        current["load_model"], current["pretrained"] = before["load_model"], before["pretrained"]
    now = {**implied, **current}
    changed = [f"{name} {now[name]} ({before[name]} before)" for name in now if now[name] != before[name]]
    if changed:
        log(f"note: this run continues with another recipe: {printable(', '.join(changed))}")
        if opt.resume and opt.lr_schedule == "cosine" and current["num_epochs"] != before["num_epochs"]:
            log("note: the learning rate jumps, because the cosine schedule follows from the number of epochs")
    state.recipe = current


def launch_name() -> str:
    """Return what identifies the launcher that started the processes, also after a restart."""
    if environment.number("GROUP_WORLD_SIZE", 1) > 1:
        return os.environ.get("TORCHELASTIC_RUN_ID", "")
    return f"{platform.node()}:{os.getppid()}"


def follow_restart(opt: Options, env: Distributed, log=print) -> Options:
    """Return the options with which a run continues that the launcher has restarted (``--max-restarts``)."""
    if environment.restarts() == 0 or opt.test or opt.prepare_only:
        return opt
    folder = Path(opt.save_dir)
    last = folder / "model_last.pth"
    try:
        description = read_json(folder / "opt.json")
    except UserError:
        description = None
    launched = description.get("launch") if isinstance(description, dict) else None
    exists = launched == launch_name() and (last.is_file() or last.with_name(f"{last.name}.bak").is_file())
    if env.broadcast(exists):
        log(f"the processes were restarted: resuming from {last}")
        return opt.replace(resume=True, load_model=str(last))
    return opt


def scaler_problem(saved: dict) -> str | None:
    """Return why a saved state of a ``torch.amp.GradScaler`` cannot be used; None if it can."""
    for name, is_right in (
        ("scale", lambda value: _is_finite(value) and value > 0),
        ("growth_factor", lambda value: _is_finite(value) and value > 1),
        ("backoff_factor", lambda value: _is_finite(value) and 0 < value < 1),
        ("growth_interval", lambda value: _is_count(value) and value > 0),
        ("_growth_tracker", _is_count),
    ):
        if not is_right(saved.get(name)):
            return f"{name} is {str(saved.get(name))[:40]}"
    return None


def random_state(device: torch.device) -> list[torch.Tensor]:
    """Return the states of PyTorch's generators that this process uses."""
    states = [torch.get_rng_state()]
    module = torch.get_device_module(device)
    if device.type != "cpu" and hasattr(module, "get_rng_state"):
        states.append(module.get_rng_state(device))
    return states


def set_random_state(states: list[torch.Tensor], device: torch.device) -> str | None:
    """Restore what ``random_state`` has returned. Returns why that is impossible, None if it was done."""
    current = random_state(device)
    if not isinstance(states, list) or not states or len(states) > 2:
        return "is not a list of one or two states"
    for state, own in zip(states, current, strict=False):
        problem = tensor_problem(state, own.shape)
        if problem is not None or state.dtype != torch.uint8:
            return problem or f"has the type {state.dtype}"
    try:
        torch.set_rng_state(states[0].clone())
        if len(states) > 1 and len(current) > 1:
            torch.get_device_module(device).set_rng_state(states[1].clone(), device)
    except RuntimeError as error:  # bytes that no generator has
        return f"is invalid ({str(error).splitlines()[0]})"
    return None
