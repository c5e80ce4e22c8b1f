"""Extreme points of segmentations, and COCO as the dataset of the task exdet."""

import json
import threading
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask
import pytest

from centernet.conversion import coco_extreme
from centernet.conversion.coco_extreme import (
    add_extreme_points,
    convert,
    extreme_points,
    mask_extremes,
    outline_extremes,
)
from centernet.datasets import get_dataset
from centernet.errors import UserError
from centernet.opts import opts
from centernet.tasks import build_task

COCO128 = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "coco128"
SQUARE = [[10, 10], [30, 10], [30, 30], [10, 30]]
MIDDLES = [[20, 10], [10, 20], [20, 30], [30, 20]]


def extremes(*polygons):
    return outline_extremes([np.array(polygon, float) for polygon in polygons]).tolist()


@pytest.mark.parametrize("first", range(4))
@pytest.mark.parametrize("step", [1, -1])
def test_flat_sides_have_their_middle(first, step):
    """Wherever the outline begins, and whichever way it goes."""
    assert extremes((SQUARE[first:] + SQUARE[:first])[::step]) == MIDDLES


def test_corners():
    assert extremes([[20, 0], [40, 25], [15, 50], [0, 10]]) == [[20, 0], [0, 10], [15, 50], [40, 25]]


def test_tolerance():
    """Points within 2 % of the height belong to the top, as long as the outline stays there."""
    near = [[0, 1], [40, 0], [60, 2], [100, 2.1], [100, 100], [0, 100]]
    assert extremes(near)[0] == [30, 0]
    # The second tower is as high as the first, but the outline goes down between them.
    towers = [[0, 0], [20, 0], [20, 50], [80, 50], [80, 1], [100, 1], [100, 100], [0, 100]]
    assert extremes(towers)[0] == [10, 0]


def test_parts_of_an_object_are_not_joined():
    """Each extreme point belongs to the part that reaches furthest."""
    other = [[50, 12], [60, 12], [60, 40], [50, 40]]
    assert extremes(SQUARE, other) == [[20, 10], [10, 20], [55, 40], [60, 26]]
    assert extremes(other, SQUARE) == extremes(SQUARE, other)


@pytest.mark.parametrize("angle", range(0, 360, 35))
def test_points_lie_on_the_outline(angle):
    rng = np.random.default_rng(angle)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
    polygon = np.column_stack([np.cos(angles), np.sin(angles)]) * rng.uniform(10, 40, (9, 1)) + 50
    (tx, top), (left, ly), (bx, bottom), (right, ry) = extremes(polygon)
    assert [left, top, right, bottom] == [*polygon.min(0), *polygon.max(0)]
    assert left <= min(tx, bx) and right >= max(tx, bx) and top <= min(ly, ry) and bottom >= max(ly, ry)


# Masks


def test_mask():
    mask = np.zeros((40, 50), bool)
    mask[5:20, 10:30] = True
    assert mask_extremes(mask).tolist() == [[20, 5], [10, 12.5], [20, 20], [30, 12.5]]
    mask[20:24, 12] = True  # a pixel wide, downwards
    assert mask_extremes(mask).tolist() == [[20, 5], [10, 12.5], [12.5, 24], [30, 12.5]]


def test_masks_agree_with_outlines():
    rng = np.random.default_rng(3)
    for _ in range(5):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 7))
        polygon = np.column_stack([np.cos(angles), np.sin(angles)]) * rng.uniform(200, 300, (7, 1)) + 400
        mask = np.zeros((800, 800), np.uint8)
        cv2.fillPoly(mask, [np.rint(polygon).astype(np.int32)], 1)
        sides = mask_extremes(mask > 0)[[1, 0, 3, 2], [0, 1, 0, 1]]
        np.testing.assert_allclose(sides, [*polygon.min(0), *polygon.max(0)], atol=2)


@pytest.mark.parametrize("compressed", [False, True])
def test_run_lengths(compressed):
    mask = np.zeros((12, 9), np.uint8, order="F")
    mask[2:6, 3:8] = 1
    if compressed:
        segmentation = pycocotools.mask.encode(mask)
    else:
        flat = mask.flatten(order="F")
        changes = np.flatnonzero(np.diff(np.concatenate([[0], flat, [0]])))
        segmentation = {"counts": np.diff([0, *changes, flat.size]).tolist(), "size": [12, 9]}
    points = extreme_points({"segmentation": segmentation, "iscrowd": 1}, 12, 9)
    assert points.tolist() == [[5.5, 2], [3, 4], [5.5, 6], [8, 4]]


