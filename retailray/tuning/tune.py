"""The driver's side of ``tune``: share, search, and leave the winner as a bundle, as a config and as a table."""

import json

import pandas as pd
import pyarrow as pa

from retailray import events, storage
from retailray.config import TuneConfig
from retailray.data.arrow_tables import parquet_bytes
from retailray.data.catalog import count_labels
from retailray.data.spreadsheets import csv_text
from retailray.data.taxonomy import taxonomy_of
from retailray.execution import TrialPlan, executor_for_reading, plan_training, plan_trials, start_executor
from retailray.reports.run_index import publish
from retailray.runs import RunDirectory
from retailray.tracking import check_tracking, track
from retailray.training.best_epoch import measure_of
from retailray.training.bundles import register
from retailray.training.rows import labelled_splits, rows_digest
from retailray.training.verdict import verdict
from retailray.tuning.report import Best, write_search_report
from retailray.tuning.shared_inputs import Inputs, Shared
from retailray.tuning.trial import MEMBER, RECORD
from retailray.tuning.trials_table import TrialsTable
from retailray.tuning.tuner import run_search
from retailray.tuning.winner import Winner, find_winner, trained_winner, verify


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
    taxonomy_of(config.taxonomy.uri, splits.values(), labels)  # what is wrong with it is told before the search
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
        run.machines = on_ray.machines
        plan = plan_training(executor.capacity, config.cluster)
        trial_plan = plan_trials(on_ray.capacity, config.cluster, config.tune)
        executor.wait_until_free(plan, deadline_s=config.cluster.resource_timeout_s)
        shared = _share(Inputs(config, splits, labels, plan, executor), run, trial_plan)
        times = {"shared_seconds": watch.seconds}
        ledger = _search(shared, run)
        times["search_seconds"] = watch.seconds - times["shared_seconds"]
        row = find_winner(ledger)
        trained = trained_winner(shared, row, splits, run, executor)
        bundle = trained.save(run)
        winner = Winner(row, trained, verify(trained, run, bundle, executor.engine))
        registered = register(config.model.registry, bundle, trained.meta)
    _publish(ledger, winner, run, watch, {"bundle": bundle, **times}, registered)
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
    winner: Winner,
    run: RunDirectory,
    watch: events.Stopwatch,
    facts: dict[str, object],
    registered: dict[str, str],
) -> None:
    """Write tables, report and summary. ``facts``: where the bundle is, and times."""
    shared, row, trained, verified = ledger.shared, winner.row, winner.model, winner.verified
    ledger.prune(again=True)
    table = _tables(run, ledger)
    judged = verdict(row.history, num_labels=len(shared.labels))
    best = Best(row.history, trained.best["epoch"], judged, verified)
    write_search_report(run, shared.config, table, _curves(ledger), _backbones(shared), best)
    counts = {str(status): int(count) for status, count in table.status.value_counts().items()}
    measured = {ledger.metric: measure_of(trained.best, shared.config.train.metric), "verified_top1": verified["top1"]}
    summary = {
        "trials": len(table),
        **counts,
        "epochs": ledger.num_epochs,
        "best_trial": row.trial,
        **measured,
        **facts,
        "best_config": run.path("best.yaml"),
        "verdict": judged.name,
        "verdict_text": judged.text,
    }
    record = {
        "command": "tune",
        **summary,
        "settings": ledger.settings(row),
        "seconds": watch.seconds,
        "resumed": run.resumed,
    }
    publish(run, record, clear=["exchange"])
    track(shared.config, run, record, row.history, version=trained.meta.version, metrics=trained.best)
    seen = sum(epoch["train_rows"] for one in ledger.rows.values() for epoch in one.history)
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
