"""Foreign text on a terminal: control characters, encodings that lack a character, errors of loader processes."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

from centernet.errors import UserError
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
            raise UserError(f"{argv[0]}: there is no such file")

    assert main([]) == 0 and main.__doc__ == "Fail if asked to."
    assert main(["方\n.json"]) == 2
    assert capsys.readouterr().err == "error: 方\\n.json: there is no such file\n"


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
