"""Export a trained network to ONNX, OpenVINO, TensorRT, an archive of ``torch.export`` or TorchScript for other
programs, or its weights to a safetensors file."""

import copy
import importlib.util
import io
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .deployment import calibration_inputs, check_exported, require
from .detector import load_network
from .errors import UserError
from .models.deform_conv import DCN
from .models.fuse import fuse
from .models.weights import check_safetensors, write_safetensors
from .ops import onnx as onnx_ops
from .ops import openvino as openvino_ops
from .ops import tensorrt as tensorrt_ops
from .options import Options, model_metadata
from .quantization import quantize
from .tasks import build_task, get_spec
from .utils.files import atomic_path, write_bytes
from .version import __version__

# Suffixes of --output by --format; the first is the usual one.
SUFFIXES = {
    "onnx": (".onnx",),
    "openvino": (".xml",),
    "tensorrt": (".engine", ".plan"),
    "pt2": (".pt2",),
    "torchscript": (".ts", ".torchscript", ".pt"),
    "safetensors": (".safetensors",),
}
METADATA_FILE = "centernet.json"  # inside of .pt2 and TorchScript archives


def export_checkpoint(opt: Options, log=print) -> Path:
    """Write the network of ``--load_model`` to ``--output``. An earlier file is replaced only by a complete one.

    Args:
        opt: finished options, completed by the model metadata of the checkpoint.
        log: called with lines for the user.

    Returns:
        The path of the file.

    Raises:
        UserError: no checkpoint, a file that cannot be written, a missing package, or options that contradict each
            other.
    """
    if not opt.load_model:
        raise UserError("--load_model: needs the checkpoint of the network that is to be exported")
    path = Path(opt.output).expanduser()
    kind = file_format(opt)
    if not path.parent.is_dir():
        raise UserError(f"--output {path}: the folder {path.parent} does not exist")
    for file in files_of(path, kind):
        if file.exists() and os.path.exists(opt.load_model) and os.path.samefile(file, opt.load_model):
            raise UserError(f"--output {path}: {file} is the checkpoint of --load_model; choose another name")
    if opt.int8:
        check_int8(path, kind)
    unused = [] if kind == "onnx" else ["opset"]
    if kind in ("openvino", "tensorrt"):
        unused += ["plain_deform_conv"]
    if kind == "openvino":
        check_openvino(path)
    if kind == "tensorrt":
        check_tensorrt(path)
    if kind == "safetensors":
        unused += ["with_decode", "plain_deform_conv", "verify", "benchmark"]
        check_safetensors(path)
    for name in unused:
        if name in opt.given:
            log(f"note: --{name} has no effect on {kind}")
    for note in notes_of(opt, kind):
        log(note)
    opt, model = load_network(opt, log)
    if kind == "safetensors":
        write_safetensors(path, model.state_dict(), model_metadata(opt, opt.picture_info))
    elif opt.int8 or opt.verify or opt.benchmark:
        export_checked(model, opt, path, kind, log)
    else:
        export(model, opt, path, kind)
    size = sum(file.stat().st_size for file in files_of(path, kind))
    log(f"{path}: {size / 2**20:.1f} MiB, {opt.arch} for {opt.task}")
    return path


def export_checked(model: nn.Module, opt: Options, path: Path, kind: str, log=print) -> None:
    """Write a network as ``export`` does, but replace an earlier file only after ``--verify`` and ``--benchmark``.

    ``--int8`` quantizes it, and implies ``--verify val``.

    Raises:
        UserError: what ``export`` and functions of ``deployment`` raise; ``path`` is unchanged.
    """
    model = model.eval()
    if opt.int8 and not opt.verify:
        opt = opt.replace(verify="val")
    inputs = calibration_inputs(model, opt, log) if opt.int8 else None
    reference = Exported(fuse(copy.deepcopy(model), batch_heads=True), opt).eval()
    with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as folder:
        draft = Path(folder) / path.name
        export(model, opt, draft, kind, inputs)
        check_exported(draft, kind, reference, model, opt, log)
        for file in files_of(draft, kind):
            os.replace(file, path.with_name(file.name))


