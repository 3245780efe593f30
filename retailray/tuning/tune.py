"""The driver's side of ``tune``: share, search, and leave the winner as a bundle, as a config and as a table."""

import json

import pandas as pd
import pyarrow as pa
import torch
import yaml

from retailray import events, storage
from retailray.config import BundleSection, EvaluateConfig, EvaluateSection, TuneConfig
from retailray.data.catalog import Catalog, count_labels
from retailray.data.spreadsheets import csv_text
from retailray.data.tables import parquet_bytes
from retailray.errors import RetailrayError
from retailray.evaluation.evaluate import evaluate
from retailray.execution import Executor, TrialPlan, executor_for_reading, plan_training, plan_trials, start_executor
from retailray.execution.distributed import DistributedContext
from retailray.execution.peers import device_of
from retailray.execution.process import prepare_process
from retailray.models.calibration import Calibration
from retailray.models.meta import EPOCH
from retailray.runs import RunDirectory
from retailray.tracking import check_tracking, track
from retailray.training.best_epoch import Epoch, measure_of
from retailray.training.bundles import TrainedModel, register
from retailray.training.loop import saved_state
from retailray.training.rows import labelled_splits, rows_digest
from retailray.tuning.report import write_search_report
from retailray.tuning.shared_inputs import Inputs, Shared, variant_key
from retailray.tuning.trial import MEMBER, RECORD, make_loop
from retailray.tuning.trials_table import Row, TrialsTable
from retailray.tuning.tuner import run_search

MAX_DIFFERENCE = 0.02  # of top-1 with and without the cache: bfloat16 rounds, and a row or two may change
SAME_ROWS = 2


def tune(config: TuneConfig) -> str:
    """Search the settings of ``train`` and write a run directory with all trials and the winner's bundle.

    Returns:
        The address of the bundle.

    Raises:
        RetailrayError: no trial ended well; or catalog, weights, storage or cluster; see :mod:`retailray.errors`.
    """
    watch = events.Stopwatch()
    check_tracking(config.track)
    splits = labelled_splits(config)
    labels = sorted(count_labels(splits["train"].column("label")))
    run = RunDirectory.resumed_or_new(config, section="tune", resume=config.tune.resume)
    events.emit(
        "start",
        command="tune",
        run=run.address,
        resumed=run.resumed,
        labels=len(labels),
        space={key: domain.dump() for key, domain in config.space.items()},
        **{name: len(part) for name, part in splits.items()},
    )
    num_images = sum(len(part) for part in splits.values())
    with (
        start_executor(config.cluster, num_images=num_images, needs_ray="trials run on Ray Tune") as on_ray,
        executor_for_reading(on_ray, config.cluster, num_images=num_images) as executor,
    ):
        plan = plan_training(executor.capacity, config.cluster)
        trial_plan = plan_trials(on_ray.capacity, config.cluster, config.tune)
        executor.wait_until_free(plan, deadline_s=config.cluster.resource_timeout_s)
        shared = _share(Inputs(config, splits, labels, plan, executor), run, trial_plan)
        times = {"shared_seconds": watch.seconds}
        ledger = _search(shared, run)
        times["search_seconds"] = watch.seconds - times["shared_seconds"]
        winner = _winner(ledger)
        trained = _trained(shared, winner, splits, run, executor)
        bundle = trained.save(run)
        verified = _verify(trained, run, bundle, executor.engine)
        registered = register(config, bundle, trained.meta)
    _publish(ledger, trained, run, verified, watch, {"bundle": bundle, **times}, registered)
    return bundle


def _share(inputs: Inputs, run: RunDirectory, trial_plan: TrialPlan) -> Shared:
    digests = {"the catalog's rows": rows_digest(inputs.splits)}
    earlier = run.decisions(section="tune", inputs=digests)
    shared = inputs.share(trial_plan, run.path("trials"), earlier.get("variants", {}))
    run.decide(inputs=digests, variants=shared.decisions())
    return shared


