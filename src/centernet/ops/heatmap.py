"""Heatmaps of a whole batch, drawn on the device at once."""

import numpy as np
import torch
from torch import Tensor

PIXELS_AT_ONCE = 2**22  # about 400 MB of temporaries


def window_pixels(extent: np.ndarray, times: np.ndarray | int = 1) -> int:
    """Return ``pixels`` of ``draw_gaussians`` for objects of which each is drawn ``times`` times."""
    return int((times * (2 * extent + 1).clip(min=0) ** 2).sum())


def draw_gaussians(
    size: tuple[int, int, int, int], cls: Tensor, ind: Tensor, extent: Tensor, sigma: Tensor, pixels: int | None = None
) -> Tensor:
    """Draw a Gaussian of peak 1 for each object; where they overlap the maximum counts.

    Equal to drawing one after the other with ``draw_umich_gaussian`` (extent = radius, sigma = (2 * radius + 1) / 6)
    or ``draw_msra_gaussian`` (extent = 3 * sigma), to float32 rounding and with exact ones at the peaks. Very many
    objects are drawn in parts, so that memory stays bounded.

    Args:
        size: (B, C, H, W) of the maps.
        cls: (B, N) int64, the map of each object.
        ind: (B, N) int64, y * W + x of its center.
        extent: (B, N) int64, pixels drawn on each side of the center; negative: an empty slot, nothing is drawn.
        sigma: (B, N) float, in pixels.
        pixels: sum of (2 * extent + 1)^2 over the objects if it is known on the host; saves a synchronization.

    Returns:
        (B, C, H, W) float32 in channels-last order, as the networks' maps.
    """
    batch, channels, height, width = size
    hm = torch.zeros(batch * channels * height * width, device=ind.device)
    image = torch.arange(batch, device=ind.device)[:, None].expand_as(cls)
    objects = [values.flatten() for values in (image, cls, ind, extent, sigma)]
    count = (2 * objects[3] + 1).clamp(min=0) ** 2
    if pixels is None:
        pixels = int(count.sum())
    if pixels <= PIXELS_AT_ONCE:
        _draw(hm, size, objects, count, pixels)
    else:
        total = count.cumsum(0).cpu()
        start = 0
        while start < len(total):
            done = int(total[start - 1]) if start else 0
            end = max(start + 1, int(torch.searchsorted(total, done + PIXELS_AT_ONCE, right=True)))
            part = slice(start, end)
            _draw(hm, size, [values[part] for values in objects], count[part], int(total[end - 1]) - done)
            start = end
    return hm.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _draw(hm: Tensor, size: tuple[int, int, int, int], objects: list[Tensor], count: Tensor, pixels: int) -> None:
    """Draw objects (image, class, ind, extent and sigma) of ``count`` pixels each into a flat map."""
    _, channels, height, width = size
    # One row for each pixel of every object's window: its object, and its position in the window.
    owner = torch.repeat_interleave(count, output_size=pixels)
    place = torch.arange(pixels, device=count.device) - (count.cumsum(0) - count)[owner]
    image, cls, center, extent, sigma = (values[owner] for values in objects)
    side = 2 * extent + 1
    dy = torch.div(place, side, rounding_mode="floor") - extent
    dx = place % side - extent
    y = torch.div(center, width, rounding_mode="floor") + dy
    x = center % width + dx
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    value = torch.exp(-(dx * dx + dy * dy) / (2 * sigma**2)).float() * inside
    pixel = (image * height + y.clamp(0, height - 1)) * width + x.clamp(0, width - 1)
    hm.scatter_reduce_(0, pixel * channels + cls, value, "amax")


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
