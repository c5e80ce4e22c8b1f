"""Exported files."""

import json

import torch

from centernet.export import METADATA_FILE


def load(kind, path):
    """Return a function that runs an exported file, (B, 3, H, W) to a list of tensors, and its metadata."""
    files = {METADATA_FILE: ""}
    if kind == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        about = {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}
        assert [value.name for value in session.get_outputs()] == about["outputs"]
        return lambda x: [torch.from_numpy(value) for value in session.run(None, {"input": x.numpy()})], about
    if kind == "openvino":
        import openvino

        model = openvino.Core().read_model(path)
        names = model.get_rt_info("framework").astype(dict)
        about = {name: json.loads(model.get_rt_info(["framework", name]).astype(str)) for name in names}
        assert [value.any_name for value in model.outputs] == about["outputs"]
        compiled = openvino.compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"})
        return lambda x: [torch.from_numpy(value.copy()) for value in compiled(x.numpy()).values()], about
    if kind == "pt2":
        module = torch.export.load(path, extra_files=files).module()
    else:
        module = torch.jit.load(path, _extra_files=files)
    return lambda x: list(module(x)), json.loads(files[METADATA_FILE])
