"""Score poses in COCO's form: python src/tools/eval_coco_hp.py exp/multi_pose/RUN/results.json"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from centernet.conversion.coco_file import read_annotation_file
from centernet.datasets.coco_hp import score_keypoints
from centernet.errors import UserError
from centernet.evaluation.results import read_results
from centernet.options import ROOT
from centernet.utils.text import print_lines
from centernet.utils.tool import tool

DEFAULT = ROOT / "data" / "coco" / "annotations" / "person_keypoints_val2017.json"


@tool
def main(argv: list[str] | None = None) -> None:
    """Print pycocotools' summaries of joints and of boxes."""
    parser = argparse.ArgumentParser(description="COCO's keypoint and box scores of a results.json of poses.")
    parser.add_argument("results", type=Path, help="results.json, or the run directory that holds it")
    parser.add_argument("--annotations", type=Path, default=DEFAULT, help="annotation file (%(default)s)")
    args = parser.parse_args(argv)
    path = args.results / "results.json" if args.results.is_dir() else args.results
    results = read_results(path)
    if not all(len(result.get("keypoints", ())) == 51 for result in results):
        raise UserError(f"{path}: a detection lacks 'keypoints', 17 times x, y, visibility; use eval_coco.py")
    content = read_annotation_file(args.annotations)
    try:
        print_lines(score_keypoints(content, results)[1])
    except (TypeError, ValueError, IndexError) as error:
        raise UserError(f"{args.annotations}: an image or an object is malformed ({error!r})") from None


if __name__ == "__main__":
    sys.exit(main())
