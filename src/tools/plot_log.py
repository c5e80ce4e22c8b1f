"""Draw the logs of runs.

    python src/tools/plot_log.py exp/ctdet/RUN [exp/ctdet/OTHER ...]

Loss and its terms, scores, learning rate and images per second of all runs over the epochs, in one image. Pale: every
iteration; bold: moving average; diamonds: validation.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from centernet.analysis.plots import draw_logs
from centernet.analysis.read import distinct_names, read_run
from centernet.utils.help import HelpFormatter
from centernet.utils.text import print_line
from centernet.utils.tool import tool


@tool
def main(argv: Sequence[str] | None = None) -> None:
    """Draw the logs and print the path of the image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter, allow_abbrev=False)
    parser.add_argument("runs", type=Path, nargs="+", help="run directories")
    parser.add_argument("--output", type=Path, help="image to write; default: logs.png in the first run directory")
    parser.add_argument("--window", type=int, help="iterations of the moving average; default: a tenth, at most 50")
    args = parser.parse_args(argv)
    if args.window is not None and args.window < 1:
        parser.error(f"--window {args.window}: not a positive integer")
    runs = [read_run(path) for path in args.runs]
    output = args.output or runs[0].folder / "logs.png"
    draw_logs(runs, distinct_names([run.folder for run in runs]), output, args.window)
    print_line(output)
    for run in runs:
        for note in run.notes:
            print_line(f"note: {note}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
