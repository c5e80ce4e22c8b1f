"""Object detection: a box is the center point of an object and its size (sections 3 and 4 of the paper)."""

import numpy as np
import torch
from torch import Tensor, nn

from .. import visualization
from ..datasets.annotations import numbers
from ..datasets.augmentation import AugmentationRng, color_matrix, full_view, random_view
from ..ops.heatmap import draw_gaussians, window_pixels
from ..ops.image import (
    affine_transform,
    draw_dense_reg,
    draw_umich_gaussian,
    gaussian_radius,
    transform_preds,
)
from ..ops.losses import (
    NormRegL1Loss,
    RegL1Loss,
    RegLoss,
    RegWeightedL1Loss,
    dense_l1_loss,
    focal_loss,
    gather_feat,
)
from ..ops.nms import soft_nms
from ..ops.oracle import oracle_map
from ..ops.peaks import peak_filter, topk
from .option import Option, oracle

DEFAULT_DATASET = "coco"
TARGET_INPUTS = ("cls", "radius", "pixels")  # of a sample: what only ``draw_targets`` needs
IGNORED_OPTIONS = ()
OPTIONS = (
    Option("norm_wh", "size loss relative to the size", recipe=True),
    Option("dense_wh", "size learned all over an object's Gaussian", recipe=True),
    Option("cat_spec_wh", "a size of its own for every class", recipe=True),
    oracle("wh"),
    oracle("offset"),
)
CONFLICTS = (
    ("dense_wh", "cat_spec_wh"),
    ("norm_wh", "dense_wh"),
    ("norm_wh", "cat_spec_wh"),
    ("eval_oracle_wh", "dense_wh"),
    ("eval_oracle_wh", "cat_spec_wh"),
    ("eval_oracle_offset", "not_reg_offset"),
)
MAX_PER_IMAGE = 100  # detections that a result keeps, unless --K asks for more


def heads(opt) -> dict[str, int]:
    """hm: one map a class; wh: size in output pixels; reg: what rounding the center lost."""
    channels = {"hm": opt.num_classes, "wh": 2 if not opt.cat_spec_wh else 2 * opt.num_classes}
    if opt.reg_offset:
        channels["reg"] = 2
    return channels


def options_of_heads(heads: dict[str, int]) -> dict[str, bool]:
    """The options with which ``heads`` are those of a network."""
    classes = heads.get("hm", 0)
    return {"not_reg_offset": "reg" not in heads, "cat_spec_wh": classes > 1 and heads.get("wh") == 2 * classes}


# Targets


def read_objects(annotations: list[dict], class_of: dict) -> dict[str, np.ndarray]:
    """``boxes`` (n, 4) float32 [x1, y1, x2, y2] in image pixels and ``cls`` (n,) int64 of COCO-style annotations."""
    boxes = numbers([annotation["bbox"] for annotation in annotations], "bbox", (4,))
    boxes[:, 2:] += boxes[:, :2]
    cls = np.array([class_of[annotation["category_id"]] for annotation in annotations], dtype=np.int64)
    return {"boxes": boxes.astype(np.float32), "cls": cls}


