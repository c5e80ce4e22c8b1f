"""Several processes: the same arithmetic as one, and a clean end when one of them fails."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tests.helpers.processes import ENVIRONMENT, needs_proc, ranks, run_update, wait_for_losses, wait_until_gone
from tests.helpers.training import LAUNCH, MAIN, ROOT

from centernet.errors import UserError
from centernet.utils import environment


@pytest.mark.parametrize(
    ("more", "counts"),
    [([], (2, 4)), (["--mse_loss", "--reg_loss", "sl1"], (2,)), (["--master_batch_size", "1"], (2,))],
)
def test_losses_and_gradients_do_not_depend_on_the_number_of_processes(tmp_path, tiny_voc, more, counts):
    arguments = ["ctdet", "--dataset", "pascal", "--data_path", str(tiny_voc), "--arch", "res_18", "--batch_size", "4"]
    arguments += ["--input_res", "64", "--seed", "5", *more]
    alone = run_update(tmp_path, 1, arguments)
    assert alone["losses"][0] > 0
    for count in counts:
        together = run_update(tmp_path, count, arguments)
        assert torch.allclose(together["losses"], alone["losses"], rtol=1e-9, atol=0), count
        for name, gradient in alone["gradients"].items():
            difference = (together["gradients"][name] - gradient).abs().max()
            assert difference <= 1e-9 * gradient.abs().max(), (count, name)


@pytest.mark.parametrize(
    ("count", "more"),
    [(3, ["--batch_size", "6", "--accumulate", "2", "--ema", "0.9"]), (4, ["--arch", "resdcn_18"]), (5, [])],
)
def test_resumed_updates_are_exact(tmp_path, tiny_voc, count, more):
    """The order in which gradients are added up does not depend on when the processes started."""
    result = tmp_path / "result.json"
    arguments = ["ctdet", "--dataset", "pascal", "--data_path", str(tiny_voc), "--arch", "res_18", "--input_res", "64"]
    script = [str(ROOT / "tests/engine/resumed_updates.py"), str(result), *arguments, "--batch_size", str(count), *more]
    command = [*LAUNCH, f"--nproc_per_node={count}", *script]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    for rank, (differing, compared) in enumerate(json.loads(result.read_text())):
        assert compared > 200, rank
        assert differing == {"1": [], "2": [], "3": []}, rank


def test_one_process_reads_for_all(tmp_path, tiny_voc):
    """Two processes train and test a dataset that only one of them can read, without warnings."""
    script = tmp_path / "main.py"
    script.write_text(
        f"""import os, sys
sys.path.insert(0, {str(ROOT / "src")!r})
import centernet.datasets.base as base
read = base.read_annotation_file
def read_once(*args):
    assert os.environ["LOCAL_RANK"] == "0"
    return read(*args)
base.read_annotation_file = read_once
from centernet import cli
cli.train()
"""
    )
    command = [*LAUNCH, "--nproc_per_node=2", str(script), "ctdet", "--dataset", "pascal", "--exp_dir", str(tmp_path)]
    command += ["--data_path", str(tiny_voc), "--arch", "res_18", "--input_res", "64", "--batch_size", "4"]
    command += ["--num_workers", "1", "--num_epochs", "1", "--num_iters", "2", "--pretrained", "none"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "final mAP: " in done.stdout
    assert "Grad strides" not in done.stderr and "killed by signal" not in done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
def test_freed_memory_is_used_again():
    script = """if True:
        import ctypes, resource, torch
        from centernet.engine.processes import tune_malloc
        if not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
            raise SystemExit
        faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        tune_malloc(torch.device("cpu"))
        used = []
        for _ in range(6):
            before = faults()
            torch.ones(2**25)  # 128 MiB, more than glibc keeps of its own accord
            used.append(faults() - before)
        # Not all: where the system has put something right behind the heap, the first ones need new memory.
        assert min(used) < 1000, used
    """
    subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, timeout=120, check=True)


def start_training(tmp_path: Path, data_path: Path, *more: str) -> tuple[subprocess.Popen, Path]:
    """Four processes that would train for hours; and the folder of the run."""
    command = [*LAUNCH, "--nproc_per_node=4", MAIN, "ctdet", "--dataset", "pascal"]
    command += ["--data_path", str(data_path), "--exp_dir", str(tmp_path), "--arch", "res_18", "--input_res", "64"]
    command += ["--batch_size", "4", "--num_workers", "1", "--num_epochs", "9999", "--pretrained", "none", *more]
    started = subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    return started, tmp_path / "ctdet/default"


@needs_proc
def test_killing_one_process_ends_the_run(tmp_path, tiny_voc):
    started, folder = start_training(tmp_path, tiny_voc)
    wait_for_losses(started, folder)
    victim = ranks(str(tmp_path))[2]
    os.kill(victim, signal.SIGKILL)
    _, errors = started.communicate(timeout=60)
    assert started.returncode == 128 + signal.SIGKILL, errors
    assert f"error: process 2 (pid {victim}) was ended by SIGKILL" in errors
    assert "Traceback" not in errors
    assert wait_until_gone(str(tmp_path), 15) == []


@needs_proc
@pytest.mark.skipif(sys.platform != "linux", reason="orphans are prevented on Linux")
def test_killing_the_launcher_leaves_no_orphans(tmp_path, tiny_voc):
    started, folder = start_training(tmp_path, tiny_voc)
    wait_for_losses(started, folder)
    started.kill()
    started.communicate(timeout=60)
    assert wait_until_gone(str(tmp_path), 30) == []


@needs_proc
@pytest.mark.skipif(sys.platform != "linux", reason="orphans are prevented on Linux")
def test_a_launcher_killed_at_the_start_leaves_no_orphans(tmp_path, tiny_voc):
    """The processes are still importing what they need."""
    started, _ = start_training(tmp_path, tiny_voc)
    deadline = time.monotonic() + 60
    while len(ranks(str(tmp_path))) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    started.kill()
    started.communicate(timeout=60)
    assert wait_until_gone(str(tmp_path), 60) == []


def test_a_launcher_that_has_ended_is_noticed(monkeypatch):
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
        monkeypatch.setenv("MASTER_ADDR", "localhost")
        monkeypatch.setenv("MASTER_PORT", str(port))
        environment.check_launcher(patience=0)
    with pytest.raises(UserError, match=f"the launcher at localhost:{port} has ended"):
        environment.check_launcher(patience=0)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE")
    environment.check_launcher(patience=0)


def test_an_error_on_all_processes_is_reported_once(tmp_path, tiny_voc):
    started, folder = start_training(tmp_path, tiny_voc, "--batch_size", "3")
    _, errors = started.communicate(timeout=120)
    assert started.returncode == 2, errors
    assert errors.count("error: --batch_size 3: less than one image for one of 4 processes") == 1, errors
    assert "Traceback" not in errors and not folder.exists()


def test_a_broken_image_ends_the_run_with_its_name(tmp_path, tiny_voc):
    image = sorted((tiny_voc / "voc/images").iterdir())[0]
    image.write_bytes(b"no image")
    started, _ = start_training(tmp_path, tiny_voc, "--on_bad_image", "error")
    _, errors = started.communicate(timeout=120)
    assert started.returncode == 2, errors
    assert f"error: {image}: cannot read image: not an image file, or corrupt" in errors
    assert errors.count("error: ") == 2, errors  # the reason, and the launcher's last word
    assert "Traceback" not in errors
