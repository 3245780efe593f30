"""The driver's side of ``train``: read, plan, fit, and leave a bundle with its curves."""

import dataclasses
import hashlib
from typing import Any

import numpy as np
import pandas as pd

from retailray import events
from retailray.config import TrainConfig
from retailray.data.catalog import Catalog, concat_rows, count_labels, source_facts
from retailray.data.taxonomy import Taxonomy, taxonomy_of
from retailray.errors import CatalogError
from retailray.execution import Executor, Plan, plan_training, start_executor
from retailray.models.bundle import state_to_bytes
from retailray.models.numbers import LEVEL, NumberRule
from retailray.models.weights import Pretrained, pretrained_model
from retailray.reports.run_index import publish
from retailray.runs import RunDirectory
from retailray.tracking import check_tracking, track
from retailray.training.best_epoch import Epoch, measures_of
from retailray.training.bundles import TrainedModel, register
from retailray.training.cache.plan import CachePlan
from retailray.training.fit import FitResult, Fitter
from retailray.training.folds import make_folds, run_folds
from retailray.training.numbers import TrueValues, as_intervals
from retailray.training.phases import ResolvedPhase, check_batch_size, min_rows, resolve, told_rates
from retailray.training.prepare import Preparation
from retailray.training.prepared import Images
from retailray.training.report import write_training_report
from retailray.training.rows import labelled_splits, rows_digest
from retailray.training.verdict import Verdict, verdict

TOLD = ("validation_top1", "validation_mae", "validation_wape")  # of the best epoch, in run.json


@dataclasses.dataclass(frozen=True)
class Task:
    """What a run fits: rows by split, labels, the pretrained model and the phases that it goes through."""

    config: TrainConfig
    splits: dict[str, Catalog]
    labels: list[str]
    model: Pretrained
    phases: list[ResolvedPhase]
    taxonomy: Taxonomy | None
    known: TrueValues | None  # where labels are numbers

    @classmethod
    def read(cls, config: TrainConfig) -> "Task":
        """Read the catalog and the weights. Raises RetailrayError."""
        splits = labelled_splits(config)
        known = None
        if config.model.task == "regression":
            splits, intervals = as_intervals(splits, config.catalog.uri)
            known = TrueValues.of(intervals, splits)
        labels = known.intervals.names if known else sorted(count_labels(splits["train"].column("label")))
        weights, size = config.model.resolved_weights, config.transform.image_size
        model = pretrained_model(config.model.arch, weights, len(labels), seed=config.train.seed, image_size=size)
        taxonomy = taxonomy_of(config.taxonomy.uri, splits.values(), labels)
        return cls(config, splits, labels, model, resolve(config, model.chain), taxonomy, known)


def train(config: TrainConfig) -> str:
    """Fine-tune on the labelled rows of a catalog and write a run directory with a bundle.

    Returns:
        The address of the bundle.

    Raises:
        RetailrayError: catalog, weights, storage or cluster; see :mod:`retailray.errors`.
    """
    watch = events.Stopwatch()
    check_tracking(config.track)
    task = Task.read(config)
    run = RunDirectory.resumed_or_new(config, section="train", resume=config.train.resume)
    events.emit(
        "start",
        command="train",
        run=run.address,
        resumed=run.resumed,
        **({"intervals": len(task.labels)} if task.known else {"labels": len(task.labels)}),
        arch=config.model.arch,
        phases=[f"{phase.epochs} x {phase.trainable}" for phase in task.phases],
        rates=told_rates(task.phases),
        **{name: len(part) for name, part in task.splits.items()},
    )
    with start_executor(config.cluster, num_images=sum(map(len, task.splits.values()))) as executor:
        run.machines = executor.machines
        plan = _plan(task, executor)
        fitter, rows = _prepare(task, run, plan, executor)
        prepared_s = watch.seconds
        folds = run_folds(fitter, run, make_folds(config, fitter.images.plain, rows)) if config.split.folds else None
        result = fitter.fit(rows, run.path("checkpoints", "model"), {})
    if not result.history[0]["train_rows"] or not result.history[0]["validation_rows"]:
        raise CatalogError(
            f"{config.catalog.uri}: no training or no validation image could be read: {result.errors_by_code}; "
            "see `retailray check`"
        )
    trained = _trained(task, result, folds)
    bundle = trained.save(run)
    if task.known:
        _warn_of_few(NumberRule.of(bundle, trained.meta, level=LEVEL))
    _publish(trained, run, result, bundle, watch, num_workers=plan.num_actors, prepared_s=prepared_s)
    return bundle


def _warn_of_few(rule: NumberRule) -> None:
    """Say where too few validation products are left to fit an interval around predicted numbers on."""
    if not rule.num_products:
        note = (
            "the intervals around predictions are not fitted: fewer than ten validation products are left for that, "
            "three tenths of them; raise split.validation, or give more labelled products"
        )
        events.emit("warning", note=note)


