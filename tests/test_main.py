"""Training end to end: main.py and train_full_4p.sh on small data, and what they leave behind."""

import csv
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.helpers.layouts import coco_at_the_root
from tests.helpers.training import ENVIRONMENT, LAUNCH, MAIN, ROOT, losses, small

from centernet.datasets import get_dataset
from centernet.opts import opts

SHARED_DATA = ROOT.parent / "shared" / "data"


def train_full_4p(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    command = ["bash", str(ROOT / "train_full_4p.sh"), *arguments]
    return subprocess.run(command, env=ENVIRONMENT, cwd=cwd, capture_output=True, text=True, timeout=600)


def test_a_run_leaves_what_the_documents_promise(main, tmp_path, tiny_voc):
    arguments = small(tmp_path, tiny_voc, "--num_epochs", "2", "--val_intervals", "1", "--lr_step", "1")
    # From the folder src, as the reference is run.
    command = [sys.executable, "main.py", "ctdet", *arguments]
    done = subprocess.run(command, env=ENVIRONMENT, cwd=ROOT / "src", capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "exp/ctdet/default"
    rows = losses(folder)
    assert rows[0] == ["epoch", "iteration", "loss", "hm_loss", "wh_loss", "off_loss", "lr"]
    assert [row[:2] for row in rows[1:]] == [["1", "1"], ["1", "2"], ["1", "3"], ["2", "4"], ["2", "5"], ["2", "6"]]
    assert [row[6] for row in rows[1:]] == ["0.000125"] * 3 + ["1.25e-05"] * 3
    for row in rows[1:]:
        loss, hm, wh, off = (float(value) for value in row[2:6])
        assert loss == pytest.approx(hm + 0.1 * wh + off, rel=1e-5)

    (logs,) = folder.glob("logs_*")
    lines = (logs / "log.txt").read_text().splitlines()
    assert len(lines) == 2
    number = r"\s*\d+\.\d{6} \| "
    part = f"loss {number}hm_loss {number}wh_loss {number}off_loss {number}time {number}"
    assert re.match(rf"\d{{4}}(-\d\d){{4}}: epoch: 1 \|{part}{part}mAP {number}", lines[0]), lines[0]
    with open(folder / "val_log.csv", newline="") as file:
        header, *scores = csv.reader(file)
    assert header[:7] == ["epoch", "loss", "hm_loss", "wh_loss", "off_loss", "time", "mAP"] and len(header) == 27
    assert [row[0] for row in scores] == ["1", "2"] and all(0 <= float(row[6]) <= 1 for row in scores)
    options = (folder / "opt.txt").read_text()
    assert options == (logs / "opt.txt").read_text()
    assert "==> Cmd:" in options and "\n  batch_size: 2\n" in options and "\n  heads: {'hm': 20" in options
    described = json.loads((folder / "opt.json").read_text())
    assert described["recipe"]["lr"] == 1.25e-4 and described["processes"] == 1

    last = torch.load(folder / "model_last.pth", weights_only=True)
    assert last["epoch"] == 2 and last["optimizer"]["param_groups"][0]["lr"] == pytest.approx(1.25e-5)
    assert last["model"]["class_names"][14] == "person"
    assert list(last["best"]) == ["mAP"]  # a dataset that can be scored is judged by its score
    assert "optimizer" not in torch.load(folder / "model_best.pth", weights_only=True)
    assert torch.load(folder / "model_1.pth", weights_only=True)["epoch"] == 1
    results = json.loads((folder / "results.json").read_text())
    assert len(results) == 21 and len(results[1]) == 4
    report = (folder / "report.html").read_text()
    assert f"report: {folder / 'report.html'}" in done.stdout and "Worst images" in report and "person" in report
    if importlib.util.find_spec("tensorboard"):
        assert len(list(logs.glob("events.out.tfevents.*"))) == 1
    assert "final mAP: " in done.stdout and f"weights and logs: {folder}" in done.stdout

    tested = main(*small(tmp_path, tiny_voc, "--test", "--load_model", str(folder / "model_last.pth")))
    assert tested.returncode == 0, tested.stderr
    assert "AP/person" in tested.stdout
    assert (folder / "opt.txt").read_text() == options  # a test leaves the training's options alone


def test_resume_continues_the_same_curve(main, tmp_path, tiny_voc):
    whole = small(tmp_path, tiny_voc, "--num_epochs", "3", "--val_intervals", "0", "--exp_id", "whole")
    assert main(*whole).returncode == 0
    halves = small(tmp_path, tiny_voc, "--val_intervals", "0", "--exp_id", "halves")
    assert main(*halves, "--num_epochs", "1").returncode == 0
    # Lines that a killed run had written after its last checkpoint are repeated, so they must go.
    log = tmp_path / "exp/ctdet/halves/train_log.csv"
    log.write_text(log.read_text() + "2,4,9,9,9,9,1,1\n")
    resumed = main(*halves, "--num_epochs", "3", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert losses(tmp_path / "exp/ctdet/halves") == losses(tmp_path / "exp/ctdet/whole")


def test_the_log_of_validations_is_continued(main, tmp_path, tiny_voc):
    arguments = small(tmp_path, tiny_voc, "--val_intervals", "1", "--num_iters", "1")
    log = tmp_path / "exp/ctdet/default/val_log.csv"
    assert main(*arguments, "--num_epochs", "2").returncode == 0
    lines = log.read_text().splitlines()
    log.write_text("\n".join([*lines, lines[2].replace("2,", "3,", 1)]) + "\n")  # of an epoch that was broken off
    assert main(*arguments, "--num_epochs", "4", "--resume").returncode == 0
    resumed = log.read_text().splitlines()
    assert resumed[:3] == lines and [line.split(",")[0] for line in resumed] == ["epoch", "1", "2", "3", "4"]
    assert main(*arguments, "--num_epochs", "1").returncode == 0  # again from the beginning
    assert len(log.read_text().splitlines()) == 2
    assert len(list(log.parent.glob("val_log_before_*.csv"))) == 1


def test_scores_of_some_images_are_of_those_only(main, tmp_path, tiny_voc):
    """Objects of images that were not looked at are not missed."""
    opt = opts().parse(["ctdet", *small(tmp_path, tiny_voc)])
    val = get_dataset("pascal")(opt, "val")
    objects = val.read_objects(0)
    rows = np.column_stack([objects["boxes"], np.ones(len(objects["boxes"]))])
    found = {cls + 1: rows[objects["cls"] == cls] for cls in range(20)}
    results = {val.image_ids[0]: found}
    in_all = len(val.filtered_annotations()["annotations"])
    val.scored_images = results
    scores = val.evaluate(results)
    assert [scores[f"AP/{val.class_names[cls]}"] for cls in objects["cls"]] == [1] * len(objects["cls"])
    assert len(val.filtered_annotations()["annotations"]) == len(objects["cls"]) < in_all


def test_resuming_a_finished_run_says_so(main, tmp_path, tiny_voc):
    arguments = small(tmp_path, tiny_voc, "--val_intervals", "0", "--num_epochs", "1", "--num_iters", "1")
    assert main(*arguments).returncode == 0
    again = main(*arguments, "--resume")
    assert again.returncode == 0, again.stderr
    assert "already trained for 1 epochs; --num_epochs 1 leaves none to train\n" in again.stdout
    assert "images per second" not in again.stdout and "not validated" not in again.stdout


def test_a_new_run_in_an_old_folder_keeps_the_old_losses(main, tmp_path, tiny_voc):
    arguments = small(tmp_path, tiny_voc, "--num_epochs", "1", "--val_intervals", "0")
    assert main(*arguments).returncode == 0
    first = losses(tmp_path / "exp/ctdet/default")
    assert main(*arguments, "--seed", "1").returncode == 0
    (kept,) = (tmp_path / "exp/ctdet/default").glob("train_log_before_*.csv")
    with open(kept, newline="") as file:
        assert [row[:-1] for row in csv.reader(file)] == first
    assert losses(tmp_path / "exp/ctdet/default") != first


def test_workers_do_not_change_the_curve(main, tmp_path, tiny_voc):
    for workers in ("0", "2"):
        arguments = small(tmp_path, tiny_voc, "--num_epochs", "2", "--val_intervals", "0", "--exp_id", f"w{workers}")
        assert main(*arguments, "--num_workers", workers).returncode == 0
    assert losses(tmp_path / "exp/ctdet/w0") == losses(tmp_path / "exp/ctdet/w2")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data_path", "no/such"], "--data_path no/such: this folder does not exist"),
        (["--load_model", "no.pth"], "no.pth: no such checkpoint file"),
        (["--batch_size", "64"], "--batch_size 64: there are only 6 images to train on"),
        (["--metric", "AP"], "--metric AP: choose from loss, hm_loss, wh_loss, off_loss, time, mAP"),
        (["--keep_res"], "--keep_res: "),
        (["--device", "sdaa"], "--device sdaa: not on this machine"),
        (["--sync_bn"], "--sync_bn: "),
        (["--dataset", "coco"], "holds no dataset coco"),
    ],
)
def test_an_error_ends_with_one_line(main, tmp_path, tiny_voc, more, message):
    done = main(*small(tmp_path, tiny_voc), *more)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_a_named_device_that_is_missing_is_noted(main, tmp_path, tiny_voc, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    text = "note: --gpus 3: no accelerator on this machine, so the CPU is used"
    for more, count in ((["--gpus", "3"], 1), (["--gpus", "3", "--device", "cpu"], 0), (["--gpus", "-1"], 0), ([], 0)):
        done = main(*small(tmp_path, tiny_voc, "--prepare_only", *more))
        assert done.returncode == 0 and done.stdout.count(text) == count, done.stderr


def test_a_loss_that_is_not_finite_ends_the_run(main, tmp_path, tiny_voc):
    done = main(*small(tmp_path, tiny_voc, "--lr", "1e30", "--num_epochs", "9", "--val_intervals", "0"))
    assert done.returncode == 2
    assert re.search(r"error: iteration \d+ of epoch \d+: the loss is not finite \(loss (nan|inf)", done.stderr)


def test_debug_images_are_saved(main, tmp_path, tiny_voc):
    done = main(*small(tmp_path, tiny_voc, "--debug", "4", "--num_epochs", "1", "--num_iters", "1"))
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "exp/ctdet/default/debug").iterdir()}
    assert {"1_0_pred_hm.png", "1_0_gt_hm.png", "1_0_out_pred.png", "1_val_0_out_gt.png"} <= names


