"""``demo``: the whole story on a made-up catalog, with nothing but this machine.

Two models are fine-tuned by the same recipe: one starts from a backbone that was trained on other, abstract shapes, one
from random weights. Their difference on held-out, correctly labelled pictures is what the transfer was worth.
"""

import json

import numpy as np
import pandas as pd

from retailray import progress, storage
from retailray.cluster import ray_session
from retailray.config import (
    BundleSection,
    CatalogSection,
    CheckConfig,
    DemoConfig,
    EvaluateConfig,
    EvaluateSection,
    ModelSection,
    ScoreConfig,
    ScoreSection,
    SplitSection,
    TrainConfig,
    TrainSection,
    TransformSection,
)
from retailray.data.synthetic import write_catalog, write_pretraining_set
from retailray.evaluation import check, evaluate
from retailray.reports import write_demo_report
from retailray.runs import RunDirectory
from retailray.scoring import score
from retailray.training import train

ARCH, IMAGE_PX, LABEL_NOISE = "resnet18", 64, 0.05
PRETRAIN_IMAGES, PRETRAIN_EPOCHS, EPOCHS = 1920, 6, 6
LIMITS = {"max_pixels": 20_000_000}


def run_demo(config: DemoConfig) -> str:
    """Generate, check, pre-train, fine-tune, evaluate, score, report.

    Returns:
        The address of the demo's report.

    Raises:
        RetailrayError: ``out`` cannot be written, or a step failed.
    """
    watch = progress.Stopwatch()
    run = RunDirectory(config)
    at = run.path
    planted = write_catalog(
        at("catalog"), num_images=config.demo.num_images, label_noise=LABEL_NOISE, seed=config.demo.seed
    )
    # enough of other things to learn from, in proportion to the catalog
    num_pretrain = max(240, min(PRETRAIN_IMAGES, round(PRETRAIN_IMAGES * config.demo.num_images / 400)))
    write_pretraining_set(at("pretraining"), num_images=num_pretrain, seed=config.demo.seed + 1)
    catalog = CatalogSection(uri=at("catalog/catalog.csv"), id="image", group="sku", **LIMITS)
    held_out = SplitSection(validation=0.2, test=0.25, seed=config.demo.seed)
    size = TransformSection(image_size=IMAGE_PX, resize_size=IMAGE_PX + 8)
    cluster = {"cluster": config.cluster}
    with ray_session(config.cluster):
        found = check(CheckConfig(out=at("check"), catalog=catalog, split=held_out, **cluster))
        backbone = train(
            TrainConfig(
                out=at("pretrain"),
                catalog=CatalogSection(uri=at("pretraining")),
                split=SplitSection(validation=0.1),
                transform=size,
                model=ModelSection(arch=ARCH, weights="none", trainable="all"),
                train=TrainSection(epochs=PRETRAIN_EPOCHS, backbone_lr=3e-3, seed=config.demo.seed),
                **cluster,
            )
        )
        results = {}
        # the pretrained one last, so that LATEST points to it
        for name, weights in (("random weights", "none"), ("pretrained on other shapes", backbone)):
            bundle = train(
                TrainConfig(
                    out=at("train"),
                    catalog=catalog,
                    split=held_out,
                    transform=size,
                    model=ModelSection(arch=ARCH, weights=weights, trainable="all"),
                    train=TrainSection(epochs=EPOCHS, batch_size=32, seed=config.demo.seed),
                    **cluster,
                )
            )
            metrics = evaluate(
                EvaluateConfig(
                    out=at("evaluate"),
                    catalog=catalog.model_copy(update={"label": "true_label"}),
                    split=held_out,
                    model=BundleSection(uri=bundle),
                    evaluate=EvaluateSection(split="test"),
                    **cluster,
                )
            )
            results[name] = {"bundle": bundle, **metrics}
        best = max(results.values(), key=lambda result: result["top1"])["bundle"]
        results = dict(reversed(results.items()))
        scored = score(
            ScoreConfig(
                out=at("score"),
                catalog=catalog,
                model=BundleSection(uri=best),
                score=ScoreSection(max_error_rate=1.0),
                **cluster,
            )
        )
    summary = json.loads(storage.read_bytes(storage.join(scored, "run.json")))
    suspects = _label_suspects(scored)
    links = {name: _latest(at(name)) for name in ("check", "train", "evaluate", "score")}
    write_demo_report(run, planted, found, results, summary, suspects, links, catalog_uri=at("catalog"))
    run.publish({"verb": "demo", "planted": planted, "seconds": watch.seconds})
    report = run.path("report.html")
    progress.emit("look", report=report, predictions=storage.join(scored, "predictions"), bundle=best)
    watch.summary("demo", num_images=summary["counts"]["scored"], **summary["counts"], report=report)
    return report


def _latest(out: str) -> str:
    return storage.join(out, storage.read_bytes(storage.join(out, "LATEST")).decode(), "report.html")


def _label_suspects(scored: str, limit: int = 12) -> pd.DataFrame:
    """Rows whose label the model contradicts most surely: the planted wrong labels should lead."""
    table = pd.read_parquet(storage.join(scored, "predictions"))
    table["is_wrong"] = table.label != table.true_label
    doubted = table[table.label != table.pred_label].sort_values("pred_score", ascending=False)
    doubted.attrs["found_in_all"] = int(np.sum(doubted.is_wrong))
    return doubted.head(limit)
