"""3D boxes from one image: the center point of an object, its depth, size and orientation (section 5.1 of the paper).

A result row is [alpha, x1, y1, x2, y2, height, width, length, X, Y, Z, rotation_y, score]: the angle under which the
camera sees the object, its box in image pixels, its size and the middle of its bottom in camera coordinates, both in
meters, and its turn around the vertical; angles are radians.
"""

import argparse

import numpy as np
import torch
from torch import Tensor, nn

from .. import visualization, visualization_3d
from ..datasets.annotations import numbers
from ..datasets.augmentation import AugmentationRng, View, color_matrix
from ..errors import UserError
from ..evaluation.kitti_text import read_camera
from ..ops.box3d import (  # noqa: F401 (some are here to be found under the task's name, as in the reference)
    alpha2rot_y,
    compute_box_3d,
    compute_orientation_3d,
    ddd2locrot,
    project_3d_bbox,
    project_to_image,
    rot_y2alpha,
    unproject_2d_to_3d,
)
from ..ops.heatmap import draw_gaussians, window_pixels
from ..ops.image import affine_transform, gaussian_radius, transform_preds
from ..ops.losses import BinRotLoss, L1Loss, clamped_sigmoid, focal_loss, gather_feat
from ..ops.oracle import oracle_map
from ..ops.peaks import peak_filter, topk
from .option import Option, loss_weight, oracle

DEFAULT_DATASET = "kitti"
TARGET_INPUTS = ("cls", "radius", "cell", "rect", "peak", "pixels")  # of a sample: what only ``draw_targets`` needs
IGNORED_OPTIONS = ("reg_loss", "flip", "no_color_aug", "not_rand_crop", "flip_test", "test_scales", "nms", "hm_gauss")
OPTIONS = (
    Option("kitti_split", "3dop | subcnn | NAME, of lists in ImageSets_NAME", "3dop", str, recipe=True, data=True),
    Option("aug_ddd", "probability of jitter", 0.5, low=0, high=1, recipe=True),
    Option("rect_mask", "ignored objects blank their whole box", recipe=True),
    loss_weight("dep_weight", "the depth"),
    loss_weight("dim_weight", "the 3D size"),
    loss_weight("rot_weight", "the orientation"),
    Option("not_reg_bbox", "no 2D size", recipe=True),
    Option("peak_thresh", "score from which an object is reported", 0.2, low=0, high=1),
    oracle("dep"),
    Option(
        "calib",
        "camera of images that come without their own: a file of KITTI's with a line P2:, or with 12 or 9 numbers; "
        "default: the usual one of the images that the network was trained on",
        "",
        str,
        new=True,
        scripts=("demo.py",),
    ),
)

# Categories of KITTI that are no classes: the network is not told whether they are objects. -1: of any class,
# -2 and -3: of class 0 (a sitting person) and 1 (a van, a truck). What is skipped is ground like any other.
SKIPPED = -99
IGNORED = {4: -3, 5: -3, 6: -2, 7: SKIPPED, 8: SKIPPED, 9: -1}
IGNORED_HEAT = 0.9999  # no peak, and next to no penalty for calling it one

# The camera of an image that comes without its own, if neither --calib nor the checkpoint knows one.
DEFAULT_CALIB = np.array(
    [[707.0493, 0, 604.0814, 45.75831], [0, 707.0493, 180.5066, -0.3454157], [0, 0, 1, 0.004981016]], dtype=np.float32
)
TRUE_THRESH = 0.5  # what exceeds it is drawn of objects, whose score is 1
NEAREST = 0.1  # meters; corners behind the camera are drawn and measured as if they were there


def derive(opt) -> None:
    """Whether there is a head of 2D sizes; and the camera of ``--calib``."""
    opt.reg_bbox = not opt.not_reg_bbox
    if opt.calib:
        opt.picture_info["calib"] = read_camera(opt.calib)


def heads(opt) -> dict[str, int]:
    """hm: one map a class; dep: depth; rot: orientation in two bins; dim: size in meters; wh, reg: as in 2D."""
    channels = {"hm": opt.num_classes, "dep": 1, "rot": 8, "dim": 3}
    if opt.reg_bbox:
        channels["wh"] = 2
    if opt.reg_offset:
        channels["reg"] = 2
    return channels


