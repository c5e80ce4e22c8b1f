"""Tests of whether two small groups of runs are equivalent or different. Needs SciPy (the extra ``certify``)."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UserError

POWER = 0.8  # probability with which a detectable difference is found


def _distributions() -> Any:
    try:
        from scipy import optimize, stats
    except ImportError as error:
        raise UserError("statistics need SciPy: pip install scipy") from error
    return stats, optimize


def t_quantile(probability: float, degrees: int) -> float:
    """Return a quantile of Student's t distribution."""
    stats, _ = _distributions()
    return float(stats.t.ppf(probability, degrees))


@dataclass
class Difference:
    """Difference of the means of two groups, by two-sample t tests with a pooled variance.

    Attributes:
        values, others: the two groups, such as runs and library.
        margin: difference that is taken as irrelevant.
        difference: mean of ``values`` minus mean of ``others``.
        interval: 90 % confidence interval of the difference.
        p_equivalent: of the two one-sided tests (TOST); below 0.05 the difference is within the margin.
        p_different: of the two-sided test; small if the means differ.
        detectable: difference that a two-sided test at 0.05 finds with a probability of 0.8.
    """

    values: np.ndarray
    others: np.ndarray
    margin: float
    difference: float
    interval: tuple[float, float]
    p_equivalent: float
    p_different: float
    detectable: float

    def is_equivalent(self, alpha: float = 0.05) -> bool:
        return self.p_equivalent < alpha

    def is_different(self, alpha: float = 0.05) -> bool:
        """Return whether the means differ and are not equivalent."""
        return self.p_different < alpha and not self.is_equivalent()


def compare_means(values: np.ndarray, others: np.ndarray, margin: float) -> Difference:
    """Compare the means of two groups.

    Args:
        values: (n,) float64, at least one. A single value takes its variance from ``others``.
        others: (m,) float64, at least two.
        margin: above 0.
    """
    stats, _ = _distributions()
    n, m = len(values), len(others)
    degrees = n + m - 2
    deviation = group_deviation(values, others)
    error = deviation * math.sqrt(1 / n + 1 / m)
    difference = float(values.mean() - others.mean())
    below, above = (margin + difference) / error, (margin - difference) / error
    half = error * float(stats.t.ppf(0.95, degrees))
    return Difference(
        values,
        others,
        margin,
        difference,
        (difference - half, difference + half),
        float(max(stats.t.sf(below, degrees), stats.t.sf(above, degrees))),
        float(2 * stats.t.sf(abs(difference) / error, degrees)),
        detectable_difference(deviation, n, m),
    )


def group_deviation(*groups: np.ndarray) -> float:
    """Return the standard deviation within groups, pooled over them; positive even if they are constant."""
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
    degrees = sum(map(len, groups)) - len(groups)
    tiny = 1e-9 * float(np.abs(groups[-1]).max()) + 1e-12
    return max(math.sqrt(squares / degrees), tiny)


def detectable_difference(deviation: float, n: int, m: int, alpha: float = 0.05) -> float:
    """Return the difference that a two-sided t test of ``n`` against ``m`` runs finds with a probability of ``POWER``.

    Args:
        deviation: standard deviation of single runs.
        n, m: sizes of the groups; n + m above 2.
        alpha: level of the test.
    """
    stats, optimize = _distributions()
    degrees = n + m - 2
    limit = stats.t.ppf(1 - alpha / 2, degrees)

    def missing_power(effect: float) -> float:
        return stats.nct.sf(limit, degrees, effect) - POWER

    effect = optimize.brentq(missing_power, 0, 10 * limit)  # in standard errors; the other tail is negligible
    return float(effect * deviation * math.sqrt(1 / n + 1 / m))


def equivalence_power(deviation: float, n: int, m: int, margin: float, alpha: float = 0.05) -> float:
    """Return the probability that TOST finds ``n`` and ``m`` runs without a difference equivalent within ``margin``."""
    stats, _ = _distributions()
    degrees = n + m - 2
    effect = margin / (deviation * math.sqrt(1 / n + 1 / m))
    limit = stats.t.ppf(1 - alpha, degrees)

    def share(squares: float) -> float:
        """Return the probability for a given estimate of the variance."""
        return max(0.0, 2 * stats.norm.cdf(effect - limit * math.sqrt(squares / degrees)) - 1)

    return float(stats.chi2(degrees).expect(share))
