"""Ground truth in place of predicted maps, for error analysis."""

from collections import deque

import numpy as np
import torch
from torch import Tensor


def oracle_map(values: Tensor, ind: Tensor, mask: Tensor, size) -> Tensor:
    """Spread the vectors of objects over a whole map: each cell gets that of the nearest object (``gen_oracle_map``).

    The map is filled breadth-first from all objects at once, over the neighbors below, above, right and left. Where
    several objects share a cell, the cell itself gets the vector of the last one, and its neighbors that of the first
    one, which is first in the queue. Between objects at the same distance the one earlier in the queue counts.

    Args:
        values: (B, N, D) vectors of the objects.
        ind: (B, N) int64 cells, y * W + x.
        mask: (B, N), 0 in empty slots.
        size: (B, D, H, W) of the result.

    Returns:
        (B, D, H, W) float32 on the device of ``values``; zero where an image has no object.
    """
    _, channels, height, width = size
    maps = np.zeros((len(ind), channels, height * width), dtype=np.float32)
    for b, (vectors, cells, valid) in enumerate(
        zip(values.cpu().numpy(), ind.cpu().numpy(), mask.cpu().numpy() > 0, strict=True)
    ):
        objects = np.flatnonzero(valid)
        owner = np.full(height * width, -1)
        owner[cells[objects]] = objects  # of several in a cell the last one
        queue = deque((int(cells[k]), int(k)) for k in objects)
        while queue:
            cell, k = queue.popleft()
            y, x = divmod(cell, width)
            for ny, nx in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                near = ny * width + nx
                if 0 <= ny < height and 0 <= nx < width and owner[near] < 0:
                    owner[near] = k
                    queue.append((near, k))
        if len(objects):
            maps[b] = vectors[owner].T
    return torch.from_numpy(maps.reshape(-1, channels, height, width)).to(values.device)
