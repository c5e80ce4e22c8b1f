"""Level "settings": the device, the software, and everything that changes how it computes."""

import os
import platform
import time
from importlib import metadata
from typing import Any

import torch
import torchvision

from ..engine.precision import DTYPES, SWITCHES, missing_support, precision_switches
from ..engine.run_directory import device_name
from ..options import Options
from .results import Finding, Level

# Environment variables by the beginnings of their names.
VARIABLES = (
    *("CUDA_", "CUBLAS_", "CUDNN_", "NVIDIA_TF32", "NCCL_", "TORCH_", "PYTORCH_", "OMP_", "MKL_", "ONEDNN_", "DNNL_"),
    *("ASCEND_", "HCCL_", "ACL_", "MLU_", "CNCL_", "MUSA_", "MCCL_", "SDAA_", "TCCL_", "XPU_", "ZE_", "HABANA_"),
    *("PT_HPU", "NEURON_", "XLA_", "ROCR_", "HIP_", "MIOPEN_", "SIM_", "CENTERNET_"),
)


def check_settings(device: torch.device, opt: Options) -> Level:
    """Report what the results of the other levels depend on. Reduced precision that is switched on is a deviation."""
    started = time.perf_counter()
    level = Level("settings", "device, versions and switches", ["setting", "value"])
    facts: dict[str, Any] = {
        "device": device_name(device),
        "devices": torch.accelerator.device_count() if device.type != "cpu" else 1,
        "host": f"{platform.system()} {platform.release()}, {platform.machine()}, {os.cpu_count()} cores",
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
        "torchvision": torchvision.__version__,
        **_backend_packages(device),
        "--precision": opt.precision,
        "--amp": opt.amp,
        "autocast types": ", ".join(_autocast_types(device)) or "none",
        "collective library": _collectives(device),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
        "cudnn.deterministic": torch.backends.cudnn.deterministic,
        "threads": torch.get_num_threads(),
        **precision_switches(device),
        **{name: value for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)},
    }
    level.rows = [[name, "not available" if value is None else str(value)] for name, value in facts.items()]
    if device.type not in SWITCHES:
        level.notes.append(f"the precision switches of {device.type} are not known; level probe measures the precision")
    for switch in SWITCHES.get(device.type, ()):
        value = switch.read()
        if opt.precision == "fp32" and value is not None and value == switch.tf32 and value != switch.fp32:
            name = switch.name.lstrip("$")
            text = f"{name} is {value}: {switch.effect}"
            level.findings.append(Finding(name, "", "", text, f"set it to {switch.fp32}"))
    level.seconds = time.perf_counter() - started
    return level


def _backend_packages(device: torch.device) -> dict[str, str]:
    """Return the driver or package of a backend, and its version."""
    if device.type == "cuda":
        facts = {"CUDA": str(torch.version.cuda), "cuDNN": str(torch.backends.cudnn.version())}
        capability = torch.cuda.get_device_capability(device)
        return {**facts, "compute capability": ".".join(map(str, capability))}
    packages = {}
    for entry in metadata.entry_points(group="torch.backends"):
        if entry.dist is not None:
            packages[f"package {entry.dist.name}"] = entry.dist.version
    return packages


def _autocast_types(device: torch.device) -> list[str]:
    if not torch.amp.is_autocast_available(device.type):
        return []
    return [name for name, dtype in DTYPES.items() if dtype is not None and missing_support(name, device) is None]


def _collectives(device: torch.device) -> str:
    if not torch.distributed.is_available():
        return "none"
    return str(torch.distributed.get_default_backend_for_device(device.type))
