"""``check.label_errors``: planted wrong labels on generated pictures, through the page and back as corrections."""

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import s3fs

from retailray.data.synthetic import write_catalog
from tests.commands.helpers import events, latest, read_json, words_of

pytestmark = pytest.mark.slow
SIZES = {"transform.image_size": 32, "transform.resize_size": 36, "catalog.max_pixels": 20_000_000}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A bundle that was trained on other pictures with right labels."""
    from retailray.cli import main

    folder = tmp_path_factory.mktemp("model")
    write_catalog(str(folder / "catalog"), num_images=300, label_noise=0.0, seed=20)
    settings = {"catalog.uri": folder / "catalog/catalog.csv", "catalog.group": "sku", "model.arch": "cnn3",
                "train.epochs": 8, "train.batch_size": 16, "out": folder / "train"}  # fmt: skip
    assert main(words_of("train", SIZES | settings)) == 0
    return f"{latest(str(folder / 'train'))}/bundle"


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("label_errors")
    write_catalog(str(folder), num_images=240, label_noise=0.05, seed=21)
    return folder


@pytest.fixture
def check(shop, model, retailray, tmp_path):
    def run(*, code=0, **changes):
        settings = {"catalog.uri": shop / "catalog.csv", "catalog.group": "sku", "catalog.max_pixels": 20_000_000,
                    "check.label_errors": "true", "check.model": model, "out": tmp_path}  # fmt: skip
        done, told, err = retailray("check", **settings | changes)
        assert done == code, err
        return (latest(str(tmp_path)), events(told)) if code in (0, 4) else err

    return run


def test_every_label_is_ranked_and_the_wrong_ones_come_first(shop, check):
    run, told = check()
    table = pd.read_parquet(f"{run}/label_errors.parquet")
    images = pd.read_parquet(f"{run}/images.parquet")
    source = pd.read_csv(shop / "catalog.csv", dtype=str)
    readable = images[(images.error_code == "") & (images.label != "")]
    assert sorted(table.id) == sorted(readable.id)
    assert table.score.is_monotonic_increasing
    rows = source.set_index("image").loc[table.image]
    assert (rows.label.to_numpy() == table.label).all()
    assert set(table.suggested) <= set(source.label.dropna())
    assert ((table.score >= 0) & (table.score <= 1)).all()
    wrong = (rows.label != rows.true_label).to_numpy()
    assert wrong[: wrong.sum()].mean() > 10 * wrong.mean() * 0.5, "half of them at the least, and not one in twenty"
    found = np.flatnonzero(wrong)[np.flatnonzero(wrong) < wrong.sum()]
    assert (table.suggested.to_numpy() == rows.true_label.to_numpy())[found].mean() > 0.5
    found = {finding["name"]: finding["count"] for finding in read_json(f"{run}/check.json")["findings"]}
    assert found["label_errors"] == table.suspicious.sum() == told[-1]["findings"]["label_errors"] > 0
    assert (table.suggested != table.label)[table.suspicious].all()
    assert "Suspicious labels" in Path(run, "report.html").read_text()
    assert not Path(run, "features-model").exists()


def test_what_the_page_saves_mends_the_labels(shop, check, retailray, tmp_path):
    """The page of the run names each suspicious row; a file as it saves one is taken by ``catalog.corrections``."""
    run, _ = check()
    table = pd.read_parquet(f"{run}/label_errors.parquet")
    page = Path(run, "review/index.html").read_text()
    suspicious = table[table.suspicious]
    assert all(f'"{name}"' in page for name in suspicious.id)
    with open(tmp_path / "said.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["item_id", "label"])
        writer.writerows(zip(suspicious.id, suspicious.suggested, strict=True))
    run, _ = check(**{"catalog.corrections": tmp_path / "said.csv"})
    again = pd.read_parquet(f"{run}/label_errors.parquet").set_index("id")
    assert (again.label[suspicious.id].to_numpy() == suspicious.suggested).all()
    assert again.suspicious.sum() < len(suspicious)
    assert again.confirmed[suspicious.id].all()
    assert not again.suspicious[suspicious.id].any(), "a person has said so"
    assert again.confirmed.sum() == len(suspicious)


def test_a_gate_may_ask_for_them(check):
    run, _ = check(code=4, **{"check.fail_on": "label_errors"})
    assert Path(run, "label_errors.parquet").exists()


def test_a_backbone_with_weights_will_do(shop, retailray, tmp_path):
    """Features of weights that somebody staged: here of a network that nobody trained."""
    import safetensors.torch
    import torch

    from retailray.models.backbones import build_model

    torch.manual_seed(0)
    (tmp_path / "w.safetensors").write_bytes(safetensors.torch.save(build_model("resnet18", 1000).state_dict()))
    head = pd.read_csv(shop / "catalog.csv", dtype=str).head(60)
    head["image"] = [str(shop / name) for name in head.image]
    head.to_csv(tmp_path / "c.csv", index=False)
    settings = {"catalog.uri": tmp_path / "c.csv", "check.label_errors": "true", "model.arch": "resnet18"}
    settings |= {"model.weights": tmp_path / "w.safetensors", "out": tmp_path / "out"}
    code, _, err = retailray("check", **settings)
    assert code == 0, err
    assert len(pd.read_parquet(f"{latest(str(tmp_path / 'out'))}/label_errors.parquet")) == 60


@pytest.mark.parametrize(
    ("settings", "code", "words"),
    [
        ({"check.model": ""}, 2, "check.label_errors needs a model: model.arch with model.weights, or a bundle"),
        ({"check.label_errors": "false", "check.fail_on": "label_errors"}, 2, "with check.label_errors true only"),
        ({"check.model": "/nowhere/bundle"}, 1, "/nowhere/bundle: not found"),
        ({"check.model": "", "model.arch": "cnn1", "model.weights": "none"}, 1, "has no transform of its own"),
        ({"check.model": "", "model.arch": "resnet99"}, 1, "resnet99"),
        ({"check.model": "", "model.arch": "resnet18", "model.weights": "/nowhere.pth"}, 1, "/nowhere.pth"),
    ],
)
def test_bad_settings_are_told(check, settings, code, words):
    assert words in check(code=code, **settings)


@pytest.mark.parametrize(("kept", "words"), [(10, "there are 10 of"), (0, "there are 40 of 1")])
def test_too_few_labels_are_told(shop, check, tmp_path, kept, words):
    rows = pd.read_csv(shop / "catalog.csv", dtype=str)
    rows["image"] = [str(shop / name) for name in rows.image.fillna("none")]
    rows = rows[[Path(name).exists() for name in rows.image]].head(40)
    rows = rows.head(kept) if kept else rows.assign(label="mug")
    rows.to_csv(tmp_path / "few.csv", index=False)
    assert words in check(code=1, **{"catalog.uri": tmp_path / "few.csv"})


@pytest.mark.real
def test_flipped_labels_of_real_photos_are_found(real_data, retailray, tmp_path):
    """5 % of the labels of 21 classes that are hard to tell apart flipped within their group; of all 81 classes
    benchmarks/label_errors.py, which has aims of 0.87 (found) and 0.85 (the right one)."""
    photos, weights = real_data
    rows = pd.read_csv(photos / "train.csv")
    rows = rows[rows.coarse_name.isin(["Apple", "Juice", "Milk"])].reset_index(drop=True)
    rows["image"] = [f"{photos}/images/train/{name}.jpg" for name in rows.name]
    generator = np.random.default_rng(0)
    members = rows.drop_duplicates("fine_name").groupby("coarse_name").fine_name.apply(list)
    changed = generator.choice(len(rows), 35, replace=False)
    rows["label"] = rows.fine_name
    for row in changed:
        others = [name for name in members[rows.coarse_name[row]] if name != rows.fine_name[row]]
        rows.loc[row, "label"] = generator.choice(others)
    rows[["name", "image", "label"]].to_csv(tmp_path / "c.csv", index=False)
    settings = {"catalog.uri": tmp_path / "c.csv", "catalog.id": "name", "check.label_errors": "true",
                "model.arch": "mobilenet_v2", "model.weights": weights / "mobilenet_v2-imagenet.pth",
                "check.samples": 0, "out": tmp_path / "out"}  # fmt: skip
    code, _, err = retailray("check", **settings)
    assert code == 0, err
    first = pd.read_parquet(f"{latest(str(tmp_path / 'out'))}/label_errors.parquet").head(len(changed))
    truth = rows.set_index("name").fine_name[first.id].to_numpy()
    wrong = first.label != truth
    assert wrong.mean() >= 0.9
    assert (wrong & (first.suggested == truth)).mean() >= 0.85


def test_on_ray_and_a_store_the_order_is_the_same(shop, model, check, ray_session_cpus, retailray, s3_endpoint):
    fs = s3fs.S3FileSystem()
    fs.mkdir("label-errors")
    fs.put(f"{shop}/", "label-errors/shop/", recursive=True)
    run, _ = check()
    settings = {"catalog.uri": "s3://label-errors/shop/catalog.csv", "catalog.group": "sku", "check.model": model,
                "catalog.max_pixels": 20_000_000, "check.label_errors": "true", "cluster.engine": "ray",
                "out": "s3://label-errors/out"}  # fmt: skip
    code, _, err = retailray("check", **settings)
    assert code == 0, err
    here = pd.read_parquet(f"{run}/label_errors.parquet").set_index("id")
    there = pd.read_parquet(f"{latest('s3://label-errors/out')}/label_errors.parquet").set_index("id")
    assert sorted(there.index) == sorted(here.index)
    assert there.score.corr(here.score[there.index]) > 0.98
    assert fs.exists(f"{latest('s3://label-errors/out')}/review/index.html".removeprefix("s3://"))
