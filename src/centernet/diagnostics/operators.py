"""Level "operators": every operator of one training step, repeated on the CPU with the device's own inputs."""

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from ..engine.precision import switch_hint
from ..errors import UserError
from ..ops import deform_conv
from ..utils.files import atomic_path, write_text
from .judge import Judgement, judge
from .results import Finding, Level, number
from .scenario import Paths, Scenario, module_paths

MAX_FILES = 50  # of --save_failing

# The passes that the outputs of an operator belong to, where it has several.
GRADIENTS = ("backward: input", "backward: weight", "backward: bias")
OUTPUTS = {
    "convolution_backward": GRADIENTS,
    "native_batch_norm_backward": GRADIENTS,
    "cudnn_batch_norm_backward": GRADIENTS,
    "miopen_batch_norm_backward": GRADIENTS,
    "deform_conv2d_backward": ("backward: input", "backward: offset", "backward: mask", "backward: weight"),
    "deform_conv2d_triton_backward": ("backward: input", "backward: offset", "backward: mask", "backward: weight"),
    "_deform_conv2d_backward": ("backward: input", "backward: weight", "backward: offset", "backward: mask"),
}
# Arguments that an operator changes although its schema does not say so; they are judged before its results.
RUNNING = ("running mean", "running variance")
CHANGED = dict.fromkeys(("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"), (3, 4))
# Operators of one backend and the operator that computes the same on the CPU, with as many of its arguments.
SUBSTITUTES: dict[str, tuple[Callable, int]] = {
    "cudnn_batch_norm": (torch.ops.aten.native_batch_norm.default, 8),
    "miopen_batch_norm": (torch.ops.aten.native_batch_norm.default, 8),
    "deform_conv2d_triton": (torch.ops.centernet.deform_conv2d.default, 6),
    "deform_conv2d_triton_backward": (torch.ops.centernet.deform_conv2d_backward.default, 6),
}
# Operators that compute nothing, or whose result is not determined by their inputs.
IGNORED = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "set_", "resize_"),
    *("_local_scalar_dense", "lift_fresh", "record_stream", "is_pinned", "_pin_memory", "_has_same_storage_numel"),
    # Fine unless the operator before was not; which of equal values comes first is free.
    *("sort", "topk", "argsort"),
}
# Operators whose results are sums of products of their arguments.
LINEAR = {
    *("convolution", "convolution_backward", "mm", "addmm", "bmm", "baddbmm", "baddbmm_", "addmm_", "linear"),
    *("sum", "mean", "add", "add_", "sub", "index_add", "index_add_", "scatter_add", "scatter_add_", "dot", "mv"),
}
# Operators of our own that are made of others: these are judged one by one where the whole deviates.
COMPOSITES = {
    "centernet::deform_conv2d": deform_conv._deform_conv2d,
    "centernet::deform_conv2d_backward": deform_conv._deform_conv2d_backward,
}


@dataclass
class Outcome:
    """The judgement of one output of one call.

    Attributes:
        operator: name without namespace and overload.
        direction: the pass.
        where: path of the module.
        inside: the operator of our own of which this one is a part.
    """

    operator: str
    direction: str
    where: str
    judgement: Judgement
    inside: str = ""


@dataclass
class Group:
    """All calls of an operator in a pass."""

    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def worst(self) -> Outcome:
        return max(self.outcomes, key=lambda one: (not one.judgement.sound, one.judgement.ratio, one.judgement.error))

    @property
    def failing(self) -> list[Outcome]:
        return [one for one in self.outcomes if not one.judgement.sound]


def to_host(value: Any) -> Any:
    """Return copies of tensors on the CPU, in the same memory order, after waiting for the device."""
    copied = tree_map(_copy, value)
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return copied


def _copy(item: Any) -> Any:
    if not isinstance(item, Tensor):
        return item
    return item.detach().clone() if item.device.type == "cpu" else item.detach().cpu()


