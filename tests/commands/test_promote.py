"""Champion and challenger: compared on the same rows, moved through a gate, moved back, with a history."""

import duckdb
import pandas as pd
import pytest

from retailray.data.synthetic import write_catalog
from retailray.models.bundle import load_bundle, save_bundle
from retailray.models.registry import history, resolve
from retailray.models.weights import pretrained_model
from tests.commands.helpers import events, latest, read_json, read_text, words_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def registry(small_bundle, tmp_path_factory):
    """Two versions of other random weights, and a catalog on which the first is right two times in three."""
    from retailray.cli import main

    folder = tmp_path_factory.mktemp("registry")
    bundle = load_bundle(small_bundle[0])
    for version, seed in (("v1", 1), ("v2", 2)):
        model, *_ = pretrained_model("cnn1", "none", len(bundle.meta.labels), seed=seed, image_size=32)
        meta = bundle.meta.model_copy(update={"name": "products", "version": version})
        state = {name: tensor * 80 if name == "head.weight" else tensor for name, tensor in model.state_dict().items()}
        save_bundle(str(folder / f"models/products/{version}"), meta, state)
    write_catalog(str(folder / "shop"), num_images=60, label_noise=0.0, seed=11)
    settings = {"catalog.uri": folder / "shop/catalog.csv", "model.uri": folder / "models/products/v1"}
    settings |= {"out": folder / "scores", "score.max_error_rate": 1}
    assert main(words_of("score", settings)) == 0
    predictions = duckdb.sql(f"from '{latest(str(folder / 'scores'))}/predictions/*.parquet' order by image").df()
    labels = predictions.pred_label.to_list()
    labels[::3] = ["lamp" if label == "mug" else "mug" for label in labels[::3]]
    predictions[["image"]].assign(label=labels).to_csv(folder / "shop/labelled.csv", index=False)
    return folder


def test_the_gate_lets_the_better_one_through_and_back(registry, retailray, tmp_path):
    models = registry / "models/products"
    alias = f"{models}@champion"
    gate = {
        "catalog.uri": registry / "shop/labelled.csv",
        "promote.min_rows": 20,
        "promote.split": "all",
        "out": tmp_path / "gate",
    }

    def promote(version, **changes):
        return retailray("promote", **gate | {"model.uri": models / version} | changes)

    code, _, err = retailray("score", **{"catalog.uri": gate["catalog.uri"], "model.uri": alias, "out": tmp_path / "s"})
    assert (code, "never set" in err) == (1, True)
    assert promote("v2")[0] == 0, "without a champion nothing speaks against it"
    code, out, _ = promote("v1", **{"promote.reason": "it knows mugs"})
    assert code == 0
    assert events(out)[-1]["top1"] == pytest.approx(2 / 3, abs=0.02)
    assert resolve(alias) == f"{models}/v1"
    code, out, _ = promote("v1")
    assert (code, events(out)[-1]["note"]) == (0, "it is the champion already")
    code, _, err = promote("v2")
    assert code == 4
    assert "stays v1" in err
    assert "promote.max_loss allows -0.01" in err
    decision = read_json(f"{latest(str(tmp_path / 'gate'))}/decision.json")
    assert (decision["passed"], decision["top1"]["champion"]) == (False, pytest.approx(2 / 3, abs=0.02))
    moves = history(str(models), "champion")
    assert [(move.version, move.previous) for move in moves] == [("v2", None), ("v1", "v2")]
    assert moves[1].reason == "it knows mugs"
    assert moves[1].evidence["top1"]["champion"] < 0.5
    assert read_json(f"{moves[1].evidence['run']}/decision.json")["passed"]
    # the alias serves, and a row leads to the version
    code, _, err = retailray("score", **{"catalog.uri": gate["catalog.uri"], "model.uri": alias, "out": tmp_path / "s"})
    assert code == 0, err
    rows = duckdb.sql(f"from '{latest(str(tmp_path / 's'))}/predictions/*.parquet'").df()
    assert set(rows.model_version) == {"v1"}
    assert (rows.label == rows.pred_label).mean() == pytest.approx(2 / 3, abs=0.02)
    code, out, _ = retailray("rollback", **{"model.uri": alias})
    assert (code, events(out)[-1]["before"]) == (0, "v1")
    assert resolve(alias) == f"{models}/v2"
    assert len(history(str(models), "champion")) == 3
    code, _, err = retailray("rollback", **{"model.uri": models / "v1"})
    assert (code, "an alias" in err) == (2, True)


def test_a_comparison_counts_what_pandas_counts(registry, retailray, tmp_path):
    models = registry / "models/products"
    settings = {"catalog.uri": registry / "shop/labelled.csv", "model.uri": models / "v1"}
    settings |= {"compare.baseline": models / "v2", "out": tmp_path}
    code, _, err = retailray("compare", **settings)
    assert code == 0, err
    run = latest(str(tmp_path))
    found = read_json(f"{run}/comparison.json")
    labelled = pd.read_csv(registry / "shop/labelled.csv")
    changes = pd.read_parquet(f"{run}/changes.parquet")
    assert found["both"] == len(labelled)
    top1 = found["top1"]
    assert found["changed"] == len(changes)
    wins, losses = ((changes.label == changes[f"{side}_label"]).sum() for side in ("challenger", "champion"))
    assert (top1["only_challenger"], top1["only_champion"]) == (wins, losses)
    assert top1["difference"] == pytest.approx((wins - losses) / len(labelled))
    assert top1["challenger"] - top1["champion"] == pytest.approx(top1["difference"])
    low, high = top1["interval"]
    assert 0 < low < top1["difference"] < high < 1
    assert top1["p_value"] < 0.001
    assert sum(row["rows"] for row in found["changes"]) == len(changes)
    page = read_text(f"{run}/report.html")
    assert page.count("data:image/jpeg") == min(24, len(changes))
