"""Export a network for other programs: ``python src/export.py ctdet --load_model FILE --output model.onnx``."""

from centernet import cli

if __name__ == "__main__":
    cli.export()  # parses the command line before the imports below, which take seconds, and does not return

from centernet.export import export_checkpoint
from centernet.options import Options


def main(opt: Options) -> None:
    """Write the network of ``--load_model`` to ``--output``."""
    export_checkpoint(opt)
