"""Numbers as a distribution over intervals: what a model with ``model.task: regression`` predicts.

The range of the training values is cut into intervals of about equally many rows, and the network learns the
probability of each (a histogram as in Imani and White 2018, arXiv 1806.04613; Farebrother et al. 2024, arXiv
2403.03950). Every quantile follows from it: the median is the prediction, two others bound the interval around it.
"""

import numpy as np
import pydantic

MOST = 64  # intervals; also what a ledger keeps of a row (retailray.models.probabilities.KEPT)
ROWS = 5  # training rows of an interval, on average, at least
MEDIAN = 0.5
FEWEST = 20  # held-out rows without which no interval is fitted


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

    def index_of(self, values: np.ndarray) -> np.ndarray:
        """The interval of each value ``(N,)``, int64; of values between two the nearer one."""
        middles = (np.array(self.highs[:-1]) + np.array(self.lows[1:])) / 2
        return np.searchsorted(middles, values).astype(np.int64)

    def quantile(self, probabilities: np.ndarray, level: float) -> np.ndarray:
        """``(N, K)`` to the smallest values that are not exceeded with probability ``level``, float64 ``(N,)``.

        Within an interval all values are taken as equally probable.
        """
        lows, highs = np.array(self.lows), np.array(self.highs)
        total = probabilities.astype(np.float64).cumsum(1)
        wanted = level * total[:, -1:]
        at = np.minimum((total < wanted).sum(1), len(self) - 1)
        rows = np.arange(len(total))
        own = probabilities[rows, at].astype(np.float64)
        inside = np.clip((wanted[:, 0] - (total[rows, at] - own)) / np.where(own > 0, own, 1), 0, 1)
        return np.asarray(lows[at] + inside * (highs[at] - lows[at]))

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
    """Cut the range of training values, float ``(N,)``; values of which there are few are an interval each."""
    most = int(min(MOST, max(2, len(values) // ROWS)))
    distinct = np.unique(values)
    if len(distinct) <= most:
        return Intervals(lows=tuple(distinct.tolist()), highs=tuple(distinct.tolist()))
    inner = np.unique(np.quantile(values, np.linspace(0, 1, most + 1)[1:-1], method="lower"))
    of = np.searchsorted(inner, distinct)  # values that equal an edge belong to the interval that ends there
    starts = np.flatnonzero(np.diff(of, prepend=-1))
    ends = np.append(starts[1:], len(distinct)) - 1
    return Intervals(lows=tuple(distinct[starts].tolist()), highs=tuple(distinct[ends].tolist()))


def fit_tail(intervals: Intervals, probabilities: np.ndarray, values: np.ndarray, level: float) -> tuple[float, int]:
    """The ``tail`` so that the quantiles ``tail`` and ``1 - tail`` hold ``level`` of rows like these.

    As conformal prediction does (Romano et al. 2019, arXiv 1905.03222): the rows chose nothing else, and of rows drawn
    alike at least ``level`` lie within.

    Args:
        probabilities, values: of held-out rows, ``(N, K)`` and ``(N,)``; fewer than :data:`FEWEST` say nothing.
        level: a share, such as 0.8.

    Returns:
        The tail, and the number of rows that it was fitted on.
    """
    if len(values) < FEWEST:
        return (1 - level) / 2, 0
    depths = np.sort(intervals.depth(probabilities, values))
    outside = int((len(depths) + 1) * (1 - level))  # of the rows, at most
    return float(min(depths[outside - 1] if outside else 0.0, MEDIAN)), len(values)
