"""Measurements of an accelerator, the Python part of ``gpu.sh``: one step per call.

    python benchmarks/gpu.py train --net dla_34 [--compile] [--output DIR] [--device cpu] [--small]

Tables are printed and written to ``DIR/<step>.json`` with the device and the versions, after every row, so that a step
that is stopped leaves what it has measured. An alternative that fails, for lack of memory or of a compiler, becomes a
row with its error. ``--small`` uses tiny sizes, to test this script on a CPU.
"""

import argparse
import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import common
import numpy as np
import plain
import profiling
import torch
import torchvision
from deform_conv import layer_sizes
from inference import check_detections
from loader import draw
from torch import Tensor, nn
from train_step import make_batch, ours, reference, set_tf32, with_tf32

from centernet.datasets import get_dataset
from centernet.datasets.loader import Samples, TrainBatches, finish_batch, make_loader, to_device
from centernet.detector import Detector
from centernet.engine.optim import build_optimizer
from centernet.engine.processes import Distributed, tune_malloc
from centernet.engine.trainer import Trainer
from centernet.models.fuse import fuse
from centernet.ops.deform_conv import deform_conv2d
from centernet.opts import opts
from centernet.tasks import build_task
from centernet.utils.files import read_json, write_json

SIZES = {"resdcn_18": (384, 64), "dla_34": (512, 32)}  # input size, images per training step
SMALL = (64, 2)
PLAIN = "plain, eager, float32"
TRITON = partial(deform_conv2d, implementation="triton")

# (what, number, unit, where): published by others, for the summary.
ZOO = "original, model zoo"
ASCEND = "Ascend's port, mixed precision, PASCAL VOC"
PUBLISHED = {
    "training": [
        ("resdcn_18, 384", 107, "images/s", f"{ZOO}: 70 epochs of VOC in 3 h, validation included, one TITAN V"),
        ("resdcn_18, 384", 143, "images/s", f"{ASCEND}: one V100"),
        ("resdcn_18, 384", 542, "images/s", f"{ASCEND}: eight V100"),
        ("resdcn_18, 384", 170, "images/s", f"{ASCEND}: one NPU (164 to 170)"),
        ("resdcn_18, 384", 1410, "images/s", f"{ASCEND}: eight NPUs (1,257 to 1,410)"),
        ("resdcn_18, 512", 41, "images/s", f"{ZOO}: COCO, each of four TITAN V"),
        ("dla_34, 512", 10, "images/s", f"{ZOO}: COCO, each of eight TITAN V"),
    ],
    "inference": [
        ("resdcn_18, 384", 7, "ms", f"{ZOO}: VOC, TITAN Xp"),
        ("resdcn_18, 512", 7, "ms", f"{ZOO}: COCO, TITAN Xp"),
        ("resdcn_18, 512", 10, "ms", f"{ZOO}: VOC, TITAN Xp"),
        ("dla_34, 512", 19, "ms", f"{ZOO}: COCO, TITAN Xp"),
        ("resdcn_18, 512", 5.81, "ms", "TensorRT, float32: GTX 1070"),
    ],
}


