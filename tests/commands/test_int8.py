"""``score.precision: int8``: what is published, by OpenVINO from the files; the gate, and what is refused."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
import torchvision

from retailray.data.synthetic import write_catalog
from tests import oracles
from tests.commands.helpers import change_meta, events, latest, read_json, words_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not importlib.util.find_spec("openvino"), reason="pip install 'retailray[int8]'"),
]
# a level more or less of one pixel, which other decoding makes, is now and then a step of 8 bits
TOLERANCE = 0.02
SHOP = {"catalog.group": "sku", "catalog.max_pixels": 20_000_000}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A catalog, and a bundle that learned it; its own rows are scored."""
    from retailray.cli import main

    folder = tmp_path_factory.mktemp("int8")
    write_catalog(str(folder / "shop"), num_images=240, label_noise=0.0, seed=30)
    settings = {"catalog.uri": folder / "shop/catalog.csv", "model.arch": "cnn2", "train.epochs": 8,
                "train.batch_size": 16, "transform.image_size": 32, "transform.resize_size": 36,
                "split.validation": 0.3, "out": folder / "train"}  # fmt: skip
    assert main(words_of("train", SHOP | settings)) == 0
    return folder / "shop", Path(latest(str(folder / "train")), "bundle")


@pytest.fixture
def score(shop, retailray, tmp_path):
    def run(*, code=0, **changes):
        settings = {"catalog.uri": shop[0] / "catalog.csv", "model.uri": shop[1], "score.precision": "int8",
                    "score.max_error_rate": 1, "out": tmp_path / "out"}  # fmt: skip
        done, out, err = retailray("score", **SHOP | settings | changes)
        assert done == code, err
        return (latest(str(changes.get("out", tmp_path / "out"))), events(out)) if code == 0 else err

    return run


def test_predictions_and_validation_rows_are_those_of_openvino(shop, score, tmp_path):
    """Kind of fault: confidences and thresholds of another network than the one that predicts."""
    run, _ = score()
    [bundle] = (tmp_path / "out/int8").iterdir()
    table = oracles.read(run, "predictions")
    expected, meta = oracles.predict_int8(bundle, [shop[0] / name for name in table.image])
    assert (table.pred_label == np.array(meta["labels"])[expected.argmax(1)]).mean() > 0.99
    np.testing.assert_allclose(table.pred_score, expected.max(1), atol=TOLERANCE)
    told = read_json(f"{run}/run.json")
    assert told["forward_pass"] == "int8, not compiled"
    assert told["model_uri"] == str(bundle)
    assert told["int8"]["rows"] >= 20

    kept = pd.read_parquet(bundle / "validation.parquet")
    before = pd.read_parquet(shop[1] / "validation.parquet")
    assert dict(zip(kept.id, kept.role, strict=True)) == dict(zip(before.id, before.role, strict=True))
    image_of = pd.read_csv(shop[0] / "catalog.csv", dtype=str).set_index("id").image if "/" not in kept.id[0] else None
    names = kept.id if image_of is None else image_of[kept.id]
    expected, _ = oracles.predict_int8(bundle, [shop[0] / name for name in names])
    np.testing.assert_allclose(kept.pred_score, expected.max(1), atol=TOLERANCE)
    fitted = (kept.role == "temperature").to_numpy()
    truth = [meta["labels"].index(label) for label in kept.label]

    def loss(factor):
        shares = expected[fitted] ** factor
        return -np.log((shares / shares.sum(1, keepdims=True))[np.arange(fitted.sum()), np.array(truth)[fitted]]).mean()

    assert loss(1) <= min(loss(0.9), loss(1.1)) + 1e-4, "the temperature is the best for this network"


