"""``embeddings/`` and ``product_embeddings/``: what the model makes of images before its last layer."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from retailray import storage
from retailray.config import ScoreSection
from retailray.data.arrow_tables import parquet_bytes, rechunk, run_starts
from retailray.models.meta import BundleMeta
from retailray.models.probabilities import unit, unpacked
from retailray.runs import RunDirectory
from retailray.scoring.ledger import Ledger
from retailray.scoring.staging import StagedCatalog

EMBEDDINGS, PRODUCT_EMBEDDINGS = "embeddings", "product_embeddings"  # folders
_AT_ONCE = 16_384  # rows in memory
_ROWS = "select id, uri, product, features, row_id from row_results where features is not null order by"


def write_embeddings(
    run: RunDirectory, ledger: Ledger, catalog: StagedCatalog, meta: BundleMeta, section: ScoreSection
) -> dict[str, int] | None:
    """Write a row for each image that was scored: ``id``, ``image`` (its address), ``embedding`` (float16), the model;
    and where the catalog has products, the same for each of these, whose ``image`` is its first.

    A product's embedding is the mean of those of its images, each scaled to length 1, scaled to length 1.

    Returns:
        Rows by folder, and the ``size`` of an embedding; None without ``score.embeddings``.
    """
    for folder in (EMBEDDINGS, PRODUCT_EMBEDDINGS):  # of an earlier attempt of this run
        storage.remove_folder(run.path(folder))
    if not section.embeddings:
        return None
    stamp = {"model_name": meta.name, "model_version": meta.version, "run_id": run.run_id}
    tables: dict[str, Iterator[pa.Table]] = {EMBEDDINGS: map(_of_images, ledger.batches(f"{_ROWS} row_id", _AT_ONCE))}
    if catalog.product_column is not None:
        rows = ledger.batches(f"{_ROWS} product, row_id", _AT_ONCE)
        tables[PRODUCT_EMBEDDINGS] = _of_products(rows)
    found: dict[str, int] = {}
    for folder, pieces in tables.items():
        found |= _write(run, folder, pieces, stamp, section.rows_per_file)
    return found


def _write(
    run: RunDirectory, folder: str, pieces: Iterator[pa.Table], stamp: dict[str, str], rows_per_file: int
) -> dict[str, int]:
    count, size = 0, 0
    for number, table in enumerate(rechunk(pieces, rows_per_file)):
        for name, value in stamp.items():
            table = table.append_column(name, pa.array([value] * table.num_rows))
        storage.write_bytes(run.path(folder, f"part-{number:05d}.parquet"), parquet_bytes(table))
        count += table.num_rows
        size = len(table.column("embedding")[0])
    return {folder: count, "size": size}


def _of_images(rows: pa.Table) -> pa.Table:
    return _table(rows.column("id"), rows.column("uri"), unpacked(rows.column("features")))


def _of_products(batches: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Of rows that lie product by product: sums are added up, so that a product may have any number of images."""
    names: list[str] = []
    images: list[str] = []
    sums = np.zeros((0, 0), np.float32)
    for rows in batches:
        products = rows.column("product").combine_chunks()
        starts = run_starts(products)
        found = np.add.reduceat(unit(unpacked(rows.column("features")).astype(np.float32)), starts, axis=0)
        own = [products[at].as_py() for at in starts.tolist()]
        first = [rows.column("uri")[at].as_py() for at in starts.tolist()]
        if names and names[-1] == own[0]:  # the last one of the batch before goes on
            sums[-1] += found[0]
            own, first, found = own[1:], first[1:], found[1:]
        names, images = names + own, images + first
        sums = np.concatenate([sums, found]) if len(sums) else found
        if len(names) > 1:
            yield _table(pa.array(names[:-1]), pa.array(images[:-1]), unit(sums[:-1]))
            names, images, sums = names[-1:], images[-1:], sums[-1:].copy()
    if names:
        yield _table(pa.array(names), pa.array(images), unit(sums))


def _table(names: pa.ChunkedArray | pa.Array, images: pa.ChunkedArray, vectors: np.ndarray) -> pa.Table:
    flat = pa.array(np.ascontiguousarray(vectors.astype(np.float16)).ravel())
    embeddings = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]).cast(pa.list_(pa.float16()))
    return pa.table({"id": names, "image": images, "embedding": embeddings})
