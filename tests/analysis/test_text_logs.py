"""Reading the console logs of other programs: their formats, and files of any content in linear time."""

import contextlib
import json

import numpy as np
import pytest
from tests.helpers.timing import growth

from centernet.analysis.read import MAX_LINE, read_curve, read_loss, read_run
from centernet.errors import UserError

LOSSES = [3.5, 2.5, 2.25, 1.75, 1.5, 1.25]


@pytest.fixture
def read(tmp_path):
    """Read lines as a file and return the curve."""

    def read_lines(lines, name="vendor.log"):
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n")
        return read_loss(path)

    return read_lines


@pytest.mark.parametrize(
    "line",
    [
        "rank : 0  train.loss : {x}  train.ips : 12.3 imgs/s",
        "DLL 2026-01-01 12:00:00.123456 - Epoch: 0 Iteration: {i}  rank : 0  train.loss : {x}  train.ips : 12.3 imgs/s",
        'DLLL {{"timestamp": 1.5, "type": "LOG", "step": [0, {i}], "data": {{"rank": "0", "train.loss": {x}}}}}',
        'DLLL {{"type": "LOG", "step": {n}, "data": {{"train.loss": "{x}", "train.ips": 12.3}}}}',
        "Iter[{i}] step_train_loss {x} lr 1.00e-04",
        "Iter[{n}] step_train_loss {x} lr 1.00e-04",
        "Iteration {n}/6 - Loss: {x}",
        "iteration {n} | loss: {x} | 12.3 it/s",
        "Epoch 0:  50%|#####     | {n}/6 [00:05<00:05,  2.35it/s, loss={x}, v_num=0]",
        "[2026-01-01] Epoch [1][{n}/6] lr: 1.0e-3, time: 0.5, loss: {x}",
        "{{'loss': {x}, 'learning_rate': 5e-05, 'step': {n}}}",
    ],
)
def test_every_iteration(read, line):
    lines = [line.format(i=i, n=i + 1, x=x) for i, x in enumerate(LOSSES)]
    curve = read(["Start", *lines, "Validation loss: 7.0", "Done"])
    assert curve.loss.tolist() == LOSSES and curve.first == 1


def test_dllogger_json_leaves_out_other_entries(read):
    def entry(step, **data):
        return "DLLL " + json.dumps({"timestamp": "1", "type": "LOG", "step": step, "data": data})

    lines = [
        "DLLL " + json.dumps({"type": "PARAMETER", "step": "PARAMETER", "data": {"train.loss": 9}}),
        entry([0, 0], **{"train.loss": 3.0}),
        entry([0, 1], **{"train.loss": 2.0}),
        entry([0, 1, 0], loss=7.0),
        entry([0], **{"val.loss": 8.0}),
        entry([], **{"train.loss": 9.0, "mAP": 0.5}),
        "DLLL {broken",
        entry([1, 0], **{"train.loss": 1.0}),
        "loss: 5",
    ]
    lines = [line for line in lines if '"step": []' not in line]
    assert read(lines).loss.tolist() == [3, 2, 1]


def test_losses_of_several_ranks(read):
    lines = [f"rank : {rank}  train.loss : {x + rank}" for x in LOSSES for rank in (1, 0)]
    curve = read(lines)
    assert curve.loss.tolist() == LOSSES
    assert any("losses of 2 ranks: those of rank 0 are read" in note for note in curve.notes)


def test_losses_of_every_tenth_iteration_stand_for_their_intervals(read):
    curve = read([f"Iter[{i}] step_train_loss {x}" for i, x in zip(range(10, 40, 10), (3, 2, 1), strict=True)])
    assert curve.loss.tolist() == [3.0] * 10 + [2.0] * 10 + [1.0] * 10
    assert any("printed every 10 iterations" in note for note in curve.notes)
    from_zero = read([f"Iter[{i}] step_train_loss {x}" for i, x in zip(range(0, 30, 10), (3, 2, 1), strict=True)])
    assert from_zero.loss.tolist() == [3.0] + [2.0] * 10 + [1.0] * 10


def test_epochs_and_resumed_runs(read):
    lines = [f"Epoch {e} Iteration {i}/3 - Loss: {e}.{i}" for e in (1, 2) for i in (1, 2, 3)]
    values = [1.1, 1.2, 1.3, 2.1, 2.2, 2.3]
    assert read(lines).loss.tolist() == values
    assert read(lines[:5] + lines[3:]).loss.tolist() == values  # resumed in the second epoch
    assert read(lines[:5] + lines[1:]).loss.tolist() == values  # resumed in the first
    without_epochs = [line.split(" ", 2)[2] for line in lines]
    assert read(without_epochs).loss.tolist() == values
    over_all = [f"Epoch {1 + i // 3}, iteration {i + 1}: loss={x}" for i, x in enumerate(values)]
    assert read(over_all).loss.tolist() == values


