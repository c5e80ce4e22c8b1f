"""Time a data loading worker against the reference's implementation, and against reading and warping alone.

    python benchmarks/loader.py [--images FOLDER --annotations FILE] [--size 512] [--batch 8]

Uses one core regardless of ``--threads``. Without ``--images`` it draws some of COCO's size. The sizes
transferred to the training process are printed as well. The reference's samples are checked against ours.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import common
import cv2
import numpy as np
import plain
import torch

from centernet.datasets import get_dataset
from centernet.datasets.loader import Samples, collate, finish_batch
from centernet.opts import opts
from centernet.tasks import build_task
from centernet.tasks.ctdet import Ctdet
from centernet.transforms import random_view, sample_rng


def main() -> None:
    """Print the tables."""
    parser = common.make_parser(__doc__)
    parser.add_argument("--images", type=Path, help="image directory; with --annotations")
    parser.add_argument("--annotations", type=Path, help="COCO-style file")
    parser.add_argument("--size", type=int, default=512, help="input size")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--num_images", type=int, default=64)
    args = parser.parse_args()
    args.threads = 1
    common.start(args)
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as folder:
        if args.images is None:
            draw(Path(folder) / "coco", args.num_images)
        else:
            link(Path(folder) / "coco", args.images, args.annotations)
        options = ["ctdet", "--dataset", "coco", "--data_path", folder, "--input_res", str(args.size)]
        opt = opts().parse(options)
        samples = Samples(get_dataset("coco")(build_task(opt), "train"), train=True)
        run(samples, args, torch.device("cpu"))


def run(samples: Samples, args, device: torch.device) -> None:
    """Check that the alternatives are equal, and time them."""
    dataset, opt = samples.dataset, samples.opt
    keys = [(1, k % len(dataset)) for k in range(args.num_images)]

    def read_and_warp(key: tuple[int, int]) -> np.ndarray:
        image = dataset.read_image(key[1])
        return plain.warp(image, random_view(*image.shape[:2], opt, sample_rng(opt.seed, *key)))

    def reference(key: tuple[int, int]) -> dict:
        return plain.sample(dataset.read_image(key[1]), dataset.read_objects(key[1]), opt, key)

    def in_batches(make: Callable, stack: Callable) -> Callable:
        return lambda: [stack([make(key) for key in keys[i : i + args.batch]]) for i in range(0, len(keys), args.batch)]

    finished = finish_batch(collate([samples[key] for key in keys[: args.batch]]), Ctdet(opt))
    stacked = _stack([reference(key) for key in keys[: args.batch]])
    for name, values in stacked.items():
        common.check(name, finished[name], values, 1e-6 if name != "input" else 3e-6)
    ours, theirs = (sum(v.nbytes for v in made.values()) / 1e6 for made in (samples[keys[0]], reference(keys[0])))
    print(f"MB transferred per sample: reference {theirs:.2f}, ours {ours:.2f}")
    ways = {
        "the reference's way": in_batches(reference, _stack),
        "ours": in_batches(samples.__getitem__, collate),
        "reading and warping alone": in_batches(read_and_warp, len),
        "reading alone": in_batches(lambda key: dataset.read_image(key[1]), len),
    }
    measured = common.take_turns(ways, args.repeats, device)
    common.show(f"{len(keys)} samples of {args.size} x {args.size}, 80 classes", measured, len(keys), "samples")


def _stack(samples: list[dict]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.stack([sample[name] for sample in samples])) for name in samples[0]}


def draw(folder: Path, count: int) -> None:
    """Write a dataset of 640 x 480 images with about 7 objects each, in COCO's layout."""
    rng = np.random.default_rng(0)
    (folder / "train2017").mkdir(parents=True)
    images, annotations = [], []
    ids = get_dataset("coco").category_ids
    for k in range(count):
        image = common.make_image(rng)
        cv2.imwrite(str(folder / "train2017" / f"{k}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 90])
        images.append({"id": k, "file_name": f"{k}.jpg", "width": 640, "height": 480})
        for _ in range(rng.poisson(7)):
            w, h = np.exp(rng.uniform(np.log(12), np.log(400), 2))
            x, y = rng.uniform(0, max(1, 640 - w)), rng.uniform(0, max(1, 480 - h))
            box = [round(float(v), 2) for v in (x, y, w, h)]
            entry = {"id": len(annotations), "image_id": k, "category_id": int(rng.choice(ids)), "bbox": box}
            annotations.append({**entry, "area": box[2] * box[3], "iscrowd": 0})
    categories = [{"id": i, "name": str(i)} for i in ids]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations").mkdir()
    (folder / "annotations" / "instances_train2017.json").write_text(json.dumps(content))


def link(folder: Path, images: Path, annotations: Path) -> None:
    """Link real images to where COCO has them."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "train2017").symlink_to(images.resolve())
    (folder / "annotations" / "instances_train2017.json").symlink_to(annotations.resolve())


if __name__ == "__main__":
    main()
