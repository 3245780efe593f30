"""The second half of ``demo``: products with several pictures, answers at the level that is sure, similar products."""

import importlib.util
import json
from typing import Any

import pandas as pd

from retailray import storage
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
from retailray.data.synthetic_products import write_products
from retailray.retrieval.similar import similar
from retailray.runs import RunDirectory
from retailray.scoring.score import score

MISLEADING = 0.3


def show_products(
    run: RunDirectory, bundle: str, cluster: ClusterSection, *, num_images: int, seed: int
) -> dict[str, Any]:
    """Score a generated shop of a fifth as many products as the demo has images; what was planted and found.

    Returns:
        Facts for the report; ``score`` and ``similar``: addresses of the runs (without faiss there is no second).
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
    if importlib.util.find_spec("faiss") is None:  # pip install 'retailray[similar]'
        return found
    looked = similar(SimilarConfig(out=run.path("similar"), embeddings=EmbeddingsSection(uri=scored), cluster=cluster))
    nearest = pd.read_parquet(storage.join(looked, "similar")).query("rank == 1").set_index("id").neighbour
    twins = truth[truth.twin != ""].drop_duplicates("sku").set_index("sku").twin
    return found | {"similar": looked, "twins_found": int((nearest[twins.index] == twins).sum())}
