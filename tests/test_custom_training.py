"""Custom data end to end: train, test with only the checkpoint, and visualize, in three styles."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tests.helpers.training import run_here


def make_images(folder: Path, count: int, seed: int) -> list[list[tuple[int, int, int, int]]]:
    """Write ``0.png``, ``1.png``, ..., dark noise with one or two bright rectangles; gives their x, y, w, h."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    boxes = []
    for k in range(count):
        image = rng.integers(0, 60, (64, 64, 3), dtype=np.uint8)
        here = []
        for left in (2, 34)[: 1 + k % 2]:  # they do not touch
            x, y = left + int(rng.integers(0, 6)), int(rng.integers(2, 28))
            w, h = (int(side) for side in rng.integers(12, 24, 2))
            image[y : y + h, x : x + w] = (60, 200, 250)
            here.append((x, y, w, h))
        boxes.append(here)
        assert cv2.imwrite(str(folder / f"{k}.png"), image)
    return boxes


def coco_data(root: Path, counts: dict[str, int]) -> None:
    for seed, (split, count) in enumerate(counts.items()):
        content = {"images": [], "annotations": [], "categories": [{"id": 5, "name": "thing"}]}
        for k, boxes in enumerate(make_images(root / split, count, seed)):
            content["images"].append({"id": k, "file_name": f"{k}.png", "width": 64, "height": 64})
            for box in boxes:
                number = len(content["annotations"])
                content["annotations"].append({"id": number, "image_id": k, "category_id": 5, "bbox": box})
        (root / f"{split}.json").write_text(json.dumps(content))


def voc_data(root: Path, counts: dict[str, int]) -> None:
    for seed, (split, count) in enumerate(counts.items()):
        for k, boxes in enumerate(make_images(root / split, count, seed)):
            text = "<annotation><size><width>64</width><height>64</height></size>"
            for x, y, w, h in boxes:
                text += f"<object><name>thing</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
                text += f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
            (root / split / f"{k}.xml").write_text(text + "</annotation>")


def yolo_data(root: Path, counts: dict[str, int]) -> None:
    for seed, (split, count) in enumerate(counts.items()):
        (root / "labels" / split).mkdir(parents=True)
        for k, boxes in enumerate(make_images(root / "images" / split, count, seed)):
            lines = [f"0 {(x + w / 2) / 64} {(y + h / 2) / 64} {w / 64} {h / 64}\n" for x, y, w, h in boxes]
            (root / "labels" / split / f"{k}.txt").write_text("".join(lines))
    (root / "classes.txt").write_text("thing\n")


STYLES = {
    "coco": (coco_data, "train/0.png", 0),
    "voc": (voc_data, "train/0.png", "0"),
    "yolo": (yolo_data, "images/train/0.png", "0.png"),
}


@pytest.mark.parametrize("style", STYLES)
def test_train_test_and_look(tmp_path, style):
    make, image, first_id = STYLES[style]
    make(tmp_path / "data", {"train": 4, "val": 2})
    exp = ["--exp_dir", str(tmp_path / "exp")]
    sizes = ["--arch", "res_18", "--head_conv", "8", "--batch_size", "2", "--num_workers", "0", "--pretrained", "none"]
    epochs = ["--num_epochs", "2", "--num_iters", "1", "--val_intervals", "1", "--lr_step", "5"]
    data = ["--dataset", "custom", "--data_path", str(tmp_path / "data")]
    done = run_here("main", "ctdet", "--device", "cpu", *data, *sizes, *epochs, *exp, "--exp_id", "run")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "exp/ctdet/run"
    assert "input 64 x 64" in done.stdout
    with open(folder / "val_log.csv", newline="") as file:
        header, *rows = csv.reader(file)
    scores = ["mAP", "mAP_area", "AP/thing"]
    if style != "voc":
        scores += ["AP", "AP50", "AP75"]
    assert header[:5] == ["epoch", "loss", "hm_loss", "wh_loss", "off_loss"] and set(scores) <= set(header)
    assert [row[0] for row in rows] == ["1", "2"] and all(len(row) == len(header) for row in rows)
    assert (folder / "model_best.pth").is_file()

    model = ["--load_model", str(folder / "model_last.pth")]
    done = run_here("test", "ctdet", "--device", "cpu", *model, *exp, "--exp_id", "score")
    assert done.returncode == 0, done.stderr
    assert "custom, 2 images at 64 x 64" in done.stdout and "AP/thing " in done.stdout
    assert ("\nAP " in done.stdout) == (style != "voc")
    results = json.loads((tmp_path / "exp/ctdet/score/results_custom_val.json").read_text())
    assert {type(r["image_id"]) for r in results} == {type(first_id)} and len(results) == 2 * 100
    assert min(r["image_id"] for r in results) == first_id
    assert {r["category_id"] for r in results} == {{"coco": 5, "voc": "thing", "yolo": 0}[style]}

    output = tmp_path / "seen"
    shown = str(tmp_path / "data" / image)
    done = run_here(
        "demo", "ctdet", "--device", "cpu", *model, "--demo", shown, "--output_dir", str(output), "--vis_thresh", "0"
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in output.iterdir()] == ["0_ctdet.png"]
    assert cv2.imread(str(output / "0_ctdet.png")).shape == (512, 512, 3)  # enlarged


