"""Fine-tuning as a command: what is kept is used, workers agree, kills do not matter, folds are folds."""

import io
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

from retailray.config import CatalogSection, SplitSection
from retailray.data.images import Limits, decode
from retailray.data.scaling import Scaling
from retailray.data.splits import read_splits
from retailray.models.backbones import build_model
from retailray.models.torchvision_blocks import to_blocks
from retailray.training.network import Network
from tests import oracles
from tests.commands.helpers import (
    events,
    interrupt,
    latest,
    ray_processes,
    read_json,
    read_text,
    run_beside,
    start_command,
    words_of,
)

pytestmark = pytest.mark.slow
ONE = {"model.trainable": "head", "train.epochs": 3, "train.batch_size": 14, "train.num_views": 2}
TIMES = ["seconds", "train_seconds", "data_wait_seconds"]


@pytest.fixture(scope="module")
def one_worker(shop, tmp_path_factory):
    """A head trained on kept activations by one worker: the measure for other ways to the same."""
    from retailray.cli import main

    out = tmp_path_factory.mktemp("one")
    settings = shop | ONE | {"out": out}
    assert main(words_of("train", settings)) == 0
    return history_of(latest(str(out)))


def history_of(run):
    return pd.read_csv(io.StringIO(read_text(f"{run}/history.csv")))


def state_of(run):
    with open(f"{run}/bundle/model.safetensors", "rb") as file:
        return safetensors.torch.load(file.read())


def said(out, name):
    return [event for event in events(out) if event["event"] == name]


def assert_same_training(left, right, *, rtol=1e-5):
    assert list(left.columns) == list(right.columns)
    for name in left.columns:
        if name in TIMES:
            continue
        if left[name].dtype.kind == "f":
            np.testing.assert_allclose(left[name], right[name], rtol=rtol, atol=1e-6, err_msg=name)
        else:
            assert (left[name] == right[name]).all(), name


class TestWhatIsKept:
    def test_two_phases_read_one_pass_and_the_next_run_reads_it_too(self, shop, retailray, tmp_path):
        settings = shop | {"model.trainable": "last2", "train.epochs": 16, "train.num_views": 2, "out": tmp_path / "o"}
        code, out, _ = retailray("train", **settings)
        assert code == 0
        [decision] = said(out, "cache")
        assert (decision["activations_after_blocks"], decision["views"], decision["reused"]) == ([7, 9], 2, 0)
        first = latest(str(tmp_path / "o"))
        history = history_of(first)
        assert history.trainable.tolist() == ["head"] * 2 + ["last2"] * 14
        code, out, _ = retailray("train", **settings)
        assert code == 0
        assert said(out, "cache")[0]["reused"] == 4
        assert_same_training(history, history_of(latest(str(tmp_path / "o"))))
        # frozen parameters are the given ones, to the bit
        given = safetensors.torch.load_file(str(shop["model.weights"]).format(arch="resnet18"))
        state = state_of(first)
        frozen = [name for name in given if not name.startswith(("fc.", "layer4."))]
        assert len(frozen) > 60
        assert all(torch.equal(given[name], state[name]) for name in frozen)
        assert any(not torch.equal(given[name], state[name]) for name in given if name.startswith("layer4."))
        assert read_json(f"{first}/bundle/bundle.json")["temperature"] != 1.0

    @pytest.mark.ray
    @pytest.mark.usefixtures("ray_session_cpus")
    def test_kept_by_one_worker_or_streamed_to_two_a_head_is_trained_alike(self, shop, retailray, tmp_path):
        """One step an epoch over all rows, so that the order in which they are drawn does not matter.

        Where a split has an odd number of rows, two shards need a padding row, which must count for nothing.
        """
        still = {"model.trainable": "head", "transform.augment": "none", "train.epochs": 2, "train.batch_size": 1000}
        uri = tmp_path / "cache"
        kept = {"cluster.engine": "inline", "train.cache_uri": uri, "out": tmp_path / "kept"}
        code, _, _ = retailray("train", **shop | still | kept)
        assert code == 0
        streamed = {key: value for key, value in (shop | still).items() if key != "train.cache_uri"}
        # an elastic range of workers, all of which are there; more: tests/training/test_workers.py
        workers = {"cluster.num_workers": 2, "cluster.min_workers": 1}
        streamed |= workers | {"train.cache": "off", "out": tmp_path / "streamed"}
        code, _, _ = retailray("train", **streamed)
        assert code == 0
        runs = [latest(str(tmp_path / name)) for name in ("kept", "streamed")]
        assert_same_training(history_of(runs[0]), history_of(runs[1]), rtol=1e-3)
        kept, direct = (read_json(f"{run}/run.json") for run in runs)
        assert kept["errors_by_code"] == direct["errors_by_code"] != {}
        assert_kept_is_computed(shop, uri, runs[0], cut=9, tolerance=1e-5)

    def test_bfloat16_is_kept_as_bfloat16(self, shop, retailray, tmp_path):
        still = {
            "model.trainable": "last1",
            "transform.augment": "none",
            "train.epochs": 2,
            "train.precision": "bfloat16",
        }
        uri = tmp_path / "cache"
        code, _, _ = retailray("train", **shop | still | {"train.cache_uri": uri, "out": tmp_path / "o"})
        assert code == 0
        assert_kept_is_computed(shop, uri, latest(str(tmp_path / "o")), cut=8, tolerance=3e-2)

    @pytest.mark.s3
    def test_a_store_in_object_storage_serves_as_well(self, shop, one_worker, retailray, bucket, tmp_path):
        code, out, _ = retailray("train", **shop | ONE | {"train.cache_uri": f"{bucket}/cache", "out": tmp_path})
        assert code == 0
        assert said(out, "cache")[0]["reused"] == 0
        assert_same_training(one_worker, history_of(latest(str(tmp_path))))

    def test_without_room_pixels_are_streamed(self, shop, retailray, tmp_path, monkeypatch):
        """What fails is counted once, by a run too that is resumed when all its epochs are done."""
        settings = shop | {"train.epochs": 2, "train.cache_gb": 1e-6, "out": tmp_path}
        settings |= {"train.cache_uri": tmp_path / "cache"}
        with monkeypatch.context() as patch:
            patch.setattr("retailray.training.bundles.TrainedModel.save", lambda *_: 1 / 0)
            code, out, err = retailray("train", **settings)
        assert (code, "ZeroDivisionError" in err) == (1, True)
        assert "streamed every epoch" in said(out, "cache")[0]["why"]
        code, out, err = retailray("train", **settings | {"train.resume": "true"})
        assert code == 0, err
        assert not said(out, "epoch")
        run = latest(str(tmp_path))
        summary = read_json(f"{run}/run.json")
        failed = sum(summary["errors_by_code"].values())
        assert failed
        assert history_of(run).train_rows.tolist() == [summary["rows"]["train"] - failed] * 2


