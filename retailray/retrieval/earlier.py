"""What the run before found, and what is left to do because of what changed since."""

import dataclasses
import hashlib
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from retailray import events, storage
from retailray.config import SimilarConfig
from retailray.errors import NotFound
from retailray.retrieval.vectors import Vectors

SIMILAR, STATE = "similar", "state.parquet"
MOST_CHANGED = 0.3  # of the rows: beyond it all are searched


@dataclasses.dataclass(frozen=True)
class Earlier:
    """Numbers of rows, int64: ``search``, those to be looked up among all; ``changed``: the new and changed ones of
    these; ``compare``: unchanged ones, whose earlier neighbours stand, but for what is new.

    ``neighbours`` and ``scores``: of all rows by the run before, ``(N, k)``; -1 and NaN where nothing is known.
    ``key``: of all that these depend on besides the rows.
    """

    search: np.ndarray
    changed: np.ndarray
    compare: np.ndarray
    neighbours: np.ndarray | None
    scores: np.ndarray | None
    key: str

    def kept(self, num_rows: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        """A copy of what is known."""
        if self.neighbours is None or self.scores is None:
            return np.full((num_rows, k), -1, np.int64), np.full((num_rows, k), np.nan, np.float32)
        return self.neighbours.copy(), self.scores.copy()


def earlier_run(config: SimilarConfig, vectors: Vectors, marks: np.ndarray) -> Earlier:
    """Compare with the run that LATEST names, if it asked the same of the same model.

    ``marks``: :func:`retailray.retrieval.vectors.digests` of the rows.
    """
    key = _key(config, vectors)
    everything, none = np.arange(len(vectors)), np.zeros(0, np.int64)
    anew = Earlier(everything, everything, none, None, None, key)
    address = _published(config.out, key)
    if address is None:
        return anew
    try:
        state, known_table = _read(storage.join(address, STATE)), _tables(address)
    except (NotFound, pa.ArrowException) as error:
        events.emit("warning", note=f"the run before cannot be read ({error}); all rows are searched")
        return anew
    place = pc.index_in(vectors.ids, value_set=state.column("id").combine_chunks())
    known = pc.is_valid(place).to_numpy(zero_copy_only=False)
    before = pc.fill_null(place, 0).to_numpy(zero_copy_only=False)
    same = known & (state.column("digest").to_numpy()[before] == marks)
    if (~same).sum() + state.num_rows - same.sum() > MOST_CHANGED * len(vectors):
        return anew
    neighbours, scores = _known(known_table, vectors, config.similar.k)
    # one whose neighbours are gone or changed may have others now; so may one that found too few
    filled = neighbours >= 0
    stale = (filled & ~same[np.maximum(neighbours, 0)]).any(1)
    complete = filled.sum(1) == _lengths(known_table, vectors)
    search = ~same | stale | ~complete
    scores[search], neighbours[search] = np.nan, -1
    return Earlier(np.flatnonzero(search), np.flatnonzero(~same), np.flatnonzero(~search), neighbours, scores, key)


def _key(config: SimilarConfig, vectors: Vectors) -> str:
    section = config.similar.model_dump(exclude={"near_duplicates"})
    parts = {**section, "level": vectors.level, "version": vectors.version, "size": vectors.values.shape[1]}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _published(out: str, key: str) -> str | None:
    try:
        name = storage.read_bytes(storage.join(out, "LATEST")).decode().strip()
        summary = json.loads(storage.read_bytes(storage.join(out, name, "run.json")))
    except (NotFound, ValueError):
        return None
    same = summary.get("command") == "similar" and summary.get("key") == key
    return storage.join(out, name) if same else None


def _read(name: str) -> pa.Table:
    return pq.read_table(io.BytesIO(storage.read_bytes(name)))


def _tables(address: str) -> pa.Table:
    names = sorted(storage.list_files(storage.join(address, SIMILAR)))
    return pa.concat_tables([_read(name) for name in names])


def _known(found: pa.Table, vectors: Vectors, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours by their numbers now; those that are gone are left out."""
    row, other = (
        pc.fill_null(pc.index_in(found.column(name).combine_chunks(), value_set=vectors.ids), -1).to_numpy(
            zero_copy_only=False
        )
        for name in ("id", "neighbour")
    )
    good = (row >= 0) & (other >= 0)
    rank = found.column("rank").to_numpy() - 1
    neighbours, scores = np.full((len(vectors), k), -1, np.int64), np.full((len(vectors), k), np.nan, np.float32)
    neighbours[row[good], rank[good]] = other[good]
    scores[row[good], rank[good]] = found.column("similarity").to_numpy()[good]
    return neighbours, scores


def _lengths(found: pa.Table, vectors: Vectors) -> np.ndarray:
    """How many neighbours each row had."""
    counted = pc.value_counts(found.column("id").combine_chunks())
    place = pc.index_in(vectors.ids, value_set=counted.field("values"))
    counts = np.append(counted.field("counts").to_numpy(), 0)
    return counts[pc.fill_null(place, -1).to_numpy(zero_copy_only=False)]
