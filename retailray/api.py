"""The commands as functions, for scripts and notebooks: settings as keywords in, tables as pandas out.

import retailray

model = retailray.train(catalog="shop/catalog.csv", model={"arch": "resnet50", "weights": "w.pth"}, out="runs")
run = retailray.score(catalog="shop/catalog.csv", model=model, out="scores")
run.predictions.head()
"""

import importlib
import io
import json
import os
import warnings
from collections.abc import Sequence
from typing import Any, TypeVar

from retailray import events
from retailray.config import COMMANDS, arguments
from retailray.errors import ConfigError
from retailray.execution import prepare_environment
from retailray.interrupts import importing
from retailray.results import (
    AssortmentRun,
    CheckRun,
    EvaluateRun,
    ForecastRun,
    RecommendRun,
    Run,
    ScoreRun,
    ShoppersRun,
    StudyRun,
    TrainRun,
    TuneRun,
)

R = TypeVar("R", bound=Run)
Config = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


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


def recommend(*, config: Config = (), quiet: bool = True, **settings: Any) -> RecommendRun:
    """Recommend products to every shopper; see :func:`check` for arguments and errors."""
    return _run("recommend", RecommendRun, config, quiet, settings)


def forecast(*, config: Config = (), quiet: bool = True, **settings: Any) -> ForecastRun:
    """Forecast the sales of every product; see :func:`check` for arguments and errors."""
    return _run("forecast", ForecastRun, config, quiet, settings)


def shoppers(*, config: Config = (), quiet: bool = True, **settings: Any) -> ShoppersRun:
    """Describe the shoppers; see :func:`check` for arguments and errors."""
    return _run("shoppers", ShoppersRun, config, quiet, settings)


def assortment(*, config: Config = (), quiet: bool = True, **settings: Any) -> AssortmentRun:
    """Show products with their buyers and next sales; see :func:`check` for arguments and errors."""
    return _run("assortment", AssortmentRun, config, quiet, settings)


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
