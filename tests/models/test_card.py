"""Model cards, read as Hugging Face reads them: YAML between two lines of dashes, then Markdown."""

import json

import pytest
import yaml

from retailray.models.backbones import build_model
from retailray.models.bundle import BundleMeta, EvalTransform, copy_bundle, load_bundle, save_bundle

LABELS = ["a|b", "mug", "x\ny"]


def meta_of(**changes):
    transform = EvalTransform(resize_size=36, crop_size=32, mean=(0.5,) * 3, std=(0.2,) * 3)
    facts = {"name": "shop", "version": "v1", "arch": "cnn1", "labels": LABELS, "transform": transform}
    return BundleMeta(**facts | changes)


@pytest.fixture
def saved(tmp_path):
    meta = meta_of(
        metrics={"epoch": 3, "validation_top1": 0.75, "validation_macro_f1": 0.7, "validation_loss": 0.5},
        data={"catalog": "s3://shop/c.csv", "labels": {"a|b": 3, "mug": 20, "x\ny": 1}},
        config={"model": {"weights": "resnet.pth"}},
    )
    save_bundle(str(tmp_path / "bundle"), meta, build_model("cnn1", 3, image_size=32).state_dict())
    return tmp_path / "bundle"


def test_its_facts_are_the_bundles(saved):
    told = json.loads((saved / "bundle.json").read_text())
    _, front, text = (saved / "README.md").read_text().split("---\n", 2)
    facts = yaml.safe_load(front)
    assert facts["pipeline_tag"] == "image-classification"
    [result] = facts["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == told["metrics"]["validation_top1"]
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    table = {row[0].removeprefix("| "): row[1].removesuffix(" |") for row in rows if len(row) == 2}
    assert {name: table[name] for name in ("mug", "a\\|b", "x y")} == {"mug": "20", "a\\|b": "3", "x y": "1"}
    assert table["top-1"] == "0.7500"
    for words in ("s3://shop/c.csv", "resnet.pth", "one of 3 labels", "confidence of 0.8", "`v1`"):
        assert words in text


def test_it_goes_with_the_bundle(saved, tmp_path):
    copy_bundle(str(saved), str(tmp_path / "registry/shop/v1"))
    assert (tmp_path / "registry/shop/v1/README.md").read_bytes() == (saved / "README.md").read_bytes()
    assert load_bundle(str(tmp_path / "registry/shop/v1")).meta.name == "shop"


def test_a_bundle_that_was_never_measured_has_one_too(tmp_path):
    meta = meta_of(labels=[f"label {number}" for number in range(150)])
    save_bundle(str(tmp_path / "bundle"), meta, build_model("cnn1", 150, image_size=32).state_dict())
    text = (tmp_path / "bundle/README.md").read_text()
    assert "None were taken" in text
    assert "50 more labels are in `bundle.json`" in text
    assert "model-index" not in text
