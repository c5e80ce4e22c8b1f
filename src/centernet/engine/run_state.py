"""Where a training stands. It is part of every checkpoint, so that ``--resume`` goes on as if nothing had happened."""

import json
import os
import platform
import uuid
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch

from ..errors import UserError
from ..options import Options, recipe
from .processes import Processes

KEY = "run"  # of the checkpoint's entry


@dataclass
class TrainingState:
    """What resuming needs to know besides weights and optimizer.

    Attributes:
        epoch: epochs whose training is complete.
        iteration: iterations so far, over all epochs.
        done: iterations of the epoch that has begun, ``epoch + 1``.
        sums, counted: the losses of those ``done``, added up, and how many of them were finite.
        seconds: how long they took.
        skipped: updates that were left out in them, because something was not finite.
        unusable: numbers, in the dataset, of images that could not be used in them.
        unlogged: the averages of ``epoch`` while its validation and its lines in the logs are still to come.
        best: the best value of the metric so far, by the metric's name.
        plan: what decides which images an iteration sees; in another plan a half-done epoch cannot be continued.
        recipe: of the options the run was started with.
        name: of this run, among others that had the same folder.
        logs: the ``logs_<time>`` folders of this run.
        random: of each process, the states of PyTorch's generators: of the CPU and of its accelerator, if it has one.
        scaler: the loss scale of ``--amp fp16``.
        ema: of ``--ema`` the averages, ``state_dict``, and their ``updates``.
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
    plan: list[int] = field(default_factory=list)
    recipe: dict = field(default_factory=dict)
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    logs: list[str] = field(default_factory=list)
    random: list[list[torch.Tensor]] = field(default_factory=list)
    scaler: dict = field(default_factory=dict)
    ema: dict = field(default_factory=dict)

    @property
    def logged(self) -> int:
        """The last epoch that has its lines in ``log.txt`` and ``val_log.csv``."""
        return self.epoch if self.unlogged is None else self.epoch - 1

    def begin_epoch(self, losses: int) -> None:
        """Forget the losses of the epoch before."""
        if self.done == 0:
            self.sums, self.counted, self.seconds, self.skipped = [0.0] * losses, 0, 0.0, 0
            self.unusable = []

    def end_epoch(self, averages: dict[str, float]) -> None:
        """The training of an epoch is complete."""
        self.epoch, self.done, self.unlogged = self.epoch + 1, 0, averages

    def to_dict(self) -> dict:
        """Plain data and tensors, for the checkpoint."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}


def resumed_state(checkpoint: dict, epoch: int, source: str) -> TrainingState:
    """The state in a checkpoint; of a file without one, such as the reference's, a state that begins after ``epoch``.

    Raises UserError when what the file holds is no state.
    """
    content = checkpoint.get(KEY)
    if content is None:
        return TrainingState(epoch=epoch, best=dict(checkpoint.get("best", {})))
    expected = {name: type(value) for name, value in asdict(TrainingState(unlogged={})).items()}
    fits = isinstance(content, dict) and all(
        name not in content or isinstance(content[name], (kind, type(None)) if name == "unlogged" else kind)
        for name, kind in expected.items()
    )
    if not fits:
        raise UserError(f"{source}: its entry '{KEY}' does not describe a training; leave out --resume")
    return TrainingState(**{name: value for name, value in content.items() if name in expected})


def check_plan(state: TrainingState, plan: list[int], iterations: int, log=print) -> None:
    """Fit a resumed state to this run: ``plan`` as in ``TrainingState``, ``iterations`` of an epoch."""
    if not state.plan:  # a file that does not say
        state.iteration = state.epoch * iterations
    elif state.done and state.plan != plan:
        log(
            f"epoch {state.epoch + 1} was left after {state.done} iterations, but data, --batch_size, --seed or "
            "--num_iters have changed since: it starts anew"
        )
        state.iteration -= state.done
        state.done = 0
    state.plan = plan


def check_recipe(state: TrainingState, opt, log=print) -> None:
    """Say which options that change the curve are not those the run was started with."""
    now = recipe(opt)
    before = {**now, **state.recipe}
    if opt.resume:
        now["load_model"], now["pretrained"] = before["load_model"], before["pretrained"]  # where it started from
    changed = [f"{name} {now[name]} ({before[name]} before)" for name in now if now[name] != before[name]]
    if changed:
        log(f"note: this run goes on with another recipe: {', '.join(changed)}")
    state.recipe = now


def launch_name() -> str:
    """What the processes have in common that one launcher starts, also when it starts them anew."""
    if int(os.environ.get("GROUP_WORLD_SIZE", 1)) > 1:
        return os.environ.get("TORCHELASTIC_RUN_ID", "")
    return f"{platform.node()}:{os.getppid()}"


def follow_restart(opt: Options, processes: Processes, log=print) -> Options:
    """Return the options with which a run continues that the launcher has restarted (``--max-restarts``)."""
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) == 0 or opt.test or opt.prepare_only:
        return opt
    folder = Path(opt.save_dir)
    last = folder / "model_last.pth"
    try:
        launched = json.loads((folder / "opt.json").read_text()).get("launch")
    except (OSError, ValueError, AttributeError):
        launched = None
    there = launched == launch_name() and (last.is_file() or last.with_name(f"{last.name}.bak").is_file())
    if processes.share(there):
        log(f"the processes were started anew: going on from {last}")
        return opt.replace(resume=True, load_model=str(last))
    return opt


def random_state(device: torch.device) -> list[torch.Tensor]:
    """The states of PyTorch's generators that this process uses."""
    states = [torch.get_rng_state()]
    module = torch.get_device_module(device)
    if device.type != "cpu" and hasattr(module, "get_rng_state"):
        states.append(module.get_rng_state(device))
    return states


def set_random_state(states: list[torch.Tensor], device: torch.device) -> None:
    """Undo what happened to the generators since ``random_state``."""
    torch.set_rng_state(states[0])
    module = torch.get_device_module(device)
    if len(states) > 1 and device.type != "cpu" and hasattr(module, "set_rng_state"):
        module.set_rng_state(states[1], device)
