"""``assortment``: products with their pictures, who buys them, what goes with them, how much of them will be sold."""

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from retailray import events
from retailray.assortment.purchases import Together, bought_together, buyers_by_segment, most_bought, sold_by_period
from retailray.assortment.report import write_assortment_report
from retailray.config.command_configs import AssortmentConfig, ForecastConfig, ShoppersConfig
from retailray.config.shop import OptionalEmbeddings
from retailray.data.arrow_tables import parquet_bytes
from retailray.data.interactions import Interactions, read_interactions, timestamp
from retailray.errors import CatalogError
from retailray.forecasting.forecast import forecast
from retailray.reports.run_index import publish
from retailray.results import Run
from retailray.retrieval.filters import catalog_of
from retailray.retrieval.vectors import Vectors, of_products, read_vectors
from retailray.runs import RunDirectory
from retailray.shoppers.shoppers import shoppers
from retailray.storage import join

ASSORTMENT = "assortment"  # the folder


@dataclasses.dataclass(frozen=True)
class Product:
    """A row of the table and a card of the page. ``number``: in the table of purchases; ``forecasts``: rows of
    ``forecasts/`` by period; ``segment``: the one of which the largest share more than of all buys it."""

    number: int
    name: str
    image: str
    together: list[Together]
    forecasts: pd.DataFrame
    pred_label: str | None
    pred_score: float | None
    buyers: int
    baskets: int
    units: float
    money: float | None
    segment: int | None
    segment_lift: float | None


def assortment(config: AssortmentConfig) -> str:
    """Write ``assortment/`` and ``report.html``; `forecast` and `shoppers` leave runs in folders of these names.

    Returns the address of the run directory.

    Raises:
        CatalogError: a table or column is not there, or no product with an embedding was sold. RetailrayError.
    """
    watch = events.Stopwatch()
    vectors = read_vectors(config.embeddings.uri, "auto")
    forecasts, segments = _runs(config)
    with read_interactions(config.interactions) as interactions:
        # raises where products are named otherwise than in the purchases
        of_products(vectors, interactions.products.texts(), "purchases")
        run = RunDirectory(config)
        events.emit("start", command=ASSORTMENT, run=run.address, **interactions.facts())
        given = config.forecast.as_of
        end = int((timestamp(given, "forecast.as_of") if given else interactions.day_after()).timestamp())
        products = _products(config, interactions, vectors, forecasts, segments, end)
        sold = sold_by_period(interactions, _numbers(products), config.forecast.frequency, end).to_pandas()
        names = interactions.products.texts()
        table = _table(config, interactions, products)
    run.write(f"{ASSORTMENT}/part-00000.parquet", parquet_bytes(table))
    facts: dict[str, Any] = {
        "products": len(vectors) if vectors.level == "product" else len(set(vectors.ids.to_pylist())),
        "shown": len(products),
        "as_of": forecasts.summary["as_of"],
        "frequency": config.forecast.frequency,
        "horizon": config.forecast.horizon,
        "forecast_by": forecasts.summary["method"],
        "forecasts": forecasts.address,
        "shoppers": segments.address,
        "segments": segments.summary["segments"],
        "num_shoppers": segments.summary["shoppers"],
    }
    write_assortment_report(run, config, facts, products, sold, names, vectors, segments.table("segments"))
    publish(run, {"command": ASSORTMENT, **facts, "seconds": watch.seconds})
    watch.summary(ASSORTMENT, num_images=len(products), products=len(products), run=run.address)
    return run.address


def _runs(config: AssortmentConfig) -> tuple[Run, Run]:
    """Runs of `forecast` and `shoppers` on the same tables."""
    shared: dict[str, Any] = {
        "interactions": config.interactions,
        "products": config.products,
        "embeddings": OptionalEmbeddings(uri=config.embeddings.uri),
        "cluster": config.cluster,
    }
    section = config.shoppers
    if section.as_of is None:
        section = section.model_copy(update={"as_of": config.forecast.as_of})
    with events.nested_run():
        of_sales = forecast(ForecastConfig(out=join(config.out, "forecasts"), forecast=config.forecast, **shared))
        of_shoppers = shoppers(ShoppersConfig(out=join(config.out, "shoppers"), shoppers=section, **shared))
    return Run(of_sales), Run(of_shoppers)


def _numbers(products: list[Product]) -> np.ndarray:
    return np.array([product.number for product in products], np.int64)


