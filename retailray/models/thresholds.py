"""From what validation rows say to what may be accepted unseen: thresholds for a target precision, and the curve.

The precision of what a class accepts is estimated from its validation rows and from the calibrated confidence itself,
which counts as :data:`PRIOR_ROWS` rows: a class with few rows leans on the calibration, one with many on its rows.
"""

import dataclasses

import numpy as np

from retailray.models.meta import Thresholds

PRIOR_ROWS = 10.0
NEVER = 1.01  # no confidence reaches it
RESAMPLES = 500


@dataclasses.dataclass(frozen=True)
class Validation:
    """What came of the rows that a bundle was validated on: ``labels``, ``predicted`` (names), ``scores``; ``(N,)``;
    and ``embeddings`` ``(N, D)``, which old bundles lack."""

    labels: np.ndarray
    predicted: np.ndarray
    scores: np.ndarray
    embeddings: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class AcceptanceCurve:
    """Accepting all rows from a confidence on: their share, precision and its 95 % interval, all float ``(P,)``."""

    confidence: np.ndarray
    share: np.ndarray
    precision: np.ndarray
    low: np.ndarray
    high: np.ndarray


def fit_thresholds(rows: Validation, *, target_precision: float, abstain: float) -> Thresholds:
    """The lowest confidence for each class from which on its accepted rows are estimated to be right often enough.

    Args:
        target_precision: of what is accepted, in 0 to 1. abstain: the confidence below which nothing is claimed.

    Returns:
        ``accept`` for classes without a row, ``per_class`` for the others; :data:`NEVER` where no confidence does.
    """
    correct = (rows.labels == rows.predicted).astype(float)
    overall = _lowest(correct, rows.scores, target_precision)
    per_class = {}
    for name in sorted(set(rows.predicted.tolist())):
        own = rows.predicted == name
        per_class[name] = _lowest(correct[own], rows.scores[own], target_precision)
    return Thresholds(accept=overall, abstain=min(abstain, overall), per_class=per_class)


def _lowest(correct: np.ndarray, scores: np.ndarray, target: float) -> float:
    order = np.argsort(-scores, kind="stable")
    count = np.arange(1, len(order) + 1)
    right, believed = np.cumsum(correct[order]), np.cumsum(scores[order])
    estimate = (right + PRIOR_ROWS * believed / count) / (count + PRIOR_ROWS)
    ordered = scores[order]
    last_of_equals = np.append(ordered[1:] < ordered[:-1], True)  # rows of equal confidence are accepted together
    reached = np.flatnonzero((estimate >= target) & last_of_equals)
    return float(ordered[reached[-1]]) if len(reached) else NEVER


def acceptance_curve(rows: Validation, *, seed: int = 0) -> AcceptanceCurve:
    """How much could be accepted at which precision, with an interval by bootstrap over the rows."""
    correct, scores = (rows.labels == rows.predicted).astype(float), rows.scores
    points = np.unique(np.quantile(scores, np.linspace(0, 0.98, 50)))
    generator = np.random.default_rng(seed)
    resampled = np.full((RESAMPLES, len(points)), np.nan)
    for row in resampled:
        drawn = generator.integers(0, len(scores), len(scores))
        row[:] = _precision(correct[drawn], scores[drawn], points)
    low, high = np.nanquantile(resampled, (0.025, 0.975), axis=0)
    share = (scores[None] >= points[:, None]).mean(1)
    return AcceptanceCurve(points, share, _precision(correct, scores, points), low, high)


def _precision(correct: np.ndarray, scores: np.ndarray, points: np.ndarray) -> np.ndarray:
    accepted = scores[None] >= points[:, None]
    count = accepted.sum(1)
    return np.where(count > 0, (accepted * correct).sum(1) / np.maximum(count, 1), np.nan)
