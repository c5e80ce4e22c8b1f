"""The optimizer's state in checkpoints. Every value is checked before it is used."""

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from .tensors import fresh_copy, tensor_problem

NAMES = "param_names"  # of a group of parameters, as PyTorch stores them
ADAM, SGD = ("exp_avg", "exp_avg_sq"), ("momentum_buffer",)
HYPERPARAMETERS = ("betas", "eps", "momentum")  # learning rate and weight decay follow from the options


def named_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the state of an optimizer, with the names of its parameters."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    state = optimizer.state_dict()
    for saved, group in zip(state["param_groups"], optimizer.param_groups, strict=True):
        saved[NAMES] = [names[parameter] for parameter in group["params"]]
    return state


def restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, saved: Any, file_names: list[str], source: str, log=print
) -> None:
    """Restore the state of an Adam, AdamW or SGD optimizer over parameters of ``model``.

    Parameters are matched by name. The state of one that the file lacks, that has another shape there, or whose values
    cannot be right (not finite, sparse, of an odd type, negative squares) starts again from zero, and is named.

    Args:
        model: the network.
        optimizer: its optimizer.
        saved: ``checkpoint["optimizer"]``.
        file_names: names of the parameters in the file's state_dict, which are those of the optimizer, in the same
            order, if it has one group and names none (the reference).
        source: the file, for messages.
        log: called with lines for the user.

    Raises:
        UserError: ``saved`` is not the state of such an optimizer for such a network.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    try:
        saved_groups, states = list(saved["param_groups"]), dict(saved["state"])
        state_of = _by_name(saved_groups, states, file_names, optimizer, names)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{source}: its optimizer state does not fit this network; leave out --resume") from error
    state, rejected = {}, defaultdict(list)
    for position, parameter in enumerate(parameters):
        name = names[parameter]
        if name not in state_of:
            rejected["not in the file"].append(name)
        elif state_of[name] is not None:  # it has none while it gets no gradient
            entry, problem = _checked(state_of[name], parameter, optimizer)
            if problem is None:
                state[position] = entry
            else:
                rejected[problem].append(name)
    if rejected and states and not state:
        reason = next(iter(rejected))
        raise UserError(f"{source}: its optimizer state cannot be used ({reason}); leave out --resume")
    groups = optimizer.state_dict()["param_groups"]
    if saved_groups:
        values = _hyperparameters(saved_groups[0], groups[0], source, log)
        groups = [{**group, **values} for group in groups]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for problem, of_problem in rejected.items():
        shown = ", ".join(of_problem[:4]) + (" ..." if len(of_problem) > 4 else "")
        log(f"{source}: optimizer state of {len(of_problem)} parameter(s) reinitialized ({problem}): {shown}")


def _by_name(
    groups: list[dict],
    states: dict,
    file_names: list[str],
    optimizer: torch.optim.Optimizer,
    own_names: dict[Tensor, str],
) -> dict[str, Any]:
    """Return the file's state of each parameter by name, None where it has none. Raises ValueError and the like."""
    if all(NAMES in group for group in groups):
        names = [name for group in groups for name in group[NAMES]]
    elif len(groups) == 1 and len(groups[0]["params"]) == len(file_names):
        names = file_names
    else:
        own = optimizer.param_groups
        if [len(group["params"]) for group in groups] != [len(group["params"]) for group in own]:
            raise ValueError("other groups of parameters")
        names = [own_names[parameter] for group in own for parameter in group["params"]]
    positions = [position for group in groups for position in group["params"]]
    state_of = {str(name): states.get(position) for name, position in zip(names, positions, strict=True)}
    if states and all(entry is None for entry in state_of.values()):
        raise ValueError("no state belongs to a parameter")
    return state_of


def _checked(entry: Any, parameter: Tensor, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], str | None]:
    """Return a copy of a parameter's state, and why it cannot be used, or None."""
    is_sgd = isinstance(optimizer, torch.optim.SGD)
    tensors = SGD if is_sgd else ADAM
    if not isinstance(entry, dict) or not all(name in entry for name in tensors):
        return {}, f"no state of {type(optimizer).__name__}: written with another --optimizer"
    if is_sgd and entry["momentum_buffer"] is None:  # before its first update
        return {"momentum_buffer": None}, None
    for name in tensors:
        problem = tensor_problem(entry[name], parameter.shape)
        if problem is not None:
            return {}, f"{name} has another shape" if problem.startswith("has the shape") else f"{name} {problem}"
    copy: dict[str, Any] = {name: fresh_copy(entry[name], parameter.detach()) for name in tensors}
    if is_sgd:
        return copy, None
    if bool((entry["exp_avg_sq"] < 0).any()):
        return {}, "exp_avg_sq holds negative values"
    step = _step(entry.get("step"))
    if step is None:
        return {}, "step is not a number of updates"
    return {"step": torch.tensor(step, dtype=torch.float32), **copy}, None


def _step(value: Any) -> float | None:
    if isinstance(value, Tensor):
        value = value.item() if value.numel() == 1 and tensor_problem(value) is None else None
    return float(value) if _is_number(value) and 0 <= value <= 1 << 53 else None


def _hyperparameters(saved: dict[str, Any], own: dict[str, Any], source: str, log) -> dict[str, Any]:
    """Return the file's valid hyperparameters that differ from ``own``; log them, and those that are invalid."""
    result = {}
    for name in HYPERPARAMETERS:
        if name not in own or name not in saved:
            continue
        value = tuple(saved[name]) if isinstance(saved[name], list) else saved[name]
        if not _is_valid(name, value):
            log(f"warning: {source}: invalid {name} of its optimizer ({str(value)[:40]}), {own[name]} used instead")
        elif value != own[name]:
            result[name] = value
            log(f"{source}: {name} of its optimizer restored: {value} instead of {own[name]}")
    return result


def _is_valid(name: str, value: Any) -> bool:
    if name == "betas":
        return isinstance(value, tuple) and len(value) == 2 and all(_is_number(b) and 0 <= b < 1 for b in value)
    return _is_number(value) and value >= 0 and (name != "momentum" or value < 1)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def optimizer_for_reference(saved: dict[str, Any], count: int, unused: set[int]) -> dict[str, Any]:
    """Return an Adam state with the positions of ``count`` parameters, of which ``unused`` ones have no state.

    It holds only what PyTorch 0.4.1 knows, in its types.

    Raises:
        UserError: the optimizer is not Adam over all parameters.
    """
    groups = saved["param_groups"]
    places = [place for place in range(count) if place not in unused]
    entries = list(saved["state"].values())
    is_adam = all("betas" in group for group in groups) and all("exp_avg" in entry for entry in entries)
    if not is_adam or len(groups) != 1 or len(groups[0]["params"]) != len(places):
        raise UserError(
            "the reference resumes only Adam over all parameters: no --optimizer, --weight_decay or --freeze"
        )
    (group,) = groups
    state = {}
    for position, place in zip(group["params"], places, strict=True):
        if entry := saved["state"].get(position):
            state[place] = {"step": int(entry["step"]), **{name: entry[name].detach().contiguous() for name in ADAM}}
    known = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay", "amsgrad")}
    return {"state": state, "param_groups": [{**known, "params": list(range(count))}]}
