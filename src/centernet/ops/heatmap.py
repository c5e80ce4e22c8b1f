"""Heat maps of a whole batch, drawn on the device in one pass."""

import numpy as np
import torch
from torch import Tensor


def window_pixels(extent: np.ndarray, times: np.ndarray | int = 1) -> int:
    """Return ``pixels`` of ``draw_gaussians`` for objects of ``extent`` (n,), each drawn ``times`` times."""
    return int((times * (2 * extent + 1).clip(min=0) ** 2).sum())


def draw_gaussians(
    size: tuple[int, int, int, int], cls: Tensor, ind: Tensor, extent: Tensor, sigma: Tensor, pixels: int | None = None
) -> Tensor:
    """Draw one Gaussian of peak 1 per object; where they overlap the maximum is taken.

    Equal to drawing one after the other with ``draw_umich_gaussian`` (extent = radius, sigma = (2 * radius + 1) / 6)
    or ``draw_msra_gaussian`` (extent = 3 * sigma), to float32 rounding and with exact ones at the peaks.

    Args:
        size: (B, C, H, W) of the maps.
        cls: (B, N) int64, the map of each object.
        ind: (B, N) int64, y * W + x of its center.
        extent: (B, N) int64, pixels drawn on each side of the center; negative: an empty slot, nothing is drawn.
        sigma: (B, N) float, in pixels.
        pixels: sum of (2 * extent + 1)^2 over the objects if it is known on the host; avoids a device sync.

    Returns:
        (B, C, H, W) float32 in channels-last order, like the network's maps.
    """
    batch, channels, height, width = size
    hm = torch.zeros(batch * channels * height * width, device=ind.device)
    side = (2 * extent + 1).clamp(min=0).flatten()
    count = side * side
    if pixels is None:
        pixels = int(count.sum())
    # One row per pixel of every object's window: its object, and its position in the window.
    owner = torch.repeat_interleave(count, output_size=pixels)
    place = torch.arange(pixels, device=ind.device) - (count.cumsum(0) - count)[owner]
    side, extent, center = side[owner], extent.flatten()[owner], ind.flatten()[owner]
    dy = torch.div(place, side, rounding_mode="floor") - extent
    dx = place % side - extent
    y = torch.div(center, width, rounding_mode="floor") + dy
    x = center % width + dx
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    value = torch.exp(-(dx * dx + dy * dy) / (2 * sigma.flatten()[owner] ** 2)).float() * inside
    image = torch.arange(batch, device=ind.device)[:, None].expand_as(cls).flatten()[owner]
    pixel = (image * height + y.clamp(0, height - 1)) * width + x.clamp(0, width - 1)
    hm.scatter_reduce_(0, pixel * channels + cls.flatten()[owner], value, "amax")
    return hm.view(batch, height, width, channels).permute(0, 3, 1, 2)


def covered_cells(size: tuple[int, int, int, int], cls: Tensor, rects: Tensor, drawn: Tensor) -> Tensor:
    """Return the cells (B, C, H, W) bool that rectangles cover, from prefix sums of +1 and -1 at their corners.

    Args:
        size: (B, C, H, W) of the maps.
        cls: (B, N) int64, the map of each rectangle.
        rects: (B, N, 4) int64 [x1, y1, x2, y2], ends included.
        drawn: (B, N) bool, False: the rectangle is left out.
    """
    batch, channels, height, width = size
    plane = (torch.arange(batch, device=cls.device)[:, None] * channels + cls).flatten()
    x1, y1, x2, y2 = rects.flatten(0, 1).unbind(-1)
    count = drawn.flatten().to(torch.int32)
    corners = torch.zeros(batch * channels * (height + 1) * (width + 1), dtype=torch.int32, device=cls.device)
    for y, x, sign in ((y1, x1, 1), (y1, x2 + 1, -1), (y2 + 1, x1, -1), (y2 + 1, x2 + 1, 1)):
        place = (plane * (height + 1) + y.clamp(min=0)) * (width + 1) + x.clamp(min=0)
        corners.scatter_add_(0, place, sign * count)
    total = corners.view(batch, channels, height + 1, width + 1).cumsum(2).cumsum(3)
    return total[:, :, :height, :width] > 0
