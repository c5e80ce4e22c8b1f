"""The recipe of a training: optimizers, learning rate schedules, clipping, frozen parts, early stopping."""

import math

import pytest
import torch
from tests.helpers.runs import RUN
from tests.helpers.signals import signal_at
from tests.helpers.training import losses, rows, small
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, MultiStepLR, SequentialLR

import centernet.engine.trainer as trainer_module
from centernet.engine.optim import build_optimizer, freeze, frozen_modules, set_learning_rate
from centernet.engine.precision import MixedPrecision
from centernet.errors import UserError
from centernet.models import create_model
from centernet.options import learning_rate
from centernet.options.derive import warmup_updates
from centernet.opts import opts

CPU = torch.device("cpu")
HEADS = {"hm": 2, "wh": 2, "reg": 2}


def options(*more):
    return opts().parse(["ctdet", "--dataset", "sample", "--arch", "lite", *more])


def test_the_reference_has_one_group_of_all_parameters_in_adam():
    model = create_model("lite", HEADS, 0)
    optimizer = build_optimizer(options(), model, CPU)
    assert type(optimizer) is torch.optim.Adam
    (group,) = optimizer.param_groups
    assert group["params"] == list(model.parameters()) and group["weight_decay"] == 0


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_weight_decay_leaves_biases_and_normalization_out(name, kind):
    model = create_model("lite", HEADS, 0)
    optimizer = build_optimizer(options("--optimizer", name, "--weight_decay", "0.05"), model, CPU)
    assert type(optimizer) is kind
    decayed, others = optimizer.param_groups
    assert decayed["weight_decay"] == 0.05 and others["weight_decay"] == 0
    assert len(decayed["params"]) + len(others["params"]) == len(list(model.parameters()))
    assert all(parameter.ndim > 1 for parameter in decayed["params"])
    assert all(parameter.ndim == 1 for parameter in others["params"])