def make_sample(
    image: np.ndarray, objects: dict[str, np.ndarray], opt, draws: AugmentationRng | None, train: bool
) -> dict:
    """Cut the image and bring the objects into output coordinates (``CTDetDataset.__getitem__``).

    Args:
        image: (H, W, 3) uint8, B, G, R.
        objects: what ``read_objects`` gives; slot k of the targets belongs to object k, also when others drop out.
        opt: finished options.
        draws: random numbers, needed in training.
        train: augment.

    Returns:
        image (h, w, 3) uint8; color (3, 4) float32; for N = max_objs slots: reg_mask (N,) uint8, ind (N,) int64,
        wh (N, 2) float32 in output pixels (or cat_spec_wh (N, 2C) and cat_spec_mask), reg (N, 2) float32,
        cls (N,) int64, radius (N,) int64, -1 in empty slots; with dense_wh the maps dense_wh and dense_wh_mask
        (2, h/4, w/4) instead of wh; pixels (1,) int64, how many are drawn; outside training also meta.
    """
    height, width = image.shape[:2]
    view = random_view(height, width, opt, draws) if train else full_view(height, width, opt)
    warped = view.warp(image)
    color = draws.color() if train and not opt.no_color_aug else None
    sample = {"image": warped, "color": color_matrix(warped, color, opt.mean, opt.std)}

    boxes = objects["boxes"][: opt.max_objs].copy()
    if view.flipped:
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]] - 1
    output_w, output_h = view.output_size
    boxes = affine_transform(boxes.reshape(-1, 2, 2), view.output_matrix()).astype(np.float32).reshape(-1, 4)
    boxes[:, 0::2] = boxes[:, 0::2].clip(0, output_w - 1)
    boxes[:, 1::2] = boxes[:, 1::2].clip(0, output_h - 1)
    sizes = boxes[:, 2:] - boxes[:, :2]
    slots = np.flatnonzero((sizes > 0).all(1))  # the slot of each object that still has an area
    boxes, sizes, cls = boxes[slots], sizes[slots], objects["cls"][: opt.max_objs][slots]
    radius = gaussian_radius((np.ceil(sizes[:, 1]), np.ceil(sizes[:, 0]))).astype(np.int64).clip(min=0)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    cells = centers.astype(np.int64)

    def filled(values: np.ndarray, empty: int = 0) -> np.ndarray:
        array = np.full((opt.max_objs, *values.shape[1:]), empty, dtype=values.dtype)
        array[slots] = values
        return array

    sample["cls"] = filled(cls)
    sample["radius"] = filled(radius, empty=-1)
    sample["pixels"] = np.array([window_pixels(np.full_like(radius, 3 * opt.hm_gauss) if opt.mse_loss else radius)])
    sample["reg_mask"] = filled(np.ones(len(slots), dtype=np.uint8))
    sample["ind"] = filled(cells[:, 1] * output_w + cells[:, 0])
    if opt.dense_wh:
        sample["dense_wh"], sample["dense_wh_mask"] = _dense_sizes(cls, cells, radius, sizes, view.output_size, opt)
    elif opt.cat_spec_wh:
        by_class = np.zeros((len(slots), opt.num_classes, 2), dtype=np.float32)
        of_class = np.zeros((len(slots), opt.num_classes, 2), dtype=np.uint8)
        by_class[np.arange(len(slots)), cls] = sizes
        of_class[np.arange(len(slots)), cls] = 1
        sample["cat_spec_wh"] = filled(by_class.reshape(len(slots), 2 * opt.num_classes))
        sample["cat_spec_mask"] = filled(of_class.reshape(len(slots), 2 * opt.num_classes))
    else:
        sample["wh"] = filled(sizes)
    if opt.reg_offset:
        sample["reg"] = filled((centers - cells).astype(np.float32))
    if opt.debug > 0 or not train:
        rows = [centers - sizes / 2, centers + sizes / 2, np.ones((len(slots), 1)), cls[:, None]]
        gt_det = np.hstack(rows).astype(np.float32) if len(slots) else np.zeros((1, 6), dtype=np.float32)
        sample["meta"] = {"c": view.center, "s": view.scale, "output_size": view.output_size, "gt_det": gt_det}
    return sample


def _dense_sizes(cls, cells, radius, sizes, output_size, opt) -> tuple[np.ndarray, np.ndarray]:
    """Sizes written all over each object's Gaussian, and the highest heat of any class as their weight."""
    width, height = output_size
    hm = np.zeros((opt.num_classes, height, width), dtype=np.float32)
    dense_wh = np.zeros((2, height, width), dtype=np.float32)
    for k in range(len(cls)):
        draw_umich_gaussian(hm[cls[k]], cells[k], radius[k])
        draw_dense_reg(dense_wh, hm.max(axis=0), cells[k], sizes[k], radius[k])
    return dense_wh, np.repeat(hm.max(axis=0)[None], 2, axis=0)


