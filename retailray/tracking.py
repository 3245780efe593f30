"""MLflow, for those who have it (``pip install retailray[mlflow]``): parameters, metrics, artifacts, versions, aliases.

What a run leaves in its own directory is the record; this is a copy of it where others look. A server that is away is
found out before work starts, and loses nothing when it goes away later. Credentials come from MLflow's own environment
variables (``MLFLOW_TRACKING_USERNAME``, ``MLFLOW_TRACKING_PASSWORD``, ``MLFLOW_TRACKING_TOKEN``).
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retailray import events, storage
from retailray.config import TrackSection, TrainConfig
from retailray.config.arguments import leaves
from retailray.errors import ConfigError, StorageError
from retailray.runs import RunDirectory

if TYPE_CHECKING:
    from mlflow import MlflowClient

ARTIFACTS = ("config.yaml", "run.json", "report.html", "history.csv", "trials.csv", "best.yaml", "curves.png")
AT_ONCE = 100  # parameters in a request; MLflow's own limit
VALUE_CHARS = 500  # of a parameter
VERSION_TAG = "retailray.version"
QUICK = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}  # its default is minutes


def check_tracking(section: TrackSection) -> None:
    """Before anything starts: is there a server that answers?

    Raises:
        ConfigError: MLflow is not installed. StorageError: nobody answers at ``track.uri``.
    """
    if section.uri is None:
        return
    address = section.uri
    client = _client(section)
    try:
        client.search_experiments(max_results=1)
    except Exception as error:  # MLflow has many words for a server that is away
        why = " ".join(str(error).split())[:200]
        raise StorageError(
            f"track.uri = {address}: no MLflow answers ({why}); start it, correct the address, or leave track.uri out"
        ) from error


def track(
    config: TrainConfig,
    run: RunDirectory,
    summary: dict[str, object],
    history: Sequence[Mapping[str, Any]],
    *,
    version: str,
    metrics: Mapping[str, object],
) -> None:
    """Copy a finished run to MLflow. ``history``: one row per epoch; ``version``: the bundle's.

    A failure is reported and stops nothing: the run is complete where it is.
    """
    if config.track.uri is None:
        return
    try:
        name = _track(config, run, summary, history, version, metrics)
    except Exception as error:
        why = " ".join(str(error).split())[:300]
        events.emit("warning", note=f"not copied to {config.track.uri}: {why}; the run is complete in {run.address}")
        return
    events.emit("tracked", mlflow=config.track.uri, experiment=config.track.experiment, run=name)


def move_alias(section: TrackSection, name: str, alias: str, version: str) -> None:
    """Let MLflow's alias name the version that ours names. A failure is reported and stops nothing."""
    if section.uri is None:
        return
    try:
        client = _client(section)
        found = client.search_model_versions(f"name = '{name}' and tags.`{VERSION_TAG}` = '{version}'")
        if not found:
            raise LookupError(f"{name} has no version with the tag {VERSION_TAG} = {version}; it was trained untracked")
        client.set_registered_model_alias(name, alias, found[0].version)
    except Exception as error:
        note = f"{name}@{alias} was not moved in {section.uri}: {' '.join(str(error).split())[:300]}"
        events.emit("warning", note=note)


def _client(section: TrackSection) -> "MlflowClient":
    for name, value in QUICK.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try:
        from mlflow import MlflowClient
    except ImportError as error:
        raise ConfigError(
            [f"track.uri = {section.uri}: needs MLflow's client: pip install 'retailray[mlflow]'"]
        ) from error
    return MlflowClient(tracking_uri=section.uri, registry_uri=section.uri)


def _track(
    config: TrainConfig,
    run: RunDirectory,
    summary: dict[str, Any],
    history: Sequence[Mapping[str, Any]],
    version: str,
    metrics: Mapping[str, object],
) -> str:
    from mlflow.entities import Metric, Param, RunTag

    client, name = _client(config.track), config.track.experiment
    found = client.get_experiment_by_name(name)
    experiment = found.experiment_id if found else client.create_experiment(name)
    created = client.create_run(experiment, run_name=run.run_id)
    run_id, now = created.info.run_id, created.info.start_time
    try:
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in _tags(run, summary, version).items()])
        params = [Param(key, value[:VALUE_CHARS]) for key, value in _params(config.model_dump(mode="json"))]
        for start in range(0, len(params), AT_ONCE):
            client.log_batch(run_id, params=params[start : start + AT_ONCE])
        steps = [
            Metric(key, value, now, row["epoch"]) for row in history for key, value in _numbers(row) if key != "epoch"
        ]
        steps += [Metric(f"best_{key}", value, now, 0) for key, value in _numbers(metrics)]
        for start in range(0, len(steps), 10 * AT_ONCE):
            client.log_batch(run_id, metrics=steps[start : start + 10 * AT_ONCE])
        bundle = _log_files(client, run_id, run, summary["bundle"])
        if config.model.name:
            _register(client, config.model.name, bundle, run_id, version)
        client.set_terminated(run_id)
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    return str(created.info.run_name)


def _tags(run: RunDirectory, summary: dict[str, Any], version: str) -> dict[str, str]:
    return {
        "retailray.run": run.address,
        "retailray.run_id": run.run_id,
        "retailray.command": summary["command"],
        "retailray.bundle": summary["bundle"],
        VERSION_TAG: version,
    }


def _log_files(client: "MlflowClient", run_id: str, run: RunDirectory, bundle: str) -> str:
    """Log reports and, where MLflow could not read it from its address, the bundle; returns the bundle's source."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ARTIFACTS:
            if storage.exists(run.path(name)):
                Path(folder, name).write_bytes(storage.read_bytes(run.path(name)))
        client.log_artifacts(run_id, folder)
    if not storage.is_local(bundle):
        return bundle
    client.log_artifacts(run_id, bundle, artifact_path="bundle")
    return f"{client.get_run(run_id).info.artifact_uri}/bundle"


def _register(client: "MlflowClient", name: str, source: str, run_id: str, version: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    made = client.create_model_version(name, source, run_id, tags={VERSION_TAG: version})
    client.set_registered_model_alias(name, "challenger", made.version)


def _params(settings: dict[str, object]) -> list[tuple[str, str]]:
    return [(key, str(value)) for key, value in leaves(settings) if value is not None and value not in ({}, [])]


def _numbers(row: Mapping[str, object]) -> list[tuple[str, float]]:
    return [(key, float(value)) for key, value in row.items() if isinstance(value, int | float)]
