"""Heat maps of a whole batch, drawn on the device at once."""

import numpy as np
import torch
from torch import Tensor


def window_pixels(reach: np.ndarray, times: np.ndarray | int = 1) -> int:
    """``pixels`` of ``draw_gaussians`` for objects of which each is drawn ``times`` times."""
    return int((times * (2 * reach + 1).clip(min=0) ** 2).sum())


def draw_gaussians(
    size: tuple[int, int, int, int], cls: Tensor, ind: Tensor, reach: Tensor, sigma: Tensor, pixels: int | None = None
) -> Tensor:
    """Draw one Gaussian of peak 1 an object; where they overlap the highest counts.

    Equal to drawing one after the other with ``draw_umich_gaussian`` (reach = radius, sigma = (2 * radius + 1) / 6)
    or ``draw_msra_gaussian`` (reach = 3 * sigma), to float32 rounding and with exact ones at the peaks.

    Args:
        size: (B, C, H, W) of the maps.
        cls: (B, N) int64, the map of each object.
        ind: (B, N) int64, y * W + x of its center.
        reach: (B, N) int64, pixels drawn on each side of the center; negative: an empty slot, nothing is drawn.
        sigma: (B, N) float, in pixels.
        pixels: sum of (2 * reach + 1)^2 over the objects if it is known on the host; saves waiting for the device.

    Returns:
        (B, C, H, W) float32 in channels-last order, as the networks' maps.
    """
    batch, channels, height, width = size
    hm = torch.zeros(batch * channels * height * width, device=ind.device)
    side = (2 * reach + 1).clamp(min=0).flatten()
    count = side * side
    if pixels is None:
        pixels = int(count.sum())
    # One row a pixel of every object's window: which object it belongs to, and its place in the window.
    owner = torch.repeat_interleave(count, output_size=pixels)
    place = torch.arange(pixels, device=ind.device) - (count.cumsum(0) - count)[owner]
    side, reach, center = side[owner], reach.flatten()[owner], ind.flatten()[owner]
    dy = torch.div(place, side, rounding_mode="floor") - reach
    dx = place % side - reach
    y = torch.div(center, width, rounding_mode="floor") + dy
    x = center % width + dx
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    value = torch.exp(-(dx * dx + dy * dy) / (2 * sigma.flatten()[owner] ** 2)).float() * inside
    image = torch.arange(batch, device=ind.device)[:, None].expand_as(cls).flatten()[owner]
    pixel = (image * height + y.clamp(0, height - 1)) * width + x.clamp(0, width - 1)
    hm.scatter_reduce_(0, pixel * channels + cls.flatten()[owner], value, "amax")
    return hm.view(batch, height, width, channels).permute(0, 3, 1, 2)
