"""Numerical precision: the network in 16 bits where that is safe (``--amp``), everything after it in float32."""

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError

DTYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Switch:
    """A setting with which a backend computes float32 in fewer bits than 23.

    Attributes:
        name: dotted path of a Python attribute, or ``$NAME`` for an environment variable.
        fp32, tf32: its values for ``--precision``.
        effect: what it changes, and the default of the backend.
    """

    name: str
    fp32: Any
    tf32: Any
    effect: str

    def read(self) -> Any:
        """Its present value; None where the backend's package is not loaded or has no such setting."""
        if self.name.startswith("$"):
            return os.environ.get(self.name[1:])
        owner, attribute = self._owner()
        return None if owner is None else getattr(owner, attribute, None)

    def set(self, precision: str) -> None:
        """Set it for ``--precision``, if the backend has it. An environment variable that is set is left as it is."""
        value = self.fp32 if precision == "fp32" else self.tf32
        if self.name.startswith("$"):
            os.environ.setdefault(self.name[1:], value)
        elif self.read() is not None:
            owner, attribute = self._owner()
            setattr(owner, attribute, value)

    def _owner(self) -> tuple[Any, str]:
        module, *path, attribute = self.name.split(".")
        owner = sys.modules.get(module)
        for part in path:
            owner = getattr(owner, part, None)
        return owner, attribute


# By type of device. Without these settings a "float32" loss curve depends on the device. A backend without such
# settings has an empty entry; one that is not here is unknown, of which a run warns.
SWITCHES: dict[str, tuple[Switch, ...]] = {
    "cpu": (),
    "mps": (),
    "cuda": (
        Switch("torch.backends.cudnn.allow_tf32", False, True, "convolutions in TF32; on by default"),
        Switch("torch.backends.cuda.matmul.allow_tf32", False, True, "matrix products in TF32"),
    ),
    "npu": (
        Switch("torch_npu.npu.conv.allow_hf32", False, True, "convolutions in HF32, 11 bits; on by default"),
        Switch("torch_npu.npu.aclnn.allow_hf32", False, True, "convolutions in HF32; on by default"),
        Switch("torch_npu.npu.matmul.allow_hf32", False, True, "matrix products in HF32"),
    ),
    "mlu": (
        Switch("torch.backends.cnnl.allow_tf32", False, True, "convolutions in TF32"),
        Switch("torch.backends.mlu.matmul.allow_tf32", False, True, "matrix products in TF32"),
    ),
    "musa": (Switch("torch.backends.mudnn.allow_tf32", False, True, "convolutions and matrix products in TF32"),),
    "xpu": (
        Switch("torch.backends.mkldnn.conv.fp32_precision", "ieee", "tf32", "convolutions in TF32"),
        Switch("torch.backends.mkldnn.matmul.fp32_precision", "ieee", "tf32", "matrix products in TF32"),
    ),
    "sdaa": (Switch("$TORCH_SDAA_CONV2D_BACKWARD_USE_FP32", "1", "0", "convolution backward in fp16; on by default"),),
    "xla": (Switch("$NEURON_CC_FLAGS", "--auto-cast=none", "--auto-cast=matmult", "Neuron: products in bf16"),),
}
_warned: set[str] = set()


def set_precision(precision: str, device: torch.device, log=print) -> None:
    """Make float32 mean float32, also in convolutions and their backward pass, or TF32 where it is asked for.

    With reduced precision by default, as several backends have it for convolutions, loss curves would differ from
    device to device.

    Args:
        precision: ``fp32`` or ``tf32``.
        device: the device of the run.
        log: prints the warning about a backend whose settings are not known, once per process.
    """
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    kind = device.type
    for switch in SWITCHES.get(kind, ()):
        switch.set(precision)
    if kind not in SWITCHES and kind not in _warned:
        _warned.add(kind)
        log(
            f"warning: it is not known how {kind} is kept from computing float32 in fewer bits; "
            "check with src/tools/check_device.py --levels probe"
        )


