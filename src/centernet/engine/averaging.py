"""Exponential moving averages of a model's weights (``--ema``)."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from ..models.tensors import tensor_problem


class ModelEma:
    """Exponential moving averages of a model's weights and batch statistics, which are validated and kept as the best.

    Attributes:
        state: averages by name, as in the model's ``state_dict``.
        updates: number of updates so far. Early updates weigh more than ``decay`` implies, since the initial
            weights are poor.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network, self.decay, self.updates = network, decay, 0
        current = network.state_dict()
        self.state = {name: value.clone() for name, value in current.items()}
        # Pairs of lists: averages, and the network's own tensors, which training changes in place.
        averaged = [name for name, value in current.items() if value.is_floating_point()]
        copied = [name for name in current if name not in averaged]
        self._averaged, self._copied = (
            ([self.state[name] for name in names], [current[name] for name in names]) for names in (averaged, copied)
        )

    @torch.no_grad()
    def load(self, saved: dict) -> list[str]:
        """Restore ``state`` and ``updates`` of a checkpoint.

        Returns:
            Descriptions of the entries that cannot be used, whose averages start from the current weights.
        """
        updates, state_dict = saved.get("updates"), saved.get("state_dict")
        if type(updates) is not int or updates < 0 or not isinstance(state_dict, dict):
            return ["all of them"]
        self.updates = updates
        problems = []
        for name, value in self.state.items():
            problem = tensor_problem(state_dict.get(name), value.shape)
            if problem is None:
                value.copy_(state_dict[name])
            else:
                problems.append(f"{name} {problem}" if name in state_dict else f"{name} is missing")
        return problems

    @torch.no_grad()
    def update(self) -> None:
        """Update the averages with the current weights."""
        self.updates += 1
        weight = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(*self._averaged, weight)
        for count, current in zip(*self._copied, strict=True):
            count.copy_(current)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the averages as weights while the block runs."""
        current = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        self.network.load_state_dict(self.state)
        try:
            yield
        finally:
            self.network.load_state_dict(current)
