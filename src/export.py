"""Write a network for other programs: ``python src/export.py ctdet --load_model FILE --output model.onnx``."""

from centernet.engine import processes
from centernet.export import export_checkpoint
from centernet.opts import opts


def main(parser: opts, opt) -> None:
    """Write the network of ``--load_model`` to ``--output``."""
    for note in parser.notes(opt, "export.py"):
        print(note)
    export_checkpoint(opt)


if __name__ == "__main__":
    processes.run_script(main, opts())
