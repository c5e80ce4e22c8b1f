"""The reference's algorithms, step by step, as a baseline for speed and results."""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from centernet.ops.image import (
    affine_transform,
    draw_umich_gaussian,
    gaussian_radius,
    get_affine_transform,
    transform_preds,
)
from centernet.transforms import EIG_VAL, EIG_VEC, GRAY, View, random_view, sample_rng


def sample(image: np.ndarray, objects: dict[str, np.ndarray], opt, key: tuple[int, int]) -> dict[str, np.ndarray]:
    """Return a finished training sample: a float image, colored step by step, and heatmaps, all in numpy."""
    draws = sample_rng(opt.seed, *key)
    height, width = image.shape[:2]
    view = random_view(height, width, opt, draws)
    pixels = warp(image, view).astype(np.float32) / 255.0
    _jitter(pixels, draws.color())
    pixels = ((pixels - opt.mean) / opt.std).astype(np.float32).transpose(2, 0, 1)

    output_w, output_h = opt.output_w, opt.output_h
    hm = np.zeros((opt.num_classes, output_h, output_w), dtype=np.float32)
    wh, reg = np.zeros((opt.max_objs, 2), np.float32), np.zeros((opt.max_objs, 2), np.float32)
    ind, reg_mask = np.zeros(opt.max_objs, np.int64), np.zeros(opt.max_objs, np.uint8)
    matrix = get_affine_transform(view.center, view.scale, 0, (output_w, output_h))
    for k in range(min(len(objects["cls"]), opt.max_objs)):
        box, cls = objects["boxes"][k].copy(), int(objects["cls"][k])
        if view.flipped:
            box[[0, 2]] = width - box[[2, 0]] - 1
        box[:2] = affine_transform(box[:2], matrix)
        box[2:] = affine_transform(box[2:], matrix)
        box[[0, 2]] = np.clip(box[[0, 2]], 0, output_w - 1)
        box[[1, 3]] = np.clip(box[[1, 3]], 0, output_h - 1)
        h, w = box[3] - box[1], box[2] - box[0]
        if h > 0 and w > 0:
            radius = max(0, int(gaussian_radius((np.ceil(h), np.ceil(w)))))
            center = np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2], dtype=np.float32)
            cell = center.astype(np.int32)
            draw_umich_gaussian(hm[cls], cell, radius)
            wh[k] = w, h
            ind[k] = cell[1] * output_w + cell[0]
            reg[k] = center - cell
            reg_mask[k] = 1
    return {"input": pixels, "hm": hm, "reg_mask": reg_mask, "ind": ind, "wh": wh, "reg": reg}


def warp(image: np.ndarray, view: View) -> np.ndarray:
    """Return the part of an image inside a view."""
    if view.flipped:
        image = image[:, ::-1, :]
    matrix = get_affine_transform(view.center, view.scale, 0, view.input_size)
    return cv2.warpAffine(image, matrix, view.input_size, flags=cv2.INTER_LINEAR)


def _jitter(image: np.ndarray, color: dict) -> None:
    gray = (image @ GRAY.astype(np.float32)).astype(np.float32)
    mean = gray.mean()
    for name in color["order"]:
        alpha = np.float32(color["alpha"][name])
        image *= alpha
        if name == "contrast":
            image += mean * (1 - alpha)
        elif name == "saturation":
            image += (gray * (1 - alpha))[:, :, None]
    image += EIG_VEC @ (EIG_VAL * color["lighting"]).astype(np.float32)


