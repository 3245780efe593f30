"""``score``: classify every row of a catalog and publish tables in which every row is found once."""

import json

import pyarrow as pa

from retailray import progress
from retailray.cluster import Plan, plan_scoring, ray_session, relay_progress, wait_until_free
from retailray.config import ScoreConfig
from retailray.data.catalog import Catalog, read_catalog
from retailray.data.images import Limits
from retailray.data.pipeline import OURS, DecodeSpec, error_rows, image_dataset, transport_table
from retailray.errors import CatalogError, RetailrayError, TooManyRowErrors
from retailray.models.bundle import BundleMeta, load_bundle
from retailray.reports import write_score_report
from retailray.runs import RunDirectory
from retailray.scoring.parts import Totals, stamped, write_empty, write_part
from retailray.scoring.predicting import PREDICTION_SCHEMA, predict_dataset

STAMP = ("model_name", "model_version", "run_id", "scored_at")


def score(config: ScoreConfig) -> str:
    """Score a catalog with a bundle and publish a run directory.

    Returns:
        The address of the run directory.

    Raises:
        TooManyRowErrors: published, but more rows failed than ``score.max_error_rate``.
        RetailrayError: nothing was published; see :mod:`retailray.errors`.
    """
    watch = progress.Stopwatch()
    meta = load_bundle(config.model.uri).meta
    catalog = read_catalog(config.catalog, needs_label=False)
    _refuse_collisions(catalog, [*PREDICTION_SCHEMA.names, *STAMP])
    run = RunDirectory(config)
    stamp = {
        "model_name": meta.name,
        "model_version": meta.version,
        "run_id": run.run_id,
        "scored_at": run.started_at,
    }
    progress.emit("start", verb="score", run=run.address, rows=len(catalog), model=f"{meta.name}/{meta.version}")
    with ray_session(config.cluster) as capacity:
        plan = plan_scoring(capacity, config.cluster)
        wait_until_free(plan)
        totals = _run(config, catalog, meta, plan, run, stamp, num_blocks=int(4 * capacity.num_cpus))
    _account(len(catalog), totals)
    _fill_gaps(catalog, totals, run, stamp)
    queue = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in totals.review)
    run.write("review/queue.jsonl", queue)
    counts = {"rows": len(catalog), "scored": totals.scored, "carried_over": 0, "failed": totals.failed}
    write_score_report(run, meta, totals, counts, config, seconds=watch.seconds)
    run.publish({
        "verb": "score", "catalog": config.catalog.uri, "model_uri": config.model.uri, **stamp, "counts": counts,
        "errors_by_code": totals.codes, "labels": totals.labels, "decisions": totals.decisions,
        "label_agreement": totals.label_agreement,
        "num_workers": plan.num_actors, "seconds": watch.seconds,
    })  # fmt: skip
    watch.summary("score", num_images=totals.scored, **counts, run=run.address)
    rate = totals.failed / len(catalog)
    if rate > config.score.max_error_rate:
        raise TooManyRowErrors(
            f"{totals.failed} of {len(catalog)} rows failed ({rate:.1%}), more than score.max_error_rate = "
            f"{config.score.max_error_rate:.1%}; the results are published, the reasons are in {run.path('errors')}"
        )
    return run.address


def _refuse_collisions(catalog: Catalog, ours: list[str]) -> None:
    taken = [name for name in catalog.table.column_names if name in ours or name.startswith(OURS)]
    if taken:
        raise CatalogError(f"{catalog.uri}: columns {', '.join(taken)} have names that the output uses; rename them")


def _run(
    config: ScoreConfig,
    catalog: Catalog,
    meta: BundleMeta,
    plan: Plan,
    run: RunDirectory,
    stamp: dict[str, str],
    *,
    num_blocks: int,
) -> Totals:
    limits = Limits(config.catalog.max_pixels, config.catalog.max_aspect_ratio)
    spec = DecodeSpec(meta.transform.resize_size, meta.transform.crop_size, limits)
    table = transport_table(catalog, with_input=True)
    images = image_dataset(table, spec, task_cpus=plan.task_cpus, num_blocks=num_blocks)
    totals = Totals()
    try:
        with relay_progress("images", len(catalog)) as relay:
            predicted = predict_dataset(
                images,
                bundle_uri=config.model.uri,
                plan=plan,
                batch_size=config.score.batch_size,
                top_k=config.score.top_k,
                relay=relay,
            )
            parts = predicted.map_batches(
                write_part,
                fn_kwargs={"address": run.address, "input_columns": catalog.table.column_names, "stamp": stamp},
                batch_format="pyarrow",
                batch_size=config.score.rows_per_file,
                num_cpus=plan.task_cpus,
            )
            for row in parts.iter_rows():
                totals.add(json.loads(row["tally"]))
    except Exception as error:  # Ray wraps what went wrong in a task or an actor in many ways
        raise RetailrayError(
            f"scoring stopped: {' '.join(str(error).split())[-400:]}; nothing was published"
        ) from error
    return totals


def _account(num_rows: int, totals: Totals) -> None:
    """rows in catalog = scored + carried over + failed, or nothing is published."""
    if num_rows != totals.scored + totals.failed:
        raise RetailrayError(
            f"{num_rows} rows went in and {totals.scored} scored + {totals.failed} failed came out: "
            "nothing is published; this is a defect of retailray, please report it"
        )


def _fill_gaps(catalog: Catalog, totals: Totals, run: RunDirectory, stamp: dict[str, str]) -> None:
    empty = transport_table(catalog, with_input=False).slice(0, 0)
    if not totals.failed:
        write_empty(run.address, "errors", error_rows(empty).schema)
    if not totals.scored:
        nothing = catalog.table.slice(0, 0)
        for field in PREDICTION_SCHEMA:
            nothing = nothing.append_column(field, pa.array([], field.type))
        write_empty(run.address, "predictions", stamped(nothing, stamp).schema)