def main() -> None:
    """Run one step."""
    parser = common.make_parser(__doc__)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--net", choices=SIZES, default="resdcn_18")
    parser.add_argument("--compile", action="store_true", help="train, infer: with torch.compile")
    parser.add_argument("--device", default="auto", help="auto: an accelerator if available; cpu, cuda, ...")
    parser.add_argument("--small", action="store_true", help="tiny sizes")
    parser.add_argument("--output", type=Path, default=Path("gpu_results"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    if args.step == "summary":
        summarize(args.output)
        return
    device = common.start(args, args.device)
    args.size, args.batch = SMALL if args.small else SIZES[args.net]
    args.arch, args.turn = args.net, 1 if args.small else 10
    torch.backends.cudnn.benchmark = True
    set_tf32(False)
    tune_malloc(device)
    STEPS[args.step](args, device, Table(args, device))


class Table:
    """The rows of a step and where they were measured, in a JSON file that is rewritten after every row."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        parts = [args.step, args.net if args.step not in GENERAL else "", "compile" if args.compile else ""]
        self.path = args.output / f"{'_'.join(filter(None, parts))}.json"
        self.content = {"step": args.step, "small": args.small, "where": where(device), "rows": []}

    def add(self, *rows: dict, **common_to_all) -> None:
        """Append rows."""
        self.content["rows"] += [{**common_to_all, **row} for row in rows]
        write_json(self.path, self.content, indent=1)

    def attempt(self, name: str, make: Callable[[], Callable], ways: dict) -> None:
        """Add ``make()`` to the alternatives; if that fails, record why."""
        try:
            ways[name] = make()
        except Exception as error:  # out of memory, no compiler, an operator that is missing, ...
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            print(f"  {name}: {type(error).__name__}: {reason}")
            self.add({"name": name, "error": f"{type(error).__name__}: {reason}"})


def where(device: torch.device) -> dict:
    """Return card, driver, versions, cores, date and commit."""
    found = {
        "device": common.name_of(device),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
    for name, command in (("driver, clock, power", query), ("commit", ["git", "rev-parse", "--short", "HEAD"])):
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            found[name] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return found


def matrix_rates(args, device: torch.device) -> dict[str, float]:
    """Return the FLOP/s of large matrix products by kind of number; on a CPU of float32 and bf16 only."""
    side = 256 if args.small else 8192
    rates = {"float32": common.matrix_rate(device, side=side)}
    rates["bf16"] = common.matrix_rate(device, torch.bfloat16, side)
    if device.type != "cpu":
        rates["fp16"] = common.matrix_rate(device, torch.float16, side)
        set_tf32(True)
        rates["tf32"] = common.matrix_rate(device, side=side)
        set_tf32(False)
    return rates


def rate_of(name: str, rates: dict[str, float]) -> float:
    """Return the rate of the numbers that an alternative computes in; its name mentions them."""
    return next(rate for kind, rate in rates.items() if kind in name)


def environment(args, device: torch.device, table: Table) -> None:
    """Print card and versions, and measure matrix products and copies."""
    for name, value in table.content["where"].items():
        print(f"  {name:24}{value}")
    for kind, rate in matrix_rates(args, device).items():
        print(f"  {kind + ' products':24}{rate / 1e12:8.2f} TFLOP/s")
        table.add({"name": f"{kind} matrix product", "flops_per_second": rate})
    x = torch.zeros(2**20 if args.small else 2**28, device=device)
    seconds, _ = common.take_turns({"copy": x.clone}, args.repeats, device)
    rate = 2 * x.nbytes / min(seconds["copy"])
    print(f"  {'copies':24}{rate / 1e9:8.1f} GB/s")
    table.add({"name": "copy, read and written", "bytes_per_second": rate})


def repeated(way: Callable, count: int) -> Callable[[], None]:
    """Return a function that calls another several times without waiting for the device in between."""

    def run() -> None:
        for _ in range(count):
            way()

    return run


def pinned(batch: dict, device: torch.device) -> dict:
    """Return a batch whose tensors are in pinned memory, as the loader gives it, if the device is not a CPU."""
    if device.type == "cpu":
        return batch
    return {name: value.pin_memory() if isinstance(value, Tensor) else value for name, value in batch.items()}


def options(args, *more: str):
    """Return the options of main.py for the network that is measured."""
    return opts().parse(["ctdet", "--dataset", "coco", "--arch", args.net, "--input_res", str(args.size), *more])


def with_triton(make: Callable[[], Callable]) -> Callable[[], None]:
    """Return what ``make`` returns, with the Triton kernels of the deformable convolution."""
    with common.operator(TRITON):
        way = make()

    def run() -> None:
        with common.operator(TRITON):
            way()

    return run


def train(args, device: torch.device, table: Table) -> None:
    """Time a training step against the reference's implementation, as ``train_step.py`` does."""
    opt, first, ways = options(args), {}, {}
    sent = pinned(make_batch(args, opt), device)

    def step(amp: str = "off", compiled: bool = False) -> Callable[[], None]:
        return ours(args, opt, sent, device, first, amp, compiled)

    def tf32_step(compiled: bool) -> Callable[[], None]:
        set_tf32(True)
        try:
            return with_tf32(step(compiled=compiled))
        finally:
            set_tf32(False)

    table.attempt(PLAIN, lambda: reference(args, opt, sent, device, first), ways)
    table.attempt("float32", step, ways)
    for part in ("loss", "gradient"):
        common.check(part, first["ours"][part], first["plain"][part], 1e-3)
    for end, compiled in (("", False), (", compiled", True))[: 2 if args.compile else 1]:
        if compiled:
            table.attempt("float32, compiled", partial(step, compiled=True), ways)
        if device.type != "cpu":
            table.attempt(f"tf32{end}", partial(tf32_step, compiled), ways)
            table.attempt(f"fp16{end}", partial(step, "fp16", compiled), ways)
        table.attempt(f"bf16{end}", partial(step, "bf16", compiled), ways)
        if device.type != "cpu":
            table.attempt(f"bf16, Triton{end}", partial(with_triton, partial(step, "bf16", compiled)), ways)
    x = torch.randn(args.batch, 3, args.size, args.size, device=device)
    flops = 3 * common.network_work(common.make_network(args.net).to(device), x)
    rates = matrix_rates(args, device)
    seconds, _ = common.take_turns({n: repeated(way, args.turn) for n, way in ways.items()}, args.repeats, device)
    seconds = {name: [value / args.turn for value in values] for name, values in seconds.items()}
    title = f"{args.net}, {args.size}"
    work = (flops, {name: rate_of(name, rates) for name in ways})
    rows = common.show(f"{title}, batch {args.batch}: training step", (seconds, {}), args.batch, work=work)
    table.add(*rows, net=title, kind="training", batch=args.batch)


class Graphed(nn.Module):
    """A function of one tensor, captured once as a CUDA graph and replayed for every further input of this shape."""

    def __init__(self, function: Callable, x: Tensor) -> None:
        super().__init__()
        self.input = x.clone(memory_format=torch.preserve_format)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # libraries choose their algorithms before the capture
                function(self.input)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.output = function(self.input)

    def forward(self, x: Tensor):
        self.input.copy_(x)
        self.graph.replay()
        return self.output


@torch.inference_mode()
def infer(args, device: torch.device, table: Table) -> None:
    """Time inference from image to boxes, and network and decoding alone, for one image and for a batch."""
    opt = options(args)
    network = common.make_network(args.net).eval().to(device)
    rng = np.random.default_rng(0)
    images = [common.make_image(rng) for _ in range(2 if args.small else 16)]
    rates = matrix_rates(args, device)
    amps = {"float32": "off", "bf16": "bf16"} | ({} if device.type == "cpu" else {"fp16": "fp16"})

    def detector(amp: str, graph: bool = False, compiled: bool = False) -> Detector:
        one = Detector(build_task(options(args, "--amp", amp)), fuse(network), device)
        if compiled:
            one.model = torch.compile(one.model)
        if graph:
            model = one.model
            one.model = Graphed(lambda x: one.precision.forward(model, x), batch_of(1))
        return one

    def batch_of(count: int) -> Tensor:
        x = torch.randn(count, 3, args.size, args.size, device=device)
        return x.contiguous(memory_format=torch.channels_last)

    def from_images(some: list, *how) -> Callable[[], list]:
        one = detector(*how)
        one.run(some)
        return lambda: one.run(some)

    def alone(count: int, amp: str, graph: bool) -> Callable[[], Tensor]:
        one, x = detector(amp), batch_of(count)
        function = lambda x: one.task.decode(one.precision.forward(one.model, x)[-1])  # noqa: E731
        function = Graphed(function, x) if graph else function
        function(x)
        return lambda: function(x)

    def reference_detections(some: list) -> list[dict]:
        with common.operator(torchvision.ops.deform_conv2d):
            return [plain.detect(network, image, opt, device) for image in some]

    check_detections(detector("off").run(images[:1]), reference_detections(images[:1]))
    for count in (1, len(images)):
        some = images[:count]
        whole: dict[str, Callable] = {PLAIN: partial(reference_detections, some)}
        inner: dict[str, Callable] = {}
        for name, amp in amps.items():
            table.attempt(name, partial(from_images, some, amp), whole)
            table.attempt(name, partial(alone, count, amp, False), inner)
            if device.type == "cuda":
                table.attempt(f"{name}, CUDA graph", partial(alone, count, amp, True), inner)
                if count == 1:
                    table.attempt(f"{name}, CUDA graph", partial(from_images, some, amp, True), whole)
            if args.compile:
                table.attempt(f"{name}, compiled", partial(from_images, some, amp, False, True), whole)
        if device.type != "cpu":
            whole["tf32"] = with_tf32(from_images(some, "off"))
            table.attempt("bf16, Triton", partial(with_triton, partial(from_images, some, "bf16")), whole)
            table.attempt("bf16, Triton", partial(with_triton, partial(alone, count, "bf16", False)), inner)
        if device.type == "cuda":
            make = partial(with_triton, partial(alone, count, "bf16", True))
            table.attempt("bf16, Triton, CUDA graph", make, inner)
        flops = common.network_work(network, batch_of(count))
        for title, ways in (("from image to boxes", whole), ("network and decoding", inner)):
            measured = common.take_turns(ways, 2 * args.repeats, device)[0], {}
            work = (flops, {name: rate_of(name, rates) for name in ways})
            rows = common.show(f"{args.net}, {args.size}, {count} image(s): {title}", measured, count, work=work)
            table.add(*rows, net=f"{args.net}, {args.size}", kind="inference", part=title, batch=count)


def memory(args, device: torch.device, table: Table) -> None:
    """Measure peak memory and images per second of a training step by batch size."""
    batches = (2,) if args.small else (16, 32, 64, 128, 256)
    for batch in batches:
        opt, sized = options(args), SimpleNamespace(arch=args.net, size=args.size, batch=batch)
        sent = pinned(make_batch(sized, opt), device)
        for name, amp in (("float32", "off"), ("bf16", "bf16")):
            ways: dict[str, Callable] = {}
            table.attempt(name, partial(ours, sized, opt, sent, device, {}, amp), ways)
            if ways:
                measured = common.take_turns(ways, args.repeats, device)
                rows = common.show(f"{args.net}, {args.size}, batch {batch}", measured, batch)
                table.add(*rows, net=f"{args.net}, {args.size}", kind="memory", batch=batch)
            ways.clear()
            if device.type != "cpu":
                torch.accelerator.empty_cache()


def profile_train(args, device: torch.device, table: Table) -> None:
    """Profile training steps of the real trainer, in bf16: where time is spent, waits of the host, kernels."""
    opt = options(args, "--amp", "bf16", "--batch_size", str(args.batch))
    network = common.make_network(args.net).to(device, memory_format=torch.channels_last)
    env = Distributed(0, 1, 0, device)
    trainer = Trainer(opt, build_task(opt), network, build_optimizer(opt, network, device), env)
    trainer.model.train()
    sent = pinned(make_batch(args, opt), device)

    def step() -> None:
        trainer.step(finish_batch(to_device(sent, device), trainer.task))

    trace = args.output / f"{args.step}_{args.net}_trace.json.gz"
    table.add(profiling.profile(step, device, trace, 3 if args.small else 10), net=args.net, batch=args.batch)


def profile_inference(args, device: torch.device, table: Table) -> None:
    """Profile inference from image to boxes, one image at a time, in bf16."""
    network = common.make_network(args.net).eval().to(device)
    detector = Detector(build_task(options(args, "--amp", "bf16")), fuse(network), device)
    image = common.make_image(np.random.default_rng(0))
    trace = args.output / f"{args.step}_{args.net}_trace.json.gz"
    found = profiling.profile(lambda: detector.run([image]), device, trace, 3 if args.small else 20)
    table.add(found, net=args.net, batch=1)


def loader(args, device: torch.device, table: Table) -> None:
    """Measure the data path alone: images per second that the loader brings to the device, by number of workers."""
    cores = table.content["where"]["cores"]
    workers = (0, 1) if args.small else [n for n in (0, 1, 2, 4, 8, 12, 16) if n <= cores]
    count, seconds = (8, 1.0) if args.small else (512, 20.0)
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder) / "coco", count)
        opt = options(args, "--data_path", folder, "--num_epochs", "100000")
        task = build_task(opt)
        samples = Samples(get_dataset("coco")(task, "train"), train=True)
        for number in workers:
            batches = TrainBatches(count, [args.batch], 0, opt.seed)
            stream = make_loader(samples, batches, number, device.type != "cpu")
            images, started = 0, 0.0
            for epoch in range(1, opt.num_epochs):
                batches.epoch = epoch
                for batch in stream:
                    finish_batch(to_device(batch, device), task)
                    images += args.batch if started else 0
                if started and time.perf_counter() - started > seconds:
                    break
                started = started or time.perf_counter()  # the first epoch starts the workers
            if device.type != "cpu":
                torch.accelerator.synchronize()
            rate = images / (time.perf_counter() - started)
            print(f"  {number:3} worker(s)  {rate:9.1f} images/s", flush=True)
            table.add({"name": f"{number} workers", "images_per_second": rate}, net=f"coco, {args.size}", kind="loader")
            del stream


