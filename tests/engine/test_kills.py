"""Processes killed or suspended at any time: nothing is lost, and no process waits forever."""

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.helpers.processes import needs_proc, ranks, running, wait_for_losses, wait_until_gone
from tests.helpers.runs import RUN, assert_complete, command, finish, start
from tests.helpers.training import ENVIRONMENT, MAIN, losses, small


def kill(victim: subprocess.Popen, pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # it was quicker
            os.kill(pid, signal.SIGKILL)
    victim.communicate(timeout=120)


def resume(folder: Path) -> list[str]:
    """Resume a run; one that was killed before its first checkpoint starts from scratch."""
    return ["--resume"] if any((folder / f"model_last.pth{end}").is_file() for end in ("", ".bak")) else []


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Runs the recipe once with so many processes, with the first test's data: what all others must come to."""
    folders = {}

    def run(data: Path, processes: int) -> Path:
        if processes not in folders:
            folders[processes] = tmp_path_factory.mktemp(f"whole_{processes}")
            finish(command(folders[processes], data, processes))
        return folders[processes] / RUN

    return run


def killed_again_and_again(
    tmp_path: Path, data: Path, processes: int, kills: int, seed: int
) -> tuple[Path, dict[str, int]]:
    """Start, kill and resume a training until it has been killed so often, then let it end.

    Every third time the moment is one in which a checkpoint is being written. The victim is all processes, or one.

    Returns its folder, and how often it was killed in which way.
    """
    rng, count = random.Random(seed), {"all": 0, "one": 0, "while writing": 0}
    folder = tmp_path / RUN
    while sum(count[kind] for kind in ("all", "one")) < kills:
        training = start(command(tmp_path, data, processes, *resume(folder)))
        deadline = time.monotonic() + 300
        while training.poll() is None and time.monotonic() < deadline:
            if (folder / "train_log.csv").is_file() and running(str(tmp_path)):
                break
            time.sleep(0.05)
        patience, writing = rng.uniform(0, 6), rng.random() < 0.33
        deadline = time.monotonic() + patience
        while training.poll() is None and (writing or time.monotonic() < deadline):
            if writing and any(folder.glob(".tmp-*-model_last.pth")):
                time.sleep(rng.uniform(0, 0.05))
                break
            time.sleep(0.002)
        if training.poll() is not None:
            training.communicate()
            if training.returncode == 0:  # it had been quicker: once more from the start
                for path in folder.glob("model_*"):
                    path.unlink()
                continue
        pids = list(ranks(str(tmp_path)).values()) if processes > 1 else [training.pid]
        one = processes > 1 and rng.random() < 0.5 and pids
        kill(training, [rng.choice(pids)] if one else [training.pid, *pids])
        assert wait_until_gone(str(tmp_path), 60) == []
        count["one" if one else "all"] += 1
        count["while writing"] += writing
    finish(command(tmp_path, data, processes, *resume(folder)))
    return folder, count


@needs_proc
def test_a_killed_run_is_the_undisturbed_one(tmp_path, tiny_voc, undisturbed):
    whole = undisturbed(tiny_voc, 1)
    folder, _ = killed_again_and_again(tmp_path, tiny_voc, 1, 2, seed=1)
    assert_complete(folder, whole)


@needs_proc
@pytest.mark.soak
@pytest.mark.parametrize(("processes", "kills"), [(1, 34), (2, 33), (4, 33)])
def test_dozens_of_kills(tmp_path, tiny_voc, undisturbed, processes, kills):
    """SIGKILL to one process or to all, at random moments and while a checkpoint is written."""
    whole = undisturbed(tiny_voc, processes)
    folder, count = killed_again_and_again(tmp_path, tiny_voc, processes, kills, seed=processes)
    print(f"{processes} process(es): {count}")
    assert_complete(folder, whole)


@needs_proc
def test_the_launcher_restarts_from_the_last_checkpoint(tmp_path, tiny_voc, undisturbed):
    """``--max-restarts``: killed twice, and the curve is that of the undisturbed run."""
    whole, folder = undisturbed(tiny_voc, 2), tmp_path / RUN
    arguments = command(tmp_path, tiny_voc, 2)
    training = start([*arguments[:3], "--max_restarts=2", *arguments[3:]])
    killed = 0
    for least in (3, 8):
        wait_for_losses(training, folder, least)
        victims = ranks(str(tmp_path / "exp"))
        if training.poll() is None and 1 in victims:
            os.kill(victims[1], signal.SIGKILL)
            killed += 1
            while victims[1] in ranks(str(tmp_path / "exp")).values():
                time.sleep(0.05)
    output, errors = training.communicate(timeout=300)
    assert training.returncode == 0, errors
    assert killed and output.count("the processes were restarted: resuming from") == killed
    assert_complete(folder, whole)


@needs_proc
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_to_the_launcher_leaves_a_checkpoint(tmp_path, tiny_voc, undisturbed, number):
    whole, folder = undisturbed(tiny_voc, 2), tmp_path / RUN
    training = start(command(tmp_path, tiny_voc, 2, "--save_minutes", "0"))
    wait_for_losses(training, folder, 1)
    training.send_signal(number)
    _, errors = training.communicate(timeout=120)
    assert training.returncode == 128 + number, errors
    assert re.search(rf"\[rank \d\] stopped by {number.name}", errors) and "Traceback" not in errors, errors
    assert wait_until_gone(str(tmp_path / "exp"), 20) == []
    finish(command(tmp_path, tiny_voc, 2, "--resume"))
    assert_complete(folder, whole)


# Watchdog


@needs_proc
def test_a_stopped_process_is_named(tmp_path, tiny_voc):
    training = start(
        command(tmp_path, tiny_voc, 2, "--dist_timeout", "10", "--num_epochs", "9999", "--save_minutes", "0")
    )
    wait_for_losses(training, tmp_path / RUN, 1)
    victim = ranks(str(tmp_path))[1]
    os.kill(victim, signal.SIGSTOP)
    stopped = time.monotonic()
    errors = ""
    for line in training.stderr:
        errors += line
        if "rank 1" in line:
            break
    assert f"[rank 0] error: rank 1 (pid {victim} on {socket.gethostname()}) has not responded for 8 s" in errors
    assert time.monotonic() - stopped < 60
    training.kill()
    training.communicate()
    assert wait_until_gone(str(tmp_path), 30) == []


@needs_proc
def test_a_process_that_hangs_is_named(tmp_path, tiny_voc):
    """It lives, but does not come to the collective calls."""
    code = "import os, runpy, sys, time; import centernet.engine.trainer as t; original = t.LossReader.record\n"
    code += "def record(self, *a):\n    original(self, *a)\n"
    code += "    if os.environ['RANK'] == '1' and self.trainer.state.iteration >= 2: time.sleep(999)\n"
    code += f"t.LossReader.record = record; sys.argv[0] = {MAIN!r}; runpy.run_path({MAIN!r}, run_name='__main__')"
    script = tmp_path / "hanging.py"
    script.write_text(code)
    arguments = command(tmp_path, tiny_voc, 2, "--dist_timeout", "8", "--num_epochs", "9999", "--save_minutes", "0")
    arguments[arguments.index(MAIN)] = str(script)
    environment = {**ENVIRONMENT, "PYTHONPATH": str(Path(MAIN).parent)}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 3, done.stderr
    expected = r"\[rank 0\] error: waited 8 s \(--dist_timeout\): rank 1 \(pid \d+ on \S+\) hangs or is too slow"
    assert re.search(expected, done.stderr), done.stderr
    assert "Traceback" not in done.stderr


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("launcher", [True, False])
def test_processes_that_were_all_suspended_continue(tmp_path, tiny_voc, launcher):
    """SIGSTOP for longer than the time limit, to the processes and their workers, with or without the launcher."""
    limit = 6
    more = ("--dist_timeout", str(limit), "--num_epochs", "9999", "--save_minutes", "0", "--val_intervals", "0")
    training = start(command(tmp_path, tiny_voc, 2, *more))
    wait_for_losses(training, tmp_path / RUN, 3)
    pids = [pid for pid in running(str(tmp_path)) if launcher or pid != training.pid]
    assert len(pids) >= 2
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for pid in pids:
            os.kill(pid, number)
        if number == signal.SIGSTOP:
            written = len(losses(tmp_path / RUN))
            time.sleep(limit + 3)
    wait_for_losses(training, tmp_path / RUN, written + 20)
    time.sleep(limit)  # in which a process could still be accused
    training.send_signal(signal.SIGTERM)
    _, errors = training.communicate(timeout=120)
    assert training.returncode == 128 + signal.SIGTERM and "--resume continues" in errors, errors


def by_hand(tmp_path: Path, data: Path, *more: str, **environment: str) -> subprocess.Popen:
    """One process of several, without a launcher."""
    variables = {**ENVIRONMENT, "MASTER_ADDR": "127.0.0.1", **environment}
    arguments = [sys.executable, MAIN, "ctdet", *small(tmp_path, data, "--num_epochs", "1", *more)]
    return subprocess.Popen(arguments, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "one", "WORLD_SIZE": "2"}, "error: the environment variable RANK is 'one', not a number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "error: RANK is 2, but WORLD_SIZE is 2: ranks count from 0"),
        ({"WORLD_SIZE": "2"}, "error: WORLD_SIZE is 2, but MASTER_ADDR and MASTER_PORT are not set"),
        ({"TORCHELASTIC_RESTART_COUNT": "x"}, "the environment variable TORCHELASTIC_RESTART_COUNT is 'x', not a"),
        ({"LOCAL_WORLD_SIZE": "-1"}, "the environment variable LOCAL_WORLD_SIZE is '-1', not a number"),
        ({"LOCAL_RANK": "9" * 5000}, "error: the environment variable LOCAL_RANK is '9999"),
    ],
)
def test_an_impossible_environment_is_reported(main, tmp_path, tiny_voc, monkeypatch, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        if name not in variables:
            monkeypatch.delenv(name, raising=False)
    done = main(*small(tmp_path, tiny_voc))
    assert done.returncode == 2
    assert message in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_missing_process_is_named(tmp_path, tiny_voc):
    lonely = by_hand(tmp_path, tiny_voc, "--dist_timeout", "5", RANK="0", WORLD_SIZE="2", MASTER_PORT=free_port())
    _, errors = lonely.communicate(timeout=120)
    assert lonely.returncode == 2 and len(errors.splitlines()) == 1, errors
    assert "(--dist_timeout)" in errors and "WORLD_SIZE = 2 processes started" in errors


def test_a_port_in_use_is_reported(tmp_path, tiny_voc):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        process = by_hand(tmp_path, tiny_voc, "--dist_timeout", "5", RANK="0", WORLD_SIZE="2", MASTER_PORT=port)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 2 and len(errors.splitlines()) == 1, errors
    assert f"127.0.0.1:{port}: this port is in use already" in errors


@pytest.mark.parametrize("more", [["--val_intervals", "7"], ["--save_all"], ["--test"]])
def test_processes_with_other_options_are_refused(tmp_path, tiny_voc, more):
    """Options that decide what the processes wait for; otherwise the innocent one would be named after a time-out."""
    place = {"WORLD_SIZE": "2", "MASTER_PORT": free_port(), "LOCAL_RANK": "0"}
    processes = [by_hand(tmp_path, tiny_voc, *(more if rank else []), RANK=str(rank), **place) for rank in range(2)]
    errors = "".join(process.communicate(timeout=120)[1] for process in processes)
    assert [process.returncode for process in processes] == [2, 2], errors
    assert errors.count("error: ") == 1 and f"the processes do not agree on {more[0]}: rank 0 has " in errors, errors


def test_processes_with_other_data_are_refused(tmp_path, tiny_voc):
    (tmp_path / "other").mkdir()
    other = tmp_path / "other/voc"
    subprocess.run(["cp", "-r", str(tiny_voc / "voc"), str(other)], check=True)
    path = other / "annotations/pascal_trainval0712.json"
    path.write_text(path.read_text().replace('"bbox": [4,', '"bbox": [5,'))
    place = {"WORLD_SIZE": "2", "MASTER_PORT": free_port()}
    processes = [
        by_hand(tmp_path, data, RANK=str(rank), LOCAL_RANK="0", **place)
        for rank, data in enumerate((tiny_voc, other.parent))
    ]
    errors = "".join(process.communicate(timeout=120)[1] for process in processes)
    assert [process.returncode for process in processes] == [2, 2], errors
    assert errors.count("the processes do not agree on training data: rank 0 has 6 images") == 1, errors
