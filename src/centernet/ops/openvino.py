"""OpenVINO models of the ONNX files of this package; needs ``openvino``."""

from pathlib import Path
from typing import Any


def read_onnx(content: bytes) -> Any:
    """Return the ``openvino.Model`` of an ONNX file, also of one with deformable convolutions.

    OpenVINO's ONNX reader (2026.4) lacks ``DeformConv``; its own operator ``DeformableConvolution`` is the same. ONNX
    metadata become the section ``framework`` of the model's ``rt_info``.
    """
    import openvino
    from openvino.frontend.onnx import ConversionExtension

    core = openvino.Core()
    core.add_extension(ConversionExtension("DeformConv", _deform_conv))
    return core.read_model(content)


def write(model: Any, xml: Path, weights: Path) -> None:
    """Write a model to a .xml file and its weights to a .bin file, both as they are, in float32."""
    import openvino

    openvino.serialize(model, str(xml), str(weights))


def _deform_conv(node: Any) -> list:
    """Translate a ``DeformConv`` of ``ops.onnx``: all five inputs, equal padding on both sides."""
    import numpy as np
    from openvino import opset8

    x, weight, offset, bias, mask = (node.get_input(k) for k in range(5))
    strides, pads, dilations = (list(node.get_attribute(name)) for name in ("strides", "pads", "dilations"))
    y = opset8.deformable_convolution(
        *(x, offset, weight, strides, pads[:2], pads[2:], dilations),
        mask=mask,
        group=node.get_attribute("group"),
        deformable_group=node.get_attribute("offset_group"),
        bilinear_interpolation_pad=True,  # zeros outside the image, also between its border and the next sample
    )
    return opset8.add(y, opset8.unsqueeze(bias, opset8.constant(np.array([1, 2])))).outputs()