def widen(value: Any, dtype: torch.dtype | None) -> Any:
    """Return copies of arguments for the CPU, floating-point tensors and types in ``dtype`` (None: in their own)."""

    def convert(item: Any) -> Any:
        if isinstance(item, Tensor):
            return item.to(dtype, copy=True) if dtype and item.is_floating_point() else item.clone()
        if isinstance(item, torch.dtype) and item.is_floating_point:
            return dtype or item
        return torch.device("cpu") if isinstance(item, torch.device) else item

    return tree_map(convert, value)


def changed_arguments(func, arguments: tuple, options: dict) -> list[Tensor]:
    """Return the tensors among the arguments that the operator changes in place."""
    found = []
    for k, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = arguments[k] if k < len(arguments) else options.get(argument.name)
            found += [item for item in tree_flatten(value)[0] if isinstance(item, Tensor)]
    return found


def changed_unnoticed(func, arguments: tuple) -> list[Tensor]:
    """Return the tensors among the arguments that ``CHANGED`` names."""
    places = CHANGED.get(func._schema.name.partition("::")[2], ())
    return [arguments[k] for k in places if k < len(arguments) and isinstance(arguments[k], Tensor)]


def outputs_of(func, result: Any, arguments: tuple, options: dict) -> list[Tensor | None]:
    """Return the results of a call by position, after those of ``CHANGED``, or what it changed if it returns none."""
    results = tree_flatten(result)[0]
    changed = changed_unnoticed(func, arguments)
    if any(isinstance(item, Tensor) for item in results):
        return [item if isinstance(item, Tensor) else None for item in [*changed, *results]]
    return list(changed_arguments(func, arguments, options))


def call(func, arguments: tuple, options: dict) -> list[Tensor | None]:
    """Run an operator, or its substitute on the CPU; its results by position."""
    name = func._schema.name.partition("::")[2]
    if name in SUBSTITUTES:
        func, count = SUBSTITUTES[name]
        arguments = arguments[:count]
    return outputs_of(func, func(*arguments, **options), arguments, options)


def compare(func, arguments: tuple, options: dict, results: list[Tensor | None]) -> list[Judgement | None]:
    """Judge the results of a call by repeating it on the CPU in float64 and in float32.

    Where arguments have 16 bits, a result that is as good as that of the CPU's kernel for them is sound, too: some of
    these kernels, such as batch normalization's, round intermediate results.

    Args:
        func: operator with overload.
        arguments, options: on the CPU, as they were before the call.
        results: on the CPU, by position.

    Returns:
        One judgement per result; None for those that cannot be compared.

    Raises:
        Exception: the CPU cannot repeat it.
    """
    reference = call(func, widen(arguments, torch.float64), widen(options, torch.float64))
    own = call(func, widen(arguments, torch.float32), widen(options, torch.float32))
    name = func._schema.name.partition("::")[2]
    tensors = [item for item in tree_flatten((arguments, options))[0] if isinstance(item, Tensor)]
    halves = any(item.dtype in (torch.bfloat16, torch.float16) for item in tensors)
    noisy = halves or any(item.dim() == 4 and item.shape[2:] == (1, 1) for item in tensors)

    @functools.cache
    def of_halves() -> list[Tensor | None]:
        try:
            return call(func, widen(arguments, None), widen(options, None)) if halves else []
        except RuntimeError:  # the CPU lacks the kernel for this type
            return []

    @functools.cache
    def of_magnitudes() -> list[Tensor | None]:
        if name == "native_batch_norm_backward":
            return batch_norm_magnitudes(*widen(arguments, torch.float64)[:7])
        if name not in LINEAR:
            return []
        absolute = [
            tree_map(lambda item: item.abs() if isinstance(item, Tensor) else item, widen(value, torch.float64))
            for value in (arguments, options)
        ]
        return call(func, *absolute)

    judgements: list[Judgement | None] = []
    for k, (result, exact, yardstick) in enumerate(zip(results, reference, own, strict=False)):
        if (
            result is None
            or exact is None
            or yardstick is None
            or exact.dtype != torch.float64
            and result.is_floating_point()
        ):
            judgements.append(None)
        elif name == "max_pool2d_with_indices" and not result.is_floating_point():
            judgements.append(None)  # of equal values either may be named
        else:
            magnitude = lambda k=k: of_magnitudes()[k] if of_magnitudes() else None  # noqa: E731
            judgement = judge(result, exact, yardstick.to(result.dtype), noisy, magnitude)
            second = of_halves()[k] if not judgement.sound and of_halves() else None
            if second is not None:
                other = judge(result, exact, second.to(result.dtype), noisy, magnitude)
                judgement = other if other.sound else judgement
            judgements.append(judgement)
    return judgements


