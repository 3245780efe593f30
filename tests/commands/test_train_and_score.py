"""Train, evaluate, score: everything on a real S3-protocol server, read back by pandas and DuckDB."""

import io
import json

import duckdb
import numpy as np
import pandas as pd
import pytest
import s3fs
import safetensors.torch
import torch

from retailray.data.synthetic import write_catalog, write_pretraining_set
from retailray.models.backbones import build_model
from tests.commands.helpers import events, latest, read_json, read_text, words_of

pytestmark = [pytest.mark.s3, pytest.mark.slow]
SMALL = {"transform.image_size": 32, "transform.resize_size": 36, "model.arch": "resnet18"}


@pytest.fixture(scope="module")
def shop(s3_endpoint):
    """A bucket with a catalog and weights, a bundle trained on them, and what was planted."""
    from retailray.cli import main

    s3fs.S3FileSystem().mkdir("shop")
    planted = write_catalog("s3://shop/catalog", num_images=96, label_noise=0.0, seed=1)
    torch.manual_seed(0)
    weights = build_model("resnet18", 1000).state_dict()
    with s3fs.S3FileSystem().open("shop/weights/r18.safetensors", "wb") as file:
        file.write(safetensors.torch.save(weights))
    arguments = {
        "catalog.uri": "s3://shop/catalog/catalog.csv",
        "catalog.group": "sku",
        "catalog.max_pixels": 20_000_000,
        "split.validation": 0.3,
        **SMALL,
        "model.weights": "s3://shop/weights/r18.safetensors",
        "model.trainable": "head",
        "model.registry": "s3://shop/models",
        "model.name": "products",
        "train.epochs": 2,
        "train.batch_size": 16,
        "out": "s3://shop/train",
    }
    assert main(words_of("train", arguments)) == 0
    return {"planted": planted, "weights": weights, "run": latest("s3://shop/train")}


def test_the_training_run_is_whole(shop):
    run = shop["run"]
    summary = read_json(f"{run}/run.json")
    meta = read_json(f"{run}/bundle/bundle.json")
    history = pd.read_csv(io.StringIO(read_text(f"{run}/history.csv")))
    assert history.epoch.tolist() == [1, 2]
    assert summary["best_epoch"] in (1, 2)
    assert summary["verdict"] in ("still improving", "under-fitting", "over-fitting", "good fit")
    assert summary["verdict_text"][1:] in read_text(f"{run}/report.html")
    assert len(meta["labels"]) == 8
    assert meta["labels"] == sorted(meta["labels"])
    assert meta["transform"]["crop_size"] == 32
    assert meta["config"]["catalog"]["uri"] == "s3://shop/catalog/catalog.csv"
    assert meta["libraries"]["ray"]
    # every row of the two splits was trained or validated on, or failed with a code
    rows = summary["rows"]
    failed = sum(summary["errors_by_code"].values())
    assert rows["train"] + rows["validation"] == shop["planted"]["num_rows"]
    assert history.train_rows[0] + failed == rows["train"]
    assert 0 < history.validation_rows[0] <= rows["validation"]
    fs = s3fs.S3FileSystem(use_listings_cache=False)
    assert not fs.exists(f"{run}/checkpoints".removeprefix("s3://"))
    assert fs.info(f"{run}/curves.png".removeprefix("s3://"))["size"] > 10_000
    assert "<svg" in read_text(f"{run}/report.html")


def test_only_the_head_was_trained(shop):
    state = safetensors.torch.load(s3fs.S3FileSystem().cat_file(f"{shop['run']}/bundle/model.safetensors"))
    for name, value in shop["weights"].items():
        if not name.startswith("fc."):
            assert torch.equal(state[name], value), name
    assert state["fc.weight"].abs().max() > 0.02  # drawn with a deviation of 0.01, then moved


