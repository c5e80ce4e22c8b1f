"""Write ``comparison.html``: the curves, scores and options of several runs in one page."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from .page_plots import log_curves
from .pages import write_page
from .read import RunLog, distinct_names, read_run

# Options that name a run or follow from its name.
NAMES = {"given", "exp_id", "save_dir", "debug_dir"}


def write_side_by_side(folders: list[Path], path: Path) -> None:
    """Write a page that shows runs side by side.

    Args:
        folders: at least two different run directories with at least ``train_log.csv``.
        path: the page.

    Raises:
        UserError: a run is given twice or cannot be read, or the page cannot be written.
    """
    runs = [read_run(folder) for folder in folders]
    names = distinct_names([run.folder for run in runs])
    write_page(
        path,
        "side_by_side.html",
        curves=log_curves(runs, names),
        names=names,
        notes=[f"{name}: {note}" for name, run in zip(names, runs, strict=True) for note in run.notes],
        columns=list(_row(runs[0])),
        rows=[list(_row(run).values()) for run in runs],
        classes=_classes(runs),
        differences=_differences(runs),
    )


def _row(run: RunLog) -> dict[str, Any]:
    """Return the main properties and results of a run."""
    recipe, last = run.info.get("recipe", {}), int(run.train["epoch"][-1])
    row = {name: recipe.get(name, "-") for name in ("task", "dataset", "arch")}
    row |= {"processes": run.info.get("processes", "-"), "device": run.info.get("device", "-"), "epochs": last}
    row |= {"score": "-", "best": math.nan, "at epoch": "-", "last": math.nan}
    if run.scores:
        values = run.val[run.scores[0]]
        row |= {"score": run.scores[0], "last": float(values[-1])}
        if np.isfinite(values).any():
            best = int(np.nanargmax(values))
            row |= {"best": float(values[best]), "at epoch": f"{run.val['epoch'][best]:.0f}"}
    row["loss"] = float(run.train["loss"][run.train["epoch"] == last].mean())
    row["images/s"] = float(np.median(run.train["images/s"]))
    return row


def _classes(runs: list[RunLog]) -> list[list[Any]]:
    """Return a row for each class: its name, and its AP in the last validation of each run, NaN without one."""
    last = [{name[3:]: float(values[-1]) for name, values in run.val.items() if name.startswith("AP/")} for run in runs]
    return [
        [name, *(scores.get(name, math.nan) for scores in last)]
        for name in dict.fromkeys(key for scores in last for key in scores)
    ]


def _differences(runs: list[RunLog]) -> list[list[Any]]:
    """Return a row for each option or version that is not the same in all runs: its name, and the values."""
    described = []
    for run in runs:
        values = {name: value for name, value in run.info.get("options", {}).items() if name not in NAMES}
        values |= {f"version of {name}": value for name, value in run.info.get("versions", {}).items()}
        described.append(values | {"git": run.info.get("git")})
    names = sorted({name for values in described for name in values})
    rows = [[name, *(values.get(name, "-") for values in described)] for name in names]
    return [row for row in rows if any(value != row[1] for value in row[2:])]
