"""Shared by tests of trainings on the simulated accelerator: options of small ones, and their losses."""

import csv
from pathlib import Path

import numpy as np

TASKS = {"ctdet": "sample", "multi_pose": "sample_hp", "exdet": "sample_ex", "ddd": "sample_ddd"}


def options(task: str, exp: Path, data: Path, *more: str) -> list[str]:
    """A training of two iterations of two images; later options overrule earlier ones."""
    size = ("--input_res", "64") if task != "ddd" else ("--input_h", "64", "--input_w", "96")
    return [
        *(task, "--dataset", TASKS[task], "--data_path", str(data), "--exp_dir", str(exp), "--arch", "res_18", *size),
        *("--batch_size", "2", "--num_workers", "0", "--num_iters", "2", "--num_epochs", "1", "--val_intervals", "1"),
        *("--hide_data_time", "--pretrained", "none", "--head_conv", "16", *more),
    ]


def losses(exp: Path, task: str = "ctdet") -> np.ndarray:
    """All loss terms by iteration, as written by a training, (iterations, terms)."""
    with open(exp / task / "default/train_log.csv", newline="") as file:
        _, *rows = csv.reader(file)
    return np.array([[float(value) for value in row[2:-2]] for row in rows])
