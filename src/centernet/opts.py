"""The reference's name for the command line: ``from centernet.opts import opts``; see the package ``options``."""

from .options import OptionParser as opts

__all__ = ["opts"]
