"""Untrusted text on a terminal: control characters, encodings that lack a character, errors of loader processes."""

import ast
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from centernet.datasets import get_dataset
from centernet.errors import UserError
from centernet.options import OptionParser
from centernet.tasks import get_task
from centernet.utils.text import print_line, print_lines, printable
from centernet.utils.tool import tool

SOURCE = Path(__file__).resolve().parents[2] / "src"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("street.jpg", "street.jpg"),
        ("方块 é", "方块 é"),
        ("a\nerror: forged", "a\\nerror: forged"),
        ("a\r\tb", "a\\r\\tb"),
        ("\x1b[2J\x07\x9b1m\x7f", "\\x1b[2J\\x07\\x9b1m\\x7f"),
        ("abc\u202egpj.exe\u2028x", "abc\\u202egpj.exe\\u2028x"),
        (os.fsencode("方").decode("ascii", "surrogateescape"), "方"),  # a path in a locale without UTF-8
        ("\udcff\ud800", "\\udcff\\ud800"),
        (Path("a\x1bb"), "a\\x1bb"),
        (7, "7"),
    ],
)
def test_printable(text, expected):
    assert printable(text) == expected


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "gbk", "utf-8"])
def test_a_line_fits_the_encoding_of_the_stream(encoding):
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding=encoding, newline="\n")
    print_line("class 方块\n", "é", "\U0001f600", file=stream)
    text = buffer.getvalue().decode(encoding)
    assert text.count("\n") == 1 and text.endswith("\n") and "\\n" in text
    assert ("方块" in text) == (encoding in ("gbk", "utf-8"))


def test_lines_of_a_table_stay_lines(capsys):
    print_lines("AP 0.5\nAP/\x1b[31mcar 0.5")
    assert capsys.readouterr().out == "AP 0.5\nAP/\\x1b[31mcar 0.5\n"


def test_a_user_error_is_one_line():
    assert str(UserError("no.jpg\nerror: \x1b[2Jforged")) == "no.jpg\\nerror: \\x1b[2Jforged"


class Broken(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, k):
        raise UserError("a.jpg: cannot read\x07image")


def test_a_user_error_of_a_loader_process_is_the_same_line():
    with pytest.raises(UserError) as caught:
        next(iter(DataLoader(Broken(), num_workers=1)))
    assert str(caught.value) == "a.jpg: cannot read\\x07image"


def test_a_tool_ends_with_one_line_and_status_2(capsys):
    @tool
    def main(argv):
        """Fail if asked to."""
        if argv:
            raise UserError(f"{argv[0]}: no such file")

    assert main([]) == 0 and main.__doc__ == "Fail if asked to."
    assert main(["方\n.json"]) == 2
    assert capsys.readouterr().err == "error: 方\\n.json: no such file\n"


def test_names_that_the_locale_lacks_do_not_end_a_script():
    code = (
        "from centernet.utils.text import *; make_streams_tolerant(); name = '\\u65b9\\u5757'; print(name); "
        "print_line(name + '\\x1b'); print_line(name, file=__import__('sys').stderr)"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(SOURCE),
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "\\u65b9\\u5757\n\\u65b9\\u5757\\x1b\n" and done.stderr == "\\u65b9\\u5757\n"


def test_every_text_file_names_its_encoding():
    """The encoding of the locale would make files that other machines cannot read."""
    unnamed = []
    for path in sorted([*SOURCE.rglob("*.py"), SOURCE.parent / "loss.py"]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            method = isinstance(node.func, ast.Attribute)
            name = node.func.attr if method else getattr(node.func, "id", "")
            texts = [a.value for a in (*node.args, *(k.value for k in node.keywords)) if isinstance(a, ast.Constant)]
            modes = [text for text in texts if isinstance(text, str) and set(text) <= set("rwabx+t")]
            opens = (name == "open" and not (method and not modes)) or (
                method and name in ("read_text", "write_text") and getattr(node.func.value, "id", "") != "files"
            )
            binary = any("b" in mode for mode in modes) or ast.unparse(node).startswith(("os.open", "Image.open"))
            if opens and not binary and "encoding" not in {keyword.arg for keyword in node.keywords}:
                unnamed.append(f"{path.relative_to(SOURCE.parent)}:{node.lineno} {ast.unparse(node)[:60]}")
    assert unnamed == []


FORGED = "car\n\x1b[2Jerror: forged\x07"


def test_names_of_classes_and_files_forge_no_lines(tmp_path, capsys):
    """A dataset of others: nothing of its names reaches the terminal as a control character, and no line is added."""
    (tmp_path / "images").mkdir()
    name = "a\x1b[31m\n.png"
    for file in (name, "b.png"):
        cv2.imwrite(str(tmp_path / "images/c.png"), np.zeros((40, 40, 3), np.uint8))
        (tmp_path / "images/c.png").rename(tmp_path / "images" / file)
    images = [{"id": k, "file_name": file, "width": 40, "height": 40} for k, file in enumerate((name, "b.png"))]
    box = {"category_id": 1, "bbox": [3, 3, 20, 20], "area": 400, "iscrowd": 0}
    content = {"images": images, "categories": [{"id": 1, "name": FORGED}]}
    content["annotations"] = [{**box, "id": k + 1, "image_id": k} for k in range(2)]
    for split in ("train", "val"):
        (tmp_path / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")
    opt = OptionParser().parse(["ctdet", "--dataset", "custom", "--data_path", str(tmp_path), "--arch", "res_18"])
    assert opt.class_names == [printable(FORGED)]
    dataset = get_dataset("custom")(get_task("ctdet")(opt), "val")
    scores = dataset.evaluate({k: {1: np.float32([[3, 3, 23, 23, 0.9]])} for k in range(2)})
    assert scores[f"AP/{printable(FORGED)}"] == pytest.approx(1)
    (tmp_path / "images" / name).write_bytes(b"broken")
    with pytest.raises(UserError) as caught:
        dataset.read_image(0)
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)
    specification = importlib.util.spec_from_file_location("check_data_tool", SOURCE / "tools/check_data.py")
    tool = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(tool)
    arguments = ["--dataset", "custom", "--data_path", str(tmp_path), "--arch", "res_18", "--input_res", "64"]
    assert tool.main(["ctdet", *arguments, "--output_dir", str(tmp_path / "out")]) == 1
    printed = "".join(capsys.readouterr())
    assert "\x1b[2J" not in printed and "\x07" not in printed and not re.search("^error: forged", printed, re.M)
