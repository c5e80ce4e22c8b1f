"""Faults of the simulated accelerator, each a defect of the kind that real devices have had.

A fault replaces kernels of the device by wrong ones. What a diagnosis should name is part of its description.
"""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

import simulated_accelerator

aten = torch.ops.aten
_active: list[torch.library.Library] = []


@dataclass
class Fault:
    """A defect that can be switched on.

    Attributes:
        text: the defect in words.
        operators: names of ATen or collective operators that a diagnosis may give, the first the most specific.
        passes: of these operators: "forward", "backward: weight", "optimizer", ...; empty: not distinguished.
        kernels: operator of ATen with overload -> replacement, called with CPU tensors on the device's memory.
        raw: the same for replacements that get the device's own tensors.
    """

    text: str
    operators: tuple[str, ...]
    passes: tuple[str, ...] = ()
    kernels: dict[str, Callable] = field(default_factory=dict)
    raw: dict[str, Callable] = field(default_factory=dict)


def switch_on(name: str, variants: bool = False) -> None:
    """Replace the kernels of the fault ``name``, or with ``variants`` those of a sound variant of the device."""
    table = VARIANTS if variants else FAULTS
    fault = table[name]
    library = torch.library.Library("aten", "IMPL")
    _active.append(library)  # a library that is collected takes its kernels with it
    kernels = {operator: _on_host(kernel) for operator, kernel in fault.kernels.items()} | fault.raw
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators", UserWarning)
        for operator, kernel in kernels.items():
            library.impl(operator, kernel, "PrivateUse1", allow_override=True)


def switch_off() -> None:
    """Restore all kernels."""
    while _active:
        _active.pop()._destroy()


def _on_host(kernel: Callable) -> Callable:
    """A kernel of the device from a function of CPU tensors; what it changes in place is changed on the device."""

    def run(*arguments, **options):
        owners: list[tuple[Tensor, Tensor]] = []

        def to_host(value):
            if isinstance(value, Tensor) and value.device.type == simulated_accelerator.NAME:
                owners.append((value, simulated_accelerator.library.host(value)))
                return owners[-1][1]
            if isinstance(value, (list, tuple)):
                return [to_host(item) for item in value]
            return torch.device("cpu") if isinstance(value, torch.device) else value

        def to_device(value):
            if isinstance(value, Tensor):
                own = next((own for own, shared in owners if shared is value), None)
                index = owners[0][0].device.index if owners else 0
                return simulated_accelerator.library.device(value, index) if own is None else own
            return tuple(to_device(item) for item in value) if isinstance(value, (list, tuple)) else value

        result = kernel(*map(to_host, arguments), **{name: to_host(value) for name, value in options.items()})
        return to_device(result)

    return run


# Roundings


def to_fp16(x: Tensor) -> Tensor:
    return x.half().to(x.dtype)


def to_bf16(x: Tensor) -> Tensor:
    return x.bfloat16().to(x.dtype)


def to_tf32(x: Tensor) -> Tensor:
    """Round float32 to 10 bits of mantissa, to nearest; other types are unchanged."""
    if x.dtype != torch.float32:
        return x
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def to_fp16_range(x: Tensor) -> Tensor:
    """Keep the mantissa, but no value that fp16 cannot hold."""
    return torch.where(x.abs() < 2.0**-24, 0, x).clamp(-65504, 65504)


# Convolutions


def _convolution(rounding: Callable) -> Callable:
    def kernel(x, weight, bias, *geometry):
        return aten.convolution(rounding(x), rounding(weight), bias, *geometry)

    return kernel


def _backward(grad, x, weight, stride, padding, dilation, transposed, output_padding, groups, mask):
    bias = [weight.shape[1] * groups if transposed else weight.shape[0]]
    geometry = (stride, padding, dilation, transposed, output_padding, groups)
    return aten.convolution_backward(grad, x, weight, bias, *geometry, mask)


def _convolution_backward(rounding: Callable) -> Callable:
    def kernel(grad, x, weight, *geometry):
        return _backward(rounding(grad), rounding(x), rounding(weight), *geometry)

    return kernel


