"""Level "layers": a whole step on the device and in float64 side by side, module by module.

The step runs freely: each module gets the outputs of the preceding one. Errors therefore add up, and batch
normalization and ReLU amplify them, on a sound device too. The yardsticks are the CPU's float32 and the same with
weights moved by one unit in the last place.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .judge import rms
from .operators import to_host
from .results import Finding, Level, number
from .scenario import CPU, Scenario, nudge, place

FACTOR = 10.0  # times the widest yardstick: errors that run through a network vary more than those of one operator
FLOOR = 2e-6  # relative error of float32 that is never a deviation
FLOORS_16 = 2e-2  # the same with a 16-bit type
NUDGED = 2  # yardsticks with moved weights
BATCHES = 3  # a deviation has to appear in each of as many batches


@dataclass
class Trace:
    """Outputs and gradients of every module in a step, on the CPU.

    Attributes:
        values: by (module, kind), in the order of the step; kinds are "forward", "backward: output" (the gradient that
            reaches the module's output) and "backward: weight".
    """

    values: dict[tuple[str, str], Tensor] = field(default_factory=dict)


@contextmanager
def recording(network: nn.Module, trace: Trace) -> Iterator[None]:
    """Record outputs and gradients of all modules without children."""
    handles = []

    def hook(name: str):
        def record(module: nn.Module, inputs, output) -> None:
            if not isinstance(output, Tensor) or (name, "forward") in trace.values:
                return
            trace.values[name, "forward"] = to_host(output)
            if output.requires_grad:
                output.register_hook(keep)

        def keep(grad: Tensor) -> None:
            trace.values[name, "backward: output"] = to_host(grad)

        return record

    for name, module in network.named_modules():
        if not list(module.children()):
            handles.append(module.register_forward_hook(hook(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run_step(scenario: Scenario, batch: dict, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Trace:
    """Train one step and return its trace; with a ``seed`` from weights moved by one unit in the last place."""
    trainer, trace = scenario.trainer(device, dtype), Trace()
    if seed:
        nudge(trainer.network, seed)
    with recording(trainer.network, trace):
        trainer.step(place(batch, device, dtype))
    scale = trainer.precision.scaler.get_scale() if trainer.precision.scaler.is_enabled() else 1.0
    for key, value in trace.values.items():
        if key[1] == "backward: output":
            trace.values[key] = value / scale
    for name, module in trainer.network.named_modules():
        weight = getattr(module, "weight", None)
        if not list(module.children()) and isinstance(weight, Tensor) and weight.grad is not None:
            trace.values[name, "backward: weight"] = to_host(weight.grad)
    return trace


def errors(trace: Trace, exact: Trace) -> dict[tuple[str, str], float]:
    """Relative root mean square errors against another trace."""
    found = {}
    for key, reference in exact.values.items():
        if key in trace.values:
            size = rms(reference.double())
            found[key] = rms(trace.values[key].double() - reference.double()) / max(size, 1e-30)
    return found


@dataclass
class Step:
    """One step of the device against float64.

    Attributes:
        rows: (module, pass), error, the CPU's widest error, ratio, and whether it deviates, in the order of the step.
        widest: the CPU's widest error by (module, pass).
    """

    rows: list[tuple[tuple[str, str], float, float, float, bool]]
    widest: dict[tuple[str, str], float]

    @property
    def first(self) -> int:
        """Position of the first deviation; the number of rows if there is none."""
        return next((k for k, row in enumerate(self.rows) if row[4]), len(self.rows))


def compare_step(scenario: Scenario, batch: dict) -> Step:
    """Train one step on the device and on the CPU, and judge the device's errors by those of the CPU."""
    exact = run_step(scenario, batch, CPU, torch.float64)
    found = errors(run_step(scenario, batch, scenario.device, torch.float32), exact)
    yardsticks = [errors(run_step(scenario, batch, CPU, torch.float32, seed), exact) for seed in range(NUDGED + 1)]
    widest = {key: max(one.get(key, 0.0) for one in yardsticks) for key in exact.values}
    floor = FLOOR if scenario.dtype is None else FLOORS_16
    rows = []
    for key, error in found.items():
        bad = not error <= FACTOR * widest[key] + floor
        rows.append((key, error, widest[key], error / max(widest[key], 1e-30), bad))
    return Step(_in_order(rows), widest)


def check_layers(scenario: Scenario) -> Level:
    """Compare steps with float64 and name the first module that leaves the yardsticks.

    "First" is in the order of the step: forward through the network, then backward. The gradient of a weight belongs to
    its module; the gradient that reaches a module's output was made by the modules that use this output.

    A value within rounding of zero before a ReLU, or two nearly equal ones in a maximum, may be decided otherwise on a
    sound device, which changes all gradients behind it. That is rare, so a deviation counts if every batch has one; the
    batch whose first deviation comes last in the step is reported, because such a decision can only make it earlier.
    """
    started = time.perf_counter()
    batches = scenario.finished_batches(BATCHES)
    step, tried = compare_step(scenario, batches[0]), 1
    while step.first < len(step.rows) and tried < BATCHES:
        step = max(step, compare_step(scenario, batches[tried]), key=lambda one: one.first)
        tried += 1
    level = Level(
        "layers",
        f"one step of {len({name for name, _ in step.widest})} modules against float64, in its order",
        ["module", "pass", "error", "CPU's error", "ratio"],
    )
    for (name, direction), error, own, ratio, _ in sorted(step.rows, key=lambda row: (not row[4], -row[3])):
        level.rows.append([name, direction, number(error), number(own), number(ratio)])
    for directions, what in ((("forward",), "output"), (("backward: output", "backward: weight"), "gradient")):
        first = next((row for row in step.rows if row[0][1] in directions and row[4]), None)
        if first is None:
            continue
        (name, direction), error, own, ratio, _ = first
        text = f"first {what} that deviates: {name}, {direction}: error {error:.1e}, the CPU's at most {own:.1e}"
        if direction == "backward: output":
            text += "; made by the modules that use this output"
        level.findings.append(Finding(name, name, direction, text))
        if what == "output":
            break  # everything behind it deviates because of it
    if tried > 1 and not level.findings:
        level.notes.append(
            f"batch {tried} has no deviation, batch 1 has: a value at the threshold of a ReLU or a maximum was decided "
            "otherwise, which rounding may do"
        )
    level.notes.append(_amplification(scenario, step.widest))
    level.seconds = time.perf_counter() - started
    return level


def _in_order(rows: list) -> list:
    """Rows in the order of the step: outputs, then gradients from the last module to the first."""
    forward = [row for row in rows if row[0][1] == "forward"]
    place = {row[0][0]: -k for k, row in enumerate(forward)}
    backward = [row for row in rows if row[0][1] != "forward"]
    backward.sort(key=lambda row: (place.get(row[0][0], 1), row[0][1]))
    return forward + backward


def _amplification(scenario: Scenario, widest: dict[tuple[str, str], float]) -> str:
    """Describe how much the CPU's own float32 error grows through the network."""
    norms = [name for name, module in scenario.model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    forward = [error for (_, kind), error in widest.items() if kind == "forward"]
    gradients = {name: widest[name, "backward: weight"] for name in norms if (name, "backward: weight") in widest}
    text = f"the CPU's own float32 error grows from {forward[0]:.1e} to {max(forward):.1e} over the outputs"
    if gradients:
        worst = max(gradients, key=gradients.__getitem__)
        text += f", and to {gradients[worst]:.1e} in the gradient of {worst}, because batch normalization amplifies it"
    return text
