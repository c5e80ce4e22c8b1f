"""Human pose end to end: train, test, visualize, start from a detector, learn the sample, overfit images."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.helpers.training import ROOT, output_here, output_of, score

from centernet.datasets.synthetic.poses import SyntheticPoses
from centernet.models import create_model, save_model
from centernet.options import model_metadata
from centernet.opts import opts

SHARED = ROOT.parent / "shared" / "data" / "coco_hp_sample"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a sample of few images in ``data/`` and a short training in ``exp/``, and what it printed."""
    folder = tmp_path_factory.mktemp("pose")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SyntheticPoses, "splits", {"train": 8, "val": 3})
        SyntheticPoses.prepare(SyntheticPoses.locate(folder / "data"), log=lambda line: None)
    return folder, output_here(
        "main", "multi_pose", *small(folder), "--num_epochs", "2", "--val_intervals", "2", "--rotate", "20"
    )


def small(folder: Path) -> list[str]:
    return [
        *("--dataset", "sample_hp", "--data_path", str(folder / "data"), "--exp_dir", str(folder / "exp")),
        *("--arch", "res_18", "--input_res", "64", "--batch_size", "4", "--num_workers", "0", "--pretrained", "none"),
        *("--aug_rot", "0.5", "--device", "cpu"),
    ]


def test_training(trained):
    folder, output = trained
    run_directory = folder / "exp/multi_pose/default"
    assert re.search(r"final AP: -?\d\.\d{4}", output)
    header = (run_directory / "train_log.csv").read_text().splitlines()[0]
    assert header.startswith("epoch,iteration,loss,hm_loss,hp_loss,hm_hp_loss,hp_offset_loss,wh_loss,off_loss,lr")
    entries = json.loads((run_directory / "results.json").read_text())
    assert len(entries) == 300 and all(len(entry["keypoints"]) == 51 for entry in entries)
    metadata = torch.load(run_directory / "model_last.pth", weights_only=True)["model"]
    assert metadata["task"] == "multi_pose" and metadata["heads"]["hps"] == 34 and metadata["dataset"] == "sample_hp"


@pytest.mark.parametrize("arguments", [[], ["--flip_test"], ["--test_scales", "0.75,1", "--nms"], ["--keep_res"]])
def test_scoring_needs_the_checkpoint_alone(trained, arguments):
    folder, _ = trained
    paths = ["--load_model", str(folder / "exp/multi_pose/default/model_last.pth"), "--exp_dir", str(folder / "exp")]
    output = output_here(
        "test", "multi_pose", *paths, *arguments, "--exp_id", "scored", "--num_workers", "0", "--device", "cpu"
    )
    assert re.search(r"^AP \d\.\d{4}$", output, re.M) and re.search(r"^box_AP50 \d\.\d{4}$", output, re.M)
    entries = json.loads((folder / "exp/multi_pose/scored/results_sample_hp_val.json").read_text())
    assert {entry["image_id"] for entry in entries} == {9, 10, 11}
    if not arguments:
        # The same network, images and arithmetic as in the validation of the training.
        before = json.loads((folder / "exp/multi_pose/default/results.json").read_text())
        for one, other in zip(entries, before, strict=True):
            assert one["score"] == pytest.approx(other["score"], abs=1e-4)
            np.testing.assert_allclose(one["keypoints"], other["keypoints"], atol=0.05)


def test_demo_saves_skeletons(trained):
    folder, _ = trained
    image = folder / "data/sample_hp/val2017/000000000009.jpg"
    model = ["--load_model", str(folder / "exp/multi_pose/default/model_last.pth"), "--device", "cpu"]
    output_here(
        "demo", "multi_pose", *model, "--demo", str(image), "--output_dir", str(folder / "shown"), "--debug", "2"
    )
    names = {path.name for path in (folder / "shown").iterdir()}
    assert names == {f"{image.stem}_{name}.png" for name in ("multi_pose", "pred_hm_1.0", "pred_hmhp_1.0")}


def test_images_of_a_training(trained, tmp_path):
    folder, _ = trained
    arguments = ["--exp_dir", str(tmp_path), "--debug", "4", "--num_epochs", "1", "--num_iters", "1"]
    output_here("main", "multi_pose", *small(folder), *arguments, "--val_intervals", "0")
    names = {path.name for path in (tmp_path / "multi_pose/default/debug").iterdir()}
    kinds = ("pred_hm", "gt_hm", "out_pred", "out_gt", "pred_hmhp", "gt_hmhp")
    assert names == {f"1_0_{name}.png" for name in kinds}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--dense_hp", "--not_hm_hp"],
        ["--mse_loss", "--not_reg_hp_offset", "--not_reg_offset", "--reg_loss", "sl1"],
    ],
)
def test_options_run_through(trained, tmp_path, arguments):
    """Training, and a test that knows from the checkpoint which heads there are."""
    folder, _ = trained
    more = ["--exp_dir", str(tmp_path), "--num_epochs", "1", "--num_iters", "1", "--val_intervals", "1"]
    output_here("main", "multi_pose", *small(folder), *more, *arguments)
    path = tmp_path / "multi_pose/default/model_last.pth"
    metadata = torch.load(path, weights_only=True)["model"]
    assert metadata["mse_loss"] == ("--mse_loss" in arguments)
    output = output_here(
        "test", "multi_pose", "--load_model", str(path), "--exp_dir", str(tmp_path), "--exp_id", "b", "--device", "cpu"
    )
    assert re.search(r"^AP \d\.\d{4}$", output, re.M)


