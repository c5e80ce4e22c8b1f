"""Checks of tensors that come from a file."""

import torch
from torch import Tensor

DTYPES = {
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
}


def tensor_problem(value: object, shape: torch.Size | None = None) -> str | None:
    """Return why a value from a file cannot be used as a tensor of ordinary, finite numbers; None if it can.

    Args:
        value: what the file holds.
        shape: the shape it must have; None: any.
    """
    if not isinstance(value, Tensor):
        return f"is a {type(value).__name__}, not a tensor"
    if value.layout != torch.strided or value.is_nested:
        return "is sparse or nested"
    if value.is_quantized or value.dtype not in DTYPES:
        return f"has the type {str(value.dtype).removeprefix('torch.')}"
    if value.is_meta:
        return "has no values"
    if shape is not None and value.shape != shape:
        return f"has the shape {tuple(value.shape)} instead of {tuple(shape)}"
    if value.is_floating_point() and not value.isfinite().all():
        return "holds values that are not finite"
    return None


def fresh_copy(value: Tensor, like: Tensor) -> Tensor:
    """Return a copy with separate memory, in the dtype, device and memory layout of ``like``.

    Tensors of a file may overlap in memory, or repeat one value, which operations in place must not see.
    """
    return torch.empty_like(like, memory_format=torch.preserve_format).copy_(value)
