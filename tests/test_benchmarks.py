"""The benchmarks run at toy sizes; each fails if its fast implementation does not equal the plain one."""

import argparse
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.helpers.training import output_here

FOLDER = Path(__file__).parents[1] / "benchmarks"
TOY = {
    "loader": "--num_images 4 --batch 2 --size 64",
    "targets": "--batch 2 --classes 3 --size 16",
    "evaluation": "--images 20 --classes 3 --detections 10",
    "train_step": "--arch res_18 --size 64 --batch 2",
    "inference": "--arch res_18 --size 64",
    "networks": "--net res_18 --side 64 --batch 1",
    "annotations": "--images 20 --objects 60",
    "log_files": "--lines 200",
}
# All but those that differ in the network only, and those that compile for minutes.
GPU_STEPS = (
    *("environment", "tests", "sample_1", "sample_4", "resume", "test_export"),
    *("check_fp32", "check_tf32", "check_bf16", "check_fp16", "train_resdcn_18", "infer_resdcn_18"),
    *("memory_resdcn_18", "profile_train_resdcn_18", "profile_inference_resdcn_18", "deform_conv_resdcn_18"),
    *("loader", "summary"),
)


def run(name, arguments, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent / "src"))  # of the processes that it starts
    monkeypatch.setattr(sys, "argv", [name, *arguments.split(), "--repeats", "1", "--threads", "1"])
    threads = torch.get_num_threads()
    try:
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
        for path in FOLDER.glob("*.py"):
            sys.modules.pop(path.stem, None)


@pytest.mark.parametrize("name", TOY)
def test_benchmark(name, monkeypatch, capsys):
    if name == "annotations" and sys.platform != "linux":
        pytest.skip("measures memory as Linux does")
    run(name, TOY[name], monkeypatch)
    text = capsys.readouterr().out
    assert "equal: " in text and ("x 1.00" in text or name in ("annotations", "log_files"))


@pytest.mark.slow
def test_deployment(tmp_path, monkeypatch, capsys):
    for package in ("onnxruntime", "onnxscript", "openvino"):
        pytest.importorskip(package)
    data = ["--data_path", str(tmp_path)]
    steps = ["--num_epochs", "1", "--num_iters", "2", "--batch_size", "2", "--num_workers", "0", "--val_intervals", "0"]
    output_here("main", "ctdet", "--dataset", "sample", "--arch", "lite", *data, *steps, "--exp_dir", str(tmp_path))
    checkpoint = tmp_path / "ctdet/default/model_last.pth"
    run("deployment", f"{checkpoint} --data_path {tmp_path}", monkeypatch)
    text = capsys.readouterr().out
    for name in ("ONNX Runtime float32", "ONNX Runtime int8", "OpenVINO float32", "OpenVINO int8"):
        assert len(re.findall(f"^ *{name} ", text, re.MULTILINE)) == 2, text  # scores and latency
    assert text.count("equal: scores of ") == 2
    sizes = dict(re.findall(r"^(\w.*?) {2,}([\d.]+) ", text, re.MULTILINE))
    assert float(sizes["ONNX Runtime int8"]) < float(sizes["ONNX Runtime float32"])


def load(name):
    return argparse.Namespace(**runpy.run_path(str(FOLDER / f"{name}.py")))


