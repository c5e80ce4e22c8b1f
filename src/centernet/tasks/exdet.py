"""Detection by extreme points: an object is its topmost, leftmost, bottommost and rightmost point and its center.

Zhou, Zhuo, Krähenbühl, "Bottom-up Object Detection by Grouping Extreme and Center Points", arXiv 1901.08043, with the
networks and the training of CenterNet. Extreme points come in the order top, left, bottom, right everywhere.
"""

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from .. import visualization
from ..datasets.annotations import numbers
from ..datasets.augmentation import CROP_SCALES, AugmentationRng, View, border, color_matrix, full_view
from ..ops.heatmap import draw_gaussians, window_pixels
from ..ops.image import affine_transform, gaussian_radius, transform_preds
from ..ops.losses import RegL1Loss, clamped_sigmoid, focal_loss, gather_feat
from ..ops.nms import soft_nms_39
from ..ops.peaks import is_exporting, peak_filter, topk
from .option import Option

DEFAULT_DATASET = "coco"
TARGET_INPUTS = ("cls", "radius", "cells", "pixels")  # of a sample: what only ``draw_targets`` needs
IGNORED_OPTIONS = ("reg_loss", "wh_weight", "nms", "hm_gauss")
OPTIONS = (
    Option("agnostic_ex", "extreme points without classes", recipe=True),
    Option("scores_thresh", "score of the extreme points", 0.1, low=0, high=1),
    Option("aggr_weight", "weight of the edge aggregation", 0.0, low=0),
)
SIDES = "tlbr"  # top, left, bottom, right
MAX_PER_IMAGE = 100  # detections that a result keeps
DEFAULT_K = 40  # points of each kind, unless --K is given: what published results were made with
NUM_DETS = 1000  # combinations of points that decoding gives
BLOCK = 1 << 20  # combinations that are looked at together
ROW = 14  # numbers of a detection: box, score, four points, class


def heads(opt) -> dict[str, int]:
    """hm_t, hm_l, hm_b, hm_r, hm_c: maps of the extreme points and centers; reg_*: what rounding a point lost."""
    channels = {f"hm_{side}": 1 if opt.agnostic_ex else opt.num_classes for side in SIDES}
    channels["hm_c"] = opt.num_classes
    if opt.reg_offset:
        channels.update({f"reg_{side}": 2 for side in SIDES})
    return channels


def options_of_heads(heads: dict[str, int]) -> dict[str, bool]:
    """The options with which ``heads`` are those of a network."""
    agnostic = heads.get("hm_c", 0) > 1 and heads.get("hm_t") == 1
    return {"not_reg_offset": "reg_t" not in heads, "agnostic_ex": agnostic}


# Targets


def read_objects(annotations: list[dict], class_of: dict) -> dict[str, np.ndarray]:
    """``points`` (n, 4, 2) float32, extreme points in image pixels, and ``cls`` (n,) int64 of annotations.

    The annotations are COCO's with ``extreme_points``, four pairs (x, y), as
    ``src/tools/gen_coco_extreme_points.py`` writes them.
    """
    if any("extreme_points" not in annotation for annotation in annotations):
        raise ValueError("without extreme_points; src/tools/gen_coco_extreme_points.py finds them")
    points = numbers([annotation["extreme_points"] for annotation in annotations], "extreme_points", (4, 2))
    points = points.astype(np.float32)
    cls = np.array([class_of[annotation["category_id"]] for annotation in annotations], dtype=np.int64)
    return {"points": points, "cls": cls}


def random_view(height: int, width: int, opt, draws: AugmentationRng) -> View:
    """A random cut of this task. Unlike those of the other tasks its center is not mirrored with the image."""
    view = full_view(height, width, opt, square=True)
    view.center = view.center.astype(np.float64)
    if not opt.not_rand_crop:
        view.scale = view.scale * draws.choice(CROP_SCALES)
        view.center[0] = draws.randint(border(width), width - border(width))
        view.center[1] = draws.randint(border(height), height - border(height))
    else:
        shift, scale = opt.shift, opt.scale
        view.scale = view.scale * np.clip(draws.randn() * scale + 1, 1 - scale, 1 + scale)
        view.center[0] += width * np.clip(draws.randn() * shift, -2 * shift, 2 * shift)
        view.center[1] += height * np.clip(draws.randn() * shift, -2 * shift, 2 * shift)
    view.flipped = draws.random() < opt.flip
    return view


