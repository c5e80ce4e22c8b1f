"""Score box detections in COCO's form.

    python src/tools/eval_coco.py exp/ctdet/RUN/results_coco_val.json
    python src/tools/eval_coco.py exp/ctdet/RUN --annotations data/coco/annotations/instances_val2017.json --per_class

Prints the summary of pycocotools.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from centernet.conversion.coco import CocoLayout
from centernet.conversion.issues import IssueLog
from centernet.datasets.annotations import scored_content
from centernet.errors import UserError
from centernet.evaluation import coco
from centernet.evaluation.results import find_results, format_score, read_results
from centernet.options import ROOT
from centernet.utils.help import HelpFormatter
from centernet.utils.text import print_line, print_lines
from centernet.utils.tool import tool

DEFAULT = ROOT / "data" / "coco" / "annotations" / "instances_val2017.json"


@tool
def main(argv: list[str] | None = None) -> None:
    """Print the summary of pycocotools, and with ``--per_class`` the AP of each class."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("results", type=Path, help="result file, or a folder: the newest results*.json in it")
    parser.add_argument("--annotations", type=Path, default=DEFAULT, help="annotation file (%(default)s)")
    parser.add_argument("--per_class", action="store_true", help="also print the AP of each class")
    args = parser.parse_args(argv)
    results = read_results(find_results(args.results))
    scores = score(args.annotations, results)
    print_lines(scores["summary"])
    if args.per_class:
        for name, value in scores["per_class"].items():
            print_line(f"AP/{name} {format_score(value)}")


def score(path: Path, results: list[dict]) -> dict:
    """Return the scores of ``evaluate_content`` for an annotation file and results.

    Raises:
        UserError: a result does not fit, or the file is one that training refuses.
    """
    log = IssueLog(raise_errors=True)
    content = CocoLayout(path.parent, "val", path, path.parent).read_checked(log)
    content = scored_content(path, content, log)
    try:
        return coco.evaluate_content(content, results)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{path}: an image, an object or a result is malformed ({error!r})") from None


if __name__ == "__main__":
    sys.exit(main())
