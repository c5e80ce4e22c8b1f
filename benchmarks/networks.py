"""Time batch normalization fusion, joined heads and mixed precision, measured interleaved.

    python benchmarks/networks.py [--net res_18|dla_34|...] [--batch N] [--side PIXELS]

Three tables for every network: its heads alone, forward and backward, as separate convolutions and as one
(``models/heads.py: BatchedHeads`` with the weights joined in every step); the network in evaluation mode unfused and
fused, the heads apart and joined, in float32 and in bf16; a training pass in float32 and in bf16. Runs on the CPU.
"""

from collections.abc import Callable

import common
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from centernet.models.fuse import fuse

NETS = {"res_18": (4, 384), "dla_34": (1, 512)}
CPU = torch.device("cpu")


def main() -> None:
    """Print the tables of the selected networks."""
    parser = common.make_parser(__doc__)
    parser.add_argument("--net", action="append", help="may be given several times; default: res_18 and dla_34")
    parser.add_argument("--batch", type=int, help="images; default: 4 for res_18, else 1")
    parser.add_argument("--side", type=int, help="input size; default: 384 for res_18, else 512")
    args = parser.parse_args()
    common.start(args)
    for net in args.net or NETS:
        batch, side = NETS.get(net, (1, 512))
        batch, side = args.batch or batch, args.side or side
        model = common.make_network(net).to(memory_format=torch.channels_last)
        x = torch.randn(batch, 3, side, side).contiguous(memory_format=torch.channels_last)
        forward, both = heads_alone(model, batch, side)
        for title, ways in (
            ("heads, forward", forward),
            ("heads, forward and backward", both),
            ("evaluation", evaluations(model, x)),
            ("training, forward and backward", trainings(model, x)),
        ):
            measured = common.take_turns(ways, args.repeats, CPU)
            common.show(f"{net}, batch {batch}, {side} x {side}: {title}", measured, batch)


def heads_alone(model: nn.Module, batch: int, side: int) -> tuple[dict[str, Callable], dict[str, Callable]]:
    """Return passes of the heads of the first stack: forward, and backward from one of their maps."""
    heads = [getattr(model, name) for name in common.HEADS]
    heads = [head[0] if isinstance(head, nn.ModuleList) else head for head in heads]
    convs = [[module for module in head.modules() if isinstance(module, nn.Conv2d)] for head in heads]
    shape = batch, convs[0][0].in_channels, side // 4, side // 4
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last).requires_grad_()

    def separate() -> list[Tensor]:
        return [last(F.relu(first(x))) for first, last in convs]

    def joined() -> list[Tensor]:
        weight, bias = (torch.cat([getattr(first, name) for first, _ in convs]) for name in ("weight", "bias"))
        parts = F.relu(F.conv2d(x, weight, bias, padding=1)).split(convs[0][0].out_channels, dim=1)
        return [last(part) for (_, last), part in zip(convs, parts, strict=True)]

    def both(function: Callable) -> Callable[[], None]:
        return lambda: sum(value.square().mean() for value in function()).backward()

    for one, other in zip(separate(), joined(), strict=True):
        common.check("joined heads", other, one, 1e-4)
    functions = {"separate": separate, "joined": joined}
    return (
        {name: torch.no_grad()(function) for name, function in functions.items()},
        {name: both(function) for name, function in functions.items()},
    )


def evaluations(model: nn.Module, x: Tensor) -> dict[str, Callable]:
    """Return passes of a network in evaluation mode."""
    networks = {"unfused": model.eval(), "fused": fuse(model, False), "fused, heads joined": fuse(model, True)}

    def run(network: nn.Module, bf16: bool) -> Callable[[], Tensor]:
        def step() -> Tensor:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                return network(x)[-1]["hm"]

        return step

    for name, network in networks.items():
        common.check(name, run(network, False)(), run(networks["unfused"], False)(), 1e-3)

    steps = {name: run(network, False) for name, network in networks.items()}
    return steps | {"unfused, bf16": run(model, True), "fused, bf16": run(networks["fused"], True)}


def trainings(model: nn.Module, x: Tensor) -> dict[str, Callable]:
    """Return passes of a network in training mode, forward and backward."""
    model.train()

    def run(bf16: bool) -> Callable[[], None]:
        def step() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                outputs = model(x)
            sum(value.float().square().mean() for output in outputs for value in output.values()).backward()
            model.zero_grad()

        return step

    return {"float32": run(False), "bf16": run(True)}


if __name__ == "__main__":
    main()
