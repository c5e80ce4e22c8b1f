"""Every preparation is a transaction: kills at any point, concurrent starts, and machines without common locks."""

import json
import multiprocessing
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from tests.helpers.kitti import make_kitti
from tests.helpers.voc import TINY, annotation_xml, make_devkit

from centernet.conversion import coco_extreme, kitti_devkit, voc_devkit
from centernet.conversion.preparation import prepare_once
from centernet.datasets.synthetic.shapes import SyntheticShapes
from centernet.errors import UserError
from centernet.utils import files

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
SPLITS = {"pascal_trainval0712.json": 3, "pascal_test2007.json": 2}


def silent(_):
    pass


def make_voc(folder):
    make_devkit(folder / "VOCdevkit", TINY)


def make_instances(folder):
    folder.mkdir()
    annotation = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 5, 25, 35], "iscrowd": 0, "area": 400}
    content = {
        "images": [{"id": 7, "file_name": "7.jpg", "height": 50, "width": 60}],
        "annotations": [{**annotation, "segmentation": [[20, 5, 35, 20, 22, 40, 10, 18]]}],
        "categories": [{"id": 3, "name": "car"}],
    }
    (folder / "instances_val2017.json").write_text(json.dumps(content))


# Name to: what makes the source, what prepares, and the files that have to exist.
PREPARATIONS = {
    "voc": (
        make_voc,
        lambda folder: voc_devkit.prepare(folder, log=silent),
        [
            *(f"annotations/pascal_{name}.json" for name in ("train2012", "val2012", "train2007", "val2007")),
            *("annotations/pascal_trainval0712.json", "annotations/pascal_test2007.json"),
            *(f"images/{name}.jpg" for names in TINY.values() for name in names),
        ],
    ),
    "kitti": (
        make_kitti,
        lambda folder: kitti_devkit.prepare(folder, log=silent),
        [
            *(f"annotations/kitti_{split}_{part}.json" for split in ("3dop", "subcnn") for part in ("train", "val")),
            *("annotations/kitti_trainval.json", "annotations/kitti_test.json"),
            *("images/trainval/000001.png", "images/test/000005.png", "training/label_val/000001.txt"),
        ],
    ),
    "extreme points": (
        make_instances,
        lambda folder: coco_extreme.prepare(folder / "instances_val2017.json", log=silent),
        ["instances_extreme_val2017.json"],
    ),
    "sample": (
        lambda folder: None,
        lambda folder: SyntheticShapes.prepare(folder, log=silent),
        ["sample_version", *(f"annotations/{name}" for name in SPLITS), *(f"images/{k:06d}.jpg" for k in range(1, 6))],
    ),
}
each_preparation = pytest.mark.parametrize("name", PREPARATIONS)


@pytest.fixture(autouse=True)
def small_sample(monkeypatch):
    monkeypatch.setattr(SyntheticShapes, "splits", SPLITS)


