"""Acceptance with real weights of timm on real shop photos, which the model has never seen (RETAILRAY_REAL_DATA)."""

import json

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

from tests.commands.helpers import latest, read_json

pytestmark = [pytest.mark.real, pytest.mark.slow]
# what ImageNet has of the shop's products, by its number
PRODUCTS = {
    "936": "Cabbage",
    "939": "Zucchini",
    "943": "Cucumber",
    "948": "Granny-Smith",
    "950": "Orange",
    "951": "Lemon",
    "953": "Pineapple",
    "954": "Banana",
    "957": "Pomegranate",
}


def test_imagenet_weights_tell_fruit_of_a_shop_apart(real_data, retailray, tmp_path):
    """Nine of a thousand outputs are kept. Oracle: timm's own network and transform, softmax over these nine."""
    photos, weights = real_data
    source = weights / "tf_efficientnet_lite2.safetensors"
    table = pd.read_csv(photos / "val.csv")
    table = table[table.fine_name.isin(PRODUCTS.values())]
    table.assign(image=[f"{photos}/images/val/{name}.jpg" for name in table.name]).to_csv(tmp_path / "c.csv")
    (tmp_path / "labels.txt").write_text("\n".join(map(str, range(1000))))
    given = {
        "bundle.source": source,
        "bundle.arch": "timm:tf_efficientnet_lite2",
        "bundle.labels": tmp_path / "labels.txt",
        "bundle.label_map": json.dumps(PRODUCTS | {"*": None}),
    }
    catalog = {"catalog.uri": tmp_path / "c.csv", "catalog.label": "fine_name"}
    code, _, err = retailray("bundle", **given, **catalog, out=tmp_path / "bundles")
    assert code == 0, err
    bundle = f"{latest(str(tmp_path / 'bundles'))}/bundle"
    top1 = read_json(f"{bundle}/bundle.json")["metrics"]["validation_top1"]

    model = timm.create_model("tf_efficientnet_lite2")
    model.load_state_dict(safetensors.torch.load_file(source))
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    pixels = [transform(Image.open(f"{photos}/images/val/{name}.jpg").convert("RGB")) for name in table.name]
    with torch.inference_mode():
        logits = model.eval()(torch.stack(pixels))[:, [int(number) for number in PRODUCTS]]
    expected = np.array(list(PRODUCTS.values()))[logits.argmax(1)]
    right = float((expected == table.fine_name).mean())
    assert right > 0.8, "the weights are real, and so are the photos"
    assert top1 == pytest.approx(right, abs=0.05)  # in bfloat16 where that is faster

    asked = {"model.uri": bundle, "score.precision": "float32", "score.top_k": 9}
    assert retailray("score", **catalog, **asked, out=tmp_path / "scores")[0] == 0
    found = pd.read_parquet(f"{latest(str(tmp_path / 'scores'))}/predictions").set_index("name").loc[table.name]
    assert (found.pred_label == expected).all()
    temperature = read_json(f"{bundle}/bundle.json")["temperature"]
    probabilities = torch.softmax(logits / temperature, 1).amax(1).numpy()
    assert found.pred_score.to_numpy() == pytest.approx(probabilities, abs=1e-4)
