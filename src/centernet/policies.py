"""Strengths of ``--augment``, separate from ``datasets/augment.py`` so that the command line does not import OpenCV."""

from argparse import Namespace
from dataclasses import dataclass, replace

PLAIN_SHARE = 0.15  # of the epochs, the last ones, that see images one at a time, unless --plain_epochs is given


@dataclass(frozen=True)
class Policy:
    """Probabilities and strengths.

    Attributes:
        copy_paste: probability of pasting objects of another image (arXiv 2012.07177), where outlines are known.
        mosaic: probability of a mosaic of four images (YOLOv4, arXiv 2004.10934).
        mixup: probability of blending in another image (arXiv 1710.09412).
        rotate: greatest angle in degrees; boxes become those of the ellipses inscribed in them.
        hsv: greatest relative change of saturation and value, and a twentieth of it of the hue.
        degrade: probability of one of blur, noise and JPEG compression.
        cutout: probability of gray patches (arXiv 1708.04552).
    """

    copy_paste: float = 0.0
    mosaic: float = 0.0
    mixup: float = 0.0
    rotate: float = 0.0
    hsv: float = 0.0
    degrade: float = 0.0
    cutout: float = 0.0

    def without_composition(self) -> "Policy":
        """Return the policy of the last epochs, in which images are seen one at a time, as they will be in tests."""
        return replace(self, copy_paste=0.0, mosaic=0.0, mixup=0.0)

    @property
    def max_images(self) -> int:
        """Return the number of images that a sample can be composed of."""
        return 1 + (self.copy_paste > 0) + 3 * (self.mosaic > 0) + (self.mixup > 0)


POLICIES = {
    "light": Policy(mosaic=0.5),
    "strong": Policy(mosaic=0.7, mixup=0.1, rotate=5, hsv=0.3, degrade=0.15, cutout=0.15),
}


def policy_of(opt: Namespace) -> Policy:
    """Return the policy of the options ``--augment`` and ``--copy_paste``."""
    return replace(POLICIES.get(opt.augment, Policy()), copy_paste=opt.copy_paste)
