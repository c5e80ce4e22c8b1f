"""The reference's module ``opts``: ``from opts import opts``. See ``detectors/detector_factory.py``."""

import sys
from pathlib import Path
from typing import Any

try:
    import centernet  # noqa: F401 (an installed package)
except ImportError:
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from centernet.options import OptionParser, Options

__all__ = ["opts"]


class opts(OptionParser):
    """The command line of ``centernet.opts``, whose options are changed in place as in the reference."""

    def update_dataset_info_and_set_heads(self, opt: Options, dataset: Any) -> Options:
        """Set in ``opt`` what follows from a dataset object, and return ``opt``.

        ``dataset`` has ``default_resolution``, ``mean``, ``std``, ``num_classes``, and possibly ``class_name`` and
        ``flip_idx``.
        """
        vars(opt).update(vars(super().update_dataset_info_and_set_heads(opt, dataset)))
        return opt
