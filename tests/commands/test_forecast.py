"""Sales forecasts: what is published, by pandas from the table of sales; known truth of a generated shop."""

import numpy as np
import pandas as pd
import pytest

from retailray.config.command_configs import FORECAST_COLUMNS
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
    assert list(found.columns) == ["product", *FORECAST_COLUMNS], "which are refused for others"
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
    pd.testing.assert_frame_equal(before, after)


@pytest.mark.parametrize(("method", "beside"), [("theta", {"theta"}), ("boosted", {"boosted"}), ("mean", set())])
def test_a_method_that_is_named_is_used_beside_the_simple_ones(shop, forecast, tmp_path, method, beside):
    """Kind of fault: minutes for models that nobody asked for."""
    few = shop[2][shop[2]["product"].isin(sorted(set(shop[2]["product"]))[:10])]
    few.to_csv(tmp_path / "few.csv", index=False)
    found, summary, _ = forecast(**{"sales.uri": tmp_path / "few.csv", "forecast.method": method})
    assert set(summary["measured"]) == {"naive", "mean", "seasonal"} | beside
    assert summary["method"] == method
    assert method in set(found.method)


def by_statsforecast(past, method):
    """Four weeks of each product by statsforecast's own frames; nothing of those with fewer than eight weeks."""
    statsforecast = pytest.importorskip("statsforecast")
    models = pytest.importorskip("statsforecast.models")
    make = {"ets": models.AutoETS, "theta": models.AutoTheta}
    model = make[method](season_length=1) if method in make else models.CrostonSBA()
    rows = past.T.melt(ignore_index=False, var_name="unique_id", value_name="y").reset_index(names="ds").dropna()
    rows = rows[rows.groupby("unique_id").y.transform("size") >= 8]
    found = statsforecast.StatsForecast(models=[model], freq="7D", n_jobs=1).forecast(df=rows, h=4)
    values = found.drop(columns=["unique_id", "ds"]).iloc[:, 0].clip(lower=0)
    return values.groupby(found.unique_id).apply(list).to_dict()


@pytest.mark.parametrize("method", ["ets", "theta", "croston"])
def test_forecasts_of_one_series_and_their_errors_are_those_of_statsforecast(shop, forecast, tmp_path, method):
    """Kinds of fault: the series of another product, a week too many or too few, errors of other weeks."""
    few = shop[2][shop[2]["product"].isin(sorted(set(shop[2]["product"]))[:8])]
    few.to_csv(tmp_path / "few.csv", index=False)
    found, summary, _ = forecast(**{"sales.uri": tmp_path / "few.csv", "forecast.method": method})
    table = weekly(few)
    expected = by_statsforecast(table, method)
    mine = found[found.method == method].sort_values("horizon").groupby("product").forecast.apply(list)
    assert len(set(mine.index) & set(expected)) >= 6
    for product in set(mine.index) & set(expected):
        assert mine[product] == pytest.approx(expected[product], rel=1e-6)
    error, total = 0.0, 0.0
    for back in range(1, 7):
        at = len(table.columns) - 4 * back
        truth, past = table.iloc[:, at : at + 4], table.iloc[:, :at]
        old = past.index[past.notna().sum(axis=1) >= 4]
        then = by_statsforecast(past, method)
        mean = past.apply(lambda row: [row.dropna().iloc[-8:].mean()] * 4, axis=1)  # of series that are too short
        for product in old:
            error += np.abs(truth.loc[product].to_numpy() - then.get(product, mean[product])).sum()
            total += truth.loc[product].sum()
    assert summary["measured"][method]["wape"] == pytest.approx(error / total, rel=1e-6)


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
    assert launches["wape_look_alikes"] < 0.8 * launches["wape_category_launches"]
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
    pd.testing.assert_frame_equal(before, after)


