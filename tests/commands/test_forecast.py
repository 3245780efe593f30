"""Sales forecasts: what is published, by pandas from the table of sales; known truth of a generated shop."""

import numpy as np
import pandas as pd
import pytest

from retailray.data.synthetic_shop import make_shop, write_shop
from tests.commands.helpers import latest, read_json
from tests.oracles import read

pytestmark = pytest.mark.slow
AS_OF = "2025-12-08"  # a Monday


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    made = make_shop(num_shoppers=150, num_products=60, seed=2)
    write_shop(str(folder), made)
    rows = made.purchases.assign(date=made.purchases.time.dt.strftime("%Y-%m-%d"))
    rows["price"] = rows.value / rows.quantity
    sales = rows.groupby(["product", "date"], as_index=False).agg(
        {"quantity": "sum", "price": "mean", "promotion": "max"}
    )
    sales.to_csv(folder / "sales.csv", index=False)
    return folder, made, sales


@pytest.fixture
def forecast(shop, retailray, tmp_path):
    def run(*, code=0, **changes):
        settings = {"sales.uri": shop[0] / "sales.csv", "forecast.as_of": AS_OF, "out": tmp_path / "out"}
        settings |= changes
        settings = {key: value for key, value in settings.items() if value is not None}
        done, _, err = retailray("forecast", **settings)
        assert done == code, err
        if code:
            return err
        address = latest(str(settings["out"]))
        found = None if address.startswith("s3:") else read(address, "forecasts")
        return found, read_json(f"{address}/run.json"), address

    return run


def weekly(sales, *, end=AS_OF):
    """Units by product and week, from the first whole week on; missing before the first sale."""
    rows = sales[sales.date < end].assign(week=pd.to_datetime(sales.date).dt.to_period("W-SUN").dt.start_time)
    found = rows.pivot_table(index="product", columns="week", values="quantity", aggfunc="sum")
    weeks = pd.date_range(found.columns.min(), pd.Timestamp(end) - pd.Timedelta(days=7), freq="7D")
    found = found.reindex(columns=weeks)
    return found.where(found.notna().cummax(axis=1).eq(False), found.fillna(0))


def test_the_mean_of_eight_weeks_and_its_errors_are_those_of_pandas(shop, forecast):
    """Kinds of fault: weeks that begin on Sunday, missing weeks left out, a forecast that knows its own period."""
    found, summary, _ = forecast(**{"forecast.method": "mean"})
    assert list(found.columns) == ["product", "date", "horizon", "forecast", "low", "high", "method"]
    table = weekly(shop[2])
    for product, mine in found[found.method == "mean"].groupby("product"):
        assert mine.date.astype(str).tolist() == ["2025-12-08", "2025-12-15", "2025-12-22", "2025-12-29"]
        assert mine.horizon.tolist() == [1, 2, 3, 4]
        expected = table.loc[product].dropna().iloc[-8:].mean()
        assert mine.forecast.tolist() == pytest.approx([expected] * 4)
        assert (mine.low <= mine.forecast).all()
        assert (mine.forecast <= mine.high).all()
    error, total = 0.0, 0.0
    for back in range(1, 7):
        at = len(table.columns) - 4 * back
        truth, past = table.iloc[:, at : at + 4], table.iloc[:, :at]
        old = past.notna().sum(axis=1) >= 4
        expected = past.apply(lambda row: row.dropna().iloc[-8:].mean(), axis=1)
        error += truth[old].sub(expected[old], axis=0).abs().sum().sum()
        total += truth[old].sum().sum()
    assert summary["measured"]["mean"]["wape"] == pytest.approx(error / total)


def test_the_method_that_is_chosen_is_better_than_the_simplest_and_its_intervals_hold(shop, forecast):
    """Against sales that the run could not know."""
    found, summary, _ = forecast()
    measured = {name: one["wape"] for name, one in summary["measured"].items()}
    assert measured[summary["method"]] == min(measured.values())
    rows = shop[2].assign(week=pd.to_datetime(shop[2].date).dt.to_period("W-SUN").dt.start_time)
    truth = rows.groupby(["product", "week"]).quantity.sum()
    keys = list(zip(found["product"], pd.to_datetime(found.date), strict=True))
    sold = np.array([truth.get(key, 0) for key in keys], float)
    known = ((found.method == summary["method"]) & (found.horizon < 4)).to_numpy()  # the last week is not whole
    inside = ((sold >= found.low) & (sold <= found.high)).to_numpy()[known].mean()
    assert 0.68 <= inside <= 0.92
    assert summary["coverage"] == pytest.approx(0.8, abs=0.06)