def assert_kept_is_computed(shop, uri, run, *, cut, tolerance):
    """Direct logits of every validation photo against logits from the store, which numpy and pandas read."""
    stores = [json.loads(path.read_text()) | {"folder": path.parent} for path in uri.glob("*/store.json")]
    assert len(stores) == 2
    validation = min(stores, key=lambda meta: meta["num_rows"])
    kept = torch.from_numpy(np.load(validation["folder"] / "rows.npy"))
    kept = kept.view(torch.bfloat16).float() if validation["dtype"] == "bfloat16" else kept
    codes = pd.read_parquet(validation["folder"] / "rows.parquet").error_code
    section = CatalogSection(uri=str(shop["catalog.uri"]), group="sku", max_pixels=20_000_000)
    rows = read_splits(section, SplitSection(validation=0.3))["validation"]
    assert len(codes) == len(rows)
    model = build_model("resnet18", 8).eval()
    model.load_state_dict(state_of(run))
    suffix = to_blocks(model).suffix(cut)
    transform = read_json(f"{run}/bundle/bundle.json")["transform"]
    mean, std = (torch.tensor(transform[name]).view(3, 1, 1) * 255 for name in ("mean", "std"))
    positions = np.flatnonzero(codes == "")
    assert len(positions) > 20
    for position in positions:
        data = Path(rows.column("uri")[position]).read_bytes()
        image = torch.from_numpy(decode(data, Scaling(36, 32), Limits(20_000_000, 20.0)))
        with torch.no_grad():
            direct, cached = model(((image - mean) / std)[None]), suffix(kept[position][None])
        assert torch.allclose(direct, cached, atol=tolerance * direct.abs().max().item()), position


