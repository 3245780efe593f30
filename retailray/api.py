"""The commands as functions, for scripts and notebooks: settings as keywords in, tables as pandas out.

import retailray

model = retailray.train(catalog="shop/catalog.csv", model={"arch": "resnet50", "weights": "w.pth"}, out="runs")
run = retailray.score(catalog="shop/catalog.csv", model=model, out="scores")
run.predictions.head()
"""

import functools
import importlib
import io
import json
import os
import warnings
from collections.abc import Sequence
from typing import Any, TypeVar

import pandas as pd
import pyarrow.dataset

from retailray import events, storage
from retailray.config import COMMANDS, arguments
from retailray.errors import ConfigError, StorageError
from retailray.execution import prepare_environment
from retailray.interrupts import importing
from retailray.runs import latest_run

R = TypeVar("R", bound="Run")
Config = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class Run:
    """A complete run directory. ``address``: where it is; ``summary``: what its ``run.json`` says."""

    def __init__(self, address: str) -> None:
        self.address = storage.normalize(address)
        self.summary: dict[str, Any] = json.loads(self.read("run.json"))

    @classmethod
    def latest(cls: type[R], out: str | os.PathLike[str]) -> R:
        """The run that ``LATEST`` names in a folder of runs.

        Raises:
            StorageError: there is none.
        """
        return cls(latest_run(storage.normalize(os.fspath(out))))

    def path(self, *parts: str) -> str:
        return storage.join(self.address, *parts)

    def read(self, name: str) -> bytes:
        """A file of the run. Raises StorageError."""
        return storage.read_bytes(self.path(name))

    def table(self, name: str) -> pd.DataFrame:
        """A Parquet table of the run: a file of this name, or a folder with parts.

        Raises:
            StorageError: there is none.
        """
        if storage.exists(self.path(f"{name}.parquet")):
            return pd.read_parquet(io.BytesIO(self.read(f"{name}.parquet")))
        files = [file for file in storage.list_files(self.path(name)) if file.endswith(".parquet")]
        if not files:
            raise StorageError(f"{self.path(name)}: there is no such table")
        filesystem, _ = storage.arrow_filesystem(self.path(name))
        paths = [storage.arrow_filesystem(file)[1] for file in files]
        return pyarrow.dataset.dataset(paths, filesystem=filesystem, format="parquet").to_table().to_pandas()

    @property
    def report(self) -> str:
        """The address of the report."""
        return self.path("report.html")

    def show(self, height: int = 600) -> Any:
        """The report, to be shown in a notebook. Needs IPython."""
        from IPython.display import IFrame

        from retailray.reports.page import data_uri

        return IFrame(src=data_uri(self.read("report.html"), "text/html"), width="100%", height=height)

    def _picture(self, name: str) -> Any:
        from IPython.display import Image

        return Image(data=self.read(name))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.address}>"


class CheckRun(Run):
    """What :func:`check` found."""

    @functools.cached_property
    def facts(self) -> dict[str, Any]:
        """What ``check.json`` says."""
        return json.loads(self.read("check.json"))

    @functools.cached_property
    def findings(self) -> pd.DataFrame:
        """Problems: ``name, count, advice`` and examples."""
        return pd.DataFrame(self.facts["findings"], columns=["name", "count", "advice", "examples"])

    @functools.cached_property
    def images(self) -> pd.DataFrame:
        """A row for every row of the catalog: size, format, hashes, error code."""
        return self.table("images")

    @functools.cached_property
    def errors(self) -> pd.DataFrame:
        return self.table("errors")


class TrainRun(Run):
    """What :func:`train` leaves. ``bundle``: the address of the model."""

    @property
    def bundle(self) -> str:
        return self.summary["bundle"]

    @functools.cached_property
    def history(self) -> pd.DataFrame:
        """A row an epoch: losses, accuracies, learning rate, norm of the gradients, seconds."""
        return pd.read_csv(io.BytesIO(self.read("history.csv")))

    @property
    def verdict(self) -> str:
        """What the curves say."""
        return f"{self.summary['verdict']}: {self.summary['verdict_text']}"

    def curves(self) -> Any:
        """Accuracy and loss by epoch, to be shown in a notebook."""
        return self._picture("curves.png")


class TuneRun(Run):
    """What :func:`tune` leaves. ``bundle``: the address of the best trial's model."""

    @property
    def bundle(self) -> str:
        return self.summary["bundle"]

    @property
    def best_config(self) -> str:
        """The address of ``best.yaml``, a config for :func:`train`."""
        return self.path("best.yaml")

    @functools.cached_property
    def trials(self) -> pd.DataFrame:
        """A row a trial, the best one first."""
        return self.table("trials")

    @functools.cached_property
    def epochs(self) -> pd.DataFrame:
        """A row for every epoch of every trial."""
        return self.table("epochs")


