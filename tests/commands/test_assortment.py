"""Products, who buys them and what goes with them: by pandas from the table of purchases, the catalog and the runs."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from retailray.config.command_configs import ASSORTMENT_COLUMNS
from retailray.data.synthetic import write_catalog
from retailray.data.synthetic_products import write_products
from retailray.data.synthetic_shop import make_shop, write_shop
from tests.commands.helpers import latest, read_json, words_of
from tests.oracles import read

pytestmark = pytest.mark.slow
COLUMNS = {"interactions.basket": "basket", "interactions.quantity": "quantity", "interactions.value": "value"}
AS_OF = "2025-12-08"


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Products with pictures, scored with embeddings; purchases of most of them, and of others without a picture."""
    from retailray.cli import main

    folder = tmp_path_factory.mktemp("assortment")
    write_catalog(str(folder / "catalog"), num_images=120, label_noise=0.0, seed=30)
    limits = {"catalog.max_pixels": 20_000_000}
    train = {"catalog.uri": folder / "catalog/catalog.csv", "catalog.group": "sku", "model.arch": "cnn3",
             "transform.image_size": 32, "transform.resize_size": 36, "train.epochs": 3, "train.batch_size": 16,
             "out": folder / "train"}  # fmt: skip
    assert main(words_of("train", train | limits)) == 0
    write_products(str(folder / "products"), num_products=30, misleading=0.2, seed=4)
    score = {"catalog.uri": folder / "products/catalog.csv", "catalog.id": "image", "catalog.group": "sku"}
    score |= {"model.uri": f"{latest(str(folder / 'train'))}/bundle", "out": folder / "scores"}
    assert main(["embed", *words_of("score", score)[1:]]) == 0
    rows = pd.read_csv(folder / "products/catalog.csv", dtype=str).drop_duplicates("sku")
    labels = dict(zip(rows.sku, rows.true_label, strict=True)) | {f"unseen{at}": "mug" for at in range(5)}
    made = make_shop(num_shoppers=120, labels=labels, seed=5)
    write_shop(str(folder), made)
    return folder, made.purchases


@pytest.fixture
def assortment(shop, retailray, tmp_path):
    def run(*, code=0, **changes):
        settings = {
            "embeddings.uri": shop[0] / "scores",
            "interactions.uri": shop[0] / "purchases.parquet",
            "forecast.method": "mean",
            "forecast.as_of": AS_OF,
            "out": tmp_path / "out",
        }
        settings |= COLUMNS | changes
        done, _, err = retailray("assortment", **settings)
        assert done == code, err
        if code:
            return err
        address = latest(str(settings["out"]))
        found = None if address.startswith("s3:") else read(address, "assortment")
        return found, read_json(f"{address}/run.json"), address

    return run


def test_figures_and_what_goes_together_are_those_of_pandas(shop, assortment):
    """Kinds of fault: later purchases, a basket of two shoppers, products without a picture, pairs counted twice."""
    folder, purchases = shop
    found, summary, _ = assortment(**{"assortment.num_products": 12})
    rows = purchases[purchases.time < AS_OF]
    pictured = read(latest(str(folder / "scores")), "products")
    mine = rows[rows["product"].isin(pictured.sku)]
    by_product = mine.groupby("product")
    expected = pd.DataFrame(
        {
            "buyers": by_product.shopper.nunique(),
            "baskets": by_product.basket.nunique(),
            "units": by_product.quantity.sum(),
            "money": by_product.value.sum(),
        }
    )
    assert len(found) == summary["shown"] == 12
    assert sorted(found.columns) == sorted(["product", *ASSORTMENT_COLUMNS]), "which are refused for others"
    lines = by_product.size()
    assert sorted(lines[found["product"]]) == sorted(lines.nlargest(12))
    assert lines[found["product"]].is_monotonic_decreasing
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name][found["product"]], err_msg=name)
    label = pictured.set_index("sku").pred_label[found["product"]]
    assert found.pred_label.tolist() == label.tolist()
    lines = mine.drop_duplicates(["basket", "product"])
    pairs = lines.merge(lines, on="basket").query("product_x != product_y").groupby(["product_x", "product_y"]).size()
    pairs, num = pairs[pairs >= 5], rows.basket.nunique()
    for row in found.itertuples():
        both = pairs[row.product] if row.product in pairs.index.get_level_values(0) else pd.Series(dtype=int)
        lift = both * num / (expected.baskets[row.product] * expected.baskets[both.index])
        worth = (both / expected.baskets[row.product] * np.log(lift))[lift > 1].sort_values(ascending=False)
        assert list(row.bought_with) == worth.index[:4].tolist()
        assert list(row.bought_with_lift) == pytest.approx(lift[list(row.bought_with)].tolist())


