"""``export``: the ONNX file is run by ONNX Runtime with Pillow alone, and must say what ``score`` publishes."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from retailray.cli import main
from retailray.data.scaling import Scaling
from retailray.errors import ModelError
from retailray.models import onnx_export
from retailray.models.bundle import load_bundle
from tests.commands.helpers import latest, read_json

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def exported(small_bundle, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("export"))
    assert main(["export", "--model.uri", small_bundle[0], "--out", out]) == 0
    return Path(latest(out))


def test_another_program_computes_what_score_publishes(exported, retailray, small_catalog, small_bundle, tmp_path):
    """Oracle: Pillow reads the file whole, ONNX Runtime does the rest; ``score`` reads JPEGs at a reduced scale."""
    settings = {"catalog.uri": small_catalog[0] / "catalog.csv", "catalog.max_pixels": 20_000_000}
    settings |= {"model.uri": small_bundle[0], "score.max_error_rate": 1, "score.precision": "float32"}
    assert retailray("score", **settings, out=tmp_path)[0] == 0
    published = pd.read_parquet(f"{latest(str(tmp_path))}/predictions").head(40)
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    labels = (exported / "labels.txt").read_text().splitlines()
    assert json.loads(session.get_modelmeta().custom_metadata_map["labels"]) == labels
    differences = []
    for row in published.itertuples():
        with Image.open(small_catalog[0] / row.image) as image:
            pixels = np.asarray(image.convert("RGB"))
        [[found]] = session.run(None, {"images": pixels[None]})
        assert found.sum() == pytest.approx(1, abs=1e-5)
        differences.append(abs(found[labels.index(row.pred_label)] - row.pred_score))
    assert np.median(differences) < 0.005
    assert max(differences) < 0.1


def test_the_file_and_its_facts(exported, small_bundle):
    onnx.checker.check_model(exported / "model.onnx", full_check=True)
    facts = read_json(exported / "run.json")
    assert facts["model_version"] == read_json(f"{small_bundle[0]}/bundle.json")["version"]
    assert 0 <= facts["largest_difference"] < 1e-3


SIZES = [(300, 400), (517, 333), (224, 1000), (61, 90), (256, 256)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "scaling",
    [
        Scaling(256, 224),
        Scaling(256, 224, "shorter_side", "bilinear"),
        Scaling(255, 224, "shorter_side", "bicubic", "down"),
        Scaling(236, 224, "stretch", "bicubic"),
    ],
    ids=str,
)
def test_the_graph_resizes_as_pillow_does(size, scaling):
    """Within two levels of 255: Pillow rounds to whole ones, after each of two passes."""
    noise = np.random.default_rng(1).integers(0, 256, (size[0] // 2, size[1] // 2, 3), np.uint8)
    image = Image.fromarray(noise).resize((size[1], size[0]))
    if scaling.resize == "central_square":
        side = min(size) * 224 / 256
        left, top = (size[1] - side) / 2, (size[0] - side) / 2
        expected = image.resize((224, 224), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    else:
        mode = v2.InterpolationMode(scaling.interpolation)
        wanted = scaling.resize_size if scaling.resize == "shorter_side" else [scaling.resize_size] * 2
        whole = v2.functional.resize(image, wanted, mode)
        expected = v2.functional.center_crop(whole, 224)
        if scaling.cut == "down":
            left, top = ((side - 224) // 2 for side in whole.size)
            expected = whole.crop((left, top, left + 224, top + 224))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    found = onnx_export.Resize(scaling)(pixels)[0].permute(1, 2, 0).numpy()
    differences = np.abs(found - np.asarray(expected, dtype=float))
    # where a cubic overshoots black or white, it counts which direction Pillow begins with, which depends on the sizes
    assert np.quantile(differences, 1.0 if scaling.interpolation == "bilinear" else 0.99) <= 1.03
    assert differences.max() <= 6


def test_a_graph_that_computes_something_else_is_refused(exported, retailray, small_bundle, tmp_path, monkeypatch):
    model = onnx.load(exported / "model.onnx")
    weights = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    weights.raw_data = (np.frombuffer(weights.raw_data, np.float32) * 1.5).tobytes()
    monkeypatch.setattr("retailray.export.to_onnx", lambda bundle: model.SerializeToString())
    code, _, err = retailray("export", **{"model.uri": small_bundle[0], "out": tmp_path})
    assert code == 1
    assert "ONNX Runtime's probabilities differ from torch's by up to" in err
    assert not list(tmp_path.rglob("model.onnx"))


def test_missing_packages_are_named_with_the_way_out(small_bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ModelError, match=r"pip install 'retailray\[onnx\]'"):
        onnx_export.to_onnx(load_bundle(small_bundle[0]))