class EvaluateRun(Run):
    """What :func:`evaluate` measured."""

    @functools.cached_property
    def metrics(self) -> dict[str, Any]:
        """What ``metrics.json`` says."""
        return json.loads(self.read("metrics.json"))

    @functools.cached_property
    def per_class(self) -> pd.DataFrame:
        """Precision, recall, F1 and rows of every label, the worst F1 first."""
        return pd.DataFrame.from_dict(self.metrics["per_class"], orient="index").sort_values("f1")

    @functools.cached_property
    def confusion(self) -> pd.DataFrame:
        """What ``confusion.csv`` holds."""
        return pd.read_csv(io.BytesIO(self.read("confusion.csv")), index_col=0)

    @functools.cached_property
    def errors(self) -> pd.DataFrame:
        return self.table("errors")

    def confusion_plot(self) -> Any:
        """The confusion matrix, to be shown in a notebook."""
        return self._picture("confusion.png")


class ScoreRun(Run):
    """What :func:`score` published."""

    @functools.cached_property
    def predictions(self) -> pd.DataFrame:
        """A row for every image that could be scored: the catalog's columns, label, score, decision."""
        return self.table("predictions")

    @functools.cached_property
    def errors(self) -> pd.DataFrame:
        """A row for every image that could not, with the reason."""
        return self.table("errors")


class StudyRun(Run):
    """What :func:`study` found."""

    @functools.cached_property
    def facts(self) -> dict[str, Any]:
        """What ``study.json`` says: the winner, if there is one, and every model's accuracy with its interval."""
        return json.loads(self.read("study.json"))

    @functools.cached_property
    def fits(self) -> pd.DataFrame:
        """A row for every model and seed."""
        return self.table("fits")

    @functools.cached_property
    def pairs(self) -> pd.DataFrame:
        """A row for every pair of models: difference, interval, p-values."""
        return self.table("pairs")

    @functools.cached_property
    def predictions(self) -> pd.DataFrame:
        """A row for every model, seed and test row."""
        return self.table("predictions")


def check(*, config: Config = (), quiet: bool = True, **settings: Any) -> CheckRun:
    """Find what is wrong with a catalog. Arguments and errors of all functions here:

    Args:
        config: YAML files, as for ``--config``. quiet: show nothing but warnings; else the events of the command.
        settings: sections (``catalog={"uri": ..., "group": "sku"}``, or the address alone), or dotted keys by
            ``**{"catalog.uri": ...}``. They take precedence over files. ``retailray COMMAND --help`` lists them.

    Raises:
        ConfigError: settings are wrong; all problems together. RetailrayError: see :mod:`retailray.errors`.
    """
    return _run("check", CheckRun, config, quiet, settings)


def train(*, config: Config = (), quiet: bool = True, **settings: Any) -> TrainRun:
    """Fine-tune a pretrained model on a labelled catalog; see :func:`check` for arguments and errors."""
    return _run("train", TrainRun, config, quiet, settings)


def tune(*, config: Config = (), quiet: bool = True, **settings: Any) -> TuneRun:
    """Search the settings of :func:`train`; see :func:`check` for arguments and errors."""
    return _run("tune", TuneRun, config, quiet, settings)


def evaluate(*, config: Config = (), quiet: bool = True, **settings: Any) -> EvaluateRun:
    """Measure a model on a labelled catalog; see :func:`check` for arguments and errors."""
    return _run("evaluate", EvaluateRun, config, quiet, settings)


def score(*, config: Config = (), quiet: bool = True, **settings: Any) -> ScoreRun:
    """Classify a whole catalog and publish the tables; see :func:`check` for arguments and errors."""
    return _run("score", ScoreRun, config, quiet, settings)


def study(*, config: Config = (), quiet: bool = True, **settings: Any) -> StudyRun:
    """Compare several models on the same rows; see :func:`check` for arguments and errors."""
    return _run("study", StudyRun, config, quiet, settings)


def _run(command: str, kind: type[R], config: Config, quiet: bool, settings: dict[str, Any]) -> R:
    files = [config] if isinstance(config, str | os.PathLike) else config
    model = settings.get("model")
    if isinstance(model, TrainRun | TuneRun):
        settings = settings | {"model": model.bundle}
    parsed = arguments.from_keywords(command, [os.fspath(file) for file in files], settings)
    prepare_environment(parsed.cluster)
    module, name = COMMANDS[command].function.split(":")
    with importing():
        action = getattr(importlib.import_module(module), name)
    with events.own_stdout(_Warnings() if quiet else None):
        action(parsed)
        address = events.last_run()
    if not address:
        raise ConfigError(["score.plan_only: a plan leaves no run; use `retailray score --score.plan_only`"])
    return kind(address)


class _Warnings(io.StringIO):
    """Takes the events of a command, and says those of them that warn as Python's warnings."""

    def write(self, text: str) -> int:
        if text.strip():
            fields = json.loads(text)
            if fields["event"] == "warning":
                said = {key: value for key, value in fields.items() if key not in ("event", "time", "run_id")}
                warnings.warn(f"retailray: {said.pop('note', '')} {said or ''}".strip(), stacklevel=2)
        return len(text)
