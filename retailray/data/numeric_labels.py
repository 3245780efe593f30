"""Labels that are numbers: prices, weights, sales."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pyarrow as pa

from retailray import events
from retailray.data.catalog import Catalog

VALUE = "value"  # a column of a catalog's rows: the label as a number, float64
EXAMPLES = 3


def numbers_in(labels: np.ndarray) -> np.ndarray:
    """Labels ``(N,)`` as numbers, float64 ``(N,)``; NaN of those that are no finite number."""
    found = pd.to_numeric(pd.Series(labels, dtype=object), errors="coerce").to_numpy(np.float64)
    return np.where(np.isfinite(found), found, np.nan)


def spelled(value: float | None) -> str:
    """A number for people: about four digits, thousands apart, no exponent where it can be avoided."""
    if value is None or not math.isfinite(value):
        return "–"
    size = math.floor(math.log10(abs(value))) if value else 0
    if not -5 < size < 15:
        return f"{value:.4g}"
    text = f"{value:,.{max(0, 3 - size)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def with_values(part: Catalog, **told: object) -> Catalog:
    """The rows whose label is a number, with it as :data:`VALUE`; a warning counts the others.

    ``told``: what else the warning says. Rows without any label are left out too.
    """
    labels = part.column("label")
    values = numbers_in(labels)
    known = np.isfinite(values)
    wrong = ~known & (labels != "")
    if wrong.any():
        events.emit(
            "warning",
            **told,
            labels_that_are_no_numbers=sorted(set(labels[wrong]))[:EXAMPLES],
            rows_left_out=int(wrong.sum()),
            note="numbers are written as 12.5 or 1e3: no decimal comma, currency, unit or thousands separator",
        )
    rows = part.rows.append_column(VALUE, pa.array(values))
    return dataclasses.replace(part, rows=rows).select(known)
