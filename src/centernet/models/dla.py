"""Deep layer aggregation with an upsampling neck: ``dla_34`` and ``dlav0_34``.

The backbone is DLA-34 (Yu et al., arXiv 1707.06484): trees of residual blocks whose outputs are joined by 1x1 "roots".
The neck merges its maps step by step into one at stride 4, in ``dla_34`` with deformable convolutions (CenterNet paper,
figure 6 c), in ``dlav0_34`` with plain ones. Parameter names and their order are the reference's.
"""

import math

import torch
from torch import Tensor, nn

from .deform_conv import DCN, fill_bilinear
from .heads import make_head, normal_001, run_heads, zero_bias

CHANNELS = (16, 32, 64, 128, 256, 512)


class Block(nn.Module):
    """Two 3x3 convolutions plus a residual, which is the input itself unless another one is given."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Map (N, C, H, W) to (N, C_out, H/stride, W/stride), which is also the shape of ``residual``."""
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(out + (x if residual is None else residual))


class Root(nn.Module):
    """1x1 convolution of the concatenation of maps of one size."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, *maps: Tensor) -> Tensor:
        """Concatenate and map (N, C_i, H, W) to (N, C_out, H, W)."""
        return self.relu(self.bn(self.conv(torch.cat(maps, dim=1))))


class Tree(nn.Module):
    """Two subtrees (blocks at ``levels`` 1), joined by a root together with the maps in ``children``.

    The shortcut ``project`` belongs to the block ``tree1`` of a tree with ``levels`` 1. A deeper tree has one too, but
    its ``tree1`` is a tree with its own shortcut, so that ``project`` does not influence the output. It is kept for
    compatibility with checkpoints, and updates its running statistics in training as the reference's does; its
    parameters never get a gradient.
    """

    def __init__(
        self,
        levels: int,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        level_root: bool = False,
        root_channels: int = 0,
    ) -> None:
        super().__init__()
        root_channels = (root_channels or 2 * out_channels) + (in_channels if level_root else 0)
        if levels == 1:
            self.tree1: nn.Module = Block(in_channels, out_channels, stride)
            self.tree2: nn.Module = Block(out_channels, out_channels)
            self.root = Root(root_channels, out_channels)
        else:
            self.tree1 = Tree(levels - 1, in_channels, out_channels, stride)
            self.tree2 = Tree(levels - 1, out_channels, out_channels, root_channels=root_channels + out_channels)
        self.levels = levels
        self.level_root = level_root
        self.downsample = nn.MaxPool2d(stride, stride) if stride > 1 else nn.Identity()
        self.project: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.project = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor, children: tuple[Tensor, ...] = ()) -> Tensor:
        """Map (N, C, H, W) to (N, C_out, H/stride, W/stride), which is also the size of the ``children``."""
        bottom = self.downsample(x)
        if self.level_root:
            children = (*children, bottom)
        if self.levels == 1:
            x1 = self.tree1(x, self.project(bottom))
            return self.root(self.tree2(x1), x1, *children)
        if self.training:
            with torch.no_grad():
                self.project(bottom)
        x1 = self.tree1(x)
        return self.tree2(x1, (*children, x1))


class DLA34(nn.Module):
    """The backbone; ``fc`` adds the classifier that some checkpoints contain and that is never used."""

    def __init__(self, fc: bool = False) -> None:
        super().__init__()
        c = CHANNELS
        self.base_layer = _conv_bn_relu(3, c[0], kernel=7)
        self.level0 = _conv_bn_relu(c[0], c[0])
        self.level1 = _conv_bn_relu(c[0], c[1], stride=2)
        self.level2 = Tree(1, c[1], c[2], stride=2)
        self.level3 = Tree(2, c[2], c[3], stride=2, level_root=True)
        self.level4 = Tree(2, c[3], c[4], stride=2, level_root=True)
        self.level5 = Tree(1, c[4], c[5], stride=2, level_root=True)
        if fc:
            self.fc = nn.Conv2d(c[5], 1000, kernel_size=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map (N, 3, H, W) to the maps of level2 ... level5: 64, 128, 256, 512 channels at strides 4, 8, 16, 32."""
        x = self.level1(self.level0(self.base_layer(x)))
        maps = []
        for level in (self.level2, self.level3, self.level4, self.level5):
            x = level(x)
            maps.append(x)
        return maps


class DeformConv(nn.Module):
    """Deformable convolution, batch normalization, ReLU; the last two are registered first, as in the reference."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.actf = nn.Sequential(nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))
        self.conv = DCN(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C_out, H, W)."""
        return self.actf(self.conv(x))


