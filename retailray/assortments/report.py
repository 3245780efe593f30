"""The page of ``assortment``: a card for each product."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from retailray.config.command_configs import AssortmentConfig
from retailray.reports import plots
from retailray.reports.charts import Chart
from retailray.reports.page import picture_facts, render, thumbnails
from retailray.retrieval.filters import catalog_of
from retailray.retrieval.vectors import Vectors
from retailray.runs import RunDirectory

if TYPE_CHECKING:
    from retailray.assortments.assortment import Product

CARDS = 200  # of a page, at most; the table has all products
HISTORY = 26  # periods before the first that is forecast
PERIODS = {"D": "days", "W": "weeks", "M": "months"}
NAMED = 2  # categories, or products, that stand for a segment


def write_assortment_report(
    run: RunDirectory,
    config: AssortmentConfig,
    facts: dict[str, Any],
    products: "list[Product]",
    vectors: Vectors,
    segments: pd.DataFrame,
) -> None:
    """Write ``report.html``. ``segments``: as `shoppers` publishes them."""
    products = products[:CARDS]
    pictures, told = _pictures(products, vectors), _told(segments)
    page = render(
        "assortment.html.j2",
        title="Products and their shoppers",
        subtitle=config.interactions.uri,
        run_id=run.run_id,
        facts=facts,
        period=PERIODS[config.forecast.frequency],
        with_pictures=bool(pictures),
        cards=[_card(product, pictures, told) for product in products],
    )
    run.write("report.html", page)


def _card(product: "Product", pictures: dict[str, str | None], told: dict[int, str]) -> dict[str, object]:
    others = [{"name": one.product, "uri": pictures.get(one.product), "lift": one.lift} for one in product.together]
    segment = None
    if product.segment is not None:
        segment = {"number": product.segment, "lift": product.segment_lift, "told": told[product.segment]}
    return {
        "product": product,
        "uri": pictures.get(product.name),
        "facts": picture_facts(product=product.name, label=product.pred_label, score=product.pred_score),
        "others": others,
        "segment": segment,
        "chart": _chart(product) if product.forecast is not None else None,
    }


def _pictures(products: "list[Product]", vectors: Vectors) -> dict[str, str | None]:
    """Thumbnails by name of all products that the page shows; none where the embeddings are no run's."""
    if vectors.run is None:
        return {}
    images = dict(zip(vectors.ids.to_pylist(), vectors.images.to_pylist(), strict=True))
    wanted = [product.name for product in products]
    wanted += [one.product for product in products for one in product.together]
    wanted = list(dict.fromkeys(wanted))
    copies = sum(1 + len(product.together) for product in products)
    shown = thumbnails([images[name] for name in wanted], catalog_of(vectors.run), of_page=copies)
    return dict(zip(wanted, shown, strict=True))


def _told(segments: pd.DataFrame) -> dict[int, str]:
    """A few words for each segment: what it buys more than others do."""
    found = {}
    for row in segments.to_dict("records"):
        words = list(row["categories"]) or list(row["products"])
        found[int(row["segment"])] = ", ".join(words[:NAMED])
    return found


def _chart(product: "Product") -> Chart:
    expected = product.forecasts.sort_values("horizon")
    history = product.history.loc[product.history.first_valid_index() :].iloc[-HISTORY:]
    return plots.forecast(
        [str(day) for day in history.index.to_numpy("datetime64[D]")],
        history.to_numpy(float),
        [str(day) for day in expected.date],
        expected.forecast.to_numpy(float),
        expected.low.to_numpy(np.float64, na_value=np.nan),
        expected.high.to_numpy(np.float64, na_value=np.nan),
    )