def test_segments_and_forecasts_are_those_that_the_runs_publish(shop, assortment):
    found, summary, _ = assortment()
    sales = read(summary["forecasts"], "forecasts").groupby("product").forecast.sum()
    np.testing.assert_allclose(found.forecast, sales[found["product"]])
    segment = read(summary["shoppers"], "shoppers").set_index("shopper").segment
    share = segment.value_counts(normalize=True)
    rows = shop[1][shop[1].time < AS_OF].drop_duplicates(["shopper", "product"])
    for row in found.itertuples():
        mine = segment[rows.shopper[rows["product"] == row.product]].value_counts(normalize=True)
        lift = mine / share[mine.index]
        assert row.segment == (mine * np.log(lift)).idxmax()
        assert row.segment_lift == pytest.approx(lift[row.segment])
    assert summary["as_of"] == AS_OF


def test_guests_buy_too(shop, assortment, tmp_path):
    """Kind of fault: what is sold is what known shoppers buy, beside a forecast of all that is sold."""
    draw = np.random.default_rng(0)
    rows = shop[1].assign(shopper=shop[1].shopper.where(draw.random(len(shop[1])) < 0.4))
    rows.to_parquet(tmp_path / "guests.parquet")
    found, summary, address = assortment(**{"interactions.uri": tmp_path / "guests.parquet"})
    rows = rows[rows.time < AS_OF]
    units, known = rows.groupby("product").quantity.sum(), rows[rows.shopper.notna()]
    np.testing.assert_allclose(found.units, units[found["product"]])
    assert found.buyers.tolist() == known.groupby("product").shopper.nunique()[found["product"]].tolist()
    assert len(read(address, "errors")) > 1000
    assert (found.buyers <= summary["num_shoppers"]).all()


def test_a_product_of_this_week_has_no_history(shop, assortment, tmp_path):
    """Kind of fault: a crash where a product was launched just now; nothing known, and 0 is published."""
    rows = shop[1]
    last = rows[rows["product"] == "p0001"].tail(1).assign(time=pd.Timestamp("2026-01-05T10:00"))
    rows = pd.concat([rows[rows["product"] != "p0001"], last])
    rows.to_parquet(tmp_path / "new.parquet")
    found, summary, address = assortment(**{"interactions.uri": tmp_path / "new.parquet", "forecast.as_of": None})
    assert summary["as_of"] == "2026-01-05"
    new = found.set_index("product").loc["p0001"]
    assert new.units == last.quantity.iloc[0]
    expected = read(summary["forecasts"], "forecasts").query("product == 'p0001'")
    if expected.forecast.isna().any():
        assert pd.isna(new.forecast)
        assert "unknown" in Path(address, "report.html").read_text()
    assert new.forecast_method == expected.method.iloc[0]


