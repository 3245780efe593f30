"""``similar``: for every product (or image) those that look most like it.

A run looks for neighbours of what is new or changed among all, and compares what is unchanged with what is new.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from retailray import events, storage
from retailray.config import ClusterSection, SimilarConfig
from retailray.data.arrow_tables import parquet_bytes, rechunk
from retailray.errors import ConfigError, RetailrayError
from retailray.execution import plan_scoring, start_executor
from retailray.models.probabilities import packed, rows_of
from retailray.reports.run_index import publish
from retailray.retrieval.earlier import SIMILAR, STATE, Earlier, earlier_run
from retailray.retrieval.filters import read_filters
from retailray.retrieval.index import Built, Filters, Searcher, build_index, faiss_package, search
from retailray.retrieval.report import write_similar_report
from retailray.retrieval.vectors import Vectors, digests, read_vectors
from retailray.runs import RunDirectory

NEAR = "near_duplicates.parquet"
BATCH_ROWS = 2048
ROWS_PER_FILE = 1_000_000
_DRAFT = "index.faiss"


def similar(config: SimilarConfig) -> str:
    """Write ``similar/``, ``near_duplicates.parquet``, ``report.html``; returns the address of the run directory.

    Raises:
        CatalogError: the embeddings cannot be compared, or a filter's column is not there. RetailrayError.
    """
    watch = events.Stopwatch()
    faiss_package()
    vectors = read_vectors(config.embeddings.uri, config.similar.level)
    filters = read_filters(config.similar, vectors)
    run = RunDirectory(config)
    told = {"rows": len(vectors), "level": vectors.level, "size": vectors.values.shape[1], "model": vectors.version}
    events.emit("start", command="similar", run=run.address, **told)
    marks = digests(vectors, filters.columns(len(vectors)))
    before = earlier_run(config, vectors, marks)
    events.emit("plan", rows=len(vectors), to_search=len(before.search), compared_with_new=len(before.compare))
    built = _index(config, vectors, filters, before)
    neighbours, scores = _neighbours(config, vectors, filters, built, before, run)
    _write(run, vectors, neighbours, scores)
    run.write(STATE, parquet_bytes(pa.table({"id": vectors.ids, "digest": marks})))
    pairs = _near_duplicates(vectors, neighbours, scores, config.similar.near_duplicates)
    run.write(NEAR, parquet_bytes(pairs))
    facts: dict[str, Any] = {
        "embeddings": config.embeddings.uri,
        "level": vectors.level,
        "model_version": vectors.version,
        "rows": len(vectors),
        "searched": len(before.search),
        "index": built.kind if built else "none",
        "recall": built.recall if built else None,
        "near_duplicates": pairs.num_rows,
        "with_too_few": int((neighbours < 0).any(1).sum()),
    }
    write_similar_report(run, config, vectors, neighbours, scores, pairs, facts)
    publish(run, {"command": "similar", "key": before.key, **facts, "seconds": watch.seconds})
    watch.summary("similar", num_images=len(vectors), **facts, run=run.address)
    return run.address


def _index(config: SimilarConfig, vectors: Vectors, filters: Filters, before: Earlier) -> Built | None:
    """The index of all rows; None where nothing is looked up in it.

    Raises:
        ConfigError: ``similar.index`` is ivf, and there are conditions.
    """
    kind = config.similar.index
    if filters.any:
        if kind == "ivf":
            raise ConfigError(
                ["similar.index = ivf: with similar.same, .different or .where rows are compared with all that may be "
                 "their neighbours: exact"]
            )  # fmt: skip
        kind = "exact"
    return build_index(vectors.values, kind) if len(before.search) else None


def _neighbours(  # many because it is where all that is known comes together
    config: SimilarConfig, vectors: Vectors, filters: Filters, built: Built | None, before: Earlier, run: RunDirectory
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and cosines of the neighbours of all rows, ``(N, k)``."""
    k = config.similar.k
    neighbours, scores = before.kept(len(vectors), k)
    if len(before.compare) and len(before.changed):
        small = build_index(vectors.values[before.changed], "exact").index
        near, found = _among(small, vectors, before.compare, before.changed, filters, k)
        merged = _merged(neighbours[before.compare], scores[before.compare], near, found, k)
        neighbours[before.compare], scores[before.compare] = merged
    if built is not None:
        for table in _searched(config.cluster, vectors, filters, built, before.search, k, run):
            rows = table.column("row").to_numpy()
            neighbours[rows], scores[rows] = (rows_of(table.column(name)) for name in ("neighbours", "similarities"))
    return neighbours, scores


