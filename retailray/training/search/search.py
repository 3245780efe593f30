"""The driver's side of ``tune``: share, search, and leave the winner as a bundle, as a config and as a table."""

import io
from typing import Any

import pandas as pd
import ray
import torch
import yaml

from retailray import progress, storage
from retailray.cluster import plan_training, plan_trials, ray_session, wait_until_free
from retailray.config import BundleSection, EvaluateConfig, EvaluateSection, TuneConfig
from retailray.data.catalog import Catalog, count_labels
from retailray.errors import ConfigError, RetailrayError
from retailray.evaluation import evaluate
from retailray.reports import write_search_report
from retailray.runs import RunDirectory
from retailray.training.bundles import describe, publish_bundle
from retailray.training.engine import World
from retailray.training.rows import labelled_splits, rows_digest
from retailray.training.search.ledger import Ledger
from retailray.training.search.shared import Shared, share, variant_key
from retailray.training.search.trial import RECORD, STATE, make_engine, read_json, read_state, this_device
from retailray.training.search.tuner import run_search

SAME = 0.02  # top-1 with and without what is kept may differ so much: bfloat16 rounds, and a row or two may tip
SAME_ROWS = 2


def tune(config: TuneConfig) -> str:
    """Search the settings of ``train`` and write a run directory with all trials and the winner's bundle.

    Returns:
        The address of the bundle.

    Raises:
        RetailrayError: no trial ended well; or catalog, weights, storage or cluster; see :mod:`retailray.errors`.
    """
    watch = progress.Stopwatch()
    splits = labelled_splits(config)
    labels = sorted(count_labels(splits["train"].column("label")))
    run = _open_run(config)
    num_epochs = sum(phase.epochs for phase in config.train.phases) or config.train.epochs
    progress.emit(
        "start",
        verb="tune",
        run=run.address,
        resumed=run.resumed,
        labels=len(labels),
        space={key: domain.dump() for key, domain in config.space.items()},
        **{name: len(part) for name, part in splits.items()},
    )
    with ray_session(config.cluster) as capacity:
        plan, trial_plan = plan_training(capacity, config.cluster), plan_trials(capacity, config.cluster, config.tune)
        wait_until_free(plan)
        decided = _earlier(run, splits)
        shared = share(config, splits, labels, plan, trial_plan, run.path("trials"), decided.get("variants", {}))
        run.write_json("decisions.json", {"rows": rows_digest(splits), "variants": shared.decisions()})
        ledger = Ledger(shared)
        prepared_s = watch.seconds
        progress.emit("search", concurrent=trial_plan.num_concurrent, cpus=trial_plan.cpus, gpus=trial_plan.gpus)
        with ledger.shown():
            drawn = _drawn_before(config, run)
            run_search(shared, ledger, num_epochs=num_epochs, resumed=drawn, storage_path=run.path("exchange"))
        search_s = watch.seconds - prepared_s
        winner = _winner(ledger)
        weights, temperature = _restored(shared, winner)
        bundle = _leave_bundle(config, run, shared, ledger, winner, splits, weights, temperature)
        verified = _verify(config, run, bundle, ledger, winner)
    storage.remove_folder(run.path("exchange"))
    ledger.prune()
    table = _tables(run, ledger)
    write_search_report(run, config, table, _curves(ledger), _backbones(shared), verified)
    counts = {str(status): int(count) for status, count in table.status.value_counts().items()}
    best = {"best_trial": winner["trial"], ledger.metric: ledger.value(winner), "verified_top1": verified["top1"]}
    times = {"shared_seconds": prepared_s, "search_seconds": search_s}
    summary = {"trials": len(table), **counts, "epochs": ledger.num_epochs, **best}
    run.publish(
        {
            "verb": "tune",
            **summary,
            "bundle": bundle,
            "best_config": run.path("best.yaml"),
            "settings": ledger.settings(winner),
            **times,
            "seconds": watch.seconds,
            "resumed": run.resumed,
        }
    )
    seen = sum(epoch["train_rows"] for row in ledger.rows.values() for epoch in row["history"])
    watch.summary("tune", num_images=seen, **summary, **times, bundle=bundle, report=run.path("report.html"))
    return bundle


def _open_run(config: TuneConfig) -> RunDirectory:
    if config.tune.resume:
        run = RunDirectory.unfinished(config, ignoring=("tune.resume", "cluster"))
        if run:
            return run
        progress.emit("warning", note=f"tune.resume: no unfinished search of these settings in {config.out}; a new one")
    return RunDirectory(config)


def _earlier(run: RunDirectory, splits: dict[str, Catalog]) -> dict[str, Any]:
    """What an interrupted search had measured and decided. Raises ConfigError where its rows are not what they were."""
    earlier = (run.resumed and read_json(run.path("decisions.json"))) or {}
    if earlier and earlier["rows"] != rows_digest(splits):
        raise ConfigError(
            [
                f"tune.resume: the catalog's rows changed since {run.address} was interrupted; "
                "leave tune.resume out to start anew"
            ]
        )
    return earlier


