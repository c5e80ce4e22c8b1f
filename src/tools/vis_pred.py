"""View results in COCO's or VOC's form next to the ground truth.

    python src/tools/vis_pred.py exp/ctdet/RUN/results_coco_val.json
    python src/tools/vis_pred.py exp/ctdet/RUN exp/ctdet/OTHER --annotations FILE --images DIR --output_dir drawn

Shows windows gt, pred0, pred1, ... for each image; any key continues, Esc quits. Without a display, or with
--output_dir, the images are saved.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from centernet.conversion.coco_file import read_annotation_file
from centernet.errors import UserError
from centernet.evaluation.results import check_entries, check_ids, find_results, read_results
from centernet.options import ROOT
from centernet.options.table import GENERAL
from centernet.utils.files import read_json
from centernet.utils.help import HelpFormatter
from centernet.utils.text import print_line
from centernet.utils.tool import tool

DEFAULT = ROOT / "data" / "coco" / "annotations" / "instances_val2017.json"
PIXELS = GENERAL["max_image_pixels"].default
ESCAPE = 27


@tool
def main(argv: list[str] | None = None) -> None:
    """Show or save the boxes of results and of the annotations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "results", type=Path, nargs="+", help="result files, or folders: the newest results*.json in them"
    )
    parser.add_argument("--annotations", type=Path, default=DEFAULT, help="annotation file (%(default)s)")
    parser.add_argument(
        "--images", type=Path, help="folder of the images (val2017 or images next to that of the annotations)"
    )
    parser.add_argument("--threshold", type=float, default=0.2, help="score above which a box is drawn (%(default)s)")
    parser.add_argument("--count", type=int, help="only the first COUNT images")
    parser.add_argument(
        "--max_image_pixels", type=int, default=PIXELS, help="pixels that an image may have (%(default)s)"
    )
    parser.add_argument("--output_dir", type=Path, help="save the images in this folder instead of showing them")
    args = parser.parse_args(argv)
    show(args)


def show(args: argparse.Namespace) -> None:
    """Show or save images as given by the arguments. Raises UserError."""
    from centernet.utils.images import read_image  # these take seconds, which --help and wrong options do without
    from centernet.visualization import draw_boxes, has_display, show_or_save

    content = read_annotation_file(args.annotations)
    root = args.annotations.parent.parent
    folder = args.images or root / ("val2017" if (root / "val2017").is_dir() else "images")
    output_dir = args.output_dir or Path("vis_pred")
    try:
        classes = {category["id"]: k for k, category in enumerate(content["categories"])}
        names = [str(category["name"]) for category in content["categories"]]
        truth = rows_by_image(content["annotations"], classes)
        results = {path: read_entries(path, content) for path in map(find_results, args.results)}
        for path, entries in results.items():
            check_ids(entries, {image["id"] for image in content["images"]}, classes.keys(), str(path))
        predictions = [rows_by_image(entries, classes) for entries in results.values()]
        images = content["images"][: args.count]
        for image in images:
            pixels = read_image(folder / image["file_name"], args.max_image_pixels)
            drawings = {
                "gt": draw_boxes(pixels, np.array(truth.get(image["id"], [])), names, args.threshold, "white", False)
            }
            for k, found in enumerate(predictions):
                rows = np.array(found.get(image["id"], []))
                drawings[f"pred{k}"] = draw_boxes(pixels, rows, names, args.threshold, "white")
            prefix = f"{Path(str(image['file_name'])).stem}_"
            if show_or_save(drawings, output_dir, prefix, show=args.output_dir is None) == ESCAPE:
                return
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{args.annotations}: an image, an object or a result is malformed ({error!r})") from None
    if args.output_dir is not None or not has_display():
        print_line(f"{output_dir}: drawings of {len(images)} images")


def read_entries(path: Path, content: dict) -> list[dict]:
    """Read results, also those of a VOC test, as a list in COCO's form. Raises UserError.

    ``content`` is that of the annotation file, whose classes and images give those of VOC's results in their order.
    """
    lists = read_json(path)
    if not isinstance(lists, list) or not lists or not isinstance(lists[0], list):
        return read_results(path)
    categories = sorted(category["id"] for category in content["categories"])
    images = sorted(image["id"] for image in content["images"])
    entries = []
    try:
        for category, of_class in zip(categories, lists[1:], strict=True):
            for image, rows in zip(images, of_class, strict=True):
                for x1, y1, x2, y2, score in rows:
                    box = [x1, y1, x2 - x1, y2 - y1]
                    entries.append({"image_id": image, "category_id": category, "bbox": box, "score": score})
    except (TypeError, ValueError):
        form = f"classes: {len(categories)}, images: {len(images)}"
        raise UserError(f"{path}: not the results of a VOC test for --annotations ({form})") from None
    check_entries(entries, str(path))
    return entries


def rows_by_image(entries: list[dict], classes: dict) -> dict:
    """Return rows [x1, y1, x2, y2, score, class from 0] of annotations (score 1) or results, by image id."""
    rows: dict = {}
    for entry in entries:
        if entry["category_id"] in classes:
            x, y, w, h = entry["bbox"]
            row = [x, y, x + w, y + h, entry.get("score", 1.0), classes[entry["category_id"]]]
            rows.setdefault(entry["image_id"], []).append(row)
    return rows


if __name__ == "__main__":
    sys.exit(main())
