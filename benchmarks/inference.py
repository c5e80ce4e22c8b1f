"""Time image-to-boxes inference against the reference's implementation.

    python benchmarks/inference.py [--arch dla_34] [--size 512] [--batch 1] [--amp bf16]

The baseline: one image after the other, normalized in double precision, channels first, BatchNorm on its own,
torchvision's deformable convolution, decoding step by step. The boxes are checked to be the same.
"""

import common
import numpy as np
import plain
import torch
import torchvision

from centernet.detector import Detector
from centernet.engine.processes import tune_malloc
from centernet.models.fuse import fuse
from centernet.opts import opts
from centernet.tasks import build_task


def main() -> None:
    """Print the table."""
    parser = common.make_parser(__doc__)
    parser.add_argument("--arch", default="dla_34")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1, help="images per batch (ours)")
    parser.add_argument("--amp", choices=("bf16", "fp16"))
    args = parser.parse_args()
    device = common.start(args)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False
    tune_malloc(device)  # as main.py and test.py do; the reference gains from it as well
    options = ["ctdet", "--dataset", "coco", "--arch", args.arch, "--input_res", str(args.size)]
    opt = opts().parse(options)
    network = common.make_network(args.arch).eval().to(device)
    rng = np.random.default_rng(0)
    images = [common.make_image(rng) for _ in range(args.batch)]
    detector = Detector(build_task(opt), fuse(network), device)

    def reference() -> list[dict]:
        with common.operator(torchvision.ops.deform_conv2d):
            return [plain.detect(network, image, opt, device) for image in images]

    ways = {"the reference's way": reference, "ours": lambda: detector.run(images)}
    check_detections(detector.run(images), reference())
    if args.amp:
        half = Detector(build_task(opts().parse([*options, "--amp", args.amp])), fuse(network), device)
        ways[f"ours, {args.amp}"] = lambda: half.run(images)
    x = torch.randn(args.batch, 3, args.size, args.size, device=device)
    work = (common.network_work(network, x), common.matrix_rate(device))
    measured = common.take_turns(ways, args.repeats, device)
    title = f"{args.arch}, {args.size} x {args.size}, {args.batch} image(s): from image to boxes"
    common.show(title, measured, args.batch, work=work)


def check_detections(own: list[dict], reference: list[dict]) -> None:
    """Exit unless the detector's results of some images are those of ``plain.detect``."""
    for mine, other in zip(own, reference, strict=True):
        rows, others = (np.concatenate(list(results.values())) for results in (mine["results"], other))
        common.check("scores", np.sort(rows[:, 4]), np.sort(others[:, 4]), 2e-3)
        # Nearly equal scores may come in any order, and the last ones may differ: compare with the nearest row.
        best = rows[np.argsort(-rows[:, 4])[: len(rows) // 2]]
        nearest = np.abs(best[:, None] - others).max(2).argmin(1)
        common.check("boxes", best, others[nearest], 2e-3)


if __name__ == "__main__":
    main()