@pytest.mark.parametrize("column", ["file_name", "photo"])
def test_embeddings_of_images_have_the_labels_of_their_images(shop, assortment, retailray, tmp_path, column):
    """Without products the ids are those of the images, under any name of the column."""
    folder = shop[0]
    rows = pd.read_csv(folder / "products/catalog.csv", dtype=str).drop_duplicates("sku")
    rows = rows.assign(**{column: str(folder / "products") + "/" + rows.image})[[column]]
    rows.to_csv(tmp_path / "catalog.csv", index=False)
    model = f"{latest(str(folder / 'train'))}/bundle"
    settings = {"catalog.uri": tmp_path / "catalog.csv", "model.uri": model, "out": tmp_path / "scores"}
    settings |= {"catalog.image": column, "score.embeddings": True, "catalog.allow": json.dumps([str(folder)])}
    code, _, err = retailray("score", **settings)
    assert code == 0, err
    purchases = shop[1][shop[1]["product"].isin(pd.read_csv(folder / "products/catalog.csv", dtype=str).sku)]
    address = dict(zip(pd.read_csv(folder / "products/catalog.csv", dtype=str).drop_duplicates("sku").sku, rows[column],
                       strict=True))  # fmt: skip
    purchases.assign(product=purchases["product"].map(address)).to_parquet(tmp_path / "purchases.parquet")
    settings = {"embeddings.uri": tmp_path / "scores", "interactions.uri": tmp_path / "purchases.parquet"}
    found, _, _ = assortment(**settings)
    predictions = read(latest(str(tmp_path / "scores")), "predictions").set_index(column).pred_label
    assert found.pred_label.tolist() == predictions[found["product"]].tolist()


def test_the_page_shows_pictures_of_products_and_of_what_goes_with_them(assortment):
    found, _, address = assortment(**{"assortment.num_products": 5})
    page = Path(address, "report.html").read_text()
    for name in found["product"]:
        assert f"<h3>{name}</h3>" in page
    assert page.count("data:image/jpeg") >= 5 + sum(map(len, found.bought_with))


def test_embeddings_of_anywhere_are_enough(shop, assortment, tmp_path):
    """A folder of Parquet files has no pictures and no labels; integers stay integers."""
    rows = shop[1].assign(product=pd.factorize(shop[1]["product"], sort=True)[0] + 100)
    rows.to_parquet(tmp_path / "purchases.parquet")
    draw = np.random.default_rng(0)
    ids = [str(one) for one in sorted(set(rows["product"]))[:6]]
    (tmp_path / "vectors").mkdir()
    pd.DataFrame({"id": ids, "embedding": list(draw.normal(size=(6, 4)))}).to_parquet(tmp_path / "vectors/a.parquet")
    settings = {"embeddings.uri": tmp_path / "vectors", "interactions.uri": tmp_path / "purchases.parquet"}
    found, _, address = assortment(**settings, **{"forecast.as_of": None, "forecast.frequency": "M"})
    assert found["product"].dtype == np.int64
    assert found.pred_label.isna().all()
    assert "Bought with" in Path(address, "report.html").read_text()


def test_what_cannot_be_done_is_said_with_the_way_out(shop, assortment, tmp_path):
    rows = shop[1].assign(product="x" + shop[1]["product"].astype(str))
    rows.to_parquet(tmp_path / "others.parquet")
    told = assortment(code=1, **{"interactions.uri": tmp_path / "others.parquet"})
    assert "score with catalog.group naming the same ids" in told
    (tmp_path / "nothing").mkdir()
    assert "there are no embeddings" in assortment(code=1, **{"embeddings.uri": tmp_path / "nothing"})
    assert "no period of forecast.frequency W begins there" in assortment(code=2, **{"forecast.as_of": "2025-12-10"})


def test_on_a_store_the_same_is_published(shop, assortment, bucket):
    import fsspec

    alone, _, _ = assortment()
    with fsspec.open(f"{bucket}/purchases.parquet", "wb") as file:
        file.write((shop[0] / "purchases.parquet").read_bytes())
    _, summary, address = assortment(**{"interactions.uri": f"{bucket}/purchases.parquet"}, out=f"{bucket}/out")
    pd.testing.assert_frame_equal(alone, pd.read_parquet(f"{address}/assortment/part-00000.parquet"))
    assert summary["forecasts"].startswith(bucket)
    json.dumps(summary)
