"""``score``: classify every row of a catalog and publish tables in which every row is found once.

In order: read the catalog to the driver's disk, list the images, ask the ledger what is known of them, infer the rest,
join, count, publish. A first run, a resumed run and a run on a catalog with few changes are the same command.
"""

import dataclasses
import glob
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retailray import events, storage
from retailray.config import ClusterSection, ScoreConfig
from retailray.data.catalog import corrections_of
from retailray.data.corrections import warn_of_strangers
from retailray.data.images import DECODER_VERSION
from retailray.data.tables import PIECE_ROWS
from retailray.errors import GateFailed, ModelError, StorageError, TooManyRowErrors
from retailray.models.meta import EMBEDDING, THRESHOLDS, BundleMeta, load_meta, load_validation
from retailray.models.registry import resolve_alias
from retailray.models.thresholds import Promise, Validation, acceptance_curve, fit_promise
from retailray.provenance import inference_environment
from retailray.runs import RunDirectory, address_of
from retailray.scoring.drift import Drift, changed_labels, measure_drift, outlier_model_of, references
from retailray.scoring.formats import PRECISION, SCORED, TODO
from retailray.scoring.ledger import PUBLISHED, RESUMED, Ledger, PlanCounts, Reuse
from retailray.scoring.previous_run import (
    PLAN,
    Published,
    interrupted,
    last_published,
    read_part,
    read_parts,
    remove_old,
)
from retailray.scoring.publishing import LEDGER, output_schema, summarize, write_tables
from retailray.scoring.report import write_score_report
from retailray.scoring.review import make_queue, write_queue
from retailray.scoring.review_page import write_review_page
from retailray.scoring.staging import StagedCatalog, stage_catalog
from retailray.storage.lease import Lease, acquire_lease, lease_owner

if TYPE_CHECKING:
    from retailray.scoring.inference import Inferred

CHANGED = 24  # products whose label changed, and kinds of change, in the report