def _among(
    index: Any, vectors: Vectors, rows: np.ndarray, among: np.ndarray, filters: Filters, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of some rows ``among`` others, none of which they are."""
    own = Filters(*(None if one is None else np.concatenate([one[among], one[rows]]) for one in filters.parts()))
    near = []
    for start in range(0, len(rows), BATCH_ROWS):
        at = np.arange(start, min(start + BATCH_ROWS, len(rows)))
        near.append(search(index, vectors.values[rows[at]], len(among) + at, own, k))
    numbers, scores = (np.concatenate(parts) for parts in zip(*near, strict=True))
    return np.where(numbers >= 0, among[np.maximum(numbers, 0)], -1), scores


def _merged(
    kept: np.ndarray, kept_scores: np.ndarray, new: np.ndarray, new_scores: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of two lists a row."""
    numbers = np.concatenate([kept, new], axis=1)
    scores = np.concatenate([kept_scores, new_scores], axis=1)
    order = np.lexsort((numbers, -np.where(numbers >= 0, scores, -np.inf)), axis=1)[:, :k]
    return np.take_along_axis(numbers, order, axis=1), np.take_along_axis(scores, order, axis=1)


def _searched(  # many because what workers need comes from all of these
    cluster: ClusterSection,
    vectors: Vectors,
    filters: Filters,
    built: Built,
    rows: np.ndarray,
    k: int,
    run: RunDirectory,
) -> list[pa.Table]:
    """``row``, ``neighbours`` and ``similarities`` of some rows, found by a pool of actors."""
    address = run.path(_DRAFT)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, _DRAFT)
        faiss_package().write_index(built.index, path)
        run.write_file(_DRAFT, Path(path))
    try:
        with start_executor(cluster, num_images=len(rows)) as executor:
            run.machines = executor.machines
            plan = plan_scoring(executor.capacity, cluster, num_images=len(rows), batch_size=BATCH_ROWS)
            executor.wait_until_free(plan, deadline_s=cluster.resource_timeout_s)
            with executor.reporter("rows", len(rows), num_predictors=plan.num_actors) as reporter:
                arguments = {"address": address, "filters": filters, "k": k}
                arguments |= {"threads": plan.torch_threads, "reporter": reporter}
                batches = _batches(vectors, filters.order(rows))
                try:
                    return list(executor.stream(batches, plan).map_with(Searcher, arguments, rows=BATCH_ROWS).tables())
                except Exception as error:
                    raise RetailrayError(
                        f"similar stopped: {executor.root_cause(error)} (every machine needs retailray[similar])"
                    ) from error
    finally:
        storage.remove_file(address)


def _batches(vectors: Vectors, rows: np.ndarray) -> Iterator[pa.Table]:
    for start in range(0, len(rows), BATCH_ROWS):
        part = rows[start : start + BATCH_ROWS]
        yield pa.table({"row": part, "vector": packed(vectors.values[part])})


def _write(run: RunDirectory, vectors: Vectors, neighbours: np.ndarray, scores: np.ndarray) -> None:
    """``id, neighbour, rank`` (from 1) ``, similarity``, in the order of the embeddings."""
    k = neighbours.shape[1]

    def pieces() -> Any:
        for start in range(0, len(vectors), 65_536):
            found, values = neighbours[start : start + 65_536], scores[start : start + 65_536]
            row, rank = np.nonzero(found >= 0)
            columns = {"id": vectors.ids.take(pa.array(start + row)), "neighbour": vectors.ids.take(found[row, rank])}
            columns |= {"rank": (rank + 1).astype(np.int32), "similarity": values[row, rank]}
            yield pa.table(columns)

    assert k, "the config asks for one at the least"
    for number, table in enumerate(rechunk(pieces(), ROWS_PER_FILE)):
        storage.write_bytes(run.path(SIMILAR, f"part-{number:05d}.parquet"), parquet_bytes(table))
    if not storage.list_files(run.path(SIMILAR)):
        empty = next(pieces(), pa.table({}))
        storage.write_bytes(run.path(SIMILAR, "part-empty.parquet"), parquet_bytes(empty))


def _near_duplicates(vectors: Vectors, neighbours: np.ndarray, scores: np.ndarray, limit: float) -> pa.Table:
    """``id, neighbour, similarity`` of each pair once, the most similar first."""
    row, rank = np.nonzero((neighbours >= 0) & (scores >= limit))
    other, values = neighbours[row, rank], scores[row, rank]
    pairs = np.stack([np.minimum(row, other), np.maximum(row, other)], axis=1)
    _, first = np.unique(pairs, axis=0, return_index=True)
    order = first[np.argsort(-values[first], kind="stable")]
    left, right = (vectors.ids.take(pa.array(pairs[order, at])) for at in (0, 1))
    return pa.table({"id": left, "neighbour": right, "similarity": values[order]})
