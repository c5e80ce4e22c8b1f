"""Every command line of the original's documents and recipes: parsed by the program of the same name, or documented.

The original's lines start in its folder ``src``, those of tools also in ``src/tools``.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from centernet import cli
from centernet.options import OptionParser, process_shares

ROOT = Path(__file__).resolve().parents[1]
DIFFERENCES = " ".join((ROOT / "docs" / "DIFFERENCES.md").read_text(encoding="utf-8").split())
FLIP, SCALES = " --flip_test", " --flip_test --test_scales 0.5,0.75,1,1.25,1.5"
DLA, DLA_SHARES = "--gpus 0,1,2,3,4,5,6,7 --num_workers 16", [9] + [17] * 7
HG = "--arch hourglass --batch_size 24 --master_batch 4 --lr 2.5e-4"
FIVE, HG_SHARES = "--gpus 0,1,2,3,4 --num_workers 4", [4] + [5] * 4
VOC = "--num_epochs 70 --lr_step 45,60"
KITTI = "--batch_size 16 --master_batch 7 --num_epochs 70 --lr_step 45,60 --gpus 0,1"

# Trainings of experiments/*.sh, and the images of a batch for each device.
TRAININGS = {
    f"main.py ctdet --exp_id coco_dla_1x --batch_size 128 --master_batch 9 --lr 5e-4 {DLA}": DLA_SHARES,
    "main.py ctdet --exp_id coco_dla_2x --batch_size 128 --master_batch 9 --lr 5e-4 --num_epochs 230 "
    f"--lr_step 180,210 {DLA}": DLA_SHARES,
    f"main.py ctdet --exp_id coco_hg {HG} --load_model ../models/ExtremeNet_500000.pth {FIVE}": HG_SHARES,
    "main.py ctdet --exp_id coco_resdcn101 --arch resdcn_101 --batch_size 96 --master_batch 5 --lr 3.75e-4 "
    "--gpus 0,1,2,3,4,5,6,7 --num_workers 16": [5] + [13] * 7,
    "main.py ctdet --exp_id coco_resdcn18 --arch resdcn_18 --batch_size 114 --master_batch 18 --lr 5e-4 "
    "--gpus 0,1,2,3 --num_workers 16": [18, 32, 32, 32],
    f"main.py ctdet --exp_id pascal_dla_384 --dataset pascal {VOC}": [32],
    f"main.py ctdet --exp_id pascal_dla_512 --dataset pascal --input_res 512 {VOC} --gpus 0,1": [16, 16],
    f"main.py ctdet --exp_id pascal_resdcn18_384 --arch resdcn_18 --dataset pascal {VOC}": [32],
    f"main.py ctdet --exp_id pascal_resdcn18_512 --arch resdcn_18 --dataset pascal --input_res 512 {VOC}": [32],
    f"main.py ctdet --exp_id pascal_resdcn101_384 --arch resdcn_101 --dataset pascal {VOC} --gpus 0,1": [16, 16],
    f"main.py ctdet --exp_id pascal_resdcn101_512 --arch resdcn_101 --dataset pascal --input_res 512 {VOC} "
    "--gpus 0,1,2,3": [8] * 4,
    "main.py exdet --exp_id coco_dla --batch_size 64 --master_batch 1 --lr 2.5e-4 --gpus 0,1,2,3,4,5,6,7 "
    "--num_workers 8": [1] + [9] * 7,
    f"main.py exdet --exp_id coco_hg {HG} {FIVE}": HG_SHARES,
    "main.py multi_pose --exp_id dla_1x --dataset coco_hp --batch_size 128 --master_batch 9 --lr 5e-4 "
    f"--load_model ../models/ctdet_coco_dla_2x.pth {DLA}": DLA_SHARES,
    f"main.py multi_pose --exp_id hg_1x --dataset coco_hp {HG} --load_model ../models/ctdet_coco_hg.pth {FIVE} "
    "--num_epochs 50 --lr_step 40": HG_SHARES,
    f"main.py ddd --exp_id 3dop --dataset kitti --kitti_split 3dop {KITTI}": [7, 9],
    f"main.py ddd --exp_id sub --dataset kitti --kitti_split subcnn {KITTI}": [7, 9],
    # The documents' own.
    "main.py ctdet --exp_id coco_dla --batch_size 32 --master_batch 15 --lr 1.25e-4 --gpus 0,1": [15, 17],
    "main.py ctdet --exp_id coco_dla --batch_size 32 --master_batch 15 --lr 1.25e-4 --gpus 0,1 --resume": [15, 17],
    # Alternatives in comments of experiments/*.sh.
    f"main.py ctdet --exp_id coco_dla_2x --batch_size 128 --master_batch 9 --lr 5e-4 {DLA} --num_epochs 230 "
    "--lr_step 180,210 --load_model ../exp/ctdet/coco_dla_1x/model_90.pth --resume": DLA_SHARES,
    "main.py multi_pose --exp_id dla_3x --dataset coco_hp --batch_size 128 --master_batch 9 --lr 5e-4 "
    f"--load_model ../exp/multi_pose/dla_1x/model_90.pth {DLA} --num_epochs 320 --lr_step 270,300 --resume": DLA_SHARES,
    f"main.py multi_pose --exp_id hg_3x --dataset coco_hp {HG} --load_model ../exp/multi_pose/hg_1x/model_40.pth "
    f"{FIVE} --num_epochs 150 --lr_step 130 --resume": HG_SHARES,
}

# Tests of experiments/*.sh: the line, and what is added for further ones.
COCO, POSE, PLAIN = ("", FLIP, SCALES), ("", FLIP), ("",)
RECIPE_TESTS = {
    "test.py ctdet --exp_id coco_dla_1x --keep_res --resume": COCO,
    "test.py ctdet --exp_id coco_dla_2x --keep_res --resume": COCO,
    "test.py ctdet --exp_id coco_hg --arch hourglass --keep_res --resume": COCO,
    "test.py ctdet --exp_id coco_resdcn101 --keep_res --resume": COCO,
    "test.py ctdet --exp_id coco_resdcn18 --arch resdcn_18 --keep_res --resume": COCO,
    "test.py exdet --exp_id coco_dla --keep_res --resume": COCO,
    "test.py exdet --exp_id coco_hg --arch hourglass --keep_res --resume": COCO,
    "test.py ctdet --exp_id pascal_dla_384 --dataset pascal --resume": POSE,
    "test.py ctdet --exp_id pascal_dla_512 --dataset pascal --input_res 512 --resume": POSE,
    "test.py ctdet --exp_id pascal_resdcn18_384 --arch resdcn_18 --dataset pascal --resume": POSE,
    "test.py ctdet --exp_id pascal_resdcn18_512 --arch resdcn_18 --dataset pascal --input_res 512 --resume": POSE,
    "test.py ctdet --exp_id pascal_resdcn101_384 --arch resdcn_101 --dataset pascal --resume": POSE,
    "test.py ctdet --exp_id pascal_resdcn101_512 --arch resdcn_101 --dataset pascal --input_res 512 --resume": POSE,
    "test.py multi_pose --exp_id dla_1x --dataset coco_hp --keep_res --resume": POSE,
    "test.py multi_pose --exp_id dla_3x --dataset coco_hp --keep_res --resume": POSE,
    "test.py multi_pose --exp_id hg_1x --dataset coco_hp --arch hourglass --keep_res --resume": POSE,
    "test.py multi_pose --exp_id hg_3x --dataset coco_hp --arch hourglass --keep_res --resume": POSE,
    "test.py ddd --exp_id 3dop --dataset kitti --kitti_split 3dop --resume": PLAIN,
    "test.py ddd --exp_id sub --dataset kitti --kitti_split subcnn --resume": PLAIN,
}
# Tests and demos of the documents.
DOCUMENTED = {
    "test.py ctdet --exp_id coco_dla --keep_res --load_model ../models/ctdet_coco_dla_2x.pth": COCO,
    "test.py ctdet --exp_id coco_hg --arch hourglass --fix_res --load_model ../models/ctdet_coco_hg.pth": PLAIN,
    "test.py ctdet --exp_id dla --dataset pascal --load_model ../models/ctdet_pascal_dla.pth": POSE,
    "test.py multi_pose --exp_id dla --keep_res --load_model ../models/multi_pose_dla_3x.pth": POSE,
    "test.py multi_pose --exp_id hg --arch hourglass --keep_res --load_model ../models/multi_pose_dla_3x.pth": POSE,
    "test.py ddd --exp_id 3dop --load_model ../models/ddd_3dop.pth": PLAIN,
    "test.py ddd --exp_id sub --kitti_split subcnn --load_model ../models/ddd_sub.pth": PLAIN,
    "test.py exdet --exp_id coco_dla --keep_res --load_model ../models/exdet_coco_dla.pth": COCO,
    "test.py ctdet --exp_id coco_dla --trainval --keep_res --load_model ../models/ctdet_coco_dla_2x.pth": COCO,
    "demo.py ctdet --demo ../images --load_model ../models/ctdet_coco_dla_2x.pth": PLAIN,
    "demo.py ctdet --demo webcam --load_model ../models/ctdet_coco_dla_2x.pth": PLAIN,
    "demo.py ctdet --demo ../images --arch hourglass --load_model ../models/ctdet_coco_hg.pth": PLAIN,
    "demo.py ctdet --demo ../images --arch resdcn_18 --load_model ../models/ctdet_coco_resdcn18.pth --debug 2": PLAIN,
    "demo.py multi_pose --demo ../images --load_model ../models/multi_pose_dla_3x.pth": PLAIN,
    "demo.py multi_pose --demo webcam --load_model ../models/multi_pose_dla_3x.pth": PLAIN,
    "demo.py ddd --demo ../images --load_model ../models/ddd_3dop.pth": PLAIN,
}
INFERENCE = [line + more for lines in (RECIPE_TESTS, DOCUMENTED) for line, added in lines.items() for more in added]

TOOLS = [
    "tools/merge_pascal_json.py",
    "tools/convert_kitti_to_coco.py",
    "tools/convert_hourglass_weight.py",
    "tools/calc_coco_overlap.py",
    "tools/gen_coco_extreme_points.py",
    "tools/eval_coco.py ../exp/ctdet/coco_dla/results.json",
    "tools/eval_coco_hp.py ../exp/multi_pose/dla/results.json",
    "tools/reval.py ../exp/ctdet/pascal_dla_384/results.json",
    "tools/reval.py ../exp/ctdet/pascal_dla_384/results.json --imdb voc_2007_test --comp --nms --output_dir out",
    "tools/vis_pred.py ../exp/ctdet/coco_dla/results.json",
]
SHELL = ["tools/get_pascal_voc.sh", "tools/get_kitti.sh", "../experiments/ctdet_coco_dla_1x.sh"]

# Lines that end with a message here, and where docs/DIFFERENCES.md states it. The first three do so in the original.
REFUSED = {
    f"main.py ctdet --exp_id coco_dla_2x --batch_size 128 --lr 5e-4 {DLA} --num_epochs 230 lr_step 180,210": (
        "`lr_step` and `load_model` have their dashes"
    ),
    f"main.py multi_pose --exp_id dla_3x --dataset coco_hp {DLA} --num_epochs 320 lr_step 270,300": (
        "`lr_step` and `load_model` have their dashes"
    ),
    f"main.py multi_pose --exp_id hg_3x --dataset coco_hp {HG} -load_model ../models/ctdet_coco_hg.pth {FIVE}": (
        "`lr_step` and `load_model` have their dashes"
    ),
    "main.py ctdet --reg_loss l2": "`--reg_loss l2`, which the reference documents but does not have",
    "tools/reval.py results.json --matlab": "has no `--matlab`",
}
# Programs of the original that do not exist here, and where docs/DIFFERENCES.md states why.
ABSENT = {
    "lib/models/networks/DCNv2/make.sh": "Nothing is compiled",
    "lib/external/Makefile": "Nothing is compiled",
    "tools/kitti_eval/evaluate_object_3d_offline": "KITTI is scored in the process",
}


class Parsed(Exception):
    """The command line of a tool was accepted."""


def parse(line, monkeypatch):
    """Return the options of a line of a program, or None for a tool, whose parser accepts it."""
    name, *arguments = shlex.split(line)
    assert (ROOT / "src" / name).is_file()
    if not name.startswith("tools/"):
        return OptionParser(name).parse(arguments)
    original = argparse.ArgumentParser.parse_args

    def parse_args(self, args=None, namespace=None):
        original(self, args, namespace)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.syspath_prepend(str(ROOT / "src" / "tools"))
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(Parsed):
        cli.load(ROOT / "src" / name).main(arguments)
    return None


@pytest.mark.parametrize("line", TRAININGS)
def test_training(line, monkeypatch):
    opt = parse(line, monkeypatch)
    assert opt.chunk_sizes == TRAININGS[line] and process_shares(opt, len(opt.gpus)) == TRAININGS[line]
    words = shlex.split(line)
    given = dict(zip(words, words[1:], strict=False))
    for name in ("exp_id", "batch_size", "lr", "arch", "num_epochs", "num_workers"):
        if f"--{name}" in given:
            value = getattr(opt, name)
            assert value == type(value)(given[f"--{name}"])
    assert opt.resume == ("--resume" in words)
    assert OptionParser("main.py").notes(opt) == []


@pytest.mark.parametrize("line", INFERENCE)
def test_inference(line, monkeypatch):
    opt = parse(line, monkeypatch)
    assert opt.keep_res == ("--keep_res" in line) and opt.flip_test == ("--flip_test" in line)
    assert len(opt.test_scales) == (5 if "--test_scales" in line else 1)
    expected = re.search(r"--load_model (\S+)", line)
    last = f"{ROOT}/exp/{opt.task}/{opt.exp_id}/model_last.pth"
    assert opt.load_model == (expected.group(1) if expected else last)


@pytest.mark.parametrize("line", TOOLS)
def test_tool(line, monkeypatch):
    parse(line, monkeypatch)


@pytest.mark.parametrize("name", SHELL)
def test_shell_script(name):
    subprocess.run(["bash", "-n", ROOT / "src" / name], check=True)


@pytest.mark.parametrize("line", REFUSED)
def test_refused_lines_are_documented(line, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(line, monkeypatch)
    assert ended.value.code == 2 and "error: " in capsys.readouterr().err
    assert REFUSED[line] in DIFFERENCES


@pytest.mark.parametrize("name", ABSENT)
def test_absent_programs_are_documented(name):
    assert not (ROOT / "src" / name).exists()
    assert ABSENT[name] in DIFFERENCES


def test_lines_start_in_the_folder_of_the_original():
    """``cd src; python main.py ...``, as the recipes do."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for line in ("main.py ctdet --master_batch 9 --batch_size 128", "test.py ctdet --resume", "demo.py ctdet --demo 0"):
        command = [sys.executable, *shlex.split(line), "--dry_run"]
        done = subprocess.run(command, cwd=ROOT / "src", env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert f"\nroot_dir: {ROOT}\n" in done.stdout
