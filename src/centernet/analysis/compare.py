"""Choose the reference of a run and compare the two loss curves. ``loss.py`` prints the result."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError
from .read import Curve, read_info

MAX_RELATIVE_ERROR = 0.05
MAX_ABSOLUTE_ERROR = 0.0002
MIN_ITERATIONS = 20
MIN_COVERAGE = 0.95
DEFAULT_WINDOW = 50
# The denominator of the relative error is at least this, for smoothed references near zero.
EPSILON = 1e-12
# Relative error of the end that is noted where the mean passes: twice that of any two seeds of sample_short.
FAR = 0.25
IDENTITY_KEYS = ("task", "dataset", "arch", "input_h", "input_w", "batch_size")


@dataclass
class Errors:
    """Mean errors of a run, and whether they are within the limits."""

    mean_relative_error: float
    mean_absolute_error: float

    @property
    def within_limits(self) -> bool:
        return self.mean_relative_error <= MAX_RELATIVE_ERROR or self.mean_absolute_error <= MAX_ABSOLUTE_ERROR

    def verdict(self, reasons: list[str]) -> str:
        """Return one line, ``pass ...`` or ``fail ...`` with every reason."""
        relative = f"mean_relative_error={self.mean_relative_error}"
        absolute = f"mean_absolute_error={self.mean_absolute_error}"
        if self.within_limits and not reasons:
            return f"pass {relative} <= {MAX_RELATIVE_ERROR} or {absolute} <= {MAX_ABSOLUTE_ERROR}"
        reasons = list(reasons)
        if not self.within_limits and not math.isnan(self.mean_relative_error):
            reasons.append(f"{relative} > {MAX_RELATIVE_ERROR} and {absolute} > {MAX_ABSOLUTE_ERROR}")
        return f"fail {'; '.join(reasons)}"


@dataclass
class Comparison:
    """Errors of a run against a reference.

    Attributes:
        errors: means of the unsigned errors of the smoothed losses; NaN if the common part is shorter than the window.
        signed: means of the signed errors of the smoothed losses.
        vendor: means of the signed errors of the losses as they are, which accelerator vendors' scripts print.
        window: iterations of the moving average.
        first, last: first and last common iteration.
        relative_error: (iterations - window + 1,) float64, the unsigned error of each smoothed point.
        reasons: what forbids a pass, however small the errors are.
        notes: what else the reader should know.
    """

    errors: Errors
    signed: Errors
    vendor: Errors
    window: int
    first: int
    last: int
    relative_error: np.ndarray
    reasons: list[str]
    notes: list[str]

    @property
    def mean_relative_error(self) -> float:
        return self.errors.mean_relative_error

    @property
    def mean_absolute_error(self) -> float:
        return self.errors.mean_absolute_error

    @property
    def iterations(self) -> int:
        return max(self.last - self.first + 1, 0)

    @property
    def within_limits(self) -> bool:
        return self.errors.within_limits

    @property
    def passed(self) -> bool:
        return self.within_limits and not self.reasons

    @property
    def verdict(self) -> str:
        """Return one line, ``pass ...`` or ``fail ...`` with every reason."""
        return self.errors.verdict(self.reasons)

    def explain_vendor_pass(self) -> str | None:
        """Return why the vendors' rule passes a run that fails here; None if it does not."""
        if self.passed or not self.vendor.within_limits:
            return None
        relative = self.signed.mean_relative_error
        if self.within_limits:
            why = f"it looks at the errors alone, not at: {'; '.join(self.reasons)}"
        elif relative <= -MAX_RELATIVE_ERROR:
            why = (
                f"its errors are signed, so every loss below the reference passes, and this one is "
                f"{-relative * 100:.3g} % below it"
            )
        else:
            why = (
                f"its errors are signed, so those above and below the reference cancel: the mean is {relative:.3g}, "
                f"the mean distance {self.mean_relative_error:.3g}"
            )
        return f"the vendors' rule passes what fails here: {why}"


# References


