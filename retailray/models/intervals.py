"""Numbers as a distribution over intervals: what a model with ``model.task: regression`` predicts.

The range of the training values is cut into intervals of about equally many rows (values that are met often are one
each), and the network learns the
probability of each (a histogram as in Imani and White 2018, arXiv 1806.04613; Farebrother et al. 2024, arXiv
2403.03950). Every quantile follows from it: the median is the prediction, two others bound the interval around it.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import pydantic

MOST = 64  # intervals; also what a ledger keeps of a row (retailray.models.probabilities.KEPT)
ROWS = 5  # training rows of an interval, on average, at least
MEDIAN = 0.5
FEWEST = 10  # held-out products without which no interval is fitted
ROUNDING = 1e-6  # of float32 probabilities: a value at the end of its interval lies in it


class Intervals(pydantic.BaseModel):
    """``lows``, ``highs``: of each interval, ascending, the smallest and the largest training value in it.

    Of a value that is an interval of its own, as prices often are, both are the value.
    """

    model_config = {"extra": "forbid", "frozen": True}
    lows: tuple[float, ...]
    highs: tuple[float, ...]

    @pydantic.model_validator(mode="after")
    def _ascending(self) -> "Intervals":
        bounds = np.array([self.lows, self.highs]).T.ravel() if len(self.lows) == len(self.highs) else np.zeros(0)
        if not len(bounds) or not np.isfinite(bounds).all() or (np.diff(bounds) < 0).any():
            raise ValueError("lows and highs: finite numbers, one of each an interval, ascending")
        return self

    def __len__(self) -> int:
        return len(self.lows)

    @property
    def names(self) -> list[str]:
        """A text for each, all different."""
        pairs = zip(self.lows, self.highs, strict=True)
        return [f"{low!r}" if low == high else f"{low!r} to {high!r}" for low, high in pairs]

    @property
    def digest(self) -> str:
        """Differs where intervals differ."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]

    def index_of(self, values: np.ndarray) -> np.ndarray:
        """The interval of each value ``(N,)``, int64; of values between two the nearer one."""
        middles = (np.array(self.highs[:-1]) + np.array(self.lows[1:])) / 2
        return np.searchsorted(middles, values).astype(np.int64)

    def quantiles(self, probabilities: np.ndarray, levels: Sequence[float]) -> list[np.ndarray]:
        """``(N, K)`` to the smallest values that are not exceeded with each probability, float64 ``(N,)``.

        Within an interval all values are taken as equally probable.
        """
        lows, highs = np.array(self.lows), np.array(self.highs)
        total = probabilities.cumsum(1, dtype=np.float64)
        rows, found = np.arange(len(total)), []
        for level in levels:
            wanted = level * total[:, -1]
            at = np.minimum((total < wanted[:, None]).sum(1), len(self) - 1)
            own = probabilities[rows, at].astype(np.float64)
            inside = np.clip((wanted - (total[rows, at] - own)) / np.where(own > 0, own, 1), 0, 1)
            found.append(lows[at] + inside * (highs[at] - lows[at]))
        return found

    def quantile(self, probabilities: np.ndarray, level: float) -> np.ndarray:
        """One of :meth:`quantiles`."""
        [found] = self.quantiles(probabilities, [level])
        return found

    def depth(self, probabilities: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Of values ``(N,)`` the largest ``a`` for which each lies within the quantiles ``a`` and ``1 - a`` of its row
        of probabilities ``(N, K)``; 0 to 1, float64 ``(N,)``."""
        lows, highs = np.array(self.lows), np.array(self.highs)
        shares = probabilities.astype(np.float64) / probabilities.sum(1, keepdims=True, dtype=np.float64)
        below = np.concatenate([np.zeros((len(shares), 1)), shares.cumsum(1)], axis=1)
        at = np.searchsorted(lows, values, side="right") - 1  # -1: less than all training values
        rows, inside = np.arange(len(values)), np.maximum(at, 0)
        width = highs[inside] - lows[inside]
        part = np.where(width > 0, (values - lows[inside]) / np.where(width > 0, width, 1), 1.0)
        beyond = (at < 0) | (values > highs[inside])
        up_to = below[rows, inside] + np.clip(part, 0, 1) * shares[rows, inside]  # probability of at most the value
        less = np.where(width > 0, up_to, below[rows, inside])  # of less
        between = below[rows, at + 1]
        up_to, less = np.where(beyond, between, up_to), np.where(beyond, between, less)
        return np.minimum(up_to, 1 - less)


def make_intervals(values: np.ndarray) -> Intervals:
    """Cut the range of training values, float ``(N,)``, in two or more.

    A value of which there are as many rows as an interval should have is one of its own: a price that is met often, or
    the end of a scale. Where there are few values, all are.
    """
    most = int(min(MOST, max(2, len(values) // ROWS)))
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) <= most:
        return Intervals(lows=tuple(distinct.tolist()), highs=tuple(distinct.tolist()))
    size = len(values) / most
    starts = _starts(counts, size)
    while len(starts) > most:  # popular values cut the others into many parts
        size *= 1.1
        starts = _starts(counts, size)
    ends = np.append(starts[1:], len(distinct)) - 1
    return Intervals(lows=tuple(distinct[starts].tolist()), highs=tuple(distinct[ends].tolist()))


def _starts(counts: np.ndarray, size: float) -> np.ndarray:
    """Where intervals begin in values in their order, of which there are ``counts`` ``(D,)`` rows; int64 ``(K,)``.

    ``size``: rows that an interval should have.
    """
    popular = counts >= size
    part = np.cumsum(popular | np.append(False, popular[:-1]))  # each popular one, and what is between two
    found = []
    for number in np.unique(part):
        members = np.flatnonzero(part == number)
        rows = counts[members]
        middle = (rows.cumsum() - rows / 2) / rows.sum()
        of = np.floor(middle * max(1, round(rows.sum() / size)))
        found.append(members[np.flatnonzero(np.diff(of, prepend=-1))])
    starts = np.concatenate(found)
    return starts if len(starts) > 1 else np.array([0, max(1, int(np.searchsorted(counts.cumsum(), counts.sum() / 2)))])


def fit_tail(
    intervals: Intervals, probabilities: np.ndarray, values: np.ndarray, groups: np.ndarray, level: int
) -> tuple[float, int]:
    """The ``tail`` so that the quantiles ``tail`` and ``1 - tail`` hold ``level`` per cent of rows like these.

    As conformal prediction does (Romano et al. 2019, arXiv 1905.03222), by products, whose images are alike: the rows
    chose nothing else, and of products drawn alike at least that share of the values lies within.

    Args:
        probabilities, values, groups: of held-out rows, ``(N, K)``, ``(N,)`` and ``(N,)``; each product weighs the
            same, and fewer than :data:`FEWEST`, or than ``level`` needs (19 for 95), say nothing.

    Returns:
        The tail, and the number of products that it was fitted on.
    """
    products, of_row, sizes = np.unique(groups.astype(object), return_inverse=True, return_counts=True)
    outside = (len(products) + 1) * (100 - level) / 100  # products whose values may lie without, at most
    if len(products) < FEWEST or outside < 1:
        return (100 - level) / 200, 0
    depths = intervals.depth(probabilities, values)
    order = np.argsort(depths)
    depths, weights = depths[order], (1 / sizes[of_row])[order]
    less = np.append(0, weights.cumsum())[np.searchsorted(depths, depths)]  # weight of what lies less deep
    tail = depths[less <= outside - 1 + 1e-9].max()
    return float(min(max(tail - ROUNDING, 0.0), MEDIAN)), len(products)
