"""The progress of a run: one line in terminals of 80 and 120 columns, and plain lines without a terminal."""

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from types import SimpleNamespace

import pytest
from tests.helpers.training import ENVIRONMENT, MAIN, small

from centernet.engine import progress
from centernet.engine.progress import Progress, StatusLine
from centernet.engine.setup import format_metrics
from centernet.evaluation.coco import BOX_SCORES, KEYPOINT_SCORES
from centernet.opts import opts

LINE = re.compile(
    r"epoch \d+/\d+  (val  )?\d+/\d+  loss \S+  \S+ img/s  epoch \d+:\d\d(:\d\d)?(  run \d+:\d\d(:\d\d)?)?"
)


class Terminal:
    """A pseudo-terminal; ``screen`` holds what was written to it."""

    def __init__(self, columns: int) -> None:
        self.reader, self.writer = pty.openpty()
        fcntl.ioctl(self.writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def close(self) -> str:
        """Return what was written."""
        os.close(self.writer)
        content = b""
        try:
            while chunk := os.read(self.reader, 65536):
                content += chunk
        except OSError:  # the other end is closed
            pass
        os.close(self.reader)
        return content.decode()


def lines_of(screen: str) -> list[str]:
    """Return what the status line showed, one entry per update."""
    return [
        re.sub(r"\x1b\[[?0-9]*[A-Za-z]", "", part).strip() for part in re.split(r"[\r\n]", screen) if "epoch" in part
    ]


@pytest.mark.parametrize("columns", [80, 120])
def test_the_line_fits_the_terminal(columns, monkeypatch):
    terminal = Terminal(columns)
    with os.fdopen(os.dup(terminal.writer), "w") as file:
        monkeypatch.setattr(StatusLine, "file", file)
        monkeypatch.setattr(progress, "REFRESH_SECONDS", 0)
        shown = Progress(opts().parse(["ctdet", "--num_epochs", "140"]), "train", 100, 117266, 32, True)
        for i in range(5):
            shown.data_ready()
            shown.step(i, {"loss": 1234.5678, "hm_loss": 1.0, "wh_loss": 10.0, "off_loss": 0.1})
        shown.finish()
    screen = terminal.close()
    lines = lines_of(screen)
    assert len(lines) == 5 and screen.count("\n") == 1  # the end of the line
    assert all(LINE.fullmatch(line) and len(line) < columns for line in lines), lines
    assert lines[4].startswith("epoch 100/140  5/117266  loss 1235  ")


def test_a_narrow_terminal_cuts_the_line(monkeypatch):
    terminal = Terminal(30)
    with os.fdopen(os.dup(terminal.writer), "w") as file:
        monkeypatch.setattr(StatusLine, "file", file)
        line = StatusLine("epoch 3/16", 20, after=260)
        line.show(1, 16, loss=1.41)
        line.finish()
    (shown,) = lines_of(terminal.close())
    assert shown == "epoch 3/16  1/20  loss 1.41"


def test_text_of_the_line():
    line = StatusLine("epoch 3/16", 20, after=260)
    assert line.text(12, 0.625, 28.4, 1.4142, "epoch") == (
        "epoch 3/16  12/20  loss 1.414  28 img/s  epoch 0:05  run 2:48"
    )
    assert StatusLine("run", 4).text(4, 0.5, 2.0, None, "left") == "run  4/4  2.0 img/s  left 0:00"


def test_without_a_terminal_a_plain_line_every_30_seconds(monkeypatch, capsys, tmp_path):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with open(tmp_path / "log", "w") as file:
        monkeypatch.setattr(StatusLine, "file", file)
        line = StatusLine("epoch 3/16", 100, after=1300)
        for i in range(100):
            now[0] += 1
            line.show(i + 1, 28, loss=1.41)
        line.finish()
    assert (tmp_path / "log").read_text() == ""
    assert capsys.readouterr().out.splitlines() == [
        f"epoch 3/16  {count}/100  loss 1.41  28 img/s  epoch {left}  run {run}"
        for count, left, run in ((30, "1:10", "22:50"), (60, "0:40", "22:20"), (90, "0:10", "21:50"))
    ]


def test_a_training_in_a_terminal(tmp_path, tiny_voc):
    terminal = Terminal(80)
    command = [sys.executable, MAIN, "ctdet", *small(tmp_path, tiny_voc, "--num_epochs", "1", "--val_intervals", "1")]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=terminal.writer, text=True)
    output, _ = process.communicate(timeout=300)
    screen = terminal.close()
    assert process.returncode == 0, screen
    lines = lines_of(screen)
    assert any(line.startswith("epoch 1/1  1/3  loss ") for line in lines), screen
    assert any(line.startswith("epoch 1/1  val  ") for line in lines), screen
    assert all(LINE.fullmatch(line) and len(line) < 80 for line in lines), lines
    assert "final loss: " in output and "epoch 1/1" not in output


def test_the_line_of_an_epoch_leaves_out_what_its_tables_have():
    losses = {"loss": 1.0, "hm_loss": 0.5, "AR_loss": 0.25}
    scores = dict.fromkeys((*KEYPOINT_SCORES, *(f"box_{name}" for name in BOX_SCORES), "AP/person"), 0.5)
    assert format_metrics({**losses, **scores}) == (
        "loss 1.0000 | hm_loss 0.5000 | AR_loss 0.2500 | AP 0.5000 | AP50 0.5000 | AP75 0.5000 | "
        "box_AP 0.5000 | box_AP50 0.5000 | box_AP75 0.5000"
    )
    whole = format_metrics(scores, per_class=True)
    assert all(f"{name} 0.5000" in whole for name in scores)


def test_a_stream_of_another_program(monkeypatch, capsys):
    """Programs that log what is printed replace standard error by objects with little more than ``write``."""
    stream = SimpleNamespace(write=print, flush=print)
    monkeypatch.setattr(StatusLine, "file", stream)
    monkeypatch.setattr(progress, "LOG_SECONDS", 0)
    line = StatusLine("epoch 1/2", 3)
    line.show(3, 1)
    line.clear()
    line.finish()
    assert line.file is stream and capsys.readouterr().out.startswith("epoch 1/2  3/3")


def test_a_closed_stream_is_replaced(monkeypatch, capsys):
    """Standard error may have been another stream, since closed, when the package was imported."""
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(StatusLine, "file", closed)
    line = StatusLine("a", 3)
    line.show(3, 1)
    line.finish()
    assert line.file is sys.stderr
