"""The second half of ``demo``: products with several pictures, answers at the level that is sure, similar products, and
who buys them."""

import importlib.util
import json
from typing import Any

import pandas as pd

from retailray import storage
from retailray.assortments.assortment import assortment
from retailray.config import (
    BundleSection,
    CatalogSection,
    ClusterSection,
    EmbeddingsSection,
    ScoreConfig,
    ScoreSection,
    SimilarConfig,
    TaxonomySection,
)
from retailray.config.command_configs import AssortmentConfig
from retailray.config.shop import ForecastSection, ProductsSection, RequiredInteractions
from retailray.data.synthetic_products import write_products
from retailray.data.synthetic_shop import make_shop, write_shop
from retailray.retrieval.similar import similar
from retailray.runs import RunDirectory
from retailray.scoring.score import score

MISLEADING, SHOPPERS = 0.3, 80


def show_products(
    run: RunDirectory, bundle: str, cluster: ClusterSection, *, num_images: int, seed: int
) -> dict[str, Any]:
    """Score a generated shop of a fifth as many products as the demo has images; what was planted and found.

    Returns:
        Facts for the report; ``score``, ``similar`` (without faiss there is none) and ``assortment`` (without
        ``retailray[applications]`` there is none): addresses of the runs.
    """
    folder = run.path("products")
    planted = write_products(folder, num_products=max(24, num_images // 5), misleading=MISLEADING, seed=seed + 2)
    scored = score(
        ScoreConfig(
            out=run.path("score_products"),
            catalog=CatalogSection(uri=storage.join(folder, "catalog.csv"), id="image", group="sku"),
            model=BundleSection(uri=bundle),
            taxonomy=TaxonomySection(uri=storage.join(folder, "taxonomy.csv")),
            score=ScoreSection(embeddings=True),
            cluster=cluster,
        )
    )
    truth = pd.read_csv(storage.join(folder, "catalog.csv"), dtype=str, keep_default_na=False)
    images = pd.read_parquet(storage.join(scored, "predictions"))
    products = pd.read_parquet(storage.join(scored, "products"))
    label_of = truth.drop_duplicates("sku").set_index("sku").true_label
    summary = json.loads(storage.read_bytes(storage.join(scored, "run.json")))
    found: dict[str, Any] = planted | {
        "score": scored,
        "top1_of_images": float((images.topk_labels.str[0] == images.true_label).mean()),
        "top1_of_products": float((products.pred_label == label_of[products.sku].to_numpy()).mean()),
        "combination": summary["products"]["combination"]["told"],
        "share_as_class": summary["taxonomy"]["share_before"],
        "share_at_some_level": summary["taxonomy"]["share"],
    }
    labels = dict(zip(label_of.index, label_of, strict=True))
    found |= {"assortment": _show_purchases(run, scored, labels, cluster, seed=seed)} if _applications() else {}
    if importlib.util.find_spec("faiss") is None:  # pip install 'retailray[similar]'
        return found
    looked = similar(SimilarConfig(out=run.path("similar"), embeddings=EmbeddingsSection(uri=scored), cluster=cluster))
    nearest = pd.read_parquet(storage.join(looked, "similar")).query("rank == 1").set_index("id").neighbour
    twins = truth[truth.twin != ""].drop_duplicates("sku").set_index("sku").twin
    return found | {"similar": looked, "twins_found": int((nearest[twins.index] == twins).sum())}


def _applications() -> bool:
    """Whether ``retailray[applications]`` is installed."""
    return all(importlib.util.find_spec(name) for name in ("lightgbm", "statsforecast"))


def _show_purchases(
    run: RunDirectory, scored: str, labels: dict[str, str], cluster: ClusterSection, *, seed: int
) -> str:
    """A year of generated purchases of these products, and the page that joins both; its run."""
    shop = make_shop(num_shoppers=SHOPPERS, labels=labels, seed=seed + 3)
    folder = run.path("purchases")
    write_shop(folder, shop)
    return assortment(
        AssortmentConfig(
            out=run.path("assortment"),
            embeddings=EmbeddingsSection(uri=scored),
            interactions=RequiredInteractions(
                uri=storage.join(folder, "purchases.parquet"), basket="basket", quantity="quantity", value="value"
            ),
            products=ProductsSection(uri=storage.join(folder, "products.csv"), category="category"),
            forecast=ForecastSection(method="mean"),
            cluster=cluster,
        )
    )
