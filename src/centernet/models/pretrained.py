"""Backbone weights to start from: ImageNet's, through PyTorch's download cache, or a local file."""

import os
from urllib.parse import urlparse

import torch
from torch import nn

from ..errors import UserError
from .weights import read_checkpoint, strip_module


def load_pretrained(model: nn.Module, arch: str, pretrained: str, urls: list[str], prefix: str = "", log=print) -> None:
    """Load backbone weights into ``model``.

    Args:
        model: the network; entries that are not in the file (neck, heads) keep their values.
        arch: its name, for messages.
        pretrained: ``imagenet`` or the path of a file.
        urls: addresses of the ImageNet weights, tried in order; file names end in the start of their SHA-256.
        prefix: put before the names of the file when they lack it.

    Raises:
        UserError: no network and no cached file (the text says which file to put where), or nothing fits.
    """
    if pretrained == "imagenet":
        if not urls:
            raise UserError(f"--pretrained imagenet: there are no ImageNet weights for {arch}; use --pretrained none")
        source, state = _download(arch, urls)
    else:
        checkpoint = read_checkpoint(pretrained)
        source, state = pretrained, checkpoint.get("state_dict", checkpoint)
    state = strip_module(state)
    own = model.state_dict()
    state = {name if name in own else prefix + name: value for name, value in state.items()}
    # Only what the backbone takes: a classifier is left out without a word, as every ImageNet file has one.
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    if not fitting:
        raise UserError(f"--pretrained {pretrained}: none of its {len(state)} entries fits {arch}")
    model.load_state_dict(fitting, strict=False)
    log(f"--pretrained {pretrained}: {len(fitting)} entries of {source} loaded")


def _download(arch: str, urls: list[str]) -> tuple[str, dict]:
    """The first address that answers, and its weights."""
    folder = os.path.join(torch.hub.get_dir(), "checkpoints")
    reasons = []
    for url in urls:
        try:
            return url, torch.hub.load_state_dict_from_url(
                url, map_location="cpu", check_hash=True, weights_only=True, progress=False
            )
        except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong hash is a RuntimeError
            reasons.append(f"{url} ({error})")
    name = os.path.basename(urlparse(urls[0]).path)
    raise UserError(
        f"--pretrained imagenet: the weights of {arch} could not be had from {'; '.join(reasons)}; "
        f"put {name} into {folder}, or name a file with --pretrained FILE, or start with --pretrained none"
    )
