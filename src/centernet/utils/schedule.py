"""The learning rate schedule."""

from collections.abc import Iterable


def step_decay(lr: float, steps: Iterable[int], epoch: int) -> float:
    """Return the learning rate of an epoch, counted from 1: ``lr`` divided by 10 after each epoch of ``steps``."""
    return lr * 0.1 ** sum(step < epoch for step in steps)