def notes_of(opt: Options, kind: str) -> list[str]:
    """Return a line for each given option that has no effect without others, which were not given."""
    checks = opt.int8 or opt.verify or opt.benchmark
    needs = {
        "calibration": ("--int8", opt.int8),
        "calibration_images": ("--int8", opt.int8),
        "max_ap_drop": ("--verify or --int8", opt.verify or opt.int8),
        "threads": ("--verify, --benchmark or --int8", checks),
        "K": ("--with_decode, --verify or --int8", opt.with_decode or opt.verify or opt.int8),
    }
    if kind == "safetensors":
        return [f"note: --{name} has no effect on {kind}" for name in needs if name in opt.given]
    return [
        f"note: --{name} has no effect without {what}"
        for name, (what, there) in needs.items()
        if name in opt.given and not there
    ]


def files_of(path: Path, kind: str) -> list[Path]:
    """Return the files of an exported network: ``path``, preceded by weights or metadata that are a separate file."""
    more = {"openvino": [path.with_suffix(".bin")], "tensorrt": [metadata_file(path)]}
    return [*more.get(kind, []), path]


def metadata_file(path: Path) -> Path:
    """Return the JSON file that has the metadata of a TensorRT engine, which itself has no place for them."""
    return path.with_name(path.name + ".json")


def check_int8(path: Path, kind: str) -> None:
    """Raise UserError if a file cannot be written in int8: its format, or a missing package."""
    if kind not in ("onnx", "openvino"):
        raise UserError(f"--int8: not in {kind} files; use --output with the suffix .onnx or .xml")
    for name in ("onnx", "onnxruntime"):
        require(name, f"--int8 of {path}")


def check_openvino(path: Path) -> None:
    """Raise UserError if ``path`` cannot be written by OpenVINO: no package, or a suffix that it cannot read."""
    if path.suffix.lower() != ".xml":
        raise UserError(f"--output {path}: OpenVINO reads .xml files only; use that suffix")
    require("openvino", f"--output {path}")


def check_tensorrt(path: Path) -> None:
    """Raise UserError if no engine can be built: a missing package, an old version, or no GPU."""
    tensorrt = require("tensorrt", f"--output {path}")
    if int(tensorrt.__version__.partition(".")[0]) < 10:
        raise UserError(f"--output {path}: needs TensorRT 10 or later; {tensorrt.__version__} is installed")
    if not tensorrt_ops.has_gpu():
        raise UserError(
            f"--output {path}: TensorRT builds engines on the NVIDIA GPU that runs them; PyTorch finds none"
        )