def test_what_it_measures_is_what_both_networks_say(shop, score, tmp_path):
    run, _ = score()
    [bundle] = (tmp_path / "out/int8").iterdir()
    kept = pd.read_parquet(bundle / "validation.parquet")
    by_id = pd.read_csv(shop[0] / "catalog.csv", dtype=str)
    names = kept.id if "/" in kept.id[0] else by_id.set_index("id").image[kept.id]
    shares, meta = (
        oracles.shares_of_cnn2(shop[1], [shop[0] / name for name in names]),
        read_json(f"{bundle}/bundle.json"),
    )
    truth = np.array([meta["labels"].index(label) for label in kept.label])
    told = read_json(f"{run}/run.json")["int8"]
    assert told["rows"] == len(kept)
    assert told["float32_top1"] == pytest.approx((shares.argmax(1) == truth).mean(), abs=0.011)
    assert told["float32_probability"] == pytest.approx(shares[np.arange(len(truth)), truth].mean(), abs=0.002)
    assert told["int8_top1"] == pytest.approx((kept.pred_label == kept.label).mean())
    assert told["int8_top1"] > 2 / len(meta["labels"])
    images = [shop[0] / name for name in names]
    int8 = oracles.predict_int8(bundle, images)[0].argmax(1) == truth
    changed = int8.astype(float) - (shares.argmax(1) == truth)
    assert told["top1_standard_error"] == pytest.approx(changed.std() / len(truth) ** 0.5, abs=0.005)


def test_it_is_made_once_and_a_second_run_scores_nothing(score, tmp_path):
    _, first = score()
    assert [event["event"] for event in first].count("int8_measured") == 1
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/int8").rglob("*")}
    _, second = score()
    assert second[-1]["scored"] == 0
    assert second[-1]["reused"] == first[-1]["scored"]
    assert "int8" not in [event["event"] for event in second]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out/int8").rglob("*")} == made


def test_the_bundle_serves_other_commands(shop, score, retailray, tmp_path):
    """`evaluate` of it measures the network in 8-bit integers."""
    run, _ = score()
    [bundle] = (tmp_path / "out/int8").iterdir()
    settings = {"catalog.uri": shop[0] / "catalog.csv", "model.uri": bundle, "out": tmp_path / "evaluate"}
    code, _, err = retailray("evaluate", **SHOP | settings)
    assert code == 0, err
    table = oracles.read(run, "predictions").dropna(subset=["label"])
    top1 = read_json(f"{latest(str(tmp_path / 'evaluate'))}/metrics.json")["top1"]
    assert top1 == pytest.approx((table.pred_label == table.label).mean(), abs=0.01)


def test_a_plan_makes_nothing(shop, retailray, tmp_path):
    settings = {"catalog.uri": shop[0] / "catalog.csv", "model.uri": shop[1], "score.precision": "int8"}
    settings |= {"score.plan_only": "true", "out": tmp_path / "out"}
    code, out, err = retailray("score", **SHOP | settings)
    assert code == 0, err
    assert events(out)[-1]["to_score"] > 200
    assert not (tmp_path / "out/int8").exists()


def test_a_network_that_8_bits_ruin_is_refused_with_the_numbers(shop, score, tmp_path):
    """One channel a hundred thousand times as large as the others, and what reads it as much smaller: the same in
    float32, but 8 bits leave nothing of the other channels."""
    bundle = tmp_path / "ruined"
    shutil.copytree(shop[1], bundle)
    weights = safetensors.torch.load_file(bundle / "model.safetensors")
    names = sorted(name for name in weights if name.startswith("convolutions") and name.endswith("weight"))
    first, second = names[:2]
    for name in (first, first.replace("weight", "bias")):
        weights[name][0] *= 1e5
    weights[second][:, 0] /= 1e5
    safetensors.torch.save_file(weights, bundle / "model.safetensors")
    change_meta(bundle, lambda meta: meta)
    said = score(code=1, **{"model.uri": bundle})
    assert "score.precision = int8: on" in said
    assert "top-1 accuracy falls from" in said
    assert "Nothing was scored; leave score.precision out" in said
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("run_id=*"))


