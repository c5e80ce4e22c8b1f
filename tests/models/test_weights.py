"""Checkpoints: what is written is what is read, foreign files fit, and damaged or unsafe ones are refused."""

import copy
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
    assert load_model(fresh, path, other, log=lambda _: None)[2] == 0  # without resume, training starts from epoch 1


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


# The optimizer's state


def saved_optimizer(trained):
    """A checkpoint with copies of everything, and the positions of its parameters by name."""
    model, optimizer = trained
    content = copy.deepcopy({"epoch": 2, "state_dict": model.state_dict(), "optimizer": optimizer.state_dict()})
    return content, {name: k for k, (name, _) in enumerate(model.named_parameters())}


def resume(tmp_path, content, heads=HEADS):
    """The network and optimizer that resume from a checkpoint, and the lines logged."""
    torch.save(content, tmp_path / "saved.pth")
    model = create_model("res_18", heads, 64)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    lines: list[str] = []
    load_model(model, tmp_path / "saved.pth", optimizer, True, 1e-3, [], log=lines.append)
    return model, optimizer, lines


def moments(model, optimizer) -> dict:
    return {name: optimizer.state.get(parameter) for name, parameter in model.named_parameters()}


def one_update(model, optimizer) -> None:
    sum(value.square().sum() for value in model(torch.randn(2, 3, 64, 64))[0].values()).backward()
    optimizer.step()
    assert all(value.isfinite().all() for value in model.state_dict().values())


@pytest.mark.parametrize("classes", [1, 2, 5, 80])
def test_another_number_of_classes_resets_the_moments_of_that_head(tmp_path, trained, classes):
    content, places = saved_optimizer(trained)
    model, optimizer, lines = resume(tmp_path, content, {**HEADS, "hm": classes})
    reset = {"hm.2.weight", "hm.2.bias"}
    for name, entry in moments(model, optimizer).items():
        assert (entry is None or not entry) == (name in reset)
        assert name in reset or same(entry, content["optimizer"]["state"][places[name]])
    assert any("2 parameter(s) reinitialized (exp_avg has another shape): hm.2.weight, hm.2.bias" in x for x in lines)
    one_update(model, optimizer)
    assert model.hm[2].bias.shape == optimizer.state[model.hm[2].bias]["exp_avg"].shape == (classes,)


def test_heads_that_come_and_go_keep_the_moments_of_the_others(tmp_path, trained):
    content, places = saved_optimizer(trained)
    model, optimizer, lines = resume(tmp_path, content, {"hm": 3, "dep": 1, "reg": 2})
    for name, entry in moments(model, optimizer).items():
        assert bool(entry) == (not name.startswith("dep."))
        assert not entry or same(entry, content["optimizer"]["state"][places[name]])
    assert any("reinitialized (not in the file): dep.0.weight, dep.0.bias" in line for line in lines)
    one_update(model, optimizer)


def quantized(value):
    return torch.quantize_per_tensor(value, 0.1, 0, torch.qint8)


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("exp_avg", lambda value: value[:1], "exp_avg has another shape"),
        ("exp_avg", lambda value: value.new_zeros(10_000_000, 1).expand(-1, 100), "exp_avg has another shape"),
        ("exp_avg_sq", lambda value: torch.full_like(value, float("nan")), "exp_avg_sq holds values that are not"),
        ("exp_avg_sq", lambda value: -torch.ones_like(value), "exp_avg_sq holds negative values"),
        ("exp_avg", lambda value: value.to_sparse(), "exp_avg is sparse or nested"),
        ("exp_avg", quantized, "exp_avg has the type qint8"),
        ("exp_avg", lambda value: value.to(torch.float8_e4m3fn), "exp_avg has the type float8_e4m3fn"),
        ("exp_avg", lambda value: value.to(torch.complex64), "exp_avg has the type complex64"),
        ("exp_avg", lambda value: value.bool(), "exp_avg has the type bool"),
        ("exp_avg", lambda value: value.tolist(), "exp_avg is a list, not a tensor"),
        ("exp_avg", lambda value: None, "exp_avg is a NoneType, not a tensor"),
        ("step", lambda value: -7, "step is not a number of updates"),
        ("step", lambda value: float("nan"), "step is not a number of updates"),
        ("step", lambda value: torch.ones(3), "step is not a number of updates"),
        ("step", lambda value: "3", "step is not a number of updates"),
        ("step", lambda value: True, "step is not a number of updates"),
    ],
)
def test_an_entry_of_the_optimizer_that_cannot_be_right_is_reinitialized(tmp_path, trained, name, change, reason):
    content, places = saved_optimizer(trained)
    entry = content["optimizer"]["state"][places["wh.2.weight"]]
    entry[name] = change(entry[name])
    model, optimizer, lines = resume(tmp_path, content)
    assert {key for key, entry in moments(model, optimizer).items() if not entry} == {"wh.2.weight"}
    assert any(f"1 parameter(s) reinitialized ({reason}" in line and line.endswith("wh.2.weight") for line in lines)
    one_update(model, optimizer)


