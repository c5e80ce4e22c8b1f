"""Custom datasets in practice: exports of labeling tools, paths from other machines, encodings, and stray files."""

import json
import os
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from tests.helpers.layouts import (
    IMAGES,
    NAMES,
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
    yolo_images_first,
    yolo_labels,
    yolo_lists,
    yolo_split_first,
)
from tests.helpers.tool_exports import (
    cvat_text,
    cvat_xml,
    label_studio_coco,
    labelimg_yolo,
    labelme_files,
    labelme_flat,
)
from tests.helpers.training import load_script, output_of

from centernet.conversion.finding import find_layout
from centernet.conversion.issues import ignore_issue
from centernet.conversion.layout import is_split_name, split_rank
from centernet.conversion.yolo import are_poses
from centernet.datasets.custom import Custom
from centernet.errors import UserError
from centernet.evaluation.results import score_exists
from centernet.tasks import build_task


def check(root, *arguments, splits=("train", "val"), names=NAMES) -> list[str]:
    """Every split is read into the right objects; returns the notes of all."""
    opt = parse(root, *arguments)
    notes = []
    for split in splits:
        dataset = Custom(build_task(opt), split)
        check_objects(dataset, split, names)
        dataset.check_images_exist()
        notes += dataset.notes
    return notes


def change_json(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    put(path, content)


# Paths of other machines

PREFIXES = [
    "images\\",
    ".\\images\\",
    "C:\\Users\\me\\set\\images\\",
    "C:/Users/me/set/images/",
    "/content/drive/MyDrive/set/images/",
    "../images/",
    "../../set-3/images/",
    "/mnt/d/",
    "\\\\server\\share\\images\\",
    "file:///home/me/images/",
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_json_of_another_machine(tmp_path, prefix):
    coco_at_the_root(tmp_path)
    for split in ("train", "val"):
        change_json(
            tmp_path / f"{split}.json", lambda c: [i.update(file_name=prefix + i["file_name"]) for i in c["images"]]
        )
    notes = check(tmp_path)
    assert any("file names that were found elsewhere" in note and "3 image(s)" in note for note in notes)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("layout", ["yaml", "list", "image set"])
def test_lists_of_another_machine(tmp_path, prefix, layout):
    if layout == "yaml":
        pytest.importorskip("yaml")
        for split in ("train", "val"):
            draw(tmp_path / f"images/a_{split}", split)
            yolo_labels(tmp_path / f"labels/a_{split}", split)
        text = "".join(f"{split}: '{prefix}a_{split}'\n" for split in ("train", "val"))
        put(tmp_path / "data.yaml", text + "names: [hen house, fox]\n")
        if "images" not in prefix:
            pytest.skip("the folder cannot be known")
    elif layout == "list":
        put(tmp_path / "classes.txt", "hen house\nfox\n")
        for split in ("train", "val"):
            draw(tmp_path / "images", split)
            yolo_labels(tmp_path / "labels", split)
            put(tmp_path / f"{split}.txt", "".join(f"{prefix}{name}.jpg\n" for name, *_ in IMAGES[split]))
        if "images" not in prefix:
            shutil.copytree(tmp_path / "images", tmp_path, dirs_exist_ok=True)
            shutil.copytree(tmp_path / "labels", tmp_path, dirs_exist_ok=True)
    else:
        voc_devkit_form(tmp_path)
        for split in ("train", "val"):
            lines = "".join(f"{prefix.replace('images', 'JPEGImages')}{name}.jpg\n" for name, *_ in IMAGES[split])
            put(tmp_path / f"ImageSets/Main/{split}.txt", lines)
    check(tmp_path, names=NAMES)


def test_a_file_of_another_split_does_not_take_the_place_of_a_missing_one(tmp_path):
    """Frames of two videos have the same names."""
    for split in ("train", "val"):
        draw(tmp_path / "images" / split, split)
        put(tmp_path / f"annotations/{split}.json", coco(split))
    (tmp_path / "images/train/t1.jpg").rename(tmp_path / "images/val/t1.jpg")
    dataset = Custom(build_task(parse(tmp_path)), "train")
    with pytest.raises(UserError, match=r"images/train: 1 of 3 images are missing, the first is t1\.jpg"):
        dataset.check_images_exist()


def test_a_yaml_whose_folders_do_not_exist(tmp_path, capsys):
    pytest.importorskip("yaml")
    yolo_images_first(tmp_path)
    put(tmp_path / "data.yaml", "train: one\nval: two\nnames: [hen house, fox]\n")
    message = refused(capsys, tmp_path)
    assert "data.yaml: names the images one for train, which do not exist below" in message
    assert message.endswith("; name the right ones with --train_annotations\n")
    put(tmp_path / "data.yaml", "train: images/train\nval: two\nnames: [hen house, fox]\n")
    assert check(tmp_path, "--val_intervals", "0", splits=("train",)) == []
    with pytest.raises(UserError, match="name the right ones with --val_annotations, or use --val_intervals 0$"):
        Custom(build_task(parse(tmp_path)), "val")
    check(tmp_path, "--val_annotations", "images/val")


def test_two_splits_of_a_yaml_that_would_be_one_folder(tmp_path, capsys):
    """The folders of the yaml do not exist; what is left of their paths is the same."""
    pytest.importorskip("yaml")
    draw(tmp_path / "images", "train")
    yolo_labels(tmp_path / "labels", "train")
    put(tmp_path / "data.yaml", "train: ../train/images\nval: ../valid/images\nnames: [hen house, fox]\n")
    assert "would both be" in refused(capsys, tmp_path)


def test_names_that_fit_several_images(tmp_path, capsys):
    coco_at_the_root(tmp_path)
    for folder in ("one", "two"):
        shutil.copytree(tmp_path / "images", tmp_path / "more" / folder)
    shutil.rmtree(tmp_path / "images")
    assert "'t1.jpg' fits several images, among them" in refused(capsys, tmp_path)


def test_images_in_deeper_folders(tmp_path):
    """The JSON file has names without folders."""
    coco_at_the_root(tmp_path)
    for k, path in enumerate(sorted((tmp_path / "images").iterdir())):
        target = tmp_path / "images" / f"batch {k % 2}" / "left" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    check(tmp_path)


def test_folders_of_folders(tmp_path):
    """YOLO's images and labels in subfolders, one of them linked."""
    yolo_images_first(tmp_path)
    for kind, suffix in (("images", "jpg"), ("labels", "txt")):
        for name in ("t1", "t2"):
            target = tmp_path / kind / "train/a/b" / f"{name}.{suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / kind / "train" / f"{name}.{suffix}").rename(target)
        (tmp_path / kind / "val").rename(tmp_path / f"{kind}_elsewhere")
        (tmp_path / kind / "val").mkdir()
        (tmp_path / kind / "val/linked").symlink_to(tmp_path / f"{kind}_elsewhere", target_is_directory=True)
    (tmp_path / "images/train/a/loop").symlink_to(tmp_path / "images/train", target_is_directory=True)
    check(tmp_path)


def test_voc_in_folders_of_folders(tmp_path):
    voc_devkit_form(tmp_path)
    for kind, suffix in (("JPEGImages", "jpg"), ("Annotations", "xml")):
        (tmp_path / kind / "sub").mkdir()
        (tmp_path / kind / f"t1.{suffix}").rename(tmp_path / kind / f"sub/t1.{suffix}")
    put(tmp_path / "ImageSets/Main/train.txt", "sub/t1\nt2\nt3\n")
    check(tmp_path)


def test_an_archive_in_a_folder_of_its_own_name(tmp_path):
    yolo_images_first(tmp_path / "set-1/set-1")
    put(tmp_path / "set-1/README.txt", "hello")
    check(tmp_path)


def test_yaml_with_several_folders_and_lists(tmp_path):
    pytest.importorskip("yaml")
    for split in ("train", "val"):
        for name, *_ in IMAGES[split]:
            draw(tmp_path / "all", split)
            for folder in ("images", "labels"):
                (tmp_path / name / folder).mkdir(parents=True)
            shutil.copy(tmp_path / "all" / f"{name}.jpg", tmp_path / name / "images")
            yolo_labels(tmp_path / name / "labels", split)
    put(tmp_path / "more.txt", "t3/images/t3.jpg\n")
    put(
        tmp_path / "data.yaml",
        "train: [[t1/images, t2/images], more.txt]\nval:\n  - v1/images\n  - v2/images\nnames: [hen house, fox]\n",
    )
    check(tmp_path)
    opt = parse(tmp_path)
    assert Custom(build_task(opt), "train").file_names == ["t1/images/t1.jpg", "t2/images/t2.jpg", "t3/images/t3.jpg"]


def test_a_list_of_absolute_paths_elsewhere(tmp_path):
    """A list of one's own may name images anywhere on the machine."""
    draw(tmp_path / "disk/images", "train")
    yolo_labels(tmp_path / "disk/labels", "train")
    put(tmp_path / "set/classes.txt", "hen house\nfox\n")
    lines = "".join(f"{tmp_path}/disk/images/{name}.jpg\n" for name, *_ in IMAGES["train"])
    put(tmp_path / "set/train.txt", lines)
    check(tmp_path / "set", "--val_intervals", "0", splits=("train",))


def test_images_in_several_folders(tmp_path):
    """The JSON file has names without folders; the first images are all in one of the folders."""
    for parts in ("images/part {}", "images_{}"):
        root = tmp_path / parts[:7]
        coco_at_the_root(root)
        for path in sorted((root / "images").glob("*.jpg")):
            target = root / parts.format(1 + (path.stem in ("t3", "v2"))) / path.name
            target.parent.mkdir(exist_ok=True)
            path.rename(target)
        notes = check(root)
        assert any(
            "file names that were found elsewhere: 1, the first: " in note and "'t3.jpg'" in note for note in notes
        )


def test_images_in_several_folders_with_common_names(tmp_path):
    """An image of another video does not take the place of a missing one."""
    coco_at_the_root(tmp_path)
    shutil.copytree(tmp_path / "images", tmp_path / "videos/b")
    (tmp_path / "images").rename(tmp_path / "a")
    (tmp_path / "a/t3.jpg").unlink()
    dataset = Custom(build_task(parse(tmp_path)), "train")
    with pytest.raises(UserError, match=r"a: 1 of 3 images are missing, the first is t3\.jpg"):
        dataset.check_images_exist()


def test_images_of_a_given_folder_are_not_looked_for_elsewhere(tmp_path):
    coco_at_the_root(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "images/t3.jpg").rename(tmp_path / "other/t3.jpg")
    dataset = Custom(build_task(parse(tmp_path, "--train_images", "images")), "train")
    with pytest.raises(UserError, match="images: 1 of 3 images are missing"):
        dataset.check_images_exist()


@pytest.mark.parametrize(
    ("on_disk", "named"),
    [
        ("e\u0301 {}.jpg", "\u00e9 {}.jpg"),
        ("\u00e9 {}.jpg", "e\u0301 {}.jpg"),
        ("{}.JPG", "{}.jpg"),
        ("a b {}.jpg", "https://host/set/a%20b%20{}.jpg?signature=1"),
        ("a {}.jpg", "/data/local-files/?d=set/a%20{}.jpg"),
        ("a {}.jpg", "/data/local-files/?d=a {}.jpg"),
    ],
)
def test_names_in_other_spellings(tmp_path, on_disk, named):
    coco_at_the_root(tmp_path)
    for path in (tmp_path / "images").iterdir():
        path.rename(path.with_name(on_disk.format(path.stem)))
    for split in ("train", "val"):
        change_json(
            tmp_path / f"{split}.json",
            lambda c: [i.update(file_name=named.format(i["file_name"].removesuffix(".jpg"))) for i in c["images"]],
        )
    dataset = Custom(build_task(parse(tmp_path)), "train")
    dataset.check_images_exist()
    assert dataset.file_names == [f"images/{on_disk.format(name)}" for name, *_ in IMAGES["train"]]
    assert any("file names that were found elsewhere: 1, the first: " in note for note in dataset.notes)


def test_labels_of_names_in_another_unicode_form(tmp_path):
    yolo_images_first(tmp_path)
    for kind, letter in (("images", "\u00e9"), ("labels", "e\u0301")):
        for path in tmp_path.glob(f"{kind}/*/*"):
            path.rename(path.with_name(f"{letter} {path.name}"))
    dataset = Custom(build_task(parse(tmp_path)), "train")
    assert len(dataset.objects["cls"]) == 3 and dataset.notes == []


def test_annotation_files_in_upper_case(tmp_path):
    coco_at_the_root(tmp_path)
    for split in ("train", "val"):
        (tmp_path / f"{split}.json").rename(tmp_path / f"{split}.JSON")
    check(tmp_path)
    put(tmp_path / "val.json", coco("val"))  # the usual spelling comes first
    put(tmp_path / "val.JSON", "no JSON")
    check(tmp_path)


def test_data_yaml_in_other_cases(tmp_path):
    pytest.importorskip("yaml")
    yolo_images_first(tmp_path)
    (tmp_path / "classes.txt").unlink()
    text = "train: images/train\nval: images/val\nnames: [hen house, fox]\n"
    put(tmp_path / "Data.YAML", text)
    put(tmp_path / "other.yaml", "names: [a, b]\n")
    check(tmp_path)
    put(tmp_path / "data.yaml", text)
    put(tmp_path / "Data.YAML", "names: [a, b]\n")
    check(tmp_path)


def test_two_descriptions_of_which_neither_is_named_data_yaml(tmp_path, capsys):
    yolo_images_first(tmp_path)
    (tmp_path / "classes.txt").unlink()
    put(tmp_path / "farm.yaml", "names: [hen house, fox]\n")
    put(tmp_path / "zoo.yaml", "names: [a, b]\n")
    with pytest.raises(SystemExit):
        parse(tmp_path)
    assert "it has farm.yaml, zoo.yaml: rename the right one to data.yaml" in capsys.readouterr().err


# Exports of labeling tools


def label_studio_yolo(root):
    draw(root / "images", "train")
    yolo_labels(root / "labels", "train")
    put(root / "classes.txt", "hen house\nfox")
    put(root / "notes.json", {"categories": [{"id": 0, "name": "fox"}], "info": {}})


def label_studio_voc(root):
    draw(root / "images", "train", ".png")
    voc_files(root / "Annotations", "train")


def cvat_coco(root):
    draw(root / "images/default", "train")
    put(root / "annotations/instances_default.json", coco("train"))


def cvat_voc(root):
    voc_devkit_form(root)
    shutil.rmtree(root / "ImageSets")
    put(root / "ImageSets/Main/default.txt", "t1\nt2\nt3\n")
    put(root / "labelmap.txt", "# label:color_rgb:parts:actions\nfox:1,2,3::\n")
    for path in root.glob("*/v?.*"):
        path.unlink()


def cvat_yolo(root, split="train"):
    draw(root / "obj_train_data", split)
    yolo_labels(root / "obj_train_data", split)
    put(root / "obj.names", "hen house\nfox\n")
    put(root / "obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    put(root / "train.txt", "".join(f"data/obj_train_data/{name}.jpg\n" for name, *_ in IMAGES[split]))


def cvat_ultralytics(root):
    draw(root / "images/train", "train")
    yolo_labels(root / "labels/train", "train")
    put(root / "train.txt", "".join(f"data/images/train/{name}.jpg\n" for name, *_ in IMAGES["train"]))
    put(root / "data.yaml", "names:\n  0: hen house\n  1: fox\npath: .\ntrain: train.txt\n")


UNDIVIDED = [label_studio_yolo, label_studio_coco, label_studio_voc, cvat_coco, cvat_voc, cvat_xml, labelme_flat]


@pytest.mark.parametrize("layout", UNDIVIDED, ids=lambda layout: layout.__name__)
def test_exports_that_are_not_divided(tmp_path, layout):
    """All of it is used for training, with a note, and the validation split is empty."""
    layout(tmp_path)
    notes = check(tmp_path, "--val_intervals", "0", splits=("train",))
    assert any("nothing divides these images into training and validation" in note for note in notes)
    with pytest.raises(UserError, match="no annotations to test on; specify them with --val_annotations"):
        Custom(build_task(parse(tmp_path)), "val")


@pytest.mark.parametrize("layout", [cvat_yolo, cvat_ultralytics, labelimg_yolo], ids=lambda layout: layout.__name__)
def test_exports_of_a_training_split(tmp_path, layout):
    if layout is cvat_ultralytics:
        pytest.importorskip("yaml")
    layout(tmp_path)
    notes = check(tmp_path, "--val_intervals", "0", splits=("train",))
    assert not any("nothing divides" in note for note in notes)


def label_studio_yolo_per_split(root):
    for split in ("train", "val"):
        draw(root / split / "images", split)
        yolo_labels(root / split / "labels", split)
        put(root / split / "classes.txt", "hen house\nfox\n")
        put(root / split / "notes.json", {"categories": [{"id": 0, "name": "hen house"}], "info": {}})


def label_studio_coco_per_split(root):
    for split in ("train", "val"):
        label_studio_coco(root / split, split)


def cvat_coco_per_split(root):
    for split, folder in (("train", "Train"), ("val", "my_val")):
        draw(root / folder / "images/cam1", split)
        content = coco(split)
        for image in content["images"]:
            image["file_name"] = "cam1/" + image["file_name"]
        put(root / folder / "annotations/instances_default.json", content)


def cvat_yolo_per_split(root):
    for split in ("train", "val"):
        cvat_yolo(root / split, split)


PER_SPLIT = [label_studio_yolo_per_split, label_studio_coco_per_split, cvat_coco_per_split, cvat_yolo_per_split]


@pytest.mark.parametrize("layout", PER_SPLIT, ids=lambda layout: layout.__name__)
def test_an_export_in_the_folder_of_each_split(tmp_path, layout):
    layout(tmp_path)
    assert not any("nothing divides" in note for note in check(tmp_path))


@pytest.mark.parametrize("layout", [yolo_images_first, voc_devkit_form, label_studio_yolo, coco_at_the_root])
def test_json_files_of_other_kinds_next_to_the_data(tmp_path, layout):
    """They are named like a split, but only annotations have the keys of COCO."""
    layout(tmp_path)
    put(tmp_path / "train_args.json", {"lr": 1, "path": "images"})
    put(tmp_path / "val_results.json", [{"image_id": 1, "bbox": [0, 0, 1, 1]}])
    if layout is label_studio_yolo:
        check(tmp_path, "--val_intervals", "0", splits=("train",))
    else:
        assert check(tmp_path) == []


def test_a_json_file_of_another_kind_is_named_if_there_is_nothing_else(tmp_path, capsys):
    draw(tmp_path / "train", "train")
    put(tmp_path / "train/via_region_data.json", {"t1.jpg": {"regions": []}})
    assert "via_region_data.json: not a COCO-style annotation file" in refused(capsys, tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_json_in_other_encodings(tmp_path, encoding):
    """PowerShell writes UTF-16."""
    coco_at_the_root(tmp_path / "divided")
    cvat_coco(tmp_path / "undivided")
    for path in tmp_path.rglob("*.json"):
        path.write_bytes(path.read_text().encode(encoding))
    assert check(tmp_path / "divided") == []
    check(tmp_path / "undivided", "--val_intervals", "0", splits=("train",))


def test_data_with_a_validation_part_is_not_all_trained_on(tmp_path):
    voc_devkit_form(tmp_path)
    (tmp_path / "ImageSets/Main/train.txt").unlink()
    opt = parse(tmp_path)
    with pytest.raises(UserError, match="no annotations to train on; specify them with --train_annotations"):
        Custom(build_task(opt), "train")


# CVAT's XML


def test_cvat_with_a_file_per_split(tmp_path):
    for split in ("train", "val"):
        draw(tmp_path / split / "images", split)
        put(tmp_path / split / "annotations.xml", cvat_text(split))
    check(tmp_path)


def test_cvat_with_subsets(tmp_path):
    texts = {}
    for split, subset in (("train", "Train"), ("val", "Validation")):
        draw(tmp_path / "images", split)
        texts[split] = cvat_text(split, subset)
    images = texts["val"][texts["val"].index("<image") :]
    put(tmp_path / "annotations.xml", texts["train"].replace("</annotations>", images))
    check(tmp_path)


def merged(*texts) -> str:
    """Return one file of CVAT with the images of several."""
    images = [text[text.index("<image") : text.index("</annotations>")] for text in texts]
    return texts[0][: texts[0].index("<image")] + "".join(images) + "</annotations>"


def cvat_with_subsets(root, *subsets):
    """Three images of each subset, in ``images`` of the subset's name."""
    texts = []
    for k, subset in enumerate(subsets):
        draw(root / "images" / (subset or "none"), "train")
        texts.append(cvat_text("train", subset).replace('name="', f'name="{subset or "none"}/'))
        if k % 2:  # the folder is the subset's
            texts[-1] = cvat_text("train", subset)
    put(root / "annotations.xml", merged(*texts))


def test_all_subsets_of_cvat_count(tmp_path):
    """Subsets of one split are one; what belongs to no split is named."""
    cvat_with_subsets(tmp_path, "train1", "train2", "valA", "extra", "")
    opt = parse(tmp_path)
    dataset, validation = Custom(build_task(opt), "train"), Custom(build_task(opt), "val")
    assert {name.split("/")[1] for name in dataset.file_names} == {"train1", "train2"} and len(dataset) == 6
    assert {name.split("/")[1] for name in validation.file_names} == {"valA"} and validation.notes == []
    (note,) = dataset.notes
    assert "subsets that belong to no split, left out: 2, the first: " in note
    assert note.endswith("annotations.xml: 3 image(s) of the subset 'extra'")
    issues = []
    find_layout(tmp_path, "train").read(issues.append)
    assert issues[1].text == "3 image(s) of the subset ''"


@pytest.mark.parametrize("subsets", [("Train", "Validation"), ("default",)])
def test_cvat_projects(tmp_path, subsets):
    """The images are in folders of their subsets, which their names lack."""
    texts = []
    for split, subset in zip(("train", "val"), subsets, strict=False):
        draw(tmp_path / "images" / subset, split)
        texts.append(cvat_text(split, subset).replace("v1.jpg", "t1.jpg"))
    if len(subsets) == 2:
        (tmp_path / "images/Validation/v1.jpg").rename(tmp_path / "images/Validation/t1.jpg")
    put(tmp_path / "annotations.xml", merged(*texts))
    check_objects(Custom(build_task(parse(tmp_path)), "train"), "train")
    if len(subsets) == 2:
        dataset = Custom(build_task(parse(tmp_path)), "val")
        assert dataset.file_names == ["images/Validation/t1.jpg", "images/Validation/v2.jpg"]
        (tmp_path / "images/Validation/t1.jpg").unlink()
        with pytest.raises(UserError, match=r"the image 't1\.jpg' was not found"):
            Custom(build_task(parse(tmp_path)), "val")


def test_images_of_cvat_found_elsewhere(tmp_path):
    draw(tmp_path / "train", "train")
    put(tmp_path / "train/annotations.xml", cvat_text("train").replace('name="t2', 'name="cam2/t2'))
    notes = check(tmp_path, "--val_intervals", "0", splits=("train",))
    (note,) = [note for note in notes if "nothing divides" not in note]
    assert "file names that were found elsewhere" in note
    assert note.endswith(f"1 image(s), such as 'cam2/t2.jpg', which is {tmp_path}/train/t2.jpg")


@pytest.mark.parametrize("others", [("t2",), ("cam3/t2",)], ids=["stated", "both elsewhere"])
def test_a_missing_image_of_cvat_is_not_that_of_another_entry(tmp_path, others):
    draw(tmp_path / "train", "train")
    texts = [cvat_text("train").replace('name="t2', f'name="{name}') for name in (*others, "cam2/t2")]
    put(tmp_path / "train/annotations.xml", merged(*texts))
    with pytest.raises(UserError, match=r"the image 'cam2/t2\.jpg' was not found"):
        Custom(build_task(parse(tmp_path)), "train")


def test_images_of_cvat_outside_of_the_dataset_are_not_read(tmp_path):
    draw(tmp_path / "other", "train")
    draw(tmp_path / "set/images", "train")
    (tmp_path / "set/images/t2.jpg").unlink()
    put(tmp_path / "set/annotations.xml", cvat_text("train").replace('name="t2', f'name="{tmp_path}/other/t2'))
    with pytest.raises(UserError, match="the image '/.* was not found"):
        Custom(build_task(parse(tmp_path / "set")), "train")


def test_images_without_an_entry_of_cvat_are_counted(tmp_path):
    for split in ("train", "val"):
        draw(tmp_path / split, split)
        put(tmp_path / split / "annotations.xml", cvat_text(split))
    assert check(tmp_path) == []
    shutil.copy(tmp_path / "train/t1.jpg", tmp_path / "train/more.jpg")
    assert check(tmp_path) == [
        f"note: images without an entry, left out: 1, the first: {tmp_path}/train/more.jpg: not used"
    ]


def test_an_entry_that_repeats_is_one_image(tmp_path):
    """Its objects are those of both, once each."""
    draw(tmp_path / "images", "train")
    text = cvat_text("train")
    put(tmp_path / "annotations.xml", merged(text, text.replace('xtl="30"', 'xtl="31"').replace('xtl="8"', 'xtl="9"')))
    dataset = Custom(build_task(parse(tmp_path)), "train")
    assert any(
        "entries that repeat an image: 3" in note and "'t1.jpg' is listed again" in note for note in dataset.notes
    )
    assert len(dataset) == 3 and len(dataset.objects["cls"]) == 5
    put(tmp_path / "annotations.xml", merged(text, text))
    check(tmp_path, "--val_intervals", "0", splits=("train",))


def test_shapes_of_cvat(tmp_path):
    draw(tmp_path / "images", "train")
    shapes = (
        '<box label="fox" xtl="10" ytl="20" xbr="30" ybr="30" rotation="90.0"/>'
        '<polygon label="fox" points="1.5,2;11.5,2;6,9"/><polyline label="fox" points="1,2;3,8"/>'
        '<ellipse label="fox" cx="20" cy="20" rx="8" ry="4"/>'
        '<mask label="fox" rle="1,2" left="3" top="4" width="5" height="6"/>'
        '<points label="fox" points="3,4"/><tag label="fox"/><box label="fox" xtl="1" ytl="1" xbr="x" ybr="3"/>'
    )
    put(tmp_path / "annotations.xml", f'<annotations><image name="t1.jpg">{shapes}</image></annotations>')
    with pytest.raises(UserError, match=r"annotations\.xml: the image 't1.jpg': shape 8, <box> fox \(could not conv"):
        Custom(build_task(parse(tmp_path)), "train")
    dataset = Custom(build_task(parse(tmp_path, "--on_bad_image", "skip")), "train")
    boxes = [[15, 15, 25, 35], [1.5, 2, 11.5, 9], [1, 2, 3, 8], [12, 16, 28, 24], [3, 4, 8, 10]]
    np.testing.assert_allclose(dataset.read_objects(0)["boxes"], boxes, atol=1e-4)
    annotations = dataset.read_content(ignore_issue)["annotations"]
    outlines = [one.get("segmentation") for one in annotations]
    assert outlines == [None, [[1.5, 2, 11.5, 2, 6, 9]], None, None, None]
    assert any("shapes that are not boxes or outlines, left out: 2" in note for note in dataset.notes)


def test_cvat_for_video_is_refused(tmp_path, capsys):
    draw(tmp_path, "train")
    put(tmp_path / "annotations.xml", '<annotations><track id="0" label="fox"><box frame="0"/></track></annotations>')
    assert "export the task as 'CVAT for images 1.1'" in refused(capsys, tmp_path)


# LabelMe's JSON


def test_labelme_with_a_folder_per_split(tmp_path):
    for split, folder in (("train", "train"), ("val", "valid")):
        draw(tmp_path / folder, split)
        labelme_files(tmp_path / folder, split)
    notes = check(tmp_path)
    assert notes == []


@pytest.mark.parametrize("form", ["{}2024", "{}_data", "{}Set", "images/{}_1", "labels/my_{}"])
def test_labelme_with_other_names_of_the_splits(tmp_path, form):
    for split in ("train", "val"):
        draw(tmp_path / form.format(split), split)
        labelme_files(tmp_path / form.format(split), split)
    assert check(tmp_path) == []
    shutil.copytree(tmp_path / form.format("val"), tmp_path / f"{form.format('val')}2")
    if form != "{}_data":  # whose name now has more words than that of the copy
        with pytest.raises(UserError, match=r"^--val_annotations: several files match: .*; choose one$"):
            Custom(build_task(parse(tmp_path)), "val")


def test_labelme_with_images_elsewhere(tmp_path):
    for split in ("train", "val"):
        draw(tmp_path / "images" / split, split)
        labelme_files(tmp_path / "annotations" / split, split, f"..\\..\\images\\{split}\\{{name}}.jpg")
    check(tmp_path)


def test_labelme_with_folders_in_each_split(tmp_path):
    for split in ("train", "val"):
        draw(tmp_path / split / "images", split)
        labelme_files(tmp_path / split / "json", split)
    assert check(tmp_path) == []


def test_images_of_labelme_that_are_not_where_they_are_stated(tmp_path):
    for split in ("train", "val"):
        draw(tmp_path / split, split)
        labelme_files(tmp_path / split, split)
    (tmp_path / "train/t1.jpg").rename(tmp_path / "t1.jpg")
    change_json(tmp_path / "val/v1.json", lambda c: c.update(imagePath="other.jpg"))
    train, val = check(tmp_path)
    assert (
        f"found elsewhere: 1, the first: {tmp_path}/train: 1 image(s), such as 't1.jpg', which is {tmp_path}/t1"
        in train
    )
    assert f"such as 'other.jpg', which is {tmp_path}/val/v1.jpg" in val


def test_blanks_around_class_names(tmp_path):
    for split in ("train", "val"):
        draw(tmp_path / "labelme" / split, split)
        labelme_files(tmp_path / "labelme" / split, split)
    path = tmp_path / "labelme/train/t1.json"
    path.write_text(path.read_text().replace('"fox"', '"fox "'))
    check(tmp_path / "labelme")
    coco_at_the_root(tmp_path / "coco")
    change_json(tmp_path / "coco/val.json", lambda c: [one.update(name=f"{one['name']} ") for one in c["categories"]])
    check(tmp_path / "coco")


def test_shapes_of_labelme(tmp_path):
    draw(tmp_path / "train", "train")
    shapes = [
        {"label": "fox", "shape_type": "circle", "points": [[20, 20], [23, 24]]},
        {"label": "fox", "points": [[1, 2], [9, 2], [5, 8]]},
        {"label": "fox", "shape_type": "rectangle", "points": [[30, 30], [10, 12]]},
        {"label": "fox", "shape_type": "rectangle", "points": [[1, 1], [5, 1], [5, 6], [1, 6]]},
        {"label": "fox", "shape_type": "point", "points": [[3, 4]]},
        {"label": None, "points": [[3, 4]]},
    ]
    put(tmp_path / "train/t1.json", {"version": "5", "shapes": shapes, "imagePath": "t1.jpg"})
    with pytest.raises(UserError, match=r"t1\.json: shape 6 is malformed"):
        Custom(build_task(parse(tmp_path)), "train")
    dataset = Custom(build_task(parse(tmp_path, "--on_bad_image", "skip")), "train")
    boxes = [[15, 15, 25, 25], [1, 2, 9, 8], [10, 12, 30, 30], [1, 1, 5, 6]]
    np.testing.assert_allclose(dataset.read_objects(0)["boxes"], boxes)
    annotations = dataset.read_content(ignore_issue)["annotations"]
    assert [one.get("segmentation") for one in annotations] == [None, [[1, 2, 9, 2, 5, 8]], None, None]
    notes = "\n".join(dataset.notes)
    assert "points, which are not boxes, left out: 1" in notes and "images without a JSON file, left out: 2" in notes


def test_parts_of_an_object_of_labelme(tmp_path):
    """Shapes of the same label and group are one object, as in LabelMe's converters."""
    draw(tmp_path / "train", "train")
    triangles = [[[1, 2], [9, 2], [5, 8]], [[20, 12], [29, 12], [25, 18]]]
    shapes = [{"label": "fox", "points": points, "group_id": 7} for points in triangles]
    shapes.insert(1, {"label": "fox", "points": triangles[0], "group_id": None})
    shapes.append({"label": "hen", "points": triangles[1], "group_id": 7})
    shapes.append({"label": "fox", "points": triangles[1], "group_id": 8})
    shapes.append({"label": "fox", "points": [[50, 40]], "shape_type": "point", "group_id": 7})
    put(tmp_path / "train/t1.json", {"version": "5", "shapes": shapes, "imagePath": "t1.jpg"})
    dataset = Custom(build_task(parse(tmp_path)), "train")
    boxes = [[1, 2, 29, 18], [1, 2, 9, 8], [20, 12, 29, 18], [20, 12, 29, 18]]
    np.testing.assert_allclose(dataset.read_objects(0)["boxes"], boxes)
    assert [dataset.class_names[cls] for cls in dataset.read_objects(0)["cls"]] == ["fox", "fox", "hen", "fox"]
    annotations = dataset.read_content(ignore_issue)["annotations"]
    assert ["segmentation" in one for one in annotations] == [False, True, True, True]
    (note,) = [note for note in dataset.notes if "of a group" in note]
    assert note == f"note: shapes of a group, used as one object: 1, the first: {tmp_path}/train/t1.json: " + (
        "2 shapes (fox) of the group 7"
    )


def test_labelme_with_embedded_images(tmp_path, capsys):
    labelme_files(tmp_path / "train", "train", imageData="aGVsbG8=")
    assert "its image is embedded, write it to a file" in refused(capsys, tmp_path)


def test_classes_of_labelme(tmp_path):
    """Sorted, or as LabelMe's labels.txt lists them."""
    for split in ("train", "val"):
        draw(tmp_path / split, split)
        labelme_files(tmp_path / split, split)
    assert parse(tmp_path).class_names == ["fox", "hen house"]
    put(tmp_path / "labels.txt", "__ignore__\n_background_\nhen house\nfox\n")
    assert parse(tmp_path).class_names == ["hen house", "fox"]
    check(tmp_path)


def test_labelme_files_next_to_yolo_labels_do_not_count(tmp_path):
    """The JSON files stay behind where a tool has converted them."""
    yolo_split_first(tmp_path)
    for path in tmp_path.rglob("labels/*.txt"):
        put(path.with_suffix(".json"), {"version": "5", "shapes": [], "imagePath": "x.jpg"})
    check(tmp_path)


# Files that tools leave behind


def test_copies_in_hidden_folders_are_left_out_and_counted(tmp_path):
    yolo_images_first(tmp_path)
    for folder in (".ipynb_checkpoints", "__MACOSX", ".@__thumb"):
        (tmp_path / "images/train" / folder).mkdir()
        shutil.copy(tmp_path / "images/train/t1.jpg", tmp_path / "images/train" / folder / "t1-checkpoint.jpg")
    shutil.copy(tmp_path / "images/train/t1.jpg", tmp_path / "images/train/._t1.jpg")
    put(tmp_path / "images/train/Thumbs.db", "x")
    notes = check(tmp_path)
    (note,) = notes
    assert note.startswith(f"note: images in hidden folders, left out: 4, the first: {tmp_path}/images/train/.")


@pytest.mark.parametrize("style", ["coco", "voc"])
def test_hidden_copies_of_annotations(tmp_path, style):
    if style == "coco":
        coco_at_the_root(tmp_path)
        (tmp_path / ".ipynb_checkpoints").mkdir()
        shutil.copy(tmp_path / "train.json", tmp_path / ".ipynb_checkpoints/train-checkpoint.json")
        shutil.copy(tmp_path / "train.json", tmp_path / "._train.json")
    else:
        for split, folder in (("train", "train"), ("val", "valid")):
            draw(tmp_path / folder, split)
            voc_files(tmp_path / folder, split)
        (tmp_path / "train/.ipynb_checkpoints").mkdir()
        shutil.copy(tmp_path / "train/t1.xml", tmp_path / "train/.ipynb_checkpoints/t1-checkpoint.xml")
    check(tmp_path)


def test_labeled_images_of_unknown_extensions(tmp_path):
    """A file with a label is an image under any name; without one it is counted."""
    yolo_images_first(tmp_path)
    folder = tmp_path / "images/train"
    (folder / "t1.jpg").rename(folder / "t1.jpg_large")
    put(folder / "other.heic", "not labeled")
    shutil.move(tmp_path / "labels/train/t1.txt", tmp_path / "labels/train/t1.txt")
    notes = check(tmp_path)
    assert any("files without the extension of an image, left out: 1" in note and "heic" in note for note in notes)
    (folder / "t1.jpg_large").write_text("no image")
    with pytest.raises(UserError, match=r"t1\.jpg_large: cannot read image"):
        Custom(build_task(parse(tmp_path)), "train")


@pytest.mark.parametrize("suffix", [".JPG", ".JPEG", ".Png", ".bmp", ".webp", ".tif", ".jfif"])
def test_extensions_of_images(tmp_path, suffix):
    put(tmp_path / "classes.txt", "hen house\nfox\n")
    for split in ("train", "val"):
        draw(tmp_path / "all", split)
        for name, *_ in IMAGES[split]:
            image = cv2.imread(str(tmp_path / "all" / f"{name}.jpg"))
            kind = ".jpg" if suffix == ".jfif" else suffix.lower()
            target = tmp_path / "images" / split / f"{name}{suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(cv2.imencode(kind, image)[1].tobytes())
        yolo_labels(tmp_path / "labels" / split, split)
    assert check(tmp_path) == []


def test_labels_without_an_image_are_counted(tmp_path):
    yolo_images_first(tmp_path)
    put(tmp_path / "labels/train/gone.txt", "0 0.5 0.5 0.1 0.1\n")
    put(tmp_path / "labels/train/classes.txt", "hen house\nfox\n")
    notes = check(tmp_path)
    assert any("label files without an image, left out: 1" in note and "gone.txt" in note for note in notes)


# Text files


def test_text_files_of_windows(tmp_path):
    """Byte order marks, carriage returns, blanks at the ends of lines, no line end."""
    yolo_images_first(tmp_path)
    for path in [tmp_path / "classes.txt", *tmp_path.rglob("labels/*/*.txt")]:
        lines = path.read_text().splitlines()
        path.write_bytes(b"\xef\xbb\xbf" + " \r\n".join(lines).encode())
    check(tmp_path)
    coco_at_the_root(tmp_path / "coco")
    for split in ("train", "val"):
        path = tmp_path / f"coco/{split}.json"
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    check(tmp_path / "coco")
    voc_devkit_form(tmp_path / "voc")
    for path in [*tmp_path.glob("voc/Annotations/*.xml"), *tmp_path.glob("voc/ImageSets/Main/*.txt")]:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    check(tmp_path / "voc")


@pytest.mark.parametrize("style", ["coco", "voc", "yolo"])
def test_names_that_are_not_ascii_and_with_blanks(tmp_path, style):
    root = tmp_path / "数据 集"
    {"coco": coco_at_the_root, "voc": voc_devkit_form, "yolo": yolo_images_first}[style](root)
    for path in sorted(root.rglob("t1.*"), reverse=True):
        path.rename(path.with_name(f"зверь 1 é{path.suffix}"))
    if style == "coco":
        change_json(root / "train.json", lambda c: c["images"][0].update(file_name="зверь 1 é.jpg"))
    if style == "voc":
        put(root / "ImageSets/Main/train.txt", "зверь 1 é\nt2\nt3\n")
    dataset = Custom(build_task(parse(root)), "train")
    dataset.check_images_exist()
    assert len(dataset) == 3 and len(dataset.objects["cls"]) == 3 and "зверь 1 é.jpg" in dataset.file_names


def test_an_empty_label_file_means_no_objects(tmp_path):
    yolo_images_first(tmp_path)
    put(tmp_path / "labels/train/t3.txt", "\n\n")
    check(tmp_path)


@pytest.mark.parametrize("encoding", ["gb2312", "gbk", "gb18030", "big5", "utf-16", "shift_jis", "windows-1251"])
def test_xml_in_other_encodings(tmp_path, encoding):
    voc_devkit_form(tmp_path)
    name = {"windows-1251": "лиса", "shift_jis": "狐", "big5": "狐"}.get(encoding, "狐狸")
    for path in (tmp_path / "Annotations").iterdir():
        text = f"<?xml version='1.0' encoding='{encoding}'?>\n" + path.read_text().replace("fox", name)
        path.write_bytes(text.encode(encoding))
    check(tmp_path, names=(NAMES[0], name))


def test_xml_whose_encoding_is_not_declared(tmp_path):
    """A path in another encoding does not matter, a class name does."""
    voc_devkit_form(tmp_path)
    for path in (tmp_path / "Annotations").iterdir():
        path.write_bytes(path.read_bytes().replace(b"<filename>", "<path>D:\\图片</path><filename>".encode("gbk")))
    check(tmp_path)
    path = tmp_path / "Annotations/t1.xml"
    path.write_bytes(path.read_bytes().replace(b"fox", "狐狸".encode("gbk")))
    with pytest.raises(UserError, match=r"t1\.xml: <name> is not UTF-8 text and the file declares no other encoding"):
        Custom(build_task(parse(tmp_path)), "train")


# Annotations of VOC's form


def change_xml(root, old, new, name="t1"):
    path = root / f"Annotations/{name}.xml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("line", ["{}.jpg", "JPEGImages/{}.jpg", "{}.xml", "/home/me/VOC/JPEGImages/{}.jpg", "{} 1"])
def test_lines_of_image_sets(tmp_path, line):
    voc_devkit_form(tmp_path)
    for split in ("train", "val"):
        lines = "".join(f"{line.format(name)}\n" for name, *_ in IMAGES[split])
        put(tmp_path / f"ImageSets/Main/{split}.txt", lines)
    check(tmp_path)


@pytest.mark.parametrize("line", ["{}", "{}.jpg", "JPEGImages/{}.jpg", "{} 1"])
def test_lines_of_image_sets_in_another_unicode_form(tmp_path, line):
    voc_devkit_form(tmp_path)
    for path in [*tmp_path.glob("Annotations/*"), *tmp_path.glob("JPEGImages/*")]:
        path.rename(path.with_name(f"\u00e9{path.name}"))
    accented = "e\u0301"
    for split in ("train", "val"):
        lines = "".join(f"{line.format(accented + name)}\n" for name, *_ in IMAGES[split])
        put(tmp_path / f"ImageSets/Main/{split}.txt", lines)
    dataset = Custom(build_task(parse(tmp_path)), "train")
    assert dataset.file_names == [f"\u00e9{name}.jpg" for name, *_ in IMAGES["train"]]
    assert len(dataset.objects["cls"]) == 3


@pytest.mark.parametrize("word", ["Unspecified", "0", "false", "False", "", "no"])
def test_words_for_difficult(tmp_path, word):
    voc_devkit_form(tmp_path)
    change_xml(tmp_path, "<difficult>0</difficult>", f"<difficult>{word}</difficult>")
    check(tmp_path)


def test_difficult_objects_by_words(tmp_path):
    voc_devkit_form(tmp_path)
    change_xml(tmp_path, "<difficult>0</difficult>", "<difficult>True</difficult>", "v1")
    content = Custom(build_task(parse(tmp_path)), "val").filtered_annotations()
    assert [annotation["ignore"] for annotation in content["annotations"]] == [1, 0, 0]


def test_an_unknown_word_for_difficult_is_named(tmp_path):
    voc_devkit_form(tmp_path)
    change_xml(tmp_path, "<difficult>0</difficult>", "<difficult>maybe</difficult>")
    with pytest.raises(UserError, match=r"t1\.xml: <difficult> is 'maybe', not a number"):
        Custom(build_task(parse(tmp_path)), "train")


def test_the_first_reason_is_reported_when_nothing_can_be_read(tmp_path, capsys):
    """Not that an image set of three lines lists no images."""
    voc_devkit_form(tmp_path)
    for path in (tmp_path / "Annotations").iterdir():
        path.write_text(path.read_text().replace("<annotation>", "<annotation"))
    assert "t1.xml: not well-formed XML" in refused(capsys, tmp_path)


def test_voc_without_sizes_flags_and_whole_numbers(tmp_path):
    voc_devkit_form(tmp_path)
    change_xml(tmp_path, "<size><width>64</width><height>48</height></size>", "")
    change_xml(tmp_path, "<difficult>0</difficult>", "")
    change_xml(tmp_path, "<width>40</width>", "<width></width>", "t2")
    change_xml(tmp_path, "<xmin>9</xmin>", "<xmin>9.0</xmin>", "t2")
    check(tmp_path)
    change_xml(tmp_path, "<xmin>9.0</xmin>", "<xmin>9.75</xmin>", "t2")
    dataset = Custom(build_task(parse(tmp_path)), "train")
    np.testing.assert_allclose(dataset.read_objects(1)["boxes"], [[8.75, 40, 20, 70]])


def test_boxes_that_count_from_zero(tmp_path):
    voc_devkit_form(tmp_path)
    change_xml(tmp_path, "<xmin>5</xmin><ymin>7</ymin>", "<xmin>0</xmin><ymin>0</ymin>")
    dataset = Custom(build_task(parse(tmp_path)), "train")
    np.testing.assert_allclose(dataset.read_objects(0)["boxes"][0], [0, 0, 24, 16])


def test_classes_whose_names_differ_in_case_only(tmp_path):
    voc_devkit_form(tmp_path)
    assert not any("differ in case" in note for note in check(tmp_path))
    path = tmp_path / "Annotations/t2.xml"
    path.write_text(path.read_text().replace("<name>fox", "<name>Fox"))
    dataset = Custom(build_task(parse(tmp_path)), "train")
    assert dataset.class_names == ["Fox", "fox", "hen house"]
    (note,) = [note for note in dataset.notes if "differ in case only" in note]
    assert note.endswith("train.txt: Fox and fox are different classes")


def test_the_advice_about_an_object_is_given_once(tmp_path):
    voc_devkit_form(tmp_path)
    path = tmp_path / "Annotations/t2.xml"
    path.write_text(path.read_text().replace("<xmin>9</xmin>", "<xmin>90</xmin>"))
    with pytest.raises(UserError, match="ends before it begins") as caught:
        Custom(build_task(parse(tmp_path)), "train")
    assert str(caught.value).count("--on_bad_image skip") == 1


def test_an_inverted_box_concerns_one_object(tmp_path):
    voc_devkit_form(tmp_path)
    change_xml(tmp_path, "<xmax>24</xmax>", "<xmax>2</xmax>")
    with pytest.raises(UserError, match=r"t1\.xml: the box of 'hen house' ends before it begins"):
        Custom(build_task(parse(tmp_path)), "train")
    dataset = Custom(build_task(parse(tmp_path, "--on_bad_image", "skip")), "train")
    assert len(dataset) == 3 and len(dataset.objects["cls"]) == 2


def test_roboflow_voc_with_folders_in_each_split(tmp_path):
    for split, folder in (("train", "train"), ("val", "valid")):
        draw(tmp_path / folder / "JPEGImages", split)
        voc_files(tmp_path / folder / "Annotations", split)
    check(tmp_path)


@pytest.mark.parametrize("labels", ["annotations", "labels"])
@pytest.mark.parametrize("form", ["undivided", "lists", "split first", "split last"])
def test_names_of_the_folder_of_xml_files(tmp_path, labels, form):
    """Lowercase ``annotations`` was taken for YOLO's files, or without its images."""
    for split in ("train",) if form == "undivided" else ("train", "val"):
        places = {"split first": (split, "{}"), "split last": ("", f"{{}}/{split}")}.get(form, ("", "{}"))
        draw(tmp_path / places[0] / places[1].format("images"), split, ".png")
        voc_files(tmp_path / places[0] / places[1].format(labels), split)
        if form == "lists":
            put(tmp_path / f"{split}.txt", "".join(f"{name}\n" for name, *_ in IMAGES[split]))
    if form == "undivided":
        notes = check(tmp_path, "--val_intervals", "0", splits=("train",))
        assert len(notes) == 1 and "nothing divides these images" in notes[0]
    else:
        assert check(tmp_path) == []


def test_xml_files_next_to_yolo_labels_do_not_count(tmp_path):
    """They stay behind where a tool has converted them."""
    yolo_images_first(tmp_path)
    for split in ("train", "val"):
        voc_files(tmp_path / "labels" / split, "train")
    check(tmp_path)


@pytest.mark.parametrize("folder", ["ImageSets", "lists/ImageSets/Main"])
def test_places_of_image_sets(tmp_path, folder):
    """Sets without ``Main`` were not read, and the validation images trained on."""
    voc_devkit_form(tmp_path)
    (tmp_path / "ImageSets/Main").rename(tmp_path / "sets")
    shutil.rmtree(tmp_path / "ImageSets")
    shutil.copytree(tmp_path / "sets", tmp_path / folder)
    sets = [(f"--{split}_annotations", str(tmp_path / folder / f"{split}.txt")) for split in ("train", "val")]
    check(tmp_path, *sets[0], *sets[1])
    for split in ("train", "val"):
        lines = "".join(f"JPEGImages/{name}.jpg\n" for name, *_ in IMAGES[split])
        put(tmp_path / folder / f"{split}.txt", lines)
    if folder == "ImageSets":
        check(tmp_path)
        check(tmp_path, *sets[0], *sets[1])


def test_capital_extensions_of_xml_files(tmp_path):
    voc_devkit_form(tmp_path)
    for path in (tmp_path / "Annotations").iterdir():
        path.rename(path.with_suffix(".XML"))
    check(tmp_path)
    for split in ("train", "val"):
        put(tmp_path / f"ImageSets/Main/{split}.txt", "".join(f"{name}.XML\n" for name, *_ in IMAGES[split]))
    check(tmp_path)


def test_a_line_that_repeats_is_one_image(tmp_path):
    voc_devkit_form(tmp_path)
    put(tmp_path / "ImageSets/Main/train.txt", "t1\nt2\nt3\nt1.jpg\nAnnotations/t2.xml\n")
    (note,) = check(tmp_path)
    assert "lines of image sets that name a file again: 2" in note and "line 4 names 't1.jpg', as line 1 does" in note


def test_several_folders_of_xml_files_for_a_split(tmp_path, capsys):
    for folder in ("train1", "train2"):
        draw(tmp_path / folder, "train")
        voc_files(tmp_path / folder, "train")
    message = refused(capsys, tmp_path)
    assert "--train_annotations: several files match: " in message and "train2; choose one" in message


# Images of VOC's files


def missing_images(root) -> str:
    """Return the message that images of the training split are missing."""
    with pytest.raises(UserError, match="images are missing") as caught:
        Custom(build_task(parse(root)), "train").check_images_exist()
    return str(caught.value)


def test_images_outside_of_the_dataset_are_not_read(tmp_path):
    """Folders next to that of the dataset, and absolute paths."""
    root = tmp_path / "set"
    draw(root, "train")
    voc_files(root, "train")
    draw(tmp_path / "images", "train")
    (root / "t2.jpg").unlink()
    assert "1 of 3 images are missing" in missing_images(root)
    change = (root / "t2.xml").read_text().replace("x.jpg", f"{tmp_path}/images/t2.jpg")
    put(root / "t2.xml", change)
    assert "set: 1 of 3 images are missing, the first is t2.jpg" in missing_images(root)
    shutil.rmtree(root)
    voc_files(root / "train", "train")
    draw(tmp_path / "images/train", "train")
    assert "3 of 3 images are missing" in missing_images(root)


def test_a_missing_image_is_not_that_of_another_xml_file(tmp_path):
    draw(tmp_path / "train", "train")
    voc_files(tmp_path / "train", "train")
    voc_files(tmp_path / "train/b", "train")
    assert "3 of 6 images are missing, the first is b/" in missing_images(tmp_path)
    for name, *_ in IMAGES["train"]:  # nor by the name in the file
        put(tmp_path / f"train/b/{name}.xml", (tmp_path / f"train/{name}.xml").read_text().replace("x.jpg", "t1.jpg"))
    assert "3 of 6 images are missing, the first is b/" in missing_images(tmp_path)


def test_images_of_xml_files_found_elsewhere(tmp_path):
    for split in ("train", "val"):
        draw(tmp_path / split, split)
        voc_files(tmp_path / split / "b", split)
    notes = check(tmp_path)
    text = f"3 image(s), such as 'b/t1', which is {tmp_path}/train/t1.jpg"
    assert any("file names that were found elsewhere" in note and text in note for note in notes)


def test_xml_files_in_a_folder_of_any_name(tmp_path):
    draw(tmp_path / "images", "train")
    voc_files(tmp_path / "my files", "train")
    notes = check(tmp_path, "--val_intervals", "0", splits=("train",))
    assert any("'my files/t1', which is " in note for note in notes)
    for folder in ("images", "my files"):
        (tmp_path / "train").mkdir(exist_ok=True)
        (tmp_path / folder).rename(tmp_path / "train" / folder)
    put(tmp_path / "README.txt", "hello")
    notes = check(tmp_path, "--val_intervals", "0", splits=("train",))
    assert any("'my files/t1', which is " in note for note in notes)


def test_images_that_the_xml_files_name(tmp_path):
    """Their own names differ; no note is due."""
    for split in ("train", "val"):
        draw(tmp_path / split / "b", split)
        voc_files(tmp_path / split / "b", split)
        for name, *_ in IMAGES[split]:
            path = tmp_path / split / "b" / f"{name}.xml"
            put(path.with_name(f"label_{name}.xml"), path.read_text().replace("x.jpg", f"{name}.jpg"))
            path.unlink()
    assert check(tmp_path) == []


def test_an_image_of_several_xml_files(tmp_path):
    draw(tmp_path / "train", "train")
    voc_files(tmp_path / "train/b", "train")
    voc_files(tmp_path / "train/a", "train")
    with pytest.raises(UserError, match=r"b/t1\.xml: describes .*train/t1\.jpg, as .*a/t1\.xml does; remove one"):
        Custom(build_task(parse(tmp_path)), "train")
    dataset = Custom(build_task(parse(tmp_path, "--on_bad_image", "skip")), "train")
    assert len(dataset) == 3 and len(dataset.objects["cls"]) == 3


@pytest.mark.parametrize(
    "folders", [("{}", "{}"), ("{}/JPEGImages", "{}/Annotations"), ("images/{}", "Annotations/{}")]
)
def test_images_without_an_xml_file_are_counted(tmp_path, folders):
    for split in ("train", "val"):
        draw(tmp_path / folders[0].format(split), split)
        voc_files(tmp_path / folders[1].format(split), split)
    assert check(tmp_path) == []
    image = tmp_path / folders[0].format("train") / "more.jpg"
    shutil.copy(image.with_name("t1.jpg"), image)
    assert check(tmp_path) == [f"note: images without an XML file, left out: 1, the first: {image}: not used"]


def test_images_of_other_splits_are_not_counted(tmp_path):
    """Nor those that an image set leaves out."""
    for split in ("train", "val"):
        draw(tmp_path / "images", split)
        voc_files(tmp_path / "Annotations" / split, split)
    assert check(tmp_path) == []
    voc_devkit_form(tmp_path / "set")
    put(tmp_path / "set/ImageSets/Main/train.txt", "t1\nt2\n")
    assert Custom(build_task(parse(tmp_path / "set")), "train").notes == []


# Annotations of COCO's form


@pytest.mark.parametrize("where", ["images", "annotations"])
@pytest.mark.parametrize("form", [str, float, lambda value: f"{value:06d}"], ids=["text", "float", "zeros"])
def test_ids_that_are_numbers_in_one_place_and_texts_in_another(tmp_path, where, form):
    """Such data trained to its end without a single object."""
    coco_at_the_root(tmp_path)

    def change(content):
        for entry in content[where]:
            field = "id" if where == "images" else "image_id"
            entry[field] = form(entry[field])

    for split in ("train", "val"):
        change_json(tmp_path / f"{split}.json", change)
    notes = check(tmp_path)
    differ = any("ids that are a number in one place and a string in another" in note for note in notes)
    assert differ == (form is not float)
    dataset = Custom(build_task(parse(tmp_path)), "val")
    assert dataset.evaluate(perfect(dataset))["AP"] == pytest.approx(1)


@pytest.mark.parametrize("where", ["categories", "annotations", "both"])
def test_category_ids_that_are_floats(tmp_path, where):
    coco_at_the_root(tmp_path)

    def change(content):
        for one in content["categories"] if where != "annotations" else ():
            one["id"] = float(one["id"])
        for one in content["annotations"] if where != "categories" else ():
            one["category_id"] = float(one["category_id"])

    for split in ("train", "val"):
        change_json(tmp_path / f"{split}.json", change)
    assert check(tmp_path) == []
    dataset = Custom(build_task(parse(tmp_path)), "val")
    assert dataset.category_ids == [1, 2] and dataset.evaluate(perfect(dataset))["AP"] == pytest.approx(1)


def test_numbers_for_scoring_that_are_texts(tmp_path):
    coco_at_the_root(tmp_path)
    for split in ("train", "val"):
        change_json(
            tmp_path / f"{split}.json", lambda c: [one.update(area="400", iscrowd="0") for one in c["annotations"]]
        )
    check(tmp_path)
    dataset = Custom(build_task(parse(tmp_path)), "val")
    assert dataset.evaluate(perfect(dataset))["AP"] == pytest.approx(1)
    for split in ("train", "val"):
        change_json(tmp_path / f"{split}.json", lambda c: c["annotations"][0].update(iscrowd="no"))
        with pytest.raises(UserError, match=f"{split}.json: annotation 1 has the iscrowd 'no', which is not a number"):
            Custom(build_task(parse(tmp_path)), split)


def test_category_ids_that_are_texts(tmp_path):
    coco_at_the_root(tmp_path)
    change_json(
        tmp_path / "train.json", lambda c: [a.update(category_id=str(a["category_id"])) for a in c["annotations"]]
    )
    check(tmp_path)


def test_nothing_is_left_to_learn_from(tmp_path):
    coco_at_the_root(tmp_path)
    change_json(tmp_path / "train.json", lambda c: [a.update(image_id=f"x{k}") for k, a in enumerate(c["annotations"])])
    opt = parse(tmp_path)
    with pytest.raises(UserError, match="no object is left to learn from in 3 images .*not listed, left out: 3"):
        Custom(build_task(opt), "train")
    change_json(tmp_path / "val.json", lambda c: [a.update(bbox=[1, 1, 0, 0]) for a in c["annotations"]])
    with pytest.raises(UserError, match="no object is left to score against"):
        Custom(build_task(opt), "val")


def test_nearly_nothing_is_left_to_learn_from(tmp_path):
    draw(tmp_path / "images", "train")
    content = coco("train")
    content["images"] = [{**content["images"][0], "id": k} for k in range(1, 101)]
    content["annotations"] = [{**content["annotations"][0], "id": k, "image_id": k + 99} for k in range(1, 101)]
    put(tmp_path / "train.json", content)
    with pytest.raises(UserError, match="nearly nothing is left to learn from, 1 objects in 1 of 100 images"):
        Custom(build_task(parse(tmp_path)), "train")


def test_annotations_of_the_whole_set_with_a_few_images(tmp_path):
    """A subset of the images with all annotations is common, and all right."""
    coco_at_the_root(tmp_path)

    def change(content):
        content["annotations"] += [{**content["annotations"][0], "id": k, "image_id": k} for k in range(1000, 1500)]

    change_json(tmp_path / "train.json", change)
    assert any("annotations of images that are not listed, left out: 500" in note for note in check(tmp_path))


def test_boxes_as_fractions_of_the_image(tmp_path):
    coco_at_the_root(tmp_path)
    change_json(tmp_path / "train.json", lambda c: [a.update(bbox=[0.1, 0.2, 0.3, 0.4]) for a in c["annotations"]])
    with pytest.raises(UserError, match="seem to be fractions of the image"):
        Custom(build_task(parse(tmp_path)), "train")


def test_boxes_most_of_which_are_fractions(tmp_path):
    """Large objects may have a width just above 1; a few boxes of another tool are noted."""
    coco_at_the_root(tmp_path)
    boxes = [[0.1, 0.2, 1.2, 0.4], [0.1, 0.2, 0.3, 0.4], [0.5, 0.2, 0.3, 0.4]]
    change_json(
        tmp_path / "train.json", lambda c: [a.update(bbox=b) for a, b in zip(c["annotations"], boxes, strict=True)]
    )
    with pytest.raises(UserError, match="2 of 3 boxes lie within one pixel, so they seem to be fractions"):
        Custom(build_task(parse(tmp_path)), "train")
    change_json(tmp_path / "train.json", lambda c: c["annotations"][1].update(bbox=[9, 9, 9, 9]))
    notes = Custom(build_task(parse(tmp_path)), "train").notes
    assert any("boxes within one pixel, perhaps fractions of the image: 1, the first: " in note for note in notes)


def with_corners(root, form, count, size=60):
    """Boxes [x, y, x + 10, y + 8] of an image per box, as a JSON file or as YOLO's labels."""
    rng = np.random.default_rng(2)
    corners = [(x, y, x + 10, y + 8) for x, y in rng.integers(5, size - 12, (count, 2)).tolist()]
    images = [{"id": k, "file_name": f"{k}.jpg", "width": size, "height": size} for k in range(count)]
    for image, box in zip(images, corners, strict=True):
        (root / "images/train").mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / "images/train" / image["file_name"]), np.zeros((size, size, 3), np.uint8))
        label = " ".join(str(value / size) for value in box)
        put(root / f"labels/train/{image['id']}.txt" if form == "yolo" else root / "unused.txt", f"0 {label}\n")
    if form == "yolo":
        put(root / "classes.txt", "hen house\n")
        return
    annotations = [{"id": k, "image_id": k, "category_id": 1, "bbox": box} for k, box in enumerate(corners)]
    put(
        root / "train.json",
        {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "hen house"}]},
    )