def test_a_model_from_elsewhere_is_quantised_on_the_rows_that_calibrated_it(shop, score, retailray, tmp_path):
    torch.manual_seed(0)
    rows = pd.read_csv(shop[0] / "catalog.csv", dtype=str)
    labels = sorted(set(rows.label.dropna()))
    torch.save(torchvision.models.resnet18(num_classes=len(labels)).state_dict(), tmp_path / "r18.pth")
    (tmp_path / "labels.txt").write_text("\n".join(labels))
    settings = {"catalog.uri": shop[0] / "catalog.csv", "bundle.source": tmp_path / "r18.pth",
                "bundle.arch": "resnet18", "bundle.labels": tmp_path / "labels.txt",
                "out": tmp_path / "own"}  # fmt: skip
    code, _, err = retailray("bundle", **SHOP | settings)
    assert code == 0, err
    run, _ = score(**{"model.uri": f"{latest(str(tmp_path / 'own'))}/bundle"})
    table = oracles.read(run, "predictions")
    [bundle] = (tmp_path / "out/int8").iterdir()
    expected, _ = oracles.predict_int8(bundle, [shop[0] / name for name in table.image])
    np.testing.assert_allclose(table.pred_score, expected.max(1), atol=TOLERANCE)


def _without_catalog(meta):
    return meta | {"config": {}}


def _of_a_catalog_that_is_gone(meta):
    return meta | {"config": meta["config"] | {"catalog": meta["config"]["catalog"] | {"uri": "/nowhere/catalog.csv"}}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_without_catalog, "does not say which images it was validated on"),
        (_of_a_catalog_that_is_gone, "/nowhere/catalog.csv"),
    ],
)
def test_without_validation_images_the_way_out_is_told(shop, score, tmp_path, change, words):
    bundle = tmp_path / "changed"
    shutil.copytree(shop[1], bundle)
    change_meta(bundle, change)
    said = score(code=1, **{"model.uri": bundle})
    assert words in said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"score.compile": "on"}, "score.compile on would be ignored"),
        ({"cluster.use_gpu": "true"}, "score.precision int8 is for CPUs, and cluster.use_gpu is true"),
    ],
)
def test_settings_that_contradict_it_are_refused(score, settings, words):
    assert words in score(code=2, **settings)


def test_missing_packages_are_named(score, monkeypatch):
    monkeypatch.setitem(sys.modules, "nncf", None)
    assert "pip install 'retailray[int8]'" in score(code=1)


def test_a_changed_network_is_noticed(score, tmp_path):
    score()
    [bundle] = (tmp_path / "out/int8").iterdir()
    (bundle / "int8.bin").write_bytes(b"other" + (bundle / "int8.bin").read_bytes()[5:])
    said = score(code=1, **{"score.rescore": "all"})
    assert "int8.bin is not what MANIFEST says" in said


def test_nothing_is_sent_to_its_makers(score):
    """OpenVINO reports its use unless a package of its own is missing."""
    score()
    assert sys.modules["openvino_telemetry"] is None


def test_on_ray_and_a_store_predictions_are_the_same(shop, score, ray_session_cpus, bucket):
    import fsspec

    here = oracles.read(score()[0], "predictions").set_index("image")
    run, _ = score(**{"cluster.engine": "ray", "out": f"{bucket}/out"})
    names = fsspec.core.url_to_fs(bucket)[0].glob(f"{run}/predictions/*.parquet")
    there = pd.concat([pd.read_parquet(f"s3://{name}") for name in names]).set_index("image")
    assert json.loads(fsspec.open(f"{run}/run.json").open().read())["forward_pass"] == "int8, not compiled"
    assert (here.pred_label == there.pred_label[here.index]).mean() > 0.99
    np.testing.assert_allclose(here.pred_score, there.pred_score[here.index], atol=TOLERANCE)
