"""Draw loss curves, comparisons and run logs with matplotlib."""

import io
import math
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import UserError
from ..utils.files import reason, write_bytes
from .compare import MAX_ABSOLUTE_ERROR, MAX_RELATIVE_ERROR, Comparison, moving_average
from .panels import Panel, Series, epoch_span, log_panels, needs_log_axis, outline
from .read import Curve, RunLog

COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:olive")
COLUMNS = 4  # panels next to one another


def draw_comparison(
    runs: list[Curve], reference: Curve, comparisons: list[Comparison], file: Path | BinaryIO, dpi: int = 120
) -> None:
    """Draw the losses of runs and their reference, and the relative errors below.

    A single run is drawn with every iteration, the limits and the verdict; of several, the smoothed losses are drawn.

    Args:
        runs, comparisons: at least one run, and the comparison of each.
        file: file to write, whose suffix names the format, or a binary file for PNG.

    Raises:
        UserError: the file cannot be written.
    """
    with _settings():
        figure, (top, bottom) = _figure(2, 1, (10, 6.5), dpi, sharex=True, height_ratios=[3, 1.2])
        if len(runs) == 1:
            _draw_run(top, bottom, runs[0], reference, comparisons[0])
        else:
            _draw_runs(top, bottom, runs, reference, comparisons)
        bottom.set_ylim(bottom=0)
        bottom.set_ylabel("relative error in %")
        bottom.set_xlabel("iteration")
        _save(figure, file)


def _draw_run(top, bottom, run: Curve, reference: Curve, comparison: Comparison) -> None:
    window = comparison.window
    for curve, name, color, style in ((run, "run", "tab:orange", "-"), (reference, "reference", "tab:blue", "--")):
        top.plot(*outline(curve.loss, 1, curve.first), color=color, linewidth=0.6, alpha=0.3, zorder=1)
        smoothed = outline(moving_average(curve.loss, window), window, curve.first)
        label = f"{name}: {Path(*curve.path.parts[-3:])}"
        top.plot(*smoothed, style, color=color, linewidth=2, label=label, zorder=3)
    _scale_losses(top, np.concatenate([reference.loss, run.loss]))
    top.set_ylabel("loss")
    top.legend(title=f"pale: every iteration, bold: mean of {window}", loc="upper right", fontsize=9, title_fontsize=9)
    top.set_title(_title(comparison), color="tab:green" if comparison.passed else "tab:red", fontsize=10.5, loc="left")

    centers, errors = _error_outline(comparison)
    bottom.fill_between(centers, errors, color="0.55", alpha=0.35, linewidth=0)
    bottom.plot(centers, errors, color="0.35", linewidth=1)
    limit = MAX_RELATIVE_ERROR * 100
    bottom.axhline(limit, color="tab:red", linewidth=1.2, linestyle=":", label=f"limit of the mean: {limit:g} %")
    if math.isfinite(comparison.mean_relative_error):
        mean = comparison.mean_relative_error * 100
        bottom.axhline(mean, color="black", linewidth=1, linestyle="--", label=f"mean: {mean:.3g} %")
    bottom.legend(loc="lower right", bbox_to_anchor=(1, 0.98), ncols=2, frameon=False, fontsize=9)


def _draw_runs(top, bottom, runs: list[Curve], reference: Curve, comparisons: list[Comparison]) -> None:
    window = comparisons[0].window
    top.plot(*outline(reference.loss, 1, reference.first), color="0.6", linewidth=0.6, alpha=0.5, zorder=1)
    smoothed = outline(moving_average(reference.loss, window), window, reference.first)
    top.plot(*smoothed, color="black", linewidth=3, label=f"reference {reference.path.stem}")
    for k, (run, comparison) in enumerate(zip(runs, comparisons, strict=True)):
        style: dict[str, Any] = {"color": f"C{k % 10}", "linewidth": 1.5}
        smoothed = outline(moving_average(run.loss, comparison.window), comparison.window, run.first)
        top.plot(*smoothed, label=run.name, **style)
        bottom.plot(*_error_outline(comparison), **style)
    _scale_losses(top, np.concatenate([reference.loss, *(run.loss for run in runs)]))
    top.set_ylabel(f"loss, mean of {window} iterations")
    top.legend(loc="upper right", fontsize=9)
    bottom.axhline(MAX_RELATIVE_ERROR * 100, color="tab:red", linewidth=1.2, linestyle=":")


