"""Networks: ``create_model``, and what the rest of the code may know about an architecture before it is built."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..errors import UserError
from .dla import DLA_WEIGHTS, DLASeg, DLAv0Seg
from .hourglass import StackedHourglass
from .pretrained import Download, load_pretrained
from .resnet import IMAGENET_WEIGHTS, ResNetDCN, ResNetDeconv
from .weights import load_model, read_checkpoint, save_model

__all__ = ["ARCHITECTURES", "Architecture", "create_model", "describe", "load_model", "read_checkpoint", "save_model"]


@dataclass(frozen=True)
class Architecture:
    """One family of networks.

    Attributes:
        build: (depth, heads, head_conv) to the network.
        depths: the depths that exist; a family without depths is written without ``_depth``.
        head_conv: default width of the heads' 3x3 convolution.
        num_stacks: how many dicts ``forward`` returns.
        pad: with ``--keep_res`` a side becomes ``(side | pad) + 1``; pad + 1 is the network's largest stride.
        imagenet: depth to the files of ImageNet weights, tried in order; none: no such weights exist.
        imagenet_prefix: where in the network those weights belong (``base.``), empty for the top.
        backbone: starts of the names of what such weights must have.
    """

    build: Callable[[int, dict[str, int], int], nn.Module]
    depths: tuple[int, ...] = ()
    head_conv: int = 64
    num_stacks: int = 1
    pad: int = 31
    imagenet: dict[int, list[Download]] = field(default_factory=dict)
    imagenet_prefix: str = ""
    backbone: tuple[str, ...] = ()


_RESNET: dict[str, Any] = {
    "depths": tuple(IMAGENET_WEIGHTS),
    "imagenet": IMAGENET_WEIGHTS,
    "backbone": ("conv1.", "bn1.", "layer"),
}
_DLA: dict[str, Any] = {
    "depths": (34,),
    "head_conv": 256,
    "imagenet": DLA_WEIGHTS,
    "imagenet_prefix": "base.",
    "backbone": ("base.",),
}

# One line a family: the part of ``--arch`` before the underscore.
ARCHITECTURES = {
    "res": Architecture(ResNetDeconv, **_RESNET),
    "resdcn": Architecture(ResNetDCN, **_RESNET),
    "dla": Architecture(DLASeg, **_DLA),
    "dlav0": Architecture(DLAv0Seg, **_DLA),
    "hourglass": Architecture(StackedHourglass, num_stacks=2, pad=127),
}


def describe(arch: str) -> tuple[Architecture, int]:
    """The family and the depth (0 without one) of an architecture's name such as ``resdcn_18``.

    Raises UserError when there is no such network.
    """
    family, _, depth = arch.partition("_")
    architecture = ARCHITECTURES.get(family)
    if architecture is not None and depth in [str(d) for d in architecture.depths or ("",)]:
        return architecture, int(depth or 0)
    names = [f"{name}_{d}" if d else name for name, a in ARCHITECTURES.items() for d in a.depths or (0,)]
    raise UserError(f"--arch {arch}: there is no such network; choose from {', '.join(names)}")


def create_model(
    arch: str, heads: dict[str, int], head_conv: int, pretrained: str | None = None, log=print
) -> nn.Module:
    """Build a network.

    Args:
        arch: name such as ``resdcn_18``.
        heads: head name to channels, in the order of the task.
        head_conv: channels of the heads' 3x3 convolution, 0 for a single 1x1.
        pretrained: ``imagenet``, a file of backbone weights, or None / ``none`` for a random start.
        log: what is called with the lines that say what was loaded.

    Returns:
        A module; ``forward(x)`` gives ``list[dict[str, Tensor]]``, one dict of raw maps (no sigmoid) a stack.

    Raises:
        UserError: unknown name, or weights that cannot be had.
    """
    architecture, depth = describe(arch)
    model = architecture.build(depth, heads, head_conv)
    if pretrained not in (None, "", "none"):
        downloads, prefix = architecture.imagenet.get(depth, []), architecture.imagenet_prefix
        load_pretrained(model, arch, pretrained, downloads, prefix, architecture.backbone, log)
    return model
