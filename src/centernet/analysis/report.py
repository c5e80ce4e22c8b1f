"""Write ``report.html``, the results of a run in one self-contained page, and the page that compares several runs."""

import datetime
import math
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..errors import UserError
from ..utils.text import print_line
from .compare import MAX_RELATIVE_ERROR, Comparison
from .images import MIN_IOU, ImageScore, classes_in, prediction_and_truth, score_images
from .page_plots import comparison_curves, log_curves
from .pages import inline_image, write_page
from .read import Curve, RunLog, read_run

WORST, BEST = 12, 4  # images of each kind
LONGER_SIDE = 640  # pixels of an image in the report
RUNNING_SHARE = 0.03  # of the time of a training, at most, for reports before its end


def write_report(folder: Path, dataset=None, results: dict | None = None, due: float | None = None) -> Path:
    """Write ``report.html`` into a run directory.

    Args:
        folder: run directory with at least ``train_log.csv``.
        dataset: the validation set; without it, the report has no single images.
        results: ``{image id: {class from 1: rows}}``, the detections in images of ``dataset``.
        due: for a training in progress, the time in seconds since the epoch until which the page shows it as running;
            later it shows that the next report is overdue.

    Raises:
        UserError: ``train_log.csv`` cannot be read, or the report cannot be written.
    """
    run = read_run(folder)
    path = folder / "report.html"
    images = _images(dataset, results) if dataset is not None and results else None
    running = None if due is None else {"due": round(1000 * due), "written": _now()}
    write_page(path, "report.html", **_describe(run), images=images, running=running)
    return path


class RunningReport:
    """Writes the report of a training in progress, after validations, in a small part of its time."""

    def __init__(self) -> None:
        self._started = self._last = time.monotonic()
        self._spent = 0.0
        self._cost = 5.0  # seconds of the last one; a guess before the first

    def write(self, folder: Path, dataset, results: dict) -> bool:
        """Write the report and return whether that was done: not if earlier ones took too long a part of the time.

        A failure is printed and does not raise.
        """
        begin = time.monotonic()
        if self._spent > RUNNING_SHARE * (begin - self._started):
            return False
        due = time.time() + 60 + 3 * max(begin - self._last, self._cost / RUNNING_SHARE)
        try:
            write_report(folder, dataset, results, due)
        except Exception as error:  # of any library that draws or reads
            print_line(f"warning: no report after this validation ({_reason(error)})")
        self._last = time.monotonic()
        self._cost = self._last - begin
        self._spent += self._cost
        return True


def finish_report(folder: Path, dataset=None, results: dict | None = None) -> None:
    """Write the report at the end of a training and print its path.

    A failure is printed and does not raise: a finished training must not fail because of its report.
    """
    try:
        print_line(f"report: {write_report(folder, dataset, results)}")
    except Exception as error:  # of any library that draws or reads
        again = f"python src/tools/make_report.py {folder}"
        print_line(f"warning: no report ({_reason(error)}); write it later with: {again}")


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(" ", "seconds")


def is_report_missing(folder: Path) -> bool:
    """Return whether a run directory with a log has no report, or one that is older than the log.

    That is so if the process was stopped while it wrote the report.
    """
    report, log = folder / "report.html", folder / "train_log.csv"
    try:
        return log.is_file() and not (report.is_file() and report.stat().st_mtime >= log.stat().st_mtime)
    except OSError:
        return False


# Content of the report


def _describe(run: RunLog) -> dict[str, Any]:
    """Return what the template shows of a run, apart from single images."""
    recipe, options = run.info.get("recipe", {}), run.info.get("options", {})
    given = options.get("given")
    given = [str(name) for name in given] if isinstance(given, list) else []
    return {
        "name": run.name,
        "about": ", ".join(str(recipe[name]) for name in ("task", "dataset", "arch") if name in recipe),
        "notes": run.notes,
        "tiles": _tiles(run),
        "curves": log_curves([run], [run.name]),
        "classes": _classes(run),
        "progress": _progress(run),
        "last_epoch": int(run.val["epoch"][-1]) if run.val else 0,
        "validations": _validations(run),
        "environment": _environment(run.info),
        "given": {name: options[name] for name in given if name in options},
        "others": {name: value for name, value in sorted(options.items()) if name not in (*given, "given")},
    }


def _tiles(run: RunLog) -> list[tuple[str, str]]:
    """Return the main numbers of a run and their labels."""
    epochs = int(run.train["epoch"][-1])
    last = run.train["loss"][run.train["epoch"] == epochs]
    tiles = []
    if run.scores:
        name = run.scores[0]
        values = run.val[name]
        if np.isfinite(values).any():
            best = int(np.nanargmax(values))
            tiles.append((f"{values[best]:.4f}", f"best {name}, epoch {run.val['epoch'][best]:.0f}"))
        tiles.append((f"{values[-1]:.4f}", f"{name} of the last validation"))
    tiles.append((f"{last.mean():.4f}", f"mean loss of epoch {epochs}"))
    tiles.append((f"{np.median(run.train['images/s']):.1f}", "images per second, median"))
    batch = run.info.get("recipe", {}).get("batch_size")
    if type(batch) is int and 0 < batch < 1 << 40:
        with np.errstate(all="ignore"):
            seconds = float((batch / np.maximum(run.train["images/s"], 1e-9)).sum())
        if math.isfinite(seconds):
            tiles.append((_duration(seconds), "training time without validation"))
    last_iteration = int(run.train["iteration"][-1])
    which = f"iterations, {epochs} epochs" if run.first == 1 else f"iterations {run.first} to {last_iteration}"
    tiles.append((f"{len(run.train['loss'])}", which))
    return tiles


