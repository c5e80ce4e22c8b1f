"""A training that is interrupted in any way continues as if nothing had happened."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tests.helpers.signals import signal_at
from tests.helpers.training import ENVIRONMENT, MAIN, losses, rows, small

import centernet.engine.trainer as trainer_module
from centernet.datasets.loader import TrainBatches
from centernet.engine import launch, nan_guard, signals
from centernet.engine.run_state import TrainingState, check_plan, check_recipe, resumed_state
from centernet.engine.signals import ShutdownHandler, ShutdownRequested
from centernet.errors import UserError
from centernet.models import create_model
from centernet.options import recipe as recipe_of
from centernet.opts import opts

RUN = "exp/ctdet/default"


def recipe(exp: Path, data: Path, *more: str) -> list[str]:
    """Three epochs of three iterations, a validation after the second and the third."""
    steps = ["--num_epochs", "3", "--val_intervals", "2", "--lr_step", "1", "--save_minutes", "0"]
    return small(exp, data, *steps, *more)


@pytest.fixture(autouse=True)
def every_iteration(monkeypatch):
    """Signals are looked for after every iteration, however fast the machine is."""
    monkeypatch.setattr(trainer_module, "FLUSH", 1)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Runs the recipe once, with the first test's data: what all others must come to."""
    folders = {}

    def run(main, data: Path) -> Path:
        if "whole" not in folders:
            folders["whole"] = tmp_path_factory.mktemp("whole")
            assert main(*recipe(folders["whole"], data)).returncode == 0
        return folders["whole"] / RUN

    return run


def log_lines(folder: Path) -> list[str]:
    """The lines of all log.txt without their times."""
    texts = [path.read_text() for path in sorted(folder.glob("logs_*/log.txt"))]
    lines = [re.sub(r"time +[\d.]+ \|", "", line.partition(": ")[2]) for line in "".join(texts).splitlines()]
    assert all(line.startswith("epoch: ") for line in lines)
    return lines


def assert_same_run(folder: Path, whole: Path) -> None:
    """All that a run leaves is that of the undisturbed one, bit by bit."""
    assert losses(folder) == losses(whole)
    without_time = [
        [[cell for k, cell in enumerate(row) if header[k] != "time"] for row in table]
        for header, table in ((rows(path / "val_log.csv")[0], rows(path / "val_log.csv")) for path in (folder, whole))
    ]
    assert without_time[0] == without_time[1]
    assert log_lines(folder) == log_lines(whole)
    for name in ("model_last.pth", "model_best.pth", "model_1.pth"):
        one, other = (torch.load(path / name, weights_only=True) for path in (folder, whole))
        assert one["epoch"] == other["epoch"] and one["best"] == other["best"]
        assert all(torch.equal(value, other["state_dict"][key]) for key, value in one["state_dict"].items())
        if "optimizer" in other:
            for key, state in other["optimizer"]["state"].items():
                assert all(torch.equal(value, one["optimizer"]["state"][key][name]) for name, value in state.items())
        if "run" in other:
            assert all(
                torch.equal(*pair) for pair in zip(one["run"]["random"][0], other["run"]["random"][0], strict=True)
            )
    assert (folder / "results.json").read_bytes() == (whole / "results.json").read_bytes()


@pytest.mark.parametrize(
    ("place", "number", "in_validation", "workers"),
    [
        (1, signal.SIGTERM, False, "0"),
        (4, signal.SIGINT, False, "2"),  # continued with another number of workers
        (6, signal.SIGTERM, False, "0"),  # at the end of an epoch
        (1, signal.SIGTERM, True, "0"),  # the epoch is trained, its validation is still to come
    ],
)
def test_an_interrupted_run_is_the_undisturbed_one(
    main, tmp_path, tiny_voc, undisturbed, monkeypatch, place, number, in_validation, workers
):
    whole, folder = undisturbed(main, tiny_voc), tmp_path / RUN
    with monkeypatch.context() as patch:
        signal_at(patch, place, number, in_validation)
        stopped = main(*recipe(tmp_path, tiny_voc))
    assert stopped.returncode == 128 + number
    assert f"stopped by {signal.Signals(number).name}" in stopped.stderr and len(stopped.stderr.splitlines()) == 1
    resumed = main(*recipe(tmp_path, tiny_voc, "--resume", "--num_workers", workers))
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(folder, whole)


