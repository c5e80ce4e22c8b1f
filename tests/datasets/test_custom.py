"""Your own dataset: every layout is detected and read into the same objects, is scored, and errors are reported."""

import json
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from tests.helpers.layouts import (
    COCO_LAYOUTS,
    IMAGES,
    NAMES,
    STYLES,
    VOC_LAYOUTS,
    YOLO_LAYOUTS,
    check_objects,
    coco,
    coco_at_the_root,
    coco_of_roboflow,
    draw,
    parse,
    perfect,
    put,
    refused,
    voc_devkit_form,
    voc_files,
    voc_of_roboflow,
    yolo_images_first,
    yolo_labels,
    yolo_lists,
    yolo_outlines,
)

from centernet.conversion import coco as coco_layout
from centernet.conversion.finding import find_layout
from centernet.conversion.issues import raise_error
from centernet.datasets.custom import Custom
from centernet.datasets.outlines import outline_mask
from centernet.errors import UserError
from centernet.options import apply_model_metadata, model_metadata
from centernet.opts import opts
from centernet.tasks import build_task
from centernet.utils.images import image_size

# Layouts


@pytest.mark.parametrize("layout", [yolo_outlines, yolo_images_first, coco_at_the_root])
def test_outlines(tmp_path, layout):
    """Polygons of YOLO's labels and COCO's are read in pixels; boxes are no outlines."""
    layout(tmp_path)
    if layout is coco_at_the_root:
        content = coco("train")
        for one in content["annotations"]:
            x, y, w, h = one["bbox"]
            one["segmentation"] = [[x, y, x + w, y, x + w, y + h, x + w / 2, y + h, x, y + h]]
        put(tmp_path / "train.json", content)
    dataset = Custom(build_task(parse(tmp_path, "--copy_paste", "0.5")), "train")
    assert any("--copy_paste has no effect" in note for note in dataset.notes) == (layout is yolo_images_first)
    for name, (width, height), objects in IMAGES["train"]:
        outlines = dataset.read_outlines([Path(file).stem for file in dataset.file_names].index(name))
        assert len(outlines) == len(objects)
        for outline, (_, x, y, w, h) in zip(outlines, objects, strict=True):
            mask = outline_mask(outline, height, width)
            if layout is yolo_images_first:
                assert mask is None
            else:
                assert mask.sum() == w * h and mask[y : y + h, x : x + w].all()


@pytest.mark.parametrize("layout", COCO_LAYOUTS + VOC_LAYOUTS + YOLO_LAYOUTS, ids=lambda layout: layout.__name__)
def test_layouts(tmp_path, layout):
    layout(tmp_path)
    opt = parse(tmp_path)
    style = layout.__name__.split("_")[0]
    assert opt.class_names == (sorted(NAMES) if style == "voc" else list(NAMES))
    assert (opt.input_h, opt.input_w) == (64, 64) and opt.max_objs == 2
    assert opt.main_score == ("mAP" if style == "voc" else "AP")
    for split in ("train", "val"):
        check_objects(Custom(build_task(opt), split), split)
    dataset = Custom(build_task(opt), "val")
    scores = dataset.evaluate(perfect(dataset))
    assert list(scores)[: len(dataset.score_names)] == list(dataset.score_names)
    assert opt.main_score in dataset.score_names
    for name in ("mAP", "mAP_area", opt.main_score, "AP/fox", "AP/hen house"):
        assert scores[name] == pytest.approx(1)
    nothing = {image_id: {} for image_id in dataset.image_ids}
    assert dataset.evaluate(nothing)[opt.main_score] == 0


@pytest.mark.parametrize("style", STYLES)
def test_a_test_needs_the_validation_part_only(tmp_path, style):
    STYLES[style](tmp_path)
    for path in sorted(tmp_path.rglob("t[123].*")):
        path.unlink()
    dataset = Custom(build_task(parse(tmp_path)), "val")
    assert len(dataset) == 2
    with pytest.raises(UserError):
        Custom(build_task(dataset.opt), "train")


