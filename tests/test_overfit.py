"""Training and testing together: learned objects are detected, in real images and in the generated sample."""

import json
import re
from pathlib import Path

import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tests.helpers.training import ROOT, output_of, score

SHARED = ROOT.parent / "shared" / "data"
IMAGES, REPEATS = 16, 20  # each image is listed so often that an epoch has 40 iterations of 8
FILES = {
    "voc128": ("annotations/pascal_trainval0712.json", "images"),
    "coco128": ("annotations/instances_train2017.json", "train2017"),
}
needs_shared = pytest.mark.skipif(not (SHARED / "voc128").is_dir(), reason="../shared/data is not there")


def first_images(path: Path, repeats: int) -> dict:
    """The annotations of the sixteen images with the smallest ids, each ``repeats`` times."""
    content = json.loads(path.read_text())
    images = sorted(content["images"], key=lambda image: image["id"])[:IMAGES]
    kept = {"images": [], "annotations": [], "categories": content["categories"]}
    for k in range(repeats):
        for image in images:
            new_id = image["id"] + k * 10_000_000
            kept["images"].append({**image, "id": new_id})
            for annotation in content["annotations"]:
                if annotation["image_id"] == image["id"]:
                    number = len(kept["annotations"]) + 1
                    kept["annotations"].append({**annotation, "image_id": new_id, "id": number})
    return kept


def coco_ap50(annotations: Path, results: Path) -> float:
    """AP at overlap 0.5 as pycocotools itself gives it from the two files."""
    truth = COCO(str(annotations))
    evaluation = COCOeval(truth, truth.loadRes(str(results)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[1]


def voc_map(annotations: Path, results: Path) -> float:
    """Mean AP by the rules of VOC 2007, written down once more without the package: object by object."""
    content, found = json.loads(annotations.read_text()), json.loads(results.read_text())
    aps = []
    for category in content["categories"]:
        objects: dict = {}
        for a in content["annotations"]:
            if a["category_id"] == category["id"]:
                x, y, w, h = a["bbox"]
                box = (x + 1, y + 1, x + w, y + h)
                objects.setdefault(a["image_id"], []).append([box, a.get("ignore", 0), False])
        count = sum(not difficult for entries in objects.values() for _, difficult, _ in entries)
        if count == 0:
            continue
        rows = [r for r in found if r["category_id"] == category["id"]]
        curve, right, wrong = [], 0, 0
        for row in sorted(rows, key=lambda r: -float(f"{r['score']:.3f}")):
            x, y, w, h = row["bbox"]
            box = [float(f"{value + 1:.1f}") for value in (x, y, x + w, y + h)]
            overlaps = [(overlap(box, entry[0]), entry) for entry in objects.get(row["image_id"], [])]
            best, entry = max(overlaps, key=lambda pair: pair[0], default=(0, None))
            if best > 0.5 and entry[1]:
                pass
            elif best > 0.5 and not entry[2]:
                entry[2] = True
                right += 1
            else:
                wrong += 1
            if right + wrong:
                curve.append((right / count, right / (right + wrong)))
        aps.append(sum(max((p for r, p in curve if r >= k / 10 - 1e-9), default=0) for k in range(11)) / 11)
    return sum(aps) / len(aps)


def overlap(a, b) -> float:
    w = min(a[2], b[2]) - max(a[0], b[0]) + 1
    h = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if w <= 0 or h <= 0:
        return 0.0
    area = sum((box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b))
    return w * h / (area - w * h)


def train(tmp_path: Path, name: str, epochs: int, *augmentation: str) -> list[str]:
    """Train on the sixteen images, 40 steps of 8 an epoch; gives the arguments with which test.py scores them."""
    annotations, images = FILES[name]
    for split, repeats in (("train", REPEATS), ("val", 1)):
        content = first_images(SHARED / name / annotations, repeats)
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    folder, exp = str(SHARED / name / images), str(tmp_path / "exp")
    data = ["--dataset", "custom", "--data_path", str(tmp_path), "--exp_dir", exp]
    data += ["--train_images", folder, "--val_images", folder]
    size = ["--arch", "res_18", "--input_res", "192", "--pretrained", "none", "--num_workers", "1"]
    steps = ["--batch_size", "8", "--lr", "5e-4", "--num_epochs", str(epochs), "--lr_step", "1000"]
    every = ["--val_intervals", str(epochs), "--exp_id", "overfit"]
    output = output_of(
        "main", "ctdet", *data, *size, *steps, *every, "--not_rand_crop", "--no_color_aug", *augmentation
    )
    print(re.search(r"final loss.*", output)[0])
    return ["--load_model", str(tmp_path / "exp/ctdet/overfit/model_last.pth"), "--exp_dir", exp]


@pytest.mark.soak
@needs_shared
@pytest.mark.parametrize("name", ["voc128", "coco128"])
def test_sixteen_images_are_overfit(tmp_path, name):
    """600 steps of 8 at 5e-4 at 192 pixels without augmentation give a mAP above 0.9, however it is computed."""
    model = train(tmp_path, name, 15, "--shift", "0", "--scale", "0", "--flip", "0")
    output = output_of("test", "ctdet", *model, "--exp_id", "once")
    results = tmp_path / "exp/ctdet/once/results_custom_val.json"
    print(f"{name}: mAP {score(output, 'mAP')}, AP50 {score(output, 'AP50')}")
    assert score(output, "mAP") > 0.9
    assert score(output, "AP50") > 0.9
    assert coco_ap50(tmp_path / "val.json", results) == pytest.approx(score(output, "AP50"), abs=1e-4)
    assert voc_map(tmp_path / "val.json", results) == pytest.approx(score(output, "mAP"), abs=1e-4)
    scaled = output_of("test", "ctdet", *model, "--exp_id", "scaled", "--test_scales", "0.75,1,1.25")
    assert score(scaled, "mAP") > score(output, "mAP") - 0.02


@pytest.mark.soak
def test_flips_and_scales_do_no_harm(tmp_path):
    """A network that was trained with flipped images in several sizes finds as much with flips and scales, or more.

    (One that has learned sixteen images overfit has never seen their mirror images: there a flip test halves mAP.)
    """
    recipe = ["--arch", "dlav0_34", "--head_conv", "64", "--batch_size", "16", "--lr", "1e-3", "--num_epochs", "16"]
    augmentation = ["--lr_step", "13", "--not_rand_crop", "--shift", "0.05", "--scale", "0.2", "--num_workers", "1"]
    exp = ["--exp_dir", str(tmp_path)]
    steps = ["--val_intervals", "0", "--exp_id", "sample"]
    output_of("main", "ctdet", "--dataset", "sample", *recipe, *augmentation, *exp, *steps)
    model = ["--load_model", str(tmp_path / "ctdet/sample/model_last.pth"), *exp]
    once = score(output_of("test", "ctdet", *model, "--exp_id", "once"), "mAP")
    print(f"mAP {once}")
    assert once > 0.7
    for arguments in (
        ["--flip_test"],
        ["--test_scales", "0.75,1,1.25"],
        ["--flip_test", "--test_scales", "0.75,1,1.25"],
    ):
        value = score(output_of("test", "ctdet", *model, "--exp_id", "more", "--keep_res", *arguments), "mAP")
        print(f"{' '.join(arguments)}: mAP {value}")
        assert value > once - 0.02, arguments
