"""The installed package: ``import centernet`` and the commands."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from centernet import cli

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {"centernet-train": "main", "centernet-test": "test", "centernet-demo": "demo", "centernet-export": "export"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_folder_is_a_package():
    folders = {".".join(path.parent.relative_to(ROOT / "src").parts) for path in (ROOT / "src").rglob("__init__.py")}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == folders | {"centernet.scripts"}


def test_the_commands_run_the_scripts(monkeypatch):
    assert PROJECT["project"]["scripts"].keys() == SCRIPTS.keys()
    started = []
    monkeypatch.setattr(cli.runpy, "run_path", lambda path, run_name: started.append((Path(path), run_name)))
    for command, script in SCRIPTS.items():
        module, function = PROJECT["project"]["scripts"][command].split(":")
        assert module == "centernet.cli"
        getattr(cli, function)()
        assert started.pop() == (ROOT / "src" / f"{script}.py", "__main__")
        assert (ROOT / "src" / f"{script}.py").is_file()


@pytest.mark.slow
def test_a_wheel_is_complete(tmp_path):
    """Built, unpacked, and used in a folder that has nothing of this repository."""
    source = tmp_path / "source"  # a build leaves things behind
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "requirements.txt", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", str(source), "--no-deps", "--wheel-dir", str(tmp_path)]
    done = subprocess.run(build, capture_output=True, text=True, timeout=600)
    if done.returncode and "No matching distribution" in done.stderr:
        pytest.skip("setuptools cannot be had for the build")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert {f"centernet/scripts/{script}.py" for script in SCRIPTS.values()} <= set(names)
    assert not [name for name in names if "egg-info" in name or not name.startswith("centernet")]
    code = "import sys; from centernet.cli import export; sys.argv[1:] = ['ctdet', '--output', 'a.onnx']; export()"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: --load_model: needs the checkpoint")
