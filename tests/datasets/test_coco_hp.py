"""The dataset of human poses: which images belong to it, its result file and its scores."""

import json
from pathlib import Path

import numpy as np
import pytest
from tests.helpers.conformance import CONFORMANCE, needs_conformance

from centernet.datasets import get_dataset
from centernet.datasets.coco import COCO_MEAN, COCO_STD
from centernet.datasets.coco_hp import COCOHP, score_keypoints
from centernet.errors import UserError
from centernet.evaluation.coco import BOX_SCORES, KEYPOINT_SCORES
from centernet.opts import opts
from centernet.tasks import build_task

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "coco_hp_sample"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not there")


def annotation(number, image_id, box, joints, **more):
    """A person whose first ``joints`` joints lie on the diagonal of its box."""
    x, y, w, h = box
    keypoints = np.zeros((17, 3))
    steps = (np.arange(joints) + 1) / (joints + 1)
    keypoints[:joints] = np.column_stack([x + w * steps, y + h * steps, np.full(joints, 2)])
    entry = {"id": number, "image_id": image_id, "category_id": 1, "bbox": list(box), "area": w * h, "iscrowd": 0}
    return {**entry, "num_keypoints": joints, "keypoints": keypoints.reshape(-1).tolist(), **more}


@pytest.fixture
def tiny(tmp_path):
    """A data path that holds ``coco/``: annotation files of four images, of which two have persons."""
    folder = tmp_path / "coco" / "annotations"
    folder.mkdir(parents=True)
    images = [{"id": i, "file_name": f"{i:012d}.jpg", "height": 300, "width": 300} for i in (9, 2, 5, 7)]
    annotations = [
        annotation(1, 9, (10, 20, 120, 200), 17),
        annotation(2, 5, (30, 40, 100, 180), 0),
        annotation(3, 9, (150, 30, 90, 150), 9),
    ]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}
    for split in ("train", "val"):
        (folder / f"person_keypoints_{split}2017.json").write_text(json.dumps(content))
    return tmp_path


def open_split(data_path, split, *args):
    return COCOHP(
        build_task(opts().parse(["multi_pose", "--dataset", "coco_hp", "--data_path", str(data_path), *args])), split
    )


def perfect(dataset, shift=0.0):
    """Every person found, all joints moved by ``shift`` pixels."""
    results = {}
    for index, image_id in enumerate(dataset.image_ids):
        objects = dataset.read_objects(index)
        boxes, joints = objects["boxes"], objects["joints"][:, :, :2] + shift
        rows = np.hstack([boxes, np.full((len(boxes), 1), 0.9), joints.reshape(-1, 34)]).astype(np.float32)
        results[image_id] = {1: rows}
    return results


def test_what_is_known_without_reading():
    opt = opts().parse(["multi_pose", "--dataset", "coco_hp"])
    assert get_dataset("coco_hp") is COCOHP
    assert (opt.class_names, opt.category_ids, opt.num_classes, opt.max_objs) == (["person"], [1], 1, 32)
    assert (opt.input_h, opt.input_w) == (512, 512)
    np.testing.assert_allclose(opt.mean.reshape(-1), COCO_MEAN)
    np.testing.assert_allclose(opt.std.reshape(-1), COCO_STD)


def test_training_leaves_images_without_persons_out(tiny):
    train, val = open_split(tiny, "train"), open_split(tiny, "val")
    assert train.annotation_file.name == "person_keypoints_train2017.json"
    assert train.image_ids == [9, 5] and val.image_ids == [9, 2, 5, 7]
    assert val.image_folder == tiny / "coco" / "val2017" and val.file_names[0] == "000000000009.jpg"
    objects = train.read_objects(0)
    assert objects["boxes"].tolist() == [[10, 20, 130, 220], [150, 30, 240, 180]]
    assert objects["joints"].shape == (2, 17, 3) and objects["joints"].dtype == np.float32
    assert (objects["joints"][:, :, 2] > 0).sum(1).tolist() == [17, 9]
    assert train.read_objects(1)["joints"][0].sum() == 0


def test_nobody_to_learn_from(tiny):
    path = tiny / "coco" / "annotations" / "person_keypoints_train2017.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))
    with pytest.raises(UserError, match="none of its images has a person"):
        open_split(tiny, "train")
    assert len(open_split(tiny, "val")) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry.pop("keypoints"), "keypoints"),
        (lambda entry: entry.update(keypoints=[1, 2, 3]), "malformed"),
        (lambda entry: entry.update(category_id=2), "category_id 2"),
    ],
)
def test_wrong_annotations(tiny, change, message):
    path = tiny / "coco" / "annotations" / "person_keypoints_val2017.json"
    content = json.loads(path.read_text())
    change(content["annotations"][1])
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as raised:
        open_split(tiny, "val")
    assert str(path) in str(raised.value)


def test_detection_data_are_refused(capsys):
    with pytest.raises(SystemExit):
        opts().parse(["multi_pose", "--dataset", "coco"])
    assert "--dataset coco" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        opts().parse(["ctdet", "--dataset", "coco_hp"])


