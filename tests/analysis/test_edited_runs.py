"""Edited or damaged run directories: reports and plots use what can be read, or fail with one line."""

import contextlib
import json
import os
import sys
from pathlib import Path

import loss
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.helpers.logs import INFO, TRAIN, VAL

from centernet.analysis import page_plots, plots, report
from centernet.analysis.panels import log_panels
from centernet.analysis.read import read_curve, read_run
from centernet.errors import UserError

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src" / "tools"))
import make_reference
import make_report
import plot_log


@pytest.fixture(autouse=True, params=["not rendered", pytest.param("rendered", marks=pytest.mark.slow)])
def rendering(request, monkeypatch):
    """Draw reports without Plotly; render the figures, which takes most of the time, in the slow tests only."""
    monkeypatch.setattr(page_plots, "plotting_library", lambda: None)
    if request.param == "not rendered":
        monkeypatch.setattr(plots, "_save", lambda figure, file: None)
    return request.param == "rendered"


def write_run(folder, train=TRAIN, val=VAL, info=INFO):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("train_log.csv", train), ("val_log.csv", val), ("opt.json", info)):
        if isinstance(content, dict):
            content = json.dumps(content)
        if content is None:
            (folder / name).unlink(missing_ok=True)
        else:
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def use_everything(folder):
    """Read, draw, report, compare; only UserError may come."""
    for use in (report.write_report, read_curve):  # the report draws the logs
        with contextlib.suppress(UserError):
            use(folder)
    with contextlib.suppress(UserError):
        panels = [page_plots.page_panel(panel, (0, 1)) for panel in log_panels([read_run(folder)])]
        json.dumps(panels, allow_nan=False)
    assert loss.main(["--run", str(folder), "--reference", "sample_dlav0_34", "--plot", "none"]) in (0, 1, 2)
    assert make_reference.main([str(folder), "name", "--exp_dir", str(folder), "--force"]) in (0, 2)


def column(name, value):
    """The log with the given column replaced in one row."""
    lines = TRAIN.splitlines()
    cells = lines[5].split(",")
    cells[lines[0].split(",").index(name)] = value
    return "\n".join([*lines[:5], ",".join(cells), *lines[6:]]) + "\n"


ODD_NUMBERS = [
    "",
    "x",
    "nan",
    "inf",
    "-1",
    "0",
    "1e300",
    "1e999",
    "9" * 5000,
    "1_0",
    "\u0661",
    "\u00b2",
    "1.5",
    " 2 ",
    "0x1",
]
ODD_LOGS = {
    "not UTF-8": b"\xff\xfe\xfa" + TRAIN.encode(),
    "bytes in the middle": TRAIN.replace("\n1,3,", "\n\udcff1,3,").encode("utf-8", "surrogateescape"),
    "no rows": TRAIN.splitlines()[0] + "\n",
    "empty": "",
    "cut off": TRAIN[:-9],
    "starts later": "\n".join([TRAIN.splitlines()[0], *TRAIN.splitlines()[3:]]) + "\n",
    "reversed": "\n".join([TRAIN.splitlines()[0], *TRAIN.splitlines()[:0:-1]]) + "\n",
    "epochs that fall": TRAIN.replace("\n2,5,", "\n1,5,").replace("\n1,2,", "\n2,2,"),
    "column twice": TRAIN.replace("hm_loss", "loss"),
    "column missing": TRAIN.replace(",hm_loss", ""),
    "another table": "a,b\n1,2\n",
    "NUL": TRAIN.replace("1,3", "1,\0003"),
    "formula": TRAIN.replace("hm_loss", "$\\frac{$"),
    "markup": TRAIN.replace("hm_loss", "</style><script>alert(1)</script>"),
}


@pytest.mark.parametrize("name", ODD_LOGS)
def test_odd_train_logs(tmp_path, name):
    use_everything(write_run(tmp_path / "run", train=ODD_LOGS[name]))


