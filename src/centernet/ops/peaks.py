"""Peaks of heatmaps."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def is_exporting() -> bool:
    """Return whether the model is being exported or traced, where optimizations for this machine do not apply."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def peak_filter(heat: Tensor, kernel: int = 3) -> Tensor:
    """Keep the values of (B, C, H, W) that are the maximum of their 3x3 neighborhood, 0 elsewhere (``_nms``)."""
    if heat.device.type == "cpu" and kernel == 3 and not is_exporting():
        heat = heat.contiguous()
        highest = _highest_of_nine(heat)
    else:
        highest = F.max_pool2d(heat, kernel, stride=1, padding=(kernel - 1) // 2)
    return torch.where(highest == heat, heat, 0)


def _highest_of_nine(heat: Tensor) -> Tensor:
    """Return ``max_pool2d`` of size 3 and stride 1, by columns and then by rows, which is much faster on a CPU."""
    padded = F.pad(heat, (1, 1, 1, 1), value=-math.inf)
    column = torch.maximum(torch.maximum(padded[:, :, :-2], padded[:, :, 1:-1]), padded[:, :, 2:])
    return torch.maximum(torch.maximum(column[..., :-2], column[..., 1:-1]), column[..., 2:])


def topk(heat: Tensor, K: int = 40) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the K highest cells of (B, C, H, W) over all classes (``_topk``).

    Selected class by class first, as in the reference, so that equal scores are in its order.

    Returns:
        score (B, K), ind (B, K) int64 in H * W, cls (B, K) int64, y (B, K), x (B, K) in pixels, dtype of ``heat``.
    """
    batch, channels, height, width = heat.shape
    per_class = K if is_exporting() else min(K, height * width)
    scores, inds = heat.reshape(batch, channels, -1).topk(per_class)
    score, place = scores.reshape(batch, -1).topk(min(K, channels * per_class))
    cls = place // per_class
    ind = inds.reshape(batch, -1).gather(1, place)
    y = ind // width
    return score, ind, cls, y.to(heat.dtype), (ind - y * width).to(heat.dtype)