@pytest.mark.parametrize("form", ["coco", "yolo"])
def test_corners_in_the_place_of_boxes(tmp_path, capsys, form):
    with_corners(tmp_path / "many", form, 12)
    if form == "yolo":
        assert "its labels seem to be corners; a label is class x y" in refused(capsys, tmp_path / "many")
    else:
        with pytest.raises(UserError, match="of 12 boxes reach out of their images, so they seem to be corners"):
            Custom(build_task(parse(tmp_path / "many")), "train")
    with_corners(tmp_path / "few", form, 5)  # too few to tell
    assert len(Custom(build_task(parse(tmp_path / "few")), "train")) == 5


def test_boxes_that_reach_out_are_not_taken_for_corners(tmp_path):
    """One of them would be empty or outside as corners."""
    with_corners(tmp_path, "coco", 12)
    for wrong in ([30, 30, 20, 40], [5, 5, 50, 70]):
        change_json(tmp_path / "train.json", lambda c, wrong=wrong: c["annotations"][0].update(bbox=wrong))
        dataset = Custom(build_task(parse(tmp_path)), "train")
        assert any("reach out of their image and are clipped" in note for note in dataset.notes)


@pytest.mark.parametrize("style", ["coco", "voc"])
def test_validation_data_that_cannot_be_scored(tmp_path, style):
    """A note says why; one object that counts is enough."""
    {"coco": coco_at_the_root, "voc": voc_devkit_form}[style](tmp_path)
    check(tmp_path)
    for path in tmp_path.glob("Annotations/v*.xml"):
        path.write_text(path.read_text().replace("<difficult>0", "<difficult>1"))
    if style == "coco":
        change_json(tmp_path / "val.json", lambda c: [one.update(iscrowd=1) for one in c["annotations"]])
    flag = {"coco": "iscrowd", "voc": "difficult"}[style]
    dataset = Custom(build_task(parse(tmp_path)), "val")
    (note,) = [note for note in dataset.notes if "cannot be scored" in note]
    assert f"none of its 3 objects counts in scoring ({flag} is set), so there will be no score" in note
    assert not score_exists(dataset.evaluate(perfect(dataset))[{"coco": "AP", "voc": "mAP"}[style]])


