"""Replay of single samples, for comparison with recorded ones."""

from typing import Any

import numpy as np
import torch

from ..tasks import build_task
from ..transforms import replayed_rng
from .loader import collate, finish_batch


def build_sample(
    image: np.ndarray,
    annotations: list[dict[str, Any]],
    opt: Any,
    draws: dict[str, Any] | None,
    split: str = "train",
    calib: np.ndarray | list | None = None,
) -> dict[str, Any]:
    """Return a finished sample of an image, its annotations and explicit random draws, by the code of the training.

    Args:
        image: (H, W, 3) uint8, BGR.
        annotations: list of dicts as in the annotation file.
        opt: finished ``Options``.
        draws: ``{"draws": [[function, value], ...], "color": {"order", "alpha", "lighting"} or None}``; None or empty
            outside training.
        split: ``train`` augments; anything else is the whole image.
        calib: (3, 4) camera matrix, for tasks that need one.

    Returns:
        The arrays of the reference's ``__getitem__`` under its names (input, hm, reg_mask, ind, wh, reg, ..., meta).
    """
    task = build_task(opt)
    objects = task.read_objects(annotations, {category: k for k, category in enumerate(opt.category_ids)})
    if calib is not None:
        objects["calib"] = np.asarray(calib, dtype=np.float32)
    train = split == "train"
    sample = task.encode(image, objects, replayed_rng(draws or {}) if train else None, train)
    with torch.no_grad():
        batch = finish_batch(collate([sample]), task)
    intermediate = {"image", "color", "meta", *task.target_inputs}  # replaced by ``input`` and the target maps
    finished = {name: value[0].numpy() for name, value in batch.items() if name not in intermediate}
    return {**finished, "meta": sample["meta"]} if "meta" in sample else finished
