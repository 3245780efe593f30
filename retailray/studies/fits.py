"""The fits of a study: every model with every seed, one after the other in this process or side by side on Ray."""

import dataclasses
import hashlib
import io
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, cast

import pandas as pd
import torch

from retailray import events, storage
from retailray.config import StudyConfig, StudyModel, TrainConfig
from retailray.data.catalog import Catalog, count_labels
from retailray.errors import ConfigError, Diverged, RetailrayError
from retailray.execution import Executor
from retailray.models.backbones import Backbone
from retailray.models.bundle import load_bundle, state_to_bytes
from retailray.models.weights import find_backbone, pretrained_model
from retailray.runs import RunDirectory, latest_run, list_runs
from retailray.training.best_epoch import Epoch
from retailray.training.measure import measure
from retailray.training.phases import check_batch_size, resolve, told_rates
from retailray.training.train import train
from retailray.training.verdict import Verdict, verdict

DIVERGED = "diverged.txt"  # in the folder of a fit that did, with what was said of it
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


@dataclasses.dataclass(frozen=True)
class DivergedFit:
    """A fit of which there is no model. ``message``: what `train` said."""

    model: StudyModel
    seed: int
    message: str

    def facts(self) -> dict[str, object]:
        """A row of ``fits.csv``."""
        return {"model": self.model.name, "arch": self.model.model.arch, "seed": self.seed, "verdict": "diverged"}


@dataclasses.dataclass(frozen=True)
class Share:
    """What a fit gets on Ray, and how many are at work at the same time; ``of_machine``: CPUs of the largest machine,
    for the fit that is alone."""

    at_once: int
    cpus: int
    of_machine: int
    gpus: int


