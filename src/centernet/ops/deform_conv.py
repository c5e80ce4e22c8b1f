"""Modulated deformable convolution (Zhu et al., Deformable ConvNets v2, arXiv 1811.11168) for every device.

On CUDA this is torchvision's operator. Its CPU kernel is scalar and single-threaded and other devices have none, so
they use the operator below: an image is a table of pixels, a sample is the weighted sum of four of its rows, and the
convolution is one matrix product of the samples with the weight. Forward and backward process the output in chunks, so
that the samples, nine times the size of the image for 3x3 taps, never exist all at once. Images in channels-last order
are such tables already, and outputs and gradients have that order, too.

``CENTERNET_DEFORM_CONV`` selects another implementation: ``torch``, the operator below on all devices, or ``triton``,
the kernels of ``deform_conv_triton.py`` on GPUs. The latter have not been measured yet, so they are never the default.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UserError
from .deform_conv_triton import INTERPRETED, check_available, deform_conv2d_triton
from .peaks import is_exporting

IMPLEMENTATIONS = ("auto", "torch", "triton")
DEFAULT = os.environ.get("CENTERNET_DEFORM_CONV", "auto")

# Devices on which torch's embedding_bag is much faster than gathering rows and summing them.
BAG_DEVICES = ("cpu",)

# Computed once instead of at every call, because torch.compile cannot trace it.
_accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
AUTOCAST_DEVICES = tuple(
    device
    for device in ("cpu", *([] if _accelerator is None else [_accelerator.type]))
    if torch.amp.is_autocast_available(device)
)

# Values of the samples that are processed at once. On a CPU they should stay in the cache between gathering and matrix
# product; elsewhere fewer and larger steps are better.
BAG_CHUNK = 2**21
CHUNK = 2**24


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    mask: Tensor | None = None,
    implementation: str | None = None,
) -> Tensor:
    """Compute a deformable convolution; arguments and result as ``torchvision.ops.deform_conv2d``.

    Samples are bilinear with zeros outside the image. At a position of exactly -1, where all outer taps of a new
    layer with padding 1 are, the gradient with respect to the offset is zero, as in the reference's kernel (its
    ``dcn_v2_im2col_cuda.cu`` skips samples at <= -1 or >= size). torchvision's operator, and so this function on
    CUDA, has the one-sided derivative there. This is the only difference between devices.

    Half precision and autocast are computed in float32; ``triton`` multiplies samples rounded to 16 bits and adds in
    float32. Second derivatives are not supported.

    Args:
        input: (N, C, H, W), floating point.
        offset: (N, 2 * groups * kh * kw, H_out, W_out); channel 2t is dy and 2t + 1 is dx of kernel tap t, in pixels.
        weight: (C_out, C / conv_groups, kh, kw).
        bias: (C_out,) or None.
        mask: (N, groups * kh * kw, H_out, W_out), the factor of each tap; None: 1.
        implementation: one of ``IMPLEMENTATIONS``; None: that of ``CENTERNET_DEFORM_CONV``, by default ``auto``.

    Returns:
        (N, C_out, H_out, W_out) of the dtype of an ordinary convolution: that of ``input``, or that of autocast.

    Raises:
        ValueError: the shapes do not match.
        UserError: an unknown implementation, or one that does not work here.
    """
    stride, padding, dilation = pair(stride), pair(padding), pair(dilation)
    _check_shapes(input, offset, weight, bias, stride, padding, dilation, mask)
    dtype, device = input.dtype, input.device.type
    if _autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    exact = torch.promote_types(input.dtype, torch.float32)
    if mask is None:
        mask = offset.new_ones(()).expand(offset.shape[0], offset.shape[1] // 2, *offset.shape[2:])
    if bias is None:
        bias = weight.new_zeros(weight.shape[0])
    operator = _choose(DEFAULT if implementation is None else implementation, input.device, exact)
    geometry = [*stride, *padding, *dilation]
    if operator == "triton":
        offset, mask = offset.to(exact), mask.to(exact)
        return deform_conv2d_triton(input.to(dtype), offset, mask, weight.to(dtype), bias.to(dtype), geometry)
    input, offset, weight, bias, mask = (value.to(exact) for value in (input, offset, weight, bias, mask))
    if operator == "torchvision":
        from torchvision.ops import deform_conv2d as torchvision_deform_conv2d  # imported in seconds, so only for CUDA

        return torchvision_deform_conv2d(input, offset, weight, bias, stride, padding, dilation, mask).to(dtype)
    return _deform_conv2d(input, offset, mask, weight, bias, geometry).to(dtype)


def _choose(implementation: str, device: torch.device, dtype: torch.dtype) -> str:
    """Return the operator of a call on tensors of a dtype: ``torchvision``, ``torch`` or ``triton``."""
    if implementation not in IMPLEMENTATIONS:
        raise UserError(f"CENTERNET_DEFORM_CONV={implementation}: choose from {', '.join(IMPLEMENTATIONS)}")
    if implementation == "auto":
        return "torchvision" if device.type == "cuda" else "torch"
    if implementation == "triton":
        check_available(device)
        # Its sums of gradients depend on the order of threads, and it has no float64. A computer with a GPU may also
        # compute on its CPU, for comparison.
        exact = dtype == torch.float64 or torch.are_deterministic_algorithms_enabled()
        if not exact and not is_exporting() and (device.type != "cpu" or INTERPRETED):
            return "triton"
    return "torch"


def pair(value: int | tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) of a number or of such a pair."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _autocast_enabled(device: str) -> bool:
    return device in AUTOCAST_DEVICES and torch.is_autocast_enabled(device)


def _without_autocast(device: str) -> AbstractContextManager:
    return torch.autocast(device, enabled=False) if _autocast_enabled(device) else nullcontext()


def _check_shapes(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    mask: Tensor | None,
) -> None:
    if input.ndim != 4 or offset.ndim != 4 or weight.ndim != 4:
        raise ValueError(f"deform_conv2d: 4 axes needed: {input.shape=}, {offset.shape=}, {weight.shape=}")
    kernel = weight.shape[2:]
    taps, groups = kernel[0] * kernel[1], offset.shape[1] // (2 * kernel[0] * kernel[1])
    size = [
        (input.shape[2 + k] + 2 * padding[k] - dilation[k] * (kernel[k] - 1) - 1) // stride[k] + 1 for k in range(2)
    ]
    expected = (input.shape[0], 2 * groups * taps, *size)
    if groups == 0 or min(size) < 1 or offset.shape != expected or input.shape[1] % groups:
        raise ValueError(f"deform_conv2d: {offset.shape=} does not fit {input.shape=} and {weight.shape=}")
    if mask is not None and mask.shape != (expected[0], groups * taps, *size):
        raise ValueError(f"deform_conv2d: {mask.shape=} does not fit {offset.shape=}")
    if input.shape[1] % weight.shape[1] or weight.shape[0] % (input.shape[1] // weight.shape[1]):
        raise ValueError(f"deform_conv2d: {weight.shape=} does not fit {input.shape=}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"deform_conv2d: {bias.shape=} does not fit {weight.shape=}")


class _Shape(NamedTuple):
    """Sizes of one call; samples are ordered by output pixel, tap, offset group."""

    size: torch.Size
    out_size: torch.Size
    kernel: torch.Size
    taps: int
    groups: int
    conv_groups: int

    @classmethod
    def of(cls, input: Tensor, offset: Tensor, weight: Tensor) -> "_Shape":
        kernel = weight.shape[2:]
        groups = offset.shape[1] // (2 * kernel.numel())
        return cls(input.shape[2:], offset.shape[2:], kernel, kernel.numel(), groups, input.shape[1] // weight.shape[1])

    def chunks(self, input: Tensor) -> Iterator[slice]:
        """Return ranges of output rows."""
        limit = BAG_CHUNK if input.device.type in BAG_DEVICES else CHUNK
        step = max(1, limit // (self.out_size[1] * self.taps * input.shape[1]))
        return (slice(y, min(y + step, self.out_size[0])) for y in range(0, self.out_size[0], step))

    def table(self, image: Tensor) -> Tensor:
        """Reshape (C, H, W) to (H * W * groups, C / groups); a view of an image in channels-last order."""
        return image.permute(1, 2, 0).contiguous().view(self.size.numel() * self.groups, -1)

    def matrix(self, weight: Tensor) -> Tensor:
        """Reshape (C_out, C / conv_groups, kh, kw) to (conv_groups, C_out / conv_groups, taps * C / conv_groups)."""
        return weight.flatten(2).mT.reshape(self.conv_groups, weight.shape[0] // self.conv_groups, -1)

    def columns(self, values: Tensor) -> Tensor:
        """Reshape (pixels * taps * groups, C / groups) to (conv_groups, pixels, taps * C / conv_groups)."""
        channels = values.shape[1] * self.groups // self.conv_groups
        values = values.view(-1, self.taps, self.conv_groups, channels).permute(2, 0, 1, 3)
        return values.reshape(self.conv_groups, -1, self.taps * channels)

    def values(self, columns: Tensor) -> Tensor:
        """Invert ``columns``."""
        columns = columns.unflatten(2, (self.taps, -1)).permute(1, 2, 0, 3)
        return columns.reshape(columns.shape[0] * self.taps * self.groups, -1)


class _Samples:
    """The four corners of every sample of some output rows.

    Attributes:
        index: (samples, 4) int32, the corner's row in the table, 0 where it has none.
        factor: (samples, 4), its bilinear weight times the mask, 0 outside the image.
    """

    def __init__(self, shape: _Shape, geometry: list[int], start: int, offset: Tensor, mask: Tensor) -> None:
        """Set ``offset`` (2 * groups * taps, rows, W_out) and ``mask`` (groups * taps, rows, W_out) of rows."""
        self.mask = mask.unflatten(0, (shape.groups, *shape.kernel))
        offset = offset.unflatten(0, (shape.groups, *shape.kernel, 2))
        starts, lines = (start, 0), []
        for axis, size in enumerate(shape.size):
            stride, padding, dilation = geometry[axis::2]
            tap = torch.arange(shape.kernel[axis], device=offset.device) * dilation - padding
            place = (torch.arange(offset.shape[4 + axis], device=offset.device) + starts[axis]) * stride
            grid = tap.view([-1, 1, 1, 1] if axis == 0 else [-1, 1, 1]) + place.view([-1, 1] if axis == 0 else [-1])
            lines.append(_neighbors(grid + offset[:, :, :, axis], size))
        (y, self.y_weight, self.y_slope), (x, self.x_weight, self.x_slope) = lines
        group = torch.arange(shape.groups, dtype=torch.int32, device=offset.device).view(-1, 1, 1, 1, 1)
        index = (y.unsqueeze(1) * shape.size[1] + x) * shape.groups + group
        self.index = self._by_sample(index)
        self.factor = self._by_sample(self.y_weight.unsqueeze(1) * (self.x_weight * self.mask))

    @staticmethod
    def _by_sample(corners: Tensor) -> Tensor:
        """Reshape (2, 2, groups, kh, kw, rows, W_out) to (samples, 4)."""
        return corners.permute(5, 6, 3, 4, 2, 0, 1).reshape(-1, 4)

    def backward(self, grad_factor: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of ``offset`` and ``mask`` from that of ``factor``, (samples, 4)."""
        groups, kh, kw, rows, width = self.mask.shape
        grad = grad_factor.view(rows, width, kh, kw, groups, 2, 2).permute(5, 6, 4, 2, 3, 0, 1).contiguous()
        over_x = (grad * self.x_weight).sum(1)
        grad_mask = (over_x * self.y_weight).sum(0)
        grad_y = (over_x * self.y_slope).sum(0) * self.mask
        grad_x = ((grad * self.x_slope).sum(1) * self.y_weight).sum(0) * self.mask
        return torch.stack([grad_y, grad_x], dim=3).flatten(0, 3), grad_mask.flatten(0, 2)