def deform_conv(args, device: torch.device, table: Table) -> None:
    """Time the deformable convolutions of a network alone, forward and backward, by implementation and type."""
    operators = {
        "torchvision's operator": torchvision.ops.deform_conv2d,
        "PyTorch operations": partial(deform_conv2d, implementation="torch"),
        "Triton": TRITON,
    }
    total: dict[str, float] = {}
    for (shape, out_channels), count in layer_sizes(args.net, args.batch, args.size).items():
        layer = Layer(shape, out_channels, device)
        ways: dict[str, Callable] = {}
        for amp, kind in (("off", "float32"), ("bf16", "bf16")):
            for name, operator in operators.items():
                table.attempt(f"{name}, {kind}", partial(layer.checked, operator, amp), ways)
        measured = common.take_turns(ways, args.repeats, device)
        title = f"{count} x {'x'.join(map(str, shape))} to {out_channels}"
        rows = common.show(f"{title}, forward and backward", measured, shape[0])
        table.add(*rows, net=args.net, kind="deform_conv", layer=title, count=count)
        for row in rows:
            total[row["name"]] = total.get(row["name"], 0) + count * row["ms"]
    for name, value in total.items():
        print(f"  all layers of {args.net}: {name:44}{value:10.2f} ms")
    table.add({"name": "all layers", "ms": total}, net=args.net, kind="deform_conv")


