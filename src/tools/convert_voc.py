"""Convert a VOC devkit into the annotation files and the image folder that training reads.

    python src/tools/convert_voc.py data/voc/VOCdevkit

Needs the standard library only.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from centernet.conversion import voc_devkit
from centernet.conversion.preparation import prepare_once
from centernet.utils.help import HelpFormatter
from centernet.utils.tool import tool


@tool
def main(argv: list[str] | None = None) -> None:
    """Convert all image sets and link the images; existing annotation files are replaced."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("devkit", type=Path, help="the folder VOCdevkit, which holds VOC2007 and VOC2012")
    parser.add_argument("--annotations", type=Path, help="where the JSON files go (annotations next to VOCdevkit)")
    parser.add_argument("--images", type=Path, help="where the images go (images next to VOCdevkit)")
    args = parser.parse_args(argv)
    parent = args.devkit.resolve().parent
    annotations, images = args.annotations or parent / "annotations", args.images or parent / "images"

    voc_devkit.check_image_sets(args.devkit)

    def make(_: bool) -> None:
        voc_devkit.link_images(args.devkit, images)
        voc_devkit.convert_devkit(args.devkit, annotations)

    prepare_once(annotations.parent, "pascal", lambda: False, make)


if __name__ == "__main__":
    sys.exit(main())