def test_train_full_4p_on_the_sample(tmp_path):
    # From another folder, with both ways to write an option, and with options that are passed on.
    arguments = ["--exp_dir", str(tmp_path), "--num_epochs=1", "--num_iters", "3", "--exp_id=short"]
    done = train_full_4p(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no --data_path: training on the generated sample" in done.stdout
    for text in ("4 process(es)", "images per second: ", "final loss: ", "final mAP: ", "duration: "):
        assert text in done.stdout, text
    assert len(losses(tmp_path / "ctdet/short")) == 4
    assert json.loads((tmp_path / "ctdet/short/opt.json").read_text())["processes"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data_path=no/such"], "--data_path no/such: no such folder"),
        (["--data_path"], "--data_path needs a value"),
        (["--nproc=0"], "--nproc 0: not a valid number of processes"),
        (["--no_such_option"], "unrecognized arguments: --no_such_option"),
    ],
)
def test_train_full_4p_refuses_errors_before_anything_starts(tmp_path, arguments, message):
    done = train_full_4p(*arguments, "--exp_dir", str(tmp_path)) if "=" in arguments[0] else train_full_4p(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert not list(tmp_path.iterdir())


def test_train_full_4p_dry_run_shows_the_recipe():
    done = train_full_4p("--data_path", str(ROOT), "--dry_run", "--lr=1")
    assert done.returncode == 0
    expected = "--arch resdcn_18 --input_res 384 --batch_size 32 --num_epochs 70 --lr_step 45\\,60"
    assert expected in done.stdout and "--nproc_per_node=4" in done.stdout
    assert done.stdout.rstrip().endswith("--lr=1")


def test_train_full_4p_trains_custom_data_with_the_fast_preset(tmp_path):
    coco_at_the_root(tmp_path)
    done = train_full_4p("--dataset=custom", "--data_path", str(tmp_path), "--dry_run", "--num_epochs", "9")
    assert done.returncode == 0
    command = done.stdout.partition("src/main.py ")[2]
    opt = opts().parse(command.split())
    assert (opt.arch, opt.input_h, opt.num_epochs, opt.lr) == ("resdcn_18", 384, 9, 2e-3)
    assert (opt.optimizer, opt.lr_schedule, opt.box_loss, opt.batch_size) == ("adamw", "cosine", "giou", 16)
    original = ["--preset", "reference", "--lr_step", "45,60"]
    opt = opts().parse([*command.split(), *original])  # as docs/GETTING_STARTED.md states
    assert (opt.optimizer, opt.lr_schedule, opt.lr, opt.lr_step) == ("adam", "step", 1.25e-4, [45, 60])
    assert (opt.box_loss, opt.batch_size) == ("l1", 32)


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="../shared/data is not there")
@pytest.mark.parametrize(
    ("dataset", "folder", "score"),
    [("pascal", "voc128", "mAP"), pytest.param("coco", "coco128", "AP", marks=pytest.mark.slow)],
)
def test_train_full_4p_on_real_images(tmp_path, dataset, folder, score):
    arguments = [f"--data_path={SHARED_DATA / folder}", f"--dataset={dataset}", f"--exp_dir={tmp_path}"]
    arguments += ["--num_epochs=1", "--num_iters=2", "--pretrained=none", "--input_res=64", "--batch_size=8"]
    done = train_full_4p(*arguments)
    assert done.returncode == 0, done.stderr
    assert f"final {score}: " in done.stdout
    assert (tmp_path / f"ctdet/{dataset}_resdcn18_384/results.json").is_file()