def test_little_is_enough_and_too_little_is_said(forecast, tmp_path):
    rows = pd.DataFrame({"product": "a", "date": pd.date_range("2025-12-01", periods=3), "quantity": [3, 4, 5]})
    rows.to_csv(tmp_path / "three.csv", index=False)
    settings = {"sales.uri": tmp_path / "three.csv", "forecast.as_of": None}
    assert "nothing was sold before 2025-12-01" in forecast(code=1, **settings)
    assert "2 whole periods (D)" in forecast(
        code=1, **settings | {"forecast.as_of": "2025-12-03", "forecast.frequency": "D"}
    )
    found, summary, _ = forecast(**settings, **{"forecast.frequency": "D"})
    assert found.forecast.tolist() == [4.0] * 4
    assert summary["method"] == "mean"
    assert found.low.isna().all()


def test_what_cannot_be_done_is_said_with_the_way_out(shop, forecast, tmp_path):
    assert "2025-12-08 and 2025-12-15 are first days" in forecast(code=2, **{"forecast.as_of": "2025-12-10"})
    assert "nothing was sold before 2019-01-07" in forecast(code=1, **{"forecast.as_of": "2019-01-07"})
    assert "did you mean 'quantity'" in forecast(code=1, **{"sales.quantity": "quantiy"})
    assert "none is given" in forecast(code=2, **{"sales.uri": None})
    assert "both are given" in forecast(code=2, **{"interactions.uri": shop[0] / "purchases.parquet"})
    assert "would be ignored" in forecast(code=2, **{"interactions.value": "value"})
    (tmp_path / "empty.csv").write_text("product,date,quantity\n")
    assert "no row is a sale" in forecast(code=1, **{"sales.uri": tmp_path / "empty.csv"})


def table(tmp_path, rows, name="sales.csv"):
    """Sales as a CSV file: dates, products and quantities."""
    pd.DataFrame(rows, columns=["date", "product", "quantity"]).to_csv(tmp_path / name, index=False)
    return {"sales.uri": tmp_path / name, "forecast.method": "mean"}


def daily(product, first, last, quantity=1):
    return [(f"{day:%F}", product, quantity) for day in pd.date_range(first, last)]


def test_what_was_never_sold_is_not_forecast(forecast, tmp_path):
    """Kind of fault: a name that is read is a product, whether it was excluded, unreadable, returned or sold later."""
    rows = daily("a", "2025-01-02", "2025-12-10") + daily("COUPON", "2025-03-01", "2025-03-09")
    rows += [("2025-12-20", "later", 5), ("soon", "unreadable", 5), ("2025-05-05", "returned", -1)]
    rows += [*daily("zero", "2025-01-06", "2025-12-07", 0), ("2025-01-03", "old", 3)]
    found, summary, _ = forecast(**table(tmp_path, rows), **{"sales.exclude": '["COUPON*"]'})
    assert sorted(set(found["product"])) == ["a", "old"]
    assert summary["products"] == 2
    old = found[found["product"] == "old"]
    assert old.forecast.tolist() == [0.0] * 4, "sold in the first week, which is not whole: nothing since, and not new"
    assert set(old.method) == {"mean"}


def test_a_week_that_is_not_whole_is_left_out(forecast, tmp_path):
    """Kind of fault: three days are taken for a week in which little was sold."""
    settings = table(tmp_path, daily("a", "2025-01-06", "2025-12-03", 5)) | {"forecast.method": "naive"}
    for as_of in ("2025-12-08", None):
        found, _, _ = forecast(**settings, **{"forecast.as_of": as_of})
        assert found.forecast.tolist() == [35.0] * 4
    found, _, _ = forecast(**table(tmp_path, daily("a", "2025-01-06", "2025-12-06", 5)), **{"forecast.as_of": None})
    assert found.date.astype(str).min() == "2025-12-08", "a shop that is closed on Sundays"