def _drawn_before(config: TuneConfig, run: RunDirectory) -> list[dict[str, Any]]:
    """Settings of trials before the interruption, where what is drawn next depends on results; else nothing.

    Random draws and grids repeat themselves; a population's members go on with the settings they had come to.
    """
    if not run.resumed or (config.tune.searcher != "optuna" and config.tune.scheduler != "pbt"):
        return []
    found = []
    for folder in sorted({storage.parent(name) for name in storage.list_files(run.path("trials"))}):
        record = read_json(storage.join(folder, RECORD)) or read_state(folder)
        if record:
            found.append((record.get("at", float("inf")), folder, record["drawn"]))
    # members in order of their names, which Tune gives them again; trials in the order in which they ended
    by_name = config.tune.scheduler == "pbt"
    return [drawn for *_, drawn in sorted(found, key=lambda item: item[1] if by_name else item[0])]


def _winner(ledger: Ledger) -> dict[str, Any]:
    """The best trial whose weights are there. Raises RetailrayError where no trial ended well."""
    for row in ledger.ranked():
        if storage.exists(storage.join(ledger.shared.records, row["key"], STATE)):
            return row
    messages = [row["message"] for row in ledger.rows.values() if row["message"]]
    why = f"the first failure: {messages[0]}" if messages else "all diverged; search lower learning rates"
    raise RetailrayError(f"none of {len(ledger.rows)} trials ended well; {why}")


def _restored(shared: Shared, winner: dict[str, Any]) -> tuple[dict[str, torch.Tensor], float]:
    """The winner's whole state dict as of its best epoch, and its temperature: computed where trials run."""

    def restore(shared: Shared) -> tuple[dict[str, torch.Tensor], float]:
        state = read_state(storage.join(shared.records, winner["key"]))
        assert state
        engine = make_engine(shared, shared.trial(winner["drawn"]), World(0, 1, this_device(shared)))
        engine.load_best(state["best"])
        return {name: tensor.cpu() for name, tensor in engine.model.state_dict().items()}, engine.temperature()

    task = ray.remote(num_cpus=shared.plan.cpus, num_gpus=shared.plan.gpus)(restore)
    return ray.get(task.remote(shared))


def _leave_bundle(
    config: TuneConfig,
    run: RunDirectory,
    shared: Shared,
    ledger: Ledger,
    winner: dict[str, Any],
    splits: dict[str, Catalog],
    weights: dict[str, torch.Tensor],
    temperature: float,
) -> str:
    """The bundle, and ``best.yaml``: what ``train --config`` makes the same model of."""
    settings = shared.trial(winner["drawn"])
    run.write("best.yaml", yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
    backbone = shared.variants[variant_key(settings)].backbone
    best = ledger.best_epoch(winner)
    assert best
    normalization = backbone.mean, backbone.std
    meta = describe(settings, shared.labels, normalization, best, splits, weights, temperature, None)
    return publish_bundle(settings, run, meta, weights)


def _verify(
    config: TuneConfig, run: RunDirectory, bundle: str, ledger: Ledger, winner: dict[str, Any]
) -> dict[str, Any]:
    """Evaluate the bundle on the validation images themselves, as anyone would who has nothing of what was kept.

    Raises:
        RetailrayError: that is not what the trial had measured.
    """
    metrics = evaluate(
        EvaluateConfig(
            catalog=config.catalog,
            split=config.split,
            model=BundleSection(uri=bundle),
            evaluate=EvaluateSection(split="validation"),
            cluster=config.cluster,
            out=run.path("verification"),
        )
    )
    best = ledger.best_epoch(winner)
    assert best
    expected = best["validation_top1"]
    if abs(metrics["top1"] - expected) > max(SAME, SAME_ROWS / max(1, metrics["num_rows"])):
        raise RetailrayError(
            f"the winner's top-1 is {metrics['top1']:.4f} on the validation images, and its trial had measured "
            f"{expected:.4f} on what is kept; please report this ({bundle})"
        )
    return {name: metrics[name] for name in ("top1", "top5", "macro_f1", "ece", "num_rows")} | {"trial_top1": expected}


def _tables(run: RunDirectory, ledger: Ledger) -> pd.DataFrame:
    """Write ``trials.parquet``, ``trials.csv`` (a row a trial, the best one first) and ``epochs.parquet``."""
    ranked = ledger.ranked()
    rows = []
    for row in [*ranked, *[row for row in ledger.rows.values() if row not in ranked]]:
        best = ledger.best_epoch(row)
        rows.append(
            {
                "trial": row["trial"],
                "status": row["status"],
                ledger.metric: best[ledger.metric] if best else None,
                "best_epoch": best["epoch"] if best else None,
                "epochs": len(row["history"]),
                "seconds": row["seconds"],
                **ledger.settings(row),
                "key": row.get("key"),
                "message": row["message"],
            }
        )
    table = pd.DataFrame(rows).convert_dtypes(dtype_backend="numpy_nullable")
    for name, frame in (("trials", table), ("epochs", pd.DataFrame(_curves(ledger)))):
        buffer = io.BytesIO()
        frame.to_parquet(buffer, index=False)
        run.write(f"{name}.parquet", buffer.getvalue())
    run.write("trials.csv", table.to_csv(index=False))
    return table


def _curves(ledger: Ledger) -> list[dict[str, Any]]:
    """A row an epoch of every trial."""
    return [{"trial": row["trial"], **epoch} for row in ledger.rows.values() for epoch in row["history"]]


def _backbones(shared: Shared) -> dict[str, dict[str, float]]:
    """Speed and size of every backbone that was tried."""
    return {
        key[0]: {"images_per_s": one.images_per_s, "parameters": one.num_parameters}
        for key, one in shared.variants.items()
    }