def in_processes(*functions) -> list[int]:
    """Run functions at once, each in a forked process; return their exit codes."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(len(functions))

    def run(function):
        files._cleaned.clear()
        barrier.wait()
        function()

    processes = [context.Process(target=run, args=(function,)) for function in functions]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def assert_complete(folder: Path, name: str) -> None:
    """All files exist and are complete, and no temporary files remain."""
    for file in PREPARATIONS[name][2]:
        path = folder / file
        assert path.is_file(), file
        if path.suffix == ".json":
            assert json.loads(path.read_text())["images"]
        elif path.suffix in (".jpg", ".png"):
            assert cv2.imread(str(path)) is not None
    left = [path for path in folder.rglob("*") if path.name.startswith((".tmp-", "."))]
    assert left == []


@each_preparation
def test_a_kill_at_any_file_is_recovered_from(tmp_path, name):
    """The process is killed before its first, second, ... file is renamed; the next one completes the work."""
    make_source, prepare, expected = PREPARATIONS[name]
    for number in range(len(expected) + 3):
        folder = tmp_path / str(number)
        make_source(folder)

        def killed(folder=folder, number=number):
            renamed, replace = [], os.replace

            def count(*arguments):
                if len(renamed) == number:
                    os._exit(9)
                renamed.append(arguments)
                replace(*arguments)

            os.replace = count
            prepare(folder)

        (status,) = in_processes(killed)
        assert status in (0, 9)
        assert in_processes(lambda folder=folder: prepare(folder)) == [0]
        assert_complete(folder, name)
        if status == 0:
            break
    else:
        raise AssertionError("the preparation renames more files than expected")
    assert number >= 1


@each_preparation
@pytest.mark.parametrize("locks", [True, False], ids=["locks", "no locks"])
def test_three_starts_at_once(tmp_path, name, locks):
    """Processes of one machine, and of machines whose shared folder has no locks."""
    make_source, prepare, expected = PREPARATIONS[name]
    folder = tmp_path / "data"
    make_source(folder)

    def start():
        if not locks:
            files.fcntl = None
        prepare(folder)
        for file in expected:  # what the process reads next
            assert (folder / file).stat().st_size > 0

    assert in_processes(start, start, start) == [0, 0, 0]
    assert_complete(folder, name)


@pytest.mark.skipif(files.fcntl is None, reason="the system has no locks on files")
def test_only_one_of_several_processes_prepares(tmp_path):
    done = tmp_path / "done"

    def make(_):
        with open(tmp_path / "calls", "a") as file:
            file.write("x")
        done.write_text("")

    start = lambda: prepare_once(tmp_path, "test", done.is_file, make)  # noqa: E731
    assert in_processes(start, start, start, start) == [0] * 4
    assert (tmp_path / "calls").read_text() == "x"


def test_a_complete_folder_is_not_written_to(tmp_path, monkeypatch):
    """Data on a read-only disk can be used."""
    for name, (make_source, prepare, _) in PREPARATIONS.items():
        make_source(tmp_path / name)
        prepare(tmp_path / name)

    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", refuse)
        patch.setattr(Path, "mkdir", refuse)
        for name, (_, prepare, _) in PREPARATIONS.items():
            prepare(tmp_path / name)


def test_a_conversion_is_completed_after_a_file_was_corrected(tmp_path):
    make_voc(tmp_path)
    path = tmp_path / "VOCdevkit/VOC2007/Annotations/000001.xml"
    good = path.read_text()
    path.write_text(good[:-20])
    for _ in range(2):
        with pytest.raises(UserError, match=r"000001\.xml: not well-formed XML"):
            voc_devkit.prepare(tmp_path, log=silent)
        assert not list((tmp_path / "annotations").glob("*.json")) if (tmp_path / "annotations").exists() else True
    path.write_text(good)
    voc_devkit.prepare(tmp_path, log=silent)
    assert_complete(tmp_path, "voc")


@pytest.mark.parametrize(
    ("name", "file"),
    [("voc", "annotations/pascal_test2007.json"), ("kitti", "annotations/kitti_3dop_val.json")],
)
def test_a_missing_file_is_made_and_the_others_are_kept(tmp_path, name, file):
    """A conversion that an earlier version left incomplete, or files made for the reference implementation."""
    make_source, prepare, expected = PREPARATIONS[name]
    make_source(tmp_path / "data")
    prepare(tmp_path / "data")
    (tmp_path / "data" / file).unlink()
    stamps = {path: (tmp_path / "data" / path).stat().st_mtime_ns for path in expected if path != file}
    prepare(tmp_path / "data")
    assert_complete(tmp_path / "data", name)
    assert {path: (tmp_path / "data" / path).stat().st_mtime_ns for path in stamps} == stamps


def test_files_made_for_the_reference_need_no_conversion(tmp_path):
    """The two files that training reads are enough, whether or not a devkit lies next to them."""
    make_voc(tmp_path)
    voc_devkit.prepare(tmp_path, log=silent)
    for year, part in voc_devkit.TRAINVAL_SETS:
        (tmp_path / "annotations" / voc_devkit.annotation_file(year, part)).unlink()
    lines = []
    voc_devkit.prepare(tmp_path, log=lines.append)
    assert lines == [] and len(list((tmp_path / "annotations").iterdir())) == 2


def test_a_file_of_an_interrupted_conversion_is_replaced(tmp_path):
    """Files of the interrupted run may be older than the labels."""
    make_voc(tmp_path)
    path = tmp_path / "VOCdevkit/VOC2007/Annotations/000005.xml"

    def killed():
        link, voc_devkit.merge = None, lambda parts: os._exit(9)
        assert link is None
        voc_devkit.prepare(tmp_path, log=silent)

    # Killed after everything was read, with the files of an earlier attempt in place.
    voc_devkit.convert_devkit(tmp_path / "VOCdevkit", tmp_path / "annotations", log=silent)
    (tmp_path / "annotations/pascal_test2007.json").unlink()
    assert in_processes(killed) == [9]
    path.write_text(annotation_xml("000005", [("cat", 1, 1, 4, 4, 0), ("cat", 2, 2, 9, 9, 0)]))
    voc_devkit.prepare(tmp_path, log=silent)
    content = json.loads((tmp_path / "annotations/pascal_train2007.json").read_text())
    assert sum(annotation["image_id"] == 5 for annotation in content["annotations"]) == 2


def test_a_preparation_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: cannot be written") as caught:
        prepare_once(tmp_path / "file", "test", lambda: False, lambda _: None)
    assert "\n" not in str(caught.value)


def test_images_are_equal_after_any_way_of_preparation(tmp_path):
    """Three processes without locks draw the same sample as one."""
    SyntheticShapes.prepare(tmp_path / "one", log=silent)

    def start():
        files.fcntl = None
        SyntheticShapes.prepare(tmp_path / "two", log=silent)

    assert in_processes(start, start) == [0, 0]
    for k in range(1, 6):
        one, two = (cv2.imread(str(tmp_path / name / f"images/{k:06d}.jpg")) for name in ("one", "two"))
        assert np.array_equal(one, two)
