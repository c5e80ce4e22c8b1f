"""Experiment trackers of ``--loggers``: Weights & Biases and MLflow, which get the averages of each epoch.

Both packages take their server, login and offline modes from their own environment variables (``WANDB_MODE``,
``MLFLOW_TRACKING_URI``, ...).
"""

import importlib
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..options import Options
from ..utils.files import write_json
from ..utils.text import print_line

PROJECT = "centernet"  # of W&B, and experiment of MLflow, unless their environment variables name another
IDS = "loggers.json"  # ids of the runs, so that a resumed training continues them


class WandbLogger:
    """A run of Weights & Biases.

    Attributes:
        package: package that it needs.
        id: of the run.
    """

    package = "wandb"

    def __init__(self, name: str, folder: Path, config: dict[str, Any], run_id: str | None) -> None:
        import wandb

        project = os.environ.get("WANDB_PROJECT", PROJECT)
        settings = wandb.Settings(console="off")  # leaves the terminal and its progress line alone
        self._run = wandb.init(
            project=project, name=name, dir=str(folder), config=config, id=run_id, resume="allow", settings=settings
        )
        self._run.define_metric("epoch")
        self._run.define_metric("*", step_metric="epoch")
        self.id = self._run.id

    def log(self, epoch: int, values: dict[str, float]) -> None:
        """Write the values of an epoch."""
        self._run.log({"epoch": epoch, **values})

    def close(self, failed: bool) -> None:
        """End the run."""
        self._run.finish(exit_code=int(failed))


class MLflowLogger:
    """A run of MLflow. Attributes as in ``WandbLogger``."""

    package = "mlflow"

    def __init__(self, name: str, folder: Path, config: dict[str, Any], run_id: str | None) -> None:
        import mlflow

        self._mlflow = mlflow
        if "MLFLOW_EXPERIMENT_NAME" not in os.environ and "MLFLOW_EXPERIMENT_ID" not in os.environ:
            mlflow.set_experiment(PROJECT)
        run = mlflow.start_run(run_id=run_id, run_name=None if run_id else name)
        self.id = run.info.run_id
        if not run_id:  # parameters cannot be changed later
            mlflow.log_params({key: str(value)[:500] for key, value in config.items()})

    def log(self, epoch: int, values: dict[str, float]) -> None:
        """Write the values of an epoch."""
        self._mlflow.log_metrics({re.sub(r"[^\w\-. /]", "_", key): value for key, value in values.items()}, step=epoch)

    def close(self, failed: bool) -> None:
        """End the run."""
        self._mlflow.end_run("FAILED" if failed else "FINISHED")


LOGGERS: dict[str, Callable[[str, Path, dict[str, Any], str | None], Any]] = {
    "wandb": WandbLogger,
    "mlflow": MLflowLogger,
}


class Loggers:
    """The trackers of a training. One that fails is reported and left out, because a training must not end with it."""

    def __init__(self, opt: Options, folder: Path, config: dict[str, Any], resumed: bool) -> None:
        """Start the runs, or continue those of the run directory ``folder`` if the training is ``resumed``.

        Args:
            opt: finished options.
            folder: the run directory.
            config: what describes the run, as plain values by name.
            resumed: whether the training is resumed.

        Raises:
            UserError: a package is missing, or a run cannot be started.
        """
        self._active: dict[str, Any] = {}
        known = _read_ids(folder / IDS) if resumed and opt.loggers else {}
        for name in opt.loggers:
            try:
                importlib.import_module(name)
            except ImportError as error:
                self.close(failed=True)
                raise UserError(f"--loggers {name}: needs a package that is missing: pip install {name}") from error
            try:
                run_name = f"{opt.task}/{opt.exp_id}"
                self._active[name] = LOGGERS[name](run_name, folder, config, known.get(name))
            except Exception as error:  # of any kind: no login, no server, ...
                self.close(failed=True)
                raise UserError(f"--loggers {name}: cannot start a run: {_first_line(error)}") from error
        if self._active:
            write_json(folder / IDS, {name: logger.id for name, logger in self._active.items()})

    def write_epoch(self, epoch: int, train: dict[str, float], val: dict[str, float] | None) -> None:
        """Write the averages of an epoch as ``train_<name>`` and ``val_<name>``, without values that are not finite."""
        values = {
            f"{phase}_{name}": value
            for phase, of_phase in (("train", train), ("val", val or {}))
            for name, value in of_phase.items()
            if math.isfinite(value)
        }
        self._call(lambda logger: logger.log(epoch, values))

    def close(self, failed: bool = False) -> None:
        """End the runs, as failed if the training has not come to its end: it may be resumed, or another may start."""
        self._call(lambda logger: logger.close(failed))
        self._active.clear()

    def _call(self, action: Callable[[Any], None]) -> None:
        for name, logger in list(self._active.items()):
            try:
                action(logger)
            except Exception as error:
                print_line(f"warning: --loggers {name}: {_first_line(error)}; nothing more is logged there")
                del self._active[name]


def _read_ids(path: Path) -> dict[str, str]:
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: value for name, value in ids.items() if isinstance(value, str)} if isinstance(ids, dict) else {}


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
