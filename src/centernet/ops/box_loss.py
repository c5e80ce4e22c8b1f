"""IoU losses on decoded boxes, at the objects' centers or all over their Gaussians (TTFNet, arXiv 1909.00700).

A cell (x, y) predicts the box whose center is (x, y) + ``reg`` and whose sides are ``wh``, which is how decoding reads
the maps. So a cell away from the center learns the offset from itself to the center, and decoding stays as it is.
"""

import numpy as np
import torch
from torch import Tensor

from .losses import gather_feat

IOU_LOSSES = ("giou", "diou", "ciou")
EPSILON = 1e-7  # avoids divisions by zero
GAUSSIAN_SHARE = 0.54  # of a box's side that its Gaussian covers; the standard deviation is a sixth of it (TTFNet)
MIN_SIDE = 0.4  # output pixels; a smaller predicted side counts as this, or boxes of negative area would get no IoU
MIN_TARGET = 0.5  # a smaller true side counts as this: more than MIN_SIDE, so that all below it have to grow
MIN_LOG_AREA = 0.5  # least weight of an object whose samples are weighted by the logarithm of its area


def sample_extent(sizes: np.ndarray) -> np.ndarray:
    """Return how many cells on each side of the center an object's Gaussian covers: (n, 2) sides to (n, 2) int64."""
    return np.floor(sizes * (GAUSSIAN_SHARE / 2)).astype(np.int64)


def num_window_cells(extent: np.ndarray) -> int:
    """Return the ``cells`` of ``draw_box_samples`` for objects of the given extent (n, 2)."""
    return int((2 * extent + 1).prod(axis=1).sum())


def draw_box_samples(
    size: tuple[int, int, int], sizes: Tensor, ind: Tensor, extent: Tensor, cells: int | None = None
) -> tuple[Tensor, Tensor]:
    """Assign cells to objects and weight them by the objects' Gaussians.

    An object's center, where decoding reads its box, belongs to it; any other cell that several objects cover belongs
    to the smallest. The weights of an object's cells add up to the logarithm of its area in output pixels (at least
    ``MIN_LOG_AREA``). TTFNet takes the area in input pixels, by which large and small objects differ less.

    Args:
        size: (B, H, W) of the maps.
        sizes: (B, N, 2) float, width and height of the boxes in output pixels.
        ind: (B, N) int64, y * W + x of the centers.
        extent: (B, N, 2) int64, cells covered on each side of the center; negative in empty slots.
        cells: ``num_window_cells`` of all objects if it is known on the host, which saves a device synchronization.

    Returns:
        slot (B, H, W) int64, the object of each cell, 0 where there is none; weight (B, H, W) float32, 0 there.
    """
    batch, height, width = size
    objects = ind.shape[1]
    sides = (2 * extent + 1).clamp(min=0)
    count = sides.prod(2).flatten()
    if cells is None:
        cells = int(count.sum())
    # One row per cell of every object's window: its object, and its place in the window.
    owner = torch.repeat_interleave(count, output_size=cells)
    place = torch.arange(cells, device=ind.device) - (count.cumsum(0) - count)[owner]
    extent_x, extent_y = extent.reshape(-1, 2)[owner].unbind(1)
    window_width = 2 * extent_x + 1
    dx = place % window_width - extent_x
    dy = torch.div(place, window_width, rounding_mode="floor") - extent_y
    center = ind.flatten()[owner]
    x, y = center % width + dx, torch.div(center, width, rounding_mode="floor") + dy
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    image = torch.div(owner, objects, rounding_mode="floor")
    cell = (image * height + y.clamp(0, height - 1)) * width + x.clamp(0, width - 1)

    area = sizes.prod(2)
    # Ranks within an image: the smallest object has the highest, above all others in their centers.
    rank = (area.argsort(dim=1, descending=True, stable=True).argsort(dim=1).flatten() + 1)[owner]
    rank = rank + objects * ((dx == 0) & (dy == 0))
    top = torch.zeros(batch * height * width, dtype=torch.int64, device=ind.device)
    top.scatter_reduce_(0, cell, rank * inside, "amax")
    mine = inside & (top[cell] == rank)

    sigma = (sizes * (GAUSSIAN_SHARE / 6)).clamp(min=1e-3).reshape(-1, 2)[owner]
    value = torch.exp(-((torch.stack([dx, dy], 1) / sigma) ** 2).sum(1) / 2) * mine
    total = value.new_zeros(batch * objects).index_add_(0, owner, value)
    value = value / total[owner].clamp(min=1e-12) * area.flatten()[owner].clamp(min=1).log().clamp(min=MIN_LOG_AREA)
    weight = value.new_zeros(batch * height * width).scatter_reduce_(0, cell, value, "amax")
    slot = torch.zeros_like(top).scatter_reduce_(0, cell, (owner % objects) * mine, "amax")
    return slot.view(size), weight.view(size)


