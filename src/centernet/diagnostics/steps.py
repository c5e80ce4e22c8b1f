"""Level "steps": some iterations of a training against an envelope of CPU trainings with noise in the last bit."""

import contextlib
import math
import time
from dataclasses import dataclass, field

import torch

from .operators import to_host
from .results import Finding, Level, number
from .scenario import CPU, Scenario, place, rounding_noise

RUNS = 3  # trainings with rounding noise
FIRST_RUNS = 12  # of their first iteration, whose spread three runs underestimate by chance
FACTOR, FACTOR_16 = 20.0, 2.0  # times their spread: the envelope; devices round to 16 bits alike, once per result
FLOOR, FLOOR_16 = 1e-5, 2e-2  # relative difference that is never a deviation, in float32 and with 16 bits


@dataclass
class History:
    """Loss terms, gradient norm and update norm by iteration, by name."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        self.values.setdefault(name, []).append(value)


def train(scenario: Scenario, batches: list[dict], device: torch.device, seed: int = 0) -> History:
    """Train through all batches; with a ``seed`` with rounding noise (``rounding_noise``)."""
    trainer, history = scenario.trainer(device), History()
    parameters = [value for value in trainer.network.parameters() if value.requires_grad]
    for k, batch in enumerate(batches):
        before = [value.detach().clone() for value in parameters]
        with rounding_noise(trainer.network, seed * 1000 + k) if seed else contextlib.nullcontext():
            _, terms = trainer.step(place(batch, device))
        for name, value in terms.items():
            history.add(name, float(to_host(value.detach().float())))
        gradients = [value.grad for value in parameters if value.grad is not None]
        scale = trainer.precision.scaler.get_scale() if trainer.precision.scaler.is_enabled() else 1.0
        history.add("gradient norm", total_norm(gradients) / scale)
        with torch.no_grad():
            updates = [value - old for value, old in zip(parameters, before, strict=True)]
        history.add("update norm", total_norm(updates))
    return history


def total_norm(tensors: list[torch.Tensor]) -> float:
    """Return the Euclidean norm of all elements, also where their squares exceed the range of float32.

    Gradients of untrained hourglass networks do, because batch normalization of small maps amplifies them.
    """
    largest = max((float(to_host(value.detach().abs().max())) for value in tensors if value.numel()), default=0.0)
    if largest == 0.0 or not math.isfinite(largest):
        return largest
    return largest * float(to_host(torch.nn.utils.get_total_norm([value.detach() / largest for value in tensors])))


def check_steps(scenario: Scenario, iterations: int) -> Level:
    """Train some iterations on the device and look for the first that leaves the envelope.

    The envelope of an iteration is ``FACTOR`` (``FACTOR_16``) times the largest difference so far between the CPU's
    training and those with rounding noise. It grows: training is chaotic, and what lies within it is no evidence
    against a device. Neither is any value where the CPU's own is not finite: whether a sum overflows may depend on the
    last bit.
    """
    started = time.perf_counter()
    batches = scenario.finished_batches(iterations)
    center = train(scenario, batches, CPU)
    moved = [train(scenario, batches, CPU, seed) for seed in range(1, RUNS + 1)]
    first = [train(scenario, batches[:1], CPU, seed) for seed in range(RUNS + 1, FIRST_RUNS + 1)]
    own = train(scenario, batches, scenario.device)
    factor, floor = (FACTOR, FLOOR) if scenario.dtype is None else (FACTOR_16, FLOOR_16)
    level = Level(
        "steps",
        f"{iterations} iterations against {RUNS} CPU trainings with rounding noise of two units in the last place",
        ["iteration", "value", "device", "CPU", "difference", "envelope"],
    )
    left: list[tuple[int, str, str]] = []
    for k in range(iterations):
        for name, curve in center.values.items():
            pairs = (pair for run in moved + first for pair in zip(run.values[name][: k + 1], curve, strict=False))
            spread = max(distance(*pair) for pair in pairs)
            value = own.values[name][k]
            difference = distance(value, curve[k])
            limit = factor * spread + floor * abs(curve[k]) if math.isfinite(curve[k]) else math.inf
            row = [str(k + 1), name, number(value), number(curve[k]), number(difference), number(limit)]
            if not difference <= limit:
                left.append((k + 1, name, f"{value:.6g}, the CPU has {curve[k]:.6g} +- {limit:.1g}"))
                level.rows.insert(len(left) - 1, row)
            else:
                level.rows.append(row)
    if left:
        iteration, name, text = left[0]
        names = sorted({other for k, other, _ in left if k == iteration})
        hint = {"gradient norm": "backward", "update norm": "optimizer"}
        kinds = [hint.get(one, "forward") for one in names]
        direction = "forward" if "forward" in kinds else "backward" if "backward" in kinds else "optimizer"
        text = f"iteration {iteration} leaves the envelope: {name} {text}; left by {', '.join(names)}"
        level.findings.append(Finding("training step", f"iteration {iteration}", direction, text))
    level.notes.append(_growth(center, moved))
    level.seconds = time.perf_counter() - started
    return level


def distance(a: float, b: float) -> float:
    """Return |a - b|; 0 where both are NaN or the same infinity, infinity where only one is finite.

    Under mixed precision the first steps of every device may overflow alike, which is no evidence against any of them.
    """
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    difference = abs(a - b)
    return math.inf if math.isnan(difference) else difference


def _growth(center: History, moved: list[History]) -> str:
    """Describe how fast a difference in the last bit grows on the CPU."""
    curve = center.values["loss"]
    ends = [max(abs(run.values["loss"][k] - curve[k]) / abs(curve[k]) for run in moved) for k in (0, len(curve) - 1)]
    return f"on the CPU one unit in the last place grows to {ends[0]:.1e} of the loss at once and {ends[1]:.1e} at last"
