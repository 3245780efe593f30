"""What a run left, for scripts and notebooks: its tables as pandas, its pictures, its report."""

import functools
import io
import json
import os
from typing import Any, TypeVar

import pandas as pd
import pyarrow.dataset

from retailray import storage
from retailray.errors import StorageError
from retailray.runs import latest_run

R = TypeVar("R", bound="Run")


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
    """What :func:`retailray.check` found."""

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
    """What :func:`retailray.train` leaves. ``bundle``: the address of the model."""

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
    """What :func:`retailray.tune` leaves. ``bundle``: the address of the best trial's model."""

    @property
    def bundle(self) -> str:
        return self.summary["bundle"]

    @property
    def verdict(self) -> str:
        """What the curves of the best trial say."""
        return f"{self.summary['verdict']}: {self.summary['verdict_text']}"

    @property
    def best_config(self) -> str:
        """The address of ``best.yaml``, a config for :func:`retailray.train`."""
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
    """What :func:`retailray.evaluate` measured."""

    @functools.cached_property
    def metrics(self) -> dict[str, Any]:
        """What ``metrics.json`` says."""
        return json.loads(self.read("metrics.json"))

    @functools.cached_property
    def per_class(self) -> pd.DataFrame:
        """Precision, recall, F1 and rows of every label, the worst F1 first. Raises StorageError of numbers."""
        if "per_class" not in self.metrics:
            raise StorageError(f"{self.address}: the model predicts numbers: see predictions and metrics")
        return pd.DataFrame.from_dict(self.metrics["per_class"], orient="index").sort_values("f1")

    @functools.cached_property
    def predictions(self) -> pd.DataFrame:
        """Of a model that predicts numbers a row for every image: value, prediction, interval."""
        return self.table("predictions")

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
    """What :func:`retailray.score` published."""

    @functools.cached_property
    def predictions(self) -> pd.DataFrame:
        """A row for every image that could be scored: the catalog's columns, label, score, decision (or a number with
        its interval)."""
        return self.table("predictions")

    @functools.cached_property
    def errors(self) -> pd.DataFrame:
        """A row for every image that could not, with the reason."""
        return self.table("errors")


class StudyRun(Run):
    """What :func:`retailray.study` found."""

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


class RecommendRun(Run):
    """What :func:`retailray.recommend` published."""

    @functools.cached_property
    def recommendations(self) -> pd.DataFrame:
        """Rows of shoppers and products: rank from 1, score, reason."""
        return self.table("recommendations")

    @functools.cached_property
    def errors(self) -> pd.DataFrame:
        return self.table("errors")


class ForecastRun(Run):
    """What :func:`retailray.forecast` published."""

    @functools.cached_property
    def forecasts(self) -> pd.DataFrame:
        """A row for every product and period: forecast, low, high, method."""
        return self.table("forecasts")

    @functools.cached_property
    def errors(self) -> pd.DataFrame:
        return self.table("errors")


class ShoppersRun(Run):
    """What :func:`retailray.shoppers` published."""

    @functools.cached_property
    def shoppers(self) -> pd.DataFrame:
        """A row for every shopper: recency, baskets, money, favourite categories, segment."""
        return self.table("shoppers")

    @functools.cached_property
    def segments(self) -> pd.DataFrame:
        return self.table("segments")

    @functools.cached_property
    def retention(self) -> pd.DataFrame:
        """A row for every month of first purchases and every month since then."""
        return self.table("retention")

    @functools.cached_property
    def demand(self) -> pd.DataFrame:
        """A row for every category: its share of the products and of the purchases."""
        return self.table("demand")

    @functools.cached_property
    def errors(self) -> pd.DataFrame:
        return self.table("errors")


class AssortmentRun(Run):
    """What :func:`retailray.assortment` published."""

    @functools.cached_property
    def products(self) -> pd.DataFrame:
        """A row for every product that is shown: label, buyers, what is bought with it, next sales."""
        return self.table("assortment")

    @functools.cached_property
    def errors(self) -> pd.DataFrame:
        return self.table("errors")
