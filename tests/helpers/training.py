"""Shared by training tests: small runs in this process or in others, and their files."""

import contextlib
import csv
import functools
import importlib.util
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from centernet.cli import options_of, run_main

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}
LAUNCH = [sys.executable, str(ROOT / "src/centernet/engine/launch.py"), "--standalone"]
MAIN = str(ROOT / "src/main.py")


def small(exp: Path, data: Path, *more: str) -> list[str]:
    """Options of main.py for a training of seconds; its folder is ``exp``/exp/ctdet/default."""
    return [
        *("--dataset", "pascal", "--data_path", str(data), "--exp_dir", str(exp / "exp"), "--arch", "res_18"),
        *("--input_res", "64", "--batch_size", "2", "--num_workers", "0", "--pretrained", "none", *more),
    ]


def rows(path: Path) -> list[list[str]]:
    """The lines of a table."""
    with open(path, newline="") as file:
        return list(csv.reader(file))


def losses(folder: Path) -> list[list[str]]:
    """The lines of train_log.csv without the speed."""
    return [row[:-1] for row in rows(folder / "train_log.csv")]


@functools.cache
def load_script(name: str) -> ModuleType:
    """``src/<name>.py``, by its path, because Python has a package of the name test."""
    specification = importlib.util.spec_from_file_location(f"{name}_script", ROOT / f"src/{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def run_here(name: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run ``src/<name>.py`` in this process, which saves its start; its exit status and what it printed."""
    script, output, errors, status = load_script(name), io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        patch.setattr(sys, "argv", [f"{name}.py", *arguments])
        patch.delenv("DISPLAY", raising=False)
        patch.delenv("WAYLAND_DISPLAY", raising=False)
        try:
            run_main(script.main, options_of(name))
        except SystemExit as ended:
            status = ended.code
    return subprocess.CompletedProcess(arguments, status or 0, output.getvalue(), errors.getvalue())


def output_here(name: str, *arguments: str) -> str:
    """Return the output of ``run_here``, which must succeed."""
    done = run_here(name, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def output_of(name: str, *arguments: str) -> str:
    """Return the output of ``src/<name>.py`` in a separate process with all cores, which must succeed."""
    command = [sys.executable, str(ROOT / f"src/{name}.py"), *map(str, arguments), "--device", "cpu"]
    environment = {"OMP_NUM_THREADS": str(os.cpu_count()), **os.environ}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def score(output: str, name: str) -> float:
    """A score that a script has printed, alone in a line or among others."""
    return float(re.search(rf"(?:^|\s){re.escape(name)} (-?\d\.\d+)", output, re.M)[1])