def _plan(task: Task, executor: Executor) -> Plan:
    """Decide on the workers, and wait until there is room for them."""
    config, phases = task.config, task.phases
    batch_size = config.train.batch_size
    plan = plan_training(executor.capacity, config.cluster, most=max(1, batch_size // min_rows(phases)))
    check_batch_size(
        phases,
        batch_sizes=[batch_size],
        num_workers=plan.num_actors,
        num_rows=len(task.splits["train"]),
        device_batch_size=config.train.device_batch_size,
    )
    executor.wait_until_free(plan, deadline_s=config.cluster.resource_timeout_s)
    return plan


def _prepare(task: Task, run: RunDirectory, plan: Plan, executor: Executor) -> tuple[Fitter, dict[str, np.ndarray]]:
    """What every fit of this run shares, and the rows of the fit whose model is kept."""
    config, splits = task.config, task.splits
    num_train, num_validation = len(splits["train"]), len(splits["validation"])
    if config.split.folds:  # every row may be in any role
        everything = concat_rows([splits["train"], splits["validation"]])
        images = Images(everything, everything)
        rows = {"train": np.arange(num_train), "validation": np.arange(num_train, num_train + num_validation)}
    else:
        images = Images(splits["train"], splits["validation"])
        rows = {"train": np.arange(num_train), "validation": np.arange(num_validation)}
    preparation = Preparation(config, images, plan, executor)
    weights = state_to_bytes(task.model.network.state_dict())
    inputs = {"the catalog's rows": rows_digest(splits), "model.weights": hashlib.sha256(weights).hexdigest()}
    earlier = run.decisions(section="train", inputs=inputs)
    precision = earlier.get("precision", config.train.precision)
    cuts = {phase.num_cached_blocks for phase in task.phases} if config.train.cache == "auto" else set()
    model = preparation.measure(task.model, weights, task.labels, cuts, precision=precision)
    prepared = preparation.run(model, task.phases, earlier=CachePlan(**earlier["cache"]) if earlier else None)
    run.decide(inputs=inputs, precision=model.network_spec.precision, cache=dataclasses.asdict(prepared.plan))
    fitter = Fitter(config, images, task.labels, task.phases, model.network_spec, prepared, plan, executor, task.known)
    return fitter, rows


def _trained(task: Task, result: FitResult, folds: dict[str, Any] | None) -> TrainedModel:
    return TrainedModel(
        config=task.config,
        labels=task.labels,
        backbone=task.model.backbone,
        mean=task.model.mean,
        std=task.model.std,
        splits=task.splits,
        state=task.model.network.state_dict() | result.best,
        calibration=result.calibration,
        best=result.history[result.best_epoch - 1],
        folds=folds,
        taxonomy=task.taxonomy,
        known=task.known,
    )


def _measures(best: Epoch, judged: Verdict) -> dict[str, object]:
    return {
        "best_epoch": best["epoch"],
        **{name: value for name, value in measures_of(best).items() if name in TOLD},
        "verdict": judged.name,
        "verdict_text": judged.text,
    }


def _publish(
    trained: TrainedModel,
    run: RunDirectory,
    result: FitResult,
    bundle: str,
    watch: events.Stopwatch,
    *,
    num_workers: int,
    prepared_s: float,
) -> None:
    """Register the bundle, and leave report and summary. ``prepared_s``: when the first fit began."""
    config, meta, best, folds, history = trained.config, trained.meta, trained.best, trained.folds, result.history
    registered = register(config.model.registry, bundle, meta)
    run.write("history.csv", pd.DataFrame(history).to_csv(index=False))
    judged = verdict(history, num_labels=len(trained.labels), known=trained.known)
    write_training_report(run, meta, config, history, judged, result, folds)
    measures = _measures(best, judged)
    summary: dict[str, object] = {
        "command": "train",
        "bundle": bundle,
        "model_name": meta.name,
        "model_version": meta.version,
        **measures,
        "temperature": result.calibration.temperature,
        "validation_rows_used_for": result.calibration.num_rows(),
        "folds": folds,
        **({} if trained.known else {"num_labels": len(trained.labels)}),
        "rows": {name: len(part) for name, part in trained.splits.items()},
        **source_facts(trained.splits.values()),
        "errors_by_code": result.errors_by_code,
        "resumed": run.resumed,
        "num_workers": num_workers,
        "times": {"preparing": prepared_s, "fitting": watch.seconds - prepared_s},
        "seconds": watch.seconds,
    }
    publish(run, summary, clear=["checkpoints"])
    track(config, run, summary, history, version=meta.version, metrics=best)
    seen, failed = sum(row["train_rows"] for row in history), sum(result.errors_by_code.values())
    tested = {"folds_top1": folds["top1"]["mean"], "folds_std": folds["top1"]["std"]} if folds else {}
    counts = {"epochs": len(history), "images": seen, "failed": failed}
    watch.summary("train", num_images=seen, **counts, **measures, **tested, bundle=bundle, **registered)
