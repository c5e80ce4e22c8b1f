"""TensorRT engines, with a simulated TensorRT: ONNX Runtime computes, on the CPU, under the rules of the interface.

Where a GPU and TensorRT are, the last test uses them.
"""

import ctypes
import importlib.util
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.test_export_verify import checkpoint, folder, run  # noqa: F401

from centernet.errors import UserError
from centernet.ops import tensorrt as ours

needs_onnx = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs onnx, onnxscript and onnxruntime",
)


class Network:
    content = b""


class Profile:
    def set_shape(self, name, lowest, best, highest):
        assert name == "input" and all(a <= b <= c for a, b, c in zip(lowest, best, highest, strict=True))
        self.shapes = tuple(lowest), tuple(best), tuple(highest)


class Config:
    profile = None

    def add_optimization_profile(self, profile):
        self.profile = profile
        return 0


class Builder:
    def __init__(self, logger):
        assert isinstance(logger, Logger)

    create_optimization_profile, create_builder_config = (lambda self: Profile()), (lambda self: Config())

    def create_network(self, flags):
        assert flags == 0  # TensorRT 11 has no flag for the batch dimension any more
        return Network()

    def build_serialized_network(self, network, config):
        # An input with dynamic sizes needs a profile.
        return memoryview(json.dumps(config.profile.shapes).encode() + b"\n" + network.content)


class Logger:
    WARNING = 2

    def __init__(self, level):
        assert level == Logger.WARNING


class OnnxParser:
    num_errors = 0

    def __init__(self, network, logger):
        self.network = network

    def parse(self, content):
        import onnx

        operators = {node.op_type for node in onnx.load_from_string(content).graph.node}
        self.network.content = content
        return "DeformConv" not in operators

    def get_error(self, k):
        return SimpleNamespace(desc=lambda: f"error {k}")


class Runtime:
    def __init__(self, logger):
        assert isinstance(logger, Logger)

    def deserialize_cuda_engine(self, content):
        return None if content.startswith(b"other device") else SimulatedEngine(content)


class SimulatedEngine:
    def __init__(self, content):
        import onnxruntime

        shapes, _, network = content.partition(b"\n")
        self.shapes = [tuple(shape) for shape in json.loads(shapes)]
        self.session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
        self.names = ["input", *(output.name for output in self.session.get_outputs())]
        self.num_io_tensors = len(self.names)

    def get_tensor_name(self, k):
        return self.names[k]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name == "input" else TensorIOMode.OUTPUT

    def get_tensor_profile_shape(self, name, profile):
        assert (name, profile) == ("input", 0)
        return self.shapes

    def create_execution_context(self):
        return Context(self)


class Context:
    """Computes at ``set_input_shape`` for the shapes, and at ``execute_async_v3`` from and to the addresses."""

    def __init__(self, engine):
        self.engine, self.shape, self.addresses = engine, None, {}

    def set_input_shape(self, name, shape):
        lowest, _, highest = self.engine.shapes
        if not all(a <= b <= c for a, b, c in zip(lowest, shape, highest, strict=True)):
            return False
        self.shape = shape
        return True

    def compute(self, x):
        return dict(zip(self.engine.names[1:], self.engine.session.run(None, {"input": x}), strict=True))

    def get_tensor_shape(self, name):
        return self.compute(np.zeros(self.shape, np.float32))[name].shape

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        if stream != 7 or set(self.addresses) != set(self.engine.names):
            return False
        x = np.zeros(self.shape, np.float32)
        ctypes.memmove(x.ctypes.data, self.addresses["input"], x.nbytes)
        for name, value in self.compute(x).items():
            assert value.dtype == np.float32
            value = np.ascontiguousarray(value)
            ctypes.memmove(self.addresses[name], value.ctypes.data, value.nbytes)
        return True


class TensorIOMode:
    INPUT, OUTPUT = 1, 2