def test_moments_that_overlap_in_memory_are_taken_apart(tmp_path, trained):
    content, places = saved_optimizer(trained)
    states, shape = content["optimizer"]["state"], trained[0].wh[2].weight.shape
    states[places["wh.2.weight"]]["exp_avg"] = torch.tensor(0.5).expand(shape)
    states[places["reg.2.bias"]]["exp_avg"] = states[places["wh.2.bias"]]["exp_avg"]
    states[places["wh.2.bias"]] = {**states[places["wh.2.bias"]], "step": 7}
    model, optimizer, _ = resume(tmp_path, content)
    one, two = optimizer.state[model.reg[2].bias]["exp_avg"], optimizer.state[model.wh[2].bias]["exp_avg"]
    assert one.data_ptr() != two.data_ptr() and torch.equal(one, two)
    assert optimizer.state[model.wh[2].bias]["step"] == 7
    wide = optimizer.state[model.wh[2].weight]["exp_avg"]
    assert wide.is_contiguous() and (wide == 0.5).all()
    one_update(model, optimizer)


def test_hyperparameters_of_the_optimizer(tmp_path, trained):
    content, _ = saved_optimizer(trained)
    group = content["optimizer"]["param_groups"][0]
    group.update(betas=[0.5, 0.9], eps=-1, weight_decay=1, lr="much", amsgrad=True, maximize=True, fused=None)
    _, optimizer, lines = resume(tmp_path, content)
    (own,) = optimizer.param_groups
    assert (own["betas"], own["eps"], own["weight_decay"], own["lr"]) == ((0.5, 0.9), 1e-8, 0, 1e-3)
    assert not own["amsgrad"] and not own["maximize"] and own["fused"]
    assert any("betas of its optimizer restored: (0.5, 0.9) instead of (0.9, 0.999)" in line for line in lines)
    assert any("warning: " in line and "invalid eps" in line for line in lines)
    for betas in ((2, 0.9), (0.9,), "0.9", (float("nan"), 0.9), torch.ones(2), [torch.ones(2), 0.9], (-0.1, 0.9)):
        group["betas"] = betas
        _, optimizer, lines = resume(tmp_path, content)
        assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)
        assert any("invalid betas of its optimizer" in line for line in lines)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(optimizer=None),
        lambda content: content.update(optimizer={}),
        lambda content: content["optimizer"].update(param_groups=[]),
        lambda content: content["optimizer"].update(param_groups=content["optimizer"]["param_groups"] * 2),
        lambda content: content["optimizer"]["param_groups"][0]["params"].pop(),
        lambda content: content["optimizer"]["param_groups"][0].update(params=7),
        lambda content: content["optimizer"].update(state=[1, 2]),
        lambda content: content["optimizer"].update(state={"a": 1}),
        lambda content: [entry.pop("exp_avg") for entry in content["optimizer"]["state"].values()],
        lambda content: content.update(epoch=-1),
        lambda content: content.update(epoch="4"),
        lambda content: content.update(epoch=None),
        lambda content: content.update(epoch=1.5),
        lambda content: content.update(epoch=torch.ones(2)),
        lambda content: content.update(epoch=1 << 70),
    ],
)
def test_an_optimizer_state_or_epoch_that_cannot_be_used_is_an_error(tmp_path, trained, change):
    content, _ = saved_optimizer(trained)
    change(content)
    with pytest.raises(UserError, match="saved.pth: its .*; leave out --resume"):
        resume(tmp_path, content)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda value: value.to_sparse(), "is sparse or nested"),
        (quantized, "has the type qint8"),
        (lambda value: value.to(torch.float8_e4m3fn), "has the type float8_e4m3fn"),
        (lambda value: value.to("meta"), "has no values"),
    ],
)
def test_weights_of_an_odd_kind_are_refused(tmp_path, trained, change, reason):
    content, _ = saved_optimizer(trained)
    content["state_dict"]["wh.2.weight"] = change(content["state_dict"]["wh.2.weight"])
    with pytest.raises(UserError, match=f"saved.pth: wh.2.weight {reason}"):
        resume(tmp_path, content)


# Bad files


class Harmful:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged or of another kind"),
        (b"text", "not a checkpoint; it needs a file such as model_best.pth"),
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


def test_other_errors_are_reported(tmp_path, trained):
    model, _ = trained
    for content, message in (({"epoch": 1}, "no state_dict"), ({"state_dict": {"x": torch.ones(1)}}, "none of its 1")):
        torch.save(content, tmp_path / "odd.pth")
        with pytest.raises(UserError, match=message):
            load_model(model, tmp_path / "odd.pth", log=lambda _: None)
    with pytest.raises(UserError, match="no such checkpoint file"):
        load_model(model, tmp_path / "missing.pth")
    with pytest.raises(UserError, match="a folder, not a checkpoint file; name one in it, such as model_best.pth"):
        load_model(model, tmp_path)
    with pytest.raises(UserError, match="cannot be written"):
        save_model(tmp_path / "no" / "folder.pth", 1, model)
