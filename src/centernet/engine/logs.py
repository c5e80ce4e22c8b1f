"""What runs wrote down: read ``train_log.csv`` and ``val_log.csv``, and draw one or several runs into one image."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import UserError
from .curves import (
    default_window,
    drop_repeated,
    is_own_log,
    moving_average,
    outline,
    read_json,
    read_text,
    split_table,
)

COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:olive")
COLUMNS = 4  # panels beside one another


@dataclass
class RunLog:
    """The logs of one run.

    Attributes:
        folder: the run folder.
        train: ``train_log.csv`` by column, each (iterations,) float64: epoch, iteration, losses, lr, images/s.
        val: ``val_log.csv`` by column, each (validations,) float64; NaN where a row has no number. Empty without one.
        info: ``opt.json``; empty without one.
    """

    folder: Path
    train: dict[str, np.ndarray]
    val: dict[str, np.ndarray] = field(default_factory=dict)
    info: dict = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def losses(self) -> list[str]:
        """The names of the loss and its parts."""
        return [name for name in self.train if name not in ("epoch", "iteration", "lr", "images/s")]

    @property
    def scores(self) -> list[str]:
        """The names of the scores of validations, the main one first, those of single classes left out."""
        others = {"epoch", "time", *self.losses}
        names = [name for name in self.val if name not in others and "/" not in name]
        main = self.info.get("options", {}).get("main_score")
        return sorted(names, key=lambda name: name != main)

    @property
    def epochs(self) -> np.ndarray:
        """(iterations,) how many epochs were done after each iteration, with the part of the running one."""
        first = {epoch: i for i, epoch in reversed(list(enumerate(self.train["epoch"].tolist())))}
        start = np.array([first[epoch] for epoch in self.train["epoch"].tolist()])
        counts = np.bincount(self.train["epoch"].astype(int))
        length = np.maximum(counts[self.train["epoch"].astype(int)], counts.max())  # the last may not be complete yet
        return self.train["epoch"] - 1 + (np.arange(len(start)) - start + 1) / length


def read_run(path: Path) -> RunLog:
    """The logs of a run folder, or of the folder of a ``train_log.csv``.

    Raises:
        UserError: there is none, or it is no log of this project.
    """
    folder = path.parent if path.is_file() else path
    log = folder / "train_log.csv"
    if not log.is_file():
        raise UserError(f"{path}: is no run folder, there is no {log.name} in it")
    columns, rows = split_table(read_text(log), log)
    if not is_own_log(columns):
        raise UserError(f"{log}: its columns are not those of a training's log ({', '.join(columns[:9])})")
    rows = drop_repeated(rows, log)
    if not rows:
        raise UserError(f"{log}: has no iterations yet")
    train, val = _numbers(columns, rows, log), {}
    if (folder / "val_log.csv").is_file():
        path = folder / "val_log.csv"
        columns, rows = split_table(read_text(path), path)
        if columns[:1] != ["epoch"]:
            raise UserError(f"{path}: its first column is not epoch")
        val = _numbers(columns, rows, path)
    info = read_json(folder / "opt.json") if (folder / "opt.json").is_file() else {}
    return RunLog(folder, train, val, info)


def _numbers(columns: list[str], rows: list[list[str]], path: Path) -> dict[str, np.ndarray]:
    try:
        table = np.array([[float(cell) if cell else math.nan for cell in row] for row in rows], dtype=np.float64)
    except ValueError as error:
        raise UserError(f"{path}: a cell is no number ({error})") from None
    return dict(zip(columns, table.reshape(len(rows), len(columns)).T, strict=True))


def draw_runs(runs: list[RunLog], path, window: int | None = None, dpi: int = 120) -> None:
    """Draw loss and its parts, scores, learning rate and speed of the runs, a panel each, over the epochs.

    Args:
        runs: at least one; each has its color.
        path: file to write (its ending names the format), or a binary file for PNG.
        window: iterations of the moving average of losses and speed; default: as ``loss.py``.

    Raises:
        UserError: the file cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    losses = list(dict.fromkeys(name for run in runs for name in run.losses))
    panels = [*losses, *(["score"] if any(run.scores for run in runs) else []), "lr", "images/s"]
    count = math.ceil(len(panels) / COLUMNS)
    with matplotlib.rc_context({"text.parse_math": False, "font.size": 9}), np.errstate(all="ignore"):
        figure = Figure(figsize=(14, 0.5 + 2.8 * count), dpi=dpi, layout="constrained")
        axes = figure.subplots(count, COLUMNS, squeeze=False).ravel()
        for panel, place in zip(panels, axes, strict=False):
            for run, color in zip(runs, _colors(len(runs)), strict=True):
                _draw_panel(place, panel, run, color, window, alone=len(runs) == 1)
            _finish(place, panel, runs)
        for place in axes[len(panels) :]:
            place.set_visible(False)
        handles = [
            matplotlib.lines.Line2D([], [], color=color, linewidth=2.5, label=_label(run))
            for run, color in zip(runs, _colors(len(runs)), strict=True)
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=min(len(runs), 3), frameon=False, fontsize=10)
        try:
            figure.savefig(path, format=(path.suffix.lstrip(".") or "png") if isinstance(path, Path) else "png")
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: the image cannot be written ({error})") from error