def _error_outline(comparison: Comparison) -> tuple[np.ndarray, np.ndarray]:
    return outline(comparison.relative_error * 100, comparison.window, comparison.first)


def band_of(smoothed: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and half width of the band of single runs around smoothed losses (references, iterations)."""
    return smoothed.mean(0), limit * smoothed.std(0, ddof=1) * math.sqrt(1 + 1 / len(smoothed))


def draw_band(
    losses: np.ndarray, window: int, runs: list[Curve], limit: float, file: Path | BinaryIO, dpi: int = 110
) -> None:
    """Draw the smoothed losses of runs over those of a library and its band.

    Args:
        losses: (references, iterations) float64, the curves of the library.
        window: iterations of the moving average.
        runs: curves to draw over the band.
        limit: half the width of the band in standard deviations, for a single run.
        file: file to write, whose suffix names the format, or a binary file for PNG.
    """
    smoothed = np.stack([moving_average(loss, window) for loss in losses])
    mean, half = band_of(smoothed, limit)
    with _settings():
        figure, (top, bottom) = _figure(2, 1, (10, 6.5), dpi, sharex=True, height_ratios=[2, 1])
        places, _ = outline(mean, window)
        for axes, scale, shift in ((top, 1.0, 0.0), (bottom, 100 / mean, mean)):
            low, high = ((edge - shift) * scale for edge in (mean - half, mean + half))
            if len(places) == len(mean):
                axes.fill_between(
                    places, low, high, color="0.6", alpha=0.3, linewidth=0, label="95 % band of a single run"
                )
            else:
                for edge in (low, high):
                    axes.plot(*outline(edge, window), color="0.6", linewidth=1)
            for k, curve in enumerate(smoothed):
                label = f"{len(losses)} runs of the library" if k == 0 else None
                axes.plot(
                    *outline((curve - shift) * scale, window), color="0.45", linewidth=0.7, alpha=0.7, label=label
                )
            for k, run in enumerate(runs):
                curve = moving_average(run.loss[: losses.shape[1]], window)
                axes.plot(*outline((curve - shift) * scale, window), color=f"C{k % 10}", linewidth=1.7, label=run.name)
        _scale_losses(top, losses.ravel())
        top.set_ylabel(f"loss, mean of {window} iterations")
        top.legend(loc="upper right", fontsize=9)
        bottom.set_ylabel("deviation from the mean in %")
        bottom.set_xlabel("iteration")
        _save(figure, file)


def _title(comparison: Comparison) -> str:
    parts = list(comparison.reasons)
    if not math.isnan(comparison.mean_relative_error):
        parts += [
            f"mean relative error {comparison.mean_relative_error * 100:.3g} % (limit {MAX_RELATIVE_ERROR * 100:g} %)",
            f"mean absolute error {comparison.mean_absolute_error:.3g} (limit {MAX_ABSOLUTE_ERROR:g})",
        ]
    title = f"{'PASS' if comparison.passed else 'FAIL'}: {'; '.join(parts)}"
    return "\n".join(textwrap.wrap(title, 105, max_lines=4, placeholder=" ..."))


def draw_logs(
    runs: list[RunLog], names: list[str], file: Path | BinaryIO, window: int | None = None, dpi: int = 120
) -> None:
    """Draw loss terms, scores, learning rate and throughput of runs over the epochs, one panel each.

    Args:
        runs: at least one; each has its color.
        names: what to call each of them.
        file: file to write, whose suffix names the format, or a binary file for PNG.
        window: iterations of the moving average of losses and throughput; default: as in ``loss.py``.

    Raises:
        UserError: the file cannot be written.
    """
    import matplotlib

    panels, alone = log_panels(runs, window), len(runs) == 1
    rows = math.ceil(len(panels) / COLUMNS)
    with _settings(font_size=9):
        figure, axes = _figure(rows, COLUMNS, (14, 0.5 + 2.8 * rows), dpi)
        for panel, place in zip(panels, axes, strict=False):
            for series in panel.series:
                _draw_series(place, series, alone)
            _finish_panel(place, panel, epoch_span(runs), alone)
        for place in axes[len(panels) :]:
            place.set_visible(False)
        handles = [
            matplotlib.lines.Line2D([], [], color=_color(k), linewidth=2.5, label=_label(name, run))
            for k, (name, run) in enumerate(zip(names, runs, strict=True))
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=min(len(runs), 3), frameon=False, fontsize=10)
        _save(figure, file)


def draw_score_curves(panels: list[Panel], names: list[str], file: Path | BinaryIO, dpi: int = 110) -> None:
    """Draw curves of classes with values in [0, 1], one panel each.

    Args:
        panels: at most four; only the first ``len(names)`` classes are drawn.
        names: of the classes, by the ``run`` of a series.
        file: file to write, whose suffix names the format, or a binary file for PNG.
    """
    with _settings(font_size=9):
        figure, axes = _figure(1, COLUMNS, (14, 3.6), dpi)
        for panel, place in zip(panels, axes, strict=False):
            for series in panel.series[: len(names)]:
                place.plot(series.x, series.y, linewidth=1.5, color=f"C{series.run % 10}", label=names[series.run])
            place.set_title(panel.title, loc="left", fontsize=10, fontweight="bold")
            place.set(xlim=(0, 1), ylim=(0, 1.02))
        if panels:
            handles, labels = axes[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside upper left", ncols=9, frameon=False)
        _save(figure, file)


def _color(index: int | None) -> str:
    return "black" if index is None else COLORS[index % len(COLORS)]


def _label(name: str, run: RunLog) -> str:
    recipe, processes = run.info.get("recipe", {}), run.info.get("processes")
    parts = [recipe.get("arch"), recipe.get("dataset"), f"{processes} process(es)" if processes else None]
    about = ", ".join(str(part) for part in parts if part)
    return f"{name} ({about})" if about else name


def _draw_series(axes, series: Series, alone: bool) -> None:
    x, y, style = series.x, series.y, {"color": _color(series.color)}
    if series.kind == "score":
        width = 2 if not alone or series.color == 0 else 1.2
        axes.plot(x, y, "o-", markersize=3.5, linewidth=width, label=series.label, **style)
    elif series.kind == "step":
        axes.step(x, y, linewidth=1.8, **style)
    elif series.kind == "every":
        axes.plot(x, y, linewidth=0.6, alpha=0.25, zorder=1, **style)
    elif series.kind == "mean":
        axes.plot(x, y, linewidth=1.8, zorder=3, label=series.label, **style)
    else:
        axes.plot(x, y, "D", zorder=4, label=series.label, markeredgecolor="white", markersize=6, **style)


def _finish_panel(axes, panel: Panel, span: tuple[float, float], alone: bool) -> None:
    axes.set_title(panel.title, loc="left", fontsize=10, fontweight="bold")
    axes.set_xlabel("epoch")
    if panel.name == "lr":
        rates = np.concatenate([series.y for series in panel.series])
        rates = rates[np.isfinite(rates) & (rates > 0)]
        if rates.size:
            axes.set_yscale("log")
            axes.set_ylim(rates.min() / 2, rates.max() * 2)
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")
    elif panel.log:
        _use_log_axis(axes)
    if panel.from_zero:
        axes.set_ylim(bottom=0)
    axes.set_xlim(*span)
    axes.locator_params(axis="x", integer=True)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if panel.name == "score" and alone or (panel.name == "loss" and "validation" in handles):
        axes.legend(handles.values(), handles.keys(), fontsize=8, frameon=False)


# Shared by all plots


def _scale_losses(axes, losses: np.ndarray) -> None:
    """Use a logarithmic axis for losses over several orders of magnitude."""
    if needs_log_axis(losses):
        _use_log_axis(axes)


def _use_log_axis(axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")


@contextmanager
def _settings(font_size: float = 10) -> Iterator[None]:
    """Draw a dollar in a path as it is, not as a formula, and numbers that are not finite without warnings."""
    import matplotlib

    with matplotlib.rc_context({"text.parse_math": False, "font.size": font_size}), np.errstate(all="ignore"):
        yield


def _figure(rows: int, columns: int, size: tuple[float, float], dpi: int, **options):
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=dpi, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options).ravel()
    for place in axes:
        place.grid(alpha=0.25)
        place.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure, file: Path | BinaryIO) -> None:
    buffer = io.BytesIO()
    try:
        figure.savefig(buffer, format=(file.suffix.lstrip(".") or "png") if isinstance(file, Path) else "png")
        if isinstance(file, Path):
            write_bytes(file, buffer.getvalue(), sync=False)
        else:
            file.write(buffer.getvalue())
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(f"{file}: the plot cannot be written ({reason(error)})") from error
