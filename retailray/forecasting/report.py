"""The report of ``forecast``: how good each method was, and some products with what is forecast."""

from typing import Any

import numpy as np
import pyarrow as pa

from retailray.config.command_configs import ForecastConfig
from retailray.forecasting.series import Series
from retailray.reports import plots
from retailray.reports.page import render
from retailray.runs import RunDirectory

SHOWN, HISTORY = 6, 26  # products, and their last periods
SIMPLEST = "mean"


def write_forecast_report(  # many because a page shows all that was found
    run: RunDirectory, config: ForecastConfig, facts: dict[str, Any], series: Series, table: pa.Table, names: list[str]
) -> None:
    """Write ``report.html`` into the run directory."""
    measured = sorted(facts["measured"].items(), key=lambda one: (one[1]["wape"] is None, one[1]["wape"]))
    known = {name: values["wape"] for name, values in measured if values["wape"] is not None}
    chart = None
    if known:
        chart = plots.measured_bars(
            list(known),
            list(known.values()),
            [None] * len(known),
            unit="WAPE: sum of errors by sum of sales (the less, the better)",
            chosen=facts["method"],
        )
    page = render(
        "forecast.html.j2",
        title="Sales forecast",
        subtitle=config.sales.uri or config.interactions.uri,
        run_id=run.run_id,
        facts=facts,
        level=config.forecast.level,
        measured=measured,
        chart=chart,
        answers=_answers(facts, config.forecast.method, config.forecast.level),
        examples=_examples(series, table, names),
    )
    run.write("report.html", page)


def _answers(facts: dict[str, Any], asked: str, level: int) -> list[tuple[bool, str]]:
    """What the figures say, in sentences; whether each is good news."""
    found: list[tuple[bool, str]] = []
    measured = facts["measured"]
    if facts["method"] in measured and measured[facts["method"]]["wape"] is not None:
        mine, simple = measured[facts["method"]]["wape"], measured[SIMPLEST]["wape"]
        better, told = mine < simple, f"Sales are forecast by {facts['method']}: errors are {mine:.1%} of sales, "
        if better or asked != "auto":
            told += f"{simple:.1%} by the mean of the last periods."
        else:
            told += f"and nothing beats the mean of the last periods ({simple:.1%})."
        found.append((better, told))
    if facts["coverage"] is not None:
        good = abs(facts["coverage"] - level / 100) <= 0.03
        found.append(
            (good, f"{facts['coverage']:.1%} of sales lay within intervals for {level} %, of earlier periods.")
        )
    launches = facts["launches"] or {}
    if "wape_look_alikes" in launches:
        others = launches.get("wape_category_launches", launches["wape_all_launches"])
        what = "of the category" if "wape_category_launches" in launches else "of all launches"
        alike = launches["wape_look_alikes"]
        found.append(
            (alike < others, f"New products: errors are {alike:.0%} of sales by look-alikes, {others:.0%} by the mean "
             f"{what} ({launches['products']} launches).")
        )  # fmt: skip
    return found or [(False, f"Too little history to compare methods; {facts['method']} is used.")]


def _examples(series: Series, table: pa.Table, names: list[str]) -> list[dict[str, Any]]:
    """Products of all sizes with their last periods and the next ones."""
    totals = np.nansum(series.values, axis=1)
    sold = np.flatnonzero(totals > 0)
    order = sold[np.argsort(-totals[sold], kind="stable")]
    rows = order[np.unique(np.geomspace(1, len(order), SHOWN).astype(int) - 1)] if len(order) else order
    horizon = table.num_rows // len(names)
    found = []
    for row in rows.tolist():
        mine = table.slice(row * horizon, horizon).to_pydict()
        history = series.values[row, -HISTORY:]
        chart = plots.forecast(
            [str(day) for day in series.starts[-HISTORY:]],
            history,
            [str(day) for day in mine["date"]],
            np.array(mine["forecast"]),
            np.array(mine["low"], float),
            np.array(mine["high"], float),
        )
        found.append({"name": names[row], "method": mine["method"][0], "chart": chart})
    return found
