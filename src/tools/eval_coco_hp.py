"""Score poses in COCO's form: python src/tools/eval_coco_hp.py exp/multi_pose/RUN/results.json"""

import argparse
import sys
from pathlib import Path

from eval_coco import ROOT, UserError, read_results

from centernet.conversion.coco_file import read_annotation_file
from centernet.datasets.coco_hp import score_keypoints

DEFAULT = ROOT / "data" / "coco" / "annotations" / "person_keypoints_val2017.json"


def main(argv: list[str] | None = None) -> int:
    """Print pycocotools' summaries of joints and of boxes; returns the exit status: 0, or 2 after one line of error."""
    parser = argparse.ArgumentParser(description="COCO's keypoint and box scores of a results.json of poses.")
    parser.add_argument("results", type=Path, help="results.json, or the run folder that holds it")
    parser.add_argument("--annotations", type=Path, default=DEFAULT, help="annotation file (%(default)s)")
    args = parser.parse_args(argv)
    path = args.results / "results.json" if args.results.is_dir() else args.results
    try:
        results = read_results(path)
        if not all(len(result.get("keypoints", ())) == 51 for result in results):
            raise UserError(f"{path}: a detection lacks 'keypoints', 17 times x, y, visibility; use eval_coco.py")
        print(score_keypoints(read_annotation_file(args.annotations), results)[1])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
