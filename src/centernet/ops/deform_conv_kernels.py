"""Triton kernels of the deformable convolution; ``deform_conv_triton.py`` calls them.

Images, outputs and their gradients are tables (pixels, channels), that is, in channels-last order. ``matrix`` is the
weight as (conv_groups, taps, CONV_CHANNELS, OUT_CHANNELS). Channels are processed in segments of SEGMENT: those of a
segment belong to one offset group and to one convolution group.
"""

import triton
import triton.language as tl


@triton.jit
def _axis(position, size):
    """Return the pixel below each position on an axis of ``size`` pixels, the weights of it and the next one, and
    whether these are inside: as float32, 1 or 0.

    As ``deform_conv.py: _neighbors``, also for a position of exactly -1 and for NaN.
    """
    # Far positions would leave the range of the integers.
    position = tl.maximum(position, -1.0, propagate_nan=tl.PropagateNan.ALL)
    position = tl.minimum(position, size.to(tl.float32), propagate_nan=tl.PropagateNan.ALL)
    low = tl.floor(position)
    part = position - low
    inside_low = ((low >= 0) & (low < size)).to(tl.float32)
    inside_high = ((position > -1) & (low < size - 1)).to(tl.float32)
    return low.to(tl.int32), (1 - part) * inside_low, part * inside_high, inside_low, inside_high


