"""Prediction heads: one small branch per output map."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEAT_MAP_BIAS = -2.19  # sigmoid(-2.19) = 0.1: the prior of RetinaNet, section 4 of the CenterNet paper


def normal_001(conv: nn.Conv2d) -> None:
    """Draw the weights from N(0, 0.001 squared), and set the bias to 0."""
    nn.init.normal_(conv.weight, std=0.001)
    zero_bias(conv)


def zero_bias(conv: nn.Conv2d) -> None:
    """Set the bias to 0, and leave the weights."""
    set_bias(conv, 0)


def set_bias(conv: nn.Conv2d, value: float) -> None:
    """Set the bias to ``value``."""
    assert conv.bias is not None
    nn.init.constant_(conv.bias, value)


def make_head(
    name: str,
    in_channels: int,
    channels: int,
    head_conv: int,
    first_init: Callable[[nn.Conv2d], None] | None = None,
    last_init: Callable[[nn.Conv2d], None] | None = None,
) -> nn.Module:
    """Return a head: 3x3 convolution to ``head_conv`` channels, ReLU, 1x1 convolution; only the 1x1 if that is 0.

    A head with ``hm`` in its name is a heatmap: its last bias starts at -2.19, all else at PyTorch's default.
    The other heads are initialized by ``first_init`` (3x3) and ``last_init`` (1x1), which differ between the network
    families (None: PyTorch's default).
    """
    last = nn.Conv2d(head_conv or in_channels, channels, kernel_size=1)
    first = nn.Conv2d(in_channels, head_conv, kernel_size=3, padding=1) if head_conv else None
    if "hm" in name:
        set_bias(last, HEAT_MAP_BIAS)
    else:
        if first is not None and first_init:
            first_init(first)
        if last_init:
            last_init(last)
    return nn.Sequential(first, nn.ReLU(inplace=True), last) if first is not None else last


def run_heads(model: Any, x: Tensor, stack: int | None = None) -> dict[str, Tensor]:
    """Run the heads of a network, or of one of its stacks: (N, C, H, W) to raw maps (N, channels, H, W) by name."""
    if hasattr(model, "batched_heads"):  # of ``fuse``
        return model.batched_heads[stack or 0](x)
    heads = {name: getattr(model, name) for name in model.heads}
    return {name: head(x) if stack is None else head[stack](x) for name, head in heads.items()}


class BatchedHeads(nn.Module):
    """Heads on the same map with their 3x3 convolutions merged into one, for inference.

    Made from heads of one form, as ``make_head`` returns them; the outputs are theirs, by name and in their order.
    """

    def __init__(self, heads: dict[str, nn.Module]) -> None:
        super().__init__()
        convs = {name: [m for m in head.modules() if isinstance(m, nn.Conv2d)] for name, head in heads.items()}
        self.first = _concatenated([layers[0] for layers in convs.values()])
        self.widths = [layers[0].out_channels for layers in convs.values()]
        self.last = nn.ModuleDict({f"_{name}": layers[1] for name, layers in convs.items() if len(layers) == 2})
        self.names = list(heads)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map (N, C, H, W) to the heads' maps (N, channels, H, W)."""
        x = self.first(x)
        if not self.last:
            return dict(zip(self.names, x.split(self.widths, dim=1), strict=True))
        parts = F.relu(x, inplace=True).split(self.widths, dim=1)
        return {name: self.last[f"_{name}"](part) for name, part in zip(self.names, parts, strict=True)}


def _concatenated(convs: list[nn.Conv2d]) -> nn.Conv2d:
    """Return one convolution with the output channels of all; they differ only in their weights."""
    one = convs[0]
    width = sum(conv.out_channels for conv in convs)
    # On the device "meta" first: its initial values are not needed.
    (height, wide), padding = one.kernel_size, one.padding
    assert isinstance(padding, tuple)
    conv = nn.Conv2d(one.in_channels, width, (height, wide), padding=(padding[0], padding[1]), device="meta")
    for name in ("weight", "bias"):
        value = torch.cat([getattr(part, name).detach() for part in convs])
        setattr(conv, name, nn.Parameter(value, requires_grad=False))
    return conv