def _weight_gradient_one_percent(grad, x, weight, *geometry):
    grad_x, grad_weight, grad_bias = _backward(grad, x, weight, *geometry)
    return grad_x, None if grad_weight is None else grad_weight * 1.01, grad_bias


def _transposed_border(grad, x, weight, *geometry):
    grad_x, grad_weight, grad_bias = _backward(grad, x, weight, *geometry)
    if geometry[3] and grad_x is not None:
        for axis in (2, 3):
            for edge in (0, -1):
                grad_x.select(axis, edge).mul_(0.5)
    return grad_x, grad_weight, grad_bias


# Matrix products


def _fp16_product(a: Tensor, b: Tensor) -> Tensor:
    """A product of fp16 operands whose sum is kept in fp16 after every 16 terms."""
    if a.dtype != torch.float32:
        return torch.matmul(a, b)
    a, b = to_fp16(a), to_fp16(b)
    total = torch.zeros((*a.shape[:-1], b.shape[-1]))
    for k in range(0, a.shape[-1], 16):
        total = to_fp16(total + torch.matmul(a[..., k : k + 16], b[..., k : k + 16, :]))
    return total


def _fp16_add_product(c, a, b, *, beta=1, alpha=1):
    return beta * c + alpha * _fp16_product(a, b)


def _fp16_add_product_(c, a, b, *, beta=1, alpha=1):
    return c.copy_(_fp16_add_product(c, a, b, beta=beta, alpha=alpha))


# Normalization, reductions, elementwise functions


def _one_pass_fp16_norm(x, weight, bias, running_mean, running_var, training, momentum, eps):
    if not training:
        return aten.native_batch_norm(x, weight, bias, running_mean, running_var, training, momentum, eps)
    axes, shape = [0, *range(2, x.dim())], [1, -1, *[1] * (x.dim() - 2)]
    values = x.half().float()
    mean = values.mean(axes)
    var = to_fp16(to_fp16((values * values).mean(axes)) - to_fp16(mean * mean)).clamp(min=0)
    invstd = (var + eps).rsqrt()
    if running_mean is not None:
        count = x.numel() / x.shape[1]
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(var * count / max(count - 1, 1), momentum)
    y = (x - mean.view(shape)) * invstd.view(shape)
    if weight is not None:
        y = y * weight.view(shape) + bias.view(shape)
    return y.to(x.dtype), mean, invstd


def _coarse(function: Callable) -> Callable:
    """An elementwise function from a table with 1024 entries for each unit of its argument."""

    def kernel(x):
        return function((x * 512).round() / 512) if x.is_floating_point() else function(x)

    return kernel


def _coarse_(function: Callable) -> Callable:
    return lambda x: x.copy_(_coarse(function)(x))


def _flushing(function: Callable) -> Callable:
    """An operator whose denormal results become zero."""

    def kernel(*arguments, **options):
        result = function(*arguments, **options)
        if result.dtype == torch.float32:
            result = torch.where(result.abs() < torch.finfo(torch.float32).tiny, 0, result)
        return result

    return kernel


def _shuffled_sum(x, dim=None, keepdim=False, *, dtype=None):
    """A sum whose last bit differs from call to call, as with atomic additions in any order."""
    result = aten.sum.dim_IntList(x, dim, keepdim, dtype=dtype)
    if not result.is_floating_point():
        return result
    noise = torch.frombuffer(bytearray(os.urandom(max(result.numel(), 1))), dtype=torch.uint8)[: result.numel()]
    away = torch.where(noise.view(result.shape) < 128, torch.inf, -torch.inf)
    return torch.where(result == 0, result, torch.nextafter(result, away.to(result.dtype)))


def _fp16_sum(x, dim=None, keepdim=False, *, dtype=None):
    if not x.is_floating_point():
        return aten.sum.dim_IntList(x, dim, keepdim, dtype=dtype)
    return to_fp16(aten.sum.dim_IntList(to_fp16(x), dim, keepdim, dtype=dtype))


# Addressing

ROWS = 256  # from this size of a table on, rows behind half of it are taken one off


