"""``report.html``: what became of a run, in one file that needs nothing else."""

import base64
import html
import io
import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..datasets.loader import black_image
from ..errors import UserError
from ..tasks import get_task
from .compare import MAX_RELATIVE_ERROR, Comparison
from .plots import draw_comparison, draw_logs
from .read import Curve, RunLog, read_run

OVERLAP = 0.5  # of a detection with an object, from which the object is found
WORST_AND_BEST = 4  # images of each kind
LONGER_SIDE = 640  # of an image in the report

STYLE = """
:root { --ink: #1d2733; --soft: #5d6b7a; --line: #dde3ea; --ground: #f5f7f9; --accent: #1f6fb2; }
* { box-sizing: border-box; }
body { margin: 0; font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; color: var(--ink);
  background: var(--ground); }
main { max-width: 1160px; margin: 0 auto; padding: 28px 24px 60px; }
h1 { margin: 0; font-size: 26px; } h1 small { font-weight: 400; color: var(--soft); font-size: 16px; }
h2 { margin: 36px 0 10px; font-size: 18px; } p { margin: 4px 0 12px; color: var(--soft); }
section, .tile { background: #fff; border: 1px solid var(--line); border-radius: 8px; }
section { padding: 14px 18px; margin-bottom: 12px; } .wide { overflow-x: auto; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(160px, 1fr)); gap: 12px; margin-top: 18px; }
.tile { padding: 12px 16px; } .tile b { display: block; font-size: 23px; font-weight: 600; }
.tile span { color: var(--soft); font-size: 13px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
td, th { padding: 4px 10px 4px 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 600; white-space: nowrap; } .keys th { width: 200px; } tr:last-child > * { border-bottom: 0; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.code { font-family: ui-monospace, Consolas, monospace; font-size: 13px; overflow-wrap: anywhere; }
.bar { background: #e8eef4; border-radius: 3px; height: 12px; margin-top: 5px; }
.bar i { display: block; height: 12px; border-radius: 3px; background: var(--accent); }
.classes { columns: 2; column-gap: 36px; } .classes div { display: grid; break-inside: avoid;
  grid-template-columns: minmax(90px, 32%) 1fr 52px; gap: 10px; padding: 2px 0; font-size: 14px; }
.classes div > :last-child { text-align: right; font-variant-numeric: tabular-nums; }
.images { display: grid; grid-template-columns: 1fr 1fr; gap: 16px; }
figure { margin: 0; } figure div { display: grid; grid-template-columns: 1fr 1fr; gap: 4px; }
figure img { width: 100%; display: block; background: #e8eef4; } figcaption { font-size: 13px; color: var(--soft); }
figcaption b { color: var(--ink); } summary { cursor: pointer; font-weight: 600; } img.curves { width: 100%; }
@media (max-width: 760px) { .images { grid-template-columns: 1fr; } .classes { columns: 1; } }
"""


@dataclass
class ImageScore:
    """How well the objects of one image were found.

    Attributes:
        index: its number in the dataset.
        objects, found, false: true objects, those of them that were found, and detections that are none.
    """

    index: int
    objects: int
    found: int
    false: int

    @property
    def f1(self) -> float:
        """2 found / (objects + detections), from 0 to 1; 1 where there is nothing and nothing was detected."""
        return 2 * self.found / max(self.objects + self.found + self.false, 1) if self.objects or self.false else 1.0


def write_report(folder: Path, dataset=None, results: dict | None = None) -> Path:
    """Write ``report.html`` into a run folder.

    Args:
        folder: with ``train_log.csv``, and what else a run leaves.
        dataset: that was validated on; None: nothing is said about single images.
        results: ``{image id: {class from 1: rows}}`` of the images to be looked at.

    Raises:
        UserError: the logs cannot be read, or the report not be written.
    """
    run = read_run(folder)
    parts = [_head(run), _tiles(run), _curves(run), _classes(run), _validations(run)]
    if dataset is not None and results:
        parts.append(_images(dataset, results))
    parts += [_environment(run), _options(run)]
    path = folder / "report.html"
    _write_page(path, run.name, "".join(parts))
    return path


