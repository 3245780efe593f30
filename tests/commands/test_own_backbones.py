"""``train`` and ``score`` with networks of timm and of transformers: as with torchvision's."""

import pytest

from tests.commands.helpers import latest, read_json, weights_of_three_libraries
from tests.commands.test_fine_tuning import assert_same_training, history_of, said

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def weights(shop):
    return weights_of_three_libraries(shop)


@pytest.mark.parametrize(
    ("arch", "depth"), [("timm:resnet10t", "last2"), ("timm:vit_tiny_patch16_224", "last1"), ("hf:small-vit", "last1")]
)
def test_kept_activations_train_as_the_pictures_do(arch, depth, shop, weights, retailray, tmp_path):
    """One step an epoch over all rows, so that the order in which they are drawn does not matter."""
    still = {"model.arch": arch, "model.weights": weights, "model.trainable": depth, "transform.augment": "none"}
    settings = shop | still | {"train.epochs": 2, "train.batch_size": 1000}
    code, out, err = retailray("train", **settings, out=tmp_path / "kept")
    assert code == 0, err
    assert said(out, "cache")[0]["activations_after_blocks"], "frozen blocks are run once"
    kept = latest(str(tmp_path / "kept"))
    uncached = {name: value for name, value in settings.items() if name != "train.cache_uri"} | {"train.cache": "off"}
    assert retailray("train", **uncached, out=tmp_path / "read")[0] == 0
    assert_same_training(history_of(kept), history_of(latest(str(tmp_path / "read"))), rtol=1e-3)
    meta = read_json(f"{kept}/bundle/bundle.json")
    assert meta["arch"] == arch
    catalog = {name: value for name, value in shop.items() if name.startswith("catalog.")}
    asked = {"model.uri": f"{kept}/bundle", "score.max_error_rate": 1}
    assert retailray("score", **catalog, **asked, out=tmp_path / "scores")[0] == 0
    # and again from the bundle, whose config builds the network
    again = settings | {"model.weights": f"{kept}/bundle", "train.epochs": 1, "model.trainable": "head"}
    code, _, err = retailray("train", **again, out=tmp_path / "again")
    assert code == 0, err
