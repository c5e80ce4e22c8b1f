"""The modules of the package do not import each other in a circle, not even for type annotations."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "src"


def module_file(parts: list[str]) -> Path | None:
    """Return the file of a module or package, or None if there is none."""
    path = ROOT.joinpath(*parts)
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in candidates if file.is_file()), None)


def imported_files(path: Path) -> set[Path]:
    """Return the files that a module imports relatively outside of functions, ``if TYPE_CHECKING:`` included."""
    found = set()
    statements = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while statements:
        statement = statements.pop()
        if isinstance(statement, ast.If):
            statements += [*statement.body, *statement.orelse]
        if not isinstance(statement, ast.ImportFrom) or not statement.level:
            continue
        package = path.relative_to(ROOT).with_suffix("").parts[: -statement.level]
        base = [*package, *(statement.module.split(".") if statement.module else [])]
        for alias in statement.names:
            file = module_file([*base, alias.name]) or module_file(base)
            found |= {file} - {path, None}
    return found


def test_imports_form_no_circle():
    graph = {path: imported_files(path) for path in sorted((ROOT / "centernet").rglob("*.py"))}
    assert ROOT / "centernet/options/table.py" in graph[ROOT / "centernet/tasks/base.py"]
    list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_folders_import_in_one_direction():
    """``options`` and ``tasks`` is the only pair: options know the tasks' declarations, tasks the type ``Options``."""
    package = ROOT / "centernet"
    folders = {
        (path.relative_to(package).parts[0], file.relative_to(package).parts[0])
        for path in package.rglob("*/*.py")
        for file in imported_files(path)
        if file.parent != package
    }
    both = {frozenset(pair) for pair in folders if pair[::-1] in folders and pair[0] != pair[1]}
    assert both == {frozenset(("options", "tasks"))}


@pytest.mark.parametrize("line", ["from ..tasks.base import Task", "if TYPE_CHECKING:\n    from ..tasks import base"])
def test_type_only_imports_count(tmp_path, monkeypatch, line):
    for name, text in (("tasks/base.py", "from ..data import x"), ("data/x.py", line), ("data/__init__.py", "")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert imported_files(tmp_path / "data/x.py") == {tmp_path / "tasks/base.py"}
    assert imported_files(tmp_path / "tasks/base.py") == {tmp_path / "data/x.py"}
