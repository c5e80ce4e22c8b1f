"""Mixed precision: the curve of 16 bits follows that of float32, and everything but the network stays float32."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from centernet.datasets import get_dataset
from centernet.datasets.loader import Samples, TrainBatches, make_loader
from centernet.engine.evaluate import evaluate
from centernet.engine.precision import MixedPrecision, check_amp, has_bfloat16_instructions, warn_if_emulated
from centernet.engine.processes import Distributed
from centernet.engine.trainer import Trainer, train_one_epoch
from centernet.errors import UserError
from centernet.models import create_model, save_model
from centernet.options import recipe
from centernet.opts import opts
from centernet.tasks import build_task

CPU = torch.device("cpu")


class Lines:
    """Stands for a run folder and keeps the losses of every iteration."""

    def __init__(self) -> None:
        self.losses = []

    def write_losses(self, rows: list[tuple]) -> None:
        self.losses += [row[2][0] for row in rows]


def options(data: Path, *more: str):
    size = ("--input_res", "64", "--batch_size", "4", "--num_workers", "0", "--hide_data_time")
    common = ("--data_path", str(data), "--device", "cpu", "--pretrained", "none")
    return opts().parse(["ctdet", *size, *common, *more])


def trainer_of(opt) -> tuple[Trainer, Lines]:
    torch.manual_seed(opt.seed)
    model = create_model(opt.arch, opt.heads, opt.head_conv).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), opt.lr, fused=True)
    lines = Lines()
    return Trainer(opt, build_task(opt), model, optimizer, Distributed(0, 1, 0, CPU)), lines


def curve(opt, epochs: int = 1) -> tuple[list[float], Trainer]:
    """The loss of every iteration, from a start that depends on the seed alone."""
    trainer, lines = trainer_of(opt)
    data = get_dataset(opt.dataset)
    data.prepare(data.locate(Path(opt.data_dir)), log=lambda _: None)
    train_set = data(trainer.task, "train")
    batches = TrainBatches(len(train_set), [opt.batch_size], 0, opt.seed, opt.num_iters)
    loader = make_loader(Samples(train_set, train=True), batches, 0, False)
    for batches.epoch in range(1, epochs + 1):
        trainer.state.end_epoch(train_one_epoch(trainer, batches.epoch, loader, lines))
    return lines.losses, trainer


def mean_relative_error(curve: list[float], reference: list[float]) -> float:
    curve, reference = np.array(curve), np.array(reference)
    return float(np.mean(np.abs(curve - reference) / np.abs(reference)))


def test_bf16_follows_float32(tiny_voc):
    curves = {}
    for amp in ("off", "bf16"):
        opt = options(tiny_voc, "--dataset", "pascal", "--arch", "res_18", "--batch_size", "3", "--amp", amp)
        curves[amp], trainer = curve(opt, epochs=6)
        assert all(parameter.dtype == torch.float32 for parameter in trainer.network.parameters())
    assert curves["bf16"] != curves["off"] and len(curves["off"]) == 12
    error = mean_relative_error(curves["bf16"], curves["off"])
    print(f"mean relative error {error:.4f}")
    assert error < 0.02


@pytest.mark.slow
@pytest.mark.skipif(not has_bfloat16_instructions(CPU), reason="takes hours on a CPU without bfloat16 instructions")
@pytest.mark.parametrize("arch", ["res_18", "resdcn_18", "dlav0_34", "dla_34"])
def test_bf16_follows_float32_longer(tmp_path, arch):
    curves = {}
    for amp in ("off", "bf16"):
        more = ("--dataset", "sample", "--arch", arch, "--batch_size", "8", "--input_res", "96", "--num_iters", "40")
        curves[amp], _ = curve(options(tmp_path, *more, "--amp", amp))
    error = mean_relative_error(curves["bf16"], curves["off"])
    print(f"{arch}: mean relative error {error:.4f}")
    assert error < 0.02


def test_validation_runs_in_the_same_precision_and_changes_no_weight(tiny_voc):
    opt = options(tiny_voc, "--dataset", "pascal", "--arch", "res_18", "--amp", "bf16")
    trainer, _ = trainer_of(opt)
    seen = []
    trainer.network.conv1.register_forward_hook(lambda _, x, y: seen.append(y.dtype))
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    log = evaluate(opt, trainer.task, trainer.network, get_dataset("pascal")(build_task(opt), "val"), trainer.env)
    assert np.isfinite(log["loss"]) and set(seen) == {torch.bfloat16}
    assert all(torch.equal(value, before[name]) for name, value in trainer.network.state_dict().items())


def test_outputs_and_checkpoints_are_float32(tmp_path):
    model = create_model("resdcn_18", {"hm": 2, "wh": 2}, 64)
    x = torch.randn(1, 3, 64, 64)
    outputs = MixedPrecision("bf16", CPU).forward(model.eval(), x)
    assert all(value.dtype == torch.float32 for value in outputs[0].values())
    expected = model(x)[0]
    assert not torch.equal(outputs[0]["hm"], expected["hm"])
    torch.testing.assert_close(outputs[0]["hm"], expected["hm"], rtol=0.05, atol=0.05)
    # Without it nothing is touched, not even a float64 network's outputs.
    plain = MixedPrecision("off", CPU).forward(model.double(), x.double())
    assert plain[0]["hm"].dtype == torch.float64
    save_model(tmp_path / "a.pth", 1, model.float())
    state = torch.load(tmp_path / "a.pth", weights_only=True)["state_dict"]
    assert {value.dtype for value in state.values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize("fused", [True, False])
def test_steps_that_the_scaler_leaves_out_are_counted(fused):
    layer = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(layer.parameters(), 0.1, fused=fused)
    precision = MixedPrecision("off", CPU)
    assert precision.updates(optimizer) is None
    precision.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    assert precision.updates(optimizer) == 0
    for factor in (1.0, torch.inf, 1.0, torch.nan, 1.0):
        before = layer.weight.detach().clone()
        optimizer.zero_grad()
        precision.backward(layer(torch.ones(1, 2)).sum() * factor)
        precision.update(optimizer)
        assert torch.equal(layer.weight, before) == (not np.isfinite(factor))
    assert precision.updates(optimizer) == 3
    assert precision.scaler.get_scale() == 1.0


def test_an_epoch_reports_skipped_updates(tiny_voc, capsys):
    opt = options(tiny_voc, "--dataset", "pascal", "--arch", "res_18", "--batch_size", "2")
    trainer, _ = trainer_of(opt)
    trainer.precision.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)  # the first one or two overflow
    train_set = get_dataset("pascal")(build_task(opt), "train")
    batches = TrainBatches(len(train_set), [2], 0, opt.seed)
    loader = make_loader(Samples(train_set, train=True), batches, 0, False)
    batches.epoch = 1
    train_one_epoch(trainer, 1, loader)
    left_out = len(batches) - trainer.precision.updates(trainer.optimizer)
    assert left_out > 0
    assert f"epoch 1: {left_out} of {len(batches)} updates were skipped" in capsys.readouterr().out


def test_what_a_device_cannot_do_is_an_error():
    with pytest.raises(UserError, match="--amp fp16: many times slower .* use --amp bf16"):
        check_amp("fp16", CPU)
    with pytest.raises(UserError, match="--amp bf16: PyTorch has no mixed precision for meta"):
        MixedPrecision("bf16", torch.device("meta"))
    check_amp("bf16", CPU)
    check_amp("off", torch.device("meta"))


@pytest.mark.parametrize(("device", "owner", "name"), [
    ("cpu", torch.ops.mkldnn, "_is_mkldnn_bf16_supported"),
    ("cuda", torch.cuda, "is_bf16_supported"),
])  # fmt: skip
def test_emulated_bfloat16_is_reported(monkeypatch, device, owner, name):
    for supported in (True, False):
        monkeypatch.setattr(owner, name, lambda supported=supported, **options: supported)
        lines = []
        for amp in ("bf16", "off"):
            warn_if_emulated(amp, torch.device(device), lines.append)
        assert len(lines) == (not supported) and all("many times slower than float32" in line for line in lines)


def test_support_is_found_in_inference_mode():
    with torch.inference_mode():
        check_amp("bf16", CPU)


def test_the_option_is_part_of_the_recipe(tiny_voc):
    """Curves recorded before the option existed still belong to runs without it."""
    plain, mixed = (recipe(options(tiny_voc, "--dataset", "pascal", "--amp", amp)) for amp in ("off", "bf16"))
    assert "amp" not in plain and mixed == plain | {"amp": "bf16"}
    with pytest.raises(SystemExit):
        options(tiny_voc, "--amp", "half")


@pytest.mark.accelerator
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator")
@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_an_accelerator_in_16_bits_gives_the_maps_of_float32(amp):
    device = torch.accelerator.current_accelerator()
    torch.manual_seed(0)
    model = create_model("resdcn_18", {"hm": 2, "wh": 2}, 64).to(device)
    x = torch.randn(2, 3, 64, 64, device=device)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    precision = MixedPrecision(amp, device)
    outputs = precision.forward(model, x)[0]
    with torch.no_grad():
        torch.testing.assert_close(outputs["hm"], model(x)[0]["hm"], rtol=0.05, atol=0.05)
    precision.update(sum(value.square().mean() for value in outputs.values()), optimizer)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
