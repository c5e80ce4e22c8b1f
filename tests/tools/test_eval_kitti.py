"""eval_kitti.py as a command."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "src" / "tools" / "eval_kitti.py"


def line(name, x, score=None, z=20.0):
    numbers = f"0.00 0 0.50 {x}.00 100.00 {x + 60}.00 160.00 1.50 2.00 4.00 {x / 10:.2f} 1.50 {z:.2f} 0.00"
    return f"{name} {numbers}{'' if score is None else f' {score}'}\n"


@pytest.fixture
def folders(tmp_path):
    """Images 1 and 2 with a car each, found right and the second half a meter too far; image 3 has no result."""
    for folder in ("labels", "results"):
        (tmp_path / folder).mkdir()
    for name in ("000001", "000002", "000003"):
        (tmp_path / "labels" / f"{name}.txt").write_text(line("Car", 10) + line("Cyclist", 200))
    (tmp_path / "results" / "000001.txt").write_text(line("Car", 10, 0.9))
    (tmp_path / "results" / "000002.txt").write_text(line("Car", 10, 0.8, z=20.5))
    return tmp_path


def run(cwd, *argv):
    command = [sys.executable, str(SCRIPT), *map(str, argv)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)


def table(result):
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[1].split() == ["easy", "moderate", "hard"]
    rows = [line.split() for line in lines[2:] if "AP:" not in line and not line.startswith("curves: ")]
    return lines[0], {(row[0], row[1], int(row[2])): row[-3:] for row in rows}


def test_table(folders):
    head, rows = table(run(folders, "labels", "results"))
    assert head == "2 images, 2 detections, official overlaps, AP in percent"
    assert len(rows) == 3 * 4 * 2
    assert rows["Car", "AP2D", 11] == ["9.09"] * 3  # two objects: the curve's samples 0 and 1 alone are reached
    assert rows["Car", "AP2D", 40] == ["2.50"] * 3
    assert rows["Car", "AOS", 40] == ["2.50"] * 3
    # Half a meter of two displaced: an overlap of 1.5 / 2.5 is not enough for 0.7, but for the reference's 0.5.
    assert rows["Car", "APBEV", 40] == rows["Car", "AP3D", 40] == ["0.00"] * 3
    assert rows["Cyclist", "AP2D", 11] == ["-"] * 3
    head, rows = table(run(folders, "labels", "results", "--overlaps", "reference"))
    assert rows["Car", "APBEV", 40] == rows["Car", "AP3D", 40] == ["2.50"] * 3
    assert "reference overlaps" in head


def test_lines_and_files_of_the_program(folders):
    """The output of the benchmark's program, next to the folder of results; 11 recalls, in percent."""
    result = run(folders, "labels", "results", "--overlaps", "reference")
    names = ["car_detection", "car_orientation", "car_detection_ground", "car_detection_3d"]
    value = f"{100 / 11:.6f}"
    assert [line for line in result.stdout.splitlines() if "AP:" in line] == [
        f"{name} AP: {value} {value} {value}" for name in names
    ]
    for name in names:
        rows = (folders / f"stats_{name}.txt").read_text().splitlines()
        assert len(rows) == 3 and all(len(row.split()) == 41 for row in rows)
        assert rows[0].split()[:3] == ["1.000000", "1.000000", "0.000000"]
        points = [line.split() for line in (folders / "plot" / f"{name}.txt").read_text().splitlines()]
        assert len(points) == 41 and points[2] == ["0.050000", "0.000000", "0.000000", "0.000000"]
        for suffix in ("png", "pdf"):
            assert (folders / "plot" / f"{name}.{suffix}").stat().st_size > 1000
    assert len(list(folders.glob("stats_*"))) == 4  # no other class has detections
    result = run(folders, "labels", "results", "--output_dir", "out/deep", "--split", "names.txt")
    assert result.returncode == 2 and not (folders / "out").exists()
    result = run(folders, "labels", "results", "--output_dir", "out/deep")
    assert result.returncode == 0 and len(list((folders / "out/deep").glob("stats_*"))) == 4


def test_split(folders):
    (folders / "val.txt").write_text("000002\n")
    head, rows = table(run(folders, "labels", "results", "--split", "val.txt"))
    assert head.startswith("1 images, 1 detections")
    assert rows["Car", "AP2D", 40] == ["0.00"] * 3


def test_errors(folders):
    (folders / "val.txt").write_text("000003\n")
    (folders / "none.txt").write_text("\n")
    (folders / "results" / "000009.txt").write_text("")
    (folders / "bad").mkdir()
    (folders / "bad" / "000001.txt").write_text(line("Car", 10, 0.9) + line("Car", 10))
    for arguments, text in (
        (["labels", "absent"], "absent: no such folder"),
        (["labels", "results", "--split", "val.txt"], "results/000003.txt: no such result file"),
        (["labels", "results", "--split", "none.txt"], "none.txt: it names no images"),
        (["labels", "results"], "labels/000009.txt: no such label file"),
        (
            ["labels", "bad"],
            "bad/000001.txt: line 2 is not a line of a KITTI result file: it has 15 fields instead of 16",
        ),
    ):
        result = run(folders, *arguments)
        assert (result.returncode, result.stdout, result.stderr) == (2, "", f"error: {text}\n")
    assert run(folders, "labels").returncode == 2