@pytest.mark.parametrize("name", TRAIN.splitlines()[0].split(","))
def test_odd_numbers_in_a_train_log(tmp_path, name, rendering):
    for number in ODD_NUMBERS if rendering else ("", "nan", "-1", "1e300", "9" * 5000, "\u0661", "0"):
        use_everything(write_run(tmp_path / "run", train=column(name, number)))


@pytest.mark.parametrize(
    "val",
    [
        None,
        "",
        b"\xff\xfa\n",
        "epoch\n1\n",
        "epoch,mAP\n",
        "loss,epoch\n1,2\n",
        "epoch,mAP,mAP\n1,2,3\n",
        *(f"epoch,loss,mAP,AP/a\n1,2,{number},{number}\n{number},2,3,4\n" for number in ODD_NUMBERS),
        *(f"epoch,loss,mAP,AP/a\n1,2,{number},{number}\n" for number in ("nan", "-1", "1e300")),
    ],
)
def test_odd_val_logs_are_left_out(tmp_path, val):
    """The report is written; what cannot be used is named in it."""
    folder = write_run(tmp_path / "run", val=val)
    use_everything(folder)
    page = (folder / "report.html").read_text()
    run = read_run(folder)
    assert bool(run.val) or "Validations" not in page
    assert all(note.split(":")[0] in page for note in run.notes)


ODD_VALUES = [None, 0, -1, 1e400, True, "", "x", [], [1], {}, {"a": 1}, ["\ud800"], "\ud800", "<script>", 10**400]


@pytest.mark.parametrize("key", [*INFO, "options.given", "options.main_score", "recipe.batch_size", "recipe.task"])
def test_odd_values_in_opt_json(tmp_path, key, rendering):
    for value in ODD_VALUES if rendering else (None, [1], "\ud800<script>", 10**400):
        info = json.loads(json.dumps(INFO))
        place, _, inner = key.partition(".")
        if inner:
            info[place][inner] = value
        else:
            info[place] = value
        folder = write_run(tmp_path / "run", info=info)
        use_everything(folder)
        assert (folder / "report.html").read_text(encoding="utf-8").count("<script") == 1  # our own


@pytest.mark.parametrize("info", ["", "{", "[]", "null", "[" * 50_000, '{"a": ' + "9" * 5000 + "}", b"\xff\xfa"])
def test_odd_opt_json_is_left_out(tmp_path, info):
    folder = write_run(tmp_path / "run", info=info)
    use_everything(folder)
    assert any("opt.json" in note for note in read_run(folder).notes)
    assert "opt.json" in (folder / "report.html").read_text()


