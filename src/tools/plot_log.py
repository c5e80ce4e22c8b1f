"""Draw the logs of runs: python src/tools/plot_log.py exp/ctdet/RUN [exp/ctdet/OTHER ...]

Loss and its parts, scores, learning rate and images a second of all runs, over the epochs, in one image. Pale:
every iteration; bold: moving average; diamonds: validation.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from centernet.analysis.plots import draw_runs
from centernet.analysis.read import read_run
from centernet.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """Draw; returns the exit status: 0, or 2 after one line that says what is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("runs", type=Path, nargs="+", help="run folders")
    parser.add_argument("--output", type=Path, help="image to write; default: logs.png in the first run folder")
    parser.add_argument("--window", type=int, help="iterations that are averaged; default: a tenth, at most 50")
    args = parser.parse_args(argv)
    if args.window is not None and args.window < 1:
        parser.error(f"--window {args.window}: not a whole number of at least 1")
    try:
        runs = [read_run(path) for path in args.runs]
        output = args.output or runs[0].folder / "logs.png"
        draw_runs(runs, output, args.window)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
