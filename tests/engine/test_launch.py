"""A single process with several devices starts one process per device, as command lines of the reference require."""

import sys

import pytest
import torch
from tests.helpers.training import MAIN

from centernet.engine import launch
from centernet.options import OptionParser

LINES = [
    (
        "--exp_id coco_dla_1x --batch_size 128 --master_batch 9 --lr 5e-4 --gpus 0,1,2,3,4,5,6,7 --num_workers 16",
        8,
        "2",
    ),
    ("--exp_id coco_resdcn18 --arch resdcn_18 --batch_size 114 --master_batch 18 --gpus 0,1,2,3", 4, None),
    ("--gpus 0,1 --num_workers 3", 2, "2"),
]


@pytest.fixture
def started(monkeypatch):
    """Two or more devices, and the commands that would have replaced this process."""
    commands = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(launch.os, "execv", lambda program, command: commands.append(command))
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    return commands


@pytest.mark.parametrize(("line", "count", "workers"), LINES)
def test_several_devices_get_a_process_each(started, monkeypatch, capsys, line, count, workers):
    monkeypatch.setattr(sys, "argv", ["main.py", "ctdet", *line.split()])
    launch.start_per_device(OptionParser().parse(), MAIN)
    (command,) = started
    assert command[1:5] == [launch.__file__, "--standalone", f"--nproc_per_node={count}", MAIN]
    assert command[5:] == ["ctdet", *line.split(), *(["--num_workers", workers] if workers else [])]
    output = capsys.readouterr().out
    assert f"starting {MAIN} in {count} processes, one per device" in output and len(output.splitlines()) == 1


@pytest.mark.parametrize("more", [["--gpus", "0"], ["--gpus", "0,1", "--device", "cpu"], ["--gpus", "-1"]])
def test_one_device_stays_in_one_process(started, monkeypatch, more):
    monkeypatch.setattr(sys, "argv", ["main.py", "ctdet", *more])
    launch.start_per_device(OptionParser().parse(), MAIN)
    assert started == []


def test_without_accelerator_the_cpu_is_used_and_reported(started, monkeypatch, capsys):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["main.py", "ctdet", "--gpus", "0,1"])
    launch.start_per_device(OptionParser().parse(), MAIN)
    assert started == [] and "no accelerator on this machine" in capsys.readouterr().out
