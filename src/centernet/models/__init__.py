"""Model registry: ``create_model``, and the properties of an architecture that are known before it is built.

Importing this package does not import PyTorch, so that the command line can look up architectures quickly.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..registry import resolve
from .downloads import DLA_WEIGHTS, IMAGENET_WEIGHTS, Download

if TYPE_CHECKING:
    from torch import nn

    from .weights import load_model, read_checkpoint, save_model

__all__ = ["ARCHITECTURES", "Architecture", "create_model", "describe", "load_model", "read_checkpoint", "save_model"]


def __getattr__(name: str) -> Any:
    if name in ("load_model", "read_checkpoint", "save_model"):
        from . import weights

        return getattr(weights, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@dataclass(frozen=True)
class Architecture:
    """One family of networks.

    Attributes:
        build: callable that creates the network from ``(depth, heads, head_conv)``, or its import reference.
        depths: available depths; the name of a family without depths has no ``_depth`` suffix.
        head_conv: default width of the heads' 3x3 convolution.
        num_stacks: number of dicts that ``forward`` returns.
        pad: with ``--keep_res`` a side is padded to ``(side | pad) + 1``; pad + 1 is the network's largest stride.
        imagenet: ImageNet weight files by depth, tried in order; empty if none are published.
        imagenet_prefix: prefix of the parameters that those weights initialize (``base.``); empty for the top level.
        backbone: parameter name prefixes that such weights must contain.
        timm: name of a backbone of the package timm, which downloads its weights itself.
        stages: module names of the backbone's stages, from the input on, for ``--freeze``; empty: no separate backbone.
    """

    build: "Callable[[int, dict[str, int], int], nn.Module] | str"
    depths: tuple[int, ...] = ()
    head_conv: int = 64
    num_stacks: int = 1
    pad: int = 31
    imagenet: dict[int, list[Download]] = field(default_factory=dict)
    imagenet_prefix: str = ""
    backbone: tuple[str, ...] = ()
    timm: str = ""
    stages: tuple[tuple[str, ...], ...] = ()

    @property
    def has_imagenet(self) -> bool:
        """Return whether ``--pretrained imagenet`` is possible."""
        return bool(self.imagenet or self.timm)


_RESNET: dict[str, Any] = {
    "depths": tuple(IMAGENET_WEIGHTS),
    "imagenet": IMAGENET_WEIGHTS,
    "backbone": ("conv1.", "bn1.", "layer"),
    "stages": (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",)),
}
_DLA: dict[str, Any] = {
    "depths": (34,),
    "head_conv": 256,
    "imagenet": DLA_WEIGHTS,
    "imagenet_prefix": "base.",
    "backbone": ("base.",),
    "stages": (("base.base_layer",), *((f"base.level{k}",) for k in range(6))),
}
_FPN: dict[str, Any] = {"head_conv": 0, "imagenet_prefix": "backbone.", "backbone": ("backbone.",)}

# One line per family: the part of ``--arch`` before the underscore.
ARCHITECTURES = {
    "res": Architecture("centernet.models.resnet:ResNetDeconv", **_RESNET),
    "resdcn": Architecture("centernet.models.resnet:ResNetDCN", **_RESNET),
    "dla": Architecture("centernet.models.dla:DLASeg", **_DLA),
    "dlav0": Architecture("centernet.models.dla:DLAv0Seg", **_DLA),
    "hourglass": Architecture("centernet.models.hourglass:StackedHourglass", num_stacks=2, pad=127),
    "lite": Architecture(
        "centernet.models.fpn:lite", **_FPN, stages=(("backbone.stem",), *((f"backbone.stages.{k}",) for k in range(4)))
    ),
}
TIMM = "timm:"  # --arch timm:NAME


def describe(arch: str) -> tuple[Architecture, int]:
    """Return the family and the depth (0 without one) of an architecture name such as ``resdcn_18``.

    Raises UserError for an unknown name.
    """
    if arch.startswith(TIMM) and arch != TIMM:
        name = arch.removeprefix(TIMM)
        return Architecture(functools.partial(_build_timm, name), timm=name, stages=(("backbone",),), **_FPN), 0
    family, _, depth = arch.partition("_")
    architecture = ARCHITECTURES.get(family)
    if architecture is not None and depth in [str(d) for d in architecture.depths or ("",)]:
        return architecture, int(depth or 0)
    names = [f"{name}_{d}" if d else name for name, a in ARCHITECTURES.items() for d in a.depths or (0,)]
    names.append(f"{TIMM}NAME")
    raise UserError(f"--arch {arch}: unknown network; choose from {', '.join(names)}")


def _build_timm(name: str, depth: int, heads: dict[str, int], head_conv: int) -> "nn.Module":
    from .fpn import timm_detector

    return timm_detector(name, depth, heads, head_conv)


def create_model(
    arch: str,
    heads: dict[str, int],
    head_conv: int,
    pretrained: str | None = None,
    log: Callable[[str], None] = print,
) -> "nn.Module":
    """Build a network.

    Args:
        arch: name such as ``resdcn_18``.
        heads: head name to channels, in the order of the task.
        head_conv: channels of the heads' 3x3 convolution, 0 for a single 1x1.
        pretrained: ``imagenet``, a file of backbone weights, or None / ``none`` for a random start.
        log: called with messages about what was loaded.

    Returns:
        A module; ``forward(x)`` returns ``list[dict[str, Tensor]]``, one dict of raw maps (no sigmoid) per stack.

    Raises:
        UserError: unknown name, or weights that are not available.
    """
    architecture, depth = describe(arch)
    build = resolve(architecture.build) if isinstance(architecture.build, str) else architecture.build
    model = build(depth, heads, head_conv)
    if architecture.timm and pretrained == "imagenet":
        from .fpn import load_timm_weights

        load_timm_weights(model, architecture.timm, log)
    elif pretrained not in (None, "", "none"):
        from .pretrained import load_pretrained

        downloads, prefix = architecture.imagenet.get(depth, []), architecture.imagenet_prefix
        rgb = bool(architecture.timm)
        load_pretrained(model, arch, pretrained, downloads, prefix, architecture.backbone, log, rgb)
    return model
