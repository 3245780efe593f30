"""``assortment``: products with their pictures, who buys them, what goes with them, how much of them will be sold."""

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from retailray import events
from retailray.assortments.purchases import Together, bought_together, buyers_by_segment, buyers_of, most_bought
from retailray.assortments.report import write_assortment_report
from retailray.config.command_configs import AssortmentConfig, ForecastConfig, ShoppersConfig
from retailray.config.shop import OptionalEmbeddings
from retailray.data.arrow_tables import parquet_bytes
from retailray.data.interactions import Interactions, read_interactions, timestamp
from retailray.data.names import typed
from retailray.data.sales import Sales, sales_of
from retailray.errors import CatalogError, StorageError
from retailray.forecasting.forecast import forecast
from retailray.forecasting.series import known_sales, make_series
from retailray.reports.run_index import publish
from retailray.results import Run
from retailray.retrieval.vectors import Vectors, read_vectors
from retailray.runs import RunDirectory
from retailray.segmentation.shoppers import shoppers
from retailray.storage import join

ASSORTMENT = "assortment"  # the folder


@dataclasses.dataclass(frozen=True)
class Product:
    """A row of the table and a card of the page. ``history``: units by first day of the period, NaN: unknown;
    ``forecasts``: rows of ``forecasts/`` by period; ``segment``: whose share of the buyers exceeds its share of all
    shoppers most; its ``segment_lift``: the one share by the other."""

    name: str
    image: str
    pred_label: str | None
    pred_score: float | None
    units: float
    money: float | None
    buyers: int
    baskets: int
    segment: int | None
    segment_lift: float | None
    together: list[Together]
    history: pd.Series
    forecasts: pd.DataFrame

    @property
    def forecast(self) -> float | None:
        """Units of all periods; None: unknown."""
        total = self.forecasts.forecast.sum(skipna=False) if len(self.forecasts) else np.nan
        return float(total) if np.isfinite(total) else None

    @property
    def forecast_method(self) -> str | None:
        return str(self.forecasts.method.iloc[0]) if len(self.forecasts) else None


def assortment(config: AssortmentConfig) -> str:
    """Write ``assortment/``, ``errors/`` and ``report.html``; `shoppers` and `forecast` leave runs in folders below
    ``out``.

    Returns the address of the run directory.

    Raises:
        CatalogError: a table or column is not there, or no product with an embedding was sold. RetailrayError.
    """
    watch = events.Stopwatch()
    vectors = read_vectors(config.embeddings.uri, "auto")
    segments, forecasts = _runs(config)
    run = RunDirectory(config)
    events.emit("start", command=ASSORTMENT, run=run.address)
    # forecasts are of all that is sold, also to guests; who buys what is known of shoppers
    with read_interactions(config.interactions, by_shopper=False) as everything:
        sales = sales_of(everything)
        given = config.forecast.as_of
        end = int((timestamp(given, "forecast.as_of") if given else everything.day_after()).timestamp())
        bought = most_bought(everything, vectors.ids.to_pylist(), config.assortment.num_products, end)
    if not bought:
        raise CatalogError(f"{config.interactions.uri}: no product with an embedding was bought so far")
    with read_interactions(config.interactions) as known:
        products = _products(config, known, vectors, bought, (segments, forecasts), _history(config, sales), end)
    run.write(f"{ASSORTMENT}/part-00000.parquet", parquet_bytes(_table(config, sales.kind, products)))
    run.write("errors/part-00000.parquet", parquet_bytes(known.bad.table()))
    facts: dict[str, Any] = {
        "products": len(vectors),
        "shown": len(products),
        "as_of": forecasts.summary["as_of"],
        "frequency": config.forecast.frequency,
        "horizon": config.forecast.horizon,
        "forecasts": forecasts.address,
        "shoppers": segments.address,
        "segments": segments.summary["segments"],
        "num_shoppers": segments.summary["shoppers"],
    }
    write_assortment_report(run, config, facts, products, vectors, segments.table("segments"))
    publish(run, {"command": ASSORTMENT, **facts, "seconds": watch.seconds})
    watch.summary(ASSORTMENT, num_images=len(products), products=len(products), run=run.address)
    return run.address


def _runs(config: AssortmentConfig) -> tuple[Run, Run]:
    """Runs of `shoppers` and `forecast` on the same tables, as of the same day."""
    shared: dict[str, Any] = {
        "interactions": config.interactions,
        "products": config.products,
        "embeddings": OptionalEmbeddings(uri=config.embeddings.uri),
        "cluster": config.cluster,
    }
    section = config.shoppers.model_copy(update={"as_of": config.forecast.as_of})
    with events.nested_run():
        of_shoppers = shoppers(ShoppersConfig(out=join(config.out, "shoppers"), shoppers=section, **shared))
        of_sales = forecast(ForecastConfig(out=join(config.out, "forecasts"), forecast=config.forecast, **shared))
    return Run(of_shoppers), Run(of_sales)


