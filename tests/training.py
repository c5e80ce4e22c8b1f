"""What tests of trainings share: small runs in this process or in others, and what they leave behind."""

import csv
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}
LAUNCH = [sys.executable, str(ROOT / "src/centernet/engine/launch.py"), "--standalone"]
MAIN = str(ROOT / "src/main.py")


def small(exp: Path, data: Path, *more: str) -> list[str]:
    """Options of main.py for a training of seconds; its folder is ``exp``/exp/ctdet/default."""
    return [
        *("--dataset", "pascal", "--data_path", str(data), "--exp_dir", str(exp / "exp"), "--arch", "res_18"),
        *("--input_res", "64", "--batch_size", "2", "--num_workers", "0", "--pretrained", "none", *more),
    ]


def rows(path: Path) -> list[list[str]]:
    """The lines of a table."""
    with open(path, newline="") as file:
        return list(csv.reader(file))


def losses(folder: Path) -> list[list[str]]:
    """The lines of train_log.csv without the speed."""
    return [row[:-1] for row in rows(folder / "train_log.csv")]
