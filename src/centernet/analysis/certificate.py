"""Certify runs against a library of reference runs: are they equivalent, different, or is that undecided?

Three checks look for a difference, each at a third of the level of 0.05: the mean curve of the runs against the band of
the library, the mean loss at the end, and the main score. The runs are equivalent if the last two differ by less
than their margins (two one-sided tests at 0.05) and no check finds a difference.
"""

import math
from dataclasses import dataclass, field
from datetime import datetime, timezone
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..utils.files import write_errors, write_json
from .compare import default_window, recipe_differences
from .library import ALPHA, SEED_KEYS, Band, Library, end_losses, last_score
from .page_plots import band_curves
from .pages import write_page
from .read import Curve, read_curve, read_run
from .statistics import Difference, compare_means, detectable_difference, equivalence_power, group_deviation, t_quantile

CHECKS = 3
MAX_SUBSETS = 400  # of a library, for the false-alarm rate
LOSS_MARGIN = 0.05  # of the mean end loss of the library, as loss.py's limit
SCORE_MARGIN = 0.05
VERDICTS = {
    "equivalent": "equivalent to the library within the margins",
    "different": "different from the library",
    "undecided": "undecided: neither equivalent within the margins nor different; more runs are needed",
}


@dataclass
class BandCheck:
    """The largest deviation of the mean curve of runs from a library's band, in standard errors."""

    deviation: float
    iteration: int
    limit: float

    @property
    def is_outside(self) -> bool:
        return not abs(self.deviation) <= self.limit


@dataclass
class Certificate:
    """Results of the checks.

    Attributes:
        band: check of the curve.
        end_loss: comparison of the mean loss over the last eighth of the iterations.
        score: comparison of the main score; None if the runs or the library have none.
        reasons: what forbids a certificate, regardless of the checks.
        notes: what else the reader should know.
    """

    band: BandCheck
    end_loss: Difference
    score: Difference | None
    reasons: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def findings(self) -> list[str]:
        """Return the checks that found a difference."""
        found = {"curve": self.band.is_outside, "end loss": self.end_loss.is_different(ALPHA / CHECKS)}
        if self.score is not None:
            found["score"] = self.score.is_different(ALPHA / CHECKS)
        return [name for name, is_different in found.items() if is_different]

    @property
    def verdict(self) -> str:
        """Return ``equivalent``, ``different`` or ``undecided``."""
        if self.findings:
            return "different"
        compared = [self.end_loss, *([self.score] if self.score is not None else [])]
        return "equivalent" if all(each.is_equivalent() for each in compared) else "undecided"

    @property
    def certified(self) -> bool:
        return self.verdict == "equivalent" and not self.reasons


@dataclass
class Margins:
    """Differences that are taken as irrelevant: of the end loss as a fraction of the library's, and of the score."""

    loss: float = LOSS_MARGIN
    score: float = SCORE_MARGIN


def read_runs(paths: list[Path], library: Library) -> tuple[list[Curve], list[float | None]]:
    """Read the runs to certify: their curves and their scores.

    Raises:
        UserError: a run cannot be used: it is unfinished, not finite, named twice, or one of the library itself.
    """
    curves: list[Curve] = []
    scores: list[float | None] = []
    for path in paths:
        curve = read_curve(path)
        if curve.first > 1 or len(curve.loss) < library.iterations:
            has = f"has iterations {curve.first} to {curve.last}"
            raise UserError(f"{curve.path}: {has}; the library needs 1 to {library.iterations}")
        loss = curve.loss[: library.iterations]
        bad = np.flatnonzero(~np.isfinite(loss))
        if bad.size:
            raise UserError(f"{curve.path}: NaN or infinity at iteration {bad[0] + 1}")
        if any(np.allclose(loss, other, rtol=1e-5, atol=0) for other in library.losses):
            raise UserError(f"{curve.path}: is a run of the library; certify runs of other seeds")
        if any(np.array_equal(loss, other.loss[: library.iterations]) for other in curves):
            raise UserError(f"{curve.path}: is the same curve as another run; every run needs a seed of its own")
        curves.append(curve)
        is_run = curve.path.name == "train_log.csv"
        scores.append(last_score(read_run(curve.path))[1] if is_run else None)
    return curves, scores


