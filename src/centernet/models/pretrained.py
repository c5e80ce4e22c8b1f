"""Pretrained backbone weights: ImageNet weights from PyTorch's download cache, or a local file."""

import hashlib
import os
import socket
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import UserError
from .downloads import Download
from .weights import check_weights, read_checkpoint, rename_entries

TIMEOUT = 30  # seconds without an answer after which an address counts as dead


def load_pretrained(
    model: nn.Module,
    arch: str,
    pretrained: str,
    downloads: Sequence[Download],
    prefix: str = "",
    backbone: Sequence[str] = (),
    log=print,
    rgb: bool = False,
) -> None:
    """Load backbone weights into ``model``.

    Files may be those of DLA's authors, of timm (``pytorch_model.bin`` or ``model.safetensors``), of torchvision, and
    whole checkpoints of this project or of the reference.

    Args:
        model: the network; entries that are not in the file (neck, heads) keep their values.
        arch: its name, for messages.
        pretrained: ``imagenet`` or the path of a file.
        downloads: where the ImageNet weights are, tried in order; a file in the cache comes before any download.
        prefix: put before the names of the file when they lack it.
        backbone: starts of the names of the entries that the file must have.
        rgb: weights of other projects take RGB images, and are changed to take BGR. The reference loads those of ResNet
            and DLA unchanged.

    Raises:
        UserError: no connection and no cached file (the message names the file and where to put it), a checksum
            mismatch, entries of the backbone that are missing, have another shape or are not finite, or nothing fits.
    """
    if pretrained == "imagenet":
        if not downloads:
            raise UserError(f"--pretrained imagenet: {arch} has no ImageNet weights; use --pretrained none")
        origin, path = _fetch(arch, downloads, log)
    else:
        origin, path = pretrained, Path(pretrained)
    own = model.state_dict()
    read = read_weights(path)
    if rgb and not any(name in own for name in read):
        read = rgb_to_bgr(read)
    state = {name if name in own else prefix + name: value for name, value in read.items()}
    # Only what the backbone takes: a classifier is left out without a word, as every ImageNet file has one.
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    if not fitting and (by_order := _match_by_order(own, state, backbone)):
        log(f"--pretrained {pretrained}: names differ from {arch}; entries are matched by their order and shape")
        fitting = by_order
    if not fitting:
        raise UserError(f"--pretrained {pretrained}: none of its {len(state)} entries fits {arch}")
    _check_backbone(model, own, fitting, backbone, f"--pretrained {pretrained}: {path}", arch)
    model.load_state_dict(fitting, strict=False)
    log(f"--pretrained {pretrained}: {len(fitting)} entries of {origin} loaded")


def rgb_to_bgr(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights whose first convolution over images (O, 3, h, w) takes BGR instead of RGB images."""
    first = next((name for name, value in state.items() if value.ndim == 4 and value.shape[1] == 3), None)
    return {name: value.flip(1) if name == first else value for name, value in state.items()}


def read_weights(path: str | os.PathLike) -> dict[str, Tensor]:
    """Return the entries of a weight file by name, on the CPU, read as data only. Raises UserError if that fails."""
    checkpoint = read_checkpoint(path)
    state = checkpoint.get("state_dict", checkpoint)
    if not isinstance(state, dict):
        raise UserError(f"{path}: its state_dict is a {type(state).__name__}, not a table of weights")
    return rename_entries({name: value for name, value in state.items() if isinstance(value, Tensor)})


def _match_by_order(own: dict[str, Tensor], state: dict[str, Tensor], backbone: Sequence[str]) -> dict[str, Tensor]:
    """Match the entries of a file with foreign names to those of the backbone, if their shapes agree one by one.

    Returns an empty table unless the whole backbone agrees in order; the file may have more at its end.
    """
    counters = "num_batches_tracked"  # not in all files
    names = [name for name in own if name.startswith(tuple(backbone)) and not name.endswith(counters)]
    values = [value for name, value in state.items() if not name.endswith(counters)]
    if not backbone or not names or len(values) < len(names):
        return {}
    pairs = list(zip(names, values, strict=False))
    return dict(pairs) if all(own[name].shape == value.shape for name, value in pairs) else {}


def _check_backbone(
    model: nn.Module,
    own: dict[str, Tensor],
    fitting: dict[str, Tensor],
    backbone: Sequence[str],
    source: str,
    arch: str,
) -> None:
    """Raise UserError unless ``fitting`` has all of the backbone that matters, and only numbers."""
    # A module whose parameters have no influence needs no statistics either; timm's files do without.
    unused = {name.rpartition(".")[0] for name in getattr(model, "unused_parameters", ())}
    needed = [
        name
        for name in own
        if name.startswith(tuple(backbone))
        and name.rpartition(".")[0] not in unused
        and not name.endswith("num_batches_tracked")  # newer than some of the files
    ]
    missing = [name for name in needed if name not in fitting]
    if missing:
        raise UserError(
            f"{source} lacks {len(missing)} of the {len(needed)} entries of the backbone of {arch} "
            f"(in this shape), such as {missing[0]}"
        )
    check_weights(fitting, source)


def _fetch(arch: str, downloads: Sequence[Download], log) -> tuple[str, Path]:
    """Return URL and path of the first file that is cached or can be downloaded."""
    for download in downloads:
        if download.cached.is_file():
            digest = _sha256(download.cached)
            if not digest.startswith(download.sha256):
                raise UserError(
                    f"--pretrained imagenet: {download.cached} is damaged or another file (its SHA-256 is "
                    f"{digest[:8]}..., not {download.sha256[:8]}...); remove it"
                )
            return str(download.cached), download.cached
    reasons = []
    for download in downloads:
        log(f"--pretrained imagenet: downloading {download.url}")
        timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(TIMEOUT)
        try:
            download.cached.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(download.url, str(download.cached), download.sha256, progress=False)
            return download.url, download.cached
        except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong hash is a RuntimeError
            reasons.append(f"{download.url} ({error})")
        finally:
            socket.setdefaulttimeout(timeout)
    names = " or ".join(
        d.named if d.cached.name == d.named else f"{d.named} under the name {d.cached.name}" for d in downloads
    )
    raise UserError(
        f"--pretrained imagenet: could not download the weights of {arch} from {'; '.join(reasons)}; "
        f"put {names} into {downloads[0].cached.parent}, or name a file with --pretrained FILE, or start with "
        "--pretrained none"
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