def _off_by_one(index: Tensor, rows: int) -> Tensor:
    return torch.where(index >= ROWS // 2, (index + 1).clamp(max=rows - 1), index) if rows >= ROWS else index


def _index_select(x, dim, index):
    return aten.index_select(x, dim, _off_by_one(index, x.shape[dim]))


def _gather(x, dim, index, *, sparse_grad=False):
    return aten.gather(x, dim, _off_by_one(index, x.shape[dim]), sparse_grad=sparse_grad)


def _embedding(weight, index, padding_idx=-1, scale_grad_by_freq=False, sparse=False):
    index = _off_by_one(index, weight.shape[0])
    return aten.embedding(weight, index, padding_idx, scale_grad_by_freq, sparse)


def _max_pool(x, *geometry):
    """Max pooling that takes channels-last memory for a contiguous tensor."""
    if not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        x = x.permute(0, 2, 3, 1).reshape(x.shape)
    return aten.max_pool2d_with_indices(x, *geometry)


# Copies and optimizer

_late: list[tuple[Tensor, Tensor]] = []


def arrive() -> None:
    """End the delay of copies: the device is waited for."""
    while _late:
        target, values = _late.pop()
        target.copy_(values)


def _late_copy(source, target, non_blocking=False):
    """A copy to the host of which the second half arrives when the next copy begins."""
    arrive()
    host = simulated_accelerator.library.host
    if target.device.type != "cpu" or source.device.type == "cpu" or target.numel() == 0:
        host(target).copy_(host(source))
        return target
    values = host(source).to(target.dtype).expand(target.shape).clone()
    if target.is_contiguous():
        half = target.numel() // 2
        target.view(-1)[:half].copy_(values.reshape(-1)[:half])
    _late.append((target, values))
    return target


def _undivided(tensors, scalars):
    """The foreach division by the square roots of Adam's second bias correction, which it leaves out."""
    return


def _fused_adam_late(parameters, gradients, means, squares, max_squares, steps, **options):
    """Fused Adam that corrects the bias for one step more."""
    aten._foreach_add_(steps, 1)
    aten._fused_adam_(parameters, gradients, means, squares, max_squares, steps, **options)
    aten._foreach_sub_(steps, 1)


CONVOLUTION, BACKWARD = ("convolution",), ("convolution_backward",)
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "baddbmm_", "addmm_", "linear", "matmul")
ALL_GRADIENTS = ("backward: input", "backward: weight")


def _conv(forward=None, backward=None) -> dict[str, Callable]:
    kernels = {"convolution_overrideable": forward, "convolution_backward_overrideable": backward}
    return {name: kernel for name, kernel in kernels.items() if kernel is not None}


def _sums(kernel: Callable) -> dict[str, Callable]:
    return {"sum.dim_IntList": kernel, "sum": lambda x, *, dtype=None: kernel(x, dtype=dtype)}


