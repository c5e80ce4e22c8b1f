"""Score poses in COCO's form.

    python src/tools/eval_coco_hp.py exp/multi_pose/RUN/results_coco_hp_val.json

Prints pycocotools' summaries of joints and of boxes. Objects may be persons or anything else whose joints the
categories of the annotation file list.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from centernet.conversion.coco_file import read_annotation_file
from centernet.conversion.issues import IssueLog, ignore_issue
from centernet.conversion.keypoints import complete_keypoints, read_joints
from centernet.datasets.annotations import scored_content
from centernet.errors import UserError
from centernet.evaluation.results import find_results, read_results
from centernet.ops.keypoints import COCO_PERSON, DEFAULT_SIGMA
from centernet.options import ROOT
from centernet.utils.help import HelpFormatter
from centernet.utils.text import print_lines
from centernet.utils.tool import tool

DEFAULT = ROOT / "data" / "coco" / "annotations" / "person_keypoints_val2017.json"


@tool
def main(argv: list[str] | None = None) -> None:
    """Print pycocotools' summaries of joints and of boxes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("results", type=Path, help="result file, or a folder: the newest results*.json in it")
    parser.add_argument("--annotations", type=Path, default=DEFAULT, help="annotation file (%(default)s)")
    args = parser.parse_args(argv)

    from centernet.datasets.coco_hp import score_keypoints  # imports OpenCV, which --help does without

    path = find_results(args.results)
    results = read_results(path)
    content = read_annotation_file(args.annotations)
    try:
        content = completed(args.annotations, content)
        content = scored_content(args.annotations, content, IssueLog(raise_errors=True))
        joints = {category["id"]: read_joints(args.annotations, category) for category in content["categories"]}
        sigmas = {one: own.sigmas or (DEFAULT_SIGMA,) * len(own.names) for one, own in joints.items()}
        for result in results:
            points, count = result.get("keypoints"), len(sigmas.get(result["category_id"], ()))
            if not isinstance(points, list) or (count and len(points) != 3 * count):
                raise UserError(
                    f"{path}: a detection lacks 'keypoints', {count} times x, y, visibility; use eval_coco.py"
                )
        with_joints = {category: values for category, values in sigmas.items() if values}
        if not with_joints:
            raise UserError(f"{args.annotations}: its categories list no keypoints; use eval_coco.py")
        print_lines(score_keypoints(content, results, with_joints)[1])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{args.annotations}: an image or an object is malformed ({error!r})") from None


def completed(path: Path, content: dict) -> dict:
    """Return annotations with what scoring needs and tools leave out.

    A category ``person`` that lists no joints has those of COCO.
    """
    persons = {"keypoints": list(COCO_PERSON.names)}
    categories = [
        {**one, **persons} if one["name"] == "person" and not one.get("keypoints") else one
        for one in content["categories"]
    ]
    content = complete_keypoints(path, {**content, "categories": categories}, ignore_issue)
    annotations = [{"area": one["bbox"][2] * one["bbox"][3], "iscrowd": 0, **one} for one in content["annotations"]]
    return {**content, "annotations": annotations}


if __name__ == "__main__":
    sys.exit(main())
