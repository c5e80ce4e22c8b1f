"""Register the simulated accelerator ``sim`` with PyTorch, as a vendor's package does with its device.

``import torch`` loads it where this folder's parent is on ``PYTHONPATH`` (entry point ``torch.backends``). The first
time it is compiled, which takes about a minute and needs a C++ compiler and ninja.

Environment variables:
    SIM_DEVICES: number of devices, default 1.
    SIM_FAULTS: comma-separated names of ``faults.FAULTS`` to switch on.
    SIM_AUTOCAST: 0: the device has no mixed precision; bf16 or fp16: only this type.
    SIM_COLLECTIVES: 0: the device has no collective library.
    SIM_ROUNDING: 1: sums are taken in another order than the CPU's, as on a sound device of another make.
    SIM_BUILD_DIR: folder of the compiled library.
"""

import hashlib
import importlib.util
import os
import platform
import tempfile
import types
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("accelerator.cpp")
NAME = "sim"


def library_path() -> Path:
    """Return the path of the compiled library: one for each content of the source, PyTorch and Python."""
    about = f"{torch.__version__} {platform.python_version()} {platform.machine()}"
    key = hashlib.sha256(SOURCE.read_bytes() + about.encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "centernet_tests"
    return Path(os.environ.get("SIM_BUILD_DIR", cache)) / f"simulated_accelerator_{key}.so"


def build() -> Path:
    """Compile the library unless it exists; its path. Two processes that build at once do not disturb each other."""
    path = library_path()
    if not path.is_file():
        from torch.utils.cpp_extension import load

        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            options = {"extra_cflags": ["-O1", "-std=c++20"], "build_directory": folder, "is_python_module": False}
            load("simulated_accelerator_library", [str(SOURCE)], is_standalone=False, **options)
            os.replace(Path(folder) / "simulated_accelerator_library.so", path)
    return path


def _load_library() -> types.ModuleType:
    loader = importlib.machinery.ExtensionFileLoader("simulated_accelerator_library", str(build()))
    specification = importlib.util.spec_from_file_location("simulated_accelerator_library", loader=loader)
    module = importlib.util.module_from_spec(specification)
    loader.exec_module(module)
    return module


def register() -> None:
    """Make ``sim`` known to PyTorch: device, module ``torch.sim``, collective library, and the faults asked for."""
    global library
    library = _load_library()
    torch.utils.rename_privateuse1_backend(NAME)
    library.register_hooks()
    torch._register_device_module(NAME, _device_module())
    torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
    if os.environ.get("SIM_AUTOCAST") != "0":
        library.register_autocast()
    if torch.distributed.is_available() and os.environ.get("SIM_COLLECTIVES") != "0":
        torch.distributed.Backend.register_backend("simccl", _make_backend, devices=[NAME])

    from . import faults

    library.on_synchronize(faults.arrive)
    if os.environ.get("SIM_ROUNDING") == "1":
        faults.switch_on("other_order", variants=True)
    for fault in filter(None, os.environ.get("SIM_FAULTS", "").split(",")):
        faults.switch_on(fault)


def _device_module() -> types.ModuleType:
    """``torch.sim``: what PyTorch and programs expect of the module of a device."""
    module = types.ModuleType(f"torch.{NAME}")
    module.is_available = lambda: library.device_count() > 0
    module.is_initialized = lambda: True
    module._is_in_bad_fork = lambda: False
    module._lazy_init = lambda: None
    module.device_count = library.device_count
    module.current_device = lambda: torch.accelerator.current_device_index()
    module.set_device = lambda device: torch.accelerator.set_device_index(device)
    module.get_device_name = lambda device=None: "simulated accelerator"
    module.synchronize = lambda device=None: torch.accelerator.synchronize()
    module.manual_seed = lambda seed: _generator(None).manual_seed(seed)
    module.manual_seed_all = lambda seed: (
        [_generator(index).manual_seed(seed) for index in range(library.device_count())] and None
    )
    module.get_rng_state = lambda device=None: _generator(device).get_state()
    module.set_rng_state = lambda state, device=None: _generator(device).set_state(state)
    if os.environ.get("SIM_AUTOCAST") != "0":
        module.get_amp_supported_dtype = _amp_types
    return module


def _amp_types() -> list[torch.dtype]:
    types = {"bf16": torch.bfloat16, "fp16": torch.float16}
    only = os.environ.get("SIM_AUTOCAST")
    return [types[only]] if only in types else list(types.values())


def _generator(device) -> torch.Generator:
    index = torch.device(device).index if isinstance(device, (str, torch.device)) else device
    return library.default_generator(torch.accelerator.current_device_index() if index is None else index)


def _make_backend(store, rank: int, size: int, timeout):
    gloo = torch.distributed.ProcessGroupGloo(store, rank, size, timeout)
    return library.make_backend(gloo, "all_reduce_drops_last" in os.environ.get("SIM_FAULTS", "").split(","))