@pytest.mark.parametrize("without", [None, [], [0, 0, 0, 0], [0.0, 0.0, 0.0, 0.0]])
def test_boxes_that_follow_from_segmentations(tmp_path, without):
    coco_at_the_root(tmp_path)

    def change(content):
        for k, annotation in enumerate(content["annotations"]):
            x, y, w, h = annotation["bbox"]
            annotation["bbox"] = without
            mask = np.zeros((96, 64), np.uint8)
            mask[y : y + h, x : x + w] = 1
            counts, previous, run = [], 0, 0
            for value in mask.T.ravel().tolist():
                if value != previous:
                    counts.append(run)
                    previous, run = value, 0
                run += 1
            polygon = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            annotation["segmentation"] = polygon if k else {"counts": [*counts, run], "size": [96, 64]}

    change_json(tmp_path / "train.json", change)
    notes = check(tmp_path)
    assert any("boxes that follow from segmentations: 3" in note for note in notes)


def test_a_category_without_objects_that_exists_twice(tmp_path):
    coco_at_the_root(tmp_path)
    change_json(tmp_path / "train.json", lambda c: c["categories"].append({"id": 77, "name": "fox"}))
    assert any("categories that exist twice: 1" in note for note in check(tmp_path))


def test_roboflow_with_one_class(tmp_path):
    """Its heading has the name of the class."""
    coco_of_roboflow(tmp_path)
    for path in tmp_path.glob("*/_annotations.coco.json"):

        def change(content):
            content["categories"] = [
                {"id": 0, "name": "fox", "supercategory": "none"},
                {"id": 1, "name": "fox", "supercategory": "fox"},
            ]
            for annotation in content["annotations"]:
                annotation["category_id"] = 1

        change_json(path, change)
    opt = parse(tmp_path)
    assert opt.class_names == ["fox"] and len(Custom(build_task(opt), "train").objects["cls"]) == 3