def batch_norm_magnitudes(grad, x, weight, _mean, _var, mean, invstd) -> list[Tensor | None]:
    """Return the sums of absolute terms of batch normalization's three gradients, in training.

    The gradient of the input is a difference of nearly equal terms where a channel's gradient resembles its input:
    grad - mean(grad) - normalized * mean(grad * normalized).
    """
    if mean.numel() == 0:  # with running statistics no term cancels
        return []
    shape = (1, -1, *[1] * (x.dim() - 2))
    others = [k for k in range(x.dim()) if k != 1]
    scale = invstd.view(shape)
    normalized = (x.abs() + mean.abs().view(shape)) * scale
    grad, products = grad.abs(), grad.abs() * normalized
    terms = grad + grad.mean(others, keepdim=True) + normalized * products.mean(others, keepdim=True)
    factor = scale if weight is None else scale * weight.abs().view(shape)
    return [terms * factor, products.sum(others), grad.sum(others)]


def is_ignored(func) -> bool:
    """Return whether the result of an operator is a view, random or uninitialized, or not a computation."""
    if func.namespace not in ("aten", "centernet", "torchvision") or func._schema.name.partition("::")[2] in IGNORED:
        return True
    views = [one for one in func._schema.returns if one.alias_info is not None and not one.alias_info.is_write]
    return bool(views) or torch.Tag.nondeterministic_seeded in func.tags


class OperatorCheck(TorchDispatchMode):
    """Judges every operator that runs on a device.

    Attributes:
        outcomes: all judgements, in the order of the calls.
        skipped: operators that the CPU cannot repeat, with the reason.
    """

    def __init__(self, device: torch.device, paths: Paths, save: "FailingCalls | None" = None) -> None:
        super().__init__()
        self.device, self.paths, self.save = device, paths, save
        self.phase, self.inside = "", ""
        self.outcomes: list[Outcome] = []
        self.skipped: dict[str, str] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        options = kwargs or {}
        name = func._schema.name.partition("::")[2]
        if is_ignored(func):
            return func(*args, **options)
        own = [item for item in tree_flatten((args, options))[0] if isinstance(item, Tensor)]
        if not any(item.device.type == self.device.type for item in own) and own:
            return func(*args, **options)
        where, direction = self.phase or self.paths.now(), self._direction()
        arguments, keywords = to_host(args), to_host(options)
        result = func(*args, **options)
        results = outputs_of(func, result, args, options)
        tensors = [item for item in results if item is not None]
        if name in ("copy_", "_to_copy") and any(item.device.type == "cpu" for item in tensors):
            self._judge_copy(name, direction, where, tensors)
        if any(item.device.type == self.device.type for item in tensors):
            self._judge(func, (arguments, keywords), results, direction, where, args, options)
        return result

    def _direction(self) -> str:
        if self.phase:
            return self.phase
        return "forward" if torch._C._current_autograd_node() is None else "backward"

    def _judge_copy(self, name: str, direction: str, where: str, results: list[Tensor]) -> None:
        """Judge a copy to the host, which must be complete when it returns unless it is non-blocking."""
        seen = [item.clone() for item in results]
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        late = not all(torch.equal(a, b) or a.isnan().any() for a, b in zip(seen, results, strict=True))
        judgement = Judgement(not late, float(late), 0.0, "values arrive after the copy has returned" if late else "")
        self.outcomes.append(Outcome(f"{name} to the host", direction, where, judgement, self.inside))

    def _judge(self, func, before: tuple, results: list, direction: str, where: str, args, options) -> None:
        arguments, keywords = before
        name = func._schema.name.partition("::")[2]
        on_host = to_host(results)
        try:
            judgements = compare(func, arguments, keywords, on_host)
        except Exception as error:
            self.skipped[name] = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
            return
        failed = False
        for k, judgement in enumerate(judgements):
            if judgement is None:
                continue
            passes = OUTPUTS.get(name, ())
            step = passes[k] if k < len(passes) and direction == "backward" else direction
            if k < len(changed_unnoticed(func, args)):
                step = f"{direction}: {RUNNING[k]}"
            self.outcomes.append(Outcome(name, step, where, judgement, self.inside))
            failed |= not judgement.sound
        if failed and self.save is not None:
            self.save.write(func, arguments, keywords, on_host, f"{where} {direction}", judgements)
        if failed and func._schema.name in COMPOSITES:
            self.inside = name
            with self:
                COMPOSITES[func._schema.name]._init_fn(*args, **options)
            self.inside = ""


