"""The deformable convolution as ONNX's DeformConv; skipped where the packages for ONNX are not installed."""

import numpy as np
import pytest
import torch
from tests.helpers.conformance import error_in_std, load_formula_weights
from torch import Tensor, nn

from centernet.models import create_model
from centernet.models.deform_conv import DCN, deform_conv2d
from centernet.models.fuse import fuse
from centernet.ops.onnx import OPSET, translations

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
AUTO = torch.export.Dim.AUTO


class Call(nn.Module):
    """The operator as a module, which is what can be exported."""

    def __init__(self, geometry: tuple) -> None:
        super().__init__()
        self.geometry = geometry

    def forward(self, x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None = None) -> Tensor:
        return deform_conv2d(x, offset, weight, None, *self.geometry, mask)


def export(module: nn.Module, inputs: tuple, path, **more):
    """The exported file, read again."""
    program = torch.onnx.export(
        *(module.eval(), inputs),
        dynamo=True,
        opset_version=OPSET,
        custom_translation_table=translations(),
        verbose=False,
        **more,
    )
    program.save(path)
    model = onnx.load(path)
    onnx.checker.check_model(model)
    return model


def run(model, inputs: tuple, path) -> list[np.ndarray]:
    """The outputs by ONNX Runtime where it is installed, else by the (slow) reference implementation of ONNX."""
    feed = {value.name: tensor.detach().numpy() for value, tensor in zip(model.graph.input, inputs, strict=True)}
    try:
        import onnxruntime
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        return ReferenceEvaluator(model).run(None, feed)
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feed)


@pytest.mark.parametrize("groups", [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("geometry", [((1, 1), (1, 1), (1, 1)), ((2, 1), (1, 2), (1, 2))])
def test_operator(tmp_path, groups, geometry):
    torch.manual_seed(0)
    (stride, padding, dilation), kernel, size = geometry, (3, 2), (9, 8)
    out = [(size[k] + 2 * padding[k] - dilation[k] * (kernel[k] - 1) - 1) // stride[k] + 1 for k in range(2)]
    weight = torch.randn(6, 8 // groups[1], *kernel)
    offset = 2 * torch.randn(2, 12 * groups[0], *out)
    inputs = torch.randn(2, 8, *size), offset, weight, torch.rand(2, 6 * groups[0], *out)
    path = tmp_path / "operator.onnx"
    model = export(Call(geometry), inputs, path)
    assert [node.op_type for node in model.graph.node].count("DeformConv") == 1
    (y,) = run(model, inputs, path)
    np.testing.assert_allclose(y, Call(geometry)(*inputs).numpy(), rtol=0, atol=2e-5)


def test_layer_of_any_size(tmp_path):
    torch.manual_seed(0)
    layer = DCN(8, 6)
    nn.init.normal_(layer.conv_offset_mask.weight, std=0.2)
    path = tmp_path / "layer.onnx"
    model = export(layer, (torch.randn(2, 8, 9, 7),), path, dynamic_shapes=({0: AUTO, 2: AUTO, 3: AUTO},))
    for shape in ((2, 8, 9, 7), (1, 8, 6, 12)):
        x = torch.randn(shape)
        (y,) = run(model, (x,), path)
        np.testing.assert_allclose(y, layer(x).detach().numpy(), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["resdcn_18", "dla_34"])
def test_fused_network(tmp_path, arch):
    pytest.importorskip("onnxruntime", reason="the reference implementation of ONNX would take hours")
    torch.manual_seed(0)
    network = fuse(load_formula_weights(create_model(arch, {"hm": 3, "wh": 2, "reg": 2}, 64)), batch_heads=True)
    x, path = torch.randn(1, 3, 64, 96), tmp_path / "network.onnx"
    found = run(export(network, (x,), path), (x,), path)
    for value, expected in zip(found, network(x)[0].values(), strict=True):
        assert error_in_std(torch.from_numpy(value), expected) < 1e-3
