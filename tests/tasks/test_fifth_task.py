"""A task is one file and one line in ``TASKS``: a fifth one trains, is scored and draws like the other four."""

import json

import pytest
import torch
from tests.helpers.training import output_here
from tests.tasks.discs import Discs

from centernet.options import recipe
from centernet.opts import opts
from centernet.tasks import TASKS


@pytest.fixture(autouse=True)
def one_line(monkeypatch):
    monkeypatch.setitem(TASKS, "discs", Discs)


def test_from_training_to_images(tmp_path, tiny_voc):
    paths = ["--data_path", str(tiny_voc), "--exp_dir", str(tmp_path / "exp")]
    small = ["--arch", "res_18", "--head_conv", "8", "--input_res", "64", "--batch_size", "2", "--num_workers", "0"]
    steps = ["--num_epochs", "1", "--num_iters", "1", "--val_intervals", "1", "--disc_weight", "2", "--device", "cpu"]
    output = output_here("main", "discs", *paths, *small, *steps, "--pretrained", "none")
    assert "final mAP: " in output and "note:" not in output
    folder = tmp_path / "exp/discs/default"
    header, row = (line.split(",") for line in (folder / "train_log.csv").read_text().splitlines())
    losses = dict(zip(header, row, strict=True))
    total, hm, disc = (float(losses[name]) for name in ("loss", "hm_loss", "disc_loss"))
    assert disc > 0 and total == pytest.approx(hm + 2 * disc, rel=1e-5)
    own = json.loads((folder / "opt.json").read_text())["recipe"]
    assert own["disc_weight"] == 2 and own["disc_reach"] == 1 and "wh_least" not in own and "aug_ddd" not in own

    model = ["--load_model", str(folder / "model_last.pth"), "--device", "cpu"]
    assert torch.load(model[1], weights_only=True)["model"]["heads"] == {"hm": 20, "disc": 1}
    assert "mAP " in output_here(
        "test", "discs", *model, "--exp_dir", str(tmp_path / "exp"), "--num_workers", "0", "--flip_test"
    )
    image = next((tiny_voc / "voc/images").iterdir())
    output_here("demo", "discs", *model, "--demo", str(image), "--output_dir", str(tmp_path / "shown"))
    assert [path.name for path in (tmp_path / "shown").iterdir()] == [f"{image.stem}_discs.png"]


def test_its_options_are_declared_by_it_alone(capsys):
    parse = opts().parse
    opt = parse(["discs", "--disc_reach", "3", "--wh", "0.5"])
    assert (opt.dataset, opt.disc_weight, opt.disc_reach, opt.wh_least) == ("pascal", 1, 3, 0.0)
    assert opt.wh_weight == 0.5  # the abbreviation's meaning in the reference
    assert recipe(parse(["discs"])) == recipe(parse(["discs", "--wh_least", "1"]))
    assert recipe(parse(["discs"])) != recipe(parse(["discs", "--disc_reach", "3"]))
    with pytest.raises(SystemExit):
        parse(["discs", "--disc_reach", "0"])
    assert "--disc_reach" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse(["discs", "--dataset", "kitti"])
    assert "its annotations do not fit the task discs" in capsys.readouterr().err
    # The other tasks know that it exists, and their loss curves do not.
    other = parse(["ctdet", "--disc_weight", "3"])
    assert opts().notes(other) == ["note: --disc_weight has no effect on task ctdet"]
    assert recipe(other) == recipe(parse(["ctdet"]))
