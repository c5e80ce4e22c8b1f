"""The installed package: ``import centernet`` and the commands."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from centernet import cli
from centernet.utils.tool import error_line

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[1]
# What the commands run, below the repository.
COMMANDS = {
    "centernet-train": "src/main.py",
    "centernet-test": "src/test.py",
    "centernet-demo": "src/demo.py",
    "centernet-export": "src/export.py",
    "centernet-loss": "loss.py",
    "centernet-report": "src/tools/make_report.py",
    "centernet-coco-overlap": "src/tools/calc_coco_overlap.py",
    "centernet-check-data": "src/tools/check_data.py",
    "centernet-check-device": "src/tools/check_device.py",
    "centernet-convert-for-reference": "src/tools/convert_for_reference.py",
    "centernet-convert-hourglass": "src/tools/convert_hourglass_weight.py",
    "centernet-convert-kitti": "src/tools/convert_kitti_to_coco.py",
    "centernet-convert-voc": "src/tools/convert_voc.py",
    "centernet-eval-coco": "src/tools/eval_coco.py",
    "centernet-eval-coco-hp": "src/tools/eval_coco_hp.py",
    "centernet-eval-kitti": "src/tools/eval_kitti.py",
    "centernet-extreme-points": "src/tools/gen_coco_extreme_points.py",
    "centernet-certify": "src/tools/certify.py",
    "centernet-make-reference": "src/tools/make_reference.py",
    "centernet-make-library": "src/tools/make_reference_library.py",
    "centernet-merge-voc": "src/tools/merge_pascal_json.py",
    "centernet-plot-log": "src/tools/plot_log.py",
    "centernet-reval": "src/tools/reval.py",
    "centernet-draw-results": "src/tools/vis_pred.py",
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_directory_is_a_package():
    folders = {".".join(path.parent.relative_to(ROOT / "src").parts) for path in (ROOT / "src").rglob("__init__.py")}
    folders = {name for name in folders if not name.startswith("lib.")}  # for sys.path, see src/lib
    scripts = {"centernet.scripts", "centernet.scripts.root", "centernet.scripts.tools"}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == folders | scripts


def test_the_extra_for_mlflow_works_without_a_server():
    """The database of runs needs the full package (``tests/engine/test_loggers.py``)."""
    assert [name.partition(">")[0] for name in PROJECT["project"]["optional-dependencies"]["mlflow"]] == ["mlflow"]


def test_every_tool_is_a_command():
    tools = {f"src/tools/{path.name}" for path in (ROOT / "src/tools").glob("*.py")}
    assert set(COMMANDS.values()) == tools | {"src/main.py", "src/test.py", "src/demo.py", "src/export.py", "loss.py"}
    assert PROJECT["project"]["scripts"].keys() == COMMANDS.keys()


def test_every_command_is_documented():
    text = (ROOT / "docs" / "GETTING_STARTED.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(centernet-[\w-]+)` \| `([\w/.]+)` \|", text, re.MULTILINE)
    assert dict(listed) == COMMANDS and len(listed) == len(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_runs_its_script(command, monkeypatch):
    started = []

    def load(path: Path) -> SimpleNamespace:
        started.append(path)
        return SimpleNamespace(main=lambda *_: 7)

    monkeypatch.setattr(cli, "load", load)
    monkeypatch.setattr(cli, "options_of", lambda script: SimpleNamespace(gpus=[0]))
    monkeypatch.setattr(cli, "run_main", lambda main, opt: main(opt))
    module, function = PROJECT["project"]["scripts"][command].split(":")
    assert module == "centernet.cli"
    with pytest.raises(SystemExit) as ended:
        getattr(cli, function)()
    assert started == [ROOT / COMMANDS[command]] and started[0].is_file()
    assert ended.value.code == (0 if "/tools/" not in COMMANDS[command] and command != "centernet-loss" else 7)


def run_command(command: str, *arguments: str, path: Path = ROOT / "src") -> subprocess.CompletedProcess:
    """Run a command as its installed entry point does."""
    module, function = PROJECT["project"]["scripts"][command].split(":")
    code = f"import sys; sys.argv[0] = '/usr/bin/{command}'; from {module} import {function}; {function}()"
    environment = {**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize("command", ["centernet-train", "centernet-test", "centernet-eval-coco", "centernet-loss"])
def test_errors_are_reported_under_the_name_of_the_command(command):
    done = run_command(command, "--no_such_option")
    assert done.returncode == 2
    assert f"{command}: error: " in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("centernet-export", "ctdet --device cpu", "--load_model: needs the checkpoint"),
        ("centernet-loss", "--run nofile", "nofile: "),
        ("centernet-report", "nofile", "nofile: no such run directory"),
        ("centernet-eval-coco", "nofile", "nofile: no such file"),
        ("centernet-make-reference", "nofile NAME", ""),
        ("centernet-certify", "nofile --references nofile", "--references nofile: not a library"),
        ("centernet-check-data", "ctdet --dataset coco --data_path nofile", ""),
        ("centernet-check-device", "--levels none", "--levels none: no level none"),
    ],
)
def test_errors_of_a_run_are_reported_under_the_name_of_the_command(command, arguments, message):
    done = run_command(command, *arguments.split())
    assert done.returncode == 2 and done.stderr.startswith(f"{command}: error: {message}"), done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.count("error: ") == 1


def test_scripts_report_errors_as_before(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["src/main.py"])
    assert error_line("no data") == "error: no data"
    assert error_line("no data", "loss.py") == "loss.py: error: no data"
    monkeypatch.setattr(sys, "argv", ["/usr/bin/centernet-loss"])
    assert error_line("no data", "loss.py") == error_line("no data") == "centernet-loss: error: no data"


@pytest.mark.slow
def test_a_wheel_is_complete(tmp_path):
    """Built, unpacked, and used in a folder that has nothing of this repository."""
    source = tmp_path / "source"  # a build leaves things behind
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "requirements.txt", "LICENSE", "NOTICE", "loss.py"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", str(source), "--no-deps", "--wheel-dir", str(tmp_path)]
    done = subprocess.run(build, capture_output=True, text=True, timeout=600)
    if done.returncode and "No matching distribution" in done.stderr:
        pytest.skip("setuptools is not available for the build")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    scripts = {f"centernet/scripts/{path.removeprefix('src/')}" for path in COMMANDS.values() if path != "loss.py"}
    assert scripts | {"centernet/scripts/root/loss.py", "centernet/py.typed"} <= set(names)
    templates = ROOT / "src" / "centernet" / "analysis" / "templates"
    assert {f"centernet/analysis/templates/{path.name}" for path in templates.iterdir()} <= set(names)
    assert not [name for name in names if "egg-info" in name or not name.startswith("centernet")]
    export = run_command("centernet-export", "ctdet", "--output", "a.onnx", path=tmp_path / "site")
    assert (export.returncode, export.stderr.count("\n")) == (2, 1)
    assert export.stderr.startswith("centernet-export: error: --load_model: needs the checkpoint")
    for command in COMMANDS:
        done = run_command(command, "--help", path=tmp_path / "site")
        assert done.returncode == 0 and done.stdout.startswith(f"usage: {command} "), done.stderr