@pytest.mark.parametrize("interval", [1, 2, 3, 5])
def test_epochs_whose_length_is_not_stated(read, interval):
    """Each epoch counts from 0, and only every so many iterations are printed."""
    length = 3 * interval
    lines = [
        f"Epoch: {e} Iteration: {i}  rank : 0  train.loss : {e}.{i:02d}"
        for e in range(4)
        for i in range(0, length, interval)
    ]
    curve = read(lines)
    places = [e * length + i + 1 for e in range(4) for i in range(0, length, interval)]
    assert curve.last == places[-1]
    assert [curve.loss[place - 1] for place in places] == [float(line.split()[-1]) for line in lines]
    assert any("how many iterations an epoch has" in note for note in curve.notes) == (interval > 1)
    with pytest.raises(UserError, match="one line per epoch, of its first iteration.*print more often"):
        read(lines[::3])


def test_repeated_iterations_are_noted(read):
    lines = [f"Iter[{i}] step_train_loss 1.0" for _ in range(3) for i in range(8)]
    curve = read(lines)
    assert len(curve.loss) == 8
    assert any("repeats iterations" in note and "16 of 24 are left out" in note for note in curve.notes)


def test_logs_that_start_later(read):
    curve = read([f"Iter[{i}] step_train_loss {i}.5" for i in (501, 502, 503)])
    assert curve.first == 501 and curve.last == 503 and len(curve.loss) == 3
    assert curve.notes[-1].endswith("starts at iteration 501")
    curve = read([f"Epoch 3 Iteration {i}/10 - Loss: {i}" for i in range(1, 11)])
    assert (curve.first, len(curve.loss)) == (21, 10)
    curve = read([f"ctdet/x| train: [4][{i}/8]|Tot: 0:00 |loss 2.0 |hm_loss 1 " for i in range(8)])
    assert (curve.first, len(curve.loss)) == (25, 8)


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ([f"Iter[{i}] step_train_loss 1.0" for i in (1, 2, 3, 9, 10)], "iterations 4 to 8 are missing"),
        ([f"Epoch {e} Iteration {i}/2 - Loss: 1" for e in (1, 3) for i in (1, 2)], "epoch 3 follows epoch 1"),
        ([f"Iter[{10**8}] step_train_loss 1.0"], "more than 10000000 iterations"),
    ],
)
def test_missing_iterations_are_refused(read, lines, problem):
    with pytest.raises(UserError, match=problem):
        read(lines)


@pytest.mark.parametrize("bar", ["[=====>....]", "\u2501\u2501\u2501\u2501"])
def test_keras_prints_averages_over_the_epoch(read, bar):
    lines = []
    for epoch, losses in enumerate(([4.0, 2.0, 3.0], [2.0, 1.0, 1.5]), 1):
        lines.append(f"Epoch {epoch}/2")
        for i in range(3):
            lines.append(f"{i + 1}/3 {bar} - ETA: 1s - loss: {np.mean(losses[: i + 1]):.8f} - accuracy: 0.5")
        lines.append(f"3/3 {bar} - 5s 1s/step - loss: {np.mean(losses):.8f} - accuracy: 0.5 - val_loss: 9.0")
    np.testing.assert_allclose(read(lines).loss, [4, 2, 3, 2, 1, 1.5], atol=1e-6)


def test_logs_of_windows_consoles(tmp_path):
    path = tmp_path / "redirected.log"
    path.write_bytes("loss: 2.5\r\nloss: 1.5\r\n".encode("utf-16"))
    assert read_loss(path).loss.tolist() == [2.5, 1.5]


def test_tables_are_read_by_their_iterations(read):
    def table(header, rows):
        return read([header, *(",".join(map(str, row)) for row in rows)], "table.csv")

    every_tenth = table("step,loss", [(10, 3), (20, 2), (30, 1)])
    assert every_tenth.loss.tolist() == [3.0] * 10 + [2.0] * 10 + [1.0] * 10
    assert any("printed every 10 iterations" in note for note in every_tenth.notes)
    twice = table("iteration,loss", [(i, x) for i, x in enumerate(LOSSES, 1) for _ in range(2)])
    assert twice.loss.tolist() == LOSSES
    resumed = table("iter,loss", [(1, 9), (2, 8), (3, 7), (2, 6), (3, 5)])
    assert resumed.loss.tolist() == [9, 6, 5]
    lightning = table("epoch,step,train_loss,val_loss", [(0, 0, 3, ""), (0, 1, 2, ""), (0, 1, "", 7), (1, 2, 1, "")])
    assert lightning.loss.tolist() == [3, 2, 1]
    fractions = table("epoch,step,loss", [(0.5, 1, 3), (1.0, 2, 2), (1.5, 3, 1)])
    assert fractions.loss.tolist() == [3, 2, 1]
    of_epochs = table("epoch,iteration,loss", [(e, i, 10 * e + i) for e in (1, 2) for i in (1, 2, 3)])
    assert of_epochs.loss.tolist() == [11, 12, 13, 21, 22, 23]
    for rows, problem in (
        ([(3, 1), (2, 2), (1, 3)], "its iterations count down"),
        ([(1, 1), (2, 2), (9, 3), (10, 4)], "iterations 3 to 8 are missing"),
        ([("a", 1)], "'a' in column step is not an iteration"),
        ([(1.5, 1)], "'1.5' in column step is not an iteration"),
        ([(1, "x")], "'x' as the loss is not a number"),
        ([(1, "")], "has a header and no iterations"),
    ):
        with pytest.raises(UserError, match=problem):
            table("step,loss", rows)


