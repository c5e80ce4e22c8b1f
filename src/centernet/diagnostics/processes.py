"""Level "processes": collectives of known values in every type, and one process against several on the same batch."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

from ..engine.processes import Distributed
from .judge import rms
from .operators import to_host
from .results import Finding, Level, number
from .scenario import CPU, Scenario, place

SIZES = (1, 2, 3, 255, 256, 1023, 65537)  # odd ones too: libraries split them
TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8)
GRADIENT_FACTOR = 4.0  # times the error of one process: several add up in another order
LIMIT = 600  # seconds for the processes of the check


def launch(arguments: list[str], count: int, script: Path) -> Level:
    """Run the level in ``count`` processes of their own and return what they find."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        result = Path(directory) / "level.json"
        launcher = Path(__file__).resolve().parents[1] / "engine" / "launch.py"
        command = [sys.executable, str(launcher), "--standalone", f"--nproc_per_node={count}", str(script)]
        environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        try:
            done = subprocess.run(
                [*command, *arguments, "--levels", "processes", "--result", str(result)],
                env=environment,
                capture_output=True,
                text=True,
                timeout=LIMIT,
                check=False,
            )
            report, ended = done.stderr, done.returncode
        except subprocess.TimeoutExpired:
            report, ended = f"no result within {LIMIT} s", 1
        if result.is_file():
            from .results import Report

            level = Report.from_json(result).levels[-1]
        else:
            lines = [line for line in report.strip().splitlines() if "rror" in line] or report.strip().splitlines()
            reason = lines[-1] if lines else f"status {ended}"
            level = Level("processes", f"{count} processes", ["operation", "type", "verdict"])
            level.findings.append(Finding("processes", "", "", f"{count} processes cannot run: {reason}"))
    level.seconds = time.perf_counter() - started
    return level


def check_processes(scenario: Scenario, env: Distributed) -> Level:
    """Check collectives and a training step in the present processes. Collective: call on all of them."""
    title = f"{env.world_size} processes, collectives by {dist.get_backend(env.group)}"
    level = Level("processes", title, ["operation", "type", "verdict"])
    for name, check in (("all_reduce", _all_reduce), ("broadcast", _broadcast), ("all_gather", _all_gather)):
        for dtype in TYPES:
            wrong = _agreed(env, lambda check=check, dtype=dtype: check(env, dtype))
            level.rows.append([name, str(dtype).removeprefix("torch."), wrong or "exact"])
            if wrong and not wrong.startswith("not supported"):
                level.findings.append(Finding(name, "", "forward", f"{name} of {level.rows[-1][1]}: {wrong}"))
    _compare_steps(scenario, env, level)
    level.rows.sort(key=lambda row: row[2] in ("exact", "sound"))
    return level


def _agreed(env: Distributed, check) -> str | None:
    """Return what any process finds wrong, or None."""
    try:
        wrong = check()
    except (RuntimeError, ValueError) as error:
        # Nobody waits for a collective that all refuse.
        wrong = "not supported: " + (str(error).strip().splitlines() or ["?"])[0][:100]
    found = [text for text in env.broadcast(env.gather(wrong)) if text]
    return found[0] if found else None


def _values(rank: int, size: int, dtype: torch.dtype) -> torch.Tensor:
    """Small integers, whose sums are exact in every type."""
    return ((torch.arange(size) + 3 * rank) % 7).to(dtype)


def _difference(got: torch.Tensor, expected: torch.Tensor, size: int) -> str | None:
    wrong = (to_host(got).double() != expected.double()).nonzero().flatten()
    if not len(wrong):
        return None
    place = int(wrong[0])
    found = to_host(got)[place].item()
    return f"{len(wrong)} of {size} elements, the first at {place}: {found} instead of {expected[place].item()}"


# Each check makes all of its collective calls before it returns: on some ranks a wrong value may be right by chance,
# and the processes must make the same calls.


def _all_reduce(env: Distributed, dtype: torch.dtype) -> str | None:
    found = []
    for size in SIZES:
        expected = torch.stack([_values(rank, size, torch.float64) for rank in range(env.world_size)]).sum(0)
        got = env.sum(_values(env.rank, size, dtype).to(env.device))
        found.append(_difference(got, expected, size))
    return next(filter(None, found), None)


