"""Checkpoint files in the reference's format, ``{"epoch", "state_dict", "optimizer"}``, read as data only."""

import contextlib
import json
import os
import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UserError
from ..utils.files import atomic_file, write_bytes
from ..utils.schedule import step_decay
from .optimizer_state import named_optimizer_state, optimizer_for_reference, restore_optimizer
from .tensors import tensor_problem

METADATA_KEY = "centernet"  # of the model metadata in a safetensors file
MAX_SHOWN = 8  # names of a kind: all of the heads that depend on the number of classes or joints
# Heads of CornerNet's and ExtremeNet's files, to the names of the same heads here.
EXTREMENET_HEADS = {
    **{f"{side}_heats": f"hm_{side}" for side in "tlbr"},
    **{f"{side}_regrs": f"reg_{side}" for side in "tlbr"},
    "ct_heats": "hm_c",
}
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
STARTS = (b"PK", b"\x80")  # of files that torch.save writes: zip files, and pickles before PyTorch 1.6


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Read a checkpoint, or weights in a ``.safetensors`` file, to the CPU without running any code it may contain.

    A file of named tensors alone, such as the ``.pkl`` files of CornerNet and ExtremeNet, is returned as the
    ``state_dict`` of a checkpoint.

    Raises:
        UserError: the file is missing, corrupt, or holds anything but tensors and plain data.
    """
    if os.path.isdir(path):
        raise UserError(f"{path}: a folder, not a checkpoint file; name one in it, such as model_best.pth")
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such checkpoint file")
    if os.fspath(path).endswith(".safetensors"):
        return _read_safetensors(path)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:  # PyTorch's reader ignores the checksums
                if damaged := file.testzip():
                    raise ValueError(f"the checksum of {damaged} is wrong")
        with warnings.catch_warnings():  # of forms that PyTorch no longer recommends
            warnings.simplefilter("ignore")
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make the reader fail in many ways
        raise UserError(f"{path}: {_why_unreadable(path, error)}") from error
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path}: this file holds a {type(checkpoint).__name__}, not a checkpoint")
    if checkpoint and all(isinstance(value, Tensor) for value in checkpoint.values()):
        return {"state_dict": checkpoint}
    return checkpoint


def _why_unreadable(path: str | os.PathLike, error: Exception) -> str:
    start = b""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        start = file.read(2)
    if start and not start.startswith(STARTS):
        return "not a checkpoint; it needs a file such as model_best.pth"
    if isinstance(error, pickle.UnpicklingError):
        return "refused, because it holds more than weights and plain data"
    return "this checkpoint cannot be read, the file is damaged or of another kind"


def read_last(path: str | os.PathLike, log=print) -> tuple[dict[str, Any], str]:
    """Return the checkpoint to resume and its path; ``<path>.bak``, the previous one, if the newest is unreadable.

    Raises UserError when neither can be read.
    """
    backup = f"{os.fspath(path)}.bak"
    try:
        return read_checkpoint(path), os.fspath(path)
    except UserError as error:
        if not os.path.isfile(backup):
            raise
        checkpoint = read_checkpoint(backup)
        log(f"warning: {error}; resuming from the previous checkpoint, {backup}")
        return checkpoint, backup


def write_checkpoint(
    path: str | os.PathLike, checkpoint: dict[str, Any], backup: bool = False, legacy: bool = False
) -> None:
    """Write a checkpoint atomically.

    Args:
        path: the file.
        checkpoint: tensors and plain data.
        backup: keep the previous file as ``<path>.bak``.
        legacy: use the serialization of PyTorch before 1.6.

    Raises:
        UserError: the file cannot be written; the previous one is unchanged.
    """
    with atomic_file(path, backup=backup) as file:
        torch.save(_on_cpu(checkpoint), file, _use_new_zipfile_serialization=not legacy)


def _on_cpu(value: Any) -> Any:
    """Copy the tensors in nested containers to the CPU: a file with other ones cannot be read without their device."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, dict):
        moved = type(value)((key, _on_cpu(item)) for key, item in value.items())
        if hasattr(value, "_metadata"):  # of a state_dict: versions of the layers
            setattr(moved, "_metadata", value._metadata)  # noqa: B010 (only a state_dict has this attribute)
        return moved
    return type(value)(map(_on_cpu, value)) if type(value) in (list, tuple) else value


def read_safetensors(path: str | os.PathLike) -> dict[str, Tensor]:
    """Return the tensors of a ``.safetensors`` file. Raises UserError as ``read_checkpoint`` does."""
    return _read_safetensors(path)["state_dict"]


