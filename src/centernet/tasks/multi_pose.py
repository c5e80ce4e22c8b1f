"""Human pose: a person is a center point, and the joints are seen from it (section 5.2 of the paper).

Every joint is learned twice: as a displacement from the person's center, which says whose it is, and as a point of its
own in a heat map, which says precisely where it is. Decoding joins the two.
"""

import numpy as np
import torch
from torch import Tensor, nn

from .. import visualization, visualization_pose
from ..datasets.annotations import numbers
from ..datasets.augmentation import AugmentationRng, View, color_matrix, full_view, random_view
from ..datasets.joints import JOINT_NAMES, MIRRORED, NUM_JOINTS
from ..ops.heatmap import draw_gaussians, window_pixels
from ..ops.image import (
    affine_transform,
    draw_dense_reg,
    draw_msra_gaussian,
    draw_umich_gaussian,
    gaussian_radius,
    transform_preds,
)
from ..ops.losses import (
    RegL1Loss,
    RegLoss,
    RegWeightedL1Loss,
    dense_l1_loss,
    focal_loss,
    gather_feat,
)
from ..ops.nms import soft_nms_39
from ..ops.oracle import oracle_map
from ..ops.peaks import is_exporting, peak_filter, topk
from .option import Option, loss_weight, oracle

DEFAULT_DATASET = "coco_hp"
TARGET_INPUTS = ("cls", "radius", "joints", "turned", "pixels")  # of a sample: what only ``draw_targets`` needs
IGNORED_OPTIONS = ()
OPTIONS = (
    Option("rotate", "standard deviation of the rotation in degrees", 0, low=0, recipe=True),
    Option("aug_rot", "probability of rotation", 0, low=0, high=1, recipe=True),
    loss_weight("hp_weight", "the joint displacements"),
    loss_weight("hm_hp_weight", "the joint heat maps"),
    Option("dense_hp", "joints learned all over a person's Gaussian", recipe=True),
    Option("not_hm_hp", "no joint heat maps", recipe=True),
    Option("not_reg_hp_offset", "no joint offsets", recipe=True),
    oracle("kps"),
    oracle("hmhp"),
    oracle("hp_offset"),
)
CONFLICTS = (
    ("eval_oracle_hmhp", "not_hm_hp"),
    ("eval_oracle_hp_offset", "not_hm_hp"),
    ("eval_oracle_hp_offset", "not_reg_hp_offset"),
)
TURNED_HEAT = 0.9999  # of a turned image, in which a box says nothing: no peak, and next to no penalty for one
JOINT_THRESH = 0.1  # score from which a peak of a joint's heat map is a candidate
SNAP_RANGE = 0.3  # how far a joint moves to a candidate, of the longer side of the person's box
COLUMNS = 5 + 2 * NUM_JOINTS  # of a result row: [x1, y1, x2, y2, score, 17 joints (x, y)]


def derive(opt) -> None:
    """Which heads there are, from the options that say which there are not."""
    opt.hm_hp = not opt.not_hm_hp
    opt.reg_hp_offset = not opt.not_reg_hp_offset and opt.hm_hp


def heads(opt) -> dict[str, int]:
    """hm: centers; wh: size; hps: displacements of the joints; reg: what rounding the center lost; hm_hp: one map a
    joint; hp_offset: what rounding the joints lost."""
    channels = {"hm": opt.num_classes, "wh": 2, "hps": 2 * NUM_JOINTS}
    if opt.reg_offset:
        channels["reg"] = 2
    if opt.hm_hp:
        channels["hm_hp"] = NUM_JOINTS
    if opt.reg_hp_offset:
        channels["hp_offset"] = 2
    return channels


def options_of_heads(heads: dict[str, int]) -> dict[str, bool]:
    """The options with which ``heads`` are those of a network."""
    names = {"not_reg_offset": "reg", "not_hm_hp": "hm_hp", "not_reg_hp_offset": "hp_offset"}
    return {option: head not in heads for option, head in names.items()}


# Targets