@pytest.mark.parametrize("schedule", ["step", "cosine"])
@pytest.mark.parametrize("warmup", [0, 7])
def test_schedules_are_those_of_pytorch(schedule, warmup):
    arguments = ["--lr", "0.01", "--num_epochs", "6", "--lr_step", "2,4", "--warmup_iters", str(warmup)]
    opt = options(*arguments, "--lr_schedule", schedule)
    iterations, total = 5, 30
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.01)
    if schedule == "cosine":
        main = CosineAnnealingLR(optimizer, total - warmup, eta_min=0.0001)
    else:
        main = MultiStepLR(optimizer, [10 - warmup, 20 - warmup])
    scheduler = main
    if warmup:
        rise = LinearLR(optimizer, 1 / warmup, 1.0, warmup - 1)
        scheduler = SequentialLR(optimizer, [rise, main], [warmup])
    expected, found = [], []
    for step in range(total):
        expected.append(optimizer.param_groups[0]["lr"])
        found.append(learning_rate(opt, step // iterations + 1, step % iterations, iterations))
        optimizer.step()
        scheduler.step()
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("iterations", "rising"), [(1, 7), (5, 35), (20, 100)])
def test_the_warm_up_of_a_preset_fits_into_a_short_training(iterations, rising):
    opt = options("--preset", "fast", "--num_epochs", "70")
    rates = [learning_rate(opt, 1 + step // iterations, step % iterations, iterations) for step in range(70)]
    if iterations == 1:
        assert max(rates) == rates[rising - 1] == pytest.approx(opt.lr) and rates[-1] < 0.02 * opt.lr
    assert warmup_updates(opt, iterations) == rising
    assert warmup_updates(options("--preset", "fast", "--num_epochs", "70", "--warmup_iters", "90"), 1) == 90


def test_the_step_schedule_is_the_reference_s():
    opt = opts().parse(["ctdet", "--dataset", "sample"])
    assert [learning_rate(opt, epoch, 3, 9) for epoch in (1, 90, 91, 120, 121)] == pytest.approx(
        [1.25e-4, 1.25e-4, 1.25e-5, 1.25e-5, 1.25e-6]
    )


@pytest.mark.parametrize("steps", ["-1", "0", "0,90", ""])
def test_a_step_below_one_is_after_no_epoch(steps):
    opt = opts().parse(["ctdet", "--dataset", "sample", "--lr_step", steps])
    assert [learning_rate(opt, epoch) for epoch in (1, 2, 90)] == [1.25e-4] * 3


@pytest.mark.parametrize("skip_bad", [False, True])
def test_gradients_are_clipped_as_pytorch_clips_them(skip_bad):
    weights = torch.tensor([3.0, 4.0])
    parameter, other = nn.Parameter(weights.clone()), nn.Parameter(weights.clone())
    optimizers = [torch.optim.SGD([p], 0.1) for p in (parameter, other)]
    precision = MixedPrecision("off", CPU, skip_bad=skip_bad, clip_grad=2.0)
    for p in (parameter, other):
        (p**2).sum().backward()
    precision.update(optimizers[0])
    nn.utils.clip_grad_norm_([other], 2.0)
    optimizers[1].step()
    torch.testing.assert_close(parameter, other)
    assert not torch.allclose(parameter, weights - 0.1 * 2 * weights)


def test_sgd_counts_the_updates_that_were_made():
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], 0.1, momentum=0.9, fused=True)
    precision = MixedPrecision("off", CPU, skip_bad=True)
    for value in (1.0, math.nan, 1.0):
        parameter.grad = torch.full((2,), value)
        precision.update(optimizer)
    assert precision.updates(optimizer) == 2 and parameter.isfinite().all()


def test_frozen_parts_stay_as_they_are(main, tmp_path, tiny_voc):
    arguments = ["--arch", "lite", "--num_epochs", "1", "--val_intervals", "0", "--freeze", "2"]
    assert main(*small(tmp_path, tiny_voc, *arguments, "--seed", "5")).returncode == 0
    saved = torch.load(tmp_path / RUN / "model_last.pth", weights_only=True)["state_dict"]
    torch.manual_seed(5)
    start = create_model("lite", {"hm": 20, "wh": 2, "reg": 2}, 0).state_dict()
    frozen = ("backbone.stem.", "backbone.stages.0.")
    changed = {name for name, value in start.items() if not torch.equal(value, saved[name])}
    assert not any(name.startswith(frozen) for name in changed)  # running statistics included
    assert "backbone.stages.1.0.body.0.weight" in changed and "backbone.stages.1.0.body.1.running_mean" in changed


def test_what_can_be_frozen():
    opt = options("--freeze", "backbone")
    model = freeze(opt, create_model("lite", HEADS, 0))
    trained = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"neck", "hm", "wh", "reg"}
    assert len(build_optimizer(opt, model, CPU).param_groups[0]["params"]) < len(list(model.parameters()))
    for arch in ("res_18", "dla_34", "dlav0_34", "resdcn_18"):
        opt = opts().parse(["ctdet", "--dataset", "sample", "--arch", arch, "--freeze", "backbone"])
        model = freeze(opt, create_model(arch, HEADS, 64))
        frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
        start = "base." if arch.startswith("dla") else ("conv1.", "bn1.", "layer")
        backbone = {name for name, _ in model.named_parameters() if name.startswith(start)}
        assert frozen and set(frozen) == backbone - {"base.fc.weight", "base.fc.bias"}


