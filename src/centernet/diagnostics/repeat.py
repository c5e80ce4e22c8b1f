"""Level "repeat": the same step twice, bit by bit."""

import contextlib
import time
import warnings
import zlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from .operators import is_ignored, optimizer_phase, outputs_of, to_host
from .results import Finding, Level
from .scenario import Paths, Scenario, module_paths, place

TIMES = 3  # runs of the step that are compared


class Checksums(TorchDispatchMode):
    """Records a checksum of the results of every operator.

    Attributes:
        calls: (operator, module, pass, checksum) in the order of the calls.
    """

    def __init__(self, device: torch.device, paths: Paths) -> None:
        super().__init__()
        self.device, self.paths, self.phase = device, paths, ""
        self.calls: list[tuple[str, str, str, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        options = kwargs or {}
        result = func(*args, **options)
        name = func._schema.name.partition("::")[2]
        if not is_ignored(func):
            outputs = [item for item in outputs_of(func, result, args, options) if item is not None]
            if any(item.device.type == self.device.type for item in outputs):
                node = torch._C._current_autograd_node()
                direction = self.phase or ("forward" if node is None else "backward")
                self.calls.append((name, self.phase or self.paths.now(), direction, checksum(outputs)))
        return result


def checksum(values: list[Tensor]) -> int:
    """Return a checksum of the bits of tensors."""
    total = 0
    for value in to_host([item for item in tree_flatten(values)[0] if isinstance(item, Tensor)]):
        total = zlib.crc32(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes(), total)
    return total


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Use deterministic algorithms, if wanted, where there are some."""
    before = torch.are_deterministic_algorithms_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(wanted, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)


def run(scenario: Scenario, batch: dict) -> list[tuple[str, str, str, int]]:
    """Train one step; the checksums of its operators."""
    trainer = scenario.trainer(scenario.device)
    torch.manual_seed(scenario.opt.seed)
    placed = place(batch, scenario.device)
    with module_paths(trainer.network) as paths:
        record = Checksums(scenario.device, paths)
        with optimizer_phase(record), record:
            trainer.step(placed)
    return record.calls


def check_repeat(scenario: Scenario) -> Level:
    """Train the same step several times and name the first operator whose bits differ.

    Operators that differ only without deterministic algorithms are reported as a note: this is how several libraries
    gain speed. Those that differ with them are deviations.
    """
    started = time.perf_counter()
    batch = scenario.finished_batches(1)[0]
    level = Level("repeat", f"the same step {TIMES} times, bit by bit", ["algorithms", "operators", "first difference"])
    for wanted in (False, True):
        with deterministic(wanted):
            runs = [run(scenario, batch) for _ in range(TIMES)]
        name = "deterministic" if wanted else "default"
        differing = first_difference(runs)
        if differing is None:
            level.rows.append([name, str(len(runs[0])), "none"])
            continue
        operator, where, direction, _ = differing
        level.rows.append([name, str(len(runs[0])), f"{operator}, {direction}, in {where}"])
        text = f"{operator}, {direction}, in {where}: results differ from run to run with {name} algorithms"
        if wanted:
            level.findings.append(Finding(operator, where, direction, text))
        else:
            level.notes.append(text)
    level.seconds = time.perf_counter() - started
    return level


def first_difference(runs: list[list[tuple[str, str, str, int]]]) -> tuple[str, str, str, int] | None:
    """Return the first call, in the order of the step, whose checksum is not the same in all runs."""
    for calls in zip(*runs, strict=False):
        if len(set(calls)) > 1:
            return calls[0]
    return None