def _progress(run: RunLog) -> str:
    """Return how many of the epochs are in the log."""
    last, planned = int(run.train["epoch"][-1]), run.info.get("options", {}).get("num_epochs")
    return f"epoch {last} of {planned}" if type(planned) is int and planned >= last else f"epoch {last}"


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds:.0f} s"


def _classes(run: RunLog) -> list[tuple[str, float]]:
    """Return the AP of each class in the last validation, the highest first."""
    last = {name[3:]: float(values[-1]) for name, values in run.val.items() if name.startswith("AP/")}
    return sorted((item for item in last.items() if not math.isnan(item[1])), key=lambda item: -item[1])


def _validations(run: RunLog) -> dict[str, Any]:
    names = [*run.scores, *(name for name in run.losses if name in run.val)]
    rows = [(int(epoch), [run.val[name][k] for name in names]) for k, epoch in enumerate(run.val.get("epoch", []))]
    return {"names": names, "rows": rows}


def _environment(info: dict) -> dict[str, Any]:
    rows = {name: info.get(name) for name in ("device", "processes", "command", "git")}
    rows.update({f"version of {name}": value for name, value in info.get("versions", {}).items()})
    return {name: value for name, value in rows.items() if value is not None}


def _images(dataset, results: dict) -> dict[str, Any]:
    """Return the worst and the best images, drawn."""
    # An image without objects and detections shows nothing.
    scores = [score for score in score_images(dataset, results) if score.objects or score.false]
    worst = sorted(scores, key=lambda score: (score.f1, score.found - score.objects - score.false))
    worst = worst[: min(WORST, (len(scores) + 1) // 2)]
    best = sorted(scores, key=lambda score: (-score.f1, -score.objects))
    best = [score for score in best if score not in worst][:BEST]
    return {
        "worst": [_figure(dataset, score, results) for score in worst],
        "best": [_figure(dataset, score, results) for score in best],
        "threshold": f"{dataset.opt.vis_thresh:g}",
        "overlap": f"{MIN_IOU:g}",
        "count": len(scores),
        "mean": float(np.mean([score.f1 for score in scores] or [0])),
    }


def _figure(dataset, score: ImageScore, results: dict) -> dict[str, Any]:
    result = results[dataset.image_ids[score.index]]
    detections, truth = prediction_and_truth(dataset, score.index, result)
    return {
        "classes": classes_in(dataset, score.index, result),
        "f1": score.f1,
        "detections": _jpeg(detections),
        "truth": _jpeg(truth),
        "name": str(dataset.file_names[score.index]),
        "counts": f"F1 {score.f1:.2f}: {score.found} of {score.objects} found, {score.false} false",
    }


def _jpeg(image: np.ndarray) -> str:
    factor = LONGER_SIDE / max(image.shape[:2])
    if factor < 1:
        size = [max(1, round(side * factor)) for side in image.shape[1::-1]]
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return inline_image(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes(), "jpeg")


# Several runs


def write_study(runs: list[Curve], reference: Curve, comparisons: list[Comparison], path: Path) -> None:
    """Write a page that compares the loss curves of runs with their reference (``loss.py --html``).

    Raises:
        UserError: it cannot be written.
    """
    names = ("processes", "device", "amp", "mean relative error", "mean absolute error", "final mAP", "verdict")
    rows = [_study_row(f"reference {reference.path.stem}", reference, None)]
    rows += [_study_row(run.name, run, comparison) for run, comparison in zip(runs, comparisons, strict=True)]
    write_page(
        path,
        "study.html",
        name=reference.path.stem,
        window=comparisons[0].window,
        limit=f"{MAX_RELATIVE_ERROR * 100:g}",
        curves=comparison_curves(runs, reference, comparisons),
        columns=["run", *names],
        rows=rows,
        recipe=reference.recipe or {},
    )


def _study_row(name: str, curve: Curve, comparison: Comparison | None) -> list[Any]:
    info, score = curve.info, "-"
    if curve.path.name == "train_log.csv":
        run = read_run(curve.path)
        if run.scores:
            score = f"{run.val[run.scores[0]][-1]:.4f}"
    cells = [name, info.get("processes", "-"), info.get("device", "-"), info.get("recipe", {}).get("amp", "off")]
    if comparison is None:
        return [*cells, "-", "-", score, "-"]
    verdict = "pass" if comparison.passed else "fail: " + "; ".join(comparison.reasons or ["errors above the limits"])
    relative = f"{comparison.mean_relative_error * 100:.2f} %"
    return [*cells, relative, f"{comparison.mean_absolute_error:.4f}", score, verdict]
