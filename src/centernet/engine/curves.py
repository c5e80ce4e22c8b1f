"""Loss curves: read them, choose the reference of a run, compare the two, draw them. ``loss.py`` prints the result."""

import csv
import json
import math
import re
import textwrap
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np

from centernet.errors import UserError

MOST_ITERATIONS = 10_000_000  # of an epoch: a log that has more was not written by a training
MAX_RELATIVE_ERROR = 0.05
MAX_ABSOLUTE_ERROR = 0.0002
MIN_ITERATIONS = 20
MIN_COVERAGE = 0.95
DEFAULT_WINDOW = 50
# A smoothed reference nearer to zero than this counts as this in the denominator of the relative error.
EPSILON = 1e-12
# The plot shows a longer curve by the extremes of this many pieces.
MAX_PIECES = 3000

LOSS_NAMES = ("loss", "train_loss", "total_loss")
IDENTITY_KEYS = ("task", "dataset", "arch", "input_h", "input_w", "batch_size")
FORMATS = (
    "a table with a column loss, train_loss or total_loss, one number a line, a log of lines 'train: [1][0/924] ... "
    "|loss 2.3456 |', or a log with one 'loss: 2.34' or 'loss=2.34' an iteration"
)

_NUMBER = r"[-+]?(?:(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?|nan|inf(?:inity)?)(?!\w|[.,]\d)"
_PRINTED_AVERAGE = re.compile(
    rf"train:\s*\[(\d+)\]\[(\d+)/(\d+)\](?:(?!train:|val:).)*?\|\s*loss\s+({_NUMBER})", re.IGNORECASE
)
_TEXT_LOSS = re.compile(
    rf"(?<![\w./-])(?<!avg )(?<!average )(?<!mean )(?<!best )({'|'.join(LOSS_NAMES)})['\"]?\s*[:=]\s*({_NUMBER})",
    re.IGNORECASE,
)
_OTHER_PHASE = re.compile(r"\b(?:val|valid|validation|eval|evaluation|test)\b", re.IGNORECASE)
_TERMINAL_CODE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass
class Curve:
    """The loss of every training iteration, ``loss`` (n,) float64, with what is known of the run that made it.

    ``info`` is the run's ``opt.json`` or the reference's JSON; empty when there is none.
    """

    path: Path
    loss: np.ndarray
    info: dict = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def recipe(self) -> dict | None:
        return self.info.get("recipe")


@dataclass
class Comparison:
    """Errors of a run against a reference; ``reasons`` holds what forbids a pass whatever the errors are.

    ``relative_error`` (iterations - window + 1,) is the unsigned error of each smoothed point. The errors are NaN
    when the common part is shorter than the window.
    """

    mean_relative_error: float
    mean_absolute_error: float
    signed_mean_relative_error: float
    signed_mean_absolute_error: float
    window: int
    iterations: int
    relative_error: np.ndarray
    reasons: list[str]
    notes: list[str]

    @property
    def within_limits(self) -> bool:
        return self.mean_relative_error <= MAX_RELATIVE_ERROR or self.mean_absolute_error <= MAX_ABSOLUTE_ERROR

    @property
    def passed(self) -> bool:
        return self.within_limits and not self.reasons

    @property
    def verdict(self) -> str:
        """One line: ``pass ...`` or ``fail ...`` with every reason."""
        relative = f"mean_relative_error={self.mean_relative_error}"
        absolute = f"mean_absolute_error={self.mean_absolute_error}"
        if self.passed:
            return f"pass {relative} <= {MAX_RELATIVE_ERROR} or {absolute} <= {MAX_ABSOLUTE_ERROR}"
        reasons = list(self.reasons)
        if not self.within_limits and not math.isnan(self.mean_relative_error):
            reasons.append(f"{relative} > {MAX_RELATIVE_ERROR} and {absolute} > {MAX_ABSOLUTE_ERROR}")
        return f"fail {'; '.join(reasons)}"


# Reading


def read_text(path: Path) -> str:
    """Text of a file without terminal codes, line ends as ``\\n``. UserError when it cannot be read or is no text."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); expected {FORMATS}") from error
    if b"\0" in data:
        raise UserError(f"{path}: is a binary file; expected {FORMATS}")
    text = data.decode("utf-8-sig", errors="replace")
    text = _TERMINAL_CODE.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise UserError(f"{path}: is empty; expected {FORMATS}")
    return text


def read_json(path: Path) -> dict:
    """The JSON object in a run's ``opt.json`` or beside a reference. UserError when it is none."""
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({str(error).splitlines()[0]})") from error
    if not isinstance(info, dict) or not isinstance(info.get("recipe", {}), dict):
        raise UserError(
            f"{path}: expected a JSON object whose 'recipe' is an object (it describes the curve beside it)"
        )
    return info


