"""Write the report of a run directory again: python src/tools/make_report.py exp/ctdet/RUN

Numbers and curves are those of the logs. For the worst and best images, the run's model_best.pth, or else
model_last.pth, detects objects in the first images of the validation set.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from centernet.analysis.read import read_info
from centernet.analysis.report import write_report
from centernet.datasets import get_dataset
from centernet.detector import create_detector
from centernet.errors import UserError
from centernet.opts import opts
from centernet.utils.text import print_line
from centernet.utils.tool import tool


@tool
def main(argv: Sequence[str] | None = None) -> None:
    """Write report.html and print its path."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--images", type=int, default=200, help="images to detect objects in; 0: none (%(default)s)")
    parser.add_argument("--data_path", help="folder of the data, if not that of the training")
    parser.add_argument("--device", default="auto", help="as in the training (%(default)s)")
    args = parser.parse_args(argv)
    dataset = results = None
    if args.images > 0:
        dataset, results = detect(args)
    print_line(write_report(args.run, dataset, results))


def detect(args: argparse.Namespace) -> tuple:
    """Return the validation set and the detections in its first images."""
    checkpoint = next((path for name in ("best", "last") if (path := args.run / f"model_{name}.pth").is_file()), None)
    if checkpoint is None:
        raise UserError(f"{args.run}: has no model_best.pth or model_last.pth to detect with; add --images 0")
    task = str(read_info(args.run / "opt.json").get("options", {}).get("task", "ctdet"))
    command = [task, "--load_model", str(checkpoint), "--device", args.device]
    command += ["--data_path", args.data_path] if args.data_path else []
    detector = create_detector(opts().parse(command))
    dataset = get_dataset(detector.opt.dataset)(detector.task, "val")
    results = {}
    for index in range(min(args.images, len(dataset))):
        found = detector.run(dataset.read_image(index), dataset.picture_info(index))
        results[dataset.image_ids[index]] = found["results"]
    return dataset, results


if __name__ == "__main__":
    sys.exit(main())
