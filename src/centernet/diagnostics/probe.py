"""Level "probe": exact operands through single operators. Needs no reference and takes seconds.

Every product is made of terms whose exact sum is known: 1 + 2^-k reveals how many bits of an operand are kept, 2^17
and 2^-25 whether it fits the range of fp16, and ones added to 2^11 how wide the accumulator is.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..engine.precision import switch_hint
from ..ops.deform_conv import deform_conv2d
from .results import Finding, Level, number
from .scenario import CPU

ONES = 31  # terms that a narrow accumulator loses
WIDTHS = (8, 11, 14, 22)  # bits of accumulators: more than bf16, fp16 and TF32, HF32 and others, almost float32
BITS = 23  # of float32
TYPES = {7: "bf16", 10: "TF32", 11: "HF32", 23: "float32"}
EXACT = {torch.float32: 23, torch.bfloat16: 7, torch.float16: 10}


def host(value: Tensor) -> Tensor:
    """Return the values of a device's tensor on the CPU, after waiting for the device."""
    copied = value.cpu()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return copied


# Products: functions of a (n, K) and b (m, K) that compute the sums (n, m) of a[i, k] * b[j, k] by some operator


def _conv1x1(a: Tensor, b: Tensor) -> Tensor:
    return F.conv2d(a[:, :, None, None], b[:, :, None, None])[:, :, 0, 0]


def _centered(a: Tensor) -> Tensor:
    """(n, K) as the centers of (n, K, 3, 3)."""
    return F.pad(a[:, :, None, None], (1, 1, 1, 1))


def _conv3x3(a: Tensor, b: Tensor) -> Tensor:
    return F.conv2d(_centered(a), _centered(b), padding=1)[:, :, 1, 1]