def split_table(text: str, path: Path) -> tuple[list[str], list[list[str]]]:
    """Column names and rows of a comma, semicolon, tab or whitespace separated table. UserError for ragged rows."""
    lines = text.split("\n")
    header = next(line for line in lines if line.strip())
    delimiter = next((mark for mark in "\t,;" if mark in header), None)
    if delimiter is None:
        cells = [line.lstrip("#").split() for line in lines]
    else:
        try:
            cells = list(csv.reader(lines, delimiter=delimiter, skipinitialspace=True))
        except csv.Error as error:
            raise UserError(f"{path}: cannot be read as a table ({error})") from error
    numbered = [(number, row) for number, row in enumerate(cells, 1) if any(cell.strip() for cell in row)]
    columns = [name.strip().lstrip("#").strip() for name in numbered[0][1]] if numbered else []
    for number, row in numbered[1:]:
        if len(row) != len(columns):
            raise UserError(f"{path}: row {number} has {len(row)} columns, the header has {len(columns)}")
    return columns, [row for _, row in numbered[1:]]


def is_own_log(columns: list[str]) -> bool:
    """Whether these are the columns of a ``train_log.csv``."""
    return columns[:3] == ["epoch", "iteration", "loss"] and columns[-2:] == ["lr", "images/s"]


def drop_repeated(rows: list[list[str]], path: Path) -> list[list[str]]:
    """Rows of a ``train_log.csv`` as iterations 1, 2, 3, ...: a resumed run's later lines replace its earlier ones."""
    kept: list[list[str]] = []
    for row in rows:
        try:
            iteration = int(row[1])
        except ValueError:
            raise UserError(f"{path}: '{row[1]}' in column iteration is not a whole number") from None
        if not 1 <= iteration <= len(kept) + 1:
            raise UserError(f"{path}: iteration {iteration} follows {len(kept)}; expected iterations 1, 2, 3, ...")
        del kept[iteration - 1 :]
        kept.append(row)
    return kept


def read_loss(path: Path) -> tuple[np.ndarray, list[str]]:
    """Loss of every iteration (n,) float64 in a file of any format in ``FORMATS``, and notes on how it was read.

    NaN and infinity are kept. UserError, naming the file and what was expected, for everything else.
    """
    text = read_text(path)
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    printed = [match for line in lines for match in _PRINTED_AVERAGE.finditer(line)]
    if printed:
        return _undo_averages(printed, path)
    header, _ = split_table(lines[0], path)
    if any(name.lower() in LOSS_NAMES for name in header) and not any(_is_number(name) for name in header):
        return _read_column(text, path)
    if _is_number(lines[0]):
        return _numbers(lines, path), []
    return _read_text_log(lines, path)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _numbers(texts: list[str], path: Path) -> np.ndarray:
    for number, text in enumerate(texts, 1):
        if not _is_number(text):
            raise UserError(f"{path}: '{text[:40]}' as loss number {number} is not a number; expected {FORMATS}")
    if not texts:
        raise UserError(f"{path}: has a header and no iterations")
    return np.array([float(text) for text in texts], dtype=np.float64)


def _read_column(text: str, path: Path) -> tuple[np.ndarray, list[str]]:
    columns, rows = split_table(text, path)
    notes = []
    if is_own_log(columns):
        kept = drop_repeated(rows, path)
        if len(kept) < len(rows):
            notes.append(f"{path} repeats iterations (a resumed run): the later lines count")
        rows = kept
    names = [name.lower() for name in columns]
    found = [name for name in names if name in LOSS_NAMES]
    name = "loss" if "loss" in found else found[0]
    if found.count(name) > 1 or (name != "loss" and len(found) > 1):
        raise UserError(f"{path}: several columns could be the loss ({', '.join(found)}); expected one of them")
    index = names.index(name)
    return _numbers([row[index].strip() for row in rows], path), notes


