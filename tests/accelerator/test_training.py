"""Training, validation, testing, demo and export on an accelerator (a simulated one), in their real code paths."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.accelerator.simulation import environment
from tests.accelerator.trainings import losses, options
from tests.helpers.training import MAIN, output_here

pytestmark = pytest.mark.simulated


def weights(exp: Path) -> dict[str, torch.Tensor]:
    return torch.load(exp / "ctdet/default/model_last.pth", weights_only=True)["state_dict"]


@pytest.mark.parametrize(
    ("task", "more"),
    [
        ("ctdet", ["--arch", "resdcn_18"]),
        ("multi_pose", ["--arch", "dlav0_34"]),
        ("exdet", []),
        ("ddd", ["--debug", "4"]),
    ],
)
def test_every_task_trains_and_validates_as_on_the_cpu(simulation, tmp_path, sample_data, task, more):
    output = simulation.output("main", *options(task, tmp_path / "sim", sample_data, *more))
    assert "1 process(es) on sim" in output
    output_here("main", *options(task, tmp_path / "cpu", sample_data, *more, "--device", "cpu"))
    expected = losses(tmp_path / "cpu", task)
    assert len(expected) == 2 and (expected > 0).any()
    np.testing.assert_allclose(losses(tmp_path / "sim", task), expected, rtol=2e-3, atol=1e-4)
    info = json.loads((tmp_path / "sim" / task / "default/opt.json").read_text())
    assert info["device"] == "sim, simulated accelerator"
    assert ("--debug" in more) == any((tmp_path / "sim" / task / "default").glob("debug/*"))


def test_a_resumed_training_continues_exactly(simulation, tmp_path, sample_data):
    more = ("--accumulate", "2", "--ema", "0.9", "--on_nan", "skip", "--amp", "fp16")
    simulation.output("main", *options("ctdet", tmp_path / "whole", sample_data, "--num_epochs", "2", *more))
    simulation.output("main", *options("ctdet", tmp_path / "parts", sample_data, "--num_epochs", "1", *more))
    parts = options("ctdet", tmp_path / "parts", sample_data, "--num_epochs", "2", *more, "--resume")
    simulation.output("main", *parts)
    assert len(losses(tmp_path / "whole")) == 4
    assert np.array_equal(losses(tmp_path / "parts"), losses(tmp_path / "whole"))
    whole = weights(tmp_path / "whole")
    assert all(torch.equal(value, whole[name]) for name, value in weights(tmp_path / "parts").items())


def test_an_infinite_loss_is_skipped(simulation, tmp_path, sample_data):
    more = ("--lr", "1e30", "--on_nan", "skip", "--num_iters", "3", "--val_intervals", "0")
    output = simulation.output("main", *options("ctdet", tmp_path, sample_data, *more))
    assert "the loss is not finite" in output and "its update is skipped" in output
    assert all(value.isfinite().all() for value in weights(tmp_path).values())


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_follows_float32(simulation, tmp_path, sample_data, amp):
    for name, value in (("off", "off"), ("amp", amp)):
        simulation.output(
            "main", *options("ctdet", tmp_path / name, sample_data, "--arch", "resdcn_18", "--amp", value)
        )
    amp_losses, float_losses = losses(tmp_path / "amp"), losses(tmp_path / "off")
    assert not np.array_equal(amp_losses, float_losses)
    np.testing.assert_allclose(amp_losses, float_losses, rtol=0.05, atol=0.02)


def assert_refused(status: int, errors: str, amp: str) -> None:
    assert status == 2, errors
    (line,) = errors.strip().splitlines()
    assert line.startswith(f"error: --amp {amp}: ") and "sim" in line


@pytest.mark.parametrize("amp", ["bf16", pytest.param("fp16", marks=pytest.mark.slow)])
def test_mixed_precision_is_refused_in_one_line_by_a_device_without_autocast(tmp_path, sample_data, amp):
    command = [sys.executable, MAIN, *options("ctdet", tmp_path, sample_data, "--amp", amp, "--prepare_only")]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(SIM_AUTOCAST="0"), timeout=120, check=False
    )
    assert_refused(done.returncode, done.stderr, amp)


def test_mixed_precision_is_refused_in_one_line_where_a_type_is_missing(simulation, tmp_path, sample_data):
    arguments = options("ctdet", tmp_path, sample_data, "--amp", "bf16", "--prepare_only")
    done = simulation.run("main", *arguments, SIM_AUTOCAST="fp16")
    assert_refused(done.status, done.errors, "bf16")


@pytest.fixture(scope="module")
def trained(simulation, tmp_path_factory, sample_data) -> Path:
    """A checkpoint written by a training on the device."""
    exp = tmp_path_factory.mktemp("trained")
    simulation.output("main", *options("ctdet", exp, sample_data, "--val_intervals", "0"))
    return exp / "ctdet/default/model_last.pth"


def keep_images(annotations: Path, count: int) -> None:
    """Reduce an annotation file to its first images."""
    content = json.loads(annotations.read_text())
    content["images"] = content["images"][:count]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] in kept]
    annotations.write_text(json.dumps(content))


def test_results_with_flips_and_scales_are_those_of_the_cpu(simulation, tmp_path, sample_data, trained):
    data = tmp_path / "data"
    shutil.copytree(sample_data / "sample", data / "sample")
    keep_images(data / "sample/annotations/pascal_test2007.json", 6)
    common = ["ctdet", "--load_model", trained, "--data_path", data, "--num_workers", "0"]
    common += ["--flip_test", "--test_scales", "0.75,1"]
    found = {}
    for device in ("sim", "cpu"):
        command = ("test", *common, "--exp_dir", tmp_path / device, "--exp_id", "default", "--device", device)
        simulation.output(*command)
        of_classes = json.loads((tmp_path / device / "ctdet/default/results_sample_val.json").read_text())
        found[device] = np.array([row for images in of_classes for rows in images for row in rows])
    assert len(found["sim"]) == len(found["cpu"]) > 0
    scores = {device: np.sort(rows[:, 4]) for device, rows in found.items()}
    np.testing.assert_allclose(scores["sim"], scores["cpu"], rtol=1e-3, atol=1e-4)
    # An untrained network has peaks of nearly one height, whose order is a matter of rounding.
    boxes = {device: {tuple(row) for row in rows[:, :4].round()} for device, rows in found.items()}
    assert len(boxes["sim"] & boxes["cpu"]) > 0.9 * len(boxes["cpu"])


def test_demo_and_export_use_the_device_and_its_checkpoint(simulation, tmp_path, sample_data, trained):
    image = sorted((sample_data / "sample/images").iterdir())[0]
    demo = ("--demo", image, "--load_model", trained, "--output_dir", tmp_path / "drawn", "--vis_thresh", "0.01")
    simulation.output("demo", "ctdet", *demo)
    assert any((tmp_path / "drawn").iterdir())
    file = tmp_path / "model.ts"
    simulation.output("export", "ctdet", "--load_model", trained, "--output", file)
    hm, wh, reg = torch.jit.load(file)(torch.zeros(1, 3, 64, 64))[:3]
    assert hm.shape[-2:] == wh.shape[-2:] == reg.shape[-2:] == (16, 16) and hm.isfinite().all()
