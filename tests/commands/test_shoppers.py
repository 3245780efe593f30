"""Shoppers: figures by pandas from the table of purchases; known truth of a generated shop."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import adjusted_rand_score

from retailray.config.command_configs import SHOPPERS_COLUMNS
from retailray.data.synthetic_shop import make_shop, write_shop
from tests.commands.helpers import latest, read_json
from tests.oracles import read

pytestmark = pytest.mark.slow
AS_OF = "2025-12-08"
COLUMNS = {"interactions.basket": "basket", "interactions.quantity": "quantity", "interactions.value": "value"}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    made = make_shop(num_shoppers=200, num_products=120, seed=3)
    write_shop(str(folder), made)
    return folder, made


@pytest.fixture
def shoppers(shop, retailray, tmp_path):
    def run(*, code=0, **changes):
        settings = {"interactions.uri": shop[0] / "purchases.parquet", "shoppers.as_of": AS_OF, "out": tmp_path / "out"}
        settings |= COLUMNS | changes
        settings = {key: value for key, value in settings.items() if value is not None}
        done, _, err = retailray("shoppers", **settings)
        assert done == code, err
        if code:
            return err
        address = latest(str(settings["out"]))
        return read(address, "shoppers"), read_json(f"{address}/run.json"), address

    return run


def audit(found, rows, as_of, shopper="shopper"):
    """Differences between published figures and those of pandas."""
    rows = rows[rows.time < as_of]
    by_shopper = rows.groupby("shopper")
    day = pd.Timestamp(as_of).normalize()
    expected = pd.DataFrame(
        {
            "recency_days": (day - by_shopper.time.max().dt.normalize()).dt.days,
            "baskets": by_shopper.basket.nunique(),
            "money": by_shopper.value.sum(),
        }
    )
    mine = found.set_index(shopper)
    assert sorted(mine.index) == sorted(expected.index)
    for name in ("recency_days", "baskets"):
        assert (mine[name][expected.index] == expected[name]).all(), name
    assert (mine.money[expected.index] - expected.money).abs().max() < 0.005


def test_columns_of_the_table_are_those_that_are_refused_for_others(shoppers):
    """Kind of fault: the table gets a column, and a user's own of that name is overwritten."""
    found, _, _ = shoppers()
    assert sorted(found.columns) == sorted(["shopper", *SHOPPERS_COLUMNS])


def test_figures_and_favourites_are_those_of_pandas(shop, shoppers):
    folder, made = shop
    found, summary, address = shoppers(**{"products.uri": folder / "products.csv", "products.category": "category"})
    audit(found, made.purchases, AS_OF)
    rows = made.purchases[made.purchases.time < AS_OF].drop_duplicates(["shopper", "basket", "product"])
    rows = rows.merge(made.products[["product", "category"]], on="product")
    counts = rows.groupby(["shopper", "category"]).size()
    for row in found.itertuples():
        mine = counts[row.shopper]
        assert counts[row.shopper][list(row.favourite_categories)].tolist() == mine.nlargest(3).tolist()
    wanted = pd.read_parquet(f"{address}/demand.parquet").set_index("category")
    assert wanted.purchases.to_dict() == rows.category.value_counts().to_dict()
    kinds = made.products.category.value_counts(normalize=True)  # also of products that nobody bought
    np.testing.assert_allclose(wanted.ratio, wanted.purchases / wanted.purchases.sum() / kinds[wanted.index])
    cohorts = pd.read_parquet(f"{address}/retention.parquet")
    month = made.purchases[made.purchases.time < AS_OF].assign(month=lambda one: one.time.dt.to_period("M"))
    first = month.groupby("shopper").month.min()
    active = month[["shopper", "month"]].drop_duplicates()
    active["since"] = [(one.month - first[one.shopper]).n for one in active.itertuples()]
    active["cohort"] = first[active.shopper].dt.start_time.dt.date.to_numpy()
    expected = active.groupby(["cohort", "since"]).size()
    last = active.groupby("cohort").since.max().reset_index()
    assert (cohorts.groupby("cohort").month.max() == [(pd.Period("2025-12") - pd.Period(one, "M")).n for one in
            cohorts.groupby("cohort").month.max().index]).all()  # fmt: skip
    assert len(last)
    for row in cohorts.itertuples():
        assert row.active == expected.get((row.cohort, row.month), 0)
    assert summary["shoppers"] == len(found)


