"""Convert KITTI's label and camera files into the annotation files that training reads.

    python src/tools/convert_kitti_to_coco.py data/kitti

Needs the standard library only.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(SOURCE))

from centernet.errors import UserError  # noqa: E402


def _load_kitti_devkit():
    # By its path: importing it from its package would ask for everything that the datasets need.
    spec = importlib.util.spec_from_file_location("kitti_devkit", SOURCE / "centernet" / "datasets" / "kitti_devkit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


kitti_devkit = _load_kitti_devkit()


def main(argv: list[str] | None = None) -> int:
    """Run the conversion; returns the exit status: 0, or 2 after one line that says what is wrong."""
    parser = argparse.ArgumentParser(description="KITTI's label and camera files to COCO-style annotation files.")
    parser.add_argument(
        "folder", type=Path, help="what holds training/{image_2,label_2,calib}, testing and ImageSets_{3dop,subcnn}"
    )
    parser.add_argument("--annotations", type=Path, help="where the JSON files go (annotations in the folder)")
    parser.add_argument(
        "--arrange",
        action="store_true",
        help="also make images/trainval and images/test, which show the images, and training/label_val",
    )
    args = parser.parse_args(argv)
    try:
        if args.arrange:
            kitti_devkit.arrange(args.folder)
        kitti_devkit.convert_devkit(args.folder, args.annotations)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