# Labels of YOLO's form


@pytest.mark.parametrize("form", ["images/{}2017", "{}2017/images", "{}_2017", "images/my_{}", "my-{}/images"])
def test_folders_of_splits(tmp_path, form):
    """Names with years and words: all of it was trained on."""
    put(tmp_path / "classes.txt", "hen house\nfox\n")
    for split in ("train", "val"):
        folder = form.format(split)
        draw(tmp_path / folder, split)
        yolo_labels(tmp_path / folder.replace("images", "labels"), split)
    assert check(tmp_path) == []


def test_several_folders_of_a_split(tmp_path):
    """They are one, and folders that belong to no split are named."""
    yolo_images_first(tmp_path)
    for kind, suffix in (("images", "jpg"), ("labels", "txt")):
        for folder in ("train2", "extra", "train_masks", "test"):
            (tmp_path / kind / folder).mkdir()
            shutil.copy(tmp_path / kind / f"train/t1.{suffix}", tmp_path / kind / folder / f"{folder}.{suffix}")
        (tmp_path / kind / f"train/t1.{suffix}").rename(tmp_path / kind / f"train2/t1.{suffix}")
        (tmp_path / kind / f"train2/train2.{suffix}").unlink()
    notes = check(tmp_path)
    assert notes == [
        f"note: folders of images that belong to no split, left out: 2, the first: {tmp_path}/images/extra: "
        "not used, 1 image(s)",
        f"note: splits of several folders: 1, the first: {tmp_path}/images: train consists of 2 folders: train, train2",
    ]


