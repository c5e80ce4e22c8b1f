"""The folder ``exp/<task>/<exp_id>``: options, logs, losses, checkpoints and results of a run."""

import csv
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import __version__
from ..errors import UserError
from ..opts import recipe


class RunFolder:
    """Writes what a run leaves behind. Only rank 0 has one.

    Attributes:
        path: the folder.
        logs: ``logs_<time>`` in it, one for each start.
    """

    def __init__(self, opt, processes, loss_names: tuple[str, ...], start_epoch: int = 0) -> None:
        """Make the folder and write the options.

        A resumed run goes on with the ``train_log.csv`` and ``val_log.csv`` of its folder, or with those beside its
        checkpoint, up to ``start_epoch``; a new run in an old folder puts the old files aside.
        """
        self.path = Path(opt.save_dir)
        self.loss_names = loss_names
        try:
            self.logs = self.path / time.strftime("logs_%Y-%m-%d-%H-%M")
            self.logs.mkdir(parents=True, exist_ok=True)
            (self.path / "debug").mkdir(exist_ok=True)
            text = _options_text(opt)
            (self.logs / "opt.txt").write_text(text)
            if not opt.test:  # a test in the folder of a training leaves the training's options alone
                (self.path / "opt.txt").write_text(text)
                (self.path / "opt.json").write_text(json.dumps(_description(opt, processes), indent=1))
                self._start_logs(opt, start_epoch)
        except OSError as error:
            raise UserError(f"{self.path}: the run folder cannot be written ({error})") from error

    def _start_logs(self, opt, start_epoch: int) -> None:
        for name, header in (
            ("train_log.csv", ["epoch", "iteration", *self.loss_names, "lr", "images/s"]),
            ("val_log.csv", []),
        ):
            path = self.path / name
            earlier = []
            if start_epoch:
                source = path if path.is_file() else Path(opt.load_model).with_name(name)
                earlier = _read_rows(source)
            elif path.is_file():
                aside = time.strftime(f"{path.stem}_before_%Y-%m-%d-%H-%M-%S.csv")
                path.rename(self.path / aside)
                print(f"{path}: from an earlier run, kept as {aside}")
            kept = [row for row in earlier[1:] if row and int(row[0]) <= start_epoch]
            if header or kept:
                _write_rows(path, [header or earlier[0], *kept])
            else:
                path.unlink(missing_ok=True)
        self._losses = open(self.path / "train_log.csv", "a", newline="")  # noqa: SIM115 (open for the whole run)
        self._csv = csv.writer(self._losses, lineterminator="\n")

    def write_losses(self, rows: list[tuple[int, int, list[float], float, float]]) -> None:
        """One line an iteration: epoch, iteration from 1 over the whole run, loss parts, rate, images a second."""
        for epoch, iteration, losses, lr, speed in rows:
            self._csv.writerow([epoch, iteration, *(f"{value:.9g}" for value in losses), f"{lr:g}", f"{speed:.1f}"])
        self._losses.flush()

    def write_epoch(self, epoch: int, train: dict[str, float], val: dict[str, float] | None) -> None:
        """One line in log.txt, in the reference's format, and one in val_log.csv if there was a validation."""
        stamp = time.strftime("%Y-%m-%d-%H-%M")
        line = f"{stamp}: epoch: {epoch} |" + "".join(f"{name} {value:8f} | " for name, value in train.items())
        if val:
            line += "".join(f"{name} {value:8f} | " for name, value in val.items())
        with open(self.logs / "log.txt", "a") as file:
            file.write(line + "\n")
        if val:
            path = self.path / "val_log.csv"
            header, *rows = _read_rows(path) or [["epoch"]]
            header += [name for name in val if name not in header]  # classes that had no objects before
            rows.append([str(epoch), *(f"{val[name]:.9g}" if name in val else "" for name in header[1:])])
            _write_rows(path, [header, *(row + [""] * (len(header) - len(row)) for row in rows)])

    def close(self) -> None:
        """Close the file of losses."""
        if hasattr(self, "_losses"):
            self._losses.close()


def _read_rows(path: Path) -> list[list[str]]:
    """The rows of a CSV file, none when it is not there."""
    if not path.is_file():
        return []
    with open(path, newline="") as file:
        return list(csv.reader(file))


def _write_rows(path: Path, rows: list[list[str]]) -> None:
    # Written aside, so that a run that is stopped here still has its earlier rows.
    part = path.with_name(path.name + ".part")
    with open(part, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    part.replace(path)


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


def _description(opt, processes) -> dict[str, Any]:
    """The same for programs: options, recipe, and what ran them."""
    return {
        "options": _plain(vars(opt)),
        "recipe": _plain(recipe(opt)),
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
