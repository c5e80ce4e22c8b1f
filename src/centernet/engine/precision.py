"""Mixed precision (``--amp``): the network in 16 bits where that is safe, everything after it in float32."""

import torch
from torch import Tensor, nn

from ..errors import UserError

DTYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_amp(amp: str, device: torch.device) -> None:
    """Raise UserError when a device cannot compute as ``--amp`` says, or only uselessly slowly."""
    if amp == "off":
        return
    if not torch.amp.is_autocast_available(device.type):
        raise UserError(f"--amp {amp}: PyTorch has no mixed precision for {device.type}; leave it out")
    if amp == "fp16" and device.type == "cpu":
        raise UserError("--amp fp16: a CPU computes many times slower so, it is for accelerators; use --amp bf16")


class Precision:
    """How the network is computed.

    Parameters, optimiser state, losses and checkpoints are float32 whatever ``--amp`` says.

    Attributes:
        dtype: the 16-bit type, or None for float32 throughout.
        scaler: scales the loss in ``fp16``, whose smallest numbers are larger than many gradients; else idle.
    """

    def __init__(self, amp: str, device: torch.device) -> None:
        check_amp(amp, device)
        self.device, self.dtype = device, DTYPES[amp]
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")

    def forward(self, network: nn.Module, x: Tensor) -> list[dict[str, Tensor]]:
        """A network's maps of ``x``, float32; without ``--amp`` whatever the network gives."""
        if self.dtype is None:
            return network(x)
        with torch.autocast(self.device.type, self.dtype):
            outputs = network(x)
        return [{name: value.float() for name, value in output.items()} for output in outputs]

    def update(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Gradients and step. With ``fp16`` a step whose gradients are not finite is left out (``updates``)."""
        self.scaler.scale(loss).backward()
        self.scaler.step(optimizer)
        self.scaler.update()

    def updates(self, optimizer: torch.optim.Optimizer) -> int | None:
        """How many steps an Adam optimiser has really done, which it counts itself; None where none is left out.

        Asking waits for the device.
        """
        if not self.scaler.is_enabled():
            return None
        return max((int(state["step"]) for state in optimizer.state.values()), default=0)