def _write_page(path: Path, title: str, body: str) -> None:
    text = (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


# Images


def score_images(dataset, results: dict) -> list[ImageScore]:
    """How well each image of ``results`` was done.

    A detection above ``--vis_thresh`` finds the object of its class that it overlaps most, if by at least 0.5 and if
    no better detection has found it. Objects of no class (KITTI's ignored ones) count neither for nor against.
    """
    task, threshold = get_task(dataset.opt.task), dataset.opt.vis_thresh
    scores = []
    for index, image_id in enumerate(dataset.image_ids):
        if image_id not in results:
            continue
        objects = dataset.read_objects(index)
        boxes, classes = np.asarray(task.ground_truth_boxes(objects), dtype=np.float64), objects["cls"]
        found = false = 0
        for cls, rows in results[image_id].items():
            rows = task.detected_boxes(np.asarray(rows, dtype=np.float64))
            rows = rows[rows[:, 4] > threshold]
            if not len(rows):
                continue
            rows = rows[np.argsort(-rows[:, 4], kind="stable")]
            hits, strays = _match(rows[:, :4], boxes[classes == cls - 1], boxes[classes < 0])
            found, false = found + hits, false + strays
        scores.append(ImageScore(index, int((classes >= 0).sum()), found, false))
    return scores


def _match(detections: np.ndarray, boxes: np.ndarray, ignored: np.ndarray) -> tuple[int, int]:
    """How many ``boxes`` are found by ``detections`` (best first), and how many detections find nothing."""
    overlaps, free = _overlaps(detections, boxes), np.ones(len(boxes), dtype=bool)
    excused = np.any(_overlaps(detections, ignored) >= OVERLAP, axis=1)
    false = 0
    for k, row in enumerate(overlaps):
        row = np.where(free, row, 0)
        if row.size and row.max() >= OVERLAP:
            free[row.argmax()] = False
        elif not excused[k]:
            false += 1
    return int((~free).sum()), false


def _overlaps(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (n, 4) and (m, 4): (n, m)."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = (high - low).clip(0).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clip(0).prod(1) for boxes in (one, other)]
    return shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-9)


def prediction_and_truth(dataset, index: int, result: dict) -> tuple[np.ndarray, np.ndarray]:
    """An image with what was detected in it, and with its objects, both (H, W, 3) uint8 in B, G, R order.

    Unreadable images are replaced by a black one; they have already been reported.
    """
    opt = dataset.opt
    task = get_task(opt.task)
    try:
        image = dataset.read_image(index)
    except UserError:
        image = black_image(dataset, index)
    predicted = task.result_images(image, result, opt, dataset.picture_info(index))
    true = task.ground_truth_images(image, dataset.read_objects(index), opt)
    return next(iter(predicted.values()), image), next(iter(true.values()), image)


def _images(dataset, results: dict) -> str:
    """The sections with the worst and the best images."""
    # Where there is nothing and nothing was found, there is nothing to be seen.
    scores = [score for score in score_images(dataset, results) if score.objects or score.false]
    worst = sorted(scores, key=lambda score: (score.f1, score.found - score.objects - score.false))[:WORST_AND_BEST]
    best = sorted(scores, key=lambda score: (-score.f1, -score.objects))[:WORST_AND_BEST]
    threshold = dataset.opt.vis_thresh
    text = (
        f"Left: detections with a score above {threshold:g}; right: the truth. Images are ordered by F1, the share "
        f"of objects found and of detections that are right, at an overlap of {OVERLAP:g}. "
        f"The mean over {len(scores)} images is {np.mean([score.f1 for score in scores] or [0]):.3f}."
    )
    parts = []
    for title, chosen in (("Worst images", worst), ("Best images", best)):
        figures = "".join(_figure(dataset, score, results) for score in chosen)
        parts.append(f'<h2>{title}</h2><section><p>{text}</p><div class="images">{figures}</div></section>\n')
        text = "Left: detections; right: the truth."
    return "".join(parts)


def _figure(dataset, score: ImageScore, results: dict) -> str:
    drawings = prediction_and_truth(dataset, score.index, results[dataset.image_ids[score.index]])
    images = "".join(
        f'<img src="{_jpeg(drawing)}" alt="{name}">'
        for name, drawing in zip(("detections", "truth"), drawings, strict=True)
    )
    name = html.escape(str(dataset.file_names[score.index]))
    counts = f"F1 {score.f1:.2f}: {score.found} of {score.objects} found, {score.false} false"
    return f"<figure><div>{images}</div><figcaption><b>{name}</b> {counts}</figcaption></figure>"


def _jpeg(image: np.ndarray) -> str:
    factor = LONGER_SIDE / max(image.shape[:2])
    if factor < 1:
        size = [max(1, round(side * factor)) for side in image.shape[1::-1]]
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return _inline(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes(), "jpeg")


def _inline(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


# Numbers


def _head(run: RunLog) -> str:
    recipe = run.info.get("recipe", {})
    about = ", ".join(str(recipe[name]) for name in ("task", "dataset", "arch") if name in recipe)
    return f"<h1>{html.escape(run.name)} <small>{html.escape(about)}</small></h1>\n"


def _tiles(run: RunLog) -> str:
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
    tiles.append((f"{np.median(run.train['images/s']):.1f}", "images a second, median"))
    batch = run.info.get("recipe", {}).get("batch_size")
    if batch:
        seconds = float((batch / np.maximum(run.train["images/s"], 1e-9)).sum())
        tiles.append((_duration(seconds), "training, validation left out"))
    tiles.append((f"{len(run.train['loss'])}", f"iterations, {epochs} epochs"))
    cells = "".join(f'<div class="tile"><b>{html.escape(a)}</b><span>{html.escape(b)}</span></div>' for a, b in tiles)
    return f'<div class="tiles">{cells}</div>\n'


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds:.0f} s"


def _curves(run: RunLog) -> str:
    buffer = io.BytesIO()
    draw_logs([run], buffer)
    image = _inline(buffer.getvalue(), "png")
    text = "Pale: every iteration; bold: moving average; diamonds: validation."
    return f'<h2>Curves</h2><section><p>{text}</p><img class="curves" src="{image}" alt="curves"></section>\n'


def _classes(run: RunLog) -> str:
    last = {name[3:]: values[-1] for name, values in run.val.items() if name.startswith("AP/")}
    known = sorted((item for item in last.items() if not math.isnan(item[1])), key=lambda item: -item[1])
    if not known:
        return ""
    rows = "".join(
        f"<div><span>{html.escape(name)}</span>"
        f'<span class="bar"><i style="width:{100 * min(max(value, 0), 1):.1f}%"></i></span>'
        f"<span>{value:.3f}</span></div>"
        for name, value in known
    )
    return (
        f"<h2>AP of each class</h2><section><p>Of the last validation, epoch {run.val['epoch'][-1]:.0f}; -1: no object "
        f'to be found.</p><div class="classes">{rows}</div></section>\n'
    )


def _validations(run: RunLog) -> str:
    names = [*run.scores, *(name for name in run.losses if name in run.val)]
    if not names:
        return ""
    head = "".join(f'<th class="number">{html.escape(name)}</th>' for name in ("epoch", *names))
    rows = []
    for k, epoch in enumerate(run.val["epoch"]):
        cells = "".join(f'<td class="number">{run.val[name][k]:.4f}</td>' for name in names)
        rows.append(f'<tr><td class="number">{epoch:.0f}</td>{cells}</tr>')
    table = f"<table><tr>{head}</tr>{''.join(rows)}</table>"
    return f'<h2>Validations</h2><section class="wide">{table}</section>\n'


def _environment(run: RunLog) -> str:
    info = run.info
    rows = {name: info.get(name) for name in ("device", "processes", "command", "git")}
    rows.update({f"version of {name}": value for name, value in info.get("versions", {}).items()})
    table = _table({name: value for name, value in rows.items() if value is not None})
    return f"<h2>Environment</h2><section>{table}</section>\n" if table else ""


def _options(run: RunLog) -> str:
    options = run.info.get("options", {})
    if not options:
        return ""
    given = {name: options[name] for name in options.get("given", []) if name in options}
    others = {name: value for name, value in sorted(options.items()) if name not in given and name != "given"}
    return (
        f"<h2>Options</h2><section><p>Given on the command line:</p>{_table(given)}</section>\n"
        f"<section><details><summary>All others, and what follows from them</summary>"
        f"{_table(others)}</details></section>\n"
    )


def write_study(runs: list[Curve], reference: Curve, comparisons: list[Comparison], path: Path) -> None:
    """Write a page that compares the loss curves of runs with their reference (``loss.py --html``).

    Raises UserError when it cannot be written.
    """
    buffer = io.BytesIO()
    draw_comparison(runs, reference, comparisons, buffer, dpi=110)
    names = ("processes", "device", "amp", "mean relative error", "mean absolute error", "final mAP", "verdict")
    head = "".join(f"<th>{name}</th>" for name in ("run", *names))
    rows = [_study_row(f"reference {reference.path.stem}", reference, None)]
    rows += [_study_row(run.name, run, comparison) for run, comparison in zip(runs, comparisons, strict=True)]
    text = (
        f"Above: losses, averaged over {comparisons[0].window} iterations; below: how far the runs are from the "
        f"reference. A run passes if the mean relative error is at most {MAX_RELATIVE_ERROR * 100:g} %, and if recipes "
        "are equal; processes and devices may differ."
    )
    body = (
        f"<h1>Convergence <small>{html.escape(reference.path.stem)}</small></h1>\n"
        f'<h2>Curves</h2><section><p>{text}</p><img class="curves" alt="curves" '
        f'src="{_inline(buffer.getvalue(), "png")}"></section>\n'
        f'<h2>Runs</h2><section class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></section>\n'
        f"<h2>Recipe</h2><section>{_table(reference.recipe or {})}</section>\n"
    )
    _write_page(path, f"Convergence of {reference.path.stem}", body)


def _study_row(name: str, curve: Curve, comparison: Comparison | None) -> str:
    info, score = curve.info, "-"
    log = curve.path.with_name("val_log.csv")
    if curve.path.name == "train_log.csv" and log.is_file():
        run = read_run(curve.path)
        if run.scores:
            score = f"{run.val[run.scores[0]][-1]:.4f}"
    cells = [name, info.get("processes", "-"), info.get("device", "-"), info.get("recipe", {}).get("amp", "off")]
    if comparison is None:
        cells += ["-", "-", score, "-"]
    else:
        errors = (comparison.mean_relative_error * 100, comparison.mean_absolute_error)
        verdict = "pass" if comparison.passed else "fail: " + "; ".join(comparison.reasons or ["too far away"])
        cells += [f"{errors[0]:.2f} %", f"{errors[1]:.4f}", score, verdict]
    return "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells) + "</tr>"


def _table(values: dict) -> str:
    rows = "".join(
        f'<tr><th>{html.escape(str(name))}</th><td class="code">{html.escape(str(value))}</td></tr>'
        for name, value in values.items()
    )
    return f'<table class="keys">{rows}</table>' if rows else ""
