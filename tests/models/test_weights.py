"""Checkpoints: what is written is what is read, foreign files fit, and damaged or unsafe ones are refused."""

import os
import pickle

import pytest
import torch

from centernet.errors import UserError
from centernet.models import create_model, load_model, save_model
from centernet.models.weights import read_checkpoint

HEADS = {"hm": 3, "wh": 2, "reg": 2}


@pytest.fixture(scope="module")
def trained():
    """A network and its optimizer after one step."""
    torch.manual_seed(0)
    model = create_model("res_18", HEADS, 64)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    sum(value.sum() for value in model(torch.randn(2, 3, 64, 64))[0].values()).backward()
    optimizer.step()
    return model, optimizer


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_checkpoint_comes_back_whole(tmp_path, trained):
    model, optimizer = trained
    path = tmp_path / "model.pth"
    save_model(path, 7, model, optimizer, {"best": {"loss": 1.5}})
    assert not list(tmp_path.glob(".tmp-*"))
    assert list(torch.load(path, weights_only=True)) == ["epoch", "state_dict", "best", "optimizer"]
    fresh = create_model("res_18", HEADS, 64)
    other = torch.optim.Adam(fresh.parameters(), 1e-3)
    _, other, epoch = load_model(fresh, path, other, resume=True, lr=1e-3, lr_step=[3, 7, 9], log=lambda _: None)
    assert epoch == 7 and same(fresh.state_dict(), model.state_dict())
    assert other.param_groups[0]["lr"] == pytest.approx(1e-5)
    for one, two in zip(other.state.values(), optimizer.state.values(), strict=True):
        assert same(one, two)
    assert load_model(fresh, path, log=lambda _: None) is fresh
    assert load_model(fresh, path, other, log=lambda _: None)[2] == 0  # without resume training starts anew


def test_files_of_data_parallel_wrappers_and_of_other_classes_fit(tmp_path, trained):
    model, _ = trained
    path = tmp_path / "wrapped.pth"
    torch.save({"epoch": 1, "state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, path)
    lines = []
    fresh = create_model("res_18", HEADS, 64)
    load_model(fresh, path, log=lines.append)
    assert same(fresh.state_dict(), model.state_dict()) and len(lines) == 1
    fresh = create_model("res_18", {"hm": 5, "wh": 2, "dep": 1}, 64)
    before = fresh.hm[2].weight.clone()
    load_model(fresh, path, log=lines.append)
    assert torch.equal(fresh.conv1.weight, model.conv1.weight) and torch.equal(fresh.hm[2].weight, before)
    text = "\n".join(lines[1:])
    for name in ("hm.2.weight", "reg.0.weight", "dep.0.weight"):
        assert name in text
    assert len(lines) <= 6  # a short table instead of a line an entry


def test_resuming_a_file_with_parameters_that_the_network_ignores(tmp_path):
    """The optimizer of a reference dla_34 has two more parameters, for ``base.fc``."""
    model = create_model("dla_34", HEADS, 64)
    state, params = {}, []
    for name, value in model.state_dict().items():
        if name.startswith("dla_up.") and "base.fc.weight" not in state:
            state.update({"base.fc.weight": torch.zeros(9, 4), "base.fc.bias": torch.zeros(9)})
        state[name] = value
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    shapes = [value.shape for name, value in state.items() if not name.endswith(statistics)]
    params = list(range(len(shapes)))
    moments = {i: {"step": 3, "exp_avg": torch.full(shapes[i], i), "exp_avg_sq": torch.ones(shapes[i])} for i in params}
    group = {"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "amsgrad": False, "params": params}
    path = tmp_path / "reference.pth"
    torch.save({"epoch": 4, "state_dict": state, "optimizer": {"state": moments, "param_groups": [group]}}, path)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4, fused=True)
    assert load_model(model, path, optimizer, True, 1e-4, [], log=lambda _: None)[2] == 4
    last = list(model.parameters())[-1]
    assert optimizer.state[last]["exp_avg"].flatten()[0] == len(shapes) - 1
    last.grad = torch.zeros_like(last)
    optimizer.step()  # in its fused form, which the file does not know
    assert optimizer.param_groups[0]["fused"] and optimizer.state[last]["step"] == 4


class Harmful:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged or of another kind"),
        (b"text", "refused, because it holds more than weights|damaged or of another kind"),
        (pickle.dumps({"state_dict": Harmful()}), "refused, because it holds more than weights"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path, content, message):
    path = tmp_path / "bad.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"bad.pth: .*({message})"):
        read_checkpoint(path)


def test_a_truncated_checkpoint_is_refused(tmp_path, trained):
    path = tmp_path / "cut.pth"
    save_model(path, 1, trained[0])
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(UserError, match="cut.pth"):
        read_checkpoint(path)


def test_other_mistakes_are_told(tmp_path, trained):
    model, _ = trained
    for content, message in (({"epoch": 1}, "no state_dict"), ({"state_dict": {"x": torch.ones(1)}}, "none of its 1")):
        torch.save(content, tmp_path / "odd.pth")
        with pytest.raises(UserError, match=message):
            load_model(model, tmp_path / "odd.pth", log=lambda _: None)
    with pytest.raises(UserError, match="no such checkpoint file"):
        load_model(model, tmp_path / "missing.pth")
    with pytest.raises(UserError, match="cannot be written"):
        save_model(tmp_path / "no" / "folder.pth", 1, model)