def options_of_heads(heads: dict[str, int]) -> dict[str, bool]:
    """The options with which ``heads`` are those of a network."""
    return {"not_reg_bbox": "wh" not in heads, "not_reg_offset": "reg" not in heads}


# Targets


def read_objects(annotations: list[dict], class_of: dict[int, int]) -> dict[str, np.ndarray]:
    """The annotations of KITTI's converted label files, one row an object.

    Returns:
        boxes (n, 4) float32 [x1, y1, x2, y2] in image pixels; cls (n,) int64, negative for what is ignored
        (``IGNORED``); dep (n, 1) float32 and dim (n, 3) float32 height, width, length in meters; alpha (n,) float64
        in radians.
    """

    def column(name: str, *shape: int) -> np.ndarray:
        if any(name not in annotation for annotation in annotations):
            raise ValueError(f"an annotation has no '{name}'")
        return numbers([annotation[name] for annotation in annotations], name, shape)

    boxes = column("bbox", 4)
    boxes[:, 2:] += boxes[:, :2]
    codes = {**IGNORED, **class_of}
    return {
        "boxes": boxes.astype(np.float32),
        "cls": np.array([codes[annotation["category_id"]] for annotation in annotations], dtype=np.int64),
        "dep": column("depth").astype(np.float32)[:, None],
        "dim": column("dim", 3).astype(np.float32),
        "alpha": column("alpha"),
    }


def test_view(height: int, width: int, opt) -> View:
    """The whole image, fitted to the input's width; what is higher than the input is cut off, equally on both sides.

    With ``--keep_res`` an input's size of the image at its own scale, around its middle.
    """
    size = (opt.input_w, opt.input_h) if opt.keep_res else (width, height)
    return View(
        center=np.array([width / 2.0, height / 2.0]),
        scale=np.array(size, dtype=np.int32),
        flipped=False,
        input_size=(opt.input_w, opt.input_h),
        output_size=(opt.output_w, opt.output_h),
    )


def test_options(opt):
    """The options with which a detector works: there are no flip test, test scales and NMS in 3D."""
    return argparse.Namespace(**{**vars(opt), "flip_test": False, "test_scales": [1.0], "nms": False})


