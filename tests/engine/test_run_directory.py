"""Run directories that were edited, damaged or written by other programs: resuming continues and reports losses."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from tests.helpers.training import losses, rows, small

from centernet.analysis import report
from centernet.engine import run_directory
from centernet.engine.resume_logs import kept_epochs, kept_losses, kept_scores, read_lines
from centernet.models import create_model

RUN = "exp/ctdet/default"
HEADER = ["epoch", "iteration", "loss", "lr", "images/s"]
COLUMNS = ",".join(HEADER)


def lines_of(first: int, last: int) -> list[str]:
    return [f"{(k - 1) // 3 + 1},{k},{k}.5,0.1,9.0" for k in range(first, last + 1)]


# Single files


@pytest.mark.parametrize(
    ("lines", "kept", "problem"),
    [
        (lines_of(1, 6), (1, 6), None),
        (lines_of(1, 9), (1, 6), None),  # later ones are repeated
        ([*lines_of(1, 6), "3,7,0."], (1, 6), None),  # the line that a kill cut off
        ([*lines_of(1, 6), "\udcff\udcfe"], (1, 6), None),
        (lines_of(4, 6), (4, 6), None),  # of a run without the earlier log
        ([], None, None),
        (lines_of(1, 5), None, "it has no line of iteration 6"),
        ([*lines_of(1, 2), *lines_of(4, 6)], (4, 6), "line 3 is not that of iteration 3"),
        ([*lines_of(1, 2), "1,³,3.5,0.1,9.0", *lines_of(4, 6)], (4, 6), "line 4 is not that of iteration 3"),
        ([*lines_of(1, 2), "1,3,three,0.1,9.0", *lines_of(4, 6)], (4, 6), "line 4 is not that of iteration 3"),
        ([*lines_of(1, 2), "1,3,3\udce9,0.1,9.0", *lines_of(4, 6)], (4, 6), "line 4 is not that of iteration 3"),
        ([*lines_of(1, 2), "9,3,3.5,0.1,9.0", *lines_of(4, 6)], (4, 6), "line 4 is not that of iteration 3"),
        ([*lines_of(1, 2), "1,3", *lines_of(4, 6)], (4, 6), "line 4 is not that of iteration 3"),
        (
            [*lines_of(1, 2), f"1,{'9' * 5000},3.5,0.1,9.0", *lines_of(4, 6)],
            (4, 6),
            "line 4 is not that of iteration 3",
        ),
        ([*lines_of(1, 2), "", *lines_of(3, 6)], (3, 6), "line 4 is not that of iteration 2"),
        ([*lines_of(1, 6), "1,2,nan,0.1,9.0"], (1, 6), None),
    ],
)
def test_the_block_of_losses_that_can_be_continued(lines, kept, problem):
    found, why = kept_losses([COLUMNS, *lines], HEADER, 6)
    assert [",".join(row) for row in found] == (lines_of(*kept) if kept else []) and why == problem


def test_losses_with_quotes_are_continued():
    def quoted(line):
        return ",".join(f'"{cell}"' for cell in line.split(","))

    found, why = kept_losses([quoted(COLUMNS), *map(quoted, lines_of(1, 6))], HEADER, 6)
    assert [",".join(row) for row in found] == lines_of(1, 6) and why is None


def test_losses_of_other_columns_are_not_continued():
    assert kept_losses([], HEADER, 6) == ([], None)
    for header in ("", "epoch,iteration,loss,hm_loss,lr,images/s", "\udcff"):
        found, problem = kept_losses([header, *lines_of(1, 6)], HEADER, 6)
        assert found == [] and problem == "line 1 does not have the columns of this run"


@pytest.mark.parametrize(
    ("lines", "kept", "problem"),
    [
        (["1,0.5", "2,0.25"], ["1", "2"], None),
        (["1,0.5", "2,", "4,nan", "5,1"], ["1", "2", "4"], None),
        (["1,0.5", "2,0.2", "4,0."], ["1", "2", "4"], None),
        (["1,0.5", "2,x"], ["1"], "line 3 is not one of an epoch and numbers"),
        (["1,x", "2,0.5"], ["2"], "line 2 is not one of an epoch and numbers"),
        (["²,0.5", "2,0.5"], ["2"], "line 2 is not one of an epoch and numbers"),
        (["1,0.5", "2,0.5,7", "4,0.5"], ["1", "4"], "line 3 is not one of an epoch and numbers"),
        (["1,0.5", '2,"0.5', "4,0.5"], ["1", "4"], "line 3 is not one of an epoch and numbers"),
        (["1,0.5", "\udcff", "4,0.5"], ["1", "4"], "line 3 is not one of an epoch and numbers"),
        (["1,0.5", "1,0.5", "4,0.5"], ["1", "4"], None),
        (["1,0.5", "7,0.5", "4,0.5"], ["1", "4"], "line 4 is of epoch 4, the line before of epoch 7"),
        ([], None, None),
    ],
)
def test_the_scores_that_can_be_continued(lines, kept, problem):
    found, why = kept_scores(["epoch,AP", *lines], 4)
    assert [row[0] for row in found] == (["epoch", *kept] if kept else []) and why == problem


def test_scores_under_another_header_are_not_continued():
    assert kept_scores([], 4) == ([], None)
    for header in ("", "AP,epoch", "epoch,AP,AP", '"epoch', "\udcff"):
        assert kept_scores([header, "1,0.5"], 4) == ([], "line 1 is not a header that begins with epoch")
    quoted = ["epoch,AP,AP/cat", '1,0.5,"0.5"']
    assert kept_scores(quoted, 4)[0][1] == ["1", "0.5", "0.5"]


def test_lines_of_a_log_and_of_any_file(tmp_path):
    lines = ["2026: epoch: 1 |loss 1", "no epoch", f"2026: epoch: {'9' * 5000} |", "x: epoch: 3 |", "y: epoch: ² |"]
    assert kept_epochs(lines, 2) == lines[:1]
    assert read_lines(tmp_path / "none") == []
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfone\r\ntwo\xff\x0b\n\nlast")
    assert read_lines(tmp_path / "a") == ["one", "two\udcff\x0b", "", "last"]
    (tmp_path / "a").write_bytes(b"")
    assert read_lines(tmp_path / "a") == []


# Whole runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two epochs of three iterations with a validation each, once; copied for each test."""
    kept = {}

    def copy(main, data: Path, target: Path) -> Path:
        if not kept:
            kept["folder"] = tmp_path_factory.mktemp("finished")
            done = main(*small(kept["folder"], data, "--num_epochs", "2", "--val_intervals", "1"))
            assert done.returncode == 0, done.stderr
        shutil.copytree(kept["folder"] / RUN, target / RUN)
        return target / RUN

    return copy