def _read_safetensors(path: str | os.PathLike) -> dict[str, Any]:
    """Return ``{"state_dict"}``, and ``model`` if the file holds model metadata."""
    safetensors = check_safetensors(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            state_dict = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = (file.metadata() or {}).get(METADATA_KEY)
        model = json.loads(metadata) if metadata is not None else None
    except (safetensors.SafetensorError, OSError, ValueError, RecursionError, RuntimeError, TypeError) as error:
        raise UserError(f"{path}: this file cannot be read, it is damaged or of another kind") from error
    return {"state_dict": state_dict, **({"model": model} if isinstance(model, dict) else {})}


def write_safetensors(path: str | os.PathLike, state_dict: dict[str, Tensor], metadata: dict | None = None) -> None:
    """Write weights for inference, with the model metadata that rebuilds the network.

    Raises UserError when the file cannot be written, or when the package ``safetensors`` is missing.
    """
    check_safetensors(path)
    from safetensors.torch import save

    texts = {"format": "pt", **({METADATA_KEY: json.dumps(metadata, default=np.ndarray.tolist)} if metadata else {})}
    # Copies: the format has no shared memory and only one memory layout.
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in state_dict.items()}
    write_bytes(path, save(tensors, texts))


def check_safetensors(path: str | os.PathLike):
    """Return the package ``safetensors``. Raises UserError naming the file if it is missing."""
    try:
        import safetensors
    except ImportError as error:
        raise UserError(f"{path}: needs a package that is missing: pip install safetensors") from error
    return safetensors


def bare(model: nn.Module) -> nn.Module:
    """Return the network inside a distributed wrapper, or the network itself."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def save_model(
    path: str | os.PathLike,
    epoch: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    extra: dict[str, Any] | None = None,
    backup: bool = False,
    for_reference: bool = False,
) -> None:
    """Write ``{"epoch", "state_dict"}`` and, if given, the optimizer's state and the plain data in ``extra``.

    Args:
        path: the file.
        epoch: the number of epochs trained.
        model: the network, with or without a distributed wrapper.
        optimizer: an optimizer over the network's parameters.
        extra: further entries.
        backup: keep the previous file as ``<path>.bak``.
        for_reference: write a file that the reference resumes (see ``checkpoint_for_reference``), without ``extra``.

    Raises:
        UserError: the file cannot be written.
    """
    network = bare(model)
    checkpoint = {"epoch": epoch, "state_dict": network.state_dict(), **(extra or {})}
    if optimizer is not None:
        checkpoint["optimizer"] = named_optimizer_state(network, optimizer)
    if for_reference:
        checkpoint = checkpoint_for_reference(checkpoint, getattr(network, "reference_entries", {}))
    write_checkpoint(path, checkpoint, backup, legacy=for_reference)


def checkpoint_for_reference(checkpoint: dict[str, Any], entries: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return a checkpoint as the reference, and PyTorch from 0.4.1 on, can resume it.

    The reference matches the optimizer's state by position, so the file needs every parameter of its network, also
    those that are never used (``base.fc`` of DLA): they are zero and, as in the reference, have no optimizer state.

    Args:
        checkpoint: of this project.
        entries: shapes by name of the parameters that the reference has in addition, ``reference_entries`` of the
            network. They follow the last entry with the same first part of the name.
    """
    state_dict = {name: value.detach().contiguous() for name, value in checkpoint["state_dict"].items()}
    missing = {name: shape for name, shape in entries.items() if name not in state_dict}
    names = list(state_dict)
    if missing:
        prefix = next(iter(missing)).partition(".")[0] + "."
        place = max(k for k, name in enumerate(names) if name.startswith(prefix)) + 1
        names[place:place] = missing
    complete = OrderedDict((name, state_dict.get(name, torch.zeros(missing.get(name, ())))) for name in names)
    result = {"epoch": checkpoint["epoch"], "state_dict": complete}
    if "optimizer" in checkpoint:
        parameters = [name for name in names if not name.endswith(BUFFERS)]
        unused = {k for k, name in enumerate(parameters) if name in missing}
        result["optimizer"] = optimizer_for_reference(checkpoint["optimizer"], len(parameters), unused)
    return result


def rename_entries(state_dict: dict[str, Tensor]) -> "OrderedDict[str, Tensor]":
    """Remove the ``module.`` that data-parallel wrappers put before every name, and rename ExtremeNet's heads."""
    return OrderedDict((_own_name(str(name).removeprefix("module.")), value) for name, value in state_dict.items())


def _own_name(name: str) -> str:
    head, dot, rest = name.partition(".")
    return EXTREMENET_HEADS.get(head, head) + dot + rest


