"""convert_kitti_to_coco.py as a command: without any package, with one line for an error."""

import json
import subprocess
import sys
from pathlib import Path

from tests.helpers.kitti import make_kitti

TESTS = Path(__file__).resolve().parents[1]
SCRIPT = TESTS.parent / "src" / "tools" / "convert_kitti_to_coco.py"
FILES = {f"kitti_{name}.json" for name in ("3dop_train", "3dop_val", "subcnn_train", "subcnn_val", "trainval", "test")}


def run(cwd, *argv):
    """The conversion by a Python without its site-packages: it comes before anything is installed."""
    command = [sys.executable, "-I", "-S", str(SCRIPT), *map(str, argv)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)


def test_conversion(tmp_path):
    root = make_kitti(tmp_path / "my kitti")
    result = run(tmp_path, "my kitti")
    assert result.returncode == 0, result.stderr
    assert {path.name for path in (root / "annotations").iterdir()} == FILES
    assert len(result.stdout.splitlines()) == len(FILES)
    assert not (root / "images").exists() and not (root / "training" / "label_val").exists()
    data = json.loads((root / "annotations" / "kitti_3dop_train.json").read_text())
    assert [len(data[key]) for key in ("images", "annotations", "categories")] == [2, 4, 9]


def test_arrange_and_other_folder(tmp_path):
    root = make_kitti(tmp_path / "kitti")
    result = run(tmp_path, root, "--annotations", tmp_path / "out" / "json", "--arrange")
    assert result.returncode == 0, result.stderr
    assert {path.name for path in (tmp_path / "out" / "json").iterdir()} == FILES
    assert not (root / "annotations").exists()
    assert (root / "images" / "trainval" / "000001.png").is_file()
    assert (root / "training" / "label_val" / "000002.txt").is_file()


def test_default_folder_is_the_repositorys(tmp_path):
    """Without arguments data/kitti is converted, as with the reference's script."""
    result = run(tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {TESTS.parent / 'data' / 'kitti'}: holds no image set of KITTI")


def test_errors(tmp_path):
    root = make_kitti(tmp_path / "kitti")
    (root / "training" / "label_2" / "000001.txt").write_text("Car 1 2 3\n")
    path = Path("kitti", "training", "label_2", "000001.txt")
    result = run(tmp_path, "kitti")
    assert (result.returncode, result.stderr) == (
        2,
        f"error: {path}: line 1 is not a line of a KITTI label file: it has 4 fields instead of 15\n",
    )
    result = run(tmp_path, "absent")
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert "absent: holds no image set of KITTI" in result.stderr