def test_what_happens_later_changes_nothing(shop, forecast, tmp_path):
    before, _, _ = forecast(out=tmp_path / "before")
    past = shop[2][shop[2].date < AS_OF]
    past.sample(frac=1, random_state=0).to_parquet(tmp_path / "past.parquet")
    after, _, _ = forecast(**{"sales.uri": tmp_path / "past.parquet"}, out=tmp_path / "after")
    columns = ["product", "horizon"]
    known = before[before["product"].isin(past["product"])].sort_values(columns).reset_index(drop=True)
    after = after.sort_values(columns).reset_index(drop=True)
    assert known["product"].tolist() == after["product"].tolist()
    np.testing.assert_allclose(known.forecast, after.forecast, rtol=0.35, atol=1.5)  # of draws in another order
    simple = {"forecast.method": "theta"}
    before, _, _ = forecast(**simple, out=tmp_path / "before")
    after, _, _ = forecast(**simple, **{"sales.uri": tmp_path / "past.parquet"}, out=tmp_path / "after")
    before = before[before["product"].isin(past["product"])]
    pd.testing.assert_frame_equal(
        before.sort_values(columns).reset_index(drop=True), after.sort_values(columns).reset_index(drop=True)
    )


@pytest.mark.parametrize(("method", "beside"), [("theta", {"theta"}), ("boosted", {"boosted"}), ("mean", set())])
def test_a_method_that_is_named_is_used_beside_the_simple_ones(shop, forecast, tmp_path, method, beside):
    """Kind of fault: minutes for models that nobody asked for."""
    few = shop[2][shop[2]["product"].isin(sorted(set(shop[2]["product"]))[:10])]
    few.to_csv(tmp_path / "few.csv", index=False)
    found, summary, _ = forecast(**{"sales.uri": tmp_path / "few.csv", "forecast.method": method})
    assert set(summary["measured"]) == {"naive", "mean", "seasonal"} | beside
    assert summary["method"] == method
    assert method in set(found.method)


def test_purchases_are_summed_up(shop, forecast, tmp_path):
    """The same forecasts from purchases as from their sums by day."""
    settings = {"forecast.method": "mean"}
    before, _, _ = forecast(**settings, out=tmp_path / "before")
    after, _, _ = forecast(
        **settings,
        **{"sales.uri": None, "interactions.uri": shop[0] / "purchases.parquet", "interactions.quantity": "quantity"},
        out=tmp_path / "after",
    )
    merged = before.merge(after, on=["product", "horizon"])
    assert len(merged) == len(before) == len(after)
    np.testing.assert_allclose(merged.forecast_x, merged.forecast_y)


def test_look_alikes_know_more_of_new_products_than_their_category(shop, forecast, tmp_path):
    """Known truth: how a launched product sells is that of products of its category and style."""
    draw = np.random.default_rng(0)
    vectors, rows = [], []
    for number in range(160):
        kind = number % 8
        vectors.append({"id": f"n{number}", "embedding": [float(at == kind) + 0.05 * draw.normal() for at in range(8)]})
        launch = int(draw.integers(2, 44)) if number % 3 else 0
        for week in range(launch, 48):
            mean = 3.0 * 1.6**kind * np.exp(-0.15 * (week - launch))
            if quantity := int(draw.poisson(mean + 0.3)):
                day = pd.Timestamp("2025-01-06") + pd.Timedelta(days=7 * week + int(draw.integers(7)))
                rows.append({"product": f"n{number}", "date": day, "quantity": quantity})
    products = pd.DataFrame({"product": [one["id"] for one in vectors], "category": "all"})
    products.to_csv(tmp_path / "products.csv", index=False)
    (tmp_path / "vectors").mkdir()
    new = [{"id": f"unsold{kind}", "embedding": [float(at == kind) for at in range(8)]} for kind in range(8)]
    pd.DataFrame(vectors + new).to_parquet(tmp_path / "vectors/a.parquet")
    pd.DataFrame(rows).to_parquet(tmp_path / "sales.parquet")
    settings = {"sales.uri": tmp_path / "sales.parquet", "embeddings.uri": tmp_path / "vectors"}
    settings |= {"products.uri": tmp_path / "products.csv", "products.category": "category"}
    found, summary, _ = forecast(**settings)
    launches = summary["launches"]
    assert launches["wape_look_alikes"] < 0.8 * launches["wape_category_mean"]
    unsold = found[found["product"].str.startswith("unsold")]
    assert len(unsold) == 8 * 4
    assert set(unsold.method) == {"look_alikes"}
    first = unsold[unsold.horizon == 1].set_index("product").forecast
    assert first["unsold7"] > 3 * first["unsold2"]


