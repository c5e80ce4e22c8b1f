"""Learning rate schedules: pure functions, so that a resumed training continues at exactly the same rate."""

import math
from collections.abc import Iterable

COSINE_FLOOR = 0.01  # share of the learning rate with which the cosine schedule ends


def step_decay(lr: float, steps: Iterable[int], epoch: int) -> float:
    """Return the learning rate of an epoch, counted from 1: ``lr`` divided by 10 after each epoch of ``steps``.

    Steps below 1, such as ``--lr_step -1``, are after no epoch, so they change nothing.
    """
    return lr * 0.1 ** sum(1 <= step < epoch for step in steps)


def cosine_decay(lr: float, progress: float) -> float:
    """Return the learning rate at ``progress`` in [0, 1] of the training (SGDR, arXiv 1608.03983, without restarts)."""
    share = (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0))) / 2
    return lr * (COSINE_FLOOR + (1 - COSINE_FLOOR) * share)


def warmup(step: int, steps: int) -> float:
    """Return the factor of update ``step``, counted from 0, of a linear warm-up over the first ``steps`` updates."""
    return min(1.0, (step + 1) / steps) if steps else 1.0