def _products(  # many because a product has something of all of these
    config: AssortmentConfig, interactions: Interactions, vectors: Vectors, forecasts: Run, segments: Run, end: int
) -> list[Product]:
    """The most bought ones with an embedding, the most bought first."""
    ids = vectors.ids.to_pylist()
    found = interactions.products.find(ids)
    pictured = found[found >= 0]
    names, images = interactions.products.texts(), dict(zip(ids, vectors.images.to_pylist(), strict=True))
    bought = most_bought(interactions, pictured, config.assortment.num_products, end)
    shown = bought.column("product").to_numpy()
    if not len(shown):
        raise CatalogError(f"{config.interactions.uri}: no product with an embedding was bought so far")
    together = bought_together(interactions, pictured, shown, config.assortment.together, end)
    segment = _segment_of(config, interactions, segments)
    buyers = buyers_by_segment(interactions, segment, shown, end)
    labels = _labels(vectors)
    expected = forecasts.table("forecasts")
    expected = dict(list(expected.groupby(expected[config.interactions.product].astype(str))))
    sizes = np.bincount(segment[segment >= 0], minlength=buyers.shape[1])
    rows = []
    for row, mine in zip(bought.to_pylist(), buyers, strict=True):
        name = names[row["product"]]
        label, score = labels.get(name, (None, None))
        typical, lift = _typical(mine, sizes)
        facts = {key: row[key] for key in ("buyers", "baskets", "units", "money")}
        facts |= {"pred_label": label, "pred_score": score, "segment": typical, "segment_lift": lift}
        others = together.get(row["product"], [])
        rows.append(Product(row["product"], name, images[name], others, expected[name], **facts))
    return rows


def _segment_of(config: AssortmentConfig, interactions: Interactions, segments: Run) -> np.ndarray:
    """The segment of each shopper, int64 by number of the shopper; -1: none."""
    table = segments.table("shoppers")
    found = np.full(len(interactions.shoppers), -1, np.int64)
    shopper = table[config.interactions.shopper].astype(str).to_list()
    found[interactions.shoppers.find(shopper)] = table.segment.fillna(-1)  # of who only returned something
    return found


def _typical(buyers: np.ndarray, sizes: np.ndarray) -> tuple[int | None, float | None]:
    """The segment that is over-represented most among the buyers, and by how much; None: there is one segment only.

    Args:
        buyers, sizes: shoppers by segment who buy it, and all.
    """
    if len(sizes) < 2 or not buyers.sum():
        return None, None
    share, usual = buyers / buyers.sum(), sizes / sizes.sum()
    lift = share / np.maximum(usual, 1e-12)
    best = int(np.argmax(share * np.log(np.maximum(lift, 1e-12))))
    return best, float(lift[best])


def _labels(vectors: Vectors) -> dict[str, tuple[str, float]]:
    """What the scoring run says of each product (or image): label and score."""
    if vectors.run is None:
        return {}
    run = Run(vectors.run)
    table = run.table("products" if vectors.level == "product" else "predictions")
    column = table.columns[0] if vectors.level == "product" else (catalog_of(vectors.run).id or "image")
    table = table[table.pred_label.notna()]
    scored = zip(table.pred_label.astype(str), table.pred_score.astype(float), strict=True)
    return dict(zip(table[column].astype(str), scored, strict=True))


def _table(config: AssortmentConfig, interactions: Interactions, products: list[Product]) -> pa.Table:
    """A row per product, under the name of the user's column."""
    names = interactions.products.array()
    numbers = pa.array(_numbers(products))
    same = ("image", "pred_label", "pred_score", "buyers", "baskets", "units", "money", "segment", "segment_lift")
    kinds = {"pred_label": pa.string(), "pred_score": pa.float32(), "segment": pa.int32(), "money": pa.float64()}
    columns: dict[str, Any] = {config.interactions.product: names.take(numbers)}
    for name in same:
        columns[name] = pa.array([getattr(product, name) for product in products], kinds.get(name))
    columns["bought_with"] = pa.array(
        [[names[one.product].as_py() for one in product.together] for product in products], pa.list_(names.type)
    )
    columns["bought_with_lift"] = pa.array(
        [[one.lift for one in product.together] for product in products], pa.list_(pa.float64())
    )
    columns["forecast"] = pa.array([float(product.forecasts.forecast.sum()) for product in products])
    return pa.table(columns)
