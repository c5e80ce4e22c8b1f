"""The processes of a run and the device of each: one process a device, started by torchrun or alone."""

import contextlib
import ctypes
import datetime
import errno
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import UserError
from ..options import Options, process_shares
from ..utils.text import make_streams_tolerant, print_lines
from .signals import ShutdownRequested
from .watchdog import Watchdog

GRACE = 10  # seconds that a process waits for the launcher after it has lost a companion
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
_watchdog: Watchdog | None = None  # of the processes of a run, if there are several


@dataclass
class Processes:
    """What a process needs to know of the others.

    Attributes:
        rank: number of this process, 0 writes and prints.
        count: how many there are.
        local_rank: number on this machine.
        device: where this process computes.
    """

    rank: int
    count: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def print(self, *values) -> None:
        """Print on rank 0; control characters of names in ``values`` are escaped, all but line breaks."""
        if self.is_main:
            print_lines(" ".join(map(str, values)))

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes; the tensor itself when there is one. Not differentiable."""
        if self.count > 1:
            _watchdog.step()
            tensor = tensor.detach().clone()
            dist.all_reduce(tensor)
        return tensor

    def barrier(self) -> None:
        """Wait for all processes, however long one of them works, as long as it lives."""
        if self.count > 1:
            _watchdog.meet()

    def local_main_process_first(self, prepare: Callable[[], Any]) -> Any:
        """What ``prepare`` gives: one process of each machine runs it first and the others when it is done.

        For what is downloaded, converted or drawn once and then found by all.
        """
        for first in (True, False):
            if first == (self.local_rank == 0):
                result = prepare()
            self.barrier()
        return result

    def load_once_per_node(self, read: Callable[[], Any]) -> Any:
        """What ``read`` gives: one process of each machine reads, the others get a copy of it.

        For what takes long or much memory to read and is small when it has been read. Any picklable object.
        """
        if self.count == 1:
            return read()
        value = [read() if self.local_rank == 0 else None]
        self.barrier()
        leader = self.rank - self.local_rank  # the launcher numbers the processes of a machine in a row
        leaders = [None] * self.count
        dist.all_gather_object(leaders, leader)
        for first in sorted(set(leaders)):
            members = [rank for rank, other in enumerate(leaders) if other == first]
            group = dist.new_group(members, backend="gloo")  # all processes take part in making each
            if first == leader and len(members) > 1:
                dist.broadcast_object_list(value, src=leader, group=group)
        return value[0]

    def gather(self, value: Any) -> list[Any] | None:
        """The values of all processes on rank 0, None on the others. Any picklable object."""
        if self.count == 1:
            return [value]
        _watchdog.step()
        values = [None] * self.count if self.is_main else None
        dist.gather_object(value, values)
        return values

    def share(self, value: Any) -> Any:
        """Rank 0's value on all processes."""
        values = [value]
        if self.count > 1:
            _watchdog.step()
            dist.broadcast_object_list(values)
        return values[0]

    def check_equal(self, facts: dict[str, Any]) -> None:
        """Raise UserError on all processes when one of them has other ``facts``, plain values by what they are."""
        gathered = self.share(self.gather(facts))
        for name, value in gathered[0].items():
            others = [rank for rank, theirs in enumerate(gathered) if theirs[name] != value]
            if others:
                raise UserError(
                    f"the processes do not agree on {name}: rank 0 has {value}, rank {others[0]} has "
                    f"{gathered[others[0]][name]} (differing: {', '.join(map(str, others))}); start all of them with "
                    "the same command and the same data"
                )

    def broadcast_buffers(self, model: torch.nn.Module) -> None:
        """Give all processes rank 0's buffers (the batch statistics, which each gathers from its own images)."""
        if self.count > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)


def start(opt) -> Processes:
    """Join the other processes, if torchrun started several, and choose the device.

    Every process with an accelerator of its own talks through the accelerator's own library (NCCL on CUDA); processes
    that share one, and processes on the CPU, talk through gloo.

    Raises UserError when the device does not exist, the options ask for what the processes cannot do, or not all
    processes come within ``--dist_timeout``.
    """
    rank, count, local_rank = _places()
    if count == 1 and len(opt.gpus) > 1 and not opt.prepare_only:
        raise UserError(
            f"--gpus {opt.gpus_str}: one process was started for {len(opt.gpus)} devices; start one a device with "
            f"torchrun --nproc_per_node={len(opt.gpus)} src/main.py ..."
        )
    if min(process_shares(opt, count)) < 1:
        raise UserError(f"--batch_size {opt.batch_size}: less than one image for one of {count} processes")
    device, exclusive = _choose_device(opt, local_rank)
    if opt.sync_bn and (device.type == "cpu" or (count == 1 and not opt.prepare_only)):
        raise UserError("--sync_bn: needs several processes, each on an accelerator")
    if count > 1:
        _die_with_parent()
        backend = "cpu:gloo"
        if device.type != "cpu":
            own = dist.get_default_backend_for_device(device) if exclusive else "gloo"
            backend += f",{device.type}:{own}"
        _meet(backend, rank, count, opt.dist_timeout)
    return Processes(rank, count, local_rank, device)


def _places() -> tuple[int, int, int]:
    """Rank, number of processes and rank on this machine, as the launcher says. Raises UserError where it cannot be."""
    values = []
    for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)):
        text = os.environ.get(name, str(default))
        if not text.isascii() or not text.isdigit():
            raise UserError(f"the environment variable {name} is {text!r}, not a number; start processes with torchrun")
        values.append(int(text))
    rank, count, local_rank = values
    if rank >= max(count, 1):
        raise UserError(f"RANK is {rank}, but WORLD_SIZE is {count}: ranks are numbered from 0; start with torchrun")
    return rank, max(count, 1), local_rank