def _search(shared: Shared, run: RunDirectory) -> TrialsTable:
    """All trials; again from their records where processes were lost."""
    config, plan = shared.config, shared.plan
    num_epochs = sum(phase.epochs for phase in config.train.phases) or config.train.epochs
    events.emit("search", concurrent=plan.num_concurrent, cpus=plan.cpus, gpus=plan.gpus)
    drawn = _drawn_before(config, run) if run.resumed else []
    for _ in range(1 + config.train.max_failures):
        ledger = TrialsTable(shared)
        with ledger.shown():
            run_search(shared, ledger, num_epochs=num_epochs, resumed=drawn, storage_path=run.path("exchange"))
        if not ledger.lost:
            break
        events.emit("warning", note=f"{ledger.lost} trials lost their process; the search continues from its records")
        drawn = _drawn_before(config, run)
    return ledger


def _publish(
    ledger: TrialsTable,
    trained: TrainedModel,
    run: RunDirectory,
    verified: dict[str, object],
    watch: events.Stopwatch,
    facts: dict[str, object],
    registered: dict[str, str],
) -> None:
    """Write tables, report and summary. ``facts``: where the bundle is, and times."""
    shared, winner = ledger.shared, _winner(ledger)
    ledger.prune(again=True)
    table = _tables(run, ledger)
    write_search_report(run, shared.config, table, _curves(ledger), _backbones(shared), verified)
    counts = {str(status): int(count) for status, count in table.status.value_counts().items()}
    measured = {ledger.metric: measure_of(trained.best, shared.config.train.metric), "verified_top1": verified["top1"]}
    summary = {
        "trials": len(table),
        **counts,
        "epochs": ledger.num_epochs,
        "best_trial": winner.trial,
        **measured,
        **facts,
        "best_config": run.path("best.yaml"),
    }
    record = {
        "command": "tune",
        **summary,
        "settings": ledger.settings(winner),
        "seconds": watch.seconds,
        "resumed": run.resumed,
    }
    run.publish(record, clear=["exchange"])
    track(shared.config, run, record, winner.history, version=trained.meta.version, metrics=trained.best)
    seen = sum(epoch["train_rows"] for row in ledger.rows.values() for epoch in row.history)
    watch.summary("tune", num_images=seen, **summary, report=run.path("report.html"), **registered)


def _drawn_before(config: TuneConfig, run: RunDirectory) -> list[dict[str, object]]:
    """Settings of trials before the interruption, where what is drawn next depends on results; else nothing.

    Random draws and grids repeat themselves; a population's members continue with the settings they had come to.
    """
    if config.tune.scheduler == "pbt":  # by the names that Tune gives its members in order
        return [json.loads(storage.read_bytes(name)) for name in _files(run, MEMBER)]
    if config.tune.searcher != "optuna":
        return []
    records = [json.loads(storage.read_bytes(name)) for name in _files(run, RECORD)]
    return [record["drawn"] for record in sorted(records, key=lambda record: record["at"])]


def _files(run: RunDirectory, name: str) -> list[str]:
    return sorted(found for found in storage.list_files(run.path("trials")) if found.endswith(f"/{name}"))


def _winner(ledger: TrialsTable) -> Row:
    """The best trial. Raises RetailrayError where no trial ended well."""
    for row in ledger.ranked():
        return row
    messages = [row.message for row in ledger.rows.values() if row.message]
    why = f"the first failure: {messages[0]}" if messages else "all diverged; search lower learning rates"
    raise RetailrayError(f"none of {len(ledger.rows)} trials finished; {why}")


def _restored(shared: Shared, winner: Row, executor: Executor) -> tuple[dict[str, torch.Tensor], Calibration, Epoch]:
    """The winner's whole state dict as of its best epoch, its calibration and that epoch: computed where trials run.

    Epochs that its state does not have (a budget ended it, or its state is gone) are run again.
    """

    def restore(shared: Shared) -> tuple[dict[str, torch.Tensor], Calibration, Epoch]:
        prepare_process(shared.plan.torch_threads)
        state = saved_state(storage.join(shared.records, winner.key)) if winner.key else None
        loop = make_loop(shared, shared.trial(winner.drawn), DistributedContext(0, 1, device_of(shared.plan)))
        known = len(state["progress"]["history"]) if state else 0
        if state and known >= winner.epochs:
            loop.load_progress(state)
        else:
            running = loop.epochs(state)
            for _ in range(winner.epochs - known):
                next(running)
            loop.load_progress(loop.state())
        best = loop.progress.history[loop.progress.best_epoch - 1]
        calibration = loop.validator.calibration(shared.rows)
        assert calibration, "this is rank 0"
        return (
            {name: tensor.cpu().clone() for name, tensor in loop.network.model.state_dict().items()},
            calibration,
            best,
        )

    return executor.call(restore, shared, cpus=shared.plan.cpus, gpus=shared.plan.gpus)


