"""Searches as commands: trials share their passes, every searcher and scheduler ends, kills lose and repeat nothing."""

import html
import json
import signal
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest
import yaml

from tests import oracles
from tests.browser import launched, problems_of
from tests.commands.helpers import (
    events,
    interrupt,
    latest,
    ray_processes,
    read_json,
    read_text,
    run_beside,
    start_command,
    weights_of_three_libraries,
    words_of,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow]
SPACE = {
    "model.trainable": ["head", "last1", "last2"],
    "train.head_lr": {"loguniform": [1e-3, 3e-2]},
    "train.backbone_lr": {"loguniform": [1e-4, 3e-3]},
}
# the smallest network with a depth to choose: what a process costs to start is most of a small search
SMALL = {"model.arch": "cnn2", "model.weights": "none", "transform.augment": "none"}
# one process runs one trial after another
SEARCH = SMALL | {"train.epochs": 3, "tune.space": json.dumps(SPACE), "tune.max_concurrent": 1}
TIMES = ["seconds"]


def said(out, name):
    return [event for event in events(out) if event["event"] == name]


def trials_of(run):
    return duckdb.sql(f"from read_parquet('{run}/trials.parquet', hive_partitioning = false) order by trial").df()


def assert_same_tables(left, right):
    pd.testing.assert_frame_equal(left.drop(columns=TIMES), right.drop(columns=TIMES), rtol=1e-5)


def export_of(shop, folder):
    """The same pictures in the layout of Shopify: settings, and the label of every product."""
    table = pd.read_csv(shop["catalog.uri"], dtype=str).dropna(subset=["label", "sku"])
    table = table[table.label.str.strip() != ""].sort_values("sku", kind="stable")
    position = table.groupby("sku").cumcount() + 1
    export = {
        "Handle": table.sku,
        "Title": "A product",
        "Type": table.label.where(position == 1, ""),
        "Variant SKU": table.sku + "-" + position.astype(str),
        "Image Src": str(shop["catalog.uri"].parent) + "/" + table.image,
        "Image Position": position,
    }
    pd.DataFrame(export).to_csv(folder / "products_export.csv", index=False)
    settings = {"catalog.uri": folder / "products_export.csv", "catalog.root": shop["catalog.uri"].parent}
    return settings, table.groupby("sku").label.first().to_dict()


