"""The run directory ``exp/<task>/<exp_id>``: options, logs, losses, checkpoints and results."""

import contextlib
import csv
import io
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import UserError
from ..ops.keypoints import KeypointSchema
from ..options import Options
from ..utils.files import file_lock, link_or_copy, reason, write_errors, write_json, write_text
from ..utils.text import print_line
from ..version import __version__
from . import tensorboard
from .loggers import Loggers
from .precision import precision_switches
from .processes import Distributed
from .resume_logs import kept_epochs, kept_losses, kept_scores, read_lines
from .run_state import TrainingState, launch_name


class RunDirectory:
    """Writes what a run leaves behind. Exists on rank 0 only.

    Attributes:
        path: the folder.
        logs: ``logs_<time>`` in it, one for each start.
        validated: the dataset of the last validation and its results, ``{image id: {class from 1: rows}}``.
    """

    def __init__(
        self, opt: Options, env: Distributed, loss_names: tuple[str, ...], state: TrainingState | None = None
    ) -> None:
        """Make the folder and write the options.

        A training has a ``state`` and exclusive use of the folder. If it is resumed, it continues ``train_log.csv`` and
        ``val_log.csv`` of its folder, or copies of those next to its checkpoint, from that state on; a new run in an
        old folder renames the old files. Files of which lines cannot be used are kept under another name.

        Raises:
            UserError: the folder cannot be written, or another training uses it.
        """
        self.path = Path(opt.save_dir)
        self.loss_names = loss_names
        self.validated: tuple[Any, dict] | None = None
        self._open = contextlib.ExitStack()
        self._board = None
        self._loggers: Loggers | None = None
        try:
            self.logs = self.path / time.strftime("logs_%Y-%m-%d-%H-%M")
            self.path.mkdir(parents=True, exist_ok=True)
            if state is not None:
                self._lock()
            self.logs.mkdir(exist_ok=True)
            text = _options_text(opt)
            write_text(self.logs / "opt.txt", text)
            if state is not None:  # a test in the folder of a training keeps the training's options
                write_text(self.path / "opt.txt", text)
                write_json(self.path / "opt.json", _description(opt, env, state), indent=1)
                self._start_logs(opt, state)
        except OSError as error:
            self.close()
            raise UserError(f"{self.path}: the run directory cannot be written ({reason(error)})") from error
        except UserError:
            self.close()
            raise

    def _lock(self) -> None:
        """Reserve the folder for this process, until it ends."""
        path = self.path / ".lock"
        try:
            file = self._open.enter_context(file_lock(path, wait=False))
        except BlockingIOError as error:
            owner = path.read_text(encoding="utf-8", errors="replace").strip() or "unknown"
            raise UserError(
                f"{self.path}: another training ({owner}) writes into this folder; wait for it, or choose another "
                "--exp_id"
            ) from error
        file.truncate(0)
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(f"process {os.getpid()} on {platform.node()} since {started}".encode())
        file.flush()

    def _start_logs(self, opt: Options, state: TrainingState) -> None:
        checkpoint = Path(opt.load_model)
        if checkpoint.parent != self.path:
            state.logs = []  # of another folder
        for name in state.logs:
            self._trim_log(self.path / name / "log.txt", state.logged)
        if self.logs.name not in state.logs:
            state.logs = [*state.logs, self.logs.name]
            self._rename_earlier(self.logs / "log.txt")  # of another run that was started in the same minute
        header = ["epoch", "iteration", *self.loss_names, "lr", "images/s"]
        path = self.path / "train_log.csv"
        rows: list[list[str]] = []
        if state.iteration:
            lines = self._earlier_lines(path, checkpoint)
            rows, problem = kept_losses(lines, header, state.iteration)
            self._back_up(path, problem)
            first = int(rows[0][1]) if rows else state.iteration + 1
            if first > 1 and (problem or not rows):
                print_line(f"{path}: starts at iteration {first}, the losses before it are not available")
        else:
            self._rename_earlier(path)
        _write_rows(path, [header, *rows])

        path = self.path / "val_log.csv"
        self._scores: list[list[str]] = [["epoch"]]
        if state.iteration:
            kept, problem = kept_scores(self._earlier_lines(path, checkpoint), state.logged)
            self._back_up(path, problem)
            self._scores = kept or self._scores
        else:
            self._rename_earlier(path)
        if len(self._scores) > 1:
            _write_rows(path, self._scores)
        else:
            path.unlink(missing_ok=True)
        self._board = tensorboard.open_board(self.logs)
        self._loggers = Loggers(opt, self.path, _plain(state.recipe), resumed=state.iteration > 0)
        losses = open(self.path / "train_log.csv", "a", newline="", encoding="utf-8")  # noqa: SIM115 (for the whole run)
        self._losses = self._open.enter_context(losses)
        self._csv = csv.writer(self._losses, lineterminator="\n")

    @staticmethod
    def _earlier_lines(path: Path, checkpoint: Path) -> list[str]:
        """Return the lines of a log, or else of that next to the checkpoint."""
        return read_lines(path if path.is_file() else checkpoint.with_name(path.name))

    def _rename_earlier(self, path: Path) -> None:
        """Give a file of an earlier run another name."""
        if path.is_file():
            kept = path.with_name(_kept_name(path))
            path.rename(kept)
            print_line(f"{path}: from an earlier run, kept as {kept.name}")

    def _back_up(self, path: Path, problem: str | None) -> None:
        """Keep a log under another name if there is a problem with it, before it is written again."""
        if problem is not None and path.is_file():
            kept = path.with_name(_kept_name(path))
            link_or_copy(path, kept, symbolic=False)
            print_line(f"warning: {path}: {problem}; lines that cannot be continued are in {kept.name} only")

    @staticmethod
    def _trim_log(path: Path, epoch: int) -> None:
        """Remove the lines of epochs that will be repeated from a ``log.txt``."""
        lines = read_lines(path)
        kept = kept_epochs(lines, epoch)
        if kept != lines:
            write_text(path, "".join(f"{line}\n" for line in kept))

    def write_losses(self, rows: list[tuple[int, int, list[float], float, float]]) -> None:
        """Append a line per iteration: epoch, iteration from 1 over the whole run, losses, learning rate, images/s."""
        with write_errors(self.path / "train_log.csv"):
            for epoch, iteration, losses, lr, speed in rows:
                texts = [f"{value:.9g}" for value in losses]
                self._csv.writerow([epoch, iteration, *texts, f"{lr:g}", f"{speed:.1f}"])
            self._losses.flush()

    def sync(self) -> None:
        """Flush the losses to the disk, before a checkpoint that counts on them."""
        with write_errors(self.path / "train_log.csv"):
            self._losses.flush()
            os.fsync(self._losses.fileno())

    def write_epoch(self, epoch: int, train: dict[str, float], val: dict[str, float] | None) -> None:
        """Write a line in log.txt, in the reference's format, and one in val_log.csv if there was a validation."""
        stamp = time.strftime("%Y-%m-%d-%H-%M")
        line = f"{stamp}: epoch: {epoch} |" + "".join(f"{name} {value:8f} | " for name, value in train.items())
        if val:
            line += "".join(f"{name} {value:8f} | " for name, value in val.items())
        path = self.logs / "log.txt"
        with write_errors(path), open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
        if val:
            header, *rows = self._scores
            header = header + [name for name in val if name not in header]  # classes that had no objects before
            rows.append([str(epoch), *(f"{val[name]:.9g}" if name in val else "" for name in header[1:])])
            self._scores = [header, *(row + [""] * (len(header) - len(row)) for row in rows)]
            _write_rows(self.path / "val_log.csv", self._scores)
        if self._board is not None:
            try:
                with write_errors(self.logs):
                    tensorboard.write_epoch(self._board, epoch, train, val, *(self.validated or (None, {})))
            except UserError:
                raise
            except Exception as error:  # such as a missing package for images
                tensorboard.report_failure(error)
                self._board = None
        if self._loggers is not None:
            self._loggers.write_epoch(epoch, train, val)

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(failed=kind is not None)

    def close(self, failed: bool = False) -> None:
        """Close the files and release the folder; ``failed``: the training has not come to its end."""
        with contextlib.suppress(OSError):  # write errors have already been reported
            if self._board is not None:
                self._board.close()
        if self._loggers is not None:
            self._loggers.close(failed)
        with contextlib.suppress(OSError):
            self._open.close()


