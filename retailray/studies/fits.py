"""The fits of a study: every model with every seed, one after the other in this process or side by side on Ray."""

import dataclasses
import functools
import hashlib
import io
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import pandas as pd

from retailray import events, storage
from retailray.config import StudyConfig, StudyModel, TrainConfig
from retailray.data.catalog import Catalog, count_labels
from retailray.errors import ConfigError, RetailrayError
from retailray.execution import Executor
from retailray.models.blocks import to_blocks
from retailray.models.bundle import load_bundle, state_to_bytes
from retailray.models.weights import pretrained_model
from retailray.runs import RunDirectory, latest_run, list_runs
from retailray.training.best_epoch import Epoch
from retailray.training.phases import check_batch_size, resolve
from retailray.training.train import train
from retailray.training.verdict import Verdict, verdict

CPUS = "LOKY_MAX_CPU_COUNT"  # of a fit on Ray: joblib reads it, and our inline back end asks joblib


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
            "precision": self.best["precision"],
            "epochs": len(self.history),
            "best_epoch": self.best["epoch"],
            "train_top1": self.best["train_top1"],
            "validation_top1": self.best["validation_top1"],
            "validation_loss": self.best["validation_loss"],
            "verdict": self.verdict.name,
            "last_epoch_gap": self.verdict.gap,
            "last_epoch_slope": self.verdict.slope,
            "lowest_loss_epoch": self.verdict.lowest,
            "train_images_per_s": self.images_per_s,
            "seconds": self.seconds,
            "parameters": self.num_parameters,
            "num_bytes": self.num_bytes,
            "bundle": self.bundle,
        }


def check_models(config: StudyConfig, splits: Mapping[str, Catalog]) -> dict[str, str]:
    """Build every model once, before hours go into the first one; a digest of each one's weights.

    Raises:
        ConfigError: models that cannot be built or trained with these settings and weights, all of them.
    """
    digests, problems = {}, []
    labels = count_labels(splits["train"].column("label"))
    size = config.transform.image_size
    for model in config.study.models:
        section = config.fit(model, 0, out=config.out)
        try:
            arch, weights = section.model.arch, section.model.resolved_weights
            built = pretrained_model(arch, weights, len(labels), seed=0, image_size=size)
            phases = resolve(section, to_blocks(built.network))
            batch_size = section.train.batch_size
            check_batch_size(phases, batch_size=batch_size, num_workers=1, num_rows=len(splits["train"]))
        except RetailrayError as error:
            problems.append(f"study.models: {model.name}: {error}")
            continue
        digests[model.name] = hashlib.sha256(state_to_bytes(built.network.state_dict())).hexdigest()
    if problems:
        raise ConfigError(problems)
    return digests


def run_fits(config: StudyConfig, run: RunDirectory, executor: Executor) -> Iterator[Fit]:
    """All fits in the order of models and seeds; those that an interrupted study had finished are not run again.

    Raises:
        RetailrayError: of the first fit that fails.
    """
    wanted = list(itertools.product(config.study.models, range(config.study.seeds)))
    fits: Iterator[Fit]
    if executor.engine == "inline":
        fits = itertools.starmap(functools.partial(_fit, config, run, _train_here), wanted)
    else:
        fits = _side_by_side(config, run, executor, wanted)
    for done, found in enumerate(fits, 1):
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


def _side_by_side(
    config: StudyConfig, run: RunDirectory, executor: Executor, wanted: list[tuple[StudyModel, int]]
) -> Iterator[Fit]:
    """A task of Ray each: the first one alone, since what it caches serves the others."""
    capacity = executor.capacity
    use_gpu = capacity.num_gpus >= 1 and config.cluster.use_gpu is not False
    places = max(1, int(capacity.num_gpus if use_gpu else capacity.num_cpus))
    at_once = min(config.study.max_concurrent or places, places, len(wanted))

    def fit(model: StudyModel, number: int, cpus: int) -> Fit:
        def train_there(settings: TrainConfig) -> None:
            try:
                executor.call(_train_in_task, settings, {CPUS: str(cpus)}, cpus=float(cpus), gpus=float(use_gpu))
            except Exception as error:  # the fit's own, a worker that died, or memory that ran out
                raise RetailrayError(executor.root_cause(error)) from error

        return _fit(config, run, train_there, model, number)

    of_machine = max(1, int(capacity.num_cpus // executor.num_nodes))  # on average, which the largest one has
    model, number = wanted[0]
    yield fit(model, number, of_machine)
    threads = ThreadPoolExecutor(at_once)
    try:
        each = max(1, min(of_machine, int(capacity.num_cpus // at_once)))
        yield from threads.map(lambda one: fit(one[0], one[1], each), wanted[1:])
    finally:
        threads.shutdown(wait=False, cancel_futures=True)  # after Ctrl-C nobody waits for what is being trained


def _fit(
    config: StudyConfig, run: RunDirectory, train_with: Callable[[TrainConfig], None], model: StudyModel, number: int
) -> Fit:
    """One fit, trained where that is needed. Raises RetailrayError, with the model's name and the seed."""
    seed = config.train.seed + number
    out = run.path("fits", f"{model.name} seed {seed}")
    if not (run.resumed and storage.exists(storage.join(out, "LATEST"))):
        begun = run.resumed and bool(list_runs(out))
        try:
            train_with(config.fit(model, number, out=out, resume=begun))
        except RetailrayError as error:
            raise RetailrayError(f"study.models: {model.name}, seed {seed}: {error}") from error
    return read_fit(model, seed, out)


def _train_here(config: TrainConfig) -> None:
    with events.nested_run():
        train(config)


def _train_in_task(config: TrainConfig, environment: dict[str, str]) -> None:
    os.environ |= environment
    train(config)


def read_fit(model: StudyModel, seed: int, out: str) -> Fit:
    """What a finished ``train`` left in ``out``."""
    folder = latest_run(out)
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
