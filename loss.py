"""Compare the loss curve of a training run with a reference curve.

    python loss.py
        compares the newest run in exp/ with the reference of its recipe
    python loss.py --run exp/ctdet/my_run
    python loss.py --run vendor.log --reference pascal_resdcn18_512
    python loss.py --run exp/ctdet/a --run exp/ctdet/b --html study.html
        compares several runs, and writes a page about them
    python loss.py --sdaa-log sdaa.log --cuda-log cuda.log --rule vendor
        is how the scripts of model zoos call it

Both losses are smoothed by a moving average and compared over their common iterations. A pass needs a mean relative
error of at most 0.05 or a mean absolute error of at most 0.0002; every number finite; at least 20 iterations and two
windows; and, where both recipes are known, equal recipes and at least 95 % of the reference's iterations.
If there is a library of reference runs behind the reference (exp/reference/NAME/), the output also states where in its
band the run lies; src/tools/certify.py tests that properly.

Other files than train_log.csv that are read: a table (csv, tsv, whitespace) with a column loss, train_loss or
total_loss; one number per line; TensorBoard event files (with the package tensorboard); and console logs of the
original implementation (--print_iter), of DLLogger (text and JSON), of Keras and Lightning progress bars, with
'Iter[12] step_train_loss 0.12' or 'Iteration 12/200 - Loss: 1.23', or with one 'loss: 2.34' or 'loss=2.34' per
iteration.

Exit status: 0 pass, 1 fail, 2 the input cannot be used.
"""

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
if (ROOT / "src" / "main.py").is_file():
    sys.path.insert(0, str(ROOT / "src"))
else:  # installed as centernet-loss
    ROOT = Path.cwd()

from centernet.analysis import compare, library, plots, read  # noqa: E402
from centernet.analysis.zoo_readme import results_block  # noqa: E402
from centernet.errors import UserError  # noqa: E402
from centernet.utils.help import HelpFormatter  # noqa: E402
from centernet.utils.text import make_streams_tolerant, print_line, print_lines  # noqa: E402
from centernet.utils.tool import command_name, error_line  # noqa: E402


def positive(text: str) -> int:
    """Parse a positive integer."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive integer")
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=command_name("loss.py"),
        description=__doc__,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    text = "run directory, or a csv or log file; several with --html; default: the newest run"
    parser.add_argument("--run", "--sdaa-log", type=Path, action="append", help=text)
    parser.add_argument("--html", type=Path, help="write a page that compares the runs with the reference")
    parser.add_argument(
        "--reference",
        "--cuda-log",
        help="csv or log file, run directory, or name of a reference in EXP_DIR/reference; default: the reference with "
        "the run's task, dataset, arch, input size and batch size",
    )
    parser.add_argument(
        "--window", type=positive, help="smoothing window in iterations; default: a tenth of the curve, at most 50"
    )
    parser.add_argument(
        "--rule",
        choices=["own", "vendor"],
        default="own",
        help="vendor: also print the errors and the verdict of the accelerator vendors' scripts, which are signed and "
        "not smoothed; the exit status stays that of the own rule",
    )
    parser.add_argument(
        "--readme", choices=["zh", "en"], help="also print the results for a model zoo's README, as Markdown"
    )
    parser.add_argument("--plot", help="image to draw, or none; default: loss.png next to the run's curve")
    parser.add_argument("--exp_dir", type=Path, default=ROOT / "exp", help="folder of the runs; default: %(default)s")
    return parser


def draw(args: argparse.Namespace, run: read.Curve, reference: read.Curve, comparison: compare.Comparison) -> str:
    """Draw the curves and return the path of the image, or ``none``."""
    if args.plot == "none":
        return "none"
    path = Path(args.plot) if args.plot else run.path.with_name("loss.png")
    try:
        plots.draw_comparison([run], reference, [comparison], path)
    except (UserError, ImportError) as error:
        if args.plot:
            raise UserError(str(error)) from error
        comparison.notes.append(str(error))  # the verdict does not depend on an image that was not asked for
        return "none"
    return shown(path)


def shown(path: Path) -> str:
    """Return the path relative to the working directory if it is below it."""
    return os.path.relpath(path) if path.resolve().is_relative_to(Path.cwd()) else str(path)


def print_study(runs: list[read.Curve], reference: read.Curve, args: argparse.Namespace) -> int:
    """Write the page of ``--html``, print one line per run, and return the exit status."""
    from centernet.analysis.report import write_study

    comparisons = [compare.compare(run, reference, args.window) for run in runs]
    write_study(runs, reference, comparisons, args.html)
    for run, comparison in zip(runs, comparisons, strict=True):
        print_line(f"{run.name}: {comparison.verdict}")
    print_line(f"Page: {shown(args.html)}")
    return 0 if all(comparison.passed for comparison in comparisons) else 1


def print_comparison(run: read.Curve, reference: read.Curve, comparison: compare.Comparison, plot: str) -> None:
    """Print the four lines that other programs read, and what explains them."""
    print_line(f"MeanRelativeError: {comparison.mean_relative_error}")
    print_line(f"MeanAbsoluteError: {comparison.mean_absolute_error}")
    print_line(f"Rule,mean_relative_error {comparison.mean_relative_error}")
    print_line(comparison.verdict)
    print_line(f"SignedMeanRelativeError: {comparison.signed.mean_relative_error:.6g}")
    print_line(f"SignedMeanAbsoluteError: {comparison.signed.mean_absolute_error:.6g}")
    print_line(f"Window: {comparison.window} iterations")
    print_line(f"Compared: {comparison.iterations} iterations")
    print_line(f"Run: {shown(run.path)}")
    print_line(f"Reference: {shown(reference.path)}")
    print_line(f"Plot: {plot}")


def print_vendor_rule(comparison: compare.Comparison) -> None:
    """Print what the accelerator vendors' scripts print: signed errors of the losses as they are, and their verdict."""
    print_line(f"VendorMeanRelativeError: {comparison.vendor.mean_relative_error}")
    print_line(f"VendorMeanAbsoluteError: {comparison.vendor.mean_absolute_error}")
    print_line(f"VendorRule: {comparison.vendor.verdict([])}")
    why = comparison.explain_vendor_pass()
    if why:
        print_line(f"Note: {why}")


def main(argv: list[str] | None = None) -> int:
    """Print the comparison and return the exit status."""
    args = build_parser().parse_args(argv)
    make_streams_tolerant()
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
            return print_study([run, *others], reference, args)
        comparison = compare.compare(run, reference, args.window)
        plot = draw(args, run, reference, comparison)
        folder = library.find_library(reference.path)
        library_lines = library.read_library(folder).describe(run) if folder else []
    except (UserError, OSError) as error:
        print_line(error_line(error, "loss.py"), file=sys.stderr)
        return 2
    print_comparison(run, reference, comparison, plot)
    if args.rule == "vendor":
        print_vendor_rule(comparison)
    for line in library_lines:
        print_line(line)
    for note in comparison.notes:
        print_line(f"Note: {note}")
    if args.readme:
        print_lines(results_block(run, reference, comparison, plot, args.readme))
    return 0 if comparison.passed else 1


if __name__ == "__main__":
    sys.exit(main())
