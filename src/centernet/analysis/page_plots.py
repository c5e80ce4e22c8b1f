"""Plots of a page that can be zoomed and hovered. Needs Plotly (the extra ``report``)."""

import base64
import functools
import gzip
import io
import math
from typing import Any

import numpy as np

from .pages import inline_image, script_digest
from .panels import Panel, epoch_span, log_panels
from .plots import draw_logs
from .read import RunLog

MAX_PIECES = 1000  # of a curve; a page of several runs has dozens of curves


def log_curves(runs: list[RunLog], names: list[str]) -> dict[str, Any]:
    """Return the curves of runs for a page: plots, or an image without Plotly.

    Args:
        runs: at least one.
        names: what to call each of them.
    """
    library = plotting_library()
    if library is None:
        buffer = io.BytesIO()
        draw_logs(runs, names, buffer)
        return {"image": inline_image(buffer.getvalue(), "png")}
    script, digest = library
    panels = [page_panel(panel, epoch_span(runs)) for panel in log_panels(runs, pieces=MAX_PIECES)]
    return {"library": script, "digest": digest, "data": {"panels": panels, "names": names}}


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
