"""The processes of a run, one per device, started by torchrun or alone, and the device of each."""

import contextlib
import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import UserError
from ..options import Options, process_shares
from ..utils import environment
from ..utils.failures import explain
from ..utils.streams import OutputClosed
from ..utils.text import make_streams_tolerant, print_lines
from ..utils.tool import error_line
from .signals import ShutdownRequested
from .staging import HostStaged
from .watchdog import STATUS, UNLIMITED, Watchdog

LOST_PEER = "stopped, because another process has ended", STATUS
GRACE = 10  # seconds that a process waits for the launcher after it has lost a peer
# Options in which the processes of a run may differ: paths and resources of a machine, and what rank 0 prints.
OWN_OPTIONS = {
    *("data_path", "train_annotations", "val_annotations", "train_images", "val_images", "exp_dir", "load_model"),
    *("gpus", "num_workers", "print_iter", "hide_data_time", "output_dir"),
}
_watchdog: Watchdog | None = None  # if there are several processes


@dataclass
class Distributed:
    """This process among the others of a run.

    Attributes:
        rank: number of this process; rank 0 writes and prints.
        world_size: number of processes.
        local_rank: number among the processes of this machine.
        device: where this process computes.
        group: the process group for tensors of the device, None for one process.
    """

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    group: dist.ProcessGroup | None = field(default=None, repr=False)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def print(self, *values) -> None:
        """Print on rank 0; control characters of names in ``values`` are escaped, all but line breaks."""
        if self.is_main:
            print_lines(" ".join(map(str, values)))

    def collective(self) -> contextlib.AbstractContextManager:
        """Mark a section in which every process waits for the others, for longer than a single operation.

        A process that does not come to it within ``--dist_timeout`` ends the run, and is named.
        """
        return watching().collective() if self.world_size > 1 else contextlib.nullcontext()

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes; the tensor itself for one process. Not differentiable."""
        if self.world_size > 1:
            tensor = tensor.detach().clone()
            with self.collective():
                dist.all_reduce(tensor, group=self._group_of(tensor))
        return tensor

    def barrier(self) -> None:
        """Wait for all processes, however long one of them works, as long as it is alive."""
        if self.world_size > 1:
            watching().barrier()

    def local_main_process_first(self, prepare: Callable[[], Any]) -> Any:
        """Run ``prepare`` on the local main process first, then on the others, and return its result.

        For files that one process downloads, converts or generates and all processes then find.
        """
        for first in (True, False):
            if first == (self.local_rank == 0):
                result = prepare()
            self.barrier()
        return result

    def load_once_per_node(self, read: Callable[[], Any]) -> Any:
        """Run ``read`` on one process of each machine, and return a copy of its result on all.

        For results, any picklable object, that take much time or memory to read but are small themselves.
        """
        if self.world_size == 1:
            return read()
        value = [read() if self.local_rank == 0 else None]
        self.barrier()
        leader = self.rank - self.local_rank  # the launcher numbers the processes of a machine in a row
        leaders: list[Any] = [None] * self.world_size
        with self.collective():
            dist.all_gather_object(leaders, leader)
            for first in sorted(set(leaders)):
                members = [rank for rank, other in enumerate(leaders) if other == first]
                # All processes take part in making each group.
                group: Any = dist.new_group(members, backend="gloo", timeout=UNLIMITED)
                if first == leader and len(members) > 1:
                    dist.broadcast_object_list(value, src=leader, group=group)
        return value[0]

    def gather(self, value: Any) -> list[Any] | None:
        """Return the values of all processes on rank 0, None on the others. Any picklable object."""
        if self.world_size == 1:
            return [value]
        values = [None] * self.world_size if self.is_main else None
        with self.collective():
            dist.gather_object(value, values)
        return values

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value on all processes. Any picklable object."""
        values = [value]
        if self.world_size > 1:
            with self.collective():
                dist.broadcast_object_list(values)
        return values[0]

    def check_equal(self, facts: dict[str, Any]) -> None:
        """Raise UserError on all processes if their ``facts``, plain values by name, differ."""
        gathered = self.broadcast(self.gather(facts))
        for name, value in gathered[0].items():
            others = [rank for rank, theirs in enumerate(gathered) if theirs.get(name) != value]
            if others:
                raise UserError(
                    f"the processes do not agree on {name}: rank 0 has {value}, rank {others[0]} has "
                    f"{gathered[others[0]].get(name)} (differing: {', '.join(map(str, others))}); start all of them "
                    "with the same command and the same data"
                )

    def broadcast_buffers(self, model: torch.nn.Module) -> None:
        """Give all processes rank 0's buffers (batch statistics, which each computes from its own images)."""
        if self.world_size > 1:
            with self.collective():
                for buffer in model.buffers():
                    dist.broadcast(buffer, group_src=0, group=self._group_of(buffer))

    def _group_of(self, tensor: Tensor) -> dist.ProcessGroup | None:
        return dist.group.WORLD if tensor.device.type == "cpu" else self.group