def make_sample(
    image: np.ndarray, objects: dict[str, np.ndarray], opt, draws: AugmentationRng | None, train: bool
) -> dict:
    """Cut the image and bring the extreme points into output coordinates (``EXDetDataset.__getitem__``).

    Args:
        image: (H, W, 3) uint8, B, G, R.
        objects: what ``read_objects`` gives; slot k of the targets belongs to object k, also when others drop out.
        opt: finished options.
        draws: random numbers, needed in training.
        train: augment.

    Returns:
        image (h, w, 3) uint8; color (3, 4) float32; for N = max_objs slots: cls (N,) int64, radius (N,) int64, -1 in
        empty slots, cells (N, 5) int64, the cells y * W + x of the four points and of the center; unless
        --not_reg_offset also reg_mask (N,) uint8, and for each of t, l, b, r: ind_* (N,) int64 and reg_* (N, 2) float32
        in output pixels; pixels (1,) int64, how many are drawn in a map; outside training also meta.
    """
    height, width = image.shape[:2]
    view = random_view(height, width, opt, draws) if train else full_view(height, width, opt, square=True)
    warped = view.warp(image)
    color = draws.color() if train and not opt.no_color_aug else None
    sample = {"image": warped, "color": color_matrix(warped, color, opt.mean, opt.std)}

    points = objects["points"][: opt.max_objs].copy()
    if view.flipped:
        points[:, :, 0] = width - points[:, :, 0] - 1
        points[:, [1, 3]] = points[:, [3, 1]]
    output_w, output_h = view.output_size
    points = affine_transform(points, view.output_matrix()).astype(np.float32)
    points = points.clip(0, [output_w - 1, output_h - 1]).astype(np.float32)
    top, left, bottom, right = points.transpose(1, 0, 2)
    sizes = np.column_stack([right[:, 0] - left[:, 0], bottom[:, 1] - top[:, 1]])
    slots = np.flatnonzero((sizes > 0).all(1))  # the slot of each object that still has an extent
    points, sizes, cls = points[slots], sizes[slots], objects["cls"][: opt.max_objs][slots]
    radius = gaussian_radius((np.ceil(sizes[:, 1]), np.ceil(sizes[:, 0]))).astype(np.int64).clip(min=0)
    centers = np.column_stack([points[:, 1, 0] + points[:, 3, 0], points[:, 0, 1] + points[:, 2, 1]]) / 2
    places = np.concatenate([points, centers[:, None]], axis=1).astype(np.int64)

    def filled(values: np.ndarray, empty: int = 0) -> np.ndarray:
        array = np.full((opt.max_objs, *values.shape[1:]), empty, dtype=values.dtype)
        array[slots] = values
        return array

    sample["cls"] = filled(cls)
    sample["radius"] = filled(radius, empty=-1)
    sample["pixels"] = np.array([window_pixels(3 * radius if opt.mse_loss else radius)])
    sample["cells"] = filled(places[:, :, 1] * output_w + places[:, :, 0])
    if opt.reg_offset:
        sample["reg_mask"] = filled(np.ones(len(slots), dtype=np.uint8))
        offsets = filled((points - places[:, :4]).astype(np.float32))
        for k, side in enumerate(SIDES):
            sample[f"reg_{side}"] = offsets[:, k]
            sample[f"ind_{side}"] = sample["cells"][:, k]
    if opt.debug > 0 or not train:
        gt_det = true_rows(points, cls) if len(slots) else np.zeros((1, ROW), dtype=np.float32)
        sample["meta"] = {"c": view.center, "s": view.scale, "output_size": view.output_size, "gt_det": gt_det}
    return sample


