"""check_data.py: every planted problem is named, and the network's input is drawn."""

import contextlib
import importlib.util
import io
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
HARD_CASES = ROOT.parent / "shared" / "data" / "hard_cases"

specification = importlib.util.spec_from_file_location("check_data", ROOT / "src/tools/check_data.py")
check_data = importlib.util.module_from_spec(specification)
specification.loader.exec_module(check_data)


@pytest.fixture
def data(tmp_path) -> Path:
    """COCO-style data: four images of 64 x 48 to train on, one to test on; two classes, five objects."""
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    for k in range(1, 6):
        image = np.full((48, 64, 3), 30 * k, np.uint8)
        assert cv2.imwrite(str(folder / "images" / f"{k}.png"), image)
    objects = [(1, 1, [4, 4, 20, 20]), (1, 2, [30, 8, 30, 30]), (2, 1, [0, 0, 64, 48]), (3, 1, [5, 6, 6, 7])]
    write(folder / "train.json", range(1, 5), objects)
    write(folder / "val.json", [5], [(5, 2, [10, 10, 20, 16])])
    return folder


def write(path: Path, image_ids, objects) -> None:
    content = {
        "images": [{"id": k, "file_name": f"{k}.png", "width": 64, "height": 48} for k in image_ids],
        "annotations": [
            {"id": k, "image_id": i, "category_id": c, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for k, (i, c, box) in enumerate(objects, start=1)
        ],
        "categories": [{"id": 1, "name": "fox"}, {"id": 2, "name": "hen"}],
    }
    path.write_text(json.dumps(content))


def change(folder: Path, what) -> None:
    path = folder / "train.json"
    content = json.loads(path.read_text())
    what(content)
    path.write_text(json.dumps(content))


def check(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Status, output and errors."""
    output, errors = io.StringIO(), io.StringIO()
    argv = ["ctdet", "--dataset", "custom", "--data_path", str(folder), "--arch", "res_18", *arguments]
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            status = check_data.main(argv)
        except SystemExit as ended:
            status = ended.code
    return status, output.getvalue(), errors.getvalue()


def test_good_data(data, tmp_path):
    status, output, errors = check(data, "--output_dir", str(tmp_path / "grids"))
    assert (status, errors) == (0, "")
    assert "PROBLEM" not in output and output.endswith("no problems\n")
    assert f"train: {data / 'train.json'}\n  4 images, 4 objects of 2 classes\n" in output
    assert f"val: {data / 'val.json'}\n  1 images, 1 objects of 1 classes\n" in output
    assert re.search(r"\n    fox +3 #{40}\n    hen +1 #{14}\n", output)
    assert "note: images without objects: 4.png" in output
    # Square roots of the areas: 20, 30, 55.4, 6.5.
    for interval, count in (("0 to 8", 1), ("8 to 16", 0), ("16 to 32", 2), ("32 to 64", 1), ("from 256", 0)):
        assert re.search(rf"\n +{interval} +{count} ", output.split("val: ")[0]), interval
    names = sorted(path.name for path in (tmp_path / "grids").iterdir())
    assert len(names) >= 2 and all(name.startswith("samples_") for name in names)
    for name in names:
        assert f"training samples: {tmp_path / 'grids' / name}" in output
        grid = cv2.imread(str(tmp_path / "grids" / name))
        assert grid.shape[0] == grid.shape[1] and grid.shape[0] >= 2 * 64  # four square samples
        # White lines between them, and something else than one color in them.
        side = grid.shape[0] // 2
        assert (grid[side - 2 : side] == 255).all() and (grid[:, side - 2 : side] == 255).all()
        assert len(np.unique(grid[: side - 2, : side - 2].reshape(-1, 3), axis=0)) > 1


def test_the_grids_are_in_the_run_directory_by_default(data, tmp_path):
    status, output, _ = check(data, "--exp_dir", str(tmp_path / "exp"), "--exp_id", "a", "--val_intervals", "0")
    assert status == 0 and "val: " not in output
    assert list((tmp_path / "exp/ctdet/a/check_data").glob("samples_*.png"))


def test_options_are_shown_and_noted(data):
    status, output, _ = check(data, "--dry_run", "--lr", "0.1")
    assert status == 0 and output.startswith("note: --arch, --lr have no effect in check_data.py\n")
    assert "\narch: res_18\n" in output and "objects of" not in output
    status, output, _ = check(data, "--box_samples", "gaussian", "--box_loss", "giou", "--val_intervals", "0")
    assert status == 0 and "note: --box" not in output


def test_no_sample_is_a_problem(data):
    """No keypoint is labeled, which only shows when samples are made."""
    change(data, lambda c: [one.update(keypoints=[0] * 6, num_keypoints=0) for one in c["annotations"]])
    change(data, lambda c: [one.update(keypoints=["a", "b"]) for one in c["categories"]])
    argv = ["multi_pose", "--dataset", "custom", "--data_path", str(data), "--arch", "res_18", "--val_intervals", "0"]
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        assert check_data.main(argv) == 1
    assert "no training samples: " in output.getvalue() and "no problems" not in output.getvalue()


def test_data_of_which_a_part_is_left_out(data, tmp_path):
    change(data, lambda c: c["annotations"][0].update(category_id=99))
    grids = ("--output_dir", str(tmp_path / "grids"))
    assert "no training samples: " in check(data, *grids)[1]
    status, output, _ = check(data, *grids, "--on_bad_image", "skip")
    assert status == 1 and "no training samples" not in output and any((tmp_path / "grids").iterdir())


def test_sizes_are_those_in_the_networks_input(data, tmp_path):
    _, output, _ = check(data, "--output_dir", str(tmp_path / "grids"), "--input_res", "256", "--val_intervals", "0")
    # Four times as large: 80, 120, 221.7, 26.
    for interval, count in (("16 to 32", 1), ("64 to 128", 2), ("128 to 256", 1)):
        assert re.search(rf"\n +{interval} +{count} ", output), interval


PROBLEMS = [
    (lambda c: c["images"][3].update(file_name="no.png"), "PROBLEM: missing images: no.png"),
    (lambda c: c["images"][3].update(file_name="text.png"), "PROBLEM: images that cannot be read: text.png"),
    (
        lambda c: c["images"][3].update(file_name=7),
        "PROBLEM: file names that cannot be used: image number 4 has the file_name 7",
    ),
    (lambda c: c["images"][3].update(id=1), "PROBLEM: duplicate image ids: duplicate image id 1 ('1.png', '4.png')"),
    (
        lambda c: c["images"][3].update(id=1.5),
        "PROBLEM: ids that are neither numbers nor strings: image number 4 ('4.png') has the id 1.5",
    ),
    (lambda c: c["images"].append(None), "PROBLEM: images that are not objects: image number 5 is malformed"),
    (
        lambda c: c["images"][0].update(width=48, height=64),
        "images of another size than stated: 1.png is 64 x 48, not 48 x 64, perhaps because of its EXIF orientation",
    ),
    (
        lambda c: c["annotations"][0].update(image_id=99),
        "annotations of images that are not listed: annotation 1 of the image 99",
    ),
    (
        lambda c: c["annotations"][0].update(category_id=99),
        "PROBLEM: unknown categories: annotation 1 of '1.png' has the unknown category_id 99",
    ),
    (
        lambda c: c["annotations"][0].update(bbox=[1, 2, 3]),
        "PROBLEM: boxes that are not four finite numbers: annotation 1 ",
    ),
    (
        lambda c: c["annotations"][0].update(bbox=[1, 2, float("nan"), 3]),
        "boxes that are not four finite numbers: annotation 1 ",
    ),
    (
        lambda c: c["annotations"][0].update(bbox=[1, 2, 0, 3]),
        "PROBLEM: left out: boxes without an area: annotation 1 of '1.png': [1.0, 2.0,",
    ),
    (
        lambda c: c["annotations"][0].update(bbox=[9, 9, -5, 3]),
        "PROBLEM: boxes of negative size: annotation 1 of '1.png'",
    ),
    (
        lambda c: c["annotations"][0].update(bbox=[64, 2, 5, 5]),
        "left out: boxes outside of their image: annotation 1 of '1.png': [64.0, 2.0, 5.0, 5.0] in 64 x 48",
    ),
    (lambda c: c.update(annotations=[]), "PROBLEM: no objects: no object is left to learn from in 4 images"),
]


@pytest.mark.parametrize(("plant", "message"), PROBLEMS, ids=[message for _, message in PROBLEMS])
def test_problems(data, tmp_path, plant, message):
    (data / "images/text.png").write_text("no image")
    change(data, plant)
    status, output, errors = check(data, "--output_dir", str(tmp_path / "grids"), "--val_intervals", "0")
    assert status == 1 and errors == ""
    assert message in output and re.search(r"\n\d+ problem\(s\)\n$", output)
    assert all(len(line) < 1500 for line in output.splitlines())


REMARKS = [
    (
        lambda c: c["annotations"][0].update(category_id="1"),
        "ids that are a number in one place and a string in another: annotation 1 has the category_id '1', ",
    ),
    (lambda c: c["annotations"].append({**c["annotations"][0]}), "note: duplicate annotation ids: 1"),
    (lambda c: c["annotations"].append({**c["annotations"][0], "id": 9}), "note: duplicate objects: annotation 9"),
    (
        lambda c: c["annotations"][0].update(bbox=[50, 2, 30, 9]),
        "note: boxes that reach out of their image and are clipped: annotation 1",
    ),
    (
        lambda c: c["annotations"][0].update(bbox=[1, 2, 1e9, 1e9]),
        "note: boxes that reach out of their image and are clipped",
    ),
    (lambda c: c["images"][3].update(file_name="3.png"), "note: files that several images share: 3.png (2 times)"),
    (lambda c: c["categories"].append({"id": 3, "name": "owl"}), "note: classes without objects: owl"),
]


@pytest.mark.parametrize(("plant", "message"), REMARKS, ids=[message for _, message in REMARKS])
def test_remarks(data, tmp_path, plant, message):
    change(data, plant)
    status, output, errors = check(data, "--output_dir", str(tmp_path / "grids"), "--val_intervals", "0")
    assert (status, errors) == (0, "")
    assert message in output and "PROBLEM" not in output


def test_many_of_one_kind_are_counted(data, tmp_path):
    def plant(content):
        content["annotations"] += [
            {"id": k, "image_id": 1, "category_id": 1, "bbox": [1, 1, 0, 0]} for k in range(9, 29)
        ]

    change(data, plant)
    status, output, _ = check(data, "--output_dir", str(tmp_path / "grids"))
    assert status == 1 and output.endswith("20 problem(s)\n")
    (line,) = [line for line in output.splitlines() if "boxes without an area" in line]
    assert line.count("annotation") == 5 and line.endswith(", ... 20 in all")


def test_several_labels_that_cannot_be_read(tmp_path):
    """YOLO-style data is not left at its first mistake."""
    folder = tmp_path / "data"
    for split in ("train", "val"):
        for name in ("images", "labels"):
            (folder / name / split).mkdir(parents=True)
        for k in range(3):
            assert cv2.imwrite(str(folder / f"images/{split}/{k}.png"), np.zeros((64, 64, 3), np.uint8))
            (folder / f"labels/{split}/{k}.txt").write_text(f"0 0.5 0.5 0.2 0.2\n{k} 0.5 0.5 0.1 0.1\nx\n")
    (folder / "classes.txt").write_text("fox\nhen\n")
    status, output, errors = check(folder, "--val_intervals", "0", "--output_dir", str(tmp_path / "grids"))
    assert (status, errors) == (1, "")
    assert "3 images, 5 objects of 2 classes" in output and output.endswith("4 problem(s)\n")
    assert "labels/train/2.txt: line 2 has the class 2, there are 2 names" in output
    assert "no training samples: " in output


def test_nothing_to_check(data, tmp_path):
    shutil.rmtree(data / "images")
    for folder in (data, tmp_path / "none"):
        status, _, errors = check(folder)
        assert status == 2 and errors.count("\n") == 1 and "error: " in errors


def test_a_folder_that_cannot_be_written(data, tmp_path):
    (tmp_path / "file").write_text("in the way")
    status, _, errors = check(data, "--output_dir", str(tmp_path / "file"))
    assert status == 2 and ": cannot be written (" in errors and errors.count("\n") == 1


def cases() -> list[str]:
    """Bad annotation files, without those that only concern joints."""
    names = (path.name for path in (HARD_CASES / "coco_json").glob("*.json"))
    return sorted(name for name in names if "keypoints" not in name)


# Right, or nothing that matters for boxes; a note at most. Own data may write numbers as strings.
HARMLESS = {
    "coco": {"valid.json", "duplicate_annotation_ids.json"},
    "custom": {"valid.json", "duplicate_annotation_ids.json", "bbox_strings.json", "bbox_missing_key.json"},
}


@pytest.mark.skipif(not cases(), reason="../shared/data is not there")
@pytest.mark.parametrize("name", cases())
@pytest.mark.parametrize("dataset", ["coco", "custom"])
def test_hard_cases(tmp_path, name, dataset):
    folder = tmp_path / "coco"
    (folder / "annotations").mkdir(parents=True)
    (folder / "train2017").symlink_to(HARD_CASES / "images")
    shutil.copy(HARD_CASES / "coco_json" / name, folder / "annotations/instances_train2017.json")
    arguments = ("--dataset", dataset, "--input_res", "64", "--output_dir", str(tmp_path / "grids"))
    status, output, errors = check(folder, *arguments, "--val_intervals", "0")
    if name in HARMLESS[dataset]:
        assert status == 0 and "PROBLEM" not in output and errors == ""
    elif status == 1:
        assert "PROBLEM" in output and errors == ""
        assert all(len(line) < 1500 for line in output.splitlines())
    else:
        assert status == 2 and errors.count("\n") == 1 and "instances_train2017.json" in errors