def test_a_sentence_with_the_word_loss_is_not_a_header(read):
    assert read(["Start training with focal loss", "step 1 loss: 2.5", "step 2 loss: 1.5"]).loss.tolist() == [2.5, 1.5]


def test_tensorboard_event_files(tmp_path):
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "board")) as board:
        for i, x in enumerate(LOSSES, 1):
            board.add_scalar("train/loss", x, i)
            board.add_scalar("lr", 0.1, i)
    (file,) = (tmp_path / "board").iterdir()
    for path in (file, tmp_path / "board"):
        assert read_curve(path).loss.tolist() == LOSSES
    with SummaryWriter(str(tmp_path / "other")) as board:
        board.add_scalar("lr", 0.1, 1)
    with pytest.raises(UserError, match="none of its tags is the training loss; found lr"):
        read_curve(tmp_path / "other")


def test_event_files_need_tensorboard(tmp_path, monkeypatch):
    path = tmp_path / "events.out.tfevents.1.host"
    path.write_bytes(b"\0" * 9)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        read_curve(path)


# Any file, in linear time

TRAIN = "train: [1][0/924]"
HOSTILE = {
    "digits of a loss": "loss=" + "1" * 20_000,
    "digits of an epoch": f"train: [{'1' * 5000}][0/924]|loss 2.0 |",
    "digits of an iteration": f"train: [1][{'1' * 5000}/924]|loss 2.0 |",
    "iterations of an epoch": "train: [1][999999999/999999999]|loss 2.0 |",
    "repeats": TRAIN * 50_000,
    "repeats with a bar": f"{TRAIN}|" * 50_000,
    "repeats of a loss": "loss: " * 150_000,
    "losses in a line": "loss: 1 " * 100_000,
    "spaces": "loss" + " " * 900_000 + "=",
    "terminal codes": "\x1b[" + "0;" * 400_000,
    "points": "loss: " + "." * 900_000,
    "a progress bar": "1/2 [" + "=" * 900_000 + " - loss: 1",
    "many progress bars": "1/2 [==" * 100_000 + " - loss: 1",
    "nested JSON": 'DLLL {"data": ' + "[" * 400_000,
    "numbers of JSON": 'DLLL {"step": ' + "1" * 400_000 + ', "data": {"loss": 1}}',
    "a long line": "x" * (MAX_LINE + 10),
    "quotes": 'loss,"' + "a\n" * 400_000,
    "commas": "loss" + "," * 900_000,
    "a long number": "9" * 900_000,
    "a long cell": "step,loss\n1," + "9" * 100_000,
    "steps in words": "iteration " * 90_000 + "loss: 1",
    "fractions": "1/" * 400_000 + " loss: 1",
    "ranks": "rank " * 180_000 + "loss: 1",
    "an own log": "epoch,iteration,loss,lr,images/s\n1,1,1,1,1\n1," + "9" * 5000 + ",1,1,1",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_end_in_a_line(tmp_path, name):
    path = tmp_path / "train_log.csv"
    path.write_text(HOSTILE[name])
    for reader in (read_curve, read_run):
        try:
            curve = reader(path)
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 1500
        else:
            assert reader is read_curve and len(curve.loss) < 10


def hostile_file(path, name, size):
    """Write the hostile text of that name, line after line, until the file has the size."""
    line = HOSTILE[name] + "\n"
    with path.open("w") as file:
        for _ in range(size // len(line) + 1):
            file.write(line)


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_time_is_linear(tmp_path, name):
    """Ten times the file takes about ten times as long; a quadratic reader takes a hundred times as long."""

    def reading(size):
        hostile_file(tmp_path / "file.log", name, size)
        return read

    def read() -> None:
        with contextlib.suppress(UserError):
            read_loss(tmp_path / "file.log")

    assert growth(reading, (5_000_000, 50_000_000)) < 30


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        "ctdet/x| train: [{e}][{i}/1000]|Tot: 0:00:01 |ETA: 0:00:01 |loss 2.3456 |hm_loss 1.2 |Net 0.5s",
        "Iteration {n} - Loss: 1.2345 - lr 0.0001 - some more words of a vendor's log that nobody needs",
        "loss: 2.5 lr 0.0001 some more words of a vendor's log that nobody needs, and still more of them",
    ],
)
def test_a_long_honest_log(tmp_path, line):
    path, counts = tmp_path / "file.log", []

    def reading(count):
        with path.open("w") as file:
            file.writelines(line.format(n=n + 1, e=n // 1000 + 1, i=n % 1000) + "\n" for n in range(count))
        return lambda: counts.append(len(read_loss(path).loss))

    sizes = (50_000, 500_000)
    assert growth(reading, sizes) < 30
    assert tuple(counts) == sizes
