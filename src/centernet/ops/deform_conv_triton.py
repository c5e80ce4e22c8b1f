"""Deformable convolution in Triton: sampling and matrix product in one kernel, without samples in memory.

Selected by ``CENTERNET_DEFORM_CONV=triton``. Triton is part of PyTorch for CUDA and ROCm; it is imported at the first
call, and nothing else needs it.
"""

import importlib.util
import math
import os
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError

# Output pixels, output channels and input channels that a program works on. They have not been tuned on a GPU yet.
BLOCK_M, BLOCK_N, BLOCK_K = 64, 128, 32
# Two stages need at most 74 KB of shared memory in float32; three need more than consumer cards have.
OPTIONS = {"num_warps": 4, "num_stages": 2}
# Programs that compute the gradient of the weight; if blocks of the weight are fewer, they share the pixels.
PROGRAMS = 512
# Constants, because torch.compile cannot trace how they are found.
INSTALLED = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton runs on the CPU, very slowly, for tests


def check_available(device: torch.device) -> None:
    """Raise UserError if the package Triton is missing, or a GPU."""
    if not INSTALLED:
        raise UserError(
            "CENTERNET_DEFORM_CONV=triton: the package triton is not installed, which PyTorch for CUDA brings along; "
            "unset the variable"
        )
    if device.type == "cpu" and not INTERPRETED and not torch.cuda.is_available():
        raise UserError("CENTERNET_DEFORM_CONV=triton: Triton needs a GPU, and there is none; unset the variable")