def _trained(
    shared: Shared, winner: Row, splits: dict[str, Catalog], run: RunDirectory, executor: Executor
) -> TrainedModel:
    """The winner as of its best epoch; and ``best.yaml``, by which ``train --config`` trains it again."""
    weights, calibration, best = _restored(shared, winner, executor)
    settings = shared.trial(winner.drawn)
    variant = shared.variants[variant_key(settings)]
    if variant.prepared.plan.cuts:  # else pixels were augmented anew in every epoch
        settings = shared.config.trial(
            winner.drawn,
            **{"train.precision": variant.backbone.precision, "train.num_views": variant.prepared.plan.views},
        )
    run.write("best.yaml", yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
    mean, std = variant.backbone.mean, variant.backbone.std
    return TrainedModel(settings, shared.labels, mean, std, splits, weights, calibration, best)


def _verify(trained: TrainedModel, run: RunDirectory, bundle: str, engine: str) -> dict[str, object]:
    """Evaluate the bundle on the validation images themselves, as anyone would who has nothing of what is cached.

    ``engine``: where the images are read.

    Raises:
        RetailrayError: the measures differ from what the winner says of all validation rows, read from caches, or
            these from what its trial had measured on those of them that choose the epoch.
    """
    config, calibration, best_top1 = trained.config, trained.calibration, trained.best["validation_top1"]
    right = calibration.predicted == calibration.targets
    expected, chose = float(right.mean()), right[calibration.roles == EPOCH]
    if abs(chose.mean() - best_top1) > max(MAX_DIFFERENCE, SAME_ROWS / len(chose)):
        raise RetailrayError(
            f"the winner's top-1 is {chose.mean():.4f} on the rows that chose its epoch, and its trial had measured "
            f"{best_top1:.4f}; please report this ({bundle})"
        )
    with events.nested_run():
        metrics = evaluate(
            EvaluateConfig(
                catalog=config.catalog,
                split=config.split,
                model=BundleSection(uri=bundle),
                evaluate=EvaluateSection(split="validation"),
                cluster=config.cluster.model_copy(update={"engine": engine}),
                out=run.path("verification"),
            )
        )
    if abs(metrics["top1"] - expected) > max(MAX_DIFFERENCE, SAME_ROWS / max(1, metrics["num_rows"])):
        raise RetailrayError(
            f"the winner's top-1 is {metrics['top1']:.4f} on the validation images, and its trial had measured "
            f"{expected:.4f} from the cache; please report this ({bundle})"
        )
    return {name: metrics[name] for name in ("top1", "top5", "macro_f1", "ece", "num_rows")} | {"trial_top1": expected}


def _tables(run: RunDirectory, ledger: TrialsTable) -> pd.DataFrame:
    """Write ``trials.parquet``, ``trials.csv`` (one row per trial, the best one first) and ``epochs.parquet``."""
    ranked = ledger.ranked()
    rows = []
    for row in [*ranked, *[row for row in ledger.rows.values() if row not in ranked]]:
        best = ledger.best_epoch(row)
        rows.append(
            {
                "trial": row.trial,
                "status": row.status,
                ledger.metric: ledger.value(row),
                "best_epoch": best["epoch"] if best else None,
                "epochs": row.epochs,
                "seconds": row.seconds,
                **ledger.settings(row),
                "key": row.key,
                "message": row.message,
            }
        )
    table = pd.DataFrame(rows).convert_dtypes(dtype_backend="numpy_nullable")
    for name, frame in (("trials", table), ("epochs", pd.DataFrame(_curves(ledger)))):
        run.write(f"{name}.parquet", parquet_bytes(pa.Table.from_pandas(frame, preserve_index=False)))
    run.write("trials.csv", csv_text(table))
    return table


def _curves(ledger: TrialsTable) -> list[dict[str, object]]:
    """One row per epoch of every trial."""
    return [{"trial": row.trial, **epoch} for row in ledger.rows.values() for epoch in row.history]


def _backbones(shared: Shared) -> dict[str, dict[str, float]]:
    """Speed and size of every backbone that was tried."""
    return {
        key[0]: {"images_per_s": one.images_per_s, "parameters": one.num_parameters}
        for key, one in shared.variants.items()
    }
