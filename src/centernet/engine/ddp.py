"""Distributed data parallel training."""

import warnings

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..options import Options
from .processes import Distributed


def distribute(model: nn.Module, opt: Options, env: Distributed) -> nn.Module:
    """Wrap a model in ``DistributedDataParallel`` if several processes train it."""
    if env.world_size == 1 or opt.test:
        return model
    for name in getattr(model, "unused_parameters", ()):
        model.get_parameter(name).requires_grad_(False)  # it never gets a gradient, and DDP would wait for one
    if opt.sync_bn:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    with warnings.catch_warnings():
        # The replacement that the newest PyTorch recommends does not exist in the oldest that is supported.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        wrapped = DistributedDataParallel(
            model,
            device_ids=None if env.device.type == "cpu" else [env.device.index],
            process_group=env.group,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )
    _rebuild_buckets(wrapped, side=opt.pad + 1)
    return wrapped


def without_effect(outputs: list[dict[str, Tensor]]) -> Tensor:
    """Return a zero to add to the loss, which gives every output a gradient, of zeros where the loss does not use it.

    DDP waits for the gradients of all parameters, also of heads whose loss weight is zero. To let it look for unused
    parameters takes pinned memory, which not every accelerator has, and a synchronization with the device.
    """
    return torch.stack([value[:0].float().sum() for output in outputs for value in output.values()]).sum()


def _rebuild_buckets(wrapped: DistributedDataParallel, side: int) -> None:
    """Run one backward pass whose gradients are discarded, so that every update uses the same gradient buckets.

    DDP reassigns parameters to buckets after its first iteration, in the order of their gradients. The buckets
    decide the order in which the gradients of the processes are added, so if the first iteration were one of
    the training, a resumed run would differ in the last bits.
    """
    buffers = [(buffer, buffer.clone()) for buffer in wrapped.buffers()]
    weight = next(wrapped.parameters())
    # Two of the smallest images: batch normalization needs more than one value per channel.
    outputs = wrapped.train()(torch.zeros(2, 3, side, side, device=weight.device, dtype=weight.dtype))
    sum(value.sum() for output in outputs for value in output.values()).backward()
    wrapped.zero_grad(set_to_none=True)
    for buffer, before in buffers:
        buffer.copy_(before)
