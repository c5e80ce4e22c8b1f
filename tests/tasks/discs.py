"""A fifth task in one file, as docs/DEVELOP.md describes it: an object is a disc around the center of its box."""

import numpy as np
import torch
from torch import nn

from centernet import visualization
from centernet.datasets.augmentation import color_matrix, full_view, random_view
from centernet.ops.heatmap import draw_gaussians
from centernet.ops.image import affine_transform, transform_preds
from centernet.ops.losses import FocalLoss, RegL1Loss, clamped_sigmoid, gather_feat
from centernet.ops.peaks import peak_filter, topk
from centernet.tasks.option import Option, loss_weight

DEFAULT_DATASET = "pascal"
ANNOTATIONS = "ctdet"
TARGET_INPUTS = ("cls", "reach")
IGNORED_OPTIONS = (
    "mse_loss",
    "hm_gauss",
    "reg_loss",
    "off_weight",
    "wh_weight",
    "not_reg_offset",
    "nms",
    "eval_oracle_hm",
)
OPTIONS = (
    loss_weight("disc_weight", "the radius"),
    Option("disc_reach", "half the side of the heat map's Gaussians, in output pixels", 1, int, low=1, recipe=True),
    # --wh goes on meaning --wh_weight, as in the reference.
    Option("wh_least", "radius of the smallest disc that is reported, in output pixels", 0.0, low=0, new=True),
)


def heads(opt):
    return {"hm": opt.num_classes, "disc": 1}


def options_of_heads(heads):
    return {}


def read_objects(annotations, class_of):
    boxes = np.array([annotation["bbox"] for annotation in annotations], dtype=np.float32).reshape(-1, 4)
    cls = np.array([class_of[annotation["category_id"]] for annotation in annotations], dtype=np.int64)
    return {"center": boxes[:, :2] + boxes[:, 2:] / 2, "radius": boxes[:, 2:].max(axis=1) / 2, "cls": cls}


def make_sample(image, objects, opt, draws, train):
    height, width = image.shape[:2]
    view = random_view(height, width, opt, draws) if train else full_view(height, width, opt)
    warped = view.warp(image)
    center = objects["center"].copy()
    if view.flipped:
        center[:, 0] = width - center[:, 0] - 1
    matrix = view.output_matrix()
    center = affine_transform(center[:, None], matrix)[:, 0]
    cells = np.floor(center).astype(np.int64)
    slots = np.flatnonzero(((cells >= 0) & (cells < view.output_size)).all(1))[: opt.max_objs]

    def filled(values, empty=0):
        array = np.full((opt.max_objs, *values.shape[1:]), empty, dtype=values.dtype)
        array[: len(slots)] = values
        return array

    sample = {"image": warped, "color": color_matrix(warped, None, opt.mean, opt.std)}
    sample["cls"] = filled(objects["cls"][slots])
    sample["reach"] = filled(np.full(len(slots), opt.disc_reach), empty=-1)
    sample["ind"] = filled(cells[slots, 1] * view.output_size[0] + cells[slots, 0])
    sample["disc"] = filled((objects["radius"][slots] * np.hypot(*matrix[:, 0])).astype(np.float32)[:, None])
    sample["reg_mask"] = filled(np.ones(len(slots), dtype=np.uint8))
    if not train:
        sample["meta"] = {"c": view.center, "s": view.scale, "output_size": view.output_size}
    return sample


def draw_targets(batch, opt):
    batch_size, height, width = batch["image"].shape[:3]
    size = (batch_size, opt.num_classes, height // opt.down_ratio, width // opt.down_ratio)
    return {"hm": draw_gaussians(size, batch["cls"], batch["ind"], batch["reach"], batch["reach"] / 3 + 1)}


class Loss(nn.Module):
    names = ("loss", "hm_loss", "disc_loss")

    def __init__(self, opt):
        super().__init__()
        self.opt, self.focal, self.l1 = opt, FocalLoss(), RegL1Loss()

    def counts(self, batch):
        return torch.stack([batch["hm"].eq(1).sum(), batch["reg_mask"].sum()]).float()

    def forward(self, outputs, batch, counts=None):
        num_hm, num_disc = self.counts(batch) if counts is None else counts
        hm_loss, disc_loss = torch.zeros(()), torch.zeros(())
        for output in outputs:
            hm_loss = hm_loss + self.focal(clamped_sigmoid(output["hm"]), batch["hm"], num_hm)
            if self.opt.disc_weight > 0:
                disc = self.l1(output["disc"], batch["reg_mask"], batch["ind"], batch["disc"], num_disc)
                disc_loss = disc_loss + disc
        loss = self.opt.hm_weight * hm_loss + self.opt.disc_weight * disc_loss
        return loss, {"loss": loss, "hm_loss": hm_loss, "disc_loss": disc_loss}


def with_oracle(output, batch, opt):
    return output


def decode(output, opt, mirrored=False):
    hm = output["hm"].sigmoid()
    if mirrored:
        hm = (hm[: len(hm) // 2] + hm[len(hm) // 2 :].flip(3)) / 2
    scores, ind, cls, ys, xs = topk(peak_filter(hm), opt.K)
    radius = gather_feat(output["disc"][: len(hm)], ind)[:, :, 0]
    scores = torch.where(radius < opt.wh_least, 0.0, scores)
    return torch.stack([xs + 0.5, ys + 0.5, radius, scores, cls.float()], dim=2)


def columns(opt):
    return ["x", "y", "radius", "score", "class"]


def to_image_coords(dets, metas, opt):
    images = []
    for rows, meta in zip(dets.cpu().numpy(), metas, strict=True):
        corners = np.concatenate([rows[:, :2] - rows[:, 2:3], rows[:, :2] + rows[:, 2:3]], axis=1)
        corners = transform_preds(corners.reshape(-1, 2), meta["c"], meta["s"], meta["output_size"]).reshape(-1, 4)
        found = np.concatenate([corners / meta.get("scale", 1), rows[:, 3:4]], axis=1).astype(np.float32)
        images.append({k + 1: found[rows[:, 4] == k] for k in range(opt.num_classes)})
    return images


def merge_outputs(detections, opt):
    return {k: np.concatenate([image[k] for image in detections]) for k in detections[0]}


def post_process(dets, metas, opt):
    return [merge_outputs([image], opt) for image in to_image_coords(dets, metas, opt)]


def detected_boxes(rows):
    return rows


def ground_truth_boxes(objects):
    return np.concatenate(
        [objects["center"] - objects["radius"][:, None], objects["center"] + objects["radius"][:, None]], axis=1
    )


def debug_images(batch, output, opt):
    return {}


def ground_truth_images(image, objects, opt):
    return {}


def network_images(image, output, dets, opt):
    return {}


def result_images(image, results, opt, meta):
    rows = np.concatenate([np.hstack([rows, np.full((len(rows), 1), k - 1)]) for k, rows in results.items()])
    return {"discs": visualization.draw_boxes(image, rows, opt.class_names, opt.vis_thresh, opt.debugger_theme)}