def test_true_heads_give_a_perfect_score(trained):
    """Targets, decoding and scoring agree: with the truth in place of the heads of joints all poses are found."""
    folder, _ = trained
    model = ["--load_model", str(folder / "exp/multi_pose/default/model_last.pth"), "--exp_id", "true"]
    heads = ["--eval_oracle_hm", "--eval_oracle_kps", "--eval_oracle_hmhp", "--eval_oracle_hp_offset"]
    output = output_here("main", "multi_pose", *small(folder), "--test", *model, "--input_res", "128", *heads)
    assert float(re.search(r"\| AP (-?\d\.\d{4})", output)[1]) > 0.99


def test_a_detector_is_a_starting_point(trained, tmp_path):
    """Matching weights of a ctdet network are kept, heads of joints are new, and mismatches are reported."""
    folder, _ = trained
    opt = opts().parse(["ctdet", "--dataset", "coco", "--arch", "res_18"])
    torch.manual_seed(5)
    detector = create_model("res_18", opt.heads, opt.head_conv)
    save_model(tmp_path / "detector.pth", 7, detector, extra={"model": model_metadata(opt)})
    more = ["--load_model", str(tmp_path / "detector.pth"), "--exp_dir", str(tmp_path), "--lr", "1e-9"]
    output = output_here(
        "main", "multi_pose", *small(folder), *more, "--num_epochs", "1", "--num_iters", "1", "--val_intervals", "0"
    )
    assert "loaded" in output and "epoch 7" in output
    assert re.search(r"other shape, own values kept: .*hm\.2\.weight", output)
    assert re.search(r"not in the file, own values kept: .*hm_hp\.", output)
    state = torch.load(tmp_path / "multi_pose/default/model_last.pth", weights_only=True)
    assert state["epoch"] == 1 and state["state_dict"]["hm.2.weight"].shape[0] == 1
    for name, value in detector.state_dict().items():
        if not name.startswith("hm.2") and "running" not in name and "num_batches" not in name:
            assert torch.allclose(state["state_dict"][name], value, atol=1e-6), name


@pytest.mark.soak
def test_the_sample_of_poses_is_learned(tmp_path):
    """Twelve epochs of dlav0_34: most figures are found with their joints, and their sides are not mixed up."""
    paths = ["--exp_dir", str(tmp_path)]
    recipe = ["--dataset", "sample_hp", "--arch", "dlav0_34", "--head_conv", "64", "--batch_size", "8", "--lr", "1e-3"]
    recipe += ["--lr_step", "9", "--num_epochs", "12", "--val_intervals", "12", "--num_workers", "1"]
    output_of("main", "multi_pose", *paths, *recipe, "--not_rand_crop", "--shift", "0.05", "--scale", "0.2")
    model = ["--load_model", str(tmp_path / "multi_pose/default/model_last.pth")]
    output = output_of("test", "multi_pose", *paths, *model, "--exp_id", "test", "--flip_test")
    assert score(output, "AP50") > 0.6 and score(output, "AP") > 0.2


@pytest.mark.soak
@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not there")
def test_four_images_are_overfit(tmp_path):
    """800 steps on four real images without augmentation, and all persons with joints are found again."""
    content = json.loads((SHARED / "annotations/person_keypoints_train2017.json").read_text())
    # Each image so often that an epoch is worth its start. Persons without joints go: they would count as wrong.
    images = [{**image, "id": image["id"] + 10**7 * k} for k in range(40) for image in content["images"]]
    people = [
        {**person, "id": person["id"] + 10**13 * k, "image_id": person["image_id"] + 10**7 * k}
        for k in range(40)
        for person in content["annotations"]
        if person["num_keypoints"] > 0
    ]
    folder = tmp_path / "data/coco"
    (folder / "annotations").mkdir(parents=True)
    for split, part in (("train", {"images": images, "annotations": people}), ("val", {})):
        path = folder / "annotations" / f"person_keypoints_{split}2017.json"
        path.write_text(json.dumps({**content, **part}))
        (folder / f"{split}2017").symlink_to(SHARED / "val2017")
    data = ["--dataset", "coco_hp", "--data_path", str(tmp_path / "data"), "--exp_dir", str(tmp_path / "exp")]
    plain = ["--not_rand_crop", "--shift", "0", "--scale", "0", "--flip", "0", "--no_color_aug", "--pretrained", "none"]
    steps = ["--arch", "res_18", "--input_res", "256", "--batch_size", "4", "--lr", "5e-4", "--num_epochs", "20"]
    steps += ["--lr_step", "16", "--val_intervals", "20", "--num_workers", "1"]
    output_of("main", "multi_pose", *data, *plain, *steps)
    model = ["--load_model", str(tmp_path / "exp/multi_pose/default/model_last.pth")]
    output = output_of("test", "multi_pose", *model, "--exp_dir", str(tmp_path / "exp"), "--exp_id", "test")
    # Perfect heads give an AP of 0.94: joints that share a cell share the offset to which they snap.
    assert score(output, "AP50") > 0.95 and score(output, "AP") > 0.85
