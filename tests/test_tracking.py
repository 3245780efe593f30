"""A run is found again in MLflow: a real server on SQLite, asked by MLflow's own client."""

import subprocess
import sys
import time

import pytest
import requests

from tests.commands.helpers import events
from tests.conftest import free_port


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of `mlflow server` with its records in SQLite and its artifacts in a folder."""
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    places = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", f"{folder}/artifacts"]
    where = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command = [sys.executable, "-m", "mlflow", "server", *where, *places]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            if requests.get(f"http://127.0.0.1:{port}/health", timeout=2).ok:
                break
        except requests.exceptions.RequestException:
            assert process.poll() is None, (folder / "log").read_text()[-2000:]
            time.sleep(0.3)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait(20)


@pytest.mark.slow
def test_a_training_run_is_found_in_mlflow(retailray, server, shop, tmp_path):
    from mlflow import MlflowClient

    registry = tmp_path / "models"
    settings = shop | {"split.test": 0.2, "train.epochs": 2, "track.uri": server, "out": tmp_path / "out",
                       "model.trainable": "last1", "model.registry": registry, "model.name": "products"}  # fmt: skip
    code, out, err = retailray("train", **settings)
    assert code == 0, err
    done = events(out)[-1]
    client = MlflowClient(tracking_uri=server, registry_uri=server)
    experiment = client.get_experiment_by_name("retailray")
    [found] = client.search_runs([experiment.experiment_id])
    assert found.data.params["train.epochs"] == "2"
    assert found.data.params["catalog.group"] == "sku"
    assert found.data.metrics["best_validation_top1"] == pytest.approx(done["validation_top1"], abs=1e-3)
    losses = client.get_metric_history(found.info.run_id, "train_loss")
    assert [point.step for point in losses] == [1, 2]
    assert {"report.html", "history.csv", "config.yaml", "bundle"} <= {
        artifact.path for artifact in client.list_artifacts(found.info.run_id)
    }
    assert found.data.tags["retailray.run_id"] == events(out)[0]["run_id"]
    version = client.get_model_version_by_alias("products", "challenger")
    assert done["bundle"].startswith(found.data.tags["retailray.run"])
    assert (registry / "products" / version.tags["retailray.version"]).is_dir()
    # promoted there as here
    catalog = {key: value for key, value in settings.items() if key.startswith(("catalog.", "split."))}
    address = f"{registry}/products/{version.tags['retailray.version']}"
    code, _, err = retailray("promote", **catalog, **{"model.uri": address, "track.uri": server, "promote.min_rows": 5,
                             "out": tmp_path / "promotions"})  # fmt: skip
    assert code == 0, err
    assert client.get_model_version_by_alias("products", "champion").version == version.version


@pytest.mark.slow
def test_a_server_that_is_away_is_said_before_work_starts(retailray, shop, tmp_path):
    address = f"http://127.0.0.1:{free_port()}"
    code, _, err = retailray("train", **shop, **{"track.uri": address, "out": tmp_path})
    assert code == 1
    assert f"track.uri = {address}: no MLflow answers" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_copy_that_fails_is_a_warning(capfd, tmp_path):
    """The run is complete where it is; what could not be copied is said."""
    from retailray.config import CatalogSection, TrackSection, TrainConfig
    from retailray.runs import RunDirectory
    from retailray.tracking import track

    gone = TrackSection(uri=f"http://127.0.0.1:{free_port()}")
    config = TrainConfig(out=str(tmp_path), catalog=CatalogSection(uri="c.csv"), track=gone)
    track(config, RunDirectory(config), {"command": "train", "bundle": "b"}, [], version="1", metrics={})
    [said] = events(capfd.readouterr().out)
    assert said["event"] == "warning"
    assert "the run is complete in" in said["note"]
