"""Judge a result by the ratio of its error to the error that the CPU makes in the same type.

Both errors are against the result in float64 for the same inputs. This is the rule of PyTorch's own compiler tests
(``torch._dynamo.utils.same``): the factor is 2, or 3 where few elements or coarse types make the ratio noisy.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

FACTOR, NOISY_FACTOR = 2.0, 3.0
SMALL = 1000  # elements below which the ratio of two errors is noisy
MAX_FACTOR = 10.0  # of the largest errors, which are noisier than root mean squares
# Errors below these, relative to the size of the result, are no deviation even where the CPU happens to be exact.
FLOORS = {torch.float32: 4 * 2**-23, torch.float64: 4 * 2**-52, torch.bfloat16: 2**-9, torch.float16: 2**-12}


@dataclass
class Judgement:
    """Distance of a result from float64.

    Attributes:
        sound: whether the deviation can be rounding.
        error: root mean square error of the device, relative to the root mean square of the result.
        yardstick: the same for the CPU.
        reason: why it is not sound.
    """

    sound: bool
    error: float
    yardstick: float
    reason: str = ""

    @property
    def ratio(self) -> float:
        """``error`` over ``yardstick``."""
        return self.error / self.yardstick if self.yardstick else (math.inf if self.error else 1.0)


def rms(value: Tensor) -> float:
    """Return the root mean square, 0 for no elements."""
    return float(value.square().mean().sqrt()) if value.numel() else 0.0


def judge(
    result: Tensor,
    reference: Tensor,
    yardstick: Tensor,
    noisy: bool = False,
    magnitude: Callable[[], Tensor | None] = lambda: None,
) -> Judgement:
    """Compare a result with a reference in float64.

    Args:
        result: of the device, on the CPU.
        reference: float64.
        yardstick: the CPU's result in the type of ``result``.
        noisy: allow the larger factor, for 1x1 kernels and other noisy results.
        magnitude: computes the sums of the absolute values of the terms. Where they cancel, another order of the terms
            changes the result by some units in the last place of these sums. Only called if the result seems wrong.
    """
    if result.shape != reference.shape:
        return Judgement(False, math.inf, 0.0, f"shape {tuple(result.shape)} instead of {tuple(reference.shape)}")
    if not result.is_floating_point():
        same = bool((result == reference.to(result.dtype)).all())
        return Judgement(same, 0.0 if same else math.inf, 0.0, "" if same else "other integers")
    dtype = result.dtype
    result, yardstick = result.double(), yardstick.double()
    finite = reference.isfinite() & yardstick.isfinite()
    if not bool((result.isfinite() | ~finite).all()):
        return Judgement(False, math.inf, 0.0, "values that are not finite")
    result, reference, yardstick = (torch.where(finite, value, 0) for value in (result, reference, yardstick))
    size, largest = rms(reference), float(reference.abs().max()) if reference.numel() else 0.0
    error, own = rms(result - reference), rms(yardstick - reference)
    factor = NOISY_FACTOR if noisy or reference.numel() < SMALL or dtype in (torch.bfloat16, torch.float16) else FACTOR
    floor = FLOORS.get(dtype, 0.0)
    scale = max(size, torch.finfo(torch.float32).tiny)
    relative, own_relative = error / scale, own / scale
    worst = float((result - reference).abs().max()) if reference.numel() else 0.0
    own_worst = float((yardstick - reference).abs().max()) if reference.numel() else 0.0
    excess = error - factor * own - floor * size
    worst_excess = worst - MAX_FACTOR * own_worst - 4 * floor * largest
    if max(excess, worst_excess) > 0 and (sums := magnitude()) is not None:
        unit = FLOORS.get(dtype, 0.0) / 2
        excess -= unit * rms(sums)
        worst_excess -= 4 * unit * float(sums.abs().max())
    if excess > 0:
        return Judgement(False, relative, own_relative, f"error {relative:.1e}, the CPU's {own_relative:.1e}")
    if worst_excess > 0:
        reason = f"largest error {worst / max(largest, scale):.1e}, the CPU's {own_worst / max(largest, scale):.1e}"
        return Judgement(False, relative, own_relative, reason)
    return Judgement(True, relative, own_relative)
