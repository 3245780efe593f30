"""Labels that are numbers: train, evaluate and score, by the pictures' own truth and by torch and pandas alone."""

import contextlib
import io
import json
import shutil
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw

from retailray.config import PromoteConfig
from retailray.data.numeric_labels import spelled
from retailray.evaluation.number_comparison import measure_numbers
from retailray.evaluation.numbers import _answers
from retailray.evaluation.promote import number_problems
from tests import oracles
from tests.commands.helpers import change_meta, events, latest, read_json, read_text, words_of
from tests.oracles import TOLERANCE, quantile

pytestmark = pytest.mark.slow
SIZE = 32
BAD = ("12,5 kg", "nan", "1e400")


def write_discs(folder, num_products, *, seed):
    """Pictures of discs, three a product, whose weight is the area of the disc: 5 to 250, and some in no catalog."""
    rng, rows = np.random.default_rng(seed), []
    (folder / "images").mkdir()
    for product in range(num_products):
        radius, colour = rng.uniform(2, 15), tuple(rng.integers(120, 255, 3).tolist())
        for photo in range(3):
            image = Image.new("RGB", (40, 40), tuple(rng.integers(0, 60, 3).tolist()))
            x, y = rng.uniform(17, 23, 2)
            ImageDraw.Draw(image).ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)
            name = f"images/{product:04d}-{photo}.png"
            image.save(folder / name)
            rows.append({"image": name, "sku": f"p{product:04d}", "weight": round(float(np.pi * radius**2 / 3), 2)})
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A catalog with bad labels and bad pictures among the good ones, and a model that learned the good ones."""
    from retailray.cli import main

    folder = tmp_path_factory.mktemp("discs")
    rows = write_discs(folder, 170, seed=0)
    rows["weight"] = rows.weight.astype(str)
    for at, text in enumerate([*BAD, "", " 1.5e2 "] * 6):
        rows.loc[7 * at, "weight"] = text
    rows.to_csv(folder / "catalog.csv", index=False)
    settings = {"catalog.uri": folder / "catalog.csv", "catalog.group": "sku", "catalog.label": "weight"}
    split = {"split.validation": 0.3, "split.test": 0.2}
    training = {"model.task": "regression", "model.arch": "cnn2", "transform.image_size": SIZE}
    training |= {"transform.resize_size": 36, "train.epochs": 30, "train.batch_size": 16, "transform.augment": "none"}
    training |= {"train.cache_uri": folder / "cache", "train.precision": "float32"}
    training |= {"model.registry": folder / "models", "model.name": "weights"}
    heard = io.StringIO()
    with contextlib.redirect_stdout(heard):
        assert main(words_of("train", settings | split | training | {"out": folder / "train"})) == 0
    run = latest(str(folder / "train"))
    return {"folder": folder, "rows": rows, "settings": settings, "split": split, "training": training,
            "run": run, "bundle": f"{run}/bundle", "events": events(heard.getvalue())}  # fmt: skip


def truth_of(shop):
    """The numbers of the catalog, by pandas; NaN where there is none."""
    found = pd.read_csv(shop["folder"] / "catalog.csv", dtype=str)
    values = pd.to_numeric(found.weight, errors="coerce").replace([np.inf], np.nan)
    return dict(zip(found.image, values, strict=True))


def held_out_products(shop):
    rows = pd.read_parquet(f"{shop['bundle']}/validation.parquet")
    return rows[rows.role == "thresholds"].group.nunique()


@pytest.fixture
def evaluated(shop, retailray, tmp_path):
    settings = shop["settings"] | shop["split"] | {"model.uri": shop["bundle"], "evaluate.split": "test"}
    code, out, err = retailray("evaluate", **settings | {"out": tmp_path / "evaluated"})
    assert code == 0, err
    run = latest(str(tmp_path / "evaluated"))
    return pd.read_parquet(f"{run}/predictions.parquet"), read_json(f"{run}/metrics.json"), run, events(out)


def test_labels_that_are_no_numbers_are_told_and_left_out(shop):
    """Kinds of fault: a unit, a comma, not a number, or too large becomes 0, a class, or the end of the run."""
    told = [one for one in shop["events"] if "labels_that_are_no_numbers" in one]
    assert {text for one in told for text in one["labels_that_are_no_numbers"]} == set(BAD)
    in_test = len(BAD) * 6 - sum(one["rows_left_out"] for one in told if one["split"] != "test")
    assert 0 <= in_test < 9, "a fifth of the products is in no split of training"
    rows = read_json(f"{shop['run']}/run.json")["rows"]
    assert 0.7 * len(shop["rows"]) < sum(rows.values()) < 0.9 * len(shop["rows"])
    meta = read_json(f"{shop['bundle']}/bundle.json")
    known = pd.Series(truth_of(shop)).dropna()
    assert meta["intervals"]["highs"][-1] <= known.max()
    assert meta["intervals"]["lows"][0] >= known.min()


def test_it_learns_and_the_run_says_how_well(shop):
    history = pd.read_csv(f"{shop['run']}/history.csv")
    assert not {"validation_top1", "validation_macro_f1", "train_top1"} & set(history.columns), "these are of classes"
    summary = read_json(f"{shop['run']}/run.json")
    best = history.loc[history.validation_mae.idxmin()]
    assert summary["best_epoch"] == best.epoch
    assert summary["validation_mae"] == pytest.approx(best.validation_mae, abs=1e-3)
    assert "mean absolute error is" in summary["verdict_text"]
    rows = pd.read_parquet(f"{shop['bundle']}/validation.parquet")
    truth = pd.Series(dict(truth_of(shop).items()))
    assert rows.value.to_numpy() == pytest.approx(truth[rows.id].to_numpy()), "ids are images here"
    intervals = read_json(f"{shop['bundle']}/bundle.json")["intervals"]
    chose = rows[rows.role == "epoch"]
    shares = np.zeros((len(chose), len(intervals["lows"])))
    np.put_along_axis(shares, np.stack(chose.classes), np.stack(chose.probabilities), axis=1)
    medians = np.array([quantile(one, intervals, 0.5) for one in shares])
    # the temperature, which is fitted afterwards, moves medians a little
    assert np.abs(medians - chose.value).mean() == pytest.approx(best.validation_mae, rel=0.1)
    assert best.validation_wape == pytest.approx(best.validation_mae / chose.value.abs().mean(), rel=0.02)


def test_predictions_are_what_torch_makes_of_the_files(shop, evaluated):
    table, _, _, _ = evaluated
    meta = read_json(f"{shop['bundle']}/bundle.json")
    some = table.sample(20, random_state=0)
    found = oracles.shares_of_cnn2(shop["bundle"], [shop["folder"] / image for image in some.image])
    for row, shares in zip(some.itertuples(), found, strict=True):
        # probabilities may differ by what bfloat16 rounds away
        low, high = (quantile(shares, meta["intervals"], 0.5 + far) for far in (-TOLERANCE, TOLERANCE))
        assert low <= row.pred_value <= high


def test_what_is_measured_is_recomputed_from_the_catalog(shop, evaluated):
    table, metrics, run, told = evaluated
    truth = truth_of(shop)
    assert table.value.to_numpy() == pytest.approx([truth[image] for image in table.image])
    off = (table.pred_value - table.value).abs()
    assert metrics["mae"] == pytest.approx(off.mean())
    assert metrics["wape"] == pytest.approx(off.sum() / table.value.sum())
    assert metrics["num_rows"] == len(table)
    assert metrics["coverage"] == pytest.approx(table.value.between(table.pred_low, table.pred_high).mean())
    assert metrics["mae"] < 0.4 * metrics["median_mae"], "the area of a disc can be seen"
    assert metrics["intervals"]["coverage"][1] > 0.8
    assert metrics["fitted_on"] == held_out_products(shop), "products, not images"
    assert metrics["products"]["num_rows"] == len({image.split("-")[0] for image in table.image})
    assert told[-1]["mae"] == pytest.approx(metrics["mae"], abs=1e-3)
    page = Path(run, "report.html").read_text()
    assert "Predicted and true weight" in page
    assert "Furthest off" in page


def test_every_row_is_scored_and_a_second_run_scores_none(shop, evaluated, retailray, tmp_path):
    """Kinds of fault: a row without a number gets none; another level of the interval costs another night."""
    rows = pd.read_csv(shop["folder"] / "catalog.csv", dtype=str)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    catalog = pd.concat([rows, rows.head(1).assign(image=str(broken))])
    catalog["image"] = [str(shop["folder"] / name) for name in catalog.image]
    catalog.to_csv(tmp_path / "catalog.csv", index=False)
    settings = {"catalog.uri": tmp_path / "catalog.csv", "catalog.group": "sku", "catalog.label": "weight"}
    settings |= {"model.uri": shop["bundle"], "out": tmp_path / "scores"}
    code, _, err = retailray("score", **settings)
    assert code == 0, err
    first = latest(str(tmp_path / "scores"))
    table = duckdb.sql(f"from '{first}/predictions/*.parquet'").df()
    facts = read_json(f"{first}/run.json")
    assert facts["counts"] == {"rows": len(rows) + 1, "scored": len(rows), "reused": 0, "failed": 1}
    assert list(table.columns[: len(catalog.columns)]) == list(catalog.columns), "the user's columns come first"
    assert {"pred_label", "pred_score", "decision"}.isdisjoint(table.columns)
    assert (table.pred_low <= table.pred_value).all()
    assert (table.pred_value <= table.pred_high).all()
    known = table.assign(value=pd.to_numeric(table.weight, errors="coerce").replace([np.inf], np.nan)).dropna()
    held_out = {*evaluated[0].image, *pd.read_parquet(f"{shop['bundle']}/validation.parquet").id}
    is_new = known.image.str.removeprefix(f"{shop['folder']}/").isin(held_out)
    assert facts["values"]["trained_on"] == (~is_new).sum() > 200, "what the model was trained on is no evidence"
    known = known[is_new]
    assert facts["values"]["labelled_rows"] == len(known)
    assert facts["values"]["mae"] == pytest.approx((known.value - known.pred_value).abs().mean())
    assert facts["values"]["coverage"] == pytest.approx(known.value.between(known.pred_low, known.pred_high).mean())
    assert facts["values"]["mean"] == pytest.approx(table.pred_value.mean())
    code, _, err = retailray("score", **settings | {"score.level": 50})
    assert code == 0, err
    second = latest(str(tmp_path / "scores"))
    narrow = duckdb.sql(f"from '{second}/predictions/*.parquet'").df()
    assert read_json(f"{second}/run.json")["counts"]["reused"] == len(rows)
    assert narrow.pred_value.equals(table.pred_value)
    assert (narrow.pred_high - narrow.pred_low).mean() < 0.8 * (table.pred_high - table.pred_low).mean()


def test_a_product_has_the_mean_of_what_is_said_of_its_images(shop, retailray, tmp_path):
    settings = shop["settings"] | {"model.uri": shop["bundle"], "out": tmp_path}
    code, _, err = retailray("score", **settings)
    assert code == 0, err
    run = latest(str(tmp_path))
    intervals = read_json(f"{shop['bundle']}/bundle.json")["intervals"]
    images = duckdb.sql(f"select uri, classes, probabilities from '{run}/ledger/*.parquet'").df()
    images["sku"] = ["p" + Path(uri).name[:4] for uri in images.uri]
    products = duckdb.sql(f"from '{run}/products/*.parquet'").df()
    assert list(products.columns) == ["sku", "pred_value", "pred_low", "pred_high", "num_images", "num_failed",
                                      "model_name", "model_version", "run_id"]  # fmt: skip
    assert len(products) == shop["rows"].sku.nunique() == read_json(f"{run}/run.json")["products"]["products"]
    assert (products.num_images == 3).all()
    for row in products.sample(12, random_state=0).itertuples():
        shares = np.zeros(len(intervals["lows"]))
        for one in images[images.sku == row.sku].itertuples():
            shares[np.asarray(one.classes)] += np.asarray(one.probabilities) / 3
        assert row.pred_value == pytest.approx(quantile(shares, intervals, 0.5), rel=1e-3)
        assert row.pred_low <= row.pred_value <= row.pred_high


def test_pictures_that_are_streamed_teach_the_same(shop, retailray, tmp_path):
    """Kind of fault: the numbers of streamed rows are those of other rows."""
    changed = {"train.cache": "off", "train.epochs": 12, "out": tmp_path}
    training = {name: value for name, value in shop["training"].items() if name != "train.cache_uri"}
    code, _, err = retailray("train", **shop["settings"] | shop["split"] | training | changed)
    assert code == 0, err
    history = pd.read_csv(f"{latest(str(tmp_path))}/history.csv")
    usual = float(read_json(f"{latest(str(tmp_path))}/run.json")["verdict_text"].split("would be ")[1].split(" off")[0])
    assert history.validation_mae.min() < 0.6 * usual


def test_the_card_speaks_of_numbers(shop):
    card = read_text(f"{shop['bundle']}/README.md")
    assert "Predicts the number `weight`" in card
    assert "mean absolute error" in card
    assert "accuracy" not in card


@pytest.mark.parametrize(
    ("command", "changes", "words"),
    [
        ("train", {"catalog.label": "sku"}, "names no number"),
        ("train", {"train.label_smoothing": 0.1}, "is of classes"),
        ("train", {"catalog.label": "one"}, "one value only (5)"),
        ("train", {"train.metric": "top1"}, "is of classes"),
        ("train", {"split.folds": 3}, "split.folds measures classes"),
        ("train", {"train.class_weights": "balanced"}, "is of classes"),
        ("train", {"taxonomy.uri": "x.csv"}, "is of classes"),
        ("train", {"model.task": "classification", "train.metric": "mae"}, "for model.task regression"),
        ("tune", {}, "for train, evaluate and score"),
    ],
)
def test_what_cannot_be_trained_says_why(command, changes, words, shop, retailray, tmp_path):
    table = pd.read_csv(shop["folder"] / "catalog.csv", dtype=str).assign(one="5")
    table.to_csv(shop["folder"] / "with-one.csv", index=False)
    settings = shop["settings"] | shop["training"] | {"catalog.uri": shop["folder"] / "with-one.csv"}
    if command == "tune":
        settings = {name: value for name, value in settings.items() if name != "train.cache_uri"}
    code, _, err = retailray(command, **settings | changes | {"out": tmp_path})
    assert code != 0
    assert words in err


@pytest.mark.parametrize(
    ("command", "changes", "words"),
    [
        ("score", {"score.target_precision": 0.9}, "score.target_precision: "),
        ("score", {"score.export": "csv"}, "score.export: "),
        ("compare", {"compare.baseline": "{labels}"}, "they cannot be compared"),
        ("evaluate", {"catalog.label": "sku"}, "no label is a number"),
        ("evaluate", {"taxonomy.uri": "x.csv"}, "have no taxonomy"),
    ],
)
def test_what_is_of_labels_is_refused(command, changes, words, shop, small_bundle, retailray, tmp_path):
    changes = {name: str(value).format(labels=small_bundle[0]) for name, value in changes.items()}
    code, _, err = retailray(command, **shop["settings"] | {"model.uri": shop["bundle"], "out": tmp_path} | changes)
    assert code != 0
    assert words in err
    assert not list(tmp_path.glob("run_id=*/_SUCCESS"))


def test_the_better_model_is_promoted_and_the_weaker_one_is_not(shop, retailray, tmp_path):
    """A weekly model must be as good as the one in service, by its errors on rows that neither was trained on."""
    settings = shop["settings"] | shop["split"]
    registry = shop["folder"] / "models"
    good = read_json(f"{shop['bundle']}/bundle.json")["version"]
    changed = {"train.epochs": 2, "out": tmp_path / "weaker"}
    code, _, err = retailray("train", **settings | shop["training"] | changed)
    assert code == 0, err
    weak = read_json(f"{latest(str(tmp_path / 'weaker'))}/bundle/bundle.json")["version"]
    gate = settings | {"out": tmp_path / "gate", "promote.min_rows": 50}
    code, _, err = retailray("promote", **gate | {"model.uri": registry / "weights" / good})
    assert code == 0, err
    code, _, err = retailray("promote", **gate | {"model.uri": registry / "weights" / weak})
    assert code == 4
    assert "mean absolute error" in err
    assert "champion stays" in err
    code, _, err = retailray("promote", **gate | {"model.uri": registry / "weights" / weak, "promote.min_top1": 0.5})
    assert (code, "of labels" in err) == (2, True)
    pair = {"model.uri": registry / "weights" / weak, "compare.baseline": registry / "weights@champion"}
    pair |= {"compare.split": "test", "out": tmp_path / "compared"}
    code, _, err = retailray("compare", **settings | pair)
    assert code == 0, err
    run = latest(str(tmp_path / "compared"))
    found, rows = read_json(f"{run}/comparison.json"), pd.read_parquet(f"{run}/changes.parquet")
    truth = truth_of(shop)
    value = np.array([truth[image] for image in rows.id])
    known = np.isfinite(value)
    off = {side: np.abs(rows[side] - value)[known].mean() for side in ("challenger", "champion")}
    assert found["labelled"] == known.sum()
    assert found["mae"]["champion"] == pytest.approx(off["champion"])
    assert found["mae"]["difference"] == pytest.approx(off["challenger"] - off["champion"])
    assert found["mae"]["relative"] == pytest.approx(off["challenger"] / off["champion"] - 1)
    low, high = found["mae"]["interval"]
    assert 0 < low < found["mae"]["difference"] < high
    assert "The challenger is worse" in Path(run, "report.html").read_text()


def test_another_model_of_numbers_is_no_drift(shop, retailray, tmp_path):
    """Kind of fault: two models cut values into other intervals, and a night ends with drift of all of them."""
    table = pd.read_csv(shop["folder"] / "catalog.csv")
    table.assign(weight=pd.to_numeric(table.weight, errors="coerce") + 0.25).to_csv(
        shop["folder"] / "moved.csv", index=False
    )
    changed = {"train.epochs": 2, "catalog.uri": shop["folder"] / "moved.csv", "out": tmp_path / "train"}
    code, _, err = retailray("train", **shop["settings"] | shop["split"] | shop["training"] | changed)
    assert code == 0, err
    settings = shop["settings"] | {"score.max_drift": 0.5, "out": tmp_path / "scores"}
    for bundle in (shop["bundle"], f"{latest(str(tmp_path / 'train'))}/bundle"):
        code, _, err = retailray("score", **settings | {"model.uri": bundle})
        assert code == 0, err


@pytest.mark.parametrize(("worse", "allowed", "passes"), [(0.99, 0.01, False), (1.001, 0.5, False), (0.0, 0.5, True)])
def test_a_rise_of_errors_is_judged_by_its_interval(worse, allowed, passes):
    """Kind of fault: where a champion is nearly always exact, only the sign of the difference counts."""
    products = pd.DataFrame({"value": np.arange(30.0), "group": np.arange(30).astype(str)})
    champion = products.value + np.where(products.index < 3, 1.0, 0)
    challenger = products.value + np.where(products.index > 26, worse, 0)
    both = products.assign(champion=champion, challenger=challenger)
    found = measure_numbers(both, bootstrap=500)
    config = PromoteConfig(
        out="o",
        catalog={"uri": "c"},
        model={"uri": "m"},
        promote={"max_loss": allowed, "min_rows": 10},
    )
    limit = allowed * 0.1  # of the champion's error
    assert (found["mae"]["interval"][1] <= limit) == passes
    assert (number_problems(config, found) == []) == passes


def test_a_column_of_the_catalog_that_is_named_as_ours_is_refused(shop, retailray, tmp_path):
    table = pd.read_csv(shop["folder"] / "catalog.csv", dtype=str).assign(pred_value="7")
    table.to_csv(shop["folder"] / "taken.csv", index=False)
    settings = shop["settings"] | {"catalog.uri": shop["folder"] / "taken.csv", "model.uri": shop["bundle"]}
    code, _, err = retailray("score", **settings | {"out": tmp_path})
    assert code != 0
    assert "pred_value" in err


def test_a_bundle_without_held_out_rows_says_that_its_interval_is_not_fitted(shop, retailray, tmp_path):
    shutil.copytree(shop["bundle"], tmp_path / "bundle")
    (tmp_path / "bundle/validation.parquet").unlink()
    manifest = tmp_path / "bundle/MANIFEST"
    lines = [line for line in manifest.read_text().splitlines() if "validation" not in line]
    manifest.write_text("".join(f"{line}\n" for line in lines))
    change_meta(tmp_path / "bundle", lambda meta: meta)
    settings = shop["settings"] | {"model.uri": tmp_path / "bundle", "out": tmp_path / "scores"}
    code, _, err = retailray("score", **settings)
    assert code == 0, err
    run = latest(str(tmp_path / "scores"))
    assert json.loads(Path(run, "run.json").read_text())["values"]["fitted_on"] == 0
    assert "too few validation products" in Path(run, "report.html").read_text()


def test_numbers_are_not_compared_with_labels_of_the_run_before(shop, small_bundle, retailray, tmp_path):
    """Kind of fault: a run with labels after a run with numbers reports every row as changed."""
    settings = shop["settings"] | {"out": tmp_path, "score.max_drift": 0.2}
    drift = []
    for bundle in (shop["bundle"], small_bundle[0], shop["bundle"]):
        code, _, err = retailray("score", **settings | {"model.uri": bundle})
        assert code == 0, err
        drift.append(read_json(f"{latest(str(tmp_path))}/run.json"))
    assert [one for run in drift for one in run["drift"] if one["reference"] == "previous run"] == []
    assert drift[1]["labels_changed"] == 0
    queue = Path(sorted(tmp_path.glob("run_id=*"))[1], "review/queue.jsonl").read_text().splitlines()
    assert queue
    assert not [line for line in queue if "changed" in json.loads(line)["data"]["reasons"]]
    assert {one["what"] for one in drift[2]["drift"]} <= {"values", "embeddings"}


@pytest.mark.parametrize("amount", [4e9, 2e11])
def test_numbers_may_be_large(amount, shop, retailray, tmp_path):
    """Kind of fault: an error of a thousand million is taken for no number."""
    table = pd.read_csv(shop["folder"] / "catalog.csv").head(120)
    weight = pd.to_numeric(table.weight, errors="coerce")
    table.assign(weight=weight * amount).to_csv(shop["folder"] / "large.csv", index=False)
    settings = shop["settings"] | shop["training"] | shop["split"] | {"train.epochs": 2, "out": tmp_path}
    code, _, err = retailray("train", **settings | {"catalog.uri": shop["folder"] / "large.csv"})
    assert code == 0, err
    assert read_json(f"{latest(str(tmp_path))}/run.json")["validation_mae"] > 1e9


def test_mixed_pictures_and_passes_of_a_few_train_too(shop, retailray, tmp_path):
    changed = {"train.mixup": 0.2, "train.cutmix": 0.5, "train.device_batch_size": 5, "train.ema_decay": 0.9}
    changed |= {"train.epochs": 3, "out": tmp_path}
    code, _, err = retailray("train", **shop["settings"] | shop["split"] | shop["training"] | changed)
    assert code == 0, err
    assert np.isfinite(pd.read_csv(f"{latest(str(tmp_path))}/history.csv").validation_mae).all()


def test_what_is_exported_says_how_numbers_follow(shop, retailray, tmp_path):
    pytest.importorskip("onnxruntime")
    code, _, err = retailray("export", **{"model.uri": shop["bundle"], "out": tmp_path})
    assert code == 0, err
    found = read_json(f"{latest(str(tmp_path))}/intervals.json")
    meta = read_json(f"{shop['bundle']}/bundle.json")
    assert {name: found[name] for name in ("lows", "highs")} == meta["intervals"]
    assert 0 <= found["tail"] < 0.5


METRICS = {"num_rows": 1_000, "num_failed": 0, "num_without_a_number": 0, "median_mae": 10.0, "level": 80}
METRICS |= {"fitted_on": 30, "coverage": 0.81, "mae": 12_345.6, "intervals": {}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ["12,346 off on average, on", "no worse", "made for 80 %."]),
        ({"mae": 8.5, "intervals": {"mae": [8, 9.2], "coverage": [0.7, 0.9]}}, ["(8 to 9.2)", "is 10 off.", "80 %."]),
        ({"mae": 9.5, "intervals": {"mae": [8, 11], "coverage": [0.7, 0.9]}}, ["may be chance"]),
        ({"coverage": 0.6, "intervals": {"mae": [8, 9], "coverage": [0.5, 0.7]}}, ["rows differ from the validation"]),
        ({"coverage": 0.6, "fitted_on": 0}, ["too few validation products"]),
        ({"coverage": 0.95, "intervals": {"mae": [8, 9], "coverage": [0.93, 0.97]}}, ["wider than it need be"]),
        ({"num_without_a_number": 50}, ["50 rows have no number as label"]),
    ],
)
def test_the_report_says_what_the_measures_mean(changes, words):
    """Kinds of fault: noise taken for a difference, intervals that nobody computed, exponents."""
    said = " ".join(text for _, text in _answers(METRICS | changes))
    for word in words:
        assert word in said


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (12_345.6, "12,346"), (-0.012345, "-0.01235"), (1.5, "1.5"), (99.999, "100"), (2e11, "200,000,000,000"),
     (1e-9, "1e-09"), (None, "–"), (float("nan"), "–")],
)  # fmt: skip
def test_numbers_are_spelled_for_people(value, text):
    assert spelled(value) == text


@pytest.mark.real
def test_prices_of_real_products_are_read_from_photos(real_data, tmp_path):
    """The price of a product in a real shop from photos of it: better than any constant, by the source files."""
    import retailray

    grocery, weights = real_data
    bought = pd.read_parquet(grocery.parent / "shop/purchases.parquet", columns=["product", "quantity", "value"])
    bought = bought[(bought.quantity > 0) & (bought.value > 0)]
    pairs = pd.read_csv(grocery.parent / "shop/photos.csv").drop_duplicates("fine_name").set_index("fine_name")
    price = pairs["product"].map((bought.value / bought.quantity).groupby(bought["product"]).median()).round(2)
    tables = {}
    for split, most in (("train", 8), ("val", 8), ("test", 6)):
        rows = pd.read_csv(grocery / f"{split}.csv").groupby("fine_name").head(most)
        rows = rows.assign(price=rows.fine_name.map(price)).dropna(subset="price")
        rows["image"] = [f"{grocery}/images/{split}/{name}.jpg" for name in rows["name"]]
        tables[split] = rows[["image", "price"]]
        tables[split].to_csv(tmp_path / f"{split}.csv", index=False)
    catalog = {"uri": tmp_path / "train.csv", "validation_uri": tmp_path / "val.csv", "label": "price"}
    model = {"task": "regression", "arch": "mobilenet_v2", "trainable": "head"}
    trained = retailray.train(
        catalog=catalog,
        model=model | {"weights": weights / "mobilenet_v2-imagenet.pth"},
        transform={"augment": "none"},
        train={"epochs": 20, "cache_uri": tmp_path / "cache"},
        cluster={"engine": "inline"},
        out=tmp_path / "runs",
    )
    found = retailray.evaluate(
        catalog={"uri": tmp_path / "test.csv", "label": "price"},
        model=trained,
        cluster={"engine": "inline"},
        out=tmp_path / "evaluated",
    )
    rows = found.predictions
    truth = tables["test"].set_index("image").price[rows.image].to_numpy()
    off, usual = np.abs(rows.pred_value - truth).mean(), np.abs(truth - np.median(truth)).mean()
    assert found.metrics["mae"] == pytest.approx(off)
    assert off < 0.55 * usual
    assert 0.7 < ((rows.pred_low <= truth) & (truth <= rows.pred_high)).mean() < 0.95
