"""Time heatmaps of a batch drawn at once on the device against object by object on the CPU.

python benchmarks/targets.py [--batch 32] [--classes 80] [--size 128] [--objects 8]
"""

import common
import numpy as np
import plain
import torch

from centernet.ops.heatmap import draw_gaussians, window_pixels
from centernet.ops.image import gaussian_radius


def main() -> None:
    """Print the table."""
    parser = common.make_parser(__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--size", type=int, default=128, help="map size")
    parser.add_argument("--objects", type=int, default=8, help="per image, on average")
    args = parser.parse_args()
    device = common.start(args)
    rng = np.random.default_rng(0)
    slots, side = 128, args.size
    shape = (args.batch, slots)
    sizes = np.exp(rng.uniform(np.log(2), np.log(side), (2, *shape)))
    radius = gaussian_radius(np.ceil(sizes)).astype(np.int64).clip(min=0)
    radius[rng.random(shape) >= args.objects / slots] = -1
    cls, ind = rng.integers(0, args.classes, shape), rng.integers(0, side * side, shape)
    pixels = window_pixels(radius)
    cls, ind, radius = (torch.from_numpy(array) for array in (cls, ind, radius))
    maps = (args.batch, args.classes, side, side)

    def at_once() -> torch.Tensor:
        one, two, three = (tensor.to(device, non_blocking=True) for tensor in (cls, ind, radius))
        return draw_gaussians(maps, one, two, three, (2 * three + 1) / 6, pixels)

    def in_turn() -> torch.Tensor:
        return torch.from_numpy(plain.heat_maps(maps, cls, ind, radius)).to(device)

    common.check("heatmaps", at_once(), in_turn(), 1e-6)
    if not torch.equal(at_once() == 1, in_turn() == 1):
        raise SystemExit("the peaks differ")
    ways = {"one after the other, CPU": in_turn, f"at once, {device.type}": at_once}
    common.show(
        f"{args.batch} x {args.classes} x {side} x {side}", common.take_turns(ways, args.repeats, device), args.batch
    )


if __name__ == "__main__":
    main()
