"""A profile of some steps in numbers: time by operator, waits of the host, kernels, idle time of the device."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from centernet.utils.files import atomic_path

ROWS = 25  # operators or kernels that are listed
# Operators that make the host wait for a result of the device.
READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::is_nonzero", "aten::equal")


def profile(step: Callable, device: torch.device, trace: Path, steps: int) -> dict:
    """Run a step several times under the profiler, print a table, and return its numbers per step.

    Args:
        step: the function to profile.
        device: where it computes.
        trace: file for the whole trace, ``.json.gz``, which https://ui.perfetto.dev displays.
        steps: number of profiled runs, after three others.
    """
    for _ in range(3):
        step()
    _wait(device)
    activities = {ProfilerActivity.CPU} | ({ProfilerActivity.CUDA} if device.type == "cuda" else set())
    with torch.profiler.profile(activities=activities) as run:
        for _ in range(steps):
            step()
        _wait(device)
    with atomic_path(trace) as path:
        run.export_chrome_trace(str(path))
    events = list(run.events() or ())
    host = [event for event in events if event.device_type == DeviceType.CPU]
    kernels = [event for event in events if event.device_type != DeviceType.CPU]
    waits = [event for event in host if "Synchronize" in event.name]
    launches = sum("LaunchKernel" in event.name for event in host)
    span = (max(e.time_range.end for e in events) - min(e.time_range.start for e in events)) / 1000
    busy = _covered([(event.time_range.start, event.time_range.end) for event in kernels]) / 1000
    found = {
        "ms": span / steps,
        "device_busy_ms": busy / steps,
        "device_idle_ms": (span - busy) / steps if kernels else None,
        "kernels": len(kernels) / steps,
        "kernel_launches": launches / steps,
        "host_waits": len(waits) / steps,
        "host_waits_ms": sum(event.time_range.elapsed_us() for event in waits) / 1000 / steps,
        "reads": {name: n / steps for name, n in Counter(e.name for e in host).items() if name in READS},
    }
    for name, value in found.items():
        print(f"  {name:20}{value if not isinstance(value, float) else round(value, 3)}")
    # By kernel where there are any, else by operator, each without what it calls.
    seconds, count = Counter(), Counter()
    for event in kernels or host:
        seconds[event.name] += event.time_range.elapsed_us() if kernels else event.self_cpu_time_total
        count[event.name] += 1
    total = sum(seconds.values())
    found["operators"] = [
        {"name": name, "ms": value / 1000 / steps, "share": value / total, "count": count[name] / steps}
        for name, value in seconds.most_common(ROWS)
    ]
    for row in found["operators"]:
        print(f"  {row['ms']:9.3f} ms {100 * row['share']:5.1f} % {row['count']:7.1f} x  {row['name'][:45]}")
    return found


def _covered(intervals: list[tuple[float, float]]) -> float:
    """Return the length of the union of intervals."""
    total, last = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, last))
        last = max(last, end)
    return total


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()
