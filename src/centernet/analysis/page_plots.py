"""Plots of a page that can be zoomed and hovered. Needs Plotly (the extra ``report``)."""

import base64
import functools
import gzip
import io
import math
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from .compare import Comparison, moving_average
from .pages import inline_image, script_digest
from .panels import Panel, Series, epoch_span, log_panels, needs_log_axis, outline
from .plots import band_of, draw_band, draw_comparison, draw_logs
from .read import Curve, RunLog

MAX_PIECES = 1000  # of a curve; a page of several runs has dozens of curves


def log_curves(runs: list[RunLog], names: list[str]) -> dict[str, Any]:
    """Return the curves of runs for a page: plots, or an image without Plotly.

    Args:
        runs: at least one.
        names: what to call each of them.
    """
    span = epoch_span(runs)
    panels = [page_panel(panel, span) for panel in log_panels(runs, pieces=MAX_PIECES)]
    return page_curves(panels, names, lambda file: draw_logs(runs, names, file))


def page_curves(
    panels: list[dict[str, Any]], names: list[str], draw: Callable[[BinaryIO], None], shown: int | None = None
) -> dict[str, Any]:
    """Return the curves of a page: plots, or an image without Plotly.

    Args:
        panels: of ``page_panel``.
        names: of the runs.
        draw: writes the image, PNG.
        shown: how many of the runs are shown at first; default: all.
    """
    library = plotting_library()
    if library is None:
        buffer = io.BytesIO()
        draw(buffer)
        return {"image": inline_image(buffer.getvalue(), "png")}
    script, digest = library
    colors: dict[int, int | None] = {}
    for one in (one for panel in panels for one in panel["series"]):
        colors.setdefault(one["run"], one["color"])
    data = {"panels": panels, "names": names, "shown": len(names) if shown is None else shown}
    data["colors"] = [colors.get(k, k) for k in range(len(names))]  # of the names: those of their first curves
    return {"library": script, "digest": digest, "data": data}


def comparison_curves(runs: list[Curve], reference: Curve, comparisons: list[Comparison]) -> dict[str, Any]:
    """Return the losses of runs and their reference, and the relative errors, for a page."""
    shown = np.concatenate([reference.loss, *(run.loss for run in runs)])
    losses = Panel("loss", "loss", needs_log_axis(shown), from_zero=False)
    errors = Panel("error", "relative error in %", log=False, from_zero=True)
    windows = [comparison.window for comparison in comparisons]
    for k, (curve, window) in enumerate(zip([reference, *runs], [windows[0], *windows], strict=True)):
        losses.series.append(Series("every", "iteration", k, k, *outline(curve.loss, 1, curve.first, MAX_PIECES)))
        smoothed = outline(moving_average(curve.loss, window), window, curve.first, MAX_PIECES)
        losses.series.append(Series("mean", f"mean of {window}", k, k, *smoothed))
    for k, one in enumerate(comparisons):
        places = outline(one.relative_error * 100, one.window, one.first, MAX_PIECES)
        errors.series.append(Series("line", "relative error in %", k + 1, k + 1, *places))
    span = (min(curve.first for curve in (reference, *runs)), max(curve.last for curve in (reference, *runs)))
    names = [f"reference {reference.path.stem}", *(run.name for run in runs)]
    panels = [page_panel(panel, span, "iteration") for panel in (losses, errors)]
    return page_curves(panels, names, lambda file: draw_comparison(runs, reference, comparisons, file, dpi=110))


def band_curves(losses: np.ndarray, window: int, runs: list[Curve], limit: float) -> dict[str, Any]:
    """Return the losses of runs over those of a library and its band, for a page; arguments as for ``draw_band``."""
    count, iterations = losses.shape
    smoothed = np.stack([moving_average(loss, window) for loss in losses])
    mean, half = band_of(smoothed, limit)
    curves = [("every", "run of the library", 0, curve) for curve in smoothed]
    curves.append(("line", "lower limit of 95 % of single runs", 1, mean - half))
    curves.append(("line", "upper limit of 95 % of single runs", 1, mean + half))
    for k, one in enumerate(runs, start=2):
        curves.append(("mean", f"mean of {window}", k, moving_average(one.loss[:iterations], window)))
    panels = [
        Panel("loss", f"loss, mean of {window} iterations", needs_log_axis(losses.ravel()), from_zero=False),
        Panel("deviation", "deviation from the mean in %", log=False, from_zero=False),
    ]
    for panel, scale, shift in zip(panels, (1.0, 100 / mean), (0.0, mean), strict=True):
        for kind, label, run, curve in curves:
            places = outline((curve - shift) * scale, window, pieces=MAX_PIECES)
            panel.series.append(Series(kind, label, run, run, *places))
    names = [f"{count} runs of the library", "band", *(run.name for run in runs)]
    data = [page_panel(panel, (1, iterations), "iteration") for panel in panels]
    return page_curves(data, names, lambda file: draw_band(losses, window, runs, limit, file))


@functools.cache
def plotting_library() -> tuple[str, str] | None:
    """Return Plotly's script, compressed with gzip and in base64, and its digest; None without Plotly.

    Compressed, a page grows by 2 MB instead of 5 MB.
    """
    try:
        from plotly.offline import get_plotlyjs

        script = get_plotlyjs().encode()
    except Exception:  # not installed, or damaged: there is a way without it
        return None
    return _text(gzip.compress(script, 6, mtime=0)), script_digest(script)


def page_panel(panel: Panel, span: tuple[float, float], x: str = "epoch") -> dict[str, Any]:
    """Return a panel as data for ``curves.js``; ``span`` is what the horizontal axis ``x`` shows."""
    return {
        "title": panel.title,
        "x": x,
        "range": list(span),
        "log": panel.log,
        "fromZero": panel.from_zero,
        "legend": panel.name == "score",
        "series": [
            {
                "kind": series.kind,
                "label": series.label,
                "run": series.run,
                "color": series.color,
                "x": packed(series.x),
                "y": packed(series.y),
            }
            for series in panel.series
        ],
    }


def packed(values: np.ndarray) -> dict[str, str]:
    """Return numbers as Plotly reads typed arrays: float32, little-endian, in base64. Infinity becomes NaN, a gap."""
    with np.errstate(all="ignore"):
        numbers = np.asarray(values).astype("<f4")
    numbers[~np.isfinite(numbers)] = math.nan
    return {"dtype": "f4", "bdata": _text(numbers.tobytes())}


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
