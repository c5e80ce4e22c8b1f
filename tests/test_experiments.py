"""The scripts in experiments/: each prints commands that the scripts of src/ understand, with the published recipe."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from centernet.options import process_shares
from centernet.opts import opts
from centernet.tasks import TASKS

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDER = REPOSITORY / "experiments"
ENVIRONMENT = {**os.environ, "PYTHON": sys.executable}

DLA, HG = [9] + [17] * 7, [4] + [5] * 4
TASK_COCO = {"ctdet": "coco", "exdet": "coco", "multi_pose": "coco_hp", "ddd": "kitti"}
NFM = ([], ["flip"], ["flip", "scales"])
# Script: dataset, run folder, network, input, shares of a batch, rate, epochs and steps, start weights, tests.
RECIPES = {
    "ctdet_coco_dla_1x": ("coco", "coco_dla_1x", "dla_34", 512, DLA, 5e-4, 140, [90, 120], "", NFM),
    "ctdet_coco_dla_2x": ("coco", "coco_dla_2x", "dla_34", 512, DLA, 5e-4, 230, [180, 210], "", NFM),
    "ctdet_coco_hg": ("coco", "coco_hg", "hourglass", 512, HG, 2.5e-4, 50, [40], "ExtremeNet_500000", NFM),
    "ctdet_coco_resdcn101": (
        *("coco", "coco_resdcn101", "resdcn_101", 512, [5] + [13] * 7, 3.75e-4, 140, [90, 120], "", NFM),
    ),
    "ctdet_coco_resdcn18": ("coco", "coco_resdcn18", "resdcn_18", 512, [18, 32, 32, 32], 5e-4, 140, [90, 120], "", NFM),
    "exdet_coco_dla": ("coco", "coco_dla", "dla_34", 512, [1] + [9] * 7, 2.5e-4, 140, [90, 120], "", NFM),
    "exdet_coco_hg": ("coco", "coco_hg", "hourglass", 512, HG, 2.5e-4, 140, [90, 120], "", NFM),
    "multi_pose_dla_1x": ("coco_hp", "dla_1x", "dla_34", 512, DLA, 5e-4, 140, [90, 120], "ctdet_coco_dla_2x", NFM[:2]),
    "multi_pose_dla_3x": ("coco_hp", "dla_3x", "dla_34", 512, DLA, 5e-4, 320, [270, 300], "ctdet_coco_dla_2x", NFM[:2]),
    "multi_pose_hg_1x": ("coco_hp", "hg_1x", "hourglass", 512, HG, 2.5e-4, 50, [40], "ctdet_coco_hg", NFM[:2]),
    "multi_pose_hg_3x": ("coco_hp", "hg_3x", "hourglass", 512, HG, 2.5e-4, 150, [130], "ctdet_coco_hg", NFM[:2]),
    "ddd_3dop": ("kitti", "3dop", "dla_34", 1280, [7, 9], 1.25e-4, 70, [45, 60], "", NFM[:1]),
    "ddd_sub": ("kitti", "sub", "dla_34", 1280, [7, 9], 1.25e-4, 70, [45, 60], "", NFM[:1]),
}
for network, arch in (("dla", "dla_34"), ("resdcn18", "resdcn_18"), ("resdcn101", "resdcn_101")):
    for side in (384, 512):
        count = {("dla", 512): 2, ("resdcn101", 384): 2, ("resdcn101", 512): 4}.get((network, side), 1)
        run_directory = f"pascal_{network}_{side}"
        RECIPES[f"ctdet_{run_directory}"] = (
            *("pascal", run_directory, arch, side, [32 // count] * count, 1.25e-4, 70, [45, 60], "", NFM[:2]),
        )


def commands(name, folder, *args):
    """The commands that a script prints, each split into its words."""
    script = ["bash", str(FOLDER / f"{name}.sh"), "--dry_run", *args]
    result = subprocess.run(script, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    return [shlex.split(line) for line in result.stdout.splitlines()]


def parse(words):
    """Number of processes, script and finished options of a command."""
    place = next(i for i, word in enumerate(words) if word in ("src/main.py", "src/test.py"))
    assert (REPOSITORY / words[place]).is_file()
    count = 1
    if place > 1:
        assert (REPOSITORY / words[1]).is_file() and words[2] == "--standalone"
        count = int(words[3].removeprefix("--nproc_per_node="))
    return count, words[place], opts().parse(words[place + 1 :])


def test_no_script_is_missing():
    assert {path.stem for path in FOLDER.glob("*.sh")} == {*RECIPES, "run"}
    assert len(RECIPES) == 19


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_recipe(name, tmp_path):
    task = next(task for task in TASK_COCO if name.startswith(task))
    lines = commands(name, tmp_path)
    assert all(task in words for words in lines)
    if task not in TASKS:
        pytest.skip(f"the task {task} does not exist")
    dataset, exp_id, arch, side, shares, lr, epochs, steps, start, tests = RECIPES[name]
    check, training, *evaluations = (parse(words) for words in lines)
    assert check[:2] == (1, "src/main.py") and check[2].prepare_only
    count, script, opt = training
    assert (count, script, opt.prepare_only) == (len(shares), "src/main.py", False)
    assert (opt.task, opt.dataset, opt.exp_id, opt.arch, opt.input_res) == (task, dataset, exp_id, arch, side)
    assert process_shares(opt, count) == shares and opt.batch_size == sum(shares)
    assert (opt.lr, opt.num_epochs, opt.lr_step) == (lr, epochs, steps)
    assert opt.load_model == (f"models/{start}.pth" if start else "")
    assert not opt.resume and opt.pretrained == ("none" if start or arch == "hourglass" else "imagenet")
    assert opt.kitti_split == ("subcnn" if name == "ddd_sub" else "3dop")
    assert opts().notes(opt) == []

    assert len(evaluations) == len(tests)
    for (count, script, test), kind in zip(evaluations, tests, strict=True):
        assert (count, script) == (len(shares), "src/test.py")
        same = ("task", "dataset", "exp_id", "arch", "input_res", "kitti_split", "save_dir")
        assert [getattr(test, key) for key in same] == [getattr(opt, key) for key in same]
        assert test.load_model == f"{opt.save_dir}/model_last.pth"
        assert test.keep_res == (dataset in ("coco", "coco_hp"))
        assert test.flip_test == ("flip" in kind)
        assert test.test_scales == ([0.5, 0.75, 1, 1.25, 1.5] if "scales" in kind else [1])
        assert opts().notes(test, "test.py") == []


def test_own_options(tmp_path):
    """--nproc takes equal shares, the data path may be relative, and other options are passed on."""
    (tmp_path / "my data").mkdir()
    args = ["--nproc=2", "--data_path", "my data", "--num_workers", "7", "--print_iter", "5"]
    check, training, *evaluations = (parse(words) for words in commands("ctdet_coco_dla_1x", tmp_path, *args))
    assert [count for count, _, _ in (check, training, *evaluations)] == [1, 2, 2, 2, 2]
    assert process_shares(training[2], 2) == [64, 64]
    for _, _, opt in (check, training, *evaluations):
        assert opt.data_dir == str(tmp_path / "my data") and opt.print_iter == 5
    assert training[2].num_workers == 7


def test_a_training_that_continues(tmp_path):
    """The checkpoint to start from is one for the training alone; the tests take what it leaves."""
    args = ["--load_model", "exp/ctdet/coco_dla_1x/model_90.pth", "--resume"]
    check, training, *evaluations = (parse(words)[2] for words in commands("ctdet_coco_dla_2x", tmp_path, *args))
    for opt in (check, training):
        assert opt.resume and opt.load_model == "exp/ctdet/coco_dla_1x/model_90.pth"
    assert {opt.load_model for opt in evaluations} == {f"{training.save_dir}/model_last.pth"}


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--nproc", "none"], "--nproc none: not a valid number of processes"),
        (["--nproc"], "--nproc needs a value"),
        (["--data_path", "/nowhere/at/all"], "--data_path /nowhere/at/all: no such folder"),
    ],
)
def test_errors(tmp_path, args, text):
    script = ["bash", str(FOLDER / "ddd_sub.sh"), *args]
    result = subprocess.run(script, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", f"ddd_sub.sh: error: {text}\n")


def test_help(tmp_path):
    script = ["bash", str(FOLDER / "ddd_sub.sh"), "--help"]
    result = subprocess.run(script, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0 and "experiments/ddd_sub.sh" in result.stdout and "--dry_run" in result.stdout


def test_the_first_failure_ends_it(tmp_path):
    """Nothing is tested when there was no training."""
    script = ["bash", str(FOLDER / "ctdet_pascal_dla_384.sh"), "--data_path", str(tmp_path), "--device", "cpu"]
    result = subprocess.run(script, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert result.stderr.startswith("error: --data_path") and result.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["ddd_sub", "ctdet_pascal_dla_384"])
def test_plain_sh(name, tmp_path):
    """The scripts are for bash, and start it when they were started with sh."""
    script = ["sh", str(FOLDER / f"{name}.sh"), "--dry_run"]
    result = subprocess.run(script, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    assert [shlex.split(line) for line in result.stdout.splitlines()] == commands(name, tmp_path)


def test_every_script_can_be_started_with_sh():
    scripts = [*FOLDER.glob("*.sh"), *(REPOSITORY / "src/tools").glob("*.sh"), REPOSITORY / "train_full_4p.sh"]
    for path in scripts:
        text = path.read_text(encoding="utf-8")
        sourced = not text.startswith("#!")
        assert sourced or '[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"' in text, path