def newest_run(exp_dir: Path) -> Path:
    """Return the run directory below ``exp_dir`` whose ``train_log.csv`` was written last.

    Raises:
        UserError: there is none.
    """
    logs = [log for log in exp_dir.glob("*/*/train_log.csv") if log.parent.parent.name != "reference"]
    if not logs:
        raise UserError(
            f"no run (*/*/train_log.csv) in {exp_dir}: train first, or name a run folder or file with --run"
        )
    return max(logs, key=lambda log: (log.stat().st_mtime_ns, str(log))).parent


def find_reference(run: Curve, exp_dir: Path) -> Path:
    """Return the reference in ``exp_dir``/reference with the run's task, dataset, arch, input size and batch size.

    Among several, it is the one whose recipe differs least from the run's.

    Raises:
        UserError: none or several fit, or the run's recipe is not known; the message lists the references.
    """
    references = {path: read_info(path.with_suffix(".json"))["recipe"] for path in _references(exp_dir)}
    known = "; ".join(f"{path.stem} ({_identity(recipe)})" for path, recipe in references.items()) or "none"
    help_line = (
        f"references in {exp_dir / 'reference'}: {known}; name one with --reference FILE or make one with "
        "python src/tools/make_reference.py RUN_FOLDER NAME"
    )
    if not run.recipe:
        raise UserError(f"{run.path}: its recipe is not known, so no reference can be chosen for it; {help_line}")
    recipe = run.recipe
    fitting = {
        path: len(recipe_differences(recipe, other))
        for path, other in references.items()
        if all(key in recipe and key in other and recipe[key] == other[key] for key in IDENTITY_KEYS)
    }
    nearest = [path for path, differences in fitting.items() if differences == min(fitting.values())]
    if len(nearest) != 1:
        count = "no reference fits" if not nearest else "several references fit"
        raise UserError(f"{run.path}: {count} its recipe ({_identity(recipe)}); {help_line}")
    return nearest[0]


def named_reference(name: str, exp_dir: Path) -> Path:
    """Return the path of a reference given as a file, a run directory or a name in ``exp_dir``/reference.

    Raises:
        UserError: it is none of them.
    """
    if Path(name).exists():
        return Path(name)
    stored = exp_dir / "reference" / f"{name}.csv"
    if not stored.is_file():
        names = ", ".join(path.stem for path in sorted(stored.parent.glob("*.csv"))) or "none"
        raise UserError(
            f"--reference {name}: no such file, and not one of the names in {exp_dir / 'reference'}: {names}"
        )
    return stored


def _references(exp_dir: Path) -> list[Path]:
    return [path for path in sorted((exp_dir / "reference").glob("*.csv")) if path.with_suffix(".json").is_file()]


def _identity(recipe: dict) -> str:
    return ", ".join(f"{key} {_shown(recipe.get(key, 'not set'))}" for key in IDENTITY_KEYS)


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def recipe_differences(run: dict, reference: dict, ignored: tuple[str, ...] = ()) -> list[str]:
    """Return ``'lr 0.01 against 0.001'`` for every key, but the ignored ones, in which the two recipes differ."""
    keys = [*run, *(key for key in reference if key not in run)]
    return [
        f"{key} {_shown(run.get(key, 'not set'))} against {_shown(reference.get(key, 'not set'))}"
        for key in keys
        if key not in ignored and (key not in run or key not in reference or run[key] != reference[key])
    ]


# Comparison


def moving_average(values: np.ndarray, window: int) -> np.ndarray:
    """Return the mean of every ``window`` neighboring values, (n,) -> (n - window + 1,); empty if there are fewer."""
    sums = np.cumsum(np.concatenate(([0.0], values)), dtype=np.float64)
    return (sums[window:] - sums[:-window]) / window