@contextmanager
def optimizer_phase(check: Any) -> Iterator[None]:
    """Set the attribute ``phase`` of a dispatch mode to "optimizer" during optimizer steps."""
    begin = register_optimizer_step_pre_hook(lambda *_: setattr(check, "phase", "optimizer"))
    end = register_optimizer_step_post_hook(lambda *_: setattr(check, "phase", ""))
    try:
        yield
    finally:
        begin.remove()
        end.remove()


def check_operators(scenario: Scenario, save: Path | None = None) -> Level:
    """Run one training step on the device and judge each of its operators.

    Args:
        scenario: what to train.
        save: directory for the failing calls.
    """
    started = time.perf_counter()
    trainer = scenario.trainer(scenario.device)
    raw = scenario.raw_batches(1)[0]
    files = FailingCalls(save, scenario.device) if save is not None else None
    with module_paths(trainer.network) as paths:
        check = OperatorCheck(scenario.device, paths, files)
        with optimizer_phase(check), check:
            check.phase = "targets"
            with torch.no_grad():
                batch = scenario.finish(raw, scenario.device)
            check.phase = ""
            trainer.step(batch)
    level = summarize(check, scenario.device.type)
    if files is not None and files.paths:
        level.notes.append(f"{len(files.paths)} failing calls saved in {save}; replay one with --replay FILE")
    level.seconds = time.perf_counter() - started
    return level


def summarize(check: OperatorCheck, device: str) -> Level:
    """Return the level's table: one row per operator and pass, the worst first."""
    groups: dict[tuple[str, str, str], Group] = {}
    for one in check.outcomes:
        groups.setdefault((one.operator, one.direction, one.inside), Group()).outcomes.append(one)
    ordered = sorted(
        groups.values(), key=lambda group: (not group.failing, -group.worst.judgement.ratio, group.worst.operator)
    )
    title = f"one training step, {len(check.outcomes)} results of {len(groups)} operators against float64"
    columns = ["operator", "pass", "worst in", "calls", "failing", "error", "CPU's error", "ratio"]
    level = Level("operators", title, columns)
    for group in ordered:
        worst = group.worst
        name = f"{worst.operator} in {worst.inside}" if worst.inside else worst.operator
        figures = [worst.judgement.error, worst.judgement.yardstick, worst.judgement.ratio]
        counts = [str(len(group.outcomes)), str(len(group.failing))]
        level.rows.append([name, worst.direction, worst.where, *counts, *map(number, figures)])
        if group.failing:
            text = (
                f"{name}, {worst.direction}: {worst.judgement.reason}; worst in {worst.where}, "
                f"{len(group.failing)} of {len(group.outcomes)} calls"
            )
            hint = switch_hint(device) if "conv" in name or "mm" in name else ""
            level.findings.append(Finding(worst.operator, worst.where, worst.direction, text, hint))
    # What is inside an operator of ours explains it.
    level.findings.sort(key=lambda finding: finding.operator.startswith("deform_conv2d"))
    if check.skipped:
        level.notes.append(
            "not repeated on the CPU: " + "; ".join(f"{name} ({why})" for name, why in sorted(check.skipped.items()))
        )
    return level


