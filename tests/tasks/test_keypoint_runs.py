"""Keypoints of any object from end to end: train, test with only the checkpoint, visualize, fine-tune, and learn."""

import json
import re

import pytest
import torch
from tests.helpers.keypoints import FISH, KITE, SIZE, write_coco, write_yolo
from tests.helpers.training import output_here, output_of, score

from centernet import CenterNet

COUNTS = {"train": 4, "val": 3}


def small(root, exp) -> list[str]:
    return [
        *("--dataset", "custom", "--data_path", str(root), "--exp_dir", str(exp), "--arch", "res_18"),
        *("--head_conv", "8", "--input_res", "64", "--batch_size", "2", "--num_workers", "0", "--pretrained", "none"),
        *("--device", "cpu", "--num_epochs", "1", "--num_iters", "2", "--val_intervals", "1"),
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A directory with a dataset of two classes and a short training, and what it printed."""
    folder = tmp_path_factory.mktemp("keypoints")
    write_coco(folder / "data", COUNTS)
    output = output_here(
        "main", "multi_pose", *small(folder / "data", folder / "exp"), "--rotate", "10", "--aug_rot", "0.5"
    )
    return folder, output


def test_training(trained):
    folder, output = trained
    assert "8 joints (head, left_tip," in output and re.search(r"final AP: -?\d\.\d{4}", output)
    run = folder / "exp/multi_pose/default"
    metadata = torch.load(run / "model_last.pth", weights_only=True)["model"]
    assert metadata["heads"]["hps"] == 16 and metadata["keypoints"]["of_class"] == [[0, 1, 2, 3, 4], [0, 5, 6, 7]]
    entries = json.loads((run / "results.json").read_text())
    assert {(entry["category_id"], len(entry["keypoints"])) for entry in entries} == {(3, 15), (4, 12)}
    header = (run / "val_log.csv").read_text().splitlines()[0].split(",")
    assert {"AP", "box_AP", "AP/kite", "AP/fish"} <= set(header)
    assert json.loads((run / "opt.json").read_text())["options"]["keypoints"]["names"][0] == "head"


@pytest.mark.parametrize("arguments", [[], ["--flip_test", "--test_scales", "0.75,1", "--nms"]])
def test_scoring_needs_the_checkpoint_alone(trained, arguments):
    folder, _ = trained
    model = ["--load_model", str(folder / "exp/multi_pose/default/model_last.pth"), "--exp_dir", str(folder / "exp")]
    more = ["--exp_id", "scored", "--num_workers", "0", "--device", "cpu"]
    output = output_here("test", "multi_pose", *model, *more, *arguments)
    assert re.search(r"^AP -?\d\.\d{4}$", output, re.M) and re.search(r"^AP/fish -?\d\.\d{4}$", output, re.M)


def test_demo(trained):
    folder, _ = trained
    model = ["--load_model", str(folder / "exp/multi_pose/default/model_last.pth"), "--device", "cpu"]
    seen = folder / "seen"
    image = ["--demo", str(folder / "data/val/1.png"), "--output_dir", str(seen), "--vis_thresh", "0", "--debug", "2"]
    output_here("demo", "multi_pose", *model, *image, "--save_json", "--save_txt")
    names = {path.name for path in seen.iterdir() if path.suffix == ".png"}
    assert names == {f"1_{name}.png" for name in ("multi_pose", "pred_hm_1.0", "pred_hmhp_1.0")}
    (entry,) = json.loads((seen / "detections.json").read_text())
    joints = {"kite": list(KITE.joints), "fish": list(FISH.joints)}
    assert {one["class"] for one in entry["detections"]} == set(joints)
    for one in entry["detections"]:
        assert one["keypoint_names"] == joints[one["class"]] and len(one["keypoints"]) == len(joints[one["class"]])
    lines = (seen / "labels/1.txt").read_text().splitlines()
    assert {len(line.split()) for line in lines} == {5 + 2 * 5}  # the fourth class line ends with zeros
    assert all(line.endswith(" 0.000000 0.000000") for line in lines if line.startswith("1 "))


def test_python_api(trained):
    """Each detection has the joints of its class."""
    folder, _ = trained
    model = CenterNet(folder / "exp/multi_pose/default/model_last.pth", device="cpu")
    (result,) = model.predict(folder / "data/val/1.png", threshold=0)
    counts = {"kite": 5, "fish": 4}
    assert set(result.names) == set(counts)
    assert [points.shape for points in result.keypoints] == [(counts[name], 2) for name in result.names]
    height, width, _ = result.plot().shape
    assert height == width >= 480 and height % SIZE == 0  # enlarged


def test_fine_tuning_with_other_joints(trained, tmp_path):
    """Mismatched weights are named and reinitialized; the rest of the network is kept."""
    folder, _ = trained
    pytest.importorskip("yaml")
    model = folder / "exp/multi_pose/default/model_last.pth"
    root = write_yolo(tmp_path / "data", COUNTS, more=f"flip_idx: {KITE.flip_index}\n")
    output = output_here(
        "main", "multi_pose", *small(root, tmp_path / "exp"), "--load_model", str(model), "--lr", "1e-9"
    )
    (line,) = [line for line in output.splitlines() if "other shape, own values kept" in line]
    assert {f"{head}.2.{part}" for head in ("hm", "hps", "hm_hp") for part in ("weight", "bias")} == set(
        line.partition(": ")[2].split(", ")
    )
    before, after = (
        torch.load(path, weights_only=True)["state_dict"]
        for path in (model, tmp_path / "exp/multi_pose/default/model_last.pth")
    )
    assert after["hps.2.weight"].shape[0] == 10 and after["hm_hp.2.weight"].shape[0] == 5
    torch.testing.assert_close(after["wh.2.weight"], before["wh.2.weight"], atol=1e-6, rtol=0)


def test_true_heads_give_a_perfect_score(trained):
    """Targets, decoding and scoring of two classes agree: with the ground truth as heads all objects are found."""
    folder, _ = trained
    model = ["--load_model", str(folder / "exp/multi_pose/default/model_last.pth"), "--exp_id", "true", "--test"]
    heads = ["--eval_oracle_hm", "--eval_oracle_kps", "--eval_oracle_hmhp", "--eval_oracle_hp_offset"]
    more = ["--input_res", "96", "--num_iters", "-1"]
    output = output_here("main", "multi_pose", *small(folder / "data", folder / "exp"), *model, *heads, *more)
    assert score(output, "AP") > 0.99


def test_images_of_a_training(trained, tmp_path):
    folder, _ = trained
    output_here("main", "multi_pose", *small(folder / "data", tmp_path), "--debug", "4", "--val_intervals", "0")
    names = {path.name for path in (tmp_path / "multi_pose/default/debug").iterdir()}
    assert {f"1_0_{name}.png" for name in ("out_pred", "out_gt", "gt_hm", "gt_hmhp")} <= names


@pytest.mark.parametrize("arguments", [["--dense_hp", "--not_hm_hp"], ["--mse_loss", "--repeat_threshold", "0.9"]])
def test_options_run_through(trained, tmp_path, arguments):
    folder, _ = trained
    output = output_here("main", "multi_pose", *small(folder / "data", tmp_path), *arguments)
    assert re.search(r"final AP: -?\d\.\d{4}", output)


@pytest.mark.slow
def test_two_classes_are_learned(tmp_path):
    """The loss falls, and objects of both classes are found with their joints, also in flipped images."""
    write_coco(tmp_path / "data", {"train": 160, "val": 40})
    recipe = ["--arch", "lite", "--batch_size", "8", "--lr", "2e-3", "--lr_step", "7", "--num_epochs", "9"]
    recipe += ["--val_intervals", "9", "--num_workers", "1", "--pretrained", "none"]
    recipe += ["--not_rand_crop", "--scale", "0.1", "--shift", "0.05"]
    exp = ["--exp_dir", str(tmp_path / "exp")]
    output = output_of(
        "main", "multi_pose", "--dataset", "custom", "--data_path", str(tmp_path / "data"), *recipe, *exp
    )
    losses = [float(loss) for loss in re.findall(r"^epoch \d+: loss (\d+\.\d+)", output, re.M)]
    assert len(losses) == 9 and losses[-1] < 0.3 * losses[0]
    model = ["--load_model", str(tmp_path / "exp/multi_pose/default/model_last.pth"), "--exp_id", "test"]
    output = output_of("test", "multi_pose", *model, *exp, "--flip_test")
    assert score(output, "AP") > 0.6 and score(output, "box_AP50") > 0.8
    assert score(output, "AP/kite") > 0.5 and score(output, "AP/fish") > 0.5
