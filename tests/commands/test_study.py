"""A study of a few small models: its tables against its files, what is done once, and what is refused."""

import os
import re
from pathlib import Path

import pandas as pd
import pytest
import yaml

from retailray.cli import main
from tests import oracles
from tests.browser import launched, problems_of
from tests.commands.helpers import events, interrupt, latest, read_json, read_text, run_beside

EPOCHS = 2
MODELS = [
    {"name": "cnn1", "model": {"arch": "cnn1"}},
    {"name": "head", "model": {"arch": "squeezenet1_1", "trainable": "head"}},
    {
        "name": "two phases",
        "model": {"arch": "timm:resnet10t"},
        "phases": [{"epochs": 1, "trainable": "head"}, {"epochs": 1, "trainable": "all"}],
        "backbone_lr": 3e-4,
    },
]


@pytest.fixture(scope="module")
def article(tmp_path_factory):
    """The article's layout with a broken test picture, weights, and a config of three models."""
    import safetensors.torch
    import torch

    from retailray.data.synthetic import write_article_set
    from retailray.models.backbones import build_model

    folder = tmp_path_factory.mktemp("article")
    write_article_set(str(folder), seed=3, num_train=48, num_test=17)
    (folder / "images/test/test_00016.jpg").write_bytes(b"no picture")
    torch.manual_seed(0)
    for arch in ("squeezenet1_1", "timm:resnet10t"):
        weights = folder / f"{arch.removeprefix('timm:')}.safetensors"
        safetensors.torch.save_file(build_model(arch, 10).state_dict(), weights)
    config = {
        "catalog": {
            "uri": str(folder / "train.csv"),
            "test_uri": str(folder / "test.csv"),
            "image": "name",
            "image_template": "images/{stem}/{name}",
            "label": "category",
        },
        "split": {"validation": 0.3},
        "transform": {"image_size": 32, "resize_size": 36, "augment": "article"},
        "train": {"epochs": EPOCHS, "batch_size": 8, "precision": "float32", "cache_uri": str(folder / "cache")},
        "study": {
            "seeds": 2,
            "weights": str(folder / "{arch}.safetensors"),
            "models": MODELS,
            "bootstrap": 200,
        },
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(config))
    return folder


def usable_test_rows(folder):
    table = pd.read_csv(folder / "test.csv").iloc[:16]
    names = "images/test/" + table.name
    return pd.DataFrame({"id": names, "label": table.category})


@pytest.mark.slow
class TestInline:
    @pytest.fixture(scope="class")
    def run(self, article):
        assert main(["study", "--config", str(article / "study.yaml"), "--out", str(article / "studies")]) == 0
        return latest(str(article / "studies"))

    def test_its_tables_are_what_the_bundles_say_of_the_files(self, run, article):
        truth = usable_test_rows(article)
        assert oracles.audit_study(run, truth, lambda one: article / one) == []
        fits = pd.read_csv(f"{run}/fits.csv")
        assert list(zip(fits.model, fits.seed, strict=True)) == [(m["name"], s) for m in MODELS for s in (0, 1)]
        assert (fits.epochs == EPOCHS).all()
        assert read_json(f"{run}/study.json")["most_frequent_label"] == 0.5
        assert read_json(f"{run}/study.json")["test_rows_used"] == 16, "the broken picture is nobody's mistake"

    def test_seeds_share_their_rows_and_differ_in_their_weights(self, run):
        epochs = pd.read_parquet(f"{run}/epochs.parquet")
        assert epochs.groupby("epoch").train_rows.nunique().eq(1).all()
        assert epochs[epochs.epoch == 1].groupby("model").train_loss.nunique().eq(2).all()

    def test_the_report_says_it_on_one_page(self, run):
        page = read_text(f"{run}/report.html")
        for words in ("Which model is better?", "two phases", "Learning curves", "What augmentation does", "view 4"):
            assert words in page
        assert page.count("<script") == 1, "ours, which sorts tables"
        assert not re.search(r"(src|href)=.?https?:|url\(.?http", page), "nothing of it comes from elsewhere"
        assert os.path.getsize(f"{run}/report.html") < 3_000_000

    def test_the_report_is_whole_on_every_screen(self, run):
        for browser in launched():
            assert problems_of(browser, f"{run}/report.html") == []

    def test_what_an_interrupted_study_has_is_kept(self, run, article, capfd):
        """As after a kill while the last fit was trained: its folder is there and not complete."""
        study = Path(run)
        bundles = sorted(study.glob("fits/*/run_id=*/bundle"))
        lost = study / "fits/two phases seed 1"
        (lost / "LATEST").unlink()
        for path in (study / "_SUCCESS", *lost.glob("run_id=*/_SUCCESS")):
            path.unlink()
        before = pd.read_csv(study / "fits.csv")
        words = ["study", "--config", str(article / "study.yaml"), "--out", str(article / "studies")]
        capfd.readouterr()
        assert main([*words, "--study.resume", "true"]) == 0
        told = events(capfd.readouterr().out)
        assert latest(str(article / "studies")) == run
        begun = [event["command"] for event in told if event["event"] == "start"]
        assert begun == ["study", "train"], "the check is not done again"
        [study_started, train_started] = [event for event in told if event["event"] == "start"]
        assert study_started["rates"]["two phases"] == train_started["rates"]
        assert not [event for event in told if "resume" in str(event.get("note"))]
        assert sorted(study.glob("fits/*/run_id=*/bundle")) == bundles, "the one that was lost continued in its folder"
        after = pd.read_csv(study / "fits.csv")
        columns = ["model", "seed", "train_top1", "validation_loss", "test_top1"]
        pd.testing.assert_frame_equal(after[columns], before[columns])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"phases": [{"epochs": 5, "trainable": "head"}]}, "its phases have 5 epochs, and train.epochs is 2"),
        ({"name": "cnn1"}, "the name 'cnn1' is given 2 times"),
        ({"head_lr": 0}, "head_lr"),
        ({"model": {"arch": "squeezenet1_1", "trainable": "head"}, "backbone_lr": 0.1}, "only the head is trained"),
    ],
)
def test_what_means_nothing_is_refused_with_the_models_name(article, change, words, retailray, tmp_path):
    config = yaml.safe_load((article / "study.yaml").read_text())
    config["study"]["models"] = [MODELS[0], MODELS[1] | change]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(config))
    code, _, err = retailray("study", config=tmp_path / "study.yaml", out=tmp_path)
    assert code == 2
    assert words in err


