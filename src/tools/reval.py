"""Score existing PASCAL VOC results.

    python src/tools/reval.py exp/ctdet/RUN/results_pascal_val.json
    python src/tools/reval.py exp/ctdet/RUN/results_pascal_val.json --devkit data/voc/VOCdevkit --comp

Prints the AP of every class and their mean by the rules of the official evaluation. The objects come from the XML files
of the devkit if it exists, otherwise from the annotation file of the dataset.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from centernet.conversion.coco_file import read_annotation_file
from centernet.conversion.voc_devkit import CLASS_NAMES, annotation_file, read_annotation
from centernet.errors import UserError
from centernet.evaluation import voc
from centernet.evaluation.results import find_results
from centernet.options import ROOT
from centernet.utils import files
from centernet.utils.help import HelpFormatter
from centernet.utils.text import print_line
from centernet.utils.tool import tool

NMS_OVERLAP = 0.3


@tool
def main(argv: list[str] | None = None) -> int:
    """Read and score results, print the scores, and return the exit status: 0, or 1 without arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("results", type=Path, help="result file, or a folder: the newest results*.json in it")
    parser.add_argument("--devkit", type=Path, help="VOCdevkit with the XML files (data/voc/VOCdevkit if it exists)")
    parser.add_argument("--annotations", type=Path, help="JSON file with the objects, instead of a devkit")
    parser.add_argument("--imdb", default="voc_2007_test", help="image set of the devkit (%(default)s)")
    parser.add_argument(
        "--nms", action="store_true", help=f"first remove boxes that overlap a better one by more than {NMS_OVERLAP}"
    )
    parser.add_argument("--area", action="store_true", help="area under the curve also for 2007")
    parser.add_argument("--comp", action="store_true", help="write the official files comp4_det_test_<class>.txt")
    parser.add_argument("--output_dir", type=Path, help="where --comp writes them (next to the results)")
    if not (sys.argv[1:] if argv is None else argv):
        parser.print_help()
        return 1
    args = parser.parse_args(argv)
    score(args)
    return 0


def score(args: argparse.Namespace) -> None:
    """Score results as given by the arguments, and print the scores. Raises UserError."""
    path = find_results(args.results)
    found = re.fullmatch(r"voc_(\d{4})_(\w+)", args.imdb)
    if found is None:
        raise UserError(f"--imdb {args.imdb}: needs the form voc_<year>_<image set>, such as voc_2007_test")
    year, image_set = found.groups()
    devkit = args.devkit or ROOT / "data" / "voc" / "VOCdevkit"
    if args.annotations is None and (args.devkit or (devkit / f"VOC{year}" / "Annotations").is_dir()):
        names: Sequence[str] = CLASS_NAMES
        source, image_ids, truth = from_devkit(devkit, year, image_set)
    else:
        source = args.annotations or ROOT / "data" / "voc" / "annotations" / annotation_file(year, image_set)
        names, image_ids, truth = from_json(source)
    detections = read_results(path, len(names), len(truth), source)
    if args.nms:
        detections = [[drop_overlapping(rows) for rows in images] for images in detections]
    by_2007 = int(year) < 2010 and not args.area
    scores = voc.evaluate(truth, detections, names, use_07_metric=by_2007)
    print_line(f"VOC{year} metric, {'eleven points' if by_2007 else 'area'}; {len(truth)} images of {source}")
    for name, value in scores["ap"].items():
        print(f"AP for {name} = {value:.4f}")
    print(f"Mean AP = {scores['mean_ap']:.4f}")
    if args.comp:
        folder = args.output_dir or path.parent
        write_comp(folder, names, image_ids, detections)
        print_line(f"{folder / 'comp4_det_test_<class>.txt'}: {len(names)} files")


def from_devkit(devkit: Path, year: str, image_set: str) -> tuple[Path, list[str], list[list[dict]]]:
    """Return the image set file, the names of its images in order, and their objects with 1-based corners."""
    path = devkit / f"VOC{year}" / "ImageSets" / "Main" / f"{image_set}.txt"
    try:
        image_ids = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the image set cannot be read ({error})") from None
    truth = []
    for name in image_ids:
        objects = read_annotation(devkit / f"VOC{year}" / "Annotations" / f"{name}.xml")["objects"]
        corners = ("xmin", "ymin", "xmax", "ymax")
        truth.append(
            [{"name": o["name"], "bbox": [o[c] for c in corners], "difficult": o["difficult"]} for o in objects]
        )
    return path, image_ids, truth


def from_json(path: Path) -> tuple[list[str], list[str], list[list[dict]]]:
    """Return the names of the classes and of the images, both in ascending order of their ids, and their objects."""
    content = read_annotation_file(path)
    try:
        files = {image["id"]: Path(image["file_name"]).stem for image in content["images"]}
        image_ids = sorted(files)
        names = {category["id"]: category["name"] for category in content["categories"]}
        classes = [str(names[i]) for i in sorted(names)]
        return classes, [files[i] for i in image_ids], voc.ground_truth(content["annotations"], image_ids, names)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not an annotation file of VOC ({error!r})") from None


def read_results(path: Path, classes: int, images: int, source: Path) -> list[list[np.ndarray]]:
    """Return ``[class][image]`` rows of a result file, without the background. Raises UserError if they do not fit."""
    if path.suffix == ".pkl":
        raise UserError(f"{path}: pickled results are not read, because they can run code; use results*.json")
    content = files.read_json(path)
    if isinstance(content, list) and content and isinstance(content[0], dict):
        raise UserError(f"{path}: results in COCO's form; use src/tools/eval_coco.py")
    if not isinstance(content, list) or len(content) != classes + 1:
        raise UserError(
            f"{path}: not the results of a VOC test, which are lists of the background and the {classes} classes of "
            f"{source}; for other classes name their annotation file with --annotations"
        )
    try:
        detections = [[_rows(rows) for rows in of_class] for of_class in content[1:]]
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: a detection is not [x1, y1, x2, y2, score] ({error})") from None
    if any(len(of_class) != images for of_class in detections):
        raise UserError(f"{path}: results of {len(detections[0])} images, {source} has {images}")
    return detections


def _rows(rows: list) -> np.ndarray:
    array = np.array(rows, dtype=np.float64)
    if len(rows) and array.shape != (len(rows), 5):
        raise ValueError(f"shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("a number is not finite")
    return array.reshape(-1, 5)


def drop_overlapping(rows: np.ndarray) -> np.ndarray:
    """Return the rows without those that overlap a better one of the same image and class."""
    import torch  # takes seconds, and --help and wrong options do without
    import torchvision

    boxes = torch.from_numpy(rows[:, :4] + [0, 0, 1, 1])  # VOC's corners are pixels that belong to the box
    return rows[torchvision.ops.nms(boxes, torch.from_numpy(rows[:, 4]), NMS_OVERLAP).numpy()]


def write_comp(folder: Path, names, image_ids: list[str], detections: list[list[np.ndarray]]) -> None:
    """Write the files that the official MATLAB evaluation reads: a line of image, score, 1-based corners per detection.

    Raises UserError.
    """
    with files.write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, images in zip(names, detections, strict=True):
        lines = []
        for image_id, rows in zip(image_ids, images, strict=True):
            for *box, score in rows:
                corners = " ".join(f"{value + 1:.1f}" for value in box)
                lines.append(f"{image_id} {score:.3f} {corners}\n")
        files.write_text(folder / f"comp4_det_test_{name}.txt", "".join(lines))


if __name__ == "__main__":
    sys.exit(main())
