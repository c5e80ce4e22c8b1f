"""CenterNet: objects as center points (Zhou, Wang, Krähenbühl, arXiv 1904.07850)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import CenterNet, Result

__version__ = "0.2.0"
__all__ = ["CenterNet", "Result"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # imported on first use, because PyTorch takes seconds
        from . import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