def check_weights(tensors: dict[str, Tensor], source: str) -> None:
    """Raise UserError unless all tensors are dense, of ordinary numbers, and finite."""
    for name, value in tensors.items():
        if problem := tensor_problem(value):
            raise UserError(f"{source}: {name} {problem}")


def fit_state_dict(model: nn.Module, state_dict: dict[str, Tensor], source: str, log=print) -> None:
    """Load the entries that fit by name and shape; log a short table of the others, for which the model keeps its own.

    Entries whose names start with one of the model's ``ignored_entries`` (none without that attribute) are dropped
    silently.
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
    check_weights(fitting, source)
    model.load_state_dict(fitting, strict=False)
    rows = {
        "other shape, own values kept": other_shape,
        "not in this network, ignored": unknown,
        "not in the file, own values kept": missing,
    }
    log_table(f"{source}: {len(fitting)} of {len(own)} entries loaded", rows, log)


def log_table(title: str, rows: dict[str, list[str]], log=print) -> None:
    """Log names by what happened to them, the first ones of each row; nothing if there are none."""
    if any(rows.values()):
        log(title)
    for text, names in rows.items():
        if names:
            more = f" ... {len(names)} in all" if len(names) > MAX_SHOWN else ""
            log(f"  {text}: {', '.join(names[:MAX_SHOWN])}{more}")


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

    With an optimizer and ``resume`` its state and the epoch are restored, and the learning rate is set to
    ``lr * 0.1 ** (number of lr_step values <= epoch)``.

    Returns:
        The model alone without an optimizer, else ``(model, optimizer, start_epoch)``; start_epoch is 0 unless resumed.

    Raises:
        UserError: the file cannot be read, or nothing in it fits.
    """
    checkpoint = read_checkpoint(path)
    if optimizer is None or not resume:
        restore_weights(model, checkpoint, path, log)
        return model if optimizer is None else (model, optimizer, 0)
    epoch = restore_training(model, optimizer, checkpoint, path, log)
    if lr is not None and "optimizer" in checkpoint:
        for group in optimizer.param_groups:
            group["lr"] = step_decay(lr, lr_step or [], epoch + 1)
    return model, optimizer, epoch


def restore_weights(
    model: nn.Module, checkpoint: dict[str, Any], path: str | os.PathLike, log: Callable[[str], None] = print
) -> None:
    """Load the weights of a checkpoint that was read from ``path``, or the running averages of a training with them.

    Raises UserError if nothing in it fits.
    """
    state_dict, averages = _state_dict(checkpoint, path), averaged_state_dict(checkpoint)
    what = ", running averages of its weights" if averages is not None else ""
    log(f"loaded {path}, epoch {checkpoint.get('epoch', 'unknown')}{what}")
    fit_state_dict(bare(model), state_dict if averages is None else rename_entries(averages), str(path), log)


def restore_training(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    checkpoint: dict[str, Any],
    path: str | os.PathLike,
    log: Callable[[str], None] = print,
) -> int:
    """Load weights and optimizer of a checkpoint that was read from ``path``, and return the number of epochs trained.

    It is 0 for a checkpoint without an optimizer, which cannot be resumed. Raises UserError as ``restore_weights``.
    """
    state_dict, network = _state_dict(checkpoint, path), bare(model)
    log(f"loaded {path}")
    fit_state_dict(network, state_dict, str(path), log)
    if "optimizer" not in checkpoint:
        log(f"{path}: no optimizer state in this file, training starts at epoch 1")
        return 0
    epoch = checkpoint.get("epoch", -1)
    if type(epoch) is not int or not 0 <= epoch < 1 << 31:
        raise UserError(f"{path}: its epoch is {str(epoch)[:40]}, not a number of epochs; leave out --resume")
    buffers = {name for name, _ in network.named_buffers()}
    names = [name for name in state_dict if name not in buffers and not name.endswith(BUFFERS)]
    restore_optimizer(network, optimizer, checkpoint["optimizer"], names, str(path), log)
    log("restored the optimizer")
    return epoch


def _state_dict(checkpoint: dict[str, Any], path: str | os.PathLike) -> "OrderedDict[str, Tensor]":
    """Return the weights of a checkpoint under the names of this project."""
    if not isinstance(checkpoint.get("state_dict"), dict):
        raise UserError(f"{path}: this checkpoint has no state_dict")
    return rename_entries(checkpoint["state_dict"])


def averaged_state_dict(checkpoint: dict[str, Any]) -> dict[str, Tensor] | None:
    """Return the running averages (``--ema``) in a training checkpoint, or None."""
    run = checkpoint.get("run")
    averages = run.get("ema") if isinstance(run, dict) else None
    state_dict = averages.get("state_dict") if isinstance(averages, dict) else None
    return state_dict if isinstance(state_dict, dict) and state_dict else None
