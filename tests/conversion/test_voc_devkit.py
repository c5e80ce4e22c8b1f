"""Conversion of the VOC devkit to COCO-style JSON: format, merging, image links, and errors."""

import json
import os
from pathlib import Path

import cv2
import pytest
from tests.helpers.voc import TINY, annotation_xml, make_devkit

from centernet.conversion import voc_devkit
from centernet.errors import UserError
from centernet.utils.files import read_json

CLASSES = ["cat", "dog", "person"]
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_voc128 = pytest.mark.skipif(not (SHARED / "voc128").is_dir(), reason="the shared test data is not here")
needs_hard_cases = pytest.mark.skipif(not (SHARED / "hard_cases").is_dir(), reason="the shared test data is not here")


@pytest.fixture
def devkit(tmp_path):
    return make_devkit(tmp_path / "VOCdevkit", TINY)


def test_converted_form(devkit):
    data = voc_devkit.convert_image_set(devkit, "2007", "val", CLASSES)
    assert data == {
        "images": [{"file_name": "000009.jpg", "height": 12, "width": 16, "id": 9}],
        "type": "instances",
        "annotations": [
            {
                "segmentation": [[0, 0, 0, 12, 16, 12, 16, 0]],
                "area": 192,
                "iscrowd": 0,
                "image_id": 9,
                "bbox": [0, 0, 16, 12],
                "category_id": 1,
                "id": 1,
                "ignore": 1,
            },
            {
                "segmentation": [[3, 3, 3, 4, 4, 4, 4, 3]],
                "area": 1,
                "iscrowd": 0,
                "image_id": 9,
                "bbox": [3, 3, 1, 1],
                "category_id": 3,
                "id": 2,
                "ignore": 0,
            },
        ],
        "categories": [
            {"supercategory": "none", "id": 1, "name": "cat"},
            {"supercategory": "none", "id": 2, "name": "dog"},
            {"supercategory": "none", "id": 3, "name": "person"},
        ],
    }


def test_image_ids_of_2012(devkit):
    data = voc_devkit.convert_image_set(devkit, "2012", "val", CLASSES)
    assert [image["id"] for image in data["images"]] == [2008000003, 2011000010]
    assert [image["file_name"] for image in data["images"]] == ["2008_000003.jpg", "2011_000010.jpg"]


@needs_voc128
def test_conversion_equals_reference_file():
    reference = (SHARED / "voc128" / "annotations" / "pascal_test2007.json").read_text()
    names = [category["name"] for category in json.loads(reference)["categories"]]
    data = voc_devkit.convert_image_set(SHARED / "voc128" / "VOCdevkit", "2007", "test", names)
    assert json.dumps(data) == reference.strip()  # as text: the order of the keys too


@needs_voc128
def test_merge_equals_reference_file():
    folder = SHARED / "voc128" / "annotations"
    parts = [read_json(folder / voc_devkit.annotation_file(*entry)) for entry in voc_devkit.TRAINVAL_SETS]
    before = json.dumps(parts)
    merged = voc_devkit.merge(parts)
    assert json.dumps(merged) == (folder / "pascal_trainval0712.json").read_text().strip()
    assert json.dumps(parts) == before


@needs_voc128
def test_genuine_voc_file():
    names = [category["name"] for category in read_json(next(SHARED.glob("voc128/*/*test*")))["categories"]]
    data = voc_devkit.convert_image_set(SHARED / "voc2007_sample" / "VOCdevkit", "2007", "test", names)
    assert [item["bbox"] for item in data["annotations"]] == [[47, 239, 148, 132], [7, 11, 345, 487]]


def test_convert_devkit(devkit, tmp_path):
    lines = []
    paths = voc_devkit.convert_devkit(devkit, tmp_path / "annotations", CLASSES, log=lines.append)
    names = ["train2012", "val2012", "train2007", "val2007", "trainval0712", "test2007"]
    assert [path.name for path in paths] == [f"pascal_{name}.json" for name in names]
    assert sorted(os.listdir(tmp_path / "annotations")) == sorted(path.name for path in paths)
    merged = read_json(paths[4])
    assert [image["id"] for image in merged["images"]] == [2008000002, 2008000003, 2011000010, 5, 7, 9]
    assert [item["id"] for item in merged["annotations"]] == [1, 2, 3, 4, 5, 6]
    assert len(lines) == 6
    assert lines[4].endswith("pascal_trainval0712.json: 6 images, 6 boxes")


