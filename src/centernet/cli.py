"""Start of the programs: the command line is parsed before PyTorch is imported, which takes seconds.

Also the commands of an installed package: ``centernet-train`` is ``src/main.py``, and so on.
"""

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from .options import OptionParser, Options

HERE = Path(__file__).resolve().parent
# In a wheel the scripts are in the package; in a checkout, and after pip install -e, they are in src/.
FOLDER = HERE / "scripts" if (HERE / "scripts" / "main.py").is_file() else HERE.parent


def train() -> None:
    """Run ``centernet-train``, src/main.py."""
    run("main")


def test() -> None:
    """Run ``centernet-test``, src/test.py."""
    run("test")


def demo() -> None:
    """Run ``centernet-demo``, src/demo.py."""
    run("demo")


def export() -> None:
    """Run ``centernet-export``, src/export.py."""
    run("export")


def run(script: str) -> None:
    """Parse the command line and run ``main(opt)`` of a script. Raises SystemExit at the end."""
    opt = options_of(script)
    run_main(load(script).main, opt)
    raise SystemExit(0)


def run_main(main: Callable[[Options], None], opt: Options) -> None:
    """Run ``main(opt)`` and end with one line and a status where it fails (``engine.processes.run_script``)."""
    from .engine.processes import run_script

    run_script(main, opt)


def options_of(script: str) -> Options:
    """Return the options of the command line, and print notes about those that have no effect.

    With ``--dry_run`` the configuration is printed and the process ends.
    """
    parser = OptionParser(f"{script}.py")
    opt = parser.parse()
    if os.environ.get("RANK", "0") == "0":
        print("".join(f"{note}\n" for note in parser.notes(opt)), end="", flush=True)
        if opt.dry_run:
            print("\n".join(f"{name}: {value}" for name, value in sorted(vars(opt).items())))
    if opt.dry_run:
        raise SystemExit(0)
    return opt


def load(script: str) -> ModuleType:
    """Import a script by its path."""
    specification = importlib.util.spec_from_file_location(f"centernet_{script}", FOLDER / f"{script}.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[module.__name__] = module
    specification.loader.exec_module(module)
    return module
