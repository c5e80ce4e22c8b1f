"""Datasets: file locations, results and scores, and errors in files."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.helpers.voc import TINY, make_devkit

from centernet.datasets import DATASETS, get_dataset
from centernet.datasets.coco import COCO
from centernet.datasets.pascal import PascalVOC
from centernet.errors import UserError
from centernet.opts import opts
from centernet.tasks import build_task
from centernet.utils.images import read_image

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not (SHARED / "voc128").is_dir(), reason="../shared/data is not there")


@pytest.fixture
def tiny_coco(tmp_path):
    """A data path that holds ``coco/``: annotation files only, three images, four objects."""
    folder = tmp_path / "coco"
    (folder / "annotations").mkdir(parents=True)
    images = [{"id": i, "file_name": f"{i:012d}.jpg", "height": 40, "width": 60} for i in (9, 2, 5)]
    boxes = [(9, 90, [1, 2, 30, 20]), (5, 1, [3.5, 4, 20, 20]), (9, 13, [5, 6, 12, 12]), (777, 1, [0, 0, 5, 5])]
    annotations = [
        {"id": k + 1, "image_id": i, "category_id": c, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for k, (i, c, box) in enumerate(boxes)
    ]
    categories = [{"id": k, "name": n} for k, n in zip(COCO.category_ids, COCO.class_names, strict=True)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    for split in ("train", "val"):
        (folder / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    return tmp_path


def open_split(name, data_path, split="val"):
    return get_dataset(name)(
        build_task(opts().parse(["ctdet", "--dataset", name, "--data_path", str(data_path)])), split
    )


def rewrite(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def ground_truth_as_detections(dataset):
    """Every object found, with whole certainty; other classes have empty arrays."""
    results = {}
    for index, image_id in enumerate(dataset.image_ids):
        objects = dataset.read_objects(index)
        found = {cls + 1: np.zeros((0, 5), np.float32) for cls in range(len(dataset.class_names))}
        for cls in set(objects["cls"].tolist()):
            boxes = objects["boxes"][objects["cls"] == cls]
            found[cls + 1] = np.hstack([boxes, np.ones((len(boxes), 1), np.float32)])
        results[image_id] = found
    return results


# Properties of datasets that are not read


def test_classes_and_categories():
    assert len(COCO.class_names) == len(set(COCO.class_names)) == 80
    ids = [*range(1, 12), *range(13, 26), 27, 28, *range(31, 45), *range(46, 66), 67, 70, *range(72, 83)]
    assert list(COCO.category_ids) == ids + list(range(84, 91))
    assert (COCO.class_names[0], COCO.class_names[-1]) == ("person", "toothbrush")
    assert dict(zip(COCO.category_ids, COCO.class_names, strict=True))[62] == "chair"
    assert PascalVOC.category_ids == tuple(range(1, 21))
    assert PascalVOC.class_names[14] == "person" and len(PascalVOC.class_names) == 20


def test_unknown_dataset():
    with pytest.raises(UserError, match="nonsense"):
        get_dataset("nonsense")
    assert {"coco", "pascal", "sample"} <= set(DATASETS)


# Reading


def test_pascal_splits(tiny_voc):
    train, val = open_split("pascal", tiny_voc, "train"), open_split("pascal", tiny_voc, "val")
    assert train.annotation_file.name == "pascal_trainval0712.json"
    assert val.annotation_file.name == "pascal_test2007.json"
    assert (len(train), len(val)) == (6, 4)
    assert (train.image_ids, val.image_ids) == ([1, 2, 3, 4, 5, 6], [7, 8, 9, 10])
    assert val.file_names == ["000007.jpg", "000008.jpg", "000009.jpg", "000010.jpg"]
    objects = val.read_objects(0)
    assert objects["cls"].tolist() == [14, 15]
    assert objects["boxes"].tolist() == [[10, 5, 34, 23], [8, 28, 31, 44]]
    assert objects["boxes"].dtype == np.float32 and objects["cls"].dtype == np.int64
    image = val.read_image(0)
    assert image.shape == (48, 64, 3) and image.dtype == np.uint8
    assert val.read_image(1).shape == (64, 48, 3)
    # blue, green, red as the fixture painted them, up to JPEG
    np.testing.assert_allclose(image[14, 20], (175, 110, 120), atol=12)


def test_pascal_is_sorted_by_id(tiny_voc):
    path = tiny_voc / "voc" / "annotations" / "pascal_test2007.json"
    before = open_split("pascal", tiny_voc)

    def shuffle(content):
        content["images"] = [content["images"][k] for k in (2, 0, 3, 1)]
        content["annotations"].reverse()

    rewrite(path, shuffle)
    dataset = open_split("pascal", tiny_voc)
    assert dataset.image_ids == before.image_ids and dataset.file_names == before.file_names
    for index in range(4):
        reverse = {name: value[::-1].tolist() for name, value in dataset.read_objects(index).items()}
        assert reverse == {name: value.tolist() for name, value in before.read_objects(index).items()}


def test_pascal_test2017(tiny_voc):
    """The reference's documents and its code name the validation file differently; both will do."""
    annotations = tiny_voc / "voc" / "annotations"
    (annotations / "pascal_test2007.json").rename(annotations / "pascal_test2017.json")
    dataset = open_split("pascal", tiny_voc)
    assert dataset.annotation_file.name == "pascal_test2017.json" and len(dataset) == 4
    shutil.copy(annotations / "pascal_trainval0712.json", annotations / "pascal_test2007.json")
    dataset = open_split("pascal", tiny_voc)
    assert dataset.annotation_file.name == "pascal_test2007.json" and len(dataset) == 6


