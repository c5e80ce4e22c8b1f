"""Ground truth in place of what a network predicts."""

from collections import deque

import numpy as np
import torch
from torch import Tensor


def oracle_map(values: Tensor, ind: Tensor, mask: Tensor, size) -> Tensor:
    """Spread the vectors of objects over a whole map: each cell gets that of the nearest object (``gen_oracle_map``).

    Args:
        values: (B, N, D); ind: (B, N) cells; mask: (B, N), 0 in empty slots; size: (B, D, H, W) of the result.

    A breadth-first flood from all objects at once. On one cell the later object counts; between objects at the same
    distance the one that comes first in the queue.
    """
    _, channels, height, width = size
    maps = np.zeros((len(ind), channels, height * width), dtype=np.float32)
    for b, (vectors, cells, valid) in enumerate(
        zip(values.cpu().numpy(), ind.cpu().numpy(), mask.cpu().numpy() > 0, strict=True)
    ):
        owner = np.full(height * width, -1)
        for k in np.flatnonzero(valid):
            owner[cells[k]] = k
        queue = deque(int(cell) for cell in cells[valid])
        while queue:
            cell = queue.popleft()
            y, x = divmod(cell, width)
            for ny, nx in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                near = ny * width + nx
                if 0 <= ny < height and 0 <= nx < width and owner[near] < 0:
                    owner[near] = owner[cell]
                    queue.append(near)
        if valid.any():
            maps[b] = vectors[owner].T
    return torch.from_numpy(maps.reshape(-1, channels, height, width)).to(values.device)
