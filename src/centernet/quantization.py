"""Quantize ONNX files to int8 with ONNX Runtime, from which OpenVINO's are made; needs ``onnx`` and ``onnxruntime``."""

import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

# What ONNX Runtime and OpenVINO compute in int8; other operators between them stay in float32.
OPERATORS = ["Conv", "Relu", "Add", "MaxPool", "AveragePool", "Concat", "Resize"]


def quantize(content: bytes, inputs: Iterable[np.ndarray]) -> bytes:
    """Return an ONNX file with int8 weights and 8-bit activations, whose ranges are those of ``inputs``.

    Args:
        content: an ONNX file of ``export.export``.
        inputs: arrays (B, 3, H, W) float32, read once.

    Raises:
        ImportError: a missing package.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.inputs: Iterator[np.ndarray] = iter(inputs)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return {"input": x} if (x := next(self.inputs, None)) is not None else None

    model = onnx.load_from_string(content)
    root = logging.getLogger()
    level = root.level
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        root.setLevel(logging.ERROR)  # it recommends its pre-processing, which the export has done
        try:
            quantize_static(
                *(model, path, Reader()),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=OPERATORS,
                nodes_to_quantize=quantizable(model.graph),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        finally:
            root.setLevel(level)
        quantized = onnx.load(path)
    quantized.producer_name, quantized.producer_version = model.producer_name, model.producer_version
    del quantized.metadata_props[:]
    quantized.metadata_props.extend(model.metadata_props)
    return quantized.SerializeToString()


def quantizable(graph: Any) -> list[str]:
    """Return the names of the nodes of a graph that may be quantized: those before the last convolutions.

    The last convolutions and everything after them stay in float32: they give sizes, offsets and scores, in which
    rounding costs the most AP. The same holds for the positions of deformable convolutions, which are coordinates.
    """
    inner: set[str] = set()  # values that a convolution needs
    positions: set[str] = set()
    for node in reversed(graph.node):
        if node.op_type == "Conv" or inner.intersection(node.output):
            inner.update(node.input)
        if node.op_type == "DeformConv":
            positions.update((node.input[2], node.input[4]))  # offset and mask
        elif node.op_type == "GridSample":
            positions.add(node.input[1])
        elif positions.intersection(node.output) and node.op_type not in ("Conv", "Shape"):
            positions.update(node.input)
    return [
        node.name for node in graph.node if inner.intersection(node.output) and not positions.intersection(node.output)
    ]