def test_stock_outs_closed_weeks_returns_and_duplicates_are_told_from_few_sales(forecast, tmp_path):
    """Kind of fault: a product that was not there is taken for one that nobody wants."""
    days = pd.date_range("2025-01-06", "2025-12-07")
    rows = pd.DataFrame({"sku": "a", "day": days, "units": 10, "out": "no"})
    rows.loc[rows.day >= "2025-11-24", ["units", "out"]] = [0, "yes"]
    rows = pd.concat([rows, rows.assign(sku="b", out="no", units=10)])
    rows = rows[~rows.day.between("2025-06-02", "2025-06-08")]  # the shop is closed
    back = pd.DataFrame({"sku": ["b", "b"], "day": pd.Timestamp("2025-03-03"), "units": [-25, 25], "out": "no"})
    pd.concat([rows, back]).to_csv(tmp_path / "sales.csv", index=False)
    settings = {"sales.uri": tmp_path / "sales.csv", "sales.product": "sku", "sales.date": "day"}
    settings |= {"sales.quantity": "units", "sales.stock_out": "out", "forecast.method": "mean"}
    found, summary, _ = forecast(**settings)
    assert list(found.columns[:2]) == ["sku", "date"]
    assert found.forecast.tolist() == pytest.approx([70.0] * 8)
    told = summary["sales"]
    assert (told["closed_periods"], told["stock_out_periods"], told["returned_units"]) == (1, 2, 25)
    assert told["duplicate_days"] == 2


@pytest.mark.parametrize(
    ("frequency", "as_of", "dates"),
    [
        ("D", "2025-12-10", ["2025-12-10", "2025-12-11", "2025-12-12"]),
        ("M", "2025-12-01", ["2025-12-01", "2026-01-01", "2026-02-01"]),
        ("W", None, ["2026-01-05", "2026-01-12", "2026-01-19"]),
    ],
)
def test_periods_begin_where_they_should(forecast, frequency, as_of, dates):
    settings = {"forecast.frequency": frequency, "forecast.horizon": 3, "forecast.method": "mean"}
    found, summary, _ = forecast(**settings, **{"forecast.as_of": as_of})
    assert sorted(set(found.date.astype(str))) == dates
    assert summary["as_of"] == dates[0]


def test_a_week_has_its_weekdays(forecast, tmp_path):
    """Known truth: Saturdays sell five times as much."""
    days = pd.date_range("2025-06-01", "2025-12-07")
    draw = np.random.default_rng(0)
    rows = [
        {"product": f"p{number}", "date": day, "quantity": int(draw.poisson(50 if day.dayofweek == 5 else 10))}
        for number in range(8)
        for day in days
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "sales.parquet")
    settings = {"sales.uri": tmp_path / "sales.parquet", "forecast.frequency": "D", "forecast.horizon": 7}
    found, summary, _ = forecast(**settings)
    saturday = pd.to_datetime(found.date).dt.dayofweek == 5
    assert found.forecast[saturday].mean() > 3.5 * found.forecast[~saturday].mean()
    assert summary["measured"][summary["method"]]["wape"] < 0.5 * summary["measured"]["mean"]["wape"]


def test_bad_rows_are_told_and_lose_nothing_else(shop, forecast, tmp_path):
    settings = {"forecast.method": "theta"}
    before, _, _ = forecast(**settings, out=tmp_path / "before")
    bad = [{"product": "", "date": "2025-02-03", "quantity": 1}, {"product": "x", "date": "soon", "quantity": 1}]
    bad += [{"product": "x", "date": "2025-02-03", "quantity": "some"}, {"product": "x", "date": "2025-02-03"}]
    pd.concat([shop[2], pd.DataFrame(bad)]).to_csv(tmp_path / "sales.csv", index=False)
    after, summary, address = forecast(**settings, **{"sales.uri": tmp_path / "sales.csv"})
    counts = {name: summary["sales"][name] for name in ("no_product", "bad_time", "bad_quantity")}
    assert counts == {"no_product": 1, "bad_time": 1, "bad_quantity": 2}
    assert len(read(address, "errors")) == 4
    after = after[after["product"] != "x"].reset_index(drop=True)
    pd.testing.assert_frame_equal(before, after)


def test_little_is_enough_and_too_little_is_said(forecast, tmp_path):
    rows = pd.DataFrame({"product": "a", "date": pd.date_range("2025-12-01", periods=3), "quantity": [3, 4, 5]})
    rows.to_csv(tmp_path / "three.csv", index=False)
    settings = {"sales.uri": tmp_path / "three.csv", "forecast.as_of": None}
    assert "whole periods (W)" in forecast(code=1, **settings)
    found, summary, _ = forecast(**settings, **{"forecast.frequency": "D"})
    assert found.forecast.tolist() == [4.0] * 4
    assert summary["method"] == "mean"
    assert found.low.isna().all()


