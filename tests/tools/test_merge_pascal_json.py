"""merge_pascal_json.py as a command: from any working directory, with one line for a missing file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = REPOSITORY.parent / "shared" / "data" / "voc128" / "annotations"
NAMES = ("train2012", "val2012", "train2007", "val2007")


def run(folder, *argv):
    command = [sys.executable, str(REPOSITORY / "src" / "tools" / "merge_pascal_json.py"), *argv]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


def write_parts(folder):
    for number, name in enumerate(NAMES, start=1):
        part = {
            "images": [{"id": number * 10, "file_name": f"{number}.jpg"}],
            "type": "instances",
            "annotations": [{"id": item + 1, "image_id": number * 10} for item in range(number)],
            "categories": [{"id": 1, "name": "cat"}],
        }
        (folder / f"pascal_{name}.json").write_text(json.dumps(part))


def test_merges(tmp_path):
    (tmp_path / "annotations").mkdir()
    write_parts(tmp_path / "annotations")
    result = run(tmp_path, "--annotations", "annotations")
    assert result.returncode == 0, result.stderr
    assert "4 images, 10 boxes" in result.stdout
    merged = json.loads((tmp_path / "annotations" / "pascal_trainval0712.json").read_text())
    assert list(merged) == ["images", "type", "annotations", "categories"]
    assert [image["id"] for image in merged["images"]] == [10, 20, 30, 40]
    assert [item["id"] for item in merged["annotations"]] == list(range(1, 11))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared test data is not here")
def test_equals_reference_file(tmp_path):
    for name in NAMES:
        (tmp_path / f"pascal_{name}.json").write_bytes((SHARED / f"pascal_{name}.json").read_bytes())
    assert run(tmp_path, f"--annotations={tmp_path}").returncode == 0
    merged = (tmp_path / "pascal_trainval0712.json").read_text()
    assert merged == (SHARED / "pascal_trainval0712.json").read_text().strip()


def test_missing_file(tmp_path):
    write_parts(tmp_path)
    (tmp_path / "pascal_train2007.json").unlink()
    result = run(tmp_path, "--annotations", str(tmp_path))
    assert result.returncode == 2
    assert result.stderr == f"error: {tmp_path / 'pascal_train2007.json'}: no such file\n"
    assert not (tmp_path / "pascal_trainval0712.json").exists()


def test_default_folder_is_the_repositorys(tmp_path):
    result = run(tmp_path, "--help")
    assert result.returncode == 0
    assert "data/voc/annotations" in result.stdout.replace("\n", "").replace(" ", "")
