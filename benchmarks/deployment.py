"""Exported files in float32 and int8: latency of an image, AP on the validation split, size.

    python benchmarks/deployment.py exp/ctdet/lite/model_best.pth --threads 1 --repeats 50
    python benchmarks/deployment.py exp/ctdet/lite/model_best.pth --alternatives    # other ways of quantization

The float32 files must give PyTorch's scores. A row's drop means little where the score itself is low.
"""

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import check, make_parser, show, start, take_turns
from torch import nn

from centernet import deployment, quantization
from centernet.detector import Detector, load_network
from centernet.export import Exported, export, files_of
from centernet.models.fuse import fuse
from centernet.ops import openvino as openvino_ops
from centernet.options import Options
from centernet.opts import opts
from centernet.tasks import build_task

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml"}


def main() -> None:
    """Export, measure and score every checkpoint."""
    parser = make_parser(__doc__ or "")
    parser.add_argument("checkpoints", nargs="+", help="of ctdet")
    parser.add_argument("--alternatives", action="store_true", help="also int8 heads, and NNCF if it is installed")
    parser.add_argument("--data_path", default="", help="as in main.py")
    args = parser.parse_args()
    start(args)
    for checkpoint in args.checkpoints:
        options = ["ctdet", "--load_model", checkpoint, "--with_decode", "--threads", str(args.threads)]
        opt, model = load_network(opts().parse([*options, *(["--data_path", args.data_path] * bool(args.data_path))]))
        with tempfile.TemporaryDirectory() as folder:
            runtimes, sizes = export_all(model.eval(), opt, Path(folder), args.alternatives)
            compare_all(model, opt, runtimes, sizes, args.repeats)


def export_all(model: nn.Module, opt: Options, folder: Path, alternatives: bool) -> tuple[dict, dict]:
    """Return the opened files and their sizes in bytes, by name."""
    runtimes, sizes = {}, {}

    def add(name: str, kind: str, write: Callable[[Path], None]) -> None:
        path = folder / f"{name}{SUFFIXES[kind]}"
        write(path)
        runtimes[name] = deployment.Runtime(path, kind, ("dets",), opt.threads)
        sizes[name] = sum(file.stat().st_size for file in files_of(path, kind))

    inputs = list(deployment.calibration_inputs(model, opt, lambda _: None))
    for kind, title in (("onnx", "ONNX Runtime"), ("openvino", "OpenVINO")):
        for precision, calibration in (("float32", None), ("int8", inputs)):
            add(f"{title} {precision}", kind, lambda path, k=kind, c=calibration: export(model, opt, path, k, c))
    if alternatives:
        content = (folder / "ONNX Runtime float32.onnx").read_bytes()
        add("ONNX Runtime int8 heads", "onnx", lambda path: path.write_bytes(quantize_heads(content, inputs)))
        if importlib.util.find_spec("nncf") is None:
            print("nncf is not installed: it is left out")
        else:
            add("OpenVINO int8 NNCF", "openvino", lambda path: quantize_by_nncf(content, inputs, path))
    return runtimes, sizes


def quantize_heads(content: bytes, inputs: list[np.ndarray]) -> bytes:
    """Quantize also the last convolutions of the heads."""
    import onnx

    graph = onnx.load_from_string(content).graph
    inner = quantization.quantizable(graph)
    needed = {name for node in graph.node for name in node.input if node.op_type == "Conv"}
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
    last = [node.name for node in graph.node if node.op_type == "Conv" and not needed.intersection(node.output)]
    original = quantization.quantizable
    quantization.quantizable = lambda _: inner + last
    try:
        return quantization.quantize(content, inputs)
    finally:
        quantization.quantizable = original


def quantize_by_nncf(content: bytes, inputs: list[np.ndarray], path: Path) -> None:
    """Write an OpenVINO file that NNCF has quantized with its defaults for mixed activations."""
    import nncf

    dataset = nncf.Dataset(inputs, lambda x: {"input": x})
    preset = nncf.QuantizationPreset.MIXED
    model = nncf.quantize(openvino_ops.read_onnx(content), dataset, subset_size=len(inputs), preset=preset)
    openvino_ops.write(model, path, path.with_suffix(".bin"))


def compare_all(model: nn.Module, opt: Options, runtimes: dict, sizes: dict, repeats: int) -> None:
    """Print latency, size and scores of files, and what they detect in comparison with PyTorch."""
    images, dataset = deployment.find_images(opt, "val", "verify")
    assert dataset is not None
    cpu = torch.device("cpu")
    detector = Detector(build_task(opt), model, cpu)
    expected = deployment.detect(detector, images)
    scores = dataset.evaluate(expected)
    name = next(iter(scores))
    rows = [["PyTorch float32", "", f"{scores[name]:.4f}", "", ""]]
    for title, runtime in runtimes.items():
        found = deployment.detect(deployment.runtime_detector(runtime, opt), images)
        comparison = deployment.compare(expected, found, detector)
        score = dataset.evaluate(found)[name]
        matched = f"{comparison.matched} of {comparison.count}"
        if comparison.matched:
            matched += f", IoU {np.mean(comparison.ious):.3f}"
        rows.append([title, f"{sizes[title] / 2**20:.1f}", f"{score:.4f}", f"{scores[name] - score:+.4f}", matched])
    columns = list(zip(["MiB", name, "drop", "matched"], *(row[1:] for row in rows), strict=True))
    for line in deployment.table([opt.arch, *(column[0] for column in columns)], [row[0] for row in rows], columns):
        print(line)

    x = torch.randn(1, 3, opt.input_h, opt.input_w, generator=torch.Generator().manual_seed(0))
    reference = Exported(fuse(model, batch_heads=True), opt).eval()
    ways: dict[str, Callable] = {"PyTorch float32": lambda: reference(x)}
    ways |= {title: lambda call=runtime.call: call(x.numpy()) for title, runtime in runtimes.items()}
    with torch.inference_mode():
        for title, runtime in runtimes.items():
            if title.endswith("float32"):
                check(
                    f"scores of {title}", runtime.call(x.numpy())[0][..., 4], ways["PyTorch float32"]()[0][..., 4], 1e-3
                )
        show(f"{opt.arch}, one image of {opt.input_w} x {opt.input_h}", take_turns(ways, repeats, cpu))


if __name__ == "__main__":
    main()
