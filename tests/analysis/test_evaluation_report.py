"""The report of test.py, written by the program with detections that are given instead of a network's."""

import json
import re
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import cv2
import numpy as np
import pytest
from jinja2 import Environment, FileSystemLoader
from tests.helpers.pages import assert_sound
from tests.helpers.training import load_script, run_here

from centernet.analysis import page_plots
from centernet.analysis.evaluation_images import score_curves
from centernet.analysis.pages import TEMPLATES
from centernet.datasets import get_dataset
from centernet.datasets.loader import SkippedImages
from centernet.datasets.synthetic.base import SyntheticDataset
from centernet.detector import TIMES
from centernet.models import create_model, save_model
from centernet.options import model_metadata
from centernet.opts import opts

SIDE = 160
MACROS: Any = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True).get_template("base.html").make_module()


@pytest.fixture
def run_test(tmp_path, monkeypatch):
    """Run test.py; ``detections(dataset)`` takes the place of what its network finds."""

    def run(task: str, arguments: list[str], detections) -> CompletedProcess:
        arguments = [task, *arguments, "--data_path", str(tmp_path), "--arch", "res_18", "--head_conv", "8"]
        model, opt = tmp_path / "run/model_best.pth", opts().parse(arguments)
        save_model(model, 1, create_model("res_18", opt.heads, 8), extra={"model": model_metadata(opt)})
        (tmp_path / "run/results.json").write_text("of the training")

        def detect(detector, dataset, *_):
            return detections(dataset), dict.fromkeys((*TIMES, "dropped"), 0.0), SkippedImages(dataset)

        monkeypatch.setattr(load_script("test"), "detect", detect)
        done = run_here("test", *arguments, "--load_model", str(model), "--device", "cpu")
        assert (tmp_path / "run/results.json").read_text() == "of the training"
        return done

    (tmp_path / "run").mkdir()
    return run


def write_pets(folder: Path) -> None:
    """Write COCO-style data, ``val/``: two images with four cats and two dogs, one of which is large."""
    (folder / "val").mkdir()
    boxes = {"one": [(1, 0, 0, 40, 40), (2, 60, 0, 30, 30), (2, 50, 50, 100, 100)], "two": [(1, 0, 0, 30, 30)]}
    boxes["two"] += [(1, 100, 100, 40, 50), (1, 120, 0, 20, 20)]
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]}
    for k, (name, objects) in enumerate(boxes.items(), start=1):
        cv2.imwrite(str(folder / f"val/{name}.png"), np.full((SIDE, SIDE, 3), 80 * k, np.uint8))
        content["images"].append({"id": k, "file_name": f"{name}.png", "width": SIDE, "height": SIDE})
        for category, *box in objects:
            entry = {"id": len(content["annotations"]) + 1, "image_id": k, "category_id": category, "bbox": box}
            content["annotations"].append({**entry, "area": box[2] * box[3], "iscrowd": 0})
    for split in ("train", "val"):
        (folder / f"{split}.json").write_text(json.dumps(content))


def pets(dataset) -> dict:
    """Detections: three cats and a dog are found, a dog is taken for a cat, a cat misplaced, and a cat is nowhere."""
    cats_of_one = [(0, 0, 40, 38, 0.9), (60, 0, 90, 29, 0.8), (0, 24, 40, 64, 0.75), (0, 120, 30, 150, 0.7)]
    return {
        1: {1: np.array(cats_of_one), 2: np.array([(50, 50, 150, 149, 0.65)])},
        2: {1: np.array([(0, 0, 30, 28, 0.85), (100, 100, 140, 149, 0.6)]), 2: np.zeros((0, 5))},
    }


