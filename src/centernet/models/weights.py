"""Checkpoint files in the reference's format: ``{"epoch", "state_dict", "optimizer"}``, read as data only."""

import os
import pickle
import zipfile
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..utils.files import atomic_file
from ..utils.schedule import step_decay


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Read a checkpoint to the CPU without running any code that it may contain.

    Raises UserError when the file is missing, damaged, or holds anything but tensors and plain data.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path}: there is no such checkpoint file")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:  # PyTorch's reader takes no notice of the check sums
                if damaged := file.testzip():
                    raise ValueError(f"the check sum of {damaged} is wrong")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: refused, because it holds more than weights and plain data") from error
    except Exception as error:  # whatever a damaged file makes the reader stumble over
        raise UserError(f"{path}: this checkpoint cannot be read, the file is damaged or of another kind") from error
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path}: this file holds a {type(checkpoint).__name__}, not a checkpoint")
    return checkpoint


def read_last(path: str | os.PathLike, log=print) -> tuple[dict[str, Any], str]:
    """A checkpoint to go on from and its path; ``<path>.bak``, the one before, where the newest is missing or damaged.

    Raises UserError when neither can be read.
    """
    before = f"{os.fspath(path)}.bak"
    try:
        return read_checkpoint(path), os.fspath(path)
    except UserError as error:
        if not os.path.isfile(before):
            raise
        checkpoint = read_checkpoint(before)
        log(f"warning: {error}; going on from the checkpoint before it, {before}")
        return checkpoint, before


def write_checkpoint(path: str | os.PathLike, checkpoint: dict[str, Any], backup: bool = False) -> None:
    """Write a checkpoint atomically.

    Args:
        path: the file.
        checkpoint: tensors and plain data.
        backup: keep the previous file as ``<path>.bak``.

    Raises:
        UserError: the file cannot be written; the previous one is unchanged.
    """
    with atomic_file(path, backup=backup) as file:
        torch.save(_on_cpu(checkpoint), file)


def _on_cpu(value: Any) -> Any:
    """Copy the tensors in nested containers to the CPU: a file with other ones cannot be read without their device."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, dict):
        moved = type(value)((key, _on_cpu(item)) for key, item in value.items())
        if hasattr(value, "_metadata"):  # of a state_dict: versions of the layers
            moved._metadata = value._metadata
        return moved
    return type(value)(map(_on_cpu, value)) if type(value) in (list, tuple) else value


def bare(model: nn.Module) -> nn.Module:
    """The network inside a distributed wrapper, or the network itself."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def save_model(
    path: str | os.PathLike,
    epoch: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    extra: dict[str, Any] | None = None,
    backup: bool = False,
) -> None:
    """Write ``{"epoch", "state_dict"}``, the optimizer's state when it is given, and the plain data in ``extra``.

    ``backup``: a file that was there stays as ``<path>.bak``.
    """
    checkpoint = {"epoch": epoch, "state_dict": bare(model).state_dict(), **(extra or {})}
    if optimizer is not None:
        checkpoint["optimizer"] = optimizer.state_dict()
    write_checkpoint(path, checkpoint, backup)


def strip_module(state_dict: dict[str, Tensor]) -> "OrderedDict[str, Tensor]":
    """Take away the ``module.`` that data-parallel wrappers put before every name."""
    return OrderedDict((str(name).removeprefix("module."), value) for name, value in state_dict.items())


def refuse_not_finite(tensors: dict[str, Tensor], source: str) -> None:
    """Raise UserError when a value of the tensors is NaN or infinite."""
    for name, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(f"{source}: {name} holds values that are not finite")


def fit_state_dict(model: nn.Module, state_dict: dict[str, Tensor], source: str, log=print) -> None:
    """Load what fits by name and shape; say in a short table what does not, and keep the model's own values there.

    Entries whose names start with one of the model's ``ignored_entries`` (none without that attribute) are dropped
    without a word.
    """
    own = model.state_dict()
    ignored = getattr(model, "ignored_entries", ())
    for name, value in state_dict.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"{source}: its state_dict has {str(name)[:80]!r}: {type(value).__name__}, no named tensor")
    state_dict = {name: value for name, value in state_dict.items() if not name.startswith(ignored)}
    other_shape = [name for name in state_dict if name in own and own[name].shape != state_dict[name].shape]
    unknown = [name for name in state_dict if name not in own]
    missing = [name for name in own if name not in state_dict and not name.endswith("num_batches_tracked")]
    fitting = {name: value for name, value in state_dict.items() if name in own and name not in other_shape}
    if not fitting:
        raise UserError(f"{source}: none of its {len(state_dict)} entries fits this network; check --arch")
    refuse_not_finite(fitting, source)
    model.load_state_dict(fitting, strict=False)
    rows = [
        ("other shape, own values kept", other_shape),
        ("not in this network, ignored", unknown),
        ("not in the file, own values kept", missing),
    ]
    if any(names for _, names in rows):
        log(f"{source}: {len(fitting)} of {len(own)} entries loaded")
        for text, names in rows:
            if names:
                more = f" ... {len(names)} in all" if len(names) > 4 else ""
                log(f"  {text}: {', '.join(names[:4])}{more}")