def score(config: ScoreConfig) -> str:
    """Score a catalog with a bundle and publish a run directory.

    Returns:
        The address of the run directory; '' for a plan only.

    Raises:
        TooManyRowErrors: done, but more rows failed than ``score.max_error_rate``.
        RetailrayError: nothing was published; see :mod:`retailray.errors`.
    """
    watch = events.Stopwatch()
    config = resolve_alias(config)
    meta, digest = load_meta(config.model.uri)
    key = scoring_key(meta, digest, config)
    folder = Path(tempfile.mkdtemp(prefix="retailray-"))
    try:
        if config.score.plan_only:
            return _print_plan(config, key, folder, watch)
        with acquire_lease(config.out) as lease:
            run = RunDirectory(config, run_id=interrupted(config, key))
            lease.run_id = run.run_id
            name = f"{meta.name}/{meta.version}"
            events.emit("start", command="score", run=run.address, model=name, resumed=run.resumed)
            return _score(config, meta, key, run, lease, folder, watch)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def scoring_key(meta: BundleMeta, weights_digest: str, config: ScoreConfig) -> str:
    """A digest of all that a prediction depends on besides the image; thresholds are none of it.

    Errors depend on our code and on library versions too: see :func:`_reuse`.
    """
    parts = {
        "weights": weights_digest,
        "arch": meta.arch,
        "labels": meta.labels,
        "transform": meta.transform.model_dump(),
        "temperature": meta.temperature,
        "top_k": config.score.top_k,
        "precision": config.score.precision,
        "limits": [config.catalog.max_pixels, config.catalog.max_aspect_ratio],
        "decoder": DECODER_VERSION,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _score(
    config: ScoreConfig,
    meta: BundleMeta,
    key: str,
    run: RunDirectory,
    lease: Lease,
    folder: Path,
    watch: events.Stopwatch,
) -> str:
    validation = _validation(config)
    said = corrections_of(config.catalog)
    before = last_published(config.out)
    catalog, ledger, plan = _plan(config, key, folder, resumed=run.run_id if run.resumed else None, before=before)
    run.write_json(PLAN, {"scoring_key": key, **dataclasses.asdict(plan)})
    events.emit("plan", **_plan_fields(plan))
    _keep_precision(config, run, key, before)
    times = {"planning": watch.seconds}
    inferred: Inferred | None = None
    if plan.images:  # else Ray is not started, nor imported
        from retailray.scoring.inference import infer

        inferred = infer(config, meta, run, ledger.todo(PIECE_ROWS), plan.images)
        ledger.add_fresh(map(read_part, inferred.parts))
    times["inference"] = watch.seconds - times["planning"]
    if said is not None:
        ledger.add_corrections(said)
    promise = _promise(config, validation)
    thresholds = promise.thresholds(meta.thresholds.abstain) if promise else meta.thresholds
    ledger.resolve_results(thresholds)
    lease.check()
    schema = output_schema(config.catalog)
    counts = write_tables(run, ledger, catalog, meta, rows_per_file=config.score.rows_per_file, schema=schema)
    facts = {
        "command": "score",
        "catalog": config.catalog.uri,
        "model_uri": config.model.uri,
        "model_name": meta.name,
        "model_version": meta.version,
        "scoring_key": key,
        "counts": counts,
        "plan": _plan_fields(plan),
        "not_listed": ledger.not_listed,
        "not_deduplicated": inferred.not_deduplicated if inferred else 0,
        "thresholds": thresholds.model_dump(),
        "promise": promise.summary() if promise else None,
        "times": times,
        "stages": inferred.stages() if inferred else [],
        "cost": _cost(config, inferred, times["inference"]),
        "images_per_s": plan.images / times["inference"] if plan.images else None,
    }
    facts |= _report(config, meta, run, ledger, facts, validation, before, watch)
    if said is not None:
        warn_of_strangers(said, ledger.one("select count(*) from corrections semi join rows on item_id = id"))
    ledger.close()
    lease.check()
    _publish(config, run, facts, watch)
    return run.address


def _report(
    config: ScoreConfig,
    meta: BundleMeta,
    run: RunDirectory,
    ledger: Ledger,
    facts: dict[str, Any],
    validation: Validation | None,
    before: Published | None,
    watch: events.Stopwatch,
) -> dict[str, object]:
    """Write ``review/`` and ``report.html``; returns what else ``run.json`` tells."""
    held_out = validation.of_role(THRESHOLDS) if validation else None
    found, summaries = summarize(ledger), references(ledger, validation)
    drift, changed = measure_drift(ledger, summaries), changed_labels(ledger, limit=CHANGED)
    queue = make_queue(ledger, outlier_model_of(summaries), limit=config.score.review_rows)
    write_queue(run, queue, meta)
    write_review_page(run, queue, meta.labels, f"{meta.name}/{meta.version}", config.catalog)
    facts["times"]["in all"] = watch.seconds
    write_score_report(
        run,
        meta,
        config,
        facts | found,
        curve=acceptance_curve(held_out) if held_out and len(held_out.scores) else None,
        drift=drift,
        changed=changed,
        queue=queue,
        labels_before=before[1]["labels"] if before else None,
    )
    kept = ("errors_by_code", "labels", "decisions", "label_agreement", "corrected", "outdated")
    return {
        "drift": [dataclasses.asdict(row) for row in drift],
        "labels_changed": changed["count"],
        "review": len(queue),
        **{name: found[name] for name in kept},
    }


def _publish(config: ScoreConfig, run: RunDirectory, facts: dict[str, Any], watch: events.Stopwatch) -> None:
    """Mark the run complete, move the pointer, clear away. Raises TooManyRowErrors or GateFailed, afterwards."""
    counts = facts["counts"]
    rate = counts["failed"] / counts["rows"]
    too_many = rate > config.score.max_error_rate
    pointed = not too_many or config.score.publish_on_errors
    facts = facts | {"published": pointed, "seconds": watch.seconds}
    run.publish(facts, pointer=pointed, alone=True, clear=(SCORED, TODO))
    if config.score.keep_runs and pointed:
        try:
            remove_old(config, run)
        except StorageError as error:  # the results are published, and the next run tries again
            events.emit(
                "warning", note=f"old runs could not be removed, score.keep_runs = {config.score.keep_runs}: {error}"
            )
    watch.summary("score", num_images=counts["scored"], **counts, run=run.address)
    if too_many:
        where = "the results are published" if pointed else f"LATEST still names the run before, see {run.address}"
        raise TooManyRowErrors(
            f"{counts['failed']} of {counts['rows']} rows failed ({rate:.1%}), more than score.max_error_rate = "
            f"{config.score.max_error_rate:.1%}; {where}, the reasons are in {run.path('errors')}"
        )
    _gate(config, facts["drift"], run)


def _plan(
    config: ScoreConfig, key: str, folder: Path, *, resumed: str | None, before: Published | None
) -> tuple[StagedCatalog, Ledger, PlanCounts]:
    """Read the catalog, the stores' listings and the ledgers of before, and say what is left to do."""
    catalog = stage_catalog(config.catalog, folder, reserved=output_schema(config.catalog).names)
    ledger = Ledger(folder, catalog, memory_gb=config.score.memory_gb)
    ledger.add_listing()
    reuse = _reuse(config)
    if resumed:
        committed = storage.join(address_of(config.out, resumed), SCORED)
        own = dataclasses.replace(reuse, rescore=None)  # what this run itself has made anew
        ledger.add_known(read_parts(committed), origin=RESUMED, usable=True, reuse=own)
    if before:
        address, summary = before
        usable = summary.get("scoring_key") == key
        ledger.add_known(read_parts(storage.join(address, LEDGER)), origin=PUBLISHED, usable=usable, reuse=reuse)
    return catalog, ledger, ledger.plan()


def _reuse(config: ScoreConfig) -> Reuse:
    """Errors hold for the code, the library versions and the kind of device that met them."""
    return Reuse(config.score.rescore, inference_environment(), _expected_device(config.cluster))


def _expected_device(section: ClusterSection) -> str:
    """The kind of device that will predict, or ``unknown``: a cluster's is not known before it is asked for."""
    if section.use_gpu is not None:
        return "cuda" if section.use_gpu else "cpu"
    if section.address or os.environ.get("RAY_ADDRESS"):
        return "unknown"
    return "cuda" if glob.glob("/dev/nvidia[0-9]*") else "cpu"


def _print_plan(config: ScoreConfig, key: str, folder: Path, watch: events.Stopwatch) -> str:
    before, resumed = last_published(config.out), interrupted(config, key)
    if resumed and lease_owner(config.out):
        events.emit("warning", run_id=resumed, note="this run is active; its committed results are not counted")
        resumed = None
    _, ledger, plan = _plan(config, key, folder, resumed=resumed, before=before)
    ledger.close()
    rate = before[1].get("images_per_s") if before else None
    told = _plan_fields(plan) | {"bytes": plan.num_bytes, "estimated_s": plan.images / rate if rate else None}
    watch.summary("score", num_images=0, plan_only=True, **told)
    return ""


def _validation(config: ScoreConfig) -> Validation | None:
    """What came of the bundle's validation rows, if it has them. Raises ModelError where they are asked for."""
    rows, target = load_validation(config.model.uri), config.score.target_precision
    if rows is not None and rows.num_rows and "role" in rows.column_names:
        names = {
            "labels": "label",
            "predicted": "pred_label",
            "scores": "pred_score",
            "groups": "group",
            "roles": "role",
        }
        columns = {field: rows.column(name).to_numpy() for field, name in names.items()}
        return Validation(**columns, embeddings=np.stack(rows.column(EMBEDDING).to_numpy()))
    if target:
        raise ModelError(
            f"score.target_precision = {target}: {config.model.uri} does not say which validation rows chose its epoch "
            "and its temperature, so none can be held against it; train it again with this version, or leave "
            "score.target_precision out"
        )
    return None


def _promise(config: ScoreConfig, validation: Validation | None) -> Promise | None:
    """Fit the thresholds of ``score.target_precision``; None where the bundle's own thresholds hold."""
    target = config.score.target_precision
    if not target or not validation:
        return None
    promise = fit_promise(validation, target_precision=target)
    found = promise.summary()
    events.emit("promise", **found)
    if not found["promised"]:
        events.emit(
            "warning",
            note=f"score.target_precision = {target}: no class reaches it, so nothing is accepted; a class needs "
            f"at least {promise.needed} products, all predicted right, among the validation rows "
            "held back for thresholds",
        )
    return promise


def _keep_precision(config: ScoreConfig, run: RunDirectory, key: str, before: Published | None) -> None:
    """Score in the precision of the previous run, so that reused and new results are comparable."""
    if config.score.precision != "auto":
        storage.put_if_absent(run.path(PRECISION), config.score.precision.encode())
        return
    if before and before[1].get("scoring_key") == key:
        measured = storage.join(before[0], PRECISION)
        if storage.exists(measured):
            storage.put_if_absent(run.path(PRECISION), storage.read_bytes(measured))


def _gate(config: ScoreConfig, drift: list[dict[str, Any]], run: RunDirectory) -> None:
    limit = config.score.max_drift
    far = [
        f"{row.what} compared with the {row.reference}: {row.psi:.3f} (up to {row.expected_psi:.3f} by chance)"
        for row in (Drift(**fields) for fields in drift)
        if limit and row.psi_above_noise > limit and (row.gates or config.score.gate_validation_labels)
    ]
    if far:
        raise GateFailed(
            f"population stability index over score.max_drift = {limit:g}: {'; '.join(far)}; the results are "
            f"published, see {run.path('report.html')}"
        )


def _cost(config: ScoreConfig, inferred: "Inferred | None", seconds: float) -> dict[str, float] | None:
    """What the cluster cost while it was held, by the prices of the config; None without prices or without Ray."""
    rates = config.score.price_per_cpu_hour, config.score.price_per_gpu_hour
    if inferred is None or not any(rates):
        return None
    total = seconds / 3600 * (inferred.num_cpus * rates[0] + inferred.num_gpus * rates[1])
    return {
        "total": total,
        "per_million_images": total / inferred.num_images * 1e6,
        "cpus": inferred.num_cpus,
        "gpus": inferred.num_gpus,
    }


def _plan_fields(plan: PlanCounts) -> dict[str, object]:
    return {name: value for name, value in dataclasses.asdict(plan).items() if name != "num_bytes"}
