"""Libraries of reference runs: one recipe trained with several seeds, to distinguish deviations from chance.

A library ``NAME`` is the folder ``exp/reference/NAME`` with ``library.json`` and one CSV file per run (columns
``iteration`` and ``loss``). The reference ``exp/reference/NAME.csv`` is its first run.
"""

import math
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..utils.files import write_errors, write_json, write_text
from .compare import default_window, moving_average, recipe_differences
from .read import Curve, RunLog, read_finished_run, read_info, read_loss, read_run

MIN_RUNS = 4
ALPHA = 0.05  # false-alarm rate that the limits of a band are made for
END_FRACTION = 8
SEED_KEYS = ("seed",)  # of a recipe; in these the runs of a library differ


@dataclass
class Band:
    """Mean and standard deviation of the smoothed loss of several runs, by iteration.

    Attributes:
        mean, deviation: (iterations - window + 1,) float64.
        runs: number of runs.
        window: iterations of the moving average.
    """

    mean: np.ndarray
    deviation: np.ndarray
    runs: int
    window: int

    @classmethod
    def of(cls, losses: np.ndarray, window: int) -> "Band":
        """Return the band of losses (runs, iterations)."""
        smoothed = np.stack([moving_average(loss, window) for loss in losses])
        mean = smoothed.mean(0)
        deviation = np.maximum(smoothed.std(0, ddof=1), 1e-9 * np.abs(mean) + 1e-12)
        return cls(mean, deviation, len(losses), window)

    def deviations(self, losses: np.ndarray, first: int = 1) -> np.ndarray:
        """Return how far the mean curve of further runs is from the mean, in standard errors of that difference.

        Args:
            losses: (further runs, iterations of them) float64.
            first: iteration of the first loss.
        """
        smoothed = moving_average(losses.mean(0), self.window)
        part = slice(first - 1, first - 1 + len(smoothed))
        mean, deviation = self.mean[part], self.deviation[part]
        scale = math.sqrt(1 / len(losses) + 1 / self.runs)
        return (smoothed[: len(mean)] - mean) / (deviation * scale)


