"""Compare the loss curve of a training run with a reference curve.

    python loss.py                                   the newest run in exp/ against the reference of its recipe
    python loss.py --run exp/ctdet/my_run            another run folder
    python loss.py --run vendor.log --reference pascal_resdcn18_512
    python loss.py --run exp/ctdet/a --run exp/ctdet/b --html study.html      several runs, and a page about them

Both losses are smoothed by a moving average and compared over their common iterations. A pass needs a mean relative
error of at most 0.05 or a mean absolute error of at most 0.0002; every number finite; at least 20 iterations and two
windows; and, where both recipes are known, equal recipes and at least 95 % of the reference's iterations.

Besides train_log.csv these files are read: a table (csv, tsv, whitespace) with a column loss, train_loss or
total_loss; one number a line; a log of the original implementation's --print_iter; a log of text with one
'loss: 2.34' or 'loss=2.34' an iteration.

Exit status: 0 pass, 1 fail, 2 the input cannot be used.
"""

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "src"))

from centernet.analysis import compare, plots, read  # noqa: E402
from centernet.errors import UserError  # noqa: E402


def positive(text: str) -> int:
    """Whole number of at least 1 from the command line."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="loss.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    text = "run folder, or a csv or log file; several with --html; default: the newest run"
    parser.add_argument("--run", type=Path, action="append", help=text)
    parser.add_argument("--html", type=Path, help="write a page that compares the runs with the reference")
    parser.add_argument(
        "--reference",
        help="csv or log file, run folder, or name of a reference in EXP_DIR/reference; default: the reference with "
        "the run's task, dataset, arch, input size and batch size",
    )
    parser.add_argument(
        "--window", type=positive, help="smoothing window in iterations; default: a tenth of the curve, at most 50"
    )
    parser.add_argument("--plot", help="image to draw, or none; default: loss.png beside the run's curve")
    parser.add_argument("--exp_dir", type=Path, default=ROOT / "exp", help="folder of the runs; default: %(default)s")
    return parser


def draw(args: argparse.Namespace, run: read.Curve, reference: read.Curve, comparison: compare.Comparison) -> str:
    """Draw the curves and return what to print as the plot's path."""
    if args.plot == "none":
        return "none"
    path = Path(args.plot) if args.plot else run.path.with_name("loss.png")
    try:
        plots.draw(run, reference, comparison, path)
    except (UserError, ImportError) as error:
        if args.plot:
            raise UserError(str(error)) from error
        comparison.notes.append(str(error))  # a verdict does not need the image that nobody asked for
        return "none"
    return shown(path)


def shown(path: Path) -> str:
    """The path relative to the working directory where it is below it."""
    return os.path.relpath(path) if path.resolve().is_relative_to(Path.cwd()) else str(path)


def study(runs: list[read.Curve], reference: read.Curve, args: argparse.Namespace) -> int:
    """Write the page of ``--html`` and print a line a run; the exit status is 1 when one of them fails."""
    from centernet.analysis.report import write_study

    comparisons = [compare.compare(run, reference, args.window) for run in runs]
    write_study(runs, reference, comparisons, args.html)
    for run, comparison in zip(runs, comparisons, strict=True):
        print(f"{read.run_name(run)}: {comparison.verdict}")
    print(f"Page: {shown(args.html)}")
    return 0 if all(comparison.passed for comparison in comparisons) else 1


def main(argv: list[str] | None = None) -> int:
    """Print the comparison and return the exit status."""
    args = build_parser().parse_args(argv)
    try:
        paths = args.run or [compare.newest_run(args.exp_dir)]
        if len(paths) > 1 and args.html is None:
            raise UserError("several --run: add --html FILE, the page that compares them")
        if args.html is not None and args.plot not in (None, "none"):
            raise UserError("--plot and --html exclude each other: the page has an image of its own")
        run, *others = [read.read_curve(path) for path in paths]
        if args.reference:
            reference_path = compare.named_reference(args.reference, args.exp_dir)
        else:
            reference_path = compare.find_reference(run, args.exp_dir)
        reference = read.read_curve(reference_path)
        if args.html is not None:
            return study([run, *others], reference, args)
        comparison = compare.compare(run, reference, args.window)
        plot = draw(args, run, reference, comparison)
    except (UserError, OSError) as error:
        print(f"loss.py: error: {error}", file=sys.stderr)
        return 2
    print(f"MeanRelativeError: {comparison.mean_relative_error}")
    print(f"MeanAbsoluteError: {comparison.mean_absolute_error}")
    print(f"Rule,mean_relative_error {comparison.mean_relative_error}")
    print(comparison.verdict)
    print(f"SignedMeanRelativeError: {comparison.signed_mean_relative_error}")
    print(f"SignedMeanAbsoluteError: {comparison.signed_mean_absolute_error}")
    print(f"Window: {comparison.window} iterations")
    print(f"Compared: {comparison.iterations} iterations")
    print(f"Run: {shown(run.path)}")
    print(f"Reference: {shown(reference.path)}")
    print(f"Plot: {plot}")
    for note in comparison.notes:
        print(f"Note: {note}")
    return 0 if comparison.passed else 1


if __name__ == "__main__":
    sys.exit(main())
