"""Test accuracy with intervals over products and seeds, paired tests of all pairs of models, and the winner."""

import dataclasses
import itertools
from collections.abc import Mapping

import numpy as np

from retailray.evaluation.compare import sign_flip_p_value
from retailray.models.metrics import resampled_rows

SIGNIFICANT = 0.05


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Top-1 on the test rows: the mean over seeds, each seed's own, and the 95 % interval over products and seeds.

    Where every fit is right on every row, or on none, resamples are all alike: the exact interval of a binomial
    proportion (Clopper and Pearson) for that number of products is taken.
    """

    top1: float
    by_seed: list[float]
    interval: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Pair:
    """``first`` is at least as good as ``second``. ``difference``: of top-1, with its 95 % interval.

    ``p_value``: of 'both are equally good', the larger one of two: by random signs of whole products' differences,
    which takes the fits as they are, and by other products and other seeds. ``adjusted_p_value``: by Holm's method,
    since all pairs are tested.
    """

    first: str
    second: str
    difference: float
    interval: tuple[float, float]
    p_value: float
    adjusted_p_value: float

    @property
    def is_sure(self) -> bool:
        return self.adjusted_p_value < SIGNIFICANT and self.interval[0] > 0


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All models, the best first. ``baseline``: top-1 of always saying the most frequent label of the test rows."""

    accuracies: dict[str, Accuracy]
    pairs: list[Pair]
    baseline: float

    @property
    def winner(self) -> str | None:
        """The best one, where it is better than each other one beyond chance, and has learned anything."""
        return None if self.why else next(iter(self.accuracies))

    @property
    def why(self) -> str:
        """Why there is no winner; '' where there is one."""
        best, accuracy = next(iter(self.accuracies.items()))
        if len(self.accuracies) == 1:
            return "there is one model only"
        if accuracy.interval[0] <= self.baseline:
            return f"no model is surely better than always saying the most frequent label ({self.baseline:.1%})"
        if len(accuracy.by_seed) == 1:
            return "with one seed for each model, what is the seed's and what is the model's cannot be told apart"
        return f"{best} is not surely better than {', '.join(self.rivals)}" if self.rivals else ""

    @property
    def rivals(self) -> list[str]:
        """Models that the best one is not surely better than."""
        best = next(iter(self.accuracies))
        return [pair.second for pair in self.pairs if pair.first == best and not pair.is_sure]


def compare_models(
    right: Mapping[str, np.ndarray], groups: np.ndarray, *, bootstrap: int, baseline: float = 0.0, seed: int = 0
) -> Comparison:
    """Compare models on the same rows.

    Args:
        right: by model, bool ``(S, N)``: whether each of S seeds' fits is right on each of N rows.
        groups: product names, object ``(N,)``; pictures of a product are not independent.
        bootstrap: resamples of products and of seeds behind the intervals.
    """
    means = {name: hits.mean(0) for name, hits in right.items()}  # (N,): the share of seeds that are right
    order = sorted(right, key=lambda name: -float(means[name].mean()))
    draws = _draws(right, groups, bootstrap, seed)
    products, of_row = np.unique(groups.astype(object), return_inverse=True)
    accuracies = {}
    for name in order:
        top1 = float(means[name].mean())
        interval = _interval(draws[name].clip(0, 1)) if 0 < top1 < 1 else _exact_interval(top1, len(products))
        accuracies[name] = Accuracy(top1, right[name].mean(1).tolist(), interval)
    found = []
    for first, second in itertools.combinations(order, 2):
        difference = means[first] - means[second]
        apart = draws[first] - draws[second]
        # of other products alone, exact where it can be; and of other products and seeds
        p_values = sign_flip_p_value(np.bincount(of_row, difference), seed), _p_value(apart)
        found.append((first, second, float(difference.mean()), _interval(apart), max(p_values)))
    adjusted = holm([p_value for *_, p_value in found])
    pairs = [Pair(*facts, adjusted_p_value) for facts, adjusted_p_value in zip(found, adjusted, strict=True)]
    return Comparison(accuracies, pairs, baseline)


def holm(p_values: list[float]) -> list[float]:
    """p-values of several tests, adjusted so that the chance of any false one is kept (Holm 1979)."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = highest
    return adjusted


def _draws(right: Mapping[str, np.ndarray], groups: np.ndarray, bootstrap: int, seed: int) -> dict[str, np.ndarray]:
    """Top-1 of every model as it might have come out, float ``(B,)``: with other products, and with other seeds.

    Products are drawn with replacement, the same ones for all models. Two or three seeds cannot be resampled so: that
    would make their variance too small. Instead a draw of Student's distribution is added, scaled to the standard error
    of a mean over seeds; its degrees of freedom are of the seeds of all models together.
    """
    means = {name: hits.mean(0) for name, hits in right.items()}
    drawn: dict[str, list[float]] = {name: [] for name in right}
    for times in resampled_rows(groups, bootstrap, seed):
        for name, mean in means.items():
            drawn[name].append(float(times @ mean / times.sum()))
    seeds = {name: hits.mean(1) for name, hits in right.items()}
    free = sum(len(values) - 1 for values in seeds.values())
    pooled = sum(float(((values - values.mean()) ** 2).sum()) for values in seeds.values()) / max(1, free)
    generator = np.random.default_rng(seed)
    draws = {}
    for name, values in seeds.items():
        own = float(values.var(ddof=1)) if len(values) > 1 else 0.0
        error = np.sqrt(max(own, pooled) / len(values))
        draws[name] = np.array(drawn[name]) + error * generator.standard_t(max(1, free), bootstrap)
    return draws


def _exact_interval(share: float, count: int) -> tuple[float, float]:
    """Clopper and Pearson's 95 % interval of a proportion of 0 or 1."""
    import scipy.stats  # a second

    found = scipy.stats.binomtest(round(share * count), count).proportion_ci()
    return float(found.low), float(found.high)


def _p_value(differences: np.ndarray) -> float:
    """Twice the share of differences on the rarer side of zero."""
    rarer = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return min(1.0, 2 * (rarer + 1) / (len(differences) + 1))


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