class Layer:
    """A deformable convolution with offsets of standard deviation 1, and its expected output and gradients."""

    def __init__(self, shape: tuple[int, ...], out_channels: int, device: torch.device) -> None:
        batch, channels, height, width = shape
        torch.manual_seed(0)
        sizes = [shape, (batch, 18, height, width), (out_channels, channels, 3, 3), (out_channels,)]
        values = [torch.randn(size) for size in sizes] + [torch.rand(batch, 9, height, width)]
        values[0] = values[0].contiguous(memory_format=torch.channels_last)
        self.device = device
        self.inputs = [value.to(device).requires_grad_() for value in values]
        self.grad = torch.randn(batch, out_channels, height, width).to(device)
        self.expected = self.run(torchvision.ops.deform_conv2d, "off")

    def run(self, operator: Callable, amp: str) -> list[Tensor]:
        """Return the output and the gradients."""
        x, offset, weight, bias, mask = self.inputs
        mixed = contextlib.nullcontext() if amp == "off" else torch.autocast(self.device.type, torch.bfloat16)
        with mixed:
            x = x if amp == "off" else x.bfloat16()  # as the layer before gives it
            y = operator(x, offset, weight, bias, padding=1, mask=mask)
        return [y, *torch.autograd.grad(y, self.inputs, self.grad.to(y.dtype))]

    def checked(self, operator: Callable, amp: str) -> Callable[[], list[Tensor]]:
        """Return a pass as a function, whose results are those of torchvision's operator in float32."""
        names = ("output", "grad of input", "of offset", "of weight", "of bias", "of mask")
        for name, own, other in zip(names, self.run(operator, amp), self.expected, strict=True):
            # The derivative by the offset jumps at pixels, to which rounding to bf16 moves nothing: offsets are exact.
            error = float((own - other).detach().double().norm() / other.detach().double().norm())
            if not error <= (1e-4 if amp == "off" else 3e-2):
                raise ValueError(f"{name} differs by {error:.1e}")
        return lambda: self.run(operator, amp)