def load_model(
    model: nn.Module,
    path: str | os.PathLike,
    optimizer: torch.optim.Optimizer | None = None,
    resume: bool = False,
    lr: float | None = None,
    lr_step: list[int] | None = None,
    log=print,
) -> nn.Module | tuple[nn.Module, torch.optim.Optimizer, int]:
    """Load a checkpoint of this project or of the reference into ``model``.

    With an optimizer and ``resume`` its state and the epoch are restored, and the rate is set to
    ``lr * 0.1 ** (number of lr_step values <= epoch)``.

    Returns:
        The model alone without an optimizer, else ``(model, optimizer, start_epoch)``; start_epoch is 0 unless resumed.

    Raises:
        UserError: the file cannot be read, or nothing in it fits.
    """
    return restore(model, read_checkpoint(path), path, optimizer, resume, lr, lr_step, log)


def restore(
    model: nn.Module,
    checkpoint: dict[str, Any],
    path: str | os.PathLike,
    optimizer: torch.optim.Optimizer | None = None,
    resume: bool = False,
    lr: float | None = None,
    lr_step: list[int] | None = None,
    log=print,
) -> nn.Module | tuple[nn.Module, torch.optim.Optimizer, int]:
    """``load_model`` with a checkpoint that has been read from ``path`` already."""
    if not isinstance(checkpoint.get("state_dict"), dict):
        raise UserError(f"{path}: this checkpoint has no state_dict")
    run, state_dict, what = checkpoint.get("run"), checkpoint["state_dict"], ""
    if not resume and isinstance(run, dict) and run.get("ema"):  # what --ema has validated
        state_dict, what = run["ema"]["state_dict"], ", running averages of its weights"
    log(f"loaded {path}, epoch {checkpoint.get('epoch', 'unknown')}{what}")
    fit_state_dict(bare(model), strip_module(state_dict), str(path), log)
    if optimizer is None:
        return model
    start_epoch = 0
    if resume and "optimizer" in checkpoint:
        try:
            start_epoch = int(checkpoint["epoch"])
            state = _optimizer_state(bare(model), checkpoint)
            # How the arithmetic is done belongs to this machine, not to the file.
            fused = optimizer.param_groups[0].get("fused")
            groups = [{**group, "fused": fused} for group in state["param_groups"]]
            optimizer.load_state_dict({**state, "param_groups": groups})
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: its optimizer state does not fit this network; leave out --resume") from error
        rate = step_decay(lr, lr_step or [], start_epoch + 1)
        for group in optimizer.param_groups:
            group["lr"] = rate
        log(f"resumed after epoch {start_epoch}, learning rate {rate:g}")
    elif resume:
        log(f"{path}: no optimizer state in this file, training starts at epoch 1")
    return model, optimizer, start_epoch


def _optimizer_state(model: nn.Module, checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The optimizer's state without the parameters that the network ignores.

    The state goes by the position of a parameter, and files of the reference have parameters that ours does without
    (``base.fc`` of DLA).
    """
    ignored = getattr(model, "ignored_entries", ())
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    names = [name for name in strip_module(checkpoint["state_dict"]) if not name.endswith(statistics)]
    dropped = {i for i, name in enumerate(names) if name.startswith(ignored)} if ignored else set()
    state = checkpoint["optimizer"]
    (group,) = state["param_groups"]
    if not dropped or len(group["params"]) != len(names):
        return state
    kept = [i for position, i in enumerate(group["params"]) if position not in dropped]
    return {
        "state": {new: state["state"][old] for new, old in enumerate(kept) if old in state["state"]},
        "param_groups": [{**group, "params": list(range(len(kept)))}],
    }