def test_methods_are_compared_by_the_same_periods(forecast, tmp_path):
    """Kind of fault: what cannot forecast early periods looks better, since these were hard."""
    draw = np.random.default_rng(0)
    rows = [(f"{day:%F}", "a", int(draw.poisson(20 if at > 8 else 90))) for at, day in
            enumerate(pd.date_range("2025-06-23", periods=24, freq="7D"))]  # fmt: skip
    _, summary, _ = forecast(**table(tmp_path, rows) | {"forecast.method": "auto"})
    assert "boosted" in summary["measured"]
    assert len({one["periods"] for one in summary["measured"].values()}) == 1


def test_what_a_young_product_sold_counts_more_than_what_others_did(forecast, tmp_path):
    """Kind of fault: the mean of other products pulls, however much they sell; unknown periods count as no sales."""
    rows = [row for number in range(6) for row in daily(f"p{number}", f"2025-0{3 + number}-03", "2025-12-07", 150)]
    few = table(tmp_path, rows + daily("young", "2025-11-17", "2025-12-07", 1))
    found, _, _ = forecast(**few)
    young = found[found["product"] == "young"]
    assert young.forecast.between(6, 9).all()
    many = [(day, name, 1) for day, name, _ in rows] + daily("young", "2025-11-17", "2025-12-07", 150)
    found, _, _ = forecast(**table(tmp_path, many))
    assert found[found["product"] == "young"].forecast.between(900, 1300).all()  # others began within a week


def test_intervals_of_new_products_are_those_of_launches(forecast, tmp_path):
    """Known truth: half of the launches are drawn as the others were; as many of their sales lie within as promised."""
    draw = np.random.default_rng(1)
    rows, truth = [], {}
    for number in range(160):
        start = int(draw.integers(8, 44)) if number % 4 else 46
        level = 10 * np.exp(0.5 * draw.normal())
        for week in range(start if number > 3 else 0, 52):
            units = int(draw.poisson(level))
            day = pd.Timestamp("2024-12-30") + pd.Timedelta(days=7 * week)
            rows.append((f"{day:%F}", f"p{number}", units))
            truth[f"p{number}", str(day.date())] = units
    settings = table(tmp_path, rows) | {"forecast.as_of": "2025-12-01"}
    found, summary, _ = forecast(**settings)
    young = found[found["product"].isin([f"p{number}" for number in range(4, 160, 4)]) & (found.horizon < 5)]
    sold = np.array([truth[name, str(day)] for name, day in zip(young["product"], young.date, strict=True)])
    assert 0.68 <= ((sold >= young.low) & (sold <= young.high)).mean() <= 0.92
    assert summary["launches"]["products"] > 20


def test_what_is_out_of_stock_needs_no_quantity(forecast, tmp_path):
    rows = [(day, name, quantity, "") for day, name, quantity in daily("a", "2025-01-06", "2025-11-09", 5)]
    rows += [(day, "a", None, "true") for day, _, _ in daily("a", "2025-11-10", "2025-12-07")]
    rows += [(day, "b", 1, "") for day, _, _ in daily("b", "2025-01-06", "2025-12-07")]
    pd.DataFrame(rows, columns=["date", "product", "quantity", "out"]).to_csv(tmp_path / "out.csv", index=False)
    settings = {"sales.uri": tmp_path / "out.csv", "sales.stock_out": "out", "forecast.method": "mean"}
    found, summary, _ = forecast(**settings)
    assert summary["sales"]["bad_quantity"] == 0
    assert summary["sales"]["stock_out_periods"] == 4
    assert found[found["product"] == "a"].forecast.tolist() == pytest.approx([35.0] * 4)


