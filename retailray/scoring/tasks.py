"""What runs in CPU tasks: read a share of the plan, fetch, hash and decode its images, and commit what came of them.

A part is written whole, and its name is a digest of its images and of the attempt, so that a retried task writes the
same file, and what a task of an earlier, killed attempt may still write is never taken for ours.
"""

import collections
import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retailray import storage
from retailray.data.images import decode
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
from retailray.data.tables import parquet_bytes
from retailray.errors import ImageError
from retailray.provenance import inference_environment
from retailray.scoring.formats import LEDGER_SCHEMA, SCORED_AT

if TYPE_CHECKING:
    from retailray.data.seen import Seen
    from retailray.progress import Reporter

UNITS_PER_FILE = 64
IDENTITY, SHA = (OURS + name for name in ("identity", "sha256"))
FETCH, DECODE, COMMIT = "fetch", "decode", "commit"  # stages
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


def read_units(
    units: pa.Table, *, todo: Todo, spec: DecodeSpec, seen: "Seen | None", reporter: "Reporter | None" = None
) -> Iterator[pa.Table]:
    """The images of some units, fetched, hashed and decoded, :data:`CHUNK_ROWS` at a time."""
    for unit in units.column("unit").to_pylist():
        table = todo.read(unit)
        for start in range(0, table.num_rows, CHUNK_ROWS):
            yield _read_chunk(table.slice(start, CHUNK_ROWS), spec, seen, reporter)


def _read_chunk(table: pa.Table, spec: DecodeSpec, seen: "Seen | None", reporter: "Reporter | None") -> pa.Table:
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
        answers = seen.claim([(str(digests[at]), uris[at]) for at in new])
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
    if reporter is not None:
        reporter.spend({FETCH: fetched_at - started, DECODE: time.monotonic() - fetched_at})
        reporter.decoded(len(uris))
    columns = {
        URI: table.column("uri"),
        IDENTITY: table.column("identity"),
        SHA: pa.array(digests, pa.string()),
        CODE: pa.array(codes, pa.string()),
        MESSAGE: pa.array(messages, pa.string()),
        PIXELS: pixels_to_arrow(pixels),
    }
    return pa.table(columns)


def commit(table: pa.Table, *, address: str, run_id: str, attempt: str, device: str, reporter: "Reporter") -> pa.Table:
    """Write ledger rows as one part and return its name; ``attempt`` tells this process of a run from earlier ones."""
    started = time.monotonic()
    codes = ["" if code == REUSED else code for code in table.column(CODE).to_pylist()]
    table = with_errors(table, codes, table.column(MESSAGE).to_pylist())
    names = {"uri": URI, "identity": IDENTITY, "sha256": SHA, "error_code": CODE, "message": MESSAGE}
    names |= {"scored_at": SCORED_AT.name}
    stamp = {"run_id": run_id, "environment": inference_environment(), "device": device}
    columns = [
        pa.array([stamp[field.name]] * table.num_rows, field.type)
        if field.name in stamp
        else table.column(names.get(field.name, field.name)).cast(field.type)
        for field in LEDGER_SCHEMA
    ]
    uris = json.dumps([attempt, *sorted(table.column(URI).to_pylist())])
    name = f"part-{hashlib.sha256(uris.encode()).hexdigest()[:16]}.parquet"
    storage.write_bytes(storage.join(address, name), parquet_bytes(pa.table(columns, LEDGER_SCHEMA)))
    reporter.errors(dict(collections.Counter(code for code in codes if code)))
    reporter.spend({COMMIT: time.monotonic() - started})
    return pa.table({"part": [name]})