def test_convert_devkit_without_2012(tmp_path):
    devkit = make_devkit(tmp_path / "VOCdevkit", {key: value for key, value in TINY.items() if key[0] == "2007"})
    lines = []
    voc_devkit.convert_devkit(devkit, tmp_path / "out", CLASSES, log=lines.append)
    assert "VOC2012 is missing" in lines[0]
    assert len(read_json(tmp_path / "out" / "pascal_trainval0712.json")["images"]) == 3
    assert not (tmp_path / "out" / "pascal_train2012.json").exists()


def test_convert_devkit_with_test_only(tmp_path):
    devkit = make_devkit(tmp_path / "VOCdevkit", {("2007", "test"): TINY["2007", "test"]})
    lines = []
    paths = voc_devkit.convert_devkit(devkit, tmp_path / "out", CLASSES, log=lines.append)
    assert [path.name for path in paths] == ["pascal_test2007.json"]
    assert any("train.txt is missing" in line for line in lines)


def test_convert_devkit_needs_an_image_set(tmp_path):
    with pytest.raises(UserError, match="holds no VOC image set"):
        voc_devkit.convert_devkit(tmp_path, tmp_path / "out", CLASSES)


GOOD = annotation_xml("000001", [("dog", 5, 5, 9, 9, 0)])


def read_text(tmp_path, text):
    path = tmp_path / "000001.xml"
    path.write_text(text)
    return voc_devkit.read_annotation(path)


def test_fractions_are_cut_off_and_flags_may_be_missing(tmp_path):
    text = GOOD.replace("<ymin>5<", "<ymin> 5.70000076293945 <").replace("<difficult>0</difficult>", "")
    text = text.replace("<filename>000001.jpg</filename>", "").replace("<pose>Left</pose>", "")
    record = read_text(tmp_path, text)
    expected = {"name": "dog", "pose": "Unspecified", "truncated": 0, "difficult": 0}
    assert record["objects"] == [{**expected, "xmin": 5, "ymin": 5, "xmax": 9, "ymax": 9}]
    assert record["filename"] == "000001.jpg"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not well-formed"),
        (GOOD[:-20], "not well-formed"),
        ('<?xml version="1.0" encoding="nonsense"?>' + GOOD, "not well-formed"),
        ("<!DOCTYPE annotation>" + GOOD, "document type"),
        ('<!DOCTYPE a [<!ENTITY b "c"><!ENTITY d "&b;&b;">]><annotation>&d;</annotation>', "document type"),
        ('<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/hostname">]><annotation>&b;</annotation>', "document type"),
        (GOOD.replace("size>", "dimensions>"), "has no <size>"),
        (GOOD.replace("<width>16</width>", ""), "<size> has no <width>"),
        (GOOD.replace("<width>16", "<width>0"), "<size> is 0 x 12"),
        (GOOD.replace("<width>16", "<width>wide"), "<width> is 'wide', not a number"),
        (GOOD.replace("<xmin>5", "<xmin>nan"), "<xmin> is 'nan', not a number"),
        (GOOD.replace("<xmin>5", "<xmin>1e999"), "<xmin> is '1e999', not a number"),
        (GOOD.replace("<xmin>5", "<xmin>10"), "ends before it begins"),
        (GOOD.replace("bndbox>", "box>"), "'dog' has no <bndbox>"),
        (GOOD.replace("<ymax>9</ymax>", ""), "<bndbox> has no <ymax>"),
        (GOOD.replace("<name>dog</name>", ""), "<object> has no <name>"),
    ],
)
def test_bad_annotation(tmp_path, text, reason):
    with pytest.raises(UserError) as error:
        read_text(tmp_path, text)
    assert str(error.value).startswith(str(tmp_path / "000001.xml"))
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


@needs_hard_cases
@pytest.mark.parametrize("name", ["truncated", "zero_byte", "inverted_box", "entity_expansion", "external_entity"])
def test_hard_case_is_refused(name):
    with pytest.raises(UserError, match=f"{name}.xml"):
        voc_devkit.read_annotation(SHARED / "hard_cases" / "voc_xml" / f"{name}.xml")


