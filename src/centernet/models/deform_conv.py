"""Modulated deformable convolution (Zhu et al., Deformable ConvNets v2, arXiv 1811.11168)."""

import math

import torch
from torch import Tensor, nn

from ..ops.deform_conv import deform_conv2d, pair
from .heads import zero_bias


class DCN(nn.Module):
    """Deformable convolution that predicts its offsets and masks; arguments and parameter names are the reference's.

    A new layer has offsets 0 and masks 0.5, so it starts as half an ordinary convolution. With T = kh * kw taps and G
    deformable groups, ``conv_offset_mask`` outputs 3GT channels: 2GT offsets (dy and dx interleaved by tap, group after
    group), then GT mask logits.

    Args:
        in_channels, out_channels: channels of the input and output.
        kernel_size, stride, padding, dilation: as in ``nn.Conv2d``, a number or (height, width). ``conv_offset_mask``
            has the same geometry, so that its output has the size of the layer's; the reference leaves out the
            dilation there and works with dilation 1 only.
        deformable_groups: number of groups of input channels with separate offsets and masks.

    Raises:
        ValueError: ``in_channels`` is not divisible by ``deformable_groups``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 1,
        dilation: int | tuple[int, int] = 1,
        deformable_groups: int = 1,
    ) -> None:
        super().__init__()
        if deformable_groups < 1 or in_channels % deformable_groups:
            raise ValueError(f"DCN: {in_channels} input channels cannot be split into {deformable_groups} groups")
        self.kernel_size = pair(kernel_size)
        self.stride, self.padding, self.dilation = pair(stride), pair(padding), pair(dilation)
        self.deformable_groups = deformable_groups
        taps = self.kernel_size[0] * self.kernel_size[1]
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *self.kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.conv_offset_mask = nn.Conv2d(
            in_channels, 3 * deformable_groups * taps, self.kernel_size, self.stride, self.padding, self.dilation
        )
        bound = 1 / math.sqrt(in_channels * taps)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.zeros_(self.conv_offset_mask.weight)
        zero_bias(self.conv_offset_mask)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C_out, H_out, W_out)."""
        maps = self.conv_offset_mask(x)
        num_offsets = 2 * maps.shape[1] // 3
        offset, mask = maps[:, :num_offsets], maps[:, num_offsets:].sigmoid()
        geometry = (self.stride, self.padding, self.dilation)
        return deform_conv2d(x, offset, self.weight, self.bias, *geometry, mask=mask)


def fill_bilinear(conv: nn.ConvTranspose2d) -> None:
    """Initialize ``weight[:, 0]`` of a transposed convolution with bilinear interpolation filters, in place.

    Depthwise layers become plain bilinear upsampling. In dense layers only output channel 0 is filled and the others
    keep their random initialization, as in the reference's ``fill_up_weights``; training curves depend on it.
    """
    kernel = conv.weight.shape[-1]
    factor = math.ceil(kernel / 2)
    center = (2 * factor - 1 - factor % 2) / (2 * factor)
    line = 1 - (torch.arange(kernel) / factor - center).abs()
    with torch.no_grad():
        conv.weight[:, 0] = torch.outer(line, line).to(conv.weight.dtype)