def _colors(count: int) -> list[str]:
    return [COLORS[k % len(COLORS)] for k in range(count)]


def _label(run: RunLog) -> str:
    recipe, processes = run.info.get("recipe", {}), run.info.get("processes")
    parts = [recipe.get("arch"), recipe.get("dataset"), f"{processes} process(es)" if processes else None]
    about = ", ".join(str(part) for part in parts if part)
    return f"{run.name} ({about})" if about else run.name


def _draw_panel(axes, panel: str, run: RunLog, color: str, window: int | None, alone: bool) -> None:
    if panel == "score":
        # Several runs are compared by the main score; of one there is room for the first few.
        for k, name in enumerate(run.scores[: 4 if alone else 1]):
            shade = {"color": _colors(4)[k] if alone else color, "linewidth": 2 if k == 0 else 1.2}
            axes.plot(run.val["epoch"], run.val[name], "o-", markersize=3.5, label=name, **shade)
        return
    if panel not in run.train:
        return
    epochs, values = run.epochs, run.train[panel]
    if panel == "lr":
        axes.step(*_thinned(epochs, values), color=color, linewidth=1.8)
        return
    width = window or default_window(len(values))
    smooth = moving_average(values, width)
    centers = epochs[(width - 1) // 2 :][: len(smooth)]
    axes.plot(*_thinned(epochs, values), color=color, linewidth=0.6, alpha=0.25, zorder=1)
    axes.plot(*_thinned(centers, smooth), color=color, linewidth=1.8, zorder=3, label="training")
    if panel in run.val:
        style = {"color": "black" if alone else color, "markeredgecolor": "white", "markersize": 6}
        axes.plot(run.val["epoch"], run.val[panel], "D", zorder=4, label="validation", **style)


def _thinned(x: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The outline of a very long curve; others as they are."""
    places, shown = outline(values, 1)
    return (x, values) if len(shown) == len(values) else (x[places.astype(int) - 1], shown)


def _finish(axes, panel: str, runs: list[RunLog]) -> None:
    names = {"loss": "loss", "lr": "learning rate", "images/s": "images a second", "score": "score"}
    mains = list(dict.fromkeys(run.scores[0] for run in runs if run.scores))
    title = names.get(panel, panel)
    if panel == "score" and len(runs) > 1:
        title = " / ".join(mains)
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes.set_xlabel("epoch")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if panel in runs[0].losses:
        raw = np.concatenate([run.train[panel] for run in runs if panel in run.train])
        raw = raw[np.isfinite(raw)]
        if raw.size and raw.min() > 0 and raw.max() > 20 * np.median(raw):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
    if panel == "lr":
        rates = np.concatenate([run.train[panel] for run in runs])
        axes.set_yscale("log")
        axes.set_ylim(rates.min() / 2, rates.max() * 2)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    if panel in ("score", "images/s"):
        axes.set_ylim(bottom=0)
    axes.set_xlim(0, max(run.train["epoch"][-1] for run in runs) * 1.02)
    axes.locator_params(axis="x", integer=True)
    handles = axes.get_legend_handles_labels()[1]
    if panel == "score" and len(runs) == 1 or (panel == "loss" and "validation" in handles):
        kept = dict(zip(handles, axes.get_legend_handles_labels()[0], strict=True))
        axes.legend(kept.values(), kept.keys(), fontsize=8, frameon=False)
