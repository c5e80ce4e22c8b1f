"""Bad images and bad annotations: reported with file and reason, left out on request, and never a wrong box."""

import io
import json
import multiprocessing
import multiprocessing.resource_sharer
import os
import re
import signal
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from tests.helpers.training import run_here
from torch._utils import ExceptionWrapper

from centernet.datasets import get_dataset
from centernet.datasets.loader import (
    EvalBatches,
    Samples,
    SkippedImages,
    TrainBatches,
    collate,
    make_loader,
)
from centernet.errors import UserError
from centernet.opts import opts
from centernet.tasks import build_task
from centernet.utils.failures import explain
from centernet.utils.images import is_truncated_jpeg, read_image

HARD_CASES = Path(__file__).resolve().parents[3] / "shared" / "data" / "hard_cases"
needs_hard_cases = pytest.mark.skipif(not HARD_CASES.is_dir(), reason="../shared/data is not there")

IMAGE = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8), (5, 5), 0)


def encoded(suffix, image=IMAGE):
    done, content = cv2.imencode(suffix, image)
    assert done
    return content.tobytes()


def by_pillow(image, form, **more):
    file = io.BytesIO()
    image.save(file, form, **more)
    return file.getvalue()


def rotated(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    return by_pillow(Image.fromarray(IMAGE[:, :, ::-1]), "JPEG", exif=exif, quality=95)


def with_thumbnail():
    """A JPEG whose first segment holds a small JPEG, end marker and all."""
    inner, outer = encoded(".jpg", IMAGE[:8, :8]), encoded(".jpg")
    return outer[:2] + b"\xff\xe1" + struct.pack(">H", len(inner) + 2) + inner + outer[2:]


# Images


GOOD = {
    "color": (encoded(".jpg"), (24, 32)),
    "gray": (encoded(".jpg", IMAGE[:, :, 0]), (24, 32)),
    "CMYK": (by_pillow(Image.fromarray(IMAGE[:, :, ::-1]).convert("CMYK"), "JPEG"), (24, 32)),
    "16 bits, one channel": (encoded(".png", IMAGE[:, :, 0].astype(np.uint16) * 257), (24, 32)),
    "16 bits": (encoded(".png", IMAGE.astype(np.uint16) * 257), (24, 32)),
    "alpha": (encoded(".png", np.dstack([IMAGE, np.zeros((24, 32), np.uint8)])), (24, 32)),
    "gray with alpha": (by_pillow(Image.fromarray(IMAGE[:, :, :2], "LA"), "PNG"), (24, 32)),
    "palette": (by_pillow(Image.fromarray(IMAGE).convert("P"), "PNG"), (24, 32)),
    "one pixel": (encoded(".png", IMAGE[:1, :1]), (1, 1)),
    "EXIF 3": (rotated(3), (24, 32)),
    "EXIF 6": (rotated(6), (32, 24)),
    "bytes after the end": (encoded(".jpg") + b"camera\xff\xd8data", (24, 32)),
    "with a thumbnail": (with_thumbnail(), (24, 32)),
}


@pytest.mark.parametrize("name", GOOD)
def test_images_are_read_as_opencv_defines(tmp_path, name):
    content, size = GOOD[name]
    path = tmp_path / "image.jpg"  # the content decides, not the name
    path.write_bytes(content)
    image = read_image(str(path))
    assert image.shape == (*size, 3) and image.dtype == np.uint8
    assert np.array_equal(image, cv2.imread(str(path), cv2.IMREAD_COLOR))


def test_16_bits_alpha_and_exif_give_the_same_image(tmp_path):
    def read(name):
        (tmp_path / "image").write_bytes(GOOD[name][0])
        return read_image(str(tmp_path / "image")).astype(int)

    assert np.array_equal(read("16 bits"), IMAGE) and np.array_equal(read("alpha"), IMAGE)
    assert np.abs(read("EXIF 6") - np.rot90(IMAGE, -1)).mean() < 12
    assert np.abs(read("EXIF 3") - np.rot90(IMAGE, 2)).mean() < 12


def huge_header():
    data = bytearray(encoded(".png", IMAGE[:1, :1]))
    data[16:24] = struct.pack(">II", 65000, 65000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


BAD = {
    "empty": (b"", "the file is empty"),
    "text": (b"no image at all", "not an image file, or corrupt"),
    "header only": (encoded(".jpg")[:20], "the file is truncated"),
    "cut off": (encoded(".jpg")[:500], "the file is truncated"),
    "almost whole": (encoded(".jpg")[:-2], "the file is truncated"),
    "cut off behind its thumbnail": (with_thumbnail()[:-100], "the file is truncated"),
    "cut off PNG": (encoded(".png")[:500], "not an image file, or corrupt"),
    "cut off BMP": (encoded(".bmp")[:500], "not an image file, or corrupt"),
    "huge": (huge_header(), "its header states 65000 x 65000, which is more than"),
}


@pytest.mark.parametrize("name", BAD)
def test_images_that_cannot_be_read(tmp_path, name):
    content, reason = BAD[name]
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: cannot read image.*{re.escape(reason)}"):
        read_image(str(path))


def test_what_is_not_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, reason in [
        (tmp_path, "it is not a file"),
        (tmp_path / "pipe", "it is not a file"),
        (tmp_path / "none.jpg", "no such file"),
        (tmp_path / ("x" * 9999), "too long"),
        (f"{tmp_path}/a\0b", "null"),
    ]:
        with pytest.raises(UserError, match=reason):
            read_image(str(path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(".png"))
    (tmp_path / "a.png").chmod(0)
    with pytest.raises(UserError, match="Permission denied"):
        read_image(str(tmp_path / "a.png"))


def test_every_jpeg_that_is_truncated_jpeg_is_seen():
    for content in (encoded(".jpg"), with_thumbnail(), rotated(6)):
        assert not is_truncated_jpeg(content) and not is_truncated_jpeg(content + b"more")
        assert all(is_truncated_jpeg(content[:n]) for n in range(2, len(content) - 1))


HARD_IMAGES = {
    "truncated.jpg": "the file is truncated",
    "header_only.jpg": "the file is truncated",
    "zero_byte.jpg": "the file is empty",
    "text.jpg": "not an image file, or corrupt",
    "huge_header.png": "pixels",
}


@needs_hard_cases
@pytest.mark.parametrize("path", sorted((HARD_CASES / "images").glob("*")), ids=lambda path: path.name)
def test_hard_images(path):
    if path.name in HARD_IMAGES:
        with pytest.raises(UserError, match=f"^{re.escape(str(path))}: .*{HARD_IMAGES[path.name]}"):
            read_image(str(path))
    else:
        image = read_image(str(path))
        assert image.ndim == 3 and image.dtype == np.uint8
        assert np.array_equal(image, cv2.imread(str(path), cv2.IMREAD_COLOR))


# Annotations


def write_coco(root, change=lambda content: None, split="train", poses=False):
    """``coco/`` with two images of 32 x 24, three boxes, and joints for ``poses``, after ``change``."""
    folder = root / "coco"
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / f"{split}2017").mkdir(exist_ok=True)
    for name in "ab":
        (folder / f"{split}2017" / f"{name}.png").write_bytes(encoded(".png"))
    images = [{"id": k, "file_name": f"{name}.png", "width": 32, "height": 24} for k, name in ((1, "a"), (2, "b"))]
    boxes = [(1, [2, 3, 10, 8]), (1, [12, 5, 15, 16]), (2, [4.5, 2, 20, 20])]
    annotations = [
        {"id": k, "image_id": i, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for k, (i, box) in enumerate(boxes, start=1)
    ]
    for one in annotations if poses else []:
        one.update(keypoints=[5, 6, 2] * 17, num_keypoints=17)
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}
    change(content)
    name = "person_keypoints" if poses else "instances"
    (folder / "annotations" / f"{name}_{split}2017.json").write_text(json.dumps(content))
    return root


def open_coco(root, *more, split="train", poses=False):
    task, dataset = ("multi_pose", "coco_hp") if poses else ("ctdet", "coco")
    opt = opts().parse([task, "--dataset", dataset, "--data_path", str(root), *more])
    return get_dataset(dataset)(build_task(opt), split)


def change_first(**values):
    def change(content):
        for name, value in values.items():
            if value is None:
                del content["annotations"][0][name]
            else:
                content["annotations"][0][name] = value

    return change


def change_image(**values):
    return lambda content: content["images"][0].update(values)


NAN = float("nan")
# A change of the file, the message, and how many images and objects are left with --on_bad_image skip.
MISTAKES = [
    (change_first(bbox=[NAN, 1, 2, 3]), r"annotation 1 of 'a.png' has the bbox \[nan, .*not finite", (2, 2)),
    (change_first(bbox=[1, 1, float("inf"), 3]), "annotation 1 of 'a.png' has the bbox .*not finite", (2, 2)),
    (change_first(bbox=[1, 1, 1e300, 3]), "annotation 1 of 'a.png' has boxes that are not finite", (2, 2)),
    (change_first(bbox=[9, 9, -3, -4]), "annotation 1 of 'a.png' .*width or height is negative", (2, 2)),
    (change_first(bbox=["1", "2", "3", "4"]), "annotation 1 of 'a.png' .*bbox is not made of numbers", (2, 2)),
    (change_first(bbox=[1, 2, 3]), "annotation 1 of 'a.png' .*bbox is not 4 numbers", (2, 2)),
    (change_first(bbox=[1, 2, 3, [4]]), "annotation 1 of 'a.png' .*bbox is not 4 numbers", (2, 2)),
    (change_first(bbox=[1, 2, 3, 10**400]), "annotation 1 of 'a.png' .*bbox is not 4 numbers", (2, 2)),
    (change_first(bbox={"x": 1}), "annotation 1 of 'a.png' .*bbox is not 4 numbers", (2, 2)),
    (change_first(bbox=None), "annotation 1 of 'a.png' lacks 'bbox'", (2, 2)),
    (change_first(image_id=None), "annotation 1 lacks 'image_id'", (2, 2)),
    (change_first(image_id=[1]), r"annotation 1 has the image_id \[1\]", (2, 2)),
    (change_first(category_id=None), "annotation 1 of 'a.png' lacks 'category_id'", (2, 2)),
    (change_first(category_id=999), "annotation 1 of 'a.png' has the unknown category_id 999", (2, 2)),
    (change_first(category_id={}), "annotation 1 of 'a.png' has the unknown category_id {}", (2, 2)),
    (change_first(id=None, bbox=7), "annotation number 1 of 'a.png' .*bbox is not 4 numbers: 7", (2, 2)),
    (lambda c: c["annotations"].append("x"), "annotation number 4 is malformed.*'x'", (2, 3)),
    (lambda c: c["images"].append([1]), "image number 3 is malformed", (2, 3)),
    (lambda c: c["images"].append({"id": 2, "file_name": "c.png"}), "duplicate image id 2 .'b.png', 'c.png'", (1, 2)),
    (lambda c: c["images"].append(c["images"][1]), "duplicate image id 2 .'b.png'", (2, 3)),
    (change_image(id=[2]), r"image number 1 .*has the id \[2\]", (1, 1)),
    (change_image(file_name=12345), "image number 1 has the file_name 12345, which is not a string", (1, 1)),
    (change_image(file_name=""), "image number 1 has the file_name '', which is not a string", (1, 1)),
    (change_image(file_name="x" * 200_000), "image number 1 has a file_name that no file can have", (1, 1)),
    (change_image(file_name="a\0.png"), "image number 1 has a file_name that no file can have", (1, 1)),
    (change_image(file_name="../../README.md"), "points outside the image folder", (1, 1)),
    (change_image(file_name="a/../../b.png"), "points outside the image folder", (1, 1)),
    (change_image(file_name="a\\..\\..\\b.png"), "points outside the image folder", (1, 1)),
    (change_image(file_name="/etc/hostname"), "points outside the image folder", (1, 1)),
    (change_image(file_name="C:\\a.png"), "points outside the image folder", (1, 1)),
    (lambda c: c["images"][0].pop("file_name"), "image number 1 lacks 'file_name'", (1, 1)),
    (lambda c: c["images"][0].pop("id"), "image number 1 lacks 'id'", (1, 1)),
]


@pytest.mark.parametrize("number", range(len(MISTAKES)), ids=[text for _, text, _ in MISTAKES])
def test_errors_stop_the_start_or_are_left_out(tmp_path, number):
    change, text, left = MISTAKES[number]
    write_coco(tmp_path, change)
    with pytest.raises(UserError, match=f"instances_train2017.json: .*{text}") as caught:
        open_coco(tmp_path)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 500 and "--on_bad_image skip" in line
    dataset = open_coco(tmp_path, "--on_bad_image", "skip")
    assert (len(dataset), len(dataset.objects["cls"])) == left
    (note,) = [note for note in dataset.notes if "left out" in note and "--on_bad_image" in note]
    assert re.search(text, note) and np.isfinite(dataset.objects["boxes"]).all()


def test_all_images_of_an_ambiguous_id_are_left_out(tmp_path):
    """The boxes of one image would be trained on another one."""

    def change(content):
        content["images"].insert(1, {"id": "1", "file_name": "c.png"})  # not the id 1
        content["images"] += [{"id": 2, "file_name": f"{name}.png"} for name in "dd"]
        content["annotations"] += [{**content["annotations"][2], "image_id": "2"}]

    write_coco(tmp_path, change)
    dataset = open_coco(tmp_path, "--on_bad_image", "skip")
    assert dataset.file_names == ["a.png", "c.png"] and len(dataset.objects["cls"]) == 2
    notes = "\n".join(dataset.notes)
    assert "duplicate image ids, left out: 3, the first: " in notes
    assert "annotations of duplicate image ids, left out: 2, the first: " in notes


POSE_MISTAKES = [
    (change_first(keypoints=[1] * 50), "annotation 1 of 'a.png' .*keypoints is not 51 numbers"),
    (change_first(keypoints=[NAN] + [1] * 50), "annotation 1 of 'a.png' has joints that are not finite"),
    (change_first(keypoints=["1"] * 51), "annotation 1 of 'a.png' .*keypoints is not made of numbers"),
    (change_first(keypoints=None), "annotation 1 of 'a.png' lacks 'keypoints'"),
]


@pytest.mark.parametrize("number", range(len(POSE_MISTAKES)), ids=[text for _, text in POSE_MISTAKES])
def test_errors_in_joints(tmp_path, number):
    change, text = POSE_MISTAKES[number]
    write_coco(tmp_path, change, poses=True)
    with pytest.raises(UserError, match=text):
        open_coco(tmp_path, poses=True)
    assert len(open_coco(tmp_path, "--on_bad_image", "skip", poses=True).objects["cls"]) == 2


# What the reference trains on without a word and what does no harm: a note at most.
HARMLESS = [
    (change_first(bbox=[5, 5, 0, 0]), "boxes without an area.*: 1, .*annotation 1 of 'a.png'", 3),
    (change_first(bbox=[100, 5, 9, 9]), "boxes outside of their image.*annotation 1", 3),
    (change_first(bbox=[-5, 5, 9, 9]), "boxes that reach out of their image.*annotation 1", 3),
    (change_first(bbox=[-1e9, -1e9, 2e9, 2e9]), "boxes that reach out of their image.*annotation 1", 3),
    (change_first(image_id=4242), "annotations of images that are not listed.*: 1.*image 4242", 2),
    (change_first(id=2), None, 3),
    (change_first(iscrowd=1), None, 3),
    (change_first(image_id=1.0), None, 3),
    (lambda c: [image.update(width=0, height="x") for image in c["images"]], None, 3),
]


@pytest.mark.parametrize("number", range(len(HARMLESS)))
def test_what_does_no_harm_is_trained_on(tmp_path, number):
    change, text, count = HARMLESS[number]
    write_coco(tmp_path, change)
    dataset = open_coco(tmp_path)
    assert len(dataset) == 2 and len(dataset.objects["cls"]) == count
    if text is None:
        assert dataset.notes == []
    else:
        (note,) = dataset.notes
        assert re.search(text, note) and "\n" not in note
    for index in range(2):
        sample = Samples(dataset, train=True)[1, index]
        assert all(np.isfinite(value).all() for value in sample.values())


def test_scores_need_fields_and_no_duplicated_ids_change_them(tmp_path):
    write_coco(tmp_path, change_first(area="big"), split="val")
    with pytest.raises(UserError, match="annotation 1 of .a.png. has the area .big., which scoring needs"):
        open_coco(tmp_path, split="val")
    scores = []
    for changes in ({}, {"id": 2}, {"id": 0}):
        write_coco(tmp_path, change_first(**changes), split="val")
        dataset = open_coco(tmp_path, split="val")
        found = {
            image_id: {1: np.hstack([part["boxes"], np.ones((len(part["boxes"]), 1), np.float32)])}
            for image_id, part in zip(dataset.image_ids, map(dataset.read_objects, range(2)), strict=True)
        }
        scores.append(dataset.evaluate(found)["AP"])
    assert scores == [pytest.approx(1.0)] * 3


def test_what_is_left_out_is_not_scored(tmp_path):
    write_coco(tmp_path, change_first(bbox=[1, 2, 3, "x"]), split="val")
    dataset = open_coco(tmp_path, "--on_bad_image", "skip", split="val")
    found = {
        image_id: {1: np.hstack([part["boxes"], np.ones((len(part["boxes"]), 1), np.float32)])}
        for image_id, part in zip(dataset.image_ids, map(dataset.read_objects, range(2)), strict=True)
    }
    assert dataset.evaluate(found)["AP"] == pytest.approx(1.0)


def test_json_that_nests_deeply_and_folders_in_its_place(tmp_path):
    write_coco(tmp_path)
    path = tmp_path / "coco/annotations/instances_train2017.json"
    path.write_text('{"images": ' + "[" * 200_000)
    with pytest.raises(UserError, match="instances_train2017.json: not a JSON file"):
        open_coco(tmp_path)
    path.write_text(
        '{"categories": [], "images": [{"id": 1, "file_name": ' + "[" * 500 + "]" * 500 + '}], "annotations": []}'
    )
    with pytest.raises(UserError, match="which is not a string"):
        open_coco(tmp_path)


def test_missing_images_are_found_at_the_start(tmp_path):
    write_coco(tmp_path, change_image(file_name="gone.png"))
    with pytest.raises(UserError, match="train2017: 1 of 2 images are missing, the first is gone.png"):
        open_coco(tmp_path).check_images_exist()
    for more in (["--on_bad_image", "skip"], ["--resume"]):
        dataset = open_coco(tmp_path, *more)
        dataset.check_images_exist()
        assert "1 of 2 images are missing" in dataset.notes[-1]
    write_coco(tmp_path, change_image(file_name="sub/a.png"))
    (tmp_path / "coco/train2017/sub").mkdir()
    (tmp_path / "coco/train2017/sub/a.png").write_bytes(encoded(".png"))
    open_coco(tmp_path).check_images_exist()


# What pycocotools and the reference take, with the note that is printed; all others are refused with these words.
HARD_HARMLESS = {
    "valid": None,
    "bad_image_files": None,
    "missing_image_file": None,
    "wrong_image_size": "boxes that reach out|^$",
    "bbox_zero_size": "boxes without an area.*: 2",
    "bbox_out_of_image": "boxes outside of their image|2 boxes that reach out",
    "duplicate_annotation_ids": None,
    "annotation_of_unlisted_image": "image 424242",
    "empty_annotations": None,
}
HARD_MISTAKES = {
    "unknown_category": "annotation .* has the unknown category_id 999",
    "bbox_nan": "annotation .* not finite",
    "bbox_inf": "annotation .* not finite",
    "bbox_negative": "annotation .* width or height is negative",
    "bbox_strings": "annotation .* bbox is not made of numbers",
    "bbox_three_numbers": "annotation .* bbox is not 4 numbers",
    "bbox_missing_key": "annotation .* lacks 'bbox'",
    "duplicate_image_ids": "duplicate image id 1",
    "missing_categories": "has no list 'categories'",
    "missing_images": "has no list 'images'",
    "missing_annotations": "has no list 'annotations'",
    "empty_images": "lists no images",
    "empty_annotations": "no object is left to learn from in 2 images",
    "long_file_name": "a file_name that no file can have, 200000 characters",
    "path_traversal": r"'../../README.md', which points outside the image folder",
    "absolute_path": "'/etc/hostname', which points outside the image folder",
    "file_name_not_a_string": "the file_name 12345, which is not a string",
    "top_level_list": "not a COCO-style annotation file",
    "truncated": "not a JSON file",
    "zero_byte": "not a JSON file",
    "keypoints_wrong_length": "keypoints is not 51 numbers",
    "keypoints_nan": "joints that are not finite",
    "keypoints_missing_key": "lacks 'keypoints'",
}


@needs_hard_cases
@pytest.mark.parametrize("path", sorted((HARD_CASES / "coco_json").glob("*.json")), ids=lambda path: path.stem)
def test_hard_annotations(tmp_path, path):
    poses = path.stem.startswith("keypoints")
    (tmp_path / "coco/annotations").mkdir(parents=True)
    (tmp_path / "coco/train2017").symlink_to(HARD_CASES / "images")
    name = "person_keypoints" if poses else "instances"
    (tmp_path / f"coco/annotations/{name}_train2017.json").write_bytes(path.read_bytes())
    if path.stem in HARD_MISTAKES:
        with pytest.raises(UserError, match=f"{name}_train2017.json: .*{HARD_MISTAKES[path.stem]}") as caught:
            open_coco(tmp_path, poses=poses)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    else:
        notes = "\n".join(open_coco(tmp_path, poses=poses).notes)
        assert re.search(HARD_HARMLESS.get(path.stem) or "^$", notes), notes


# Images in the middle of an epoch


def spoil(data_path, *numbers, folder="voc/images"):
    for number in numbers:
        (data_path / folder / f"{number:06d}.jpg").write_bytes(b"no image")


def samples(data_path, train, *more):
    opt = opts().parse(["ctdet", "--dataset", "pascal", "--input_res", "64", "--data_path", str(data_path), *more])
    return Samples(get_dataset("pascal")(build_task(opt), "train" if train else "val"), train)


def test_the_next_image_takes_the_place_of_a_bad_one(tiny_voc):
    whole = samples(tiny_voc, True)
    expected = [whole[3, index] for index in range(6)]
    assert all(sample["skipped"] == -1 for sample in expected)
    spoil(tiny_voc, 2, 3, 6)  # numbers 1, 2 and 5 of the dataset
    spoiled = samples(tiny_voc, True)
    for index, other in enumerate([0, 3, 3, 3, 4, 0]):
        sample = spoiled[3, index]
        assert sample["skipped"] == (index if other != index else -1)
        assert all(np.array_equal(sample[name], expected[other][name]) for name in sample if name != "skipped")
    with pytest.raises(UserError, match=r"000002\.jpg: cannot read image"):
        samples(tiny_voc, True, "--on_bad_image", "error")[3, 1]


def test_batches_do_not_depend_on_workers_or_processes(tiny_voc):
    spoil(tiny_voc, 2, 3)

    def epoch(shares, workers):
        parts = []
        for rank in range(len(shares)):
            ours = samples(tiny_voc, True)
            loader = make_loader(ours, TrainBatches(6, shares, rank, 1), workers, False)
            parts.append(list(loader))
        return [
            {name: torch.cat([part[i][name] for part in parts]) for name in parts[0][i] if name != "num_target_pixels"}
            for i in range(len(parts[0]))
        ]

    alone = epoch([2], 0)
    assert len(alone) == 3 and sorted(torch.cat([batch["skipped"] for batch in alone]).tolist())[-2:] == [1, 2]
    for other in (epoch([2], 2), epoch([1, 1], 1)):
        assert all(torch.equal(a[name], b[name]) for a, b in zip(alone, other, strict=True) for name in a)


def test_when_no_image_can_be_used(tiny_voc, monkeypatch):
    spoil(tiny_voc, *range(1, 7))
    with pytest.raises(UserError, match=r"6 images in a row cannot be used, the last because: .*000002\.jpg"):
        samples(tiny_voc, True)[1, 2]
    monkeypatch.setattr("centernet.datasets.loader.MAX_BAD_IN_A_ROW", 3)
    with pytest.raises(UserError, match=r"3 images in a row cannot be used, the last because: .*000005\.jpg"):
        samples(tiny_voc, True)[1, 2]


def test_when_the_only_image_cannot_be_used(tiny_voc):
    path = tiny_voc / "voc/annotations/pascal_trainval0712.json"
    content = json.loads(path.read_text())
    content["images"] = content["images"][:1]
    path.write_text(json.dumps(content))
    spoil(tiny_voc, 1)
    with pytest.raises(UserError, match=r"1 images in a row cannot be used, the last because: .*000001\.jpg"):
        samples(tiny_voc, True)[1, 0]


@pytest.mark.parametrize("stated", [(64, 49), (48, 64)])
def test_an_image_of_another_size_than_stated(tiny_voc, stated):
    path = tiny_voc / "voc/annotations/pascal_trainval0712.json"
    content = json.loads(path.read_text())
    content["images"][0].update(width=stated[0], height=stated[1])
    path.write_text(json.dumps(content))
    assert samples(tiny_voc, True)[1, 0]["skipped"] == 0
    text = f"000001.jpg: this image is 64 x 48.*pascal_trainval0712.json states {stated[0]} x {stated[1]}"
    with pytest.raises(UserError, match=text) as caught:
        samples(tiny_voc, True, "--on_bad_image", "error")[1, 0]
    assert ("EXIF" in str(caught.value)) == (stated == (48, 64))


def test_a_validation_image_is_black_and_a_test_ends(tiny_voc):
    spoil(tiny_voc, 8)
    validation = samples(tiny_voc, False)
    assert [int(validation[0, k]["skipped"]) for k in range(4)] == [-1, 1, -1, -1]
    assert validation[0, 1]["image"].max() == 0 and validation[0, 1]["meta"]["img_id"] == 8
    assert samples(tiny_voc, False, "--test", "--on_bad_image", "skip")[0, 1]["skipped"] == 1
    for more in (["--test"], ["--on_bad_image", "error"]):
        with pytest.raises(UserError, match=r"000008\.jpg"):
            samples(tiny_voc, False, *more)[0, 1]


def test_skipped_images_are_reported_and_named_once(tiny_voc, tmp_path):
    spoil(tiny_voc, 7, 8, 9)
    validation = samples(tiny_voc, False)
    skipped = SkippedImages(validation.dataset)
    assert skipped.report("epoch 1") is None
    masks = [skipped.add(collate([validation[key] for key in batch])).tolist() for batch in EvalBatches(4, 3)]
    assert masks == [[False, False, False], [True]] and skipped.indices == [0, 1, 2]
    named = tmp_path / "skipped.txt"
    for _ in range(2):
        text = skipped.report("epoch 1", [2, 0, 1, 1], named)
        assert text.startswith("epoch 1: 3 image(s) could not be used: ") and "\n" not in text
    lines = named.read_text().splitlines()
    assert len(lines) == 3 and all(f"{number:06d}.jpg" in line for number, line in zip((7, 8, 9), lines, strict=True))


class Deadly(Samples):
    """A loader process that asks for the image 3 is killed."""

    def __getitem__(self, key):
        if key[1] == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(key)


def test_a_loader_process_that_is_killed_ends_the_run_with_the_reason(tiny_voc):
    ours = samples(tiny_voc, True)
    ours = Deadly(ours.dataset, True)
    loader = make_loader(ours, TrainBatches(6, [2], 0, 1), 1, False)
    with pytest.raises((RuntimeError, EOFError, ConnectionError)) as caught:  # the latter: killed while it hands over
        for _ in loader:
            pass
    reason = explain(caught.value)
    assert re.search("^--num_workers: a loader process has ended.*killed", reason) and "\n" not in reason


def _offer(pipe, closes):
    """Offer a file descriptor to another process, as loader processes do with tensors."""
    sharer = multiprocessing.resource_sharer._resource_sharer
    if closes:
        sharer._serve = lambda: os.kill(os.getpid(), signal.SIGKILL) if sharer._listener.accept() else None
    with open(os.devnull) as file:
        pipe.send(multiprocessing.resource_sharer.DupFd(file.fileno()))
        pipe.recv()


@pytest.mark.parametrize("ends", [True, False], ids=["before", "during"])
def test_a_batch_whose_loader_process_ends_before_it_is_fetched(ends):
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_offer, args=(theirs, not ends))
    process.start()
    handle = ours.recv()
    if ends:
        process.kill()
        process.join()
    with pytest.raises((EOFError, ConnectionError)) as caught:
        handle.detach()
    process.kill()
    process.join()
    for error in (caught.value, _raised_in_another_thread(caught.value)):
        assert re.search("^--num_workers: a loader process has ended.*killed", explain(error))
    assert explain(EOFError("Ran out of input")) is None


def _raised_in_another_thread(error):
    """Return the error as PyTorch raises it if it occurred in the thread that pins memory."""
    try:
        ExceptionWrapper((type(error), error, error.__traceback__), where="in pin memory thread").reraise()
    except (EOFError, ConnectionError) as again:
        return again


@pytest.fixture
def script(tmp_path, tiny_voc):
    """Run main.py or test.py in this process; gives the exit status and what was printed."""

    def run(name, *arguments):
        common = ["--dataset", "pascal", "--data_path", str(tiny_voc), "--exp_dir", str(tmp_path / "exp")]
        common += ["--input_res", "64", "--arch", "res_18", "--num_workers", "0", "--pretrained", "none"]
        done = run_here(name, "ctdet", *common, *arguments)
        return done.returncode, done.stdout, done.stderr

    return run


def test_bad_images_in_a_run_and_in_tests(script, tiny_voc, tmp_path):
    spoil(tiny_voc, 2, 8)
    run = tmp_path / "exp/ctdet/default"
    status, output, errors = script("main", "--batch_size", "2", "--num_epochs", "2", "--val_intervals", "2")
    assert status == 0, errors
    for text in (
        "epoch 1, training (replaced by the next readable image): 1 image(s) could not be used: ",
        "epoch 2, training (replaced by the next readable image): 1 image(s) could not be used: ",
        "epoch 2, validation (scored as if nothing was found): 1 image(s) could not be used: ",
    ):
        assert output.count(text) == 1, output
    assert len((run / "train_log.csv").read_text().splitlines()) == 7
    lines = (run / "skipped_images.txt").read_text().splitlines()
    assert len(lines) == 2 and "000002.jpg" in lines[0] and "000008.jpg" in lines[1]
    results = json.loads((run / "results.json").read_text())
    assert all(not results[cls][1] for cls in range(1, 21)) and any(results[cls][0] for cls in range(1, 21))

    weights = ("--load_model", str(run / "model_last.pth"))
    for name, arguments in (("main", ["--test"]), ("test", []), ("test", ["--not_prefetch_test"])):
        status, output, errors = script(name, *weights, "--exp_id", "score", *arguments)
        assert status == 2 and re.search(r"^error: .*000008\.jpg: cannot read image.*\n$", errors)
    for name, arguments in (("main", ["--test"]), ("test", [])):
        status, output, errors = script(name, *weights, "--exp_id", "score", *arguments, "--on_bad_image", "skip")
        assert status == 0, errors
        assert (
            output.count("(scored as if nothing was found): 1 image(s) could not be used: ")
            + output.count("scored as if nothing was found: 1 image(s) could not be used: ")
            == 1
        )
        skipped = "skipped_images_pascal_val.txt" if name == "test" else "skipped_images.txt"
        assert "000008.jpg" in (tmp_path / "exp/ctdet/score" / skipped).read_text()
        of_test = "results_pascal_val.json" if name == "test" else "results.json"
        results = json.loads((tmp_path / "exp/ctdet/score" / of_test).read_text())
        assert all(not results[cls][1] for cls in range(1, 21))


def test_a_bad_annotation_ends_the_run_and_a_missing_image_too(script, tiny_voc):
    (tiny_voc / "voc/images/000003.jpg").unlink()
    status, _, errors = script("main", "--batch_size", "2", "--num_epochs", "1", "--prepare_only")
    assert status == 2 and "images: 1 of 6 images are missing, the first is 000003.jpg" in errors
    path = tiny_voc / "voc/annotations/pascal_trainval0712.json"
    path.write_text(path.read_text().replace('"bbox": [', '"bbox": [NaN, ', 1))
    status, _, errors = script("main", "--batch_size", "2", "--num_epochs", "1", "--prepare_only")
    assert status == 2 and "pascal_trainval0712.json: annotation 1 of '000001.jpg'" in errors
    status, output, errors = script("main", "--on_bad_image", "skip", "--batch_size", "2", "--prepare_only")
    assert status == 0, errors
    assert (
        "--on_bad_image skip: malformed annotations, left out: 1, the first: " in output
        and "images are missing" in output
    )