@pytest.mark.parametrize("known", ["categories and pictures", "categories", "nothing"])
def test_segments_are_the_tastes_that_shoppers_have(shop, shoppers, known):
    """Known truth: four segments, each of which likes two categories and a style."""
    folder, made = shop
    settings = {}
    if known != "nothing":
        settings |= {"products.uri": folder / "products.csv", "products.category": "category"}
    if known == "categories and pictures":
        settings |= {"embeddings.uri": folder / "embeddings"}
    found, summary, address = shoppers(**settings)
    truth = made.shoppers.set_index("shopper").segment[found.shopper]
    assert adjusted_rand_score(truth, found.segment) >= 0.7
    assert summary["segments"] == 4
    assert summary["stability"] > 0.8
    segments = pd.read_parquet(f"{address}/segments")
    assert segments.shoppers.tolist() == found.segment.value_counts().sort_index().tolist()
    assert segments.share.sum() == pytest.approx(1)
    for row in segments.itertuples():
        mine = found[found.segment == row.segment]
        assert (row.recency_days, row.baskets) == (mine.recency_days.median(), mine.baskets.median())
        assert row.money == pytest.approx(mine.money.median())
        if known != "nothing":
            liked = truth[mine.shopper].mode()[0]
            assert set(row.categories[:2]) == {f"category {2 * liked}", f"category {2 * liked + 1}"}


def test_segments_keep_their_numbers_and_who_moved_is_counted(shop, shoppers, tmp_path):
    folder, _ = shop
    settings = {"products.uri": folder / "products.csv", "products.category": "category"}
    before, summary, _ = shoppers(**settings, **{"shoppers.as_of": "2025-09-01"})
    assert summary["moved"] is None
    after, summary, _ = shoppers(**settings)
    both = before.merge(after, on="shopper")
    assert summary["moved"] == (both.segment_x != both.segment_y).sum() < 0.2 * len(both)
    again, summary, _ = shoppers(**settings)
    assert summary["moved"] == 0
    pd.testing.assert_frame_equal(after, again)


def test_rows_without_product_and_returns_count_as_money(shoppers, tmp_path):
    rows = [("a", "2025-03-01T10:00", 1, "p", 2, 5.5), ("a", "2025-03-01T10:00", 1, None, 1, 1.25)]
    rows += [("a", "2025-03-04T09:00", 2, "p", -1, -2.75), ("b", "2025-02-28T23:30", 3, "q", 1, 0.1)]
    columns = ["shopper", "time", "basket", "product", "quantity", "value"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "rows.csv", index=False)
    found, summary, _ = shoppers(**{"interactions.uri": tmp_path / "rows.csv", "shoppers.as_of": "2025-03-05"})
    assert found.iloc[:, :4].values.tolist() == [["a", 1, 2, 4.0], ["b", 5, 1, 0.1]]
    assert summary["segments"] == 1
    assert summary["note"].startswith("fewer than 20 shoppers")
    assert "no row before shoppers.as_of" in shoppers(
        code=1, **{"interactions.uri": tmp_path / "rows.csv", "shoppers.as_of": "2020-01-01"}
    )


def purchases(tmp_path, baskets):
    """A table of the products that each shopper bought, a day each."""
    rows = [
        (shopper, f"2025-0{1 + at % 9}-01T10:00", product, 1, 1.0)
        for shopper, products in baskets.items()
        for at, product in enumerate(products)
    ]
    pd.DataFrame(rows, columns=["shopper", "time", "product", "quantity", "value"]).to_csv(
        tmp_path / "rows.csv", index=False
    )
    names = ["A1", "A2", "B1", "B2", "C1"]
    pd.DataFrame({"product": names, "category": [name[0] for name in names]}).to_csv(
        tmp_path / "products.csv", index=False
    )
    return {
        "interactions.uri": tmp_path / "rows.csv",
        "interactions.basket": None,
        "products.uri": tmp_path / "products.csv",
        "products.category": "category",
        "shoppers.as_of": "2025-12-01",
    }


def test_shoppers_who_differ_little_or_not_at_all(shoppers, tmp_path):
    """Kind of fault: more segments than ways of buying: a crash, or segments of nobody."""
    settings = purchases(tmp_path, {at: ["A1"] if at % 2 else ["B1"] for at in range(40)})
    found, summary, address = shoppers(**settings)
    assert summary["segments"] == 2
    assert found.groupby(found.shopper % 2).segment.nunique().tolist() == [1, 1]
    segments = read(address, "segments")
    assert [list(one) for one in segments.categories] in ([["A"], ["B"]], [["B"], ["A"]]), "what it never buys"
    assert "2 different ways" in shoppers(code=2, **settings, **{"shoppers.segments": 5})
    settings = purchases(tmp_path, {at: ["A1"] for at in range(40)})
    found, summary, _ = shoppers(**settings)
    assert set(found.segment) == {0}
    assert summary["note"] == "all shoppers buy alike: one segment"
    settings = purchases(tmp_path, {at: ["A1"] if at else ["B1"] for at in range(400)})
    assert shoppers(**settings)[1]["segments"] in (1, 2)


