"""Trainings in environments that fail: a closed terminal, few open files, no shared memory, a network that is cut."""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from tests.helpers.processes import needs_proc, ranks, wait_for_losses, wait_until_gone
from tests.helpers.runs import RUN, assert_complete, command, finish, start
from tests.helpers.training import ENVIRONMENT, LAUNCH, MAIN, losses, small

LONG = ("--num_epochs", "9999", "--save_minutes", "0", "--val_intervals", "0")


def can(*arguments: str) -> bool:
    """Return whether a command exists and succeeds."""
    return shutil.which(arguments[0]) is not None and subprocess.run(arguments, capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a function that runs the recipe of ``command`` without a disturbance, once per number of processes."""
    folders = {}

    def run(data: Path, processes: int) -> Path:
        if processes not in folders:
            folders[processes] = tmp_path_factory.mktemp(f"whole_{processes}")
            finish(command(folders[processes], data, processes))
        return folders[processes] / RUN

    return run


@needs_proc
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_closed_standard_output_leaves_a_checkpoint(tmp_path, tiny_voc, whole, processes):
    """``python main.py ... | head -n 1``: status of SIGPIPE, no traceback, no lost rank, and the run can be resumed."""
    training = start([*command(tmp_path, tiny_voc, processes, "--print_iter", "1")])
    training.stdout.readline()
    training.stdout.close()
    training.stdout = None
    _, errors = training.communicate(timeout=200)
    assert training.returncode == 128 + signal.SIGPIPE, errors
    assert "Traceback" not in errors and "lost" not in errors and "has not responded" not in errors
    assert wait_until_gone(str(tmp_path / "exp"), 20) == []
    finish(command(tmp_path, tiny_voc, processes, "--resume"))
    assert_complete(tmp_path / RUN, whole(tiny_voc, processes))


@needs_proc
def test_a_closed_terminal_leaves_a_checkpoint(tmp_path, tiny_voc):
    """SIGHUP to the process group, as a terminal sends it when it is closed."""
    training = start([sys.executable, MAIN, "ctdet", *small(tmp_path, tiny_voc, *LONG, "--num_workers", "1")])
    wait_for_losses(training, tmp_path / RUN, 2)
    os.killpg(training.pid, signal.SIGHUP)
    _, errors = training.communicate(timeout=120)
    assert training.returncode == 128 + signal.SIGHUP and "stopped by SIGHUP" in errors, errors
    content = torch.load(tmp_path / RUN / "model_last.pth", weights_only=True)
    assert content["run"]["iteration"] == len(losses(tmp_path / RUN)) - 1
    assert wait_until_gone(str(tmp_path / "exp"), 20) == []


@pytest.mark.parametrize(("workers", "fits"), [("0", True), ("1", True), ("16", False)])
def test_few_open_files(tmp_path, tiny_voc, workers, fits):
    """``ulimit -n 48``: enough for one worker; for sixteen, one line before the training starts."""
    done = subprocess.run(
        [sys.executable, MAIN, "ctdet", *small(tmp_path, tiny_voc, "--num_epochs", "1", "--num_workers", workers)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=200,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48)),
    )
    if fits:
        assert done.returncode == 0, done.stderr
        return
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 2 and re.search(r"--num_workers 16: .* the limit is 48; raise it \(ulimit -n", line), line


@pytest.mark.skipif(not can("unshare", "-rm", "true"), reason="mounts need a namespace of their own (unshare -rm)")
@pytest.mark.parametrize(("workers", "fits"), [("0", True), ("1", False)])
def test_shared_memory_that_cannot_be_written(tmp_path, tiny_voc, workers, fits):
    """A read-only ``/dev/shm``, as in some containers."""
    arguments = small(tmp_path, tiny_voc, "--num_epochs", "1", "--num_workers", workers)
    mount = 'mount -t tmpfs -o ro none /dev/shm && exec "$@"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", mount, "sh", sys.executable, MAIN, "ctdet", *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    if fits:
        assert done.returncode == 0, done.stderr
        return
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 2 and "--num_workers 1: " in line and "use --num_workers 0" in line, line


@pytest.mark.parametrize(("workers", "fits"), [("0", True), ("1", False)])
def test_a_long_path_of_temporary_files(tmp_path, tiny_voc, workers, fits):
    """As batch systems set TMPDIR: addresses of sockets have at most 107 characters."""
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, MAIN, "ctdet", *small(tmp_path, tiny_voc, "--num_epochs", "1", "--num_workers", workers)],
        env={**ENVIRONMENT, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    if done.returncode == 0:  # later versions of Python choose another folder for sockets
        assert fits or sys.version_info >= (3, 12)
        return
    (line,) = done.stderr.strip().splitlines()
    assert not fits and done.returncode == 2 and "--num_workers 1: " in line and "set TMPDIR to a short path" in line


@needs_proc
def test_a_worker_killed_while_a_checkpoint_is_written_is_named(tmp_path, tiny_voc):
    """The failure is the worker's, not the checkpoint's."""
    code = "import glob, os, runpy, signal, sys; import centernet.utils.files as files; import torch\n"
    code += "save = torch.save\n"
    code += "def killing(*a, **k):\n"
    code += "    for path in glob.glob(f'/proc/{os.getpid()}/task/*/children'):\n"
    code += "        for pid in open(path).read().split():\n"
    code += "            if b'resource_tracker' not in open(f'/proc/{pid}/cmdline', 'rb').read():\n"
    code += "                os.kill(int(pid), signal.SIGKILL)\n"
    code += "    import time; time.sleep(1)\n"
    code += "    save(*a, **k)\n"
    code += f"torch.save = killing; sys.argv[0] = {MAIN!r}; runpy.run_path({MAIN!r}, run_name='__main__')"
    script = tmp_path / "killing.py"
    script.write_text(code)
    more = ("--num_workers", "1", "--save_minutes", "1e-6", "--num_epochs", "9999", "--val_intervals", "0")
    done = subprocess.run(
        [sys.executable, str(script), "ctdet", *small(tmp_path, tiny_voc, *more)],
        env={**ENVIRONMENT, "PYTHONPATH": str(Path(MAIN).parent)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode not in (0, 1), done.stderr
    assert "Traceback" not in done.stderr and "model_last" not in done.stderr, done.stderr
    assert re.search(r"error: .*(worker|loader process).* killed", done.stderr), done.stderr


# Two machines


@pytest.fixture
def two_machines():
    """Two network namespaces with one cable between them; a function that cuts the cable."""
    name = f"cn{os.getpid() % 10000}"
    commands = [
        f"ip netns add {name}a",
        f"ip netns add {name}b",
        f"ip link add {name}va type veth peer name {name}vb",
        f"ip link set {name}va netns {name}a",
        f"ip link set {name}vb netns {name}b",
    ]
    for side, address in (("a", "10.77.0.1/24"), ("b", "10.77.0.2/24")):
        commands += [
            f"ip -n {name}{side} addr add {address} dev {name}v{side}",
            f"ip -n {name}{side} link set {name}v{side} up",
            f"ip -n {name}{side} link set lo up",
        ]
    try:
        for one in commands:
            if not can(*one.split()):
                pytest.skip(f"no right to make network namespaces ({one})")
        yield (
            f"{name}a",
            f"{name}b",
            lambda: subprocess.run(["ip", "-n", f"{name}b", "link", "set", f"{name}vb", "down"], check=True),
        )
    finally:
        for side in "ab":
            subprocess.run(["ip", "netns", "del", f"{name}{side}"], capture_output=True)


@needs_proc
@pytest.mark.slow
def test_a_cut_between_two_machines_ends_both_sides(tmp_path, tiny_voc, two_machines):
    """The command of docs/TRAINING.md on two machines: both sides end in one line soon after ``--dist_timeout``."""
    *machines, cut = two_machines
    limit = 15
    launch = [*LAUNCH[:2], "--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d", "--rdzv_id=1"]
    launch += ["--rdzv_endpoint=10.77.0.1:29511"]
    more = (*LONG, "--dist_timeout", str(limit))
    sides, errors, readers = [], ["", ""], []

    def read(k: int, stream) -> None:
        for line in stream:
            errors[k] += line

    for k, machine in enumerate(machines):
        environment = {**ENVIRONMENT, "GLOO_SOCKET_IFNAME": f"{machine[:-1]}v{machine[-1]}"}
        arguments = small(tmp_path / str(k), tiny_voc, *more)
        where = [f"--rdzv_conf=is_host={1 - k}", f"--local-addr=10.77.0.{k + 1}"]
        node = ["ip", "netns", "exec", machine, *launch, *where, MAIN, "ctdet", *arguments]
        sides.append(
            subprocess.Popen(node, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        )
        readers.append(threading.Thread(target=read, args=(k, sides[k].stderr)))
        readers[k].start()
    try:
        wait_for_losses(sides[0], tmp_path / "0" / RUN, 3)
        cut()
        deadline = time.monotonic() + limit + 60
        while time.monotonic() < deadline and (ranks(str(tmp_path)) or sides[0].poll() is None):
            time.sleep(0.2)
        assert ranks(str(tmp_path)) == {} and sides[0].poll() == 3, errors
    finally:
        for side, reader in zip(sides, readers, strict=True):  # PyTorch's launcher waits much longer for the other side
            side.kill()
            reader.join()
    assert "[rank 0] error: rank 1 (pid" in errors[0] and "its machine unreachable" in errors[0], errors[0]
    assert "[rank 1] error: the store at 10.77.0.1" in errors[1] and "network" in errors[1], errors[1]
    assert "Traceback" not in "".join(errors)


@needs_proc
def test_a_launcher_that_cannot_reach_the_others_ends(tmp_path):
    code = "import subprocess, sys, time; from centernet.engine import launch\n"
    code += "launch.PATIENCE = 1.5\n"
    code += "def run(parsed): subprocess.run(['sleep', '0.5']); time.sleep(99)\n"
    code += "launch.run = run; sys.exit(launch.main(['--nnodes=2', '--nproc_per_node=1', 'main.py']))"
    environment = {**ENVIRONMENT, "PYTHONPATH": str(Path(MAIN).parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=90)
    assert done.returncode == 3
    assert done.stderr.endswith("ended 2 s ago, and the other machines cannot be reached\n")
