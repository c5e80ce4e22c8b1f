"""Networks for inference: batch normalization is folded into the convolution before it."""

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .deform_conv import DCN
from .heads import BatchedHeads

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d, DCN)


def fuse(model: nn.Module, batch_heads: bool | None = None) -> nn.Module:
    """Return a copy of a network for inference, which computes the same maps faster.

    In evaluation mode batch normalization is one factor and one offset per channel, which are folded into the weights
    and the bias of the convolution before it. The copy cannot be trained; its state dict has other names than the
    network's, so checkpoints are written from the network and not from the copy.

    Args:
        model: any network of ``create_model``, on any device and of any floating-point dtype; not modified. Modules
            below the names in its attribute ``not_fused`` are left as they are: code that is not this project's, whose
            order of modules does not determine the data flow.
        batch_heads: merge the 3x3 convolutions of the heads of a stack. None: everywhere but on a CPU, where it is not
            faster (``benchmarks/README.md``).

    Raises:
        ValueError: a batch normalization does not follow a convolution.
    """
    fused = copy.deepcopy(model).eval().requires_grad_(False)
    kept = tuple(getattr(model, "not_fused", ()))
    for conv, owner, name in list(
        _pairs(module for path, module in fused.named_modules() if not path.startswith(kept))
    ):
        _fold(conv, getattr(owner, name))
        setattr(owner, name, nn.Identity())
    left = [
        name
        for name, module in fused.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not name.startswith(kept)
    ]
    if left:
        raise ValueError(f"fuse: no convolution found before {', '.join(left)}")
    if batch_heads is None:
        batch_heads = next(fused.parameters()).device.type != "cpu"
    if batch_heads:
        _batch_heads(fused)
    return fused


def _pairs(modules: Iterable[nn.Module]) -> Iterator[tuple[Any, nn.Module, str]]:
    """Yield (convolution, owner of its batch normalization, name there), by the names that the networks use."""
    for module in modules:
        previous = None
        for name, child in module.named_children():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                # bn2 follows conv2, in a sequence the previous module, and in DLA's neck actf.0 follows conv.
                conv = getattr(module, name.replace("bn", "conv"), None)
                conv = previous if isinstance(module, nn.Sequential) else conv
                if isinstance(conv, CONVOLUTIONS):
                    yield conv, module, name
            elif name == "actf" and isinstance(child, nn.Sequential):
                yield module.conv, child, "0"
            previous = child


@torch.no_grad()
def _fold(conv: Any, bn: nn.BatchNorm2d) -> None:
    transposed = isinstance(conv, nn.ConvTranspose2d)
    if transposed and conv.groups > 1:
        raise ValueError("fuse: a transposed convolution with groups before a BatchNorm")
    # In double precision, so that only the result is rounded; on the CPU, because not every device has it.
    tensors = (conv.weight, conv.bias, bn.running_mean, bn.running_var, bn.weight, bn.bias)
    exact: list[Any] = [None if value is None else value.to("cpu", torch.float64) for value in tensors]
    kernel, offset, mean, var, scale, shift = exact
    weight, bias = fuse_conv_bn_weights(kernel, offset, mean, var, bn.eps, scale, shift, transpose=transposed)
    for name, value in (("weight", weight), ("bias", bias)):
        # Keep the memory format of the old weight, which may be channels_last.
        place = torch.empty_like(conv.weight) if name == "weight" else conv.weight.new_empty(value.shape)
        setattr(conv, name, nn.Parameter(place.copy_(value), requires_grad=False))


def _batch_heads(model: Any) -> None:
    """Replace a network's heads by ``BatchedHeads``, one for each stack."""
    heads = {name: getattr(model, name) for name in model.heads}
    stacks = [head if isinstance(head, nn.ModuleList) else [head] for head in heads.values()]
    model.batched_heads = nn.ModuleList(
        BatchedHeads(dict(zip(heads, stack, strict=True))) for stack in zip(*stacks, strict=True)
    )
    for name in heads:
        delattr(model, name)
