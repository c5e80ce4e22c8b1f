"""Detection by extreme points: an object is its topmost, leftmost, bottommost and rightmost point and its center.

Zhou, Zhuo, Krähenbühl, "Bottom-up Object Detection by Grouping Extreme and Center Points", arXiv 1901.08043, with the
networks and the training of CenterNet. Extreme points are in the order top, left, bottom, right everywhere.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..ops.arrays import numbers
from ..ops.heatmap import draw_gaussians, window_pixels
from ..ops.image import affine_transform
from ..ops.losses import RegL1Loss, gather_feat
from ..ops.peaks import is_exporting, peak_filter, topk
from ..options.table import Options
from ..transforms import AugmentationRng, View, full_view, jitter_by_size, random_crop
from .base import Task, to_image_points
from .criterion import Criterion
from .encoding import Slots, box_radius, sample_meta, warped_image
from .specs import ExdetSpec

SIDES = "tlbr"  # top, left, bottom, right
MAPS = tuple(f"hm_{name}" for name in (*SIDES, "c"))
NUM_DETS = 1000  # combinations of points that decoding returns
CHUNK_SIZE = 1 << 20  # combinations that are examined together
ROW = 14  # numbers per detection: box, score, four points, class


class ExdetLoss(Criterion):
    """hm_weight * (sum of five focal losses) + off_weight * (sum of four offset losses)."""

    names = ("loss", "hm_loss", "off_loss")
    weights = {"hm_loss": "hm_weight", "off_loss": "off_weight"}
    mse_of_scores = True

    def __init__(self, opt: Options) -> None:
        super().__init__(opt)
        self.reg = RegL1Loss()

    def counts(self, batch: dict) -> list[Tensor]:
        """Return the numbers of peaks (or pixels) of the five maps, and of objects."""
        objects = batch["reg_mask"].sum() if self.opt.reg_offset else batch["hm_c"].new_zeros(())
        return [*(self.heatmap_count(batch[name]) for name in MAPS), objects]

    def stack_losses(self, output: dict[str, Tensor], batch: dict, counts: Tensor) -> dict[str, Tensor]:
        """Return hm_loss and off_loss, each summed over its maps."""
        *num_hm, num_reg = counts
        zero = output["hm_c"].new_zeros(())
        pairs = zip(MAPS, num_hm, strict=True)
        losses = {"hm_loss": sum((self.heatmap_loss(output[hm], batch[hm], num) for hm, num in pairs), zero)}
        if self.opt.reg_offset and self.opt.off_weight > 0:
            losses["off_loss"] = zero
            for side in SIDES:
                target = (batch["reg_mask"], batch[f"ind_{side}"], batch[f"reg_{side}"])
                losses["off_loss"] = losses["off_loss"] + self.reg(output[f"reg_{side}"], *target, num_reg)
        return losses

    def with_oracle(self, output: dict[str, Tensor], batch: dict) -> dict[str, Tensor]:
        """Replace the heatmaps with ground truth for ``--eval_oracle_hm``, for error analysis."""
        if not self.opt.eval_oracle_hm:
            return output
        return {**output, **{name: torch.logit(batch[name]) for name in MAPS}}


class Exdet(ExdetSpec, Task):
    """Detection by extreme points. Result rows are [x1, y1, x2, y2, score, t.x, t.y, l.x, ..., r.y] in image pixels.

    Soft-NMS always runs, because many combinations share points.
    """

    target_inputs = ("cls", "radius", "cells", "num_target_pixels")
    criterion = ExdetLoss
    row_length = 13
    always_nms = True
    max_per_image = 100

    def read_objects(self, annotations: list[dict], class_of: dict) -> dict[str, np.ndarray]:
        """Return ``points`` (n, 4, 2) float32, extreme points in image pixels, and ``cls`` (n,) int64.

        The annotations are COCO's with ``extreme_points``, four pairs (x, y), as
        ``src/tools/gen_coco_extreme_points.py`` writes them.
        """
        if any("extreme_points" not in annotation for annotation in annotations):
            raise ValueError("without extreme_points; src/tools/gen_coco_extreme_points.py finds them")
        points = numbers([annotation["extreme_points"] for annotation in annotations], "extreme_points", (4, 2))
        cls = np.array([class_of[annotation["category_id"]] for annotation in annotations], dtype=np.int64)
        return {"points": points.astype(np.float32), "cls": cls}

    def random_view(self, height: int, width: int, rng: AugmentationRng) -> View:
        """Return a random crop. Unlike in the other tasks a flip does not move its center (reference)."""
        view = full_view(height, width, self.opt, square=True)
        view.center = view.center.astype(np.float64)
        if not self.opt.not_rand_crop:
            random_crop(view, height, width, rng)
        else:
            jitter_by_size(view, height, width, self.opt, rng)
        view.flipped = rng.random() < self.opt.flip
        return view

    def encode(self, image: np.ndarray, objects: dict[str, np.ndarray], rng, train: bool) -> dict:
        """Crop an image and place its extreme points in output coordinates (``EXDetDataset.__getitem__``).

        Returns:
            image (h, w, 3) uint8; color (3, 4) float32; for N = max_objs slots: cls (N,) int64, radius (N,) int64, -1
            in empty slots, cells (N, 5) int64, the cells y * W + x of the four points and of the center; unless
            --not_reg_offset also reg_mask (N,) uint8, and for each of t, l, b, r: ind_* (N,) int64 and reg_* (N, 2)
            float32 in output pixels; num_target_pixels (1,) int64 of one map; outside training also meta.
        """
        opt, (height, width) = self.opt, image.shape[:2]
        view = self.random_view(height, width, rng) if train else full_view(height, width, opt, square=True)
        sample = warped_image(image, view, opt, rng if train else None)
        points = view.flip_points(objects["points"][: opt.max_objs], width)
        points = points[:, [0, 3, 2, 1]] if view.flipped else points
        points = view.clip(affine_transform(points, view.output_matrix()).astype(np.float32))
        slots = Slots.from_boxes(_boxes(points), objects["cls"], view, opt)
        points = points[slots.indices]
        cells = np.concatenate([points, slots.centers[:, None]], axis=1).astype(np.int64)
        radius = box_radius(slots.sizes)

        sample["cls"] = slots.fill(slots.cls)
        sample["radius"] = slots.fill(radius, empty=-1)
        sample["num_target_pixels"] = np.array([window_pixels(3 * radius if opt.mse_loss else radius)])
        sample["cells"] = slots.fill(slots.index(cells))
        if opt.reg_offset:
            sample["reg_mask"] = slots.fill(np.ones(len(slots), dtype=np.uint8))
            offsets = slots.fill((points - cells[:, :4]).astype(np.float32))
            for k, side in enumerate(SIDES):
                sample[f"reg_{side}"] = offsets[:, k]
                sample[f"ind_{side}"] = sample["cells"][:, k]
        if opt.debug > 0 or not train:
            sample["meta"] = sample_meta(view, ground_truth_rows(points, slots.cls))
        return sample

    def draw_targets(self, batch: dict) -> dict[str, Tensor]:
        """Return ``hm_t``, ``hm_l``, ``hm_b``, ``hm_r``, ``hm_c`` (B, C or 1, h/4, w/4) float32.

        Each has a Gaussian of peak 1 at the cell of the point, with a radius that depends on the object's size.
        """
        opt, (batch_size, height, width) = self.opt, batch["image"].shape[:3]
        cls, radius, maps = batch["cls"], batch["radius"], {}
        if opt.mse_loss:
            # Unlike the other tasks this one has the radius as sigma; 0 would give 0 / 0 at the peak.
            extent, sigma = torch.where(radius >= 0, 3 * radius, -1), radius.clamp(min=1).float()
        else:
            extent, sigma = radius, (2 * radius + 1) / 6
        for k, name in enumerate(MAPS):
            agnostic = opt.agnostic_ex and name != "hm_c"
            channels = 1 if agnostic else opt.num_classes
            size = (batch_size, channels, height // opt.down_ratio, width // opt.down_ratio)
            channel = torch.zeros_like(cls) if agnostic else cls
            cells = batch["cells"][:, :, k]
            maps[name] = draw_gaussians(size, channel, cells, extent, sigma, *batch["num_target_pixels"])
        return maps

    def decode(self, output: dict[str, Tensor], flipped: bool = False) -> Tensor:
        """Decode raw maps to (B, 1000, 14) detections in output pixels; see ``exct_decode``.

        For the flip test (``flipped``) both halves of the batch are decoded, and the result (B, 2000, 14) holds the
        detections of both in the coordinates of the first.
        """
        opt = self.opt
        heats = [output[name].float().sigmoid() for name in MAPS]
        offsets = [output[f"reg_{side}"].float() for side in SIDES] if opt.reg_offset else [None] * 4
        decoding: tuple[Any, ...] = (*heats, *offsets, opt.K, opt.scores_thresh, opt.center_thresh, opt.aggr_weight)
        dets = (agnex_ct_decode if opt.agnostic_ex else exct_decode)(*decoding)
        if flipped:
            plain, from_flipped = dets.chunk(2)
            dets = torch.cat([plain, unflip(from_flipped, output["hm_c"].shape[3])], dim=1)
        return dets

    @property
    def columns(self) -> list[str]:
        """Return the names of the columns of a detection."""
        points = [f"{side}_{axis}" for side in ("top", "left", "bottom", "right") for axis in "xy"]
        return ["x1", "y1", "x2", "y2", "score", *points, "class"]

    def to_image_coords(self, dets: Tensor, metas) -> list[dict[int, np.ndarray]]:
        """Transform detections (B, n, 14) to image pixels, ``{class from 1: (n, 13) float32}`` per image.

        Rows without a combination are left out.
        """
        images = []
        for rows, meta in zip(dets.cpu().numpy(), metas, strict=True):
            rows = _image_rows(rows[rows[:, 4] > 0], meta)
            images.append({cls + 1: rows[rows[:, 13] == cls, :13] for cls in range(self.opt.num_classes)})
        return images

    def ground_truth_boxes(self, objects: dict[str, np.ndarray]) -> np.ndarray:
        """Return the boxes (n, 4) that the extreme points span."""
        return _boxes(objects["points"])


def _boxes(points: np.ndarray) -> np.ndarray:
    """Return the boxes (n, 4) [x1, y1, x2, y2] of extreme points (n, 4, 2)."""
    return np.column_stack([points[:, 1, 0], points[:, 0, 1], points[:, 3, 0], points[:, 2, 1]])


def ground_truth_rows(points: np.ndarray, cls: np.ndarray) -> np.ndarray:
    """Return extreme points (n, 4, 2) of objects of the classes (n,) as detections (n, 14) of score 1."""
    return np.column_stack([_boxes(points), np.ones(len(cls)), points.reshape(-1, 8), cls]).astype(np.float32)


class ExtremePoints(NamedTuple):
    """The K best peaks of each of the four kinds, for a batch."""

    scores: Tensor  # (B, 4, K)
    cells: Tensor  # (B, 4, K, 2) x, y
    classes: Tensor  # (B, 4, K), 0 without classes
    points: Tensor  # (B, 4, K, 2) x, y with offsets


def exct_decode(
    t_heat: Tensor,
    l_heat: Tensor,
    b_heat: Tensor,
    r_heat: Tensor,
    ct_heat: Tensor,
    t_regr: Tensor | None = None,
    l_regr: Tensor | None = None,
    b_regr: Tensor | None = None,
    r_regr: Tensor | None = None,
    K: int = 40,
    scores_thresh: float = 0.1,
    center_thresh: float = 0.1,
    aggr_weight: float = 0.0,
    num_dets: int = NUM_DETS,
    agnostic: bool = False,
) -> Tensor:
    """Group peaks of four kinds to boxes whose geometric center is bright (section 4.1, "center grouping").

    A combination is valid if its points have the same class, at least ``scores_thresh`` each and the order that their
    names imply, and the center map of that class has at least ``center_thresh`` in the middle of the box. Its score is
    (t + l + b + r + 2 c) / 6. Combinations are examined in chunks, and only those of pairs that fit: the reference
    keeps all K^4 in memory.

    Args:
        t_heat, l_heat, b_heat, r_heat: (B, C, H, W) scores of the extreme points; ct_heat: (B, C, H, W) of the centers.
        t_regr, l_regr, b_regr, r_regr: (B, 2, H, W) offsets; if one is None, points are in the middle of their cells.
        K: peaks of each kind.
        aggr_weight: weight of the edge aggregation (section 4.3), 0 for none.
        num_dets: rows of the result.
        agnostic: extreme points (B, 1, H, W) have no class; the brightest center map determines it.

    Returns:
        (B, num_dets, 14) rows [x1, y1, x2, y2, score, t.x, t.y, l.x, l.y, b.x, b.y, r.x, r.y, class from 0] in output
        pixels, best first. If there are fewer combinations the rest are rows of score -1. (The reference returns
        invalid combinations there, with scores below 0.)
    """
    heats, offsets = [t_heat, l_heat, b_heat, r_heat], (t_regr, l_regr, b_regr, r_regr)
    ct_heat, ct_cls = ct_heat.max(dim=1, keepdim=True) if agnostic else (ct_heat, None)
    if aggr_weight > 0:
        # Top and bottom edges are horizontal, left and right ones vertical.
        heats = [_aggregate(heat, aggr_weight, dim) for heat, dim in zip(heats, (3, 2, 3, 2), strict=True)]
    peaks = [topk(peak_filter(heat).clamp(max=1), K)[:3] for heat in heats]
    scores, inds, classes = (torch.stack(values, dim=1) for values in zip(*peaks, strict=True))
    rows = inds // ct_heat.shape[3]
    cells = torch.stack([inds - rows * ct_heat.shape[3], rows], dim=3)
    moved = [gather_feat(offset, inds[:, k]) for k, offset in enumerate(offsets) if offset is not None]
    points = cells + (torch.stack(moved, dim=1) if len(moved) == 4 else cells.new_full((), 0.5, dtype=ct_heat.dtype))
    group = _group_densely if is_exporting() else _group
    return group(ExtremePoints(scores, cells, classes, points), ct_heat, ct_cls, scores_thresh, center_thresh, num_dets)


def agnex_ct_decode(*arguments: Any, **named: Any) -> Tensor:
    """Group extreme points (B, 1, H, W) that have no class; arguments as for :func:`exct_decode`."""
    return exct_decode(*arguments, **{**named, "agnostic": True})


def _group(
    peaks: ExtremePoints, ct_heat: Tensor, ct_cls: Tensor | None, scores_thresh, center_thresh, num_dets: int
) -> Tensor:
    """Return the rows (B, num_dets, 14) of :func:`exct_decode`.

    ``ct_heat`` (B, C or 1, H, W) and ``ct_cls`` (B, 1, H, W), the class of each center of class-agnostic points.
    """
    dets = ct_heat.new_zeros(len(ct_heat), num_dets, ROW)
    dets[:, :, 4] = -1
    for i, (scores, cells, classes, points) in enumerate(zip(*peaks, strict=True)):
        combos, score, center = _combinations(
            scores, cells, classes, ct_heat[i], scores_thresh, center_thresh, num_dets
        )
        top, left, bottom, right = (points[k, combos[:, k]] for k in range(4))
        box = torch.stack([left[:, 0], top[:, 1], right[:, 0], bottom[:, 1], score], dim=1)
        cls = classes[0, combos[:, 0]] if ct_cls is None else ct_cls[i].flatten()[center]
        dets[i, : len(box)] = torch.cat([box, top, left, bottom, right, cls[:, None].to(box.dtype)], dim=1)
    return dets


def _combinations(
    scores: Tensor, cells: Tensor, classes: Tensor, ct_heat: Tensor, scores_thresh, center_thresh, num_dets: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best combinations of the points of one image.

    Args:
        scores (4, K), cells (4, K, 2) x, y, classes (4, K) of the points; ct_heat (C or 1, H, W).

    Returns:
        combos (n, 4) indices of top, left, bottom and right points, score (n,), and center (n,) flat cells; n at most
        ``num_dets``, best first; equal scores in the order of the combinations.
    """
    x, y = cells[:, :, 0], cells[:, :, 1]
    good = scores >= scores_thresh
    # Pairs (top, left) and (bottom, right) that can belong to one object; they are joined below, a chunk at a time.
    t, left = (
        (good[0][:, None] & good[1])
        & (classes[0][:, None] == classes[1])
        & (y[0][:, None] <= y[1])
        & (x[1] <= x[0][:, None])
    ).nonzero(as_tuple=True)
    b, right = (
        (good[2][:, None] & good[3])
        & (classes[2][:, None] == classes[3])
        & (y[2][:, None] >= y[3])
        & (x[3] >= x[2][:, None])
    ).nonzero(as_tuple=True)

    combos = cells.new_zeros(0, 4)
    best, centers = scores.new_zeros(0), cells.new_zeros(0)
    step = max(1, CHUNK_SIZE // max(1, len(b)))
    for start in range(0, len(t), step):
        t1, l1 = (side[start : start + step, None] for side in (t, left))
        fits = classes[0][t1] == classes[2][b]
        fits &= (y[0][t1] <= y[2][b]) & (y[0][t1] <= y[3][right])
        fits &= (x[1][l1] <= x[2][b]) & (x[1][l1] <= x[3][right])
        fits &= (y[2][b] >= y[1][l1]) & (x[3][right] >= x[0][t1])
        first, second = fits.nonzero(as_tuple=True)
        combo = torch.stack([t1[first, 0], l1[first, 0], b[second], right[second]], dim=1)
        cx = (x[1, combo[:, 1]] + x[3, combo[:, 3]]) // 2
        cy = (y[0, combo[:, 0]] + y[2, combo[:, 2]]) // 2
        center_score = ct_heat[classes[0, combo[:, 0]], cy, cx]
        score = scores[0, combo[:, 0]] + scores[1, combo[:, 1]] + scores[2, combo[:, 2]] + scores[3, combo[:, 3]]
        score = (score + 2 * center_score) / 6
        bright = center_score >= center_thresh
        combos = torch.cat([combos, combo[bright]])
        best = torch.cat([best, score[bright]])
        centers = torch.cat([centers, (cy * ct_heat.shape[2] + cx)[bright]])
        if len(best) > num_dets:
            limit = best.topk(num_dets)[0][-1]
            kept = (best >= limit).nonzero()[:, 0]
            order = kept[best[kept].sort(descending=True, stable=True)[1]][:num_dets]
            combos, best, centers = combos[order], best[order], centers[order]
    order = best.sort(descending=True, stable=True)[1]
    return combos[order], best[order], centers[order]


def _group_densely(
    peaks: ExtremePoints, ct_heat: Tensor, ct_cls: Tensor | None, scores_thresh, center_thresh, num_dets: int
) -> Tensor:
    """Return the rows of :func:`_group`, computed for a whole batch from all K^4 combinations as in the reference.

    Exported networks use this variant, because a loop over a data-dependent number of pairs cannot be exported. The
    order of equal scores may differ.
    """
    count, (height, width) = peaks.scores.shape[2], ct_heat.shape[2:]

    def spread(values: Tensor) -> list[Tensor]:
        """Split (B, 4, K) into four that broadcast to (B, K, K, K, K): top, left, bottom, right."""
        return [values[:, side].reshape(-1, *(count if k == side else 1 for k in range(4))) for side in range(4)]

    (x_t, x_l, x_b, x_r), (y_t, y_l, y_b, y_r) = spread(peaks.cells[..., 0]), spread(peaks.cells[..., 1])
    c_t, c_l, c_b, c_r = spread(peaks.classes)
    cx, cy = (x_l + x_r) // 2, (y_t + y_b) // 2
    centers = (c_t * height + cy) * width + cx
    center_score = ct_heat.flatten(1).gather(1, centers.flatten(1)).view(centers.shape)
    s_t, s_l, s_b, s_r = spread(peaks.scores)
    score = (s_t + s_l + s_b + s_r + 2 * center_score) / 6
    fits = (c_t == c_l) & (c_t == c_b) & (c_t == c_r) & (center_score >= center_thresh)
    fits &= (y_t <= y_l) & (y_t <= y_b) & (y_t <= y_r) & (y_b >= y_l) & (y_b >= y_r)
    fits &= (x_l <= x_t) & (x_l <= x_b) & (x_l <= x_r) & (x_r >= x_t) & (x_r >= x_b)
    for side in spread(peaks.scores >= scores_thresh):
        fits = fits & side
    score, place = torch.where(fits, score, -1.0).flatten(1).topk(min(num_dets, count**4))
    chosen = [place // count ** (3 - side) % count for side in range(4)]  # (B, num_dets) each
    top, left, bottom, right = (
        peaks.points[:, side].gather(1, index[:, :, None].expand(-1, -1, 2)) for side, index in enumerate(chosen)
    )
    cls = peaks.classes[:, 0].gather(1, chosen[0])
    if ct_cls is not None:
        cls = ct_cls.flatten(1).gather(1, centers.flatten(1).gather(1, place))
    box = torch.stack([left[..., 0], top[..., 1], right[..., 0], bottom[..., 1], score], dim=2)
    dets = torch.cat([box, top, left, bottom, right, cls[:, :, None].to(box.dtype)], dim=2)
    empty = torch.where(torch.arange(ROW, device=dets.device) == 4, -1.0, 0.0)
    return torch.where(score[:, :, None] < 0, empty, dets)


def _aggregate(heat: Tensor, weight: float, dim: int) -> Tensor:
    """Add to each score, times ``weight``, the sums of the scores that rise to it from both sides along ``dim``."""
    before, behind = _runs(heat, dim), _runs(heat.flip(dim), dim).flip(dim)
    return weight * before + weight * behind + heat


def _runs(heat: Tensor, dim: int) -> Tensor:
    """Return for each cell the sum of the scores before it along ``dim``, as far back as they are non-decreasing."""
    lines = heat.movedim(dim, 0).contiguous()
    sums = lines.clone()
    for i in range(1, len(lines)):
        sums[i] += sums[i - 1] * (lines[i] >= lines[i - 1])
    return (sums - lines).movedim(0, dim)


def unflip(dets: Tensor, width: int) -> Tensor:
    """Return detections (..., 14) of flipped maps in the coordinates of the original; ``width`` in output pixels.

    As in the reference x becomes width - x, and left and right are exchanged.
    """
    x1, y1, x2, y2, score, tx, ty, lx, ly, bx, by, rx, ry, cls = dets.unbind(-1)
    points = (width - tx, ty, width - rx, ry, width - bx, by, width - lx, ly)
    return torch.stack([width - x2, y1, width - x1, y2, score, *points, cls], dim=-1)


def exdet_post_process(dets: np.ndarray, c, s, h: int, w: int, scale: float = 1) -> np.ndarray:
    """Transform detections (n, 14) of h x w maps to image pixels; ``c`` and ``s`` are center and scale of the view.

    ``scale`` is the test scale by which the image was resized before. The extreme points are transformed with the
    boxes; in the reference they stay in output pixels.
    """
    return _image_rows(dets, {"c": c, "s": s, "output_size": (w, h), "scale": scale})


def _image_rows(dets: np.ndarray, meta: dict) -> np.ndarray:
    rows = np.array(dets, dtype=np.float32)
    lengths = [*range(4), *range(5, 13)]
    rows[:, lengths] = to_image_points(rows[:, lengths], meta)
    return rows