def _neighbors(position: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pixels below and above each position on an axis of ``size`` pixels, as three tensors (2, ...).

    Their indices as int32, clamped into the image; their weights, 0 outside; the derivatives of these by the position.
    """
    # Far positions would leave the range of the integers.
    position = position.clamp(-1, size)
    low = position.floor()
    part = position - low
    inside_low = (low >= 0) & (low < size)
    # At exactly -1 the weight is 0 anyway, this makes the derivative 0, too.
    inside_high = (position > -1) & (low < size - 1)
    inside = torch.stack([inside_low, inside_high]).to(position.dtype)
    low = low.to(torch.int32)
    pixels = torch.stack([low, low + 1]).clamp_(0, size - 1)
    weights = torch.stack([1 - part, part]) * inside
    inside[0].neg_()
    return pixels, weights, inside


def _gather(table: Tensor, index: Tensor, factor: Tensor) -> Tensor:
    """Return sums (n, C) of four rows of the table (rows, C) each; index and factor are (n, 4)."""
    if table.device.type in BAG_DEVICES:
        return F.embedding_bag(index, table, mode="sum", per_sample_weights=factor)
    rows = table.index_select(0, index.flatten()).view(*index.shape, -1)
    return (rows * factor.unsqueeze(-1)).sum(1)


def _products(values: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """Return products (n, 4) of each row of values (n, C) with its four rows of the table."""
    if table.device.type in BAG_DEVICES:
        number = torch.arange(index.numel(), dtype=torch.int32)
        # What the gradient of embedding_bag calls; there is no public name for it.
        products = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            values, table, index.flatten(), number[: len(index)] * 4, number >> 2, 0
        )
        return products.view(index.shape)
    rows = table.index_select(0, index.flatten()).view(*index.shape, -1)
    return (rows * values.unsqueeze(1)).sum(-1)


def _scatter(table: Tensor, values: Tensor, index: Tensor, factor: Tensor) -> None:
    """Add values (n, C) times factor (n, 4) to the rows index (n, 4) of the table, in place."""
    if table.device.type in BAG_DEVICES:
        # Once the samples are sorted by row, the sum for each row of the table is again a gathering.
        row, order = index.flatten().sort(stable=True)
        first, last = int(row[0]), int(row[-1])
        starts = torch.searchsorted(row, torch.arange(first, last + 1, dtype=torch.int32))
        factor = factor.flatten()[order]
        table[first : last + 1] += F.embedding_bag(order >> 2, values, starts, mode="sum", per_sample_weights=factor)
    else:
        parts = values.unsqueeze(1) * factor.unsqueeze(-1)
        table.index_add_(0, index.flatten(), parts.flatten(0, 1))


def _product(columns: Tensor, matrix: Tensor, bias: Tensor, width: int) -> Tensor:
    """Map (conv_groups, pixels, k) of rows of ``width`` pixels to (conv_groups, pixels, C_out / conv_groups)."""
    if len(columns) == 1 and columns.device.type in BAG_DEVICES:
        # As a 1x1 convolution, which oneDNN computes up to twice as fast as a plain matrix product.
        images = columns.view(-1, 1, width, columns.shape[2]).permute(0, 3, 1, 2)
        values = F.conv2d(images, matrix[0, :, :, None, None], bias)
        return values.permute(0, 2, 3, 1).reshape(1, -1, len(bias))
    return torch.baddbmm(bias.view(len(matrix), 1, -1), columns, matrix.mT)


@torch.library.custom_op("centernet::deform_conv2d", mutates_args=())
def _deform_conv2d(
    input: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, geometry: list[int]
) -> Tensor:
    """Run the operator; ``geometry`` is stride, padding and dilation, two numbers each."""
    shape = _Shape.of(input, offset, weight)
    output = _output(input, offset, weight)
    with _without_autocast(input.device.type):
        matrix = shape.matrix(weight)
        for n, image in enumerate(input):
            table = shape.table(image)
            for rows in shape.chunks(input):
                samples = _Samples(shape, geometry, rows.start, offset[n, :, rows], mask[n, :, rows])
                columns = shape.columns(_gather(table, samples.index, samples.factor))
                part = output[n, :, rows]
                part.copy_(_product(columns, matrix, bias, part.shape[2]).mT.reshape(part.shape))
    return output


def _output(input: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    """Return an empty output in the memory format of the input: channels last or not."""
    size = (input.shape[0], weight.shape[0], *offset.shape[2:])
    last = input.is_contiguous(memory_format=torch.channels_last)
    order = torch.channels_last if last else torch.contiguous_format
    return torch.empty(size, dtype=input.dtype, device=input.device, memory_format=order)


@_deform_conv2d.register_fake
def _(input, offset, mask, weight, bias, geometry):
    return _output(input, offset, weight)


@torch.library.custom_op("centernet::deform_conv2d_backward", mutates_args=())
def _deform_conv2d_backward(
    grad: Tensor, input: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, geometry: list[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of input, offset, mask and weight."""
    shape = _Shape.of(input, offset, weight)
    grad_input, grad_offset, grad_mask = (torch.empty_like(value) for value in (input, offset, mask))
    with _without_autocast(input.device.type):
        matrix = shape.matrix(weight)
        grad_matrix = torch.zeros_like(matrix)
        for n, image in enumerate(input):
            table = shape.table(image)
            grad_table = torch.zeros_like(table)
            for rows in shape.chunks(input):
                samples = _Samples(shape, geometry, rows.start, offset[n, :, rows], mask[n, :, rows])
                columns = shape.columns(_gather(table, samples.index, samples.factor))
                grad_out = grad[n, :, rows].reshape(shape.conv_groups, -1, columns.shape[1])
                grad_matrix.baddbmm_(grad_out, columns)
                grad_values = shape.values(grad_out.mT @ matrix)
                _scatter(grad_table, grad_values, samples.index, samples.factor)
                grad_factor = _products(grad_values, table, samples.index)
                grad_offset[n, :, rows], grad_mask[n, :, rows] = samples.backward(grad_factor)
            grad_input[n] = grad_table.view(*shape.size, -1).permute(2, 0, 1)
        grad_weight = grad_matrix.view(weight.shape[0], shape.taps, -1).mT.contiguous().view(weight.shape)
    return grad_input, grad_offset, grad_mask, grad_weight


@_deform_conv2d_backward.register_fake
def _(grad, input, offset, mask, weight, geometry):
    return *(torch.empty_like(value) for value in (input, offset, mask)), weight.new_empty(weight.shape)


def _setup_context(ctx, inputs, output):
    input, offset, mask, weight, _, ctx.geometry = inputs
    ctx.save_for_backward(input, offset, mask, weight)


def _backward(ctx, grad):
    grads = _deform_conv2d_backward(grad, *ctx.saved_tensors, ctx.geometry)
    return (*grads, grad.sum((0, 2, 3)), None)


_deform_conv2d.register_autograd(_backward, setup_context=_setup_context)