@pytest.mark.usefixtures("ray_session_cpus")
class TestSearches:
    def test_trials_share_one_pass_and_the_winner_is_a_config_and_a_bundle(self, shop, retailray, tmp_path):
        """Two trials at once; images are read in the driver, where they are as few as here."""
        deep = {"train.epochs": 3, "train.num_views": 2, "tune.space": json.dumps(SPACE)}
        settings = shop | deep | {"tune.trials": 8, "tune.max_concurrent": 2, "out": tmp_path / "o"}
        code, out, err = retailray("tune", **settings)
        assert code == 0, err
        assert len(said(out, "cache")) == 1
        [passed] = said(out, "pass")
        assert passed["reads"] == "images"
        assert said(out, "search")[0]["concurrent"] == 2
        assert [event["engine"] for event in said(out, "engine")] == ["ray", "inline"], "trials; the verification"
        assert {event["trial"] for event in said(out, "trial")} == set(range(1, 9))
        run = latest(str(tmp_path / "o"))
        trials, summary = trials_of(run), read_json(f"{run}/run.json")
        assert set(trials.status) <= {"finished", "stopped"}
        assert trials.epochs[trials.status == "finished"].tolist() == [3] * (trials.status == "finished").sum()
        heads = trials["model.trainable"] == "head"
        assert trials["train.backbone_lr"].isna().equals(heads)
        assert trials["train.head_lr"].between(1e-3, 3e-2).all()
        epochs = pd.read_parquet(f"{run}/epochs.parquet")
        assert epochs.groupby("trial").size().tolist() == trials.epochs.tolist()
        assert oracles.audit_trials(pd.read_parquet(f"{run}/trials.parquet"), epochs) == []
        best = trials.loc[trials.trial == summary["best_trial"]].iloc[0]
        assert best.validation_top1 == trials.validation_top1.max()
        # of the validation rows some choose the epoch and the trial; the verification looks at all of them
        validation = pd.read_parquet(f"{run}/bundle/validation.parquet")
        right, chose = validation.label == validation.pred_label, validation.role == "epoch"
        assert summary["verified_top1"] == pytest.approx(right.mean(), abs=0.031), "one row of 33"
        assert best.validation_top1 == pytest.approx(right[chose].mean(), abs=0.06), "one row of 17"
        assert len(list(Path(run).glob("trials/*/state.pt"))) <= 3
        page = read_text(f"{run}/report.html")
        assert page.count("<svg") == 6
        assert summary["verdict_text"][1:] in html.unescape(page)
        # the best config is train's, as it is, and makes the same model
        assert yaml.safe_load(read_text(f"{run}/best.yaml"))["model"]["trainable"] == best["model.trainable"]
        again = {"config": f"{run}/best.yaml", "out": tmp_path / "again", "cluster.engine": "inline"}
        code, out, err = retailray("train", **again)
        assert code == 0, err
        assert said(out, "cache")[0]["reused"] > 0
        retrained = read_json(f"{latest(str(tmp_path / 'again'))}/run.json")
        assert retrained["validation_top1"] == pytest.approx(best.validation_top1, abs=0.06), "one row of 17"
        # and the bundle is a bundle
        catalog = {key: shop[key] for key in ("catalog.uri", "catalog.group", "catalog.max_pixels")}
        scored = {"model.uri": summary["bundle"], "cluster.engine": "inline", "out": tmp_path / "s"}
        assert retailray("score", **catalog, **scored)[0] == 3, "more is broken than score.max_error_rate allows"

    @pytest.mark.parametrize(
        ("searcher", "scheduler", "space", "count"),
        [
            (
                "optuna",
                "median",
                {"train.head_lr": {"loguniform": [1e-3, 1e-2]}, "train.batch_size": {"int": [8, 16]}},
                4,
            ),
            ("random", "pbt", {"train.head_lr": {"loguniform": [1e-4, 1e-1]}, "train.label_smoothing": [0.0, 0.1]}, 4),
        ],
    )
    def test_every_searcher_and_scheduler(self, shop, retailray, tmp_path, searcher, scheduler, space, count):
        """One of them on the export of a shop, where a label stands on the first picture of its product."""
        of_export, truth = export_of(shop, tmp_path) if searcher == "optuna" else ({}, {})
        settings = (
            {name: value for name, value in shop.items() if not (truth and name == "catalog.group")}
            | of_export
            | SMALL
            | {
                "model.trainable": "head",
                "train.epochs": 4,
                "tune.searcher": searcher,
                "tune.scheduler": scheduler,
                "tune.trials": 4,
                "tune.space": json.dumps(space),
                "tune.max_concurrent": 2 if scheduler == "pbt" else 1,
                "train.metric": "loss",
                "out": tmp_path,
            }
        )
        code, _, err = retailray("tune", **settings)
        assert code == 0, err
        run = latest(str(tmp_path))
        trials = trials_of(run)
        assert len(trials) == count
        assert (trials.epochs > 0).all()
        summary = read_json(f"{run}/run.json")
        assert summary["validation_loss"] == pytest.approx(trials.validation_loss.min(), abs=1e-4)
        if truth:
            validation = pd.read_parquet(f"{run}/bundle/validation.parquet")
            assert len(validation) > 20
            assert validation.label.tolist() == validation.group.map(truth).tolist()
        if scheduler == "pbt":
            assert not Path(run, "exchange").exists()
            assert set(trials.epochs) == {4}
            assert trials["train.head_lr"].between(1e-4, 1e-1).all()
            assert set(trials["train.label_smoothing"]) <= {0.0, 0.1}

    def test_a_grid_of_networks_of_three_libraries_and_two_augmentations_decodes_once(self, shop, retailray, tmp_path):
        archs = ["resnet18", "timm:resnet10t", "hf:small-vit"]
        space = {"model.arch": archs, "transform.augment": ["none", "standard"]}
        settings = shop | {
            "model.weights": weights_of_three_libraries(shop),
            "model.trainable": "head",
            "train.epochs": 2,
            "tune.space": json.dumps(space),
            "tune.searcher": "grid",
            "tune.scheduler": "none",
            "tune.max_concurrent": 1,
            "train.cache_uri": tmp_path / "cache",
            "out": tmp_path / "o",
        }
        code, out, err = retailray("tune", **settings)
        assert code == 0, err
        assert [event["reads"] for event in said(out, "pass")] == ["images"] + ["cached pixels"] * 6
        run = latest(str(tmp_path / "o"))
        trials = trials_of(run)
        assert set(zip(trials["model.arch"], trials["transform.augment"], strict=True)) == {
            (arch, augment) for arch in space["model.arch"] for augment in space["transform.augment"]
        }
        assert set(trials.status) == {"finished"}, "nothing is stopped early"
        assert "Which backbone" in read_text(f"{run}/report.html")
        for browser in launched():
            assert problems_of(browser, f"{run}/report.html") == []

    def test_two_workers_a_trial_train_alike(self, shop, retailray, tmp_path):
        shared = SMALL | {
            "model.trainable": "head",
            "train.epochs": 2,
            "train.batch_size": 14,
            "tune.space": '{"train.head_lr": [0.01]}',
            "tune.searcher": "grid",
            "tune.scheduler": "none",
            "tune.max_concurrent": 1,
        }
        tables = []
        for workers in (1, 2):
            out = tmp_path / str(workers)
            code, _, err = retailray("tune", **shop | shared | {"tune.workers_per_trial": workers, "out": out})
            assert code == 0, err
            tables.append(pd.read_parquet(f"{latest(str(out))}/epochs.parquet"))
        for name in ("train_loss", "validation_loss"):
            np.testing.assert_allclose(tables[0][name], tables[1][name], rtol=1e-3)

    def test_budgets_end_a_search(self, shop, retailray, tmp_path):
        settings = shop | SEARCH | {"tune.scheduler": "none", "tune.trials": 20, "tune.max_epochs": 7, "out": tmp_path}
        code, _, err = retailray("tune", **settings)
        assert code == 0, err
        trials = trials_of(latest(str(tmp_path)))
        assert trials.epochs.tolist() == [3, 3, 1], "one at a time"
        assert trials.status.tolist() == ["finished", "finished", "stopped"]

    def test_a_search_in_which_nothing_ends_well_says_why(self, shop, retailray, tmp_path):
        space = {"train.head_lr": [1e38]}
        settings = shop | SEARCH | {"model.trainable": "head", "train.epochs": 1, "tune.space": json.dumps(space)}
        code, _, err = retailray("tune", **settings, **{"tune.trials": 1, "out": tmp_path})
        assert code == 1
        assert "none of 1 trials finished; all diverged" in err
        assert not (tmp_path / "LATEST").exists()


