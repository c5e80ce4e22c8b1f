"""Shared by the benchmarks: interleaved timing of alternatives, throughput, peak memory, and the tables."""

import argparse
import contextlib
import ctypes
import datetime
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from centernet.datasets.synthetic.base import smooth_noise
from centernet.models import create_model, deform_conv, describe
from centernet.models.deform_conv import DCN

HEADS = {"hm": 80, "wh": 2, "reg": 2}
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def make_parser(doc: str) -> argparse.ArgumentParser:
    """Return a parser with the options of all benchmarks."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads; default: all")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of interleaved measurements")
    return parser


def start(args: argparse.Namespace, name: str = "auto") -> torch.device:
    """Set the number of threads, print the environment, and return the device: auto is an accelerator if available."""
    torch.set_num_threads(args.threads)
    device = torch.device("cpu" if name == "auto" else name)
    if name == "auto" and torch.accelerator.is_available():
        device = torch.accelerator.current_accelerator()
    clock = "processor time" if by_processor(device) else "time by the clock"
    print(
        f"{name_of(device)}, {args.threads} CPU thread(s), torch {torch.__version__}, Python "
        f"{platform.python_version()}, {datetime.date.today()}; {clock}, median (least - greatest)"
    )
    return device


def name_of(device: torch.device) -> str:
    """Return the name of a device or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), device.type)


def by_processor(device: torch.device) -> bool:
    """Return whether to measure CPU time: with one thread, since other work on the machine hardly affects it."""
    return device.type == "cpu" and torch.get_num_threads() == 1


def take_turns(
    ways: dict[str, Callable], repeats: int, device: torch.device, by_clock: bool = False
) -> tuple[dict, dict]:
    """Return seconds and peak memory in MiB of each alternative, after one warm-up run each.

    The memory is what the device holds at most, or on a CPU what the process holds more than before (Linux only, else
    None).
    """
    clock = time.process_time if by_processor(device) and not by_clock else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    memory: dict[str, float | None] = {}
    for repeat in range(-1, repeats):
        for name, way in ways.items():
            with _peak(memory, name, device) if repeat < 0 else contextlib.nullcontext():
                _wait(device)
                begun = clock()
                way()
                _wait(device)
                passed = clock() - begun
            if repeat >= 0:
                seconds[name].append(passed)
    return seconds, memory


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


@contextlib.contextmanager
def _peak(memory: dict, name: str, device: torch.device) -> Iterator[None]:
    if device.type != "cpu":
        torch.accelerator.reset_peak_memory_stats()
        yield
        memory[name] = torch.accelerator.max_memory_allocated() / 2**20
        return
    try:
        ctypes.CDLL(None).malloc_trim(0)
        CLEAR.write_text("5")  # resets the kernel's peak measurement
        before = _status("VmRSS")
    except (OSError, AttributeError):
        before = None
    yield
    memory[name] = None if before is None else (_status("VmHWM") - before) / 1024


def once(function: Callable) -> tuple[float, float | None]:
    """Return CPU seconds and peak memory in MiB of one call."""
    memory: dict[str, float | None] = {}
    with _peak(memory, "", torch.device("cpu")):
        begun = time.process_time()
        function()
        passed = time.process_time() - begun
    return passed, memory[""]


def resident() -> float:
    """Return the resident memory of the process in MiB (Linux)."""
    ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS") / 1024


def private() -> float:
    """Return the private memory of the process in MiB (Linux)."""
    return _rollup("self", "Private_")


def proportional(process: int) -> float:
    """Return the proportional set size of a process in MiB (Linux)."""
    return _rollup(process, "Pss:")


def _rollup(process: int | str, start: str) -> float:
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(start)) / 1024


def _status(name: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])