@triton.jit
def _positions(
    offset, mask, pixel, valid, tap, group,
    height, width, out_height, out_width,
    stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x,
    offset_n, offset_c, offset_y, offset_x, mask_n, mask_c, mask_y, mask_x,
    KERNEL_WIDTH: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """Return image, corner, weights and mask of the samples of a tap for some output pixels."""
    x = pixel % out_width
    y = (pixel // out_width) % out_height
    n = pixel // (out_width * out_height)
    channel = group * TAPS + tap
    place = offset + n.to(tl.int64) * offset_n + y * offset_y + x * offset_x
    dy = tl.load(place + 2 * channel * offset_c, mask=valid, other=0.0).to(tl.float32)
    dx = tl.load(place + (2 * channel + 1) * offset_c, mask=valid, other=0.0).to(tl.float32)
    place = mask + n.to(tl.int64) * mask_n + channel * mask_c + y * mask_y + x * mask_x
    factor = tl.load(place, mask=valid, other=0.0).to(tl.float32)
    grid_y = y * stride_y - padding_y + (tap // KERNEL_WIDTH) * dilation_y
    grid_x = x * stride_x - padding_x + (tap % KERNEL_WIDTH) * dilation_x
    row, top, bottom, has_top, has_bottom = _axis(grid_y.to(tl.float32) + dy, height)
    column, left, right, has_left, has_right = _axis(grid_x.to(tl.float32) + dx, width)
    corner = (n.to(tl.int64) * height + row) * width + column
    return corner, top, bottom, left, right, has_top, has_bottom, has_left, has_right, factor


@triton.jit
def _corner(table, corner, inside, channels, channel, known):
    """Return values (pixels, channels) float32 of the table, 0 outside the image."""
    place = table + (corner * channels)[:, None] + channel[None, :]
    return tl.load(place, mask=(inside > 0)[:, None] & known[None, :], other=0.0).to(tl.float32)


@triton.jit
def _samples(
    table, corner, top, bottom, left, right, has_top, has_bottom, has_left, has_right, factor,
    width, channels, channel, known,
):  # fmt: skip
    """Return the bilinear samples (pixels, channels) float32, times the mask."""
    values = _corner(table, corner, has_top * has_left, channels, channel, known) * (top * left)[:, None]
    values += _corner(table, corner + 1, has_top * has_right, channels, channel, known) * (top * right)[:, None]
    corner += width
    values += _corner(table, corner, has_bottom * has_left, channels, channel, known) * (bottom * left)[:, None]
    values += _corner(table, corner + 1, has_bottom * has_right, channels, channel, known) * (bottom * right)[:, None]
    return values * factor[:, None]


@triton.jit
def _product(a, b, total, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """Add a matrix product to ``total``. WIDEN: multiply in float32, because Triton's interpreter lacks bfloat16."""
    if WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def forward(
    table, offset, mask, matrix, bias, output,
    pixels, channels, height, width, out_height, out_width,
    stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x,
    offset_n, offset_c, offset_y, offset_x, mask_n, mask_c, mask_y, mask_x,
    KERNEL_WIDTH: tl.constexpr, TAPS: tl.constexpr, CONV_GROUPS: tl.constexpr,
    GROUP_CHANNELS: tl.constexpr, CONV_CHANNELS: tl.constexpr, SEGMENT: tl.constexpr, OUT_CHANNELS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    """Compute BLOCK_M pixels and BLOCK_N channels of the output."""
    pixel = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = pixel < pixels
    out = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    conv_group = tl.program_id(2)
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for segment in range(0, CONV_CHANNELS, SEGMENT):
        first = conv_group * CONV_CHANNELS + segment
        for tap in range(TAPS):
            corner, top, bottom, left, right, has_top, has_bottom, has_left, has_right, factor = _positions(
                offset, mask, pixel, valid, tap, first // GROUP_CHANNELS,
                height, width, out_height, out_width,
                stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x,
                offset_n, offset_c, offset_y, offset_x, mask_n, mask_c, mask_y, mask_x,
                KERNEL_WIDTH, TAPS,
            )  # fmt: skip
            for start in range(0, SEGMENT, BLOCK_K):
                part = start + tl.arange(0, BLOCK_K)
                known = part < SEGMENT
                values = _samples(
                    table, corner, top, bottom, left, right,
                    has_top * valid, has_bottom * valid, has_left, has_right, factor,
                    width, channels, first + part, known,
                )  # fmt: skip
                row = (conv_group * TAPS + tap) * CONV_CHANNELS + segment + part
                place = matrix + row[:, None] * OUT_CHANNELS + out[None, :]
                weight = tl.load(place, mask=known[:, None] & (out < OUT_CHANNELS)[None, :], other=0.0)
                total = _product(values.to(weight.dtype), weight, total, PRECISION, WIDEN)
    column = conv_group * OUT_CHANNELS + out
    total += tl.load(bias + column, mask=out < OUT_CHANNELS, other=0.0).to(tl.float32)[None, :]
    place = output + pixel.to(tl.int64)[:, None] * (CONV_GROUPS * OUT_CHANNELS) + column[None, :]
    tl.store(place, total.to(output.dtype.element_ty), mask=valid[:, None] & (out < OUT_CHANNELS)[None, :])


@triton.jit
def _corner_gradients(table, grad_table, corner, inside, factor, grad, channels, channel, known):
    """Add the gradient of a corner's values to the image's, and return its products (pixels,) with the values."""
    place = (corner * channels)[:, None] + channel[None, :]
    used = (inside > 0)[:, None] & known[None, :]
    tl.atomic_add(grad_table + place, grad * factor[:, None], mask=used, sem="relaxed")
    return tl.sum(tl.load(table + place, mask=used, other=0.0).to(tl.float32) * grad, 1)


@triton.jit
def backward_samples(
    table, offset, mask, matrix, grad_output, grad_table, grad_offset, grad_mask,
    pixels, channels, height, width, out_height, out_width,
    stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x,
    offset_n, offset_c, offset_y, offset_x, mask_n, mask_c, mask_y, mask_x,
    KERNEL_WIDTH: tl.constexpr, TAPS: tl.constexpr, CONV_GROUPS: tl.constexpr,
    GROUP_CHANNELS: tl.constexpr, CONV_CHANNELS: tl.constexpr, SEGMENT: tl.constexpr, OUT_CHANNELS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of offset and mask of BLOCK_M pixels, a tap and an offset group, and add to the image's.

    ``grad_offset`` is (pixels, groups * TAPS, 2) and ``grad_mask`` (pixels, groups * TAPS), float32.
    """
    pixel = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = pixel < pixels
    tap = tl.program_id(1)
    group = tl.program_id(2)
    corner, top, bottom, left, right, has_top, has_bottom, has_left, has_right, factor = _positions(
        offset, mask, pixel, valid, tap, group,
        height, width, out_height, out_width,
        stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x,
        offset_n, offset_c, offset_y, offset_x, mask_n, mask_c, mask_y, mask_x,
        KERNEL_WIDTH, TAPS,
    )  # fmt: skip
    top_left = tl.zeros((BLOCK_M,), dtype=tl.float32)
    top_right = tl.zeros((BLOCK_M,), dtype=tl.float32)
    bottom_left = tl.zeros((BLOCK_M,), dtype=tl.float32)
    bottom_right = tl.zeros((BLOCK_M,), dtype=tl.float32)
    in_top = has_top * valid
    in_bottom = has_bottom * valid
    for segment in range(0, GROUP_CHANNELS, SEGMENT):
        first = group * GROUP_CHANNELS + segment
        conv_group = first // CONV_CHANNELS
        for start in range(0, SEGMENT, BLOCK_K):
            part = start + tl.arange(0, BLOCK_K)
            known = part < SEGMENT
            row = (conv_group * TAPS + tap) * CONV_CHANNELS + first - conv_group * CONV_CHANNELS + part
            grad = tl.zeros((BLOCK_M, BLOCK_K), dtype=tl.float32)
            for out_start in range(0, OUT_CHANNELS, BLOCK_N):
                out = out_start + tl.arange(0, BLOCK_N)
                place = matrix + row[None, :] * OUT_CHANNELS + out[:, None]
                weight = tl.load(place, mask=known[None, :] & (out < OUT_CHANNELS)[:, None], other=0.0)
                column = conv_group * OUT_CHANNELS + out
                place = grad_output + pixel.to(tl.int64)[:, None] * (CONV_GROUPS * OUT_CHANNELS) + column[None, :]
                of_output = tl.load(place, mask=valid[:, None] & (out < OUT_CHANNELS)[None, :], other=0.0)
                grad = _product(of_output, weight, grad, PRECISION, WIDEN)
            channel = first + part
            top_left += _corner_gradients(
                table, grad_table, corner, in_top * has_left, top * left * factor, grad, channels, channel, known
            )
            top_right += _corner_gradients(
                table, grad_table, corner + 1, in_top * has_right, top * right * factor, grad, channels, channel, known
            )
            below = corner + width
            bottom_left += _corner_gradients(
                table, grad_table, below, in_bottom * has_left, bottom * left * factor, grad, channels, channel, known
            )
            bottom_right += _corner_gradients(
                table, grad_table, below + 1, in_bottom * has_right, bottom * right * factor, grad, channels, channel,
                known,
            )  # fmt: skip
    # The products are 0 outside the image, so the derivatives of the weights, which are -1 and 1, need no mask.
    over_x_top = top_left * left + top_right * right
    over_x_bottom = bottom_left * left + bottom_right * right
    grad_y = (over_x_bottom - over_x_top) * factor
    grad_x = ((top_right - top_left) * top + (bottom_right - bottom_left) * bottom) * factor
    place = pixel.to(tl.int64) * (tl.num_programs(2) * TAPS) + group * TAPS + tap
    tl.store(grad_mask + place, over_x_top * top + over_x_bottom * bottom, mask=valid)
    tl.store(grad_offset + 2 * place, grad_y, mask=valid)
    tl.store(grad_offset + 2 * place + 1, grad_x, mask=valid)


@triton.jit
def backward_matrix(
    table, offset, mask, grad_output, grad_matrix,
    pixels, channels, height, width, out_height, out_width,
    stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x,
    offset_n, offset_c, offset_y, offset_x, mask_n, mask_c, mask_y, mask_x,
    KERNEL_WIDTH: tl.constexpr, TAPS: tl.constexpr, CONV_GROUPS: tl.constexpr,
    GROUP_CHANNELS: tl.constexpr, CONV_CHANNELS: tl.constexpr, SEGMENT: tl.constexpr, OUT_CHANNELS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    """Add the gradient of BLOCK_K rows and BLOCK_N columns of the matrix, from every ``num_programs(2)``-th block of
    pixels, to ``grad_matrix`` (float32)."""
    BLOCKS: tl.constexpr = (SEGMENT + BLOCK_K - 1) // BLOCK_K
    block = tl.program_id(0)
    start = (block % BLOCKS) * BLOCK_K
    block = block // BLOCKS
    tap = block % TAPS
    first = (block // TAPS) * SEGMENT
    conv_group = first // CONV_CHANNELS
    part = start + tl.arange(0, BLOCK_K)
    known = part < SEGMENT
    out = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = conv_group * OUT_CHANNELS + out
    total = tl.zeros((BLOCK_K, BLOCK_N), dtype=tl.float32)
    for pixel_start in range(tl.program_id(2) * BLOCK_M, pixels, tl.num_programs(2) * BLOCK_M):
        pixel = pixel_start + tl.arange(0, BLOCK_M)
        valid = pixel < pixels
        corner, top, bottom, left, right, has_top, has_bottom, has_left, has_right, factor = _positions(
            offset, mask, pixel, valid, tap, first // GROUP_CHANNELS,
            height, width, out_height, out_width,
            stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x,
            offset_n, offset_c, offset_y, offset_x, mask_n, mask_c, mask_y, mask_x,
            KERNEL_WIDTH, TAPS,
        )  # fmt: skip
        values = _samples(
            table, corner, top, bottom, left, right,
            has_top * valid, has_bottom * valid, has_left, has_right, factor,
            width, channels, first + part, known,
        )  # fmt: skip
        place = grad_output + pixel.to(tl.int64)[:, None] * (CONV_GROUPS * OUT_CHANNELS) + column[None, :]
        grad = tl.load(place, mask=valid[:, None] & (out < OUT_CHANNELS)[None, :], other=0.0)
        total = _product(tl.trans(values.to(grad.dtype)), grad, total, PRECISION, WIDEN)
    row = (conv_group * TAPS + tap) * CONV_CHANNELS + first - conv_group * CONV_CHANNELS + part
    place = grad_matrix + row[:, None] * OUT_CHANNELS + out[None, :]
    tl.atomic_add(place, total, mask=known[:, None] & (out < OUT_CHANNELS)[None, :], sem="relaxed")