def precision_switches(device: torch.device) -> dict[str, Any]:
    """Return the settings of a device's backend and their values, for the records of a run."""
    values = {switch.name.lstrip("$"): switch.read() for switch in SWITCHES.get(device.type, ())}
    return {"torch.get_float32_matmul_precision()": torch.get_float32_matmul_precision(), **values}


def switch_hint(kind: str) -> str:
    """Return how to keep float32 at full precision on a type of device, in words; empty if nothing is needed."""
    parts = []
    for switch in SWITCHES.get(kind, ()):
        name = f"environment variable {switch.name[1:]}" if switch.name.startswith("$") else switch.name
        parts.append(f"{name} = {switch.fp32}")
    return "set " + ", ".join(parts) if parts else ""


def check_amp(amp: str, device: torch.device) -> None:
    """Raise UserError if a device does not support ``--amp``, or only too slowly to be useful."""
    if amp == "off":
        return
    if amp == "fp16" and device.type == "cpu":
        raise UserError("--amp fp16: many times slower than float32 on a CPU; use --amp bf16, or leave it out")
    if not torch.amp.is_autocast_available(device.type):
        raise UserError(f"--amp {amp}: PyTorch has no mixed precision for {device.type}; leave it out")
    if reason := missing_support(amp, device):
        raise UserError(
            f"--amp {amp}: the device {device.type} does not support it ({reason}); try another type, or leave it out"
        )


def warn_if_emulated(amp: str, device: torch.device, log=print) -> None:
    """Log a warning if ``--amp bf16`` is computed without instructions for it, which is very slow."""
    if amp == "bf16" and not has_bfloat16_instructions(device):
        log(
            f"warning: --amp bf16: this {device.type} has no instructions for bfloat16, which makes it "
            "many times slower than float32; leave --amp out"
        )


def has_bfloat16_instructions(device: torch.device) -> bool:
    """Return whether a CPU or CUDA device computes convolutions in bfloat16 natively; true for other devices."""
    if device.type == "cpu":
        return not torch.backends.mkldnn.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return True


def missing_support(amp: str, device: torch.device) -> str | None:
    """Make an update of one weight as training does; return why that is not possible in 16 bits, None if it is.

    ``is_autocast_available`` is true for every out-of-tree device, and autocast to a type that a device lacks only
    warns and computes in float32. The backward pass runs in this thread: if the process ends right after the check, a
    thread of autograd's own would still be starting, and would abort it.
    """
    dtype = DTYPES[amp]
    try:
        with (
            warnings.catch_warnings(),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autograd.set_multithreading_enabled(False),
        ):
            warnings.simplefilter("ignore")
            one = torch.ones(1, 1, 1, 1, device=device)
            weight = nn.Parameter(one.clone())
            optimizer = torch.optim.SGD([weight], 0.0)
            scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")
            with torch.autocast(device.type, dtype):
                output = nn.functional.conv2d(one, weight)
            scaler.scale(output.float().sum()).backward()
            scaler.step(optimizer)
            scaler.update()
    except Exception as error:  # an extension of PyTorch may raise anything
        return " ".join(str(error).split())[:100] or type(error).__name__
    return None if output.dtype == dtype else f"autocast computes in {str(output.dtype).removeprefix('torch.')}"


