"""Conversion of KITTI's files to COCO-style JSON: format, folders, and errors."""

import json
import os
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from tests.helpers.kitti import AREA, CAR, SITTING, make_kitti

from centernet.conversion import kitti_devkit
from centernet.errors import UserError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
HARD_CASES = SHARED / "hard_cases" / "kitti"
needs_sample = pytest.mark.skipif(not (SHARED / "kitti_sample").is_dir(), reason="the shared test data is not here")


@pytest.fixture
def root(tmp_path):
    return make_kitti(tmp_path / "kitti")


def silent(_):
    pass


def test_converted_form(root):
    data = kitti_devkit.convert_images(root, ["000001"])
    calib = [[720, 0, 610, 45], [0, 720, 173, 0.25], [0, 0, 1, 0.005]]
    assert data["images"] == [{"file_name": "000001.png", "id": 1, "calib": calib}]
    assert data["annotations"][0] == {
        "image_id": 1,
        "id": 1,
        "category_id": 2,
        "dim": [1.5, 1.75, 4.0],
        "bbox": [10.0, 11.0, 20.5, 13.0],
        "depth": 25.0,
        "alpha": -1.5,
        "truncated": 0.25,
        "occluded": 1,
        "location": [-0.5, 1.75, 25.0],
        "rotation_y": -1.25,
    }
    sitting, area = data["annotations"][1:]
    assert (sitting["category_id"], area["category_id"]) == (6, 9)
    assert (sitting["id"], area["id"]) == (2, 3)
    assert (area["bbox"], area["depth"], area["alpha"], area["occluded"]) == ([20, 5, 5, 4], -1000, -10, -1)
    names = ["Pedestrian", "Car", "Cyclist", "Van", "Truck", "Person_sitting", "Tram", "Misc", "DontCare"]
    assert data["categories"] == [{"name": name, "id": k} for k, name in enumerate(names, start=1)]


def test_convert_devkit(root):
    lines = []
    written = kitti_devkit.convert_devkit(root, log=lines.append)
    counts = {}
    for path in written:
        data = json.loads(path.read_text())
        counts[path.name] = ([image["id"] for image in data["images"]], len(data["annotations"]))
        assert [annotation["id"] for annotation in data["annotations"]] == list(range(1, counts[path.name][1] + 1))
    assert counts == {
        "kitti_3dop_train.json": ([1, 0], 4),
        "kitti_3dop_val.json": ([2], 0),
        "kitti_subcnn_train.json": ([2], 0),
        "kitti_subcnn_val.json": ([0, 1], 4),
        "kitti_trainval.json": ([0, 1, 2], 4),
        "kitti_test.json": ([5], 0),
    }
    assert {path.name for path in (root / "annotations").iterdir()} == set(counts)
    assert lines[0] == f"{root / 'annotations' / 'kitti_3dop_train.json'}: 2 images, 4 annotations"


def test_what_is_missing_is_logged(root, tmp_path):
    shutil.rmtree(root / "testing")
    shutil.rmtree(root / "ImageSets_3dop")
    (root / "ImageSets_subcnn" / "val.txt").unlink()
    lines = []
    written = kitti_devkit.convert_devkit(root, tmp_path / "out", log=lines.append)
    assert [path.name for path in written] == ["kitti_subcnn_train.json", "kitti_trainval.json"]
    assert f"{root / 'ImageSets_3dop' / 'train.txt'} is missing: no kitti_3dop_train.json" in lines
    assert f"{root / 'ImageSets_subcnn' / 'val.txt'} is missing: no kitti_subcnn_val.json" in lines
    assert f"{root / 'testing' / 'calib'} is missing: no kitti_test.json" in lines
    shutil.rmtree(root / "ImageSets_subcnn")
    with pytest.raises(UserError, match="kitti: holds no image set of KITTI"):
        kitti_devkit.convert_devkit(root, tmp_path / "out", log=silent)


@pytest.mark.parametrize("links", [True, False])
def test_arrange(root, monkeypatch, links):
    if not links:

        def refused(*_, **__):
            raise OSError("no links here")

        monkeypatch.setattr(os, "link", refused)
        monkeypatch.setattr(Path, "symlink_to", refused)
    lines = []
    kitti_devkit.arrange(root, log=lines.append)
    for part, names in (("trainval", ["000000", "000001", "000002"]), ("test", ["000005"])):
        folder = root / "images" / part
        assert folder.is_symlink() == links
        assert sorted(path.name for path in folder.iterdir()) == [f"{name}.png" for name in names]
        assert cv2.imread(str(folder / f"{names[-1]}.png"))[0, 0, 0] == 9 * int(names[-1])
    label_val = root / "training" / "label_val"  # what either split validates on
    assert sorted(path.name for path in label_val.iterdir()) == ["000000.txt", "000001.txt", "000002.txt"]
    assert (label_val / "000001.txt").read_text() == f"{CAR}\n{SITTING}\n{AREA}\n"
    assert lines[-1] == f"{label_val}: 3 label files (3 new)"

    (label_val / "000000.txt").write_text("half a li")
    before = (label_val / "000001.txt").stat().st_mtime_ns
    kitti_devkit.arrange(root, log=lines.append)
    assert lines[-1].endswith("(1 new)") and (label_val / "000001.txt").stat().st_mtime_ns == before
    if links:  # the folder can be moved
        moved = root.rename(root.with_name("moved"))
        assert (moved / "images" / "trainval" / "000001.png").is_file()


