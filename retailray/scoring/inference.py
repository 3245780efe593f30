"""From images to ledger rows, committed part by part: fetch, hash and decode in CPU tasks, predict in a pool, write.

The driver holds no rows: tasks read their share of the plan from the run directory and leave parts of ledger rows in
it. A part is written whole, and its name is a digest of its images and of the attempt, so that a retried task writes
the same file, and what a task of an earlier, killed attempt may still write is never taken for ours.
"""

import collections
import dataclasses
import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from retailray import storage
from retailray.cluster import Plan, beside_driver, ray_session, relay_progress, wait_until_free
from retailray.cluster import plan_scoring as plan_actors
from retailray.config import ScoreConfig
from retailray.data.images import Limits, decode
from retailray.data.pipeline import (
    CHUNK_ROWS,
    CODE,
    MESSAGE,
    OURS,
    PIXELS,
    URI,
    DecodeSpec,
    pixels_to_arrow,
    with_errors,
)
from retailray.data.seen import Seen
from retailray.data.tables import parquet_bytes, rechunk
from retailray.errors import ImageError, RetailrayError
from retailray.models.meta import BundleMeta
from retailray.runs import RunDirectory
from retailray.scoring.ledger import EMBEDDING_FIELD, LEDGER_SCHEMA, PRECISION, SCORED, TODO
from retailray.scoring.predicting import PREDICT, predict_dataset

UNIT_ROWS = 2048  # images a data task, at most
UNITS_PER_FILE = 64
PARTS = 200  # so many are aimed at: a killed run loses what is in flight, some hundredths of the work
PART_ROWS = (64, 20_000)  # and so few and so many images has a part
IDENTITY, SHA = (OURS + name for name in ("identity", "sha256"))
FETCH, DECODE, COMMIT = "fetch", "decode", "commit"
STAGES = (FETCH, DECODE, PREDICT, COMMIT)
REUSED = "reused"  # stands in the error column of an image whose prediction is known by its bytes


@dataclasses.dataclass(frozen=True)
class Todo:
    """The plan's images in a run directory: ``num_units`` row groups of Parquet files below ``address``."""

    address: str
    num_images: int
    num_units: int

    def read(self, unit: int) -> pa.Table:
        name = storage.join(self.address, f"part-{unit // UNITS_PER_FILE:05d}.parquet")
        with storage.open_binary(name) as file:
            return pq.ParquetFile(file).read_row_group(unit % UNITS_PER_FILE)