def test_validation_images_without_objects(main, tmp_path):
    """There is no score: the last validation is kept as the best, and none of them counts for early stopping."""
    for split, label in (("train", "0 0.5 0.5 0.25 0.25\n"), ("val", "")):
        (tmp_path / "images" / split).mkdir(parents=True)
        (tmp_path / "labels" / split).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "images" / split / "a.jpg"), np.full((64, 64, 3), 70, np.uint8))
        (tmp_path / "labels" / split / "a.txt").write_text(label)
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat]\n")
    steps = ["--batch_size", "1", "--num_workers", "0", "--num_epochs", "3", "--val_intervals", "1", "--patience", "1"]
    network = ["--arch", "lite", "--input_res", "64", "--pretrained", "none", "--exp_dir", str(tmp_path)]
    done = main("--dataset", "custom", "--data_path", str(tmp_path), *network, *steps)
    assert done.returncode == 0 and "images/val: no objects, so there will be no score" in done.stdout, done.stderr
    best = torch.load(tmp_path / "ctdet/default/model_best.pth", weights_only=True)
    assert best["epoch"] == 3 and best["best"] == {"AP": -1.0}


def test_one_class_is_learned_from_ten_images(tmp_path):
    """And found in them again: mAP above 0.9 by both rules."""
    coco_data(tmp_path / "data", {"train": 10})
    # Each image is listed six times for training, which makes epochs longer and checkpoints fewer.
    content = json.loads((tmp_path / "data/train.json").read_text())
    images, annotations = content["images"], content["annotations"]
    content["images"] = [{**image, "id": f"{image['id']}/{k}"} for k in range(6) for image in images]
    content["annotations"] = [
        {**annotation, "image_id": f"{annotation['image_id']}/{k}"} for k in range(6) for annotation in annotations
    ]
    (tmp_path / "data/six_times.json").write_text(json.dumps(content))

    exp = ["--exp_dir", str(tmp_path / "exp")]
    data = ["--dataset", "custom", "--data_path", str(tmp_path / "data"), "--val_annotations", "train.json"]
    data += ["--train_annotations", "six_times.json", "--train_images", "train", "--val_images", "train"]
    plain = ["--not_rand_crop", "--shift", "0", "--scale", "0", "--flip", "0", "--no_color_aug"]
    network = ["--arch", "dlav0_34", "--head_conv", "64", "--pretrained", "none", "--num_workers", "0"]
    steps = ["--batch_size", "5", "--lr", "1e-3", "--num_epochs", "8", "--lr_step", "6", "--val_intervals", "0"]
    done = run_here("main", "ctdet", "--device", "cpu", *data, *plain, *network, *steps, *exp, "--exp_id", "ten")
    assert done.returncode == 0, done.stderr
    model = ["--load_model", str(tmp_path / "exp/ctdet/ten/model_last.pth")]
    done = run_here("test", "ctdet", "--device", "cpu", *model, *exp, "--exp_id", "score")
    assert done.returncode == 0, done.stderr
    scores = dict(line.split() for line in done.stdout.splitlines() if line.startswith(("mAP", "AP")))
    assert float(scores["mAP"]) > 0.9 and float(scores["mAP_area"]) > 0.9 and float(scores["AP50"]) > 0.9, scores