@pytest.mark.parametrize("style", STYLES)
def test_parts_that_are_named(tmp_path, style):
    """Files of any name are named by options, as paths or relative to the folder."""
    STYLES[style](tmp_path / "a")
    root = tmp_path / "a"
    moved = {
        "coco": [("train.json", "one.json"), ("val.json", "two.json"), ("images", "pics")],
        "voc": [("ImageSets/Main/train.txt", "one.txt"), ("ImageSets/Main/val.txt", "two.txt"), ("JPEGImages", "pics")],
        "yolo": [("images/train", "pics/one"), ("images/val", "pics/two"), ("labels/train", "one")]
        + [("labels/val", "two")],
    }[style]
    for old, new in moved:
        (root / new).parent.mkdir(exist_ok=True)
        (root / old).rename(root / new)
    one, two = {"coco": ("one.json", "two.json"), "voc": ("one.txt", "two.txt"), "yolo": ("one", "two")}[style]
    images = ("pics/one", "pics/two") if style == "yolo" else ("pics", "pics")
    opt = parse(
        root,
        *("--train_annotations", one, "--val_annotations", str(root / two)),
        *("--train_images", images[0], "--val_images", str(root / images[1])),
    )
    for split in ("train", "val"):
        check_objects(Custom(build_task(opt), split), split)


def test_yolo_images_that_are_named(tmp_path):
    """The label folder is derived from the image folder."""
    yolo_images_first(tmp_path)
    (tmp_path / "images/train").rename(tmp_path / "images/a")
    (tmp_path / "labels/train").rename(tmp_path / "labels/a")
    check_objects(Custom(build_task(parse(tmp_path, "--train_images", "images/a")), "train"), "train")


def test_folders_of_xml_files_and_of_images_that_are_named(tmp_path):
    draw(tmp_path / "images", "train")
    voc_files(tmp_path / "xml", "train")
    draw(tmp_path / "mixed", "val")
    voc_files(tmp_path / "mixed", "val")
    opt = parse(tmp_path, "--train_annotations", "xml", "--val_annotations", "mixed")
    for split in ("train", "val"):
        check_objects(Custom(build_task(opt), split), split)


def test_styles_of_two_parts_may_differ(tmp_path):
    coco_at_the_root(tmp_path / "a")
    voc_of_roboflow(tmp_path / "b")
    opt = parse(tmp_path / "a", "--val_annotations", str(tmp_path / "b/valid"))
    assert opt.main_score == "mAP"
    for split in ("train", "val"):
        check_objects(Custom(build_task(opt), split), split)


# data.yaml


def yaml_data(root, text):
    for split in ("train", "val"):
        draw(root / "images" / split, split)
        yolo_labels(root / "labels" / split, split)
    put(root / "data.yaml", text)


@pytest.mark.parametrize(
    "text",
    [
        "train: ../images/train\nval: ../images/val\nnc: 2\nnames: ['hen house', 'fox']\n",
        "path: /content/somewhere\ntrain: images/train\nval: images/val\nnames:\n  0: hen house\n  1: fox\n",
        "path: .\ntrain: [images/train]\nvalid: ./images/val\nnames: [hen house, fox]\n",
        "names: {'1': fox, '0': hen house}\n",
    ],
)
def test_data_yaml(tmp_path, text):
    pytest.importorskip("yaml")
    yaml_data(tmp_path, text)
    opt = parse(tmp_path)
    assert opt.class_names == list(NAMES)
    for split in ("train", "val"):
        check_objects(Custom(build_task(opt), split), split)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: nowhere\nnames: [a, b]\n", "data.yaml: names the images nowhere for train, which do not exist"),
        ("names: {0: a, 2: b}\n", "data.yaml: its names are not numbered from 0 without gaps"),
        ("nc: 3\nnames: [a, b]\n", "data.yaml: nc is 3, but there are 2 names"),
        ("names: [a, b\n", "data.yaml: not a readable YAML file"),
        ("nc: 2\n", "needs the names of the classes"),
    ],
)
def test_errors_in_data_yaml(tmp_path, text, message):
    pytest.importorskip("yaml")
    yaml_data(tmp_path, text)
    with pytest.raises(UserError, match=message) as caught:
        layout = find_layout(tmp_path, "train")
        layout.class_names(layout.read_checked(raise_error))
    assert "\n" not in str(caught.value)


