"""The command line of ``src/tools/check_device.py``, which is parsed before PyTorch is imported."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from ..options import OptionParser, Options
from ..tasks import TASKS
from ..utils.tool import tool

LEVELS = ("settings", "probe", "operators", "layers", "steps", "repeat", "processes")
SHORT = ("settings", "probe")
ITERATIONS = 20
BATCH_SIZE = 2  # unless --batch_size is given: enough for every operator, and quick


def own_options() -> argparse.ArgumentParser:
    """Return a parser of the options in addition to those of main.py."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--levels")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--iterations", type=int, default=ITERATIONS)
    parser.add_argument("--nproc", type=int, default=2)
    parser.add_argument("--save_failing", default="")
    parser.add_argument("--replay", default="")
    parser.add_argument("--result", default="")  # of the processes that level "processes" starts
    return parser


def main(argv: Sequence[str] | None = None, description: str = "") -> int:
    """Run the program; the exit status is 0 for a sound device, 1 for deviations, 2 if the check could not run."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    own, rest = own_options().parse_known_args(arguments)

    def run(_) -> int:
        if own.help:
            usage = f"usage: {Path(sys.argv[0]).name} [TASK] [options of main.py] [options below]"
            print(f"{usage}\n\n{description.strip()}")
            return 0
        return check(own, rest)

    return tool(run)()


def training_options(arguments: list[str]) -> Options:
    """Return the options of the training to examine, with small data if no dataset is given."""
    if not any(word in TASKS for word in arguments):
        arguments = ["ctdet", *arguments]
    parser = OptionParser("main.py")
    opt = parser.parse(arguments)
    more = []
    if "dataset" not in opt.given:
        from .scenario import synthetic_dataset  # imports PyTorch, which --help and wrong options do without

        more += ["--dataset", synthetic_dataset(opt.task)]
    if "batch_size" not in opt.given:
        more += ["--batch_size", str(BATCH_SIZE)]
    return parser.parse([*arguments, *more]) if more else opt


def chosen_levels(own: argparse.Namespace) -> tuple[str, ...]:
    """Return the levels to run; raise UserError for an unknown one, for none at all, and for two choices at once."""
    if own.levels is None:
        return SHORT if own.short else LEVELS
    if own.short:
        raise UserError("--short and --levels exclude each other")
    levels = tuple(name for name in own.levels.split(",") if name)
    if not levels:
        raise UserError(f"--levels: names no level; choose from {', '.join(LEVELS)}")
    if unknown := [name for name in levels if name not in LEVELS]:
        raise UserError(f"--levels {own.levels}: no level {unknown[0]}; choose from {', '.join(LEVELS)}")
    return levels


def check(own: argparse.Namespace, rest: list[str]) -> int:
    """Run the requested levels."""
    levels = chosen_levels(own)
    for name in ("iterations", "nproc"):
        if getattr(own, name) < 1:
            raise UserError(f"--{name} {getattr(own, name)}: needs a number of at least 1")
    opt = training_options(rest)
    if opt.keep_res:
        raise UserError("--keep_res: training needs images of one size")

    from .run import run_levels  # imports PyTorch

    return run_levels(levels, own, rest, opt)