def read_objects(annotations: list[dict], class_of: dict) -> dict[str, np.ndarray]:
    """The persons of COCO-style keypoint annotations, crowds and persons without joints included.

    Returns:
        ``boxes`` (n, 4) float32 [x1, y1, x2, y2] and ``joints`` (n, 17, 3) float32 [x, y, visibility] in image
        pixels, visibility 0: not labeled; ``cls`` (n,) int64.
    """
    count = len(annotations)
    boxes = numbers([annotation["bbox"] for annotation in annotations], "bbox", (4,))
    joints = numbers([annotation["keypoints"] for annotation in annotations], "keypoints", (3 * NUM_JOINTS,))
    joints = joints.astype(np.float32).reshape(count, NUM_JOINTS, 3)
    boxes[:, 2:] += boxes[:, :2]
    cls = np.array([class_of[annotation["category_id"]] for annotation in annotations], dtype=np.int64)
    return {"boxes": boxes.astype(np.float32), "joints": joints, "cls": cls}


def make_sample(
    image: np.ndarray, objects: dict[str, np.ndarray], opt, draws: AugmentationRng | None, train: bool
) -> dict:
    """Cut the image and bring the persons into output coordinates (``MultiPoseDataset.__getitem__``).

    In a turned image (``--aug_rot``) only the joints' own heat maps and offsets learn: boxes are not turned.

    Args:
        image: (H, W, 3) uint8, B, G, R.
        objects: what ``read_objects`` gives; slot k of the targets belongs to person k, also when others drop out.
        opt: finished options.
        draws: random numbers, needed in training.
        train: augment.

    Returns:
        image (h, w, 3) uint8; color (3, 4) float32; for N = max_objs slots: reg_mask (N,) uint8, 0 also for a person
        without joints; ind (N,) int64; wh (N, 2) float32 in output pixels; hps (N, 34) float32, joints from the cell of
        the center, and hps_mask (N, 34) uint8, or with dense_hp the map dense_hps (34, h/4, w/4); reg (N, 2) float32;
        hp_offset (N * 17, 2) float32; for ``draw_targets``: cls (N,) int64, radius (N,) int64, -1 in empty slots,
        joints (N * 17,) int64, their cells, -1 where there is none, turned () uint8, and pixels (2,) int64, how many
        are drawn for the persons and for the joints; outside training also meta.
    """
    height, width = image.shape[:2]
    if train:
        view = random_view(height, width, opt, draws, square=True, turns=True)
    else:
        view = full_view(height, width, opt, square=True)
    warped = view.warp(image)
    color = draws.color() if train and not opt.no_color_aug else None
    sample = {"image": warped, "color": color_matrix(warped, color, opt.mean, opt.std)}

    # Persons in output coordinates. One without an area there has an empty slot, unless the box means nothing anyway.
    output_w, output_h = view.output_size
    turned = view.rot != 0
    boxes, joints = _mapped(objects, view, width, opt.max_objs)
    sizes = boxes[:, 2:] - boxes[:, :2]
    slots = np.flatnonzero((sizes > 0).all(1) | turned)
    boxes, sizes, joints, cls = boxes[slots], sizes[slots], joints[slots], objects["cls"][: opt.max_objs][slots]
    radius = gaussian_radius((np.ceil(sizes[:, 1]), np.ceil(sizes[:, 0]))).astype(np.int64).clip(min=0)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    cells = centers.astype(np.int64)
    points, labeled = joints[:, :, :2], joints[:, :, 2] > 0
    seen = labeled & (points >= 0).all(2) & (points < view.output_size).all(2)
    joint_cells = np.where(seen[:, :, None], points, 0).astype(np.int64)
    learned = (joints[:, :, 2].sum(1) != 0) & (not turned)

    def filled(values: np.ndarray, empty: int = 0) -> np.ndarray:
        array = np.full((opt.max_objs, *values.shape[1:]), empty, dtype=values.dtype)
        array[slots] = values
        return array

    sample["turned"] = np.array(turned, dtype=np.uint8)
    sample["cls"] = filled(cls)
    sample["radius"] = filled(radius, empty=-1)
    reach = np.full_like(radius, 3 * opt.hm_gauss) if opt.mse_loss else radius
    sample["pixels"] = np.array([window_pixels(reach), window_pixels(reach, seen.sum(1))])
    sample["joints"] = filled(np.where(seen, joint_cells[:, :, 1] * output_w + joint_cells[:, :, 0], -1), empty=-1)
    sample["joints"] = sample["joints"].reshape(-1)
    sample["reg_mask"] = filled(learned.astype(np.uint8))
    sample["ind"] = filled(cells[:, 1] * output_w + cells[:, 0])
    sample["wh"] = filled(sizes)
    displacements = np.where(seen[:, :, None], points - cells[:, None], 0).astype(np.float32)
    if opt.dense_hp:
        sample["dense_hps"] = _dense_joints(cls, cells, radius, displacements, seen, view.output_size, opt)
    else:
        sample["hps"] = filled(displacements.reshape(-1, 2 * NUM_JOINTS))
        sample["hps_mask"] = filled(np.repeat(seen & (not turned), 2, axis=1).astype(np.uint8))
    if opt.reg_offset:
        sample["reg"] = filled((centers - cells).astype(np.float32))
    if opt.reg_hp_offset:
        offsets = np.where(seen[:, :, None], points - joint_cells, 0).astype(np.float32)
        sample["hp_offset"] = filled(offsets).reshape(-1, 2)
    if opt.debug > 0 or not train:
        rows = [centers - sizes / 2, centers + sizes / 2, np.ones((len(slots), 1)), points.reshape(-1, 2 * NUM_JOINTS)]
        gt_det = np.hstack([*rows, cls[:, None]]).astype(np.float32)
        meta = {"c": view.center, "s": view.scale, "output_size": view.output_size, "labeled": labeled}
        # As in the reference: a row of zeros if there is nobody.
        sample["meta"] = {**meta, "gt_det": gt_det if len(slots) else np.zeros((1, COLUMNS + 1), dtype=np.float32)}
    return sample


