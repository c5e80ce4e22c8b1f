"""Two stacked hourglasses: ``hourglass``.

Newell et al., "Stacked Hourglass Networks for Human Pose Estimation" (arXiv 1603.06937), in the form of CornerNet (Law
and Deng, arXiv 1808.01244): strided residuals instead of pooling. Parameter names and their order are the reference's.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .heads import HEAT_MAP_BIAS, run_heads, set_bias

WIDTHS = (256, 256, 384, 384, 384, 512)  # channels at strides 4, 8, 16, 32, 64, 128
COUNTS = (2, 2, 2, 2, 2, 4)  # residuals there
STACKS = 2


class Convolution(nn.Module):
    """Convolution, batch normalization, ReLU; without ``bn`` a bias instead of the normalization."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, bn: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=not bn)
        self.bn = nn.BatchNorm2d(out_channels) if bn else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C_out, H/stride, W/stride)."""
        return self.relu(self.bn(self.conv(x)))


class Residual(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        changes = stride != 1 or in_channels != out_channels
        self.skip = _conv1x1_bn(in_channels, out_channels, stride) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C_out, H/stride, W/stride)."""
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(out + self.skip(x))


class Hourglass(nn.Module):
    """One level of an hourglass: the sum of residuals at this size and of the next level at half the size."""

    def __init__(self, level: int = 0) -> None:
        super().__init__()
        width, inner, count = WIDTHS[level], WIDTHS[level + 1], COUNTS[level]
        innermost = level + 2 == len(WIDTHS)
        self.up1 = nn.Sequential(*(Residual(width, width) for _ in range(count)))
        self.low1 = nn.Sequential(Residual(width, inner, stride=2), *(Residual(inner, inner) for _ in range(count - 1)))
        self.low2: nn.Module
        if innermost:
            self.low2 = nn.Sequential(*(Residual(inner, inner) for _ in range(COUNTS[-1])))
        else:
            self.low2 = Hourglass(level + 1)
        self.low3 = nn.Sequential(*(Residual(inner, inner) for _ in range(count - 1)), Residual(inner, width))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        return self.up1(x) + F.interpolate(self.low3(self.low2(self.low1(x))), scale_factor=2, mode="nearest")


class StackedHourglass(nn.Module):
    """``hourglass``: every stack has its own heads, and all of them are trained. Depth and head_conv have no effect.

    Uses PyTorch's default initialization; ImageNet weights do not exist.
    """

    def __init__(self, depth: int, heads: dict[str, int], head_conv: int) -> None:
        super().__init__()
        self.heads = dict(heads)
        width = WIDTHS[0]
        self.pre = nn.Sequential(Convolution(3, 128, kernel=7, stride=2), Residual(128, width, stride=2))
        self.kps = nn.ModuleList(Hourglass() for _ in range(STACKS))
        self.cnvs = nn.ModuleList(Convolution(width, width, kernel=3) for _ in range(STACKS))
        # Between two stacks: the sum of its input and its output, each through a 1x1, then a residual.
        self.inters = nn.ModuleList(Residual(width, width) for _ in range(STACKS - 1))
        self.inters_ = nn.ModuleList(_conv1x1_bn(width, width) for _ in range(STACKS - 1))
        self.cnvs_ = nn.ModuleList(_conv1x1_bn(width, width) for _ in range(STACKS - 1))
        for name, out in heads.items():
            setattr(self, name, nn.ModuleList(_head(name, width, out) for _ in range(STACKS)))

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        """Map (N, 3, H, W), H and W multiples of 128, to a dict of raw maps (N, channels, H/4, W/4) for each stack."""
        x = self.pre(x)
        outputs = []
        for stack in range(STACKS):
            features = self.cnvs[stack](self.kps[stack](x))
            outputs.append(run_heads(self, features, stack))
            if stack < STACKS - 1:
                x = self.inters[stack](F.relu(self.inters_[stack](x) + self.cnvs_[stack](features)))
        return outputs


def _conv1x1_bn(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


def _head(name: str, in_channels: int, channels: int) -> nn.Sequential:
    last = nn.Conv2d(in_channels, channels, kernel_size=1)
    if "hm" in name:
        set_bias(last, HEAT_MAP_BIAS)
    return nn.Sequential(Convolution(in_channels, in_channels, kernel=3, bn=False), last)