def make_sample(
    image: np.ndarray, objects: dict[str, np.ndarray], opt, draws: AugmentationRng | None, train: bool
) -> dict:
    """Cut the image and bring the objects into output coordinates (``DddDataset.__getitem__``).

    Args:
        image: (H, W, 3) uint8, B, G, R.
        objects: what ``read_objects`` gives, and ``calib`` (3, 4) float32; slot k of the targets belongs to object k.
        opt: finished options.
        draws: random numbers, needed in training.
        train: augment.

    Returns:
        image (h, w, 3) uint8; color (3, 4) float32; for N = max_objs slots: reg_mask (N,) uint8, 0 in a jittered
        image, where depth and size are not learned; rot_mask (N,) uint8; ind (N,) int64; dep (N, 1), dim (N, 3),
        wh (N, 2) in output pixels, reg (N, 2) float32; rotbin (N, 2) int64, rotres (N, 2) float32; for
        ``draw_targets``: cls (N,), cell (N,), radius (N,), rect (N, 4), peak (N,) int64, and pixels (1,) int64, how
        many are drawn; and outside training meta.

    Raises:
        UserError: an image outside training without calibration.
    """
    height, width = image.shape[:2]
    view = test_view(height, width, opt)
    jittered = train and draws.random() < opt.aug_ddd
    if jittered:
        shift, scale = opt.shift, opt.scale
        view.scale = view.scale * np.clip(draws.randn() * scale + 1, 1 - scale, 1 + scale)
        view.center[0] += width * np.clip(draws.randn() * shift, -2 * shift, 2 * shift)
        view.center[1] += height * np.clip(draws.randn() * shift, -2 * shift, 2 * shift)
    warped = view.warp(image)
    sample = {"image": warped, "color": color_matrix(warped, None, opt.mean, opt.std)}

    # Objects in output coordinates. What has no area there, or belongs to no class, has an empty slot.
    output_w, output_h = view.output_size
    boxes = objects["boxes"][: opt.max_objs].reshape(-1, 2, 2)
    boxes = affine_transform(boxes, view.output_matrix()).astype(np.float32).reshape(-1, 4)
    boxes[:, 0::2] = boxes[:, 0::2].clip(0, output_w - 1)
    boxes[:, 1::2] = boxes[:, 1::2].clip(0, output_h - 1)
    sizes = boxes[:, 2:] - boxes[:, :2]
    cls = objects["cls"][: opt.max_objs]
    slots = np.flatnonzero((sizes > 0).all(1) & (cls > SKIPPED))
    boxes, sizes, cls = boxes[slots], sizes[slots], cls[slots]
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    cells = centers.astype(np.int64)
    known = cls >= 0

    def filled(values: np.ndarray, where=slice(None), empty: int = 0) -> np.ndarray:
        array = np.full((opt.max_objs, *values.shape[1:]), empty, dtype=values.dtype)
        array[slots[where]] = values[where]
        return array

    drawn = _drawing(boxes, sizes, centers, known, opt)
    sample.update(cls=filled(cls), **{name: filled(values, empty=-1) for name, values in drawn.items()})
    reach = np.where(drawn["radius"] < 0, -1, (3 if opt.mse_loss else 1) * drawn["radius"])
    sample["pixels"] = np.array([window_pixels(reach, np.where(cls == -1, opt.num_classes, 1))])

    # Targets of the objects that have a class.
    dep, dim, alpha = (objects[name][: opt.max_objs][slots] for name in ("dep", "dim", "alpha"))
    rotbin, rotres = orientation_bins(alpha)
    sample["rot_mask"] = filled(np.ones(len(slots), dtype=np.uint8), known)
    sample["reg_mask"] = sample["rot_mask"] * np.uint8(not jittered)
    sample["ind"] = filled(cells[:, 1] * output_w + cells[:, 0], known)
    sample.update(dep=filled(dep, known), dim=filled(dim, known))
    sample.update(rotbin=filled(rotbin, known), rotres=filled(rotres, known))
    if opt.reg_bbox:
        sample["wh"] = filled(sizes, known)
    if opt.reg_offset:
        sample["reg"] = filled((centers - cells).astype(np.float32), known)

    if opt.debug > 0 or not train:
        if "calib" not in objects:
            raise UserError("a warped has no calibration: its entry in the annotation file lacks 'calib'")
        rows = [centers, np.ones((len(slots), 1)), _orientation_channels(rotbin, rotres), dep, dim]
        rows += [sizes] if opt.reg_bbox else []
        rows = np.hstack([*rows, cls[:, None]])[known].astype(np.float32)
        meta = {"c": view.center, "s": view.scale, "output_size": view.output_size, "size": (width, height)}
        meta["calib"] = objects["calib"]
        sample["meta"] = {**meta, "gt_det": rows if len(rows) else np.zeros((1, rows.shape[1]), dtype=np.float32)}
    return sample


def _drawing(boxes, sizes, centers, known, opt) -> dict[str, np.ndarray]:
    """What ``draw_targets`` has to know of each object, in the order in which the reference draws them.

    ``cell`` and ``radius`` of its Gaussian, -1 for none; ``rect`` [x1, y1, x2, y2], the cells, ends included, that an
    ignored object sets to 0.9999 after it, -1 for none; ``peak`` 1 where no ignored object does so with the Gaussian's
    peak later on.
    """
    width = opt.output_w
    radius = gaussian_radius((sizes[:, 1], sizes[:, 0])).astype(np.int64).clip(min=0)
    cells = (centers + 0.5 if opt.mse_loss else centers).astype(np.int64)  # the other Gaussian rounds its center
    if opt.rect_mask:
        radius = np.where(known, radius, -1)
        rect = boxes.astype(np.int64)
    else:
        rect = np.tile(centers.astype(np.int64), 2)
    rect = np.where(known[:, None], -1, rect)

    inside = (rect[:, None, :2] <= cells) & (cells <= rect[:, None, 2:])  # by rectangle and peak
    later = np.arange(len(rect))[:, None] >= np.arange(len(rect))
    covered = (inside.all(2) & later & ~known[:, None]).any(0)
    peak = (radius >= 0) & ~covered
    return {"cell": cells[:, 1] * width + cells[:, 0], "radius": radius, "rect": rect, "peak": peak.astype(np.int64)}


