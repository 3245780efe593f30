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
from retailray.data.arrow_tables import parquet_bytes
from retailray.data.decoding import (
    CHUNK_ROWS,
    CODE,
    COLUMN_PREFIX,
    MESSAGE,
    PIXELS,
    URI,
    DecodeSpec,
    some_pixels_to_arrow,
    with_errors,
)
from retailray.data.images import decode
from retailray.errors import ImageError
from retailray.models.predicting import FEATURES_FIELD, SCORED_AT
from retailray.provenance import inference_environment
from retailray.scoring.formats import LEDGER_SCHEMA

if TYPE_CHECKING:
    from retailray.events import Reporter
    from retailray.scoring.duplicates import Seen

UNITS_PER_FILE = 64
IDENTITY, SHA = (COLUMN_PREFIX + name for name in ("identity", "sha256"))
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
    units: pa.Table,
    *,
    todo: Todo,
    spec: DecodeSpec,
    access: storage.Access,
    seen: "Seen | None",
    reporter: "Reporter | None" = None,
) -> Iterator[pa.Table]:
    """The images of some units, fetched, hashed and decoded, :data:`CHUNK_ROWS` at a time."""
    for unit in units.column("unit").to_pylist():
        table = todo.read(unit)
        for start in range(0, table.num_rows, CHUNK_ROWS):
            yield _read_chunk(table.slice(start, CHUNK_ROWS), spec, access, seen, reporter)


def _read_chunk(
    table: pa.Table, spec: DecodeSpec, access: storage.Access, seen: "Seen | None", reporter: "Reporter | None"
) -> pa.Table:
    chunk = _Chunk(table, spec, seen)
    started, fetching = time.monotonic(), 0.0
    sizes = {at: size for at, size in enumerate(table.column("size").to_pylist()) if size is not None}
    for group in storage.fetch_groups(chunk.uris, access, sizes=sizes):
        fetching += time.monotonic() - started
        chunk.take(group)
        started = time.monotonic()
    if reporter is not None:
        reporter.spend({FETCH: fetching, DECODE: chunk.seconds})
        reporter.decoded(table.num_rows)
    columns = {
        URI: table.column("uri"),
        IDENTITY: table.column("identity"),
        SHA: pa.array(chunk.digests, pa.string()),
        CODE: pa.array(chunk.codes, pa.string()),
        MESSAGE: pa.array(chunk.messages, pa.string()),
        PIXELS: some_pixels_to_arrow(chunk.pixels, np.array([not code for code in chunk.codes], bool)),
    }
    return pa.table(columns)


class _Chunk:
    """Images whose bytes come in groups: hashed, told from those that are known, decoded."""

    def __init__(self, table: pa.Table, spec: DecodeSpec, seen: "Seen | None") -> None:
        self.uris: list[str] = table.column("uri").to_pylist()
        self._known = table.column("known_sha256").to_pylist()
        self._spec, self._seen = spec, seen
        self.pixels = np.zeros((len(self.uris), 3, spec.size_px, spec.size_px), np.uint8)
        self.digests: list[str | None] = [None] * len(self.uris)
        self.codes, self.messages = [""] * len(self.uris), [""] * len(self.uris)
        self.seconds = 0.0  # spent here

    def take(self, group: dict[int, bytes | ImageError]) -> None:
        started = time.monotonic()
        new = []
        for at, data in group.items():
            if isinstance(data, bytes):
                self.digests[at] = digest = hashlib.sha256(data).hexdigest()
                if digest == self._known[at]:
                    self.codes[at] = REUSED
                else:
                    new.append((at, digest))
        if self._seen is not None and new:
            firsts = self._seen.claim([(digest, self.uris[at]) for at, digest in new])
            for at, _ in (one for one, first in zip(new, firsts, strict=True) if not first):
                self.codes[at] = REUSED
        for at, data in group.items():
            self._decode(at, data)
        self.seconds += time.monotonic() - started

    def _decode(self, at: int, data: bytes | ImageError) -> None:
        spec = self._spec
        try:
            if isinstance(data, ImageError):
                raise data
            if not self.codes[at]:
                self.pixels[at] = decode(data, spec.scaling, spec.limits)
        except ImageError as error:
            self.codes[at], self.messages[at] = error.code, error.message


def commit(table: pa.Table, *, address: str, run_id: str, attempt: str, device: str, reporter: "Reporter") -> pa.Table:
    """Write ledger rows as one part and return its name; ``attempt`` tells this process of a run from earlier ones."""
    started = time.monotonic()
    codes = ["" if code == REUSED else code for code in table.column(CODE).to_pylist()]
    table = with_errors(table, codes, table.column(MESSAGE).to_pylist())
    names = {"uri": URI, "identity": IDENTITY, "sha256": SHA, "error_code": CODE, "message": MESSAGE}
    names |= {"scored_at": SCORED_AT.name}
    stamp: dict[str, str | None] = {"run_id": run_id, "environment": inference_environment(), "device": device}
    if FEATURES_FIELD.name not in table.column_names:
        stamp[FEATURES_FIELD.name] = None
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
