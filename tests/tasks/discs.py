"""A fifth task in one file, as docs/DEVELOP.md describes it: an object is a disc around the center of its box."""

import numpy as np
import torch

from centernet.ops.heatmap import draw_gaussians
from centernet.ops.losses import RegL1Loss, gather_feat
from centernet.ops.peaks import peak_filter, topk
from centernet.tasks.base import Task, flip_maps, to_image_points
from centernet.tasks.criterion import Criterion
from centernet.tasks.encoding import Slots, warped_image
from centernet.tasks.option import Option, loss_weight
from centernet.transforms import full_view, random_view


class DiscLoss(Criterion):
    names = ("loss", "hm_loss", "disc_loss")
    weights = {"hm_loss": "hm_weight", "disc_loss": "disc_weight"}

    def counts(self, batch):
        return [batch["hm"].eq(1).sum(), batch["reg_mask"].sum()]

    def stack_losses(self, output, batch, counts):
        losses = {"hm_loss": self.heatmap_loss(output["hm"], batch["hm"], counts[0])}
        if self.opt.disc_weight > 0:
            target = (batch["reg_mask"], batch["ind"], batch["disc"])
            losses["disc_loss"] = RegL1Loss()(output["disc"], *target, counts[1])
        return losses


class Discs(Task):
    name, default_dataset, annotations = "discs", "pascal", "ctdet"
    options = (
        loss_weight("disc_weight", "the radius"),
        Option("disc_reach", "half the side of the heatmap's Gaussians, in output pixels", 1, int, low=1, recipe=True),
        # --wh still means --wh_weight, as in the reference.
        Option("wh_least", "radius of the smallest disc that is reported, in output pixels", 0.0, low=0, new=True),
    )
    ignored_options = (
        *("mse_loss", "hm_gauss", "reg_loss", "off_weight", "wh_weight", "not_reg_offset", "eval_oracle_hm"),
        *("box_loss", "box_samples", "box_weight"),
    )
    target_inputs = ("cls", "reach")
    criterion = DiscLoss
    unflip = {"hm": flip_maps, "disc": flip_maps}
    columns = ["x", "y", "radius", "score", "class"]

    @staticmethod
    def head_channels(opt):
        return {"hm": opt.num_classes, "disc": 1}

    def read_objects(self, annotations, class_of):
        boxes = np.array([annotation["bbox"] for annotation in annotations], dtype=np.float32).reshape(-1, 4)
        cls = np.array([class_of[annotation["category_id"]] for annotation in annotations], dtype=np.int64)
        radius = boxes[:, 2:].max(axis=1, keepdims=True) / 2
        center = boxes[:, :2] + boxes[:, 2:] / 2
        return {"boxes": np.hstack([center - radius, center + radius]), "cls": cls}

    def encode(self, image, objects, rng, train):
        opt, (height, width) = self.opt, image.shape[:2]
        view = random_view(height, width, opt, rng) if train else full_view(height, width, opt)
        sample = warped_image(image, view, opt, rng if train else None)
        boxes = view.boxes_to_output(objects["boxes"][: opt.max_objs], width)
        slots = Slots.from_boxes(boxes, objects["cls"], view, opt)
        sample["cls"] = slots.fill(slots.cls)
        sample["reach"] = slots.fill(np.full(len(slots), opt.disc_reach), empty=-1)
        sample["ind"] = slots.fill(slots.index(slots.cells))
        sample["disc"] = slots.fill(slots.sizes.max(axis=1, keepdims=True) / 2)
        sample["reg_mask"] = slots.fill(np.ones(len(slots), dtype=np.uint8))
        if not train:
            sample["meta"] = {"c": view.center, "s": view.scale, "output_size": view.output_size}
        return sample

    def draw_targets(self, batch):
        size = (len(batch["cls"]), self.opt.num_classes, self.opt.output_h, self.opt.output_w)
        return {"hm": draw_gaussians(size, batch["cls"], batch["ind"], batch["reach"], batch["reach"] / 3 + 1)}

    def decode(self, output, flipped=False):
        output = {"hm": output["hm"].sigmoid(), "disc": output["disc"]}
        output = self.average_flipped(output) if flipped else output
        scores, ind, cls, ys, xs = topk(peak_filter(output["hm"]), self.opt.K)
        radius = gather_feat(output["disc"], ind)[:, :, 0]
        scores = torch.where(radius < self.opt.wh_least, 0.0, scores)
        return torch.stack([xs + 0.5, ys + 0.5, radius, scores, cls.float()], dim=2)

    def to_image_coords(self, dets, metas):
        images = []
        for rows, meta in zip(dets.cpu().numpy(), metas, strict=True):
            boxes = to_image_points(np.hstack([rows[:, :2] - rows[:, 2:3], rows[:, :2] + rows[:, 2:3]]), meta)
            found = np.hstack([boxes, rows[:, 3:4]])
            images.append({k + 1: found[rows[:, 4] == k] for k in range(self.opt.num_classes)})
        return images
