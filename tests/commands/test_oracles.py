"""Every published table, audited by :mod:`tests.oracles`, which asks the source files and not the package."""

import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests import oracles
from tests.commands.helpers import read_json, read_text, rename_labels, words_of
from tests.oracles import latest, read

pytestmark = pytest.mark.slow


def test_the_oracles_are_others():
    """Else they would prove nothing."""
    code = "import sys, tests.oracles; sys.exit(any(name.startswith('retailray') for name in sys.modules))"
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A catalog in three splits whose rows are in no order, with broken files, copies in other splits and with other
    labels, a product with several pictures; its folder and its table."""
    folder = tmp_path_factory.mktemp("shop")
    generator = np.random.default_rng(7)
    rows = []
    for number in range(60):
        label = ("mug", "lamp", "bag")[number % 3]
        values = generator.integers(0, 80, (48, 64, 3)) + 60 * (number % 3)
        name = f"i{number:02d}.{('png', 'jpg', 'webp')[number % 7 % 3]}"
        Image.fromarray(values.astype(np.uint8)).resize((320, 240)).save(folder / name, quality=95)
        rows.append((name, f"P{number // 2:02d}", label, ("train", "validation", "test")[number % 6 % 3]))
    for source, name, label, split in (
        ("i03.jpg", "copy_in_test.jpg", "mug", "test"),
        ("i06.jpg", "copy_in_validation.jpg", "mug", "validation"),
        ("i09.webp", "copy_other_label.webp", "lamp", "train"),
    ):
        source = next(row[0] for row in rows if row[0].startswith(source[:3]))
        shutil.copy(folder / source, folder / f"{name.rpartition('.')[0]}.{source.rpartition('.')[2]}")
        rows.append((f"{name.rpartition('.')[0]}.{source.rpartition('.')[2]}", name, label, split))
    (folder / "text.png").write_bytes(b"<html>not a picture</html>")
    (folder / "empty.png").write_bytes(b"")
    buffer = io.BytesIO()
    Image.new("RGB", (320, 240), "red").save(buffer, "JPEG")
    (folder / "cut.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    broken = {"text.png": "test", "empty.png": "train", "cut.jpg": "validation", "missing.png": "train"}
    rows += [(name, name, "bag", split) for name, split in broken.items()]
    (folder / "orphan.png").write_bytes((folder / rows[0][0]).read_bytes())
    order = generator.permutation(len(rows))
    table = pd.DataFrame([rows[at] for at in order], columns=["image", "sku", "label", "set"])
    table["price"] = np.arange(len(table)) + 0.5
    table.to_csv(folder / "catalog.csv", index=False)
    return folder, table


@pytest.fixture(scope="module")
def run(shop, tmp_path_factory):
    """Run a command on the shop: ``run("check", **settings)`` returns the run directory."""
    from retailray.cli import main

    folder, _ = shop
    root = tmp_path_factory.mktemp("out")

    def start(command, *, code=0, split=True, **settings):
        out = root / f"{command}-{len(list(root.iterdir()))}"
        given = {"catalog.uri": folder / "catalog.csv", "catalog.group": "sku", "out": out}
        given |= ({"catalog.split": "set"} if split else {}) | settings
        assert main(words_of(command, given)) == code
        return latest(str(out))

    return start


@pytest.fixture(scope="module")
def bundle(run):
    """A trained resnet18; the directory of its run."""
    settings = {"model.arch": "resnet18", "model.weights": "none", "transform.image_size": 32, "train.epochs": 3,
                "transform.resize_size": 36, "train.batch_size": 8, "train.precision": "float32"}  # fmt: skip
    return run("train", **settings)


@pytest.mark.parametrize("settings", [{}, {"split": False, "split.test": 0.3}])
def test_check(shop, run, settings):
    """Facts on their own rows, in three splits of the table and of the hash."""
    folder, table = shop
    found = run("check", **settings)
    images = pd.read_parquet(f"{found}/images.parquet")
    expected = table.rename(columns={"set": "split"}) if not settings else table.drop(columns="set")
    assert oracles.audit_images(images, expected, folder) == []
    assert oracles.audit_errors(read(found, "errors"), table, folder) == []
    name_of = dict(zip(images.id, images.image, strict=True))
    split_of = dict(zip(images.image, images.split, strict=True))
    label_of = dict(zip(table.image, table.label, strict=True))
    groups = oracles.same_pictures(images, folder)
    named = {
        finding: {frozenset(name_of[item] for item in group) for group in facts["examples"]}
        for finding, facts in oracles.findings(found).items()
        if finding in ("exact_duplicates", "leakage", "label_conflicts")
    }
    assert named["exact_duplicates"] == groups
    leaks = {group for group in groups if len({split_of[name] for name in group}) > 1}
    assert {frozenset(group) for group in named.get("leakage", set())} >= leaks
    for group in (
        named.get("leakage", set()) - leaks
    ):  # near copies, by eye of another: small pictures that differ little
        pictures = [np.asarray(Image.open(folder / name).convert("L").resize((16, 16)), float) for name in group]
        assert max(np.abs(pictures[0] - other).mean() for other in pictures) < 12
    assert named["label_conflicts"] == {group for group in groups if len({label_of[name] for name in group}) > 1}
    assert oracles.findings(found)["orphans"]["examples"] == [f"{folder}/orphan.png"]
    if not settings:
        page = read_text(f"{found}/report.html")
        assert "label conflicts" in page


def test_train(shop, bundle):
    """``validation.parquet``: every validation row once, under its own id, with what the network says of its file."""
    folder, table = shop
    rows = pd.read_parquet(f"{bundle}/bundle/validation.parquet")
    expected = table[(table.set == "validation") & (table.image != "cut.jpg")]
    assert sorted(rows.id) == sorted(expected.image)
    by_image = expected.set_index("image")
    assert (rows.label == by_image.label[rows.id].to_numpy()).all()
    assert (rows.group == by_image.sku[rows.id].to_numpy()).all()
    assert rows.groupby("group").role.nunique().max() == 1, "a product has one role"
    assert set(rows.role) == {"epoch", "temperature", "thresholds"}
    found, meta = oracles.predict(f"{bundle}/bundle", [folder / name for name in rows.id])
    scores = [shares[meta["labels"].index(label)] for label, (_, shares) in zip(rows.pred_label, found, strict=True)]
    assert np.abs(np.array(scores) - rows.pred_score).max() < 0.05
    history = pd.read_csv(f"{bundle}/history.csv")
    best = history[history.epoch == meta["metrics"]["epoch"]].iloc[0]
    chose = rows[rows.role == "epoch"]
    assert best.validation_rows == len(chose)
    assert best.validation_top1 == pytest.approx((chose.label == chose.pred_label).mean(), abs=0.01)
    assert best.epoch == oracles.best_epoch(history.to_dict("records"))["epoch"]


def test_score(shop, run, bundle):
    folder, table = shop
    found = run("score", **{"model.uri": f"{bundle}/bundle", "score.max_error_rate": 1, "score.target_precision": 0.5,
                            "split": False})  # fmt: skip
    facts = read_json(f"{found}/run.json")
    predictions, errors, ledger = (read(found, name) for name in ("predictions", "errors", "ledger"))
    assert oracles.audit_predictions(predictions, f"{bundle}/bundle", folder) == []
    assert oracles.audit_errors(errors, table, folder) == []
    assert oracles.audit_ledger(ledger, folder) == []
    assert oracles.audit_thresholds(predictions, facts["thresholds"]) == []
    assert set(predictions.decision) >= {"review"} or facts["thresholds"]["abstain"] == 0
    own = predictions[list(table.columns)].sort_values("image").reset_index(drop=True)
    good = table[table.image.isin(predictions.image)].sort_values("image").reset_index(drop=True)
    pd.testing.assert_frame_equal(own, good)
    assert len(predictions) + len(errors) == len(table) == facts["counts"]["rows"]
    stamps = pd.to_datetime(predictions.scored_at)
    assert (stamps >= facts["started_at"]).all()
    assert (stamps <= facts["finished_at"]).all()
    validation = pd.read_parquet(f"{bundle}/bundle/validation.parquet")
    held = validation[validation.role == "thresholds"]
    for label, threshold in facts["thresholds"]["per_class"].items():
        assert label in set(held.pred_label)
        accepted = held[(held.pred_label == label) & (held.pred_score >= np.float32(threshold))]
        if len(accepted):
            assert (accepted.label == label).groupby(accepted.group).mean().mean() > 0.5
    products = read(found, "products")
    assert oracles.audit_queue(found, predictions, str(folder), products=products) == []


def test_evaluate_and_compare(shop, run, bundle, tmp_path):
    """``confusion.csv`` and ``metrics.json`` from torch's own predictions; ``changes.parquet`` from two of them."""
    folder, table = shop
    found = run("evaluate", **{"model.uri": f"{bundle}/bundle", "evaluate.split": "test"})
    test = table[(table.set == "test") & (table.image != "text.png")]
    predicted, _ = oracles.predict(f"{bundle}/bundle", [folder / name for name in test.image])
    guess = np.array([label for label, _ in predicted])
    margin = np.array([np.diff(np.sort(shares)[-2:])[0] for _, shares in predicted])
    assert margin.min() > 0.001, "no row of this test is a toss-up"
    confusion = pd.read_csv(f"{found}/confusion.csv", index_col="truth")
    expected = pd.crosstab(test.label.to_numpy(), guess)
    expected = expected.reindex(index=confusion.index, columns=confusion.columns, fill_value=0)
    assert confusion.to_numpy().tolist() == expected.to_numpy().tolist()
    metrics = read_json(f"{found}/metrics.json")
    assert metrics["top1"] == pytest.approx((guess == test.label).mean())
    other = tmp_path / "other"
    shutil.copytree(f"{bundle}/bundle", other)
    rename_labels(other)
    found = run("compare", **{"model.uri": f"{bundle}/bundle", "compare.baseline": other, "compare.split": "test"})
    changes = pd.read_parquet(f"{found}/changes.parquet")
    second, _ = oracles.predict(other, [folder / name for name in test.image])
    moved = {name: (old, new) for name, new, (old, _) in zip(test.image, guess, second, strict=True) if old != new}
    assert moved
    assert (
        dict(zip(changes.id, zip(changes.champion_label, changes.challenger_label, strict=True), strict=True)) == moved
    )
    comparison = read_json(f"{found}/comparison.json")
    assert comparison["top1"]["difference"] == pytest.approx(
        (guess == test.label).mean()
        - np.mean([old == label for (old, _), label in zip(second, test.label, strict=True)])
    )