def test_tools_end_in_a_line(tmp_path, capsys):
    folder = write_run(tmp_path / "run", train=None)
    assert plot_log.main([str(folder)]) == make_report.main([str(folder), "--images", "0"]) == 2
    write_run(folder, info='{"options": 3}')
    assert plot_log.main([str(folder)]) == make_report.main([str(folder), "--images", "0"]) == 0
    (folder / "model_last.pth").write_bytes(b"")
    assert make_report.main([str(folder)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len([line for line in errors if line.startswith("error: ")]) == 3 and "Traceback" not in "".join(errors)


def test_a_run_that_starts_later_is_reported(tmp_path, capsys):
    folder = write_run(tmp_path / "run", train=ODD_LOGS["starts later"])
    run = read_run(folder)
    assert run.first == 3 and run.epochs.tolist() == [0.75, 1, 1.25, 1.5, 1.75, 2]
    assert plot_log.main([str(folder)]) == make_report.main([str(folder), "--images", "0"]) == 0
    assert "starts at iteration 3" in capsys.readouterr().err
    page = (folder / "report.html").read_text()
    assert "starts at iteration 3" in page and "iterations 3 to 8" in page
    assert make_reference.main([str(folder), "name", "--exp_dir", str(tmp_path)]) == 2
    assert "starts at iteration 3; a reference needs every iteration" in capsys.readouterr().err


def test_a_training_does_not_fail_because_of_its_report(tmp_path, capsys, monkeypatch):
    folder = write_run(tmp_path / "run", train=TRAIN.replace("\n1,3,", "\n1,30,"))
    report.finish_report(folder)
    out = capsys.readouterr().out
    assert out.startswith("warning: no report (") and "iteration 30 follows 2" in out and out.count("\n") == 1
    write_run(folder)

    def fail(*args, **options):
        raise MemoryError("no memory\nleft")

    monkeypatch.setattr(page_plots, "draw_logs", fail)
    report.finish_report(folder)
    out = capsys.readouterr().out
    assert "MemoryError: no memory\\nleft" in out and "make_report.py" in out and out.count("\n") == 1
    assert not (folder / "report.html").exists()


def test_a_running_report_takes_a_small_part_of_the_time(tmp_path, capsys, monkeypatch):
    folder, clock = write_run(tmp_path / "run"), [1000.0]
    monkeypatch.setattr(report.time, "monotonic", lambda: clock[0])

    def write(*arguments):
        clock[0] += 6
        dues.append(arguments[-1])

    dues = []
    running = report.RunningReport()
    with monkeypatch.context() as patch:
        patch.setattr(report, "write_report", write)
        assert running.write(folder, None, {})  # 6 seconds in 6: after those in 200 seconds they are 3 %
        clock[0] = 1190.0
        assert not running.write(folder, None, {})
        clock[0] = 1201.0
        assert running.write(folder, None, {})
        assert len(dues) == 2 and dues[0] > report.time.time() + 500

    assert report.RunningReport().write(folder, None, {})
    page = (folder / "report.html").read_text()
    assert "running</b> epoch 2 of 2, written 2" in page and capsys.readouterr().out == ""
    report.finish_report(folder)
    assert "running</b>" not in (folder / "report.html").read_text()
    monkeypatch.setattr(report, "_describe", lambda run: 1 / 0)
    capsys.readouterr()
    assert report.RunningReport().write(folder, None, {})
    out = capsys.readouterr().out
    assert out == "warning: no report after this validation (ZeroDivisionError: division by zero)\n"


def test_an_interrupted_report_is_missing(tmp_path, monkeypatch, capsys):
    """The old page stays whole, and the report counts as missing until it is written."""
    folder = write_run(tmp_path / "run")
    assert report.is_report_missing(folder)
    report.finish_report(folder)
    assert capsys.readouterr().out == f"report: {folder / 'report.html'}\n" and not report.is_report_missing(folder)
    before = (folder / "report.html").read_bytes()
    later = (folder / "report.html").stat().st_mtime + 10
    os.utime(folder / "train_log.csv", (later, later))

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("centernet.utils.files.os.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        report.finish_report(folder)
    assert (folder / "report.html").read_bytes() == before and report.is_report_missing(folder)
    assert [path.name for path in folder.iterdir() if path.name.startswith(".tmp")] == []
    assert not report.is_report_missing(tmp_path)


text = st.text(max_size=8)
cell = st.one_of(st.sampled_from(ODD_NUMBERS), text, st.integers(-2, 9).map(str), st.floats().map(str))
value = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), text),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(text, inner, max_size=3)),
    max_leaves=6,
)


@settings(max_examples=20, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(
    rows=st.lists(st.lists(cell, min_size=6, max_size=6), max_size=3),
    place=st.integers(0, 9),
    val=st.lists(st.lists(cell, min_size=3, max_size=3), max_size=3),
    info=st.dictionaries(st.sampled_from([*INFO, "git"]), value, max_size=4),
)
def test_any_edited_run(tmp_path_factory, rows, place, val, info):
    lines = TRAIN.splitlines()
    lines[place:place] = [",".join(row) for row in rows]
    val_lines = ["epoch,loss,mAP", *(",".join(row) for row in val)]
    folder = tmp_path_factory.mktemp("edited")
    encoded = ["\n".join(some).encode("utf-8", "replace") for some in (lines, val_lines)]
    use_everything(write_run(folder, *encoded, info=INFO | info))