def end_window(iterations: int) -> int:
    """Return over how many iterations at the end of a run its end loss is averaged."""
    return max(iterations // END_FRACTION, 1)


def end_losses(losses: np.ndarray) -> np.ndarray:
    """Return the mean loss at the end of runs, (runs, iterations) -> (runs,)."""
    return losses[:, -end_window(losses.shape[1]) :].mean(1)


@dataclass
class Library:
    """Reference runs of one recipe.

    Attributes:
        path: folder of the library.
        info: ``library.json``.
        losses: (runs, iterations) float64.
        notes: what the reader should know.
    """

    path: Path
    info: dict[str, Any]
    losses: np.ndarray
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def recipe(self) -> dict:
        return self.info["recipe"]

    @property
    def runs(self) -> list[dict]:
        return self.info["runs"]

    @property
    def score_name(self) -> str:
        return self.info["score"]

    @property
    def scores(self) -> np.ndarray:
        """Return (runs,) float64, the main score of each run's last validation; NaN without one."""
        return np.array([math.nan if run["score"] is None else run["score"] for run in self.runs], dtype=np.float64)

    @property
    def iterations(self) -> int:
        return self.losses.shape[1]

    @property
    def window(self) -> int:
        return default_window(self.iterations)

    @property
    def band(self) -> Band:
        return Band.of(self.losses, self.window)

    @property
    def end_window(self) -> int:
        """Return the number of iterations over which the end loss of a run is averaged: the last eighth."""
        return end_window(self.iterations)

    @property
    def end_losses(self) -> np.ndarray:
        """Return (runs,) float64, the mean loss at the end of each run."""
        return end_losses(self.losses)

    def describe(self, run: Curve) -> list[str]:
        """Return lines on where in the band a run lies, for ``loss.py``."""
        last = min(run.last, self.iterations)
        if last - run.first + 1 < self.window:
            return [f"Library: {self.name}, {len(self.runs)} runs: the run has too few of its iterations"]
        deviations = self.band.deviations(run.loss_from(run.first, last)[None], run.first)
        worst = int(np.argmax(np.nan_to_num(np.abs(deviations), nan=math.inf)))
        limits = self.info["limits"]
        inside = np.mean(np.abs(deviations) <= limits["pointwise"])
        verdict = "inside" if abs(deviations[worst]) <= limits["simultaneous"] else "outside"
        lines = [
            f"Library: {self.name}, {len(self.runs)} runs: {verdict} the band; largest deviation "
            f"{deviations[worst]:+.2f} standard deviations at iteration {run.first + worst + self.window // 2}, "
            f"limit {limits['simultaneous']:.2f}; {inside * 100:.1f} % of the curve within the pointwise 95 % band"
        ]
        if last == self.iterations:
            end, ends = float(run.loss_from(last - self.end_window + 1, last).mean()), self.end_losses
            lines.append(
                f"LibraryEndLoss: {end:.4g}; library {ends.min():.4g} to {ends.max():.4g}, mean {ends.mean():.4g}; "
                f"{int((ends < end).sum())} of {len(ends)} runs are lower"
            )
        return lines


def find_library(reference: Path) -> Path | None:
    """Return the folder of the library behind a reference's CSV file; None if there is none."""
    folder = reference.with_suffix("")
    return folder if (folder / "library.json").is_file() else None


def named_library(name: str, exp_dir: Path) -> Path:
    """Return the folder of a library given as a folder or a name in ``exp_dir``/reference.

    Raises:
        UserError: there is none; the message lists those in ``exp_dir``/reference.
    """
    for folder in (Path(name), exp_dir / "reference" / name):
        if (folder / "library.json").is_file():
            return folder
    known = sorted(path.parent.name for path in (exp_dir / "reference").glob("*/library.json"))
    raise UserError(
        f"--references {name}: not a library of reference runs; found in {exp_dir / 'reference'}: "
        f"{', '.join(known) or 'none'}; make one with python src/tools/make_reference_library.py NAME"
    )


def read_library(folder: Path) -> Library:
    """Read a library.

    Raises:
        UserError: it cannot be used.
    """
    path = folder / "library.json"
    info = read_info(path)
    runs = info.get("runs")
    limits = info.get("limits")
    if not isinstance(runs, list) or len(runs) < MIN_RUNS or not all(_is_entry(run) for run in runs):
        raise UserError(f"{path}: expected at least {MIN_RUNS} runs with file and score")
    if not isinstance(limits, dict) or not all(_is_number(limits.get(key)) for key in ("pointwise", "simultaneous")):
        raise UserError(f"{path}: expected limits of the band, pointwise and simultaneous")
    info["score"] = str(info.get("score", "score"))
    curves = [read_loss(folder / Path(run["file"]).name) for run in runs]
    if len({len(curve.loss) for curve in curves}) > 1 or not all(np.isfinite(curve.loss).all() for curve in curves):
        raise UserError(f"{path}: expected finite curves of the same length")
    return Library(folder, info, np.stack([curve.loss for curve in curves]))


def _is_entry(run: Any) -> bool:
    return (
        isinstance(run, dict)
        and isinstance(run.get("file"), str)
        and (run.get("score", 0) is None or _is_number(run.get("score")))
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300


def last_score(run: RunLog) -> tuple[str, float | None]:
    """Return the name and value of the main score of a run's last validation; None without a validation at its end."""
    if not run.scores or run.val["epoch"][-1] != run.train["epoch"][-1]:
        return str(run.info.get("options", {}).get("main_score", "score")), None
    name = run.scores[0]
    value = float(run.val[name][-1])
    return name, value if math.isfinite(value) else None


def band_limits(runs: int, iterations: int, window: int) -> dict[str, float]:
    """Return the limits of a band's deviations: for a single iteration, and for the largest of a whole curve.

    Quantiles of Student's t distribution. The limit for a curve is Bonferroni's for as many independent values as
    windows fit into it.
    """
    from .statistics import t_quantile

    windows = max(iterations / window, 1)
    return {
        "alpha": ALPHA,
        "pointwise": t_quantile(1 - ALPHA / 2, runs - 1),
        "simultaneous": t_quantile(1 - ALPHA / 2 / windows, runs - 1),
    }


def write_library(name: str, runs: list[Path], exp_dir: Path, force: bool = False) -> Path:
    """Write the curves and scores of finished runs as the library ``exp_dir``/reference/``name``.

    Args:
        runs: run directories of one recipe and of different seeds, at least ``MIN_RUNS``.
        force: overwrite a library of that name.

    Raises:
        UserError: the runs are not fit for a library, or it exists or cannot be written.
    """
    folder = exp_dir / "reference" / name
    if len(runs) < MIN_RUNS:
        raise UserError(f"{name}: {len(runs)} runs; a library needs at least {MIN_RUNS}")
    if (folder / "library.json").exists() and not force:
        raise UserError(f"{folder / 'library.json'}: exists; --force overwrites it")
    entries, files, score_name = [], [], ""
    recipe: dict = {}
    for run in runs:
        _, _, info = read_finished_run(run)
        log = read_run(run)
        differences = recipe_differences(info["recipe"], recipe, ignored=SEED_KEYS) if recipe else []
        if differences:
            raise UserError(f"{run}: its recipe differs from that of {runs[0]}: {', '.join(differences)}")
        recipe = recipe or info["recipe"]
        score_name, score = last_score(log)
        seed = info["recipe"].get("seed")
        entry = {"file": f"seed_{seed}.csv", "seed": seed, "score": score}
        entries.append(entry | {key: info.get(key) for key in ("processes", "device", "versions", "git")})
        rows = [f"{k},{loss:.6g}\n" for k, loss in enumerate(log.train["loss"], 1)]
        files.append("".join(["iteration,loss\n", *rows]))
    if len({entry["file"] for entry in entries}) < len(entries):
        raise UserError(f"{name}: two runs have the same seed; the runs of a library have different seeds")
    lengths = {text.count("\n") - 1 for text in files}
    if len(lengths) > 1:
        raise UserError(
            f"{name}: the runs have different numbers of iterations ({', '.join(map(str, sorted(lengths)))})"
        )
    iterations = lengths.pop()
    content = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "iterations": iterations,
        "score": score_name,
        "limits": band_limits(len(runs), iterations, default_window(iterations)),
        "recipe": {key: value for key, value in recipe.items() if key not in SEED_KEYS},
        "runs": entries,
    }
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for entry, text in zip(entries, files, strict=True):
        write_text(folder / entry["file"], text)
    write_json(folder / "library.json", content, indent=1)
    return folder
