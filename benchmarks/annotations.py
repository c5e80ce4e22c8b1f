"""Read an annotation file of COCO's size: seconds, memory, and what each worker adds.

    python benchmarks/annotations.py [--images 118287] [--objects 860001]

Times are processor time. The file is made first, with outlines, so that it is as large as COCO's. The plain way keeps
the content of the JSON file as Python objects, as the reference's annotation library does. A worker is a forked process
that asks for every image once; counted is the memory that it then has for itself (Linux only).
"""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import common
import numpy as np

from centernet.datasets import get_dataset
from centernet.opts import opts
from centernet.tasks import build_task


def main() -> None:
    """Print the table."""
    parser = common.make_parser(__doc__)
    parser.add_argument("--images", type=int, default=118287)
    parser.add_argument("--objects", type=int, default=860001)
    parser.set_defaults(repeats=1)
    args = parser.parse_args()
    common.start(args)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "coco" / "annotations" / "instances_train2017.json"
        write(path, args.images, args.objects)
        print(f"{path.stat().st_size / 1e6:.0f} MB, {args.images} images, {args.objects} objects")
        opt = opts().parse(["ctdet", "--dataset", "coco", "--data_path", folder])
        print(f"{'':24}{'seconds':>10}{'peak MiB':>18}{'MiB kept':>12}{'MiB per worker':>24}")
        results = []
        for name, load in (
            ("Python objects", lambda: Plain(path)),
            ("ours", lambda: get_dataset("coco")(build_task(opt), "train")),
        ):
            for _ in range(args.repeats):
                *numbers, digest = in_a_fork(lambda load=load: measure(load))
                results.append(digest)
                print(f"{name:24}{numbers[0]:10.1f}{numbers[1]:18.0f}{numbers[2]:12.0f}{numbers[3]:24.1f}", flush=True)
        common.check("number of objects and sum of boxes", results[-1], results[0], 1e-6)


class Plain:
    """Annotations as lists and dicts."""

    def __init__(self, path: Path) -> None:
        content = json.loads(path.read_bytes())
        self.images = content["images"]
        self.annotations: dict[int, list] = {image["id"]: [] for image in self.images}
        for annotation in content["annotations"]:
            self.annotations[annotation["image_id"]].append(annotation)

    def __len__(self) -> int:
        return len(self.images)

    def boxes(self, index: int) -> np.ndarray:
        """Return (n, 4) corners."""
        image = self.images[index]
        boxes = [annotation["bbox"] for annotation in self.annotations[image["id"]]]
        boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return boxes if image["file_name"] else None


def measure(load: Callable) -> list[float]:
    """Return seconds, peak MiB, kept MiB, MiB of a worker, number of objects and sum of their boxes."""
    dataset = None

    def run() -> None:
        nonlocal dataset
        dataset = load()

    before = common.resident()
    seconds, peak = common.once(run)
    kept = common.resident() - before

    def ask() -> list[float]:
        count, total = 0, 0.0
        for index in range(len(dataset)):
            if isinstance(dataset, Plain):
                boxes = dataset.boxes(index)
            else:
                assert dataset.file_names[index] and dataset.image_ids[index] is not None
                boxes = dataset.read_objects(index)["boxes"]
            count, total = count + len(boxes), total + float(boxes.sum())
        return [common.private(), count, total]

    fresh = in_a_fork(lambda: [common.private()])[0]
    private, count, total = in_a_fork(ask)
    return [seconds, peak, kept, private - fresh, [count, total]]


def in_a_fork(function: Callable) -> list:
    """Return the result of a function run in a separate process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.write(writing, json.dumps(function()).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as file:
        text = file.read()
    os.waitpid(child, 0)
    return json.loads(text)


def write(path: Path, num_images: int, objects: int) -> None:
    """Write an annotation file with the statistics of COCO."""
    rng = np.random.default_rng(0)
    path.parent.mkdir(parents=True)
    ids = np.array(get_dataset("coco").category_ids)
    owners, categories = rng.integers(0, num_images, objects), rng.choice(ids, objects)
    boxes = rng.uniform(1, 300, (objects, 4)).round(2)
    lengths = 2 * rng.integers(4, 40, objects)
    outline = ", ".join(f"{value:.2f}" for value in rng.uniform(0, 640, 80))
    ends = [k for k, letter in enumerate(outline) if letter == ","] + [len(outline)]
    images = [
        {"license": 3, "file_name": f"{k:012d}.jpg", "coco_url": f"http://images.cocodataset.org/train2017/{k:012d}.jpg",
         "height": 480, "width": 640, "date_captured": "2013-11-14 11:18:45", "id": k}
        for k in range(num_images)
    ]  # fmt: skip
    with path.open("w") as file:
        file.write(f'{{"images": {json.dumps(images)}, "annotations": [')
        for k in range(objects):
            file.write(
                f'{", " if k else ""}{{"segmentation": [[{outline[: ends[lengths[k] - 1]]}]], "area": 1.5, '
                f'"image_id": {owners[k]}, "bbox": {boxes[k].tolist()}, "category_id": {categories[k]}, "id": {k}}}'
            )
        file.write(f'], "categories": {json.dumps([{"id": int(i), "name": str(i)} for i in ids])}}}')


if __name__ == "__main__":
    main()