def file_format(opt: Options) -> str:
    """Return the key of ``SUFFIXES`` that ``--format`` or the suffix of ``--output`` determines.

    Raises:
        UserError: neither does, or they contradict each other.
    """
    if not opt.output:
        raise UserError("--output: needs the file to write, such as model.onnx")
    suffix = Path(opt.output).suffix.lower()
    kind = next((kind for kind, suffixes in SUFFIXES.items() if suffix in suffixes), "")
    if opt.format and kind not in ("", opt.format):
        raise UserError(f"--format {opt.format}: the suffix of --output {opt.output} is that of {kind}; change one")
    if opt.format or kind:
        return opt.format or kind
    known = ", ".join(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
    raise UserError(f"--output {opt.output}: the format does not follow from the suffix; use {known}, or add --format")


def export(
    model: nn.Module, opt, path: Path, kind: str = "onnx", calibration: Iterable[np.ndarray] | None = None
) -> None:
    """Write a network with its metadata.

    The file takes ``input`` (B, 3, H, W) float32: images in BGR order, divided by 255, less ``mean``, divided by
    ``std``; any B, and sides that are multiples of ``multiple_of``, at least two of them. It gives the raw maps of the
    heads of the last stack under their names, or with ``--with_decode`` ``dets`` (B, n, ``columns``) float32, best
    first, with lengths in output pixels (``down_ratio`` input pixels).

    Loading .pt2 and TorchScript files needs nothing but PyTorch. OpenVINO's weights are in a second file, ``path`` with
    the suffix .bin. A TensorRT engine takes the input size of the options only, and has its metadata in a second file,
    ``metadata_file(path)``.

    Args:
        model: any network of ``create_model``; it is not changed.
        opt: its finished options.
        path: the file.
        kind: ``onnx``, ``openvino``, ``tensorrt``, ``pt2`` or ``torchscript``.
        calibration: for an ONNX or OpenVINO file in int8, inputs (B, 3, H, W) float32 that give the ranges.

    Raises:
        UserError: a missing package, options that contradict each other, or a file that cannot be written.
    """
    if opt.with_decode and opt.aggr_weight > 0:
        raise UserError("--with_decode: --aggr_weight visits maps cell by cell, which cannot be exported")
    plain = opt.plain_deform_conv if kind == "onnx" else kind != "openvino"
    opset = opt.opset if kind == "onnx" else onnx_ops.OPSET
    if not plain and opset < onnx_ops.OPSET and any(isinstance(module, DCN) for module in model.modules()):
        raise UserError(
            f"--opset {opset}: the operator DeformConv needs {onnx_ops.OPSET}; use that or --plain_deform_conv"
        )
    network = fuse(copy.deepcopy(model).cpu().float().to(memory_format=torch.contiguous_format), batch_heads=True)
    if plain:
        _replace_deform_conv(network)
    exported = Exported(network, opt).eval()
    step = opt.pad + 1
    count = max(2, 64 // step)  # enough cells for the default --K; a size of 1 cannot be dynamic
    example = torch.randn(2, 3, count * step, 2 * count * step)
    texts = metadata(opt, exported.names)
    with torch.no_grad():
        if kind == "torchscript":
            content = _torchscript(exported, example, texts)
        else:
            height, width = torch.export.Dim("height", min=1), torch.export.Dim("width", min=1)
            shapes = ({0: torch.export.Dim("batch"), 2: step * height, 3: step * width},)
            if kind == "pt2":
                program = torch.export.export(exported, (example,), dynamic_shapes=shapes)
                buffer = io.BytesIO()
                torch.export.save(program, buffer, extra_files={METADATA_FILE: json.dumps(texts)})
                content = buffer.getvalue()
            else:
                content = _onnx(exported, example, shapes, texts, opset, path)
                if calibration is not None:
                    content = quantize(content, calibration)
    if kind == "openvino":
        model = openvino_ops.read_onnx(content)
        with atomic_path(path) as xml, atomic_path(path.with_suffix(".bin")) as weights:
            openvino_ops.write(model, xml, weights)
    elif kind == "tensorrt":
        engine = tensorrt_ops.build(content, opt.input_h, opt.input_w)
        write_bytes(metadata_file(path), json.dumps(texts).encode())
        write_bytes(path, engine)
    else:
        write_bytes(path, content)  # from memory: PyTorch's own writers abort the process on a full disk


class Exported(nn.Module):
    """The exported module: the network, with or without decoding, which returns a tuple of ``names``."""

    def __init__(self, network: nn.Module, opt: Options) -> None:
        super().__init__()
        self.network, self.opt, self.task = network, opt, build_task(opt)
        self.names = ("dets",) if opt.with_decode else tuple(opt.heads)

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        """Map (B, 3, H, W) to the maps (B, C, H / 4, W / 4) of the heads, or to detections (B, n, columns)."""
        output = self.network(input)[-1]
        if self.opt.with_decode:
            return (self.task.decode(output),)
        return tuple(output[name] for name in self.names)


def metadata(opt: Options, names: tuple[str, ...]) -> dict:
    """Return the metadata needed to run the exported model, as plain values by name."""
    values = {
        "task": opt.task,
        "arch": opt.arch,
        "dataset": opt.dataset,
        "class_names": list(opt.class_names),
        "mean": opt.mean.reshape(-1).tolist(),
        "std": opt.std.reshape(-1).tolist(),
        "color_order": "BGR",
        "input_height": opt.input_h,
        "input_width": opt.input_w,
        "multiple_of": opt.pad + 1,
        "down_ratio": opt.down_ratio,
        "outputs": list(names),
        "heads": opt.heads,
        "made_by": f"centernet {__version__}, torch {torch.__version__}",
    }
    if get_spec(opt.task).has_keypoints:
        values["keypoints"] = opt.keypoints.as_dict()
    if opt.with_decode:
        values["columns"] = build_task(opt).columns
    return values


class PlainDCN(nn.Module):
    """A deformable convolution of common operators: nine bilinear samplings and a 1x1 convolution."""

    def __init__(self, dcn: DCN) -> None:
        super().__init__()
        self.conv_offset_mask, self.bias = dcn.conv_offset_mask, dcn.bias
        self.weight = nn.Parameter(dcn.weight.detach().flatten(1)[:, :, None, None], requires_grad=False)
        line = torch.arange(-1.0, 2.0)
        self.register_buffer("taps", torch.stack(torch.meshgrid(line, line, indexing="ij"), dim=2).view(1, 9, 2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C_out, H, W)."""
        height, width = x.shape[2:]
        maps = self.conv_offset_mask(x)
        place = maps[:, :18].unflatten(1, (9, 2)) + self.taps
        y = place[:, :, 0] + torch.arange(height, dtype=x.dtype, device=x.device)[:, None]
        x_ = place[:, :, 1] + torch.arange(width, dtype=x.dtype, device=x.device)
        # The nine samples of a cell are stacked along the height; -1 and 1 are the outer edges of the image.
        grid = torch.stack([(2 * x_ + 1) / width - 1, (2 * y + 1) / height - 1], dim=4).flatten(1, 2)
        samples = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        samples = samples.unflatten(2, (9, height)) * maps[:, None, 18:].sigmoid()
        return F.conv2d(samples.flatten(1, 2), self.weight, self.bias)


def _replace_deform_conv(model: nn.Module) -> None:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, DCN):
                setattr(module, name, PlainDCN(child))


def _torchscript(exported: nn.Module, example: Tensor, texts: dict) -> bytes:
    with warnings.catch_warnings():
        # TorchScript is deprecated, but many C++ programs load it; and sizes that tracing records as constants do not
        # change.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        traced = torch.jit.trace(exported, (example,), check_trace=False)
        return traced.save_to_buffer(_extra_files={METADATA_FILE: json.dumps(texts)})


def _onnx(exported: Exported, example: Tensor, shapes: tuple, texts: dict, opset: int, path: Path) -> bytes:
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--output {path}: needs packages that are missing: pip install {' '.join(missing)}")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    logging.getLogger("onnxscript.version_converter").setLevel(logging.CRITICAL)  # the result is checked below
    written = torch.onnx.export(
        exported,
        (example,),
        input_names=["input"],
        output_names=list(exported.names),
        dynamic_shapes=shapes,
        opset_version=opset,
        dynamo=True,
        custom_translation_table=onnx_ops.translations(),
        verbose=False,
    )
    assert written is not None  # as it would be with the older exporter
    model = written.model
    if model.opset_imports[""] != opset:
        raise UserError(f"--opset {opset}: the installed onnx and onnxscript cannot write it; use {onnx_ops.OPSET}")
    model.producer_name, model.producer_version = "centernet", __version__
    for node in model.graph.all_nodes():
        node.metadata_props.clear()  # its place in the source code
    model.metadata_props.update({name: json.dumps(value) for name, value in texts.items()})
    from onnx.helper import find_min_ir_version_for

    proto = written.model_proto
    proto.ir_version = find_min_ir_version_for(proto.opset_import)  # older programs refuse the exporter's newer one
    return proto.SerializeToString()
