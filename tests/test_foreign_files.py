"""Untrusted files: nothing in them is executed, and no path leaves its folder."""

import ast
import os
import pickle
import re
import struct
from pathlib import Path

import pytest
import torch
from torch import nn

from centernet.conversion import voc_devkit
from centernet.conversion.issues import raise_error
from centernet.conversion.voc import VocLayout
from centernet.detector import create_detector
from centernet.errors import UserError
from centernet.models import load_model, read_checkpoint
from centernet.models.weights import read_safetensors
from centernet.options import model_metadata
from centernet.options.metadata import ENTRIES
from centernet.opts import opts

ROOT = Path(__file__).resolve().parents[1]
HARD_CASES = ROOT.parent / "shared" / "data" / "hard_cases"
needs_hard_cases = pytest.mark.skipif(not HARD_CASES.is_dir(), reason="../shared/data is not there")

# The code itself


def dangers(source: str) -> list[str]:
    """Return the calls in Python code that execute the content of a file or string."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name == "os.execv" and ast.unparse(node.args[0]) == "sys.executable":
            continue  # the launcher restarts this interpreter with the launcher's own file
        if (
            name in ("eval", "exec", "compile", "__import__")
            or re.fullmatch(r"os\.(system|popen|exec\w*|spawn\w*)", name)
            or re.fullmatch(r"(c?[pP]ickle|dill|joblib|marshal|shelve)\.\w*(load|open|Unpickler)\w*", name)
            or given.get("shell", "False") != "False"
            or given.get("allow_pickle", "False") != "False"
            or (name == "torch.load" and given.get("weights_only") != "True")
            or re.fullmatch(r"yaml\.(unsafe_|full_)?load(_all)?", name)
            or (name.endswith(".extractall") and given.get("filter") != "'data'")
            or name.endswith(("unpack_archive", "hub.load"))
        ):
            found.append(f"line {node.lineno}: {name}({', '.join(f'{k}={v}' for k, v in given.items())})")
    return found


@pytest.mark.parametrize(
    "code",
    [
        "eval('1')",
        "exec(text)",
        "os.system('ls')",
        "subprocess.run('ls', shell=True)",
        "pickle.load(file)",
        "pickle.loads(data)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "numpy.load(path, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "tarfile.open(path).extractall(folder)",
        "shutil.unpack_archive(path)",
    ],
)
def test_the_search_finds_what_it_looks_for(code):
    assert dangers(code)


def test_no_code_executes_file_contents():
    scripts = [ROOT / "loss.py", *(ROOT / "src").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    assert len(scripts) > 50
    found = {path: dangers(path.read_text(encoding="utf-8")) for path in scripts}
    shells = [*ROOT.glob("*.sh"), *(ROOT / "src").rglob("*.sh"), *(ROOT / "experiments").glob("*.sh"), ROOT / ".ci/run"]
    assert len(shells) > 10
    for path in shells:
        text = path.read_text(encoding="utf-8")
        pieces = re.findall(r"<<'PY'.*\n((?:.*\n)*?)PY\n", text)  # Python inside
        found[path] = [danger for piece in pieces for danger in dangers(piece)]
        found[path] += re.findall(r"^(?!\s*#).*(?:\beval\b|\b(?:ba)?sh -c\b).*$", text, re.MULTILINE)
    assert {str(path): lines for path, lines in found.items() if lines} == {}


# Checkpoints


class Payload:
    def __reduce__(self):
        return os.mkdir, ("PWNED",)


def network():
    class Tiny(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.hm = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 80, 1, bias=False)

    return Tiny()


def write(path, content, legacy=False):
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.mark.parametrize("kind", ["zip", "legacy", "bare pickle"])
def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    content = {"epoch": 3, "state_dict": network().state_dict(), "optimizer": Payload()}
    path = tmp_path / "evil.pth"
    if kind == "bare pickle":
        path.write_bytes(pickle.dumps(content["optimizer"]))
    else:
        write(path, content, kind == "legacy")
    with pytest.raises(UserError, match=r"evil\.pth: refused, because it holds more than weights"):
        read_checkpoint(path)
    assert not (tmp_path / "PWNED").exists()


def spoiled(change):
    state = network().state_dict()
    change(state)
    return {"epoch": 3, "state_dict": state}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (spoiled(lambda s: s["conv.weight"].fill_(float("nan"))), "conv.weight holds values that are not finite"),
        (spoiled(lambda s: s["conv.bias"][2:].fill_(float("inf"))), "conv.bias holds values that are not finite"),
        (spoiled(lambda s: s.update({"conv.bias": [1, 2]})), "its state_dict has 'conv.bias': list, no named tensor"),
        ({"state_dict": {"foo": torch.ones(1)}}, "none of its 1 entries fits this network"),
        ({"state_dict": {5: torch.ones(1)}}, "none of its 1 entries fits this network"),
        ({"state_dict": [1]}, "has no state_dict"),
        ({"epoch": 3}, "has no state_dict"),
        ([1, 2], "holds a list, not a checkpoint"),
    ],
)
def test_contents_that_are_not_weights(tmp_path, content, message):
    path = write(tmp_path / "odd.pth", content)
    with pytest.raises(UserError, match=f"odd.pth: .*{message}"):
        load_model(network(), path, log=lambda _: None)


def test_untrusted_model_metadata(tmp_path):
    opt = opts().parse(["ctdet", "--dataset", "pascal", "--arch", "res_18", "--input_res", "64"])
    metadata = model_metadata(opt)
    assert all(is_right(metadata[name]) for name, is_right in ENTRIES.items())
    for name in ENTRIES:
        for value in (None, [{}], {"x": "y"}, -1.5):
            path = write(tmp_path / "odd.pth", {"state_dict": {}, "model": {**metadata, name: value}})
            given = opts().parse(["ctdet", "--dataset", "pascal", "--load_model", str(path)])
            with pytest.raises(UserError, match="odd.pth|task"):
                create_detector(given, torch.device("cpu"), log=lambda _: None)


HARD_CHECKPOINTS = {
    "valid_tiny": None,
    "valid_tiny_legacy": None,
    "malicious_plain": "refused, because it holds more",
    "malicious_zip": "refused, because it holds more",
    "malicious_legacy": "refused, because it holds more",
    "truncated": "damaged or of another kind",
    "truncated_legacy": "damaged or of another kind",
    "empty": "damaged or of another kind",
    "text": "not a checkpoint|damaged or of another kind",
    "wrong_keys": "none of its 2 entries fits",
    "wrong_shape": None,  # what fits is loaded, and a table lists the rest
    "nan_weights": "holds values that are not finite",
    "no_state_dict": "has no state_dict",
    "not_a_dict": "holds a list",
}


@needs_hard_cases
@pytest.mark.parametrize("name", HARD_CHECKPOINTS)
def test_hard_checkpoints(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    logged = []
    message = HARD_CHECKPOINTS[name]
    if message is None:
        load_model(network(), HARD_CASES / f"checkpoints/{name}.pth", log=logged.append)
        assert ("other shape, own values kept: hm.weight" in "\n".join(logged)) == (name == "wrong_shape")
    else:
        with pytest.raises(UserError, match=rf"{name}\.pth: .*({message})"):
            load_model(network(), HARD_CASES / f"checkpoints/{name}.pth", log=logged.append)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "header", [b"[" * 100_000, b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', b"[1]", b'{"a": 1}']
)
def test_untrusted_safetensors(tmp_path, header):
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    with pytest.raises(UserError, match="a.safetensors: this file cannot be read"):
        read_safetensors(path)


# XML

BOMB = '<!DOCTYPE a [<!ENTITY b "{}"><!ENTITY c "&b;&b;&b;">]><annotation><filename>&c;</filename></annotation>'
EXTERNAL = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/hostname">]><annotation><filename>&b;</filename></annotation>'
REMOTE = '<!DOCTYPE a SYSTEM "http://localhost:9/a.dtd"><annotation/>'
PARAMETER = '<!DOCTYPE a [<!ENTITY % b SYSTEM "file:///etc/hostname"> %b;]><annotation/>'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-be", "latin-1"])
@pytest.mark.parametrize("text", [BOMB.format("x" * 1000), EXTERNAL, REMOTE, PARAMETER])
def test_entities_are_refused_in_any_encoding(tmp_path, text, encoding):
    path = tmp_path / "bomb.xml"
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    declared = f"<?xml version='1.0' encoding='{encoding.removesuffix('-be')}'?>" if encoding != "utf-8" else ""
    path.write_bytes((mark + declared + text).encode(encoding))
    with pytest.raises(UserError, match=r"bomb\.xml: declares a document type or entities"):
        voc_devkit.read_annotation(path)


def test_xml_that_nests_deeply_or_ends_early(tmp_path):
    path = tmp_path / "deep.xml"
    path.write_text("<annotation>" + "<a>" * 200_000 + "</a>" * 200_000 + "</annotation>")
    with pytest.raises(UserError, match="has no <size>"):
        voc_devkit.read_annotation(path)
    path.write_text("<annotation>" + "<a>" * 200_000)
    with pytest.raises(UserError, match="not well-formed XML"):
        voc_devkit.read_annotation(path)


# Names in lists


def test_names_in_image_sets_stay_in_their_folder(tmp_path):
    labels = tmp_path / "voc/Annotations"
    labels.mkdir(parents=True)
    (tmp_path / "outside.xml").write_text("<annotation/>")
    for name in ("../../outside", str(tmp_path / "outside")):
        (tmp_path / "voc/train.txt").write_text(f"{name}\n")
        layout = VocLayout(tmp_path / "voc", "train", tmp_path / "voc/train.txt", labels, labels)
        with pytest.raises(
            UserError, match=r"train\.txt: line 1 has the file_name .*, which points outside the image folder"
        ):
            layout.read_checked(raise_error)