def test_every_option_of_the_recipe_reaches_the_run(shop, retailray, tmp_path):
    phases = [
        {"epochs": 1, "trainable": "head", "head_lr": 0.02},
        {"epochs": 3, "trainable": "last3", "head_lr": 0.003, "backbone_lr": 0.001},
    ]
    settings = shop | {
        "train.phases": json.dumps(phases),
        "train.optimizer": "sgd",
        "train.momentum": 0.8,
        "train.layer_decay": 0.7,
        "train.warmup_ratio": 0.2,
        "train.label_smoothing": 0.1,
        "train.mixup": 0.2,
        "train.cutmix": 0.5,
        "train.ema_decay": 0.9,
        "train.class_weights": "balanced",
        "train.patience": 2,
        "train.metric": "macro_f1",
        "train.checkpoint_interval_s": 0,
        "transform.random_erasing_prob": 0.2,
        "out": tmp_path,
    }
    code, out, err = retailray("train", **settings)
    assert code == 0, err
    assert "cutmix" in said(out, "cache")[0]["why"]
    run = latest(str(tmp_path))
    history = history_of(run)
    assert set(history.trainable) == {"head", "last3"}
    best = oracles.best_epoch(history.to_dict("records"), "validation_macro_f1")
    assert read_json(f"{run}/run.json")["best_epoch"] == best["epoch"]


def test_no_pass_is_larger_than_a_device_takes(shop, retailray, tmp_path, monkeypatch):
    """Kind of fault: training fits in memory, and the validation or the test after it does not."""
    seen, forward = [], Network.forward
    monkeypatch.setattr(
        Network, "forward", lambda self, values, cut: seen.append(len(values)) or forward(self, values, cut)
    )
    limit = {"train.device_batch_size": 5, "train.epochs": 1, "split.test": 0.2}
    code, out, err = retailray("train", **shop | ONE | limit | {"out": tmp_path})
    assert code == 0, err
    assert max(seen) == 5
    history = history_of(latest(str(tmp_path)))
    assert sum(seen) >= 2 * history.validation_rows.iloc[0], "validation and calibration at least"
    code, out, _ = retailray("train", **shop | ONE | limit | {"train.device_batch_size": 14, "out": tmp_path})
    assert "train.device_batch_size = 14 changes nothing" in out


def test_the_articles_network_trains_from_nothing_and_serves(shop, retailray, tmp_path):
    settings = {key: value for key, value in shop.items() if key != "model.weights"}
    changes = {"model.arch": "cnn3", "train.epochs": 6, "train.head_lr": 1e-3, "out": tmp_path / "t"}
    code, _, err = retailray("train", **settings | changes)
    assert code == 0, err
    run = latest(str(tmp_path / "t"))
    history = history_of(run)
    assert set(history.trainable) == {"all"}
    assert history.train_loss.iloc[-1] < history.train_loss.iloc[0]
    catalog = {key: shop[key] for key in ("catalog.uri", "catalog.group", "catalog.max_pixels")}
    code, _, _ = retailray("evaluate", **catalog, **{"model.uri": f"{run}/bundle", "out": tmp_path / "e"})
    assert code == 0
    metrics = read_json(f"{latest(str(tmp_path / 'e'))}/metrics.json")
    assert metrics["temperature"] == read_json(f"{run}/bundle/bundle.json")["temperature"]
    assert 0 <= metrics["ece_uncalibrated"] <= 1


def test_folds_test_every_row_once_and_keep_products_together(shop, retailray, tmp_path):
    settings = shop | {"model.trainable": "head", "train.epochs": 2, "split.folds": 3, "out": tmp_path}
    code, out, _ = retailray("train", **settings)
    assert code == 0
    run = latest(str(tmp_path))
    summary = read_json(f"{run}/run.json")
    folds = [read_json(f"{run}/folds/fold-{number}.json") for number in (1, 2, 3)]
    failed = sum(summary["errors_by_code"].values())
    rows, tested = sum(summary["rows"].values()), sum(fold["num_rows"] for fold in folds)
    assert rows - 14 <= tested <= rows - failed, "every readable row once (14 are broken in all)"
    top1 = [fold["top1"] for fold in folds]
    assert summary["folds"]["top1"]["mean"] == pytest.approx(np.mean(top1))
    assert summary["folds"]["top1"]["std"] == pytest.approx(np.std(top1, ddof=1))
    assert len(said(out, "fold")) == 3
    assert len(said(out, "cache")) == 1, "all folds read one pass"
    assert "3 folds" in read_text(f"{run}/report.html")
    labels = pd.read_parquet(f"{run}/label_errors.parquet")
    assert len(labels) == tested == labels.id.nunique()
    assert labels.score.is_monotonic_increasing
    source = pd.read_csv(shop["catalog.uri"], dtype=str).drop_duplicates("image").set_index("image").label
    assert (source[labels.image].to_numpy() == labels.label).all()
    assert (labels.suggested == labels.label).mean() == pytest.approx(
        np.average(top1, weights=[f["num_rows"] for f in folds])
    )
    assert (labels.suggested != labels.label)[labels.suspicious].all()
    assert os.path.exists(f"{run}/bundle/MANIFEST")


