"""Collective operations on the tensors of a device without a collective library: staged through the host."""

import torch
import torch.distributed as dist
from torch import Tensor


class HostStaged(dist.ProcessGroup):
    """A process group that copies tensors to the host, lets another group reduce them there, and copies them back.

    For processes that share an accelerator, and for devices whose PyTorch package has no collective library: gloo
    takes tensors of the CPU (and of CUDA) alone. It has what ``DistributedDataParallel`` calls. Every operation is
    finished when it returns. The sums are computed by ``group``, as for tensors of the CPU.

    Args:
        group: reduces tensors of the CPU.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__(group.rank(), group.size())  # type: ignore[call-arg]
        self.group = group

    def getBackendName(self) -> str:
        return "host_staged"

    def allreduce(self, tensors: list[Tensor], opts=None) -> dist.Work:  # type: ignore[override]
        for tensor in tensors:
            host = tensor.cpu()
            dist.all_reduce(host, op=dist.ReduceOp.SUM if opts is None else opts.reduceOp, group=self.group)
            tensor.copy_(host)
        return _Finished(tensors)

    def broadcast(self, tensors: list[Tensor], opts) -> dist.Work:  # type: ignore[override]
        for tensor in tensors:
            host = tensor.cpu()
            dist.broadcast(host, group_src=opts.rootRank, group=self.group)
            tensor.copy_(host)
        return _Finished(tensors)

    def allgather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts=None) -> dist.Work:  # type: ignore[override]
        for gathered, tensor in zip(outputs, inputs, strict=True):
            parts = [torch.empty_like(part, device="cpu") for part in gathered]
            dist.all_gather(parts, tensor.cpu(), group=self.group)
            for part, host in zip(gathered, parts, strict=True):
                part.copy_(host)
        return _Finished(outputs)


class _Finished(dist.Work):
    """A collective operation that is finished."""

    def __init__(self, result) -> None:
        super().__init__()
        self._result = result
        self._future: torch.futures.Future = torch.futures.Future()
        self._future.set_result(result)

    def wait(self, timeout=None) -> bool:  # type: ignore[override]
        return True

    def is_completed(self) -> bool:
        return True

    def result(self):  # type: ignore[override]
        return self._result

    def get_future(self) -> torch.futures.Future:
        return self._future
