"""The benchmarks run at toy sizes; each fails if its fast implementation does not equal the plain one."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"
TOY = {
    "loader": "--num_images 4 --batch 2 --size 64",
    "targets": "--batch 2 --classes 3 --size 16",
    "evaluation": "--images 20 --classes 3 --detections 10",
    "train_step": "--arch res_18 --size 64 --batch 2",
    "inference": "--arch res_18 --size 64",
    "networks": "--net res_18 --side 64 --batch 1",
    "annotations": "--images 20 --objects 60",
}


def run(name, arguments, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent / "src"))  # of the processes that it starts
    monkeypatch.setattr(sys, "argv", [name, *arguments.split(), "--repeats", "1", "--threads", "1"])
    threads = torch.get_num_threads()
    try:
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
        for module in ("common", "plain", "train_step"):
            sys.modules.pop(module, None)


@pytest.mark.parametrize("name", TOY)
def test_benchmark(name, monkeypatch, capsys):
    if name == "annotations" and sys.platform != "linux":
        pytest.skip("measures memory as Linux does")
    run(name, TOY[name], monkeypatch)
    text = capsys.readouterr().out
    assert "equal: " in text and ("x 1.00" in text or name == "annotations")


@pytest.mark.soak
def test_scaling(monkeypatch, capfd):
    run("scaling", "--arch res_18 --size 64 --batch 2 --processes 1 2", monkeypatch)
    output, errors = capfd.readouterr()
    assert "2 process(es), ours" in output and "Grad strides" not in errors


@pytest.mark.soak
@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux does")
def test_memory_stays_constant(monkeypatch, capsys):
    run("long_run", "--iterations 400", monkeypatch)
    assert float(re.search(r"growth (-?[\d.]+) %", capsys.readouterr().out)[1]) < 5
