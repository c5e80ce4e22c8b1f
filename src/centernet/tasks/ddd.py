"""3D boxes from one image: the center point of an object, its depth, size and orientation (section 5.1 of the paper).

A result row is [alpha, x1, y1, x2, y2, height, width, length, X, Y, Z, rotation_y, score]: the observation angle of the
object, its box in image pixels, its size and the middle of its bottom face in camera coordinates, both in meters, and
its rotation around the vertical axis. Angles are in radians.
"""

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..ops.arrays import numbers
from ..ops.box3d import (  # noqa: F401 (names of the reference that are expected in this module)
    alpha2rot_y,
    boxes_around,
    compute_box_3d,
    ddd2locrot,
    project_to_image,
    unproject_2d_to_3d,
)
from ..ops.heatmap import covered_cells, draw_gaussians, window_pixels
from ..ops.image import gaussian_radius, transform_preds
from ..ops.losses import BinRotLoss, L1Loss, gather_feat
from ..ops.oracle import oracle_map
from ..ops.peaks import peak_filter, topk
from ..options.table import Options
from ..transforms import View, jitter_by_size
from .base import Detections, Task
from .criterion import Criterion
from .encoding import Slots, sample_meta, warped_image
from .specs import DddSpec

# Categories of KITTI that are not classes: the loss neither rewards nor penalizes their detection. -1: any class,
# -2 and -3: class 0 (sitting persons) and class 1 (vans, trucks). Skipped categories are background.
SKIPPED = -99
IGNORED = {4: -3, 5: -3, 6: -2, 7: SKIPPED, 8: SKIPPED, 9: -1}
IGNORED_HEAT = 0.9999  # below 1, so not a positive; high enough to suppress the negative loss

# The camera of images without calibration, if neither --calib nor the checkpoint gives one.
DEFAULT_CALIB = np.array(
    [[707.0493, 0, 604.0814, 45.75831], [0, 707.0493, 180.5066, -0.3454157], [0, 0, 1, 0.004981016]], dtype=np.float32
)


class DddLoss(Criterion):
    """Losses of heatmap, depth, 3D size, orientation, and 2D size and offset.

    All but the heatmap's are means over the max_objs slots of an image, empty ones included, so that the weight of an
    object does not depend on their number.
    """

    names = ("loss", "hm_loss", "dep_loss", "dim_loss", "rot_loss", "wh_loss", "off_loss")
    weights = {name: name.replace("_loss", "_weight") for name in names[1:]}
    mse_of_scores = True

    def __init__(self, opt: Options) -> None:
        super().__init__(opt)
        self.l1, self.rot = L1Loss(), BinRotLoss()

    def counts(self, batch: dict) -> list[Tensor]:
        """Return the numbers of peaks (or pixels), slots, and members of the two orientation bins."""
        slots = batch["hm"].new_full((), batch["ind"].numel())
        return [self.heatmap_count(batch["hm"]), slots, *(batch["rotbin"] != 0).sum((0, 1))]

    def stack_losses(self, output: dict[str, Tensor], batch: dict, counts: Tensor) -> dict[str, Tensor]:
        """Return the terms of ``names``. Depth and size are not learned in jittered images (``reg_mask``)."""
        opt, ind, known, measured = self.opt, batch["ind"], batch["rot_mask"], batch["reg_mask"]
        num_hm, num_slots, *num_members = counts
        losses = {"hm_loss": self.heatmap_loss(output["hm"], batch["hm"], num_hm)}
        if opt.dep_weight > 0:
            losses["dep_loss"] = self.l1(depth_of(output["dep"]), measured, ind, batch["dep"], num_slots)
        if opt.dim_weight > 0:
            losses["dim_loss"] = self.l1(output["dim"], measured, ind, batch["dim"], num_slots)
        if opt.rot_weight > 0:
            bins = (batch["rotbin"], batch["rotres"])
            losses["rot_loss"] = self.rot(output["rot"], known, ind, *bins, (num_slots, *num_members))
        if opt.reg_bbox and opt.wh_weight > 0:
            losses["wh_loss"] = self.l1(output["wh"], known, ind, batch["wh"], num_slots)
        if opt.reg_offset and opt.off_weight > 0:
            losses["off_loss"] = self.l1(output["reg"], known, ind, batch["reg"], num_slots)
        return losses

    def with_oracle(self, output: dict[str, Tensor], batch: dict) -> dict[str, Tensor]:
        """Replace the heads named by ``--eval_oracle_*`` with ground truth, for error analysis."""
        output = dict(output)
        if self.opt.eval_oracle_hm:
            output["hm"] = torch.logit(batch["hm"])
        if self.opt.eval_oracle_dep:
            depth = oracle_map(batch["dep"], batch["ind"], batch["rot_mask"], output["dep"].shape)
            output["dep"] = torch.logit(1 / (depth.double() + 1) - 1e-6).to(output["dep"].dtype)  # undoes depth_of
        return output


