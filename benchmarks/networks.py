"""What fusing, joined heads and 16 bits give: times of a network and of its heads, each way in turn.

    python benchmarks/networks.py [--net res_18|dla_34|...] [--threads 2] [--repeats 5] [--batch N] [--side PIXELS]

Three tables for every network: its heads alone, forward and backward, as separate convolutions and as one
(``models/heads.py: BatchedHeads`` with the weights joined in every step); the network in evaluation mode as it is and
fused, the heads apart and joined, in float32 and in bf16; a training pass in float32 and in bf16. Medians with the
least and the greatest value in milliseconds; with one thread it is processor time, which other work on the machine
disturbs little, with more it is time by the clock. Runs on the CPU.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from centernet.models import create_model, describe
from centernet.models.deform_conv import DCN
from centernet.models.fuse import fuse

NETS = {"res_18": (4, 384), "dla_34": (1, 512)}
HEADS = {"hm": 80, "wh": 2, "reg": 2}


def main() -> None:
    """Print the tables of the networks asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", action="append", help="may be given several times; default: res_18 and dla_34")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, help="pictures; default: 4 for res_18, else 1")
    parser.add_argument("--side", type=int, help="of the input; default: 384 for res_18, else 512")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{args.threads} threads, torch {torch.__version__}")
    for net in args.net or NETS:
        batch, side = NETS.get(net, (1, 512))
        batch, side = args.batch or batch, args.side or side
        model = make_network(net)
        x = torch.randn(batch, 3, side, side).contiguous(memory_format=torch.channels_last)
        print(f"\n{net}, batch {batch}, {side} x {side}: milliseconds")
        print_times("heads", measure(heads_alone(model, batch, side), args.repeats))
        print_times("evaluation", measure(evaluations(model, x), args.repeats))
        print_times("training", measure(trainings(model, x), args.repeats))


def make_network(net: str) -> nn.Module:
    """A network as it is trained, with offsets that are not 0."""
    torch.manual_seed(0)
    model = create_model(net, HEADS, describe(net)[0].head_conv).to(memory_format=torch.channels_last)
    for module in model.modules():
        if isinstance(module, DCN):
            nn.init.normal_(module.conv_offset_mask.weight, std=0.01)
    return model


def heads_alone(model: nn.Module, batch: int, side: int) -> dict[str, Callable[[], float]]:
    """Passes of the heads of the first stack, from a map of theirs to the gradients."""
    heads = [getattr(model, name) for name in HEADS]
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

    def forward(function: Callable) -> Callable[[], float]:
        return torch.no_grad()(lambda: timed(function))

    def both(function: Callable) -> Callable[[], float]:
        return lambda: timed(lambda: sum(value.square().mean() for value in function()).backward())

    return {
        "forward, separate": forward(separate),
        "forward, joined": forward(joined),
        "forward and backward, separate": both(separate),
        "forward and backward, joined": both(joined),
    }


def evaluations(model: nn.Module, x: Tensor) -> dict[str, Callable[[], float]]:
    """Passes of a network in evaluation mode."""
    networks = {"as it is": model.eval(), "fused": fuse(model, False), "fused, heads joined": fuse(model, True)}

    def run(network: nn.Module, bf16: bool) -> Callable[[], float]:
        def step() -> float:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                return timed(lambda: network(x))

        return step

    steps = {name: run(network, False) for name, network in networks.items()}
    return steps | {"as it is, bf16": run(model, True), "fused, bf16": run(networks["fused"], True)}


def trainings(model: nn.Module, x: Tensor) -> dict[str, Callable[[], float]]:
    """Passes of a network in training mode, forward and backward."""

    def run(bf16: bool) -> Callable[[], float]:
        def step() -> float:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                outputs = model(x)
            sum(value.float().square().mean() for output in outputs for value in output.values()).backward()
            model.zero_grad()

        return lambda: (model.train(), timed(step))[1]

    return {"float32": run(False), "bf16": run(True)}


def timed(function: Callable) -> float:
    """Milliseconds of a call."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    function()
    return 1000 * (clock() - start)


def measure(steps: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """The times of steps that take turns, after one pass each that does not count."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(-1, repeats):
        for name, step in steps.items():
            value = step()
            if repeat >= 0:
                times[name].append(value)
    return times


def print_times(title: str, times: dict[str, list[float]]) -> None:
    """A line for each way: median, least and greatest value."""
    for name, values in times.items():
        middle = statistics.median(values)
        print(f"{title:12}{name:34}{middle:9.1f} ({min(values):.1f}-{max(values):.1f})", flush=True)


if __name__ == "__main__":
    main()