def share_of(config: StudyConfig, executor: Executor) -> Share:
    capacity = executor.capacity
    use_gpu = capacity.num_gpus >= 1 and config.cluster.use_gpu is not False
    places = max(1, int(capacity.num_gpus if use_gpu else capacity.num_cpus))
    at_once = min(config.study.max_concurrent or places, places, len(config.study.models) * config.study.seeds)
    of_machine = max(1, int(capacity.num_cpus // executor.num_nodes))  # on average, which the largest one has
    each = max(1, min(of_machine, int(capacity.num_cpus // at_once)))
    return Share(at_once, each, of_machine, int(use_gpu))


def choose_precisions(config: StudyConfig, executor: Executor, *, num_labels: int) -> dict[str, str]:
    """The number format of every model, by name, measured once: fits that are compared must not differ in it."""
    if config.train.precision != "auto":
        return {model.name: config.train.precision for model in config.study.models}
    sections = {model.name: config.fit(model, 0, out=config.out).model for model in config.study.models}
    backbones = {name: find_backbone(one.arch, one.resolved_weights) for name, one in sections.items()}
    share = share_of(config, executor)
    cpus = share.of_machine if executor.engine == "inline" else share.cpus
    arguments: dict[str, Any] = {"size_px": config.transform.image_size, "cuts": [], "precision": "auto"}
    arguments |= {"use_gpu": bool(share.gpus), "threads": cpus}
    found: dict[Backbone, str] = {}
    threads = torch.get_num_threads()
    for backbone in dict.fromkeys(backbones.values()):
        reserved = {"cpus": float(cpus), "gpus": float(share.gpus)}
        found[backbone] = executor.call(measure, backbone, num_labels, **reserved, **arguments).precision
    torch.set_num_threads(threads)  # which measuring in this process changes
    return {name: found[backbone] for name, backbone in backbones.items()}


class Checked(NamedTuple):
    """By name of the model: a digest of its weights, and the learning rates of its phases."""

    digests: dict[str, str]
    rates: dict[str, list[dict[str, float]]]


def check_models(config: StudyConfig, splits: Mapping[str, Catalog]) -> Checked:
    """Build every model once, before hours go into the first one.

    Raises:
        ConfigError: models that cannot be built or trained with these settings and weights, all of them.
    """
    checked, problems = Checked({}, {}), []
    labels = count_labels(splits["train"].column("label"))
    size = config.transform.image_size
    for model in config.study.models:
        section = config.fit(model, 0, out=config.out)
        try:
            arch, weights = section.model.arch, section.model.resolved_weights
            built = pretrained_model(arch, weights, len(labels), seed=0, image_size=size)
            phases = resolve(section, built.chain)
            check_batch_size(
                phases,
                batch_sizes=[section.train.batch_size],
                num_workers=1,
                num_rows=len(splits["train"]),
                device_batch_size=section.train.device_batch_size,
            )
        except RetailrayError as error:
            problems.append(f"study.models: {model.name}: {error}")
            continue
        checked.rates[model.name] = told_rates(phases)
        checked.digests[model.name] = hashlib.sha256(state_to_bytes(built.network.state_dict())).hexdigest()
    if problems:
        raise ConfigError(problems)
    return checked


def run_fits(
    config: StudyConfig, run: RunDirectory, executor: Executor, precisions: Mapping[str, str]
) -> Iterator[Fit | DivergedFit]:
    """All fits in the order of models and seeds; those that an interrupted study had finished are not run again.

    Raises:
        RetailrayError: of the first fit that fails; one that diverges has not failed.
    """
    wanted = itertools.product(config.study.models, range(config.study.seeds))
    tasks = [_task(config, run, *one, precisions) for one in wanted]
    fits: Iterator[Fit | DivergedFit]
    if executor.engine == "inline":
        fits = (_fit(task, run, _train_here) for task in tasks)
    else:
        fits = _side_by_side(run, executor, share_of(config, executor), tasks)
    for done, found in enumerate(fits, 1):
        told: dict[str, object] = {"model": found.model.name, "seed": found.seed}
        if isinstance(found, Fit):
            told |= {"validation_top1": found.best["validation_top1"], "seconds": found.seconds}
        verdict_of = found.verdict.name if isinstance(found, Fit) else "diverged"
        events.emit("fit", **told, verdict=verdict_of, done=done, total=len(tasks))
        yield found


@dataclasses.dataclass(frozen=True)
class _Task:
    """A fit to be trained, ``config`` what `train` reads."""

    model: StudyModel
    config: TrainConfig


def _task(
    config: StudyConfig, run: RunDirectory, model: StudyModel, number: int, precisions: Mapping[str, str]
) -> _Task:
    settings = config.fit(model, number, out="")
    given = {"precision": precisions[model.name]}
    out = run.path("fits", f"{model.name} seed {settings.train.seed}")
    return _Task(model, settings.model_copy(update={"out": out, "train": settings.train.model_copy(update=given)}))


def _side_by_side(
    run: RunDirectory, executor: Executor, share: Share, tasks: list[_Task]
) -> Iterator[Fit | DivergedFit]:
    """A task of Ray each: the first one alone, since what it caches serves the others."""

    def fit(task: _Task, cpus: int) -> Fit | DivergedFit:
        def train_there(settings: TrainConfig) -> None:
            try:
                reserved = {"cpus": float(cpus), "gpus": float(share.gpus)}
                diverged = executor.call(_train_in_task, settings, {CPUS: str(cpus)}, **reserved)
            except Exception as error:  # the fit's own, a worker that died, or memory that ran out
                raise RetailrayError(executor.root_cause(error)) from error
            if diverged:
                raise Diverged(diverged)

        return _fit(task, run, train_there)

    yield fit(tasks[0], share.of_machine)
    threads = ThreadPoolExecutor(share.at_once)
    try:
        yield from threads.map(lambda task: fit(task, share.cpus), tasks[1:])
    finally:
        threads.shutdown(wait=False, cancel_futures=True)  # after Ctrl-C nobody waits for what is being trained


def _fit(task: _Task, run: RunDirectory, train_with: Callable[[TrainConfig], None]) -> Fit | DivergedFit:
    """One fit, trained where that is needed. Raises RetailrayError, with the model's name and the seed."""
    model, seed, out = task.model, task.config.train.seed, task.config.out
    sign = storage.join(out, DIVERGED)
    if run.resumed and storage.exists(sign):
        return DivergedFit(model, seed, storage.read_bytes(sign).decode())
    if not (run.resumed and storage.exists(storage.join(out, "LATEST"))):
        begun = run.resumed and bool(list_runs(out))
        given = {"resume": begun}
        try:
            train_with(task.config.model_copy(update={"train": task.config.train.model_copy(update=given)}))
        except Diverged as error:
            storage.write_bytes(sign, str(error).encode())
            return DivergedFit(model, seed, str(error))
        except RetailrayError as error:
            raise RetailrayError(f"study.models: {model.name}, seed {seed}: {error}") from error
    return read_fit(model, seed, out)


def _train_here(config: TrainConfig) -> None:
    with events.nested_run():
        train(config)


def _train_in_task(config: TrainConfig, environment: dict[str, str]) -> str:
    """Returns why training diverged, if it did: Ray would wrap the error."""
    os.environ |= environment
    try:
        train(config)
    except Diverged as error:
        return str(error)
    return ""


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
