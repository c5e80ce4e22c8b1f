"""vis_pred.py: results next to the ground truth, saved if there is no display."""

import importlib.util
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def vis_pred(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "src/tools"))  # where a script finds its neighbors
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    specification = importlib.util.spec_from_file_location("vis_pred", ROOT / "src/tools/vis_pred.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    yield module
    sys.modules.pop("eval_coco", None)


@pytest.fixture
def files(tmp_path):
    """Two images, one object, and results of which one has a score below the threshold."""
    (tmp_path / "val2017").mkdir()
    (tmp_path / "annotations").mkdir()
    for i in (1, 2):
        assert cv2.imwrite(str(tmp_path / f"val2017/{i}.png"), np.full((60, 80, 3), 50, np.uint8))
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 80, "height": 60} for i in (1, 2)],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 4, "bbox": [10, 20, 30, 30], "area": 900}],
        "categories": [{"id": 4, "name": "fox"}],
    }
    (tmp_path / "annotations/val.json").write_text(json.dumps(content))
    for name, score in (("good", 0.9), ("bad", 0.1)):
        row = {"image_id": 1, "category_id": 4, "bbox": [12, 22, 30, 30], "score": score}
        (tmp_path / f"{name}.json").write_text(json.dumps([row]))
    return tmp_path / "annotations/val.json", tmp_path / "good.json", tmp_path / "bad.json"


def test_images_are_saved(vis_pred, files, tmp_path, capsys):
    annotations, good, bad = (str(path) for path in files)
    output = tmp_path / "out"
    assert vis_pred.main([good, bad, "--annotations", annotations, "--output_dir", str(output)]) == 0
    assert capsys.readouterr() == (f"{output}: drawings of 2 images\n", "")
    names = {f"{i}_{kind}.png" for i in (1, 2) for kind in ("gt", "pred0", "pred1")}
    assert {path.name for path in output.iterdir()} == names
    drawn = {name: bool((cv2.imread(str(output / name)) != 50).any()) for name in names}
    assert [name for name in sorted(names) if drawn[name]] == ["1_gt.png", "1_pred0.png"]


def test_results_of_a_voc_test(vis_pred, files, tmp_path, capsys):
    """[class][image], after the background."""
    (tmp_path / "val2017").rename(tmp_path / "images")
    results = tmp_path / "voc.json"
    output = tmp_path / "out"
    arguments = [str(results), "--annotations", str(files[0]), "--output_dir", str(output)]
    results.write_text(json.dumps([[[], []], [[], [[12, 22, 42, 52, 0.9]]]]))
    assert vis_pred.main(arguments) == 0
    drawn = [path.name for path in sorted(output.iterdir()) if (cv2.imread(str(path)) != 50).any()]
    assert drawn == ["1_gt.png", "2_pred0.png"]
    for content in ([[[], []]], [[[], []], [[]]], [[[], []], [[], [[1, 2]]]], [[], 3]):
        results.write_text(json.dumps(content))
        assert vis_pred.main(arguments) == 2
        message = "not the results of a VOC test for --annotations (classes: 1, images: 2)\n"
        assert capsys.readouterr().err == f"error: {results}: {message}"


def test_without_a_display(vis_pred, files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    annotations, good, bad = (str(path) for path in files)
    assert vis_pred.main([bad, "--annotations", annotations, "--count", "1", "--threshold", "0.05"]) == 0
    assert capsys.readouterr() == ("vis_pred: drawings of 1 images\n", "no display: images go to vis_pred\n")
    assert sorted(path.name for path in (tmp_path / "vis_pred").iterdir()) == ["1_gt.png", "1_pred0.png"]
    assert (cv2.imread(str(tmp_path / "vis_pred/1_pred0.png")) != 50).any()


def test_errors_are_one_line(vis_pred, files, tmp_path, capsys):
    annotations, good, _ = (str(path) for path in files)
    text, short = tmp_path / "text.json", tmp_path / "short.json"
    text.write_text("hello")
    short.write_text(json.dumps([{"image_id": 1, "category_id": 4, "bbox": [1], "score": 1}]))
    for arguments, message in (
        ((str(tmp_path / "no.json"), "--annotations", annotations), "no.json: no such file"),
        ((str(text), "--annotations", annotations), "not valid JSON"),
        ((str(short), "--annotations", annotations), "has no bbox of 4 numbers"),
        ((good, "--annotations", good), "not a COCO-style annotation file"),
        ((good, "--annotations", annotations, "--images", str(tmp_path)), "no such file"),
        ((good, "--annotations", annotations, "--output_dir", good), "cannot be written"),
    ):
        assert vis_pred.main(list(arguments)) == 2
        errors = capsys.readouterr().err
        assert message in errors and errors.startswith("error: ") and errors.count("\n") == 1, errors