@needs_hard_cases
@pytest.mark.parametrize("name", ["valid", "float_box", "no_difficult_field", "no_objects"])
def test_hard_case_is_read(name):
    record = voc_devkit.read_annotation(SHARED / "hard_cases" / "voc_xml" / f"{name}.xml")
    assert (record["width"], record["height"]) == (353, 500)
    assert [item["xmin"] for item in record["objects"]] == ([] if name == "no_objects" else [48, 8])


def test_unknown_class(devkit):
    with pytest.raises(UserError, match=r"000009\.xml: the class 'person' is not one of the 2 known classes"):
        voc_devkit.convert_image_set(devkit, "2007", "val", ["cat", "dog"])


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ("000005\n000006\n", "000006.xml: no such annotation file"),
        ("000005\n../000005\n", "'../000005' is not the name of a VOC image"),
        ("000005\n5\n", "names the image 5 twice"),
    ],
)
def test_bad_image_set(devkit, names, reason):
    (devkit / "VOC2007" / "ImageSets" / "Main" / "train.txt").write_text(names)
    with pytest.raises(UserError, match=reason):
        voc_devkit.convert_image_set(devkit, "2007", "train", CLASSES)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda part: part.pop("categories"), "file 2 of 2 to merge: has no categories"),
        (lambda part: part["categories"].pop(), "its categories differ"),
        (lambda part: part["annotations"][0].pop("id"), "has no id"),
        (lambda part: part.update(images=3), "has no id"),
        (lambda part: part["images"][0].update(id=5), "duplicate image id 5"),
    ],
)
def test_parts_that_do_not_fit(devkit, change, reason):
    parts = [voc_devkit.convert_image_set(devkit, "2007", name, CLASSES) for name in ("train", "val")]
    change(parts[1])
    with pytest.raises(UserError, match=reason):
        voc_devkit.merge(parts)


def test_merge_of_nothing():
    with pytest.raises(UserError):
        voc_devkit.merge([])


def refuse(*_, **__):
    raise OSError("not on this file system")


@pytest.mark.parametrize("refused", [(), ("link",), ("link", "symlink")], ids=["hard link", "symbolic link", "copy"])
def test_link_images(devkit, tmp_path, monkeypatch, refused):
    for name in refused:
        monkeypatch.setattr(os, name, refuse)
    images = tmp_path / "images"
    lines = []
    assert voc_devkit.link_images(devkit, images, log=lines.append) == 7
    sources = sorted(devkit.glob("VOC*/JPEGImages/*.jpg"))
    assert sorted(path.name for path in images.iterdir()) == sorted(path.name for path in sources)
    for source in sources:
        target = images / source.name
        assert target.read_bytes() == source.read_bytes()
        assert target.is_symlink() == (len(refused) == 1)
        assert target.samefile(source) == (len(refused) < 2)
    # A second run repairs what is damaged and keeps the rest.
    monkeypatch.undo()
    kept = os.lstat(images / "000001.jpg")
    (images / "000005.jpg").unlink()
    (images / "000005.jpg").symlink_to("nowhere")
    (images / "000007.jpg").unlink()
    (images / "000007.jpg").write_bytes(b"half")
    assert voc_devkit.link_images(devkit, images, log=lines.append) == 7
    assert os.lstat(images / "000001.jpg") == kept
    assert cv2.imread(str(images / "000005.jpg")) is not None
    assert cv2.imread(str(images / "000007.jpg")) is not None
    assert "(2 by hard link)" in lines[1]


def test_missing_images(devkit, tmp_path):
    (devkit / "VOC2007" / "JPEGImages" / "000007.jpg").unlink()
    (devkit / "VOC2012" / "JPEGImages" / "2011_000010.jpg").unlink()
    with pytest.raises(UserError, match=r"missing: VOC2012/JPEGImages/2011_000010\.jpg, 2 in all"):
        voc_devkit.link_images(devkit, tmp_path / "images")


def test_link_images_into_a_file(devkit, tmp_path):
    (tmp_path / "images").write_text("")
    with pytest.raises(UserError, match="cannot be placed there"):
        voc_devkit.link_images(devkit, tmp_path / "images")
