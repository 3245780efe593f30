"""Purchases of a shop that does not exist, with known truth: tastes, seasons, promotions, launches."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import pandas as pd
import pyarrow as pa

from retailray import storage
from retailray.data.arrow_tables import parquet_bytes

CATEGORIES, STYLES, SEGMENTS = 8, 4, 4
FIRST_DAY = pd.Timestamp("2025-01-06")  # a Monday
LATE_SHARE, UNSOLD_SHARE = 0.15, 0.1  # of the products: launched on the way; not sold at all
PROMOTION_GAIN, PROMOTION_PRICE = 2.0, 0.8
SEASON = 0.4  # amplitude of a category's year


@dataclasses.dataclass(frozen=True)
class Shop:
    """``products``: ``product, category, style, price, in_stock, launched`` (day of the first sale, missing: never);
    ``purchases``: ``shopper, time, basket, product, quantity, value, promotion``; ``shoppers``: ``shopper, segment``;
    ``embeddings``: float32 ``(P, 16)``, by the products' category and style."""

    products: pd.DataFrame
    purchases: pd.DataFrame
    shoppers: pd.DataFrame
    embeddings: np.ndarray


def make_shop(
    *,
    num_shoppers: int = 200,
    num_products: int = 120,
    num_days: int = 364,
    seed: int = 0,
    labels: Mapping[str, str] | None = None,
) -> Shop:
    """Shoppers of a segment like the same two categories and one style; popular products are liked by all.

    How often a product is bought follows the likings of those who come, the season of its category and promotions
    (twice as often, at 80 % of the price).

    Args:
        labels: names of the products, and what each is, which makes its category; in place of ``num_products``.
    """
    draw = np.random.default_rng(seed)
    num_products = num_products if labels is None else len(labels)
    products = _products(draw, num_products, num_days, labels)
    segment = draw.integers(SEGMENTS, size=num_shoppers)
    liking = _likings(draw, products, segment)
    visits = draw.gamma(4, 0.05, size=num_shoppers)  # per day
    promoted = draw.random((num_days // 7 + 1, num_products)) < 0.06  # by week
    launched = products.launched.fillna(num_days + 1).to_numpy()
    phase = draw.uniform(0, 2 * np.pi, size=CATEGORIES)
    rows = []
    for day in range(num_days):
        comes = np.flatnonzero(draw.random(num_shoppers) < visits)
        season = 1 + SEASON * np.sin(2 * np.pi * day / 365 + phase)[products.category_number]
        weight = season * np.where(promoted[day // 7], PROMOTION_GAIN, 1) * (launched <= day)
        for shopper in comes.tolist():
            chances = liking[shopper] * weight
            size = min(int(draw.poisson(5)) + 1, int((chances > 0).sum()))
            if size:
                chosen = draw.choice(num_products, size=size, replace=False, p=chances / chances.sum())
                rows += [(shopper, day, product, int(draw.integers(8 * 60, 20 * 60))) for product in chosen.tolist()]
    purchases = _purchases(draw, pd.DataFrame(rows, columns=["number", "day", "item", "minute"]), products, promoted)
    shoppers = pd.DataFrame({"shopper": np.arange(num_shoppers) + 1000, "segment": segment})
    kept = ["product", "category", "style", "price", "in_stock", "launched"]
    launched_on = FIRST_DAY + pd.to_timedelta(products.launched, unit="D")
    return Shop(
        products.assign(launched=launched_on.dt.strftime("%Y-%m-%d"))[kept],
        purchases,
        shoppers,
        _embeddings(draw, products),
    )


def _products(draw: np.random.Generator, num: int, num_days: int, labels: Mapping[str, str] | None) -> pd.DataFrame:
    number = draw.permutation(num)
    late = number < LATE_SHARE * num
    unsold = number >= (1 - UNSOLD_SHARE) * num
    launched = np.where(late, draw.integers(num_days // 3, int(num_days * 0.9), size=num), 0).astype(float)
    category, style = np.arange(num) % CATEGORIES, np.arange(num) // CATEGORIES % STYLES
    names, categories = [f"P{at:05d}" for at in range(num)], [f"category {at}" for at in category]
    if labels is not None:
        names, categories = list(labels), list(labels.values())
        category = pd.factorize(pd.Series(categories), sort=True)[0] % CATEGORIES
    return pd.DataFrame(
        {
            "product": names,
            "category_number": category,
            "category": categories,
            "style": [f"style {at}" for at in style],
            "style_number": style,
            "price": np.round(draw.gamma(3, 3, size=num) + 0.5, 2),
            "in_stock": np.where(draw.random(num) < 0.9, "true", "false"),
            "launched": np.where(unsold, np.nan, launched),
        }
    )


def _likings(draw: np.random.Generator, products: pd.DataFrame, segment: np.ndarray) -> np.ndarray:
    """How much each shopper likes each product, float64 ``(S, P)``."""
    popularity = draw.gamma(1.0, 1.0, size=len(products)) + 0.1
    favourite = np.stack([[2 * at, 2 * at + 1] for at in range(SEGMENTS)])
    in_category = (products.category_number.to_numpy()[None, :, None] == favourite[segment][:, None, :]).any(2)
    in_style = products.style_number.to_numpy()[None] == segment[:, None] % STYLES
    own = draw.gamma(0.5, 2.0, size=(len(segment), len(products)))  # what one likes for no reason that others see
    return popularity * np.exp(2.0 * in_category + 1.5 * in_style) * (0.3 + own)


def _purchases(
    draw: np.random.Generator, rows: pd.DataFrame, products: pd.DataFrame, promoted: np.ndarray
) -> pd.DataFrame:
    minutes = rows.groupby(["number", "day"]).minute.transform("min")
    promotion = promoted[rows.day // 7, rows["item"]]
    quantity = draw.integers(1, 4, size=len(rows))
    price = products.price.to_numpy()[rows["item"]] * np.where(promotion, PROMOTION_PRICE, 1)
    return pd.DataFrame(
        {
            "shopper": rows.number + 1000,
            "time": (FIRST_DAY + pd.to_timedelta(rows.day, "D") + pd.to_timedelta(minutes, "min")).astype(
                "datetime64[us]"
            ),
            "basket": [f"B{number}-{day}" for number, day in zip(rows.number, rows.day, strict=True)],
            "product": products["product"].to_numpy()[rows["item"]],
            "quantity": quantity,
            "value": np.round(price * quantity, 2),
            "promotion": promotion,
        }
    )


def _embeddings(draw: np.random.Generator, products: pd.DataFrame) -> np.ndarray:
    of_category, of_style = draw.normal(size=(CATEGORIES, 16)), draw.normal(size=(STYLES, 16))
    vectors = of_category[products.category_number] + of_style[products.style_number]
    return (vectors + 0.4 * draw.normal(size=vectors.shape)).astype(np.float32)


def write_shop(folder: str, shop: Shop) -> None:
    """Write ``purchases.parquet``, ``products.csv``, ``shoppers.csv`` and ``embeddings/part-00000.parquet``."""
    table = pa.Table.from_pandas(shop.purchases, preserve_index=False)
    storage.write_bytes(storage.join(folder, "purchases.parquet"), parquet_bytes(table))
    for name, frame in (("products", shop.products), ("shoppers", shop.shoppers)):
        storage.write_bytes(storage.join(folder, f"{name}.csv"), frame.to_csv(index=False).encode())
    vectors = pa.table({"id": shop.products["product"].to_list(), "embedding": list(shop.embeddings)})
    storage.write_bytes(storage.join(folder, "embeddings/part-00000.parquet"), parquet_bytes(vectors))
