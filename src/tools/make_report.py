"""Write the report of a run directory again, or a page that shows several runs side by side.

    python src/tools/make_report.py exp/ctdet/RUN
    python src/tools/make_report.py exp/ctdet/RUN exp/ctdet/OTHER ...

Numbers and curves are those of the logs. For the worst and best images of a single run, its model_best.pth, or else
model_last.pth, detects objects in the first images of the validation set.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from centernet.analysis.read import read_info
from centernet.datasets import get_dataset
from centernet.errors import UserError
from centernet.opts import opts
from centernet.utils.help import HelpFormatter
from centernet.utils.text import print_line
from centernet.utils.tool import tool

IMAGES = 200


@tool
def main(argv: Sequence[str] | None = None) -> None:
    """Write the page and print its path."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter, allow_abbrev=False)
    parser.add_argument("runs", type=Path, nargs="+", help="run directories")
    single = parser.add_argument_group("of one run")
    single.add_argument("--images", type=int, help=f"images to detect objects in; 0: none ({IMAGES})")
    single.add_argument("--data_path", help="folder of the data, if not that of the training")
    single.add_argument("--device", help="as in the training (auto)")
    several = parser.add_argument_group("of several runs")
    several.add_argument("--output", type=Path, help="page to write; default: comparison.html in the first directory")
    args = parser.parse_args(argv)
    for run in args.runs:
        if not run.is_dir():
            raise UserError(f"{run}: no such run directory")
    if len(args.runs) > 1:
        from centernet.analysis.side_by_side import write_side_by_side

        for name in ("images", "data_path", "device"):
            if getattr(args, name) is not None:
                parser.error(f"--{name}: is for the report of one run")
        output = args.output or args.runs[0] / "comparison.html"
        write_side_by_side(args.runs, output)
        print_line(output)
        return
    if args.output is not None:
        parser.error("--output: is for the page of several runs; the report of one is report.html in its directory")

    from centernet.analysis.report import write_report  # imports OpenCV, which --help and wrong options do without

    (run,) = args.runs
    dataset = results = None
    images = IMAGES if args.images is None else args.images
    if images > 0:
        dataset, results = detect(run, images, args)
    print_line(write_report(run, dataset, results))


def detect(run: Path, images: int, args: argparse.Namespace) -> tuple:
    """Return the validation set and the detections in its first images."""
    from centernet.detector import create_detector  # imports PyTorch

    checkpoint = next((path for name in ("best", "last") if (path := run / f"model_{name}.pth").is_file()), None)
    if checkpoint is None:
        raise UserError(f"{run}: has no model_best.pth or model_last.pth to detect with; add --images 0")
    task = str(read_info(run / "opt.json").get("options", {}).get("task", "ctdet"))
    command = [task, "--load_model", str(checkpoint), "--device", args.device or "auto"]
    command += ["--data_path", args.data_path] if args.data_path else []
    detector = create_detector(opts().parse(command))
    dataset = get_dataset(detector.opt.dataset)(detector.task, "val")
    results = {}
    for index in range(min(images, len(dataset))):
        found = detector.run(dataset.read_image(index), dataset.picture_info(index))
        results[dataset.image_ids[index]] = found["results"]
    return dataset, results


if __name__ == "__main__":
    sys.exit(main())
