"""Certify runs against a library of reference runs.

    python src/tools/certify.py RUN [RUN ...] --references NAME

The runs are trainings of the library's recipe with other seeds, on the device or with the change to be certified. Their
mean curve is compared with the library's band, and their end loss and main score by equivalence tests (TOST) with
stated margins. The output states what difference so many runs can detect, and the false-alarm rate, measured with the
runs of the library itself. Needs SciPy.

Writes certificate.json and certificate.html. Exit status: 0 equivalent (certified), 1 different or undecided, 2 the
input cannot be used.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from centernet.analysis.certificate import (
    LOSS_MARGIN,
    SCORE_MARGIN,
    Margins,
    certify,
    describe,
    read_runs,
    summary,
    write_certificate,
)
from centernet.analysis.library import named_library, read_library
from centernet.utils.help import HelpFormatter
from centernet.utils.text import print_line
from centernet.utils.tool import tool

ROOT = Path(__file__).resolve().parents[2]


def margin(text: str) -> float:
    """Parse a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0")
    return value


@tool
def main(argv: Sequence[str] | None = None) -> int:
    """Print the certificate, write it, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter, allow_abbrev=False)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run directory, or a csv or log file")
    parser.add_argument(
        "--references", required=True, metavar="NAME", help="library in EXP_DIR/reference, or its folder"
    )
    parser.add_argument(
        "--loss_margin",
        type=margin,
        default=LOSS_MARGIN,
        help="irrelevant difference of the end loss, as a fraction of the library's (%(default)s)",
    )
    parser.add_argument(
        "--score_margin",
        type=margin,
        default=SCORE_MARGIN,
        help="irrelevant difference of the main score (%(default)s)",
    )
    parser.add_argument("--output", type=Path, help="folder for the certificate; default: that of the first run")
    parser.add_argument("--exp_dir", type=Path, default=ROOT / "exp", help="folder of references; default: %(default)s")
    args = parser.parse_args(argv)
    library = read_library(named_library(args.references, args.exp_dir))
    margins = Margins(args.loss_margin, args.score_margin)
    curves, scores = read_runs(args.runs, library)
    content = describe(certify(curves, scores, library, margins), library, curves, margins)
    for line in summary(content):
        print_line(line)
    for path in write_certificate(content, library, curves, args.output or curves[0].path.parent):
        print_line(f"Wrote {path}")
    return 0 if content["certified"] else 1


if __name__ == "__main__":
    sys.exit(main())