def _undo_averages(printed: list[re.Match], path: Path) -> tuple[np.ndarray, list[str]]:
    """Iterations' losses from printed averages over the epoch so far; each interval's iterations get its mean."""
    lines: list[tuple[int, int, int, float]] = []
    for match in printed:
        epoch, iteration, total = (int(match[group]) for group in (1, 2, 3))
        if max(iteration, total) > MOST_ITERATIONS:
            raise UserError(f"{path}: '{match[0][:60]}' has more iterations than an epoch can have")
        while lines and lines[-1][:2] >= (epoch, iteration):  # printed twice, or a resumed run
            lines.pop()
        lines.append((epoch, iteration, total, float(match[4])))
    epochs = [(epoch, list(group)) for epoch, group in groupby(lines, key=lambda line: line[0])]
    numbers = [epoch for epoch, _ in epochs]
    if numbers != list(range(1, len(numbers) + 1)):
        raise UserError(
            f"{path}: its lines 'train: [epoch][...]' are of epochs {str(numbers[:9])[1:-1]}; expected 1, 2, 3, ..."
        )
    intervals = [after[1] - before[1] for _, group in epochs for before, after in pairwise(group)]
    step = max(intervals) if intervals else None
    losses: list[float] = []
    for epoch, group in epochs:
        done, done_sum, mean = 0, 0.0, 0.0
        total = group[0][2]
        for _, iteration, _, average in group:
            mean = (average * (iteration + 1) - done_sum) / (iteration + 1 - done)
            losses += [mean] * (iteration + 1 - done)
            done, done_sum = iteration + 1, average * (iteration + 1)
        left = total - done
        if step is None or left < step:
            losses += [mean] * left
        elif epoch != numbers[-1]:  # a last epoch may end early: the run was stopped or still runs
            raise UserError(f"{path}: lines are missing: epoch {epoch} ends at iteration {done} of {total}")
    every = f"every {step} iterations" if step else "once an epoch"
    note = f"{path} prints averages over the epoch {every}: undone, each iteration has the mean of its interval"
    return np.array(losses, dtype=np.float64), [note]


def _read_text_log(lines: list[str], path: Path) -> tuple[np.ndarray, list[str]]:
    names, losses = set(), []
    for line in lines:
        if _OTHER_PHASE.search(line):
            continue
        found = _TEXT_LOSS.findall(line)
        if len(found) > 1:
            raise UserError(f"{path}: '{line[:60]}' has several losses; expected {FORMATS}")
        names.update(name.lower() for name, _ in found)
        losses += [number for _, number in found]
    if not losses:
        raise UserError(f"{path}: no loss found; expected {FORMATS}")
    if len(names) > 1:
        raise UserError(f"{path}: several losses in turn ({', '.join(sorted(names))}); expected one of them")
    note = f"{path} is read as text: each of its {len(losses)} lines with '{names.pop()}' counts as one iteration"
    return _numbers(losses, path), [note]


def read_curve(path: Path) -> Curve:
    """Curve of a run folder or of a file, with the recipe beside it where there is one.

    The recipe is in ``opt.json`` for a ``train_log.csv`` and in the JSON of the same name for any other file.
    UserError for a missing or unreadable file.
    """
    if path.is_dir():
        if not (path / "train_log.csv").is_file():
            raise UserError(f"{path}: is a folder without train_log.csv; expected a run folder or a csv or log file")
        path = path / "train_log.csv"
    if not path.exists():
        raise UserError(f"{path}: there is no such file; expected a run folder or a csv or log file")
    loss, notes = read_loss(path)
    info_path = path.with_name("opt.json") if path.name == "train_log.csv" else path.with_suffix(".json")
    info = read_json(info_path) if info_path.is_file() and info_path != path else {}
    return Curve(path, loss, info, notes)


# Choosing


def newest_run(exp_dir: Path) -> Path:
    """Folder of the run below ``exp_dir`` whose ``train_log.csv`` was written last. UserError when there is none."""
    logs = [log for log in exp_dir.glob("*/*/train_log.csv") if log.parent.parent.name != "reference"]
    if not logs:
        raise UserError(
            f"no run (*/*/train_log.csv) in {exp_dir}: train first, or name a run folder or file with --run"
        )
    return max(logs, key=lambda log: (log.stat().st_mtime_ns, str(log))).parent


def find_reference(run: Curve, exp_dir: Path) -> Path:
    """The one reference in ``exp_dir``/reference with the run's task, dataset, arch, input size and batch size.

    UserError, with the references there are, when none or several fit or the run's recipe is not known.
    """
    references = {path: read_json(path.with_suffix(".json")).get("recipe") or {} for path in _references(exp_dir)}
    known = "; ".join(f"{path.stem} ({_identity(recipe)})" for path, recipe in references.items()) or "none"
    help_line = (
        f"references in {exp_dir / 'reference'}: {known}; name one with --reference FILE or make one with "
        "python src/tools/make_reference.py RUN_FOLDER NAME"
    )
    if not run.recipe:
        raise UserError(f"{run.path}: its recipe is not known, so no reference can be chosen for it; {help_line}")
    recipe = run.recipe
    fitting = [
        path
        for path, other in references.items()
        if all(key in recipe and key in other and recipe[key] == other[key] for key in IDENTITY_KEYS)
    ]
    if len(fitting) != 1:
        count = "no reference fits" if not fitting else "several references fit"
        raise UserError(f"{run.path}: {count} its recipe ({_identity(recipe)}); {help_line}")
    return fitting[0]


def named_reference(name: str, exp_dir: Path) -> Path:
    """Path of a reference given as a file, a run folder or a name in ``exp_dir``/reference."""
    stored = exp_dir / "reference" / f"{name}.csv"
    return stored if not Path(name).exists() and stored.is_file() else Path(name)