def show(
    title: str, measured: tuple[dict, dict], items: int | None = None, unit: str = "images", work: tuple = ()
) -> list[dict]:
    """Print a row per alternative: milliseconds, throughput, memory, and speedup over the first one.

    Args:
        measured: what ``take_turns`` gives.
        items: how many ``unit`` one turn works on.
        work: operations of one turn and the operations a second of matrix products, or these by alternative, for the
            fraction of the latter.

    Returns:
        The rows: ``name``, ``ms``, ``ms_least``, ``ms_greatest``, ``speedup``, and where known ``<unit>_per_second``,
        ``peak_mib`` and ``fraction_of_matrix_products``.
    """
    seconds, memory = measured
    first = statistics.median(next(iter(seconds.values())))
    print(f"\n{title}")
    rows = []
    for name, values in seconds.items():
        middle = statistics.median(values)
        row = {"name": name, "ms": 1000 * middle, "ms_least": 1000 * min(values), "ms_greatest": 1000 * max(values)}
        text = f"  {name:32}{row['ms']:11.2f} ms ({row['ms_least']:.2f} - {row['ms_greatest']:.2f})"
        if items is not None:
            row[f"{unit}_per_second"] = items / middle
            text += f"  {items / middle:10.1f} {unit}/s"
        if memory.get(name) is not None:
            row["peak_mib"] = memory[name]
            text += f"  {memory[name]:8.0f} MiB"
        if work:
            rate = work[1][name] if isinstance(work[1], dict) else work[1]
            row["fraction_of_matrix_products"] = work[0] / middle / rate
            text += f"  {100 * work[0] / middle / rate:4.0f} % of matrix products"
        row["speedup"] = first / middle
        rows.append(row)
        print(f"{text}  x {first / middle:.2f}", flush=True)
    return rows


def make_image(rng: np.random.Generator, height: int = 480, width: int = 640) -> np.ndarray:
    """Return (height, width, 3) uint8 of patches and noise, about as hard to compress as a photograph."""
    layers = [smooth_noise(rng, height, width, 40) * 40 + smooth_noise(rng, height, width, 4) * 12 for _ in range(3)]
    image = 128 + np.stack(layers, axis=2) + rng.normal(0, 6, (height, width, 3))
    return image.clip(0, 255).astype(np.uint8)


def make_network(arch: str, heads: dict[str, int] = HEADS) -> nn.Module:
    """Return a network as training leaves it: nonzero offsets, and running statistics that fit the data.

    Without that a network in evaluation mode has activations so small that the processor handles them as exceptions.
    """
    torch.manual_seed(0)
    model = create_model(arch, heads, describe(arch)[0].head_conv).train()
    for module in model.modules():
        if isinstance(module, DCN):
            nn.init.normal_(module.conv_offset_mask.weight, std=0.003)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None
    with torch.no_grad():
        model(torch.randn(2, 3, 128, 128))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    with torch.no_grad():  # scores that are neither 0 nor 1
        for name in heads:
            list(getattr(model, name).parameters())[-2].mul_(0.1)
    return model


@contextlib.contextmanager
def operator(function: Callable) -> Iterator[None]:
    """Use this deformable convolution in networks within the context."""
    own = deform_conv.deform_conv2d
    deform_conv.deform_conv2d = function
    try:
        yield
    finally:
        deform_conv.deform_conv2d = own


def network_work(model: nn.Module, x: Tensor) -> int:
    """Return the FLOPs (two per multiplication) of a forward pass's convolutions; backward has twice as many."""
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
        nonlocal total
        places = inputs[0] if isinstance(module, nn.ConvTranspose2d) else y
        total += 2 * module.weight.numel() * places.shape[0] * places.shape[2:].numel()

    kinds = (nn.Conv2d, nn.ConvTranspose2d, DCN)
    hooks = [module.register_forward_hook(count) for module in model.modules() if isinstance(module, kinds)]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return total


def matrix_rate(device: torch.device, dtype: torch.dtype = torch.float32, side: int | None = None) -> float:
    """Return the FLOP/s of a product of matrices with ``side`` rows; None: 1024 on a CPU, elsewhere 8192."""
    side = side or (1024 if device.type == "cpu" else 8192)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds, _ = take_turns({"product": lambda: a @ b}, 5, device)
    return 2 * side**3 / min(seconds["product"])


def check(name: str, own, other, tolerance: float) -> None:
    """Exit unless two results are equal to ``tolerance``, relative to the greatest value."""
    own, other = (
        (value.detach() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)).double().cpu()
        for value in (own, other)
    )
    if own.shape != other.shape:
        raise SystemExit(f"{name}: shapes {tuple(own.shape)} and {tuple(other.shape)} differ")
    error = float((own - other).abs().max() / other.abs().max().clamp(min=1e-12)) if own.numel() else 0.0
    if not error <= tolerance:
        raise SystemExit(f"{name}: the results differ by {error:.1e}, more than {tolerance:.0e}")
    print(f"equal: {name}, to {error:.0e}")