class TestKills:
    """Real processes, really killed; the same search, uninterrupted, is the measure."""

    @pytest.fixture(scope="class")
    def settings(self, shop):
        """Small steps and many, so that there is time to interfere."""
        many = {"tune.trials": 10, "train.epochs": 20, "train.batch_size": 4}
        return shop | SEARCH | many | {"train.checkpoint_interval_s": 0}

    @pytest.fixture(scope="class")
    def uninterrupted(self, settings, ray_session_cpus, tmp_path_factory):
        from retailray.cli import main

        out = tmp_path_factory.mktemp("whole")
        assert main(words_of("tune", settings | {"out": out})) == 0
        trials = trials_of(latest(str(out)))
        assert set(trials.status) == {"finished", "stopped"}
        return trials

    @pytest.mark.usefixtures("ray_session_cpus")
    def test_a_search_whose_trial_is_killed_and_that_is_killed_and_interrupted_ends_with_the_same_table(
        self, settings, uninterrupted, tmp_path, capfd
    ):
        """Killed in a process of its own; interrupted and resumed in this one."""
        words = words_of("tune", settings | {"out": tmp_path})
        process = start_command("tune", **settings, out=tmp_path)
        try:
            for line in process.stdout:
                if json.loads(line)["event"] == "trial":
                    break
            process.send_signal(signal.SIGKILL)
            process.wait(60)
        finally:
            process.kill()
        assert process.returncode == -signal.SIGKILL

        def interfere(heard):
            told = len(list(tmp_path.glob("run_id=*/trials/*/record.json")))
            heard.until("trial", told + 1)
            [trial] = ray_processes("SearchTrial", "ResourceTrainable")  # between two steps, and within one
            trial.kill()
            heard.until("trial", told + 3)
            interrupt()

        capfd.readouterr()
        code, found = run_beside([*words, "--tune.resume"], interfere)
        assert code == 130
        assert "--tune.resume" in capfd.readouterr().err.splitlines()[-1]
        assert found[0]["resumed"]
        finished = {path.parent.name: path.stat().st_mtime for path in tmp_path.glob("run_id=*/trials/*/record.json")}
        assert 3 <= len(finished) < 10
        code, found = run_beside([*words, "--tune.resume"], lambda heard: None)
        assert code == 0
        assert found[0]["resumed"]
        run = Path(latest(str(tmp_path)))
        assert_same_tables(uninterrupted, trials_of(run))
        now = {key: (run / "trials" / key / "record.json").stat().st_mtime for key in finished}
        assert now == finished, "what had ended did not run again"
        assert len(list(tmp_path.glob("run_id=*"))) == 1