# Annotations


def content_of(*segmentations, bbox=(10, 10, 20, 20)):
    annotations = [
        {"id": k, "image_id": 1, "category_id": 1, "bbox": list(bbox), "iscrowd": 0, "area": 4.5, "segmentation": shape}
        for k, shape in enumerate(segmentations, start=1)
    ]
    images = [{"id": 1, "height": 40, "width": 50, "file_name": "1.jpg"}]
    return {
        "info": {"year": 2017},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "x"}],
    }


def test_annotations_keep_everything_else():
    square = sum(SQUARE, [])
    content, before = content_of([square]), content_of([square])
    assert add_extreme_points(content) == 0
    assert content["annotations"][0].pop("extreme_points") == MIDDLES
    assert content == before


@pytest.mark.parametrize(
    "segmentation",
    [[], [[]], [[10, 10, 30, 30]], [[10, 10, 20, 10, 30, 10]], {"counts": [2000], "size": [40, 50]}, None],
)
def test_objects_without_an_outline(segmentation):
    """They are kept, because scoring counts them, and get the midpoints of their box's sides."""
    content = content_of(segmentation, [sum(SQUARE, [])])
    assert add_extreme_points(content) == 1
    assert [annotation["extreme_points"] for annotation in content["annotations"]] == [MIDDLES, MIDDLES]


def test_thin_parts_do_not_count():
    content = content_of([[0, 0, 50, 0, 20, 0], sum(SQUARE, [])])
    assert add_extreme_points(content) == 0
    assert content["annotations"][0]["extreme_points"] == MIDDLES


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda c: c["annotations"][0].update(image_id=9), "the annotation 1 lacks or does not know 9"),
        (lambda c: c["annotations"][0].update(segmentation=[["a", "b", "c", "d"]]), "the annotation 1 is malformed"),
        (lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "is malformed"),
        (lambda c: c["images"][0].pop("height"), "the image 1 lacks or does not know 'height'"),
        (lambda c: c["annotations"][0].pop("segmentation"), "none of the annotations has a segmentation"),
    ],
)
def test_unusable_files(tmp_path, change, text):
    content = content_of([sum(SQUARE, [])])
    change(content)
    source = tmp_path / "instances_x.json"
    source.write_text(json.dumps(content))
    with pytest.raises(UserError, match=text) as error:
        convert(source, tmp_path / "out.json")
    assert str(source) in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["instances_x.json"]


