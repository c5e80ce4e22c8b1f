"""Trainings in other processes that are compared with an undisturbed one."""

import re
import subprocess
import sys
from pathlib import Path

import torch
from tests.helpers.training import ENVIRONMENT, LAUNCH, MAIN, losses, rows, small

RUN = "exp/ctdet/default"


def command(exp: Path, data: Path, processes: int, *more: str) -> list[str]:
    """Twelve iterations with a validation in the middle and at the end, and a checkpoint as often as possible."""
    epochs, batch = (4, 2) if processes <= 2 else (12, 4)  # of six images
    options = ["--batch_size", str(batch), "--num_epochs", str(epochs), "--val_intervals", str(epochs // 2)]
    options += ["--save_minutes", "1e-6", "--num_workers", "1"]
    start = [sys.executable, MAIN] if processes == 1 else [*LAUNCH, f"--nproc_per_node={processes}", MAIN]
    return [*start, "ctdet", *small(exp, data, *options, *more)]


def start(arguments: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        arguments, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finish(arguments: list[str]) -> str:
    done = subprocess.run(arguments, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_complete(folder: Path, whole: Path) -> None:
    """The run ended as the undisturbed one: every log line once, and all tensors of the checkpoints bit by bit."""
    assert losses(folder) == losses(whole) and len(losses(whole)) == 1 + 12
    for row, expected in zip(rows(folder / "val_log.csv"), rows(whole / "val_log.csv"), strict=True):
        assert row[:5] + row[6:] == expected[:5] + expected[6:]  # all but the time
    for name in ("model_last.pth", "model_best.pth"):
        one, other = (torch.load(path / name, weights_only=True) for path in (folder, whole))
        assert one.keys() == other.keys() and one["epoch"] == other["epoch"] and one["best"] == other["best"]
        for entry in {"state_dict", "optimizer"} & one.keys():
            assert_equal(one[entry], other[entry], f"{name}: {entry}")
        if "run" in one:
            assert_equal(one["run"]["random"], other["run"]["random"], f"{name}: random")
    assert (folder / "results.json").read_bytes() == (whole / "results.json").read_bytes()
    # The line of an epoch may also be in the log of a start that had no time for a checkpoint, which was another run.
    logs = [
        folder / name / "log.txt" for name in torch.load(folder / "model_last.pth", weights_only=True)["run"]["logs"]
    ]
    epochs = re.findall(r": epoch: (\d+) \|", "".join(path.read_text() for path in logs if path.is_file()))
    assert epochs == [str(k + 1) for k in range(int(losses(whole)[-1][0]))]


def assert_equal(one, other, name: str) -> None:
    """Compare nested dicts and lists, tensors bit by bit."""
    assert type(one) is type(other), name
    if isinstance(one, dict):
        assert one.keys() == other.keys(), name
        for key in one:
            assert_equal(one[key], other[key], f"{name}[{key}]")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), name
        for k, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{name}[{k}]")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), name
    else:
        assert one == other, name