class IDAUp(nn.Module):
    """Iterative aggregation: map i is resized to the first, added to the result of i - 1, and convolved.

    ``channels`` and ``factors`` are those of the maps, relative to the first, which needs neither.
    """

    def __init__(self, out_channels: int, channels: tuple[int, ...], factors: tuple[int, ...]) -> None:
        super().__init__()
        for i in range(1, len(channels)):
            setattr(self, f"proj_{i}", DeformConv(channels[i], out_channels))
            setattr(self, f"up_{i}", _bilinear_up(out_channels, factors[i]))
            setattr(self, f"node_{i}", DeformConv(out_channels, out_channels))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return a map (N, C_out, H, W) for each map (N, C_i, H/f_i, W/f_i), the first of them unchanged."""
        out = maps[:1]
        for i, x in enumerate(maps[1:], start=1):
            proj, up, node = (getattr(self, f"{name}_{i}") for name in ("proj", "up", "node"))
            out.append(node(up(proj(x)) + out[-1]))
        return out


class DLAUp(nn.Module):
    """Aggregates the last 2, then 3, then 4 of the backbone's maps, each time to the size of the first of them."""

    def __init__(self) -> None:
        super().__init__()
        self.ida_0 = IDAUp(256, (256, 512), (1, 2))
        self.ida_1 = IDAUp(128, (128, 256, 256), (1, 2, 2))
        self.ida_2 = IDAUp(64, (64, 128, 128, 128), (1, 2, 2, 2))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return four maps of the shapes of the backbone's four maps, finest first; the last one is unchanged."""
        maps = list(maps)
        out = maps[-1:]
        for first, ida in zip((2, 1, 0), (self.ida_0, self.ida_1, self.ida_2), strict=True):
            maps[first:] = ida(maps[first:])
            out.insert(0, maps[-1])
        return out


class PlainIDAUp(nn.Module):
    """``IDAUp`` of ``dlav0``: 1x1 convolutions first, and 3x3 convolutions of the concatenation instead of the sum."""

    def __init__(self, out_channels: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        for i in range(1, len(channels)):
            setattr(self, f"proj_{i}", _conv_bn_relu(channels[i], out_channels, kernel=1))
            setattr(self, f"up_{i}", _bilinear_up(out_channels, 2))
        for i in range(1, len(channels)):
            setattr(self, f"node_{i}", _conv_bn_relu(2 * out_channels, out_channels))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return (N, C_out, H, W) for each map (N, C_i, H_i, W_i), all but the first at half size."""
        out = maps[:1]
        for i, x in enumerate(maps[1:], start=1):
            proj, up, node = (getattr(self, f"{name}_{i}") for name in ("proj", "up", "node"))
            out.append(node(torch.cat([out[-1], up(proj(x))], dim=1)))
        return out


class PlainDLAUp(nn.Module):
    """``DLAUp`` of ``dlav0``, which returns the finest map only."""

    def __init__(self) -> None:
        super().__init__()
        self.ida_0 = PlainIDAUp(256, (256, 512))
        self.ida_1 = PlainIDAUp(128, (128, 256, 256))
        self.ida_2 = PlainIDAUp(64, (64, 128, 128, 128))

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Map the backbone's four maps to one (N, 64, H/4, W/4)."""
        maps = list(maps)
        for first, ida in zip((2, 1, 0), (self.ida_0, self.ida_1, self.ida_2), strict=True):
            maps[first:] = ida(maps[first:])
        return maps[-1]


_DEAD_PROJECTS = tuple(
    f"base.{level}.project.{name}" for level in ("level3", "level4") for name in ("0.weight", "1.weight", "1.bias")
)


class DLASeg(nn.Module):
    """``dla_34``.

    Attributes:
        unused_parameters: names of the parameters that do not influence the output and never get a gradient; they are
            frozen for distributed training, which would otherwise wait for their gradients.
        ignored_entries: prefixes of entries of checkpoint files that this network does not use.
        reference_entries: shapes of the parameters that only the reference's network has.
    """

    unused_parameters = _DEAD_PROJECTS
    ignored_entries = ("base.fc.",)
    reference_entries = {"base.fc.weight": (1000, 512, 1, 1), "base.fc.bias": (1000,)}

    def __init__(self, depth: int, heads: dict[str, int], head_conv: int) -> None:
        super().__init__()
        self.heads = dict(heads)
        self.base = DLA34()
        self.dla_up = DLAUp()
        self.ida_up = IDAUp(64, (64, 128, 256), (1, 2, 4))
        for name, out in heads.items():
            setattr(self, name, make_head(name, 64, out, head_conv, first_init=zero_bias, last_init=zero_bias))

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        """Map (N, 3, H, W), H and W multiples of 32, to one dict of raw maps (N, channels, H/4, W/4)."""
        x = self.ida_up(self.dla_up(self.base(x))[:3])[-1]
        return [run_heads(self, x)]


class DLAv0Seg(nn.Module):
    """``dlav0_34``: without deformable convolutions. Attributes as in ``DLASeg``."""

    unused_parameters = (*_DEAD_PROJECTS, "base.fc.weight", "base.fc.bias")

    def __init__(self, depth: int, heads: dict[str, int], head_conv: int) -> None:
        super().__init__()
        self.heads = dict(heads)
        self.base = DLA34(fc=True)
        self.dla_up = PlainDLAUp()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        for name, out in heads.items():
            setattr(self, name, make_head(name, 64, out, head_conv, first_init=normal_001, last_init=normal_001))

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        """Map (N, 3, H, W), H and W multiples of 32, to one dict of raw maps (N, channels, H/4, W/4)."""
        x = self.dla_up(self.base(x))
        return [run_heads(self, x)]


def _conv_bn_relu(in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def _bilinear_up(channels: int, factor: int) -> nn.ConvTranspose2d:
    up = nn.ConvTranspose2d(
        channels, channels, 2 * factor, stride=factor, padding=factor // 2, groups=channels, bias=False
    )
    fill_bilinear(up)
    return up