def _grouped(a: Tensor, b: Tensor) -> Tensor:
    a, b = torch.cat([a, a], 1), torch.cat([b, b], 0)
    return F.conv2d(_centered(a), _centered(b), padding=1, groups=2)[:, : len(b) // 2, 1, 1]


def _deconv_weight(b: Tensor) -> Tensor:
    """(m, K) as the tap (1, 1) of (K, m, 4, 4)."""
    return F.pad(b.T[:, :, None, None], (1, 2, 1, 2))


def _transposed(a: Tensor, b: Tensor) -> Tensor:
    return F.conv_transpose2d(a[:, :, None, None], _deconv_weight(b), stride=2, padding=1)[:, :, 0, 0]


def _deformed(a: Tensor, b: Tensor) -> Tensor:
    offset, mask = a.new_zeros(len(a), 18, 3, 3), a.new_ones(len(a), 9, 3, 3)
    return deform_conv2d(_centered(a), offset, _centered(b), padding=1, mask=mask)[:, :, 1, 1]


def _input_gradient(forward: Callable[[Tensor, Tensor], Tensor], place: Callable, pick: Callable) -> Callable:
    """Return the products in the gradient of an operator's input: those of its output gradient with its weight."""

    def products(a: Tensor, b: Tensor) -> Tensor:
        x = place(a.new_zeros(len(a), len(b))).detach().requires_grad_()
        with torch.enable_grad():
            output = forward(x, b.T)
        grad = torch.zeros_like(output)
        pick(grad).copy_(a)
        return pick(torch.autograd.grad(output, x, grad)[0])

    return products


def _weight_gradient(forward: Callable[[Tensor, Tensor], Tensor], place: Callable, pick: Callable) -> Callable:
    """Return the products in the gradient of an operator's weight: sums over K images."""

    def products(a: Tensor, b: Tensor) -> Tensor:
        weight = place(a.new_zeros(len(a), len(b))).detach().requires_grad_()
        with torch.enable_grad():
            output = forward(b.T, weight)
        grad = torch.zeros_like(output)
        _corner_or_center(grad).copy_(a.T)
        return pick(torch.autograd.grad(output, weight, grad)[0])

    return products


def _corner_or_center(maps: Tensor) -> Tensor:
    middle = (maps.shape[2] - 1) // 2 if maps.shape[2] % 2 else 0
    return maps[:, :, middle, middle]


def _tap(maps: Tensor) -> Tensor:
    """Return the tap of a transposed convolution's 4x4 kernel that ``_deconv_weight`` fills, (m, n)."""
    return maps[:, :, 1, 1].T


def _pixel(a: Tensor) -> Tensor:
    return a[:, :, None, None]


def _convolutions() -> dict[tuple[str, str], Callable]:
    """Products by convolutions of all kinds, forward and backward, by operator and pass."""
    zeros = lambda a, b: (a.new_zeros(len(a), 18, 3, 3), a.new_ones(len(a), 9, 3, 3))  # noqa: E731 (used twice below)

    def deformed(x: Tensor, weight: Tensor) -> Tensor:
        offset, mask = zeros(x, weight)
        return deform_conv2d(x, offset, weight, padding=1, mask=mask)

    def deconv(x: Tensor, weight: Tensor) -> Tensor:
        return F.conv_transpose2d(x, weight, stride=2, padding=1)

    first = _corner_or_center
    return {
        ("convolution 1x1", "forward"): _conv1x1,
        ("convolution 1x1", "backward: input"): _input_gradient(lambda x, w: F.conv2d(x, _pixel(w)), _pixel, first),
        ("convolution 1x1", "backward: weight"): _weight_gradient(lambda x, w: F.conv2d(_pixel(x), w), _pixel, first),
        ("convolution 3x3", "forward"): _conv3x3,
        ("convolution 3x3", "backward: input"): _input_gradient(
            lambda x, w: F.conv2d(x, _centered(w), padding=1), _centered, first
        ),
        ("convolution 3x3", "backward: weight"): _weight_gradient(
            lambda x, w: F.conv2d(_centered(x), w, padding=1), _centered, first
        ),
        ("convolution 3x3 grouped", "forward"): _grouped,
        ("transposed convolution 4x4", "forward"): _transposed,
        ("transposed convolution 4x4", "backward: input"): _input_gradient(
            lambda x, w: deconv(x, _deconv_weight(w.T.contiguous().T)), _pixel, first
        ),
        ("transposed convolution 4x4", "backward: weight"): _weight_gradient(
            lambda x, w: deconv(_pixel(x), w), lambda w: F.pad(w.T[:, :, None, None], (1, 2, 1, 2)), _tap
        ),
        ("deformable convolution 3x3", "forward"): _deformed,
        ("deformable convolution 3x3", "backward: input"): _input_gradient(
            lambda x, w: deformed(x, _centered(w)), _centered, first
        ),
        ("deformable convolution 3x3", "backward: weight"): _weight_gradient(
            lambda x, w: deformed(_centered(x), w), _centered, first
        ),
    }


def _matrix_products() -> dict[tuple[str, str], Callable]:
    def gradient(a: Tensor, b: Tensor) -> Tensor:
        x = a.new_zeros(len(a), len(b)).requires_grad_()
        with torch.enable_grad():
            output = F.linear(x, b.T.contiguous())
        return torch.autograd.grad(output, x, a)[0]

    return {
        ("matrix product mm", "forward"): lambda a, b: torch.mm(a, b.T),
        ("matrix product addmm", "forward"): lambda a, b: torch.addmm(a.new_zeros(len(b)), a, b.T),
        ("matrix product bmm", "forward"): lambda a, b: torch.bmm(a[None], b.T[None])[0],
        ("matrix product baddbmm", "forward"): lambda a, b: torch.baddbmm(
            a.new_zeros(1, len(a), len(b)), a[None], b.T[None]
        )[0],
        ("linear layer", "backward: input"): gradient,
    }


# The operands


@dataclass
class Operands:
    """Rows of a and b whose sums of products are known.

    Attributes:
        a, b: (n, K) float32.
        expected: (n,) float32, exact.
        kinds: what each row tests: "value", "a" and "b" (bits of an operand), "output" (bits of the result), "high",
            "low" (range), "accumulator".
        levels: the number of bits that each row tests, 0 where that does not apply.
    """

    a: Tensor
    b: Tensor
    expected: Tensor
    kinds: list[str]
    levels: list[int]


def operands(bits: int) -> Operands:
    """Operands for a type with so many bits of mantissa."""
    rows: list[tuple[str, int, list[float], list[float], float]] = []
    rows += [("value", 0, [1], [1], 1), ("value", 0, [3, 5], [5, -2], 5)]
    for k in range(1, bits + 1):
        part = 2.0**-k
        rows += [("a", k, [1 + part, -1], [1, 1], part), ("b", k, [1, 1], [1 + part, -1], part)]
        rows.append(("output", k, [1 + part], [1], 1 + part))
    if bits == BITS:
        for power, kind in ((17, "high"), (-25, "low")):
            rows += [(kind, 0, [2.0**power], [2.0**-power], 1), (kind, 0, [2.0**-power], [2.0**power], 1)]
    for width in WIDTHS:
        half = width // 2
        big = [2.0**half, *[1.0] * ONES, -(2.0**half)]
        rows.append(("accumulator", width, big, [2.0 ** (width - half), *[1.0] * ONES, 2.0 ** (width - half)], ONES))
    size = ONES + 2

    def padded(values: list[float]) -> list[float]:
        return values + [0.0] * (size - len(values))

    a, b = torch.tensor([padded(row[2]) for row in rows]), torch.tensor([padded(row[3]) for row in rows])
    return Operands(a, b, torch.tensor([row[4] for row in rows]), [row[0] for row in rows], [row[1] for row in rows])


@dataclass
class Precision:
    """Precision that a product keeps: bits of the operands and of the result, range, width of the accumulator."""

    right: bool
    first: int
    second: int
    output: int
    narrow: bool
    accumulator: int

    def __str__(self) -> str:
        if not self.right:
            return "wrong values"
        bits = min(self.first, self.second)
        if bits == BITS and self.narrow:
            operand = "float32 with the range of fp16"
        elif bits == 10:
            operand = "fp16" if self.narrow else "TF32"
        else:
            operand = TYPES.get(bits, f"{bits} bits")
        if self.first != self.second:
            operand += f" (one operand {max(self.first, self.second)} bits)"
        width = self.accumulator
        accumulator = "float32" if width >= 22 else "fp16 or TF32" if width == 8 else "bf16" if not width else "narrow"
        output = "" if self.output >= BITS or self.output == bits else f", result {self.output} bits"
        return f"operands {operand}, accumulator {accumulator}{output}"


def measure(products: Callable[[Tensor, Tensor], Tensor], device: torch.device, dtype: torch.dtype) -> Precision:
    """Measure what the products of an operator keep."""
    rows = operands(EXACT[dtype])
    got = host(products(rows.a.to(device, dtype), rows.b.to(device, dtype))).diagonal().float()
    exact = (got == rows.expected).tolist()

    def bits(kind: str) -> int:
        """Return the largest number of bits up to which all rows are exact."""
        levels = sorted(
            (level, ok) for level, ok, name in zip(rows.levels, exact, rows.kinds, strict=True) if name == kind
        )
        kept = 0
        for level, ok in levels:
            if not ok:
                break
            kept = level
        return kept

    def passed(*kinds: str) -> bool:
        return all(ok for ok, name in zip(exact, rows.kinds, strict=True) if name in kinds)

    return Precision(
        passed("value"), bits("a"), bits("b"), bits("output"), not passed("high", "low"), bits("accumulator")
    )


# Everything else: functions that return what is wrong, or None

Check = Callable[[torch.device], str | None]


def _batch_norm_sums(device: torch.device) -> str | None:
    """Check mean and variance of values 2^k +- 1: a one-pass formula in few bits loses the variance."""
    lost = None
    for k in range(9):
        x = (2.0**k + torch.tensor([1.0, -1.0]).repeat(64)).view(2, 1, 8, 8).to(device)
        norm = nn.BatchNorm2d(1, momentum=1.0, device=device).train()
        norm(x)
        mean, var = norm.state_dict()["running_mean"].item(), norm.state_dict()["running_var"].item() * 127 / 128
        if abs(mean - 2.0**k) > 1e-3 * 2.0**k or abs(var - 1) > 0.02:
            lost = f"values {2.0**k:g} +- 1: mean {mean:g}, variance {var:.3g} instead of 1"
            break
    return lost


def _batch_norm_backward(device: torch.device) -> str | None:
    """Check the gradient of the bias, a sum; 2^11 and ones need more bits than fp16 has."""
    norm = nn.BatchNorm2d(1, device=device).train()
    x = torch.tensor([1.0, -1.0]).repeat(64).view(2, 1, 8, 8).to(device)
    grad = torch.ones(2, 1, 8, 8)
    grad[0, 0, 0, 0] = 2.0**11
    with torch.enable_grad():
        norm(x).backward(grad.to(device))
    assert norm.bias.grad is not None
    got = norm.bias.grad.item()
    return None if got == 2.0**11 + 127 else f"gradient of the bias {got:g} instead of {2**11 + 127}"


# Elementwise functions and the arguments that they are given.
SPAN = torch.linspace(-8, 8, 4001)
FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "sigmoid": (torch.sigmoid, SPAN),
    "exp": (torch.exp, SPAN),
    "log": (torch.log, SPAN.abs() + 1.5),
    "sqrt": (torch.sqrt, SPAN.abs()),
    "rsqrt": (torch.rsqrt, SPAN.abs() + 0.01),
    "div": (lambda x: torch.div(x, 3.0), SPAN),
    "mul": (lambda x: torch.mul(x, x), SPAN),
    "add": (lambda x: torch.add(x, 16.0), SPAN),
    "pow": (lambda x: torch.pow(x, 1.5), SPAN.abs()),
}


