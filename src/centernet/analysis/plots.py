"""Draw loss curves, comparisons and run logs with matplotlib."""

import math
import textwrap
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..errors import UserError
from .compare import MAX_ABSOLUTE_ERROR, MAX_RELATIVE_ERROR, Comparison, default_window, moving_average
from .read import Curve, RunLog, run_name

# The plot shows a longer curve by the extremes of this many pieces.
MAX_PIECES = 3000
COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:olive")
COLUMNS = 4  # panels beside one another


def draw(run: Curve, reference: Curve, comparison: Comparison, path: Path) -> None:
    """Draw both curves and the relative error into ``path`` (the suffix names the format). UserError when it fails."""
    import matplotlib
    from matplotlib.figure import Figure

    # A dollar in a path is no formula.
    with matplotlib.rc_context({"text.parse_math": False}), np.errstate(all="ignore"):
        figure = Figure(figsize=(10, 6.5), dpi=120, layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1.2])
        _draw_losses(top, run, reference, comparison)
        _draw_errors(bottom, comparison)
        try:
            figure.savefig(path, format=path.suffix.lstrip(".") or "png")
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: the plot cannot be written ({error})") from error


def draw_many(runs: list[Curve], reference: Curve, comparisons: list[Comparison], file: BinaryIO) -> None:
    """Draw the smoothed losses of several runs and their reference, and the relative errors, as PNG."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"text.parse_math": False}), np.errstate(all="ignore"):
        figure = Figure(figsize=(10, 6.5), dpi=110, layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1.2])
        window = comparisons[0].window
        top.plot(*outline(reference.loss, 1), color="0.6", linewidth=0.6, alpha=0.5, zorder=1)
        smoothed = moving_average(reference.loss, window)
        top.plot(*outline(smoothed, window), color="black", linewidth=3, label=f"reference {reference.path.stem}")
        for k, (run, comparison) in enumerate(zip(runs, comparisons, strict=True)):
            style = {"color": f"C{k % 10}", "linewidth": 1.5}
            smoothed = moving_average(run.loss, comparison.window)
            top.plot(*outline(smoothed, comparison.window), label=run_name(run), **style)
            bottom.plot(*outline(comparison.relative_error * 100, comparison.window), **style)
        top.set_ylabel(f"loss, mean of {window} iterations")
        top.legend(loc="upper right", fontsize=9)
        bottom.axhline(MAX_RELATIVE_ERROR * 100, color="tab:red", linewidth=1.2, linestyle=":")
        bottom.set_ylim(bottom=0)
        bottom.set_ylabel("relative error in %")
        bottom.set_xlabel("iteration")
        for axes in (top, bottom):
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(file, format="png")


def _draw_losses(axes, run: Curve, reference: Curve, comparison: Comparison) -> None:
    window = comparison.window
    for curve, name, color, style in ((run, "run", "tab:orange", "-"), (reference, "reference", "tab:blue", "--")):
        smoothed = moving_average(curve.loss, window)
        axes.plot(*outline(curve.loss, 1), color=color, linewidth=0.6, alpha=0.3, zorder=1)
        label = f"{name}: {Path(*curve.path.parts[-3:])}"
        axes.plot(*outline(smoothed, window), style, color=color, linewidth=2, label=label, zorder=3)
    raw = np.concatenate([reference.loss, run.loss])
    raw = raw[np.isfinite(raw)]
    if raw.min() > 0 and raw.max() > 20 * np.median(raw):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylabel("loss")
    axes.legend(title=f"pale: every iteration, bold: mean of {window}", loc="upper right", fontsize=9, title_fontsize=9)
    axes.grid(alpha=0.25)
    axes.set_title(_title(comparison), color="tab:green" if comparison.passed else "tab:red", fontsize=10.5, loc="left")


def _draw_errors(axes, comparison: Comparison) -> None:
    centers, errors = outline(comparison.relative_error * 100, comparison.window)
    axes.fill_between(centers, errors, color="0.55", alpha=0.35, linewidth=0)
    axes.plot(centers, errors, color="0.35", linewidth=1)
    limit = MAX_RELATIVE_ERROR * 100
    axes.axhline(limit, color="tab:red", linewidth=1.2, linestyle=":", label=f"limit of the mean: {limit:g} %")
    if math.isfinite(comparison.mean_relative_error):
        mean = comparison.mean_relative_error * 100
        axes.axhline(mean, color="black", linewidth=1, linestyle="--", label=f"mean: {mean:.3g} %")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("relative error in %")
    axes.set_xlabel("iteration")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 0.98), ncols=2, frameon=False, fontsize=9)
    axes.grid(alpha=0.25)


def outline(values: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Iterations at the center of each window and values; of very many, the lowest and highest of each piece."""
    places = np.arange(len(values)) + (window + 1) / 2
    if len(values) <= 2 * MAX_PIECES:
        return places, values
    starts = np.linspace(0, len(values), MAX_PIECES, endpoint=False).astype(int)
    extremes = [np.fmin.reduceat(values, starts), np.fmax.reduceat(values, starts)]
    return np.repeat(places[starts], 2), np.stack(extremes, axis=1).ravel()


def _title(comparison: Comparison) -> str:
    parts = list(comparison.reasons)
    if not math.isnan(comparison.mean_relative_error):
        parts += [
            f"mean relative error {comparison.mean_relative_error * 100:.3g} % (limit {MAX_RELATIVE_ERROR * 100:g} %)",
            f"mean absolute error {comparison.mean_absolute_error:.3g} (limit {MAX_ABSOLUTE_ERROR:g})",
        ]
    title = f"{'PASS' if comparison.passed else 'FAIL'}: {'; '.join(parts)}"
    return "\n".join(textwrap.wrap(title, 105, max_lines=4, placeholder=" ..."))


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
