"""Runs of several processes, and their process ids."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tests.helpers.training import ENVIRONMENT, LAUNCH, ROOT

ENVIRONMENT = {**ENVIRONMENT, "PYTHONPATH": str(ROOT / "src")}


def run_update(tmp_path: Path, count: int, arguments: list[str]) -> dict:
    result = tmp_path / f"{count}.pt"
    script = [str(ROOT / "tests/engine/one_update.py"), str(result), *arguments]
    command = [sys.executable, *script] if count == 1 else [*LAUNCH, f"--nproc_per_node={count}", *script]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return torch.load(result, weights_only=True)


def wait_for_losses(started: subprocess.Popen, folder: Path, count: int = 3) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and started.poll() is None:
        log = folder / "train_log.csv"
        if log.is_file() and len(log.read_text().splitlines()) > count:
            return
        time.sleep(0.2)
    started.kill()
    raise AssertionError(f"no training began: {started.communicate()[1]}")


def running(mark: str) -> list[int]:
    """The processes whose command line holds ``mark``."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().decode(errors="replace")
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if mark in line and state != "Z":
            found.append(int(folder.name))
    return found


def ranks(mark: str) -> dict[int, int]:
    """Rank to process id of the training processes (not of their loaders)."""
    found = {}
    for pid in sorted(running(mark)):
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        rank = [int(item[5:]) for item in environment if item.startswith(b"RANK=")]
        if rank:
            found.setdefault(rank[0], pid)
    return found


def wait_until_gone(mark: str, seconds: float) -> list[int]:
    deadline = time.monotonic() + seconds
    while running(mark) and time.monotonic() < deadline:
        time.sleep(0.2)
    return running(mark)


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
