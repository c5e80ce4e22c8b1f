"""Small networks: a backbone under a light feature pyramid (Lin et al., arXiv 1612.03144) that ends at stride 4.

``lite`` has a narrow residual backbone and about 1.2 million parameters. ``timm:NAME`` takes any convolutional
backbone of the ``timm`` package that provides feature maps at several strides. Neither uses deformable convolution, so
both export to every format and quantize well.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError
from .heads import make_head, run_heads, zero_bias
from .pretrained import rgb_to_bgr

STEM_CHANNELS = 24
LITE_CHANNELS = (48, 80, 128, 160)  # at strides 4, 8, 16, 32
LITE_BLOCKS = (1, 1, 2, 1)
NECK_CHANNELS = 64
STRIDES = (4, 8, 16, 32)  # of the maps that the neck takes


def conv_bn(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, act: bool = True) -> nn.Sequential:
    """Return a convolution without bias, batch normalization and, if ``act``, a ReLU."""
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False),
        nn.BatchNorm2d(out_channels),
    ]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if act else []))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is average-pooled and projected where the stride or width changes
    (ResNet-D, arXiv 1812.01187)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *conv_bn(in_channels, out_channels, 3, stride), *conv_bn(out_channels, out_channels, 3, act=False)
        )
        self.shortcut = nn.Sequential()
        if stride != 1:
            self.shortcut.append(nn.AvgPool2d(stride))
        if in_channels != out_channels:
            self.shortcut.extend(conv_bn(in_channels, out_channels, 1, act=False))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        return F.relu(self.body(x) + self.shortcut(x))


class LiteBackbone(nn.Module):
    """Narrow residual network; returns its maps at strides 4, 8, 16 and 32."""

    channels = LITE_CHANNELS

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, STEM_CHANNELS, 3, stride=2)
        self.stages = nn.ModuleList()
        channels = STEM_CHANNELS
        for width, count in zip(LITE_CHANNELS, LITE_BLOCKS, strict=True):
            blocks = [
                ResidualBlock(channels, width, stride=2),
                *(ResidualBlock(width, width) for _ in range(count - 1)),
            ]
            self.stages.append(nn.Sequential(*blocks))
            channels = width

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map (N, 3, H, W) to maps of ``channels`` at strides 4, 8, 16, 32."""
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class FeaturePyramid(nn.Module):
    """Top-down pathway: project every map to one width, add it to the upsampled coarser one, smooth the finest."""

    def __init__(self, in_channels: list[int] | tuple[int, ...], channels: int = NECK_CHANNELS) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(conv_bn(width, channels, 1, act=False) for width in in_channels)
        self.smooth = conv_bn(channels, channels, 3)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Map tensors at strides 4, 8, ... to one (N, channels, H/4, W/4)."""
        *finer, x = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)]
        for lateral in reversed(finer):
            x = F.relu(lateral + F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.smooth(x)


class FPNDetector(nn.Module):
    """Backbone, feature pyramid and heads.

    Args:
        backbone: a module that returns maps at strides 4, 8, ...; each stride is twice the preceding one.
        in_channels: their widths.
        heads: head name to number of channels, in the order of the task.
        head_conv: channels of the heads' 3x3 convolution, 0 for a single 1x1.
    """

    def __init__(
        self, backbone: nn.Module, in_channels: list[int] | tuple[int, ...], heads: dict[str, int], head_conv: int
    ) -> None:
        super().__init__()
        self.heads = dict(heads)
        self.not_fused: tuple[str, ...] = ()
        self.backbone = backbone
        self.neck = FeaturePyramid(in_channels)
        for name, channels in heads.items():
            head = make_head(name, NECK_CHANNELS, channels, head_conv)
            last = [layer for layer in head.modules() if isinstance(layer, nn.Conv2d)][-1]
            nn.init.normal_(last.weight, std=0.01)
            if "hm" not in name:
                zero_bias(last)
            setattr(self, name, head)

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        """Map (N, 3, H, W) to one dict of raw maps (N, channels, H/4, W/4)."""
        return [run_heads(self, self.neck(self.backbone(x)))]


def lite(depth: int, heads: dict[str, int], head_conv: int) -> FPNDetector:
    """Build ``--arch lite``. ``depth`` is unused: there is one size."""
    model = FPNDetector(LiteBackbone(), LITE_CHANNELS, heads, head_conv)
    for module in (*model.backbone.modules(), *model.neck.modules()):
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def timm_detector(name: str, depth: int, heads: dict[str, int], head_conv: int) -> FPNDetector:
    """Build ``--arch timm:NAME`` with random weights.

    Raises:
        UserError: timm is not installed or lacks the backbone, or the backbone has no maps at strides 4, 8, ...
    """
    backbone = _timm_backbone(name)
    model = FPNDetector(backbone, backbone.feature_info.channels(), heads, head_conv)
    model.not_fused = ("backbone",)
    return model


def load_timm_weights(model: nn.Module, name: str, log=print) -> None:
    """Load timm's ImageNet weights of the backbone, through timm's own download and cache, for images in BGR order.

    Raises UserError if timm has none or cannot get them.
    """
    try:
        state = _timm_backbone(name, pretrained=True).state_dict()
        model.get_submodule("backbone").load_state_dict(rgb_to_bgr(state))
    except (OSError, RuntimeError, ValueError) as error:  # no connection, no weights, or corrupt files
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"--pretrained imagenet: timm could not load the weights of {name} ({reason}); "
            "use --pretrained FILE or --pretrained none"
        ) from error
    log(f"--pretrained imagenet: weights of {name} loaded by timm")


def _timm_backbone(name: str, pretrained: bool = False) -> Any:
    """Return the backbone, which returns its maps at those of the strides 4, 8, 16 and 32 that it has."""
    try:
        import timm  # an optional package
    except ImportError:
        raise UserError(f"--arch timm:{name}: the package timm is missing; pip install timm") from None
    if not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:8])
        hint = f"for instance {close}" if close else "python -c 'import timm; print(timm.list_models())' lists them"
        raise UserError(f"--arch timm:{name}: timm {timm.__version__} has no such backbone; {hint}")
    try:
        whole: Any = timm.create_model(name, features_only=True)
        strides = whole.feature_info.reduction()
    except (RuntimeError, AttributeError, AssertionError, ValueError, TypeError, NotImplementedError) as error:
        raise UserError(f"--arch timm:{name}: this backbone does not provide feature maps ({error})") from None
    used = [strides.index(stride) for stride in STRIDES if stride in strides]
    if len(used) < 2 or strides[used[0]] != 4:
        raise UserError(f"--arch timm:{name}: needs feature maps at strides 4 and 8 or more; it has {strides}")
    indices = [whole.feature_info.out_indices[k] for k in used]  # some networks do not count from 0
    backbone = timm.create_model(name, features_only=True, out_indices=indices, pretrained=pretrained)
    if not pretrained:
        _check_maps(backbone, name)
    return backbone


def _check_maps(backbone: Any, name: str) -> None:
    """Raise UserError unless a backbone takes images of any size and returns maps (N, C, H, W)."""
    side = 2 * 32
    try:
        with torch.no_grad():
            maps = backbone.eval()(torch.zeros(1, 3, side, side))
        right = [(1, c, side // s, side // s) for c, s in zip(backbone.feature_info.channels(), STRIDES, strict=False)]
        if [tuple(one.shape) for one in maps] != right[: len(maps)]:
            raise ValueError(f"its maps have the shapes {', '.join(str(tuple(one.shape)) for one in maps)}")
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"--arch timm:{name}: cannot be used on images of {side} x {side} pixels ({reason}); "
            "choose a convolutional network, such as resnet18"
        ) from error
    backbone.train()