def default_window(iterations: int) -> int:
    """Return the smoothing window for so many common iterations: a tenth of them, at most 50.

    Fifty average out which images were drawn; a tenth keeps the shape of a short curve.
    """
    return min(DEFAULT_WINDOW, max(1, iterations // 10))


def compare(run: Curve, reference: Curve, window: int | None = None) -> Comparison:
    """Compare the smoothed losses of a run and a reference over their common iterations.

    The relative error of a point is ``|run - reference| / max(|reference|, EPSILON)``, the absolute error
    ``|run - reference|``. A pass needs a mean of one of them within its limit, a finite run, at least two windows and
    20 iterations in common and, where both recipes are known, equal recipes and at least 95 % of the reference's
    iterations.

    Raises:
        UserError: the reference is not finite, or the two have no iteration in common.
    """
    bad = np.flatnonzero(~np.isfinite(reference.loss))
    if bad.size:
        place = bad[0] + reference.first
        raise UserError(f"{reference.path}: NaN or infinity at iteration {place} makes it unusable as a reference")
    first, last = max(run.first, reference.first), min(run.last, reference.last)
    if last < first:
        raise UserError(
            f"{run.path}: has iterations {run.first} to {run.last}, none of {reference.path}, which has "
            f"{reference.first} to {reference.last}"
        )
    common = last - first + 1
    window = window or default_window(common)
    losses = run.loss_from(first, last), reference.loss_from(first, last)
    reasons, notes = [], [*run.notes, *reference.notes]
    with np.errstate(all="ignore"):
        relative, absolute = _smoothed_errors(losses, window)
        printed = run.printed if reference.printed is None else reference.printed if run.printed is None else None
        if printed is not None:  # the log of one of them has fewer iterations
            printed = printed[(printed >= first) & (printed <= last)]
        if printed is not None and len(printed):
            held = run.held(printed, first, last), reference.held(printed, first, last)
            errors_there = _smoothed_errors(held, window)
            # A printed loss is that of its iteration, or a mean since the last line. No log says which.
            if _mean(np.abs(errors_there[0])) < _mean(np.abs(relative)):
                (relative, absolute), losses = errors_there, held
                notes.append(f"the curves are compared at the {len(printed)} printed iterations")
        errors = Errors(_mean(np.abs(relative)), _mean(np.abs(absolute)))
        signed = Errors(_mean(relative), _mean(absolute))
        vendor = Errors(*map(_mean, _signed_errors(*losses)))

    bad = np.flatnonzero(~np.isfinite(run.loss))
    if bad.size:
        reasons.append(f"NaN or infinity in the run, first at iteration {bad[0] + run.first}")
    needed = max(MIN_ITERATIONS, 2 * window)
    if common < needed:
        reasons.append(f"too few iterations: {common} in common, at least {needed} needed (20, and two windows)")
    if math.isnan(errors.mean_relative_error) and not reasons:
        reasons.append("the losses are too large to be averaged")
    if errors.within_limits and len(relative) and abs(relative[-1]) > FAR:
        side = "above" if relative[-1] > 0 else "below"
        notes.append(
            f"the end differs: the last {window} iterations are {abs(relative[-1]) * 100:.0f} % {side} the reference, "
            "which the mean over the whole curve hides"
        )
    recipe_reasons, recipe_notes = _compare_runs(run, reference, common)
    reasons, notes = reasons + recipe_reasons, notes + recipe_notes
    return Comparison(errors, signed, vendor, window, first, last, np.abs(relative), reasons, notes)


def _smoothed_errors(losses: tuple[np.ndarray, np.ndarray], window: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the relative and the absolute error of each point of two smoothed curves."""
    run, reference = (moving_average(loss, window) for loss in losses)
    return _signed_errors(run, reference)


def _signed_errors(run: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the relative and the absolute error of each point."""
    absolute = run - reference
    return absolute / np.maximum(np.abs(reference), EPSILON), absolute


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else math.nan


def _compare_runs(run: Curve, reference: Curve, common: int) -> tuple[list[str], list[str]]:
    """Return the reasons against a pass and the notes that follow from the descriptions and lengths of the two."""
    reasons, notes = [], []
    sizes = f"{len(run.loss)} of the reference's {len(reference.loss)} iterations"
    if len(run.loss) > len(reference.loss):
        sizes = f"{len(run.loss)} iterations, more than the reference's {len(reference.loss)}"
    covered = common >= MIN_COVERAGE * len(reference.loss)
    if run.first != reference.first:
        sizes += f", {run.first} to {run.last} against {reference.first} to {reference.last}"
    if (run.first, run.last) != (reference.first, reference.last):
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