def test_several_folders_of_a_split_with_their_labels(tmp_path):
    yolo_split_first(tmp_path)
    (tmp_path / "valid").rename(tmp_path / "train2")
    dataset = Custom(build_task(parse(tmp_path)), "train")
    assert len(dataset) == len(IMAGES["train"]) + len(IMAGES["val"]) and len(dataset.objects["cls"]) == 6
    assert any("train consists of 2 folders: train/images, train2/images" in note for note in dataset.notes)


def test_folders_of_splits_of_unknown_form_are_not_all_trained_on(tmp_path, capsys):
    put(tmp_path / "classes.txt", "hen house\nfox\n")
    for split in ("train", "val"):
        draw(tmp_path / f"my_{split}", split)
        yolo_labels(tmp_path / f"my_{split}", split)
    assert "no annotations found" in refused(capsys, tmp_path)


@pytest.mark.parametrize("form", ["autosplit_{}", "{}2017", "2007_{}", "my-{}-list"])
def test_lists_of_splits(tmp_path, form):
    """Other text files with such names, of labels or logs, do not list images."""
    yolo_lists(tmp_path)
    for split in ("train", "val"):
        (tmp_path / f"{split}.txt").rename(tmp_path / f"{form.format(split)}.txt")
        put(tmp_path / f"{split}_1.txt", "0 0.5 0.5 0.1 0.1\n")
        put(tmp_path / f"{split}_log.txt", "loss 1.5\n")
    assert check(tmp_path) == []
    shutil.copy(tmp_path / f"{form.format('val')}.txt", tmp_path / f"{form.format('val')}_2.txt")
    with pytest.raises(UserError, match=r"^--val_annotations: several files match: .*; choose one$"):
        Custom(build_task(parse(tmp_path)), "val")


