"""Finding objects in heat maps."""

import torch.nn.functional as F
from torch import Tensor


def peak_filter(heat: Tensor, kernel: int = 3) -> Tensor:
    """Keep the values of (B, C, H, W) that are the highest of their 3x3 neighbourhood, 0 elsewhere (``_nms``)."""
    highest = F.max_pool2d(heat, kernel, stride=1, padding=(kernel - 1) // 2)
    return heat * (highest == heat).to(heat.dtype)


def topk(heat: Tensor, K: int = 40) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The K highest cells of (B, C, H, W) over all classes (``_topk``).

    Taken class by class first, as in the reference, so that equal scores come out in its order.

    Returns:
        score (B, K), ind (B, K) int64 in H * W, cls (B, K) int64, y (B, K), x (B, K) in pixels, dtype of ``heat``.
    """
    batch, channels, height, width = heat.shape
    per_class = min(K, height * width)
    scores, inds = heat.reshape(batch, channels, -1).topk(per_class)
    score, place = scores.reshape(batch, -1).topk(min(K, channels * per_class))
    cls = place // per_class
    ind = inds.reshape(batch, -1).gather(1, place)
    return score, ind, cls, (ind // width).to(heat.dtype), (ind % width).to(heat.dtype)
