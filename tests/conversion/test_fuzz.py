"""Corrupted datasets of every layout fail with one line, with and without skipping invalid entries."""

import copy
import json
import random
import shutil

import pytest
from tests.helpers.broken_layouts import keypoints_of_coco, keypoints_of_yolo, yolo_with_a_yaml
from tests.helpers.layouts import (
    coco_at_the_root,
    coco_of_roboflow,
    parse,
    voc_devkit_form,
    yolo_images_first,
    yolo_lists,
)
from tests.helpers.tool_exports import cvat_xml, label_studio_coco, labelimg_yolo, labelme_flat

from centernet.datasets.custom import Custom
from centernet.errors import UserError
from centernet.tasks import build_task

KEYPOINT_LAYOUTS = (keypoints_of_coco, keypoints_of_yolo)
LAYOUTS = (
    *KEYPOINT_LAYOUTS,
    *(coco_at_the_root, coco_of_roboflow, label_studio_coco, voc_devkit_form, labelme_flat, cvat_xml),
    *(yolo_images_first, yolo_lists, yolo_with_a_yaml, labelimg_yolo),
)
VALUES = [
    *(None, [], {}, "", "x" * 300, -1, 0, 1e308, float("nan"), float("inf"), True, 1.5, 10**30, "1", "../..", "\0"),
    *("C:\\a", [1, 2, 3, 4], {"a": 1}, [[]], ["a"], [None]),
]
PIECES = (b"<", b">", b'"', b"-", b" nan ", b"1e999", b"[", b"{", b"&a", b"*a", b"\n", b"\xff\xfe", b"0.5 ")


def corrupt_values(rng, content):
    """Replace or remove up to three values of a JSON content."""
    places = []

    def visit(value, place):
        places.append(place)
        for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            visit(value[key], [*place, key])

    visit(content, [])
    for _ in range(rng.randint(1, 3)):
        *above, key = rng.choice(places[1:])
        value = content
        try:
            for step in above:
                value = value[step]
            if rng.random() < 0.3:
                del value[key]
            else:
                value[key] = copy.deepcopy(rng.choice(VALUES))
        except (KeyError, IndexError, TypeError):  # an earlier change has removed the place
            continue
    return content


def corrupt_bytes(rng, content):
    """Change, remove, insert and repeat bytes."""
    content = bytearray(content)
    for _ in range(rng.randint(1, 6)):
        if not content:
            break
        at, kind = rng.randrange(len(content)), rng.randrange(4)
        if kind == 0:
            content[at] = rng.randrange(256)
        elif kind == 1:
            del content[at : at + rng.randint(1, 20)]
        elif kind == 2:
            content[at:at] = rng.choice(PIECES)
        else:
            other = rng.randrange(len(content))
            content[at:at] = content[other : other + 40]
    return bytes(content)


@pytest.mark.parametrize("count", [25, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_corrupted_files(tmp_path, capsys, layout, count):
    rng = random.Random(f"{layout.__name__} {count}")
    source, root = tmp_path / "source", tmp_path / "data"
    layout(source)
    task = "multi_pose" if layout in KEYPOINT_LAYOUTS else "ctdet"
    for _ in range(count):
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(source, root)
        files = [path for path in sorted(root.rglob("*")) if path.suffix in (".json", ".xml", ".txt", ".yaml")]
        for path in rng.sample(files, min(len(files), rng.randint(1, 3))):
            if path.suffix == ".json" and rng.random() < 0.7:
                path.write_text(json.dumps(corrupt_values(rng, json.loads(path.read_text()))))
            else:
                path.write_bytes(corrupt_bytes(rng, path.read_bytes()))
        for more in ((), ("--on_bad_image", "skip")):
            try:
                opt = parse(root, "--val_intervals", "0", *more, task=task)
                for split in ("train", "val"):
                    dataset = Custom(build_task(opt), split)
                    dataset.check_images_exist()
                    dataset.evaluate({image_id: {} for image_id in dataset.image_ids})
            except SystemExit as ended:
                assert ended.code == 2
                lines = capsys.readouterr().err
                assert lines.count("\n") == 1 and "error: " in lines
            except UserError as error:
                assert "\n" not in str(error) and len(str(error)) < 2000
