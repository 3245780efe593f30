"""Are the forecasts of `forecast` as good as the best model for a real shop, and do its intervals hold?

    RETAILRAY_REAL_DATA=../shared python -m benchmarks.forecast [--as-of 2017-11-06 2017-12-04]

Purchases per week (rows, not units) of the 300 most bought products, four weeks from each of the days on; WAPE and
the share of weeks within the 80 % intervals, from the published tables, without our code. Beside it the last value, the
mean of eight weeks and statsforecast's AutoETS and AutoTheta on the same series. All products are forecast, 300 are
measured.
"""

import argparse
import json
import tempfile
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd

from benchmarks.recommend import LEFT_OUT, purchases
from benchmarks.shop import photos, run

HORIZON, TOP = 4, 300


def weekly() -> pd.DataFrame:
    """Rows by product and week (first day), all whole weeks of the 300 most bought products."""
    rows = pd.read_parquet(purchases())
    rows = rows[rows["product"].notna() & (rows.quantity > 0)]
    rows = rows[~rows["product"].str.contains("GASOLINE|COUPON|MISC SALES")]
    top = rows["product"].value_counts().index[:TOP]
    rows = rows[rows["product"].isin(top)]
    week = rows.time.dt.to_period("W-SUN").dt.start_time
    found = rows.groupby(["product", week]).size().unstack(fill_value=0).loc[top]
    return found.iloc[:, 1:-1]


def daily() -> pd.DataFrame:
    """Rows by product and day, the median price of a unit, and whether most of them were sold at a discount."""
    rows = pd.read_parquet(purchases())
    rows = rows[rows["product"].notna() & (rows.quantity > 0)]
    rows = rows.assign(date=rows.time.dt.floor("D"), price=rows.value / rows.quantity, promotion=rows.discount > 0)
    found = rows.groupby(["product", "date"]).agg(
        quantity=("price", "size"), price=("price", "median"), promotion=("promotion", "mean")
    )
    return found.assign(promotion=found.promotion > 0.5).reset_index()


def forecasts(day: pd.Timestamp) -> tuple[pd.DataFrame, dict]:
    with tempfile.TemporaryDirectory() as folder:
        daily().to_parquet(Path(folder, "sales.parquet"))
        summary = run(
            "forecast",
            **{
                "sales.uri": Path(folder, "sales.parquet"),
                "sales.exclude": json.dumps(LEFT_OUT),
                "sales.price": "price",
                "sales.promotion": "promotion",
                "products.uri": photos()[0].parent / "shop/articles.parquet",
                "products.category": "category",
                "forecast.as_of": f"{day:%F}",
                "forecast.horizon": HORIZON,
                "out": Path(folder, "out"),
            },
        )[-1]
        return duckdb.sql(f"from '{summary['run']}/forecasts/*.parquet'").df(), summary


def plain(sold: np.ndarray) -> dict[str, np.ndarray]:
    from statsforecast.models import AutoETS, AutoTheta

    return {
        "last value": np.repeat(sold[:, -1:], HORIZON, axis=1),
        "mean of 8 weeks": np.repeat(sold[:, -8:].mean(1, keepdims=True), HORIZON, axis=1),
        "AutoETS": np.stack([AutoETS(season_length=1).forecast(y=row, h=HORIZON)["mean"] for row in sold]),
        "AutoTheta": np.stack([AutoTheta(season_length=1).forecast(y=row, h=HORIZON)["mean"] for row in sold]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--as-of", nargs="*", default=["2017-11-06", "2017-12-04"])
    table = weekly()
    errors: dict[str, float] = {}
    total, inside, count = 0.0, 0, 0
    for day in map(pd.Timestamp, parser.parse_args().as_of):
        at = list(table.columns).index(day)
        truth = table.iloc[:, at : at + HORIZON].to_numpy(float)
        found, summary = forecasts(day)
        values = {
            name: found.pivot(index="product", columns="horizon", values=name).loc[table.index].to_numpy()
            for name in ("forecast", "low", "high")
        }
        methods = plain(table.iloc[:, :at].to_numpy(float)) | {"forecast": values["forecast"]}
        for name, one in methods.items():
            errors[name] = errors.get(name, 0.0) + float(np.abs(one - truth).sum())
        total += truth.sum()
        within = (truth >= values["low"]) & (truth <= values["high"])
        inside, count = inside + int(within.sum()), count + within.size
        print(f"{day:%F}: {summary['method']}, {np.abs(values['forecast'] - truth).sum() / truth.sum():.4f}, "
              f"{within.mean():.3f} within, {summary['seconds']:.0f} s", flush=True)  # fmt: skip
    print("| " + " | ".join(errors) + " | within 80 % |\n" + "|---" * (len(errors) + 1) + "|")
    print("| " + " | ".join(f"{one / total:.4f}" for one in errors.values()) + f" | {inside / count:.3f} |")


if __name__ == "__main__":
    main()