def boxes_of(wh: Tensor, reg: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """Return boxes (..., 4) [x1, y1, x2, y2] from sides and offsets (..., 2) predicted at the cells ``xs``, ``ys``."""
    center = torch.stack([xs, ys], dim=-1) + reg
    return torch.cat([center - wh / 2, center + wh / 2], dim=-1)


def box_loss(output: dict[str, Tensor], batch: dict[str, Tensor], kind: str) -> Tensor:
    """Return the weighted sum of an IoU loss over the samples of a batch; divide it by ``num_box_samples``.

    Args:
        output: raw maps, of which ``wh`` and ``reg`` (B, 2, H, W) in output pixels are read.
        batch: ``ind`` (B, N), ``reg_mask`` (B, N), ``wh`` and ``reg`` (B, N, 2) of the objects; with supervision all
            over the Gaussians also ``box_slot`` and ``box_weight`` (B, H, W) of ``draw_box_samples``.
        kind: ``giou``, ``diou`` or ``ciou``.
    """
    wh, reg = output["wh"], output["reg"]
    width = wh.shape[3]
    ind = batch["ind"]
    xs, ys = ind % width, torch.div(ind, width, rounding_mode="floor")
    # A target below MIN_SIDE, such as of an object that the image border cuts, would demand ever smaller sides.
    target = boxes_of(batch["wh"].to(wh.dtype).clamp(min=MIN_TARGET), batch["reg"].to(wh.dtype), xs, ys)
    if "box_weight" in batch:
        weight = batch["box_weight"].flatten(1)
        target = target.gather(1, batch["box_slot"].flatten(1)[:, :, None].expand(-1, -1, 4))
        wh, reg = wh.flatten(2).transpose(1, 2), reg.flatten(2).transpose(1, 2)
        cell = torch.arange(wh.shape[1], device=wh.device)
        xs, ys = (cell % width).expand_as(weight), torch.div(cell, width, rounding_mode="floor").expand_as(weight)
    else:
        weight = batch["reg_mask"]
        wh, reg = gather_feat(wh, ind), gather_feat(reg, ind)
    used = weight > 0
    # A clamp would stop the gradient of the sides that are too small, which need it most: pass it straight through.
    wh = wh + (wh.clamp(min=MIN_SIDE) - wh).detach()
    # Cells that do not count compare a box with itself, so that nothing undefined reaches the sum or the gradient.
    unit = (torch.arange(4, device=target.device) > 1).to(target.dtype)  # [0, 0, 1, 1], made on the device
    predicted = torch.where(used[:, :, None], boxes_of(wh, reg, xs, ys), unit)
    target = torch.where(used[:, :, None], target, unit)
    return (iou_loss(predicted, target, kind) * weight).sum()


def iou_loss(boxes: Tensor, targets: Tensor, kind: str) -> Tensor:
    """Return an IoU loss (...) of boxes (..., 4) [x1, y1, x2, y2]; 16-bit types are computed in float32.

    The same numbers and gradients, to the bit, as ``torchvision.ops.generalized_box_iou_loss``,
    ``distance_box_iou_loss`` and ``complete_box_iou_loss``. These select boxes that overlap by a mask, for whose result
    the host has to wait.
    """
    dtype = torch.promote_types(boxes.dtype, torch.float32)
    boxes, targets = boxes.to(dtype), targets.to(dtype)
    overlap, union = _overlap_and_union(boxes, targets)
    iou = overlap / (union + EPSILON)
    # Every part splits the boxes again, in the order of torchvision, because gradients are added in that order.
    (x1, y1, x2, y2), (x1g, y1g, x2g, y2g) = boxes.unbind(-1), targets.unbind(-1)
    left, top, right, bottom = torch.min(x1, x1g), torch.min(y1, y1g), torch.max(x2, x2g), torch.max(y2, y2g)
    if kind == "giou":
        area = (right - left) * (bottom - top)
        return 1 - (iou - (area - union) / (area + EPSILON))
    diagonal = (right - left) ** 2 + (bottom - top) ** 2 + EPSILON
    x, y, xg, yg = (x2 + x1) / 2, (y2 + y1) / 2, (x1g + x2g) / 2, (y1g + y2g) / 2
    loss = 1 - iou + ((x - xg) ** 2 + (y - yg) ** 2) / diagonal
    if kind == "diou":
        return loss
    (x1, y1, x2, y2), (x1g, y1g, x2g, y2g) = boxes.unbind(-1), targets.unbind(-1)
    width, height = x2 - x1, y2 - y1
    ratio = (4 / torch.pi**2) * (torch.atan((x2g - x1g) / (y2g - y1g)) - torch.atan(width / height)) ** 2
    return loss + (ratio / (1 - iou + ratio + EPSILON)).detach() * ratio


def _overlap_and_union(boxes: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the areas (...) of intersection and union of boxes (..., 4)."""
    (x1, y1, x2, y2), (x1g, y1g, x2g, y2g) = boxes.unbind(-1), targets.unbind(-1)
    left, top, right, bottom = torch.max(x1, x1g), torch.max(y1, y1g), torch.min(x2, x2g), torch.min(y2, y2g)
    overlap = torch.where((bottom > top) & (right > left), (right - left) * (bottom - top), 0)
    return overlap, (x2 - x1) * (y2 - y1) + (x2g - x1g) * (y2g - y1g) - overlap


def num_box_samples(batch: dict[str, Tensor]) -> Tensor:
    """Return what the sum of ``box_loss`` is divided by: the weights of all samples."""
    return batch["box_weight"].sum() if "box_weight" in batch else batch["reg_mask"].sum()