def test_a_study_without_test_rows_says_what_to_set(article, retailray, tmp_path):
    config = yaml.safe_load((article / "study.yaml").read_text())
    del config["catalog"]["test_uri"]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(config))
    code, _, err = retailray("study", config=tmp_path / "study.yaml", out=tmp_path)
    assert code != 0
    assert "split.test" in err
    assert "catalog.test_uri" in err


@pytest.mark.slow
def test_models_that_cannot_be_built_are_named_before_anything_is_trained(article, retailray, tmp_path):
    """Kind of fault: hours go into the first models, and then the last one has no such block."""
    config = yaml.safe_load((article / "study.yaml").read_text())
    config["study"]["models"] = [
        MODELS[0],
        {"name": "lost", "model": {"arch": "squeezenet1_1", "weights": "nowhere.pth"}},
        {"name": "deep", "model": {"arch": "squeezenet1_1", "trainable": "last99"}},
        {"name": "strange", "model": {"arch": "cnn9", "weights": "none"}},
    ]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(config))
    code, out, err = retailray("study", config=tmp_path / "study.yaml", out=tmp_path)
    assert code == 2
    assert len(err.splitlines()) == 3
    for words in ("lost: ", "nowhere.pth", "deep: ", "last99", "strange: ", "did you mean cnn3?"):
        assert words in err
    assert not events(out)


@pytest.mark.slow
def test_a_fit_that_fails_names_its_model(article, retailray, tmp_path):
    config = yaml.safe_load((article / "study.yaml").read_text())
    config["study"]["models"] = MODELS[1:2]
    config["train"]["batch_size"] = 4000
    config["catalog"]["max_pixels"] = 10  # no picture can be read
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(config))
    code, _, err = retailray("study", config=tmp_path / "study.yaml", out=tmp_path)
    assert code == 1
    assert "study.models: head, seed 0: " in err
    assert "no train image could be read" in err


@pytest.mark.slow
def test_a_model_that_diverges_is_left_out_and_named(article, retailray, tmp_path):
    """Kinds of fault: one rate that is too high ends hours of other fits; seeds of one model in two number formats."""
    config = yaml.safe_load((article / "study.yaml").read_text())
    hot = {"name": "hot", "model": {"arch": "cnn1"}, "head_lr": 1e30}
    config["study"]["models"] = [MODELS[0], hot]
    config["train"]["precision"] = "auto"
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(config))
    code, out, err = retailray("study", config=tmp_path / "study.yaml", out=tmp_path / "o")
    assert code == 0, err
    run = latest(str(tmp_path / "o"))
    told = [(event["model"], event["verdict"]) for event in events(out) if event["event"] == "fit"]
    assert [one for one in told if one[0] == "hot"] == [("hot", "diverged")] * 2
    diverged = read_json(f"{run}/study.json")["diverged"]
    assert [(one["model"], one["seed"]) for one in diverged] == [("hot", 0), ("hot", 1)]
    assert "lower train.head_lr" in diverged[0]["message"]
    fits = pd.read_csv(f"{run}/fits.csv")
    assert fits.model.tolist() == ["cnn1", "cnn1", "hot", "hot"]
    assert fits.test_top1.isna().tolist() == [False, False, True, True]
    assert set(pd.read_parquet(f"{run}/predictions.parquet").model) == {"cnn1"}
    assert "is not compared: with seed 0, training diverged" in read_text(f"{run}/report.html")
    for browser in launched():
        assert problems_of(browser, f"{run}/report.html") == []
    precisions = [
        yaml.safe_load(path.read_text())["train"]["precision"] for path in Path(run).glob("fits/*/*/config.yaml")
    ]
    assert len(precisions) == 4
    assert set(precisions) < {"float32", "bfloat16"}, "measured once, before the first fit"
    config["study"]["models"] = [hot]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(config))
    code, _, err = retailray("study", config=tmp_path / "study.yaml", out=tmp_path / "hot")
    assert (code, "every model diverged" in err) == (1, True), err


