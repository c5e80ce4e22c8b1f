"""Convert KITTI's label and camera files into the annotation files that training reads.

    python src/tools/convert_kitti_to_coco.py [data/kitti]

Needs the standard library only.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from centernet.conversion import kitti_devkit
from centernet.conversion.preparation import prepare_once
from centernet.utils.help import HelpFormatter
from centernet.utils.tool import tool

DEFAULT_FOLDER = Path(__file__).resolve().parents[2] / "data" / "kitti"


@tool
def main(argv: list[str] | None = None) -> None:
    """Convert all image sets; existing annotation files are replaced."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        default=DEFAULT_FOLDER,
        help="what holds training/{image_2,label_2,calib}, testing and ImageSets_{3dop,subcnn} (%(default)s)",
    )
    parser.add_argument("--annotations", type=Path, help="where the JSON files go (annotations in the folder)")
    parser.add_argument(
        "--arrange",
        action="store_true",
        help="also make images/trainval and images/test, which show the images, and training/label_val",
    )
    args = parser.parse_args(argv)
    annotations = args.annotations or args.folder / "annotations"
    kitti_devkit.check_image_sets(args.folder)

    def make(_: bool) -> None:
        if args.arrange:
            kitti_devkit.arrange(args.folder)
        kitti_devkit.convert_devkit(args.folder, annotations)

    prepare_once(annotations.parent, "kitti", lambda: False, make)


if __name__ == "__main__":
    sys.exit(main())
