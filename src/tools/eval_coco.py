"""Score box detections in COCO's form: python src/tools/eval_coco.py exp/ctdet/RUN/results.json"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from centernet.conversion.coco import CocoLayout
from centernet.conversion.issues import raise_error
from centernet.errors import UserError
from centernet.evaluation import coco
from centernet.options import ROOT

DEFAULT = ROOT / "data" / "coco" / "annotations" / "instances_val2017.json"


def main(argv: list[str] | None = None) -> int:
    """Print the summary of pycocotools; returns the exit status: 0, or 2 after one line that says what is wrong."""
    parser = argparse.ArgumentParser(description="COCO's box scores of a results.json.")
    parser.add_argument("results", type=Path, help="results.json, or the run folder that holds it")
    parser.add_argument("--annotations", type=Path, default=DEFAULT, help="annotation file (%(default)s)")
    parser.add_argument("--per_class", action="store_true", help="also AP of each class")
    args = parser.parse_args(argv)
    try:
        results = read_results(args.results / "results.json" if args.results.is_dir() else args.results)
        scores = score(args.annotations, results)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(scores["summary"])
    if args.per_class:
        for name, value in scores["per_class"].items():
            print(f"AP/{name} {value:.4f}")
    return 0


def score(path: Path, results: list[dict]) -> dict:
    """What ``evaluate_content`` gives for an annotation file and results. Raises UserError."""
    content = CocoLayout(path.parent, "val", path, path.parent).read_checked(raise_error)
    try:
        return coco.evaluate_content(content, results)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{path}: an image, an object or a result is malformed ({error!r})") from None


def read_results(path: Path) -> list[dict]:
    """The list of detections. Raises UserError when it is none."""
    try:
        results = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file ({error})") from None
    if isinstance(results, list) and results and isinstance(results[0], list):
        raise UserError(f"{path}: results of a VOC test; use src/tools/reval.py")
    fields = {"image_id", "category_id", "bbox", "score"}
    if not isinstance(results, list) or not all(isinstance(r, dict) and fields <= r.keys() for r in results):
        raise UserError(f"{path}: not a list of detections with {', '.join(sorted(fields))}")
    return results


if __name__ == "__main__":
    sys.exit(main())