def write_todo(run: RunDirectory, batches: Iterable[pa.Table], *, num_images: int, num_cpus: float) -> Todo:
    """Write the plan's images where tasks on every machine can read them."""
    unit_rows = int(min(UNIT_ROWS, max(CHUNK_ROWS, -(-num_images // (8 * max(1, int(num_cpus)))))))
    address, number = run.path(TODO), 0
    for number, table in enumerate(rechunk(batches, unit_rows * UNITS_PER_FILE)):
        data = parquet_bytes(table, row_group_size=unit_rows)
        storage.write_bytes(storage.join(address, f"part-{number:05d}.parquet"), data)
    return Todo(address, num_images, -(-num_images // unit_rows))


@dataclasses.dataclass(frozen=True)
class Inferred:
    """``parts``: addresses of what was committed. ``seconds``: from an idle cluster to the last part. ``busy``: seconds
    that all processes of a stage together worked; ``slots``: how many of them there may be at once."""

    parts: list[str]
    num_images: int
    seconds: float
    busy: dict[str, float]
    slots: dict[str, int]
    num_cpus: float
    num_gpus: float

    def stages(self) -> list[dict[str, Any]]:
        """Each stage's ``images_per_s`` of one process while it works, and ``utilisation`` of its processes; those
        that fetch, decode and commit are the same."""
        shared = sum(seconds for stage, seconds in self.busy.items() if stage != PREDICT)
        return [
            {
                "stage": stage,
                "seconds": seconds,
                "processes": self.slots[stage],
                "images_per_s": self.num_images / seconds if seconds else None,
                "utilisation": min(1.0, (seconds if stage == PREDICT else shared) / self.slots[stage] / self.seconds),
            }
            for stage, seconds in self.busy.items()
        ]


def infer(config: ScoreConfig, meta: BundleMeta, run: RunDirectory, batches: Iterable[pa.Table], num: int) -> Inferred:
    """Score ``num`` images (``uri, identity, known_sha256``) and commit what comes of them.

    Raises:
        RetailrayError: it could not go on; what is committed stays, and the same command takes it up.
    """
    limits = Limits(config.catalog.max_pixels, config.catalog.max_aspect_ratio)
    spec = DecodeSpec(meta.transform.resize_size, meta.transform.crop_size, limits)
    with ray_session(config.cluster) as capacity:
        plan = plan_actors(capacity, config.cluster, num_images=num, batch_size=config.score.batch_size)
        wait_until_free(plan, deadline_s=config.cluster.wait_s)
        todo = write_todo(run, batches, num_images=num, num_cpus=capacity.num_cpus)
        plan = dataclasses.replace(plan, num_actors=min(plan.num_actors, todo.num_units))
        seen = beside_driver(Seen).remote() if config.score.dedupe else None
        try:
            with relay_progress("images", num, num_predictors=plan.num_actors) as relay:
                started = time.monotonic()
                parts = _run(config, run, plan, todo, spec, seen, relay)
                seconds = time.monotonic() - started
                spent = _spent(relay)
                busy = {stage: spent.get(stage, 0.0) for stage in STAGES}
                tasks = max(1, int((capacity.num_cpus - plan.num_actors * plan.actor_cpus) / plan.task_cpus))
                slots = {stage: plan.num_actors if stage == PREDICT else tasks for stage in STAGES}
                return Inferred(parts, num, seconds, busy, slots, capacity.num_cpus, capacity.num_gpus)
        except Exception as error:  # Ray wraps what went wrong in a task or an actor in many ways
            raise RetailrayError(
                f"scoring stopped: {' '.join(str(error).split())[-400:]}; nothing was published, and the same command "
                f"goes on from what is committed in {run.path(SCORED)}"
            ) from error


def _spent(relay: Any) -> dict[str, float]:
    """Seconds by stage; nothing where the actor that counts them was lost with its machine: all is committed then."""
    try:
        return ray.get(relay.spent.remote())
    except ray.exceptions.RayError:
        return {}


def _run(
    config: ScoreConfig, run: RunDirectory, plan: Plan, todo: Todo, spec: DecodeSpec, seen: Any, relay: Any
) -> list[str]:
    # numbers in memory; ray.data.range and from_arrow start tasks that ask for a whole CPU beside the actors
    units = ray.data.from_blocks([pa.table({"unit": [number]}) for number in range(todo.num_units)])
    images = units.map_batches(
        read_units,
        batch_format="numpy",
        fn_kwargs={"todo": todo, "spec": spec, "seen": seen, "relay": relay},
        num_cpus=plan.task_cpus,
    )
    predicted = predict_dataset(
        images,
        bundle_uri=config.model.uri,
        plan=plan,
        batch_size=config.score.batch_size,
        top_k=config.score.top_k,
        relay=relay,
        agreement=run.path(PRECISION),
        also=[EMBEDDING_FIELD],
    )
    low, high = PART_ROWS
    parts = predicted.map_batches(
        commit,
        fn_kwargs={"address": run.path(SCORED), "run_id": run.run_id, "scored_at": run.started_at, "relay": relay},
        batch_format="pyarrow",
        batch_size=min(high, max(low, todo.num_images // PARTS)),
        num_cpus=plan.task_cpus,
    )
    return [run.path(SCORED, row["part"]) for row in parts.iter_rows()]


def read_units(
    batch: dict[str, np.ndarray], *, todo: Todo, spec: DecodeSpec, seen: Any, relay: Any = None
) -> Iterator[pa.Table]:
    """The images of some units, fetched, hashed and decoded, :data:`CHUNK_ROWS` at a time."""
    for unit in batch["unit"]:
        table = todo.read(int(unit))
        for start in range(0, table.num_rows, CHUNK_ROWS):
            yield _read_chunk(table.slice(start, CHUNK_ROWS), spec, seen, relay)


def _read_chunk(table: pa.Table, spec: DecodeSpec, seen: Any, relay: Any) -> pa.Table:
    started = time.monotonic()
    uris = table.column("uri").to_pylist()
    known = table.column("known_sha256").to_pylist()
    pixels = np.zeros((len(uris), 3, spec.crop_size, spec.crop_size), np.uint8)
    fetched = storage.fetch_many(uris)
    digests = [None if isinstance(data, ImageError) else hashlib.sha256(data).hexdigest() for data in fetched]
    fetched_at = time.monotonic()
    codes = [REUSED if digest and digest == before else "" for digest, before in zip(digests, known, strict=True)]
    if seen is not None:
        new = [at for at, (digest, code) in enumerate(zip(digests, codes, strict=True)) if digest and not code]
        answers = ray.get(seen.claim.remote([(digests[at], uris[at]) for at in new]))
        for at in (at for at, first in zip(new, answers, strict=True) if not first):
            codes[at] = REUSED
    messages = [""] * len(uris)
    for at, data in enumerate(fetched):
        try:
            if isinstance(data, ImageError):
                raise data
            if not codes[at]:
                pixels[at] = decode(data, resize_size=spec.resize_size, crop_size=spec.crop_size, limits=spec.limits)
        except ImageError as error:
            codes[at], messages[at] = error.code, error.message
    if relay is not None:
        relay.spend.remote({FETCH: fetched_at - started, DECODE: time.monotonic() - fetched_at})
        relay.decoded.remote(len(uris))
    columns = {
        URI: table.column("uri"),
        IDENTITY: table.column("identity"),
        SHA: pa.array(digests, pa.string()),
        CODE: pa.array(codes, pa.string()),
        MESSAGE: pa.array(messages, pa.string()),
        PIXELS: pixels_to_arrow(pixels),
    }
    return pa.table(columns)


def commit(table: pa.Table, *, address: str, run_id: str, scored_at: str, relay: Any) -> pa.Table:
    """Write ledger rows as one part and tell its name."""
    started = time.monotonic()
    codes = ["" if code == REUSED else code for code in table.column(CODE).to_pylist()]
    table = with_errors(table, codes, table.column(MESSAGE).to_pylist())
    names = {"uri": URI, "identity": IDENTITY, "sha256": SHA, "error_code": CODE, "message": MESSAGE}
    stamp = {"run_id": run_id, "scored_at": scored_at}
    columns = [
        pa.array([stamp[field.name]] * table.num_rows, field.type)
        if field.name in stamp
        else table.column(names.get(field.name, field.name)).cast(field.type)
        for field in LEDGER_SCHEMA
    ]
    uris = json.dumps([scored_at, *sorted(table.column(URI).to_pylist())])
    name = f"part-{hashlib.sha256(uris.encode()).hexdigest()[:16]}.parquet"
    storage.write_bytes(storage.join(address, name), parquet_bytes(pa.table(columns, LEDGER_SCHEMA)))
    relay.errors.remote(dict(collections.Counter(code for code in codes if code)))
    relay.spend.remote({COMMIT: time.monotonic() - started})
    return pa.table({"part": [name]})
