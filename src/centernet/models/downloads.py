"""Locations of the published ImageNet weights of the backbones."""

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse


@dataclass(frozen=True)
class Download:
    """A published weight file.

    Attributes:
        url: address of the file.
        sha256: its checksum, or the first digits of it.
        name: file name in the download cache; empty: the last part of the address.
    """

    url: str
    sha256: str
    name: str = ""

    @property
    def cached(self) -> Path:
        """Return the path of the file in PyTorch's download cache (``torch.hub``)."""
        import torch  # here, so that the rest of this file needs no PyTorch

        return Path(torch.hub.get_dir(), "checkpoints", self.name or self.named)

    @property
    def named(self) -> str:
        """Return the last part of the URL."""
        return os.path.basename(urlparse(self.url).path)

    @classmethod
    def of(cls, url: str) -> "Download":
        """Create the entry of a file whose name ends in the first digits of its checksum, as PyTorch's own do."""
        return cls(url, os.path.splitext(url)[0].rpartition("-")[2])


IMAGENET_WEIGHTS = {
    depth: [Download.of(f"https://download.pytorch.org/models/resnet{depth}-{digest}.pth")]
    for depth, digest in (
        (18, "5c106cde"),
        (34, "333f7ec4"),
        (50, "19c8e357"),
        (101, "5d3b4d8f"),
        (152, "b121ed2d"),
    )
}

# The reference's address, which no longer responds, and timm's copy of the same weights. The checksum of the latter is
# that of https://huggingface.co/timm/dla34.in1k/blob/3c5412bdfb75c944cec025e822e7d1b055faeb46/pytorch_model.bin.
DLA_WEIGHTS = {
    34: [
        Download.of("http://dl.yf.io/dla/models/imagenet/dla34-ba72cf86.pth"),
        Download(
            "https://huggingface.co/timm/dla34.in1k/resolve/3c5412bdfb75c944cec025e822e7d1b055faeb46/pytorch_model.bin",
            sha256="c05e55b2530de061fba26484a73f765979c19217cff5f3b2748b3103415948a6",
            name="timm_dla34.in1k.bin",
        ),
    ]
}
