"""reval.py: scores of existing VOC results, from XML files or JSON."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
from tests.helpers.voc import annotation_xml, make_devkit

from centernet.conversion.voc_devkit import convert_image_set
from centernet.datasets.pascal import PascalVOC

ROOT = Path(__file__).resolve().parents[2]
CONFORMANCE = ROOT.parent / "shared" / "conformance" / "voc_eval.json"

specification = importlib.util.spec_from_file_location("reval", ROOT / "src/tools/reval.py")
reval = importlib.util.module_from_spec(specification)
specification.loader.exec_module(reval)

# Image to objects: name, corners from 1, difficult.
OBJECTS = {"000003": [("dog", 2, 3, 11, 8, 0), ("cat", 1, 1, 4, 4, 0)], "000010": [("dog", 5, 5, 14, 10, 1)]}
DOG = [[[1, 2, 10, 7, 0.9], [1, 2, 10, 8, 0.8], [11, 0, 15, 3, 0.5]], [[4, 4, 13, 9, 0.7]]]
COLUMNS = ("name", "xmin", "ymin", "xmax", "ymax", "difficult")


def write_results(path: Path, of_class: dict[str, list], images: int) -> Path:
    none = [[] for _ in range(images)]
    path.write_text(json.dumps([none, *(of_class.get(name, none) for name in PascalVOC.class_names)]))
    return path


@pytest.fixture
def small(tmp_path):
    """A devkit with the test set of 2007, the same as JSON, and results: a duplicate dog, and a third box."""
    devkit = make_devkit(tmp_path / "VOCdevkit", {("2007", "test"): OBJECTS, ("2012", "val"): OBJECTS})
    annotations = tmp_path / "test.json"
    annotations.write_text(json.dumps(convert_image_set(devkit, "2007", "test", PascalVOC.class_names)))
    return write_results(tmp_path / "results.json", {"dog": DOG}, 2), devkit, annotations


def run(capsys, *arguments) -> tuple[int, str, str]:
    status = reval.main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


def numbers(output: str) -> dict[str, float]:
    found = re.findall(r"^(?:AP for )?(\w+)(?: AP)? = (\S+)$", output, re.MULTILINE)
    return {name: float(value) for name, value in found}


def test_devkit_and_json_agree(capsys, small):
    results, devkit, annotations = small
    status, output, errors = run(capsys, results, "--devkit", devkit)
    assert (status, errors) == (0, "")
    assert output.startswith("VOC2007 metric, eleven points; 2 images of ")
    scores = numbers(output)
    assert len(scores) == 21 and scores["dog"] == 1 and scores["cat"] == 0
    assert scores["Mean"] == pytest.approx(1 / 20, abs=1e-4)
    _, from_json, _ = run(capsys, results.parent, "--annotations", annotations)  # the folder will do
    assert numbers(from_json) == scores


def test_the_metric_follows_from_the_year(capsys, tmp_path, small):
    _, devkit, annotations = small
    # The one dog is found second: precision 1/2 at all recalls; a cat of lower rank in another image is wrong.
    results = write_results(tmp_path / "results.json", {"dog": [[DOG[0][2][:4] + [0.95], DOG[0][0]], []]}, 2)
    for arguments, line in (
        (("--devkit", devkit), "VOC2007 metric, eleven points"),
        (("--devkit", devkit, "--area"), "VOC2007 metric, area"),
        (("--devkit", devkit, "--imdb", "voc_2012_val"), "VOC2012 metric, area"),
    ):
        status, output, _ = run(capsys, results, *arguments)
        assert status == 0 and output.startswith(line)
        assert numbers(output)["dog"] == 0.5


def test_the_classes_are_those_of_the_annotations(capsys, tmp_path):
    content = {
        "images": [{"id": 7, "file_name": "7.png", "width": 80, "height": 60}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 2, "bbox": [10, 20, 30, 30], "area": 900}],
        "categories": [{"id": 2, "name": "box"}, {"id": 1, "name": "ball"}],
    }
    annotations, results = tmp_path / "val.json", tmp_path / "results.json"
    annotations.write_text(json.dumps(content))
    results.write_text(json.dumps([[[]], [[]], [[[10, 20, 39, 49, 0.9]]]]))
    status, output, _ = run(capsys, results, "--annotations", annotations)
    assert status == 0 and numbers(output)["box"] == 1


def test_overlapping_boxes_are_dropped_first(capsys, tmp_path, small):
    _, devkit, _ = small
    # Two boxes on one dog, then another that is right: with the second gone, all is right.
    rows = [[1, 2, 10, 7, 0.9], [1, 2, 10, 8, 0.8]], [[4, 4, 13, 9, 0.7]]
    objects = {"000003": [OBJECTS["000003"][0]], "000010": [("dog", 5, 5, 14, 10, 0)]}
    make_devkit(devkit, {("2007", "test"): objects})
    results = write_results(tmp_path / "results.json", {"dog": rows}, 2)
    plain = numbers(run(capsys, results, "--devkit", devkit, "--area")[1])["dog"]
    assert plain == pytest.approx((1 + 2 / 3) / 2, abs=1e-4)
    assert numbers(run(capsys, results, "--devkit", devkit, "--area", "--nms")[1])["dog"] == 1


def test_official_result_files(capsys, tmp_path, small):
    results, devkit, annotations = small
    for source in (("--devkit", devkit), ("--annotations", annotations)):
        folder = tmp_path / source[0][2:]
        status, output, _ = run(capsys, results, *source, "--comp", "--output_dir", folder)
        assert status == 0 and output.endswith("comp4_det_test_<class>.txt: 20 files\n")
        assert len(list(folder.iterdir())) == 20
        lines = ["000003 0.900 2.0 3.0 11.0 8.0", "000003 0.800 2.0 3.0 11.0 9.0", "000003 0.500 12.0 1.0 16.0 4.0"]
        lines += ["000010 0.700 5.0 5.0 14.0 10.0"]
        assert (folder / "comp4_det_test_dog.txt").read_text().splitlines() == lines
        assert (folder / "comp4_det_test_cat.txt").read_text() == ""
    run(capsys, results, "--devkit", devkit, "--comp")
    assert (results.parent / "comp4_det_test_dog.txt").is_file()


@pytest.mark.skipif(not CONFORMANCE.is_file(), reason="no conformance data")
def test_golden_values(capsys, tmp_path):
    reference = json.loads(CONFORMANCE.read_text())
    images = {
        name: [(o["name"], *o["bbox"], o["difficult"]) for o in objects]
        for name, objects in zip(reference["image_names"], reference["ground_truth"], strict=True)
    }
    devkit = tmp_path / "VOCdevkit"
    for folder in ("Annotations", "ImageSets/Main"):
        (devkit / "VOC2007" / folder).mkdir(parents=True)
    (devkit / "VOC2007/ImageSets/Main/test.txt").write_text("\n".join(images))
    for name, objects in images.items():
        (devkit / f"VOC2007/Annotations/{name}.xml").write_text(annotation_xml(name, objects))
    of_class = dict(zip(reference["classes"], reference["detections"], strict=True))
    results = write_results(tmp_path / "results.json", of_class, len(images))
    status, output, _ = run(capsys, results, "--devkit", devkit, "--comp")
    assert status == 0
    scores, expected = numbers(output), reference["metric"]["2007"]
    assert {name: scores[name] for name in expected["ap"]} == pytest.approx(expected["ap"], abs=1e-4)
    for name, text in reference["result_file_lines"].items():
        assert (tmp_path / f"comp4_det_test_{name}.txt").read_text().split() == text.split()


def test_without_arguments_help_is_printed(capsys):
    status, output, _ = run(capsys)
    assert status == 1 and output.startswith("usage: ")


def test_errors_are_one_line(capsys, tmp_path, small):
    results, devkit, annotations = small
    text, coco, few, rows = (tmp_path / f"{name}.json" for name in ("text", "coco", "few", "rows"))
    text.write_text("hello")
    coco.write_text('[{"image_id": 1}]')
    few.write_text("[[], []]")
    write_results(rows, {"dog": [[[1, 2, 3, 4, 0.5, 0, 0, 0, 0, 0]], []]}, 2)
    one = write_results(tmp_path / "one.json", {}, 1)
    for arguments, message in (
        ((tmp_path / "no.json", "--devkit", devkit), "no.json: no such file"),
        ((text, "--devkit", devkit), "text.json: line 1, column 1: not valid JSON"),
        ((coco, "--devkit", devkit), "results in COCO's form; use src/tools/eval_coco.py"),
        ((few, "--devkit", devkit), "not the results of a VOC test"),
        ((rows, "--devkit", devkit), "a detection is not [x1, y1, x2, y2, score]"),
        ((one, "--devkit", devkit), "one.json: results of 1 images, "),
        ((results, "--devkit", tmp_path / "none"), "the image set cannot be read"),
        ((results, "--devkit", devkit, "--imdb", "coco"), "--imdb coco: needs the form voc_<year>_<image set>"),
        ((results, "--annotations", tmp_path / "none"), "no such annotation file"),
        ((results, "--annotations", text), "text.json: not a JSON file"),
        ((results, "--devkit", devkit, "--comp", "--output_dir", text), "text.json: cannot be written"),
    ):
        status, _, errors = run(capsys, *arguments)
        assert status == 2 and message in errors, (arguments, errors)
        assert errors.startswith("error: ") and errors.count("\n") == 1