def _function(function: Callable[[Tensor], Tensor], arguments: Tensor) -> Check:
    def check(device: torch.device) -> str | None:
        exact, got = function(arguments.double()), host(function(arguments.to(device))).double()
        error = float(((got - exact).abs() / exact.abs().clamp(min=1e-6)).max())
        return None if error <= 2.0**-17 else f"relative error {number(error)}, float32 has 6e-08"

    return check


def _denormals(device: torch.device) -> str | None:
    x = torch.tensor([2.0**-100, 3 * 2.0**-100], device=device)
    got = host(x * torch.tensor(2.0**-30, device=device)).double().tolist()
    expected = [2.0**-130, 3 * 2.0**-130]
    return None if got == expected else "results below 2^-126 become zero (denormals are flushed)"


TABLE_SIZES = (15, 127, 128, 255, 256, 257, 1025, 4097, 65537)


def _rows(read: Callable[[Tensor, Tensor], Tensor]) -> Check:
    """Return a check that reads rows of tables that hold their own numbers, at sizes around powers of two."""

    def check(device: torch.device) -> str | None:
        for size in TABLE_SIZES:
            index = torch.arange(size).flip(0)
            table = torch.arange(float(size))[:, None].expand(size, 4).contiguous()
            got = host(read(table.to(device), index.to(device)))
            wrong = (got != table[index]).any(1).nonzero().flatten()
            if len(wrong):
                row = int(wrong[0])
                return f"table of {size} rows: row {int(index[row])} is read as row {got[row, 0]:g}"
        return None

    return check


