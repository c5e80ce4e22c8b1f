"""The processes of a run and the device of each: one process a device, started by torchrun or alone."""

import contextlib
import ctypes
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
from ..opts import process_shares

GRACE = 10  # seconds that a process waits for the launcher after it has lost a companion
_store: dist.Store | None = None  # what the processes of a run tell each other outside the collective calls


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
        """Print on rank 0."""
        if self.is_main:
            print(*values, flush=True)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes; the tensor itself when there is one. Not differentiable."""
        if self.count > 1:
            tensor = tensor.detach().clone()
            dist.all_reduce(tensor)
        return tensor

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.count > 1:
            self.gather(None)

    def one_first(self, prepare: Callable[[], Any]) -> Any:
        """What ``prepare`` gives: one process of each machine runs it first and the others when it is done.

        For what is downloaded, converted or drawn once and then found by all.
        """
        for first in (True, False):
            if first == (self.local_rank == 0):
                result = prepare()
            self.barrier()
        return result

    def gather(self, value: Any) -> list[Any] | None:
        """The values of all processes on rank 0, None on the others. Any picklable object."""
        if self.count == 1:
            return [value]
        values = [None] * self.count if self.is_main else None
        dist.gather_object(value, values)
        return values

    def share(self, value: Any) -> Any:
        """Rank 0's value on all processes."""
        values = [value]
        if self.count > 1:
            dist.broadcast_object_list(values)
        return values[0]

    def share_buffers(self, model: torch.nn.Module) -> None:
        """Give all processes rank 0's buffers (the batch statistics, which each gathers from its own pictures)."""
        if self.count > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)


def start(opt) -> Processes:
    """Join the other processes, if torchrun started several, and choose the device.

    Every process with an accelerator of its own talks through the accelerator's own library (NCCL on CUDA); processes
    that share one, and processes on the CPU, talk through gloo.

    Raises UserError when the device does not exist or the options ask for what the processes cannot do.
    """
    rank, count, local_rank = (
        int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    if count == 1 and len(opt.gpus) > 1 and not opt.prepare_only:
        raise UserError(
            f"--gpus {opt.gpus_str}: one process was started for {len(opt.gpus)} devices; start one a device with "
            f"torchrun --nproc_per_node={len(opt.gpus)} src/main.py ..."
        )
    if min(process_shares(opt, count)) < 1:
        raise UserError(f"--batch_size {opt.batch_size}: less than one picture for one of {count} processes")
    device, exclusive = _choose_device(opt, local_rank)
    if opt.sync_bn and (device.type == "cpu" or (count == 1 and not opt.prepare_only)):
        raise UserError("--sync_bn: needs several processes, each on an accelerator")
    if count > 1:
        _die_with_parent()
        backend = "cpu:gloo"
        if device.type != "cpu":
            own = dist.get_default_backend_for_device(device) if exclusive else "gloo"
            backend += f",{device.type}:{own}"
        global _store
        store, _, _ = next(dist.rendezvous("env://"))
        _store = dist.PrefixStore("centernet", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=count)
    return Processes(rank, count, local_rank, device)


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


def _die_with_parent() -> None:
    """On Linux, end when the launcher ends, however that happens: a killed launcher leaves no orphans."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            pr_set_pdeathsig = 1
            ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def run_script(main, parser) -> None:
    """Parse the command line, run ``main(parser, opt)``, and end with a clear line and status where it fails.

    What the user can mend ends with ``error: ...`` and status 2; anything else is a defect and shows its traceback,
    status 1. Of several processes only the first to fail reports: the others find the same mistake, or have lost a
    companion, and would bury the reason.
    """
    opt = parser.parse()
    try:
        main(parser, opt)
        if dist.is_initialized():
            dist.destroy_process_group()
        return
    except KeyboardInterrupt:
        report, status = "interrupted", 130
    except UserError as error:
        # From a loader's worker it comes wrapped in that worker's traceback.
        report, status = f"error: {str(error).rpartition('UserError: ')[2].strip()}", 2
    except Exception as error:
        if dist.is_initialized() and _lost_companion(error):
            time.sleep(GRACE)  # the launcher ends this process meanwhile, and reports the one that failed
            report, status = "stopped, because another process has ended", 3
        else:
            report, status = traceback.format_exc(), 1
    if _first_to_fail():
        rank = os.environ.get("RANK")
        print((f"[rank {rank}] " if rank is not None else "") + report, file=sys.stderr, flush=True)
    if dist.is_initialized():
        # Leaving the group properly could wait for processes that are gone.
        sys.stdout.flush()
        os._exit(status)
    raise SystemExit(status)


def _lost_companion(error: Exception) -> bool:
    """Whether an error says that another process cannot be reached any more."""
    signs = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "gloo", "Socket")
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in signs)


def _first_to_fail() -> bool:
    if _store is None:  # before they have met, all find the same
        return os.environ.get("RANK", "0") == "0"
    try:
        return _store.add("failed", 1) == 1
    except (RuntimeError, OSError):  # the process that kept the store is gone
        return True