def test_supply_is_what_the_range_has(shoppers, tmp_path):
    """Kind of fault: only what was bought counts as offered."""
    settings = purchases(tmp_path, {at: ["A1", "B1"] for at in range(5)})
    _, _, address = shoppers(**settings)
    wanted = pd.read_parquet(f"{address}/demand.parquet").set_index("category")
    assert wanted.products.to_dict() == {"A": 2, "B": 2, "C": 1}
    assert wanted.supply.to_dict() == pytest.approx({"A": 0.4, "B": 0.4, "C": 0.2})
    assert wanted.ratio.to_dict() == pytest.approx({"A": 1.25, "B": 1.25, "C": 0})


def test_who_only_returned_something_is_in_no_segment(shoppers, tmp_path):
    settings = purchases(tmp_path, {at: ["A1", "A2"] if at % 2 else ["B1", "B2"] for at in range(40)})
    with (tmp_path / "rows.csv").open("a") as file:
        file.writelines(f"{100 + at},2025-03-01,A1,-1,-1.0\n" for at in range(10))
    found, summary, _ = shoppers(**settings)
    assert summary["without_purchase"] == 10
    assert found[found.shopper >= 100].segment.isna().all()
    assert found[found.shopper < 100].segment.notna().all()
    _, summary, _ = shoppers(**settings)
    assert summary["moved"] == 0


def test_nobody_bought_anything(shoppers, tmp_path):
    rows = [(f"s{at}", "2025-03-01", "a", -1) for at in range(30)]
    pd.DataFrame(rows, columns=["shopper", "time", "product", "quantity"]).to_csv(tmp_path / "rows.csv", index=False)
    changes = {"interactions.uri": tmp_path / "rows.csv", "interactions.basket": None, "interactions.value": None}
    found, summary, _ = shoppers(**changes)
    assert summary["without_purchase"] == len(found) == 30
    assert found.segment.isna().all()


def test_what_differs_by_rounding_only_is_the_same(shoppers, tmp_path):
    """Kind of fault: segments in the last bits of shoppers who all bought products with the same picture."""
    draw = np.random.default_rng(0)
    rows = [(f"s{at}", f"2025-03-{1 + at % 28:02d}", f"p{one}") for at in range(57) for one in range(1 + at % 5)]
    pd.DataFrame(rows, columns=["shopper", "time", "product"]).to_csv(tmp_path / "rows.csv", index=False)
    (tmp_path / "vectors").mkdir()
    same = draw.normal(size=64)
    vectors = pd.DataFrame({"id": [f"p{one}" for one in range(5)], "embedding": [same] * 5})
    vectors.to_parquet(tmp_path / "vectors/a.parquet")
    changes = {"interactions.basket": None, "interactions.value": None, "interactions.quantity": None}
    changes |= {"interactions.uri": tmp_path / "rows.csv", "embeddings.uri": tmp_path / "vectors"}
    _, summary, _ = shoppers(**changes)
    assert summary["note"] == "all shoppers buy alike: one segment"


def test_what_is_ignored_or_overwritten_is_refused(shop, shoppers, tmp_path):
    assert "has a column of this name" in shoppers(code=2, **{"interactions.shopper": "segment"})
    assert "products.category" in shoppers(code=2, **{"products.uri": shop[0] / "products.csv"})
    assert "is no day" in shoppers(code=2, **{"shoppers.as_of": "2025-01-06T12:00"})


@pytest.mark.s3
def test_on_a_store_the_same_is_published(shop, retailray, bucket, tmp_path):
    import fsspec

    with fsspec.open(f"{bucket}/purchases.parquet", "wb") as file:
        file.write((shop[0] / "purchases.parquet").read_bytes())
    settings = {"interactions.uri": f"{bucket}/purchases.parquet", "out": f"{bucket}/out", "shoppers.as_of": AS_OF}
    code, _, err = retailray("shoppers", **settings | COLUMNS)
    assert code == 0, err
    names = fsspec.core.url_to_fs(bucket)[0].glob(f"{latest(f'{bucket}/out')}/shoppers/*.parquet")
    audit(pd.concat([pd.read_parquet(f"s3://{name}") for name in names]), shop[1].purchases, AS_OF)


@pytest.mark.real
def test_a_real_shop_is_described_to_the_cent(real_data, retailray, tmp_path):
    address = real_data[0].parent / "shop/purchases.parquet"
    code, _, err = retailray("shoppers", **{"interactions.uri": address, "out": tmp_path / "out"} | COLUMNS)
    assert code == 0, err
    audit(read(latest(str(tmp_path / "out")), "shoppers"), pd.read_parquet(address), "2018-01-02")
