"""From what validation rows say to what may be accepted unseen: thresholds for a target precision, and the curve.

A threshold is a promise: among the products that a class accepts from it on, at least the target is right. It is kept
with :data:`CONFIDENCE`, since it rests on a lower confidence bound and on rows that chose neither the epoch nor the
temperature. Classes with too few products for any bound promise nothing and accept nothing.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from retailray.models.meta import EMBEDDING, THRESHOLDS, Thresholds, load_validation
from retailray.models.probabilities import CLASSES_FIELD, PROBABILITIES_FIELD, rows_of

CONFIDENCE = 0.9  # that a promise is kept
NEVER = 1.01  # no confidence reaches it
RESAMPLES = 500


@dataclasses.dataclass(frozen=True)
class Validation:
    """What came of the rows that a bundle was validated on: ``labels``, ``predicted`` (names), ``scores``, ``groups``
    (products) and ``roles`` (what each row was used for); ``(N,)``; and ``embeddings`` ``(N, D)``, or None, and their
    most probable ``classes`` and their ``probabilities`` ``(N, K)``, or None."""

    labels: np.ndarray
    predicted: np.ndarray
    scores: np.ndarray
    groups: np.ndarray
    roles: np.ndarray
    embeddings: np.ndarray | None = None
    classes: np.ndarray | None = None
    probabilities: np.ndarray | None = None

    def of_role(self, *roles: str) -> "Validation":
        """The rows that were used for these things."""
        mask = np.isin(self.roles, roles)
        columns = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Validation(**{name: values[mask] for name, values in columns.items() if values is not None})


def validation_of(model_uri: str) -> Validation | None:
    """What came of the validation rows of a bundle, where it keeps them and says what each was used for."""
    rows = load_validation(model_uri)
    if rows is None or not rows.num_rows or "role" not in rows.column_names:
        return None
    names = {"labels": "label", "predicted": "pred_label", "scores": "pred_score", "groups": "group", "roles": "role"}
    columns = {field: rows.column(name).to_numpy() for field, name in names.items()}
    columns["embeddings"] = rows_of(rows.column(EMBEDDING))
    if PROBABILITIES_FIELD.name in rows.column_names:  # bundles of earlier versions have none
        columns |= {name: rows_of(rows.column(name)) for name in (CLASSES_FIELD.name, PROBABILITIES_FIELD.name)}
    return Validation(**columns)


@dataclasses.dataclass(frozen=True)
class ClassPromise:
    """``products`` with predictions of a class; ``accepted`` of them from ``threshold`` on, of which at least ``bound``
    are right with :data:`CONFIDENCE`. ``threshold`` is :data:`NEVER`, and ``bound`` None, where nothing is promised."""

    products: int
    threshold: float = NEVER
    accepted: int = 0
    bound: float | None = None


@dataclasses.dataclass(frozen=True)
class Promise:
    """What is promised for each predicted class; ``needed``: products without which no class can promise anything."""

    target: float
    needed: int
    classes: dict[str, ClassPromise]

    def thresholds(self, abstain: float) -> Thresholds:
        """Accept by class; a class without a promise accepts nothing."""
        per_class = {name: one.threshold for name, one in self.classes.items()}
        return Thresholds(accept=NEVER, abstain=abstain, per_class=per_class)

    def summary(self) -> dict[str, float | int | None]:
        """Counts of classes, for reports: ``promised``, ``too_small`` and ``not_reached``; and the lowest bound."""
        bounds = [one.bound for one in self.classes.values() if one.bound is not None]
        small = sum(one.products < self.needed for one in self.classes.values())
        return {
            "target": self.target,
            "confidence": CONFIDENCE,
            "lowest_bound": min(bounds, default=None),
            "products_needed": self.needed,
            "classes": len(self.classes),
            "promised": len(bounds),
            "too_small": small,
            "not_reached": len(self.classes) - len(bounds) - small,
        }


def fit_promise(rows: Validation, *, target_precision: float) -> Promise:
    """Find for each class the lowest confidence from which on a precision can be promised.

    Products are the unit: one with several images counts once, by the share of its accepted images that are right. From
    the highest confidence down, the Clopper-Pearson lower bound must stay above the target at every step (a fixed
    sequence of tests, as in Learn then Test, Angelopoulos et al. 2021, arXiv 2110.01052), so that looking at many
    thresholds costs nothing. Classes are promises of their own: of R that keep theirs among m, each is tested at
    (1 - :data:`CONFIDENCE`) R / m (Benjamini and Yekutieli 2005), so that lucky classes do not outnumber good ones.

    Args:
        rows: only those of role ``thresholds`` are used. target_precision: in 0 to 1.
    """
    rows = rows.of_role(THRESHOLDS)
    alpha = 1 - CONFIDENCE
    needed = _products_needed(alpha, target_precision)
    paths = {name: _accept_path(rows, rows.predicted == name) for name in sorted(set(rows.predicted.tolist()))}
    level = _common_level([path for path in paths.values() if path.num_products >= needed], alpha, target_precision)
    return Promise(
        target_precision, needed, {name: path.lowest(target_precision, level) for name, path in paths.items()}
    )


def _common_level(paths: Sequence["_AcceptPath"], alpha: float, target: float) -> float:
    """The level at which each class is tested: ``alpha`` R / m for the largest R such that R classes pass their first
    test at it (Benjamini and Hochberg's step-up rule); 0 where none does."""
    p_values = np.sort([target**path.first_right for path in paths])
    passing = np.flatnonzero(p_values <= alpha * np.arange(1, len(paths) + 1) / max(1, len(paths)) + 1e-12)
    return alpha * (int(passing[-1]) + 1) / len(paths) if len(passing) else 0.0


def _products_needed(alpha: float, target: float) -> int:
    """Products that must all be right for a lower bound at level ``alpha`` to reach the target."""
    return math.ceil(math.log(alpha) / math.log(target) - 1e-9)


@dataclasses.dataclass(frozen=True)
class _AcceptPath:
    """A class as its threshold falls: after each distinct confidence, the products accepted so far and the sum of their
    shares of right images, float ``(K,)``."""

    confidence: np.ndarray
    products: np.ndarray
    right: np.ndarray

    @property
    def num_products(self) -> int:
        return int(self.products[-1]) if len(self.products) else 0

    @property
    def first_right(self) -> int:
        """Products from the highest confidence down to the first image that is wrong."""
        wrong = np.flatnonzero(self.right < self.products - 1e-9)
        steps = int(wrong[0]) if len(wrong) else len(self.products)
        return int(self.products[steps - 1]) if steps else 0

    def lowest(self, target: float, alpha: float) -> ClassPromise:
        """The promise of this class at one level; steps before it has the products that are needed are not tested."""
        if alpha <= 0 or target**self.first_right > alpha + 1e-12:
            return ClassPromise(self.num_products)
        start = int(np.searchsorted(self.products, _products_needed(alpha, target)))
        bounds = lower_bound(self.right[start:], self.products[start:], alpha)
        failed = np.flatnonzero(bounds < target)
        steps = int(failed[0]) if len(failed) else len(bounds)
        if not steps:
            return ClassPromise(self.num_products)
        at = start + steps - 1
        return ClassPromise(
            self.num_products, float(self.confidence[at]), int(self.products[at]), float(bounds[steps - 1])
        )


def lower_bound(right: np.ndarray, count: np.ndarray, alpha: float) -> np.ndarray:
    """Return the Clopper-Pearson lower bound of a share at level ``alpha``; ``right`` may be fractional, of shares."""
    import scipy.special  # half a second, and most of what imports this module reads thresholds only

    with np.errstate(invalid="ignore"):
        bound = scipy.special.betaincinv(right, count - right + 1, alpha)
    return np.where(right > 0, bound, 0.0)


def _accept_path(rows: Validation, mask: np.ndarray) -> _AcceptPath:
    order = np.flatnonzero(mask)[np.argsort(-rows.scores[mask], kind="stable")]
    scores, correct, groups = rows.scores[order], (rows.labels == rows.predicted)[order], rows.groups[order]
    seen: dict[str, tuple[int, int]] = {}  # images and right images of a product
    total, products, right = 0.0, [], []
    for group, is_right in zip(groups.tolist(), correct.tolist(), strict=True):
        images, good = seen.get(group, (0, 0))
        total -= good / images if images else 0.0
        seen[group] = (images + 1, good + is_right)
        total += (good + is_right) / (images + 1)
        products.append(len(seen))
        right.append(total)
    last_of_equals = np.append(scores[1:] < scores[:-1], True)[: len(scores)]  # equal confidences go together
    return _AcceptPath(
        scores[last_of_equals], np.array(products, float)[last_of_equals], np.array(right)[last_of_equals]
    )


@dataclasses.dataclass(frozen=True)
class AcceptanceCurve:
    """Accepting all rows from a confidence on: their share, precision and its 95 % interval, all float ``(P,)``."""

    confidence: np.ndarray
    share: np.ndarray
    precision: np.ndarray
    low: np.ndarray
    high: np.ndarray


def acceptance_curve(rows: Validation, *, seed: int = 0) -> AcceptanceCurve:
    """How much could be accepted at which precision, with an interval by bootstrap over products."""
    order = np.argsort(-rows.scores, kind="stable")
    scores, correct = rows.scores[order], (rows.labels == rows.predicted)[order].astype(float)
    points = np.unique(np.quantile(scores, np.linspace(0, 0.98, 50)))
    accepted = np.searchsorted(-scores, -points, side="right")  # how many rows reach each point
    _, products = np.unique(rows.groups[order].astype(object), return_inverse=True)
    generator, num_products = np.random.default_rng(seed), int(products.max()) + 1
    resampled = np.empty((RESAMPLES, len(points)))
    for draw in resampled:
        times = np.bincount(generator.integers(0, num_products, num_products), minlength=num_products)[products]
        draw[:] = _precision(times * correct, times, accepted)
    low, high = np.nanquantile(resampled, (0.025, 0.975), axis=0)
    ones = np.ones(len(scores))
    return AcceptanceCurve(points, accepted / len(scores), _precision(correct, ones, accepted), low, high)


def _precision(right: np.ndarray, rows: np.ndarray, accepted: np.ndarray) -> np.ndarray:
    """Right rows / rows among the first ``accepted`` of them; NaN where there is none."""
    hits, count = np.cumsum(right)[accepted - 1], np.cumsum(rows)[accepted - 1].astype(float)
    return np.divide(hits, count, out=np.full(len(accepted), np.nan), where=count > 0)
