"""A single update: with gradient accumulation, averaged weights, compilation; each equals the plain one."""

import pytest
import torch
from tests.helpers.processes import run_update
from tests.helpers.runs import RUN
from tests.helpers.signals import signal_at
from tests.helpers.training import losses, small

import centernet.engine.trainer as trainer_module
from centernet.engine.averaging import ModelEma
from centernet.engine.precision import MixedPrecision, set_precision
from centernet.engine.trainer import split
from centernet.errors import UserError
from centernet.models import create_model
from centernet.options import recipe
from centernet.opts import opts


@pytest.mark.parametrize(("pieces", "processes"), [("3", 1), ("2", 2)])
def test_pieces_add_up_to_the_update(tmp_path, tiny_voc, pieces, processes):
    arguments = ["ctdet", "--dataset", "pascal", "--data_path", str(tiny_voc), "--arch", "res_18", "--batch_size", "4"]
    arguments += ["--input_res", "64", "--seed", "5"]
    whole = run_update(tmp_path, 1, arguments)
    together = run_update(tmp_path, processes, [*arguments, "--accumulate", pieces])
    assert torch.allclose(together["losses"], whole["losses"], rtol=1e-9, atol=0)
    for name, gradient in whole["gradients"].items():
        assert (together["gradients"][name] - gradient).abs().max() <= 1e-9 * gradient.abs().max(), name


def test_true_heads_leave_nothing_to_train(main, tmp_path, tiny_voc):
    arguments = small(tmp_path, tiny_voc, "--num_epochs", "1", "--val_intervals", "0", "--num_iters", "1")
    heads = ["--eval_oracle_hm", "--eval_oracle_wh", "--eval_oracle_offset"]
    done = main(*arguments, *heads)
    assert done.returncode == 2 and done.stderr.startswith("error: --eval_oracle_*: replace all that the network")
    assert len(done.stderr.splitlines()) == 1
    done = main(*arguments, *heads[:2])
    assert done.returncode == 0, done.stderr


def test_a_batch_in_pieces():
    batch = {"input": torch.arange(5), "num_target_pixels": [7], "meta": list("abcde")}
    pieces = split(batch, 3)
    assert [piece["input"].tolist() for piece in pieces] == [[0], [1, 2], [3, 4]]
    assert [piece["meta"] for piece in pieces] == [["a"], ["b", "c"], ["d", "e"]]
    assert len(split(batch, 9)) == 5 and split(batch, 1)[0]["num_target_pixels"] == [7]


def test_averages_follow_the_weights():
    network = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False), torch.nn.BatchNorm1d(1))
    averaged = ModelEma(network, 0.5)
    expected = network[0].weight.detach().clone()
    for k, decay in enumerate([2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15, 7 / 16, 8 / 17, 9 / 18, 0.5, 0.5]):
        with torch.no_grad():
            network[0].weight += k
        network[1].num_batches_tracked += 1
        averaged.update()
        expected = decay * expected + (1 - decay) * network[0].weight
    torch.testing.assert_close(averaged.state["0.weight"], expected)
    own = network[0].weight.detach().clone()
    with averaged.applied():
        torch.testing.assert_close(network[0].weight, expected)
        assert network[1].num_batches_tracked == 10
    assert torch.equal(network[0].weight, own)


def test_averages_are_validated_kept_and_resumed(main, tmp_path, tiny_voc, monkeypatch):
    monkeypatch.setattr(trainer_module, "FLUSH", 1)
    arguments = ["--ema", "0.9", "--num_epochs", "2", "--val_intervals", "1"]
    assert main(*small(tmp_path / "whole", tiny_voc, *arguments)).returncode == 0
    with monkeypatch.context() as patch:
        signal_at(patch, 4, 15)
        assert main(*small(tmp_path, tiny_voc, *arguments)).returncode == 143
    assert main(*small(tmp_path, tiny_voc, *arguments, "--resume")).returncode == 0
    plain = main(*small(tmp_path / "plain", tiny_voc, *arguments[2:]))
    assert plain.returncode == 0
    folders = [tmp_path / RUN, tmp_path / "whole" / RUN, tmp_path / "plain" / RUN]
    assert losses(folders[0]) == losses(folders[1]) == losses(folders[2])  # the training itself is the same
    one, other, without = (torch.load(folder / "model_last.pth", weights_only=True) for folder in folders)
    average = one["run"]["ema"]["state_dict"]
    assert all(torch.equal(value, other["run"]["ema"]["state_dict"][name]) for name, value in average.items())
    assert all(torch.equal(value, without["state_dict"][name]) for name, value in one["state_dict"].items())
    assert not torch.equal(average["conv1.weight"], one["state_dict"]["conv1.weight"])
    if one["best"] == {}:
        raise AssertionError("nothing was validated")
    best = torch.load(folders[0] / "model_best.pth", weights_only=True)
    assert best["epoch"] == 1 or torch.equal(best["state_dict"]["conv1.weight"], average["conv1.weight"])
    tested = main(*small(tmp_path, tiny_voc, "--test", "--load_model", str(folders[0] / "model_last.pth")))
    assert "running averages of its weights" in tested.stdout


def test_float32_is_float32_unless_tf32_is_asked_for():
    device = torch.device("cuda")  # the switches exist without one
    try:
        set_precision("tf32", device)
        assert torch.backends.cudnn.allow_tf32 and torch.get_float32_matmul_precision() == "high"
    finally:
        set_precision("fp32", device)
    assert not torch.backends.cudnn.allow_tf32 and torch.get_float32_matmul_precision() == "highest"


def test_what_changes_the_curve_is_part_of_the_recipe():
    plain = recipe(opts().parse(["ctdet"]))
    assert not {"precision", "accumulate", "amp", "ema", "compile"} & set(plain)
    changed = recipe(opts().parse(["ctdet", "--precision", "tf32", "--accumulate", "2", "--ema", "0.9", "--compile"]))
    assert {name: changed[name] for name in set(changed) - set(plain)} == {"precision": "tf32", "accumulate": 2}


def test_a_network_that_cannot_be_compiled_is_reported(main, tmp_path, tiny_voc, monkeypatch):
    monkeypatch.setenv("CXX", "no_such_compiler")
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no_such_compiler",))
    done = main(*small(tmp_path, tiny_voc, "--compile", "--num_epochs", "1", "--val_intervals", "0"))
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: --compile: this network cannot be compiled here (")


@pytest.mark.slow
def test_a_compiled_network_learns_the_same(main, tmp_path, tiny_voc):
    for name, more in (("plain", []), ("compiled", ["--compile"])):
        arguments = small(tmp_path / name, tiny_voc, "--num_epochs", "1", "--val_intervals", "1", *more)
        assert main(*arguments).returncode == 0
    tables = [losses(tmp_path / name / RUN)[1:] for name in ("plain", "compiled")]
    for plain, compiled in zip(*tables, strict=True):
        assert [float(v) for v in compiled[2:6]] == pytest.approx([float(v) for v in plain[2:6]], rel=5e-3)


def test_one_value_per_channel_is_explained():
    """Batch normalization cannot normalize a single value: one line instead of PyTorch's traceback."""
    model = create_model("res_18", {"hm": 2}, 8).train()
    precision = MixedPrecision("off", torch.device("cpu"))
    with pytest.raises(UserError, match=r"--batch_size: a process trains on 1 image of 32 x 32 at a time"):
        precision.forward(model, torch.zeros(1, 3, 32, 32))
    precision.forward(model, torch.zeros(2, 3, 32, 32))
    precision.forward(model.eval(), torch.zeros(1, 3, 32, 32))