def test_a_run_may_be_interrupted_again_and_again(main, tmp_path, tiny_voc, undisturbed, monkeypatch):
    whole = undisturbed(main, tiny_voc)
    for start, place in enumerate((2, 4, 8)):
        with monkeypatch.context() as patch:
            signal_at(patch, place, signal.SIGTERM)
            assert main(*recipe(tmp_path, tiny_voc, *(["--resume"] if start else []))).returncode == 143
    assert main(*recipe(tmp_path, tiny_voc, "--resume")).returncode == 0
    assert_same_run(tmp_path / RUN, whole)


@pytest.mark.parametrize("damage", ["truncated", "one bit", "gone"])
def test_the_checkpoint_before_is_used_where_the_newest_is_damaged(
    main, tmp_path, tiny_voc, undisturbed, monkeypatch, damage
):
    whole, last = undisturbed(main, tiny_voc), tmp_path / RUN / "model_last.pth"
    with monkeypatch.context() as patch:
        signal_at(patch, 4, signal.SIGTERM)
        assert main(*recipe(tmp_path, tiny_voc)).returncode == 143
    content = bytearray(last.read_bytes())
    if damage == "truncated":
        last.write_bytes(content[: len(content) // 2])
    elif damage == "one bit":
        content[len(content) // 2] ^= 1
        last.write_bytes(content)
    else:
        last.unlink()
    resumed = main(*recipe(tmp_path, tiny_voc, "--resume"))
    assert resumed.returncode == 0, resumed.stderr
    assert re.search(rf"warning: {last}: .*; resuming from the previous checkpoint, {last}.bak", resumed.stdout)
    assert "resuming at epoch 2, iteration 1" in resumed.stdout
    assert_same_run(tmp_path / RUN, whole)


def test_both_checkpoints_damaged_is_an_error(main, tmp_path, tiny_voc):
    folder = tmp_path / RUN
    folder.mkdir(parents=True)
    for name in ("model_last.pth", "model_last.pth.bak"):
        (folder / name).write_bytes(b"nothing")
    done = main(*recipe(tmp_path, tiny_voc, "--resume"))
    assert done.returncode == 2
    assert re.fullmatch(r"error: \S+model_last.pth.bak: .+\n", done.stderr)


def test_another_plan_restarts_the_epoch(main, tmp_path, tiny_voc, monkeypatch):
    with monkeypatch.context() as patch:
        signal_at(patch, 4, signal.SIGTERM)
        assert main(*recipe(tmp_path, tiny_voc)).returncode == 143
    done = main(*recipe(tmp_path, tiny_voc, "--resume", "--batch_size", "3", "--val_intervals", "0"))
    assert done.returncode == 0, done.stderr
    assert "epoch 2 was left after 2 iterations" in done.stdout and "it starts again" in done.stdout
    assert "note: this run continues with another recipe: batch_size 3 (2 before)" in done.stdout
    numbers = [row[:2] for row in losses(tmp_path / RUN)[1:]]
    assert numbers == [[e, str(k + 1)] for k, e in enumerate(["1"] * 3 + ["2"] * 2 + ["3"] * 2)]


def test_sigusr1_writes_a_checkpoint_and_continues(main, tmp_path, tiny_voc, undisturbed, monkeypatch):
    signal_at(monkeypatch, 4, signal.SIGUSR1)
    done = main(*recipe(tmp_path, tiny_voc))
    assert done.returncode == 0, done.stderr
    assert "epoch 2: checkpoint after iteration 2" in done.stdout
    assert_same_run(tmp_path / RUN, undisturbed(main, tiny_voc))


@pytest.mark.parametrize(
    ("count", "in_validation", "expected"),
    [
        (1, False, "resuming at epoch 1, iteration 3"),
        (4, False, "resuming at epoch 2, iteration 3"),
        (1, True, "resuming at the validation of epoch 2"),
    ],
)
def test_a_resumed_run_prints_where_it_continues(main, tmp_path, tiny_voc, monkeypatch, count, in_validation, expected):
    with monkeypatch.context() as patch:
        signal_at(patch, count, signal.SIGTERM, in_validation)
        assert main(*recipe(tmp_path, tiny_voc)).returncode == 143
    resumed = main(*recipe(tmp_path, tiny_voc, "--resume"))
    assert resumed.returncode == 0, resumed.stderr
    assert f"\n{expected}\n" in resumed.stdout
    assert "epoch 0" not in resumed.stdout


def test_checkpoints_within_an_epoch_by_the_clock(main, tmp_path, tiny_voc):
    done = main(*small(tmp_path, tiny_voc, "--num_epochs", "1", "--val_intervals", "0", "--save_minutes", "1e-6"))
    assert done.returncode == 0, done.stderr
    assert re.findall(r"epoch 1: checkpoint after iteration (\d)", done.stdout) == ["1", "2"]
    before = torch.load(tmp_path / RUN / "model_last.pth.bak", weights_only=True)
    assert before["epoch"] == 0 and before["run"]["done"] == before["run"]["iteration"] == 2


def test_a_signal_to_all_processes_is_not_the_second_one(monkeypatch):
    """Schedulers signal the launcher and its processes; what the launcher passes on comes a moment later."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    now, ended = [100.0], []
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(signals.os, "_exit", ended.append)
    requests = ShutdownHandler()
    requests.deferring = True
    for now[0] in (100.0, 100.2, 104.9):
        requests._on_stop(signal.SIGTERM, None)
    assert requests.stop == signal.SIGTERM and not ended
    now[0] = 106.0
    requests._on_stop(signal.SIGTERM, None)
    assert ended == [143]


def test_the_second_signal_ends_at_once():
    code = """
import os, signal, sys
from centernet.engine.signals import ShutdownHandler
requests = ShutdownHandler()
with requests.installed(), requests.deferred():
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)  # a launcher may send another kind
    print("still here", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("not here", flush=True)
"""
    environment = {**ENVIRONMENT, "PYTHONPATH": str(Path(MAIN).parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 128 + signal.SIGTERM and done.stdout == "still here\n"
    assert done.stderr == "SIGTERM for the second time: stopped without a checkpoint\n"


def test_sigusr1_before_the_training_does_not_end_the_run():
    code = """
import os, signal, sys
from centernet import cli
def load(path):
    os.kill(os.getpid(), signal.SIGUSR1)
    print("still here", flush=True)
    raise KeyboardInterrupt  # as Ctrl-C during the imports
cli.load = load
sys.argv = ["main.py", "ctdet", "--dataset", "sample"]
cli.train()
"""
    environment = {**ENVIRONMENT, "PYTHONPATH": str(Path(MAIN).parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "still here\n", "interrupted\n")


@pytest.mark.parametrize("before", [signal.SIG_DFL, signal.SIG_IGN])
def test_sigusr1_reaches_a_training_however_it_was_treated_before(before, monkeypatch):
    requests, passed = ShutdownHandler(), []
    old = signal.signal(signal.SIGUSR1, before)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(launch, "_children", lambda: [os.getpid()])
            patch.setattr(launch.os, "kill", lambda process, number: passed.append(number))
            launch._pass_on(signal.SIGUSR1, None)  # the launcher leaves processes alone that cannot take it
            with requests.installed():
                launch._pass_on(signal.SIGUSR1, None)
        assert passed == [signal.SIGUSR1]
        with requests.installed():
            os.kill(os.getpid(), signal.SIGUSR1)
            assert requests.save
    finally:
        signal.signal(signal.SIGUSR1, old)


def test_a_deferred_signal_that_nobody_handles_ends_the_run():
    requests = ShutdownHandler()
    with pytest.raises(ShutdownRequested, match="stopped by SIGTERM") as stopped, requests.installed():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    assert stopped.value.status == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_file_without_a_state_resumes_as_the_reference_does(main, tmp_path, tiny_voc):
    assert main(*recipe(tmp_path, tiny_voc, "--num_epochs", "1")).returncode == 0
    last = tmp_path / RUN / "model_last.pth"
    content = torch.load(last, weights_only=True)
    torch.save({name: content[name] for name in ("epoch", "state_dict", "optimizer")}, last)
    arguments = ["--resume", "--lr", "1e-3", "--num_epochs", "2", "--val_intervals", "0"]
    assert main(*recipe(tmp_path, tiny_voc, *arguments)).returncode == 0
    table = losses(tmp_path / RUN)[1:]
    assert [row[1] for row in table] == ["1", "2", "3", "4", "5", "6"]
    assert [row[-1] for row in table] == ["0.000125"] * 3 + ["0.0001"] * 3


STATE = TrainingState(epoch=3, iteration=40, done=4, sums=[1.0], counted=4, plan=[6, 2, 317, -1], logs=["logs_1"])
NAN, MANY = float("nan"), 1 << 60


@pytest.mark.parametrize(
    "change",
    [
        "text",
        {"iteration": "many"},
        {"iteration": -1},
        {"iteration": MANY},
        {"epoch": -3},
        {"epoch": True},
        {"epoch": 2},  # the checkpoint has 3
        {"done": -1},
        {"done": 41},
        {"counted": 5},
        {"skipped": 0.5},
        {"sums": None},
        {"sums": [NAN]},
        {"sums": ["1"]},
        {"seconds": -1.0},
        {"seconds": float("inf")},
        {"unusable": [-1]},
        {"unusable": [torch.ones(2)]},
        {"unlogged": {"loss": 1.0}},  # together with a partial epoch
        {"unlogged": {"loss": "1"}, "done": 0},
        {"best": {"AP": None}},
        {"best": [1]},
        {"plan": ["6"]},
        {"recipe": {"lr": torch.ones(2)}},
        {"recipe": {1: 2}},
        {"name": 7},
        {"logs": ["../../elsewhere"]},
        {"logs": [""]},
        {"random": "none"},
        {"scaler": []},
        {"ema": 1},
    ],
    ids=str,
)
def test_a_state_that_cannot_be_right_is_refused(change):
    content = {**STATE.to_dict(), **change} if isinstance(change, dict) else change
    with pytest.raises(UserError, match="x.pth: its entry 'run' does not describe a training.*; leave out --resume"):
        resumed_state({"run": content}, 3, "x.pth")


def test_states_of_older_and_newer_versions_are_read():
    assert resumed_state({"run": STATE.to_dict()}, 3, "x.pth") == STATE
    assert resumed_state({"run": {**STATE.to_dict(), "of a later version": 1}}, 3, "x.pth") == STATE
    older = STATE.to_dict()
    del older["ema"], older["scaler"], older["unusable"]
    assert resumed_state({"run": older}, 3, "x.pth") == STATE
    assert resumed_state({"best": {"AP": 0.5}}, 2, "x.pth").best == {"AP": 0.5}
    assert resumed_state({"best": [1]}, 2, "x.pth").best == {}


def test_a_partial_epoch_is_continued_only_if_it_fits():
    for plan, iterations, names, left in (
        ([6, 2, 317, -1], 9, ["loss"], 4),
        ([7, 2, 317, -1], 9, ["loss"], 0),  # another number of images
        ([6, 2, 317, -1, 50000], 9, ["loss"], 0),  # another --repeat_threshold
        ([6, 2, 317, -1], 4, ["loss"], 0),  # not so many iterations
        ([6, 2, 317, -1], 9, ["loss", "hm_loss"], 0),  # another loss
    ):
        state = dataclasses.replace(STATE, unusable=[2, 6])
        lines: list[str] = []
        check_plan(state, plan, iterations, names, log=lines.append)
        assert (state.done, state.iteration, state.plan) == (left, 36 + left, plan)
        assert len(lines) == (left == 0) and all("it starts again" in line for line in lines)
        assert state.unusable == ([2, 6] if plan[0] == 7 else [2])


def test_what_cannot_be_restored_is_reinitialized_and_named(main, tmp_path, tiny_voc):
    """Random state, averages and single moments: the training continues without them."""
    short = ["--val_intervals", "0", "--ema", "0.9"]
    assert main(*small(tmp_path, tiny_voc, *short, "--num_epochs", "1")).returncode == 0
    last = tmp_path / RUN / "model_last.pth"
    content = torch.load(last, weights_only=True)
    content["run"]["random"] = [[torch.zeros(3)]]
    averages = content["run"]["ema"]["state_dict"]
    averages["conv1.weight"] = averages["conv1.weight"].to_sparse()
    averages["hm.2.bias"] = averages["hm.2.bias"][:2]
    del averages["wh.2.bias"]
    names = [name for name, _ in create_model("res_18", {"hm": 20, "wh": 2, "reg": 2}, 64).named_parameters()]
    moments = content["optimizer"]["state"]
    moments[names.index("hm.2.bias")]["exp_avg"] = torch.ones(3)
    moments[names.index("conv1.weight")]["exp_avg_sq"][0, 0, 0, 0] = NAN
    torch.save(content, last)
    done = main(*small(tmp_path, tiny_voc, *short, "--num_epochs", "2", "--resume"))
    assert done.returncode == 0, done.stderr
    for expected in (
        "the random state of the checkpoint has the shape (3,)",
        "running averages of the checkpoint reinitialized from the weights: conv1.weight is sparse or nested, ",
        "hm.2.bias has the shape (2,) instead of (20,), wh.2.bias is missing",
        "optimizer state of 1 parameter(s) reinitialized (exp_avg has another shape): hm.2.bias",
        "reinitialized (exp_avg_sq holds values that are not finite): conv1.weight",
    ):
        assert expected in done.stdout
    written = torch.load(last, weights_only=True)
    assert all(value.isfinite().all() for entry in written["optimizer"]["state"].values() for value in entry.values())


def test_resuming_with_other_averages_optimizer_or_length_says_so(main, tmp_path, tiny_voc):
    short = [*("--val_intervals", "0", "--lr_schedule", "cosine", "--num_iters", "1")]
    done = main(*small(tmp_path, tiny_voc, *short, "--ema", "0.9", "--num_epochs", "1"))
    assert done.returncode == 0 and "note: " not in done.stdout
    done = main(*small(tmp_path, tiny_voc, *short, "--num_epochs", "2", "--resume"))
    assert "note: without --ema the running averages of the checkpoint are dropped" in done.stdout
    assert "note: the learning rate jumps, because the cosine schedule follows from the number of epochs" in done.stdout
    done = main(*small(tmp_path, tiny_voc, *short, "--num_epochs", "3", "--resume", "--ema", "0.9"))
    assert "note: --ema 0.9: the checkpoint has no running averages; they start from its weights" in done.stdout
    done = main(*small(tmp_path, tiny_voc, *short, "--num_epochs", "4", "--resume", "--optimizer", "sgd"))
    assert done.returncode == 2
    assert "cannot be used (no state of SGD: written with another --optimizer); leave out --resume" in done.stderr


def test_resuming_without_options_of_the_recipe_says_so():
    """Also those that a recipe does not name, because they have their defaults before or now."""
    preset = ["--preset", "fast", "--num_epochs", "9", "--lr", "1e-3", "--batch_size", "4"]
    plain = ["--num_epochs", "9", "--lr", "1e-3", "--batch_size", "4", "--freeze", "2"]
    fast, other = (opts().parse(["ctdet", "--dataset", "sample", *more]) for more in (preset, plain))
    for before, now, expected in (
        (fast, other, ("optimizer adam (adamw before)", "lr_schedule step (cosine before)", "freeze 2 (none before)")),
        (other, fast, ("optimizer adamw (adam before)", "box_loss giou (l1 before)", "freeze none (2 before)")),
        (fast, fast, ()),
    ):
        lines, state = [], TrainingState(recipe=recipe_of(before))
        check_recipe(state, now.replace(resume=True), log=lines.append)
        assert len(lines) == bool(expected) and all(text in lines[0] for text in expected), lines
    check_recipe(TrainingState(), fast.replace(resume=True), log=lines.append)  # of the reference
    assert lines == []


@pytest.mark.parametrize("classes", [1, 5])
def test_resuming_with_another_number_of_classes(main, tmp_path, tiny_voc, classes):
    """The head that does not match starts again, with its moments and averages, and is named."""
    short = ["--val_intervals", "0", "--ema", "0.9"]
    assert main(*small(tmp_path, tiny_voc, *short, "--num_epochs", "1")).returncode == 0
    for path in (tiny_voc / "voc/annotations").iterdir():
        content = json.loads(path.read_text())
        content["categories"] = content["categories"][:classes]
        for annotation in content["annotations"]:
            annotation["category_id"] = annotation["category_id"] % classes + 1
        path.write_text(json.dumps(content))
    voc = tiny_voc / "voc"
    data = ["--dataset", "custom", "--data_path", str(voc), "--train_images", "images"]
    data += ["--train_annotations", "annotations/pascal_trainval0712.json"]
    arguments = [*small(tmp_path, tiny_voc, *short, "--num_epochs", "2", "--resume"), *data]
    done = main(*arguments)
    assert done.returncode == 0, done.stderr
    assert "other shape, own values kept: hm.2.weight, hm.2.bias" in done.stdout
    assert "optimizer state of 2 parameter(s) reinitialized (exp_avg has another shape): hm.2.weight, hm.2.bias" in (
        done.stdout
    )
    assert f"hm.2.weight has the shape (20, 64, 1, 1) instead of ({classes}, 64, 1, 1)" in done.stdout
    content = torch.load(tmp_path / RUN / "model_last.pth", weights_only=True)
    names = [name for name in content["state_dict"] if not name.endswith(("mean", "var", "tracked"))]
    entry = content["optimizer"]["state"]
    assert entry[names.index("hm.2.bias")]["exp_avg"].shape == (classes,)
    assert int(entry[names.index("hm.2.bias")]["step"]) == 3 and int(entry[names.index("conv1.weight")]["step"]) == 6


# One folder, one run


def test_two_runs_in_one_folder(main, tmp_path, tiny_voc):
    folder = tmp_path / RUN
    folder.mkdir(parents=True)
    code = (
        "import fcntl, sys; f = open(sys.argv[1], 'a+'); fcntl.lockf(f, fcntl.LOCK_EX); f.write('process 7 on here');"
    )
    code += " f.flush(); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(folder / ".lock")]
    owner = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        owner.stdout.readline()
        done = main(*recipe(tmp_path, tiny_voc))
        assert done.returncode == 2
        expected = f"error: {folder}: another training (process 7 on here) writes into this folder; wait for it, or "
        assert done.stderr == f"{expected}choose another --exp_id\n"
        assert [path.name for path in folder.iterdir()] == [".lock"]
    finally:
        owner.kill()
        owner.communicate()
    # A killed run leaves no lock behind, only a file that names its owner.
    assert main(*recipe(tmp_path, tiny_voc, "--num_epochs", "1", "--num_iters", "1")).returncode == 0


# A full disk


def with_a_small_disk(arguments: list[str], megabytes: int) -> subprocess.CompletedProcess:
    """Run main.py where no file can be larger than this."""
    code = f"import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({megabytes} << 20,) * 2)\n"
    code += "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, MAIN, "ctdet", *arguments]
    environment = {**ENVIRONMENT, "PYTHONPATH": str(Path(MAIN).parent)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_a_full_disk_ends_with_one_line_and_leaves_the_last_checkpoint(main, tmp_path, tiny_voc, undisturbed):
    arguments = recipe(tmp_path, tiny_voc)
    assert main(*arguments, "--num_epochs", "1").returncode == 0
    last = tmp_path / RUN / "model_last.pth"
    before = last.read_bytes()
    done = with_a_small_disk([*arguments, "--resume"], 20)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    expected = rf"error: {last}: cannot be written \(File too large\); the earlier file is unchanged"
    assert re.match(expected, done.stderr)
    assert last.read_bytes() == before and not list(last.parent.glob(".tmp-*"))
    assert main(*arguments, "--resume").returncode == 0
    assert losses(tmp_path / RUN) == losses(undisturbed(main, tiny_voc))


# Numbers


def poison(monkeypatch, iterations: set[int]) -> None:
    """Make the network's input of these iterations, from 1, not a number."""
    original, count = trainer_module.finish_batch, [0]

    def finish(batch, task):
        batch = original(batch, task)
        count[0] += 1
        if count[0] in iterations:
            batch["input"] = batch["input"] * float("nan")
        return batch

    monkeypatch.setattr(trainer_module, "finish_batch", finish)


def test_a_loss_that_is_not_a_number_stops_the_run_and_keeps_its_batch(main, tmp_path, tiny_voc, monkeypatch):
    poison(monkeypatch, {5})
    done = main(*recipe(tmp_path, tiny_voc))
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    found = re.match(
        r"error: iteration 5 of epoch 2: the loss is not finite \(loss nan, .*\); images (\d) \(00000\d.jpg\), "
        r"(\d) \(00000\d.jpg\); the batch is in (\S+); try a lower --lr, or --on_nan skip",
        done.stderr,
    )
    assert found, done.stderr
    dump = torch.load(found[3], weights_only=True)
    assert dump["image_ids"] == [int(found[1]), int(found[2])] and dump["iteration"] == 5
    assert dump["batch"]["image"].shape == (2, 64, 64, 3) and dump["file_names"][0] == f"{found[1]:0>6}.jpg"
    # The checkpoint holds nothing of it, so a run without the cause can resume.
    monkeypatch.undo()
    assert main(*recipe(tmp_path, tiny_voc, "--resume")).returncode == 0
    assert len(losses(tmp_path / RUN)) == 10


def test_an_update_that_is_not_a_number_can_be_skipped(main, tmp_path, tiny_voc, monkeypatch):
    poison(monkeypatch, {2})
    arguments = ["--on_nan", "skip", "--num_epochs", "1", "--val_intervals", "0"]
    done = main(*small(tmp_path, tiny_voc, *arguments))
    assert done.returncode == 0, done.stderr
    assert "warning: iteration 2 of epoch 1: the loss is not finite (loss nan" in done.stdout
    assert "its update is skipped; images " in done.stdout
    assert "epoch 1: 1 of 3 updates were skipped, because their gradients were not finite\n" in done.stdout
    table = losses(tmp_path / RUN)
    assert [row[2] == "nan" for row in table[1:]] == [False, True, False]
    content = torch.load(tmp_path / RUN / "model_last.pth", weights_only=True)
    assert all(value.isfinite().all() for value in content["state_dict"].values())
    assert {int(state["step"]) for state in content["optimizer"]["state"].values()} == {2}
    assert {int(v) for name, v in content["state_dict"].items() if name.endswith("num_batches_tracked")} == {2}


def test_a_run_of_nothing_but_bad_updates_ends(main, tmp_path, tiny_voc, monkeypatch):
    poison(monkeypatch, set(range(99)))
    monkeypatch.setattr(nan_guard, "MAX_SKIPPED", 4)
    done = main(*small(tmp_path, tiny_voc, "--on_nan", "skip", "--num_epochs", "9", "--val_intervals", "0"))
    assert done.returncode == 2
    assert (
        "iteration 4 of epoch 2: the loss is not finite" in done.stderr
        and "as in the 3 iterations before" in done.stderr
    )


def test_images_skipped_before_the_interruption_are_reported_at_the_end(main, tmp_path, tiny_voc, monkeypatch):
    index = TrainBatches(6, [2], 0, opts().parse(["ctdet"]).seed).whole(0)[0][1]  # of the first iteration
    image = tiny_voc / f"voc/images/{index + 1:06}.jpg"
    image.write_bytes(b"no image")
    short = ["--num_epochs", "1", "--val_intervals", "0"]
    with monkeypatch.context() as patch:
        signal_at(patch, 1, signal.SIGTERM)
        stopped = main(*recipe(tmp_path, tiny_voc, *short))
    assert stopped.returncode == 143 and "could not be used" not in stopped.stdout
    resumed = main(*recipe(tmp_path, tiny_voc, *short, "--resume"))
    assert resumed.returncode == 0, resumed.stderr
    assert f"epoch 1, training (replaced by the next readable image): 1 image(s) could not be used: {image}" in (
        resumed.stdout
    )
