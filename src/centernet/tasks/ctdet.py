"""Object detection: a box is the center point of an object and its size (sections 3 and 4 of the paper)."""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..ops.arrays import numbers
from ..ops.box_loss import box_loss, draw_box_samples, num_box_samples, num_window_cells, sample_extent
from ..ops.heatmap import draw_gaussians, window_pixels
from ..ops.image import draw_dense_reg, draw_umich_gaussian
from ..ops.losses import (
    NormRegL1Loss,
    RegL1Loss,
    RegLoss,
    RegWeightedL1Loss,
    dense_l1_loss,
    gather_feat,
)
from ..ops.oracle import oracle_map
from ..ops.peaks import peak_filter, topk
from ..options.table import Options
from ..transforms import full_view, random_view
from .base import Task, flip_maps, to_image_points
from .criterion import Criterion
from .encoding import Slots, box_radius, gaussian_extent, sample_meta, warped_image
from .specs import CtdetSpec


class CtdetLoss(Criterion):
    """hm_weight * focal(hm) + wh_weight * size + off_weight * offset (equations 1 to 4)."""

    names: ClassVar[tuple[str, ...]] = ("loss", "hm_loss", "wh_loss", "off_loss")
    weights = {"hm_loss": "hm_weight", "wh_loss": "wh_weight", "off_loss": "off_weight"}

    def __init__(self, opt: Options) -> None:
        super().__init__(opt)
        self.reg = {"l1": RegL1Loss, "sl1": RegLoss}[opt.reg_loss]()
        self.wh = NormRegL1Loss() if opt.norm_wh else self.reg
        self.cat_spec_wh = RegWeightedL1Loss()

    def counts(self, batch: dict) -> list[Tensor]:
        """Return the numbers of peaks (or pixels), sizes and objects."""
        return [self.heatmap_count(batch["hm"]), self._size_mask(batch).sum(), batch["reg_mask"].sum()]

    @staticmethod
    def _size_mask(batch: dict) -> Tensor:
        return batch.get("dense_wh_mask", batch.get("cat_spec_mask", batch["reg_mask"]))

    def stack_losses(self, output: dict[str, Tensor], batch: dict, counts: Tensor) -> dict[str, Tensor]:
        """Return hm_loss (equation 1), wh_loss (equation 3) and off_loss (equation 2)."""
        opt, ind = self.opt, batch["ind"]
        num_hm, num_wh, num_reg = counts
        losses = {"hm_loss": self.heatmap_loss(output["hm"], batch["hm"], num_hm)}
        if opt.wh_weight > 0:
            wh, mask = output["wh"], self._size_mask(batch)
            if opt.dense_wh:
                losses["wh_loss"] = dense_l1_loss(wh, mask, batch["dense_wh"], num_wh)
            elif opt.cat_spec_wh:
                losses["wh_loss"] = self.cat_spec_wh(wh, mask, ind, batch["cat_spec_wh"], num_wh)
            else:
                losses["wh_loss"] = self.wh(wh, mask, ind, batch["wh"], num_wh)
        if opt.reg_offset and opt.off_weight > 0:
            losses["off_loss"] = self.reg(output["reg"], batch["reg_mask"], ind, batch["reg"], num_reg)
        return losses

    def with_oracle(self, output: dict[str, Tensor], batch: dict) -> dict[str, Tensor]:
        """Replace the heads named by ``--eval_oracle_*`` with ground truth, for error analysis."""
        output = dict(output)
        if self.opt.eval_oracle_hm:
            output["hm"] = batch["hm"] if self.opt.mse_loss else torch.logit(batch["hm"])
        for option, head, target in (("eval_oracle_wh", "wh", "wh"), ("eval_oracle_offset", "reg", "reg")):
            if getattr(self.opt, option):
                output[head] = oracle_map(batch[target], batch["ind"], batch["reg_mask"], output[head].shape)
        return output


class CtdetBoxLoss(CtdetLoss):
    """hm_weight * focal(hm) + box_weight * IoU loss of the decoded boxes (``--box_loss``)."""

    names = ("loss", "hm_loss", "box_loss")
    weights = {"hm_loss": "hm_weight", "box_loss": "box_weight"}

    def counts(self, batch: dict) -> list[Tensor]:
        """Return the number of peaks (or pixels) and the sum of the weights of the supervised cells."""
        return [self.heatmap_count(batch["hm"]), num_box_samples(batch)]

    def stack_losses(self, output: dict[str, Tensor], batch: dict, counts: Tensor) -> dict[str, Tensor]:
        """Return hm_loss (equation 1) and box_loss."""
        losses = {"hm_loss": self.heatmap_loss(output["hm"], batch["hm"], counts[0])}
        if self.opt.box_weight > 0:
            losses["box_loss"] = box_loss(output, batch, self.opt.box_loss) / (counts[1] + 1e-4)
        return losses


