"""Fit the methods on a table of purchases."""

import hashlib
import importlib.metadata
import json
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pyarrow as pa

from retailray import events
from retailray.config.command_configs import RecommendConfig
from retailray.data.interactions import DAY_S, Interactions
from retailray.recommendation.choosing import Setting, choose
from retailray.recommendation.histories import Purchases
from retailray.recommendation.methods import WINDOWS, fit_methods
from retailray.recommendation.state import Fitted
from retailray.retrieval.vectors import Vectors, of_products

MAX_REFERENCE = 20_000  # shoppers whose baskets others are compared with


def fit(config: RecommendConfig, interactions: Interactions, vectors: Vectors | None, day: float, key: str) -> Fitted:
    """Choose a method and fit all of them on the purchases before a day."""
    products, pictures = interactions.products.texts(), None
    if vectors is not None:
        products, pictures = of_products(vectors, products, "purchases")

    def popularity(before: float) -> dict[str, np.ndarray]:
        return _popularity(interactions, before, len(products))

    reference, compared = _reference(interactions, config.recommend.seed)
    section = config.recommend
    setting = Setting(
        section.horizon_days, section.top_k, section.repeat, section.method, int(joblib.cpu_count()), section.seed
    )
    choice = choose(reference, popularity, day, setting, pictures=pictures)
    methods = fit_methods(reference, popularity(day), day, pictures=pictures)
    for name in choice.measured:
        events.emit("method", method=name, **choice.measured[name][setting.group])
    if choice.note:
        events.emit("warning", note=choice.note)
    days = [str(pd.Timestamp(one, unit="D").date()) for one in choice.days]
    facts: dict[str, object] = {
        "measured": choice.measured,
        "measured_on": days,
        "note": choice.note,
        "gain": choice.gain,
    }
    return Fitted(methods, choice.ranker, choice.method, products, compared, day, key, facts)


def _popularity(interactions: Interactions, before: float, num_products: int) -> dict[str, np.ndarray]:
    """Baskets with each product, by window before a day."""
    found = {}
    for name, days in WINDOWS.items():
        first = max(before - days, -1e6)
        counted = interactions.table(
            f"select product, count(*) as baskets from bought where time >= {first * DAY_S:.0f} and "
            f"time < {before * DAY_S:.0f} group by product"
        )
        values = np.zeros(num_products, np.float32)
        values[counted.column("product").to_numpy()] = counted.column("baskets").to_numpy()
        found[name] = values
    return found


def _reference(interactions: Interactions, seed: int) -> tuple[Purchases, list[str]]:
    """All purchases of at most :data:`MAX_REFERENCE` shoppers, who are drawn, and their names."""
    shoppers = interactions.table("select distinct shopper from bought order by shopper").column(0).to_numpy()
    drawn = np.random.default_rng(seed).permutation(shoppers)[:MAX_REFERENCE]
    sample = pa.table({"shopper": drawn, "owner": np.arange(len(drawn))})
    interactions.db.register("sample", sample)
    rows = interactions.table(
        f"select owner, product, time / {float(DAY_S)} as day, basket from bought join sample using (shopper) "
        "order by owner, product, time, basket"
    )
    interactions.db.unregister("sample")
    owner, product, days, basket = (rows.column(name).to_numpy() for name in ("owner", "product", "day", "basket"))
    names = interactions.shoppers.texts()
    found = Purchases(owner, product.astype(np.int64), days, basket, len(drawn))
    return found, [names[number] for number in drawn.tolist()]


def model_key(config: RecommendConfig, vectors: Vectors | None) -> str:
    """Of all that fitted methods depend on, but for purchases."""
    interactions = config.interactions.model_dump(exclude={"uri"})
    section = {name: getattr(config.recommend, name) for name in ("method", "horizon_days", "seed", "repeat", "top_k")}
    pictures = hashlib.blake2b(vectors.values.tobytes() + "\n".join(vectors.ids.to_pylist()).encode()).hexdigest() if (
        vectors is not None
    ) else None  # fmt: skip
    return digest([interactions, section, pictures, importlib.metadata.version("retailray")])


def digest(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