# Failing calls as files

SCRIPT = '''"""Repeat {operator} on a device and on the CPU in float64: python {name}.py [DEVICE]"""
import sys, torch
call = torch.load("{name}.pt", weights_only=True)
device = sys.argv[1] if len(sys.argv) > 1 else "{device}"
def at(x, device, dtype=None):
    if isinstance(x, (list, tuple)): return [at(v, device, dtype) for v in x]
    if isinstance(x, str): return getattr(torch, x[6:]) if x.startswith("torch.") else x
    return x.to(device, dtype if dtype and x.is_floating_point() else x.dtype) if torch.is_tensor(x) else x
namespace, name, overload = call["operator"]
operator = getattr(getattr(getattr(torch.ops, namespace), name), overload)
for d, dtype in ((device, None), ("cpu", torch.float64)):
    options = {{key: at(value, d, dtype) for key, value in call["options"].items()}}
    print(d, dtype, operator(*at(call["arguments"], d, dtype), **options))
'''


class FailingCalls:
    """Writes failing calls, each as data and as a script that needs nothing but PyTorch."""

    def __init__(self, directory: Path, device: torch.device) -> None:
        self.directory, self.device = directory, device
        self.paths: list[Path] = []
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--save_failing {directory}: cannot be created ({error.strerror})") from error

    def write(self, func, arguments: tuple, options: dict, results: list[Tensor], about: str, judgements: list) -> None:
        """Write one call: arguments as before the call, and the device's results."""
        if len(self.paths) >= MAX_FILES:
            return
        operator = [func.namespace, func._schema.name.partition("::")[2], func._overloadname]
        name = f"{len(self.paths):02d}_{operator[1]}"
        content = {
            "operator": operator,
            "arguments": _plain(arguments),
            "options": {key: _plain(value) for key, value in options.items()},
            "results": results,
            "about": about,
            "device": self.device.type,
            "reasons": [one.reason for one in judgements if one is not None],
        }
        path = self.directory / f"{name}.pt"
        with atomic_path(path) as temporary:
            torch.save(content, temporary)
        script = SCRIPT.format(operator="::".join(operator[:2]), name=name, device=self.device.type)
        write_text(path.with_suffix(".py"), script)
        self.paths.append(path)


def _plain(value: Any) -> Any:
    """Arguments as values that ``torch.load(weights_only=True)`` reads."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (torch.dtype, torch.memory_format, torch.layout)):
        return str(value)
    return "cpu" if isinstance(value, torch.device) else value


def _unplain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_unplain(item) for item in value]
    return getattr(torch, value[6:]) if isinstance(value, str) and value.startswith("torch.") else value


def replay(path: Path, device: torch.device) -> Level:
    """Run a saved call alone on a device and judge it.

    Raises:
        UserError: the file is not a saved call.
    """
    started = time.perf_counter()
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        namespace, name, overload = content["operator"]
        func = getattr(getattr(getattr(torch.ops, namespace), name), overload)
        arguments, options = (
            tuple(_unplain(content["arguments"])),
            {key: _unplain(value) for key, value in content["options"].items()},
        )
    except Exception as error:
        raise UserError(f"--replay {path}: not a call saved by --save_failing ({error})") from error
    placed = tree_map(lambda item: item.to(device) if isinstance(item, Tensor) else item, (arguments, options))
    results = to_host(call(func, *placed))
    level = Level("replay", f"{name} on {device.type}: {content['about']}", ["result", "error", "CPU's error", "ratio"])
    for k, judgement in enumerate(compare(func, arguments, options, results)):
        if judgement is None:
            continue
        passes = OUTPUTS.get(name, ())
        title = passes[k] if k < len(passes) else f"result {k}"
        level.rows.append([title, *map(number, (judgement.error, judgement.yardstick, judgement.ratio))])
        if not judgement.sound:
            text = f"{name}, {title}: {judgement.reason}"
            level.findings.append(Finding(name, "", title, text, switch_hint(device.type)))
    level.seconds = time.perf_counter() - started
    return level