def test_coco_keeps_the_order_of_the_file(tiny_coco):
    dataset = open_split("coco", tiny_coco)
    assert dataset.image_ids == [9, 2, 5]
    assert dataset.file_names[0] == "000000000009.jpg"
    assert dataset.annotation_file.name == "instances_val2017.json" and dataset.image_folder.name == "val2017"
    train = open_split("coco", tiny_coco, "train")
    assert train.annotation_file.name == "instances_train2017.json" and train.image_folder.name == "train2017"
    assert dataset.read_objects(0)["cls"].tolist() == [79, 11]
    assert dataset.read_objects(0)["boxes"].tolist() == [[1, 2, 31, 22], [5, 6, 17, 18]]
    assert dataset.read_objects(1)["cls"].shape == (0,) and dataset.read_objects(1)["boxes"].shape == (0, 4)
    assert dataset.read_objects(2)["boxes"].tolist() == [[3.5, 4, 23.5, 24]]


@pytest.mark.parametrize("name", ["voc", "VOC"])
def test_data_path_is_the_folder_or_its_parent(tiny_voc, name):
    folder = (tiny_voc / "voc").rename(tiny_voc / name)
    assert PascalVOC.locate(tiny_voc) == folder
    assert PascalVOC.locate(folder) == folder


def test_coco_folder_or_its_parent(tiny_coco):
    assert COCO.locate(tiny_coco) == COCO.locate(tiny_coco / "coco") == tiny_coco / "coco"


@pytest.mark.parametrize("start", ["parent", "folder", "devkit"])
def test_straight_from_a_devkit(tmp_path, start):
    """Without JSON files they are made from the VOCdevkit, once."""
    make_devkit(tmp_path / "voc" / "VOCdevkit", TINY)
    data_path = {"parent": tmp_path, "folder": tmp_path / "voc", "devkit": tmp_path / "voc" / "VOCdevkit"}[start]
    folder = PascalVOC.locate(data_path)
    lines = []
    PascalVOC.prepare(folder, log=lines.append)
    assert any("converting" in line for line in lines)
    train, val = open_split("pascal", data_path, "train"), open_split("pascal", data_path)
    assert (len(train), len(val)) == (6, 1)
    assert val.read_objects(0)["boxes"].tolist() == [[4, 4, 9, 9]]
    assert PascalVOC.class_names[val.read_objects(0)["cls"][0]] == "dog"
    for dataset in (train, val):
        for index in range(len(dataset)):
            assert dataset.read_image(index).shape == (12, 16, 3)
    again = []
    PascalVOC.prepare(folder, log=again.append)
    assert again == []


# Errors


@pytest.mark.parametrize("name", ["coco", "pascal"])
def test_missing_folder(tmp_path, name):
    with pytest.raises(UserError, match="does not exist"):
        get_dataset(name).locate(tmp_path / "nowhere")
    with pytest.raises(UserError, match=f"holds no dataset {name}"):
        get_dataset(name).locate(tmp_path)


def test_missing_files(tiny_voc):
    annotations = tiny_voc / "voc" / "annotations"
    (annotations / "pascal_test2007.json").unlink()
    with pytest.raises(UserError, match=r"pascal_test2007\.json"):
        open_split("pascal", tiny_voc)
    (tiny_voc / "voc" / "images" / "000002.jpg").unlink()
    with pytest.raises(UserError, match=r"000002\.jpg"):
        open_split("pascal", tiny_voc, "train").read_image(1)
    (annotations / "pascal_trainval0712.json").unlink()
    with pytest.raises(UserError, match="VOCdevkit"):
        PascalVOC.prepare(tiny_voc / "voc", log=lambda line: None)


def without(key, kind=None):
    """A change of a file: drop a key of the whole, or of the first entry of one of its lists."""

    def change(content):
        del (content[kind][0] if kind else content)[key]

    return change


def first_annotation(**values):
    return lambda content: content["annotations"][0].update(values)