def _mapped(objects: dict[str, np.ndarray], view: View, width: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (n, 4), cut at the border, and joints (n, 17, 3) of the first ``count`` objects in output pixels, float32.

    Joints that are not labeled keep their image coordinates; nothing learns from them.
    """
    boxes, joints = objects["boxes"][:count].copy(), objects["joints"][:count].copy()
    if view.flipped:
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]] - 1
        joints[:, :, 0] = width - joints[:, :, 0] - 1
        joints = joints[:, MIRRORED]
    output_w, output_h = view.output_size
    boxes = affine_transform(boxes.reshape(-1, 2, 2), view.output_matrix()).astype(np.float32).reshape(-1, 4)
    boxes[:, 0::2] = boxes[:, 0::2].clip(0, output_w - 1)
    boxes[:, 1::2] = boxes[:, 1::2].clip(0, output_h - 1)
    labeled = joints[:, :, 2] > 0
    joints[labeled, :2] = affine_transform(joints[labeled, :2], view.output_matrix(turned=True))
    return boxes, joints


def _dense_joints(cls, cells, radius, displacements, seen, output_size, opt) -> np.ndarray:
    """(34, h, w) float32: displacements to the joints from every cell of a person's Gaussian.

    Where persons overlap, the later one counts if its Gaussian is at least as high as those of all before it.
    """
    width, height = output_size
    hm = np.zeros((opt.num_classes, height, width), dtype=np.float32)
    dense_hps = np.zeros((NUM_JOINTS, 2, height, width), dtype=np.float32)
    for k in range(len(cls)):
        reach = opt.hm_gauss if opt.mse_loss else radius[k]
        for j in np.flatnonzero(seen[k]):
            draw_dense_reg(dense_hps[j], hm[cls[k]], cells[k], displacements[k, j], reach, is_offset=True)
        draw = draw_msra_gaussian if opt.mse_loss else draw_umich_gaussian
        draw(hm[cls[k]], cells[k], reach)
    return dense_hps.reshape(2 * NUM_JOINTS, height, width)


def draw_targets(batch: dict, opt) -> dict[str, Tensor]:
    """The heat maps of a batch on its device, and what goes with them.

    Returns:
        hm (B, C, h/4, w/4) float32, a Gaussian of peak 1 at each person's cell, 0.9999 all over a turned image;
        hm_hp (B, 17, h/4, w/4) float32, the same at each joint, as wide as at the person's center; for the offsets of
        joints hp_ind and hp_mask (B, N * 17) int64; with dense_hp dense_hps_mask (B, 34, h/4, w/4) float32.
    """
    batch_size, height, width = batch["image"].shape[:3]
    size = (height // opt.down_ratio, width // opt.down_ratio)
    radius, joints, turned = batch["radius"], batch["joints"], batch["turned"].bool()[:, None, None, None]
    if opt.mse_loss:
        reach = torch.where(radius >= 0, 3 * opt.hm_gauss, -1)
        sigma = torch.full_like(radius, opt.hm_gauss, dtype=torch.float32)
    else:
        reach, sigma = radius, (2 * radius + 1) / 6
    of_persons, of_joints = batch["pixels"]
    hm = draw_gaussians((batch_size, opt.num_classes, *size), batch["cls"], batch["ind"], reach, sigma, of_persons)
    targets = {"hm": torch.where(turned, TURNED_HEAT, hm)}

    # The same for joints: as many slots as persons times joints.
    joint = torch.arange(NUM_JOINTS, device=joints.device).expand(radius.shape[1], -1).reshape(1, -1)
    joint = joint.expand(batch_size, -1)
    seen = joints >= 0
    reach = torch.where(seen, reach.repeat_interleave(NUM_JOINTS, 1), -1)
    sigma = sigma.repeat_interleave(NUM_JOINTS, 1)
    maps = (batch_size, NUM_JOINTS, *size)
    if opt.hm_hp:
        targets["hm_hp"] = draw_gaussians(maps, joint, joints.clamp(min=0), reach, sigma, of_joints)
    if opt.reg_hp_offset:
        targets["hp_ind"], targets["hp_mask"] = joints.clamp(min=0), seen.long()
    if opt.dense_hp:
        cells = batch["ind"].repeat_interleave(NUM_JOINTS, 1)
        mask = draw_gaussians(maps, joint, cells, reach, sigma, of_joints)
        targets["dense_hps_mask"] = torch.where(turned, 0, mask).repeat_interleave(2, 1)
    return targets


# Loss


class MultiPoseLoss(nn.Module):
    """Centers, sizes and offsets as in detection, displacements of the joints, their heat maps and offsets.

    forward(outputs, batch): ``outputs`` is what the network gives, a dict of raw maps a stack; ``batch`` holds the
    targets of ``make_sample`` and ``draw_targets``. Returns the loss, the weighted sum of its parts averaged over the
    stacks, and the unweighted parts by name.

    The parts are divided by the numbers of ``counts``: of the batch, or those that ``forward`` is given, of a larger
    batch of which this one is a piece (``tasks/__init__.py``).
    """

    names = ("loss", "hm_loss", "hp_loss", "hm_hp_loss", "hp_offset_loss", "wh_loss", "off_loss")

    def __init__(self, opt) -> None:
        super().__init__()
        self.opt = opt
        self.reg = {"l1": RegL1Loss, "sl1": RegLoss}[opt.reg_loss]()
        self.hps = RegWeightedL1Loss()

    def counts(self, batch: dict) -> Tensor:
        """Peaks, displacements, persons, peaks of joints (or pixels, with ``--mse_loss``), joints."""
        opt, hm = self.opt, batch["hm"]
        hps_mask = batch["dense_hps_mask" if opt.dense_hp else "hps_mask"]
        counts = [hm.eq(1).sum(), hps_mask.sum(), batch["reg_mask"].sum(), hm.new_zeros(()), hm.new_zeros(())]
        if opt.hm_hp:
            counts[3] = hm.new_tensor(batch["hm_hp"].numel()) if opt.mse_loss else batch["hm_hp"].eq(1).sum()
        if opt.reg_hp_offset:
            counts[4] = batch["hp_mask"].sum()
        return torch.stack([count.to(hm.dtype) for count in counts])

    def forward(
        self, outputs: list[dict[str, Tensor]], batch: dict, counts: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        opt = self.opt
        hm, hps_mask = batch["hm"], batch["dense_hps_mask" if opt.dense_hp else "hps_mask"]
        with_joints = opt.hm_hp and opt.hm_hp_weight > 0
        with_joint_offsets = opt.reg_hp_offset and opt.off_weight > 0
        num_hm, num_hps, num_reg, num_hm_hp, num_hp = (self.counts(batch) if counts is None else counts).to(
            outputs[0]["hm"].dtype
        )

        zero = outputs[0]["hm"].new_zeros(())
        parts = dict.fromkeys(self.names[1:], zero)
        for output in outputs:
            output = with_oracle(output, batch, opt)
            parts["hm_loss"] = parts["hm_loss"] + focal_loss(output["hm"], hm, num_hm)
            if opt.dense_hp:
                hp_loss = dense_l1_loss(output["hps"], hps_mask, batch["dense_hps"], num_hps)
            else:
                hp_loss = self.hps(output["hps"], hps_mask, batch["ind"], batch["hps"], num_hps)
            parts["hp_loss"] = parts["hp_loss"] + hp_loss
            if opt.wh_weight > 0:
                wh_loss = self.reg(output["wh"], batch["reg_mask"], batch["ind"], batch["wh"], num_reg)
                parts["wh_loss"] = parts["wh_loss"] + wh_loss
            if opt.reg_offset and opt.off_weight > 0:
                off_loss = self.reg(output["reg"], batch["reg_mask"], batch["ind"], batch["reg"], num_reg)
                parts["off_loss"] = parts["off_loss"] + off_loss
            if with_joint_offsets:
                target = (batch["hp_mask"], batch["hp_ind"], batch["hp_offset"])
                parts["hp_offset_loss"] = parts["hp_offset_loss"] + self.reg(output["hp_offset"], *target, num_hp)
            if with_joints:
                if opt.mse_loss:
                    hm_hp_loss = ((output["hm_hp"] - batch["hm_hp"]) ** 2).sum() / num_hm_hp
                else:
                    hm_hp_loss = focal_loss(output["hm_hp"], batch["hm_hp"], num_hm_hp)
                parts["hm_hp_loss"] = parts["hm_hp_loss"] + hm_hp_loss
        parts = {name: value / len(outputs) for name, value in parts.items()}
        loss = (
            opt.hm_weight * parts["hm_loss"]
            + opt.wh_weight * parts["wh_loss"]
            + opt.off_weight * parts["off_loss"]
            + opt.hp_weight * parts["hp_loss"]
            + opt.hm_hp_weight * parts["hm_hp_loss"]
            + opt.off_weight * parts["hp_offset_loss"]
        )
        return loss, {"loss": loss, **parts}


Loss = MultiPoseLoss


def with_oracle(output: dict[str, Tensor], batch: dict, opt) -> dict[str, Tensor]:
    """The raw maps with the ground truth in place of those that ``--eval_oracle_*`` names; for taking errors apart."""
    output = dict(output)
    if opt.eval_oracle_hm:
        output["hm"] = torch.logit(batch["hm"])
    if opt.eval_oracle_hmhp:
        output["hm_hp"] = batch["hm_hp"] if opt.mse_loss else torch.logit(batch["hm_hp"])
    if opt.eval_oracle_kps:
        if opt.dense_hp:
            output["hps"] = batch["dense_hps"]
        else:
            output["hps"] = oracle_map(batch["hps"], batch["ind"], batch["reg_mask"], output["hps"].shape)
    if opt.eval_oracle_hp_offset:
        shape = output["hp_offset"].shape
        output["hp_offset"] = oracle_map(batch["hp_offset"], batch["hp_ind"], batch["hp_mask"], shape)
    return output


# Detections


def multi_pose_decode(
    heat: Tensor,
    wh: Tensor,
    kps: Tensor,
    reg: Tensor | None = None,
    hm_hp: Tensor | None = None,
    hp_offset: Tensor | None = None,
    K: int = 100,
) -> Tensor:
    """Peaks to persons: boxes, and joints, which move to the nearest peak of their own heat map if there is a good one.

    Args:
        heat: (B, C, H, W) scores; wh: (B, 2, H, W); kps: (B, 2J, H, W) displacements of J joints.
        reg: (B, 2, H, W) of the center, None: the middle of the cell.
        hm_hp: (B, J, H, W) scores of joints, None: joints stay where the displacements put them.
        hp_offset: (B, 2, H, W) of the joints, None: the middle of the cell.
        K: how many persons an image, and how many candidates of each joint.

    Returns:
        (B, K, 6 + 2J) rows [x1, y1, x2, y2, score, joints (x, y), class from 0] in output pixels, best first.
    """
    scores, ind, cls, ys, xs = topk(peak_filter(heat), K)
    cells = torch.stack([xs, ys], dim=2)
    centers = cells + (gather_feat(reg, ind) if reg is not None else 0.5)
    sizes = gather_feat(wh, ind)
    boxes = torch.cat([centers - sizes / 2, centers + sizes / 2], dim=2)
    # Joints are seen from the cell, not from the refined center.
    joints = gather_feat(kps, ind).unflatten(2, (-1, 2)) + cells[:, :, None]
    if hm_hp is not None:
        joints = _snapped(joints, boxes, hm_hp, hp_offset, K)
    return torch.cat([boxes, scores[:, :, None], joints.flatten(2), cls[:, :, None].to(heat.dtype)], dim=2)


def _snapped(joints: Tensor, boxes: Tensor, hm_hp: Tensor, hp_offset: Tensor | None, K: int) -> Tensor:
    """Joints (B, K, J, 2), moved to the nearest peak of their map if it is near enough and inside the person's box."""
    batch, count, height, width = hm_hp.shape
    scores, ind = peak_filter(hm_hp).flatten(2).topk(K if is_exporting() else min(K, height * width))
    row = ind // width
    cells = torch.stack([ind - row * width, row], dim=3).to(joints.dtype)
    offsets = 0.5 if hp_offset is None else gather_feat(hp_offset, ind.flatten(1)).view(cells.shape)
    candidates = torch.where((scores > JOINT_THRESH)[..., None], cells + offsets, -10000.0)  # (B, J, K, 2)

    joints = joints.transpose(1, 2)  # (B, J, persons, 2)
    distance, nearest = (joints[:, :, :, None] - candidates[:, :, None]).norm(dim=4).min(dim=3)
    candidates = candidates.gather(2, nearest[..., None].expand(-1, -1, -1, 2))
    low, high = boxes[:, None, :, :2], boxes[:, None, :, 2:]
    inside = ((candidates >= low) & (candidates <= high)).all(3)
    near = distance <= SNAP_RANGE * (high - low).amax(3)
    # A candidate that is none lies far outside of every box.
    return torch.where((inside & near)[..., None], candidates, joints).transpose(1, 2)


def decode(output: dict[str, Tensor], opt, mirrored: bool = False) -> Tensor:
    """Raw maps of the last stack to (B, K, 40) persons in output pixels, float32.

    With ``mirrored`` the maps are of 2B images, of which the second half are the first half mirrored.
    """
    output = {name: value.float() for name, value in output.items()}
    output["hm"] = output["hm"].sigmoid()
    if opt.hm_hp and not opt.mse_loss:
        output["hm_hp"] = output["hm_hp"].sigmoid()
    if mirrored:
        output = average_mirrored(output)
    reg = output["reg"] if opt.reg_offset else None
    hm_hp = output["hm_hp"] if opt.hm_hp else None
    hp_offset = output["hp_offset"] if opt.reg_hp_offset else None
    return multi_pose_decode(output["hm"], output["wh"], output["hps"], reg, hm_hp, hp_offset, opt.K)


def columns(opt) -> list[str]:
    """What the numbers of a person are."""
    joints = [f"{joint}_{axis}" for joint in JOINT_NAMES for axis in "xy"]
    return ["x1", "y1", "x2", "y2", "score", *joints, "class"]


def average_mirrored(output: dict[str, Tensor]) -> dict[str, Tensor]:
    """Maps (2B, ...) of B images and of their mirror images to maps (B, ...) (the flip test).

    Scores, sizes and displacements are averaged; offsets are those of the images themselves, as in the reference.
    """
    count = len(output["hm"]) // 2
    averaged = {name: value[:count] for name, value in output.items()}
    back = {"hm": lambda maps: maps.flip(3), "wh": lambda maps: maps.flip(3), "hps": flip_lr_off, "hm_hp": flip_lr}
    for name, flip in back.items():
        if name in output:
            averaged[name] = (averaged[name] + flip(output[name][count:])) / 2
    return averaged


def flip_lr(maps: Tensor) -> Tensor:
    """Maps of joints (B, 17, H, W) of a mirrored image to those of the image: mirrored, left and right swapped."""
    return maps.flip(3)[:, list(MIRRORED)]


def flip_lr_off(maps: Tensor) -> Tensor:
    """The same for displacements (B, 34, H, W), whose x also changes its sign."""
    pairs = maps.unflatten(1, (NUM_JOINTS, 2)).flip(4)[:, list(MIRRORED)]
    return (pairs * pairs.new_tensor([-1.0, 1.0])[:, None, None]).flatten(1, 2)


def multi_pose_post_process(dets: np.ndarray, c, s, h: int, w: int) -> list[dict[int, list]]:
    """Persons (B, K, 40) of h x w maps to image pixels; ``c`` and ``s`` hold center and scale of each view.

    Returns one ``{1: [[x1, y1, x2, y2, score, 17 joints (x, y)], ...]}`` an image.
    """
    results = []
    for i in range(dets.shape[0]):
        count = dets.shape[1]
        points = np.concatenate([dets[i, :, :4], dets[i, :, 5:COLUMNS]], axis=1).reshape(-1, 2)
        points = transform_preds(points, c[i], s[i], (w, h)).reshape(count, -1)
        rows = np.concatenate([points[:, :4], dets[i, :, 4:5], points[:, 4:]], axis=1)
        results.append({1: rows.astype(np.float32).tolist()})
    return results


def to_image_coords(dets: Tensor, metas: list[dict], opt) -> list[dict[int, np.ndarray]]:
    """Persons (B, K, 40) of a batch of views to image pixels: ``{1: (n, 39) float32}`` an image.

    ``metas`` hold ``c``, ``s`` and ``output_size`` of each view, and ``scale`` if the image was resized before.
    """
    width, height = metas[0]["output_size"]
    centers, scales = [meta["c"] for meta in metas], [meta["s"] for meta in metas]
    images = multi_pose_post_process(dets.cpu().numpy(), centers, scales, height, width)
    for image, meta in zip(images, metas, strict=True):
        rows = np.array(image[1], dtype=np.float32).reshape(-1, COLUMNS)
        rows[:, :4] /= meta.get("scale", 1)
        rows[:, 5:] /= meta.get("scale", 1)
        image[1] = rows
    return images


def post_process(dets: Tensor, metas: list[dict], opt) -> list[dict[int, np.ndarray]]:
    """Persons of a batch of whole images to results in image pixels."""
    return [merge_outputs([image], opt) for image in to_image_coords(dets, metas, opt)]


def merge_outputs(detections: list[dict], opt) -> dict[int, np.ndarray]:
    """Join the persons of several test scales of one image: ``{1: (n, 39) float32}``, K of each scale.

    Soft-NMS runs when there is more than one scale, or with ``--nms``. It leaves copies of other rows, with the joints
    of the discarded ones, where rows were discarded; they go, unless ``--keep_discarded`` asks for the reference's
    results, which have them.
    """
    rows = np.concatenate([np.asarray(scale[1], dtype=np.float32).reshape(-1, COLUMNS) for scale in detections])
    if len(detections) > 1 or opt.nms:
        kept = soft_nms_39(rows, Nt=0.5, method=2)
        rows = rows if opt.keep_discarded else rows[kept]
    return {1: rows}


# Images


def detected_boxes(rows: np.ndarray) -> np.ndarray:
    """Boxes and scores (n, 5) of result rows."""
    return rows[:, :5]


def ground_truth_boxes(objects: dict[str, np.ndarray]) -> np.ndarray:
    """The boxes (n, 4) of objects."""
    return objects["boxes"]


def debug_images(batch: dict, output: dict[str, Tensor] | None, opt) -> dict[str, np.ndarray]:
    """What ``--debug`` shows of the first image of a batch: heat maps and skeletons, predicted and true.

    Without ``output`` what is true alone.
    """
    image = visualization.restore_image(batch["input"][0].cpu().numpy(), opt.mean, opt.std)
    meta, images = batch["meta"][0], {}
    if output is not None:
        output = {name: value.detach() for name, value in output.items()}
        rows = decode(output, opt)[0, :, :COLUMNS].cpu().numpy()
        images = _heat_maps(image, output, opt)
        images["out_pred"] = _draw(image, _enlarged(rows, opt), opt.center_thresh, opt)
    images["gt_hm"] = _blended(image, visualization.heat_map_image, batch["hm"][0], opt)
    if opt.hm_hp:
        images["gt_hmhp"] = _blended(image, visualization_pose.joint_map_image, batch["hm_hp"][0], opt)
    true_rows = _enlarged(meta["gt_det"][: len(meta["labeled"]), :COLUMNS], opt)
    images["out_gt"] = _draw(image, true_rows, opt.center_thresh, opt, meta["labeled"])
    return images


def ground_truth_images(image: np.ndarray, objects: dict[str, np.ndarray], opt) -> dict[str, np.ndarray]:
    """The image (H, W, 3) uint8 with the persons of ``read_objects``."""
    joints = objects["joints"]
    rows = np.hstack([objects["boxes"], np.ones((len(joints), 1)), joints[:, :, :2].reshape(-1, 2 * NUM_JOINTS)])
    return {"gt": _draw(image, rows, opt.vis_thresh, opt, joints[:, :, 2] > 0)}


def network_images(image: np.ndarray, output: dict[str, Tensor], dets: Tensor, opt) -> dict[str, np.ndarray]:
    """What ``--debug 2`` shows of one test scale: the heat maps of centers and of joints.

    ``image`` (h, w, 3) uint8 is the network's input, ``output`` its raw maps; of a batch the first is drawn.
    """
    return _heat_maps(image, output, opt)


def result_images(image: np.ndarray, results: dict[int, np.ndarray], opt, meta: dict) -> dict[str, np.ndarray]:
    """The image (H, W, 3) uint8 with boxes and skeletons of ``results`` whose score exceeds ``--vis_thresh``."""
    return {"multi_pose": _draw(image, results[1], opt.vis_thresh, opt)}


def _heat_maps(image: np.ndarray, output: dict[str, Tensor], opt) -> dict[str, np.ndarray]:
    images = {"pred_hm": _blended(image, visualization.heat_map_image, output["hm"][0].float().sigmoid(), opt)}
    if opt.hm_hp:
        hm_hp = output["hm_hp"][0].float()
        hm_hp = hm_hp if opt.mse_loss else hm_hp.sigmoid()
        images["pred_hmhp"] = _blended(image, visualization_pose.joint_map_image, hm_hp, opt)
    return images


def _blended(image: np.ndarray, colored, maps: Tensor, opt) -> np.ndarray:
    theme = opt.debugger_theme
    return visualization.blend(image, colored(maps.cpu().numpy(), theme, image.shape[:2]), theme)


def _enlarged(rows: np.ndarray, opt) -> np.ndarray:
    """Rows (n, 39) in output pixels as rows in pixels of the input."""
    scaled = rows * np.float32(opt.down_ratio)
    scaled[:, 4] = rows[:, 4]
    return scaled


def _draw(image: np.ndarray, rows: np.ndarray, threshold: float, opt, seen: np.ndarray | None = None) -> np.ndarray:
    boxes = np.hstack([rows[:, :5], np.zeros((len(rows), 1))])
    image = visualization.draw_boxes(image, boxes, opt.class_names, threshold, opt.debugger_theme)
    for k in np.flatnonzero(rows[:, 4] > threshold):
        image = visualization_pose.draw_skeleton(image, rows[k, 5:], None if seen is None else seen[k])
    return image