class TestKills:
    """Real processes, really killed; the same settings and seed, uninterrupted, are the measure."""

    @pytest.fixture(scope="class")
    def settings(self, shop):
        """Of the smallest network: it is checkpoints that are tested."""
        return shop | {
            "model.arch": "cnn2",
            "model.weights": "none",
            "transform.augment": "none",
            "train.phases": '[{"epochs": 2, "trainable": "head"}, {"epochs": 28, "trainable": "last2"}]',
            "train.ema_decay": 0.9,
            "train.checkpoint_interval_s": 0,
        }

    @pytest.fixture(scope="class")
    def uninterrupted(self, settings, tmp_path_factory):
        from retailray.cli import main

        out = tmp_path_factory.mktemp("whole")
        assert main(words_of("train", settings | {"out": out})) == 0
        return history_of(latest(str(out))), state_of(latest(str(out)))

    def wait_for_epoch(self, process, epoch):
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "epoch" and event["epoch"] >= epoch:
                return
        raise AssertionError(process.stderr.read())

    def assert_same(self, uninterrupted, out):
        run = latest(str(out))
        assert_same_training(uninterrupted[0], history_of(run))
        state = state_of(run)
        assert all(torch.allclose(state[name], value, atol=1e-5) for name, value in uninterrupted[1].items())
        return run

    def interrupt(self, process, epoch, how):
        try:
            self.wait_for_epoch(process, epoch)
            process.send_signal(how)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
        return process.returncode, err

    def assert_resumed(self, found, out, *, after):
        assert found[0]["resumed"]
        done = [event["epoch"] for event in found if event["event"] == "epoch"]
        # the line of an epoch is printed before its state is saved; and a few may be done before a signal comes
        assert after - 2 <= done[0] <= after + 10
        assert done[-1] == 30
        assert len(list(out.glob("run_id=*"))) == 1
        assert not os.path.exists(f"{latest(str(out))}/checkpoints")

    def test_an_interrupted_and_then_a_killed_driver_is_resumed(self, settings, uninterrupted, tmp_path):
        code, err = self.interrupt(start_command("train", **settings, out=tmp_path), 3, signal.SIGINT)
        assert code == 130
        assert "--train.resume" in err
        assert err.count("\n") == 1
        code, _ = self.interrupt(start_command("train", "--train.resume", **settings, out=tmp_path), 7, signal.SIGKILL)
        assert code == -signal.SIGKILL
        assert not (tmp_path / "LATEST").exists()
        again = start_command("train", "--train.resume", **settings, out=tmp_path)
        output, err = again.communicate(timeout=300)
        assert again.returncode == 0, err
        self.assert_same(uninterrupted, tmp_path)
        self.assert_resumed(events(output), tmp_path, after=7)

    @pytest.mark.ray
    @pytest.mark.usefixtures("ray_session_cpus")
    def test_on_ray_a_killed_worker_is_replaced_and_then_an_interrupted_driver_resumed(
        self, settings, uninterrupted, tmp_path, capfd
    ):
        """The measure was made without Ray: both back ends train alike."""
        words = words_of("train", settings | {"cluster.engine": "ray", "out": tmp_path}, inline=False)

        def interfere(heard):
            heard.until("epoch", 3)
            [worker] = ray_processes("RayTrainWorker")
            worker.kill()
            heard.until("epoch", 7)
            interrupt()

        capfd.readouterr()
        code, found = run_beside(words, interfere)
        assert code == 130
        assert capfd.readouterr().err.splitlines()[-1].startswith("retailray train: interrupted"), (
            "Ray's word is before"
        )
        told = max(event["epoch"] for event in found if event["event"] == "epoch")
        assert told < 30
        deadline = time.monotonic() + 30
        while ray_processes("RayTrainWorker"):
            assert time.monotonic() < deadline, "no worker goes on"
            time.sleep(0.2)
        assert not (tmp_path / "LATEST").exists()
        code, found = run_beside([*words, "--train.resume"], lambda heard: None)
        assert code == 0
        self.assert_same(uninterrupted, tmp_path)
        self.assert_resumed(found, tmp_path, after=told)
