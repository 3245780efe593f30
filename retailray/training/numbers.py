"""``model.task: regression``: labels that are numbers, trained as a distribution over intervals."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import torch

from retailray.data.catalog import Catalog
from retailray.data.numeric_labels import VALUE
from retailray.errors import CatalogError
from retailray.models.intervals import MEDIAN, Intervals, make_intervals

# standard deviation of what is learned of a row, in shares of all intervals: neighbours are nearly right. Measured on
# frozen features of photos: 0.02 is 3 % worse than 0 for prices of products, and 4 % better for a colour
SMOOTHING = 0.02


def as_intervals(splits: Mapping[str, Catalog], uri: str) -> tuple[dict[str, Catalog], Intervals]:
    """Rows whose labels are the intervals of their values, as the training rows cut them. Raises CatalogError."""
    values = splits["train"].column(VALUE)
    if len(np.unique(values)) < 2:
        raise CatalogError(f"{uri}: the training rows have one value only ({values[0]:g}); two are needed")
    intervals = make_intervals(values)
    names = np.array(intervals.names, dtype=object)
    found = {}
    for name, part in splits.items():
        labels = pa.array(names[intervals.index_of(part.column(VALUE))], pa.string())
        at = part.rows.schema.get_field_index("label")
        found[name] = dataclasses.replace(part, rows=part.rows.set_column(at, "label", labels))
    return found, intervals


@dataclasses.dataclass(frozen=True)
class TrueValues:
    """What a fit knows of numbers: the intervals, and the value of every row: ``row_ids`` int64 ``(N,)``, ascending,
    with ``values`` float64 ``(N,)``. ``usual``: the median of the training values; ``usual_error``: the mean absolute
    error of always saying it, on the validation rows."""

    intervals: Intervals
    row_ids: np.ndarray
    values: np.ndarray
    usual: float
    usual_error: float

    @classmethod
    def of(cls, intervals: Intervals, parts: Mapping[str, Catalog]) -> "TrueValues":
        ids = np.concatenate([part.column("row_id") for part in parts.values()])
        values = np.concatenate([part.column(VALUE) for part in parts.values()])
        order = np.argsort(ids)
        usual = float(np.median(parts["train"].column(VALUE)))
        usual_error = float(np.abs(parts["validation"].column(VALUE) - usual).mean())
        return cls(intervals, ids[order], values[order], usual, usual_error)

    def on(self, device: torch.device) -> "Measure":
        return Measure(self, device)


class Measure:
    """:class:`TrueValues` on a device: how far the medians of predicted distributions are from the truth."""

    def __init__(self, known: TrueValues, device: torch.device) -> None:
        self._ids = torch.from_numpy(known.row_ids).to(device)
        self._values = torch.from_numpy(known.values).to(device)
        intervals = known.intervals
        self._lows = torch.tensor(intervals.lows, dtype=torch.float64, device=device)
        self._widths = torch.tensor(intervals.highs, dtype=torch.float64, device=device) - self._lows
        self.near = self._near()  # (K, K): what is learned of a row of each interval

    def _near(self) -> torch.Tensor:
        """The interval itself and its neighbours; of a value that is an interval of its own, as it is, itself alone."""
        number = torch.arange(len(self._lows), dtype=torch.float32, device=self._lows.device)
        near = torch.exp(-0.5 * ((number[:, None] - number) / (SMOOTHING * len(number))) ** 2)
        alone = torch.eye(len(number), device=self._lows.device)
        return torch.where(self._widths[:, None] > 0, near / near.sum(1, keepdim=True), alone)

    def values(self, row_ids: torch.Tensor) -> torch.Tensor:
        """Row ids ``(B,)`` to the true values, float64 ``(B,)``."""
        return self._values[torch.searchsorted(self._ids, row_ids).clamp(max=len(self._ids) - 1)]

    def ranked_score(self, logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """How far probabilities lie from the wanted ones ``(B, K)``, further where they lie in intervals further away:
        the ranked probability score (Epstein 1969), float ``(B,)``.

        Cross-entropy alone does not know that intervals have an order (benchmarks/RESULTS.md: a colour is 10 % less far
        off with both, prices are as far).
        """
        return (logits.softmax(1).cumsum(1) - wanted.cumsum(1)).square().sum(1)

    def errors(self, logits: torch.Tensor, row_ids: torch.Tensor) -> torch.Tensor:
        """Absolute errors of the medians of logits ``(B, K)``, float64 ``(B,)``; see :meth:`Intervals.quantile`."""
        own = logits.double().softmax(1)
        total = own.cumsum(1)
        at = (total < MEDIAN).sum(1, keepdim=True).clamp(max=own.shape[1] - 1)
        mass = own.gather(1, at)
        inside = ((MEDIAN - total.gather(1, at) + mass) / mass.clamp(min=1e-300)).clamp(0, 1)
        medians = self._lows[at] + inside * self._widths[at]
        return (medians[:, 0] - self.values(row_ids)).abs()
