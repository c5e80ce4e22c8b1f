"""The optimizer of a training: which parameters it updates, with which rule, and which parts stay frozen."""

from typing import Any

import torch
from torch import nn

from ..errors import UserError
from ..models import TIMM, describe
from ..options.table import Options

MOMENTUM = 0.9  # of SGD, with Nesterov's rule
HAS_FUSED = ("cpu", "cuda")  # device types for which PyTorch has fused optimizers that can skip an update


def build_optimizer(opt: Options, model: nn.Module, device: torch.device) -> torch.optim.Optimizer:
    """Build the optimizer of ``--optimizer`` over the parameters that are not frozen.

    With ``--weight_decay``, biases and the parameters of normalization layers do not decay. Without it there is one
    group of all parameters in the order of the network, as in the reference, so that its optimizer states load.
    """
    fused = True if device.type in HAS_FUSED else None  # elsewhere PyTorch chooses, as a rule foreach
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[Any] = trained
    if opt.weight_decay > 0:
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": opt.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
    if opt.optimizer == "sgd":
        return torch.optim.SGD(groups, opt.lr, momentum=MOMENTUM, nesterov=True, fused=fused)
    kind = torch.optim.AdamW if opt.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, opt.lr, weight_decay=0.0, fused=fused)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def frozen_modules(opt: Options) -> list[str]:
    """Return the names of the modules that ``--freeze`` keeps as they are: the backbone, or its first stages.

    Raises UserError if the network lacks that part.
    """
    if opt.freeze in ("", "none"):
        return []
    stages = describe(opt.arch)[0].stages
    if not stages:
        raise UserError(f"--freeze {opt.freeze}: {opt.arch} has no separate backbone")
    if opt.freeze != "backbone" and opt.arch.startswith(TIMM):
        raise UserError(f"--freeze {opt.freeze}: the stages of {opt.arch} are not known; use --freeze backbone")
    count = len(stages) if opt.freeze == "backbone" else int(opt.freeze)
    if count > len(stages):
        raise UserError(f"--freeze {opt.freeze}: the backbone of {opt.arch} has {len(stages)} stages")
    return [name for stage in stages[:count] for name in stage]


def freeze(opt: Options, model: nn.Module) -> nn.Module:
    """Exclude the parameters of ``frozen_modules`` from training. Call it before the optimizer is built."""
    for name in frozen_modules(opt):
        model.get_submodule(name).requires_grad_(False)
    return model


def keep_frozen_in_eval(model: nn.Module, frozen: list[str]) -> None:
    """Put frozen modules into evaluation mode, so that their normalization layers keep their running statistics."""
    for name in frozen:
        model.get_submodule(name).eval()