class Ddd(DddSpec, Task):
    """3D boxes. See the module docstring for the rows of results."""

    target_inputs = ("cls", "radius", "cell", "rect", "peak", "num_target_pixels")
    criterion = DddLoss
    row_length = 13

    @classmethod
    def detector_options(cls, opt: Options):
        """Return the options without flip test, test scales and NMS, which do not exist in 3D."""
        return opt.replace(flip_test=False, test_scales=[1.0], nms=False)

    def read_objects(self, annotations: list[dict], class_of: dict) -> dict[str, np.ndarray]:
        """Return the annotations of KITTI's converted label files, one row per object.

        Returns:
            boxes (n, 4) float32 [x1, y1, x2, y2] in image pixels; cls (n,) int64, negative for ignored categories
            (``IGNORED``); dep (n, 1) float32 and dim (n, 3) float32 height, width, length in meters; alpha (n,)
            float64 in radians.
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

    def view(self, height: int, width: int) -> View:
        """Return the whole image, fitted to the input's width; top and bottom are cropped equally to its height.

        With ``--keep_res`` the view has the size of the input at the image's own scale, around its middle.
        """
        opt = self.opt
        size = (opt.input_w, opt.input_h) if opt.keep_res else (width, height)
        return View(
            center=np.array([width / 2.0, height / 2.0]),
            scale=np.array(size, dtype=np.int32),
            flipped=False,
            input_size=(opt.input_w, opt.input_h),
            output_size=(opt.output_w, opt.output_h),
        )

    def crop(self, image: np.ndarray, scale: float) -> tuple[np.ndarray, dict]:
        """Return the network's view of an image and its ``meta``; the same for every test scale."""
        height, width = image.shape[:2]
        view = self.view(height, width)
        about = {"c": view.center, "s": view.scale, "output_size": view.output_size, "size": (width, height)}
        return view.warp(image), {**about, "scale": scale}

    def encode(self, image: np.ndarray, objects: dict[str, np.ndarray], rng, train: bool) -> dict:
        """Crop an image and place its objects in output coordinates (``DddDataset.__getitem__``).

        ``objects`` also hold the camera ``calib`` (3, 4) float32.

        Returns:
            image (h, w, 3) uint8; color (3, 4) float32; for N = max_objs slots: reg_mask (N,) uint8, 0 in a jittered
            image, where depth and size are not learned; rot_mask (N,) uint8; ind (N,) int64; dep (N, 1), dim (N, 3),
            wh (N, 2) in output pixels, reg (N, 2) float32; rotbin (N, 2) int64, rotres (N, 2) float32; for
            ``draw_targets``: cls (N,), cell (N,), radius (N,), rect (N, 4), peak (N,) int64, and num_target_pixels
            (1,) int64; outside training also meta.

        Raises:
            UserError: an image outside training without calibration.
        """
        opt, (height, width) = self.opt, image.shape[:2]
        view = self.view(height, width)
        jittered = train and rng.random() < opt.aug_ddd
        if jittered:
            jitter_by_size(view, height, width, opt, rng)
        sample = warped_image(image, view, opt)
        boxes = view.boxes_to_output(objects["boxes"][: opt.max_objs], width)
        classes = objects["cls"][: opt.max_objs]
        slots = Slots.from_boxes(boxes, classes, view, opt, keep=lambda has_area: has_area & (classes > SKIPPED))
        known = slots.cls >= 0

        def fill(values: np.ndarray) -> np.ndarray:
            return slots.fill(values, where=known)

        drawn = self._drawing(slots, known)
        sample.update(cls=slots.fill(slots.cls), **{name: slots.fill(values, -1) for name, values in drawn.items()})
        extent = np.where(drawn["radius"] < 0, -1, (3 if opt.mse_loss else 1) * drawn["radius"])
        maps = np.where(slots.cls == -1, opt.num_classes, 1)
        sample["num_target_pixels"] = np.array([window_pixels(extent, maps)])

        dep, dim, alpha = (objects[name][: opt.max_objs][slots.indices] for name in ("dep", "dim", "alpha"))
        rotbin, rotres = orientation_bins(alpha)
        sample["rot_mask"] = fill(np.ones(len(slots), dtype=np.uint8))
        sample["reg_mask"] = sample["rot_mask"] * np.uint8(not jittered)
        sample["ind"] = fill(slots.index(slots.cells))
        sample.update(dep=fill(dep), dim=fill(dim), rotbin=fill(rotbin), rotres=fill(rotres))
        if opt.reg_bbox:
            sample["wh"] = fill(slots.sizes)
        if opt.reg_offset:
            sample["reg"] = fill(slots.offsets)
        if opt.debug > 0 or not train:
            if "calib" not in objects:
                raise UserError("an image has no calibration: its entry in the annotation file lacks 'calib'")
            rows = [slots.centers, np.ones((len(slots), 1)), _orientation_channels(rotbin, rotres), dep, dim]
            rows += [slots.sizes] if opt.reg_bbox else []
            gt_det = np.hstack([*rows, slots.cls[:, None]])[known]
            sample["meta"] = sample_meta(view, gt_det, size=(width, height), calib=objects["calib"])
        return sample

    def _drawing(self, slots: Slots, known: np.ndarray) -> dict[str, np.ndarray]:
        """Return what ``draw_targets`` draws of each object, which it does in the order of the reference.

        ``cell`` and ``radius`` of its Gaussian, -1 for none; ``rect`` [x1, y1, x2, y2], the cells, ends included, that
        an ignored object then sets to 0.9999, -1 for none; ``peak`` 1 unless a later ignored object covers the
        Gaussian's peak that way. For example, of a car (slot 0) and a van (slot 1) with the same center cell the van's
        rect is that cell, so that the car has peak 0 and the map 0.9999 there; in the opposite order the car's peak
        of 1 is drawn last and stays.
        """
        width, height = slots.sizes.T
        radius = gaussian_radius((height, width)).astype(np.int64).clip(min=0)
        # The Gaussian of --mse_loss rounds its center.
        cells = (slots.centers + 0.5 if self.opt.mse_loss else slots.centers).astype(np.int64)
        if self.opt.rect_mask:
            radius = np.where(known, radius, -1)
            rect = slots.boxes.astype(np.int64)
        else:
            rect = np.tile(slots.cells, 2)
        rect = np.where(known[:, None], -1, rect)

        inside = (rect[:, None, :2] <= cells) & (cells <= rect[:, None, 2:])  # by rectangle and peak
        later = np.arange(len(rect))[:, None] >= np.arange(len(rect))
        covered = (inside.all(2) & later & ~known[:, None]).any(0)
        peak = (radius >= 0) & ~covered
        return {"cell": slots.index(cells), "radius": radius, "rect": rect, "peak": peak.astype(np.int64)}

    def draw_targets(self, batch: dict) -> dict[str, Tensor]:
        """Return ``hm`` (B, C, h/4, w/4) float32.

        A Gaussian of peak 1 at each object's cell. An ignored object has one as well, in the maps of all classes that
        it may be taken for, but with 0.9999 at the peak, or with ``--rect_mask`` 0.9999 all over its box and nothing
        around it. These 0.9999 replace what earlier objects have drawn there, as in the reference.
        """
        opt, (batch_size, height, width) = self.opt, batch["image"].shape[:3]
        size = (batch_size, opt.num_classes, height // opt.down_ratio, width // opt.down_ratio)
        code = batch["cls"]
        classes = torch.arange(opt.num_classes, device=code.device)[:, None]
        # (B, C, N): whether the object is drawn in the map of the class.
        affected = (
            (code[:, None] == classes)
            | (code[:, None] == -1)
            | ((code[:, None] < -1) & (-code[:, None] - 2 == classes))
        )

        def by_map(values: Tensor, empty: int) -> Tensor:
            return torch.where(affected, values[:, None], empty).flatten(1)

        radius = by_map(batch["radius"], -1)
        cls = classes.expand(affected.shape).flatten(1)
        cell = by_map(batch["cell"].clamp(min=0), 0)
        # With --mse_loss the radius is the standard deviation; where it is 0 only the peak is drawn.
        extent, sigma = (3 * radius, radius.clamp(min=1e-3)) if opt.mse_loss else (radius, (2 * radius + 1) / 6)
        hm = draw_gaussians(size, cls, cell, extent.clamp(min=-1), sigma, *batch["num_target_pixels"])

        plane = (torch.arange(batch_size, device=code.device)[:, None] * opt.num_classes + cls).flatten()
        rects = batch["rect"][:, None].expand(*affected.shape, 4).flatten(1, 2)
        ignored = covered_cells(size, cls, rects, by_map(batch["rect"][..., 0], -1) >= 0)
        hm = torch.where(ignored, IGNORED_HEAT, hm)
        peak = (by_map(batch["peak"], 0) > 0).float()
        peaks = hm.new_zeros(hm.numel())
        peaks.scatter_reduce_(0, plane * (size[2] * size[3]) + cell.flatten(), peak.flatten(), "amax")
        return {"hm": torch.maximum(hm, peaks.view(size))}

    def decode(self, output: dict[str, Tensor], flipped: bool = False) -> Tensor:
        """Decode raw maps to detections (B, K, 18), with ``--not_reg_bbox`` (B, K, 16); see ``ddd_decode``.

        There is no flip test in 3D: the flipped copies, the second half of the batch, are not used.
        """
        opt = self.opt
        if flipped:
            output = {name: values[: len(values) // 2] for name, values in output.items()}
        output = {name: values.float() for name, values in output.items()}
        wh = output["wh"] if opt.reg_bbox else None
        reg = output["reg"] if opt.reg_offset else None
        return ddd_decode(output["hm"].sigmoid(), output["rot"], depth_of(output["dep"]), output["dim"], wh, reg, opt.K)

    @property
    def columns(self) -> list[str]:
        """Return the names of the columns of a detection."""
        rotation = [f"rot_{k}" for k in range(8)]
        size = ["w", "h"] if self.opt.reg_bbox else []
        return ["x", "y", "score", *rotation, "depth", "height", "width", "length", *size, "class"]

    def to_image_coords(self, dets: Tensor, metas) -> list[Detections]:
        """Transform detections to result rows, ``{class from 1: (n, 13) float32}`` per image.

        ``metas`` also hold the image's ``size`` (width, height), and ``calib``; the default is a camera of KITTI.
        Sizes are scaled like lengths, or with ``--size_as_point`` transformed like points as in the reference, which
        makes every box a little too high (1.2 pixels for KITTI's images), and far too high if the input has another
        shape than the image.
        """
        centers, scales = [meta["c"] for meta in metas], [meta["s"] for meta in metas]
        calibs = [np.asarray(meta.get("calib", DEFAULT_CALIB)) for meta in metas]
        images = ddd_post_process(dets.cpu().numpy(), centers, scales, calibs, self.opt, self.opt.size_as_point)
        if not self.opt.reg_bbox:
            for image, meta in zip(images, metas, strict=True):
                for rows in image.values():
                    rows[:, 1:5] = rows[:, 1:5].clip(0, np.tile(np.array(meta["size"]) - 1, 2))
        return images

    def merge_scales(self, per_scale) -> Detections:
        """Return the rows whose score exceeds ``--peak_thresh``; of several test scales the first is used."""
        return {cls: rows[rows[:, -1] > self.opt.peak_thresh] for cls, rows in per_scale[0].items()}

    def detected_boxes(self, rows: np.ndarray) -> np.ndarray:
        """Return boxes and scores (n, 5) of result rows."""
        return rows[:, [1, 2, 3, 4, -1]]


def orientation_bins(alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return membership (n, 2) int64 in the two overlapping bins, and (n, 2) float32 the angle from each bin's middle.

    Bin 1 is centered on -pi/2 and bin 2 on pi/2; each reaches 30 degrees beyond its half. ``alpha`` (n,) in radians.
    """
    member = np.stack(
        [(alpha < np.pi / 6) | (alpha > 5 * np.pi / 6), (alpha > -np.pi / 6) | (alpha < -5 * np.pi / 6)], axis=1
    )
    residual = alpha[:, None] - np.array([-0.5 * np.pi, 0.5 * np.pi])
    return member.astype(np.int64), np.where(member, residual, 0).astype(np.float32)


def _orientation_channels(rotbin: np.ndarray, rotres: np.ndarray) -> np.ndarray:
    """Return the 8 channels of the rot head (n, 8) for these bins: [no, yes, sin, cos] of each."""
    channels = np.zeros((len(rotbin), 2, 4), dtype=np.float32)
    channels[:, :, 1] = rotbin
    channels[:, :, 2] = np.where(rotbin, np.sin(rotres), 0)
    channels[:, :, 3] = np.where(rotbin, np.cos(rotres), 1)
    return channels.reshape(-1, 8)


def depth_of(raw: Tensor) -> Tensor:
    """Return the depth in meters for the raw map of the dep head: 1 / sigmoid - 1 (section 5.1 of the paper)."""
    return 1 / (raw.sigmoid() + 1e-6) - 1


def ddd_decode(
    heat: Tensor,
    rot: Tensor,
    depth: Tensor,
    dim: Tensor,
    wh: Tensor | None = None,
    reg: Tensor | None = None,
    K: int = 40,
) -> Tensor:
    """Decode peaks to the outputs of all heads at their cells (section 5.1 of the paper).

    Args:
        heat: (B, C, H, W) scores; rot: (B, 8, H, W); depth: (B, 1, H, W) meters; dim: (B, 3, H, W) meters.
        wh: (B, 2, H, W) output pixels, or None; reg: (B, 2, H, W), None: the middle of the cell.
        K: detections per image.

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


def get_alpha(rot: np.ndarray) -> np.ndarray:
    """Return the observation angle of orientations (n, 8) by the bin of the higher score; radians, not wrapped."""
    first = np.arctan2(rot[:, 2], rot[:, 3]) - 0.5 * np.pi
    second = np.arctan2(rot[:, 6], rot[:, 7]) + 0.5 * np.pi
    return np.where(rot[:, 1] > rot[:, 5], first, second)


def ddd_post_process_2d(
    dets: np.ndarray, c, s, opt: Options, size_as_point: bool = True
) -> list[dict[int, np.ndarray]]:
    """Transform detections (B, K, 18 or 16) to image pixels, and decode the angle from its bins.

    Args:
        dets: detections of ``ddd_decode``.
        c, s: center and scale of each view.
        opt: ``num_classes``, ``output_w``, ``output_h``.
        size_as_point: transform width and height like the coordinates of a point, including the translation, as the
            reference does; False: only scale them.

    Returns:
        One ``{class from 1: (n, 10 or 8) float32}`` per image, with rows [x, y, score, alpha, depth, height, width,
        length, w, h].
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
    """Transform rows of ``ddd_post_process_2d`` to result rows (n, 13) float32 with the camera (3, 4) of each image.

    Without a 2D size of the network the box is the one around the projected 3D box.
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
                boxes = boxes_around(dim, location, rotation_y, calib)
            columns = [alpha[:, None], boxes, dim, location, rotation_y[:, None], score]
            image[cls] = np.concatenate(columns, axis=1).astype(np.float32)
        results.append(image)
    return results


def ddd_post_process(
    dets: np.ndarray, c, s, calibs, opt: Options, size_as_point: bool = True
) -> list[dict[int, np.ndarray]]:
    """Transform detections (B, K, 18 or 16) to result rows of the reference: ``{class from 1: (n, 13)}`` per image.

    Arguments as for ``ddd_post_process_2d``; ``calibs``: the camera (3, 4) of each image.
    """
    return ddd_post_process_3d(ddd_post_process_2d(dets, c, s, opt, size_as_point), calibs)
