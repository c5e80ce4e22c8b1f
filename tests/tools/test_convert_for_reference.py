"""convert_for_reference.py and ``save_model(for_reference=True)``: files that the reference resumes."""

import json
import subprocess
import sys
import zipfile

import pytest
import torch
from tests.helpers.conformance import CONFORMANCE, needs_conformance
from tests.helpers.training import ENVIRONMENT, ROOT
from torch import nn

from centernet.errors import UserError
from centernet.models import create_model, load_model, read_checkpoint, save_model

SCRIPT = ROOT / "src" / "tools" / "convert_for_reference.py"
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def convert(*arguments):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


def trained(arch, heads, head_conv):
    """A network and its optimizer, with states that name their parameter."""
    torch.manual_seed(0)
    model = create_model(arch, heads, head_conv)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    unused = set(getattr(model, "unused_parameters", ()))
    for number, (name, parameter) in enumerate(model.named_parameters()):
        if name not in unused:
            moments = {key: torch.full_like(parameter, number) for key in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": torch.tensor(5.0), **moments}
    return model, optimizer


def with_fc(entries, arch):
    """Entries of dla_34 as the reference trains it: loading the ImageNet weights adds their classifier to ``base``."""
    if arch != "dla_34":
        return entries
    place = max(k for k, (name, _) in enumerate(entries) if name.startswith("base.")) + 1
    return [*entries[:place], ["base.fc.weight", [1000, 512, 1, 1]], ["base.fc.bias", [1000]], *entries[place:]]


class Reference(nn.Module):
    """A network with the parameters of the reference, in their order."""

    def __init__(self, entries):
        super().__init__()
        named = [(name, shape) for name, shape in entries if not name.endswith(BUFFERS)]
        self.names = [name for name, _ in named]
        self.values = nn.ParameterList(nn.Parameter(torch.zeros(shape)) for _, shape in named)


@needs_conformance
@pytest.mark.parametrize("name", ["dla_34__ctdet", "dlav0_34__ctdet", "resdcn_18__ctdet", "dla_34__multi_pose"])
def test_the_reference_resumes_the_file(name, tmp_path):
    """Its weights fit by name and order, and its optimizer takes every state for the right parameter."""
    description = json.loads((CONFORMANCE / "state_dicts" / f"{name}.json").read_text())
    arch, heads = description["arch"], dict(description["heads"])
    model, optimizer = trained(arch, heads, description["head_conv"])
    path = tmp_path / "model_last.pth"
    save_model(path, 7, model, optimizer, {"model": {"arch": arch}, "best": {}})
    done = convert(path)
    assert (done.returncode, done.stderr) == (0, "")
    output = tmp_path / "model_last_reference.pth"
    entries = with_fc(description["state_dict"], arch)
    assert done.stdout == f"{output}: {arch}, epoch 7, {len(entries)} entries, with the optimizer's state\n"
    assert not zipfile.is_zipfile(output)
    written = torch.load(output, weights_only=True)
    assert list(written) == ["epoch", "state_dict", "optimizer"] and written["epoch"] == 7
    assert [[name, list(value.shape)] for name, value in written["state_dict"].items()] == entries
    own = model.state_dict()
    for entry, value in written["state_dict"].items():
        assert torch.equal(value, own[entry] if entry in own else torch.zeros_like(value))
    reference = Reference(entries)
    other = torch.optim.Adam(reference.parameters(), 1e-4)
    other.load_state_dict(written["optimizer"])
    numbers = {name: number for number, (name, _) in enumerate(model.named_parameters())}
    for name, parameter in zip(reference.names, reference.values, strict=True):
        state = other.state.get(parameter)
        if name in numbers and name not in getattr(model, "unused_parameters", ()):
            assert state["exp_avg"].shape == parameter.shape and (state["exp_avg"] == numbers[name]).all()
            assert int(state["step"]) == 5
        else:
            assert not state
    for parameter in reference.parameters():
        parameter.grad = None if not other.state.get(parameter) else torch.ones_like(parameter)
    other.step()


def test_the_file_can_be_resumed_here_again(tmp_path):
    heads = {"hm": 3, "wh": 2, "reg": 2}
    model, optimizer = trained("dla_34", heads, 64)
    path = tmp_path / "reference.pth"
    save_model(path, 7, model, optimizer, for_reference=True)
    assert not zipfile.is_zipfile(path) and "base.fc.bias" in read_checkpoint(path)["state_dict"]
    again = create_model("dla_34", heads, 64)
    other = torch.optim.Adam(again.parameters(), 1e-3)
    _, _, epoch = load_model(again, path, other, resume=True, log=lambda _: None)
    assert epoch == 7
    for own, value in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(own, value)
        if own in optimizer.state:
            assert torch.equal(optimizer.state[own]["exp_avg"], other.state[value]["exp_avg"])


def test_weights_alone(tmp_path):
    model, _ = trained("res_18", {"hm": 3, "wh": 2}, 64)
    path, output = tmp_path / "model_best.pth", tmp_path / "out.pth"
    save_model(path, 3, model)
    done = convert(path, "--output", output)
    assert (done.returncode, done.stderr) == (
        2,
        f"error: {path}: this checkpoint does not name its network; add --arch\n",
    )
    done = convert(path, "--output", output, "--arch", "res_18")
    assert done.returncode == 0 and done.stdout.endswith("weights only\n")
    assert list(read_checkpoint(output)) == ["epoch", "state_dict"]


def test_what_the_reference_cannot_resume(tmp_path):
    model, _ = trained("lite", {"hm": 3, "wh": 2}, 0)
    path = tmp_path / "a.pth"
    save_model(path, 3, model, extra={"model": {"arch": "lite"}})
    done = convert(path)
    assert (done.returncode, done.stderr) == (2, f"error: {path}: the reference has no network lite\n")
    model, _ = trained("res_18", {"hm": 3, "wh": 2}, 64)
    sgd = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    with pytest.raises(UserError, match="the reference resumes only Adam over all parameters"):
        save_model(path, 3, model, sgd, for_reference=True)
    done = convert(path, "--output", path)
    assert done.returncode == 2 and "would be overwritten" in done.stderr
