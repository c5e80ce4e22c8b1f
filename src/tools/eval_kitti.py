"""Score KITTI result files against label files.

    python src/tools/eval_kitti.py data/kitti/training/label_2 exp/ddd/my_run/results

Prints AP of the boxes in the image, their orientation similarity (AOS), AP on the ground (bird's eye view) and AP in
3D, in percent, with 11 and with 40 recall points.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from centernet.errors import UserError
from centernet.evaluation import kitti, kitti_text


def main(argv: list[str] | None = None) -> int:
    """Print the table; returns the exit status: 0, or 2 after one line that says what is wrong."""
    parser = argparse.ArgumentParser(description="KITTI object detection scores of a folder of result files.")
    parser.add_argument("label_dir", type=Path, help="folder of label files 000000.txt, ... (training/label_2)")
    parser.add_argument("result_dir", type=Path, help="folder of result files 000000.txt, ...")
    parser.add_argument(
        "--split",
        type=Path,
        metavar="FILE",
        help="names of the images to score, one a line (ImageSets_3dop/val.txt); by default those with a result file",
    )
    parser.add_argument(
        "--overlaps",
        choices=tuple(kitti.MIN_OVERLAP),
        default="official",
        help="overlaps that a detection needs on the ground and in 3D: official 0.7 (car) and 0.5, or those of the "
        "reference's program, 0.5 and 0.25, with which the published figures were measured",
    )
    args = parser.parse_args(argv)
    try:
        names = kitti.names_in(args.result_dir) if args.split is None else kitti_text.read_image_names(args.split)
        if not names:
            raise UserError(f"{args.split}: it names no images")
        truth = [kitti.read_labels(args.label_dir / f"{name}.txt") for name in names]
        found = [kitti.read_labels(args.result_dir / f"{name}.txt", with_scores=True) for name in names]
        result = kitti.evaluate(truth, found, overlaps=args.overlaps)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    count = sum(len(one) for one in found)
    print(f"{len(names)} images, {count} detections, {args.overlaps} overlaps, AP in percent")
    print(kitti.format_table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