def test_the_registered_bundle_scores_the_catalog(shop, retailray):
    version = read_json(f"{shop['run']}/run.json")["model_version"]
    code, out, err = retailray(
        "score",
        **{
            "catalog.uri": "s3://shop/catalog/catalog.csv",
            "catalog.id": "image",
            "catalog.max_pixels": 20_000_000,
            "model.uri": f"s3://shop/models/products/{version}",
            "score.top_k": 3,
            "score.rows_per_file": 40,
            "out": "s3://shop/scores",
        },
    )
    assert code == 3, "14 of some 110 rows are broken, more than 5 %"
    assert "score.max_error_rate" in err
    run = latest("s3://shop/scores")
    fs = s3fs.S3FileSystem(use_listings_cache=False)
    source = pd.read_csv("s3://shop/catalog/catalog.csv", dtype={"sku": str})
    predictions = pd.read_parquet(f"{run}/predictions")
    errors = pd.read_parquet(f"{run}/errors")
    assert sorted([*predictions.image, *errors.id]) == sorted(source.image), "every input row once"
    assert len(errors) == shop["planted"]["num_broken"]
    # input columns untouched, with their types
    merged = source.merge(predictions, on="image", suffixes=("", "_out"))
    assert (merged.sku == merged.sku_out).all()
    assert (merged.price == merged.price_out).all()
    assert predictions.price.dtype == np.float64
    expected = ["pred_label", "pred_score", "topk_labels", "topk_scores", "decision", "model_name", "model_version",
                "run_id", "scored_at"]  # fmt: skip
    assert list(predictions.columns) == [*source.columns, *expected]
    assert all(len(names) == 3 for names in predictions.topk_labels)
    assert (predictions.topk_labels.str[0] == predictions.pred_label).all()
    assert set(predictions.decision) <= {"accept", "review", "abstain"}
    assert len(fs.ls(f"{run}/predictions".removeprefix("s3://"))) > 1
    summary = read_json(f"{run}/run.json")
    counts = summary["counts"]
    assert summary["label_agreement"] == pytest.approx((predictions.label == predictions.pred_label).mean())
    assert counts["rows"] == len(source) == counts["scored"] + counts["reused"] + counts["failed"]
    assert events(out)[-1]["scored"] == len(predictions)
    queue = [json.loads(line)["data"] for line in read_text(f"{run}/review/queue.jsonl").splitlines()]
    asked = {row["item_id"] for row in queue if "uncertain" in row["reasons"]}
    assert asked == set(predictions[predictions.decision != "accept"].image)
    assert {stage["stage"] for stage in summary["stages"]} == {"fetch", "decode", "predict", "commit"}
    assert all(stage["seconds"] > 0 and 0 < stage["utilisation"] <= 1 for stage in summary["stages"])
    compared = {(row["what"], row["reference"]) for row in summary["drift"]}
    assert compared == {(what, "validation rows") for what in ("labels", "confidence", "embeddings")}


def test_duckdb_reads_the_tables_too(shop, tmp_path):
    run = latest("s3://shop/scores").removeprefix("s3://")
    fs = s3fs.S3FileSystem(use_listings_cache=False)
    fs.get(f"{run}/predictions/", str(tmp_path / "p"), recursive=True)
    fs.get(f"{run}/errors/", str(tmp_path / "e"), recursive=True)
    query = f"""select (select count(distinct image) from '{tmp_path}/p/*.parquet'),
                       (select count(distinct id) from '{tmp_path}/e/*.parquet')"""
    scored, failed = duckdb.sql(query).fetchall()[0]
    assert scored + failed == shop["planted"]["num_rows"]


def test_evaluate_aligns_labels_by_name(shop, retailray, tmp_path):
    settings = {
        "catalog.uri": "s3://shop/catalog/catalog.csv",
        "catalog.group": "sku",
        "catalog.max_pixels": 20_000_000,
        "catalog.label_map": '{"mug": "cup"}',
        "model.uri": f"{shop['run']}/bundle",
        "evaluate.bootstrap": 50,
        "out": tmp_path,
    }
    code, _, _ = retailray("evaluate", **settings)
    assert code == 0
    run = latest(str(tmp_path))
    metrics = read_json(f"{run}/metrics.json")
    source = pd.read_csv("s3://shop/catalog/catalog.csv")
    assert metrics["unknown_labels"] == {"cup": int((source.label == "mug").sum())}
    assert "mug" in metrics["labels_without_rows"]
    assert set(metrics["per_class"]) == set(source.label) - {"mug"}
    assert {"top1", "top5", "macro_f1", "ece", "num_rows", "per_class"} <= metrics.keys()
    low, high = metrics["intervals"]["top1"]
    assert low <= metrics["top1"] <= high
    # the same predictions as scoring, counted by hand
    scored = pd.read_parquet(f"{latest('s3://shop/scores')}/predictions")
    known = scored[scored.label != "mug"]
    assert metrics["num_rows"] == len(known)
    assert metrics["top1"] == pytest.approx((known.label == known.pred_label).mean(), abs=0.03)
    matrix = pd.read_csv(f"{run}/confusion.csv", index_col=0)
    assert matrix.to_numpy().sum() == len(known)


