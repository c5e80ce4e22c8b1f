"""Panels of curves over the epochs of runs, as data: ``plots.py`` draws them, ``page_plots.py`` embeds them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from .compare import default_window, moving_average
from .read import RunLog

# Longer curves are drawn as the extremes of this many pieces.
MAX_PIECES = 3000
TITLES = {"loss": "loss", "lr": "learning rate", "images/s": "images per second", "score": "score"}
MAX_SCORES = 4  # of a single run; several are compared by the main score


@dataclass
class Series:
    """One curve of a panel.

    Attributes:
        kind: ``every`` iteration, moving ``mean``, ``validation`` points, ``score`` points with lines, ``step``,
            ``line``.
        label: what it shows.
        run: index of the run.
        color: index of the color; None: that of the run, or for a single run black.
        x: (n,) float64, completed epochs.
        y: (n,) float64.
    """

    kind: str
    label: str
    run: int
    color: int | None
    x: np.ndarray
    y: np.ndarray


@dataclass
class Panel:
    """The curves of one quantity of all runs.

    Attributes:
        name: column of the logs, or ``score``.
        title: heading.
        log: whether the values span several orders of magnitude.
        from_zero: whether the vertical axis starts at 0.
        series: the curves, pale ones first.
    """

    name: str
    title: str
    log: bool
    from_zero: bool
    series: list[Series] = field(default_factory=list)


def log_panels(runs: list[RunLog], window: int | None = None, pieces: int = MAX_PIECES) -> list[Panel]:
    """Return the panels of loss terms, scores, learning rate and throughput.

    Args:
        runs: at least one.
        window: iterations of the moving average of losses and throughput; default: as in ``loss.py``.
        pieces: longer curves are shown as the extremes of this many pieces.
    """
    losses = list(dict.fromkeys(name for run in runs for name in run.losses))
    names = [*losses, *(["score"] if any(run.scores for run in runs) else []), "lr", "images/s"]
    panels = []
    for name in names:
        title = TITLES.get(name, name)
        if name == "score" and len(runs) > 1:
            title = " / ".join(dict.fromkeys(run.scores[0] for run in runs if run.scores))
        shown = np.concatenate([run.train[name] for run in runs if name in run.train] or [np.zeros(0)])
        log = name == "lr" or name in losses and needs_log_axis(shown)
        panel = Panel(name, title, log, from_zero=name in ("score", "images/s"))
        for index, run in enumerate(runs):
            panel.series += _series(name, run, index, window, pieces, alone=len(runs) == 1)
        panels.append(panel)
    return panels


def _series(name: str, run: RunLog, index: int, window: int | None, pieces: int, alone: bool) -> Iterator[Series]:
    if name == "score":
        for k, score in enumerate(run.scores[: MAX_SCORES if alone else 1]):
            yield Series("score", score, index, k if alone else index, run.val["epoch"], run.val[score])
        return
    if name not in run.train:
        return
    epochs, values = run.epochs, run.train[name]
    if name == "lr":
        yield Series("step", "learning rate", index, index, *_thin(epochs, values, pieces))
        return
    width = window or default_window(len(values))
    smooth = moving_average(values, width)
    centers = epochs[(width - 1) // 2 :][: len(smooth)]
    yield Series("every", "iteration", index, index, *_thin(epochs, values, pieces))
    yield Series("mean", "training", index, index, *_thin(centers, smooth, pieces))
    if name in run.val:
        yield Series("validation", "validation", index, None if alone else index, run.val["epoch"], run.val[name])


def epoch_span(runs: list[RunLog]) -> tuple[float, float]:
    """Return the epochs that the horizontal axis shows."""
    start = min(math.floor(run.epochs[0]) for run in runs)
    end = max(float(run.train["epoch"][-1]) for run in runs)
    return start, start + max(end - start, 1) * 1.02


def needs_log_axis(losses: np.ndarray) -> bool:
    """Return whether losses (n,) span several orders of magnitude."""
    losses = losses[np.isfinite(losses)]
    return bool(losses.size and losses.min() > 0 and losses.max() > 20 * np.median(losses))


def outline(values: np.ndarray, window: int, first: int = 1, pieces: int = MAX_PIECES) -> tuple[np.ndarray, np.ndarray]:
    """Return the iterations at the center of each window and its values; of very many, the extremes of each piece.

    Args:
        values: (n,), a value for each window.
        window: iterations of a window.
        first: first iteration of the first window.
        pieces: how many pieces.
    """
    places = np.arange(len(values)) + first + (window - 1) / 2
    if len(values) <= 2 * pieces:
        return places, values
    starts = np.linspace(0, len(values), pieces, endpoint=False).astype(int)
    extremes = [np.fmin.reduceat(values, starts), np.fmax.reduceat(values, starts)]
    return np.repeat(places[starts], 2), np.stack(extremes, axis=1).ravel()


def _thin(x: np.ndarray, values: np.ndarray, pieces: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the outline of a very long curve, and others unchanged."""
    places, shown = outline(values, 1, pieces=pieces)
    return (x, values) if len(shown) == len(values) else (x[places.astype(int) - 1], shown)
