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
from retailray.errors import ModelError
from retailray.scoring import int8
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
    write_catalog(str(folder / "shop"), num_images=300, label_noise=0.0, seed=30)
    settings = {"catalog.uri": folder / "shop/catalog.csv", "model.arch": "cnn2", "train.epochs": 16,
                "train.backbone_lr": 0.003,
                "train.batch_size": 16, "transform.image_size": 32, "transform.resize_size": 36,
                "split.validation": 0.3, "out": folder / "train"}  # fmt: skip
    assert main(words_of("train", SHOP | settings)) == 0
    return folder / "shop", Path(latest(str(folder / "train")), "bundle")


@pytest.fixture
def score(shop, retailray, tmp_path, monkeypatch):
    # on some ninety images of so small a network chance decides about 0.3 points, and another machine otherwise
    monkeypatch.setattr(int8, "MOST_LOSS", 0.05)

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
    [bundle] = (tmp_path / "out/_int8").iterdir()
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
    [bundle] = (tmp_path / "out/_int8").iterdir()
    kept = pd.read_parquet(bundle / "validation.parquet")
    by_id = pd.read_csv(shop[0] / "catalog.csv", dtype=str)
    names = kept.id if "/" in kept.id[0] else by_id.set_index("id").image[kept.id]
    shares, meta = (
        oracles.shares_of_cnn2(shop[1], [shop[0] / name for name in names], reduced=True),
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
    right = oracles.predict_int8(bundle, images)[0].argmax(1) == truth
    changed = right.astype(float) - (shares.argmax(1) == truth)
    assert told["top1_standard_error"] == pytest.approx(changed.std() / len(truth) ** 0.5, abs=0.005)


def test_it_is_made_once_and_a_second_run_scores_nothing(score, tmp_path):
    _, first = score()
    assert [event["event"] for event in first].count("int8_measured") == 1
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/_int8").rglob("*")}
    _, second = score()
    assert second[-1]["scored"] == 0
    assert second[-1]["reused"] == first[-1]["scored"]
    assert "int8" not in [event["event"] for event in second]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out/_int8").rglob("*")} == made


def test_its_bundle_predicts_so_everywhere_and_is_not_quantised_again(shop, score, retailray, tmp_path):
    """Kind of fault: the calibration of one network with the predictions of another."""
    score()
    [bundle] = (tmp_path / "out/_int8").iterdir()
    for number, precision in enumerate(("int8", "auto")):
        run, seen = score(**{"model.uri": bundle, "score.precision": precision, "out": tmp_path / str(number)})
        table = oracles.read(run, "predictions")
        expected, _ = oracles.predict_int8(bundle, [shop[0] / name for name in table.image])
        np.testing.assert_allclose(table.pred_score, expected.max(1), atol=TOLERANCE)
        assert "int8" not in [event["event"] for event in seen]
        assert not (tmp_path / str(number) / "_int8").exists()
    assert "is calibrated for its network in 8-bit integers" in score(
        code=2, **{"model.uri": bundle, "score.precision": "float32"}
    )
    code, _, err = retailray("export", **{"model.uri": bundle, "out": tmp_path / "onnx"})
    assert code == 1
    assert f"export the bundle that it was made of: {shop[1]}" in err


def test_a_catalog_that_is_the_folder_around_finds_no_rows_of_it(shop, score, retailray, tmp_path):
    """Kind of fault: what a run leaves below a folder of images is read as a part of the catalog."""
    folder = tmp_path / "classes"
    for name in ("a", "b"):
        shutil.copytree(shop[0] / "images", folder / name) if (shop[0] / "images").exists() else None
    if not folder.exists():
        pytest.skip("the catalog has no folder of images")
    for out in (folder / "scores",) * 2:
        settings = {"catalog.uri": folder, "model.uri": shop[1], "score.precision": "int8", "out": out}
        code, seen, err = retailray("score", **settings, **{"score.max_error_rate": 1, "catalog.max_pixels": 2e7})
        assert code == 0, err
    assert events(seen)[-1]["scored"] == 0


def test_a_plan_makes_nothing(shop, retailray, tmp_path):
    settings = {"catalog.uri": shop[0] / "catalog.csv", "model.uri": shop[1], "score.precision": "int8"}
    settings |= {"score.plan_only": "true", "out": tmp_path / "out"}
    code, out, err = retailray("score", **SHOP | settings)
    assert code == 0, err
    assert events(out)[-1]["to_score"] > 200
    assert not (tmp_path / "out/_int8").exists()


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
    [bundle] = (tmp_path / "out/_int8").iterdir()
    expected, _ = oracles.predict_int8(bundle, [shop[0] / name for name in table.image])
    np.testing.assert_allclose(table.pred_score, expected.max(1), atol=TOLERANCE)


@pytest.mark.parametrize(
    ("loss", "refused"),
    [
        ({}, False),
        ({"int8_top1": 0.8979}, False),
        ({"int8_top1": 0.8929}, True),
        ({"int8_probability": 0.7971}, False),
        ({"int8_probability": 0.7949}, True),
        ({"int8_probability": float("nan")}, True),
        ({"int8_top1": 0.95, "int8_probability": 0.79}, True),
    ],
)
def test_the_gate_allows_three_tenths_of_a_point_and_a_standard_error(loss, refused):
    measured = {"rows": 2000, "float32_top1": 0.9, "int8_top1": 0.9, "float32_probability": 0.8}
    measured |= {"int8_probability": 0.8, "top1_standard_error": 0.004, "probability_standard_error": 0.002} | loss
    if refused:
        with pytest.raises(ModelError, match=r"0\.3 points are allowed"):
            int8._refuse_a_worse_one("bundle", measured)
    else:
        int8._refuse_a_worse_one("bundle", measured)


def test_an_image_that_only_8_bits_ruin_counts_as_wrong():
    single, other, targets = np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32), np.arange(4)
    other[0] = np.nan
    single[3], other[3] = np.nan, np.nan
    measured = int8._measures(single, other, targets, temperature=1.0)
    assert (measured["rows"], measured["float32_top1"]) == (3, 1.0)
    assert measured["int8_top1"] == pytest.approx(2 / 3)


