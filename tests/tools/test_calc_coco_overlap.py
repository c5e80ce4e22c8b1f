"""calc_coco_overlap.py: counts by hand, and anchors against all of them."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

TOOL = Path(__file__).resolve().parents[2] / "src" / "tools" / "calc_coco_overlap.py"
specification = importlib.util.spec_from_file_location("calc_coco_overlap", TOOL)
tool = importlib.util.module_from_spec(specification)
specification.loader.exec_module(tool)


def content():
    # Two of one class in one cell, one of another class there, one crowd there, one that overlaps, one elsewhere.
    rows = [(1, 1, [10, 10, 20, 20], 0), (1, 1, [11, 11, 18, 18], 0), (1, 2, [10, 10, 20, 20], 0)]
    rows += [(1, 1, [10, 10, 20, 20], 1), (1, 1, [10, 10, 30, 20], 0), (2, 1, [10, 10, 20, 20], 0)]
    rows += [(2, 2, [0, 0, 40, 40], 0), (2, 2, [100, 100, 200, 100], 0)]
    return {
        "images": [{"id": k, "file_name": f"{k}.jpg", "height": 400, "width": 600} for k in (1, 2)],
        "annotations": [
            {"id": k, "image_id": i, "category_id": c, "bbox": box, "iscrowd": crowd}
            for k, (i, c, box, crowd) in enumerate(rows)
        ],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }


def test_counts(tmp_path):
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content()))
    command = [sys.executable, str(TOOL), "--annotations", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    found = dict(line.rsplit(": ", 1) for line in done.stdout.splitlines())
    assert found["objects"] == "8"
    # Four objects have their center in the cell (5, 5) of the first image: six pairs; of one class without crowds one.
    assert found["pairs of objects with one center cell"] == "7"  # and one pair in the second image
    assert found["pairs of objects of one class with one center cell, without crowds"] == "1"
    # 20 x 20 with 18 x 18, with 30 x 20; 18 x 18 with 30 x 20.
    assert found["pairs of objects of one class with an overlap above 0.5, without crowds"] == "3"
    assert [found[f"{size} objects"] for size in tool.SIZES] == ["6", "1", "1"]


def test_anchors_against_all_of_them():
    rng = np.random.default_rng(0)
    height, width = 480, 640
    boxes = np.column_stack([rng.uniform(0, 500, 200), rng.uniform(0, 350, 200), rng.uniform(4, 300, (200, 2))])
    scale = tool.SHORT_SIDE / height
    x, y = (tool.STRIDE * np.arange(side * scale // tool.STRIDE) + (tool.STRIDE - 1) / 2 for side in (width, height))
    middles = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    best = np.zeros(len(boxes))
    low, high = boxes[:, None, :2] * scale, (boxes[:, None, :2] + boxes[:, None, 2:]) * scale
    for side in tool.ANCHOR_SIZES:
        for ratio in tool.ANCHOR_RATIOS:
            half = np.array([side / ratio**0.5, side * ratio**0.5]) / 2
            both = (np.minimum(high, middles + half) - np.maximum(low, middles - half)).clip(0).prod(2)
            union = (high - low).prod(2) + 4 * half.prod() - both
            best = np.maximum(best, (both / union).max(1))
    shapes = np.tile([height, width], (len(boxes), 1))
    np.testing.assert_allclose(tool.best_anchor_overlap(boxes, shapes), best, atol=1e-9)


def test_errors_are_one_line(tmp_path, capsys):
    path = tmp_path / "a.json"
    for change in ("absent", "text", "malformed"):
        if change == "text":
            path.write_text("hello")
        if change == "malformed":
            broken = content()
            del broken["annotations"][0]["bbox"]
            path.write_text(json.dumps(broken))
        assert tool.main(["--annotations", str(path)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {path}: ") and error.count("\n") == 1