def resume(main, exp: Path, data: Path, *more: str):
    return main(*small(exp, data, "--num_epochs", "3", "--val_intervals", "1", "--resume", *more))


EDITS = {
    "not UTF-8": lambda path: path.write_bytes(path.read_bytes().replace(b"\n2,", b"\n\xff\xfe2,", 1)),
    "odd digits": lambda path: path.write_text(path.read_text().replace("\n1,", "\n²,", 1), encoding="utf-8"),
    "garbage": lambda path: path.write_bytes(bytes(range(256)) * 9),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "a quote": lambda path: path.write_text('"' + path.read_text()),
    "long numbers": lambda path: path.write_text(path.read_text().replace("\n1,", f"\n{'1' * 9000},", 1)),
}


@pytest.mark.parametrize("edit", EDITS)
def test_edited_files_do_not_stop_a_resumed_run(main, tmp_path, tiny_voc, finished, edit, monkeypatch):
    folder = finished(main, tiny_voc, tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")  # opt.json is read at a restart
    tables = [folder / "train_log.csv", folder / "val_log.csv"]
    headers = [rows(path)[0] for path in tables]
    paths = [*tables, next(folder.glob("logs_*/log.txt")), folder / "opt.json", folder / "opt.txt"]
    for path in paths:
        EDITS[edit](path)
    edited = [path.read_bytes() if path.is_file() else b"" for path in paths]
    done = resume(main, tmp_path, tiny_voc, "--num_iters", "1")
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "report: " in done.stdout and "warning: no report" not in done.stdout
    assert f"{tables[0]}: starts at iteration" in done.stdout
    for path, header, content in zip(tables, headers, edited, strict=False):
        first, *table = rows(path)
        assert first == header and table[-1][0] == "3"
        assert [row[0] for row in table] == sorted(row[0] for row in table)
        kept = [file.read_bytes() for file in folder.glob(f"{path.stem}_before_*.csv")]
        assert kept == ([content] if content else []), "what cannot be continued is kept"


@pytest.mark.parametrize("content", ["[1]", '"x"', '{"launch": [1]}', '{"launch": {"a": 1}}', "[" * 100_000, '{"a": '])
def test_a_description_of_an_odd_type_is_no_restart(main, tmp_path, tiny_voc, finished, monkeypatch, content):
    folder = finished(main, tiny_voc, tmp_path)
    (folder / "opt.json").write_text(content)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    done = main(*small(tmp_path, tiny_voc, "--num_epochs", "1", "--num_iters", "1", "--val_intervals", "0"))
    assert done.returncode == 0 and "resuming" not in done.stdout, done.stderr
    assert isinstance(json.loads((folder / "opt.json").read_text()), dict)


def test_resuming_a_checkpoint_of_the_reference(main, tmp_path, tiny_voc):
    """Of another folder, without any log: the training ends with status 0 and a log of its own iterations."""
    model = create_model("res_18", {"hm": 20, "wh": 2, "reg": 2}, 64)
    optimizer = torch.optim.Adam(model.parameters(), 1.25e-4)
    sum(value.square().mean() for value in model(torch.randn(2, 3, 64, 64))[0].values()).backward()
    optimizer.step()
    state, group = optimizer.state_dict()["state"], optimizer.state_dict()["param_groups"][0]
    group = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay", "amsgrad", "params")}
    saved = {
        "state": {k: {**entry, "step": int(entry["step"])} for k, entry in state.items()},
        "param_groups": [group],
    }
    content = {"epoch": 3, "state_dict": model.state_dict(), "optimizer": saved}
    torch.save(content, tmp_path / "model_last.pth", _use_new_zipfile_serialization=False)
    arguments = ["--load_model", str(tmp_path / "model_last.pth"), "--resume", "--num_epochs", "5"]
    done = main(*small(tmp_path, tiny_voc, "--val_intervals", "1", *arguments))
    assert done.returncode == 0, done.stderr
    folder = tmp_path / RUN
    assert f"{folder / 'train_log.csv'}: starts at iteration 10, the losses before it are not available" in done.stdout
    assert [row[:2] for row in losses(folder)[1:]] == [[str((k - 1) // 3 + 1), str(k)] for k in range(10, 16)]
    assert f"report: {folder / 'report.html'}" in done.stdout and (folder / "report.html").is_file()
    assert torch.load(folder / "model_last.pth", weights_only=True)["epoch"] == 5


def test_a_finished_training_does_not_fail_because_of_its_report(main, tmp_path, tiny_voc, monkeypatch):
    arguments = small(tmp_path, tiny_voc, "--num_epochs", "1", "--num_iters", "1", "--val_intervals", "0")
    report_file = tmp_path / RUN / "report.html"
    with monkeypatch.context() as patch:
        patch.setattr(report, "_describe", lambda run: 1 / 0)
        done = main(*arguments)
    assert done.returncode == 0 and "warning: no report (ZeroDivisionError: division by zero)" in done.stdout
    assert not report_file.exists()
    again = main(*arguments, "--resume")  # nothing is left to train
    assert again.returncode == 0 and f"report: {report_file}" in again.stdout and report_file.is_file()
    again = main(*arguments, "--resume")
    assert again.returncode == 0 and "report: " not in again.stdout


def test_the_report_is_written_after_every_validation(main, tmp_path, tiny_voc, monkeypatch):
    """During the training the page shows it as running, with images; the last page does not."""
    page, pages, write = tmp_path / RUN / "report.html", [], report.write_report

    def write_and_keep(*arguments):
        write(*arguments)
        pages.append(page.read_text())

    monkeypatch.setattr(report, "write_report", write_and_keep)
    monkeypatch.setattr(report, "RUNNING_SHARE", 100)
    arguments = ("--num_epochs", "3", "--num_iters", "1", "--val_intervals", "1")
    assert main(*small(tmp_path, tiny_voc, *arguments)).returncode == 0
    running = [re.search(r"running</b> (.*?),", text) for text in pages]
    assert [match and match[1] for match in running] == ["epoch 1 of 3", "epoch 2 of 3", None]
    assert all("Worst images" in text for text in pages)


def test_a_report_that_was_interrupted_is_drawn_at_the_next_start(main, tmp_path, tiny_voc, finished):
    folder = finished(main, tiny_voc, tmp_path)
    os.utime(folder / "report.html", (0, 0))  # of before the last checkpoint
    done = main(*small(tmp_path, tiny_voc, "--num_epochs", "2", "--val_intervals", "1", "--resume"))
    assert done.returncode == 0 and "report: " in done.stdout, done.stderr
    assert (folder / "report.html").stat().st_mtime > 0


@pytest.mark.parametrize("name", ["model_1.pth", "model_2.pth", "model_last.pth"])
def test_checkpoints_of_an_epoch_come_before_the_last_one(main, tmp_path, tiny_voc, monkeypatch, name):
    """A kill between two checkpoints loses neither: whichever is missing is written by the resumed run."""
    from centernet.engine import checkpoints

    original, calls = checkpoints.save_model, []

    def save(path, *arguments, **options):
        calls.append(path.name)
        if calls.count(name) == 2 or (path.name == name != "model_last.pth"):
            raise KeyboardInterrupt
        original(path, *arguments, **options)

    arguments = small(tmp_path, tiny_voc, "--num_epochs", "2", "--val_intervals", "1", "--save_all", "--num_iters", "1")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_model", save)
        assert main(*arguments).returncode == 130
    done = main(*arguments, "--resume")
    assert done.returncode == 0, done.stderr
    written = {path.name: torch.load(path, weights_only=True)["epoch"] for path in (tmp_path / RUN).glob("model_?.pth")}
    assert written == {"model_1.pth": 1, "model_2.pth": 2}


def test_kept_names_are_not_used_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(run_directory.time, "strftime", lambda form: form.replace("%Y-%m-%d-%H-%M-%S", "now"))
    for name in ("train_log_before_now.csv", "train_log_before_now-2.csv", "train_log_before_now-3.csv"):
        assert run_directory._kept_name(tmp_path / "train_log.csv") == name
        (tmp_path / name).touch()
