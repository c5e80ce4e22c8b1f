"""Train one recipe with several seeds and store the loss curves as a reference library for certify.py and loss.py.

    python src/tools/make_reference_library.py sample_short
    python src/tools/make_reference_library.py NAME --seeds 1-10 --nproc 1 ctdet --dataset pascal ...
    python src/tools/make_reference_library.py NAME --collect exp/ctdet/a exp/ctdet/b ...

Without options of main.py, the recipe is the short one of the generated sample (8 epochs of dlav0_34): seven
runs in one process and three in four processes. Runs are trained one after the other in WORK_DIR and are
reused if they exist, so an interrupted command can be repeated. Results are small files in
EXP_DIR/reference/NAME/: library.json and one CSV file per run; EXP_DIR/reference/NAME.csv is the first of them.

Exit status: 0, or 2 if a run fails or cannot be used.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from make_reference import make_reference

import centernet
from centernet.analysis.library import write_library
from centernet.analysis.read import read_finished_run
from centernet.errors import UserError
from centernet.utils.help import HelpFormatter
from centernet.utils.text import print_line
from centernet.utils.tool import tool

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).resolve().parents[1]
MAX_RUNS = 1000
SHORT_RECIPE = ["ctdet", "--dataset", "sample", "--arch", "dlav0_34", "--head_conv", "64", "--batch_size", "16"]
SHORT_RECIPE += ["--lr", "1e-3", "--num_epochs", "8", "--lr_step", "6", "--val_intervals", "8", "--num_workers", "0"]
SHORT_RECIPE += ["--not_rand_crop", "--shift", "0.05", "--scale", "0.2"]
SHORT_RECIPE_NPROC = (1, 1, 1, 1, 1, 1, 1, 4, 4, 4)


def seed_range(text: str) -> list[int]:
    """Parse ``1-10`` or ``1,2,5``."""
    try:
        ranges = [[int(end) for end in part.split("-")] for part in text.split(",")]
    except ValueError:
        ranges = []
    seeds = [seed for ends in ranges for seed in range(ends[0], min(ends[-1], ends[0] + MAX_RUNS) + 1)]
    if not 0 < len(seeds) <= MAX_RUNS or any(len(ends) > 2 for ends in ranges) or len(set(seeds)) != len(seeds):
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of different seeds such as 1-10 or 1,2,5")
    return seeds


def process_counts(text: str) -> list[int]:
    """Parse ``1`` or ``1,1,4``, one number of processes per run."""
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of process counts such as 1 or 1,1,4")
    return [int(part) for part in text.split(",")]


def train(name: str, recipe: list[str], seed: int, nproc: int, work_dir: Path) -> Path:
    """Train one run, unless it is finished already, and return its run directory.

    Raises:
        UserError: the training failed.
    """
    run = work_dir / recipe[0] / f"{name}_seed{seed}"
    if is_finished(run):
        return run
    options = [*recipe, "--seed", str(seed), "--exp_id", run.name, "--exp_dir", str(work_dir)]
    if (run / "model_last.pth").is_file():
        options.append("--resume")
    script = [str(SOURCE / "main.py")]
    if nproc > 1:
        launch = Path(centernet.__file__).with_name("engine") / "launch.py"
        script = [str(launch), "--standalone", f"--nproc_per_node={nproc}", *script]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment = {"OMP_NUM_THREADS": str(max(1, cores // nproc)), **os.environ}
    print_line(f"training seed {seed} in {nproc} process(es)")
    status = subprocess.run([sys.executable, *script, *options], env=environment, stdout=subprocess.DEVNULL).returncode
    if status:
        raise UserError(f"the training with seed {seed} ended with status {status}; see {run}")
    return run


def is_finished(run: Path) -> bool:
    """Return whether the run directory holds a finished training."""
    try:
        read_finished_run(run)
    except UserError:
        return False
    return True


def remove_checkpoints(run: Path) -> None:
    """Delete the checkpoints of a finished run; the library needs its logs only."""
    for path in [*run.glob("*.pth"), *run.glob("*.pth.bak")]:
        path.unlink()


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", metavar="NAME", help="name of the library")
    parser.add_argument("--seeds", type=seed_range, default=seed_range("1-10"), help="seeds; default: 1-10")
    parser.add_argument("--nproc", type=process_counts, help="processes, one number or one per seed; default: 1")
    parser.add_argument("--collect", type=Path, nargs="+", metavar="RUN", help="use these finished runs; train nothing")
    parser.add_argument("--train_only", action="store_true", help="train the runs, write no library")
    parser.add_argument("--keep_weights", action="store_true", help="keep the checkpoints of the trained runs")
    parser.add_argument("--force", action="store_true", help="overwrite a library of that name")
    parser.add_argument("--work_dir", type=Path, help="folder of the trained runs; default: EXP_DIR/NAME_runs")
    parser.add_argument("--exp_dir", type=Path, default=ROOT / "exp", help="folder of references; default: %(default)s")
    return parser


@tool
def main(argv: Sequence[str] | None = None) -> None:
    """Train or collect the runs, and write the library and its reference."""
    parser = build_parser()
    args, recipe = parser.parse_known_args(argv)
    nproc = args.nproc or ([1] if recipe else list(SHORT_RECIPE_NPROC))
    recipe = recipe or SHORT_RECIPE
    if recipe[0].startswith("-"):
        parser.error(f"{recipe[0]}: options of main.py begin with the task")
    if len(nproc) == 1:
        nproc *= len(args.seeds)
    if len(nproc) < len(args.seeds):
        parser.error(f"--nproc: {len(nproc)} numbers for {len(args.seeds)} seeds")
    work_dir = (args.work_dir or args.exp_dir / f"{args.name}_runs").resolve()
    runs = args.collect or []
    if not args.collect:
        for seed, count in zip(args.seeds, nproc, strict=False):
            runs.append(train(args.name, recipe, seed, count, work_dir))
            if not args.keep_weights:
                remove_checkpoints(runs[-1])
    if args.train_only:
        for run in runs:
            print_line(run)
        return
    folder = write_library(args.name, runs, args.exp_dir, args.force)
    make_reference(runs[0], args.name, args.exp_dir, force=True)
    print_line(f"Wrote {folder} and {folder}.csv: {len(runs)} runs")


if __name__ == "__main__":
    sys.exit(main())
