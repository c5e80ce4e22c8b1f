"""Files in int8: what is quantized, how large they are, and how close their outputs are."""

import importlib.util

import numpy as np
import pytest
import torch
from tests.helpers.exported import load
from torch import Tensor, nn

from centernet.export import Exported, export
from centernet.models.deform_conv import DCN
from centernet.models.heads import make_head, run_heads
from centernet.opts import opts
from centernet.quantization import quantizable, quantize

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
HAS_OPENVINO = importlib.util.find_spec("openvino") is not None


class Small(nn.Module):
    """A residual block, a deformable convolution, a convolution, and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = {"hm": 5, "wh": 2}
        self.stem = nn.Conv2d(3, 64, 3, stride=4, padding=1)
        self.block, self.dcn, self.last = nn.Conv2d(64, 64, 3, padding=1), DCN(64, 64), nn.Conv2d(64, 64, 3, padding=1)
        nn.init.normal_(self.dcn.conv_offset_mask.weight, std=0.02)
        for name, channels in self.heads.items():
            setattr(self, name, make_head(name, 64, channels, 64))

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        x = self.stem(x).relu()
        x = (x + self.block(x)).relu()
        return [run_heads(self, self.last(self.dcn(x).relu()).relu())]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Small().eval()


def make_opt(*more):
    opt = opts().parse(["ctdet", "--dataset", "sample", "--arch", "res_18", *more])
    return opt.replace(heads={"hm": 5, "wh": 2})


@pytest.fixture(scope="module")
def inputs():
    random = np.random.default_rng(0)
    return [random.standard_normal((1, 3, 64, 64)).astype(np.float32) for _ in range(4)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory, network):
    """A file in float32, with ``DeformConv``, and one of plain operators."""
    folder = tmp_path_factory.mktemp("exported")
    for name, more in (("model", []), ("plain", ["--plain_deform_conv"])):
        export(network, make_opt(*more), folder / f"{name}.onnx")
    return folder


def channels_in_int8(graph):
    """The numbers of output channels of convolutions whose weights are int8."""
    integers = {value.name: value.dims for value in graph.initializer if value.data_type == onnx.TensorProto.INT8}
    producers = {name: node for node in graph.node for name in node.output}
    weights = [producers[node.input[1]] for node in graph.node if node.op_type == "Conv" and node.input[1] in producers]
    assert {node.op_type for node in weights} == {"DequantizeLinear"}
    return sorted(integers[node.input[0]][0] for node in weights)


def test_nodes_by_hand():
    """Positions are traced back to the convolution that gives them, through an addition that needs a size."""
    nodes = [
        ("Conv", "stem", ["x"]),
        ("Shape", "size", ["stem"]),
        ("Conv", "offsets", ["stem"]),
        ("Add", "positions", ["offsets", "size"]),
        ("GridSample", "samples", ["stem", "positions"]),
        ("Conv", "product", ["samples"]),
        ("Conv", "head", ["product"]),
        ("Add", "boxes", ["head", "head"]),
    ]
    nodes = [onnx.helper.make_node(kind, inputs, [name], name=name) for kind, name, inputs in nodes]
    graph = onnx.helper.make_graph(nodes, "graph", [], [])
    assert quantizable(graph) == ["stem", "samples", "product"]
    inputs = ["stem", "weight", "offsets", "bias", "mask"]
    nodes[3:5] = [onnx.helper.make_node("DeformConv", inputs, ["samples"], name="deform")]
    nodes.insert(3, onnx.helper.make_node("Sigmoid", ["offsets"], ["mask"], name="mask"))
    assert quantizable(onnx.helper.make_graph(nodes, "graph", [], [])) == ["stem", "deform", "product"]


@pytest.mark.parametrize(("name", "of_plain"), [("model", []), ("plain", [64])])
def test_what_is_quantized(tmp_path, network, exported, inputs, name, of_plain):
    """All inner convolutions; not the last one of each head, nor the positions of deformable convolutions."""
    before = (exported / f"{name}.onnx").read_bytes()
    path = tmp_path / "int8.onnx"
    path.write_bytes(quantize(before, iter(inputs)))
    model = onnx.load(path)
    onnx.checker.check_model(model)
    # Stem, block, the weights of the deformable convolution, last, and the joined first convolutions of both heads.
    assert channels_in_int8(model.graph) == [64, 64, *of_plain, 64, 128]
    assert path.stat().st_size < 0.6 * len(before)
    earlier = onnx.load_from_string(before)
    assert list(model.metadata_props) == list(earlier.metadata_props)
    assert (model.producer_name, model.opset_import) == ("centernet", earlier.opset_import)
    check_outputs("onnx", path, network, inputs[0])


def check_outputs(kind, path, network, x):
    """Close to PyTorch's, but not equal, at other sizes too."""
    run, about = load(kind, path)
    assert about["outputs"] == ["hm", "wh"]
    for scale in (1, 2):
        x = torch.from_numpy(np.tile(x, (1, 1, 1, scale)))
        with torch.no_grad():
            expected = Exported(network, make_opt())(x)
        for value, other in zip(run(x), expected, strict=True):
            error = float((value - other).std() / other.std())
            assert 1e-4 < error < 0.1
        x = x.numpy()


@pytest.mark.skipif(not HAS_OPENVINO, reason="needs openvino")
def test_openvino(tmp_path, network, inputs):
    sizes = []
    for calibration in (None, iter(inputs)):
        export(network, make_opt(), tmp_path / "model.xml", "openvino", calibration)
        sizes.append((tmp_path / "model.bin").stat().st_size)
        assert ("FakeQuantize" in (tmp_path / "model.xml").read_text()) is (calibration is not None)
    assert sizes[1] < 0.6 * sizes[0]
    check_outputs("openvino", tmp_path / "model.xml", network, inputs[0])
