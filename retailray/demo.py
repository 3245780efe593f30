"""``demo``: the whole pipeline on a generated catalog, on this machine alone.

Two models are fine-tuned by the same recipe: one starts from a backbone that was trained on other, abstract shapes, one
from random weights. Their difference on held-out, correctly labelled pictures is what the transfer was worth.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from retailray import events, storage
from retailray.config import (
    BundleSection,
    CatalogSection,
    CheckConfig,
    CheckSection,
    ClusterSection,
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
from retailray.demo_products import show_products
from retailray.evaluation.evaluate import evaluate
from retailray.execution import start_executor
from retailray.quality.check import check
from retailray.reports.page import picture_facts, render, thumbnails
from retailray.reports.run_index import publish
from retailray.runs import RunDirectory, latest_run
from retailray.scoring.score import score
from retailray.training.train import train

# a network that two CPU cores train in a minute or two: of torchvision's, none of its accuracy learns faster
ARCH, IMAGE_PX, LABEL_NOISE = "shufflenet_v2_x1_0", 64, 0.05
PRETRAIN_IMAGES, EPOCHS = 1920, 8
MAX_PIXELS = 20_000_000  # the planted bomb is larger
LATER = ("similar", "assortment")  # pages that need further packages
STARTS = ("pretrained on other shapes", "random weights")


def run_demo(config: DemoConfig) -> str:
    """Generate, check, pre-train, fine-tune, evaluate, score, report.

    Returns:
        The address of the demo's report.

    Raises:
        RetailrayError: ``out`` cannot be written, or a step failed.
    """
    watch = events.Stopwatch()
    run = RunDirectory(config)
    events.emit("start", command="demo", run=run.address, images=config.demo.num_images)
    planted = _generate(config, run)
    # one Ray for all, if any
    with events.nested_run(), start_executor(config.cluster, num_images=config.demo.num_images) as executor:
        run.machines = executor.machines
        where = {"out": run.path("pretrain"), "cache": run.path("cache")}
        backbone = pretrain(run.path("pretraining"), **where, seed=config.demo.seed, cluster=config.cluster)
        found = _check(config, run, backbone)
        results = {}
        for start in reversed(STARTS):  # the pretrained one last, so that LATEST points to it
            results[start] = _fine_tune(config, run, backbone if start == STARTS[0] else "none")
        best = max(results.values(), key=lambda result: result["top1"])["bundle"]
        scored = score(
            ScoreConfig(
                out=run.path("score"),
                catalog=_catalog(run),
                model=BundleSection(uri=best),
                score=ScoreSection(max_error_rate=1.0),
                cluster=config.cluster,
            )
        )
        sizes = {"num_images": config.demo.num_images, "seed": config.demo.seed}
        products = show_products(run, best, config.cluster, **sizes)
    summary = json.loads(storage.read_bytes(storage.join(scored, "run.json")))
    links = {
        name: storage.join(latest_run(run.path(name)), "report.html")
        for name in ("check", "train", "evaluate", "score", "score_products")
    }
    links |= {name: storage.join(products[name], "report.html") for name in LATER if name in products}
    suspects = _label_suspects(scored)
    ordered = {start: results[start] for start in STARTS}
    _write_report(run, planted, found, ordered, summary, suspects, links, products)
    publish(run, {"command": "demo", "planted": planted, "seconds": watch.seconds})
    report = run.path("report.html")
    events.emit("look", report=report, predictions=storage.join(scored, "predictions"), bundle=best)
    watch.summary("demo", num_images=summary["counts"]["scored"], **summary["counts"], report=report)
    return report


def _generate(config: DemoConfig, run: RunDirectory) -> dict[str, Any]:
    """Write the catalog and, in proportion to it, other things to learn from; return what was planted."""
    size, seed = config.demo.num_images, config.demo.seed
    planted = write_catalog(run.path("catalog"), num_images=size, label_noise=LABEL_NOISE, seed=seed)
    num_pretrain = max(240, min(PRETRAIN_IMAGES, round(PRETRAIN_IMAGES * size / 400)))
    write_pretraining_set(run.path("pretraining"), num_images=num_pretrain, seed=seed + 1)
    events.emit("generated", catalog=run.path("catalog"), **planted)
    return planted


def _check(config: DemoConfig, run: RunDirectory, backbone: str) -> dict[str, Any]:
    """Check the catalog, with its labels: by a model that has seen none of it."""
    found = check(
        CheckConfig(
            out=run.path("check"),
            catalog=_catalog(run),
            split=_held_out(config),
            check=CheckSection(label_errors=True, model=backbone),
            cluster=config.cluster,
        )
    )
    ranked = pd.read_parquet(storage.join(latest_run(run.path("check")), "label_errors.parquet"))
    suspicious = ranked[ranked.suspicious]
    truth = pd.read_csv(run.path("catalog", "catalog.csv"), dtype=str).drop_duplicates("image").set_index("image")
    wrong = int((suspicious.label.to_numpy() != truth.true_label[suspicious.image].to_numpy()).sum())
    return found | {"num_suspicious": len(suspicious), "num_suspicious_wrong": wrong}


def _catalog(run: RunDirectory, *, label: str = "label") -> CatalogSection:
    uri = run.path("catalog", "catalog.csv")
    return CatalogSection(uri=uri, id="image", group="sku", label=label, max_pixels=MAX_PIXELS)


def _held_out(config: DemoConfig) -> SplitSection:
    return SplitSection(validation=0.2, test=0.25, seed=config.demo.seed)


def _transform() -> TransformSection:
    return TransformSection(image_size=IMAGE_PX, resize_size=IMAGE_PX + 8)


def pretrain(shapes: str, *, out: str, cache: str, seed: int, cluster: ClusterSection) -> str:
    """Train a network on class folders of pictures that are none of the catalog's; the address of its bundle."""
    return train(
        TrainConfig(
            out=out,
            catalog=CatalogSection(uri=shapes),
            split=SplitSection(validation=0.1),
            transform=_transform(),
            model=ModelSection(arch=ARCH, weights="none", trainable="all"),
            train=TrainSection(epochs=EPOCHS, batch_size=32, backbone_lr=5e-3, seed=seed, cache_uri=cache),
            cluster=cluster,
        )
    )


