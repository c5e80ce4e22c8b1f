"""Merge the four VOC training files into pascal_trainval0712.json.

    python src/tools/merge_pascal_json.py [--annotations data/voc/annotations]

Needs the standard library only.
"""

import argparse
import sys
from pathlib import Path

from convert_voc import UserError, voc_devkit

DEFAULT_FOLDER = Path(__file__).resolve().parents[2] / "data" / "voc" / "annotations"


def main(argv: list[str] | None = None) -> int:
    """Merge the files; returns the exit status: 0, or 2 after one line that says what is wrong."""
    parser = argparse.ArgumentParser(description="pascal_{train,val}{2012,2007}.json to pascal_trainval0712.json")
    parser.add_argument(
        "--annotations", type=Path, default=DEFAULT_FOLDER, help="the folder of the files (%(default)s)"
    )
    folder = parser.parse_args(argv).annotations
    target = folder / voc_devkit.TRAINVAL_FILE
    try:
        names = [voc_devkit.annotation_file(*image_set) for image_set in voc_devkit.TRAINVAL_SETS]
        merged = voc_devkit.merge([voc_devkit.read_json(folder / name) for name in names])
        voc_devkit.write_json(target, merged)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{target}: {len(merged['images'])} images, {len(merged['annotations'])} boxes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
