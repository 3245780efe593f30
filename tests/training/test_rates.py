"""Learning rates that nobody gave: by family, and by the size of a batch."""

import pytest

from retailray.config import TrainConfig, TuneConfig
from retailray.models.backbones import build_model
from retailray.models.torchvision_blocks import to_blocks
from retailray.training.phases import resolve


def rates(arch="resnet18", **settings):
    sections = {"catalog": {"uri": "/c.csv"}, "out": "/o", "model": {"arch": arch, "weights": "w.pth"}}
    for key, value in settings.items():
        section, name = key.split("__")
        sections.setdefault(section, {})[name] = value
    config = TrainConfig.model_validate(sections)
    return [(phase.head_lr, phase.backbone_lr) for phase in resolve(config, to_blocks(build_model(arch, 3)))]


@pytest.mark.parametrize(
    ("arch", "expected"),
    [("resnet18", 1e-3), ("mobilenet_v2", 1e-3), ("convnext_tiny", 5e-5), ("vit_b_32", 5e-5), ("swin_t", 5e-5)],
)
def test_pretrained_networks_with_layer_norm_learn_slowly(arch, expected):
    """Kind of fault: a rate for convolutions undoes what a transformer was pretrained for."""
    assert rates(arch) == [(3e-3, expected)] * 2
    assert rates(arch, model__trainable="head", train__batch_size=8)[0][0] == 1e-2
    assert rates(arch, train__backbone_lr=0.7, train__head_lr=0.5) == [(0.5, 0.7)] * 2, "what is given holds"


def test_with_sgd_their_rate_is_that_of_others():
    """The recipes of low rates are AdamW's."""
    assert rates("swin_t", train__optimizer="sgd")[-1] == (3e-3, 1e-3)


def test_from_random_weights_all_networks_learn_at_one_rate():
    assert rates("vit_b_32", model__weights="none")[-1] == (3e-3, 1e-3)


@pytest.mark.parametrize(("optimizer", "factor"), [("adamw", 4.0), ("sgd", 16.0)])
def test_default_rates_grow_with_the_batch(optimizer, factor):
    """Sixteen times the batch: as many times the rate with SGD, the square root of it with AdamW; none for less."""
    given = {"train__optimizer": optimizer}
    assert rates(**given, train__batch_size=1024)[-1] == pytest.approx((3e-3 * factor, 1e-3 * factor))
    assert rates(**given, train__batch_size=16)[-1] == rates(**given)[-1] == (3e-3, 1e-3)
    assert rates(**given, train__batch_size=1024, train__head_lr=0.01, train__backbone_lr=0.02)[-1] == (0.01, 0.02)


@pytest.mark.parametrize("arch", ["resnet18", "swin_t"])
def test_a_search_looks_around_the_default(arch):
    sections = {"catalog": {"uri": "/c.csv"}, "out": "/o", "model": {"arch": arch, "weights": "w.pth"}}
    low, high = TuneConfig.model_validate(sections).space["train.backbone_lr"].loguniform
    assert low < rates(arch)[-1][1] < high