@pytest.fixture
def simulated(monkeypatch):
    """TensorRT 11 and a GPU."""
    parts = (Builder, Logger, OnnxParser, Runtime, TensorIOMode)
    module = SimpleNamespace(__version__="11.4.0", **{part.__name__: part for part in parts})
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(ours, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(ours, "has_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA GPU")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=7))
    return module


@needs_onnx
@pytest.mark.parametrize("decode", [[], ["--with_decode"]])
def test_an_engine_is_verified_and_measured(simulated, tmp_path, checkpoint, folder, decode):  # noqa: F811
    path = tmp_path / "model.engine"
    lines = run(checkpoint, path, "--verify", str(folder), "--benchmark", "--threads", "1", "--opset", "19", *decode)
    assert "note: --opset has no effect on tensorrt" in lines
    (line,) = [line for line in lines if line.startswith("matched ")]
    matched, count = int(line.split()[1]), int(line.split()[3].rstrip(";"))
    assert count > 10 and matched == count and "IoU mean 1.0000" in line
    assert any(line.startswith("  TensorRT 11.4.0 on NVIDIA GPU: median ") for line in lines)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.engine", "model.engine.json"]
    about = json.loads((tmp_path / "model.engine.json").read_text())
    assert about["task"] == "ctdet" and (about["input_height"], about["input_width"]) == (64, 64)
    assert about["outputs"] == (["dets"] if decode else ["hm", "wh", "reg"])
    engine = ours.Engine(path.read_bytes())
    x = np.random.default_rng(0).standard_normal((3, 3, 64, 64), dtype=np.float32)
    assert [len(output) for output in engine(x)] == [3] * len(about["outputs"])
    with pytest.raises(UserError, match=r"\(9, 3, 64, 64\): the engine takes \(1, 3, 64, 64\) to \(8, 3, 64, 64\)"):
        engine(np.zeros((9, 3, 64, 64), np.float32))


@needs_onnx
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tensorrt": None}, "model.plan: needs a package that is missing: pip install tensorrt"),
        ({"__version__": "8.6.1"}, "model.plan: needs TensorRT 10 or later; 8.6.1 is installed"),
        ({"gpu": False}, "model.plan: TensorRT builds engines on the NVIDIA GPU that runs them; PyTorch finds none"),
        ({"OnnxParser": "unreadable"}, "cannot read the network: error 0; error 1"),
        ({"build": None}, "TensorRT 11.4.0 cannot build the engine"),
    ],
)
def test_what_prevents_an_engine_is_said(simulated, tmp_path, checkpoint, monkeypatch, change, message):  # noqa: F811
    ((what, value),) = change.items()
    if what == "tensorrt":
        monkeypatch.setitem(sys.modules, "tensorrt", None)
    elif what == "gpu":
        monkeypatch.setattr(ours, "has_gpu", lambda: False)
    elif what == "build":
        monkeypatch.setattr(Builder, "build_serialized_network", lambda *_: None)
    elif what == "OnnxParser":
        parse = OnnxParser.parse
        monkeypatch.setattr(OnnxParser, "num_errors", 2)
        monkeypatch.setattr(OnnxParser, "parse", lambda self, content: parse(self, content) and False)
    else:
        monkeypatch.setattr(simulated, what, value)
    with pytest.raises(UserError, match=message):
        run(checkpoint, tmp_path / "model.plan")
    assert not list(tmp_path.iterdir())


def test_int8_is_refused(tmp_path, checkpoint):  # noqa: F811
    with pytest.raises(UserError, match="--int8: not in tensorrt files"):
        run(checkpoint, tmp_path / "model.engine", "--int8")


@pytest.mark.accelerator
def test_a_real_engine(tmp_path, checkpoint, folder):  # noqa: F811
    pytest.importorskip("tensorrt")
    if not ours.has_gpu():
        pytest.skip("needs an NVIDIA GPU")
    lines = run(checkpoint, tmp_path / "model.engine", "--verify", str(folder), "--benchmark", "--with_decode")
    assert any("TensorRT" in line and " median " in line for line in lines)