def summarize(folder: Path) -> None:
    """Print the tables of training and inference next to published numbers."""
    rows = []
    for path in sorted(folder.glob("*.json")):
        content = read_json(path)
        if isinstance(content, dict) and "rows" in content:
            device = content["where"]["device"]
            rows += [{**row, "device": device} for row in content["rows"] if "ms" in row and "kind" in row]
    for kind, published in PUBLISHED.items():
        print(f"\n{kind}")
        for what, number, unit, source in published:
            print(f"  {what:18}{number:10.2f} {unit:10}{source}")
        for row in (row for row in rows if row["kind"] == kind and row.get("part") != "network and decoding"):
            number, unit = (row["images_per_second"], "images/s") if kind == "training" else (row["ms"], "ms")
            more = f"here: {row['name']}, batch {row['batch']}, {row['device']}, x {row['speedup']:.2f}"
            print(f"  {row['net']:18}{number:10.2f} {unit:10}{more}")


STEPS: dict[str, Callable] = {
    "environment": environment,
    "train": train,
    "infer": infer,
    "memory": memory,
    "profile_train": profile_train,
    "profile_inference": profile_inference,
    "loader": loader,
    "deform_conv": deform_conv,
    "summary": summarize,
}
GENERAL = ("environment", "loader", "summary")  # steps that do not depend on a network

if __name__ == "__main__":
    main()