def draw_targets(batch: dict, opt) -> dict[str, Tensor]:
    """``hm`` (B, C, h/4, w/4) float32 of a batch on its device: a Gaussian of peak 1 at each object's cell."""
    batch_size, height, width = batch["image"].shape[:3]
    size = (batch_size, opt.num_classes, height // opt.down_ratio, width // opt.down_ratio)
    radius = batch["radius"]
    if opt.mse_loss:
        reach = torch.where(radius >= 0, 3 * opt.hm_gauss, -1)
        sigma = torch.full_like(radius, opt.hm_gauss, dtype=torch.float32)
    else:
        reach, sigma = radius, (2 * radius + 1) / 6
    return {"hm": draw_gaussians(size, batch["cls"], batch["ind"], reach, sigma, *batch["pixels"])}


# Loss


class CtdetLoss(nn.Module):
    """hm_weight * focal(hm) + wh_weight * size + off_weight * offset, averaged over the stacks (equation 4).

    forward(outputs, batch): ``outputs`` is what the network gives, a dict of raw maps a stack; ``batch`` holds the
    targets of ``make_sample`` and ``draw_targets``. Returns the loss and its unweighted parts by name.

    The parts are divided by the numbers of ``counts``: of the batch, or those that ``forward`` is given, of a larger
    batch of which this one is a piece (``tasks/__init__.py``).
    """

    names = ("loss", "hm_loss", "wh_loss", "off_loss")

    def __init__(self, opt) -> None:
        super().__init__()
        self.opt = opt
        self.reg = {"l1": RegL1Loss, "sl1": RegLoss}[opt.reg_loss]()
        self.wh = NormRegL1Loss() if opt.norm_wh else self.reg
        self.cat_spec_wh = RegWeightedL1Loss()

    def counts(self, batch: dict) -> Tensor:
        """Peaks (or pixels, with ``--mse_loss``), sizes, objects."""
        hm, sized = batch["hm"], self._sized(batch)
        num_hm = hm.new_tensor(hm.numel()) if self.opt.mse_loss else hm.eq(1).sum()
        return torch.stack([count.to(hm.dtype) for count in (num_hm, sized.sum(), batch["reg_mask"].sum())])

    @staticmethod
    def _sized(batch: dict) -> Tensor:
        return batch.get("dense_wh_mask", batch.get("cat_spec_mask", batch["reg_mask"]))

    def forward(
        self, outputs: list[dict[str, Tensor]], batch: dict, counts: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        opt = self.opt
        hm, sized = batch["hm"], self._sized(batch)
        num_hm, num_wh, num_reg = (self.counts(batch) if counts is None else counts).to(outputs[0]["hm"].dtype)
        zero = outputs[0]["hm"].new_zeros(())
        hm_loss, wh_loss, off_loss = zero, zero, zero
        for output in outputs:
            output = with_oracle(output, batch, opt)
            if opt.mse_loss:
                hm_loss = hm_loss + ((output["hm"] - hm) ** 2).sum() / num_hm
            else:
                hm_loss = hm_loss + focal_loss(output["hm"], hm, num_hm)
            if opt.wh_weight > 0:
                if opt.dense_wh:
                    wh_loss = wh_loss + dense_l1_loss(output["wh"], sized, batch["dense_wh"], num_wh)
                elif opt.cat_spec_wh:
                    wh_loss = wh_loss + self.cat_spec_wh(
                        output["wh"], sized, batch["ind"], batch["cat_spec_wh"], num_wh
                    )
                else:
                    wh_loss = wh_loss + self.wh(output["wh"], sized, batch["ind"], batch["wh"], num_wh)
            if opt.reg_offset and opt.off_weight > 0:
                off_loss = off_loss + self.reg(output["reg"], batch["reg_mask"], batch["ind"], batch["reg"], num_reg)
        hm_loss, wh_loss, off_loss = (part / len(outputs) for part in (hm_loss, wh_loss, off_loss))
        loss = opt.hm_weight * hm_loss + opt.wh_weight * wh_loss + opt.off_weight * off_loss
        return loss, dict(zip(self.names, (loss, hm_loss, wh_loss, off_loss), strict=True))


Loss = CtdetLoss


def with_oracle(output: dict[str, Tensor], batch: dict, opt) -> dict[str, Tensor]:
    """The raw maps with the ground truth in place of those that ``--eval_oracle_*`` names; for taking errors apart."""
    output = dict(output)
    if opt.eval_oracle_hm:
        output["hm"] = batch["hm"] if opt.mse_loss else torch.logit(batch["hm"])
    for option, head, target in (("eval_oracle_wh", "wh", "wh"), ("eval_oracle_offset", "reg", "reg")):
        if getattr(opt, option):
            output[head] = oracle_map(batch[target], batch["ind"], batch["reg_mask"], output[head].shape)
    return output


# Detections


def ctdet_decode(
    heat: Tensor, wh: Tensor, reg: Tensor | None = None, cat_spec_wh: bool = False, K: int = 100
) -> Tensor:
    """Peaks to boxes (section 4, "from points to bounding boxes").

    Args:
        heat: (B, C, H, W) scores; wh: (B, 2 or 2C, H, W); reg: (B, 2, H, W), None: the middle of the cell.
        cat_spec_wh: ``wh`` has a pair for every class.
        K: how many detections an image.

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


def decode(output: dict[str, Tensor], opt, mirrored: bool = False) -> Tensor:
    """Raw maps of the last stack to (B, K, 6) detections in output pixels, float32.

    With ``mirrored`` the maps are of 2B images, of which the second half are the first half mirrored.
    """
    output = {name: value.float() for name, value in output.items()}
    output["hm"] = output["hm"].sigmoid()
    if mirrored:
        output = average_mirrored(output)
    reg = output["reg"] if opt.reg_offset else None
    return ctdet_decode(output["hm"], output["wh"], reg, opt.cat_spec_wh, opt.K)


def columns(opt) -> list[str]:
    """What the numbers of a detection are."""
    return ["x1", "y1", "x2", "y2", "score", "class"]


def average_mirrored(output: dict[str, Tensor]) -> dict[str, Tensor]:
    """Maps (2B, ...) of B images and of their mirror images to maps (B, ...) (the flip test).

    Scores and sizes are averaged; offsets are those of the images themselves, as in the reference.
    """
    count = len(output["hm"]) // 2
    averaged = {name: value[:count] for name, value in output.items()}
    for name in ("hm", "wh"):
        averaged[name] = (averaged[name] + output[name][count:].flip(3)) / 2
    return averaged


def ctdet_post_process(dets: np.ndarray, c, s, h: int, w: int, num_classes: int) -> list[dict[int, list]]:
    """Detections (B, K, 6) of h x w maps to image pixels; ``c`` and ``s`` hold center and scale of each view.

    Returns one ``{class from 1: [[x1, y1, x2, y2, score], ...]}`` an image.
    """
    results = []
    for i in range(dets.shape[0]):
        corners = transform_preds(dets[i, :, :4].reshape(-1, 2), c[i], s[i], (w, h)).reshape(-1, 4)
        rows = np.hstack([corners, dets[i, :, 4:5]]).astype(np.float32)
        results.append({j + 1: rows[dets[i, :, 5] == j].tolist() for j in range(num_classes)})
    return results


def to_image_coords(dets: Tensor, metas: list[dict], opt) -> list[dict[int, np.ndarray]]:
    """Detections (B, K, 6) of a batch of views to image pixels: ``{class from 1: (n, 5) float32}`` an image.

    ``metas`` hold ``c``, ``s`` and ``output_size`` of each view, and ``scale`` if the image was resized before.
    """
    width, height = metas[0]["output_size"]
    centers, scales = [meta["c"] for meta in metas], [meta["s"] for meta in metas]
    images = ctdet_post_process(dets.cpu().numpy(), centers, scales, height, width, opt.num_classes)
    for image, meta in zip(images, metas, strict=True):
        for cls, rows in image.items():
            image[cls] = np.array(rows, dtype=np.float32).reshape(-1, 5)
            image[cls][:, :4] /= meta.get("scale", 1)
    return images


def post_process(dets: Tensor, metas: list[dict], opt) -> list[dict[int, np.ndarray]]:
    """Detections of a batch of whole images to results in image pixels (``merge_outputs``)."""
    return [merge_outputs([image], opt) for image in to_image_coords(dets, metas, opt)]


def detected_boxes(rows: np.ndarray) -> np.ndarray:
    """Boxes and scores (n, 5) of result rows."""
    return rows[:, :5]


def ground_truth_boxes(objects: dict[str, np.ndarray]) -> np.ndarray:
    """The boxes (n, 4) of objects."""
    return objects["boxes"]


def debug_images(batch: dict, output: dict[str, Tensor] | None, opt) -> dict[str, np.ndarray]:
    """What ``--debug`` shows of the first image of a batch: heat maps and boxes, predicted and true.

    Without ``output`` there is only what is true.
    """
    image = visualization.restore_image(batch["input"][0].cpu().numpy(), opt.mean, opt.std)
    theme, size = opt.debugger_theme, image.shape[:2]
    maps = {"gt_hm": batch["hm"][0]}
    boxes = {"out_gt": batch["meta"][0]["gt_det"].copy()}
    if output is not None:
        maps["pred_hm"] = output["hm"][0].detach().float().sigmoid()
        boxes["out_pred"] = decode(output, opt)[0].detach().cpu().numpy()
    images = {}
    for name, hm in maps.items():
        colored = visualization.heat_map_image(hm.cpu().numpy(), theme, size)
        images[name] = visualization.blend(image, colored, theme)
    for name, rows in boxes.items():
        rows[:, :4] *= opt.down_ratio
        images[name] = visualization.draw_boxes(image, rows, opt.class_names, opt.center_thresh, theme)
    return images


def network_images(image: np.ndarray, output: dict[str, Tensor], dets: Tensor, opt) -> dict[str, np.ndarray]:
    """What ``--debug 2`` shows of one test scale: the heat map, and the boxes before merging.

    ``image`` (h, w, 3) uint8 is the network's input, ``output`` its raw maps, ``dets`` (B, K, 6) what they decode
    to; of a batch the first is drawn.
    """
    hm = output["hm"][0].float().sigmoid().cpu().numpy()
    colored = visualization.heat_map_image(hm, opt.debugger_theme, image.shape[:2])
    rows = dets[0].cpu().numpy().copy()
    rows[:, :4] *= opt.down_ratio
    return {
        "pred_hm": visualization.blend(image, colored, opt.debugger_theme),
        "out_pred": visualization.draw_boxes(image, rows, opt.class_names, opt.center_thresh, opt.debugger_theme),
    }


def result_images(image: np.ndarray, results: dict[int, np.ndarray], opt, meta: dict) -> dict[str, np.ndarray]:
    """The image (H, W, 3) uint8 with the boxes of ``results`` whose score exceeds ``--vis_thresh``."""
    rows = [np.hstack([rows, np.full((len(rows), 1), cls - 1)]) for cls, rows in results.items()]
    boxes = np.concatenate(rows)
    return {"ctdet": visualization.draw_boxes(image, boxes, opt.class_names, opt.vis_thresh, opt.debugger_theme)}


def ground_truth_images(image: np.ndarray, objects: dict[str, np.ndarray], opt) -> dict[str, np.ndarray]:
    """The image (H, W, 3) uint8 with the boxes of ``objects`` (as ``read_objects`` gives them)."""
    rows = np.hstack([objects["boxes"], np.ones((len(objects["cls"]), 1)), objects["cls"][:, None]])
    return {"gt": visualization.draw_boxes(image, rows, opt.class_names, opt.vis_thresh, opt.debugger_theme)}


def merge_outputs(detections: list[dict], opt) -> dict[int, np.ndarray]:
    """Join the detections of several test scales of one image: ``{class from 1: (n, 5) float32}``.

    Soft-NMS runs when there is more than one scale, or with ``--nms``. It leaves copies of other rows where rows were
    discarded; they are removed, unless ``--keep_discarded`` asks for the reference's results, which have them. Then the
    best 100 are kept, or ``--K`` if that is more, and those that tie with the last of them.
    """
    results = {}
    for cls in range(1, opt.num_classes + 1):
        rows = [np.asarray(scale[cls], dtype=np.float32).reshape(-1, 5) for scale in detections]
        rows = np.concatenate(rows)
        if len(detections) > 1 or opt.nms:
            kept = soft_nms(rows, Nt=0.5, method=2)
            rows = rows if opt.keep_discarded else rows[kept]
        results[cls] = rows
    scores = np.hstack([rows[:, 4] for rows in results.values()])
    most = max(MAX_PER_IMAGE, opt.K)
    if len(scores) > most:
        limit = np.partition(scores, len(scores) - most)[len(scores) - most]
        results = {cls: rows[rows[:, 4] >= limit] for cls, rows in results.items()}
    return results
