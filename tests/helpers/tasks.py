"""Random batches and outputs of every task."""

import numpy as np
import torch

from centernet.datasets.loader import collate, finish_batch
from centernet.options import Options
from centernet.opts import opts
from centernet.tasks import build_task
from centernet.tasks.ddd import DEFAULT_CALIB
from centernet.transforms import AugmentationRng

DATASETS = {"ctdet": "pascal", "multi_pose": "coco_hp", "exdet": "coco", "ddd": "kitti"}
SIZES = {"ddd": (310, 94)}  # width and height of images; 128 x 128 for other tasks


def options(task: str, *args: str) -> Options:
    """Return options of a task for an input of 128 x 128, or a third of KITTI's size."""
    size = ["--input_w", "320", "--input_h", "96"] if task == "ddd" else ["--input_res", "128"]
    return opts().parse([task, "--dataset", DATASETS.get(task, "pascal"), *size, *args])


def annotation(rng: np.random.Generator, size: tuple[int, int], categories: list[int]) -> dict:
    """Return a random annotation that fits every task."""
    width, height = size
    x, y = rng.uniform(0, 0.6 * width), rng.uniform(0, 0.6 * height)
    w, h = rng.uniform(0.1 * width, 0.35 * width), rng.uniform(0.15 * height, 0.35 * height)
    joints = np.stack([x + w * rng.random(17), y + h * rng.random(17), rng.integers(0, 3, 17)], axis=1)
    top, left, bottom, right = rng.random(4)
    return {
        "category_id": int(rng.choice(categories)),
        "bbox": [x, y, w, h],
        "keypoints": joints.reshape(-1).tolist(),
        "extreme_points": [[x + top * w, y], [x, y + left * h], [x + bottom * w, y + h], [x + w, y + right * h]],
        "depth": rng.uniform(3, 60),
        "dim": rng.uniform(1, 4, 3).tolist(),
        "alpha": rng.uniform(-3.1, 3.1),
    }


def random_batch(task: str, *args: str, seed: int = 0, images: int = 4, train: bool = True) -> tuple[dict, Options]:
    """Return finished targets of random objects on black images without augmentation, and the options.

    The second image has no object.
    """
    plain = ["--aug_ddd", "0"] if task == "ddd" else ["--not_rand_crop", "--no_color_aug"]
    plain += [] if task == "ddd" else ["--scale", "0", "--shift", "0", "--flip", "0"]
    opt = options(task, *plain, *args)
    built, rng, size = build_task(opt), np.random.default_rng(seed), SIZES.get(task, (128, 128))
    categories = [*opt.category_ids, 4, 9] if task == "ddd" else list(opt.category_ids)  # ignored ones of KITTI
    samples = []
    for k in range(images):
        annotations = [annotation(rng, size, categories) for _ in range(0 if k == 1 else 5)]
        objects = built.read_objects(annotations, {category: cls for cls, category in enumerate(opt.category_ids)})
        if task == "ddd":
            objects["calib"] = DEFAULT_CALIB
        draws = AugmentationRng(rng=np.random.default_rng(k))
        samples.append(built.encode(np.zeros((size[1], size[0], 3), np.uint8), objects, draws, train))
    return finish_batch(collate(samples), built), opt


def random_outputs(batch: dict, opt: Options, stacks: int = 1, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """Return raw maps of all heads that take gradients, one dict per stack."""
    generator = torch.Generator().manual_seed(seed)
    size = (len(batch["input"]), *(side // opt.down_ratio for side in batch["input"].shape[2:]))
    return [
        {
            head: (2 * torch.randn(size[0], channels, *size[1:], generator=generator)).requires_grad_()
            for head, channels in opt.heads.items()
        }
        for _ in range(stacks)
    ]
