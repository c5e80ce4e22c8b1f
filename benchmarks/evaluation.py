"""Time the VOC score of many images against the reference's script, which goes through text files, row by row.

python benchmarks/evaluation.py [--images 5000] [--classes 20] [--detections 100]
"""

import common
import numpy as np
import plain
import torch

from centernet.evaluation import voc


def main() -> None:
    """Print the table."""
    parser = common.make_parser(__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--detections", type=int, default=100, help="per image")
    parser.set_defaults(repeats=1)
    args = parser.parse_args()
    common.start(args)
    names = [f"class{k}" for k in range(args.classes)]
    truth, detections = make(args, names)
    found = {}

    def ours() -> None:
        found["ours"] = voc.evaluate(truth, detections, names)["ap"]

    def reference() -> None:
        found["plain"] = {name: plain.voc_ap(truth, of, name) for name, of in zip(names, detections, strict=True)}

    measured = common.take_turns({"the reference's way": reference, "ours": ours}, args.repeats, torch.device("cpu"))
    common.check("AP of all classes", *([found[way][name] for name in names] for way in ("ours", "plain")), 1e-12)
    common.show(f"{args.images} images, {args.detections} detections each", measured, args.images)


def make(args, names: list[str]) -> tuple[list, list]:
    """Return ground truth, and detections of which some are correct."""
    rng = np.random.default_rng(0)
    truth, detections = [], [[] for _ in names]
    for _ in range(args.images):
        count = rng.integers(1, 6)
        corners = rng.integers(1, 300, (count, 2))
        boxes = np.hstack([corners, corners + rng.integers(20, 200, (count, 2))])
        cls, hard = rng.integers(0, args.classes, count), rng.random(count) < 0.1
        truth.append(
            [
                {"name": names[c], "bbox": b.tolist(), "difficult": int(d)}
                for c, b, d in zip(cls, boxes, hard, strict=True)
            ]
        )
        source = rng.integers(0, count, args.detections)
        rows = boxes[source] - 1 + rng.normal(0, 25, (args.detections, 4))
        rows = np.column_stack([rows, rng.beta(1, 6, args.detections)]).astype(np.float32)
        of = np.where(rng.random(args.detections) < 0.3, cls[source], rng.integers(0, args.classes, args.detections))
        for c in range(args.classes):
            detections[c].append(rows[of == c])
    return truth, detections


if __name__ == "__main__":
    main()