def _references(exp_dir: Path) -> list[Path]:
    return [path for path in sorted((exp_dir / "reference").glob("*.csv")) if path.with_suffix(".json").is_file()]


def _identity(recipe: dict) -> str:
    return ", ".join(f"{key} {_shown(recipe.get(key, 'not set'))}" for key in IDENTITY_KEYS)


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


# Comparing


def moving_average(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of every ``window`` neighboring values, (n,) -> (n - window + 1,), empty when there are fewer."""
    sums = np.cumsum(np.concatenate(([0.0], values)), dtype=np.float64)
    return (sums[window:] - sums[:-window]) / window


def default_window(iterations: int) -> int:
    """Smoothing window for so many common iterations: a tenth of them, at most 50.

    Fifty is enough to average out which images were drawn, a tenth keeps the shape of a short curve.
    """
    return min(DEFAULT_WINDOW, max(1, iterations // 10))


def recipe_differences(run: dict, reference: dict) -> list[str]:
    """``'lr 0.01 against 0.001'`` for every key in which the two recipes differ."""
    keys = [*run, *(key for key in reference if key not in run)]
    return [
        f"{key} {_shown(run.get(key, 'not set'))} against {_shown(reference.get(key, 'not set'))}"
        for key in keys
        if key not in run or key not in reference or run[key] != reference[key]
    ]


def compare(run: Curve, reference: Curve, window: int | None = None) -> Comparison:
    """Errors of the run's smoothed loss against the reference's over their common iterations.

    The relative error of a point is ``|run - reference| / max(|reference|, EPSILON)``, the absolute error
    ``|run - reference|``. A pass needs a mean of one of them within its limit, a finite run, at least two windows and
    20 iterations in common and, where both recipes are known, equal recipes and at least 95 % of the reference's
    iterations. UserError when the reference itself is not finite.
    """
    bad = np.flatnonzero(~np.isfinite(reference.loss))
    if bad.size:
        raise UserError(f"{reference.path}: NaN or infinity at iteration {bad[0] + 1} makes it unusable as a reference")
    common = min(len(run.loss), len(reference.loss))
    window = window or default_window(common)
    with np.errstate(all="ignore"):
        expected = moving_average(reference.loss[:common], window)
        absolute = moving_average(run.loss[:common], window) - expected
        relative = absolute / np.maximum(np.abs(expected), EPSILON)
        errors = (np.abs(relative), np.abs(absolute), relative, absolute)
        means = [float(error.mean()) if error.size else math.nan for error in errors]

    reasons, notes = [], [*run.notes, *reference.notes]
    bad = np.flatnonzero(~np.isfinite(run.loss))
    if bad.size:
        reasons.append(f"NaN or infinity in the run, first at iteration {bad[0] + 1}")
    needed = max(MIN_ITERATIONS, 2 * window)
    if common < needed:
        reasons.append(f"too few iterations: {common} in common, at least {needed} needed (20, and two windows)")
    if math.isnan(means[0]) and not reasons:
        reasons.append("the losses are too large to be averaged")
    recipe_reasons, recipe_notes = _compare_runs(run, reference)
    return Comparison(*means, window, common, errors[0], reasons + recipe_reasons, notes + recipe_notes)


def _compare_runs(run: Curve, reference: Curve) -> tuple[list[str], list[str]]:
    reasons, notes = [], []
    sizes = f"{len(run.loss)} of the reference's {len(reference.loss)} iterations"
    covered = len(run.loss) >= MIN_COVERAGE * len(reference.loss)
    if len(run.loss) != len(reference.loss):
        notes.append(f"the run has {sizes}: the common part is compared")
    if run.recipe and reference.recipe:
        differences = recipe_differences(run.recipe, reference.recipe)
        if differences:
            reasons.append(f"different recipes: {', '.join(differences)}")
        elif not covered:
            reasons.append(f"incomplete run: {sizes}")
    else:
        unknown = [side for side, curve in (("run", run), ("reference", reference)) if not curve.recipe]
        end = "" if covered else " and so is whether the run is complete"
        notes.append(
            f"no recipe known for the {' and the '.join(unknown)}: judged by the numbers alone, "
            f"whether the recipes are equal is not known{end}"
        )
    for key, verb in (("processes", "differ"), ("device", "differs")):
        values = [curve.info.get(key) for curve in (run, reference)]
        if None not in values and values[0] != values[1]:
            notes.append(f"{key} {verb}: {_shown(values[0])} against {_shown(values[1])}")
    if run.path.resolve() == reference.path.resolve():
        notes.append("the run and the reference are the same file")
    return reasons, notes


# Drawing


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


def run_name(curve: Curve) -> str:
    """What to call a curve: its run folder, or its file."""
    return curve.path.resolve().parent.name if curve.path.name == "train_log.csv" else curve.path.stem


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
