"""eval_coco_hp.py as a command: both tables of scores, and one line for an error."""

import contextlib
import importlib
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.helpers.keypoints import write_coco

from centernet.datasets.custom import Custom
from centernet.opts import opts
from centernet.tasks import build_task

REPOSITORY = Path(__file__).resolve().parents[2]


def run(folder, *argv):
    """Run the tool in this process, which saves its start, from a working directory."""
    output, errors = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        patch.syspath_prepend(REPOSITORY / "src" / "tools")
        patch.chdir(folder)
        status = importlib.import_module("eval_coco_hp").main([str(argument) for argument in argv])
    return subprocess.CompletedProcess(argv, status, output.getvalue(), errors.getvalue())


@pytest.fixture
def files(tmp_path):
    """An annotation file of one person, and a result file that has the person and another one."""
    keypoints = np.random.default_rng(0).uniform(10, 100, (17, 3))
    keypoints[:, 2] = 2
    person = {"image_id": 4, "category_id": 1, "bbox": [5, 5, 100, 110], "keypoints": keypoints.reshape(-1).tolist()}
    content = {
        "images": [{"id": 4, "file_name": "4.jpg", "height": 128, "width": 128}],
        "annotations": [{**person, "id": 1, "area": 11000, "iscrowd": 0, "num_keypoints": 17}],
        "categories": [{"id": 1, "name": "person"}],
    }
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    other = {**person, "bbox": [80, 80, 20, 20], "keypoints": [100.0, 20.0, 1.0] * 17}
    (tmp_path / "results.json").write_text(json.dumps([{**person, "score": 0.9}, {**other, "score": 0.95}]))
    return tmp_path


def test_scores(files):
    for argument in ("results.json", files):
        result = run(files, argument, "--annotations", "annotations.json")
        assert result.returncode == 0, result.stderr
        joints, boxes = result.stdout.split("boxes")
        for table in (joints, boxes):
            assert "IoU=0.50:0.95 | area=   all" in table and " = 0.50" in table.splitlines()[1]
        assert joints.startswith("keypoints") and "maxDets= 20" in joints and "maxDets=100" in boxes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nonsense", "not valid JSON"),
        ('[{"image_id": 4}]', "not a list of detections"),
        ('[{"image_id": 4, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 1}]', "lacks 'keypoints'"),
        (
            json.dumps([{"image_id": 5, "category_id": 1, "bbox": [1] * 4, "score": 1, "keypoints": [1] * 51}]),
            "image 5",
        ),
    ],
)
def test_wrong_results(files, content, message):
    (files / "results.json").write_text(content)
    result = run(files, "results.json", "--annotations", "annotations.json")
    assert result.returncode == 2 and result.stdout == ""
    assert message in result.stderr and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_id": "4"}, None),
        ({"image_id": 5}, "annotations.json: no object is left to score against in 1 images"),
        ({"bbox": [100, 110, -95, -105]}, "annotations.json: annotation 1 of '4.jpg' has the bbox"),
        ({"area": "big"}, "annotations.json: annotation 1 of '4.jpg' has the area 'big'"),
    ],
)
def test_annotations_are_checked_as_in_training(files, changes, message):
    before = run(files, "results.json", "--annotations", "annotations.json").stdout
    content = json.loads((files / "annotations.json").read_text())
    content["annotations"][0].update(changes)
    (files / "annotations.json").write_text(json.dumps(content))
    result = run(files, "results.json", "--annotations", "annotations.json")
    if message is None:
        assert result.returncode == 0 and result.stdout == before
    else:
        assert result.returncode == 2 and message in result.stderr and result.stderr.count("\n") == 1


def test_missing_files(files):
    result = run(files, "nothing.json", "--annotations", "annotations.json")
    assert result.returncode == 2 and "nothing.json" in result.stderr
    result = run(files, "results.json", "--annotations", "nothing.json")
    assert result.returncode == 2 and "nothing.json" in result.stderr


def test_as_a_command(files):
    command = [sys.executable, str(REPOSITORY / "src" / "tools" / "eval_coco_hp.py"), "--help"]
    result = subprocess.run(command, cwd=files, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    text = result.stdout.replace("\n", "").replace(" ", "")
    assert "data/coco/annotations/person_keypoints_val2017.json" in text


def test_other_objects_than_persons(tmp_path):
    """Categories with joints of their own, scored as in the validation of a training."""
    write_coco(tmp_path, {"train": 2, "val": 6})
    task = build_task(
        opts().parse(["multi_pose", "--dataset", "custom", "--data_path", str(tmp_path), "--arch", "res_18"])
    )
    dataset = Custom(task, "val")
    rng, results = np.random.default_rng(2), {}
    for index, image_id in enumerate(dataset.image_ids):
        objects = dataset.read_objects(index)
        points = (objects["joints"][:, :, :2] + rng.normal(0, 2, (len(objects["cls"]), 8, 2))).reshape(-1, 16)
        rows = np.hstack([objects["boxes"], rng.random((len(points), 1)), points])
        results[image_id] = {k + 1: rows[objects["cls"] == k] for k in range(2)}
    dataset.save_results(results, tmp_path / "results.json")
    scores = dataset.evaluate(results)
    assert 0.1 < scores["AP"] < 0.99
    result = run(tmp_path, "results.json", "--annotations", "val.json")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == dataset.tables.strip()
    entries = json.loads((tmp_path / "results.json").read_text())
    entries[0]["keypoints"] = [1] * 9
    (tmp_path / "results.json").write_text(json.dumps(entries))
    result = run(tmp_path, "results.json", "--annotations", "val.json")
    assert result.returncode == 2 and "lacks 'keypoints'" in result.stderr and result.stderr.count("\n") == 1