def certify(curves: list[Curve], scores: list[float | None], library: Library, margins: Margins) -> Certificate:
    """Check the runs of ``read_runs`` against a library."""
    losses = np.stack([curve.loss[: library.iterations] for curve in curves])
    known = [score for score in scores if score is not None]
    certificate = check(losses, np.array(known), library.losses, library.scores, margins)
    if certificate.score is None:
        certificate.notes.append(f"{library.score_name} is not checked: runs or library have none")
    elif len(known) < len(scores):
        certificate.notes.append(f"{library.score_name} is known of {len(known)} of {len(scores)} runs")
    seen: dict[Any, str] = {}
    for curve in curves:
        if not curve.recipe:
            certificate.notes.append(f"{curve.path}: its recipe is not known")
            continue
        differences = recipe_differences(curve.recipe, library.recipe, ignored=SEED_KEYS)
        if differences:
            certificate.reasons.append(f"{curve.name}: different recipe: {', '.join(differences)}")
        seed = curve.recipe.get("seed")
        if seed is not None and seed in seen:
            certificate.reasons.append(
                f"{curve.name}: has the seed of {seen[seed]} ({seed}); every run needs a seed of its own"
            )
        seen.setdefault(seed, curve.name)
        if seed in [run.get("seed") for run in library.runs]:
            certificate.notes.append(f"{curve.name}: its seed is one of the library's, so it is not independent of it")
    return certificate


def check(
    losses: np.ndarray,
    scores: np.ndarray,
    library_losses: np.ndarray,
    library_scores: np.ndarray,
    margins: Margins,
) -> Certificate:
    """Check runs against reference runs.

    Args:
        losses: (runs, iterations) float64.
        scores: (runs with a score,) float64.
        library_losses: (references, iterations) float64.
        library_scores: (references,) float64, NaN without a score.
    """
    window = default_window(losses.shape[1])
    band = Band.of(library_losses, window)
    deviations = band.deviations(losses)
    worst = int(np.abs(deviations).argmax())
    windows = max(losses.shape[1] / window, 1)
    limit = t_quantile(1 - ALPHA / CHECKS / 2 / windows, len(library_losses) - 1)
    ends, library_ends = end_losses(losses), end_losses(library_losses)
    library_scores = library_scores[np.isfinite(library_scores)]
    return Certificate(
        BandCheck(float(deviations[worst]), worst + 1 + window // 2, limit),
        compare_means(ends, library_ends, margins.loss * abs(float(library_ends.mean()))),
        compare_means(scores, library_scores, margins.score) if len(scores) and len(library_scores) > 2 else None,
    )


def leave_out(library: Library, runs: int, margins: Margins) -> dict[str, Any]:
    """Return how often ``runs`` runs of a library get each verdict against the others, over all ways to choose them.

    The rate of ``different`` is the false-alarm rate: nothing is wrong with any of these runs.
    """
    total = len(library.runs)
    subsets = list(combinations(range(total), runs))
    if len(subsets) > MAX_SUBSETS:
        chosen = np.random.default_rng(0).choice(len(subsets), MAX_SUBSETS, replace=False)
        subsets = [subsets[k] for k in chosen]
    counts = dict.fromkeys(VERDICTS, 0)
    for subset in subsets:
        inside = np.isin(np.arange(total), subset)
        scores = library.scores[inside]
        found = check(
            library.losses[inside],
            scores[np.isfinite(scores)],
            library.losses[~inside],
            library.scores[~inside],
            margins,
        )
        counts[found.verdict] += 1
    rates = {f"{verdict}_rate": count / len(subsets) for verdict, count in counts.items()}
    return {"runs": runs, "subsets": len(subsets), **rates}


def powers(library: Library, margins: Margins, counts: tuple[int, ...] = (1, 2, 3, 5, 10)) -> list[dict[str, Any]]:
    """Return what so many runs can show, by number of runs.

    That is the smallest difference that is found with a probability of 0.8, and the probability with which runs without
    any difference are found to be equivalent.
    """
    scores = library.scores[np.isfinite(library.scores)]
    ends = library.end_losses
    end = abs(float(ends.mean()))
    groups = {"end_loss": (ends, margins.loss * end), "score": (scores, margins.score)}
    rows: list[dict[str, Any]] = []
    for n in counts:
        row: dict[str, Any] = {"runs": n}
        for name, (values, margin) in groups.items():
            if len(values) > 2:
                deviation = group_deviation(values)
                row[name] = detectable_difference(deviation, n, len(values))
                row[f"{name}_equivalent"] = equivalence_power(deviation, n, len(values), margin)
        row["end_loss_percent"] = 100 * row["end_loss"] / end
        rows.append(row)
    return rows


def describe(certificate: Certificate, library: Library, curves: list[Curve], margins: Margins) -> dict[str, Any]:
    """Return the certificate as the content of ``certificate.json``."""
    largest = max(len(library.runs) - 3, 1)  # leaves at least three references
    counts = sorted({1, min(len(curves), largest)})
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "library": library.name,
        "library_runs": len(library.runs),
        "certified": certificate.certified,
        "verdict": certificate.verdict,
        "found_by": certificate.findings,
        "reasons": certificate.reasons,
        "notes": certificate.notes,
        "runs": [
            {
                "name": curve.name,
                "path": str(curve.path),
                **{key: curve.info.get(key) for key in ("device", "processes", "git", "versions")},
                "seed": (curve.recipe or {}).get("seed"),
            }
            for curve in curves
        ],
        "curve": {
            "largest_deviation": certificate.band.deviation,
            "iteration": certificate.band.iteration,
            "limit": certificate.band.limit,
            "window": library.window,
            "end_window": library.end_window,
        },
        "end_loss": _difference(certificate.end_loss),
        "score": {"name": library.score_name, **_difference(certificate.score)} if certificate.score else None,
        "leave_out": [leave_out(library, n, margins) for n in counts],
        "powers": powers(library, margins),
        "recipe": library.recipe,
    }


