"""eval_coco.py: COCO's box scores of a result file."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

specification = importlib.util.spec_from_file_location("eval_coco", ROOT / "src/tools/eval_coco.py")
eval_coco = importlib.util.module_from_spec(specification)
specification.loader.exec_module(eval_coco)

BOXES = [(7, "a", [10, 5, 25, 35]), (8, "a", [1, 2, 20, 20]), (8, "b", [30, 30, 40, 40])]


@pytest.fixture
def files(tmp_path):
    """Results that are perfect but for one missing object of class a, and annotations without area and iscrowd."""
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 80, "height": 80} for i in (7, 8)],
        "annotations": [
            {"id": k, "image_id": image, "category_id": category, "bbox": box}
            for k, (image, category, box) in enumerate(BOXES)
        ],
        "categories": [{"id": "a", "name": "apple"}, {"id": "b", "name": "bean"}, {"id": "c", "name": "corn"}],
    }
    results = [
        {"image_id": image, "category_id": category, "bbox": box, "score": 0.5} for image, category, box in BOXES[1:]
    ]
    annotations, path = tmp_path / "val.json", tmp_path / "results.json"
    annotations.write_text(json.dumps(content))
    path.write_text(json.dumps(results))
    return path, annotations


def run(capsys, *arguments) -> tuple[int, str, str]:
    status = eval_coco.main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


def test_scores(capsys, files):
    path, annotations = files
    half = 51 / 101
    for given in (path, path.parent):
        status, output, errors = run(capsys, given, "--annotations", annotations, "--per_class")
        assert (status, errors) == (0, "")
        lines = output.splitlines()
        assert len(lines) == 15
        assert lines[0].startswith(" Average Precision  (AP) @[ IoU=0.50:0.95") and lines[0].endswith(
            f"= {(1 + half) / 2:.3f}"
        )
        assert lines[12:] == [f"AP/apple {half:.4f}", "AP/bean 1.0000", "AP/corn -"]
    assert len(run(capsys, path, "--annotations", annotations)[1].splitlines()) == 12


def changed(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


REPAIRS = {
    "image ids as texts": lambda c: [one.update(image_id=str(one["image_id"])) for one in c["annotations"]],
    "areas as texts": lambda c: [
        one.update(area=str(one["bbox"][2] * one["bbox"][3]), iscrowd="0") for one in c["annotations"]
    ],
    "boxes as texts": lambda c: [one.update(bbox=[*map(str, one["bbox"])]) for one in c["annotations"]],
    "an image that is not listed": lambda c: c["annotations"].append({**c["annotations"][0], "image_id": 99}),
}


@pytest.mark.parametrize("change", REPAIRS.values(), ids=REPAIRS)
def test_annotations_are_repaired_as_in_training(capsys, files, change):
    path, annotations = files
    before = run(capsys, path, "--annotations", annotations)
    changed(annotations, change)
    assert run(capsys, path, "--annotations", annotations) == before


REFUSED = {
    "annotation 0 of '7.jpg' has the bbox .*, whose width or height is negative": lambda c: c["annotations"][0].update(
        bbox=[30, 30, -20, 20]
    ),
    "no object is left to score against in 2 images": lambda c: [one.update(image_id=9) for one in c["annotations"]],
    "duplicate image id 7": lambda c: c["images"][1].update(id=7),
    "unknown category_id 'x'": lambda c: c["annotations"][0].update(category_id="x"),
    "seem to be fractions of the image": lambda c: [one.update(bbox=[0.1] * 4) for one in c["annotations"]],
}


@pytest.mark.parametrize("message", REFUSED)
def test_annotations_are_refused_as_in_training(capsys, files, message):
    """Otherwise they would be scored as if nothing had been found, or as if there were no objects."""
    path, annotations = files
    changed(annotations, REFUSED[message])
    status, _, errors = run(capsys, path, "--annotations", annotations)
    assert status == 2 and re.match(f"error: {annotations}: .*{message}.*\n$", errors), errors


def test_errors_are_one_line(capsys, tmp_path, files):
    path, annotations = files
    text, voc, lacking, unlisted, short = (
        tmp_path / f"{name}.json" for name in ("text", "voc", "lack", "pic", "short")
    )
    text.write_text("hello")
    voc.write_text("[[[]], [[]]]")
    lacking.write_text('[{"image_id": 7}]')
    entry = {"image_id": 7, "category_id": "a", "bbox": [1, 2, 3, 4], "score": 0.5}
    unlisted.write_text(json.dumps([{**entry, "image_id": 99}]))
    short.write_text(json.dumps([{**entry, "bbox": [1, 2]}]))
    unknown = tmp_path / "unknown.json"
    unknown.write_text(json.dumps([{**entry, "category_id": "d"}]))
    odd = {
        "nan.json": {"bbox": [float("nan")] * 4},
        "inf.json": {"score": float("inf")},
        "text_box.json": {"bbox": ["1", 2, 3, 4]},
        "long.json": {"score": 10**400},
        "list_id.json": {"image_id": [7]},
    }
    for name, change in odd.items():
        (tmp_path / name).write_text(json.dumps([entry, {**entry, **change}]))
    for arguments, message in (
        ((tmp_path / "none.json", "--annotations", annotations), "none.json: no such file"),
        ((text, "--annotations", annotations), "text.json: line 1, column 1: not valid JSON"),
        ((voc, "--annotations", annotations), "results of a VOC test; use src/tools/reval.py"),
        ((lacking, "--annotations", annotations), "not a list of detections with bbox, category_id, image_id, score"),
        ((unlisted, "--annotations", annotations), "results have image 99"),
        ((unknown, "--annotations", annotations), "results have category 'd'"),
        *(((tmp_path / name, "--annotations", annotations), f"{name}: detection number 2 has") for name in odd),
        ((short, "--annotations", annotations), "short.json: detection number 1 has no bbox of 4 numbers: [1, 2]"),
        ((path, "--annotations", tmp_path / "none.json"), "no such annotation file"),
        ((path, "--annotations", path), "not a COCO-style annotation file"),
    ):
        status, _, errors = run(capsys, *arguments)
        assert status == 2 and message in errors, (arguments, errors)
        assert errors.startswith("error: ") and errors.count("\n") == 1