@pytest.mark.accelerator
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("processes", [1, 4])
def test_an_accelerator_gives_the_losses_of_the_cpu(tmp_path, tiny_voc, processes):
    """Alone, and with four processes that share it or have one each."""
    first = {}
    for device in ("cpu", "auto"):
        arguments = small(tmp_path, tiny_voc, "--device", device, "--exp_id", device, "--num_epochs", "1")
        arguments += ["--batch_size", "4", "--num_iters", "1", "--val_intervals", "1"]
        command = [*LAUNCH, f"--nproc_per_node={processes}", MAIN, "ctdet", *arguments]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        first[device] = [float(value) for value in losses(tmp_path / "exp/ctdet" / device)[1][2:6]]
    assert first["auto"] == pytest.approx(first["cpu"], rel=1e-3)


@pytest.mark.soak
def test_the_sample_is_learned_and_a_wrong_rate_is_noticed(tmp_path):
    """The quick start reaches its score and passes; a tenfold rate does not."""
    assert (done := train_full_4p("--exp_dir", str(tmp_path), "--exp_id", "right")).returncode == 0, done.stderr
    assert float(re.search(r"final mAP: ([\d.]+)", done.stdout)[1]) > 0.7
    assert train_full_4p("--exp_dir", str(tmp_path), "--exp_id", "wrong", "--lr", "1e-2").returncode == 0
    for run, status in (("right", 0), ("wrong", 1)):
        folder = tmp_path / "ctdet" / run
        command = [sys.executable, str(ROOT / "loss.py"), "--run", str(folder), "--plot", "none"]
        verdict = subprocess.run(command, capture_output=True, text=True, check=False)
        assert verdict.returncode == status, verdict.stdout + verdict.stderr
        # By its numbers alone, without the recipe that gives the wrong rate away.
        (folder / "opt.json").unlink()
        reference = ROOT / "exp/reference/sample_dlav0_34.csv"
        verdict = subprocess.run([*command, "--reference", str(reference)], capture_output=True, text=True, check=False)
        assert verdict.returncode == status, verdict.stdout + verdict.stderr