def test_promote_refuses_rows_that_a_model_was_trained_on(shop, run, bundle, tmp_path, capfd):
    """Kind of fault: a challenger is judged on the rows that it has learnt by heart."""
    registry = tmp_path / "products"
    version = read_json(f"{bundle}/bundle/bundle.json")["version"]
    shutil.copytree(f"{bundle}/bundle", registry / version)
    settings = {"model.uri": registry / version, "promote.min_rows": 1, "catalog.split": "set"}
    from retailray.cli import main

    def promote(**changes):
        given = {"catalog.uri": shop[0] / "catalog.csv", "catalog.group": "sku", "out": tmp_path / "gate"}
        given |= settings | changes
        code = main(words_of("promote", {key: value for key, value in given.items() if value is not None}))
        return code, capfd.readouterr().err

    for split in ("train", "all"):
        code, error = promote(**{"promote.split": split, "catalog.split": "set" if split == "train" else None})
        assert (code, "was trained on" in error) == (1, True), error
    code, error = promote(**{"catalog.split": None})
    assert (code, "promote.split = test: it has no rows" in error) == (1, True), error
    assert promote()[0] == 0


@pytest.mark.ray
def test_tune(shop, run, capfd, ray_session_cpus):
    """``trials.parquet`` against the epochs it is drawn from, and the winner's bundle against the files."""
    folder, _ = shop
    space = json.dumps({"train.head_lr": [0.001, 0.01], "model.trainable": ["head", "last1"]})
    settings = {"model.arch": "squeezenet1_1", "model.weights": "none", "model.trainable": "last1", "tune.trials": 3,
                "transform.image_size": 32, "transform.resize_size": 36, "train.batch_size": 8, "train.epochs": 2,
                "tune.space": space, "tune.scheduler": "none", "train.precision": "float32"}  # fmt: skip
    found = run("tune", **settings)
    trials, epochs = (pd.read_parquet(f"{found}/{name}.parquet") for name in ("trials", "epochs"))
    assert oracles.audit_trials(trials, epochs) == []
    validation = pd.read_parquet(f"{found}/bundle/validation.parquet")
    predicted, _ = oracles.predict(f"{found}/bundle", [folder / name for name in validation.id])
    agree = np.mean([label == guess for label, (guess, _) in zip(validation.pred_label, predicted, strict=True)])
    assert agree > 0.9
    chose = validation[validation.role == "epoch"]
    assert trials.validation_top1[0] == pytest.approx((chose.label == chose.pred_label).mean(), abs=0.05)
    last = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert found.endswith(last["run_id"]), "and not the run of the verification inside of it"
