"""Convert ExtremeNet's weights into a checkpoint that hourglass starts from.

    python src/tools/convert_hourglass_weight.py [models/ExtremeNet_500000.pkl] [--output FILE]

--load_model also reads such a file directly. The file is read as data only.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from centernet.errors import UserError
from centernet.options import ROOT
from centernet.utils.help import HelpFormatter
from centernet.utils.tool import tool


@tool
def main(argv: list[str] | None = None) -> None:
    """Write ``{"epoch": 0, "state_dict"}`` with the names of the reference, and print the number of entries."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    default = ROOT / "models" / "ExtremeNet_500000.pkl"
    parser.add_argument("file", type=Path, nargs="?", default=default, help="file of ExtremeNet (%(default)s)")
    parser.add_argument("--output", type=Path, help="file to write (that name with the suffix .pth)")
    args = parser.parse_args(argv)
    output = args.output or args.file.with_suffix(".pth")
    if output == args.file:
        raise UserError(f"{output}: would be overwritten; name another file with --output")

    from centernet.models.weights import check_weights, read_checkpoint, rename_entries, write_checkpoint

    state_dict = read_checkpoint(args.file).get("state_dict")
    if not isinstance(state_dict, dict) or not state_dict:
        raise UserError(f"{args.file}: this file has no weights")
    renamed = rename_entries(state_dict)
    check_weights(renamed, str(args.file))
    changed = sum(name != own for name, own in zip(state_dict, renamed, strict=True))
    write_checkpoint(output, {"epoch": 0, "state_dict": renamed})
    print(f"{output}: {len(renamed)} entries, {changed} of them renamed")


if __name__ == "__main__":
    sys.exit(main())
