"""gen_coco_extreme_points.py as a command: from any working directory, with one line for a missing file."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).resolve().parents[2] / "src" / "tools" / "gen_coco_extreme_points.py"
DIAMOND = [20, 5, 35, 20, 22, 40, 10, 18]


def run(folder, *argv):
    command = [sys.executable, str(TOOL), *argv]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def write_instances(folder, split, segmentation):
    annotation = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 5, 25, 35], "iscrowd": 0, "area": 400}
    content = {
        "images": [{"id": 7, "file_name": "7.jpg", "height": 50, "width": 60}],
        "annotations": [{**annotation, "segmentation": segmentation}],
        "categories": [{"id": 3, "name": "car"}],
    }
    (folder / f"instances_{split}.json").write_text(json.dumps(content))
    return content


def test_both_splits(tmp_path):
    folder = tmp_path / "annotations"
    folder.mkdir()
    expected = [write_instances(folder, split, [DIAMOND]) for split in ("train2017", "val2017")]
    result = run(tmp_path, "--annotations", "annotations")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("extreme points of 1 objects") == 2
    for split, content in zip(("train2017", "val2017"), expected, strict=True):
        found = json.loads((folder / f"instances_extreme_{split}.json").read_text())
        assert found["annotations"][0].pop("extreme_points") == [[20, 5], [10, 18], [22, 40], [35, 20]]
        assert found == content
    assert len(list(folder.iterdir())) == 4


def test_one_split(tmp_path):
    write_instances(tmp_path, "mine", [])
    write_instances(tmp_path, "other", [DIAMOND])
    assert run(tmp_path, "--annotations", ".", "--splits=other").returncode == 0
    assert (tmp_path / "instances_extreme_other.json").is_file()
    assert not (tmp_path / "instances_extreme_mine.json").exists()


def test_errors_are_one_line(tmp_path, capsys):
    write_instances(tmp_path, "box", [])
    (tmp_path / "instances_text.json").write_text("hello")
    specification = importlib.util.spec_from_file_location("gen_coco_extreme_points", TOOL)
    tool = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(tool)
    for splits, text in (
        ("train2017", f"{tmp_path / 'instances_train2017.json'}: no such annotation file; see docs/DATA.md"),
        ("box", "none of the annotations has a segmentation"),
        ("text", "not a JSON file"),
        (",", "--splits: names no split"),
    ):
        assert tool.main(["--annotations", str(tmp_path), "--splits", splits]) == 2
        output = capsys.readouterr()
        assert text in output.err and not output.out
        assert output.err.startswith("error: ") and output.err.count("\n") == 1
    assert not list(tmp_path.glob("*extreme*"))


def test_default_folder_is_the_repositorys(tmp_path):
    result = run(tmp_path, "--help")
    assert result.returncode == 0
    assert "data/coco/annotations" in result.stdout.replace("\n", "").replace(" ", "")