def test_names_next_to_labels_that_are_not_divided(tmp_path):
    """labelImg writes them there."""
    draw(tmp_path / "images", "train")
    yolo_labels(tmp_path / "labels", "train")
    put(tmp_path / "labels/classes.txt", "hen house\nfox\n")
    notes = check(tmp_path, "--val_intervals", "0", splits=("train",))
    assert len(notes) == 1 and "nothing divides these images" in notes[0]


def test_boxes_with_keypoints(tmp_path):
    pytest.importorskip("yaml")
    yolo_images_first(tmp_path)
    for path in tmp_path.rglob("labels/*/*.txt"):
        more = " 0.1 0.9 2 0.2 0.9 0 0.3 0.8 1 0.1 0.8 1"
        path.write_text("".join(f"{line}{more}\n" for line in path.read_text().splitlines()))
    text = "train: images/train\nval: images/val\nnames: [hen house, fox]\nkpt_shape: "
    put(tmp_path / "data.yaml", text + "[4, 3]\n")
    check(tmp_path)
    put(tmp_path / "data.yaml", text + "[4, 2]\n")
    with pytest.raises(
        UserError, match=r"line 1 is not a label \(kpt_shape \[4, 2\] asks for 13 columns, there are 17"
    ):
        Custom(build_task(parse(tmp_path)), "train")


