"""Choose the reference of a run and compare the two loss curves. ``loss.py`` prints the result."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError
from .read import Curve, read_json

MAX_RELATIVE_ERROR = 0.05
MAX_ABSOLUTE_ERROR = 0.0002
MIN_ITERATIONS = 20
MIN_COVERAGE = 0.95
DEFAULT_WINDOW = 50
# A smoothed reference nearer to zero than this counts as this in the denominator of the relative error.
EPSILON = 1e-12
IDENTITY_KEYS = ("task", "dataset", "arch", "input_h", "input_w", "batch_size")


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
        unsigned, distance, signed, signed_distance = (float(e.mean()) if e.size else math.nan for e in errors)

    reasons, notes = [], [*run.notes, *reference.notes]
    bad = np.flatnonzero(~np.isfinite(run.loss))
    if bad.size:
        reasons.append(f"NaN or infinity in the run, first at iteration {bad[0] + 1}")
    needed = max(MIN_ITERATIONS, 2 * window)
    if common < needed:
        reasons.append(f"too few iterations: {common} in common, at least {needed} needed (20, and two windows)")
    if math.isnan(unsigned) and not reasons:
        reasons.append("the losses are too large to be averaged")
    recipe_reasons, recipe_notes = _compare_runs(run, reference)
    reasons, notes = reasons + recipe_reasons, notes + recipe_notes
    return Comparison(unsigned, distance, signed, signed_distance, window, common, errors[0], reasons, notes)


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