def _meet(backend: str, rank: int, count: int, timeout: float) -> None:
    """Join the process group. Raises UserError, naming who is missing, when that does not succeed in time."""
    global _watchdog
    limit = datetime.timedelta(seconds=timeout)
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=limit))
        store.set_timeout(limit)
        # A connection of its own where there is such a thing: PyTorch may wait on the other one.
        own = store.clone() if hasattr(store, "clone") else store
        # The launcher may keep one store for all its attempts.
        attempt = f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
        store = dist.PrefixStore(attempt, store)
        _watchdog = Watchdog(dist.PrefixStore(f"{attempt}/companions", own), rank, count, timeout)
        _watchdog.wait_for_all()
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=limit)
    except UserError:
        raise
    except (ValueError, RuntimeError) as error:  # DistError is one
        text = str(error).partition("\n")[0]
        if "EADDRINUSE" in text or "address already in use" in text.lower():
            raise UserError(f"{place}: this port is in use already; choose another MASTER_PORT") from error
        if "imed out" in text or "imeout" in text or "joined" in text:
            raise UserError(
                f"rank {rank} did not meet the others at {place} within {timeout:g} s (--dist_timeout): were "
                f"WORLD_SIZE = {count} processes started, and can they reach this address?"
            ) from error
        raise UserError(f"the {count} processes could not meet at {place} ({text})") from error
    _watchdog.start()


def _choose_device(opt, local_rank: int) -> tuple[torch.device, bool]:
    """The device of a process, and whether each process of this machine has one of its own."""
    available = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if opt.device == "cpu" or opt.gpus == [-1] or (opt.device == "auto" and available is None):
        return torch.device("cpu"), False
    kind = available.type if opt.device == "auto" else opt.device
    if available is None or available.type != kind:
        have = f"cpu and {available.type}" if available else "only the cpu"
        raise UserError(
            f"--device {opt.device}: not on this machine, or PyTorch's package for it is missing; has {have}"
        )
    count = torch.accelerator.device_count()
    # The default names device 0, which would put every process there: it is taken as "all there are".
    ids = [int(part) for part in opt.gpus_str.split(",")] if opt.gpus_str != "0" else list(range(count))
    if max(ids) >= count:
        raise UserError(f"--gpus {opt.gpus_str}: this machine has {count} devices, numbered from 0")
    index = ids[local_rank % len(ids)]
    torch.accelerator.set_device_index(index)
    return torch.device(kind, index), int(os.environ.get("LOCAL_WORLD_SIZE", 1)) <= len(ids)


def tune_malloc(device: torch.device) -> None:
    """Let glibc, where there is glibc, keep freed memory for the next tensors of a CPU.

    It would give large blocks back to the system at once, which then has to clear every page of the next ones: 4 % of
    a training step and more. For processes of our own, once the annotations are read, whose memory shall go back.
    """
    if device.type == "cpu" and sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            m_trim_threshold, m_mmap_max = -1, -4  # of malloc.h
            libc = ctypes.CDLL(None)
            libc.malloc_trim(0)
            libc.mallopt(m_mmap_max, 0)
            libc.mallopt(m_trim_threshold, 2**31 - 1)


def _die_with_parent() -> None:
    """On Linux, end when the launcher ends, however that happens: a killed launcher leaves no orphans."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            pr_set_pdeathsig = 1
            ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def run_script(main: Callable[[Options], None], opt: Options) -> None:
    """Run ``main(opt)``, and end with a clear line and status where it fails.

    Errors the user can fix end with ``error: ...`` and status 2, a signal with 128 plus its number; anything else is a
    defect and shows its traceback, status 1. Of several processes only the first to fail reports: the others find the
    same mistake, or have lost a peer, and would bury the reason.
    """
    make_streams_tolerant()
    try:
        main(opt)
        if dist.is_initialized():
            _watchdog.leave()
            dist.destroy_process_group()
        return
    except ShutdownRequested as stopped:
        report, status = str(stopped), stopped.status
    except KeyboardInterrupt:
        report, status = "interrupted", 130
    except UserError as error:
        report, status = f"error: {error}", 2
    except Exception as error:
        try:
            report, status = _failure(error)
        except (
            Exception,
            ShutdownRequested,
            KeyboardInterrupt,
        ):  # store unreachable, or the launcher is shutting us down
            report, status = "stopped, because another process has ended", 3
    if dist.is_initialized():
        # Nothing that comes now, such as the launcher's signal, shall cover the report with a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Before they have met, the processes of a machine find the same.
    if _watchdog.first_to_fail() if _watchdog else os.environ.get("LOCAL_RANK", "0") == "0":
        rank = os.environ.get("RANK")
        print_lines((f"[rank {rank}] " if rank is not None else "") + report, file=sys.stderr)
    if dist.is_initialized():
        if dist.get_rank() == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            time.sleep(1)  # it keeps the store, which the others ask whether they are the first to report
        # Leaving the group properly could wait for processes that are gone.
        sys.stdout.flush()
        os._exit(status)
    raise SystemExit(status)


def _failure(error: Exception) -> tuple[str, int]:
    """What to report of an error that the user cannot mend by other options, and the exit status."""
    if dist.is_initialized() and (late := _watchdog.late(error)):
        return late, 3
    if dist.is_initialized() and _lost_peer(error):
        time.sleep(GRACE)  # the launcher ends this process meanwhile, and reports the one that failed
        return "stopped, because another process has ended", 3
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return f"error: {error.filename or 'a file'} could not be written: {error.strerror}", 2
    return traceback.format_exc(), 1


def _lost_peer(error: Exception) -> bool:
    """Whether an error says that another process cannot be reached any more."""
    signs = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "gloo", "Socket")
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in signs)
