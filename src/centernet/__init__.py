"""CenterNet: objects as center points (Zhou, Wang, Krähenbühl, arXiv 1904.07850)."""

from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .api import CenterNet, Result

__all__ = ["CenterNet", "Result", "__version__"]


def __getattr__(name: str) -> Any:
    if name in ("CenterNet", "Result"):  # imported on first use, because PyTorch takes seconds
        from . import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