def _scattered(table: Tensor, index: Tensor) -> Tensor:
    """Return the rows of a table by adding them to zeros; the inverse permutation of a flip is the flip."""
    return torch.zeros_like(table).index_add_(0, index, table)


ROW_OPERATORS = {
    "index_select": lambda table, index: table.index_select(0, index),
    "gather": lambda table, index: table.gather(0, index[:, None].expand(-1, table.shape[1])),
    "embedding": lambda table, index: F.embedding(index, table),
    "index": lambda table, index: table[index],
    "index_add_": _scattered,
    "scatter_add_": lambda table, index: torch.zeros_like(table).scatter_add_(
        0, index[:, None].expand(-1, table.shape[1]), table
    ),
}

LAYOUT_OPERATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "max_pool2d": lambda x: F.max_pool2d(x, 3, 2, 1),
    "convolution": lambda x: F.conv2d(x, torch.ones(4, x.shape[1], 3, 3, device=x.device), padding=1),
    "convolution 1x1": lambda x: F.conv2d(x, torch.ones(4, x.shape[1], 1, 1, device=x.device)),
    "relu": F.relu,
    "add": lambda x: x + x.contiguous(),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2, mode="nearest"),
    "cat": lambda x: torch.cat([x, x.contiguous()], 1),
    "sum": lambda x: x.sum((2, 3)),
    "batch_norm": lambda x: F.batch_norm(
        x, torch.zeros(x.shape[1], device=x.device), torch.ones(x.shape[1], device=x.device), eps=0.0
    ),
}


def _layout(function: Callable[[Tensor], Tensor]) -> Check:
    """Return a check with small integers, whose result must be exact for every memory order."""

    def check(device: torch.device) -> str | None:
        x = (torch.arange(2 * 3 * 8 * 8) % 17 - 8.0).view(2, 3, 8, 8)
        expected = function(x)
        for order in (torch.contiguous_format, torch.channels_last):
            got = host(function(x.to(device).to(memory_format=order)))
            if not torch.equal(got, expected):
                return f"wrong values for {str(order).removeprefix('torch.')} input"
        return None

    return check


def _sums(device: torch.device) -> str | None:
    x = torch.ones(2**16)
    x[0] = 2.0**11
    for name, got in (("all", x.to(device).sum()), ("rows", x.view(1, -1).to(device).sum(1)[0])):
        if float(got) != 2**16 - 1 + 2**11:
            return f"sum over {name}: {float(got)} instead of {2**16 - 1 + 2**11}"
    return None


def _repeatable_sums(device: torch.device) -> str | None:
    x = torch.randn(64, 4096, generator=torch.Generator().manual_seed(1)).to(device)
    first = host(x.sum(1))
    same = all(torch.equal(host(x.sum(1)), first) for _ in range(8))
    return None if same else "the same sum differs from call to call"


