"""A class where the model is sure, else the deepest ancestor that is: by the published probabilities of all labels."""

from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest

from retailray.data.synthetic import write_catalog
from tests.commands.helpers import change_meta, events, latest, read_json, words_of
from tests.oracles import audit_levels

pytestmark = pytest.mark.slow
ACCEPT = 0.4
PATHS = {
    "laptop": ("electronics", "computers", "laptop"),
    "laptop bag": ("luggage", "laptop bag"),
    "mug": ("household", "tableware", "mug"),
    "bottle": ("household", "tableware", "bottle"),
    "lamp": ("household", "lamp"),
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A catalog whose labels have parents, and a model that was told of them."""
    from retailray.cli import main

    folder = tmp_path_factory.mktemp("taxonomy")
    write_catalog(str(folder), num_images=300, label_noise=0.0, seed=40)
    rows = pd.read_csv(folder / "catalog.csv", dtype=str)
    paths = {label: PATHS.get(label, ("clothing", label)) for label in rows.true_label.dropna().unique()}
    rows["category"] = [" > ".join(paths[label][:-1]) for label in rows.true_label]
    rows["full"] = [" > ".join(paths[label]) for label in rows.true_label]
    rows.to_csv(folder / "catalog.csv", index=False)
    pairs = {(child, parent) for path in paths.values() for parent, child in zip(("", *path), path, strict=False)}
    pd.DataFrame(sorted(pairs), columns=["child", "parent"]).to_csv(folder / "pairs.csv", index=False)
    settings = {"catalog.uri": folder / "catalog.csv", "catalog.group": "sku", "catalog.max_pixels": 20_000_000}
    training = {"catalog.label": "true_label", "catalog.parent": "category", "catalog.label_separator": ">"}
    training |= {"split.validation": 0.4, "model.arch": "cnn3", "transform.image_size": 32}
    training |= {"transform.resize_size": 36, "train.epochs": 8, "train.batch_size": 16, "out": folder / "train"}
    assert main(words_of("train", settings | training)) == 0
    bundle = f"{latest(str(folder / 'train'))}/bundle"
    # a weak model: some of its rows are that sure of a class, and more of an ancestor
    change_meta(Path(bundle), lambda meta: meta | {"thresholds": {"accept": ACCEPT, "abstain": 0.1}})
    return {"folder": folder, "paths": paths, "settings": settings, "bundle": bundle}


@pytest.fixture
def score(shop, retailray, tmp_path):
    def run(*, code=0, **changes):
        settings = shop["settings"] | {"model.uri": shop["bundle"], "score.top_k": 8, "out": tmp_path}
        done, told, err = retailray("score", **settings | {"score.max_error_rate": 1} | changes)
        assert done == code, err
        if code:
            return err
        run = latest(str(tmp_path))
        return duckdb.sql(f"from '{run}/predictions/*.parquet'").df(), read_json(f"{run}/run.json"), events(told)

    return run


def test_a_bundle_knows_the_paths_of_its_labels(shop):
    meta = read_json(f"{shop['bundle']}/bundle.json")
    assert meta["taxonomy"] == {label: list(path) for label, path in shop["paths"].items()}


def test_rows_are_accepted_at_the_level_that_is_sure(shop, score):
    predictions, summary, told = score()
    assert audit_levels(predictions, shop["paths"], ACCEPT) == []
    found = summary["taxonomy"]
    accepted = predictions[predictions.decision == "accept"]
    whole = accepted.depth == [len(shop["paths"][row.topk_labels[0]]) for row in accepted.itertuples()]
    assert found["accepted_as_class"] == whole.sum()
    assert found["accepted_as_ancestor"] == (~whole).sum() > 0
    depths = accepted[~whole].depth.value_counts()
    assert found["by_depth"] == {str(depth): depths[depth] for depth in sorted(depths.index)}
    assert found["share"] == pytest.approx((predictions.decision == "accept").mean())
    assert [event["accepted_as_ancestor"] for event in told if event["event"] == "taxonomy"] == [(~whole).sum()]
    assert summary["decisions"]["accept"] == len(accepted)


def test_labels_that_are_paths_are_a_taxonomy_where_precision_is_asked_for(shop, retailray, score, tmp_path):
    """Kind of fault: a catalog whose labels merely are paths gets answers that are no classes, and nobody asked."""
    settings = shop["settings"] | {"catalog.label": "full", "catalog.label_separator": ">", "model.arch": "cnn1"}
    settings |= {"transform.image_size": 32, "transform.resize_size": 36, "train.epochs": 1}
    whole = {" > ".join(path) for path in shop["paths"].values()}
    for level, labels in (("last", set(shop["paths"])), ("path", whole)):
        code, _, err = retailray("train", **settings, **{"catalog.label_level": level}, out=tmp_path / level)
        assert code == 0, err
        bundle = f"{latest(str(tmp_path / level))}/bundle"
        meta = read_json(f"{bundle}/bundle.json")
        assert set(meta["taxonomy"]) == labels
        assert sorted(map(tuple, meta["taxonomy"].values())) == sorted(shop["paths"].values())
        plain, summary, _ = score(**{"model.uri": bundle})
        assert (summary["taxonomy"], "label_path" in plain) == (None, False)
        asked, summary, _ = score(**{"model.uri": bundle, "score.target_precision": 0.5})
        assert summary["taxonomy"]["accepted_as_class"] == 0
        assert set(asked.label_path[asked.decision != "accept"]) <= whole


def test_a_file_says_otherwise_and_nothing_is_inferred_again(shop, score):
    score()
    flat = {label: ("everything", path[0], label) for label, path in shop["paths"].items()}
    rows = {(path[0], "") for path in flat.values()} | {(path[1], path[0]) for path in flat.values()}
    rows |= {(label, path[1]) for label, path in flat.items()}
    uri = shop["folder"] / "flat.csv"
    pd.DataFrame(sorted(rows), columns=["child", "parent"]).to_csv(uri, index=False)
    predictions, _, told = score(**{"taxonomy.uri": uri})
    assert told[-1]["scored"] == 0
    assert audit_levels(predictions, flat, ACCEPT) == []
    assert "everything" not in set(predictions.pred_label), "a root of all labels is no answer"


def test_promises_of_ancestors_are_precisions_on_validation_rows(shop, score):
    predictions, summary, _ = score(**{"score.target_precision": 0.6})
    found = summary["taxonomy"]
    assert [one["depth"] for one in found["promises"]] == [2, 1]
    truth = predictions[predictions.decision == "accept"]
    deeper = np.array([len(shop["paths"][row.topk_labels[0]]) for row in truth.itertuples()])
    assert (truth.depth <= deeper).all()
    for row in truth.itertuples():
        assert row.label_path == " > ".join(shop["paths"][row.topk_labels[0]][: row.depth])


def test_a_shop_is_not_told_to_replace_what_is_exact_by_what_is_general(shop, score, tmp_path):
    """``score.export: layout`` of a catalog without products: answers that are classes, and what the shop said."""
    rows = pd.read_csv(shop["folder"] / "catalog.csv", dtype=str).drop_duplicates("image")
    rows["image"] = [str(shop["folder"] / str(name)) for name in rows.image]
    rows.to_csv(tmp_path / "c.csv", index=False)
    settings = {"catalog.uri": tmp_path / "c.csv", "catalog.group": "", "catalog.id": "image"}
    settings |= {"catalog.label": "true_label", "score.export": "layout"}
    predictions, summary, _ = score(**settings)
    assert summary["taxonomy"]["accepted_as_ancestor"] > 0
    told = pd.read_csv(f"{latest(str(tmp_path))}/export/layout.csv", dtype=str)
    assert set(told.true_label.dropna()) <= set(shop["paths"])
    general = predictions[(predictions.decision == "accept") & ~predictions.pred_label.isin(shop["paths"])]
    by_image = told.set_index("image").true_label
    assert (by_image[general.image].to_numpy() == general.true_label).all()


def test_measures_at_every_level(shop, retailray, tmp_path, score):
    """Top-1 by level and hierarchical precision, from the published predictions by pandas."""
    settings = shop["settings"] | {"model.uri": shop["bundle"], "out": tmp_path / "evaluate"}
    code, _, err = retailray("evaluate", **settings)
    assert code == 0, err
    metrics = read_json(f"{latest(str(tmp_path / 'evaluate'))}/metrics.json")
    predictions, _, _ = score()
    rows = predictions[predictions.label.isin(shop["paths"])]
    paths = [shop["paths"][label] for label in rows.label]
    guesses = [shop["paths"][labels[0]] for labels in rows.topk_labels]
    levels = metrics["taxonomy"]["levels"]
    assert [level["depth"] for level in levels] == [1, 2, 3]
    for level in levels:
        depth = level["depth"]
        right = [path[:depth] == guess[:depth] for path, guess in zip(paths, guesses, strict=True)]
        assert level["top1"] == pytest.approx(np.mean(right))
    assert levels[-1]["top1"] == pytest.approx(metrics["top1"])
    assert levels[0]["top1"] >= levels[1]["top1"] >= levels[2]["top1"]
    shared = [len({path[:at] for at in range(1, len(path) + 1)} & {guess[:at] for at in range(1, len(guess) + 1)})
              for path, guess in zip(paths, guesses, strict=True)]  # fmt: skip
    assert metrics["taxonomy"]["precision"] == pytest.approx(sum(shared) / sum(map(len, guesses)))
    assert metrics["taxonomy"]["recall"] == pytest.approx(sum(shared) / sum(map(len, paths)))


def test_a_column_names_the_parent(shop, retailray, tmp_path):
    settings = shop["settings"] | {"catalog.label": "true_label", "catalog.parent": "category", "model.arch": "cnn1"}
    settings |= {"transform.image_size": 32, "transform.resize_size": 36, "train.epochs": 1}
    code, _, err = retailray("train", **settings, out=tmp_path / "train")
    assert code == 0, err
    meta = read_json(f"{latest(str(tmp_path / 'train'))}/bundle/bundle.json")
    assert meta["taxonomy"]["mug"] == ["household > tableware", "mug"], "one parent, under its own name"
    rows = pd.read_csv(shop["folder"] / "catalog.csv", dtype=str)
    rows["image"] = [str(shop["folder"] / name) for name in rows.image]
    rows.loc[rows.index[rows.true_label == "mug"][0], "category"] = "toys"
    rows.to_csv(tmp_path / "two.csv", index=False)
    code, _, err = retailray("train", **settings | {"catalog.uri": tmp_path / "two.csv"}, out=tmp_path / "train")
    assert code == 1
    assert "catalog.parent = category: the label 'mug' has several parents: household > tableware and toys" in err
    code, _, err = retailray("train", **settings | {"catalog.parent": "nowhere"}, out=tmp_path / "train")
    assert (code, "nowhere" in err) == (1, True)


def test_a_label_that_the_file_lacks_is_told_before_any_work(shop, score, tmp_path):
    (tmp_path / "few.csv").write_text("child,parent\nmug,household\n")
    told = score(code=1, **{"taxonomy.uri": tmp_path / "few.csv"})
    assert "it does not have the labels" in told
    assert "catalog.label_map" in told
    assert not list(tmp_path.glob("run_id=*"))


def test_columns_of_the_output_are_refused_in_the_catalog(shop, score, tmp_path):
    rows = pd.read_csv(shop["folder"] / "catalog.csv", dtype=str).head(5)
    rows["image"] = [str(shop["folder"] / name) for name in rows.image]
    rows.assign(depth="3 cm").to_csv(tmp_path / "c.csv", index=False)
    assert "columns depth have names that the output uses" in score(code=1, **{"catalog.uri": tmp_path / "c.csv"})


def test_on_ray_rows_are_accepted_at_the_level_that_is_sure(shop, score, ray_session_cpus):
    predictions, summary, _ = score(**{"cluster.engine": "ray"})
    assert audit_levels(predictions, shop["paths"], ACCEPT) == []
    assert summary["taxonomy"]["accepted_as_ancestor"] > 0
    assert summary["taxonomy"]["share"] == pytest.approx((predictions.decision == "accept").mean())
