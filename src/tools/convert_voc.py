"""Convert a VOC devkit into the annotation files and the image folder that training reads.

    python src/tools/convert_voc.py data/voc/VOCdevkit

Needs the standard library only.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(SOURCE))

from centernet.errors import UserError  # noqa: E402

CLASS_NAMES = [
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
]


def _load_voc_devkit():
    # By its path: importing it from its package would ask for everything that the datasets need.
    spec = importlib.util.spec_from_file_location("voc_devkit", SOURCE / "centernet" / "datasets" / "voc_devkit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


voc_devkit = _load_voc_devkit()


def main(argv: list[str] | None = None) -> int:
    """Run the conversion; returns the exit status: 0, or 2 after one line that says what is wrong."""
    parser = argparse.ArgumentParser(description="VOC devkit to COCO-style annotation files and one image folder.")
    parser.add_argument("devkit", type=Path, help="the folder VOCdevkit, which holds VOC2007 and VOC2012")
    parser.add_argument("--annotations", type=Path, help="where the JSON files go (annotations beside VOCdevkit)")
    parser.add_argument("--images", type=Path, help="where the images go (images beside VOCdevkit)")
    args = parser.parse_args(argv)
    beside = args.devkit.resolve().parent
    try:
        voc_devkit.link_images(args.devkit, args.images or beside / "images")
        voc_devkit.convert_devkit(args.devkit, args.annotations or beside / "annotations", CLASS_NAMES)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