def test_class_folders_train_from_scratch_and_carry_over(retailray, tmp_path):
    """A bundle is weights for the next training; its classes are other classes."""
    write_pretraining_set(str(tmp_path / "shapes"), num_images=96, seed=0)
    common = {
        **SMALL,
        "train.epochs": 1,
        "split.validation": 0.3,
        "model.trainable": "all",
        "transform.augment": "article",
    }
    settings = {"catalog.uri": tmp_path / "shapes", "model.weights": "none", "out": tmp_path / "a", **common}
    assert retailray("train", **settings)[0] == 0
    first = latest(str(tmp_path / "a"))
    settings = {
        "catalog.uri": "s3://shop/catalog/catalog.csv",
        "model.weights": f"{first}/bundle",
        "out": tmp_path / "b",
        **common,
    }
    code, out, _ = retailray("train", **settings | {"model.trainable": "head", "catalog.max_pixels": 20_000_000})
    assert code == 0
    bundle = events(out)[-1]["bundle"]
    before, after = (safetensors.torch.load_file(f"{where}/model.safetensors") for where in (f"{first}/bundle", bundle))
    assert torch.equal(before["layer4.1.conv2.weight"], after["layer4.1.conv2.weight"])
    assert before["fc.weight"].shape != after["fc.weight"].shape


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model.arch": "resnet81"}, "did you mean resnet"),
        ({"model.weights": "s3://shop/weights/nope.pth"}, "not found"),
        (
            {"catalog.label": "sku", "catalog.validation_uri": "s3://shop/nope.csv"},
            "s3://shop/nope.csv: not found",
        ),
        ({"split.validation": 0}, "no labelled validation rows"),
        ({"cluster.num_workers": 99}, "cluster.num_workers = 99"),
        ({"cluster.use_gpu": "true"}, "0 GPUs"),
        ({"out": "s3://no-such-bucket/x"}, "s3://no-such-bucket"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(retailray, change, words):
    settings = {
        "catalog.uri": "s3://shop/catalog/catalog.csv",
        **SMALL,
        "model.weights": "none",
        "out": "s3://shop/bad",
    }
    code, _, err = retailray("train", **settings | change)
    assert code == 1
    assert words in err
    assert len(err.strip().splitlines()) == 1


def test_scoring_refuses_what_it_would_overwrite(retailray, shop, tmp_path):
    (tmp_path / "c.csv").write_text("image,pred_label\na.jpg,x\n")
    settings = {
        "catalog.uri": tmp_path / "c.csv",
        "model.uri": f"{shop['run']}/bundle",
        "out": tmp_path / "o",
    }
    code, _, err = retailray("score", **settings)
    assert (code, "pred_label" in err) == (1, True)


def test_a_catalog_of_errors_only_is_published_with_exit_3(retailray, shop, tmp_path):
    (tmp_path / "c.csv").write_text("image,n\na.jpg,1\n,2\na.jpg,3\n")
    settings = {
        "catalog.uri": tmp_path / "c.csv",
        "model.uri": f"{shop['run']}/bundle",
        "out": tmp_path / "o",
    }
    assert retailray("score", **settings)[0] == 3
    run = latest(str(tmp_path / "o"))
    errors = pd.read_parquet(f"{run}/errors")
    assert sorted(errors.error_code) == ["duplicate_id", "empty_path", "not_found"]
    empty = pd.read_parquet(f"{run}/predictions")
    assert (len(empty), empty.n.dtype) == (0, np.int64)