def draw_targets(batch: dict, opt) -> dict[str, Tensor]:
    """``hm_t``, ``hm_l``, ``hm_b``, ``hm_r``, ``hm_c`` (B, C or 1, h/4, w/4) float32 of a batch on its device.

    Each is a Gaussian of peak 1 at the cell of the point, as wide as the object's size makes it.
    """
    batch_size, height, width = batch["image"].shape[:3]
    cls, radius = batch["cls"], batch["radius"]
    if opt.mse_loss:
        # Unlike the other tasks this one takes the radius as the deviation; 0 would give 0 / 0 at the peak.
        reach, sigma = torch.where(radius >= 0, 3 * radius, -1), radius.clamp(min=1).float()
    else:
        reach, sigma = radius, (2 * radius + 1) / 6
    maps = {}
    for k, name in enumerate([*SIDES, "c"]):
        agnostic = opt.agnostic_ex and name != "c"
        channels = 1 if agnostic else opt.num_classes
        size = (batch_size, channels, height // opt.down_ratio, width // opt.down_ratio)
        channel = torch.zeros_like(cls) if agnostic else cls
        maps[f"hm_{name}"] = draw_gaussians(size, channel, batch["cells"][:, :, k], reach, sigma, *batch["pixels"])
    return maps


# Loss


class ExdetLoss(nn.Module):
    """hm_weight * (sum of five focal losses) + off_weight * (sum of four offset losses), averaged over the stacks.

    forward(outputs, batch): ``outputs`` is what the network gives, a dict of raw maps a stack; ``batch`` holds the
    targets of ``make_sample`` and ``draw_targets``. Returns the loss and its unweighted parts by name.

    The parts are divided by the numbers of ``counts``: of the batch, or those that ``forward`` is given, of a larger
    batch of which this one is a piece (``tasks/__init__.py``).
    """

    names = ("loss", "hm_loss", "off_loss")

    def __init__(self, opt) -> None:
        super().__init__()
        self.opt = opt
        self.reg = RegL1Loss()

    def counts(self, batch: dict) -> Tensor:
        """Peaks (or pixels, with ``--mse_loss``) of the five maps, objects."""
        maps = [batch[f"hm_{name}"] for name in (*SIDES, "c")]
        counts = [hm.new_tensor(hm.numel()) if self.opt.mse_loss else hm.eq(1).sum() for hm in maps]
        counts.append(batch["reg_mask"].sum() if self.opt.reg_offset else maps[0].new_zeros(()))
        return torch.stack([count.to(maps[0].dtype) for count in counts])

    def forward(
        self, outputs: list[dict[str, Tensor]], batch: dict, counts: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        opt = self.opt
        maps = [f"hm_{name}" for name in (*SIDES, "c")]
        with_offsets = opt.reg_offset and opt.off_weight > 0
        *num_hm, num_reg = (self.counts(batch) if counts is None else counts).to(outputs[0]["hm_c"].dtype)

        zero = outputs[0]["hm_c"].new_zeros(())
        hm_loss, off_loss = zero, zero
        for output in outputs:
            output = with_oracle(output, batch, opt)
            for hm, num in zip(maps, num_hm, strict=True):
                if opt.mse_loss:
                    hm_loss = hm_loss + ((clamped_sigmoid(output[hm]) - batch[hm]) ** 2).sum() / num
                else:
                    hm_loss = hm_loss + focal_loss(output[hm], batch[hm], num)
            for side in SIDES if with_offsets else ():
                ind, target = batch[f"ind_{side}"], batch[f"reg_{side}"]
                off_loss = off_loss + self.reg(output[f"reg_{side}"], batch["reg_mask"], ind, target, num_reg)
        hm_loss, off_loss = hm_loss / len(outputs), off_loss / len(outputs)
        loss = opt.hm_weight * hm_loss + opt.off_weight * off_loss
        return loss, dict(zip(self.names, (loss, hm_loss, off_loss), strict=True))


Loss = ExdetLoss


def with_oracle(output: dict[str, Tensor], batch: dict, opt) -> dict[str, Tensor]:
    """The raw maps, with ``--eval_oracle_hm`` the true heat maps in their place; for taking errors apart."""
    if not opt.eval_oracle_hm:
        return output
    return {**output, **{f"hm_{name}": torch.logit(batch[f"hm_{name}"]) for name in (*SIDES, "c")}}


# Detections


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
) -> Tensor:
    """Peaks of four kinds to boxes: those four whose geometric center is bright (section 4.1, "center grouping").

    A combination counts if its points are of one class, at least ``scores_thresh`` each and where their names say,
    and the center map of that class has at least ``center_thresh`` in the middle of the box. Its score is
    (t + l + b + r + 2 c) / 6.

    Args:
        t_heat, l_heat, b_heat, r_heat: (B, C, H, W) scores of the extreme points; ct_heat: (B, C, H, W) of the centers.
        t_regr, l_regr, b_regr, r_regr: (B, 2, H, W) offsets; if one is None, points lie in the middle of their cells.
        K: peaks of each kind.
        aggr_weight: of the edge aggregation (section 4.3), 0 for none.
        num_dets: rows of the result.

    Returns:
        (B, num_dets, 14) rows [x1, y1, x2, y2, score, t.x, t.y, l.x, l.y, b.x, b.y, r.x, r.y, class from 0] in output
        pixels, best first. Where there are fewer combinations the rest are rows of score -1. (The reference gives
        combinations that do not count there, with scores below 0.)

    Combinations are looked at in blocks, and only those of pairs that fit: the reference keeps all K^4 in memory.
    """
    heats, offsets = (t_heat, l_heat, b_heat, r_heat), (t_regr, l_regr, b_regr, r_regr)
    return _decode(heats, ct_heat, None, offsets, K, scores_thresh, center_thresh, aggr_weight, num_dets)


def agnex_ct_decode(
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
) -> Tensor:
    """:func:`exct_decode` with extreme points (B, 1, H, W) that have no class: the brightest center map decides it."""
    heats, offsets = (t_heat, l_heat, b_heat, r_heat), (t_regr, l_regr, b_regr, r_regr)
    ct_heat, ct_cls = ct_heat.max(dim=1, keepdim=True)
    return _decode(heats, ct_heat, ct_cls, offsets, K, scores_thresh, center_thresh, aggr_weight, num_dets)


def _decode(heats, ct_heat, ct_cls, offsets, K, scores_thresh, center_thresh, aggr_weight, num_dets) -> Tensor:
    if aggr_weight > 0:
        # Top and bottom edges run across, left and right ones up and down.
        heats = [_aggregate(heat, aggr_weight, dim) for heat, dim in zip(heats, (3, 2, 3, 2), strict=True)]
    width = ct_heat.shape[3]
    peaks = [topk(peak_filter(heat).clamp(max=1), K)[:3] for heat in heats]
    scores, inds, classes = (torch.stack(values, dim=1) for values in zip(*peaks, strict=True))  # (B, 4, K)
    rows = inds // width
    places = torch.stack([inds - rows * width, rows], dim=3)  # (B, 4, K, 2)
    if any(offset is None for offset in offsets):
        points = places + places.new_full((), 0.5, dtype=ct_heat.dtype)
    else:
        moved = [gather_feat(offset, inds[:, k]) for k, offset in enumerate(offsets)]
        points = places + torch.stack(moved, dim=1)

    if is_exporting():
        return _group_densely(scores, places, classes, points, ct_heat, ct_cls, scores_thresh, center_thresh, num_dets)
    dets = ct_heat.new_zeros(len(ct_heat), num_dets, ROW)
    dets[:, :, 4] = -1
    for i in range(len(dets)):
        combos, score, center = _group(
            scores[i], places[i], classes[i], ct_heat[i], scores_thresh, center_thresh, num_dets
        )
        top, left, bottom, right = (points[i, k, combos[:, k]] for k in range(4))
        box = torch.stack([left[:, 0], top[:, 1], right[:, 0], bottom[:, 1], score], dim=1)
        cls = classes[i, 0, combos[:, 0]] if ct_cls is None else ct_cls[i].flatten()[center]
        found = torch.cat([box, top, left, bottom, right, cls[:, None].to(box.dtype)], dim=1)
        dets[i, : len(found)] = found
    return dets


def _group(
    scores: Tensor, places: Tensor, classes: Tensor, ct_heat: Tensor, scores_thresh, center_thresh, num_dets: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The best combinations of one image's points.

    Args:
        scores (4, K), places (4, K, 2) cells x, y, classes (4, K) of the points; ct_heat (C or 1, H, W).

    Returns:
        combos (n, 4) which top, left, bottom and right point, score (n,), and center (n,) flat cells; n at most
        ``num_dets``, best first; equal scores in the order of the combinations.
    """
    width = ct_heat.shape[2]
    x, y = places[:, :, 0], places[:, :, 1]
    good = scores >= scores_thresh
    # Pairs (top, left) and (bottom, right) that can be of one object. What follows joins them, a block at a time.
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

    combos = places.new_zeros(0, 4)
    best, centers = scores.new_zeros(0), places.new_zeros(0)
    step = max(1, BLOCK // max(1, len(b)))
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
        # Class-agnostic points have class 0, and then there is one center map.
        center_score = ct_heat[classes[0, combo[:, 0]], cy, cx]
        score = scores[0, combo[:, 0]] + scores[1, combo[:, 1]] + scores[2, combo[:, 2]] + scores[3, combo[:, 3]]
        score = (score + 2 * center_score) / 6
        bright = center_score >= center_thresh
        combos = torch.cat([combos, combo[bright]])
        best = torch.cat([best, score[bright]])
        centers = torch.cat([centers, (cy * width + cx)[bright]])
        if len(best) > num_dets:
            limit = best.topk(num_dets)[0][-1]
            kept = (best >= limit).nonzero()[:, 0]
            order = kept[best[kept].sort(descending=True, stable=True)[1]][:num_dets]
            combos, best, centers = combos[order], best[order], centers[order]
    order = best.sort(descending=True, stable=True)[1]
    return combos[order], best[order], centers[order]


def _group_densely(
    scores: Tensor,
    places: Tensor,
    classes: Tensor,
    points: Tensor,
    ct_heat: Tensor,
    ct_cls: Tensor | None,
    scores_thresh: float,
    center_thresh: float,
    num_dets: int,
) -> Tensor:
    """What ``_decode`` returns, of a whole batch and from all K^4 combinations, as the reference does it.

    For networks that are exported: a file has no loop over as many pairs as there happen to be. The order of equal
    scores may differ.
    """
    count = scores.shape[2]

    def spread(values: Tensor) -> list[Tensor]:
        """(B, 4, K) to four that broadcast to (B, K, K, K, K): top, left, bottom, right."""
        return [values[:, side].reshape(-1, *(count if k == side else 1 for k in range(4))) for side in range(4)]

    (x_t, x_l, x_b, x_r), (y_t, y_l, y_b, y_r) = spread(places[..., 0]), spread(places[..., 1])
    c_t, c_l, c_b, c_r = spread(classes)
    cx, cy = (x_l + x_r) // 2, (y_t + y_b) // 2
    height, width = ct_heat.shape[2:]
    cells = (c_t * height + cy) * width + cx
    center_score = ct_heat.flatten(1).gather(1, cells.flatten(1)).view(cells.shape)
    s_t, s_l, s_b, s_r = spread(scores)
    score = (s_t + s_l + s_b + s_r + 2 * center_score) / 6
    fits = (c_t == c_l) & (c_t == c_b) & (c_t == c_r) & (center_score >= center_thresh)
    fits &= (y_t <= y_l) & (y_t <= y_b) & (y_t <= y_r) & (y_b >= y_l) & (y_b >= y_r)
    fits &= (x_l <= x_t) & (x_l <= x_b) & (x_l <= x_r) & (x_r >= x_t) & (x_r >= x_b)
    for side in spread(scores >= scores_thresh):
        fits = fits & side
    score, place = torch.where(fits, score, -1.0).flatten(1).topk(min(num_dets, count**4))
    chosen = [place // count ** (3 - side) % count for side in range(4)]  # (B, num_dets) each
    top, left, bottom, right = (
        points[:, side].gather(1, index[:, :, None].expand(-1, -1, 2)) for side, index in enumerate(chosen)
    )
    cls = classes[:, 0].gather(1, chosen[0])
    if ct_cls is not None:
        center = cells.flatten(1).gather(1, place)
        cls = ct_cls.flatten(1).gather(1, center)
    box = torch.stack([left[..., 0], top[..., 1], right[..., 0], bottom[..., 1], score], dim=2)
    dets = torch.cat([box, top, left, bottom, right, cls[:, :, None].to(box.dtype)], dim=2)
    empty = torch.where(torch.arange(ROW, device=dets.device) == 4, -1.0, 0.0)
    return torch.where(score[:, :, None] < 0, empty, dets)


def _aggregate(heat: Tensor, weight: float, dim: int) -> Tensor:
    """Add to each score, times ``weight``, the rising runs that lead up to it from both sides along ``dim``."""
    before, behind = _runs(heat, dim), _runs(heat.flip(dim), dim).flip(dim)
    return weight * before + weight * behind + heat


def _runs(heat: Tensor, dim: int) -> Tensor:
    """At each cell the sum of the scores before it along ``dim``, as far back as they nowhere fall."""
    lines = heat.movedim(dim, 0).contiguous()
    sums = lines.clone()
    for i in range(1, len(lines)):
        sums[i] += sums[i - 1] * (lines[i] >= lines[i - 1])
    return (sums - lines).movedim(0, dim)


def decode(output: dict[str, Tensor], opt, mirrored: bool = False) -> Tensor:
    """Raw maps of the last stack to (B, 1000, 14) detections in output pixels, float32; see :func:`exct_decode`.

    With ``mirrored`` the maps are of 2B images, of which the second half are the first half mirrored. Both are
    decoded, and the result (B, 2000, 14) has the detections of both in the coordinates of the first.
    """
    hms = [output[f"hm_{name}"].float().sigmoid() for name in (*SIDES, "c")]
    regs = [output[f"reg_{side}"].float() for side in SIDES] if opt.reg_offset else [None] * 4
    function = agnex_ct_decode if opt.agnostic_ex else exct_decode
    K = opt.K if "K" in opt.given else DEFAULT_K
    dets = function(
        *hms,
        *regs,
        K=K,
        scores_thresh=opt.scores_thresh,
        center_thresh=opt.center_thresh,
        aggr_weight=opt.aggr_weight,
    )
    if mirrored:
        plain, mirror = dets.chunk(2)
        dets = torch.cat([plain, unflip(mirror, hms[0].shape[3])], dim=1)
    return dets


def columns(opt) -> list[str]:
    """What the numbers of a detection are."""
    points = [f"{side}_{axis}" for side in ("top", "left", "bottom", "right") for axis in "xy"]
    return ["x1", "y1", "x2", "y2", "score", *points, "class"]


def unflip(dets: Tensor, width: int) -> Tensor:
    """Detections (..., 14) of mirrored maps in the coordinates of the maps themselves; ``width`` in output pixels.

    As in the reference x becomes width - x, and left and right change places.
    """
    x1, y1, x2, y2, score, tx, ty, lx, ly, bx, by, rx, ry, cls = dets.unbind(-1)
    points = (width - tx, ty, width - rx, ry, width - bx, by, width - lx, ly)
    return torch.stack([width - x2, y1, width - x1, y2, score, *points, cls], dim=-1)


def exdet_post_process(dets: np.ndarray, c, s, h: int, w: int, scale: float = 1) -> np.ndarray:
    """Detections (n, 14) of h x w maps to image pixels; ``c`` and ``s`` are center and scale of the view.

    ``scale`` is the test scale, by which the image was resized before. The extreme points are brought along with the
    boxes; in the reference they stay where they are.
    """
    rows = np.array(dets, dtype=np.float32)
    for columns in (slice(0, 4), slice(5, 13)):
        points = transform_preds(rows[:, columns].reshape(-1, 2), c, s, (w, h))
        rows[:, columns] = points.reshape(rows[:, columns].shape)
        rows[:, columns] /= scale
    return rows


def to_image_coords(dets: Tensor, metas: list[dict], opt) -> list[dict[int, np.ndarray]]:
    """Detections (B, n, 14) of a batch of views to image pixels: ``{class from 1: (n, 13) float32}`` an image.

    ``metas`` hold ``c``, ``s`` and ``output_size`` of each view, and ``scale`` if the image was resized before. Rows
    are [x1, y1, x2, y2, score, t.x, t.y, l.x, l.y, b.x, b.y, r.x, r.y]; those of no combination are left out.
    """
    images = []
    for rows, meta in zip(dets.cpu().numpy(), metas, strict=True):
        width, height = meta["output_size"]
        rows = rows[rows[:, 4] > 0]
        rows = exdet_post_process(rows, meta["c"], meta["s"], height, width, meta.get("scale", 1))
        images.append({cls + 1: rows[rows[:, 13] == cls, :13] for cls in range(opt.num_classes)})
    return images


def merge_outputs(detections: list[dict], opt) -> dict[int, np.ndarray]:
    """Join the detections of the test scales of one image: ``{class from 1: (n, 13) float32}``, 100 in all.

    Soft-NMS always runs, for many combinations share points. Rows that it discards go, unless ``--keep_discarded``
    asks for the stale copies that the reference leaves in their place.
    """
    results = {}
    for cls in range(1, opt.num_classes + 1):
        rows = [np.asarray(scale[cls], dtype=np.float32).reshape(-1, 13) for scale in detections]
        rows = np.concatenate(rows)
        # The variant for poses moves all of a row; of its 39 columns a detection needs 13.
        wide = np.zeros((len(rows), 39), dtype=np.float32)
        wide[:, :13] = rows
        kept = soft_nms_39(wide, Nt=0.5, method=2)
        results[cls] = (wide if opt.keep_discarded else wide[kept])[:, :13].copy()
    scores = np.hstack([rows[:, 4] for rows in results.values()])
    if len(scores) > MAX_PER_IMAGE:
        limit = np.partition(scores, len(scores) - MAX_PER_IMAGE)[len(scores) - MAX_PER_IMAGE]
        results = {cls: rows[rows[:, 4] >= limit] for cls, rows in results.items()}
    return results


def post_process(dets: Tensor, metas: list[dict], opt) -> list[dict[int, np.ndarray]]:
    """Detections of a batch of whole images to results in image pixels, at most 100 an image."""
    return [merge_outputs([image], opt) for image in to_image_coords(dets, metas, opt)]


# Images


def detected_boxes(rows: np.ndarray) -> np.ndarray:
    """Boxes and scores (n, 5) of result rows."""
    return rows[:, :5]


def ground_truth_boxes(objects: dict[str, np.ndarray]) -> np.ndarray:
    """The boxes (n, 4) of objects."""
    return true_rows(objects["points"], objects["cls"])[:, :4]


def debug_images(batch: dict, output: dict[str, Tensor] | None, opt) -> dict[str, np.ndarray]:
    """What ``--debug`` shows of the first image of a batch: heat maps and detections, predicted and true.

    Without ``output`` there is only what is true.
    """
    image = visualization.restore_image(batch["input"][0].cpu().numpy(), opt.mean, opt.std)
    images = _heat_map_images(image, batch, "gt", opt)
    rows = {"out_gt": batch["meta"][0]["gt_det"]}
    if output is not None:
        one = {name: value[:1].detach() for name, value in output.items()}
        scores = {name: value.float().sigmoid() for name, value in one.items()}
        images.update(_heat_map_images(image, scores, "pred", opt))
        rows["out_pred"] = _suppressed(decode(one, opt)[0].cpu().numpy(), opt)
    for name, values in rows.items():
        images[name] = draw_detections(image, _enlarged(values, opt), opt, opt.center_thresh)
    return images


def network_images(image: np.ndarray, output: dict[str, Tensor], dets: Tensor, opt) -> dict[str, np.ndarray]:
    """What ``--debug 2`` shows of one test scale: the heat maps, and the detections before the scales are merged.

    ``image`` (h, w, 3) uint8 is the network's input, ``output`` its raw maps, ``dets`` (B, n, 14) what they decode
    to; of a batch the first is drawn.
    """
    maps = {name: value[:1].float().sigmoid() for name, value in output.items()}
    rows = _suppressed(dets[0].cpu().numpy(), opt)
    drawn = draw_detections(image, _enlarged(rows, opt), opt, opt.center_thresh)
    return {**_heat_map_images(image, maps, "pred", opt), "out_pred": drawn}


def result_images(image: np.ndarray, results: dict[int, np.ndarray], opt, meta: dict) -> dict[str, np.ndarray]:
    """The image (H, W, 3) uint8 with what ``results`` holds above ``--vis_thresh``."""
    rows = [np.hstack([rows, np.full((len(rows), 1), cls - 1)]) for cls, rows in results.items()]
    return {"exdet": draw_detections(image, np.concatenate(rows), opt, opt.vis_thresh)}


def ground_truth_images(image: np.ndarray, objects: dict[str, np.ndarray], opt) -> dict[str, np.ndarray]:
    """The image (H, W, 3) uint8 with the boxes and points of ``objects`` (as ``read_objects`` gives them)."""
    return {"gt": draw_detections(image, true_rows(objects["points"], objects["cls"]), opt, opt.vis_thresh)}


def true_rows(points: np.ndarray, cls: np.ndarray) -> np.ndarray:
    """Extreme points (n, 4, 2) of objects of the classes (n,) as detections (n, 14) of score 1."""
    boxes = [points[:, 1, 0], points[:, 0, 1], points[:, 3, 0], points[:, 2, 1]]
    return np.column_stack([*boxes, np.ones(len(cls)), points.reshape(-1, 8), cls]).astype(np.float32)


def _heat_map_images(image: np.ndarray, maps: dict[str, Tensor], prefix: str, opt) -> dict[str, np.ndarray]:
    """The maps of all extreme points in one image, and those of the centers."""
    extreme = torch.stack([maps[f"hm_{side}"][0] for side in SIDES]).amax(0)
    images = {}
    for name, hm in ((f"{prefix}_hm", extreme), (f"{prefix}_hm_c", maps["hm_c"][0])):
        colored = visualization.heat_map_image(hm.cpu().numpy(), opt.debugger_theme, image.shape[:2])
        images[name] = visualization.blend(image, colored, opt.debugger_theme)
    return images


def _suppressed(rows: np.ndarray, opt) -> np.ndarray:
    """Detections (n, 14) of one image after soft-NMS, still in output pixels."""
    rows = rows[rows[:, 4] > 0]
    results = merge_outputs([{cls + 1: rows[rows[:, 13] == cls, :13] for cls in range(opt.num_classes)}], opt)
    return np.concatenate([np.hstack([found, np.full((len(found), 1), cls - 1)]) for cls, found in results.items()])


def _enlarged(rows: np.ndarray, opt) -> np.ndarray:
    rows = rows.copy()
    rows[:, [0, 1, 2, 3, *range(5, 13)]] *= opt.down_ratio
    return rows


def draw_detections(image: np.ndarray, rows: np.ndarray, opt, threshold: float) -> np.ndarray:
    """A copy of ``image`` with boxes, octagons and extreme points of the rows (n, 14) above ``threshold``."""
    rows = rows[np.isfinite(rows).all(axis=1) & (rows[:, 4] > threshold)]
    rows = rows[np.argsort(rows[:, 4], kind="stable")]
    boxes = rows[:, [0, 1, 2, 3, 4, 13]]
    image = visualization.draw_boxes(image, boxes, opt.class_names, threshold, opt.debugger_theme)
    colors = visualization.class_colors(max(opt.num_classes, 1), opt.debugger_theme)
    height, width = image.shape[:2]
    for row in rows:
        color = colors[int(row[13])].tolist()
        corners = octagon(row[5:13].reshape(4, 2)).clip(-1, [width, height])
        cv2.polylines(image, [corners.astype(np.int32)], True, color, 1, cv2.LINE_AA)
        for x, y in row[5:13].reshape(4, 2).clip(-1, [width, height]).astype(int).tolist():
            cv2.circle(image, (x, y), 3, color, -1)
            cv2.circle(image, (x, y), 3, (255, 255, 255), 1, cv2.LINE_AA)
    return image


def octagon(points: np.ndarray) -> np.ndarray:
    """The outline (8, 2) that extreme points (4, 2) give: a quarter of each side of the box around each point.

    "Extreme points to octagon", section 4.4 of the paper; at the corners of the box the pieces are cut off.
    """
    (tx, top), (left, ly), (bx, bottom), (right, ry) = points
    dx, dy = (right - left) / 8, (bottom - top) / 8
    corners = [(tx + dx, top), (tx - dx, top), (left, ly - dy), (left, ly + dy)]
    corners += [(bx - dx, bottom), (bx + dx, bottom), (right, ry + dy), (right, ry - dy)]
    low, high = np.minimum([left, top], [right, bottom]), np.maximum([left, top], [right, bottom])
    return np.clip(np.array(corners, dtype=np.float64), low, high)