def heat_maps(size: tuple[int, int, int, int], cls: Tensor, ind: Tensor, radius: Tensor) -> np.ndarray:
    """Draw the heatmaps of a batch one object at a time; ``radius`` -1: no object."""
    hm = np.zeros(size, dtype=np.float32)
    for b, k in np.argwhere(radius.numpy() >= 0):
        place = int(ind[b, k])
        draw_umich_gaussian(hm[b, int(cls[b, k])], (place % size[3], place // size[3]), int(radius[b, k]))
    return hm


def loss(output: dict[str, Tensor], batch: dict[str, Tensor], opt) -> Tensor:
    """Return the detection loss, with a pass over the whole heatmap for every step."""
    pred = torch.clamp(output["hm"].sigmoid(), min=1e-4, max=1 - 1e-4)
    positive, negative = batch["hm"].eq(1).float(), batch["hm"].lt(1).float()
    weights = torch.pow(1 - batch["hm"], 4)
    of_positive = (torch.log(pred) * torch.pow(1 - pred, 2) * positive).sum()
    of_negative = (torch.log(1 - pred) * torch.pow(pred, 2) * weights * negative).sum()
    hm_loss = -(of_positive + of_negative) / positive.sum().clamp(min=1)

    def at_objects(name: str) -> Tensor:
        ind, mask = batch["ind"], batch["reg_mask"]
        maps = output[name].permute(0, 2, 3, 1).contiguous().view(len(ind), -1, 2)
        found = maps.gather(1, ind.unsqueeze(2).expand(-1, -1, 2))
        mask = mask.unsqueeze(2).expand_as(found).float()
        return F.l1_loss(found * mask, batch[name] * mask, reduction="sum") / (mask.sum() + 1e-4)

    return opt.hm_weight * hm_loss + opt.wh_weight * at_objects("wh") + opt.off_weight * at_objects("reg")


def detect(model, image: np.ndarray, opt, device: torch.device) -> dict[int, np.ndarray]:
    """Return the detections of one image: prepared in float64, decoded step by step, class by class."""
    height, width = image.shape[:2]
    center, scale = np.array([width / 2.0, height / 2.0], dtype=np.float32), max(height, width) * 1.0
    size = (opt.input_w, opt.input_h)
    matrix = get_affine_transform(center, scale, 0, size)
    resized = cv2.resize(image, (width, height))
    cut = cv2.warpAffine(resized, matrix, size, flags=cv2.INTER_LINEAR)
    cut = ((cut / 255.0 - opt.mean) / opt.std).astype(np.float32)
    x = torch.from_numpy(cut.transpose(2, 0, 1)[None].copy()).to(device)
    with torch.no_grad():
        output = model(x)[-1]
        heat = output["hm"].sigmoid_()
        heat = heat * (F.max_pool2d(heat, 3, stride=1, padding=1) == heat).float()
        batch, classes, rows, columns = heat.shape
        scores, inds = torch.topk(heat.view(batch, classes, -1), opt.K)
        score, place = torch.topk(scores.view(batch, -1), opt.K)
        cls = torch.div(place, opt.K, rounding_mode="floor")
        ind = inds.view(batch, -1).gather(1, place)
        at = {
            name: output[name]
            .permute(0, 2, 3, 1)
            .contiguous()
            .view(batch, -1, 2)
            .gather(1, ind[:, :, None].expand(-1, -1, 2))
            for name in ("reg", "wh")
        }
        xs = (ind % columns).float() + at["reg"][:, :, 0]
        ys = torch.div(ind, columns, rounding_mode="floor").float() + at["reg"][:, :, 1]
        half = at["wh"] / 2
        sides = [xs - half[..., 0], ys - half[..., 1], xs + half[..., 0], ys + half[..., 1]]
        dets = torch.stack([*sides, score, cls.float()], dim=2)[0].cpu().numpy()
    for corner in (slice(0, 2), slice(2, 4)):
        dets[:, corner] = transform_preds(dets[:, corner], center, scale, (opt.output_w, opt.output_h))
    return {j + 1: dets[dets[:, 5] == j, :5].astype(np.float32) for j in range(opt.num_classes)}


def voc_ap(ground_truth: list, detections: list, name: str) -> float:
    """Return the AP of a class with the 2007 metric: through text, detection by detection.

    Arguments as for ``evaluation.voc.evaluate_class``.
    """
    lines = [
        f"{i} {score:.3f} {x1 + 1:.1f} {y1 + 1:.1f} {x2 + 1:.1f} {y2 + 1:.1f}\n"
        for i, rows in enumerate(detections)
        for x1, y1, x2, y2, score in rows.tolist()
    ]
    objects, positives = {}, 0
    for i, of_image in enumerate(ground_truth):
        own = [o for o in of_image if o["name"] == name]
        difficult = np.array([o["difficult"] for o in own], dtype=bool)
        positives += int((~difficult).sum())
        boxes = np.array([o["bbox"] for o in own], dtype=float)
        objects[str(i)] = {"bbox": boxes, "difficult": difficult, "det": [False] * len(own)}
    split = [line.strip().split(" ") for line in lines]
    ids = [words[0] for words in split]
    order = np.argsort(-np.array([float(words[1]) for words in split]), kind="stable")
    found = np.array([[float(word) for word in words[2:]] for words in split])[order]
    ids = [ids[k] for k in order]
    tp, fp = np.zeros(len(ids)), np.zeros(len(ids))
    for d in range(len(ids)):
        own, box = objects[ids[d]], found[d]
        best, truth = -np.inf, own["bbox"]
        if truth.size > 0:
            left, top = np.maximum(truth[:, 0], box[0]), np.maximum(truth[:, 1], box[1])
            right, bottom = np.minimum(truth[:, 2], box[2]), np.minimum(truth[:, 3], box[3])
            common = np.maximum(right - left + 1.0, 0.0) * np.maximum(bottom - top + 1.0, 0.0)
            union = (
                (box[2] - box[0] + 1.0) * (box[3] - box[1] + 1.0)
                + (truth[:, 2] - truth[:, 0] + 1.0) * (truth[:, 3] - truth[:, 1] + 1.0)
                - common
            )
            overlaps = common / union
            best, which = np.max(overlaps), np.argmax(overlaps)
        if best > 0.5:
            if not own["difficult"][which]:
                if not own["det"][which]:
                    tp[d], own["det"][which] = 1.0, True
                else:
                    fp[d] = 1.0
        else:
            fp[d] = 1.0
    tp, fp = np.cumsum(tp), np.cumsum(fp)
    recall, precision = tp / float(positives), tp / np.maximum(tp + fp, np.finfo(np.float64).eps)
    ap = 0.0
    for t in np.arange(0.0, 1.1, 0.1):
        ap += (0 if np.sum(recall >= t) == 0 else np.max(precision[recall >= t])) / 11.0
    return ap
