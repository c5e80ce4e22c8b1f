"""``--loggers``: Weights & Biases and MLflow in their offline modes, and what happens without them."""

import json
import sqlite3
import subprocess
import sys
from types import SimpleNamespace

import pytest
from tests.helpers.training import MAIN, small

from centernet.engine import loggers
from centernet.engine.loggers import Loggers
from centernet.errors import UserError
from centernet.opts import opts


def options(*names):
    return SimpleNamespace(loggers=list(names), task="ctdet", exp_id="mine")


class Tracker:
    """Records what it gets; as a package that is installed."""

    def __init__(self, name, folder, config, run_id):
        self.id, self.name, self.config, self.epochs, self.closed = run_id or "new", name, config, {}, False

    def log(self, epoch, values):
        if epoch == 3:
            raise OSError("the server is gone\nsecond line")
        self.epochs[epoch] = values

    def close(self, failed):
        self.closed = "failed" if failed else "finished"


@pytest.fixture
def started(monkeypatch):
    """The trackers that were started; the packages are replaced."""
    found = []

    def start(*arguments):
        found.append(Tracker(*arguments))
        return found[-1]

    monkeypatch.setattr(loggers, "LOGGERS", dict.fromkeys(("wandb", "mlflow"), start))
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    return found


def test_values_and_failures(started, tmp_path, capsys):
    board = Loggers(options("wandb", "mlflow"), tmp_path, {"lr": 1}, resumed=False)
    assert [one.name for one in started] == ["ctdet/mine"] * 2 and started[0].config == {"lr": 1}
    board.write_epoch(1, {"loss": 2.0}, None)
    board.write_epoch(2, {"loss": 1.0}, {"mAP": 0.5, "AP/cat": float("nan")})
    assert started[0].epochs == {1: {"train_loss": 2.0}, 2: {"train_loss": 1.0, "val_mAP": 0.5}}
    board.write_epoch(3, {"loss": 1.0}, None)
    board.write_epoch(4, {"loss": 1.0}, None)
    text = "warning: --loggers {}: the server is gone; nothing more is logged there\n"
    assert capsys.readouterr().out == text.format("wandb") + text.format("mlflow")
    assert list(started[0].epochs) == [1, 2]
    other = Loggers(options("wandb"), tmp_path, {}, resumed=False)
    other.close()
    assert started[-1].closed == "finished"


def test_runs_of_a_training_that_fails_end_with_it(main, started, tmp_path, tiny_voc, monkeypatch):
    """Otherwise the next training in the same process, such as a notebook, would find them active."""
    failing = small(tmp_path, tiny_voc, "--lr", "1e30", "--num_epochs", "9", "--val_intervals", "0")
    assert main(*failing, "--loggers", "wandb,mlflow").returncode == 2
    assert [one.closed for one in started] == ["failed"] * 2
    monkeypatch.setitem(loggers.LOGGERS, "mlflow", Tracker.log)
    assert main(*failing, "--loggers", "wandb,mlflow").returncode == 2
    assert started[2].closed == "failed"


def test_a_resumed_training_continues_its_run(started, tmp_path):
    Loggers(options("wandb"), tmp_path, {}, resumed=False)
    (tmp_path / "loggers.json").write_text('{"wandb": "abc"}')
    Loggers(options("wandb", "mlflow"), tmp_path, {}, resumed=True)
    assert [one.id for one in started] == ["new", "abc", "new"]
    assert json.loads((tmp_path / "loggers.json").read_text()) == {"wandb": "abc", "mlflow": "new"}
    (tmp_path / "loggers.json").write_text("[")
    Loggers(options("wandb"), tmp_path, {}, resumed=True)
    assert started[-1].id == "new"


def test_mistakes(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="--loggers wandb: needs a package that is missing: pip install wandb"):
        Loggers(options("wandb"), tmp_path, {}, resumed=False)
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace())

    def fail(*_):
        raise RuntimeError(" no login\nmore")

    monkeypatch.setitem(loggers.LOGGERS, "mlflow", fail)
    with pytest.raises(UserError, match="^--loggers mlflow: cannot start a run: no login$"):
        Loggers(options("mlflow"), tmp_path, {}, resumed=False)
    with pytest.raises(SystemExit):
        opts().parse(["ctdet", "--loggers", "wandb,neptune"])
    assert "--loggers neptune: choose from wandb, mlflow" in capsys.readouterr().err
    assert opts().parse(["ctdet", "--loggers", "wandb,mlflow"]).loggers == ["wandb", "mlflow"]
    assert opts().parse(["ctdet"]).loggers == []


def test_offline_runs_of_a_training(main, tmp_path, tiny_voc, monkeypatch):
    """Two epochs, then a third after resuming: one run in each package."""
    pytest.importorskip("wandb")
    mlflow = pytest.importorskip("mlflow")
    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "MLFLOW_TRACKING_URI": f"file://{tmp_path}/mlruns",
        "MLFLOW_ALLOW_FILE_STORE": "true",
    }.items():
        monkeypatch.setenv(name, value)
    mlflow.set_tracking_uri(f"file://{tmp_path}/mlruns")
    arguments = small(tmp_path, tiny_voc, "--val_intervals", "2")
    arguments += ["--num_iters", "1", "--loggers", "wandb,mlflow"]
    done = main(*arguments, "--num_epochs", "2")
    assert done.returncode == 0 and "warning: --loggers" not in done.stdout, done.stderr + done.stdout
    folder = tmp_path / "exp/ctdet/default"
    ids = json.loads((folder / "loggers.json").read_text())
    done = main(*arguments, "--num_epochs", "3", "--resume")
    assert done.returncode == 0 and "warning: --loggers" not in done.stdout, done.stderr + done.stdout
    assert json.loads((folder / "loggers.json").read_text()) == ids
    runs = list((folder / "wandb").glob(f"offline-run-*-{ids['wandb']}/run-{ids['wandb']}.wandb"))
    assert 1 <= len(runs) <= 2 and all(b"train_loss" in path.read_bytes() for path in runs)
    client = mlflow.MlflowClient()
    history = client.get_metric_history(ids["mlflow"], "train_loss")
    assert [point.step for point in history] == [1, 2, 3]
    assert [point.step for point in client.get_metric_history(ids["mlflow"], "val_mAP")] == [2, 3]
    assert client.get_run(ids["mlflow"]).data.params["arch"] == "res_18"


def test_mlflow_needs_no_server(tmp_path, tiny_voc, monkeypatch):
    """The package of the extra ``mlflow`` writes a database; ``mlflow-skinny`` does not."""
    pytest.importorskip("mlflow")
    pytest.importorskip("alembic")  # a dependency of the full package
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.delenv(name, raising=False)
    arguments = small(tmp_path, tiny_voc, "--val_intervals", "0", "--num_iters", "2", "--num_epochs", "1")
    command = [sys.executable, MAIN, "ctdet", *arguments, "--loggers", "mlflow"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "warning: --loggers" not in done.stdout, done.stderr + done.stdout
    (run_id,) = json.loads((tmp_path / "exp/ctdet/default/loggers.json").read_text()).values()
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        rows = database.execute("SELECT step FROM metrics WHERE run_uuid = ? AND key = 'train_loss'", (run_id,))
        assert rows.fetchall() == [(1,)]
