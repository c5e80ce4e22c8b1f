"""The levels of ``src/tools/check_device.py``: run them, print and store what they find."""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from ..analysis.pages import write_page
from ..engine import processes as engine_processes
from ..engine import setup
from ..engine.processes import Distributed
from ..engine.run_directory import device_name
from ..errors import UserError
from ..options import Options
from ..utils.files import write_text
from ..utils.text import print_line
from .layers import check_layers
from .operators import check_operators, replay
from .probe import check_probe
from .processes import check_processes, launch
from .repeat import check_repeat
from .results import Finding, Level, Report
from .scenario import Scenario
from .settings import check_settings
from .steps import check_steps

FAILED = "could not run"


def run_levels(levels: tuple[str, ...], own: argparse.Namespace, rest: list[str], opt: Options) -> int:
    """Run levels one after the other, or replay a file; return the exit status.

    ``own`` has the options of the program itself, ``rest`` are the arguments that ``opt`` was parsed from.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not own.replay:
        status: list[int] = []
        engine_processes.run_script(lambda opt: status.append(_in_processes(own, opt)), opt)
        return status[0]
    env = engine_processes.start(opt)
    setup.configure_backends(opt, env)
    if own.replay:
        level = replay(Path(own.replay), env.device)
        level.print()
        return 0 if level.sound else 1
    command = f"check_device.py {shlex.join(sys.argv[1:])}"
    report = Report(device_name(env.device), command, _setup(opt))
    print_line(f"checking {report.device}: {opt.task}, {opt.arch}, {opt.input_w} x {opt.input_h}, {opt.dataset}")
    broken = False
    for level in _run(levels, own, rest, opt, env):
        broken |= level.title == FAILED
        level.print()
        report.levels.append(level)
        _store(Path(opt.save_dir), report)
    deviations = sum(len(level.findings) for level in report.levels)
    print_line("")
    print_line(f"{report.device}: {'sound' if report.sound else f'{deviations} deviations found'}")
    print_line(f"report: {Path(opt.save_dir) / 'device_check.html'}")
    return 2 if broken else 0 if report.sound else 1


def _run(
    levels: tuple[str, ...], own: argparse.Namespace, rest: list[str], opt: Options, env: Distributed
) -> Iterator[Level]:
    """Run the levels one after the other; those that fail give a level that reports the failure."""
    scenario: Scenario | None = None

    def needed() -> Scenario:
        nonlocal scenario
        scenario = scenario or Scenario(opt, env.device)
        return scenario

    dtype = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[opt.amp]
    save = Path(own.save_failing) if own.save_failing else None
    script = Path(__file__).resolve().parents[2] / "tools" / "check_device.py"
    runs: dict[str, Callable[[], Level]] = {
        "settings": lambda: check_settings(env.device, opt),
        "probe": lambda: check_probe(env.device, dtype),
        "operators": lambda: check_operators(needed(), save),
        "layers": lambda: check_layers(needed()),
        "steps": lambda: check_steps(needed(), own.iterations),
        "repeat": lambda: check_repeat(needed()),
        "processes": lambda: launch(rest, own.nproc, script),
    }
    for name in levels:
        started = time.perf_counter()
        try:
            yield runs[name]()
        except UserError:
            raise
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            level = Level(name, FAILED, ["reason"], [[reason]], seconds=time.perf_counter() - started)
            level.findings.append(Finding(name, "", "", f"level {name} could not run on {env.device.type}: {reason}"))
            yield level


def _in_processes(own: argparse.Namespace, opt: Options) -> int:
    """Run the level "processes" in the processes that a launcher has started; the exit status."""
    started = time.perf_counter()
    env = engine_processes.start(opt)
    setup.configure_backends(opt, env)
    level = check_processes(env.local_main_process_first(lambda: Scenario(opt, env.device)), env)
    level.seconds = time.perf_counter() - started
    if env.is_main:
        level.print()
        report = Report(device_name(env.device), f"check_device.py {shlex.join(sys.argv[1:])}", _setup(opt), [level])
        if own.result:
            write_text(Path(own.result), report.to_json())
        else:
            _store(Path(opt.save_dir), report)
    sound = env.broadcast(level.sound)
    return 0 if sound or own.result else 1


def _setup(opt: Options) -> dict:
    names = ("task", "dataset", "arch", "input_h", "input_w", "batch_size", "seed", "amp", "precision", "load_model")
    return {name: getattr(opt, name) for name in names}


def _store(folder: Path, report: Report) -> None:
    """Write ``device_check.json`` and ``device_check.html`` with the levels so far."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "device_check.json", report.to_json())
    write_page(folder / "device_check.html", "device_check.html", report=report)