class Ctdet(CtdetSpec, Task):
    """Object detection. Result rows are [x1, y1, x2, y2, score] in image pixels."""

    target_inputs: tuple[str, ...] = ("cls", "radius", "num_target_pixels")
    criterion = CtdetLoss
    can_augment = True
    unflip = {"hm": flip_maps, "wh": flip_maps}

    def __init__(self, opt: Options) -> None:
        super().__init__(opt)
        if opt.box_loss != "l1":
            self.criterion = CtdetBoxLoss
        if opt.box_samples == "gaussian":
            self.target_inputs = (*self.target_inputs, "box_extent")

    @property
    def max_per_image(self) -> int:
        """Return the number of detections that a result keeps: 100 as in the reference, or ``--K`` if it is larger."""
        return max(100, self.opt.K)

    def read_objects(self, annotations: list[dict], class_of: dict) -> dict[str, np.ndarray]:
        """Return ``boxes`` (n, 4) float32 [x1, y1, x2, y2] in image pixels and ``cls`` (n,) int64."""
        boxes = numbers([annotation["bbox"] for annotation in annotations], "bbox", (4,))
        boxes[:, 2:] += boxes[:, :2]
        cls = np.array([class_of[annotation["category_id"]] for annotation in annotations], dtype=np.int64)
        return {"boxes": boxes.astype(np.float32), "cls": cls}

    def encode(self, image: np.ndarray, objects: dict[str, np.ndarray], rng, train: bool) -> dict:
        """Crop an image and place its boxes in output coordinates (``CTDetDataset.__getitem__``).

        Returns:
            image (h, w, 3) uint8; color (3, 4) float32; for N = max_objs slots: reg_mask (N,) uint8, ind (N,) int64
            y * W + x of the center's cell, wh (N, 2) float32 in output pixels (or cat_spec_wh (N, 2C) and
            cat_spec_mask), reg (N, 2) float32, cls (N,) int64, radius (N,) int64, -1 in empty slots; with dense_wh
            the maps dense_wh and dense_wh_mask (2, h/4, w/4) instead of wh; with box_samples also box_extent (N, 2)
            int64; num_target_pixels int64; outside training also meta.
        """
        opt, (height, width) = self.opt, image.shape[:2]
        view = random_view(height, width, opt, rng) if train else full_view(height, width, opt)
        view.exact = opt.exact_boxes
        sample = warped_image(image, view, opt, rng if train else None)
        boxes = view.boxes_to_output(objects["boxes"][: opt.max_objs], width)
        slots = Slots.from_boxes(boxes, objects["cls"], view, opt)
        radius = box_radius(slots.sizes)
        extent = np.full_like(radius, 3 * opt.hm_gauss) if opt.mse_loss else radius
        sample["num_target_pixels"] = np.array([window_pixels(extent)])
        if opt.box_samples == "gaussian":
            box_extent = sample_extent(slots.sizes)
            sample["box_extent"] = slots.fill(box_extent, empty=-1)
            sample["num_target_pixels"] = np.array([window_pixels(extent), num_window_cells(box_extent)])
        sample["cls"] = slots.fill(slots.cls)
        sample["radius"] = slots.fill(radius, empty=-1)
        sample["reg_mask"] = slots.fill(np.ones(len(slots), dtype=np.uint8))
        sample["ind"] = slots.fill(slots.index(slots.cells))
        if opt.dense_wh:
            sample["dense_wh"], sample["dense_wh_mask"] = self._dense_sizes(slots, radius, view.output_size)
        elif opt.cat_spec_wh:
            by_class = np.zeros((2, len(slots), opt.num_classes, 2), dtype=np.float32)
            by_class[:, np.arange(len(slots)), slots.cls] = slots.sizes, np.ones_like(slots.sizes)
            sizes, mask = by_class.reshape(2, len(slots), 2 * opt.num_classes)
            sample["cat_spec_wh"], sample["cat_spec_mask"] = slots.fill(sizes), slots.fill(mask.astype(np.uint8))
        else:
            sample["wh"] = slots.fill(slots.sizes)
        if opt.reg_offset:
            sample["reg"] = slots.fill(slots.offsets)
        if opt.debug > 0 or not train:
            half = slots.sizes / 2
            rows = [slots.centers - half, slots.centers + half, np.ones((len(slots), 1)), slots.cls[:, None]]
            sample["meta"] = sample_meta(view, np.hstack(rows))
        return sample

    def _dense_sizes(self, slots: Slots, radius: np.ndarray, output_size) -> tuple[np.ndarray, np.ndarray]:
        """Return sizes written all over each object's Gaussian, and the highest heat of any class as their weight."""
        width, height = output_size
        hm = np.zeros((self.opt.num_classes, height, width), dtype=np.float32)
        dense_wh = np.zeros((2, height, width), dtype=np.float32)
        for cls, cell, size, r in zip(slots.cls, slots.cells, slots.sizes, radius, strict=True):
            draw_umich_gaussian(hm[cls], cell, r)
            draw_dense_reg(dense_wh, hm.max(axis=0), cell, size, r)
        return dense_wh, np.repeat(hm.max(axis=0)[None], 2, axis=0)

    def draw_targets(self, batch: dict) -> dict[str, Tensor]:
        """Return ``hm`` (B, C, h/4, w/4) float32: a Gaussian of peak 1 at each object's cell (section 3).

        With ``--box_samples gaussian`` also ``box_slot`` and ``box_weight`` (B, h/4, w/4) of the supervised cells.
        """
        opt, (batch_size, height, width) = self.opt, batch["image"].shape[:3]
        size = (batch_size, opt.num_classes, height // opt.down_ratio, width // opt.down_ratio)
        extent, sigma = gaussian_extent(batch["radius"], opt)
        pixels, *cells = batch["num_target_pixels"]
        targets = {"hm": draw_gaussians(size, batch["cls"], batch["ind"], extent, sigma, pixels)}
        if cells:
            samples = draw_box_samples((batch_size, *size[2:]), batch["wh"], batch["ind"], batch["box_extent"], *cells)
            targets["box_slot"], targets["box_weight"] = samples
        return targets

    def decode(self, output: dict[str, Tensor], flipped: bool = False) -> Tensor:
        """Decode the raw maps of the last stack to (B, K, 6) detections in output pixels; see ``ctdet_decode``."""
        output = {name: value.float() for name, value in output.items()}
        output["hm"] = output["hm"].sigmoid()
        if flipped:
            output = self.average_flipped(output)
        reg = output["reg"] if self.opt.reg_offset else None
        return ctdet_decode(output["hm"], output["wh"], reg, self.opt.cat_spec_wh, self.opt.K)

    @property
    def columns(self) -> list[str]:
        """Return the names of the columns of a detection."""
        return ["x1", "y1", "x2", "y2", "score", "class"]

    def to_image_coords(self, dets: Tensor, metas) -> list[dict[int, np.ndarray]]:
        """Transform detections (B, K, 6) to image pixels: ``{class from 1: (n, 5) float32}`` per image."""
        rows = zip(dets.cpu().numpy(), metas, strict=True)
        return [_rows_by_class(image, meta, self.opt.num_classes) for image, meta in rows]


def ctdet_decode(
    heat: Tensor, wh: Tensor, reg: Tensor | None = None, cat_spec_wh: bool = False, K: int = 100
) -> Tensor:
    """Decode peaks to boxes (section 4, "from points to bounding boxes").

    Args:
        heat: (B, C, H, W) scores; wh: (B, 2 or 2C, H, W); reg: (B, 2, H, W), None: the middle of the cell.
        cat_spec_wh: ``wh`` has a pair for every class.
        K: detections per image.

    Returns:
        (B, K, 6) rows [x1, y1, x2, y2, score, class from 0] in output pixels, best first.
    """
    scores, ind, cls, ys, xs = topk(peak_filter(heat), K)
    centers = torch.stack([xs, ys], dim=2)
    centers = centers + (gather_feat(reg, ind) if reg is not None else 0.5)
    sizes = gather_feat(wh, ind)
    if cat_spec_wh:
        pairs = sizes.view(*ind.shape, -1, 2)
        sizes = pairs.gather(2, cls[:, :, None, None].expand(-1, -1, 1, 2)).squeeze(2)
    return torch.cat(
        [centers - sizes / 2, centers + sizes / 2, scores[:, :, None], cls[:, :, None].to(heat.dtype)], dim=2
    )


def ctdet_post_process(dets: np.ndarray, c, s, h: int, w: int, num_classes: int) -> list[dict[int, list]]:
    """Transform detections (B, K, 6) of h x w maps to image pixels; ``c`` and ``s`` are center and scale per view.

    Returns one ``{class from 1: [[x1, y1, x2, y2, score], ...]}`` per image.
    """
    views = [{"c": center, "s": scale, "output_size": (w, h)} for center, scale in zip(c, s, strict=False)]
    images = [_rows_by_class(rows, view, num_classes) for rows, view in zip(dets, views, strict=False)]
    return [{cls: rows.tolist() for cls, rows in image.items()} for image in images]


def _rows_by_class(dets: np.ndarray, meta: dict, num_classes: int) -> dict[int, np.ndarray]:
    """Return detections (K, 6) of one view as rows (n, 5) float32 in image pixels, by class from 1."""
    rows = np.hstack([to_image_points(dets[:, :4], meta), dets[:, 4:5]]).astype(np.float32)
    return {cls + 1: rows[dets[:, 5] == cls] for cls in range(num_classes)}
