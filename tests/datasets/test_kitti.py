"""KITTI dataset: file locations, calibration, result files and scores."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.helpers.conformance import CONFORMANCE

from centernet.datasets.kitti import KITTI
from centernet.datasets.synthetic.streets import SyntheticStreets, draw_image
from centernet.errors import UserError
from centernet.evaluation.kitti_text import CLASS_NAMES
from centernet.options import apply_model_metadata, model_metadata
from centernet.opts import opts
from centernet.tasks import build_task

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "ddd.json").read_text())["results"]
GENUINE = CONFORMANCE.parent / "data" / "kitti_sample"
SETS = {"3dop": {"train": [1, 2, 3], "val": [4, 5]}, "subcnn": {"train": [2, 4, 5], "val": [1, 3]}}


@pytest.fixture
def kitti_folder(tmp_path):
    """A data path with ``kitti/`` as it is when it has been unpacked: five drawn scenes and their text files."""
    root = tmp_path / "data" / "kitti"
    for name in ("image_2", "label_2", "calib"):
        (root / "training" / name).mkdir(parents=True)
    for k in range(1, 6):
        _, calib, objects = draw_image(np.random.default_rng((SyntheticStreets.seed, k)))
        (root / "training" / "image_2" / f"{k:06d}.png").write_bytes(b"")
        camera = " ".join(f"{value:.6e}" for value in calib.ravel())
        text = "".join(f"P{i}: {camera if i == 2 else ' '.join(['1'] * 12)}\n" for i in range(4))
        (root / "training" / "calib" / f"{k:06d}.txt").write_text(text + "R0_rect: 1 0 0 0 1 0 0 0 1\n")
        lines = []
        for entry in objects:
            x, y, w, h = entry["bbox"]
            numbers = [entry["alpha"], x, y, x + w, y + h, *entry["dim"], *entry["location"], entry["rotation_y"]]
            name = CLASS_NAMES[entry["category_id"] - 1]
            text = " ".join(f"{value:.2f}" for value in numbers)
            lines.append(f"{name} {entry['truncated']:.2f} {entry['occluded']} {text}\n")
        (root / "training" / "label_2" / f"{k:06d}.txt").write_text("".join(lines))
    for split, parts in SETS.items():
        (root / f"ImageSets_{split}").mkdir()
        for part, numbers in {**parts, "trainval": [1, 2, 3, 4, 5]}.items():
            text = "".join(f"{k:06d}\n" for k in numbers)
            (root / f"ImageSets_{split}" / f"{part}.txt").write_text(text)
    return root.parent


def dataset(data_path, split, *args, cls=KITTI):
    return cls(build_task(opts().parse(["ddd", "--dataset", "kitti", "--data_path", str(data_path), *args])), split)


def prepared(data_path):
    KITTI.prepare(KITTI.locate(data_path), log=lambda line: None)


def test_description():
    opt = opts().parse(["ddd"])
    assert opt.dataset == "kitti" and opt.class_names == ["Pedestrian", "Car", "Cyclist"]
    assert (opt.input_h, opt.input_w, opt.output_h, opt.output_w, opt.max_objs) == (384, 1280, 96, 320, 50)
    np.testing.assert_allclose(opt.mean.ravel(), [0.485, 0.456, 0.406])
    assert opt.main_score == "AP3D" and opt.kitti_split == "3dop"
    with pytest.raises(SystemExit):
        opts().parse(["ctdet", "--dataset", "kitti"])


def test_a_checkpoint_is_tested_on_the_split_that_it_was_trained_on():
    metadata = model_metadata(opts().parse(["ddd", "--kitti_split", "subcnn"]))
    plain = ["ddd", "--load_model", "x.pth"]
    assert apply_model_metadata(opts().parse(plain), metadata).kitti_split == "subcnn"
    assert apply_model_metadata(opts().parse([*plain, "--kitti_split", "3dop"]), metadata).kitti_split == "3dop"


@pytest.mark.parametrize("split", ["3dop", "subcnn"])
def test_converted_on_first_use(kitti_folder, split):
    lines = []
    folder = KITTI.locate(kitti_folder)
    assert folder == kitti_folder / "kitti" == KITTI.locate(folder)
    KITTI.prepare(folder, log=lines.append)
    assert lines
    for part, numbers in SETS[split].items():
        images = dataset(kitti_folder, part, "--kitti_split", split)
        assert images.annotation_file.name == f"kitti_{split}_{part}.json"
        assert images.image_ids == numbers
        assert images.file_names == [f"{k:06d}.png" for k in numbers]
        assert images.image_folder == folder / "images" / "trainval"
        assert all((images.image_folder / name).is_file() for name in images.file_names)
        for index, k in enumerate(numbers):
            _, calib, objects = draw_image(np.random.default_rng((SyntheticStreets.seed, k)))
            arrays = images.read_objects(index)
            np.testing.assert_allclose(arrays["calib"], calib, rtol=1e-5)
            assert np.array_equal(images.picture_info(index)["calib"], arrays["calib"])
            codes = {1: 0, 2: 1, 3: 2, 4: -3, 9: -1}
            assert arrays["cls"].tolist() == [codes[entry["category_id"]] for entry in objects]
            np.testing.assert_allclose(arrays["dep"][:, 0], [entry["depth"] for entry in objects], atol=0.006)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")}
    again = []
    KITTI.prepare(folder, log=again.append)
    assert not again and {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")} == before


def test_a_split_of_your_own(kitti_folder):
    """``ImageSets_NAME`` next to those of KITTI, also when it comes after the first conversion."""
    prepared(kitti_folder)
    with pytest.raises(
        UserError, match=r"--kitti_split mine: there is neither .*kitti_mine_train\.json nor .*_mine/tr"
    ):
        dataset(kitti_folder, "train", "--kitti_split", "mine")
    lists = kitti_folder / "kitti/ImageSets_mine"
    lists.mkdir()
    for part, numbers in (("train", [5, 1]), ("val", [2])):
        (lists / f"{part}.txt").write_text("".join(f"{k:06d}\n" for k in numbers))
    prepared(kitti_folder)
    assert dataset(kitti_folder, "train", "--kitti_split", "mine").image_ids == [5, 1]
    assert dataset(kitti_folder, "val", "--kitti_split", "mine").image_ids == [2]
    for name in ("../mine", "a/b", "", "x" * 300):
        with pytest.raises((UserError, SystemExit)):
            dataset(kitti_folder, "train", "--kitti_split", name)


def test_trainval(kitti_folder):
    prepared(kitti_folder)
    images = dataset(kitti_folder, "train", "--trainval")
    assert images.annotation_file.name == "kitti_trainval.json" and images.image_ids == [1, 2, 3, 4, 5]
    with pytest.raises(UserError, match="kitti_test.json: no such annotation file"):
        dataset(kitti_folder, "test", "--trainval")


def test_images_where_kitti_has_them(kitti_folder):
    prepared(kitti_folder)
    (kitti_folder / "kitti" / "images" / "trainval").unlink()
    assert dataset(kitti_folder, "val").image_folder == kitti_folder / "kitti" / "training" / "image_2"


def test_folders_without_data(tmp_path):
    with pytest.raises(UserError, match="--data_path"):
        KITTI.locate(tmp_path)
    (tmp_path / "kitti" / "annotations").mkdir(parents=True)
    with pytest.raises(UserError, match="training/label_2; see docs/DATA.md"):
        KITTI.prepare(KITTI.locate(tmp_path))


@pytest.mark.parametrize("calib", [None, [[1, 2, 3, 4]], [[1, 2, 3, "x"]] * 3, [[1, 2, 3, float("nan")]] * 3])
def test_cameras_that_cannot_be_used(kitti_folder, calib):
    prepared(kitti_folder)
    path = kitti_folder / "kitti" / "annotations" / "kitti_3dop_val.json"
    content = json.loads(path.read_text())
    content["images"][1]["calib"] = calib
    if calib is None:
        del content["images"][1]["calib"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="kitti_3dop_val.json: the image 5 has no 'calib' of 3 x 4 numbers"):
        dataset(kitti_folder, "val")


def test_the_usual_camera(kitti_folder):
    """The one of most images, whichever comes first."""
    prepared(kitti_folder)
    path = kitti_folder / "kitti/annotations/kitti_3dop_train.json"
    content = json.loads(path.read_text())
    rare, usual = ([[f, 0, 60, 1], [0, f, 40, 2], [0, 0, 1, 0.5]] for f in (700.0, 710.0))
    for image, calib in zip(content["images"], (rare, usual, usual), strict=True):
        image["calib"] = calib
    path.write_text(json.dumps(content))
    assert dataset(kitti_folder, "train").default_image_info() == {"calib": usual}


def test_annotations_that_lack_something(kitti_folder):
    prepared(kitti_folder)
    path = kitti_folder / "kitti" / "annotations" / "kitti_3dop_val.json"
    content = json.loads(path.read_text())
    del content["annotations"][0]["depth"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="kitti_3dop_val.json: .*no 'depth'"):
        dataset(kitti_folder, "val")


def test_result_files(kitti_folder, tmp_path):
    """The text of the reference, one file an image, and nothing of an earlier test."""
    prepared(kitti_folder)
    images = dataset(kitti_folder, "val")
    results = {
        int(image_id): {int(cls): np.float32(rows).reshape(-1, 13) for cls, rows in by_class.items()}
        for image_id, by_class in GOLDEN["detections"].items()
    }
    folder = tmp_path / "run" / "results"
    folder.mkdir(parents=True)
    (folder / "000099.txt").write_text("old")
    (folder / "notes.txt").write_text("mine")
    images.save_results(results, tmp_path / "run" / "results.json")
    texts = {path.name: path.read_text() for path in folder.iterdir() if path.name != "notes.txt"}
    assert texts == GOLDEN["files"]
    assert (folder / "notes.txt").is_file()


def perfect(images):
    """Detections equal to the label files of the dataset's images, with scores that differ."""
    results, score = {}, 1.0
    for image_id, labels in zip(images.image_ids, images.ground_truth(images.image_ids), strict=True):
        rows = labels.rows
        rows[:, 12] = score + np.arange(len(rows))
        score += len(rows)
        results[image_id] = {
            cls + 1: rows[labels.names == name].astype(np.float32) for cls, name in enumerate(images.class_names)
        }
    return results


