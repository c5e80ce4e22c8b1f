"""Compute the extreme points of COCO's segmentations, the annotations of the task exdet.

    python src/tools/gen_coco_extreme_points.py [--annotations data/coco/annotations] [--splits train2017,val2017]

Reads instances_<split>.json and writes instances_extreme_<split>.json next to it. Training does the same on first use.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from centernet.conversion.coco_extreme import convert, extreme_file
from centernet.errors import UserError
from centernet.utils.help import HelpFormatter
from centernet.utils.tool import tool

DEFAULT_FOLDER = Path(__file__).resolve().parents[2] / "data" / "coco" / "annotations"


@tool
def main(argv: list[str] | None = None) -> None:
    """Convert the files of all splits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "--annotations", type=Path, default=DEFAULT_FOLDER, help="the folder of the files (%(default)s)"
    )
    parser.add_argument("--splits", default="train2017,val2017", help="comma-separated (%(default)s)")
    args = parser.parse_args(argv)
    splits = [split for split in args.splits.split(",") if split]
    if not splits:
        raise UserError("--splits: names no split")
    for split in splits:
        instances = args.annotations / f"instances_{split}.json"
        convert(instances, extreme_file(instances))


if __name__ == "__main__":
    sys.exit(main())
