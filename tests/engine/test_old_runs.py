"""Run folders of version 0.1.0, written by that version, are resumed, tested and shown by this one.

``golden/version_0.1.0/stopped`` was stopped by a signal after iteration 2 of epoch 3, ``whole`` is the same training
without the stop: four epochs of the images of ``tiny_voc`` with the network below, running averages included.
"""

import shutil
from pathlib import Path

import pytest
import torch
from tests.helpers.training import losses, rows, run_here, small
from torch import nn

from centernet import CenterNet
from centernet.models import ARCHITECTURES, Architecture
from tools import make_report

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "version_0.1.0"
ROUNDING_ERRORS = tuple(
    f"{name}/{part}"
    for name, parts in {
        **dict.fromkeys(("state_dict", "best", "averages/state_dict"), ("base.0.bias", "base.3.bias")),
        "optimizer": ("1/", "5/"),  # their moments
    }.items()
    for part in parts
)
RECIPE = ("--arch", "tiny", "--lr", "0.002", "--ema", "0.9", "--lr_step", "3", "--val_intervals", "2")


class Tiny(nn.Module):
    """The network of the recorded runs, which makes their checkpoints small."""

    def __init__(self, depth: int, heads: dict[str, int], head_conv: int) -> None:
        super().__init__()
        layers = (nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.base = nn.Sequential(*layers, nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.heads = nn.ModuleDict({name: nn.Conv2d(16, channels, 1) for name, channels in heads.items()})

    def forward(self, x: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        features = self.base(x)
        return [{name: head(features) for name, head in self.heads.items()}]


@pytest.fixture
def stopped(monkeypatch, tmp_path) -> Path:
    """Return a copy of the folder of the stopped run, as ``exp/ctdet/default``."""
    monkeypatch.setitem(ARCHITECTURES, "tiny", Architecture(Tiny))
    return shutil.copytree(GOLDEN / "stopped", tmp_path / "exp/ctdet/default")


def read(folder: Path) -> dict:
    return torch.load(folder / "model_last.pth", weights_only=True)


def assert_close(one, other, before, where: str = "") -> None:
    """Compare nested containers, tensors by what the iterations after ``before`` changed in them.

    Batch normalization removes the biases of the convolutions before it: their gradients are rounding errors, which
    Adam scales up, so that they and the means of their outputs differ between processors.
    """
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key, value in one.items():
            assert_close(value, other[key], before.get(key), f"{where}/{key}")
    elif not isinstance(one, torch.Tensor):
        assert one == pytest.approx(other, rel=1e-3), where
    elif not where.startswith(ROUNDING_ERRORS):
        limit = 1e-2 if where.endswith("running_mean") else 1e-3
        change = (other - before).double().norm() if before is not None else other.double().norm()
        assert (one - other).double().norm() <= limit * change, where


def test_a_stopped_run_is_resumed_as_by_the_version_that_wrote_it(stopped, tmp_path, tiny_voc):
    before = read(stopped)
    done = run_here("main", "ctdet", *small(tmp_path, tiny_voc, *RECIPE, "--num_epochs", "4", "--resume"))
    assert done.returncode == 0, done.stderr
    assert "resuming at epoch 3, iteration 3" in done.stdout
    for sign in ("reinitialized", "warning", "another recipe", "starts again"):
        assert sign not in done.stdout

    header, *trained = losses(stopped)
    expected_header, *expected = losses(GOLDEN / "whole")
    assert header == expected_header and len(trained) == len(expected) == 12
    for row, wanted in zip(trained, expected, strict=True):
        assert row[:2] == wanted[:2]
        assert [float(value) for value in row[2:]] == pytest.approx([float(value) for value in wanted[2:]], rel=1e-3)
    assert trained[:8] == expected[:8]  # those of before the stop are kept as they were

    (names, *scores), (wanted_names, *wanted_scores) = rows(stopped / "val_log.csv"), rows(GOLDEN / "whole/val_log.csv")
    assert names == wanted_names and [row[0] for row in scores] == [row[0] for row in wanted_scores] == ["2", "4"]
    for row, wanted in zip(scores, wanted_scores, strict=True):
        assert [float(value) for value in row[1:5]] == pytest.approx([float(value) for value in wanted[1:5]], rel=1e-3)

    resumed, whole = read(stopped), read(GOLDEN / "whole")
    assert resumed["epoch"] == whole["epoch"] == 4
    for entry in ("state_dict", "best"):
        assert_close(resumed[entry], whole[entry], before[entry], entry)
    assert_close(resumed["optimizer"]["state"], whole["optimizer"]["state"], before["optimizer"]["state"], "optimizer")
    assert_close(resumed["run"]["ema"], whole["run"]["ema"], before["run"]["ema"], "averages")
    assert resumed["run"]["iteration"] == whole["run"]["iteration"] == 12


def test_another_recipe_is_noticed(stopped, tmp_path, tiny_voc):
    arguments = small(tmp_path, tiny_voc, *RECIPE, "--num_epochs", "4", "--wh_weight", "0.2", "--resume")
    done = run_here("main", "ctdet", *arguments)
    assert done.returncode == 0, done.stderr
    assert "note: this run continues with another recipe: wh_weight 0.2 (0.1 before)\n" in done.stdout


def test_its_weights_are_tested(stopped, tmp_path, tiny_voc):
    best = str(stopped / "model_best.pth")
    done = run_here(
        "test", "ctdet", "--load_model", best, "--data_path", str(tiny_voc), "--exp_dir", str(tmp_path / "exp")
    )
    assert done.returncode == 0, done.stderr
    assert "AP/person" in done.stdout
    model = CenterNet(best, device="cpu")
    assert model.names[14] == "person"
    assert len(model.predict(tiny_voc / "voc/images/000001.jpg", threshold=0.0)[0].boxes) > 0


def test_it_is_reported(stopped, tiny_voc):
    """The report of a run, with images, and next to another one."""
    make_report.main([str(stopped), "--data_path", str(tiny_voc), "--device", "cpu"])
    page = (stopped / "report.html").read_text()
    assert "tiny" in page and "pottedplant" in page and "5.6764" in page
    make_report.main([str(stopped), str(GOLDEN / "whole"), "--output", str(stopped / "both.html")])
    page = (stopped / "both.html").read_text()
    assert '"names": ["default", "whole"]' in page