def test_days_on_which_the_shop_is_closed_every_week_sell_nothing(forecast, tmp_path):
    rows = [row for row in daily("a", "2025-03-03", "2025-12-06", 6) if pd.Timestamp(row[0]).dayofweek != 6]
    settings = table(tmp_path, rows) | {"forecast.frequency": "D", "forecast.horizon": 14}
    found, _, _ = forecast(**settings)
    sunday = pd.to_datetime(found.date).dt.dayofweek == 6
    assert sunday.sum() == 2
    assert (found[sunday][["forecast", "low", "high"]] == 0).all(axis=None)
    assert found.forecast[~sunday].tolist() == pytest.approx([6.0] * 12)


def test_a_shop_that_opens_on_sundays_now_sells_then(forecast, tmp_path):
    rows = [row for row in daily("a", "2025-01-06", "2025-12-07", 6)
            if pd.Timestamp(row[0]).dayofweek != 6 or row[0] >= "2025-11-09"]  # fmt: skip
    settings = table(tmp_path, rows) | {"forecast.frequency": "D", "forecast.horizon": 7}
    found, _, _ = forecast(**settings)
    assert (found.forecast > 5).all()


@pytest.mark.parametrize(
    ("day", "told"),
    [
        ("2052-12-09", "before 2052-12-09, the first day that is forecast"),
        ("1900-01-01", "rows are of 1900-01-01"),
        ("9999-12-31", None),
    ],
)
def test_one_wrong_date_does_not_decide_everything(forecast, tmp_path, day, told):
    settings = table(tmp_path, [*daily("a", "2025-01-06", "2025-12-07"), (day, "a", 1)]) | {"forecast.as_of": None}
    if told:
        assert told in forecast(code=1, **settings)
        return
    _, summary, _ = forecast(**settings)
    assert summary["sales"]["bad_time"] == 1
    assert summary["as_of"] == AS_OF


def test_names_of_other_tables_stay_themselves(forecast, tmp_path):
    """007 is not product 7; what products.uri does not know has no category."""
    rows = [row for number in range(1, 9) for row in daily(number, f"2025-0{number}-06", "2025-12-07")]
    settings = table(tmp_path, rows)
    (tmp_path / "vectors").mkdir()
    ids = [*map(str, range(1, 9)), "007"]
    draw = np.random.default_rng(0)
    vectors = pd.DataFrame({"id": ids, "embedding": list(draw.normal(size=(9, 4)))})
    vectors.to_parquet(tmp_path / "vectors/a.parquet")
    found, summary, _ = forecast(**settings, **{"embeddings.uri": tmp_path / "vectors"})
    assert found.groupby("product").size().to_dict() == dict.fromkeys(ids, 4)
    assert summary["never_sold"] == 1
    pd.DataFrame({"product": range(1, 5), "kind": "k"}).to_csv(tmp_path / "products.csv", index=False)
    young = table(tmp_path, [*rows, *daily(9, "2025-12-02", "2025-12-07"), *daily(4, "2025-01-06", "2025-12-07")])
    found, _, _ = forecast(**young, **{"products.uri": tmp_path / "products.csv", "products.category": "kind"})
    assert set(found[found["product"] == 9].method) <= {"all_launches", "mean"}


def test_what_is_ignored_or_overwritten_is_refused(shop, forecast):
    assert "has a column of this name" in forecast(code=2, **{"sales.product": "method"})
    assert "products.category" in forecast(code=2, **{"products.uri": shop[0] / "products.csv"})


def test_the_order_of_rows_changes_nothing(shop, forecast, tmp_path):
    few = shop[2][shop[2]["product"].isin(sorted(set(shop[2]["product"]))[:12])]
    few.to_csv(tmp_path / "few.csv", index=False)
    few.sample(frac=1, random_state=0).to_csv(tmp_path / "mixed.csv", index=False)
    settings = {"forecast.method": "boosted"}
    before, _, _ = forecast(**settings, **{"sales.uri": tmp_path / "few.csv"}, out=tmp_path / "before")
    after, _, _ = forecast(**settings, **{"sales.uri": tmp_path / "mixed.csv"}, out=tmp_path / "after")
    pd.testing.assert_frame_equal(before, after)


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
