"""What a study makes of its models: settings of train that mean something for each, and one cluster for all."""

import re

import pytest
import yaml
from pydantic import ValidationError

from retailray.config import StudyConfig, TrainConfig

SCRATCH = {"name": "scratch", "model": {"arch": "cnn1"}}
HEAD = {"name": "head", "model": {"arch": "resnet18", "trainable": "head"}}
PHASES = {
    "name": "phases",
    "model": {"arch": "resnet18", "weights": "own.pth"},
    "phases": [{"epochs": 1, "trainable": "head"}, {"epochs": 3, "trainable": "all"}],
    "backbone_lr": 3e-4,
}


def study(*models, **sections):
    sections = {"train": {"epochs": 4}} | sections
    return StudyConfig(out="o", catalog={"uri": "/c.csv"}, study={"models": models, "weights": "/w.pth"}, **sections)


def test_shared_settings_are_for_the_models_that_they_mean_something_to():
    """Kind of fault: one model from scratch forbids train.num_views to all others."""
    config = study(SCRATCH, HEAD, train={"epochs": 4, "num_views": 2, "layer_decay": 0.5})
    scratch, head = (config.fit(model, 1, out="o").train for model in config.study.models)
    assert (scratch.num_views, scratch.layer_decay) == (None, 0.5)
    assert (head.num_views, head.layer_decay) == (2, 1.0)
    assert scratch.seed == head.seed == 1


def test_every_model_has_its_own_weights_phases_and_rates():
    config = study(SCRATCH, HEAD, PHASES)
    scratch, head, phases = (config.fit(model, 0, out="o") for model in config.study.models)
    assert [one.model.weights for one in (scratch, head, phases)][:2] == ["none", "/w.pth"]
    assert phases.model.weights.endswith("/own.pth")
    assert [phase.epochs for phase in phases.train.phases] == [1, 3]
    assert (phases.train.backbone_lr, scratch.train.epochs) == (3e-4, 4)


def test_what_is_asked_of_a_cluster_is_asked_once():
    """Kind of fault: a fit in one process refuses the machines that the study has asked for."""
    config = study(SCRATCH, cluster={"request_cpus": 4, "request_gpus": 2, "address": "host:6379"})
    fit = config.fit(config.study.models[0], 0, out="o").cluster
    assert (fit.engine, fit.address, fit.request_cpus, fit.request_gpus) == ("inline", None, None, None)


def test_what_is_wrong_with_the_splits_is_said_once():
    with pytest.raises(ValidationError) as error:
        StudyConfig(
            out="o",
            catalog={"uri": "/c.csv", "split": "s"},
            split={"test": 0.2},
            study={"models": [SCRATCH, HEAD | {"backbone_lr": 0.1}]},
        )
    text = str(error.value)
    assert text.count("catalog.split names the column") == 1
    assert "study.models: head: train.backbone_lr would be ignored" in text


@pytest.mark.parametrize("trainable", ["head", "last5"])
def test_the_winner_of_a_search_takes_part_by_its_file(trainable, tmp_path):
    """What ``tune`` writes names every setting of train, also those that mean nothing for this model or this study."""
    best = TrainConfig(
        out="elsewhere",
        catalog={"uri": "/other.csv"},
        model={"arch": "resnet18", "trainable": trainable, "weights": "/w.pth", "registry": "/models", "name": "x"},
        train={"head_lr": 0.02, "epochs": 9} | ({"backbone_lr": 0.005} if trainable != "head" else {}),
    )
    (tmp_path / "best.yaml").write_text(yaml.safe_dump(best.model_dump(mode="json")))
    config = study(SCRATCH, {"name": "tuned", "config": str(tmp_path / "best.yaml")})
    fit = config.fit(config.study.models[1], 0, out="o")
    assert (fit.model.arch, fit.model.trainable, fit.model.registry) == ("resnet18", trainable, None)
    assert (fit.train.head_lr, fit.train.epochs) == (0.02, 4)
    if trainable != "head":
        assert fit.train.backbone_lr == 0.005
    # what the run saves as its config reads as the same, also without the file
    saved = config.model_dump(mode="json")
    assert StudyConfig.model_validate(saved) == config
    own = study({"name": "tuned", "config": str(tmp_path / "best.yaml"), "head_lr": 0.5})
    assert own.fit(own.study.models[0], 0, out="o").train.head_lr == 0.5


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "no such"), ("a: [", "expected"), ("out: x", "no sections model and train")],
)
def test_a_file_that_is_no_config_of_train_is_named(text, words, tmp_path):
    path = tmp_path / "best.yaml"
    if text:
        path.write_text(text)
    with pytest.raises(ValidationError, match=re.escape(str(path))) as error:
        study({"name": "tuned", "config": str(path)})
    assert words in str(error.value).lower()
