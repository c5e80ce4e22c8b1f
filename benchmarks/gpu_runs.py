"""Comparisons of whole runs on an accelerator, for ``gpu.sh``.

    python benchmarks/gpu_runs.py resume --output DIR [--device cpu]       # is a resumed training exact?
    python benchmarks/gpu_runs.py same A/results.json B/results.json       # detections of two devices

``resume`` trains three times with deterministic algorithms (``torch.use_deterministic_algorithms``): twice without
interruption and once interrupted after the first epoch and resumed. Losses and weights are compared bit by bit. A
network whose uninterrupted trainings already differ has an operator that is not reproducible on the device, and shows
nothing about resuming. Exit status 1: a resumed training differs where repeated ones agree.
"""

import argparse
import csv
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from centernet.utils.files import read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
ARCHS = ("lite", "res_18", "resdcn_18")
SCORE_TOLERANCE = 0.01


def main() -> int:
    """Run one comparison and return the exit status."""
    if sys.argv[1:2] == ["train"]:
        train_deterministically(sys.argv[2:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("resume")
    command.add_argument("--output", type=Path, required=True)
    command.add_argument("--device", default="auto")
    command.add_argument("--archs", default=",".join(ARCHS))
    command = commands.add_parser("same")
    command.add_argument("files", type=Path, nargs=2)
    args = parser.parse_args()
    if args.command == "same":
        return same_results(*args.files)
    return resume(args.output, args.device, args.archs.split(","))


def resume(output: Path, device: str, archs: list[str]) -> int:
    """Compare the trainings of each network."""
    rows, status = [], 0
    for arch in archs:
        for run, epochs in (("whole", 2), ("again", 2), ("parts", 1), ("parts", 2)):
            folder = output / "exp" / f"resume_{arch}" / run
            options = ["ctdet", "--dataset", "sample", "--arch", arch, "--pretrained", "none", "--device", device]
            options += ["--num_epochs", str(epochs), "--num_iters", "4", "--batch_size", "8", "--val_intervals", "0"]
            options += ["--num_workers", "1", "--not_cuda_benchmark", "--exp_dir", str(folder)]
            # A second call of the interrupted run continues its own checkpoint.
            options += ["--resume"] if (run, epochs) == ("parts", 2) else []
            environment = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
            command = [sys.executable, __file__, "train", *options]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{arch}, {run}: failed\n{done.stderr[-2000:]}")
                return 2
        whole, again, parts = (outcome(output / "exp" / f"resume_{arch}" / run) for run in ("whole", "again", "parts"))
        row = {"arch": arch, "repeated": equal(whole, again), "resumed": equal(whole, parts)}
        print(f"  {arch:12}repeated {word(row['repeated']):10}resumed {word(row['resumed'])}", flush=True)
        status = max(status, int(row["repeated"] and not row["resumed"]))
        rows.append(row)
        write_json(output / "resume.json", {"step": "resume", "torch": torch.__version__, "rows": rows}, indent=1)
    return status


def train_deterministically(options: list[str]) -> None:
    """Run main.py with deterministic algorithms; operators that have none only warn."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    sys.argv = ["main.py", *options]
    runpy.run_path(str(ROOT / "src" / "main.py"), run_name="__main__")


def outcome(folder: Path) -> tuple[list[list[str]], dict[str, torch.Tensor]]:
    """Return the losses and the weights of a run."""
    with open(folder / "ctdet/default/train_log.csv", newline="") as file:
        losses = [row[:-1] for row in csv.reader(file)]  # without the speed
    return losses, torch.load(folder / "ctdet/default/model_last.pth", weights_only=True)["state_dict"]


def equal(one: tuple, other: tuple) -> bool:
    """Return whether losses and weights are equal."""
    return one[0] == other[0] and all(torch.equal(value, other[1][name]) for name, value in one[1].items())


def word(value: bool) -> str:
    """Return a verdict."""
    return "equal" if value else "differs"


def same_results(one: Path, other: Path) -> int:
    """Compare the sorted scores of the detections in two result files (VOC's form)."""
    scores = []
    for path in (one, other):
        rows = [row for images in read_json(path) for rows in images for row in rows]
        scores.append(np.sort([row[4] for row in rows]))
    if len(scores[0]) != len(scores[1]):
        print(f"{one}: {len(scores[0])} detections; {other}: {len(scores[1])}")
        return 1
    difference = float(np.abs(scores[0] - scores[1]).max(initial=0))
    print(f"scores of {len(scores[0])} detections differ by at most {difference:.2e}")
    return int(difference > SCORE_TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
