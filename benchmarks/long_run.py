"""Run a long training at toy size: seconds to the first step, and memory growth.

    python benchmarks/long_run.py [--arch res_18] [--size 64] [--batch 2] [--iterations 1000]

``main.py`` learns the dataset ``sample`` for that many iterations, 100 per epoch, with two workers. Its memory,
each worker included (what several share is counted once), is read while it runs. Linux only.
"""

import contextlib
import csv
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common

MAIN = Path(__file__).parents[1] / "src/main.py"
EPOCH = 100  # iterations
LOOK = 0.2  # seconds between two measurements


def main() -> None:
    """Print the results."""
    parser = common.make_parser(__doc__)
    parser.add_argument("--arch", default="res_18")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=1000, help="a multiple of 100, at least 200")
    args = parser.parse_args()
    device = common.start(args)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, MAIN, "ctdet", "--dataset", "sample", "--data_path", f"{folder}/data"]
        command += ["--exp_dir", folder, "--arch", args.arch, "--input_res", args.size, "--batch_size", args.batch]
        command += ["--num_epochs", args.iterations // EPOCH, "--num_iters", EPOCH, "--val_intervals", 0]
        command += ["--num_workers", 2, "--pretrained", "none", "--print_iter", args.iterations, "--seed", 0]
        subprocess.run([*map(str, command), "--prepare_only"], check=True, stdout=subprocess.DEVNULL)
        begun = time.monotonic()
        run = subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL)
        seen = watch(run, Path(folder) / "ctdet/default/train_log.csv", begun)
    if run.returncode:
        raise SystemExit(f"main.py ended with status {run.returncode}")
    first = seen[0]
    epochs = range(1, args.iterations // EPOCH)
    looks = [next(look for look in seen if look[0] >= epoch * EPOCH) for epoch in epochs]
    early, late = looks[0], looks[-1]
    print(f"\n{args.arch}, {args.size} x {args.size}, batch {args.batch}, on {device.type}")
    print(f"  first step after {first[1]:.1f} s, {late[0] / (late[1] - first[1]):.1f} iterations/s")
    for iteration, _, memory in looks:
        print(f"  memory after {iteration:5} iterations {memory:8.0f} MiB")
    print(f"  growth {100 * (late[2] / early[2] - 1):.1f} %")


def watch(run: subprocess.Popen, log: Path, begun: float) -> list[tuple[int, float, float]]:
    """Yield (iterations, seconds, MiB) measured during a run, from its first step to its end."""
    seen = []
    while run.poll() is None:
        done = iterations(log)
        if done:
            try:
                seen.append((done, time.monotonic() - begun, sum(common.proportional(p) for p in family(run.pid))))
            except OSError:  # a process has just exited
                continue
        time.sleep(LOOK)
    return seen


def iterations(log: Path) -> int:
    """Return the number of iterations in the loss table."""
    if not log.is_file():
        return 0
    with log.open(newline="") as file:
        return max(0, len(list(csv.reader(file))) - 1)


def family(process: int) -> list[int]:
    """Return the ids of a process and its children."""
    found = [process]
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has exited meanwhile
            if int(path.read_text().rpartition(")")[2].split()[1]) == process:
                found.append(int(path.parent.name))
    return found


if __name__ == "__main__":
    main()