def test_numbers_by_hand_and_of_pycocotools(run_test, tmp_path):
    write_pets(tmp_path)
    done = run_test("ctdet", ["--dataset", "custom", "--train_images", str(tmp_path / "val")], pets)
    assert done.returncode == 0, done.stderr
    page = tmp_path / "run/report_custom_val.html"
    assert f"report: {page}" in done.stdout
    report = json.loads(page.with_suffix(".json").read_text())
    about = [report[name] for name in ("task", "dataset", "split", "images")]
    assert about == ["ctdet", "custom", "val", 2]
    analysis = report["analysis"]
    for name in ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"):  # of pycocotools, with -1 for None
        value = analysis["scores"][name]
        assert report["scores"][name] == pytest.approx(-1 if value is None else value, abs=1e-9), name
    for entry in analysis["classes"]:
        assert entry["AP"] == pytest.approx(report["scores"][f"AP/{entry['name']}"], abs=1e-9)
    # Of all thresholds 0.6 has the best F1: four of six objects are found by seven detections.
    assert analysis["best"] == {
        "threshold": 0.6,
        "precision": pytest.approx(4 / 7),
        "recall": pytest.approx(4 / 6),
        "f1": pytest.approx(8 / 13),
    }
    assert analysis["confusion"]["labels"] == ["cat", "dog", "background"]
    assert analysis["confusion"]["matrix"] == [[3, 0, 1], [1, 1, 0], [2, 0, 0]]
    count = analysis["errors"]["count"]
    assert count == {"classification": 1, "localization": 1, "both": 0, "duplicate": 0, "background": 1, "missed": 1}
    taken, missed = analysis["worst"]["missed"]
    assert (taken["image"], taken["taken_for"], taken["overlap"]) == ("one.png", "cat", pytest.approx(29 / 30))
    assert (missed["image"], missed["box"], missed["area"]) == ("two.png", [120, 0, 140, 20], 400)
    assert (missed["class"], missed["taken_for"], missed["overlap"]) == ("cat", None, 0)
    alarms = analysis["worst"]["false_alarms"]
    assert [(one["score"], one["error"], one["true_class"]) for one in alarms] == [
        *((0.8, "classification", "dog"), (0.75, "localization", "cat"), (0.7, "background", None))
    ]
    assert alarms[1]["overlap"] == pytest.approx(16 / 64)

    # The page shows the same.
    html = page.read_text()
    assert "<title>Evaluation of run/model_best.pth on custom val</title>" in html
    assert "<h1>Evaluation of run/model_best.pth <small>ctdet on custom val, 2 images</small></h1>" in html
    matrix = html.partition('<table class="matrix')[2].partition("</table>")[0]
    assert re.findall(r">(\d*)</td>", matrix) == ["3", "", "1", "1", "1", "", "2", "", ""]
    cells = re.search(r"<td>localization</td><td>[^<]*</td>(.*)</tr>", html)[1]
    lost = analysis["errors"]["dAP"]["localization"]
    assert re.findall(r"[\d.]+", cells) == ["1", f"{lost:.3f}"] and lost > 0.01
    assert re.findall(r'<figure data-class="\[&#34;(\w+)&#34;\]"(?: data-score="([\d.]+)")?>', html) == [
        *(("dog", ""), ("cat", ""), ("cat", "0.800"), ("cat", "0.750"), ("cat", "0.700"))
    ]
    assert "30 × 30 pixels; found there: cat, IoU 0.97" in html and "classification of dog, IoU 0.97" in html
    assert html.count("data:image/jpeg") == 10


def true_objects(dataset) -> dict:
    """Return the objects of a dataset as detections."""
    results, count = {}, dataset.opt.num_classes
    for k, image_id in enumerate(dataset.image_ids):
        objects = dataset.read_objects(k)
        if dataset.task.name == "ddd":
            (labels,) = dataset.ground_truth([image_id])
            cls, rows = (
                sum((labels.names == name) * c for c, name in enumerate(dataset.class_names, 1)) - 1,
                labels.rows,
            )
            rows[:, 12] = 0.9
        else:
            cls, boxes = objects["cls"], dataset.task.ground_truth_boxes(objects)
            rows = np.zeros((len(cls), dataset.task.row_length))
            rows[:, :5] = np.column_stack([boxes, np.full(len(cls), 0.9)])
            if dataset.task.name == "multi_pose":
                rows[:, 5:] = objects["joints"][:, :, :2].reshape(len(cls), -1)
        results[image_id] = {c + 1: rows[cls == c] for c in range(count)}
    return results


def with_one_moved(dataset) -> dict:
    """Return the objects of a dataset as detections, the first one of its first image in the last image."""
    results = true_objects(dataset)
    first, last = (results[dataset.image_ids[k]] for k in (0, -1))
    cls = next(cls for cls, rows in first.items() if len(rows))
    first[cls], last[cls] = first[cls][1:], np.concatenate([last[cls], first[cls][:1]])
    return results