def _fine_tune(config: DemoConfig, run: RunDirectory, weights: str) -> dict[str, Any]:
    """Train on the noisy labels, measure on the true ones of held-out products."""
    bundle = train(
        TrainConfig(
            out=run.path("train"),
            catalog=_catalog(run),
            split=_held_out(config),
            transform=_transform(),
            model=ModelSection(arch=ARCH, weights=weights, trainable="all"),
            train=TrainSection(epochs=EPOCHS, batch_size=16, seed=config.demo.seed, cache_uri=run.path("cache")),
            cluster=config.cluster,
        )
    )
    metrics = evaluate(
        EvaluateConfig(
            out=run.path("evaluate"),
            catalog=_catalog(run, label="true_label"),
            split=_held_out(config),
            model=BundleSection(uri=bundle),
            evaluate=EvaluateSection(split="test"),
            cluster=config.cluster,
        )
    )
    return {"bundle": bundle, **metrics}


def _label_suspects(scored: str, limit: int = 12) -> pd.DataFrame:
    """Rows whose label the model contradicts most surely: the planted wrong labels should lead."""
    table = pd.read_parquet(storage.join(scored, "predictions"))
    table["is_wrong"] = table.label != table.true_label
    doubted = table[table.label != table.pred_label].sort_values("pred_score", ascending=False)
    doubted.attrs |= {"found_in_all": int(np.sum(doubted.is_wrong)), "doubted": len(doubted)}
    return doubted.head(limit)


def _write_report(  # many because the page tells of every step
    run: RunDirectory,
    planted: Mapping[str, object],
    found: Mapping[str, Any],
    results: Mapping[str, Mapping[str, object]],
    summary: Mapping[str, object],
    suspects: pd.DataFrame,
    links: Mapping[str, str],
    products: Mapping[str, Any],
) -> None:
    """Write ``report.html`` into the run directory. ``results``: metrics by where the weights came from."""
    catalog = _catalog(run)
    failed = found["num_rows"] - found["num_images_ok"]
    num_found, num_doubted = suspects.attrs["found_in_all"], suspects.attrs["doubted"]
    rows = [
        ("broken or missing files", planted["num_broken"], failed),
        ("exact copies", planted["num_copies"], found["num_exact_duplicates"]),
        ("images without a row", planted["num_orphans"], found["num_orphans"]),
        (f"wrong labels, of {num_doubted} that the model doubts", planted["num_wrong_labels"], num_found),
        (
            f"wrong labels, of {found['num_suspicious']} that check calls suspicious",
            planted["num_wrong_labels"],
            found["num_suspicious_wrong"],
        ),
    ]
    page = render(
        "demo.html.j2",
        title="retailray demo",
        subtitle="A generated catalog: checked, learned, measured, scored, published",
        run_id=run.run_id,
        found=found,
        planted=rows,
        results=results,
        counts=summary["counts"],
        decisions=summary["decisions"],
        products=products,
        doubted=_doubted(suspects, catalog),
        assortment=_relative(links["assortment"], run.address) if "assortment" in links else None,
        links={name: _relative(link, run.address) for name, link in links.items()},
    )
    run.write("report.html", page)


def _doubted(suspects: pd.DataFrame, catalog: CatalogSection) -> list[dict[str, object]]:
    """Pictures of rows whose label the model doubts, and what it says of them."""
    pictures = thumbnails([storage.join(storage.parent(catalog.uri), image) for image in suspects.image], catalog)
    return [
        {
            "picture": picture,
            "caption": f"label {row.label} · model {row.pred_label} {row.pred_score:.2f} · "
            f"{'label is wrong' if row.is_wrong else 'label is right'}",
            "facts": picture_facts(
                image=row.image, label=row.label, predicted=row.pred_label, confidence=row.pred_score
            ),
        }
        for picture, row in zip(pictures, suspects.itertuples(), strict=True)
    ]


def _relative(link: str, base: str) -> str:
    return link if storage.is_uri(link) else os.path.relpath(link, base)