class _Call:
    """The arguments that all kernels have in common.

    Attributes:
        table: the image, (N, H, W, C) in memory.
        sizes, strides, constants: arguments of the kernels.
        taps, groups, conv_groups: of the layer.
        segment: channels that belong to one offset group and to one convolution group.
        out_channels: those of a convolution group.
        pixels: number of output pixels.
    """

    def __init__(self, input: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, geometry: list[int]) -> None:
        batch, channels, height, width = input.shape
        out_height, out_width = offset.shape[2:]
        self.taps, kernel_width = weight.shape[2] * weight.shape[3], weight.shape[3]
        self.groups, self.conv_groups = offset.shape[1] // (2 * self.taps), channels // weight.shape[1]
        self.table = input.permute(0, 2, 3, 1).contiguous()
        self.pixels = batch * out_height * out_width
        self.sizes = (self.pixels, channels, height, width, out_height, out_width, *geometry)
        self.strides = (*offset.stride(), *mask.stride())
        self.segment = math.gcd(channels // self.groups, weight.shape[1])
        self.out_channels = weight.shape[0] // self.conv_groups
        self.constants: dict[str, Any] = {
            "KERNEL_WIDTH": kernel_width,
            "TAPS": self.taps,
            "CONV_GROUPS": self.conv_groups,
            "GROUP_CHANNELS": channels // self.groups,
            "CONV_CHANNELS": weight.shape[1],
            "SEGMENT": self.segment,
            "OUT_CHANNELS": self.out_channels,
            "BLOCK_M": BLOCK_M,
            "BLOCK_N": min(BLOCK_N, _power_of_two(self.out_channels)),
            "BLOCK_K": min(BLOCK_K, _power_of_two(self.segment)),
            "PRECISION": "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32",
            "WIDEN": INTERPRETED and input.dtype == torch.bfloat16,
            **OPTIONS,
        }

    def blocks(self, name: str, count: int) -> int:
        """Return how many blocks of a constant's size cover ``count``."""
        return -(-count // self.constants[name])

    def matrix(self, weight: Tensor) -> Tensor:
        """Return the weight as (conv_groups, taps, C / conv_groups, C_out / conv_groups)."""
        parts = weight.view(self.conv_groups, self.out_channels, weight.shape[1], self.taps)
        return parts.permute(0, 3, 2, 1).contiguous()

    def weight(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        """Invert ``matrix``."""
        return matrix.permute(0, 3, 2, 1).reshape(shape)


def _power_of_two(number: int) -> int:
    """Return the next power of two, at least 16, the smallest side of a matrix product in Triton."""
    return max(16, 1 << (number - 1).bit_length())


@torch.library.custom_op("centernet::deform_conv2d_triton", mutates_args=())
def deform_conv2d_triton(
    input: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, geometry: list[int]
) -> Tensor:
    """Compute the deformable convolution; sums are float32.

    Args:
        input: (N, C, H, W) float32, float16 or bfloat16.
        offset, mask: as for ``deform_conv.deform_conv2d``, float32.
        weight, bias: of the dtype of ``input``.
        geometry: stride, padding and dilation, two numbers each.

    Returns:
        (N, C_out, H_out, W_out) of the dtype of ``input``, channels last if the input is.

    """
    from . import deform_conv_kernels as kernels

    call = _Call(input, offset, mask, weight, geometry)
    output = input.new_empty(input.shape[0], *offset.shape[2:], weight.shape[0])
    if call.pixels:
        grid = (call.blocks("BLOCK_M", call.pixels), call.blocks("BLOCK_N", call.out_channels), call.conv_groups)
        tensors = (call.table, offset, mask, call.matrix(weight), bias, output)
        kernels.forward[grid](*tensors, *call.sizes, *call.strides, **call.constants)
    return _in_format_of(input, output)


def _in_format_of(input: Tensor, table: Tensor) -> Tensor:
    """Return (N, H, W, C) as (N, C, H, W), in the memory format of the input: channels last or not."""
    output = table.permute(0, 3, 1, 2)
    return output if input.is_contiguous(memory_format=torch.channels_last) else output.contiguous()


@deform_conv2d_triton.register_fake
def _(input, offset, mask, weight, bias, geometry):
    return _in_format_of(input, input.new_empty(input.shape[0], *offset.shape[2:], weight.shape[0]))


@torch.library.custom_op("centernet::deform_conv2d_triton_backward", mutates_args=())
def _backward_triton(
    grad: Tensor, input: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, geometry: list[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of input, offset, mask and weight."""
    from . import deform_conv_kernels as kernels

    call = _Call(input, offset, mask, weight, geometry)
    batch, _, rows, columns = offset.shape
    grad = grad.to(input.dtype).permute(0, 2, 3, 1).contiguous()
    matrix = call.matrix(weight)
    grad_table = torch.zeros_like(call.table, dtype=torch.float32)
    grad_mask = torch.empty(batch, rows, columns, call.groups * call.taps, device=input.device)
    grad_offset = torch.empty(batch, rows, columns, 2 * call.groups * call.taps, device=input.device)
    grad_matrix = torch.zeros_like(matrix, dtype=torch.float32)
    if call.pixels:
        images = call.blocks("BLOCK_M", call.pixels)
        samples = (call.table, offset, mask)
        grid = (images, call.taps, call.groups)
        tensors = (matrix, grad, grad_table, grad_offset, grad_mask)
        kernels.backward_samples[grid](*samples, *tensors, *call.sizes, *call.strides, **call.constants)
        blocks = call.blocks("BLOCK_K", call.segment) * call.taps * (input.shape[1] // call.segment)
        grid = (blocks, call.blocks("BLOCK_N", call.out_channels), max(1, min(images, PROGRAMS // blocks)))
        kernels.backward_matrix[grid](*samples, grad, grad_matrix, *call.sizes, *call.strides, **call.constants)
    return (
        _in_format_of(input, grad_table.to(input.dtype)),
        grad_offset.permute(0, 3, 1, 2).contiguous(),
        grad_mask.permute(0, 3, 1, 2).contiguous(),
        call.weight(grad_matrix, weight.shape).to(weight.dtype),
    )


@_backward_triton.register_fake
def _(grad, input, offset, mask, weight, geometry):
    like = (torch.empty(value.shape, dtype=value.dtype, device=value.device) for value in (offset, mask, weight))
    table = input.new_empty(input.shape[0], *input.shape[2:], input.shape[1])
    return _in_format_of(input, table), *like


def _setup_context(ctx, inputs, output):
    input, offset, mask, weight, _, ctx.geometry = inputs
    ctx.save_for_backward(input, offset, mask, weight)


def _backward(ctx, grad):
    grads = _backward_triton(grad, *ctx.saved_tensors, ctx.geometry)
    return (*grads, grad.sum((0, 2, 3)), None)


deform_conv2d_triton.register_autograd(_backward, setup_context=_setup_context)
