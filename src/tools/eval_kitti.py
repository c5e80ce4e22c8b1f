"""Score KITTI result files against label files.

    python src/tools/eval_kitti.py data/kitti/training/label_2 exp/ddd/my_run/results_kitti_val

Prints AP of the boxes in the image, their orientation similarity (AOS), AP on the ground (bird's eye view) and AP in
3D, in percent, with 11 and with 40 recall points; then the lines that the benchmark's program prints. Like the program
it writes the curves next to the folder of results: stats_*.txt and plot/.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from centernet.errors import UserError
from centernet.evaluation import kitti, kitti_text
from centernet.utils.help import HelpFormatter
from centernet.utils.text import print_line, print_lines
from centernet.utils.tool import tool


@tool
def main(argv: list[str] | None = None) -> None:
    """Compute the scores, print the tables, and write the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("label_dir", type=Path, help="folder of label files 000000.txt, ... (training/label_2)")
    parser.add_argument("result_dir", type=Path, help="folder of result files 000000.txt, ...")
    parser.add_argument(
        "--split",
        type=Path,
        metavar="FILE",
        help="names of the images to score, one per line (ImageSets_3dop/val.txt); by default those with a result file",
    )
    parser.add_argument(
        "--overlaps",
        choices=tuple(kitti.MIN_OVERLAP),
        default="official",
        help="overlaps that a true positive exceeds on the ground and in 3D: official 0.7 (car) and 0.5, or those of "
        "the reference's program, 0.5 and 0.25, with which the published numbers were measured",
    )
    parser.add_argument(
        "--output_dir", type=Path, help="folder for stats_*.txt and plot/ (next to the folder of results)"
    )
    parser.add_argument("--no_plots", action="store_true", help="print only, write neither stats_*.txt nor plot/")
    args = parser.parse_args(argv)
    names = kitti.names_in(args.result_dir) if args.split is None else kitti_text.read_image_names(args.split)
    if not names:
        raise UserError(f"{args.split}: it names no images")
    truth = [kitti.read_labels(args.label_dir / f"{name}.txt") for name in names]
    found = [kitti.read_labels(args.result_dir / f"{name}.txt", with_scores=True) for name in names]
    result = kitti.evaluate(truth, found, overlaps=args.overlaps)
    count = sum(len(one) for one in found)
    print_line(f"{len(names)} images, {count} detections, {args.overlaps} overlaps, AP in percent")
    print_lines(kitti.format_table(result))
    for line in kitti.program_lines(result):
        print_line(line)
    if not args.no_plots:
        folder = args.output_dir or args.result_dir.resolve().parent
        written = kitti.write_statistics(result, folder, images=True)
        print_line(f"curves: {len(written)} files in {folder} and {folder / 'plot'}")


if __name__ == "__main__":
    sys.exit(main())
