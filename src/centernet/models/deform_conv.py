"""Modulated deformable convolution (Zhu et al., Deformable ConvNets v2, arXiv 1811.11168)."""

import math

import torch
from torch import Tensor, nn

from ..ops.deform_conv import deform_conv2d


class DCN(nn.Module):
    """3x3 deformable convolution that predicts its own offsets and masks; parameters named as in the reference.

    A new layer has offsets 0 and masks 0.5, so it starts as half an ordinary convolution. Of the 27 channels that
    ``conv_offset_mask`` gives, 0..17 are the offsets (dy, dx interleaved by tap) and 18..26 the mask logits.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.conv_offset_mask = nn.Conv2d(in_channels, 27, kernel_size=3, padding=1)
        bound = 1 / math.sqrt(in_channels * 9)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.zeros_(self.conv_offset_mask.weight)
        nn.init.zeros_(self.conv_offset_mask.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C_out, H, W)."""
        maps = self.conv_offset_mask(x)
        offset, mask = maps[:, :18], maps[:, 18:].sigmoid()
        return deform_conv2d(x, offset, self.weight, self.bias, padding=1, mask=mask)


def fill_bilinear(conv: nn.ConvTranspose2d) -> None:
    """Make the filters ``weight[:, 0]`` of a transposed convolution bilinear interpolation.

    Depth-wise layers become plain up-sampling. In dense layers only output channel 0 is filled and the rest keeps
    its random start: that is what the reference's ``fill_up_weights`` does, and its curves are compared with ours.
    """
    kernel = conv.weight.shape[-1]
    factor = math.ceil(kernel / 2)
    center = (2 * factor - 1 - factor % 2) / (2 * factor)
    line = 1 - (torch.arange(kernel) / factor - center).abs()
    with torch.no_grad():
        conv.weight[:, 0] = torch.outer(line, line).to(conv.weight.dtype)