def watching() -> Watchdog:
    """Return the watchdog of a run of several processes."""
    if _watchdog is None:
        raise RuntimeError("processes.start has not been called")
    return _watchdog


def start(opt: Options) -> Distributed:
    """Join the other processes, if a launcher started several, and choose the device.

    Processes with exclusive use of an accelerator communicate through its library (NCCL on CUDA). Processes that share
    an accelerator, whose PyTorch package lacks such a library, or that run on the CPU use gloo; tensors of an
    accelerator are then staged through host memory.

    Raises:
        UserError: the device does not exist, the options are impossible for the processes or differ between them, or
            not all processes join within ``--dist_timeout``.
    """
    rank, world_size, local_rank = environment.place()
    if min(process_shares(opt, world_size)) < 1:
        raise UserError(f"--batch_size {opt.batch_size}: less than one image for one of {world_size} processes")
    device, exclusive = _choose_device(opt, local_rank)
    library = _collective_library(device) if exclusive else None
    synchronizes = device.type != "cpu" and (library is not None if world_size > 1 else opt.prepare_only)
    if opt.sync_bn and not synchronizes:
        raise UserError("--sync_bn: needs several processes, each with its own accelerator")
    if world_size == 1:
        return Distributed(rank, world_size, local_rank, device)
    environment.die_with_launcher()
    environment.check_launcher()
    group = _join(rank, world_size, local_rank, opt.dist_timeout, device, library)
    env = Distributed(rank, world_size, local_rank, device, group)
    env.check_equal(_shared_options(opt))
    return env


def _shared_options(opt: Options) -> dict[str, Any]:
    """Return the options that decide what the processes do together, and the script, by name."""
    from ..options.table import GENERAL
    from ..tasks import get_spec

    names = [*GENERAL, *(option.name for option in get_spec(opt.task).options)]
    values = {f"--{name}": getattr(opt, name) for name in names if name not in OWN_OPTIONS}
    return {"the script": os.path.basename(sys.argv[0]), "the task": opt.task, **values}


def _collective_library(device: torch.device) -> str | None:
    """Return the backend of ``torch.distributed`` for an accelerator, None if it has none."""
    if device.type == "cpu":
        return None
    try:
        backend = dist.get_default_backend_for_device(device)
    except ValueError:
        return None
    return backend if backend not in ("gloo", "undefined") and dist.is_backend_available(backend) else None


def _join(
    rank: int, world_size: int, local_rank: int, timeout: float, device: torch.device, library: str | None
) -> dist.ProcessGroup:
    """Join the process group, and return the group for tensors of the device.

    Raises UserError, naming who is missing, when that does not succeed in time.
    """
    global _watchdog
    limit = timedelta(seconds=timeout)
    address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=limit))
        store.set_timeout(limit)
        # The launcher may keep one store for all its attempts.
        attempt = f"attempt_{environment.restarts()}"
        # The watchdog has its own connection: PyTorch may be blocked on the other one.
        own = dist.PrefixStore(f"{attempt}/watchdog", store.clone())
        _watchdog = Watchdog(own, rank, world_size, timeout, local_rank, address)
        libraries = _watchdog.join(library)
        library = library if len(set(libraries)) == 1 else None  # gloo for all, where one of them needs it
        backend = f"cpu:gloo,{device.type}:{library}" if library else "cpu:gloo"
        with _watchdog.collective():
            # The watchdog keeps the time: that of PyTorch continues to run while all processes are suspended.
            dist.init_process_group(
                backend, store=dist.PrefixStore(attempt, store), rank=rank, world_size=world_size, timeout=UNLIMITED
            )
    except UserError:
        raise
    except (ValueError, RuntimeError) as error:  # DistError is one
        text = str(error).partition("\n")[0]
        if "EADDRINUSE" in text or "address already in use" in text.lower():
            raise UserError(f"{address}: this port is in use already; choose another MASTER_PORT") from error
        if "imed out" in text or "imeout" in text or "joined" in text:
            raise UserError(
                f"rank {rank} did not join the others at {address} within {timeout:g} s (--dist_timeout): were "
                f"WORLD_SIZE = {world_size} processes started, and can they reach this address?"
            ) from error
        raise UserError(f"the {world_size} processes could not connect to {address} ({text})") from error
    world = dist.group.WORLD
    assert world is not None  # it has just been made
    return world if library or device.type == "cpu" else HostStaged(world)


