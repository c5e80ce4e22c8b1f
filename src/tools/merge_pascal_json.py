"""Merge the four VOC training files into pascal_trainval0712.json.

    python src/tools/merge_pascal_json.py [--annotations data/voc/annotations]

Needs the standard library only.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from centernet.conversion import voc_devkit
from centernet.utils.help import HelpFormatter
from centernet.utils.tool import tool

DEFAULT_FOLDER = Path(__file__).resolve().parents[2] / "data" / "voc" / "annotations"


@tool
def main(argv: list[str] | None = None) -> None:
    """Merge the files and print the number of images and boxes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "--annotations", type=Path, default=DEFAULT_FOLDER, help="the folder of the files (%(default)s)"
    )
    target, merged = voc_devkit.merge_files(parser.parse_args(argv).annotations)
    print(f"{target}: {len(merged['images'])} images, {len(merged['annotations'])} boxes")


if __name__ == "__main__":
    sys.exit(main())
