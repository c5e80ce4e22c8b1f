"""Small YAML files are read verbatim; malicious ones are refused in bounded time and memory."""

import subprocess
import sys
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")

from centernet.conversion.yaml_file import MAX_BYTES, read_yaml  # noqa: E402
from centernet.errors import UserError  # noqa: E402

SOURCE = Path(__file__).resolve().parents[2] / "src"
READERS = [name for name in ("CSafeLoader", "SafeLoader") if hasattr(yaml, name)]


@pytest.fixture(params=READERS, autouse=True)
def reader(request, monkeypatch):
    """With libyaml and without."""
    if request.param == "SafeLoader":
        monkeypatch.delattr(yaml, "CSafeLoader", raising=False)


def read(tmp_path, text):
    path = tmp_path / "data.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_yaml(path)


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("", {}),
        ("# nothing\n", {}),
        ("names: [yes, No, on, OFF, ~, null, 1e3, 007, 0x1F, 1:30, 2024-01-01]\n", None),
        ("train: a\nval:\n", {"train": "a", "val": ""}),
        ("names:\n  0: hen house\n  1: 'fox'\n", {"names": {"0": "hen house", "1": "fox"}}),
        ("a: [[b, c], [d]]\n", {"a": [["b", "c"], ["d"]]}),
        ("a: &x b\nc: *x\n", {"a": "b", "c": "b"}),
        ("a: &x [b]\nc: [*x, *x]\n", {"a": ["b"], "c": [["b"], ["b"]]}),
        ("\ufeffa: b\r\nc: 'd'\r\n", {"a": "b", "c": "d"}),
        ("a: b\n---\na: c\n", {"a": "b"}),
        ("a: !!python/object/apply:os.system ['echo']\n", {"a": ["echo"]}),
    ],
)
def test_values_are_texts(tmp_path, text, content):
    if content is None:
        words = text[text.index("[") + 1 : text.index("]")].split(", ")
        content = {"names": words}
    assert read(tmp_path, text) == content


def bomb() -> str:
    names = [f"a{k}" for k in range(12)]
    lines = [f"{names[0]}: &{names[0]} [{', '.join('x' * 9)}]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip(names, names[1:], strict=False)]
    return "\n".join(lines) + "\n"


HOSTILE = {
    "alias bomb": (bomb(), "holds more than 100000 entries"),
    "many aliases": ("a: &x b\nc: [" + "*x," * 120_000 + "]\n", "holds more than 100000 entries"),
    "merge keys": ("a: &x {y: z}\nb:\n" + "  <<: *x\n" * 100_000, "merges keys with <<"),
    "more merge keys": ("a: &x {y: z}\nb:\n" + "  <<: *x\n" * 200_000, "larger than 1 MiB"),
    "deep flow lists": ("a: " + "[" * 500_000, "nested more than 20 levels|not a readable YAML file"),
    "deep block lists": ("- " * 500_000, "nested more than 20 levels"),
    "deep mappings": ("\n".join(" " * k + "a:" for k in range(900)), "nested more than 20 levels"),
    "complex keys": ("? " * 400_000, "nested more than 20 levels"),
    "keys that are lists": ("? [a]\n: b\n", "has a key that is not a string"),
    "a list that holds itself": ("a: &x [*x]\n", "refers to 'x', which is not defined before|not a readable YAML file"),
    "unknown alias": ("a: *x\n", "refers to 'x', which is not defined before|not a readable YAML file"),
    "a key twice": ("names: [a]\nnames: [b]\n", "has the key 'names' twice"),
    "a long text": ("a: '" + "x\n" * 400_000, "not a readable YAML file"),
    "a long key": ("a" * 900_000 + ": b\n", "not a readable YAML file"),
    "a large file": ("a: b\n" + "#" * MAX_BYTES, "larger than 1 MiB"),
    "a list": ("- a\n", "not a YAML file with keys and values"),
    "control characters": ("a: \x00\n", "not a readable YAML file"),
    "another encoding": ("names: [狐狸]\n".encode("gbk"), "not UTF-8 text"),
    "an image": (b"\x89PNG\r\n\x1a\n" * 99, "not UTF-8 text|not a readable YAML file"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(tmp_path, name):
    text, message = HOSTILE[name]
    with pytest.raises(UserError, match=rf"data\.yaml: ({message})") as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("name", ["alias bomb", "deep flow lists", "many aliases"])
def test_memory_is_bounded(tmp_path, name, reader):
    """An alias bomb expanded would take terabytes; 100 MB on top of the interpreter is enough for any file."""
    path = tmp_path / "data.yaml"
    path.write_text(HOSTILE[name][0])
    code = (
        "import resource, sys; from pathlib import Path; from centernet.conversion.yaml_file import read_yaml\n"
        "import yaml; from centernet.errors import UserError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: read_yaml(Path(sys.argv[1]))\n"
        "except UserError: pass\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, env={"PYTHONPATH": str(SOURCE)}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(UserError, match=r"none\.yaml: not a readable YAML file"):
        read_yaml(tmp_path / "none.yaml")