def test_arrange_names_what_is_missing(root):
    (root / "training" / "image_2" / "000000.png").unlink()
    with pytest.raises(UserError, match=r"ImageSets_3dop/train.txt: images .*image_2: 000000.png, 1 in all"):
        kitti_devkit.arrange(root, log=silent)
    shutil.rmtree(root / "training" / "image_2")
    with pytest.raises(UserError, match="image_2: no such folder"):
        kitti_devkit.arrange(root, log=silent)


def test_arrange_names_a_missing_label(root):
    (root / "training" / "label_2" / "000002.txt").unlink()
    with pytest.raises(UserError, match="label_2/000002.txt: no such label file"):
        kitti_devkit.arrange(root, log=silent)


def test_arrange_repairs_a_dangling_link(root, tmp_path):
    (root / "images").mkdir()
    (root / "images" / "trainval").symlink_to(tmp_path / "gone")
    kitti_devkit.arrange(root, log=silent)
    assert (root / "images" / "trainval" / "000000.png").is_file()


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("training/label_2/000001.txt", f"{CAR}\nCar 0.25 1\n", "line 2 is not a line of a KITTI label file: it has 3"),
        ("training/label_2/000001.txt", None, "no such label file"),
        ("training/calib/000000.txt", "P0: 1\n", "it has no line P2"),
        ("training/calib/000000.txt", None, "no such camera file"),
        ("testing/calib/000005.txt", None, "no such camera file"),
        ("ImageSets_3dop/val.txt", "000002\n7.png\n", "line 2: '7.png' is not the name of a KITTI image"),
        ("ImageSets_subcnn/val.txt", "000002\n000002\n", "line 2: the image 000002 is named twice"),
    ],
)
def test_bad_file(root, file, text, reason):
    path = root / file
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=re.escape(f"{path}: {reason}")):
        kitti_devkit.convert_devkit(root, log=silent)
    assert not list((root / "annotations").glob("*.tmp")) if (root / "annotations").exists() else True


def test_folder_that_cannot_be_written(root, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: cannot be written"):
        kitti_devkit.convert_devkit(root, tmp_path / "file", log=silent)


@pytest.mark.skipif(not HARD_CASES.is_dir(), reason="the shared test data is not here")
@pytest.mark.parametrize(
    ("case", "count", "words"),
    [
        ("label_valid", 6, None),
        ("label_empty", 0, None),
        ("label_crlf", 6, None),
        ("label_no_final_newline", 6, None),
        ("label_behind_camera", 6, "line 1: this Car lies behind the camera (z = -25.01 m); kept unchanged"),
        ("label_short_line", None, "line 1 is not a line of a KITTI label file: it has 9 fields instead of 15"),
        ("label_unknown_class", None, "line 1 is not a line of a KITTI label file: 'Spaceship' is none of the classes"),
        ("label_nan", None, "line 1 is not a line of a KITTI label file: 'nan' (field 14) is not a finite number"),
        ("calib_empty", None, "it has no line P2"),
        ("calib_missing_p2", None, "it has no line P2"),
        ("calib_short_p2", None, "line 3: P2 has to be 12 finite numbers, it has 7 fields"),
        ("calib_zero_p2", None, "line 3: the focal lengths in P2 are 0 and 0"),
    ],
)
def test_hard_cases(tmp_path, case, count, words):
    files = {"label_2": "label_valid", "calib": "calib_valid"}
    files["label_2" if case.startswith("label") else "calib"] = case
    for folder, name in files.items():
        (tmp_path / "training" / folder).mkdir(parents=True)
        shutil.copyfile(HARD_CASES / f"{name}.txt", tmp_path / "training" / folder / "000007.txt")
    path = tmp_path / "training" / ("label_2" if case.startswith("label") else "calib") / "000007.txt"
    lines = []
    if count is None:
        with pytest.raises(UserError, match=re.escape(f"{path}: {words}")):
            kitti_devkit.convert_images(tmp_path, ["000007"], log=lines.append)
    else:
        data = kitti_devkit.convert_images(tmp_path, ["000007"], log=lines.append)
        assert len(data["annotations"]) == count
        assert lines == ([f"{path}: {words}"] if words else [])
        if count:
            assert data["annotations"][-1]["rotation_y"] == -10
            assert data["images"][0]["calib"][0] == [721.5377, 0, 609.5593, 44.85728]


@needs_sample
def test_sample(tmp_path):
    written = kitti_devkit.convert_devkit(SHARED / "kitti_sample", tmp_path, log=silent)
    counts = {}
    for path in written:
        data = json.loads(path.read_text())
        counts[path.name] = (len(data["images"]), len(data["annotations"]))
    assert counts == {
        "kitti_3dop_train.json": (6, 37),
        "kitti_3dop_val.json": (7, 44),
        "kitti_subcnn_train.json": (7, 46),
        "kitti_subcnn_val.json": (6, 35),
        "kitti_trainval.json": (13, 81),
        "kitti_test.json": (1, 0),
    }
    data = json.loads((tmp_path / "kitti_3dop_train.json").read_text())
    of_class = np.bincount([annotation["category_id"] for annotation in data["annotations"]], minlength=10)
    assert of_class.tolist() == [0, 2, 22, 1, 0, 0, 0, 0, 0, 12]
