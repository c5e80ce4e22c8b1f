"""Measure the time until the programs exit: --help, a wrong option, and --dry_run.

    python benchmarks/startup.py                        this code
    python benchmarks/startup.py --code DIR             also another checkout, such as an older commit

Prints the median wall-clock and CPU seconds of each command; the repeats of a checkout run one after the other. PyTorch
takes seconds to import, so these commands must finish without it; ``tests/test_cli.py`` checks that they do.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {
    "main.py --help": ["src/main.py", "--help"],
    "main.py, wrong option": ["src/main.py", "ctdet", "--no_such_option"],
    "main.py, wrong value": ["src/main.py", "ctdet", "--lr", "0"],
    "main.py --dry_run": ["src/main.py", "ctdet", "--dataset", "pascal", "--dry_run"],
    "test.py --help": ["src/test.py", "--help"],
    "demo.py --help": ["src/demo.py", "--help"],
    "export.py --help": ["src/export.py", "--help"],
    "import torch": ["-c", "import torch"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=11, help="runs of each command (%(default)s)")
    parser.add_argument("--code", type=Path, action="append", default=[], help="another checkout")
    args = parser.parse_args()
    checkouts = [ROOT, *args.code]
    for name, arguments in COMMANDS.items():
        times = {checkout: [measure(checkout, arguments) for _ in range(args.repeats)] for checkout in checkouts}
        for checkout, runs in times.items():
            wall, cpu = (statistics.median(values) for values in zip(*runs, strict=True))
            print(f"{name:24} {wall:6.2f} s  {cpu:6.2f} s CPU" + (f"  {checkout}" if len(checkouts) > 1 else ""))


def measure(checkout: Path, arguments: list[str]) -> tuple[float, float]:
    """Return wall-clock and CPU seconds of one run."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=checkout, env=environment, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - started, cpu


if __name__ == "__main__":
    main()