def test_data_yaml_without_its_reader(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    yaml_data(tmp_path, "names: [a, b]\n")
    assert "data.yaml: reading it needs `pip install pyyaml`; or write the class names" in refused(capsys, tmp_path)
    put(tmp_path / "classes.txt", "hen house\nfox\n")
    check_objects(Custom(build_task(parse(tmp_path)), "train"), "train")


# Ids


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ({"ids": (0, 1), "first": 0, "number": 0}, {"ids": (0, 1), "first": 0, "number": 0}),
        ({"ids": (90, 7)}, {"ids": (3, 44), "first": 123_456_789_012}),
        ({"text_ids": True, "ids": ("h", "f")}, {"text_ids": True, "ids": ("f", "h")}),
    ],
    ids=["from zero", "numbered differently", "words"],
)
def test_ids(tmp_path, train, val):
    draw(tmp_path / "images", "train")
    draw(tmp_path / "images", "val")
    put(tmp_path / "train.json", coco("train", **train))
    content = coco("val", **val)
    content["categories"].reverse()
    put(tmp_path / "val.json", content)
    opt = parse(tmp_path)
    assert opt.class_names == list(NAMES) and opt.category_ids == list(train["ids"])
    for split in ("train", "val"):
        check_objects(Custom(build_task(opt), split), split)
    dataset = Custom(build_task(opt), "val")
    scores = dataset.evaluate(perfect(dataset))
    assert scores["AP"] == scores["mAP"] == scores["AP/fox"] == pytest.approx(1)
    dataset.save_results(perfect(dataset), tmp_path / "results.json")
    results = json.loads((tmp_path / "results.json").read_text())
    expected = [(a["image_id"], a["category_id"], a["bbox"]) for a in content["annotations"]]
    assert [(r["image_id"], r["category_id"], r["bbox"]) for r in results] == expected
    assert all(r["score"] == 1 for r in results)


@pytest.mark.parametrize("style", ["voc", "yolo"])
def test_ids_of_results(tmp_path, style):
    STYLES[style](tmp_path)
    dataset = Custom(build_task(parse(tmp_path)), "val")
    dataset.save_results(perfect(dataset), tmp_path / "results.json")
    results = json.loads((tmp_path / "results.json").read_text())
    ids = {(r["image_id"], r["category_id"]) for r in results}
    if style == "voc":
        assert ids == {("v1", "fox"), ("v2", "hen house")}
    else:
        assert ids == {("v1.jpg", 1), ("v2.jpg", 0)}


def test_a_class_that_only_one_part_has(tmp_path):
    """VOC: the names of both parts, those of the training first; COCO: listed is enough."""
    voc_devkit_form(tmp_path)
    path = tmp_path / "Annotations/v1.xml"
    path.write_text(path.read_text().replace("fox", "bear", 1))
    opt = parse(tmp_path)
    assert opt.class_names == ["fox", "hen house", "bear"]
    dataset = Custom(build_task(opt), "val")
    scores = dataset.evaluate(perfect(dataset))
    assert scores["mAP"] == pytest.approx(1) and scores["AP/bear"] == pytest.approx(1)
    assert Custom(build_task(opt), "train").class_names == opt.class_names


def test_classes_without_objects_do_not_count(tmp_path):
    coco_at_the_root(tmp_path)
    for split in ("train", "val"):
        content = coco(split)
        content["categories"].append({"id": 9, "name": "bear"})
        put(tmp_path / f"{split}.json", content)
    dataset = Custom(build_task(parse(tmp_path)), "val")
    assert dataset.class_names == [*NAMES, "bear"]
    results = perfect(dataset)
    for rows in results.values():
        rows[3] = np.array([[1, 1, 20, 20, 0.9]], np.float32)
    scores = dataset.evaluate(results)
    assert scores["AP"] == scores["mAP"] == pytest.approx(1) and "AP/bear" not in scores


def test_names_of_voc_classes_may_be_given(tmp_path):
    voc_devkit_form(tmp_path)
    put(tmp_path / "classes.txt", "hen house\nwolf\nfox\n")
    opt = parse(tmp_path)
    assert opt.class_names == ["hen house", "wolf", "fox"]
    check_objects(Custom(build_task(opt), "train"), "train")


def test_a_heading_with_objects_is_a_class(tmp_path):
    coco_of_roboflow(tmp_path)
    path = tmp_path / "train/_annotations.coco.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["category_id"] = 0
    put(path, content)
    assert parse(tmp_path).class_names == ["animals", *NAMES]


def test_a_class_of_the_name_of_its_heading(tmp_path):
    coco_at_the_root(tmp_path)
    for split in ("train", "val"):
        content = coco(split)
        for category in content["categories"]:
            category["supercategory"] = "fox"
        content["categories"].insert(0, {"id": 0, "name": "fox", "supercategory": "none"})
        put(tmp_path / f"{split}.json", content)
    assert parse(tmp_path).class_names == list(NAMES)


