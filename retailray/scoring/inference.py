"""From images to ledger rows, committed part by part: fetch, hash and decode in CPU tasks, predict in a pool, write.

The driver holds no rows: tasks read their share of the plan from the run directory and leave parts of ledger rows in
it (:mod:`retailray.scoring.chunks`).
"""

import dataclasses
import time
from collections.abc import Iterable

import pyarrow as pa

from retailray import events, storage
from retailray.config import ScoreConfig
from retailray.data.access import access_of
from retailray.data.arrow_tables import parquet_bytes, rechunk
from retailray.data.decoding import CHUNK_ROWS, DecodeSpec
from retailray.data.images import limits_of
from retailray.errors import RetailrayError
from retailray.execution import Executor, Plan, Reporter, plan_scoring, start_executor
from retailray.models.agreement import known_agreement
from retailray.models.meta import BundleMeta
from retailray.models.predicting import (
    EMBEDDING_FIELD,
    FEATURES_FIELD,
    PREDICT,
    SCORED_AT,
    PredictorSettings,
    predict_stream,
)
from retailray.models.probabilities import CLASSES_FIELD, PROBABILITIES_FIELD
from retailray.runs import RunDirectory
from retailray.scoring.chunks import COMMIT, DECODE, FETCH, UNITS_PER_FILE, Todo, commit, read_units
from retailray.scoring.duplicates import SEEN_IMAGES, Seen
from retailray.scoring.formats import SCORED, TODO

Reading = dict[str, DecodeSpec | storage.Access | Seen | None]
COLUMNS = (EMBEDDING_FIELD, CLASSES_FIELD, PROBABILITIES_FIELD, SCORED_AT)  # beside the predictions
TARGET_PARTS = 200  # aim for about this many committed parts: a killed run loses those in flight
MIN_PART_IMAGES, MAX_PART_IMAGES = 64, 20_000
STAGES = (FETCH, DECODE, PREDICT, COMMIT)


def write_todo(run: RunDirectory, batches: Iterable[pa.Table], *, num_images: int, executor: Executor) -> Todo:
    """Write the plan's images where tasks on every machine can read them."""
    tasks = 8 * max(1, int(executor.capacity.num_cpus))
    unit_rows = int(min(executor.chunk_rows, max(CHUNK_ROWS, -(-num_images // tasks))))
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
    not_deduplicated: int
    seconds: float
    busy: dict[str, float]
    slots: dict[str, int]
    num_cpus: float
    num_gpus: float

    def stages(self) -> list[dict[str, object]]:
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
    """Score ``num`` images (``uri, identity, size, known_sha256``) and commit what comes of them.

    Raises:
        RetailrayError: it could not continue; what is committed stays, and the same command takes it up.
    """
    spec = DecodeSpec(meta.transform.scaling, limits_of(config.catalog))
    access = access_of(config.catalog)
    with start_executor(config.cluster, num_images=num) as executor:
        run.machines = executor.machines
        capacity = executor.capacity
        plan = plan_scoring(capacity, config.cluster, num_images=num, batch_size=config.score.batch_size)
        executor.wait_until_free(plan, deadline_s=config.cluster.resource_timeout_s)
        todo = write_todo(run, batches, num_images=num, executor=executor)
        plan = dataclasses.replace(plan, num_actors=min(plan.num_actors, todo.num_units))
        seen = executor.shared(Seen) if config.score.dedupe else None
        reading: Reading = {"spec": spec, "access": access, "seen": seen}
        try:
            with executor.reporter("images", num, num_predictors=plan.num_actors) as reporter:
                started = time.monotonic()
                parts = _run(config, run, executor, plan, todo, reading, reporter)
                seconds = time.monotonic() - started
                spent = reporter.spent()
                unknown = seen.unknown() if seen else 0
                if unknown:
                    note = f"score.dedupe remembers {SEEN_IMAGES} images; copies among the others are inferred too"
                    events.emit("warning", not_deduplicated=unknown, note=note)
                busy = {stage: spent.get(stage, 0.0) for stage in STAGES}
                tasks = max(1, int((capacity.num_cpus - plan.num_actors * plan.actor_cpus) / plan.task_cpus))
                slots = {stage: plan.num_actors if stage == PREDICT else tasks for stage in STAGES}
                return Inferred(parts, num, unknown, seconds, busy, slots, capacity.num_cpus, capacity.num_gpus)
        except Exception as error:
            raise RetailrayError(
                f"scoring stopped: {executor.root_cause(error)}; nothing was published, and the same command "
                f"continues from the committed parts in {run.path(SCORED)}"
            ) from error


def _run(
    config: ScoreConfig,
    run: RunDirectory,
    executor: Executor,
    plan: Plan,
    todo: Todo,
    reading: Reading,
    reporter: Reporter,
) -> list[str]:
    """Addresses of the committed parts. ``reading``: how :func:`read_units` fetches and decodes."""
    units = executor.stream([pa.table({"unit": [number]}) for number in range(todo.num_units)], plan)
    images = units.map(read_units, {"todo": todo, "reporter": reporter, **reading})
    settings = PredictorSettings(
        uri=config.model.uri,
        use_gpu=plan.actor_gpus > 0,
        threads=plan.torch_threads,
        top_k=config.score.top_k,
        precision=config.score.precision,
        compile=config.score.compile,
        num_images=todo.num_images // max(1, plan.num_actors),
        batch_size=config.score.batch_size,
        # asked here and not by every actor, which would import what reads from stores for it alone
        agreement=known_agreement(run.address),
        also=(*COLUMNS, *((FEATURES_FIELD,) if config.score.embeddings else ())),
        embedding_size=config.score.embedding_size,
    )
    predicted = predict_stream(images, settings, batch_size=config.score.batch_size, reporter=reporter)
    parts = predicted.map(
        commit,
        {
            "address": run.path(SCORED),
            "run_id": run.run_id,
            "attempt": run.started_at,
            "device": "cuda" if plan.actor_gpus else "cpu",
            "reporter": reporter,
        },
        rows=min(MAX_PART_IMAGES, max(MIN_PART_IMAGES, todo.num_images // TARGET_PARTS)),
    )
    return [run.path(SCORED, part) for table in parts.tables() for part in table.column("part").to_pylist()]
