"""Poses: an object is a center point and displacements from it to its joints (section 5.2 of the paper).

The objects are persons with the 17 joints of COCO, or anything else with the joints of ``opt.keypoints``; the reference
knows persons only, so objects are called persons here.

Every joint is predicted twice: as a displacement from the center, which assigns it to a person, and as a peak of its
own heatmap, which localizes it precisely. Decoding combines the two.
"""

from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..ops.arrays import numbers
from ..ops.box_loss import box_loss, draw_box_samples, num_box_samples, num_window_cells, sample_extent
from ..ops.heatmap import draw_gaussians, window_pixels
from ..ops.image import affine_transform, draw_dense_reg, draw_msra_gaussian, draw_umich_gaussian
from ..ops.keypoints import FLIP_INDEX
from ..ops.losses import RegL1Loss, RegLoss, RegWeightedL1Loss, dense_l1_loss, focal_loss, gather_feat
from ..ops.oracle import oracle_map
from ..ops.peaks import is_exporting, peak_filter, topk
from ..options.table import Options
from ..transforms import View, full_view, random_view
from .base import Task, flip_maps, to_image_points
from .criterion import Criterion
from .encoding import Slots, box_radius, gaussian_extent, sample_meta, warped_image
from .specs import MultiPoseSpec

ROTATED_HEAT = 0.9999  # all over rotated images, whose boxes are not valid: below 1, so no positive; hardly any loss
JOINT_THRESH = 0.1  # score from which a peak of a joint's heatmap is a candidate
SNAP_RANGE = 0.3  # distance to a candidate up to which a joint moves to it, relative to the longer side of the box


class MultiPoseLoss(Criterion):
    """Losses of centers, sizes and offsets as in detection, and of displacements, heatmaps and offsets of joints."""

    names: ClassVar[tuple[str, ...]] = (
        "loss",
        "hm_loss",
        "hp_loss",
        "hm_hp_loss",
        "hp_offset_loss",
        "wh_loss",
        "off_loss",
    )
    weights = {
        "hm_loss": "hm_weight",
        "wh_loss": "wh_weight",
        "off_loss": "off_weight",
        "hp_loss": "hp_weight",
        "hm_hp_loss": "hm_hp_weight",
        "hp_offset_loss": "off_weight",
    }

    def __init__(self, opt: Options) -> None:
        super().__init__(opt)
        self.reg = {"l1": RegL1Loss, "sl1": RegLoss}[opt.reg_loss]()
        self.hps = RegWeightedL1Loss()

    def counts(self, batch: dict) -> list[Tensor]:
        """Return the numbers of persons' peaks, displacements, persons, joints' peaks (or pixels) and joints."""
        zero = batch["hm"].new_zeros(())
        return [
            batch["hm"].eq(1).sum(),
            self._hps_mask(batch).sum(),
            batch["reg_mask"].sum(),
            self.heatmap_count(batch["hm_hp"]) if self.opt.hm_hp else zero,
            batch["hp_mask"].sum() if self.opt.reg_hp_offset else zero,
        ]

    def _hps_mask(self, batch: dict) -> Tensor:
        return batch["dense_hps_mask" if self.opt.dense_hp else "hps_mask"]

    def stack_losses(self, output: dict[str, Tensor], batch: dict, counts: Tensor) -> dict[str, Tensor]:
        """Return the terms of ``names``; with ``--mse_loss`` the centers still have the focal loss (reference)."""
        return {**self.joint_losses(output, batch, counts), **self.box_losses(output, batch, counts)}

    def joint_losses(self, output: dict[str, Tensor], batch: dict, counts: Tensor) -> dict[str, Tensor]:
        """Return the terms of centers and joints."""
        opt, ind = self.opt, batch["ind"]
        num_hm, num_hps, _, num_hm_hp, num_hp = counts[:5]
        losses = {"hm_loss": focal_loss(output["hm"], batch["hm"], num_hm)}
        if opt.dense_hp:
            losses["hp_loss"] = dense_l1_loss(output["hps"], self._hps_mask(batch), batch["dense_hps"], num_hps)
        else:
            losses["hp_loss"] = self.hps(output["hps"], self._hps_mask(batch), ind, batch["hps"], num_hps)
        if opt.reg_hp_offset and opt.off_weight > 0:
            target = (batch["hp_mask"], batch["hp_ind"], batch["hp_offset"])
            losses["hp_offset_loss"] = self.reg(output["hp_offset"], *target, num_hp)
        if opt.hm_hp and opt.hm_hp_weight > 0:
            losses["hm_hp_loss"] = self.heatmap_loss(output["hm_hp"], batch["hm_hp"], num_hm_hp)
        return losses

    def box_losses(self, output: dict[str, Tensor], batch: dict, counts: Tensor) -> dict[str, Tensor]:
        """Return the terms of the persons' boxes."""
        opt, target, num_reg = self.opt, (batch["reg_mask"], batch["ind"]), counts[2]
        losses = {}
        if opt.wh_weight > 0:
            losses["wh_loss"] = self.reg(output["wh"], *target, batch["wh"], num_reg)
        if opt.reg_offset and opt.off_weight > 0:
            losses["off_loss"] = self.reg(output["reg"], *target, batch["reg"], num_reg)
        return losses

    def with_oracle(self, output: dict[str, Tensor], batch: dict) -> dict[str, Tensor]:
        """Replace the heads named by ``--eval_oracle_*`` with ground truth, for error analysis."""
        opt, output = self.opt, dict(output)
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