ERRORS = {
    "no images": (without("images"), "images"),
    "no annotations": (without("annotations"), "annotations"),
    "no categories": (without("categories"), "categories"),
    "empty images": (lambda content: content["images"].clear(), "no images"),
    "images are not a list": (lambda content: content.update(images={}), "images"),
    "annotation without bbox": (without("bbox", "annotations"), "bbox"),
    "annotation without category": (without("category_id", "annotations"), "category_id"),
    "annotation without image": (without("image_id", "annotations"), "image_id"),
    "image without id": (without("id", "images"), "id"),
    "image without name": (without("file_name", "images"), "file_name"),
    "unknown category": (first_annotation(category_id=999), "999"),
    "box of three numbers": (first_annotation(bbox=[1, 2, 3]), "malformed"),
    "box of words": (first_annotation(bbox=["a", "b", "c", "d"]), "malformed"),
    "box is null": (first_annotation(bbox=None), "malformed"),
    "category is null": (first_annotation(category_id=None), "unknown category_id None"),
    "all boxes of two numbers": (
        lambda content: [a.update(bbox=[1, 2]) for a in content["annotations"]],
        "malformed",
    ),
}


@pytest.mark.parametrize("mistake", ERRORS)
@pytest.mark.parametrize("name", ["coco", "pascal"])
def test_errors_in_annotations(request, name, mistake):
    if name == "pascal":
        data_path = request.getfixturevalue("tiny_voc")
        path = data_path / "voc" / "annotations" / "pascal_test2007.json"
    else:
        data_path = request.getfixturevalue("tiny_coco")
        path = data_path / "coco" / "annotations" / "instances_val2017.json"
    change, word = ERRORS[mistake]
    rewrite(path, change)
    with pytest.raises(UserError, match=word) as error:
        open_split(name, data_path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe\x00"])
def test_files_that_are_not_annotations(tiny_voc, content):
    path = tiny_voc / "voc" / "annotations" / "pascal_test2007.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"pascal_test2007\.json"):
        open_split("pascal", tiny_voc)


@pytest.mark.parametrize("content", [b"", b"words", b"\xff\xd8\xff\xe0\x00\x10JFIF"])
def test_files_that_are_not_images(tmp_path, content):
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"image\.jpg: cannot read image: "):
        read_image(str(path))


@pytest.mark.skipif(not (SHARED / "hard_cases").is_dir(), reason="../shared/data is not there")
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("gray.jpg", (120, 160, 3)),
        ("cmyk.jpg", (120, 160, 3)),
        ("gray_16bit.png", None),
        ("rgba.png", None),
        ("palette.png", None),
        ("one_pixel.jpg", (1, 1, 3)),
        ("exif_orientation_6.jpg", (120, 160, 3)),
        ("png_named.jpg", (60, 80, 3)),
    ],
)
def test_unusual_images(name, shape):
    image = read_image(str(SHARED / "hard_cases" / "images" / name))
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    assert shape is None or image.shape == shape


@pytest.mark.skipif(not (SHARED / "hard_cases").is_dir(), reason="../shared/data is not there")
@pytest.mark.parametrize("name", ["zero_byte.jpg", "text.jpg", "header_only.jpg", "huge_header.png"])
def test_unreadable_images(name):
    with pytest.raises(UserError, match=name) as error:
        read_image(str(SHARED / "hard_cases" / "images" / name))
    assert "\n" not in str(error.value)


# Results and scores


def test_pascal_results_file(tiny_voc, tmp_path):
    """A list over 21 classes of lists over images, in the order of ids, for any order of the results."""
    dataset = open_split("pascal", tiny_voc)
    rows = np.float32([[1.25, 2, 30, 40, 0.123456], [0, 0, 5, 5, 0.5]])
    dataset.save_results({9: {3: rows, 20: rows[:1]}, 7: {3: rows[1:]}}, tmp_path / "results.json")
    content = json.loads((tmp_path / "results.json").read_text())
    assert len(content) == 21 and all(len(images) == 4 for images in content)
    assert content[3] == [[[0, 0, 5, 5, 0.5]], [], rows.tolist(), []]
    assert content[20] == [[], [], rows[:1].tolist(), []]
    assert not any(map(any, content[:3] + content[4:20]))


def test_coco_results_file(tiny_coco, tmp_path):
    dataset = open_split("coco", tiny_coco)
    dataset.save_results({9: {80: np.float32([[1, 2, 31, 22, 0.75]]), 12: np.zeros((0, 5))}}, tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text()) == [
        {"image_id": 9, "category_id": 90, "bbox": [1, 2, 30, 20], "score": 0.75}
    ]


