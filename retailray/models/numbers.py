"""Predicted numbers: the median of what a model says of an image, and an interval around it."""

import dataclasses

import numpy as np
import pyarrow as pa

from retailray.data.numeric_labels import VALUE
from retailray.models.intervals import MEDIAN, Intervals, fit_tail
from retailray.models.meta import THRESHOLDS, BundleMeta, load_validation
from retailray.models.probabilities import CLASSES_FIELD, PROBABILITIES_FIELD, rows_of, spread

NUMBER_SCHEMA = pa.schema([(name, pa.float64()) for name in ("pred_value", "pred_low", "pred_high")])
DISTRIBUTION = (CLASSES_FIELD, PROBABILITIES_FIELD)  # the columns that numbers follow from


@dataclasses.dataclass(frozen=True)
class NumberRule:
    """How numbers follow from probabilities. ``tail``: what the interval leaves out at each end; ``num_rows``: held-out
    validation rows that it was fitted on, 0 where they are too few and it is what the model says."""

    intervals: Intervals
    level: float
    tail: float
    num_rows: int

    @classmethod
    def of(cls, uri: str, meta: BundleMeta, *, level: int) -> "NumberRule":
        """Fit the interval on the bundle's validation rows that chose nothing else. ``level``: in per cent."""
        assert meta.intervals is not None
        rows, share = load_validation(uri), level / 100
        held_out = rows.filter(pa.compute.equal(rows.column("role"), THRESHOLDS)) if rows is not None else None
        if held_out is None or not held_out.num_rows:
            return cls(meta.intervals, share, (1 - share) / 2, 0)
        probabilities, values = _distribution(held_out, len(meta.intervals)), held_out.column(VALUE).to_numpy()
        tail, used = fit_tail(meta.intervals, probabilities, values, share)
        return cls(meta.intervals, share, tail, used)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Rows with :data:`DISTRIBUTION` to those of :data:`NUMBER_SCHEMA`."""
        return self._quantiles(_distribution(rows, len(self.intervals)))

    def of_products(self, rows: pa.Table, starts: np.ndarray) -> pa.Table:
        """The same of the mean of what is said of each product's images, which begin at ``starts`` ``(P,)``."""
        if not rows.num_rows:
            return self(rows)
        return self._quantiles(np.add.reduceat(_distribution(rows, len(self.intervals)), starts, axis=0))

    def _quantiles(self, probabilities: np.ndarray) -> pa.Table:
        levels = dict(zip(NUMBER_SCHEMA.names, (MEDIAN, self.tail, 1 - self.tail), strict=True))
        found = {name: self.intervals.quantile(probabilities, level) for name, level in levels.items()}
        return pa.table(found, NUMBER_SCHEMA)


def _distribution(rows: pa.Table, num: int) -> np.ndarray:
    """Probabilities of all intervals, float32 ``(N, num)``."""
    if not rows.num_rows:
        return np.zeros((0, num), np.float32)
    classes, probabilities = (rows_of(rows.column(field.name)) for field in DISTRIBUTION)
    return spread(classes, probabilities, num)