def _kept_name(path: Path) -> str:
    name = time.strftime(f"{path.stem}_before_%Y-%m-%d-%H-%M-%S")
    numbers = ("", *(f"-{k}" for k in range(2, 100)))
    return next(
        (f"{name}{k}{path.suffix}" for k in numbers if not path.with_name(f"{name}{k}{path.suffix}").exists()),
        f"{name}{path.suffix}",
    )


def _write_rows(path: Path, rows: list[list[str]]) -> None:
    """Write a table, unless the file holds it already: its modification time shows whether the report is outdated."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    if not path.is_file() or path.read_bytes() != text.getvalue().encode():
        write_text(path, text.getvalue())


def _options_text(opt: Options) -> str:
    """Return the content of opt.txt, as the reference writes it."""
    lines = [
        f"==> torch version: {torch.__version__}",
        f"==> cudnn version: {torch.backends.cudnn.version()}",
        "==> Cmd:",
        str(sys.argv),
        "==> Opt:",
    ]
    lines += [f"  {name}: {value}" for name, value in sorted(vars(opt).items())]
    return "\n".join(lines) + "\n"


def _description(opt: Options, env: Distributed, state: TrainingState) -> dict[str, Any]:
    """Return the content of opt.json: options, recipe, and the environment, for programs."""
    return {
        "options": _plain(vars(opt)),
        "recipe": _plain(state.recipe),
        "run": state.name,
        "launch": launch_name(),
        "processes": env.world_size,
        "device": device_name(env.device),
        "precision": precision_switches(env.device),
        "versions": {"centernet": __version__, "torch": torch.__version__, "numpy": np.__version__},
        "command": shlex.join([_script(opt.root_dir), *sys.argv[1:]]),
        "git": _git_commit(opt.root_dir),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.reshape(-1).tolist()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value.as_dict() if isinstance(value, KeypointSchema) else value


def device_name(device: torch.device) -> str:
    """Return a description of a device."""
    if device.type == "cpu":
        return f"cpu, {os.cpu_count()} cores"
    module = getattr(torch, device.type, None)
    get_name = getattr(module, "get_device_name", None)
    name = device.type if get_name is None else get_name(device)
    return f"{device.type}, {name}"


def _script(root: str) -> str:
    """Return the script that runs, relative to the root of the repository if it is in it."""
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
