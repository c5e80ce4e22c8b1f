"""The prediction heads that every network ends in: one small branch a map."""

from collections.abc import Callable

from torch import nn

HEAT_MAP_BIAS = -2.19  # sigmoid(-2.19) = 0.1: the prior of RetinaNet, section 4 of the CenterNet paper


def normal_001(conv: nn.Conv2d) -> None:
    """Weights from N(0, 0.001 squared), bias 0."""
    nn.init.normal_(conv.weight, std=0.001)
    nn.init.zeros_(conv.bias)


def zero_bias(conv: nn.Conv2d) -> None:
    """Bias 0, weights as they are."""
    nn.init.zeros_(conv.bias)


def make_head(
    name: str,
    in_channels: int,
    channels: int,
    head_conv: int,
    first_init: Callable[[nn.Conv2d], None] | None = None,
    last_init: Callable[[nn.Conv2d], None] | None = None,
) -> nn.Module:
    """One head: 3x3 convolution to ``head_conv`` channels, ReLU, 1x1 convolution; only the 1x1 if ``head_conv`` is 0.

    A head with ``hm`` in its name is a heat map: its last bias starts at -2.19, all else at the library's default.
    The other heads are initialised by ``first_init`` (3x3) and ``last_init`` (1x1), which differ between the network
    families (None: the library's default).
    """
    last = nn.Conv2d(head_conv or in_channels, channels, kernel_size=1)
    first = nn.Conv2d(in_channels, head_conv, kernel_size=3, padding=1) if head_conv else None
    if "hm" in name:
        nn.init.constant_(last.bias, HEAT_MAP_BIAS)
    else:
        if first is not None and first_init:
            first_init(first)
        if last_init:
            last_init(last)
    return nn.Sequential(first, nn.ReLU(inplace=True), last) if first is not None else last