def test_keypoints_without_their_shape(tmp_path):
    """Read as polygons, the boxes would be wrong."""
    pytest.importorskip("yaml")
    yolo_images_first(tmp_path)
    boxes = [(0.2, 0.5, 0.1, 0.2), (0.5, 0.5, 0.2, 0.3), (0.5, 0.5, 0.8, 0.9), (0.9, 0.8, 0.2, 0.1)]
    lines = [f"0 {x} {y} {w} {h} {x - w / 3} {y} 0 0\n" for x, y, w, h in boxes]
    put(tmp_path / "labels/train/t1.txt", "".join(lines))
    put(tmp_path / "labels/train/t2.txt", lines[0])
    text = "train: images/train\nval: images/val\nnames: [hen house, fox]\n"
    put(tmp_path / "data.yaml", text)
    message = r"images/train: its labels seem to be boxes with keypoints; state kpt_shape: \[2, 2\] in data.yaml, or "
    with pytest.raises(UserError, match=message):
        Custom(build_task(parse(tmp_path)), "train")
    put(tmp_path / "data.yaml", text + "kpt_shape: [0, 0]\n")
    assert len(Custom(build_task(parse(tmp_path)), "train").objects["cls"]) == 5
    put(tmp_path / "data.yaml", text + "kpt_shape: [2, 2]\n")
    dataset = Custom(build_task(parse(tmp_path)), "train")
    np.testing.assert_allclose(dataset.read_objects(1)["boxes"], [[6, 38.4, 10, 57.6]])


@pytest.mark.parametrize("points", ["0.5 0.5 2 0.5 0.6 2", "0.5 0.5 2"])
def test_keypoints_with_visibilities_without_their_shape(tmp_path, points):
    yolo_images_first(tmp_path)
    put(tmp_path / "labels/train/t1.txt", f"0 0.5 0.5 0.4 0.4 {points}\n")
    with pytest.raises(UserError, match="line 1 is not a label .*; keypoints need kpt_shape in data.yaml"):
        Custom(build_task(parse(tmp_path)), "train")


def random_polygon(rng, corners: int, low: float, high: float, center: float) -> tuple:
    """Corners of a polygon of a size between ``low`` and ``high``, within ``center`` of the middle of the image."""
    size = rng.uniform(low, high, 2)
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    points = np.stack([np.cos(angles), np.sin(angles)], 1) * rng.uniform(0.5, 1, (corners, 1)) / 2 * size
    middle = np.clip(0.5 + center * rng.uniform(-1, 1, 2), size / 2, 1 - size / 2)
    return tuple(map(tuple, middle + points[:: rng.choice([-1, 1])]))


@pytest.mark.parametrize("corners", [3, 4, 5, 8])
@pytest.mark.parametrize("center", [0, 0.1, 0.5])
@pytest.mark.parametrize(("low", "high"), [(0.01, 0.05), (0.05, 0.3), (0.05, 0.5), (0.3, 0.9)])
def test_polygons_are_not_taken_for_keypoints(corners, center, low, high):
    """Neither large sets of any size and place, nor small ones."""
    rng = np.random.default_rng(corners)
    for count in [1, 3, 4, 10] * 50 + [1000]:
        assert not are_poses([random_polygon(rng, corners, low, high, center) for _ in range(count)])


def test_one_rotated_box_in_all_images_is_not_taken_for_keypoints():
    """Frames of a fixed camera have the same polygon again and again."""
    rng = np.random.default_rng(0)
    for _ in range(5000):
        center, one, other = rng.uniform(0.2, 0.8, 2), *rng.uniform(-0.2, 0.2, (2, 2))
        corners = [center + one, center + other, center - one, center - other]
        assert not are_poses([tuple(map(tuple, corners))] * 9)


@pytest.mark.parametrize(("low", "high"), [(0.01, 0.05), (0.1, 0.5), (0.05, 0.8)])
def test_keypoints_are_not_taken_for_polygons(low, high):
    rng = np.random.default_rng(0)
    sizes = rng.uniform(low, high, (50, 2))
    boxes = [(tuple(rng.uniform(size / 2, 1 - size / 2)), tuple(size)) for size in sizes]
    points = [tuple(np.add(xy, rng.uniform(-0.5, 0.5, 2) * size) for _ in range(4)) for xy, size in boxes]
    assert are_poses([(*box, *map(tuple, more), (0, 0)) for box, more in zip(boxes, points, strict=True)])


def test_lines_of_a_list_that_occur_twice(tmp_path):
    """``./images/t1.jpg`` and ``images/t1.jpg`` are one image, with its boxes once."""
    put(tmp_path / "classes.txt", "hen house\nfox\n")
    for split in ("train", "val"):
        draw(tmp_path / "images", split)
        yolo_labels(tmp_path / "labels", split)
        lines = [f"images/{name}.jpg\n" for name, *_ in IMAGES[split]]
        put(tmp_path / f"{split}.txt", "".join([*lines, f"./{lines[0]}"]))
    train, val = check(tmp_path)
    assert f"images that are listed more than once: 1, the first: {tmp_path}/train.txt: " in train and "t1.jpg" in train
    assert "v1.jpg" in val