def _without_catalog(meta):
    return meta | {"config": {}}


def _of_a_catalog_that_is_gone(meta):
    return _of_another_catalog(meta, "/nowhere/catalog.csv")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_without_catalog, "does not say which images it was validated on"),
        (_of_a_catalog_that_is_gone, "make it readable again, or leave score.precision out: /nowhere/catalog.csv"),
    ],
)
def test_without_validation_images_the_way_out_is_told(shop, score, tmp_path, change, words):
    bundle = tmp_path / "changed"
    shutil.copytree(shop[1], bundle)
    change_meta(bundle, change)
    said = score(code=1, **{"model.uri": bundle})
    assert words in said
    assert len(said.strip().splitlines()) == 1


def test_other_images_under_the_same_ids_are_noticed(shop, score, tmp_path):
    """Kind of fault: a calibration on images that the labels are not of, which looks as good in either format."""
    folder, bundle = tmp_path / "shop", tmp_path / "changed"
    shutil.copytree(shop[0], folder)
    shutil.copytree(shop[1], bundle)
    change_meta(bundle, lambda meta: _of_another_catalog(meta, folder / "catalog.csv"))
    rows = pd.read_csv(folder / "catalog.csv", dtype=str)
    used = [name for name in rows.image.dropna().unique() if (folder / name).is_file()]
    for name, other in zip(used, np.roll(used, len(used) // 2), strict=True):
        shutil.copy(shop[0] / other, folder / name)
    said = score(code=1, **{"model.uri": bundle})
    assert "are classified otherwise than when it was trained" in said
    assert not (tmp_path / "out/_int8").exists()


def test_few_validation_images_are_refused(shop, score, tmp_path):
    folder, bundle = tmp_path / "shop", tmp_path / "changed"
    shutil.copytree(shop[0], folder)
    shutil.copytree(shop[1], bundle)
    change_meta(bundle, lambda meta: _of_another_catalog(meta, folder / "catalog.csv"))
    pd.read_csv(folder / "catalog.csv", dtype=str).head(80).to_csv(folder / "catalog.csv", index=False)
    assert "and 50 are needed to tell whether it predicts as well" in score(code=1, **{"model.uri": bundle})


def test_images_that_are_gone_are_told(shop, score, tmp_path):
    """Kind of fault: nothing to begin with ends in a fault of numpy's."""
    bundle = tmp_path / "changed"
    shutil.copytree(shop[1], bundle)
    (tmp_path / "shop").mkdir()
    shutil.copy(shop[0] / "catalog.csv", tmp_path / "shop")
    change_meta(bundle, lambda meta: _of_another_catalog(meta, tmp_path / "shop/catalog.csv"))
    assert "0 validation images are found that can be read" in score(code=1, **{"model.uri": bundle})


def _of_another_catalog(meta, uri):
    return meta | {"config": meta["config"] | {"catalog": meta["config"]["catalog"] | {"uri": str(uri)}}}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"score.compile": "on"}, "score.compile on would be ignored"),
        (
            {"cluster.use_gpu": "true"},
            "8-bit integers (score.precision int8) are for CPUs, and cluster.use_gpu is true",
        ),
    ],
)
def test_settings_that_contradict_it_are_refused(score, settings, words):
    assert words in score(code=2, **settings)


def test_missing_packages_are_named(score, monkeypatch):
    monkeypatch.setitem(sys.modules, "nncf", None)
    assert "pip install 'retailray[int8]'" in score(code=1)


def test_a_changed_network_is_noticed(score, tmp_path):
    score()
    [bundle] = (tmp_path / "out/_int8").iterdir()
    (bundle / "int8.bin").write_bytes(b"other" + (bundle / "int8.bin").read_bytes()[5:])
    said = score(code=1, **{"score.rescore": "all"})
    assert "int8.bin is not what MANIFEST says" in said


def test_what_reports_to_its_makers_is_not_imported(score):
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