FAULTS = {
    "conv_backward_fp16": Fault(
        "convolution backward: operands rounded to fp16",
        BACKWARD,
        ALL_GRADIENTS,
        _conv(backward=_convolution_backward(to_fp16)),
    ),
    "conv_backward_bf16": Fault(
        "convolution backward: operands rounded to bf16",
        BACKWARD,
        ALL_GRADIENTS,
        _conv(backward=_convolution_backward(to_bf16)),
    ),
    "conv_backward_tf32": Fault(
        "convolution backward: operands rounded to TF32",
        BACKWARD,
        ALL_GRADIENTS,
        _conv(backward=_convolution_backward(to_tf32)),
    ),
    "conv_forward_bf16": Fault(
        "convolution forward: operands rounded to bf16",
        CONVOLUTION,
        ("forward",),
        _conv(_convolution(to_bf16)),
    ),
    "conv_fp16_range": Fault(
        "convolution forward: operands limited to the range of fp16",
        CONVOLUTION,
        ("forward",),
        _conv(_convolution(to_fp16_range)),
    ),
    "conv_weight_gradient": Fault(
        "convolution backward: gradient of the weight 1 % too large",
        BACKWARD,
        ("backward: weight",),
        _conv(backward=_weight_gradient_one_percent),
    ),
    "conv_transposed_border": Fault(
        "transposed convolution backward: gradient of the input halved at borders",
        BACKWARD,
        ("backward: input",),
        _conv(backward=_transposed_border),
    ),
    "matmul_fp16": Fault(
        "matrix products: operands and accumulator fp16",
        PRODUCTS,
        (),
        {
            "mm": _fp16_product,
            "bmm": _fp16_product,
            "addmm": _fp16_add_product,
            "baddbmm": _fp16_add_product,
            "addmm_": _fp16_add_product_,
            "baddbmm_": _fp16_add_product_,
        },
    ),
    "batch_norm_one_pass": Fault(
        "batch normalization: variance by a one-pass formula in fp16",
        ("native_batch_norm", "batch_norm"),
        ("forward",),
        {"native_batch_norm": _one_pass_fp16_norm},
    ),
    "gather_off_by_one": Fault(
        f"gather, index_select, embedding: rows of tables of at least {ROWS} rows off by one",
        ("index_select", "gather", "embedding"),
        (),
        {"index_select": _index_select, "gather": _gather, "embedding": _embedding},
    ),
    "channels_last_pool": Fault(
        "max pooling: channels-last input read as contiguous",
        ("max_pool2d_with_indices", "max_pool2d"),
        ("forward",),
        {"max_pool2d_with_indices": _max_pool},
    ),
    "coarse_sigmoid": Fault(
        "sigmoid: table of 1/512 steps",
        ("sigmoid", "sigmoid_"),
        ("forward",),
        {"sigmoid": _coarse(torch.sigmoid), "sigmoid_": _coarse_(torch.sigmoid)},
    ),
    "coarse_exp": Fault(
        "exp: table of 1/512 steps",
        ("exp", "exp_"),
        ("forward",),
        {"exp": _coarse(torch.exp), "exp_": _coarse_(torch.exp)},
    ),
    "flush_denormals": Fault(
        "multiplication: denormal float32 results become zero",
        ("mul",),
        (),
        {"mul.Tensor": _flushing(torch.mul)},
    ),
    "nondeterministic_sum": Fault("sum: last bit differs from call to call", ("sum",), (), _sums(_shuffled_sum)),
    "sum_fp16": Fault("sum: terms and result in fp16", ("sum",), (), _sums(_fp16_sum)),
    "copy_not_waited": Fault(
        "copy to the host: returns before the second half has arrived",
        ("copy to host", "copy_", "_to_copy"),
        (),
        raw={"_copy_from": _late_copy},
    ),
    "adam_bias_correction": Fault(
        "Adam: the foreach division by the bias correction is left out, the fused step corrects for another step",
        ("_foreach_div_", "_fused_adam_", "Adam"),
        ("optimizer",),
        {"_foreach_div_.ScalarList": _undivided, "_fused_adam_": _fused_adam_late},
    ),
    # A fault of the collective library, which asks for it by name.
    "all_reduce_drops_last": Fault("all-reduce: the last element of odd sizes is not reduced", ("all_reduce",), ()),
}


def _reversed_convolution(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups):
    """The sum over input channels in the opposite order."""
    if groups == 1:
        x, weight = x.flip(1), weight.flip(0 if transposed else 1)
    return aten.convolution(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups)


def _reversed_backward(grad, x, weight, *geometry):
    """Gradients as sums over images, and over output channels, in the opposite order."""
    if geometry[5] != 1:
        return _backward(grad, x, weight, *geometry)
    axis = 1 if geometry[3] else 0
    grad_x, _, _ = _backward(grad.flip(1), x, weight.flip(axis), *geometry[:6], [geometry[6][0], False, False])
    _, grad_weight, grad_bias = _backward(grad.flip(0), x.flip(0), weight, *geometry[:6], [False, *geometry[6][1:]])
    return grad_x, grad_weight, grad_bias


def _reversed_product(a, b):
    return torch.matmul(a.flip(-1), b.flip(-2))


def _reversed_sum(x, dim=None, keepdim=False, *, dtype=None):
    dims = [dim] if isinstance(dim, int) else list(dim or range(x.dim()))
    return aten.sum.dim_IntList(x.flip(dims), dims, keepdim, dtype=dtype)


VARIANTS = {
    "other_order": Fault(
        "sums of convolutions, products and reductions in another order",
        (),
        (),
        {
            **_conv(_reversed_convolution, _reversed_backward),
            **_sums(_reversed_sum),
            "mm": _reversed_product,
            "bmm": _reversed_product,
        },
    )
}