def _history(config: AssortmentConfig, sales: Sales) -> dict[str, pd.Series]:
    """Units by first day of the period, of each product as `forecast` sees them, by name."""
    frequency = config.forecast.frequency
    known, end = known_sales(sales, frequency, config.forecast.as_of)
    series, _ = make_series(known, frequency, end, np.full(len(known.names), -1))
    values = zip(known.names, series.values, strict=True)
    return {name: pd.Series(units, index=series.starts) for name, units in values}


def _products(  # many because a product has something of all of these
    config: AssortmentConfig,
    known: Interactions,
    vectors: Vectors,
    bought: dict[str, tuple[float, float | None]],
    runs: tuple[Run, Run],
    history: dict[str, pd.Series],
    end: int,
) -> list[Product]:
    """In the order of ``bought``: units and money by name."""
    segments, forecasts = runs
    ids, shown = vectors.ids.to_pylist(), list(bought)
    images = dict(zip(ids, vectors.images.to_pylist(), strict=True))
    together = bought_together(known, ids, shown, config.assortment.together, end)
    segment = _segment_of(config, known, segments)
    sizes = np.bincount(segment[segment >= 0])
    in_segments, of_shoppers = buyers_by_segment(known, segment, shown, end), buyers_of(known, shown, end)
    labels, expected = _labels(vectors, set(shown)), forecasts.table("forecasts")
    by_name = expected.groupby(expected[config.interactions.product].astype(str))
    rows = []
    for name, (units, money) in bought.items():
        label, score = labels.get(name, (None, None))
        buyers, baskets = of_shoppers.get(name, (0, 0))
        typical, lift = _typical(in_segments.get(name), sizes)
        facts = (label, score, units, money, buyers, baskets, typical, lift, together.get(name, []))
        past = history.get(name, pd.Series(dtype=float))
        following = by_name.get_group(name) if name in by_name.groups else expected.head(0)
        rows.append(Product(name, images[name], *facts, past, following))
    return rows


def _segment_of(config: AssortmentConfig, known: Interactions, segments: Run) -> np.ndarray:
    """The segment of each shopper, int64 by number of the shopper; -1: none."""
    table = segments.table("shoppers")
    found = np.full(len(known.shoppers), -1, np.int64)
    shopper = table[config.interactions.shopper].astype(str).to_list()
    found[known.shoppers.find(shopper)] = table.segment.fillna(-1)  # of who only returned something
    return found


def _typical(buyers: np.ndarray | None, sizes: np.ndarray) -> tuple[int | None, float | None]:
    """The segment of :class:`Product`, and its lift; None: there is one segment only, or nobody is known to buy it.

    Args:
        buyers, sizes: shoppers by segment who buy it, and all.
    """
    if buyers is None or len(sizes) < 2:
        return None, None
    share, usual = buyers / buyers.sum(), sizes / sizes.sum()
    lift = share / np.maximum(usual, 1e-12)
    best = int(np.argmax(share * np.log(np.maximum(lift, 1e-12))))
    return best, float(lift[best])


def _labels(vectors: Vectors, wanted: set[str]) -> dict[str, tuple[str, float]]:
    """Label and score that the scoring run has of products (or images), by id; nothing where it has no such table."""
    if vectors.run is None:
        return {}
    try:
        run = Run(vectors.run)
        table = run.table("products" if vectors.level == "product" else "predictions")
    except StorageError as error:
        events.emit("warning", note=f"products have no labels: {error}")
        return {}
    if "values" in run.summary:
        events.emit("warning", note=f"products have no labels: the model of {vectors.run} predicts numbers")
        return {}
    table = table[table.pred_label.notna()]
    # of products the first column, of images the one that the catalog names them by
    for column in table.columns[:1] if vectors.level == "product" else table.columns:
        names = table[column].astype(str)
        there = names.isin(wanted).to_numpy()
        if there.any():
            scored = zip(table.pred_label[there].astype(str), table.pred_score[there].astype(float), strict=True)
            return dict(zip(names[there], scored, strict=True))
    return {}


def _table(config: AssortmentConfig, kind: pa.DataType, products: list[Product]) -> pa.Table:
    """A row per product, under the name of the user's column. ``kind``: type of the ids."""
    names = ("image", "pred_label", "pred_score", "units", "money", "buyers", "baskets", "segment", "segment_lift",
             "forecast", "forecast_method")  # fmt: skip
    kinds = {"pred_label": pa.string(), "pred_score": pa.float32(), "segment": pa.int32(), "money": pa.float64(),
             "segment_lift": pa.float64(), "forecast": pa.float64(), "forecast_method": pa.string()}  # fmt: skip
    columns: dict[str, Any] = {config.interactions.product: typed([product.name for product in products], kind)}
    for name in names:
        columns[name] = pa.array([getattr(product, name) for product in products], kinds.get(name))
    offsets = np.cumsum([0, *(len(product.together) for product in products)]).astype(np.int32)
    others = [one for product in products for one in product.together]
    columns["bought_with"] = pa.ListArray.from_arrays(offsets, typed([one.product for one in others], kind))
    lifts = pa.array([one.lift for one in others], pa.float64())
    columns["bought_with_lift"] = pa.ListArray.from_arrays(offsets, lifts)
    return pa.table(columns)