def test_what_cannot_be_frozen(capsys):
    with pytest.raises(UserError, match="--freeze backbone: hourglass has no separate backbone"):
        frozen_modules(
            opts().parse(
                ["ctdet", "--dataset", "sample", "--arch", "hourglass", "--input_res", "128", "--freeze", "backbone"]
            )
        )
    with pytest.raises(UserError, match="--freeze 2: the stages of timm:resnet18 are not known; use --freeze backbone"):
        frozen_modules(opts().parse(["ctdet", "--dataset", "sample", "--arch", "timm:resnet18", "--freeze", "2"]))
    with pytest.raises(UserError, match="--freeze 9: the backbone of lite has 5 stages"):
        frozen_modules(options("--freeze", "9"))
    with pytest.raises(SystemExit):
        options("--freeze", "half")
    assert "--freeze half: choose none, backbone, or a number of stages" in capsys.readouterr().err


RECIPE = (
    *("--optimizer", "sgd", "--lr", "0.01", "--weight_decay", "0.001", "--warmup_iters", "4"),
    *("--lr_schedule", "cosine", "--clip_grad", "1", "--num_epochs", "2", "--val_intervals", "1", "--ema", "0.9"),
)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_an_interrupted_run_resumes_exactly(main, tmp_path, tiny_voc, monkeypatch, optimizer):
    monkeypatch.setattr(trainer_module, "FLUSH", 1)
    arguments = [*RECIPE, "--optimizer", optimizer]
    assert main(*small(tmp_path / "whole", tiny_voc, *arguments)).returncode == 0
    with monkeypatch.context() as patch:
        signal_at(patch, 4, 15)
        assert main(*small(tmp_path, tiny_voc, *arguments)).returncode == 143
    assert main(*small(tmp_path, tiny_voc, *arguments, "--resume")).returncode == 0
    assert losses(tmp_path / RUN) == losses(tmp_path / "whole" / RUN)
    whole, resumed = (
        torch.load(folder / RUN / "model_last.pth", weights_only=True) for folder in (tmp_path / "whole", tmp_path)
    )
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name]), name
    for position, entry in whole["optimizer"]["state"].items():
        for name, value in entry.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(resumed["optimizer"]["state"][position][name]))
    rates = [float(row[-2]) for row in rows(tmp_path / RUN / "train_log.csv")[1:]]
    assert rates[0] == pytest.approx(0.0025) and max(rates) <= 0.01 and rates[-1] < rates[3]


def test_early_stopping(main, tmp_path, tiny_voc):
    """With a learning rate of almost nothing no validation is better than the first."""
    arguments = ["--num_epochs", "9", "--val_intervals", "1", "--patience", "2", "--lr", "1e-12", "--metric", "mAP"]
    done = main(*small(tmp_path, tiny_voc, *arguments))
    assert done.returncode == 0, done.stderr
    assert "stopping early: 2 validations without a better mAP" in done.stdout
    epochs = [int(row[0]) for row in rows(tmp_path / RUN / "val_log.csv")[1:]]
    assert epochs == [1, 2, 3]
    again = main(*small(tmp_path, tiny_voc, *arguments, "--resume"))
    assert again.returncode == 0 and "stopping early" in again.stdout


def test_another_metric_is_given_its_own_patience(main, tmp_path, tiny_voc):
    """A training that has stopped early continues, until that metric stops it."""
    arguments = ["--val_intervals", "1", "--patience", "1", "--lr", "1e-12", "--num_iters", "1"]
    assert "stopping early" in main(*small(tmp_path, tiny_voc, *arguments, "--num_epochs", "9")).stdout
    assert len(rows(tmp_path / RUN / "val_log.csv")) == 3
    done = main(*small(tmp_path, tiny_voc, *arguments, "--num_epochs", "3", "--resume", "--metric", "loss"))
    assert done.returncode == 0 and len(rows(tmp_path / RUN / "val_log.csv")) == 4, done.stdout


def test_patience_needs_validations(capsys):
    with pytest.raises(SystemExit):
        options("--patience", "3", "--val_intervals", "0")
    assert "--patience counts validations" in capsys.readouterr().err


def test_the_rate_of_all_groups_is_set():
    optimizer = build_optimizer(options("--weight_decay", "0.1"), create_model("lite", HEADS, 0), CPU)
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]
