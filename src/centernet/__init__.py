"""CenterNet: objects as center points (Zhou, Wang, Krähenbühl, arXiv 1904.07850)."""

__version__ = "0.2.0"
