"""Time detection training steps against the reference's implementation: forward, losses, backward, update.

    python benchmarks/train_step.py [--arch resdcn_18] [--size 384] [--batch 4] [--amp bf16] [--tf32] [--compile]

The baseline: float32, channels first, torchvision's deformable convolution, every step of the loss a pass over
the heatmaps, an Adam that goes from parameter to parameter; its inputs and heatmaps exist before the clock
starts. Ours starts from what a worker sends and makes both on the device. Losses and gradients of the first
step are checked to be equal. ``--amp``, ``--tf32`` and ``--compile`` add rows to the table.
"""

from collections.abc import Callable

import common
import numpy as np
import plain
import torch
import torchvision

from centernet.datasets.loader import collate, finish_batch, to_device
from centernet.engine.precision import MixedPrecision
from centernet.engine.processes import tune_malloc
from centernet.opts import opts
from centernet.tasks.ctdet import Ctdet


def main() -> None:
    """Print the table."""
    parser = common.make_parser(__doc__)
    parser.add_argument("--arch", default="resdcn_18")
    parser.add_argument("--size", type=int, default=384)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--amp", choices=("bf16", "fp16"))
    parser.add_argument("--tf32", action="store_true")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    device = common.start(args)
    torch.backends.cudnn.benchmark = True
    set_tf32(False)
    tune_malloc(device)  # as main.py and test.py do; the reference gains from it as well
    opt = opts().parse(["ctdet", "--dataset", "coco", "--arch", args.arch, "--input_res", str(args.size)])
    sent = make_batch(args, opt)
    if device.type != "cpu":
        sent = {name: v.pin_memory() if isinstance(v, torch.Tensor) else v for name, v in sent.items()}

    first = {}
    ways = {
        "the reference's way": reference(args, opt, sent, device, first),
        "ours": ours(args, opt, sent, device, first),
    }
    for part in ("loss", "gradient"):
        common.check(part, first["ours"][part], first["plain"][part], 1e-3)
    if args.amp:
        ways[f"ours, {args.amp}"] = ours(args, opt, sent, device, first, args.amp)
    if args.tf32:
        ways["ours, tf32"] = with_tf32(ours(args, opt, sent, device, first))
    if args.compile:
        ways["ours, compiled"] = ours(args, opt, sent, device, first, compiled=True)
        if args.amp:
            ways[f"ours, {args.amp}, compiled"] = ours(args, opt, sent, device, first, args.amp, compiled=True)
    rate = common.matrix_rate(device)
    x = torch.randn(args.batch, 3, args.size, args.size, device=device)
    work = 3 * common.network_work(common.make_network(args.arch).to(device), x)
    measured = common.take_turns(ways, args.repeats, device)
    title = f"{args.arch}, {args.size} x {args.size}, batch {args.batch}: training step"
    common.show(title, measured, args.batch, work=(work, rate))


def make_batch(args, opt) -> dict:
    """Return a batch as the data loading workers send it."""
    rng = np.random.default_rng(0)
    ids = list(range(80))
    samples = []
    for _ in range(args.batch):
        corners = rng.uniform(0, 0.7 * args.size, (8, 2))
        boxes = np.hstack([corners, corners + rng.uniform(0.05, 0.3, (8, 2)) * args.size]).astype(np.float32)
        image = rng.integers(0, 256, (args.size, args.size, 3), dtype=np.uint8)
        sample = Ctdet(opt).encode(image, {"boxes": boxes, "cls": rng.choice(ids, 8)}, None, False)
        del sample["meta"]
        samples.append(sample)
    return collate(samples)


def reference(args, opt, sent: dict, device: torch.device, first: dict) -> Callable[[], None]:
    """Return a step as in the reference; ``first`` receives the results of the first one."""
    model = common.make_network(args.arch).to(device)
    batch = {
        name: value.contiguous() if isinstance(value, torch.Tensor) else value
        for name, value in finish_batch(to_device(sent, device), Ctdet(opt)).items()
    }
    optimizer = torch.optim.Adam(model.parameters(), opt.lr, foreach=False)

    def step() -> None:
        with common.operator(torchvision.ops.deform_conv2d):
            loss = plain.loss(model(batch["input"])[-1], batch, opt)
        optimizer.zero_grad()
        loss.backward()
        _keep(first, "plain", model, loss)
        optimizer.step()

    step()
    return step


def ours(
    args, opt, sent: dict, device: torch.device, first: dict, amp: str = "off", compiled: bool = False
) -> Callable[[], None]:
    """Return a step as in ``engine/trainer.py``."""
    network = common.make_network(args.arch).to(device, memory_format=torch.channels_last)
    model = torch.compile(network) if compiled else network
    optimizer = torch.optim.Adam(network.parameters(), opt.lr, fused=device.type in ("cpu", "cuda"))
    precision, criterion = MixedPrecision(amp, device), Ctdet.criterion(opt)

    def step() -> None:
        batch = finish_batch(to_device(sent, device), Ctdet(opt))
        loss, _ = criterion(precision.forward(model, batch["input"]), batch)
        optimizer.zero_grad(set_to_none=True)
        if amp == "off" and "ours" not in first:
            loss.backward()
            _keep(first, "ours", network, loss)
            optimizer.step()
        else:
            precision.backward(loss)
            precision.update(optimizer)

    step()
    return step


def _keep(first: dict, name: str, model: torch.nn.Module, loss: torch.Tensor) -> None:
    if name not in first:
        # Gradients of the heads: those of the first layers are too ill-conditioned in an untrained network.
        own = [p.grad for key, p in model.named_parameters() if key.split(".")[0] in common.HEADS]
        first[name] = {"loss": loss.detach(), "gradient": torch.cat([grad.flatten() for grad in own])}


def with_tf32(step: Callable[[], None]) -> Callable[[], None]:
    """Return the step with TF32 convolutions and matrix products, where the device has them."""

    def run() -> None:
        set_tf32(True)
        step()
        set_tf32(False)

    return run


def set_tf32(allowed: bool) -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed


if __name__ == "__main__":
    main()
