"""The fits of a study: every model with every seed, one after the other in this process or side by side on Ray."""

import dataclasses
import io
import itertools
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import pandas as pd

from retailray import events, storage
from retailray.config import StudyConfig, StudyModel, TrainConfig
from retailray.errors import ConfigError, RetailrayError
from retailray.execution import Executor
from retailray.models.blocks import to_blocks
from retailray.models.bundle import load_bundle
from retailray.models.weights import pretrained_model
from retailray.runs import RunDirectory, list_runs
from retailray.training.best_epoch import Epoch
from retailray.training.phases import resolve
from retailray.training.train import train
from retailray.training.verdict import Verdict, verdict

ON_RAY = {"LOKY_MAX_CPU_COUNT": "1"}  # the CPUs of a fit: joblib reads it, and our inline back end asks joblib


@dataclasses.dataclass(frozen=True)
class Fit:
    """One model, fitted with one seed. ``num_bytes``: of its weights; ``best``: the epoch that was kept."""

    model: StudyModel
    seed: int
    bundle: str
    history: list[Epoch]
    best: Epoch
    verdict: Verdict
    seconds: float
    num_parameters: int
    num_bytes: int

    @property
    def images_per_s(self) -> float:
        """Training images a second, without validation."""
        return sum(row["train_rows"] for row in self.history) / sum(row["train_seconds"] for row in self.history)

    def facts(self) -> dict[str, object]:
        """A row of ``fits.csv``, without what is measured on the test rows."""
        return {
            "model": self.model.name,
            "arch": self.model.model.arch,
            "seed": self.seed,
            "epochs": len(self.history),
            "best_epoch": self.best["epoch"],
            "train_top1": self.best["train_top1"],
            "validation_top1": self.best["validation_top1"],
            "validation_loss": self.best["validation_loss"],
            "verdict": self.verdict.name,
            "gap": self.verdict.gap,
            "slope": self.verdict.slope,
            "lowest_loss_epoch": self.verdict.lowest,
            "train_images_per_s": self.images_per_s,
            "seconds": self.seconds,
            "parameters": self.num_parameters,
            "num_bytes": self.num_bytes,
            "bundle": self.bundle,
        }


def check_models(config: StudyConfig, labels: list[str]) -> None:
    """Build every model once, before hours go into the first one.

    Raises:
        ConfigError: models that cannot be built from their settings and weights, all of them.
    """
    problems = []
    size = config.transform.image_size
    for model in config.study.models:
        section = config.fit(model, 0, out=config.out)
        try:
            weights = section.model.resolved_weights
            built = pretrained_model(section.model.arch, weights, len(labels), seed=0, image_size=size)
            resolve(section, to_blocks(built.network))
        except RetailrayError as error:
            problems.append(f"study.models: {model.name}: {error}")
    if problems:
        raise ConfigError(problems)


def run_fits(config: StudyConfig, run: RunDirectory, executor: Executor) -> Iterator[Fit]:
    """All fits in the order of models and seeds; those that an interrupted study had finished are not run again.

    Raises:
        RetailrayError: of the first fit that fails.
    """
    wanted = list(itertools.product(config.study.models, range(config.study.seeds)))
    use_gpu = executor.capacity.num_gpus >= 1 and config.cluster.use_gpu is not False
    places = int(executor.capacity.num_gpus if use_gpu else executor.capacity.num_cpus)
    at_once = 1 if executor.engine == "inline" else min(config.study.max_concurrent or places, places)

    def fit(model: StudyModel, number: int) -> Fit:
        seed = config.train.seed + number
        out = run.path("fits", f"{model.name} seed {seed}")
        if not (run.resumed and storage.exists(storage.join(out, "LATEST"))):
            begun = run.resumed and bool(list_runs(out))
            settings = config.fit(model, number, out=out, resume=begun)
            environment = {} if executor.engine == "inline" else ON_RAY
            try:
                executor.call(_train_here, settings, environment, cpus=1.0, gpus=float(use_gpu))
            except RetailrayError as error:
                why = executor.root_cause(error)
                raise RetailrayError(f"study.models: {model.name}, seed {seed}: {why}") from error
        return read_fit(model, seed, out)

    with ThreadPoolExecutor(max(1, at_once)) as threads:
        first = [fit(*wanted[0])]  # it decodes the pictures, and leaves them to the others
        for done, found in enumerate(itertools.chain(first, threads.map(fit, *zip(*wanted[1:], strict=True))), 1):
            events.emit(
                "fit",
                model=found.model.name,
                seed=found.seed,
                validation_top1=found.best["validation_top1"],
                verdict=found.verdict.name,
                seconds=found.seconds,
                done=done,
                total=len(wanted),
            )
            yield found


def _train_here(config: TrainConfig, environment: dict[str, str]) -> None:
    """Train in this process: the study's own, or one of Ray's."""
    os.environ |= environment
    with events.nested_run():
        train(config)


def read_fit(model: StudyModel, seed: int, out: str) -> Fit:
    """What a finished ``train`` left in ``out``."""
    folder = storage.join(out, storage.read_bytes(storage.join(out, "LATEST")).decode())
    summary = json.loads(storage.read_bytes(storage.join(folder, "run.json")))
    table = pd.read_csv(io.BytesIO(storage.read_bytes(storage.join(folder, "history.csv"))))
    history = cast(list[Epoch], table.to_dict("records"))
    bundle = load_bundle(storage.join(folder, "bundle"))
    return Fit(
        model=model,
        seed=seed,
        bundle=storage.join(folder, "bundle"),
        history=history,
        best=history[summary["best_epoch"] - 1],
        verdict=verdict(history, num_labels=len(bundle.meta.labels)),
        seconds=summary["seconds"],
        num_parameters=sum(parameter.numel() for parameter in bundle.build().parameters()),
        num_bytes=sum(tensor.nbytes for tensor in bundle.state.values()),
    )