def test_target_that_cannot_be_written(tmp_path):
    source = tmp_path / "instances_x.json"
    source.write_text(json.dumps(content_of([sum(SQUARE, [])])))
    (tmp_path / "out.json").mkdir()
    with pytest.raises(UserError, match="out.json: cannot be written"):
        convert(source, tmp_path / "out.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["instances_x.json", "out.json"]


def test_images_without_objects(tmp_path):
    source, lines = tmp_path / "instances_x.json", []
    source.write_text(json.dumps(content_of()))
    convert(source, tmp_path / "out.json", lines.append)
    assert lines == [f"{tmp_path / 'out.json'}: extreme points of 0 objects"]


# The dataset


@pytest.fixture
def coco_folder(tmp_path):
    """``coco/`` with one image for training and one for validation."""
    folder = tmp_path / "data" / "coco" / "annotations"
    folder.mkdir(parents=True)
    for split in ("train", "val"):
        (folder / f"instances_{split}2017.json").write_text(json.dumps(content_of([sum(SQUARE, [])])))
        images = folder.parent / f"{split}2017"
        images.mkdir()
        cv2.imwrite(str(images / "1.jpg"), np.zeros((40, 50, 3), np.uint8))
    return folder


def options(folder, task="exdet"):
    return opts().parse([task, "--dataset", "coco", "--data_path", str(folder.parent.parent)])


def test_points_are_found_on_first_use(coco_folder, capsys):
    dataset = get_dataset("coco")(build_task(options(coco_folder)), "val")
    target = coco_folder / "instances_extreme_val2017.json"
    assert dataset.annotation_file == target
    assert dataset.read_objects(0)["points"].tolist() == [MIDDLES]
    assert "extreme points of 1 objects" in capsys.readouterr().out
    assert sorted(path.name for path in coco_folder.iterdir()) == [
        "instances_extreme_val2017.json",
        "instances_train2017.json",
        "instances_val2017.json",
    ]
    stamp = target.stat().st_mtime_ns
    get_dataset("coco")(build_task(options(coco_folder)), "val")
    assert target.stat().st_mtime_ns == stamp and not capsys.readouterr().out


def test_own_points_are_used_as_they_are(coco_folder):
    content = content_of([sum(SQUARE, [])])
    content["annotations"][0]["extreme_points"] = [[12, 10], [10, 12], [28, 30], [30, 28]]
    (coco_folder / "instances_extreme_val2017.json").write_text(json.dumps(content))
    dataset = get_dataset("coco")(build_task(options(coco_folder)), "val")
    assert dataset.read_objects(0)["points"].tolist() == [[[12, 10], [10, 12], [28, 30], [30, 28]]]


def test_detection_needs_no_points(coco_folder):
    dataset = get_dataset("coco")(build_task(options(coco_folder, "ctdet")), "val")
    assert dataset.annotation_file.name == "instances_val2017.json"
    assert not list(coco_folder.glob("*extreme*"))


def test_neither_file_exists(coco_folder):
    (coco_folder / "instances_val2017.json").unlink()
    with pytest.raises(UserError, match="instances_extreme_val2017.json: no such annotation file"):
        get_dataset("coco")(build_task(options(coco_folder)), "val")


def test_one_of_several_finds_them(coco_folder, monkeypatch):
    calls, started = [], threading.Barrier(3)
    original = coco_extreme.convert
    monkeypatch.setattr(coco_extreme, "convert", lambda *args: calls.append(args) or original(*args))

    def prepare():
        started.wait()
        coco_extreme.prepare(coco_folder / "instances_val2017.json", log=lambda line: None)

    threads = [threading.Thread(target=prepare) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1 and (coco_folder / "instances_extreme_val2017.json").is_file()
    assert not [path for path in coco_folder.iterdir() if path.name.startswith(".")]


@pytest.mark.skipif(not COCO128.is_dir(), reason="the shared test data is not here")
def test_real_segmentations(tmp_path):
    """Points lie on the sides of the annotated boxes, also of crowds. As detections they score 1."""
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    (tmp_path / "coco" / "val2017").symlink_to(COCO128 / "val2017")
    source = tmp_path / "coco" / "annotations" / "instances_val2017.json"
    source.write_bytes((COCO128 / "annotations" / "instances_val2017.json").read_bytes())
    dataset = get_dataset("coco")(build_task(opts().parse(["exdet", "--data_path", str(tmp_path)])), "val")
    content = json.loads(dataset.annotation_file.read_text())
    assert len(content["annotations"]) == 220 and sum(a["iscrowd"] for a in content["annotations"]) == 4
    for annotation in content["annotations"]:
        (_, top), (left, _), (_, bottom), (right, _) = annotation["extreme_points"]
        x, y, w, h = annotation["bbox"]
        # The box of a mask ends at its last pixel, its extreme points at that pixel's far side.
        np.testing.assert_allclose(
            [left, top, right, bottom], [x, y, x + w, y + h], atol=1 if annotation["iscrowd"] else 0.02
        )
    results = {}
    for index, image_id in enumerate(dataset.image_ids):
        objects = dataset.read_objects(index)
        boxes = np.column_stack(
            [
                objects["points"][:, 1, 0],
                objects["points"][:, 0, 1],
                objects["points"][:, 3, 0],
                objects["points"][:, 2, 1],
            ]
        )
        rows = np.column_stack([boxes, np.ones(len(boxes)), objects["points"].reshape(-1, 8)])
        results[image_id] = {cls + 1: rows[objects["cls"] == cls] for cls in range(80)}
    assert dataset.evaluate(results)["AP"] > 0.99
    path = tmp_path / "results.json"
    dataset.save_results(results, path)
    assert all(len(entry["extreme_points"]) == 8 for entry in json.loads(path.read_text()))
