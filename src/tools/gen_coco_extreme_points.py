"""Find the extreme points of COCO's segmentations: what the task exdet learns from.

    python src/tools/gen_coco_extreme_points.py [--annotations data/coco/annotations] [--splits train2017,val2017]

Reads instances_<split>.json and writes instances_extreme_<split>.json next to it. Training does the same on first use.
"""

import argparse
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(SOURCE))

from centernet.datasets.coco_extreme import convert, extreme_file  # noqa: E402
from centernet.errors import UserError  # noqa: E402

DEFAULT_FOLDER = SOURCE.parent / "data" / "coco" / "annotations"


def main(argv: list[str] | None = None) -> int:
    """Convert the files; returns the exit status: 0, or 2 after one line that says what is wrong."""
    parser = argparse.ArgumentParser(description="instances_<split>.json to instances_extreme_<split>.json")
    parser.add_argument(
        "--annotations", type=Path, default=DEFAULT_FOLDER, help="the folder of the files (%(default)s)"
    )
    parser.add_argument("--splits", default="train2017,val2017", help="comma-separated (%(default)s)")
    args = parser.parse_args(argv)
    try:
        splits = [split for split in args.splits.split(",") if split]
        if not splits:
            raise UserError("--splits: names no split")
        for split in splits:
            instances = args.annotations / f"instances_{split}.json"
            convert(instances, extreme_file(instances))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
