"""What earlier runs below the same ``out`` left: one that was interrupted, the one that LATEST names, old ones."""

import io
import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from retailray import storage
from retailray.config import ScoreConfig
from retailray.errors import NotFound
from retailray.runs import RunDirectory, address_of, list_runs, unfinished
from retailray.scoring.formats import RESPELLED, SCORED

PLAN = "plan.json"
Published = tuple[str, dict[str, Any]]  # address and run.json of a run
# settings that change nothing about what is scored: a run that was interrupted is gone on with under others too
IGNORED = (
    "cluster",
    "taxonomy",
    "score.plan_only",
    "catalog.corrections",
    "score.review_rows",
    "score.price_per_cpu_hour",
    "score.price_per_gpu_hour",
    "score.keep_runs",
    "score.max_error_rate",
    "score.publish_on_errors",
    "score.memory_gb",
    "score.rows_per_file",
    "score.batch_size",
    "score.compile",
    "score.dedupe",
    "score.target_precision",
    "score.level",
    "score.max_drift",
    "score.gate_validation_labels",
)


def interrupted(config: ScoreConfig, key: str) -> str | None:
    """The run id of the run of these settings and this model that was interrupted, if any."""
    run_id = unfinished(config, ignoring=IGNORED)
    if run_id is None:
        return None
    plan = storage.join(address_of(config.out, run_id), PLAN)
    if not storage.exists(plan):
        return run_id
    return run_id if json.loads(storage.read_bytes(plan))["scoring_key"] == key else None


def last_published(out: str) -> Published | None:
    """Address and ``run.json`` of the scoring run that ``LATEST`` names, if there is one.

    Or of a newer one, that was complete and was killed before it moved ``LATEST``.
    """
    pointer = storage.join(out, "LATEST")
    named = storage.read_bytes(pointer).decode().strip() if storage.exists(pointer) else ""
    for name, files in list_runs(out, after=named).items():
        if {"_SUCCESS", SCORED} <= files and (found := _summary(out, name)) and found[1]["published"]:
            return found
    return _summary(out, named) if named else None


def _summary(out: str, name: str) -> Published | None:
    address = storage.join(out, name)
    try:
        summary = json.loads(storage.read_bytes(storage.join(address, "run.json")))
    except ValueError:
        return None  # it is no run of ours
    except NotFound:
        return None  # somebody removed it; where the store is away, going on would score a whole catalog again
    return (address, summary) if "score" in (summary.get("command"), summary.get("verb")) else None  # 0.2.0: verb


def read_parts(address: str) -> Iterator[pa.Table]:
    """The Parquet files of a folder, one at a time."""
    return map(read_part, sorted(name for name in storage.list_files(address) if name.endswith(".parquet")))


def read_part(name: str) -> pa.Table:
    """Addresses are canonical, which 0.2.0 did not write for all stores."""
    table = pq.read_table(io.BytesIO(storage.read_bytes(name)))
    if "uri" not in table.column_names:
        return table
    uris = table.column("uri")
    known = pc.or_(pc.starts_with(uris, "s3://"), pc.starts_with(uris, "/"))
    if pc.all(known).as_py() in (True, None):  # None: no rows
        return table
    values = pa.array([storage.canonical(uri) for uri in uris.to_pylist()], pa.string())
    if values.equals(uris.combine_chunks()):
        return table
    table = table.replace_schema_metadata({RESPELLED: b"yes"})
    return table.set_column(table.schema.get_field_index("uri"), table.schema.field("uri"), values)


def remove_old(config: ScoreConfig, run: RunDirectory) -> None:
    """Keep the newest complete scoring runs; what was interrupted before the oldest of them goes too."""
    complete = 0
    for name, files in list_runs(config.out).items():
        address = storage.join(config.out, name)
        if address == run.address:
            complete += 1
            continue
        if "_SUCCESS" in files:
            if _summary(config.out, name) is None:
                continue
            complete += 1
        elif PLAN not in files:
            continue  # not a scoring run, or one that did nothing
        if complete > (config.score.keep_runs or complete):
            storage.remove_folder(address)
