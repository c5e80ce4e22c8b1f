"""Deformable convolutions by Triton's interpreter, for tests/ops/test_deform_conv_triton.py.

    python tests/helpers/triton_cases.py FILE NAME ...

Triton reads ``TRITON_INTERPRET`` when it is imported, and other tests may have imported it before, so the cases are
computed in a process of their own. It writes {name: results} for ``torch.load``.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

NAMES = ("output", "grad of input", "grad of offset", "grad of weight", "grad of bias", "grad of mask")


@dataclass(frozen=True)
class Case:
    """A deformable convolution; the blocks of the Triton kernels have 16 rows and columns.

    Attributes:
        batch, size: 20 output pixels are a block and a quarter of one.
        channels, out_channels: so are 20 channels, if groups do not split them.
        special: ``outside``: far outside of the image; ``edges``: exactly on pixels and on the border, at -1 and at the
            size of the image; ``nan``: one offset is not a number.
    """

    groups: int = 1
    conv_groups: int = 1
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    kernel: tuple[int, int] = (3, 2)
    batch: int = 1
    size: tuple[int, int] = (4, 3)
    channels: int = 4
    out_channels: int = 4
    dtype: torch.dtype = torch.float32
    special: str = ""

    @property
    def geometry(self) -> tuple:
        return self.stride, self.padding, self.dilation

    def tensors(self) -> list[Tensor]:
        """Return input, offset, weight, bias and mask: in ``dtype`` what the kernels multiply, the others float32."""
        out = [
            (self.size[k] + 2 * self.padding[k] - self.dilation[k] * (self.kernel[k] - 1) - 1) // self.stride[k] + 1
            for k in range(2)
        ]
        taps = self.kernel[0] * self.kernel[1]
        generator = torch.Generator().manual_seed(self.groups + 10 * self.conv_groups + self.channels)
        shapes = [
            (self.batch, self.channels, *self.size),
            (self.batch, 2 * taps * self.groups, *out),
            (self.out_channels, self.channels // self.conv_groups, *self.kernel),
            (self.out_channels,),
            (self.batch, taps * self.groups, *out),
        ]
        x, offset, weight, bias, mask = (torch.randn(shape, generator=generator) for shape in shapes)
        offset *= 1.5
        if self.special == "outside":
            offset *= torch.tensor([1.0, 1e3, 1e30])[torch.arange(offset.numel()) % 3].view(offset.shape)
        elif self.special == "edges":
            offset = offset.round()
        elif self.special == "nan":
            offset[0, 3, 2, 1] = torch.nan
        return [x.to(self.dtype), offset, weight.to(self.dtype), bias.to(self.dtype), mask]

    def grad(self, y: Tensor) -> Tensor:
        """Return the gradient of the output."""
        return torch.sin(torch.arange(y.numel(), dtype=torch.float64)).view(y.shape).to(self.dtype).to(y.dtype)


CASES = {
    "blocks": Case(kernel=(1, 2), padding=(0, 1), size=(4, 4), channels=20, out_channels=18),
    "groups": Case(2, 1, (2, 1), (1, 2), (1, 2)),
    "bf16": Case(dtype=torch.bfloat16),
    "edges": Case(special="edges"),
}
SLOW_CASES = {
    f"{groups} offset groups, {conv_groups} groups, {stride}, {padding}, {dilation}, {dtype}": Case(
        groups, conv_groups, stride, padding, dilation, (3, 2), 2, (5, 6), 8, 4, dtype
    )
    for groups, conv_groups in ((1, 1), (1, 2), (2, 4), (4, 2))
    for stride, padding, dilation in (((1, 1), (0, 0), (1, 1)), ((1, 2), (2, 1), (2, 1)))
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
} | {
    "larger": Case(batch=2, size=(9, 7), channels=40, out_channels=33),
    "outside": Case(special="outside"),
    "nan": Case(special="nan"),
}


def compute(case: Case) -> list[Tensor]:
    """Return output and gradients of a case, in the order of ``NAMES``; the environment selects Triton."""
    from centernet.ops.deform_conv import deform_conv2d

    x, offset, weight, bias, mask = tensors = [tensor.requires_grad_() for tensor in case.tensors()]
    y = deform_conv2d(x, offset, weight, bias, *case.geometry, mask)
    return [y.detach(), *torch.autograd.grad(y, tensors, case.grad(y))]


def layer() -> list[Tensor]:
    """Return output and gradients of a layer in channels-last order under autocast to bfloat16."""
    from centernet.models.deform_conv import DCN

    torch.manual_seed(0)
    dcn = DCN(4, 6)
    torch.nn.init.normal_(dcn.conv_offset_mask.weight, std=0.2)
    x = torch.randn(1, 4, 4, 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = dcn(x)
    return [y.detach(), *torch.autograd.grad(y.float().square().sum(), [x, *dcn.parameters()])]


def operator_check() -> list[Tensor]:
    """Check the registration of the operator, and that torch.compile traces it without a break."""
    from centernet.ops.deform_conv import deform_conv2d
    from centernet.ops.deform_conv_triton import deform_conv2d_triton

    case = Case(channels=2, out_channels=3, size=(3, 2))
    x, offset, weight, bias, mask = (tensor.requires_grad_() for tensor in case.tensors())
    torch.library.opcheck(deform_conv2d_triton, (x, offset, mask, weight, bias, [1, 1, 1, 1, 1, 1]))
    compiled = torch.compile(deform_conv2d, fullgraph=True, backend="aot_eager")
    return [compiled(x, offset, weight, bias, *case.geometry, mask).detach()]


def main(path: str, names: list[str]) -> None:
    """Compute cases by name, and write the results."""
    from centernet.ops import deform_conv_triton

    torch.set_num_threads(1)
    deform_conv_triton.BLOCK_M = deform_conv_triton.BLOCK_N = deform_conv_triton.BLOCK_K = 16
    special = {"layer": layer, "operator_check": operator_check}
    results = {name: special[name]() if name in special else compute((CASES | SLOW_CASES)[name]) for name in names}
    torch.save(results, path)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
    assert os.environ["TRITON_INTERPRET"] == "1" and os.environ["CENTERNET_DEFORM_CONV"] == "triton"
    main(sys.argv[1], sys.argv[2:])
