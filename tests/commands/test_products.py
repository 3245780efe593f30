"""One row for every product: recomputed from the published predictions of its images, by formulas alone."""

import json
import shutil
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest

from retailray.data.synthetic import write_catalog
from tests.commands.helpers import events, latest, read_json, words_of
from tests.oracles import audit_products

pytestmark = pytest.mark.slow
LIMITS = {"catalog.max_pixels": 20_000_000, "score.max_error_rate": 1}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A catalog of products with two images, and a model that was trained on it."""
    from retailray.cli import main

    folder = tmp_path_factory.mktemp("products")
    write_catalog(str(folder / "catalog"), num_images=240, label_noise=0.0, seed=3)
    settings = {
        "catalog.uri": folder / "catalog/catalog.csv", "catalog.group": "sku", "split.validation": 0.5,
        "catalog.max_pixels": 20_000_000, "transform.image_size": 32, "transform.resize_size": 36,
        "model.arch": "cnn3", "train.epochs": 6, "train.batch_size": 16, "out": folder / "train",
    }  # fmt: skip
    assert main(words_of("train", settings)) == 0
    return folder, f"{latest(str(folder / 'train'))}/bundle"


@pytest.fixture
def score(shop, retailray):
    def run(catalog, out, *, code=0, **changes):
        settings = {"catalog.uri": catalog, "catalog.group": "sku", "model.uri": shop[1], "score.top_k": 8, "out": out}
        done, told, err = retailray("score", **settings | LIMITS | changes)
        assert done == code, err
        return latest(str(out)), events(told)

    return run


def tables(run):
    products = duckdb.sql(f"from '{run}/products/*.parquet'").df()
    return products, duckdb.sql(f"from '{run}/predictions/*.parquet'").df()


def test_every_product_has_the_answer_that_its_images_give(shop, score, tmp_path):
    catalog = shop[0] / "catalog/catalog.csv"
    run, told = score(catalog, tmp_path)
    products, predictions = tables(run)
    rows = pd.read_csv(catalog, dtype={"sku": str})
    summary = read_json(f"{run}/run.json")["products"]
    assert summary["combination"]["chosen_on"] == "validation products with several images"
    assert not audit_products(products, predictions, rows, summary, group="sku")
    assert set(products.num_images) >= {0, 1, 2}, "products of every kind"
    assert summary["products"] == len(products) == rows.sku.nunique()
    assert summary["decisions"] == products.decision.value_counts().sort_index().to_dict()
    assert summary["several_images"] == (rows.sku.value_counts() > 1).sum()
    stamp = products[["model_name", "model_version", "run_id"]].drop_duplicates().values.tolist()
    assert stamp == predictions[["model_name", "model_version", "run_id"]].drop_duplicates().values.tolist()
    assert list(products.columns[:2]) == ["sku", "pred_label"]
    assert [event["products"] for event in told if event["event"] == "products"] == [len(products)]
    assert "Products" in Path(run, "report.html").read_text()


def test_a_night_without_changes_publishes_the_same_products(shop, score, tmp_path):
    catalog = shop[0] / "catalog/catalog.csv"
    first, _ = score(catalog, tmp_path)
    before, _ = tables(first)
    second, told = score(catalog, tmp_path)
    after, _ = tables(second)
    assert told[-1]["scored"] == 0
    pd.testing.assert_frame_equal(before.drop(columns="run_id"), after.drop(columns="run_id"))


def test_numbers_of_products_stay_numbers_and_rows_without_one_are_products_of_their_own(shop, score, tmp_path):
    rows = pd.read_csv(shop[0] / "catalog/catalog.csv", dtype={"sku": str}).head(20)
    rows["image"] = [str(shop[0] / "catalog" / name) for name in rows.image]
    rows["number"] = rows.sku.astype(int)
    rows.drop(columns="sku").to_parquet(tmp_path / "numbers.parquet")
    run, _ = score(tmp_path / "numbers.parquet", tmp_path / "a", **{"catalog.group": "number"})
    products, predictions = tables(run)
    assert products.number.dtype == predictions.number.dtype == np.int64
    assert products.number.tolist() == sorted(set(rows.number))
    rows["number"] = rows.number.astype("Int64").mask(rows.index == 3)
    rows.drop(columns="sku").to_parquet(tmp_path / "gaps.parquet")
    run, _ = score(tmp_path / "gaps.parquet", tmp_path / "b", **{"catalog.group": "number"})
    products, _ = tables(run)
    assert set(products.number) == {str(number) for number in rows.number.dropna()} | {rows.image[3]}
    assert products.num_images.sum() + products.num_failed.sum() == 20


def test_a_record_with_several_images_is_a_product(shop, score, tmp_path):
    rows = pd.read_csv(shop[0] / "catalog/catalog.csv", dtype={"sku": str}).head(40)
    rows["image"] = [str(shop[0] / "catalog" / name) for name in rows.image]
    joined = rows.groupby("sku").agg(pictures=("image", ",".join)).reset_index()
    joined.to_csv(tmp_path / "records.csv", index=False)
    settings = {"catalog.id": "sku", "catalog.image": "pictures", "catalog.image_separator": ",", "catalog.group": ""}
    run, _ = score(tmp_path / "records.csv", tmp_path / "out", **settings)
    products, predictions = tables(run)
    assert products.sku.tolist() == joined.sku.tolist()
    assert products.num_images.tolist() == [2] * 20
    assert set(products.best_image) <= set(rows.image)
    assert len(predictions) == 40


def test_without_products_there_is_no_table_of_them(shop, score, tmp_path):
    run, _ = score(shop[0] / "catalog/catalog.csv", tmp_path, **{"catalog.group": ""})
    assert not Path(run, "products").exists()
    assert read_json(f"{run}/run.json")["products"] is None


def test_a_product_of_ten_thousand_images_is_one_row(shop, score, tmp_path):
    """Kind of fault: memory or pieces that take a product for small."""
    rows = pd.read_csv(shop[0] / "catalog/catalog.csv", dtype={"sku": str}).head(50)
    rows["image"] = [str(shop[0] / "catalog" / name) for name in rows.image]
    many = pd.concat([rows] * 200).assign(sku="all of them").reset_index(drop=True)
    many["id"] = [f"row {number}" for number in range(len(many))]
    few = rows.head(3).assign(sku=["a", "b", "zz"], id=["x", "y", "z"])
    pd.concat([many, few]).to_csv(tmp_path / "c.csv", index=False)
    run, _ = score(tmp_path / "c.csv", tmp_path / "out", **{"catalog.id": "id"})
    products, predictions = tables(run)
    assert products.sku.tolist() == ["a", "all of them", "b", "zz"]
    assert products.num_images.tolist() == [1, 10_000, 1, 1]
    once = predictions[predictions.sku == "all of them"].drop_duplicates("image")
    assert abs(products.agreement[1] - (once.pred_label == products.pred_label[1]).mean()) < 1e-6


def test_what_people_say_of_an_image_holds_for_its_product(shop, score, tmp_path):
    """One that is corrected holds; two that contradict each other do not; labels may be new to the model."""
    rows = pd.read_csv(shop[0] / "catalog/catalog.csv", dtype={"sku": str}).head(8)
    rows["image"] = [str(shop[0] / "catalog" / name) for name in rows.image]
    rows.to_csv(tmp_path / "c.csv", index=False)
    said = pd.DataFrame({"item_id": rows.image[[0, 2, 3, 4]], "label": ["teapot", "mug", "lamp", "mug"]})
    said.to_csv(tmp_path / "said.csv", index=False)
    without, _ = score(tmp_path / "c.csv", tmp_path / "out")
    run, _ = score(tmp_path / "c.csv", tmp_path / "out", **{"catalog.corrections": tmp_path / "said.csv"})
    (before, _), (products, _) = tables(without), tables(run)
    first, second, third, fourth = products.itertuples()
    assert (first.pred_label, first.pred_score, first.decision) == ("teapot", 1.0, "accept")
    assert second.pred_label == before.pred_label[1]
    assert (third.pred_label, third.decision) == ("mug", "accept")
    assert fourth.pred_score == before.pred_score[3]


def test_the_review_has_one_image_of_a_doubtful_product(shop, score, tmp_path):
    run, _ = score(shop[0] / "catalog/catalog.csv", tmp_path, **{"score.review_rows": 10_000})
    products, predictions = tables(run)
    queue = [json.loads(line)["data"] for line in Path(run, "review/queue.jsonl").read_text().splitlines()]
    asked = [row for row in queue if "uncertain" in row["reasons"]]
    doubtful = products[(products.decision != "accept") & products.pred_label.notna()]
    assert sorted(row["item_id"] for row in asked) == sorted(doubtful.best_image)
    by_name = products.set_index("sku")
    for row in queue:
        own = by_name.loc[row["product"]]
        assert (row["product_label"], row["product_decision"]) == (own.pred_label, own.decision)
    label_of = predictions.set_index("image").pred_label
    decision_of = predictions.set_index("image").decision
    for row in queue:
        differs = row["product_decision"] == decision_of[row["item_id"]] == "accept"
        assert ("differs" in row["reasons"]) == (differs and row["product_label"] != label_of[row["item_id"]])


def test_exports_say_the_same_as_the_table(shop, score, tmp_path):
    """Kind of fault: two tables of a run answer one question in two ways."""
    run, _ = score(shop[0] / "catalog/catalog.csv", tmp_path, **{"score.export": "csv"})
    products, predictions = tables(run)
    answers = pd.read_csv(f"{run}/export/answers.csv", dtype={"sku": str}, keep_default_na=False)
    by_name = products.set_index("sku")
    assert sorted(answers.image) == sorted(predictions.image)
    for row in answers.itertuples():
        own = by_name.loc[row.sku.lstrip("'")]
        assert (row.answer_label, row.answer_decision) == (own.pred_label, own.decision)
        assert row.answer_score == pytest.approx(own.pred_score, abs=1e-4)


def test_a_target_precision_is_promised_for_products_too(shop, score, tmp_path):
    """The thresholds are those of validation products: recomputed from validation.parquet."""
    run, told = score(shop[0] / "catalog/catalog.csv", tmp_path, **{"score.target_precision": 0.5})
    products, predictions = tables(run)
    summary = read_json(f"{run}/run.json")["products"]
    assert [event["of"] for event in told if event["event"] == "promise"] == ["images", "products"]
    assert summary["promise"]["target"] == 0.5
    rows = pd.read_csv(shop[0] / "catalog/catalog.csv", dtype={"sku": str})
    assert not audit_products(products, predictions, rows, summary, group="sku")
    validation = pd.read_parquet(f"{shop[1]}/validation.parquet").query("role == 'thresholds'")
    assert summary["promise"]["classes"] <= validation.group.nunique()


def test_evaluation_and_comparison_know_products(shop, retailray, tmp_path):
    """Top-1 of products, from the predictions of all labels, by formulas alone."""
    from tests.oracles import product_answer

    folder, bundle = shop
    settings = {"catalog.uri": folder / "catalog/catalog.csv", "catalog.group": "sku", "model.uri": bundle}
    settings |= {"catalog.max_pixels": 20_000_000}
    code, _, err = retailray("evaluate", **settings | {"out": tmp_path / "evaluate"})
    assert code == 0, err
    metrics = read_json(f"{latest(str(tmp_path / 'evaluate'))}/metrics.json")
    code, _, err = retailray("score", **settings | LIMITS | {"score.top_k": 8, "out": tmp_path / "score"})
    assert code == 0, err
    run = latest(str(tmp_path / "score"))
    _, predictions = tables(run)
    combination = read_json(f"{run}/run.json")["products"]["combination"]
    assert metrics["products"]["combination"]["rule"] == combination["rule"]
    labels = sorted(predictions.topk_labels[0])
    right = []
    for _, mine in predictions[predictions.label.isin(labels)].groupby("sku"):
        images = [dict(zip(one.topk_labels, one.topk_scores, strict=True)) for one in mine.itertuples()]
        right.append(labels[product_answer(images, labels, combination).argmax()] == mine.label.mode()[0])
    assert metrics["products"]["num_products"] == len(right)
    assert metrics["products"]["top1"] == pytest.approx(np.mean(right))
    low, high = metrics["products"]["intervals"]["top1"]
    assert low <= metrics["products"]["top1"] <= high

    code, _, err = retailray("compare", **settings | {"compare.baseline": bundle, "out": tmp_path / "compare"})
    assert code == 0, err
    found = read_json(f"{latest(str(tmp_path / 'compare'))}/comparison.json")["products"]
    assert (found["changed"], found["labelled"]) == (0, len(right))
    assert found["top1"]["challenger"] == found["top1"]["champion"] == pytest.approx(np.mean(right))
    changes = pd.read_parquet(f"{latest(str(tmp_path / 'compare'))}/changes.parquet")
    assert not [name for name in changes.columns if name.endswith(("_classes", "_probabilities"))]


def test_a_version_is_promoted_by_its_products(shop, retailray, tmp_path):
    folder, bundle = shop
    rows = pd.read_csv(folder / "catalog/catalog.csv", dtype={"sku": str})
    version = read_json(f"{bundle}/bundle.json")["version"]
    registered = tmp_path / f"models/products/{version}"
    shutil.copytree(bundle, registered)
    rows["image"] = [str(folder / "catalog" / name) for name in rows.image]
    trained = set(pd.read_parquet(f"{bundle}/validation.parquet").group)
    rows[rows.sku.isin(trained)].to_csv(tmp_path / "held_out.csv", index=False)
    settings = {"catalog.uri": tmp_path / "held_out.csv", "model.uri": registered, "promote.split": "all",
                "catalog.max_pixels": 20_000_000, "promote.level": "product", "promote.min_rows": 40}  # fmt: skip
    code, _, err = retailray("promote", **settings | {"out": tmp_path / "without"})
    assert (code, "catalog.group names their column" in err) == (2, True)
    settings |= {"catalog.group": "sku", "out": tmp_path / "gate"}
    code, _, err = retailray("promote", **settings | {"promote.min_rows": 1000})
    assert (code, "labelled products, promote.min_rows asks for 1000" in err) == (4, True)
    code, _, err = retailray("promote", **settings)
    assert code == 0, err
    decision = read_json(f"{latest(str(tmp_path / 'gate'))}/decision.json")
    assert decision["level"] == "product"
    assert decision["top1"] == decision["levels"]["product"]["top1"]
    products, images = (decision["levels"][name] for name in ("product", "image"))
    assert products["labelled"] == products["top1"]["products"] == images["top1"]["products"] < images["labelled"]


def test_on_ray_products_are_the_same(shop, score, ray_session_cpus, tmp_path):
    catalog = shop[0] / "catalog/catalog.csv"
    alone, _ = score(catalog, tmp_path / "inline")
    on_ray, _ = score(catalog, tmp_path / "ray", **{"cluster.engine": "ray"})
    (before, _), (after, _) = tables(alone), tables(on_ray)
    assert (after.sku == before.sku).all()
    np.testing.assert_allclose(after.pred_score, before.pred_score, atol=0.03)  # either may be in bfloat16
    sure = before.pred_score.fillna(1) > 0.6
    assert (after.pred_label[sure].fillna("") == before.pred_label[sure].fillna("")).all()
    assert (after[["num_images", "num_failed"]] == before[["num_images", "num_failed"]]).all(axis=None)