def _choose_device(opt: Options, local_rank: int) -> tuple[torch.device, bool]:
    """Return the device of a process, and whether no other process of this machine uses it."""
    available = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if opt.device == "cpu" or opt.gpus == [-1] or (opt.device == "auto" and available is None):
        return torch.device("cpu"), False
    kind = available.type if available is not None and opt.device == "auto" else opt.device
    if available is None or available.type != kind:
        have = f"cpu and {available.type}" if available else "only the cpu"
        raise UserError(
            f"--device {opt.device}: not on this machine, or PyTorch's package for it is missing; has {have}"
        )
    devices = torch.accelerator.device_count()
    # The default names device 0, which would put every process there: it is taken as "all that exist".
    ids = [int(part) for part in opt.gpus_str.split(",")] if opt.gpus_str != "0" else list(range(devices))
    if max(ids) >= devices:
        raise UserError(f"--gpus {opt.gpus_str}: this machine has {devices} device(s), numbered from 0")
    index = ids[local_rank % len(ids)]
    torch.accelerator.set_device_index(index)
    return torch.device(kind, index), environment.number("LOCAL_WORLD_SIZE", 1) <= len(ids)


def tune_malloc(device: torch.device) -> None:
    """Let glibc, where it is in use, keep freed memory for the next tensors of a CPU.

    By default it returns large blocks to the system at once, which then has to clear every page of the next ones: 4 %
    of a training step and more. Call it once the annotations have been read, whose memory is to be returned.
    """
    if device.type == "cpu" and sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            m_trim_threshold, m_mmap_max = -1, -4  # of malloc.h
            libc = ctypes.CDLL(None)
            libc.malloc_trim(0)
            libc.mallopt(m_mmap_max, 0)
            libc.mallopt(m_trim_threshold, 2**31 - 1)


def run_script(main: Callable[[Options], None], opt: Options) -> None:
    """Run ``main(opt)``, and end with a clear line and status where it fails.

    Errors the user can fix end with ``error: ...`` (``utils.tool.error_line``) and status 2, a signal with 128 plus its
    number; anything else is a defect and shows its traceback, status 1. Of several processes only the first to fail
    reports: the others find the same mistake, or have lost a peer, and would bury the reason.
    """
    make_streams_tolerant()
    environment.allow_open_files()
    try:
        main(opt)
        if dist.is_initialized():
            watching().leave()
            dist.destroy_process_group()
        sys.stdout.flush()
        return
    except ShutdownRequested as stopped:
        report, status = str(stopped), stopped.status
    except OutputClosed as closed:
        report, status = "stopped, because standard output was closed", int(closed.code or 0)
    except KeyboardInterrupt:
        report, status = "interrupted", 130
    except Exception as error:
        try:
            report, status = _failure(error)
        except (Exception, ShutdownRequested, KeyboardInterrupt):  # the launcher is shutting this process down
            report, status = LOST_PEER
    if dist.is_initialized():
        # Nothing that comes now, such as the launcher's signal, may cover the report with a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if _may_report(status):
        rank = os.environ.get("RANK")
        print_lines((f"[rank {rank}] " if rank is not None else "") + report, file=sys.stderr)
    with contextlib.suppress(OSError, ValueError, OutputClosed):
        sys.stdout.flush()
    if dist.is_initialized():
        if dist.get_rank() == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            time.sleep(1)  # rank 0 has the store, which the others ask whether they are the first to report
        os._exit(status)  # leaving the group properly could wait for processes that are gone
    raise SystemExit(status)


def _failure(error: Exception) -> tuple[str, int]:
    """Return what to report about an error, and the exit status."""
    if reason := explain(error):
        return error_line(reason), 2
    if isinstance(error, UserError):
        return error_line(error), 2
    if dist.is_initialized() and _is_lost_peer(error):
        time.sleep(GRACE)  # meanwhile the launcher ends this process, and reports the one that failed
        return LOST_PEER
    return traceback.format_exc(), 1


def _may_report(status: int) -> bool:
    """Return whether this process reports: the first of all to fail, and before they have met one per machine."""
    if _watchdog is None:
        return environment.reports()
    return _watchdog.first_to_fail(otherwise=status != STATUS or _watchdog.local_rank == 0)


def _is_lost_peer(error: Exception) -> bool:
    """Return whether an error indicates that another process is unreachable."""
    signs = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "gloo", "Socket")
    library = isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
    return library or isinstance(error, dist.DistError)
