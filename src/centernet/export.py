"""A trained network as a file for other programs: ONNX, ``torch.export``'s archive, or TorchScript."""

import copy
import importlib.util
import json
import logging
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import __version__
from .detector import load_network
from .errors import UserError
from .models.deform_conv import DCN
from .models.fuse import fuse
from .ops import onnx as onnx_ops
from .tasks import get_task

# Endings of --output by --format; the first is the usual one.
ENDINGS = {"onnx": (".onnx",), "pt2": (".pt2",), "torchscript": (".ts", ".torchscript", ".pt")}
METADATA_FILE = "centernet.json"  # inside of .pt2 and TorchScript archives


def export_checkpoint(opt, log=print) -> Path:
    """Write the network of ``--load_model`` to ``--output``.

    Args:
        opt: finished options; what the checkpoint says completes them.
        log: what is called with lines for the user.

    Raises:
        UserError: no checkpoint, a file that cannot be written, a package that is missing, or options that do not go
            together.
    """
    if not opt.load_model:
        raise UserError("--load_model: needs the checkpoint of the network that is to be exported")
    path = Path(opt.output).expanduser()
    kind = file_format(opt)
    if not path.parent.is_dir():
        raise UserError(f"--output {path}: there is no folder {path.parent}")
    if kind != "onnx" and "opset" in opt.given:
        log(f"note: --opset has no effect on {kind}")
    opt, model = load_network(opt, log)
    try:
        export(model, opt, path, kind)
    except OSError as error:
        raise UserError(f"--output {path}: cannot be written ({error.strerror or error})") from error
    log(f"{path}: {path.stat().st_size / 2**20:.1f} MiB, {opt.arch} for {opt.task}")
    return path


def file_format(opt) -> str:
    """``onnx``, ``pt2`` or ``torchscript``, by ``--format`` or the ending of ``--output``."""
    if not opt.output:
        raise UserError("--output: needs the file to write, such as model.onnx")
    ending = Path(opt.output).suffix.lower()
    if opt.format:
        return opt.format
    for kind, endings in ENDINGS.items():
        if ending in endings:
            return kind
    known = ", ".join(ending for endings in ENDINGS.values() for ending in endings)
    raise UserError(f"--output {opt.output}: the ending says no format; use one of {known}, or add --format")