@pytest.mark.timeout(600)
def test_on_ray_fits_train_as_they_do_here(article, ray_session_cpus, tmp_path):
    """Each fit is a task, two at a time, and learns what it would have learned in this process."""
    config = yaml.safe_load((article / "study.yaml").read_text())
    config["study"] |= {"models": MODELS[:1], "seeds": 3, "max_concurrent": 2}
    config["train"]["epochs"] = 8
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(config))
    words = ["study", "--config", str(tmp_path / "study.yaml")]
    assert main([*words, "--out", str(tmp_path / "inline"), "--cluster.engine", "inline"]) == 0
    assert main([*words, "--out", str(tmp_path / "ray"), "--cluster.engine", "ray"]) == 0
    inline, on_ray = (pd.read_parquet(f"{latest(str(tmp_path / one))}/epochs.parquet") for one in ("inline", "ray"))
    columns = ["model", "seed", "epoch", "train_rows", "validation_rows"]
    pd.testing.assert_frame_equal(on_ray[columns], inline[columns])
    begin = inline.epoch <= 4  # one thread and two add up in another order, which every epoch makes more visible
    losses = ["train_loss", "validation_loss"]
    assert on_ray[begin][losses].to_numpy() == pytest.approx(inline[begin][losses].to_numpy(), rel=1e-3)
    assert (
        oracles.audit_study(latest(str(tmp_path / "ray")), usable_test_rows(article), lambda one: article / one) == []
    )


@pytest.mark.slow
def test_a_study_that_is_interrupted_goes_on_with_the_fit_that_was_in_flight(article, tmp_path):
    """Ctrl-C in the middle of the second fit: its epochs are not trained again, and its result is what it would be."""
    config = yaml.safe_load((article / "study.yaml").read_text())
    config["study"] |= {"models": MODELS[:1]}
    config["train"] |= {"epochs": 30, "checkpoint_interval_s": 0.0}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(config))
    words = ["study", "--config", str(tmp_path / "study.yaml"), "--cluster.engine", "inline", "--out"]

    def break_off(heard):
        heard.until("epoch", 35)
        interrupt()

    code, told = run_beside([*words, str(tmp_path / "broken")], break_off)
    assert code == 130
    assert [event["seed"] for event in told if event["event"] == "fit"] == [0]
    done = sum(event["event"] == "epoch" for event in told)
    code, told = run_beside([*words, str(tmp_path / "broken"), "--study.resume"], lambda heard: None)
    assert code == 0
    trained = sum(event["event"] == "epoch" for event in told)
    assert done + trained in (60, 61), "the line of an epoch is printed before its state is saved"
    assert main([*words, str(tmp_path / "whole")]) == 0
    broken, whole = (pd.read_csv(f"{latest(str(tmp_path / name))}/fits.csv") for name in ("broken", "whole"))
    columns = ["seed", "epochs", "best_epoch", "train_top1", "validation_loss", "test_top1"]
    pd.testing.assert_frame_equal(broken[columns], whole[columns])


@pytest.mark.slow
def test_a_study_is_not_resumed_on_other_rows(article, tmp_path, retailray):
    """Kind of fault: some models have learned from rows that others are tested on."""
    config = yaml.safe_load((article / "study.yaml").read_text())
    table = pd.read_csv(article / "train.csv")
    table["name"] = str(article / "images/train") + "/" + table.name
    table.to_csv(tmp_path / "train.csv", index=False)
    config["catalog"] |= {"uri": str(tmp_path / "train.csv"), "image_template": "{name}", "test_uri": None}
    config["catalog"]["allow"] = [str(article)]
    config["split"]["test"] = 0.3
    config["study"] |= {"models": MODELS[:1], "seeds": 1}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(config))
    words = {"config": tmp_path / "study.yaml", "out": tmp_path / "out"}
    assert retailray("study", **words)[0] == 0
    (Path(latest(str(tmp_path / "out"))) / "_SUCCESS").unlink()
    table.iloc[:-4].to_csv(tmp_path / "train.csv", index=False)
    code, _, err = retailray("study", **words, **{"study.resume": "true"})
    assert code == 2
    assert "study.resume: the catalog's rows changed" in err
