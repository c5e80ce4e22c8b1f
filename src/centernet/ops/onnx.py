"""ONNX translations of the operators of this package; needs ``onnxscript``, as the exporter itself does."""

from collections.abc import Callable, Sequence

import torch

from . import deform_conv  # noqa: F401  (registers the operator)

OPSET = 19  # the first in which ONNX has DeformConv


def translations() -> dict[Callable, Callable]:
    """Return the table for ``torch.onnx.export(..., dynamo=True, custom_translation_table=translations())``.

    The deformable convolution becomes ``DeformConv``, so the opset must be ``OPSET`` or later. Only the CPU's operator
    is translated: export a network that is on the CPU.
    """
    from onnxscript import opset19

    def deform_conv2d(input, offset, mask, weight, bias, geometry: Sequence[int]):
        # The same order of the offset's channels, and the same zeros outside the image.
        stride, padding, dilation = (list(geometry[i : i + 2]) for i in (0, 2, 4))
        channels, kernel = weight.shape[1], list(weight.shape[2:])
        return opset19.DeformConv(
            *(input, weight, offset, bias, mask),
            kernel_shape=kernel,
            strides=stride,
            pads=padding * 2,
            dilations=dilation,
            group=input.shape[1] // channels,
            offset_group=offset.shape[1] // (2 * kernel[0] * kernel[1]),
        )

    return {torch.ops.centernet.deform_conv2d.default: deform_conv2d}