def _copies(device: torch.device) -> str | None:
    """Check that copies to the host are complete when they return."""
    for size in (2, 5, 1023, 2**16 + 1, 2**20):
        x = torch.arange(size, dtype=torch.float32)
        there = x.to(device)
        target = torch.full((size,), -1.0)
        target.copy_(there)
        wrong = int((target.clone() != x).sum())
        if wrong:
            return f"copy of {size} values: {wrong} have not arrived when it returns"
        if not torch.equal(there.cpu().clone(), x):
            return f"cpu() of {size} values: some have not arrived when it returns"
        if not torch.equal(x.to(device).to(device, torch.float64).cpu().float().clone(), x):
            return f"{size} values to float64 and back are not the same"
    return None


def _adam(**variant: Any) -> Check:
    def check(device: torch.device) -> str | None:
        start = torch.linspace(-1, 1, 101)
        updated = []
        variants: list[tuple[torch.device, torch.dtype, dict[str, Any]]] = [
            (CPU, torch.float64, {"foreach": False}),
            (device, torch.float32, variant),
        ]
        for where, dtype, options in variants:
            weights = [nn.Parameter(values.clone().to(where, dtype)) for values in (start, start.flip(0))]
            optimizer = torch.optim.Adam(weights, 1e-2, **options)
            for step in range(3):
                for k, weight in enumerate(weights):
                    weight.grad = ((start * (k + 1) + step) * 0.1).to(where, dtype)
                optimizer.step()
            updated.append(torch.cat([host(weight.detach()).double() for weight in weights]))
        exact = updated[0] - torch.cat([start, start.flip(0)]).double()
        error = float((updated[1] - updated[0]).abs().max() / exact.abs().max())
        return None if error < 1e-4 else f"updates differ by {number(error)} of their size after 3 steps"

    return check


def checks(device: torch.device) -> dict[tuple[str, str], Check]:
    """All checks but the products, by operator and pass."""
    found: dict[tuple[str, str], Check] = {
        ("copy to the host", "forward"): _copies,
        ("batch normalization", "forward"): _batch_norm_sums,
        ("batch normalization", "backward: bias"): _batch_norm_backward,
        ("sum", "forward"): _sums,
        ("sum", "repeated"): _repeatable_sums,
    }
    found.update({(name, "forward"): _function(*entry) for name, entry in FUNCTIONS.items()})
    found[("mul", "denormals")] = _denormals
    found.update({(name, "rows"): _rows(read) for name, read in ROW_OPERATORS.items()})
    found.update({(name, "memory order"): _layout(function) for name, function in LAYOUT_OPERATORS.items()})
    found[("Adam", "optimizer")] = _adam(foreach=False)
    found[("Adam (foreach)", "optimizer")] = _adam(foreach=True)
    if device.type in torch.utils._foreach_utils._get_fused_kernels_supported_devices():
        found[("Adam (fused)", "optimizer")] = _adam(fused=True)
    return found


@torch.no_grad()
def check_probe(device: torch.device, dtype: torch.dtype | None = None) -> Level:
    """Send exact operands through single operators.

    Args:
        device: the device to check.
        dtype: 16-bit type of ``--amp``, in which the products are measured too.
    """
    started = time.perf_counter()
    level = Level("probe", "exact operands through single operators", ["operator", "pass", "verdict"])
    good: list[list[str]] = []
    for kind in [torch.float32] if dtype is None else [torch.float32, dtype]:
        for (name, direction), products in {**_convolutions(), **_matrix_products()}.items():
            title = name if kind == torch.float32 else f"{name}, {str(kind).removeprefix('torch.')}"
            try:
                found = measure(products, device, kind)
            except Exception as error:
                _add(level, title, direction, f"cannot run: {_line(error)}")
                continue
            expected = EXACT[kind]
            bits = min(found.first, found.second, found.output)
            if found.right and bits >= expected and not found.narrow and found.accumulator >= WIDTHS[-1]:
                good.append([title, direction, str(found) if kind == torch.float32 else "as asked for"])
            else:
                _add(level, title, direction, str(found), switch_hint(device.type))
    for (name, direction), check in checks(device).items():
        try:
            wrong = check(device)
        except Exception as error:
            wrong = f"cannot run: {_line(error)}"
        if wrong is None:
            good.append([name, direction, "exact" if direction != "optimizer" else "sound"])
        else:
            _add(level, name, direction, wrong)
    level.rows += good
    level.seconds = time.perf_counter() - started
    return level


def _add(level: Level, name: str, direction: str, verdict: str, hint: str = "") -> None:
    level.rows.append([name, direction, verdict])
    level.findings.append(Finding(name, "", direction, f"{name}, {direction}: {verdict}", hint))


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
