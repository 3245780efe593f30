"""Predicted numbers: the median of what a model says of an image, and an interval around it."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retailray.data.arrow_tables import run_starts
from retailray.data.numeric_labels import VALUE
from retailray.models.intervals import MEDIAN, Intervals, fit_tail
from retailray.models.meta import THRESHOLDS, BundleMeta, load_validation
from retailray.models.probabilities import CLASSES_FIELD, PROBABILITIES_FIELD, rows_of, spread

NUMBER_SCHEMA = pa.schema([(name, pa.float64()) for name in ("pred_value", "pred_low", "pred_high")])
DISTRIBUTION = (CLASSES_FIELD, PROBABILITIES_FIELD)  # the columns that numbers follow from


LEVEL = 80  # per cent, of an interval, where nobody says another
AT_ONCE = 16_384  # rows whose distributions are in memory


@dataclasses.dataclass(frozen=True)
class NumberRule:
    """How numbers follow from probabilities. ``level``: of the interval, in per cent; ``tail``: what it leaves out at
    each end; ``num_products``: held-out validation products that it was fitted on, 0 where they are too few and it is
    what the model says."""

    intervals: Intervals
    level: int
    tail: float
    num_products: int

    @classmethod
    def of(cls, uri: str, meta: BundleMeta, *, level: int, by_product: bool = False) -> "NumberRule":
        """Fit the interval on the bundle's validation rows that chose nothing else.

        ``by_product``: for the mean of what is said of the images of a product.
        """
        assert meta.intervals is not None
        rows = load_validation(uri)
        if rows is None:
            return cls(meta.intervals, level, (100 - level) / 200, 0)
        rows = rows.filter(pc.equal(rows.column("role"), THRESHOLDS)).sort_by("group")
        probabilities, values = _distribution(rows, len(meta.intervals)), rows.column(VALUE).to_numpy()
        groups = rows.column("group").to_numpy().astype(object)
        if by_product and len(rows):
            starts = run_starts(rows.column("group").combine_chunks())
            probabilities = np.add.reduceat(probabilities, starts, axis=0)
            values = np.array([np.median(part) for part in np.split(values, starts[1:])])
            groups = groups[starts]
        tail, used = fit_tail(meta.intervals, probabilities, values, groups, level)
        return cls(meta.intervals, level, tail, used)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Rows with :data:`DISTRIBUTION` to those of :data:`NUMBER_SCHEMA`."""
        parts = [rows.slice(at, AT_ONCE) for at in range(0, rows.num_rows, AT_ONCE)] or [rows]
        return pa.concat_tables([self._quantiles(_distribution(part, len(self.intervals))) for part in parts])

    def of_products(self, rows: pa.Table, starts: np.ndarray) -> pa.Table:
        """The same of the mean of what is said of each product's images, which begin at ``starts`` ``(P,)``."""
        if not rows.num_rows:
            return self(rows)
        return self._quantiles(np.add.reduceat(_distribution(rows, len(self.intervals)), starts, axis=0))

    def _quantiles(self, probabilities: np.ndarray) -> pa.Table:
        found = self.intervals.quantiles(probabilities, (MEDIAN, self.tail, 1 - self.tail))
        return pa.table(dict(zip(NUMBER_SCHEMA.names, found, strict=True)), NUMBER_SCHEMA)


def median_of(intervals: Intervals, rows: pa.Table) -> pa.ChunkedArray:
    """The predictions alone, of rows with :data:`DISTRIBUTION`."""
    return NumberRule(intervals, LEVEL, (100 - LEVEL) / 200, 0)(rows).column(NUMBER_SCHEMA.names[0])


def _distribution(rows: pa.Table, num: int) -> np.ndarray:
    """Probabilities of all intervals, float32 ``(N, num)``."""
    if not rows.num_rows:
        return np.zeros((0, num), np.float32)
    classes, probabilities = (rows_of(rows.column(field.name)) for field in DISTRIBUTION)
    return spread(classes, probabilities, num)