def _difference(difference: Difference) -> dict[str, Any]:
    return {
        "runs": [float(value) for value in difference.values],
        "runs_mean": float(difference.values.mean()),
        "library_mean": float(difference.others.mean()),
        "library_deviation": float(difference.others.std(ddof=1)),
        "difference": difference.difference,
        "interval_90": list(difference.interval),
        "margin": difference.margin,
        "p_equivalent": difference.p_equivalent,
        "p_different": difference.p_different,
        "detectable": difference.detectable,
    }


def write_certificate(
    content: dict[str, Any], library: Library, curves: list[Curve], folder: Path
) -> tuple[Path, Path]:
    """Write ``certificate.json`` and ``certificate.html`` into a folder, made if need be; return their paths.

    Raises:
        UserError: they cannot be written.
    """
    json_path, html_path = folder / "certificate.json", folder / "certificate.html"
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_json(json_path, content, indent=1)
    write_page(
        html_path,
        "certificate.html",
        name=library.name,
        curves=band_curves(library.losses, library.window, curves, library.info["limits"]["pointwise"]),
        verdict_text=VERDICTS[content["verdict"]],
        **content,
    )
    return json_path, html_path


def summary(content: dict[str, Any]) -> list[str]:
    """Return the lines that ``certify.py`` prints."""
    curve, end, score = content["curve"], content["end_loss"], content["score"]
    lines = [
        f"Library: {content['library']}, {content['library_runs']} runs; runs to certify: {len(content['runs'])}",
        f"Curve: largest deviation {curve['largest_deviation']:+.2f} standard errors at iteration "
        f"{curve['iteration']}, limit {curve['limit']:.2f}",
        _line("End loss", end, percent=True),
    ]
    if score:
        lines.append(_line(score["name"], score))
    for rates in content["leave_out"]:
        lines.append(
            f"Leave-out: {rates['runs']} of the library's runs against the others, {rates['subsets']} ways: "
            f"{rates['different_rate'] * 100:.1f} % false alarms, {rates['equivalent_rate'] * 100:.1f} % equivalent, "
            f"{rates['undecided_rate'] * 100:.1f} % undecided"
        )
    lines += [f"Note: {note}" for note in content["notes"]]
    found = f" (by {', '.join(content['found_by'])})" if content["found_by"] else ""
    lines.append(f"Verdict: {VERDICTS[content['verdict']]}{found}")
    reasons = f": {'; '.join(content['reasons'])}" if content["reasons"] else ""
    lines.append("Certified" if content["certified"] else f"Not certified{reasons}")
    return lines


def _line(name: str, values: dict[str, Any], percent: bool = False) -> str:
    scale = 100 / abs(values["library_mean"]) if percent and values["library_mean"] else math.nan
    low, high = values["interval_90"]
    margin, detectable_ = f"{values['margin']:.4g}", f"{values['detectable']:.4g}"
    if percent:
        margin += f" ({values['margin'] * scale:.1f} %)"
        detectable_ += f" ({values['detectable'] * scale:.1f} %)"
    means = f"{values['runs_mean']:.4f} against {values['library_mean']:.4f}"
    return (
        f"{name}: {means}, difference {values['difference']:+.4f}, 90 % interval {low:+.4f} to {high:+.4f}, "
        f"margin {margin}, p-values {values['p_equivalent']:.3g} of 'not equivalent' and "
        f"{values['p_different']:.3g} of 'no difference', detectable {detectable_}"
    )