def test_ground_truth_for_the_official_evaluation(tiny_voc):
    """Corners count from 1 and belong to the box, as in the XML files."""
    dataset = open_split("pascal", tiny_voc)
    objects = dataset.ground_truth()
    assert len(objects) == 4
    assert objects[0] == [
        {"name": "person", "bbox": [11, 6, 34, 23], "difficult": 0},
        {"name": "pottedplant", "bbox": [9, 29, 31, 44], "difficult": 0},
    ]
    assert [o["difficult"] for image in objects for o in image] == [0, 0, 0, 0, 0, 1, 0, 0]


def test_perfect_detections_of_tiny_voc(tiny_voc):
    dataset = open_split("pascal", tiny_voc)
    scores = dataset.evaluate(ground_truth_as_detections(dataset))
    present = {dataset.class_names[cls] for index in range(4) for cls in dataset.read_objects(index)["cls"]}
    # the second object of image 9 is difficult, and the only one of its class
    difficult = dataset.class_names[dataset.read_objects(2)["cls"][1]]
    assert {name for name in dataset.class_names if scores[f"AP/{name}"] == 1} == present - {difficult}
    assert scores["mAP"] == pytest.approx(7 / 20)
    assert list(scores) == ["mAP", *(f"AP/{name}" for name in dataset.class_names)]
    assert dataset.score_names[0] in scores


def test_imperfect_detections_of_tiny_voc(tiny_voc):
    dataset = open_split("pascal", tiny_voc)
    results = ground_truth_as_detections(dataset)
    results.pop(7)
    scores = dataset.evaluate(results)
    assert scores["mAP"] == pytest.approx(5 / 20)
    assert dataset.evaluate({})["mAP"] == 0


def test_annotation_of_an_unlisted_image(tiny_voc):
    """It is left out in reading, so it must not stop the scoring after a training either."""
    path = tiny_voc / "voc" / "annotations" / "pascal_test2007.json"
    rewrite(path, lambda content: content["annotations"].append({**content["annotations"][0], "image_id": 4242}))
    dataset = open_split("pascal", tiny_voc)
    assert dataset.evaluate(ground_truth_as_detections(dataset))["mAP"] == pytest.approx(7 / 20)


def test_perfect_detections_of_tiny_coco(tiny_coco):
    dataset = open_split("coco", tiny_coco)
    scores = dataset.evaluate(ground_truth_as_detections(dataset))
    assert scores["AP"] == pytest.approx(1) and dataset.score_names[0] == "AP"
    assert scores["AP/toothbrush"] == pytest.approx(1) and scores["AP/car"] == -1
    assert dataset.evaluate({})["AP"] == 0


@needs_shared
@pytest.mark.parametrize(
    ("name", "folder", "train", "val", "objects", "classes"),
    [("pascal", "voc128", 76, 24, (322, 137), 15), ("coco", "coco128", 96, 32, (719, 220), 46)],
)
def test_real_data(name, folder, train, val, objects, classes, tmp_path):
    train_set, val_set = (open_split(name, SHARED / folder, split) for split in ("train", "val"))
    assert (len(train_set), len(val_set)) == (train, val)
    assert (len(train_set.objects["cls"]), len(val_set.objects["cls"])) == objects
    for index in (0, len(val_set) - 1):
        height, width = val_set.read_image(index).shape[:2]
        boxes = val_set.read_objects(index)["boxes"]
        assert len(boxes) and (boxes >= 0).all() and (boxes <= [width, height, width, height]).all()
    scores = val_set.evaluate(ground_truth_as_detections(val_set))
    found = [scores[f"AP/{cls}"] for cls in val_set.class_names]
    if name == "pascal":
        occurring = {cls for objects in val_set.ground_truth() for cls in (o["name"] for o in objects)}
        usable = {o["name"] for objects in val_set.ground_truth() for o in objects if not o["difficult"]}
        assert len(occurring) == classes
        assert {cls for cls in val_set.class_names if scores[f"AP/{cls}"] == 1} == usable
        assert scores["mAP"] == pytest.approx(len(usable) / 20)
    else:
        assert sum(value >= 0 for value in found) == classes
        assert scores["AP"] == pytest.approx(1) and min(value for value in found if value >= 0) > 0.999


def test_coco_results_are_rounded_only_on_request(tiny_coco, tmp_path):
    coco = open_split("coco", tiny_coco)
    rows = np.array([[1.234, 2.345, 31.987, 22.222, 0.98765]], dtype=np.float32)
    path = tmp_path / "results.json"
    for rounded, digits in ((False, 5), (True, 2)):
        coco.rounded_results = rounded
        coco.save_results({9: {81 - 1: rows}}, path)
        (entry,) = json.loads(path.read_text())
        assert entry["category_id"] == 90 and entry["score"] == pytest.approx(round(0.98765, digits), abs=1e-7)
        assert entry["bbox"] == pytest.approx([1.234, 2.345, 30.753, 19.877], abs=0.0051 if rounded else 1e-5)