def test_what_cannot_be_done_is_said_with_the_way_out(shop, forecast, tmp_path):
    assert "2025-12-08 and 2025-12-15 are first days" in forecast(code=2, **{"forecast.as_of": "2025-12-10"})
    assert "no sales before forecast.as_of" in forecast(code=1, **{"forecast.as_of": "2019-01-07"})
    assert "did you mean 'quantity'" in forecast(code=1, **{"sales.quantity": "quantiy"})
    assert "none is given" in forecast(code=2, **{"sales.uri": None})
    assert "both are given" in forecast(code=2, **{"interactions.uri": shop[0] / "purchases.parquet"})
    assert "would be ignored" in forecast(code=2, **{"interactions.value": "value"})
    (tmp_path / "empty.csv").write_text("product,date,quantity\n")
    assert "no row is a sale" in forecast(code=1, **{"sales.uri": tmp_path / "empty.csv"})


@pytest.mark.ray
def test_on_a_store_and_on_ray_forecasts_are_the_same(shop, forecast, ray_session_cpus, bucket, tmp_path):
    import fsspec

    few = shop[2][shop[2]["product"].isin(sorted(set(shop[2]["product"]))[:20]) & (shop[2].date > "2025-06-01")]
    few.to_csv(tmp_path / "few.csv", index=False)
    alone, _, _ = forecast(**{"sales.uri": tmp_path / "few.csv", "cluster.engine": "inline"}, out=tmp_path / "inline")
    with fsspec.open(f"{bucket}/sales.csv", "wb") as file:
        file.write((tmp_path / "few.csv").read_bytes())
    settings = {"sales.uri": f"{bucket}/sales.csv", "cluster.engine": "ray", "out": f"{bucket}/out"}
    _, _, address = forecast(**settings)
    names = fsspec.core.url_to_fs(bucket)[0].glob(f"{address}/forecasts/*.parquet")
    on_ray = pd.concat([pd.read_parquet(f"s3://{name}") for name in names])
    pd.testing.assert_frame_equal(alone, on_ray[alone.columns])


@pytest.mark.real
def test_a_real_shop_is_forecast_as_well_as_by_the_best_model(real_data, retailray, tmp_path):
    """WAPE of the 300 most bought products over the last four weeks: one model that was fitted by hand has 0.247 over
    eight, which `benchmarks.forecast` measures. Of 80 % intervals 77 to 83 % hold."""
    folder = real_data[0].parent / "shop"
    rows = pd.read_parquet(folder / "purchases.parquet")
    rows = rows[rows["product"].notna() & (rows.quantity > 0)]
    rows = rows[~rows["product"].str.contains("GASOLINE|COUPON|MISC SALES")]
    rows = rows.assign(date=rows.time.dt.floor("D"), price=rows.value / rows.quantity, promotion=rows.discount > 0)
    daily = rows.groupby(["product", "date"]).agg(
        quantity=("price", "size"), price=("price", "median"), promotion=("promotion", "mean")
    )
    daily.assign(promotion=daily.promotion > 0.5).reset_index().to_parquet(tmp_path / "sales.parquet")
    top = rows["product"].value_counts().index[:300]
    settings = {"sales.uri": tmp_path / "sales.parquet", "forecast.as_of": "2017-12-04", "out": tmp_path / "out"}
    settings |= {"products.uri": folder / "articles.parquet", "products.category": "category"}
    settings |= {"sales.price": "price", "sales.promotion": "promotion", "cluster.engine": "inline"}
    code, _, err = retailray("forecast", **settings)
    assert code == 0, err
    found = read(latest(str(tmp_path / "out")), "forecasts").set_index(["product", "date"])
    error, total, inside = 0.0, 0.0, []
    for week in pd.date_range("2017-12-04", periods=4, freq="7D"):
        during = rows[(rows.time >= week) & (rows.time < week + pd.Timedelta(days=7))]
        truth = during["product"].value_counts().reindex(top, fill_value=0).to_numpy()
        mine = found.loc[[(product, week.date()) for product in top]]
        error, total = error + np.abs(mine.forecast - truth).sum(), total + truth.sum()
        inside.append(((truth >= mine.low) & (truth <= mine.high)).mean())
    assert error / total <= 0.248
    assert 0.77 <= np.mean(inside) <= 0.83