class MultiPoseBoxLoss(MultiPoseLoss):
    """The same with an IoU loss of the decoded boxes in place of the losses of sizes and offsets (``--box_loss``)."""

    names = ("loss", "hm_loss", "hp_loss", "hm_hp_loss", "hp_offset_loss", "box_loss")
    weights = {
        "hm_loss": "hm_weight",
        "box_loss": "box_weight",
        "hp_loss": "hp_weight",
        "hm_hp_loss": "hm_hp_weight",
        "hp_offset_loss": "off_weight",
    }

    def counts(self, batch: dict) -> list[Tensor]:
        """Return those of ``MultiPoseLoss`` and the sum of the weights of the supervised cells."""
        return [*super().counts(batch), num_box_samples(batch)]

    def box_losses(self, output: dict[str, Tensor], batch: dict, counts: Tensor) -> dict[str, Tensor]:
        """Return box_loss."""
        if not self.opt.box_weight:
            return {}
        return {"box_loss": box_loss(output, batch, self.opt.box_loss) / (counts[5] + 1e-4)}


class MultiPose(MultiPoseSpec, Task):
    """Poses. Result rows are [x1, y1, x2, y2, score, J joints (x, y)] in image pixels.

    Of a class that has only some of the J joints the others are meaningless.

    Attributes:
        keypoints: the J joints of the data.
    """

    target_inputs: tuple[str, ...] = ("cls", "radius", "joints", "rotated", "num_target_pixels")
    criterion = MultiPoseLoss

    def __init__(self, opt: Options) -> None:
        super().__init__(opt)
        if opt.box_loss != "l1":
            self.criterion = MultiPoseBoxLoss
        if opt.box_samples == "gaussian":
            self.target_inputs = (*self.target_inputs, "box_extent")
        self.keypoints = opt.keypoints
        if opt.flip_test and not self.keypoints.flips_known:
            raise UserError("--flip_test: the data do not state which joints a flip exchanges; add flip_idx to them")
        # Of classes without joints the boxes are learned all the same.
        self.jointless = np.array([not self.keypoints.joints_of(cls) for cls in range(opt.num_classes)], dtype=bool)
        self.row_length = 5 + 2 * len(self.keypoints)
        index = self.keypoints.flip_index
        unflip_joints = {"hps": partial(flip_lr_off, flip_index=index), "hm_hp": partial(flip_lr, flip_index=index)}
        self.unflip = {"hm": flip_maps, "wh": flip_maps, **unflip_joints}

    def read_objects(self, annotations: list[dict], class_of: dict) -> dict[str, np.ndarray]:
        """Return the persons of COCO-style keypoint annotations, crowds and persons without joints included.

        Returns:
            ``boxes`` (n, 4) float32 [x1, y1, x2, y2] and ``joints`` (n, J, 3) float32 [x, y, visibility] in image
            pixels, visibility 0: not labeled; ``cls`` (n,) int64.
        """
        boxes = numbers([annotation["bbox"] for annotation in annotations], "bbox", (4,))
        boxes[:, 2:] += boxes[:, :2]
        count = len(self.keypoints)
        joints = numbers([annotation["keypoints"] for annotation in annotations], "keypoints", (3 * count,))
        joints = joints.astype(np.float32).reshape(-1, count, 3)
        cls = np.array([class_of[annotation["category_id"]] for annotation in annotations], dtype=np.int64)
        return {"boxes": boxes.astype(np.float32), "joints": joints, "cls": cls}

    def encode(self, image: np.ndarray, objects: dict[str, np.ndarray], rng, train: bool) -> dict:
        """Crop an image and place its persons in output coordinates (``MultiPoseDataset.__getitem__``).

        Boxes are not rotated, so that a rotated image (``--aug_rot``) trains the heatmaps and offsets of joints only.

        Returns:
            image (h, w, 3) uint8; color (3, 4) float32; for N = max_objs slots: reg_mask (N,) uint8, 0 also for a
            person without joints; ind (N,) int64; wh (N, 2) float32 in output pixels; hps (N, 2J) float32, joints
            relative to the center's cell, and hps_mask (N, 2J) uint8, or with dense_hp the map dense_hps
            (2J, h/4, w/4); reg (N, 2) float32; hp_offset (N * J, 2) float32; for ``draw_targets``: cls (N,) int64,
            radius (N,) int64, -1 in empty slots, joints (N * J,) int64, their cells, -1 for none, rotated () uint8,
            and num_target_pixels (2,) int64 of persons and joints; with box_samples also box_extent (N, 2) int64, and
            a third number, of the supervised cells; outside training also meta.
        """
        opt, (height, width) = self.opt, image.shape[:2]
        if train:
            view = random_view(height, width, opt, rng, square=True, rotates=True)
        else:
            view = full_view(height, width, opt, square=True)
        sample = warped_image(image, view, opt, rng if train else None)
        rotated = view.rot != 0
        boxes = view.boxes_to_output(objects["boxes"][: opt.max_objs], width)
        # Without an area in the view a person has an empty slot, except in a rotated image, whose boxes are not used.
        slots = Slots.from_boxes(boxes, objects["cls"], view, opt, keep=lambda has_area: has_area | rotated)
        joints = self._joints_to_output(objects["joints"][: opt.max_objs], view, width)[slots.indices]
        points, labeled = joints[:, :, :2], joints[:, :, 2] > 0
        visible = labeled & (points >= 0).all(2) & (points < view.output_size).all(2)
        joint_cells = np.where(visible[:, :, None], points, 0).astype(np.int64)
        learned = ((joints[:, :, 2].sum(1) != 0) | self.jointless[slots.cls]) & (not rotated)
        radius = box_radius(slots.sizes)
        extent = np.full_like(radius, 3 * opt.hm_gauss) if opt.mse_loss else radius

        sample["rotated"] = np.array(rotated, dtype=np.uint8)
        pixels = [window_pixels(extent), window_pixels(extent, visible.sum(1))]
        if opt.box_samples == "gaussian":
            box_extent = sample_extent(slots.sizes)
            pixels.append(num_window_cells(box_extent[learned]))
            sample["box_extent"] = slots.fill(np.where(learned[:, None], box_extent, -1), empty=-1)
        sample["num_target_pixels"] = np.array(pixels)
        sample["cls"] = slots.fill(slots.cls)
        sample["radius"] = slots.fill(radius, empty=-1)
        sample["joints"] = slots.fill(np.where(visible, slots.index(joint_cells), -1), empty=-1).reshape(-1)
        sample["reg_mask"] = slots.fill(learned.astype(np.uint8))
        sample["ind"] = slots.fill(slots.index(slots.cells))
        sample["wh"] = slots.fill(slots.sizes)
        displacements = np.where(visible[:, :, None], points - slots.cells[:, None], 0).astype(np.float32)
        if opt.dense_hp:
            sample["dense_hps"] = self._dense_joints(slots, radius, displacements, visible, view.output_size)
        else:
            sample["hps"] = slots.fill(displacements.reshape(-1, 2 * len(self.keypoints)))
            sample["hps_mask"] = slots.fill(np.repeat(visible & (not rotated), 2, axis=1).astype(np.uint8))
        if opt.reg_offset:
            sample["reg"] = slots.fill(slots.offsets)
        if opt.reg_hp_offset:
            offsets = np.where(visible[:, :, None], points - joint_cells, 0).astype(np.float32)
            sample["hp_offset"] = slots.fill(offsets).reshape(-1, 2)
        if opt.debug > 0 or not train:
            half = slots.sizes / 2
            rows = [slots.centers - half, slots.centers + half, np.ones((len(slots), 1))]
            rows += [points.reshape(-1, 2 * len(self.keypoints)), slots.cls[:, None]]
            sample["meta"] = sample_meta(view, np.hstack(rows), labeled=labeled)
        return sample

    def _joints_to_output(self, joints: np.ndarray, view: View, width: int) -> np.ndarray:
        """Return joints (n, J, 3) in output pixels; unlabeled ones keep image coordinates, which nothing uses."""
        joints = view.flip_points(joints, width)
        joints = joints[:, list(self.keypoints.flip_index)] if view.flipped else joints.copy()
        labeled = joints[:, :, 2] > 0
        joints[labeled, :2] = affine_transform(joints[labeled, :2], view.output_matrix(rotated=True))
        return joints

    def _dense_joints(self, slots: Slots, radius, displacements, visible, output_size) -> np.ndarray:
        """Return (2J, h, w) float32: displacements to the joints from every cell of a person's Gaussian.

        Where persons overlap, a later one replaces the earlier ones if its Gaussian is at least as high.
        """
        width, height = output_size
        draw = draw_msra_gaussian if self.opt.mse_loss else draw_umich_gaussian
        hm = np.zeros((self.opt.num_classes, height, width), dtype=np.float32)
        dense_hps = np.zeros((len(self.keypoints), 2, height, width), dtype=np.float32)
        for k, (cls, cell) in enumerate(zip(slots.cls, slots.cells, strict=True)):
            extent = self.opt.hm_gauss if self.opt.mse_loss else radius[k]
            for j in np.flatnonzero(visible[k]):
                draw_dense_reg(dense_hps[j], hm[cls], cell, displacements[k, j], extent, is_offset=True)
            draw(hm[cls], cell, extent)
        return dense_hps.reshape(-1, height, width)

    def draw_targets(self, batch: dict) -> dict[str, Tensor]:
        """Return the target maps of a batch, and the targets of joint offsets.

        Returns:
            hm (B, C, h/4, w/4) float32, a Gaussian of peak 1 at each person's cell, 0.9999 all over a rotated image;
            hm_hp (B, J, h/4, w/4) float32, the same at each joint, as wide as at the person's center; hp_ind and
            hp_mask (B, N * J) int64; with dense_hp dense_hps_mask (B, 2J, h/4, w/4) float32; with
            ``--box_samples gaussian`` box_slot and box_weight (B, h/4, w/4) of the supervised cells.
        """
        opt, (batch_size, height, width) = self.opt, batch["image"].shape[:3]
        size, count = (height // opt.down_ratio, width // opt.down_ratio), len(self.keypoints)
        joints, rotated = batch["joints"], batch["rotated"].bool()[:, None, None, None]
        extent, sigma = gaussian_extent(batch["radius"], opt)
        of_persons, of_joints, *of_boxes = batch["num_target_pixels"]
        hm = draw_gaussians((batch_size, opt.num_classes, *size), batch["cls"], batch["ind"], extent, sigma, of_persons)
        targets = {"hm": torch.where(rotated, ROTATED_HEAT, hm)}

        # The same for joints, in as many slots as persons times joints.
        joint = torch.arange(count, device=joints.device).repeat(batch["radius"].shape[1]).expand(batch_size, -1)
        visible = joints >= 0
        extent = torch.where(visible, extent.repeat_interleave(count, 1), -1)
        sigma = sigma.repeat_interleave(count, 1)
        maps = (batch_size, count, *size)
        if opt.hm_hp:
            targets["hm_hp"] = draw_gaussians(maps, joint, joints.clamp(min=0), extent, sigma, of_joints)
        if opt.reg_hp_offset:
            targets["hp_ind"], targets["hp_mask"] = joints.clamp(min=0), visible.long()
        if opt.dense_hp:
            cells = batch["ind"].repeat_interleave(count, 1)
            mask = draw_gaussians(maps, joint, cells, extent, sigma, of_joints)
            targets["dense_hps_mask"] = torch.where(rotated, 0, mask).repeat_interleave(2, 1)
        if of_boxes:
            samples = draw_box_samples((batch_size, *size), batch["wh"], batch["ind"], batch["box_extent"], *of_boxes)
            targets["box_slot"], targets["box_weight"] = samples
        return targets

    def decode(self, output: dict[str, Tensor], flipped: bool = False) -> Tensor:
        """Decode raw maps to (B, K, 6 + 2J) persons in output pixels; see ``multi_pose_decode``."""
        opt, output = self.opt, {name: value.float() for name, value in output.items()}
        output["hm"] = output["hm"].sigmoid()
        if opt.hm_hp and not opt.mse_loss:
            output["hm_hp"] = output["hm_hp"].sigmoid()
        if flipped:
            output = self.average_flipped(output)
        reg = output["reg"] if opt.reg_offset else None
        hm_hp = output["hm_hp"] if opt.hm_hp else None
        hp_offset = output["hp_offset"] if opt.reg_hp_offset else None
        return multi_pose_decode(output["hm"], output["wh"], output["hps"], reg, hm_hp, hp_offset, opt.K)

    @property
    def columns(self) -> list[str]:
        """Return the names of the columns of a person."""
        joints = [f"{joint}_{axis}" for joint in self.keypoints.names for axis in "xy"]
        return ["x1", "y1", "x2", "y2", "score", *joints, "class"]

    def to_image_coords(self, dets: Tensor, metas) -> list[dict[int, np.ndarray]]:
        """Transform persons (B, K, 6 + 2J) to image pixels: rows (n, 5 + 2J) float32 by class from 1 per image."""
        images = []
        for dets_of_one, meta in zip(dets.cpu().numpy(), metas, strict=True):
            rows, cls = _image_rows(dets_of_one, meta), dets_of_one[:, -1]
            images.append({k + 1: rows[cls == k] for k in range(self.opt.num_classes)})
        return images


def multi_pose_decode(
    heat: Tensor,
    wh: Tensor,
    kps: Tensor,
    reg: Tensor | None = None,
    hm_hp: Tensor | None = None,
    hp_offset: Tensor | None = None,
    K: int = 100,
) -> Tensor:
    """Decode peaks to persons: boxes, and joints, each moved to the nearest peak of its own heatmap if it is close.

    Args:
        heat: (B, C, H, W) scores; wh: (B, 2, H, W); kps: (B, 2J, H, W) displacements of J joints.
        reg: (B, 2, H, W) of the center, None: the middle of the cell.
        hm_hp: (B, J, H, W) scores of joints, None: joints keep the position of the displacements.
        hp_offset: (B, 2, H, W) of the joints, None: the middle of the cell.
        K: persons per image, and candidates per joint.

    Returns:
        (B, K, 6 + 2J) rows [x1, y1, x2, y2, score, joints (x, y), class from 0] in output pixels, best first.
    """
    scores, ind, cls, ys, xs = topk(peak_filter(heat), K)
    cells = torch.stack([xs, ys], dim=2)
    centers = cells + (gather_feat(reg, ind) if reg is not None else 0.5)
    sizes = gather_feat(wh, ind)
    boxes = torch.cat([centers - sizes / 2, centers + sizes / 2], dim=2)
    # Displacements start at the cell, not at the refined center.
    joints = gather_feat(kps, ind).unflatten(2, (-1, 2)) + cells[:, :, None]
    if hm_hp is not None:
        joints = _snapped(joints, boxes, hm_hp, hp_offset, K)
    return torch.cat([boxes, scores[:, :, None], joints.flatten(2), cls[:, :, None].to(heat.dtype)], dim=2)


def _snapped(joints: Tensor, boxes: Tensor, hm_hp: Tensor, hp_offset: Tensor | None, K: int) -> Tensor:
    """Move joints (B, K, J, 2) to the nearest peak of their map if it is close and inside the person's box."""
    height, width = hm_hp.shape[2:]
    scores, ind = peak_filter(hm_hp).flatten(2).topk(K if is_exporting() else min(K, height * width))
    row = ind // width
    cells = torch.stack([ind - row * width, row], dim=3).to(joints.dtype)
    offsets = 0.5 if hp_offset is None else gather_feat(hp_offset, ind.flatten(1)).view(cells.shape)
    # Weak peaks lie far outside every box.
    candidates = torch.where((scores > JOINT_THRESH)[..., None], cells + offsets, -10000.0)  # (B, J, K, 2)

    joints = joints.transpose(1, 2)  # (B, J, persons, 2)
    distance, nearest = (joints[:, :, :, None] - candidates[:, :, None]).norm(dim=4).min(dim=3)
    candidates = candidates.gather(2, nearest[..., None].expand(-1, -1, -1, 2))
    low, high = boxes[:, None, :, :2], boxes[:, None, :, 2:]
    inside = ((candidates >= low) & (candidates <= high)).all(3)
    near = distance <= SNAP_RANGE * (high - low).amax(3)
    return torch.where((inside & near)[..., None], candidates, joints).transpose(1, 2)


def flip_lr(maps: Tensor, flip_index: tuple[int, ...] = FLIP_INDEX) -> Tensor:
    """Undo the flip of joint maps (B, J, H, W): flip them and exchange left and right."""
    return maps.flip(3)[:, list(flip_index)]


def flip_lr_off(maps: Tensor, flip_index: tuple[int, ...] = FLIP_INDEX) -> Tensor:
    """Undo the flip of displacements (B, 2J, H, W), whose x also changes its sign."""
    pairs = maps.unflatten(1, (-1, 2)).flip(4)[:, list(flip_index)]
    return (pairs * pairs.new_tensor([-1.0, 1.0])[:, None, None]).flatten(1, 2)


def multi_pose_post_process(dets: np.ndarray, c, s, h: int, w: int) -> list[dict[int, list]]:
    """Transform persons (B, K, 6 + 2J) of h x w maps to image pixels; ``c`` and ``s`` are center and scale per view.

    Returns one ``{1: [[x1, y1, x2, y2, score, J joints (x, y)], ...]}`` per image.
    """
    views = [{"c": center, "s": scale, "output_size": (w, h)} for center, scale in zip(c, s, strict=False)]
    return [{1: _image_rows(rows, view).tolist()} for rows, view in zip(dets, views, strict=False)]


def _image_rows(dets: np.ndarray, meta: dict) -> np.ndarray:
    """Return persons (K, 6 + 2J) of one view as rows (K, 5 + 2J) float32 in image pixels."""
    points = to_image_points(np.concatenate([dets[:, :4], dets[:, 5:-1]], axis=1), meta)
    return np.concatenate([points[:, :4], dets[:, 4:5], points[:, 4:]], axis=1).astype(np.float32)