def orientation_bins(alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Membership (n, 2) int64 in the two overlapping bins, and (n, 2) float32 the angle from the middle of each bin.

    Bin 1 is centered on -pi/2 and bin 2 on pi/2; each reaches 30 degrees beyond its half. ``alpha`` (n,) in radians.
    """
    member = np.stack(
        [(alpha < np.pi / 6) | (alpha > 5 * np.pi / 6), (alpha > -np.pi / 6) | (alpha < -5 * np.pi / 6)], axis=1
    )
    residual = alpha[:, None] - np.array([-0.5 * np.pi, 0.5 * np.pi])
    return member.astype(np.int64), np.where(member, residual, 0).astype(np.float32)


def _orientation_channels(rotbin: np.ndarray, rotres: np.ndarray) -> np.ndarray:
    """The 8 channels of the rot head that say this: [no, yes, sin, cos] of each bin."""
    channels = np.zeros((len(rotbin), 2, 4), dtype=np.float32)
    channels[:, :, 1] = rotbin
    channels[:, :, 2] = np.where(rotbin, np.sin(rotres), 0)
    channels[:, :, 3] = np.where(rotbin, np.cos(rotres), 1)
    return channels.reshape(-1, 8)


def draw_targets(batch: dict, opt) -> dict[str, Tensor]:
    """``hm`` (B, C, h/4, w/4) float32 of a batch on its device.

    A Gaussian of peak 1 at each object's cell; an ignored object has one too, in the maps of all classes that it may be
    taken for, but with 0.9999 at the peak, or with ``--rect_mask`` 0.9999 all over its box and nothing around it.
    These 0.9999 replace what objects before it have drawn there, as in the reference.
    """
    batch_size, height, width = batch["image"].shape[:3]
    size = (batch_size, opt.num_classes, height // opt.down_ratio, width // opt.down_ratio)
    code = batch["cls"]
    classes = torch.arange(opt.num_classes, device=code.device)[:, None]
    # (B, C, N): whether the object is drawn in the map of the class.
    affected = (
        (code[:, None] == classes) | (code[:, None] == -1) | ((code[:, None] < -1) & (-code[:, None] - 2 == classes))
    )

    def of_maps(values: Tensor, empty: int) -> Tensor:
        return torch.where(affected, values[:, None], empty).flatten(1)

    radius = of_maps(batch["radius"], -1)
    cls = classes.expand(affected.shape).flatten(1)
    cell = of_maps(batch["cell"].clamp(min=0), 0)
    # Of the other Gaussian the radius is the deviation; where it is 0 the peak alone is drawn.
    reach, sigma = (3 * radius, radius.clamp(min=1e-3)) if opt.mse_loss else (radius, (2 * radius + 1) / 6)
    hm = draw_gaussians(size, cls, cell, reach.clamp(min=-1), sigma, *batch["pixels"])

    plane = (torch.arange(batch_size, device=code.device)[:, None] * opt.num_classes + cls).flatten()
    ignored = _covered(size, plane, of_maps(batch["rect"][..., 0], -1) >= 0, batch["rect"], affected)
    hm = torch.where(ignored, IGNORED_HEAT, hm)
    peak = (of_maps(batch["peak"], 0) > 0).float()
    peaks = hm.new_zeros(hm.numel())
    peaks.scatter_reduce_(0, plane * (size[2] * size[3]) + cell.flatten(), peak.flatten(), "amax")
    return {"hm": torch.maximum(hm, peaks.view(size))}


def _covered(size, plane: Tensor, drawn: Tensor, rect: Tensor, affected: Tensor) -> Tensor:
    """Where rectangles lie, (B, C, H, W) bool: +1 and -1 at their corners, added up along both sides."""
    batch_size, classes, height, width = size
    x1, y1, x2, y2 = (values[:, None].expand(affected.shape).flatten() for values in rect.unbind(-1))
    count = drawn.flatten().to(torch.int32)
    corners = torch.zeros(batch_size * classes * (height + 1) * (width + 1), dtype=torch.int32, device=rect.device)
    for y, x, sign in ((y1, x1, 1), (y1, x2 + 1, -1), (y2 + 1, x1, -1), (y2 + 1, x2 + 1, 1)):
        place = (plane * (height + 1) + y.clamp(min=0)) * (width + 1) + x.clamp(min=0)
        corners.scatter_add_(0, place, sign * count)
    total = corners.view(batch_size, classes, height + 1, width + 1).cumsum(2).cumsum(3)
    return total[:, :, :height, :width] > 0


# Loss


def depth_of(raw: Tensor) -> Tensor:
    """Meters from the raw map of the dep head: 1 / sigmoid - 1 (section 5.1 of the paper)."""
    return 1 / (raw.sigmoid() + 1e-6) - 1


class DddLoss(nn.Module):
    """Heat map, depth, size in 3D, orientation, size and offset in 2D, averaged over the stacks.

    Everything but the heat map is a mean over all max_objs slots of an image, empty ones included, so that the weight
    of an object does not depend on how many there are. forward(outputs, batch): ``outputs`` is what the network gives,
    a dict of raw maps a stack; ``batch`` holds the targets of ``make_sample`` and ``draw_targets``. Returns the loss
    and its unweighted parts by name.

    The parts are divided by the numbers of ``counts``: of the batch, or those that ``forward`` is given, of a larger
    batch of which this one is a piece (``tasks/__init__.py``).
    """

    names = ("loss", "hm_loss", "dep_loss", "dim_loss", "rot_loss", "wh_loss", "off_loss")

    def __init__(self, opt) -> None:
        super().__init__()
        self.opt = opt
        self.l1, self.rot = L1Loss(), BinRotLoss()

    def counts(self, batch: dict) -> Tensor:
        """Peaks (or pixels, with ``--mse_loss``), slots, members of the two bins."""
        hm = batch["hm"]
        num_hm = hm.new_tensor(hm.numel()) if self.opt.mse_loss else hm.eq(1).sum()
        members = (batch["rotbin"] != 0).sum((0, 1))
        return torch.stack([count.to(hm.dtype) for count in (num_hm, hm.new_tensor(batch["ind"].numel()), *members)])

    def forward(
        self, outputs: list[dict[str, Tensor]], batch: dict, counts: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        opt, hm, ind = self.opt, batch["hm"], batch["ind"]
        known, measured = batch["rot_mask"], batch["reg_mask"]
        num_hm, num_slots, *num_members = (self.counts(batch) if counts is None else counts).to(outputs[0]["hm"].dtype)

        zero = outputs[0]["hm"].new_zeros(())
        parts = dict.fromkeys(self.names[1:], zero)
        for output in outputs:
            output = with_oracle(output, batch, opt)
            if opt.mse_loss:
                parts["hm_loss"] = parts["hm_loss"] + ((clamped_sigmoid(output["hm"]) - hm) ** 2).sum() / num_hm
            else:
                parts["hm_loss"] = parts["hm_loss"] + focal_loss(output["hm"], hm, num_hm)
            if opt.dep_weight > 0:
                dep = depth_of(output["dep"])
                parts["dep_loss"] = parts["dep_loss"] + self.l1(dep, measured, ind, batch["dep"], num_slots)
            if opt.dim_weight > 0:
                parts["dim_loss"] = parts["dim_loss"] + self.l1(output["dim"], measured, ind, batch["dim"], num_slots)
            if opt.rot_weight > 0:
                rotation = self.rot(
                    output["rot"], known, ind, batch["rotbin"], batch["rotres"], (num_slots, *num_members)
                )
                parts["rot_loss"] = parts["rot_loss"] + rotation
            if opt.reg_bbox and opt.wh_weight > 0:
                parts["wh_loss"] = parts["wh_loss"] + self.l1(output["wh"], known, ind, batch["wh"], num_slots)
            if opt.reg_offset and opt.off_weight > 0:
                parts["off_loss"] = parts["off_loss"] + self.l1(output["reg"], known, ind, batch["reg"], num_slots)
        parts = {name: part / len(outputs) for name, part in parts.items()}
        weights = (opt.hm_weight, opt.dep_weight, opt.dim_weight, opt.rot_weight, opt.wh_weight, opt.off_weight)
        loss = sum(weight * part for weight, part in zip(weights, parts.values(), strict=True))
        return loss, {"loss": loss, **parts}


Loss = DddLoss


def with_oracle(output: dict[str, Tensor], batch: dict, opt) -> dict[str, Tensor]:
    """The raw maps with the ground truth in place of those that ``--eval_oracle_*`` names; for taking errors apart."""
    output = dict(output)
    if opt.eval_oracle_hm:
        output["hm"] = torch.logit(batch["hm"])
    if opt.eval_oracle_dep:
        depth = oracle_map(batch["dep"], batch["ind"], batch["rot_mask"], output["dep"].shape)
        output["dep"] = torch.logit(1 / (depth.double() + 1) - 1e-6).to(output["dep"].dtype)  # undoes depth_of
    return output


# Detections


def ddd_decode(
    heat: Tensor,
    rot: Tensor,
    depth: Tensor,
    dim: Tensor,
    wh: Tensor | None = None,
    reg: Tensor | None = None,
    K: int = 40,
) -> Tensor:
    """Peaks to what was learned of them (section 5.1 of the paper).

    Args:
        heat: (B, C, H, W) scores; rot: (B, 8, H, W); depth: (B, 1, H, W) meters; dim: (B, 3, H, W) meters.
        wh: (B, 2, H, W) output pixels, or None; reg: (B, 2, H, W), None: the middle of the cell.
        K: how many detections an image.

    Returns:
        (B, K, 18) rows [x, y, score, 8 channels of the orientation, depth, height, width, length, w, h, class from 0],
        best first; x, y, w, h in output pixels. Without ``wh`` (B, K, 16).
    """
    scores, ind, cls, ys, xs = topk(peak_filter(heat), K)
    centers = torch.stack([xs, ys], dim=2)
    centers = centers + (gather_feat(reg, ind) if reg is not None else 0.5)
    maps = (rot, depth, dim) if wh is None else (rot, depth, dim, wh)
    columns = [gather_feat(values, ind) for values in maps]
    return torch.cat([centers, scores[:, :, None], *columns, cls[:, :, None].to(scores.dtype)], dim=2)


def decode(output: dict[str, Tensor], opt, mirrored: bool = False) -> Tensor:
    """Raw maps of a stack to detections (B, K, 18), of ``--not_reg_bbox`` (B, K, 16).

    There is no flip test in 3D: ``mirrored`` leaves the mirror images, the second half of the batch, unused.
    """
    if mirrored:
        output = {name: values[: len(values) // 2] for name, values in output.items()}
    output = {name: values.float() for name, values in output.items()}
    wh = output["wh"] if opt.reg_bbox else None
    reg = output["reg"] if opt.reg_offset else None
    return ddd_decode(output["hm"].sigmoid(), output["rot"], depth_of(output["dep"]), output["dim"], wh, reg, opt.K)


def columns(opt) -> list[str]:
    """What the numbers of a detection are."""
    rotation = [f"rot_{k}" for k in range(8)]
    size = ["w", "h"] if opt.reg_bbox else []
    return ["x", "y", "score", *rotation, "depth", "height", "width", "length", *size, "class"]


def get_alpha(rot: np.ndarray) -> np.ndarray:
    """The observation angle of orientations (n, 8), by the bin of the higher score; radians, not wrapped."""
    first = np.arctan2(rot[:, 2], rot[:, 3]) - 0.5 * np.pi
    second = np.arctan2(rot[:, 6], rot[:, 7]) + 0.5 * np.pi
    return np.where(rot[:, 1] > rot[:, 5], first, second)


def ddd_post_process_2d(dets: np.ndarray, c, s, opt, size_as_point: bool = True) -> list[dict[int, np.ndarray]]:
    """Detections (B, K, 18 or 16) to image pixels, and the angle from its bins.

    Args:
        dets: what ``ddd_decode`` gives.
        c, s: center and scale of each view.
        opt: ``num_classes``, ``output_w``, ``output_h``.
        size_as_point: the reference maps width and height like the coordinates of a point, which adds what the map
            shifts points by; False: they are scaled only.

    Returns:
        One ``{class from 1: (n, 10 or 8) float32 rows [x, y, score, alpha, depth, height, width, length, w, h]}`` a
        image.
    """
    results = []
    for rows, center, scale in zip(dets, c, s, strict=True):
        output_size = (opt.output_w, opt.output_h)
        columns = [transform_preds(rows[:, :2], center, scale, output_size), rows[:, 2:3]]
        columns += [get_alpha(rows[:, 3:11])[:, None], rows[:, 11:15]]
        if rows.shape[1] > 16:
            if size_as_point:
                columns.append(transform_preds(rows[:, 15:17], center, scale, output_size))
            else:
                columns.append(rows[:, 15:17] * (np.ravel(scale)[0] / opt.output_w))
        everything = np.concatenate(columns, axis=1).astype(np.float32)
        results.append({k + 1: everything[rows[:, -1] == k] for k in range(opt.num_classes)})
    return results


def ddd_post_process_3d(dets: list[dict[int, np.ndarray]], calibs) -> list[dict[int, np.ndarray]]:
    """What ``ddd_post_process_2d`` gives to result rows (n, 13) float32, with the camera (3, 4) of each image.

    Where the network has learned no size in 2D, the box is the one around the projected 3D box.
    """
    results = []
    for by_class, calib in zip(dets, calibs, strict=True):
        calib, image = np.asarray(calib), {}
        for cls, rows in by_class.items():
            center, score, alpha, depth, dim = rows[:, :2], rows[:, 2:3], rows[:, 3], rows[:, 4], rows[:, 5:8]
            location, rotation_y = ddd2locrot(center, alpha, dim, depth, calib)
            if rows.shape[1] > 8:
                boxes = np.concatenate([center - rows[:, 8:10] / 2, center + rows[:, 8:10] / 2], axis=1)
            else:
                boxes = _boxes_around(dim, location, rotation_y, calib)
            columns = [alpha[:, None], boxes, dim, location, rotation_y[:, None], score]
            image[cls] = np.concatenate(columns, axis=1).astype(np.float32)
        results.append(image)
    return results


def _boxes_around(dim, location, rotation_y, calib) -> np.ndarray:
    """Boxes (n, 4) around projected 3D boxes."""
    boxes = np.zeros((len(dim), 4))
    for k in range(len(dim)):
        corners = compute_box_3d(dim[k], location[k], rotation_y[k])
        corners[:, 2] = corners[:, 2].clip(NEAREST)
        pixels = project_to_image(corners, calib)
        boxes[k] = [*pixels.min(0), *pixels.max(0)]
    return boxes


def ddd_post_process(dets: np.ndarray, c, s, calibs, opt, size_as_point: bool = True) -> list[dict[int, np.ndarray]]:
    """Detections (B, K, 18 or 16) to result rows, as the reference has them: ``{class from 1: (n, 13)}`` an image.

    Arguments as for ``ddd_post_process_2d``; ``calibs``: the camera (3, 4) of each image.
    """
    return ddd_post_process_3d(ddd_post_process_2d(dets, c, s, opt, size_as_point), calibs)


def to_image_coords(dets: Tensor, metas: list[dict], opt) -> list[dict[int, np.ndarray]]:
    """Detections of a batch of views to result rows, ``{class from 1: (n, 13) float32}`` an image.

    ``metas`` hold ``c`` and ``s`` of each view, the image's ``size`` (width, height), and ``calib``; without it the
    camera is one of KITTI's. Sizes are scaled like lengths, or with ``--size_as_point`` mapped like points as in the
    reference: then every box is a little too high (1.2 pixels for KITTI's images), and far too high in an input of
    another shape than the image.
    """
    centers, scales = [meta["c"] for meta in metas], [meta["s"] for meta in metas]
    calibs = [np.asarray(meta.get("calib", DEFAULT_CALIB)) for meta in metas]
    images = ddd_post_process(dets.cpu().numpy(), centers, scales, calibs, opt, opt.size_as_point)
    if not opt.reg_bbox:
        for rows, meta in zip(images, metas, strict=True):
            _clip_boxes(rows, np.array(meta["size"]) - 1)
    return images


def _clip_boxes(results: dict[int, np.ndarray], corner: np.ndarray) -> None:
    for rows in results.values():
        rows[:, 1:5] = rows[:, 1:5].clip(0, np.tile(corner, 2))


def merge_outputs(detections: list[dict], opt) -> dict[int, np.ndarray]:
    """The rows of an image whose score exceeds ``--peak_thresh``; of several test scales the first counts."""
    return {cls: rows[rows[:, -1] > opt.peak_thresh] for cls, rows in detections[0].items()}


def post_process(dets: Tensor, metas: list[dict], opt) -> list[dict[int, np.ndarray]]:
    """Detections of a batch of whole images to results."""
    return [merge_outputs([image], opt) for image in to_image_coords(dets, metas, opt)]


# Images


def detected_boxes(rows: np.ndarray) -> np.ndarray:
    """Boxes and scores (n, 5) of result rows."""
    return rows[:, [1, 2, 3, 4, -1]]


def ground_truth_boxes(objects: dict[str, np.ndarray]) -> np.ndarray:
    """The boxes (n, 4) of objects."""
    return objects["boxes"]


def debug_images(batch: dict, output: dict[str, Tensor] | None, opt) -> dict[str, np.ndarray]:
    """What ``--debug`` shows of the first image of a batch, predicted and true.

    Heat maps, boxes in 2D, boxes in 3D in an image of the original's size, and the view from above with both. Without
    ``output`` there is only what is true.
    """
    meta = batch["meta"][0]
    image = visualization.restore_image(batch["input"][0].cpu().numpy(), opt.mean, opt.std)
    maps, rows = {"hm_gt": batch["hm"][0]}, {"gt": (meta["gt_det"][None], TRUE_THRESH)}
    if output is not None:
        maps["hm_pred"] = output["hm"][0].detach().float().sigmoid()
        of_one = {name: values[:1].detach() for name, values in output.items()}
        rows["pred"] = decode(of_one, opt).cpu().numpy(), opt.center_thresh
    images = {name: _heat(image, hm, opt) for name, hm in maps.items()}
    whole = visualization_3d.unwarp(image, meta["size"], meta["c"], meta["s"])
    results = {}
    for name, (dets, threshold) in rows.items():
        if opt.reg_bbox:
            images[f"det_{name}"] = _boxes(image, dets[0], threshold, opt)
        results[name] = ddd_post_process(dets, [meta["c"]], [meta["s"]], [meta["calib"]], opt, size_as_point=False)[0]
        images[f"add_{name}"] = visualization_3d.draw_boxes_3d(
            whole, results[name], meta["calib"], threshold, opt.debugger_theme
        )
    images["bird_pred_gt"] = visualization_3d.bird_view(results.get("pred", {}), opt.center_thresh, results["gt"])
    return images


def ground_truth_images(image: np.ndarray, objects: dict[str, np.ndarray], opt) -> dict[str, np.ndarray]:
    """The image (H, W, 3) uint8 with the 3D boxes of ``objects`` (as ``make_sample`` has them), and from above."""
    calib, results = objects.get("calib", DEFAULT_CALIB), {}
    for cls in range(opt.num_classes):
        boxes, dep, dim, alpha = (objects[name][objects["cls"] == cls] for name in ("boxes", "dep", "dim", "alpha"))
        location, rotation_y = ddd2locrot((boxes[:, :2] + boxes[:, 2:]) / 2, alpha, dim, dep[:, 0], calib)
        columns = [alpha[:, None], boxes, dim, location, rotation_y[:, None], np.ones((len(boxes), 1))]
        results[cls + 1] = np.concatenate(columns, axis=1)
    boxes = visualization_3d.draw_boxes_3d(image, results, calib, TRUE_THRESH, opt.debugger_theme)
    return {"add_gt": boxes, "bird_gt": visualization_3d.bird_view({}, TRUE_THRESH, results)}


def network_images(image: np.ndarray, output: dict[str, Tensor], dets: Tensor, opt) -> dict[str, np.ndarray]:
    """What ``--debug 2`` shows of the first image of a batch: the heat map, and the boxes in 2D if there are any."""
    images = {"pred_hm": _heat(image, output["hm"][0].float().sigmoid(), opt)}
    if opt.reg_bbox:
        images["det_pred"] = _boxes(image, dets[0].cpu().numpy(), opt.center_thresh, opt)
    return images


def result_images(image: np.ndarray, results: dict[int, np.ndarray], opt, meta: dict) -> dict[str, np.ndarray]:
    """The image (H, W, 3) uint8 with the 3D boxes whose score exceeds ``--vis_thresh``, and the view from above."""
    calib = np.asarray(meta.get("calib", DEFAULT_CALIB))
    boxes = visualization_3d.draw_boxes_3d(image, results, calib, opt.vis_thresh, opt.debugger_theme)
    return {"add_pred": boxes, "bird_pred": visualization_3d.bird_view(results, opt.vis_thresh)}


def _heat(image: np.ndarray, hm: Tensor, opt) -> np.ndarray:
    colored = visualization.heat_map_image(hm.cpu().numpy(), opt.debugger_theme, image.shape[:2])
    return visualization.blend(image, colored, opt.debugger_theme)


def _boxes(image: np.ndarray, dets: np.ndarray, threshold: float, opt) -> np.ndarray:
    """The 2D boxes of detections (K, 18) in the network's input."""
    rows = np.concatenate([dets[:, :2] - dets[:, 15:17] / 2, dets[:, :2] + dets[:, 15:17] / 2], axis=1)
    rows = np.concatenate([opt.down_ratio * rows, dets[:, 2:3], dets[:, 17:18]], axis=1)
    return visualization.draw_boxes(image, rows, opt.class_names, threshold, opt.debugger_theme)