@pytest.fixture(scope="module")
def hard(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hard")
    load("hard_sample").write(folder, 20)
    return folder


def test_hard_sample_draws_the_same_images_again(hard, tmp_path):
    load("hard_sample").write(tmp_path, 20)
    files = sorted(path.relative_to(hard) for path in hard.rglob("*") if path.is_file())
    assert [path.suffix for path in files].count(".jpg") == 20
    assert all((tmp_path / path).read_bytes() == (hard / path).read_bytes() for path in files)
    content = json.loads((hard / "annotations/train.json").read_text())
    assert len(content["images"]) == 16 and len(content["annotations"]) > 32
    for one in content["annotations"]:
        x, y, w, h = one["bbox"]
        assert min(x, y) >= 0 and x + w <= 256 and y + h <= 256 and min(w, h) >= 4


def test_both_programs_get_the_same_boxes_and_score(hard, tmp_path):
    benchmark = load("time_to_ap")
    data = benchmark.Data(str(hard), tmp_path, 64, "lite")
    content = json.loads(data.val.read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    read = []  # from the files for Ultralytics
    for image_id, name in names.items():
        assert (data.yolo / "images/val" / name).read_bytes() == (hard / "images/val" / name).read_bytes()
        for line in (data.yolo / f"labels/val/{Path(name).stem}.txt").read_text().splitlines():
            cls, x, y, w, h = map(float, line.split())
            box = [256 * (x - w / 2), 256 * (y - h / 2), 256 * (x + w / 2), 256 * (y + h / 2)]
            read.append((image_id, int(cls), box))
    assert len(read) == len(content["annotations"])
    perfect = {"AP": 1.0, "AP50": 1.0, "AP75": 1.0}
    assert benchmark.score(data, [[names[image], cls, *box, 0.9] for image, cls, box in read]) == pytest.approx(perfect)
    ours = [{**one, "score": 0.9} for one in content["annotations"]]
    assert benchmark.score(data, ours) == pytest.approx(perfect)
    wrong = [{**one, "category_id": one["category_id"] % 12 + 1} for one in ours]
    assert benchmark.score(data, wrong)["AP50"] < 0.2
    assert benchmark.score(data, [])["AP"] == 0


def test_the_pace_is_that_of_augmented_epochs(monkeypatch):
    """Ultralytics trains its last ten epochs without mosaics, which is faster."""
    benchmark = load("time_to_ap")

    def train(name, data, epochs, seed):
        return {"seconds": 5 + 4 * max(epochs - 10, 0) + 3 * min(epochs, 10)}

    monkeypatch.setitem(benchmark.measure_pace.__globals__, "train", train)
    start, per_epoch = benchmark.measure_pace("yolo11n", None)
    assert per_epoch == 4 and start + 80 * per_epoch == train("yolo11n", None, 80, 0)["seconds"]


def test_time_to_ap(hard, tmp_path):
    command = [sys.executable, str(FOLDER / "time_to_ap.py"), "--data", str(hard), "--size", "64", "--seeds", "1"]
    command += ["--epochs", "fast:1", "--output", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (row,) = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert (row["contestant"], row["seed"], row["epochs"]) == ("fast", 1, 1)
    assert row["seconds"] > 1 and 0 <= row["AP"] <= row["AP50"] <= 1
    line = (
        f"| fast, 1 epochs | 1.2 M | {row['seconds']:.0f} | {row['AP']:.3f} | {row['AP50']:.3f} | {row['AP75']:.3f} |"
    )
    assert done.stdout.splitlines()[-1] == line and (tmp_path / "a.png").stat().st_size > 1000


def gpu_step(*arguments, **variables):
    """Run ``gpu.sh`` on the CPU with tiny sizes."""
    environment = {**os.environ, "PYTHON": sys.executable, "DEVICE": "cpu", "SMALL": "1", **variables}
    command = ["bash", str(FOLDER / "gpu.sh"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def gpu_steps():
    return gpu_step("list").stdout.split()


def test_gpu_steps_are_described():
    steps = gpu_steps()
    assert len(steps) == len(set(steps)) > 20
    text = gpu_step("--help").stdout
    assert all(re.sub("_(resdcn_18|dla_34)$", "_NET", step) in text for step in steps)
    assert max(map(len, text.splitlines())) < 81


@pytest.mark.parametrize(("step", "out"), [("no_step", "a"), ("environment", "file/a")])
def test_gpu_script_names_the_error(tmp_path, step, out):
    (tmp_path / "file").touch()
    done = gpu_step(step, tmp_path / out)
    assert done.returncode == 2 and f"gpu.sh: error: {step if step == 'no_step' else tmp_path / out}: " in done.stderr


def test_gpu_table(tmp_path, monkeypatch, capsys):
    run("gpu", f"deform_conv --net resdcn_18 --device cpu --small --output {tmp_path}", monkeypatch)
    content = json.loads((tmp_path / "deform_conv_resdcn_18.json").read_text())
    assert content["where"]["torch"] == torch.__version__ and content["small"]
    rows = [row for row in content["rows"] if row["name"] == "PyTorch operations, float32"]
    assert len(rows) == 3 and all(row["ms"] > 0 and row["images_per_second"] > 0 for row in rows)
    assert "all layers of resdcn_18: PyTorch operations, bf16" in capsys.readouterr().out


def test_gpu_alternative_that_fails_is_a_row(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    gpu = runpy.run_path(str(FOLDER / "gpu.py"))
    args = argparse.Namespace(step="train", net="dla_34", compile=False, small=True, output=tmp_path)
    table, ways = gpu["Table"](args, torch.device("cpu")), {}
    table.attempt("good", lambda: len, ways)
    table.attempt("bad", lambda: [][0], ways)
    (row,) = json.loads((tmp_path / "train_dla_34.json").read_text())["rows"]
    assert ways == {"good": len} and row == {"name": "bad", "error": "IndexError: list index out of range"}
    for path in FOLDER.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.mark.slow
@pytest.mark.parametrize("step", GPU_STEPS)
def test_gpu_step(tmp_path, step):
    assert step in gpu_steps()
    done = gpu_step(step, tmp_path, OMP_NUM_THREADS="1")
    # A CPU without instructions for bf16 may add up in bf16, which is reported as a deviation.
    assert done.returncode in ((0, 1) if step == "check_bf16" else (0,)), done.stdout[-3000:]
    assert json.loads((tmp_path / f"{step}.status.json").read_text())["status"] == done.returncode
    assert (tmp_path / f"{step}.txt").read_text().strip()
    if step.endswith("_resdcn_18"):
        rows = json.loads((tmp_path / f"{step}.json").read_text())["rows"]
        assert any(row.get("ms") for row in rows)


@pytest.mark.slow
def test_gpu_step_is_ended_in_time(tmp_path):
    done = gpu_step("resume", tmp_path, LIMIT="2")
    assert done.returncode == 124 and "resume: ended after 2 s" in done.stdout


@pytest.mark.soak
def test_scaling(monkeypatch, capfd):
    run("scaling", "--arch res_18 --size 64 --batch 2 --processes 1 2", monkeypatch)
    output, errors = capfd.readouterr()
    assert "2 process(es), ours" in output and "Grad strides" not in errors


@pytest.mark.soak
def test_step_cost(monkeypatch, capfd):
    run("step_cost", "--batch 8 --iterations 2 --processes 1 2", monkeypatch)
    rows = dict(re.findall(r"^  (\w[\w ]*?) +([\d. ]+)$", capfd.readouterr().out, re.MULTILINE))
    assert {"forward", "backward", "update", "averages", "in all"} <= rows.keys()
    parts = [sum(float(rows[name].split()[k]) for name in rows if name != "in all") for k in (0, 1)]
    whole = [float(number) for number in rows["in all"].split()]
    assert all(0 < part <= 1.2 * one for part, one in zip(parts, whole, strict=True))


@pytest.mark.soak
@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux does")
def test_memory_stays_constant(monkeypatch, capsys):
    run("long_run", "--iterations 400", monkeypatch)
    assert float(re.search(r"growth (-?[\d.]+) %", capsys.readouterr().out)[1]) < 5