def test_labels_with_a_confidence(tmp_path):
    yolo_images_first(tmp_path)
    path = tmp_path / "labels/train/t1.txt"
    path.write_text("".join(f"{line} 0.93\n" for line in path.read_text().splitlines()))
    assert any("label lines with a confidence, which is not used: 2" in note for note in check(tmp_path))


def test_names_of_data_yaml_count_before_a_list(tmp_path):
    """Labeling tools leave their default classes in classes.txt."""
    pytest.importorskip("yaml")
    yolo_images_first(tmp_path)
    put(tmp_path / "data.yaml", "train: images/train\nval: images/val\nnames: [hen house, fox]\n")
    put(tmp_path / "classes.txt", "dog\nperson\ncat\n")
    notes = check(tmp_path)
    assert any("files of other class names, not used" in note and "classes.txt" in note for note in notes)


def test_lists_of_names_that_contradict_each_other(tmp_path):
    yolo_images_first(tmp_path)
    (tmp_path / "classes.txt").unlink()
    put(tmp_path / "labels/train/classes.txt", "hen house\nfox\n")
    put(tmp_path / "labels/classes.txt", "fox\nhen house\n")
    with pytest.raises(UserError, match=r"labels/classes\.txt: its class names are not those of .*train/classes\.txt"):
        Custom(build_task(parse(tmp_path)), "train")


def test_an_empty_line_between_names_is_refused(tmp_path, capsys):
    """It would shift the numbers of all that follow."""
    yolo_images_first(tmp_path)
    put(tmp_path / "classes.txt", "hen house\n\nfox\n")
    assert "classes.txt: line 2 is empty" in refused(capsys, tmp_path)


@pytest.mark.parametrize("names", ["[yes, no]", "[no, off]", "{0: on, 1: y}", "[null, 1.0]", "[0x10, 1:30]"])
def test_words_that_yaml_would_change(tmp_path, names):
    pytest.importorskip("yaml")
    yolo_images_first(tmp_path)
    (tmp_path / "classes.txt").unlink()
    put(tmp_path / "data.yaml", f"train: images/train\nval: images/val\nnames: {names}\n")
    words = [part.rpartition(": ")[2] if "{" in names else part for part in names.strip("[]{}").split(", ")]
    check(tmp_path, names=tuple(words))


def test_the_only_yaml_file_describes_the_data(tmp_path):
    pytest.importorskip("yaml")
    for split, folder in (("train", "train"), ("val", "valid")):
        draw(tmp_path / folder / "images", split)
        yolo_labels(tmp_path / folder / "labels", split)
    put(tmp_path / "my birds.yaml", "train: ../train/images\nval: ../valid/images\nnames: [hen house, fox]\nnc: 2\n")
    check(tmp_path)
    check(tmp_path, "--train_annotations", "my birds.yaml", "--val_annotations", "my birds.yaml")
    put(tmp_path / "hyp.yaml", "lr0: 0.01  # names: none\nclass_names: [a, b]\n")  # has no key of that name
    check(tmp_path)
    put(tmp_path / "my birds.yaml", "{train: ../train/images, val: ../valid/images, 'names' : [hen house, fox]}\n")
    check(tmp_path)


def test_an_empty_folder_of_validation_images(tmp_path):
    pytest.importorskip("yaml")
    yolo_images_first(tmp_path)
    put(tmp_path / "data.yaml", "train: images/train\nval: images/none\nnames: [hen house, fox]\n")
    (tmp_path / "images/none").mkdir()
    check(tmp_path, "--val_intervals", "0", splits=("train",))
    message = "images/none: it lists no images; specify others with --val_annotations, or use --val_intervals 0"
    with pytest.raises(UserError, match=message):
        Custom(build_task(parse(tmp_path)), "val")


@pytest.mark.parametrize("option", ["train_annotations", "val_annotations"])
def test_options_with_paths_of_another_machine(tmp_path, option):
    coco_at_the_root(tmp_path)
    split = option.split("_")[0]
    check(tmp_path, f"--{option}", f"C:\\data\\set\\{split}.json")


def test_large_images_are_read_by_their_header(tmp_path):
    """More pixels than Pillow's own limit."""
    from PIL import Image

    yolo_images_first(tmp_path)
    Image.new("1", (14000, 13000)).save(tmp_path / "images/train/big.png")
    assert len(Custom(build_task(parse(tmp_path)), "train")) == 4


def test_what_cannot_be_a_path_is_refused_in_one_line(tmp_path):
    coco_at_the_root(tmp_path)
    for name in ("a\0.jpg", "x" * 5000, "/etc/hostname", "../../README.md", "~root/a.jpg"):
        change_json(tmp_path / "train.json", lambda c, name=name: c["images"][0].update(file_name=name))
        with pytest.raises(UserError) as caught:
            Custom(build_task(parse(tmp_path)), "train").check_images_exist()
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
        assert os.sep in str(caught.value)


# Names of splits, reasons, and images in both splits


@pytest.mark.parametrize("layout", [yolo_images_first, yolo_split_first, voc_devkit_form])
@pytest.mark.parametrize("spelling", [str.capitalize, str.upper])
def test_split_names_in_other_cases(tmp_path, layout, spelling):
    """``images/Train`` is the training split, and ``images/Val`` is not trained on."""
    layout(tmp_path)
    for path in sorted(tmp_path.rglob("*"), key=lambda path: -len(path.parts)):
        if path.stem in ("train", "val"):
            path.rename(path.with_name(spelling(path.stem) + path.suffix))
    check(tmp_path)


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", "train train2017 trainval pascal_trainval0712 train-images trainSet trainset strain_train Training"),
        ("val", "val val2 valid instances_val2017 VALID validation_set minival2014 ValImages test testing my.test"),
        (None, "devices valve valley contest latest constraints strain dataset trains"),
    ],
)
def test_words_that_name_a_split(split, names):
    for name in names.split():
        assert is_split_name(name) == (split is not None)
        assert [other for other in ("train", "val") if split_rank(other, name) is not None] == (
            [split] if split else []
        )


@pytest.mark.parametrize("name", ["devices", "valve", "contest"])
@pytest.mark.parametrize("layout", [label_studio_coco, cvat_xml, labelme_flat], ids=lambda layout: layout.__name__)
def test_names_that_contain_a_split_are_not_divided(tmp_path, layout, name):
    layout(tmp_path)
    if layout is labelme_flat:
        (tmp_path / name).mkdir()
        for path in tmp_path.glob("t1.*"):
            path.rename(tmp_path / name / path.name)
    else:
        (path,) = (path for path in tmp_path.iterdir() if path.is_file())
        path.rename(path.with_name(f"{name}{path.suffix}"))
    notes = check(tmp_path, "--val_intervals", "0", splits=("train",))
    assert any("nothing divides these images" in note for note in notes)


def test_a_devkit_whose_name_contains_a_split(tmp_path):
    """The validation images were trained on."""
    voc_devkit_form(tmp_path / "devices")
    put(tmp_path / "README.txt", "hello")
    check(tmp_path)
    (tmp_path / "devices").rename(tmp_path / "test_tubes")
    check(tmp_path)


def test_files_and_folders_whose_names_contain_another_split(tmp_path):
    coco_at_the_root(tmp_path)
    for split in ("train", "val"):
        (tmp_path / f"{split}.json").rename(tmp_path / f"strain_{split}.json")
    (tmp_path / "images").rename(tmp_path / "valley")
    check(tmp_path)


@pytest.mark.parametrize(
    ("before", "after", "reason"), [("xmax>", "x2>", "xmax"), ("<name>[^<]*</name>", "<name></name>", "name")]
)
def test_no_usable_object_names_the_reason(tmp_path, capsys, before, after, reason):
    """Where no object can be read, there are no classes; the first object's reason is what helps."""
    voc_devkit_form(tmp_path)
    for path in (tmp_path / "Annotations").iterdir():
        path.write_text(re.sub(before, after, path.read_text()))
    message = refused(capsys, tmp_path)
    assert "no classes found; " in message and "Annotations/t1.xml" in message and reason in message


def test_images_in_both_splits_are_counted(tmp_path, capsys):
    """``val: images/train`` is allowed, but its scores are not those of unseen images."""
    pytest.importorskip("yaml")
    yolo_images_first(tmp_path)
    assert "also trained on" not in prepared(tmp_path)
    put(tmp_path / "data.yaml", "train: images/train\nval: [images/train, images/val]\nnames: [hen house, fox]\n")
    shared, unseen = len(IMAGES["train"]), len(IMAGES["val"])
    note = f"note: {shared} of the {shared + unseen} validation images are also trained on"
    assert note in prepared(tmp_path)
    folders = ("--data_path", str(tmp_path), "--output_dir", str(tmp_path / "o"))
    assert load_script("tools/check_data").main(["ctdet", "--dataset", "custom", *folders]) == 0
    note = f"note: images of both splits: {shared} of the {shared + unseen} images are also trained on"
    assert note in capsys.readouterr().out


@pytest.mark.parametrize("keys", ["Train Val Names", "TRAIN VAL NAMES", "train val names"])
def test_keys_of_data_yaml_in_any_case(tmp_path, keys):
    pytest.importorskip("yaml")
    yolo_images_first(tmp_path)
    (tmp_path / "images/train").rename(tmp_path / "images/a")
    (tmp_path / "labels/train").rename(tmp_path / "labels/a")
    (tmp_path / "classes.txt").unlink()
    train, val, names = keys.split()
    put(tmp_path / "data.yaml", f"{train}: images/a\n{val}: images/val\n{names}: [{', '.join(NAMES)}]\n")
    check(tmp_path)


def test_images_that_share_a_label_file(tmp_path):
    """``a.jpg`` and ``a.png`` have the labels ``a.txt``: both are used, and that is said."""
    yolo_images_first(tmp_path)
    name = IMAGES["train"][0][0]
    image = cv2.imread(str(tmp_path / f"images/train/{name}.jpg"))
    assert cv2.imwrite(str(tmp_path / f"images/train/{name}.png"), image)
    (note,) = Custom(build_task(parse(tmp_path)), "train").notes
    assert re.fullmatch(
        rf"note: .*label files that several images share: 1, the first: .*{name}\.txt: is used for .*", note
    )
    assert f"{name}.jpg" in note and f"{name}.png" in note


def test_a_dataset_of_options(tmp_path):
    """Programs may have options and no task."""
    yolo_images_first(tmp_path)
    check_objects(Custom(parse(tmp_path), "train"), "train")


def prepared(root) -> str:
    """Return the output of ``--prepare_only``."""
    arguments = ["--dataset", "custom", "--data_path", root, "--arch", "lite", "--batch_size", "2"]
    return output_of("main", "ctdet", *arguments, "--prepare_only", "--exp_dir", root / "exp")