def test_scores(tiny):
    val = open_split(tiny, "val")
    scores = val.evaluate(perfect(val))
    names = [*KEYPOINT_SCORES, *(f"box_{name}" for name in BOX_SCORES), "AP/person"]
    assert list(scores) == names and list(val.score_names) == names[:-1]
    assert val.describe(val.opt)["main_score"] == "AP"
    # The person without joints is not a miss in the joints' score.
    assert scores["AP"] == scores["AP/person"] == pytest.approx(1) and scores["box_AP"] == pytest.approx(1)
    near, far = val.evaluate(perfect(val, shift=4.0)), val.evaluate(perfect(val, shift=40.0))
    assert 0.2 < near["AP"] < 0.95 and near["AP50"] == pytest.approx(1)
    assert far["AP"] < 0.05 and far["box_AP"] == pytest.approx(1)
    nothing = val.evaluate({image_id: {1: np.zeros((0, 39), np.float32)} for image_id in val.image_ids})
    assert nothing["AP"] == nothing["box_AP"] == 0


def test_left_and_right_count(tiny):
    """A person whose sides are exchanged is hardly a person."""
    path = tiny / "coco" / "annotations" / "person_keypoints_val2017.json"
    content = json.loads(path.read_text())
    entry = content["annotations"][0]
    keypoints = np.random.default_rng(0).uniform(0, 1, (17, 3)) * (120, 200, 0) + (10, 20, 2)
    entry["keypoints"] = keypoints.reshape(-1).tolist()
    path.write_text(json.dumps({**content, "annotations": [entry]}))
    val = open_split(tiny, "val")
    results = perfect(val)
    assert val.evaluate(results)["AP"] == pytest.approx(1)
    order = [0, *(joint for left in range(1, 17, 2) for joint in (left + 1, left))]
    results[9][1][:, 5:] = results[9][1][:, 5:].reshape(-1, 17, 2)[:, order].reshape(-1, 34)
    assert val.evaluate(results)["AP"] < 0.1


def test_missing_fields_of_the_score(tiny):
    path = tiny / "coco" / "annotations" / "person_keypoints_val2017.json"
    content = json.loads(path.read_text())
    del content["annotations"][0]["num_keypoints"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="annotation .* has no num_keypoints"):
        open_split(tiny, "val")


def test_result_file(tiny, tmp_path):
    val = open_split(tiny, "val")
    results = perfect(val)
    before = {image_id: rows[1].copy() for image_id, rows in results.items()}
    val.save_results(results, tmp_path / "results.json")
    entries = json.loads((tmp_path / "results.json").read_text())
    assert len(entries) == 3 and set(entries[0]) == {"image_id", "category_id", "bbox", "score", "keypoints"}
    assert entries[0]["bbox"] == [10, 20, 120, 200] and entries[0]["category_id"] == 1
    assert len(entries[0]["keypoints"]) == 51 and set(entries[0]["keypoints"][2::3]) == {1.0}
    assert entries[0]["keypoints"][:2] == pytest.approx([10 + 120 / 18, 20 + 200 / 18])
    val.rounded_results = True
    val.save_results(results, tmp_path / "rounded.json")
    rounded = json.loads((tmp_path / "rounded.json").read_text())
    assert rounded[0]["keypoints"][:2] == [16.67, 31.11] and rounded[0]["score"] == 0.9
    assert all(np.array_equal(before[image_id], rows[1]) for image_id, rows in results.items())
    scores, summary = score_keypoints(val.filtered_annotations(), entries)
    assert scores == val.evaluate(results)
    assert "keypoints" in summary and "boxes" in summary and summary.count("Average Precision") == 11


@needs_conformance
def test_result_file_of_the_reference(tiny, tmp_path):
    golden = json.loads((CONFORMANCE / "results_format.json").read_text())["coco_hp"]
    results = {
        int(image_id): {int(cls): np.array(rows, dtype=np.float32).reshape(-1, 39) for cls, rows in classes.items()}
        for image_id, classes in golden["input"].items()
    }
    val = open_split(tiny, "val")
    val.rounded_results = True
    val.save_results(results, tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text()) == golden["output"]


@needs_shared
def test_real_images():
    train, val = open_split(SHARED, "train"), open_split(SHARED, "val")
    assert len(train) == len(val) == 4
    assert sum(len(val.read_objects(k)["cls"]) for k in range(4)) == 14
    assert val.read_image(0).shape[2] == 3
    results = perfect(val)
    assert val.evaluate(results)["box_AP"] == pytest.approx(1)
    # A person without joints has no place where it could be found, so a pose there is one too many.
    for index, image_id in enumerate(val.image_ids):
        results[image_id][1] = results[image_id][1][val.read_objects(index)["joints"][:, :, 2].any(1)]
    assert sum(len(rows[1]) for rows in results.values()) == 12
    assert val.evaluate(results)["AP"] == pytest.approx(1)
