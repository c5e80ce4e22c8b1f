"""Convert a checkpoint of this project into one that the reference implementation resumes.

    python src/tools/convert_for_reference.py exp/ctdet/mine/model_last.pth [--output FILE]

The reference's networks load the weights, and with --resume its Adam the optimizer's state: the file has every
parameter of the reference's network (also base.fc of dla_34) in the serialization of PyTorch before 1.6.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from centernet.errors import UserError
from centernet.models import describe
from centernet.utils.help import HelpFormatter
from centernet.utils.tool import tool

FAMILIES = ("res", "resdcn", "dla", "dlav0", "hourglass")  # of the reference


@tool
def main(argv: list[str] | None = None) -> None:
    """Write the converted checkpoint, and print what it holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="checkpoint of this project, such as model_last.pth")
    parser.add_argument("--output", type=Path, help="file to write (<name>_reference.pth next to the checkpoint)")
    parser.add_argument("--arch", default="", help="network, for a checkpoint that does not name it")
    args = parser.parse_args(argv)
    output = args.output or args.checkpoint.with_name(f"{args.checkpoint.stem}_reference.pth")
    if output.resolve() == args.checkpoint.resolve():
        raise UserError(f"{output}: would be overwritten; name another file with --output")

    from centernet.models.weights import checkpoint_for_reference, read_checkpoint, write_checkpoint
    from centernet.registry import resolve

    checkpoint = read_checkpoint(args.checkpoint)
    if not isinstance(checkpoint.get("state_dict"), dict):
        raise UserError(f"{args.checkpoint}: this checkpoint has no state_dict")
    metadata = checkpoint.get("model")
    arch = args.arch or (metadata.get("arch", "") if isinstance(metadata, dict) else "")
    if not arch:
        raise UserError(f"{args.checkpoint}: this checkpoint does not name its network; add --arch")
    architecture, _ = describe(str(arch))
    if str(arch).partition("_")[0] not in FAMILIES:
        raise UserError(f"{args.checkpoint}: the reference has no network {arch}")
    entries = getattr(resolve(architecture.build), "reference_entries", {})
    try:
        converted = checkpoint_for_reference({"epoch": 0, **checkpoint}, entries)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{args.checkpoint}: its weights or its optimizer are not those of {arch}") from error
    write_checkpoint(output, converted, legacy=True)
    state = "with the optimizer's state" if "optimizer" in converted else "weights only"
    print(f"{output}: {arch}, epoch {converted['epoch']}, {len(converted['state_dict'])} entries, {state}")


if __name__ == "__main__":
    sys.exit(main())
