"""Compare our deformable convolution with torchvision's operator on a CPU: time and peak memory, forward and backward.

    python benchmarks/deform_conv.py [--net resdcn_18|dla_34] [--threads 2] [--repeats 5]

One line for every size of layer in the network, their sum, and the whole network with either operator. The two are
interleaved in one run; times are medians with minimum and maximum. With one thread it is processor time,
which other work on the machine disturbs little, with more it is time by the clock. Linux only.
"""

import multiprocessing
import resource
import statistics
import time
from collections import Counter
from collections.abc import Callable

import common
import torch
import torchvision
from torch import Tensor

from centernet.models import create_model, deform_conv
from centernet.ops.deform_conv import deform_conv2d

NETS = {"resdcn_18": (4, 384), "dla_34": (1, 512)}
OPERATORS = {"torchvision": torchvision.ops.deform_conv2d, "ours": deform_conv2d}
CPU = torch.device("cpu")

Step = Callable[[Callable], tuple[float, float]]


def main() -> None:
    """Print the tables of the selected networks."""
    parser = common.make_parser(__doc__)
    parser.add_argument("--net", choices=NETS, action="append", help="may be given twice; default: both")
    args = parser.parse_args()
    # Not common.start: forked children would wait for its threads.
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    print(f"{common.name_of(CPU)}, {args.threads} threads, {versions}")
    for net in args.net or NETS:
        batch, side = NETS[net]
        print(f"\n{net}, batch {batch}, {side} x {side}: milliseconds forward and backward, peak MiB")
        # Memory is measured in child processes, which must be forked before this process starts threads.
        sizes = layer_sizes(net, batch, side)
        jobs = [(make_layer, key, count) for key, count in sizes.items()] + [(make_network, (net,), 1)]
        peaks = [{name: peak_memory(make, key, name, args.threads) for name in OPERATORS} for make, key, _ in jobs]
        print_row("layer", OPERATORS, lambda name, way: f"{name} {way}")
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            total = {}
            for (make, key, count), peak in zip(jobs, peaks, strict=True):
                times = pool.apply(measure, (make, key, args.threads, args.repeats))
                if make is make_network:
                    print_times("all layers", total, None)
                    print_times("whole network", times, peak)
                    continue
                print_times(f"{count} x {'x'.join(map(str, key[0]))} to {key[1]}", times, peak)
                for where, values in times.items():
                    sums = total.setdefault(where, [0] * args.repeats)
                    total[where] = [s + count * value for s, value in zip(sums, values, strict=True)]


def layer_sizes(net: str, batch: int, side: int) -> Counter:
    """Count each (input shape, output channels) among the deformable layers."""
    sizes = Counter()
    with torch.device("meta"):
        model = create_model(net, common.HEADS, 64)
        for module in model.modules():
            if isinstance(module, deform_conv.DCN):
                module.register_forward_hook(lambda _, x, y: sizes.update([(tuple(x[0].shape), y.shape[1])]))
        model(torch.empty(batch, 3, side, side))
    return sizes


def make_layer(shape: tuple[int, ...], out_channels: int) -> Step:
    """Return a forward and backward pass of one layer's operator; offsets have standard deviation 1."""
    batch, channels, height, width = shape
    torch.manual_seed(0)
    sizes = [shape, (batch, 18, height, width), (out_channels, channels, 3, 3), (out_channels,)]
    x, offset, weight, bias = (torch.randn(size).requires_grad_() for size in sizes)
    mask = torch.rand(batch, 9, height, width).requires_grad_()
    grad = torch.randn(batch, out_channels, height, width)

    def forward(operator: Callable) -> Tensor:
        return operator(x, offset, weight, bias, padding=1, mask=mask)

    return timed(forward, lambda y: torch.autograd.grad(y, (x, offset, weight, bias, mask), grad))


def make_network(net: str) -> Step:
    """Return a forward and backward pass of a network in training mode, with nonzero offsets."""
    batch, side = NETS[net]
    model = common.make_network(net)
    x = torch.randn(batch, 3, side, side)

    def forward(operator: Callable) -> Tensor:
        with common.operator(operator):
            return sum(value.square().mean() for value in model(x)[0].values())

    return timed(forward, lambda loss: (model.zero_grad(), loss.backward()))


def timed(forward: Callable, backward: Callable) -> Step:
    """Return a function that runs both passes with an operator and returns their seconds."""

    def step(operator: Callable) -> tuple[float, float]:
        clock = time.process_time if common.by_processor(CPU) else time.perf_counter
        start = clock()
        y = forward(operator)
        middle = clock()
        backward(y)
        return middle - start, clock() - middle

    return step


def measure(make: Callable, key: tuple, threads: int, repeats: int) -> dict[tuple[str, str], list[float]]:
    """Return milliseconds by operator and direction, measured interleaved after one warm-up pass each."""
    torch.set_num_threads(threads)
    step, times = make(*key), {}
    for repeat in range(-1, repeats):
        for name, operator in OPERATORS.items():
            seconds = step(operator)
            if repeat >= 0:
                for way, value in zip(("forward", "backward"), seconds, strict=True):
                    times.setdefault((name, way), []).append(1000 * value)
    return times


def peak_memory(make: Callable, key: tuple, name: str, threads: int) -> float:
    """Return the MiB that a forward and backward pass add to a separate process."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(_peak_memory, (make, key, name, threads))


def _peak_memory(make: Callable, key: tuple, name: str, threads: int) -> float:
    torch.set_num_threads(threads)
    make_layer((1, 8, 8, 8), 8)(OPERATORS[name])
    step = make(*key)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(OPERATORS[name])
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def print_row(label: str, operators, text: Callable[[str, str], str]) -> None:
    """Print one line of a table: a label, then a column per direction and operator."""
    columns = [text(name, way) for way in ("forward", "backward") for name in operators]
    print(f"{label:28}" + "".join(f"{column:>24}" for column in columns), flush=True)


def print_times(label: str, times: dict[tuple[str, str], list[float]], peak: dict[str, float] | None) -> None:
    """Print a row of medians, and below it the ratios and the memory."""

    def text(name: str, way: str) -> str:
        values = times[name, way]
        return f"{statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f})"

    print_row(label, OPERATORS, text)
    ratios = [
        choose(times["torchvision", way]) / choose(times["ours", way])
        for way in ("forward", "backward")
        for choose in (statistics.median, min)
    ]
    memory = "" if peak is None else f", memory {peak['torchvision']:.0f} and {peak['ours']:.0f}"
    print(
        f"{'':28}forward {ratios[0]:.1f} times faster (least values {ratios[1]:.1f}), "
        f"backward {ratios[2]:.1f} ({ratios[3]:.1f}){memory}",
        flush=True,
    )


if __name__ == "__main__":
    main()
