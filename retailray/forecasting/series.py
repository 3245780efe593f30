"""Sales by period: fill missing periods with zeros, and mark closed periods and stock-outs as unknown."""

import dataclasses
import functools

import numpy as np
import pandas as pd

from retailray import events
from retailray.data.interactions import timestamp, warn_of_future
from retailray.data.sales import Sales
from retailray.errors import CatalogError, ConfigError

# days that may be missing at the ends of the first and the last period that count as whole: shops close on Sundays
MISSING_DAYS = {"D": 0, "W": 1, "M": 2}
MIN_PERIODS = 3  # fewer say nothing
# a weekday is closed if it was in the last four weeks, and in four of five weeks of the last quarter of a year
MIN_WEEKS, QUARTER, CLOSED = 4, 13, 0.8
MAX_CLOSED = 0.9  # share of the periods; where more have no row at all, a date is wrong


@dataclasses.dataclass(frozen=True)
class Series:
    """P products by T periods: ``values``, float64 ``(P, T)``, units sold less units returned, at least 0; NaN before
    the first sale, and where it is unknown (stock-outs, periods without any sale in the whole shop).

    ``starts``: first days, datetime64[D] ``(T,)``; ``first``: period of the first sale, int64 ``(P,)``; ``price`` and
    ``promotion`` (share): float64 ``(P, T)``, NaN where nothing is known; ``category``: int64 ``(P,)``, -1: unknown.
    """

    frequency: str
    starts: np.ndarray
    values: np.ndarray
    first: np.ndarray
    price: np.ndarray
    promotion: np.ndarray
    category: np.ndarray

    @property
    def num_periods(self) -> int:
        return self.values.shape[1]

    @functools.cached_property
    def filled(self) -> np.ndarray:
        """Unknown periods after the first sale have the mean of the eight ones before them."""
        found = self.values.copy()
        for period in range(self.num_periods):
            rows = np.flatnonzero(np.isnan(found[:, period]) & (self.first < period))
            before = found[rows, max(0, period - 8) : period]
            known = np.isfinite(before)
            found[rows, period] = np.where(known, before, 0).sum(1) / np.maximum(known.sum(1), 1)
        return found

    def is_new(self) -> np.ndarray:
        """bool ``(P,)``: first sold within the table; what is sold in its first tenth may be older."""
        return self.first >= max(2, self.num_periods // 10)


def period_numbers(days: np.ndarray, frequency: str) -> np.ndarray:
    """The period of each day (since 1970), int64; weeks begin on Monday."""
    if frequency == "D":
        return days
    if frequency == "W":
        return (days + 3) // 7
    return days.astype("datetime64[D]").astype("datetime64[M]").astype(np.int64)


def period_start(numbers: np.ndarray, frequency: str) -> np.ndarray:
    """The first day of each period, datetime64[D]."""
    if frequency == "M":
        return np.asarray(numbers).astype("datetime64[M]").astype("datetime64[D]")
    days = np.asarray(numbers) if frequency == "D" else np.asarray(numbers) * 7 - 3
    return days.astype("datetime64[D]")


def first_forecast(sales: Sales, frequency: str, as_of: str | None) -> int:
    """The number of the first period that is forecast.

    Raises:
        ConfigError: ``forecast.as_of`` is no first day of a period.
    """
    days = sales.days.column("day").to_numpy()
    if as_of is None:
        warn_of_future(pd.Timestamp(days.max(), unit="D"))
        return int(period_numbers(days.max() + MISSING_DAYS[frequency] + np.array([1]), frequency)[0])
    wanted = np.datetime64(timestamp(as_of, "forecast.as_of").date(), "D")
    number = int(period_numbers(np.array([wanted.astype(np.int64)]), frequency)[0])
    begins = period_start(np.array([number, number + 1]), frequency)
    if begins[0] != wanted:
        raise ConfigError(
            [f"forecast.as_of = {as_of}: no period of forecast.frequency {frequency} begins there; {begins[0]} and "
             f"{begins[1]} are first days"]
        )  # fmt: skip
    return number


def known_sales(sales: Sales, frequency: str, as_of: str | None) -> tuple[Sales, int]:
    """What was sold before the first day that is forecast, and the number of the period that begins there.

    Raises:
        ConfigError: ``forecast.as_of`` is no first day of a period. CatalogError: nothing was sold before it.
    """
    end = first_forecast(sales, frequency, as_of)
    [day] = period_start(np.array([end]), frequency).astype(np.int64)
    return sales.before(int(day)), end


def make_series(sales: Sales, frequency: str, end: int, category: np.ndarray) -> tuple[Series, dict[str, int]]:
    """Series of all products up to the period before ``end``, and what was done to them, counted.

    Args:
        sales, end: :func:`known_sales`. category: int64, by number of the product.

    Raises:
        CatalogError: there are fewer than :data:`MIN_PERIODS` periods, or hardly any of them has a row.
    """
    begin, closed = _closed(sales, frequency, end)
    length = len(closed)
    shape = (len(sales.names), length)
    numbers = period_numbers(sales.days.column("day").to_numpy(), frequency)
    keep = numbers >= begin
    at = (sales.days.column("product").to_numpy()[keep], numbers[keep] - begin)

    quantity, seen = _summed(sales, "quantity", keep, at, shape), _summed(sales, None, keep, at, shape)
    returned = _summed(sales, "returned", keep, at, shape)
    sold = (quantity - returned) > 0
    first = np.where(sold.any(1), sold.argmax(1), length)
    # a first period that is not whole is left out, but what was sold in it is not new
    first[sales.days.column("product").to_numpy()[~keep & _sold(sales)]] = 0
    out = _summed(sales, "stock_out", keep, at, shape) > 0
    before = np.arange(length)[None] < first[:, None]
    values = np.where(before | closed[None] | out, np.nan, np.maximum(quantity, 0))
    starts = period_start(np.arange(begin, end), frequency)
    price, promotion = (_averaged(sales, name, keep, at, shape) for name in ("price", "promotion"))
    counts = {
        "periods": length,
        "filled_with_zero": int(((seen == 0) & ~before & ~closed[None] & ~out).sum()),
        "closed_periods": int(closed.sum()),
        "stock_out_periods": int((out & ~before).sum()),
        "negative_periods": int((quantity < 0).sum()),
        "returned_units": int(-returned.sum()),
    }
    return Series(frequency, starts, values, first, price, promotion, category), counts


def _closed(sales: Sales, frequency: str, end: int) -> tuple[int, np.ndarray]:
    """The first whole period, and bool ``(T,)``: which ones are unknown of all products, since nothing was sold in the
    whole shop, or since the last day of the table lies within one, which is not whole then."""
    days = sales.open
    begin = int(period_numbers(days[:1] - MISSING_DAYS[frequency] - 1, frequency)[0]) + 1
    length = end - begin
    if length < MIN_PERIODS:
        raise CatalogError(
            f"there are {max(0, length)} whole periods ({frequency}) before the first forecast, of {MIN_PERIODS} needed"
        )
    numbers = period_numbers(days, frequency)
    closed = ~np.isin(np.arange(begin, end), numbers)
    dates = days[[0, -1]].astype("datetime64[D]")
    if closed.mean() > MAX_CLOSED:
        [first_day] = period_start(np.array([end]), frequency)
        raise CatalogError(
            f"{closed.sum()} of the {length} periods ({frequency}) before {first_day}, the first day that is forecast, "
            f"have no row at all: rows are of {dates[0]} to {dates[1]}. Is one of these dates wrong, or that of the "
            "last row, or forecast.as_of?"
        )
    following = period_start(numbers[-1:] + 1, frequency).astype(np.int64)[0]
    if numbers[-1] >= begin and days[-1] + MISSING_DAYS[frequency] < following - 1:
        closed[numbers[-1] - begin] = True
        start = period_start(numbers[-1:], frequency)[0]
        note = f"the period that begins on {start} is not whole, and left out: the last row is of {dates[1]}"
        events.emit("warning", note=note)
    return begin, closed


def _sold(sales: Sales) -> np.ndarray:
    """bool by row of ``sales.days``: any unit, whatever was returned."""
    quantity, returned = (sales.days.column(name).to_pandas().fillna(0.0) for name in ("quantity", "returned"))
    return (quantity > returned).to_numpy()


At = tuple[np.ndarray, np.ndarray]


def _column(sales: Sales, name: str, keep: np.ndarray) -> np.ndarray:
    return sales.days.column(name).to_pandas().astype(float).to_numpy()[keep]


def _summed(sales: Sales, name: str | None, keep: np.ndarray, at: At, shape: tuple[int, int]) -> np.ndarray:
    """Sums by product and period; None: the number of days with rows."""
    found = np.zeros(shape)
    np.add.at(found, at, 1.0 if name is None else np.nan_to_num(_column(sales, name, keep)))
    return found


def _averaged(sales: Sales, name: str, keep: np.ndarray, at: At, shape: tuple[int, int]) -> np.ndarray:
    """Means of the days that say something; NaN where none does."""
    known = np.zeros(shape)
    np.add.at(known, at, np.isfinite(_column(sales, name, keep)).astype(float))
    with np.errstate(invalid="ignore", divide="ignore"):
        return _summed(sales, name, keep, at, shape) / known


def next_starts(series: Series, horizon: int) -> np.ndarray:
    """The first days of the periods that follow, datetime64[D]."""
    last = int(period_numbers(series.starts[-1:].astype("datetime64[D]").astype(np.int64), series.frequency)[0])
    return period_start(np.arange(last + 1, last + 1 + horizon), series.frequency)


def day_of_year(starts: np.ndarray) -> np.ndarray:
    return np.asarray(pd.DatetimeIndex(starts).dayofyear, float)


def closed_weekdays(series: Series) -> np.ndarray:
    """bool ``(7,)``, Monday first: days on which the shop is closed nearly always, of daily series."""
    found = np.zeros(7, bool)
    if series.frequency != "D":
        return found
    weekday = (series.starts.astype(np.int64) + 3) % 7
    unknown = np.isnan(series.values).all(0) & (np.arange(series.num_periods) > series.first.min(initial=0))
    for day in range(7):
        mine = unknown[weekday == day][-QUARTER:]
        found[day] = len(mine) >= MIN_WEEKS and mine.mean() >= CLOSED and mine[-MIN_WEEKS:].all()
    return found
