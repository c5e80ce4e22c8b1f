"""TensorRT engines of the ONNX files of this package; needs ``tensorrt`` 10 or later and the GPU that runs them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError

MAX_BATCH = 8
DEVICE = torch.device("cuda")


def has_gpu() -> bool:
    """Return whether there is a GPU that TensorRT supports."""
    return torch.cuda.is_available() and torch.version.cuda is not None


def build(content: bytes, height: int, width: int) -> bytes:
    """Return the serialized engine of an ONNX file, optimized for this GPU and one image per batch.

    Args:
        content: an ONNX file with the input ``input`` (B, 3, H, W), without deformable convolutions.
        height, width: the only size that the engine takes, in batches of up to ``MAX_BATCH`` images.

    Raises:
        UserError: TensorRT does not support the network.
    """
    import tensorrt

    builder = tensorrt.Builder(_logger())
    network = builder.create_network(0)
    parser = tensorrt.OnnxParser(network, _logger())
    if not parser.parse(content):
        reasons = "; ".join(str(parser.get_error(k).desc()) for k in range(parser.num_errors))
        raise UserError(f"TensorRT {tensorrt.__version__} cannot read the network: {reasons}")
    profile = builder.create_optimization_profile()
    profile.set_shape("input", *((count, 3, height, width) for count in (1, 1, MAX_BATCH)))
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise UserError(f"TensorRT {tensorrt.__version__} cannot build the engine; its messages above say why")
    return bytes(engine)


class Engine:
    """An engine that was read from a file.

    Attributes:
        title: versions of TensorRT and name of the GPU.
    """

    def __init__(self, content: bytes) -> None:
        """Load a serialized engine. Raises UserError if it was built for another GPU or version."""
        import tensorrt

        self.title = f"TensorRT {tensorrt.__version__} on {torch.cuda.get_device_name(DEVICE)}"
        self._runtime = tensorrt.Runtime(_logger())  # has to outlive the engine
        self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise UserError(f"{self.title}: cannot load the engine; its messages above say why")
        self._context = self._engine.create_execution_context()
        names = [self._engine.get_tensor_name(k) for k in range(self._engine.num_io_tensors)]
        self._outputs = [name for name in names if self._engine.get_tensor_mode(name) == tensorrt.TensorIOMode.OUTPUT]

    def __call__(self, x: np.ndarray) -> Sequence[Tensor]:
        """Map ``input`` (B, 3, H, W) float32 to the outputs in the order of the ONNX file, on the CPU.

        Raises:
            UserError: the engine was built for another size.
        """
        images = torch.from_numpy(x).to(DEVICE)
        if not self._context.set_input_shape("input", tuple(images.shape)):
            lowest, _, highest = self._engine.get_tensor_profile_shape("input", 0)
            raise UserError(
                f"input of shape {tuple(images.shape)}: the engine takes {tuple(lowest)} to {tuple(highest)}; "
                "do not use --keep_res or --test_scales with it"
            )
        self._context.set_tensor_address("input", images.data_ptr())
        outputs = []
        for name in self._outputs:
            shape = tuple(self._context.get_tensor_shape(name))
            outputs.append(torch.empty(shape, dtype=torch.float32, device=DEVICE))
            self._context.set_tensor_address(name, outputs[-1].data_ptr())
        stream = torch.cuda.current_stream(DEVICE)
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise UserError(f"{self.title}: the engine failed; its messages above say why")
        return [output.cpu() for output in outputs]


def _logger() -> Any:
    import tensorrt

    return tensorrt.Logger(tensorrt.Logger.WARNING)