def reachable(images, name):
    """The AP over 11 recalls that detections equal to the objects get: with few objects KITTI's rules give less."""
    labels = images.ground_truth(images.image_ids)
    count = sum(
        int(np.sum((one.names == name) & (one.occluded <= 1) & (one.truncated <= 0.3) & _high(one))) for one in labels
    )
    return len(range(0, min(count, 41), 4)) / 11


def _high(labels):
    return labels.bbox[:, 3] - labels.bbox[:, 1] >= 25


def test_scores(kitti_folder):
    prepared(kitti_folder)
    images = dataset(kitti_folder, "train", "--trainval")
    scores = images.evaluate(perfect(images))
    assert list(scores)[:4] == ["AP3D", "APBEV", "AP2D", "AOS"]
    expected = reachable(images, "Car")
    assert expected > 0.05
    for name in ("AP3D", "APBEV", "AP2D", "AOS"):
        assert scores[name] == pytest.approx(expected) == scores[f"{name}/Car_moderate"]
    assert scores["AP3D/Pedestrian_moderate"] == pytest.approx(reachable(images, "Pedestrian"))
    # Only the images that were tested count.
    few = dict(list(perfect(images).items())[:1])
    assert images.evaluate(few)["AP2D/Car_easy"] <= scores["AP2D/Car_easy"]
    images.split = "test"
    assert images.evaluate(few) == {}


