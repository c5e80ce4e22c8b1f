"""Running averages of a network's weights (``--ema``)."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


class ModelEma:
    """The running average of a network's weights and statistics (``--ema``), which is what is validated and kept.

    Attributes:
        state: names to averages, as in the network's ``state_dict``.
        updates: so far. The first ones count more than the decay says, for the weights are far from good then.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network, self.decay, self.updates = network, decay, 0
        self.state = {name: value.detach().clone() for name, value in network.state_dict().items()}

    def load(self, saved: dict) -> None:
        """Go on with ``state`` and ``updates`` of a checkpoint."""
        self.updates = saved["updates"]
        for name, value in self.state.items():
            value.copy_(saved["state_dict"][name])

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights of now."""
        self.updates += 1
        weight = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        now = self.network.state_dict()
        names = [name for name, value in self.state.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.state[name] for name in names], [now[name] for name in names], weight)
        for name in self.state.keys() - set(names):
            self.state[name].copy_(now[name])

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Within a ``with`` the network has the averages for weights."""
        own = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        self.network.load_state_dict(self.state)
        try:
            yield
        finally:
            self.network.load_state_dict(own)
