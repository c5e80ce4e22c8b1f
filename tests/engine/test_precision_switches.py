"""--precision sets what every backend calls reduced precision; absent backends are stand-in modules."""

import os
import sys
import types

import pytest
import torch
from tests.helpers.training import small

from centernet.detector import create_detector
from centernet.engine import precision
from centernet.engine.precision import SWITCHES, Switch, precision_switches, set_precision, switch_hint
from centernet.opts import opts


@pytest.fixture(autouse=True)
def restored():
    yield
    set_precision("fp32", torch.device("cuda"))


@pytest.fixture
def stand_ins(monkeypatch):
    """Every Python setting of the table exists, with the reduced precision that is some backend's default."""
    monkeypatch.setattr(torch.backends, "cnnl", types.SimpleNamespace(allow_tf32=True), raising=False)
    mlu = types.SimpleNamespace(matmul=types.SimpleNamespace(allow_tf32=True))
    monkeypatch.setattr(torch.backends, "mlu", mlu, raising=False)
    monkeypatch.setattr(torch.backends, "mudnn", types.SimpleNamespace(allow_tf32=True), raising=False)
    package = types.ModuleType("torch_npu")
    names = ("conv", "aclnn", "matmul")
    package.npu = types.SimpleNamespace(**{name: types.SimpleNamespace(allow_hf32=True) for name in names})
    monkeypatch.setitem(sys.modules, "torch_npu", package)
    for name in ("TORCH_SDAA_CONV2D_BACKWARD_USE_FP32", "NEURON_CC_FLAGS"):
        monkeypatch.delenv(name, raising=False)


def stand_in_device(kind: str) -> types.SimpleNamespace:
    """A stand-in for a device whose type this PyTorch does not know."""
    return types.SimpleNamespace(type=kind)


@pytest.mark.parametrize("kind", [kind for kind in SWITCHES if SWITCHES[kind]])
def test_every_setting_is_set_both_ways_and_recorded(stand_ins, monkeypatch, kind):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    for mode in ("tf32", "fp32"):
        for switch in SWITCHES[kind]:
            os.environ.pop(switch.name[1:], None)
        set_precision(mode, stand_in_device(kind), log=pytest.fail)
        recorded = precision_switches(stand_in_device(kind))
        for switch in SWITCHES[kind]:
            assert switch.read() == getattr(switch, mode), switch.name
            assert recorded[switch.name.lstrip("$")] == getattr(switch, mode)
    assert all(switch.name.lstrip("$") in switch_hint(kind) for switch in SWITCHES[kind])


def test_absent_backends_and_values_of_the_user_are_left_alone(monkeypatch):
    assert "torch_npu" not in sys.modules
    set_precision("fp32", stand_in_device("npu"), log=pytest.fail)
    assert precision_switches(stand_in_device("npu"))["torch_npu.npu.conv.allow_hf32"] is None
    monkeypatch.setenv("TORCH_SDAA_CONV2D_BACKWARD_USE_FP32", "0")
    set_precision("fp32", stand_in_device("sdaa"), log=pytest.fail)
    assert os.environ["TORCH_SDAA_CONV2D_BACKWARD_USE_FP32"] == "0"


def test_an_unknown_backend_is_reported_once(monkeypatch):
    monkeypatch.setattr(precision, "_warned", set())
    lines = []
    for _ in range(2):
        set_precision("fp32", stand_in_device("newchip"), log=lines.append)
    assert len(lines) == 1 and "newchip" in lines[0] and "check_device.py" in lines[0]
    set_precision("fp32", torch.device("cpu"), log=pytest.fail)


@pytest.fixture
def switch_of_the_cpu(monkeypatch):
    """The CPU has a setting, with the reduced precision as its default."""
    monkeypatch.setattr(torch.backends, "stand_in", types.SimpleNamespace(reduced=True), raising=False)
    monkeypatch.setitem(SWITCHES, "cpu", (Switch("torch.backends.stand_in.reduced", False, True, "a stand-in"),))
    return torch.backends.stand_in


def test_trainings_and_their_checkpoints_set_the_switches_of_their_device(main, tmp_path, tiny_voc, switch_of_the_cpu):
    done = main(*small(tmp_path, tiny_voc, "--num_epochs", "1", "--num_iters", "1", "--val_intervals", "0"))
    assert done.returncode == 0, done.stderr
    assert not switch_of_the_cpu.reduced
    switch_of_the_cpu.reduced = True
    checkpoint = str(tmp_path / "exp/ctdet/default/model_last.pth")
    create_detector(opts().parse(["ctdet", "--load_model", checkpoint]), log=lambda line: None)
    assert not switch_of_the_cpu.reduced
    create_detector(opts().parse(["ctdet", "--load_model", checkpoint, "--precision", "tf32"]), log=lambda line: None)
    assert switch_of_the_cpu.reduced
