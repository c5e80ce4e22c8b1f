"""Where images and annotations come from, and the making of samples and batches."""

from typing import TYPE_CHECKING

import numpy as np

from ..errors import UserError
from ..registry import Registry

if TYPE_CHECKING:
    from .base import CocoStyleDataset

# One line per dataset: its name and where its class is, which is imported on first use.
DATASETS: "Registry[type[CocoStyleDataset]]" = Registry(
    {
        "coco": "centernet.datasets.coco:COCO",
        "pascal": "centernet.datasets.pascal:PascalVOC",
        "custom": "centernet.datasets.custom:Custom",
        "sample": "centernet.datasets.synthetic.shapes:SyntheticShapes",
        "coco_hp": "centernet.datasets.coco_hp:COCOHP",
        "sample_hp": "centernet.datasets.synthetic.poses:SyntheticPoses",
        "sample_ex": "centernet.datasets.synthetic.polygons:SyntheticPolygons",
        "kitti": "centernet.datasets.kitti:KITTI",
        "sample_ddd": "centernet.datasets.synthetic.streets:SyntheticStreets",
    }
)


def get_dataset(name: str) -> "type[CocoStyleDataset]":
    """Return the class of a dataset; raise UserError for an unknown name."""
    if name not in DATASETS:
        raise UserError(f"--dataset {name}: there is no such dataset; choose from {', '.join(DATASETS)}")
    return DATASETS[name]


def read_dataset(opt, split: str, processes) -> "CocoStyleDataset":
    """A split of ``--dataset``, which one process of each machine reads for all (``engine.processes.Processes``)."""
    dataset = processes.load_once_per_node(lambda: get_dataset(opt.dataset)(opt, split))
    dataset.opt = opt  # this process's, in which some things are settled later
    return dataset


def build_sample(image, annotations, opt, draws, split="train", calib=None) -> dict:
    """One finished sample from an image, its annotations and explicit random draws.

    Runs the code of the training for one image, so that a sample can be replayed and checked.

    Args:
        image: (H, W, 3) uint8, B, G, R.
        annotations: list of dicts as in the annotation file.
        opt: finished options.
        draws: ``{"draws": [[function, value], ...], "color": {"order", "alpha", "lighting"} or None}``; None or empty
            outside training.
        split: ``train`` augments; anything else is the whole image.
        calib: (3, 4) camera matrix, for tasks that need one.

    Returns:
        The arrays of the reference's ``__getitem__`` under its names (input, hm, reg_mask, ind, wh, reg, ..., meta).
    """
    import torch

    from ..tasks import get_task
    from .augmentation import replayed_rng
    from .loader import collate, finish_batch

    task = get_task(opt.task)
    objects = task.read_objects(annotations, {category: k for k, category in enumerate(opt.category_ids)})
    if calib is not None:
        objects["calib"] = np.asarray(calib, dtype=np.float32)
    train = split == "train"
    sample = task.make_sample(image, objects, opt, replayed_rng(draws) if train else None, train)
    meta = sample.get("meta")
    with torch.no_grad():
        batch = finish_batch(collate([sample]), task, opt)
    inner = {"image", "color", "meta", *task.TARGET_INPUTS}  # what the worker sends instead of input and maps
    finished = {name: value[0].numpy() for name, value in batch.items() if name not in inner}
    if meta is not None:
        finished["meta"] = meta
    return finished