class MixedPrecision:
    """Numerical precision of the network.

    Parameters, optimizer state, losses and checkpoints are float32 for every ``--amp``.

    Attributes:
        dtype: the 16-bit type, or None for float32 throughout.
        scaler: scales the loss with ``fp16``, whose smallest number is larger than many gradients; disabled otherwise.
        skip_bad: skip an update whose gradients are not finite, and undo what its batch did to the network's buffers
            (the batch statistics). Does not wait for the device where the optimizer is a fused one.
        clip_grad: greatest norm of the gradients; 0: no limit.
    """

    def __init__(self, amp: str, device: torch.device, skip_bad: bool = False, clip_grad: float = 0) -> None:
        check_amp(amp, device)
        self.clip_grad = clip_grad
        self.device, self.dtype = device, DTYPES[amp]
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")
        self.skip_bad = skip_bad
        self.bad = torch.zeros((), device=device)  # 1: the last update was skipped
        self.made = torch.zeros((), device=device)  # steps, for optimizers that do not count them

    def forward(self, network: nn.Module, x: Tensor) -> list[dict[str, Tensor]]:
        """Return the network's maps of ``x``: float32; without ``--amp`` in the type that the network gives.

        Raises:
            UserError: the network cannot be compiled (``--compile``), or the batch is too small to be normalized.
        """
        # Not every device has mixed precision, so autocast is not even constructed without --amp.
        mixed = contextlib.nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype)
        try:
            with mixed:
                outputs = network(x)
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise UserError(f"--compile: this network cannot be compiled here ({reason}); leave it out") from error
            if "more than 1 value per channel" in str(error):
                height, width = x.shape[2:]
                raise UserError(
                    f"--batch_size: a process trains on {len(x)} image of {width} x {height} at a time, so a map "
                    "of the network has one value per channel, which batch normalization cannot normalize; use a "
                    "larger --batch_size or input, or a smaller --accumulate"
                ) from error
            raise
        if self.dtype is None:
            return outputs
        return [{name: value.float() for name, value in output.items()} for output in outputs]

    @contextlib.contextmanager
    def rollback_if_skipped(self, network: nn.Module) -> Iterator[None]:
        """Enclose forward pass and update of a step: with ``skip_bad`` a bad one leaves the network as it was."""
        if not self.skip_bad:
            yield
            return
        buffers = list(network.buffers())
        before = [buffer.clone() for buffer in buffers]
        yield
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(torch.where(self.bad > 0, value, buffer))

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of a loss."""
        self.scaler.scale(loss).backward()

    def update(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradients and make one step. A step whose gradients are not finite is skipped (``updates``) with
        ``fp16`` and with ``skip_bad``."""
        if self.clip_grad:
            self.scaler.unscale_(optimizer)
        if self.skip_bad or self.clip_grad:
            # The gradients are the same on all processes, unlike the loss, which is a share.
            parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters])
            if self.skip_bad:
                self.bad = 1 - norm.isfinite().float()
            if self.clip_grad:
                torch.nn.utils.clip_grads_with_norm_(parameters, self.clip_grad, norm)
        if self.skip_bad and not self.scaler.is_enabled():
            self._step_unless_bad(optimizer)
            self.made += 1 - self.bad
            return
        before = self._scale() if self._counts_itself(optimizer) else None
        self.scaler.step(optimizer)
        self.scaler.update()
        if before is not None:
            self.made += self._scale() >= before  # it falls when a step was skipped

    def _scale(self) -> Tensor:
        """Return the loss scale as a tensor, for which nobody has to wait, unlike ``get_scale``."""
        return self.scaler.scale(torch.ones((), device=self.device))

    def _counts_itself(self, optimizer: torch.optim.Optimizer) -> bool:
        """Return whether steps may be skipped without the optimizer counting those that were made, as Adam does."""
        return self.scaler.is_enabled() and isinstance(optimizer, torch.optim.SGD)

    def _step_unless_bad(self, optimizer: torch.optim.Optimizer) -> None:
        if optimizer.param_groups[0].get("fused"):
            fused: Any = optimizer
            fused.grad_scale, fused.found_inf = None, self.bad  # as GradScaler does it
            fused.step()
            del fused.grad_scale, fused.found_inf
        elif not self.bad:
            optimizer.step()

    def updates(self, optimizer: torch.optim.Optimizer) -> int | None:
        """Return the number of steps made so far, or None where none is skipped. Waits for the device."""
        if not self.scaler.is_enabled() and not self.skip_bad:
            return None
        if isinstance(optimizer, torch.optim.SGD):
            return int(self.made)
        return int(next(iter(optimizer.state.values()))["step"]) if optimizer.state else 0
