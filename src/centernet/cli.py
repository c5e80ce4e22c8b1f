"""The commands of an installed package: ``centernet-train`` is ``src/main.py``, and so on."""

import runpy
from pathlib import Path

HERE = Path(__file__).resolve().parent
# In a wheel the scripts are in the package; in a checkout, and after pip install -e, they are where they belong.
FOLDER = HERE / "scripts" if (HERE / "scripts" / "main.py").is_file() else HERE.parent


def train() -> None:
    """``centernet-train``: src/main.py."""
    _run("main")


def test() -> None:
    """``centernet-test``: src/test.py."""
    _run("test")


def demo() -> None:
    """``centernet-demo``: src/demo.py."""
    _run("demo")


def export() -> None:
    """``centernet-export``: src/export.py."""
    _run("export")


def _run(script: str) -> None:
    runpy.run_path(str(FOLDER / f"{script}.py"), run_name="__main__")