def export(model: nn.Module, opt, path: Path, kind: str = "onnx") -> None:
    """Write a network with its description.

    The file takes ``input`` (B, 3, H, W) float32: images in B, G, R order, divided by 255, less ``mean``, divided by
    ``std``; any B, and sides that are multiples of ``multiple_of``, at least two of them. It gives the raw maps of the
    heads of the last stack under their names, or with ``--with_decode`` ``dets`` (B, n, ``columns``) float32, best
    first, with lengths in output pixels (``down_ratio`` input pixels).

    .pt2 and TorchScript files need nothing but PyTorch to be loaded.

    Args:
        model: any network of ``create_model``; it stays as it is.
        opt: its finished options.
        kind: ``onnx``, ``pt2`` or ``torchscript``.

    Raises:
        UserError: a package is missing, or options do not go together.
    """
    if opt.with_decode and opt.aggr_weight > 0:
        raise UserError("--with_decode: --aggr_weight goes through maps cell by cell, which cannot be exported")
    plain = opt.plain_deform_conv or kind != "onnx"
    if not plain and opt.opset < onnx_ops.OPSET and any(isinstance(module, DCN) for module in model.modules()):
        raise UserError(
            f"--opset {opt.opset}: the operator DeformConv came with {onnx_ops.OPSET}; take that or --plain_deform_conv"
        )
    network = fuse(copy.deepcopy(model).cpu().float().to(memory_format=torch.contiguous_format), batch_heads=True)
    if plain:
        _replace_deform_conv(network)
    exported = Exported(network, opt).eval()
    step = opt.pad + 1
    count = max(2, 64 // step)  # enough cells for the default --K; sizes of 1 are no dynamic ones
    example = torch.randn(2, 3, count * step, 2 * count * step)
    about = metadata(opt, exported.names)
    with torch.no_grad():
        if kind == "torchscript":
            _write_torchscript(exported, example, about, path)
        else:
            height, width = torch.export.Dim("height", min=1), torch.export.Dim("width", min=1)
            shapes = ({0: torch.export.Dim("batch"), 2: step * height, 3: step * width},)
            if kind == "pt2":
                program = torch.export.export(exported, (example,), dynamic_shapes=shapes)
                torch.export.save(program, path, extra_files={METADATA_FILE: json.dumps(about)})
            else:
                _write_onnx(exported, example, shapes, about, opt.opset, path)


class Exported(nn.Module):
    """What is written: the network, with or without its decoding, giving a tuple of ``names``."""

    def __init__(self, network: nn.Module, opt) -> None:
        super().__init__()
        self.network, self.opt, self.task = network, opt, get_task(opt.task)
        self.names = ("dets",) if opt.with_decode else tuple(opt.heads)

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) to the maps (B, C, H / 4, W / 4) of the heads, or to detections (B, n, columns)."""
        output = self.network(input)[-1]
        if self.opt.with_decode:
            return (self.task.decode(output, self.opt),)
        return tuple(output[name] for name in self.names)


def metadata(opt, names: tuple[str, ...]) -> dict:
    """What a stranger has to know to run the file, by name; plain values only."""
    about = {
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
    if opt.with_decode:
        about["columns"] = get_task(opt.task).columns(opt)
    return about


class PlainDCN(nn.Module):
    """A deformable convolution of operators that every runtime has: nine bilinear samplings and a 1x1 convolution."""

    def __init__(self, dcn: DCN) -> None:
        super().__init__()
        self.conv_offset_mask, self.bias = dcn.conv_offset_mask, dcn.bias
        self.weight = nn.Parameter(dcn.weight.detach().flatten(1)[:, :, None, None], requires_grad=False)
        line = torch.arange(-1.0, 2.0)
        self.register_buffer("taps", torch.stack(torch.meshgrid(line, line, indexing="ij"), dim=2).view(1, 9, 2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C_out, H, W)."""
        height, width = x.shape[2:]
        maps = self.conv_offset_mask(x)
        place = maps[:, :18].unflatten(1, (9, 2)) + self.taps
        y = place[:, :, 0] + torch.arange(height, dtype=x.dtype, device=x.device)[:, None]
        x_ = place[:, :, 1] + torch.arange(width, dtype=x.dtype, device=x.device)
        # The nine samples of a cell lie above one another; -1 and 1 are the outer edges of the image.
        grid = torch.stack([(2 * x_ + 1) / width - 1, (2 * y + 1) / height - 1], dim=4).flatten(1, 2)
        samples = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        samples = samples.unflatten(2, (9, height)) * maps[:, None, 18:].sigmoid()
        return F.conv2d(samples.flatten(1, 2), self.weight, self.bias)


def _replace_deform_conv(model: nn.Module) -> None:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, DCN):
                setattr(module, name, PlainDCN(child))


def _write_torchscript(exported: nn.Module, example: Tensor, about: dict, path: Path) -> None:
    with warnings.catch_warnings():
        # TorchScript is on its way out but still what many C++ programs load; and sizes that tracing writes down as
        # numbers are those that do not change.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        traced = torch.jit.trace(exported, (example,), check_trace=False)
        torch.jit.save(traced, str(path), _extra_files={METADATA_FILE: json.dumps(about)})


def _write_onnx(exported: Exported, example: Tensor, shapes: tuple, about: dict, opset: int, path: Path) -> None:
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--output {path}: ONNX needs packages that are missing: pip install {' '.join(missing)}")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
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
    assert written is not None  # it would be, of another exporter
    model = written.model
    model.producer_name, model.producer_version = "centernet", __version__
    for node in model.graph.all_nodes():
        node.metadata_props.clear()  # which lines of which files it came from
    model.metadata_props.update({name: json.dumps(value) for name, value in about.items()})
    written.save(path)