def _broadcast(env: Distributed, dtype: torch.dtype) -> str | None:
    found, source = [], env.world_size - 1
    for size in SIZES:
        value = _values(env.rank, size, dtype).to(env.device)
        dist.broadcast(value, group_src=source, group=env.group)
        found.append(_difference(value, _values(source, size, torch.float64), size))
    return next(filter(None, found), None)


def _all_gather(env: Distributed, dtype: torch.dtype) -> str | None:
    found = []
    for size in SIZES:
        value = _values(env.rank, size, dtype).to(env.device)
        parts = [torch.zeros_like(value) for _ in range(env.world_size)]
        dist.all_gather(parts, value, group=env.group)
        found += [_difference(part, _values(rank, size, torch.float64), size) for rank, part in enumerate(parts)]
    return next(filter(None, found), None)


def _compare_steps(scenario: Scenario, env: Distributed, level: Level) -> None:
    """Compare the gradients of one global batch in all processes, in one, and in float64."""
    raw = scenario.finished_batches(1)[0]
    size = len(raw["input"])
    if size < env.world_size:
        level.notes.append(f"no training step: a batch of {size} images has less than one for each of {env.world_size}")
        return
    ends = [size * rank // env.world_size for rank in range(env.world_size + 1)]
    share = {
        name: value if name == "pixels" or not torch.is_tensor(value) else value[ends[env.rank] : ends[env.rank + 1]]
        for name, value in raw.items()
    }
    together, alone = _gradients(scenario, share, env), Distributed(0, 1, 0, env.device)
    known = None
    if env.is_main:
        exact = _gradients(scenario, raw, Distributed(0, 1, 0, CPU), torch.float64)
        exact = {name: value.float() for name, value in exact.items()}  # exact enough, and half the size
        known = exact, _errors(_gradients(scenario, raw, alone), exact)
    env.barrier()  # rank 0 may take long
    exact, own = env.broadcast(known)
    problems = env.broadcast(env.gather(_worse(together, exact, own)))
    wrong = [rank for rank, problem in enumerate(problems) if problem]
    level.rows.append(["training step", "gradients", problems[wrong[0]] if wrong else "sound"])
    if not wrong:
        return
    # Is it the sum, or does a process contribute wrong gradients to it?
    yardstick = _errors(_gradients(scenario, raw, Distributed(0, 1, 0, CPU)), exact)
    apart = env.gather(_worse(_gradients(scenario, raw, alone), exact, yardstick)) or []
    for rank, problem in enumerate(apart):
        if problem:
            text = f"rank {rank} has wrong gradients without the others, too: {problem}; check its device (--gpus)"
            level.findings.append(Finding("training step", f"rank {rank}", "backward", text))
    if env.is_main and not any(apart):
        those = "" if len(wrong) == env.world_size else f" on rank {', '.join(map(str, wrong))}"
        text = f"the gradients of {env.world_size} processes are not those of one{those}: {problems[wrong[0]]}"
        level.findings.append(Finding("all_reduce", problems[wrong[0]].partition(":")[0], "backward", text))


def _errors(gradients: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> dict[str, float]:
    """Return the relative errors of gradients by parameter."""
    return {
        name: rms(gradients[name].double() - value.double()) / max(rms(value.double()), 1e-30)
        for name, value in exact.items()
    }


def _worse(gradients: dict, exact: dict, yardstick: dict[str, float]) -> str | None:
    """Return the worst gradient whose error is larger than ``GRADIENT_FACTOR`` yardsticks; None if there is none."""
    errors = _errors(gradients, exact)
    worst = max(errors, key=lambda name: errors[name] / (GRADIENT_FACTOR * yardstick[name] + 1e-6))
    if errors[worst] <= GRADIENT_FACTOR * yardstick[worst] + 1e-6:
        return None
    return f"{worst}: error {number(errors[worst])}, of one process {number(yardstick[worst])}"


def _gradients(
    scenario: Scenario, batch: dict, env: Distributed, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Return the gradients of a step in evaluation mode, because batch statistics belong to a process."""
    trainer = scenario.trainer(env.device, dtype, env)
    trainer.model.eval()
    trainer.step(place(batch, env.device, dtype))
    scale = trainer.precision.scaler.get_scale() if trainer.precision.scaler.is_enabled() else 1.0
    return {
        name: to_host(value.grad.detach()).float() / scale if dtype != torch.float64 else value.grad.detach().cpu()
        for name, value in trainer.network.named_parameters()
        if value.grad is not None
    }
