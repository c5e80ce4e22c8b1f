"""Detections that are not finite never reach a score or a file."""

import math
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from centernet.datasets import get_dataset
from centernet.datasets.synthetic.shapes import SyntheticShapes
from centernet.detector import Detector
from centernet.engine import evaluate as validation
from centernet.engine.processes import Distributed
from centernet.errors import UserError
from centernet.evaluation.results import check_entries, drop_non_finite, find_results, format_score
from centernet.models import create_model
from centernet.opts import opts
from centernet.tasks import build_task
from centernet.utils import files

NAN = float("nan")


def test_rows_with_nan_or_infinity_are_dropped_and_counted():
    rows = np.float32([[0, 0, 9, 9, 0.5], [NAN, 0, 9, 9, 0.9], [0, 0, math.inf, 9, 0.9], [0, 0, 9, 9, NAN]])
    results = {7: {1: rows, 2: rows[:1], 3: []}, "a": {1: rows[1:].tolist()}}
    kept, dropped = drop_non_finite(results)
    assert dropped == 6 and list(kept) == [7, "a"] and list(kept[7]) == [1, 2, 3]
    np.testing.assert_array_equal(kept[7][1], rows[:1])
    assert len(kept["a"][1]) == len(kept[7][3]) == 0
    assert len(rows) == 4 and drop_non_finite(kept)[1] == 0


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "0.5000"), (0, "0.0000"), (1, "1.0000"), (-1.0, "-"), (NAN, "-"), (-0.5, "-0.5000")]
)
def test_scores_that_do_not_exist_are_dashes(value, text):
    assert format_score(value) == text


def test_entries_are_named():
    good = {"image_id": "a", "category_id": 1, "bbox": [0, 1, 2.5, 3], "score": 0.5}
    check_entries([good, {**good, "image_id": 7.0, "keypoints": [1] * 51, "extreme_points": [0.5] * 8}], joints=False)
    for change, message in (
        ({"bbox": None}, "has no bbox of 4 numbers: None"),
        ({"keypoints": [NAN] * 51}, "has the keypoints"),
        ({"extreme_points": "12345678"}, "has no extreme_points"),
        ({"category_id": None}, "has the category_id None, which is neither"),
        ({"image_id": True}, "has the image_id True"),
    ):
        with pytest.raises(Exception, match=f"file.json: detection number 2 {message}"):
            check_entries([good, {**good, **change}], "file.json")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    options = ["ctdet", "--dataset", "sample", "--data_path", str(folder), "--arch", "res_18", "--head_conv", "8"]
    opt = opts().parse([*options, "--pretrained", "none", "--input_res", "64", "--device", "cpu", "--num_workers", "0"])
    SyntheticShapes.prepare(SyntheticShapes.locate(folder))
    return opt, get_dataset("sample")(build_task(opt), "val")


def broken(opt):
    """A network whose sizes are NaN for one class of pixels and right for none, and whose heatmap is high."""
    torch.manual_seed(0)
    model = create_model(opt.arch, opt.heads, opt.head_conv)
    with torch.no_grad():
        model.wh[-1].bias[0] = NAN
    return model


def test_a_network_of_nan_scores_nothing(data):
    """Every box is NaN: pycocotools would take them for perfect, so the score would be high."""
    opt, dataset = data
    found = Detector(build_task(opt), broken(opt), torch.device("cpu")).run([dataset.read_image(k) for k in range(3)])
    assert [one["dropped"] for one in found] == [100] * 3
    assert all(len(rows) == 0 for one in found for rows in one["results"].values())
    whole = Detector(build_task(opt), create_model(opt.arch, opt.heads, opt.head_conv), torch.device("cpu"))
    assert "dropped" not in whole.run(dataset.read_image(0))


def test_validation_drops_and_reports(data, tmp_path, capsys, monkeypatch):
    opt, dataset = data
    rows = np.float32([[0, 0, 9, 9, 0.9], [NAN, NAN, NAN, NAN, 0.99]])
    results = {image_id: dict.fromkeys(range(1, 4), rows) for image_id in dataset.image_ids}
    monkeypatch.setattr(validation, "predict", lambda *_: ({"loss": 1.0}, results))
    run = SimpleNamespace(path=tmp_path)
    env = Distributed(0, 1, 0, torch.device("cpu"))
    log = validation.evaluate(opt, dataset.task, None, dataset, env, run)
    count = 3 * len(dataset)
    assert f"warning: {count} detection(s) with NaN or infinity were dropped" in capsys.readouterr().out
    assert "NaN" not in (tmp_path / "results.json").read_text()
    assert all(0 <= value <= 1 for name, value in log.items() if name.startswith("AP/") or name == "mAP")
    assert all(np.isfinite(rows).all() for of_image in run.validated[1].values() for rows in of_image.values())


@pytest.mark.parametrize("name", ["sample", "sample_hp", "sample_ex", "sample_ddd"])
def test_no_dataset_writes_or_scores_what_is_not_finite(name, tmp_path):
    """Given such rows by whomever, a dataset scores as if they were not there, and writes none of them."""
    task = {"sample": "ctdet", "sample_hp": "multi_pose", "sample_ex": "exdet", "sample_ddd": "ddd"}[name]
    opt = opts().parse([task, "--dataset", name, "--data_path", str(tmp_path / "data"), "--arch", "res_18"])
    cls = get_dataset(name)
    cls.prepare(cls.locate(tmp_path / "data"), log=lambda _: None)
    dataset = cls(build_task(opt), "val")
    columns = {"sample": 5, "sample_hp": 39, "sample_ex": 13, "sample_ddd": 13}[name]
    rows = np.full((2, columns), 5.0, np.float32)
    rows[:, 4] = 0.5
    rows[1, 2] = NAN
    worse = {image_id: {1: rows} for image_id in dataset.image_ids}
    plain = {image_id: {1: rows[:1]} for image_id in dataset.image_ids}
    path = dataset.save_results(worse, tmp_path / "results.json")
    texts = [file.read_text() for file in ([path] if path.is_file() else path.iterdir())]
    assert not any("nan" in text.lower() for text in texts)
    assert dataset.evaluate(worse) == dataset.evaluate(plain)


def test_json_of_results_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(tmp_path / "a.json", [NAN], allow_nan=False)


def test_the_newest_results_of_a_folder(tmp_path):
    with pytest.raises(UserError, match="holds neither results.json nor results_"):
        find_results(tmp_path)
    for age, name in enumerate(("report_pascal_val.json", "results_pascal_val.json", "results.json")):
        (tmp_path / name).write_text("[]")
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    newest = tmp_path / "results_pascal_val.json"
    assert find_results(tmp_path) == newest
    assert find_results(tmp_path / "results.json") == tmp_path / "results.json"
    (tmp_path / "results.json").unlink()
    assert find_results(tmp_path / "results.json") == newest
    assert find_results(tmp_path / "other.json") == tmp_path / "other.json"