def test_scores_without_label_files(kitti_folder):
    """The annotation file has the same objects."""
    prepared(kitti_folder)
    images = dataset(kitti_folder, "train", "--trainval")
    results = perfect(images)
    scores = images.evaluate(results)
    shutil.rmtree(kitti_folder / "kitti" / "training" / "label_2")
    assert images.evaluate(results) == scores
    content = json.loads(images.annotation_file.read_text())
    for entry in content["annotations"]:
        entry.pop("location")
    images.annotation_file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="lacks 'location'"):
        images.evaluate(results)


@pytest.mark.skipif(not GENUINE.is_dir(), reason="../shared/data is not there")
def test_genuine_frames(tmp_path):
    root = tmp_path / "kitti"
    root.mkdir()
    for name in ("training", "testing", "ImageSets_3dop", "ImageSets_subcnn"):
        shutil.copytree(GENUINE / name, root / name, symlinks=True)
    prepared(tmp_path)
    counts = {}
    for split in ("3dop", "subcnn"):
        for part in ("train", "val"):
            images = dataset(tmp_path, part, "--kitti_split", split)
            counts[split, part] = (len(images), len(images.objects["cls"]))
    assert counts == {("3dop", "train"): (6, 37), ("3dop", "val"): (7, 44), ("subcnn", "train"): (7, 46)} | {
        ("subcnn", "val"): (6, 35)
    }
    images = dataset(tmp_path, "val")
    assert images.read_image(0).shape == (375, 1242, 3)
    assert images.evaluate(perfect(images))["AP3D"] == pytest.approx(reachable(images, "Car"))
    test = dataset(tmp_path, "test", "--trainval")
    assert test.image_ids == [6] and test.read_image(0).shape == (374, 1238, 3)
