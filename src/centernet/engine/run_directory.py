"""The folder ``exp/<task>/<exp_id>``: options, logs, losses, checkpoints and results of a run."""

import contextlib
import csv
import io
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import __version__
from ..errors import UserError
from ..utils.files import write_json, write_text
from . import tensorboard
from .run_state import TrainingState, launch_name

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two runs apart there
    fcntl = None


class RunDirectory:
    """Writes what a run leaves behind. Only rank 0 has one.

    Attributes:
        path: the folder.
        logs: ``logs_<time>`` in it, one for each start.
        validated: the dataset of the last validation and its results, ``{image id: {class from 1: rows}}``.
    """

    def __init__(self, opt, processes, loss_names: tuple[str, ...], state: TrainingState | None = None) -> None:
        """Make the folder and write the options.

        A training has a ``state`` and the folder for itself. If it is resumed it goes on with the ``train_log.csv`` and
        ``val_log.csv`` of its folder, or with those beside its checkpoint, up to that state; a new run in an old folder
        puts the old files aside.

        Raises UserError when the folder cannot be written, or when another training has it.
        """
        self.path = Path(opt.save_dir)
        self.loss_names = loss_names
        self.validated: tuple[Any, dict] | None = None
        try:
            self.logs = self.path / time.strftime("logs_%Y-%m-%d-%H-%M")
            self.path.mkdir(parents=True, exist_ok=True)
            if state is not None:
                self._lock()
            self.logs.mkdir(exist_ok=True)
            (self.path / "debug").mkdir(exist_ok=True)
            text = _options_text(opt)
            write_text(self.logs / "opt.txt", text)
            if state is not None:  # a test in the folder of a training leaves the training's options alone
                write_text(self.path / "opt.txt", text)
                write_json(self.path / "opt.json", _description(opt, processes, state), indent=1)
                self._start_logs(opt, state)
        except OSError as error:
            raise UserError(f"{self.path}: the run folder cannot be written ({error})") from error

    def _lock(self) -> None:
        """Have the folder alone. The system takes the lock away when the process ends, however that happens."""
        self._lock_file = open(self.path / ".lock", "a+", encoding="utf-8")  # noqa: SIM115 (open for the whole run)
        if fcntl is None:
            return
        try:
            fcntl.lockf(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process, not of its loaders
        except BlockingIOError as error:
            self._lock_file.seek(0)
            owner = self._lock_file.read().strip() or "no longer known which"
            self._lock_file.close()
            raise UserError(
                f"{self.path}: another training ({owner}) writes into this folder; wait for it, or choose another "
                "--exp_id"
            ) from error
        self._lock_file.truncate(0)
        self._lock_file.write(f"process {os.getpid()} on {platform.node()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        self._lock_file.flush()

    def _start_logs(self, opt, state: TrainingState) -> None:
        if Path(opt.load_model).parent != self.path:
            state.logs = []  # of another folder
        self._trim_logs(state)
        if self.logs.name not in state.logs:
            state.logs = [*state.logs, self.logs.name]
            self._put_aside(self.logs / "log.txt")  # of another run that was started in the same minute
        for name, header in (
            ("train_log.csv", ["epoch", "iteration", *self.loss_names, "lr", "images/s"]),
            ("val_log.csv", []),
        ):
            path = self.path / name
            earlier = []
            if state.iteration:
                source = path if path.is_file() else Path(opt.load_model).with_name(name)
                earlier = _read_rows(source)
            else:
                self._put_aside(path)
            kept = []
            for row in earlier[1:]:
                # A run that was killed may have left half a line.
                if len(row) == len(earlier[0]) and row[0].isdigit() and (not header or row[1].isdigit()):
                    if int(row[1]) <= state.iteration if header else int(row[0]) <= state.logged:
                        kept.append(row)
            if header and len(kept) < state.iteration:
                print(f"{path}: {len(kept)} of the {state.iteration} lines before this start are there")
            if header or kept:
                _write_rows(path, [header or earlier[0], *kept])
            else:
                path.unlink(missing_ok=True)
        self._board = tensorboard.open_board(self.logs)
        self._losses = open(self.path / "train_log.csv", "a", newline="", encoding="utf-8")  # noqa: SIM115 (open for the whole run)
        self._csv = csv.writer(self._losses, lineterminator="\n")

    def _put_aside(self, path: Path) -> None:
        """Give what an earlier run has left another name."""
        if path.is_file():
            aside = time.strftime(f"{path.stem}_before_%Y-%m-%d-%H-%M-%S{path.suffix}")
            path.rename(path.with_name(aside))
            print(f"{path}: from an earlier run, kept as {aside}")

    def _trim_logs(self, state: TrainingState) -> None:
        """Take away the lines of epochs that are to be done once more from the ``log.txt`` files of this run."""
        for name in state.logs:
            path = self.path / name / "log.txt"
            if Path(name).name != name or not path.is_file():
                continue
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
            found = [re.search(r": epoch: (\d+) \|.*\n", line) for line in lines]
            kept = [line for line, match in zip(lines, found, strict=True) if match and int(match[1]) <= state.logged]
            if kept != lines:
                write_text(path, "".join(kept))

    def write_losses(self, rows: list[tuple[int, int, list[float], float, float]]) -> None:
        """One line an iteration: epoch, iteration from 1 over the whole run, loss parts, rate, images a second."""
        with self._writing("train_log.csv"):
            for epoch, iteration, losses, lr, speed in rows:
                losses = [f"{value:.9g}" for value in losses]
                self._csv.writerow([epoch, iteration, *losses, f"{lr:g}", f"{speed:.1f}"])
            self._losses.flush()

    def sync(self) -> None:
        """Make sure that the losses are on the disk: a checkpoint is to count on them."""
        with self._writing("train_log.csv"):
            self._losses.flush()
            os.fsync(self._losses.fileno())

    def write_epoch(self, epoch: int, train: dict[str, float], val: dict[str, float] | None) -> None:
        """One line in log.txt, in the reference's format, and one in val_log.csv if there was a validation."""
        stamp = time.strftime("%Y-%m-%d-%H-%M")
        line = f"{stamp}: epoch: {epoch} |" + "".join(f"{name} {value:8f} | " for name, value in train.items())
        if val:
            line += "".join(f"{name} {value:8f} | " for name, value in val.items())
        with self._writing("log.txt"), open(self.logs / "log.txt", "a", encoding="utf-8") as file:
            file.write(line + "\n")
        if val:
            path = self.path / "val_log.csv"
            header, *rows = _read_rows(path) or [["epoch"]]
            header += [name for name in val if name not in header]  # classes that had no objects before
            rows.append([str(epoch), *(f"{val[name]:.9g}" if name in val else "" for name in header[1:])])
            with self._writing("val_log.csv"):
                _write_rows(path, [header, *(row + [""] * (len(header) - len(row)) for row in rows)])
        if self._board is not None:
            tensorboard.write_epoch(self._board, epoch, train, val, *(self.validated or (None, {})))

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"{self.path}: {name} cannot be written ({error.strerror})") from error

    def close(self) -> None:
        """Close the files and give the folder up."""
        for name in ("_losses", "_board", "_lock_file"):
            if getattr(self, name, None) is not None:
                with contextlib.suppress(OSError):  # what could not be written was told when it was tried
                    getattr(self, name).close()


def _read_rows(path: Path) -> list[list[str]]:
    """The rows of a CSV file, none when it is not there."""
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def _write_rows(path: Path, rows: list[list[str]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def _options_text(opt) -> str:
    """opt.txt as the reference writes it."""
    lines = [
        f"==> torch version: {torch.__version__}",
        f"==> cudnn version: {torch.backends.cudnn.version()}",
        "==> Cmd:",
        str(sys.argv),
        "==> Opt:",
    ]
    lines += [f"  {name}: {value}" for name, value in sorted(vars(opt).items())]
    return "\n".join(lines) + "\n"


def _description(opt, processes, state: TrainingState) -> dict[str, Any]:
    """The same for programs: options, recipe, and what ran them."""
    return {
        "options": _plain(vars(opt)),
        "recipe": _plain(state.recipe),
        "run": state.name,
        "launch": launch_name(),
        "processes": processes.count,
        "device": device_name(processes.device),
        "versions": {"centernet": __version__, "torch": torch.__version__, "numpy": np.__version__},
        "command": shlex.join([_script(opt.root_dir), *sys.argv[1:]]),
        "git": _git_commit(opt.root_dir),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.reshape(-1).tolist()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def device_name(device: torch.device) -> str:
    """What the device is, in words."""
    if device.type == "cpu":
        return f"cpu, {os.cpu_count()} cores"
    module = getattr(torch, device.type, None)
    name = module.get_device_name(device) if hasattr(module, "get_device_name") else device.type
    return f"{device.type}, {name}"


def _script(root: str) -> str:
    """The script that runs, below the root of the repository where it is."""
    path = Path(sys.argv[0]).resolve()
    return str(path.relative_to(root)) if path.is_relative_to(root) else path.name


def _git_commit(root: str) -> str | None:
    git = shutil.which("git")
    if git is None or not (Path(root) / ".git").exists():
        return None
    done = subprocess.run(
        [git, "-C", root, "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None
