"""Shared by the model tests: weights and inputs defined by formulas, and the location of golden values.

The formulas are those of ``../shared/conformance/README.md``. That folder holds what the reference implementation
computes; tests that need it are skipped without it, and the others carry a few of its values themselves.
"""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from centernet.models import ARCHITECTURES

CONFORMANCE = Path(__file__).resolve().parents[2].parent / "shared" / "conformance"
needs_conformance = pytest.mark.skipif(not CONFORMANCE.is_dir(), reason="../shared/conformance is not there")

DETECTION_HEADS = {"hm": 20, "wh": 2, "reg": 2}


def architectures() -> list[str]:
    """Return the names of all networks, as ``--arch`` takes them."""
    families = ARCHITECTURES.items()
    return [f"{name}_{depth}" if depth else name for name, family in families for depth in family.depths or (0,)]


def reference_architectures() -> list[str]:
    """Return the names of the networks that the reference implementation has."""
    return [name for name in architectures() if name != "lite"]


def sweep(names: list[str], slow: Sequence[str]) -> list:
    """Names as test parameters; those that hold one of the texts in ``slow`` are marked slow."""
    return [pytest.param(n, marks=pytest.mark.slow) if any(text in n for text in slow) else n for n in names]


def noise(count: int, entry: int, salt: int = 0) -> np.ndarray:
    """``v(0 ... count - 1; entry, salt)``: float64 in [-1, 1) from an integer hash."""
    h = np.arange(count, dtype=np.uint32)
    h += np.uint32((2654435769 * (entry + 1) + salt) % 2**32)
    h ^= h >> np.uint32(16)
    h *= np.uint32(2246822507)
    h ^= h >> np.uint32(13)
    h *= np.uint32(3266489909)
    h ^= h >> np.uint32(16)
    return h / 2147483648 - 1


def formula_input(shape: Sequence[int], params: Sequence[float]) -> Tensor:
    """The formula input of shape (N, C, H, W) with its eight parameters, float32."""
    p = [float(value) for value in params]
    n, c, y, x = np.meshgrid(*(np.arange(size, dtype=np.float64) for size in shape), indexing="ij")
    waves = np.sin(p[0] * x + p[1] * y + p[2] * c + p[3] * n)
    waves += 0.5 * np.cos(p[4] * x - p[5] * y + p[6] * (c + 1) * (n + 1))
    return torch.from_numpy(waves + 0.5 * noise(waves.size, 0, int(p[7])).reshape(shape)).float()


def bn_statistics(model: nn.Module, which: str) -> list[tuple[str, Tensor]]:
    """All ``running_mean`` or ``running_var`` buffers of a network, sorted by name."""
    return sorted((name, value) for name, value in model.state_dict().items() if name.endswith(which))


def load_formula_weights(
    model: nn.Module, bn_running_mean: np.ndarray | None = None, bn_running_var: np.ndarray | None = None
) -> nn.Module:
    """Fill a network, in place, with the formula weights of its dtype.

    The two arrays are all BatchNorm statistics in the order of their sorted names; without them they are 0 and 1.
    """
    owners = {}
    for prefix, module in model.named_modules():
        for name, _ in chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False)):
            owners[f"{prefix}.{name}" if prefix else name] = module
    state = model.state_dict()
    names = sorted(n for n in state if not n.endswith("num_batches_tracked") and not n.startswith("base.fc."))
    for name, tensor in state.items():
        if name not in names:
            tensor.zero_()
    for entry, name in enumerate(names):
        if not name.endswith(("running_mean", "running_var")):
            value = _formula_value(name, state[name], entry, owners[name], model.heads)
            state[name].copy_(torch.from_numpy(value).view(state[name].shape))
    for which, given, default in (("running_mean", bn_running_mean, 0), ("running_var", bn_running_var, 1)):
        start = 0
        for _, buffer in bn_statistics(model, which):
            if given is None:
                buffer.fill_(default)
            else:
                buffer.copy_(torch.from_numpy(given[start : start + buffer.numel()]))
                start += buffer.numel()
    return model


def _formula_value(name: str, tensor: Tensor, entry: int, owner: nn.Module, heads: dict[str, int]) -> np.ndarray:
    value = noise(tensor.numel(), entry)
    path = name.split(".")
    last_of_head = path[0] in heads and (len(path) == 3 and path[1] == "2" or len(path) == 4 and path[2] == "1")
    if name.endswith(".bias"):
        return 0.1 * value - (2.19 if last_of_head and "hm" in path[0] else 0)
    if isinstance(owner, nn.BatchNorm2d):
        return 1 + 0.1 * value
    value *= np.sqrt(6 / (tensor.numel() / tensor.shape[0]))
    return 0.25 * value if last_of_head or "conv_offset_mask" in name else value


def error_in_std(value: Tensor, reference: np.ndarray | Tensor) -> float:
    """Greatest difference in units of the reference's standard deviation."""
    reference = torch.as_tensor(reference, dtype=torch.float64)
    assert value.shape == reference.shape
    return float((value.detach().double() - reference).abs().max() / reference.std(unbiased=False))