def test_numbers_as_names(tmp_path):
    coco_at_the_root(tmp_path)
    for split in ("train", "val"):
        content = coco(split)
        for category in content["categories"]:
            category["name"] = 10 * category["id"]
        put(tmp_path / f"{split}.json", content)
    dataset = Custom(build_task(parse(tmp_path)), "val")
    assert dataset.class_names == ["10", "20"]
    assert dataset.evaluate(perfect(dataset))["AP/20"] == pytest.approx(1)


def test_names_of_voc_images_may_have_spaces_and_points(tmp_path):
    voc_devkit_form(tmp_path)
    for folder, suffix in (("JPEGImages", "jpg"), ("Annotations", "xml")):
        (tmp_path / folder / f"t1.{suffix}").rename(tmp_path / folder / f"my t.1.{suffix}")
    put(tmp_path / "ImageSets/Main/train.txt", "my t.1\nt2 -1\n")
    dataset = Custom(build_task(parse(tmp_path)), "train")
    assert dataset.image_ids == ["my t.1", "t2"]
    assert dataset.read_image(0).shape == (48, 64, 3)


# Scores


def test_difficult_objects(tmp_path):
    """They are trained, need not be found, and what is found there is not wrong."""
    voc_devkit_form(tmp_path)
    voc_files(tmp_path / "Annotations", "val", difficult=1)
    dataset = Custom(build_task(parse(tmp_path)), "val")
    assert [len(dataset.read_objects(k)["cls"]) for k in range(2)] == [2, 1]
    fox = dataset.class_names.index("fox") + 1
    results = {"v1": {fox: np.array([[34, 22, 54, 46, 0.9], [2, 2, 32, 22, 0.95]], np.float32)}, "v2": {}}
    scores = dataset.evaluate(results)
    assert scores["mAP"] == scores["mAP_area"] == pytest.approx(1)
    assert "AP/hen house" not in scores  # its only object is difficult
    results["v1"][fox] = results["v1"][fox][1:]
    assert dataset.evaluate(results)["mAP"] == 0


def test_a_false_positive_halves_the_score(tmp_path):
    coco_at_the_root(tmp_path)
    dataset = Custom(build_task(parse(tmp_path)), "val")
    results = perfect(dataset)
    results[1][2] = np.vstack([results[1][2][:1], [[0, 30, 10, 40, 0.5]]]).astype(np.float32)
    scores = dataset.evaluate(results)
    # One of two foxes: eleven points, six of them reached; area 1/2. COCO's 101 recalls, 51 reached.
    assert scores["AP/fox"] == pytest.approx(51 / 101) and scores["AP"] == pytest.approx((1 + 51 / 101) / 2)
    assert scores["mAP"] == pytest.approx((1 + 6 / 11) / 2) and scores["mAP_area"] == pytest.approx(0.75)


def test_crowds_and_fields_that_are_left_out(tmp_path):
    coco_at_the_root(tmp_path)
    content = coco("val")
    content["annotations"][0].update(iscrowd=1, area=None)
    content["annotations"][1].update(bbox=["34", "22", "20", "24"])
    put(tmp_path / "val.json", content)
    dataset = Custom(build_task(parse(tmp_path)), "val")
    check_objects(dataset, "val")
    results = perfect(dataset)
    results[1][2] = results[1][2][1:]
    assert dataset.evaluate(results)["AP"] == pytest.approx(1)  # the crowd need not be found


# What follows from the data