@pytest.mark.parametrize(
    ("task", "name"), [("ctdet", "sample"), ("multi_pose", "sample_hp"), ("exdet", "sample_ex"), ("ddd", "sample_ddd")]
)
def test_each_task_is_explained(run_test, tmp_path, monkeypatch, task, name):
    """The objects themselves are perfect detections, but one is moved to another image: missed, and a false alarm."""
    cls = get_dataset(name)
    assert issubclass(cls, SyntheticDataset)
    monkeypatch.setattr(cls, "splits", dict(zip(cls.splits, (1, 4), strict=True)))
    done = run_test(task, ["--dataset", name], with_one_moved)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stdout
    report = json.loads((tmp_path / f"run/report_{name}_val.json").read_text())
    analysis = report["analysis"]
    assert analysis["scores"]["AP"] < 1 and analysis["errors"]["count"]["missed"] == 1
    (missed,), (alarm,) = analysis["worst"]["missed"], analysis["worst"]["false_alarms"]
    assert missed["class"] == alarm["class"] and missed["image"] != alarm["image"]
    assert missed["box"] == pytest.approx(alarm["box"], abs=1) and alarm["score"] == pytest.approx(0.9)
    html = (tmp_path / f"run/report_{name}_val.html").read_text()
    assert html.count("data:image/jpeg") == 4
    places = ("Above", "below") if task == "ddd" else ("Left", "right")
    assert html.count('class="stacked"') == (2 if task == "ddd" else 0)
    assert f"<p>{places[0]}: the object; {places[1]}: the detections with a score of at least " in html
    assert f"<p>{places[0]}: the detection; {places[1]}: the ground truth.</p>" in html
    assert ("<h2>Keypoints</h2>" in html) == (task == "multi_pose")
    assert ("<h2>Errors of Car by distance</h2>" in html) == (task == "ddd")
    assert ("joints" in analysis) == (task == "multi_pose") and ("distances" in analysis) == (task == "ddd")
    if task == "multi_pose":
        (persons,) = analysis["joints"]
        assert persons["class"] == "person" and persons["matched"] == persons["persons"] - 1 > 0
        assert persons["OKS"] == pytest.approx(1) and persons["joints"][5]["error"] == pytest.approx(0, abs=1e-3)
    if task == "ddd":
        ranges = [entry for entry in analysis["distances"]["Car"] if entry["matched"]]
        assert ranges and all(entry["depth"] == pytest.approx(0, abs=1e-6) for entry in ranges)
        assert (tmp_path / f"run/results_{name}_val/000005.txt").is_file()


@pytest.mark.parametrize("count", [1, 2, 8, 20])
def test_shown_classes_have_colors_of_their_own(monkeypatch, count):
    monkeypatch.setattr(page_plots, "plotting_library", lambda: ("", ""))
    line = {name: [0.0, 1.0] for name in ("threshold", "precision", "recall", "f1")}
    classes = [
        {"name": f"class {k}", "objects": count - k, "detections": 1, "thresholds": line, "curve": line}
        for k in range(count)
    ]
    curves = score_curves({"classes": classes, "thresholds": line})
    html = MACROS.show(curves)
    swatches = re.findall(r'value="\d+"( checked)?><i style="background:var\(--([\w-]+)\)', html)
    shown = [color for checked, color in swatches if checked]
    assert len(swatches) == (count + 1 if count > 1 else 0)
    assert len(shown) == len({*shown}) == min(len(swatches), 9)
    for panel in curves["data"]["panels"]:
        inks = ["ink" if one["color"] is None else f"curve-{one['color'] % 8}" for one in panel["series"]]
        assert inks == ([color for _, color in swatches] or ["curve-0"])
        assert inks.count("ink") == (count > 1)


@pytest.mark.parametrize(
    ("stacked", "text"),
    [
        ([False, False], "Left: a; right: b."),
        ([True, True], "Above: a; below: b."),
        ([True, False], "Left or above: a; right or below: b."),
    ],
)
def test_captions_say_where_images_are(stacked, text):
    assert MACROS.sides([{"stacked": one} for one in stacked], "a", "b").strip() == text


def test_the_scores_do_not_depend_on_the_report(run_test, tmp_path):
    write_pets(tmp_path)
    path = tmp_path / "run/report_custom_val.html"
    path.mkdir()
    done = run_test("ctdet", ["--dataset", "custom", "--train_images", str(tmp_path / "val")], pets)
    assert done.returncode == 0, done.stderr
    assert "\nmAP 0." in done.stdout
    assert f"warning: no report ({path}: cannot be written (Is a directory))" in done.stdout
    assert json.loads(path.with_suffix(".json").read_text())["images"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("plots", [True, False])
def test_the_page_in_a_browser(run_test, tmp_path, monkeypatch, browser, plots):
    ready = "true"
    if plots:
        pytest.importorskip("plotly")
        ready = "document.documentElement.dataset.curves === 'drawn'"
    else:
        monkeypatch.setattr(page_plots, "plotting_library", lambda: None)
    write_pets(tmp_path)
    done = run_test("ctdet", ["--dataset", "custom", "--train_images", str(tmp_path / "val")], pets)
    assert done.returncode == 0, done.stderr
    assert_sound(browser, tmp_path / "run/report_custom_val.html", ready)
    assert browser.run("document.querySelectorAll('.plot .trace').length") == (11 if plots else 0)
    assert (
        browser.run("document.querySelectorAll('.plots').length + document.querySelectorAll('img.curves').length") == 1
    )
