"""Command line options: declared in ``table`` and ``tasks/specs.py``, parsed by ``parser``, completed by ``derive``.

Importing this package does not import PyTorch, so that ``--help`` and wrong options answer at once.
"""

from ..tasks.option import Option
from .derive import ROOT, check_sizes, chunk_sizes, learning_rate, process_shares
from .metadata import apply_model_metadata, data_options, model_metadata
from .parser import OptionParser
from .recipe import implied_values, recipe
from .table import NEVER, Options

__all__ = [
    "NEVER",
    "ROOT",
    "Option",
    "OptionParser",
    "Options",
    "apply_model_metadata",
    "check_sizes",
    "chunk_sizes",
    "data_options",
    "implied_values",
    "learning_rate",
    "model_metadata",
    "process_shares",
    "recipe",
]
