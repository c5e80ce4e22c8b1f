"""Start one process per device as ``torchrun`` does, with its arguments, but end with one line when a process fails."""

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

if __name__ == "__main__" and hasattr(signal, "SIGUSR1"):
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # until it is passed on: the imports below take seconds

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

# This file is also run by its path.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from centernet.options import Options
from centernet.utils import environment

# Seconds without a process of its own after which a launcher of several machines ends: more than the 300 that PyTorch's
# waits at the end for the other machines. If the network is cut, it waits for their answer without limit.
PATIENCE = 330


def main(args: list[str] | None = None) -> int:
    """Run ``torchrun`` with ``args`` and return the exit status: that of the process that failed first, or 0."""
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, _pass_on)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # replaced by the messages below
    parsed = parse_args(args)
    if parsed.nproc_per_node.isdigit():
        # Otherwise torchrun gives each process one thread, and warns about it.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // max(1, int(parsed.nproc_per_node)))))
    if parsed.nnodes != "1" and int(parsed.max_restarts) == 0:
        threading.Thread(target=_end_without_processes, args=(PATIENCE,), daemon=True).start()
    try:
        run(parsed)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            _report(f"process {rank} (pid {failure.pid}) was ended by {name}{_hint(name)}; all others are stopped")
            return 128 - failure.exitcode
        _report(f"process {rank} ended with status {failure.exitcode}; all others are stopped")
        return failure.exitcode
    except SignalException as error:
        _report(f"ended by {error.sigval.name}; all processes are stopped")
        return 128 + error.sigval
    except RuntimeError as error:  # DistError is one
        text = str(error).splitlines()[0]
        if "EADDRINUSE" in str(error):
            text = "the port is in use already; choose another --master_port or --rdzv_endpoint, or use --standalone"
        _report(f"the processes cannot be started: {text}")
        return 2
    return 0


def start_per_device(opt: Options, script: str) -> None:
    """Replace this process by the launcher if it is alone and ``--gpus`` names several devices: one process for each.

    The reference trains with several devices in one process. As there, ``--num_workers`` is the number for all.
    """
    count = len(opt.gpus)
    if count < 2 or opt.prepare_only or opt.device == "cpu" or environment.number("WORLD_SIZE", 1) > 1:
        return
    if not torch.accelerator.is_available():
        print(f"note: --gpus {opt.gpus_str}: no accelerator on this machine, so one process uses the CPU", flush=True)
        return
    workers = ["--num_workers", str(-(-opt.num_workers // count))] if "num_workers" in opt.given else []
    divided = f", each with {workers[1]} of the {opt.num_workers} workers" if workers else ""
    print(f"note: --gpus {opt.gpus_str}: starting {script} in {count} processes, one per device{divided}", flush=True)
    launch = [sys.executable, __file__, "--standalone", f"--nproc_per_node={count}"]
    os.execv(sys.executable, [*launch, script, *sys.argv[1:], *workers])


def cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _hint(name: str) -> str:
    if name != "SIGKILL":
        return ""
    return " (by a user, or by the system when out of memory: use a smaller --batch_size or fewer --num_workers)"


def _report(text: str) -> None:
    with contextlib.suppress(OSError):  # standard error was closed
        print(f"error: {text}", file=sys.stderr, flush=True)


def _children() -> list[int]:
    """Return the ids of the processes that this one has started and that still exist; Linux only, elsewhere none."""
    found: list[int] = []
    for path in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that has ended
            found += map(int, path.read_text(encoding="utf-8").split())
    return found


def _pass_on(number: int, frame) -> None:
    """Pass SIGUSR1, which requests a checkpoint, on to every process that receives it: others would be ended by it."""
    for child in _children():
        with contextlib.suppress(OSError):  # it has ended
            if _catches(child, number):
                os.kill(child, number)


def _catches(process: int, number: int) -> bool:
    """Return whether a process has a handler for a signal; Linux only."""
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8", errors="replace")
    mask = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(mask, 16) >> (number - 1) & 1)


def _end_without_processes(patience: float) -> None:
    """End this process when its training processes have been gone for ``patience`` seconds. Runs in a thread."""
    started, last = False, 0.0
    while not started or time.monotonic() - last < patience:
        if _children():
            started, last = True, time.monotonic()
        time.sleep(min(1.0, patience / 4))
    _report(f"all processes of this machine ended {patience:.0f} s ago, and the other machines cannot be reached")
    os._exit(3)


if __name__ == "__main__":
    sys.exit(main())