@pytest.mark.parametrize(
    ("sides", "expected"),
    [([30], 64), ([65], 96), ([100, 200, 2000], 224), ([640, 512, 4000], 512), ([320], 320)],
)
def test_the_resolution_follows_from_the_images(tmp_path, sides, expected):
    coco_at_the_root(tmp_path)
    content = coco("train")
    content["images"] = [
        {"id": k, "file_name": "t1.jpg", "width": side, "height": 20} for k, side in enumerate(sides, start=1)
    ]
    content["annotations"] = content["annotations"][:1]
    put(tmp_path / "train.json", content)
    opt = parse(tmp_path)
    assert (opt.input_h, opt.input_w) == (expected, expected)
    assert parse(tmp_path, "--input_res", "128").input_h == 128
    # A network with a coarser grid gets the next size that fits it.
    assert parse(tmp_path, "--arch", "hourglass").input_h == -(-expected // 128) * 128


@pytest.mark.parametrize("size", [{}, {"width": None, "height": "x"}, {"width": float("inf"), "height": [1]}])
def test_the_resolution_of_images_whose_size_is_not_stated(tmp_path, size):
    coco_at_the_root(tmp_path)
    content = coco("train")
    for image in content["images"]:
        del image["width"], image["height"]
        image.update(size)
    put(tmp_path / "train.json", content)
    assert parse(tmp_path).input_h == 64


def test_all_objects_of_an_image_are_used(tmp_path):
    coco_at_the_root(tmp_path)
    content = coco("train")
    content["annotations"] = [{**content["annotations"][0], "id": k} for k in range(150)]
    put(tmp_path / "train.json", content)
    assert parse(tmp_path).max_objs == 150
    assert parse(tmp_path, "--augment", "light").max_objs == 600  # of a mosaic
    assert parse(tmp_path, "--preset", "fast", "--copy_paste", "0.5").max_objs == 750
    content["annotations"] = []
    put(tmp_path / "train.json", content)
    assert parse(tmp_path).max_objs == 1


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_rotated_images(tmp_path, orientation, suffix):
    """YOLO boxes are fractions of the displayed image, which is how OpenCV reads it."""
    image = np.zeros((32, 64, 3), np.uint8)
    exif = Image.Exif()
    exif[274] = orientation
    (tmp_path / "images/train").mkdir(parents=True)
    path = tmp_path / f"images/train/a.{suffix}"
    Image.fromarray(image).save(path, exif=exif)
    put(tmp_path / "labels/train/a.txt", "0 0.5 0.25 0.5 0.5\n")
    put(tmp_path / "classes.txt", "fox\n")
    height, width = cv2.imread(str(path)).shape[:2]
    assert image_size(path) == (width, height)
    if suffix == "jpg":
        assert (width, height) == ((32, 64) if orientation in (6, 8) else (64, 32))
    dataset = Custom(build_task(parse(tmp_path, "--val_intervals", "0")), "train")
    np.testing.assert_allclose(dataset.read_objects(0)["boxes"], [[width / 4, 0, 3 * width / 4, height / 2]])


# The description in a checkpoint


def test_the_metadata_hold_the_place_of_the_data(tmp_path):
    coco_at_the_root(tmp_path)
    (tmp_path / "val.json").rename(tmp_path / "other.json")
    opt = parse(tmp_path, "--val_annotations", "other.json")
    metadata = json.loads(json.dumps(model_metadata(opt)))
    plain = opts().parse(["ctdet", "--load_model", "x.pth"])
    again = apply_model_metadata(plain, metadata)
    assert again.dataset == "custom" and again.class_names == list(NAMES)
    assert (again.input_h, again.input_w) == (64, 64)
    check_objects(Custom(build_task(again), "val"), "val")


def test_a_checkpoint_is_tested_on_other_data_of_the_same_classes(tmp_path):
    coco_at_the_root(tmp_path / "a")
    metadata = model_metadata(parse(tmp_path / "a"))
    yolo_images_first(tmp_path / "b")
    again = apply_model_metadata(parse(tmp_path / "b", "--load_model", "x.pth"), metadata)
    check_objects(Custom(build_task(again), "val"), "val")
    # In another order and fewer: classes are matched by name.
    put(tmp_path / "b/classes.txt", "fox\nhen house\n")
    again = apply_model_metadata(parse(tmp_path / "b", "--load_model", "x.pth"), metadata)
    dataset = Custom(build_task(again), "val")
    assert dataset.class_names == list(NAMES)
    check_objects(dataset, "val", names=NAMES[::-1])
    assert dataset.evaluate(perfect(dataset))["AP"] == pytest.approx(1)
    put(tmp_path / "b/classes.txt", "fox\nhen\n")
    with pytest.raises(UserError, match="--dataset custom: its classes are not those of the network in x.pth"):
        apply_model_metadata(parse(tmp_path / "b", "--load_model", "x.pth"), metadata)


# Errors


def test_empty_folder(tmp_path, capsys):
    assert f"--data_path {tmp_path}: no annotations found" in refused(capsys, tmp_path)
    assert "does not exist" in refused(capsys, tmp_path / "none")


@pytest.mark.parametrize("name", ["data.yaml", "train.json", "data.zip"])
def test_a_file_in_the_place_of_the_folder(tmp_path, capsys, name):
    yolo_images_first(tmp_path)
    put(tmp_path / name, "names: [hen house, fox]\n")
    message = refused(capsys, tmp_path / name)
    assert f"--data_path {tmp_path / name}: this is a file; name the folder of the dataset custom" in message


def test_no_validation_part(tmp_path):
    coco_at_the_root(tmp_path)
    (tmp_path / "val.json").unlink()
    opt = parse(tmp_path)
    assert len(Custom(build_task(opt), "train")) == 3
    with pytest.raises(UserError, match="no annotations to test on; specify them with --val_annotations, or use"):
        Custom(build_task(opt), "val")


def test_options_of_custom_with_another_data_set(capsys):
    with pytest.raises(SystemExit):
        opts().parse(["ctdet", "--dataset", "pascal", "--train_images", "a", "--val_annotations", "b"])
    message = capsys.readouterr().err
    assert "--train_images, --val_annotations: only for --dataset custom" in message and message.count("\n") == 1


@pytest.mark.parametrize("option", ["train_annotations", "val_annotations", "train_images", "val_images"])
def test_a_given_path_that_does_not_exist(tmp_path, option):
    coco_at_the_root(tmp_path)
    split = option.split("_")[0]
    opt = parse(tmp_path, f"--{option}", "nowhere")
    with pytest.raises(UserError, match=f"^--{option} nowhere: no such file or folder"):
        Custom(build_task(opt), split)


def change_json(root, change, split="train"):
    path = root / f"{split}.json"
    content = json.loads(path.read_text())
    change(content)
    put(path, content)


COCO_ERRORS = [
    (lambda c: c["categories"][0].update(name="fox"), "the class fox is listed more than once"),
    (lambda c: c["categories"].append({"id": 2, "name": "bear"}), "duplicate category id 2"),
    (lambda c: c["categories"].append({"name": "bear"}), "a category has no id or no name"),
    (lambda c: c["categories"].append(["bear"]), "a category has no id or no name"),
    (lambda c: c["categories"][0].update(name=" "), "a category has no id or no name"),
    (lambda c: c["images"].append(c["images"][0]), "duplicate image id 1"),
    (lambda c: c["images"].append({"id": 5}), "lacks 'file_name'"),
    (lambda c: c["images"].append(7), "malformed"),
    (lambda c: c["annotations"].append({"image_id": 1, "category_id": 1}), "annotation 4 has no bbox"),
    (lambda c: c["annotations"].append(7), "annotation number 4 is malformed"),
    (lambda c: c["annotations"][0].update(bbox=[1, 2, -3, 4]), "whose width or height is negative"),
    (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "annotation 1 has a bbox that is not [x, y, width, height]"),
    (
        lambda c: c["annotations"][0].update(bbox=[1, 2, 3, "x"]),
        "annotation 1 has a bbox that is not [x, y, width, height]",
    ),
    (
        lambda c: c["annotations"][0].update(bbox=[1, 2, 3, float("nan")]),
        "annotation 1 has a bbox that is not [x, y, width, height]",
    ),
    (
        lambda c: c["annotations"][0].update(bbox=[1, 2, 3, 10**400]),
        "annotation 1 has a bbox that is not [x, y, width, height]",
    ),
    (lambda c: c["annotations"][0].update(image_id=[1]), "annotation 1 has the image_id"),
    (lambda c: c["annotations"][0].update(category_id=None), "annotation 1 has the category_id None"),
    (lambda c: c["annotations"][0].update(category_id=77), "has the unknown category_id 77"),
    (lambda c: c.update(images=[]), "it lists no images"),
    (lambda c: c.pop("categories"), "it has no list 'categories'"),
    (lambda c: c.update(categories=[], annotations=[]), "no classes found"),
    (lambda c: c["images"].__setitem__(slice(None), [{"id": 1, "file_name": "q" * 9000}]), "were not found in"),
]


@pytest.mark.parametrize(("change", "message"), COCO_ERRORS, ids=[message for _, message in COCO_ERRORS])
def test_errors_in_json(tmp_path, capsys, change, message):
    coco_at_the_root(tmp_path)
    change_json(tmp_path, change)
    try:
        opt = parse(tmp_path)
    except SystemExit:
        text = capsys.readouterr().err.strip()
    else:
        with pytest.raises(UserError) as caught:
            Custom(build_task(opt), "train")
        text = str(caught.value)
    assert message in text and str(tmp_path / "train.json") in text and "\n" not in text and len(text) < 400


def test_a_class_that_the_training_does_not_have(tmp_path):
    coco_at_the_root(tmp_path)
    change_json(tmp_path, lambda c: c["categories"].append({"id": 3, "name": "bear"}), "val")
    opt = parse(tmp_path)
    check_objects(Custom(build_task(opt), "val"), "val")  # a class without objects does no harm
    change_json(tmp_path, lambda c: c["annotations"][0].update(category_id=3), "val")
    message = r"val.json: has objects of the class bear, which is not one of the 2 known ones \(hen house, fox\)"
    with pytest.raises(UserError, match=message):
        Custom(build_task(opt), "val")


def test_several_matching_files(tmp_path, capsys):
    coco_at_the_root(tmp_path)
    shutil.copy(tmp_path / "train.json", tmp_path / "old_train.json")
    opt = parse(tmp_path)
    with pytest.raises(UserError, match="^--train_annotations: several files match: .*old_train.json, .*choose"):
        Custom(build_task(opt), "train")
    check_objects(Custom(build_task(parse(tmp_path, "--train_annotations", "train.json")), "train"), "train")
    for k in range(100):
        shutil.copy(tmp_path / "train.json", tmp_path / f"train_{k}.json")
    with pytest.raises(UserError, match="102 in all; choose one") as caught:
        Custom(build_task(opt), "train")
    assert len(str(caught.value)) < 1000


def test_missing_images(tmp_path, capsys):
    coco_at_the_root(tmp_path)
    shutil.rmtree(tmp_path / "images")
    message = r"train.json: its images (t1.jpg) were not found in .* specify their folder with --train_images"
    assert message.split(" in ")[0] in refused(capsys, tmp_path)
    voc_devkit_form(tmp_path / "voc")
    shutil.rmtree(tmp_path / "voc/JPEGImages")
    assert "the images of its XML files were not found; specify their folder with" in refused(capsys, tmp_path / "voc")


VOC_ERRORS = [
    (lambda root: put(root / "ImageSets/Main/train.txt", "t1\nt9\n"), r"line 2 names 't9', which has no XML file in "),
    (lambda root: put(root / "ImageSets/Main/train.txt", ""), "it lists no images"),
    (lambda root: put(root / "Annotations/t1.xml", "<annotation>"), r"t1\.xml: not well-formed XML"),
    (
        lambda root: put(root / "classes.txt", "fox\n"),
        "objects of the class hen house, which is not one of the 1 known",
    ),
    (lambda root: put(root / "classes.txt", "fox\nhen house\nfox\n"), "the class fox is listed more than once"),
    (lambda root: shutil.copytree(root / "Annotations", root / "b/Annotations"), "contains several VOC folders"),
]


@pytest.mark.parametrize(("spoil", "message"), VOC_ERRORS, ids=[message for _, message in VOC_ERRORS])
def test_errors_in_xml(tmp_path, spoil, message):
    voc_devkit_form(tmp_path)
    spoil(tmp_path)
    with pytest.raises((UserError, SystemExit), match=f"{message}|^2$") as caught:
        Custom(build_task(parse(tmp_path)), "train")
    if caught.type is SystemExit:  # found by the options
        with pytest.raises(UserError, match=message) as caught:
            layout = find_layout(tmp_path, "train")
            layout.class_names(layout.read_checked(raise_error))
    assert "\n" not in str(caught.value)


LABEL_ERRORS = [
    ("0 320 200 64 48", r"coordinates are fractions of the image, from 0 to 1"),
    ("2 0.5 0.5 0.1 0.1", r"line 2 has the class 2, there are 2 names"),
    ("-1 0.5 0.5 0.1 0.1", r"line 2 has the class -1, there are 2 names"),
    ("0 0.5 0.5 -0.1 0.1", r"a negative size"),
    ("0 0.5 0.5 nan 0.1", r"not finite"),
    ("0.5 0.5 0.5 0.1 0.1", r"the class is not an integer"),
    ("nan 0.5 0.5 0.1 0.1", r"line 2 is not a label"),
    ("inf 0.5 0.5 0.1 0.1", r"line 2 is not a label"),
    ("fox 0.5 0.5 0.1 0.1", r"line 2 is not a label \(could not convert string to float"),
    ("0 0.5 0.5 0.1", r"needs a class and x, y, width, height"),
    ("0 0.5 0.5 0.1 0.1 0.9 0.8 0.7", r"needs a class and x, y, width, height"),
    ("0", r"needs a class and x, y, width, height"),
]


@pytest.mark.parametrize(("line", "message"), LABEL_ERRORS, ids=[line for line, _ in LABEL_ERRORS])
def test_errors_in_labels(tmp_path, line, message):
    yolo_images_first(tmp_path)
    put(tmp_path / "labels/train/t2.txt", f"1 0.5 0.5 0.1 0.1\n{line}\n")
    opt = parse(tmp_path)
    with pytest.raises(UserError, match=rf"labels/train/t2\.txt: line 2 .*{message.removeprefix('line 2 ')}") as caught:
        Custom(build_task(opt), "train")
    assert "\n" not in str(caught.value)
    issues = []
    content = find_layout(tmp_path, "train").read_checked(issues.append)
    assert len(issues) == 1 and len(content["annotations"]) == 3  # the others are kept


def test_other_errors_in_yolo_folders(tmp_path, capsys):
    yolo_images_first(tmp_path)
    (tmp_path / "images/train/t2.jpg").write_text("no image")
    with pytest.raises(UserError, match=r"t2\.jpg: cannot read image"):
        Custom(build_task(parse(tmp_path)), "train")
    (tmp_path / "images/train/t2.jpg").unlink()
    shutil.rmtree(tmp_path / "labels/train")
    message = f"none of the 2 images has labels; looked for {tmp_path / 'images/train/t3.txt'}"
    with pytest.raises(UserError) as caught:
        Custom(build_task(parse(tmp_path)), "train")
    assert message in str(caught.value)
    put(tmp_path / "classes.txt", "\n")
    assert message in refused(capsys, tmp_path)  # names would be of no use
    yolo_labels(tmp_path / "labels/train", "train")
    assert "needs the names of the classes, one per line in classes.txt, or in data.yaml" in refused(capsys, tmp_path)
    put(tmp_path / "classes.txt", "fox\nfox\n")
    assert "the class fox is listed more than once" in refused(capsys, tmp_path)


@pytest.mark.parametrize("line", ["/", ".", "..", "images"])
def test_a_list_that_names_a_directory(tmp_path, line):
    yolo_lists(tmp_path)
    with open(tmp_path / "train.txt", "a") as file:
        file.write(f"{line}\n")
    with pytest.raises(UserError, match="cannot read image"):
        Custom(build_task(parse(tmp_path)), "train")
    assert len(Custom(build_task(parse(tmp_path, "--on_bad_image", "skip")), "train")) == len(IMAGES["train"])


def test_a_list_that_names_a_missing_image(tmp_path):
    yolo_lists(tmp_path)
    with open(tmp_path / "train.txt", "a") as file:
        file.write("images/t9.jpg\n")
    with pytest.raises(UserError, match=r"images/t9\.jpg: cannot read image: no such file"):
        Custom(build_task(parse(tmp_path)), "train")


def test_annotations_of_no_known_form(tmp_path):
    coco_at_the_root(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bytes.bin").write_bytes(b"\xff\xfe\x00" * 9)
    put(tmp_path / "words.txt", "one\ntwo\n")
    for name, message in (
        ("empty", "this folder holds neither XML files nor labels"),
        ("bytes.bin", r"bytes\.bin: cannot be read as text"),
        ("words.txt", "the folder of its XML files, .*Annotations, does not exist"),
    ):
        opt = parse(tmp_path, "--train_annotations", name)
        with pytest.raises(UserError, match=message):
            Custom(build_task(opt), "train")


def test_large_files_are_read_once_to_find_their_images(tmp_path, monkeypatch):
    coco_at_the_root(tmp_path)
    count = []
    read = coco_layout.read_annotation_file
    monkeypatch.setattr(coco_layout, "read_annotation_file", lambda *args: count.append(args) or read(*args))
    for _ in range(5):
        layout = find_layout(tmp_path, "train")
        assert (layout.style, layout.annotations) == ("coco", tmp_path / "train.json")
        assert layout.images == tmp_path / "images"
    assert len(count) == 1
