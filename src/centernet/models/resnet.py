"""Residual networks with an upsampling neck: ``res_18`` ... ``res_152`` and ``resdcn_18`` ... ``resdcn_152``.

``res`` is the network of Simple Baselines (Xiao et al., arXiv 1804.06208): three transposed convolutions.
``resdcn`` puts a deformable convolution before each of them and halves the channels each time (CenterNet paper,
figure 6 b). Parameter names and their order are the reference's, so that its checkpoints and optimizer states load.
"""

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from .deform_conv import DCN, fill_bilinear
from .heads import make_head, normal_001, run_heads

BLOCKS: dict[int, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    18: (BasicBlock, [2, 2, 2, 2]),
    34: (BasicBlock, [3, 4, 6, 3]),
    50: (Bottleneck, [3, 4, 6, 3]),
    101: (Bottleneck, [3, 4, 23, 3]),
    152: (Bottleneck, [3, 8, 36, 3]),
}


class PoseResNet(nn.Module):
    """ResNet, upsampling to stride 4, heads. Subclasses build ``deconv_layers`` and the heads."""

    deconv_layers: nn.Module

    def __init__(self, depth: int, heads: dict[str, int]) -> None:
        super().__init__()
        block, counts = BLOCKS[depth]
        self.heads = dict(heads)
        self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = _stage(block, 64, 64, counts[0], stride=1)
        self.layer2 = _stage(block, 64 * block.expansion, 128, counts[1], stride=2)
        self.layer3 = _stage(block, 128 * block.expansion, 256, counts[2], stride=2)
        self.layer4 = _stage(block, 256 * block.expansion, 512, counts[3], stride=2)
        self.out_channels = 512 * block.expansion

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        """Map (N, 3, H, W), H and W multiples of 32, to one dict of raw maps (N, channels, H/4, W/4)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = self.deconv_layers(x)
        return [run_heads(self, x)]


class ResNetDeconv(PoseResNet):
    """``res_L``: three transposed convolutions of 256 channels."""

    def __init__(self, depth: int, heads: dict[str, int], head_conv: int) -> None:
        super().__init__(depth, heads)
        layers: list[nn.Module] = []
        channels = self.out_channels
        for _ in range(3):
            up = nn.ConvTranspose2d(channels, 256, kernel_size=4, stride=2, padding=1, bias=False)
            nn.init.normal_(up.weight, std=0.001)
            layers += [up, nn.BatchNorm2d(256), nn.ReLU(inplace=True)]
            channels = 256
        self.deconv_layers = nn.Sequential(*layers)
        # The reference registers these heads alphabetically (optimizer states depend on that order).
        for name in sorted(heads):
            setattr(self, name, make_head(name, 256, heads[name], head_conv, last_init=normal_001))


class ResNetDCN(PoseResNet):
    """``resdcn_L``: deformable convolution and transposed convolution, to 256, 128 and 64 channels."""

    def __init__(self, depth: int, heads: dict[str, int], head_conv: int) -> None:
        super().__init__(depth, heads)
        layers: list[nn.Module] = []
        channels = self.out_channels
        for planes in (256, 128, 64):
            up = nn.ConvTranspose2d(planes, planes, kernel_size=4, stride=2, padding=1, bias=False)
            fill_bilinear(up)
            layers += [DCN(channels, planes), nn.BatchNorm2d(planes), nn.ReLU(inplace=True)]
            layers += [up, nn.BatchNorm2d(planes), nn.ReLU(inplace=True)]
            channels = planes
        self.deconv_layers = nn.Sequential(*layers)
        for name, out in heads.items():
            setattr(self, name, make_head(name, 64, out, head_conv, first_init=normal_001, last_init=normal_001))


def _stage(block: type[BasicBlock | Bottleneck], inplanes: int, planes: int, count: int, stride: int) -> nn.Sequential:
    outplanes = planes * block.expansion
    downsample = None
    if stride != 1 or inplanes != outplanes:
        downsample = nn.Sequential(
            nn.Conv2d(inplanes, outplanes, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(outplanes)
        )
    blocks = [block(inplanes, planes, stride, downsample)]
    blocks += [block(outplanes, planes) for _ in range(1, count)]
    return nn.Sequential(*blocks)
