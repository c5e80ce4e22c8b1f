"""How a task declares an option of its own."""

from ..options.option import Option, loss_weight, oracle

__all__ = ["Option", "loss_weight", "oracle"]
