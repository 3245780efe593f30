"""Nearest neighbours by faiss: exact, or with an inverted file that finds 99 % of them."""

import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
import pyarrow as pa

from retailray import storage
from retailray.errors import ConfigError
from retailray.interrupts import importing
from retailray.models.probabilities import lists_of, unpacked

if TYPE_CHECKING:
    from retailray.events import Reporter

EXACT_UP_TO = 100_000
RECALL, PROBED = 0.99, 512  # of ten neighbours, on this number of rows
TRAINING = 64  # rows of a cell that its centre is found on, at most
SEARCH = "search"  # the stage


def faiss_package() -> Any:
    """Raises ConfigError where it is not installed."""
    try:
        with importing():
            import faiss
    except ImportError as error:
        raise ConfigError([f"similar needs faiss: pip install 'retailray[similar]' ({error})"]) from error
    return faiss


@dataclasses.dataclass(frozen=True)
class Built:
    """``index``: faiss's own; ``kind``: exact or ivf; ``recall``: measured share of the true ten that are found."""

    index: Any
    kind: str
    recall: float


def build_index(values: np.ndarray, kind: str, *, seed: int = 0) -> Built:
    """An index of rows of length 1, float16 ``(N, D)``; inner products are cosines."""
    faiss, (num, size) = faiss_package(), values.shape
    if kind == "auto":
        kind = "exact" if num <= EXACT_UP_TO else "ivf"
    if kind == "exact" or num < 1000:
        index = faiss.IndexScalarQuantizer(size, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        _add(index, values)
        return Built(index, "exact", 1.0)
    cells = int(4 * num**0.5)
    index = faiss.index_factory(size, f"IVF{cells},SQfp16", faiss.METRIC_INNER_PRODUCT)
    generator = np.random.default_rng(seed)
    index.train(values[generator.permutation(num)[: cells * TRAINING]].astype(np.float32))
    _add(index, values)
    return Built(index, "ivf", _tune(index, values, generator))


def _add(index: Any, values: np.ndarray) -> None:
    for start in range(0, len(values), 65_536):  # faiss takes float32 alone
        index.add(values[start : start + 65_536].astype(np.float32))


def _tune(index: Any, values: np.ndarray, generator: np.random.Generator) -> float:
    """Look into more cells until enough of the true neighbours of some rows are found; the recall then."""
    queries = values[generator.choice(len(values), min(PROBED, len(values)), replace=False)].astype(np.float32)
    k = min(11, len(values))
    index.nprobe = index.nlist
    _, truth = index.search(queries, k)
    index.nprobe = 1
    while True:
        _, found = index.search(queries, k)
        recall = float(np.mean([len(set(a) & set(b)) / k for a, b in zip(found, truth, strict=True)]))
        if recall >= RECALL or index.nprobe >= index.nlist:
            return recall
        index.nprobe = min(index.nlist, max(index.nprobe + 1, int(index.nprobe * 1.5)))


@dataclasses.dataclass(frozen=True)
class Filters:
    """Which rows may be neighbours of which: ``allowed``: bool ``(N,)``, of any; ``same``, ``different``: int64
    ``(N,)``, values that must be equal and must not be; None: no such condition."""

    allowed: np.ndarray | None = None
    same: np.ndarray | None = None
    different: np.ndarray | None = None

    def parts(self) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
        return self.allowed, self.same, self.different

    @property
    def any(self) -> bool:
        return any(one is not None for one in self.parts())

    def columns(self, num_rows: int) -> np.ndarray:
        """int64 ``(N, 3)``, for digests of rows."""
        none = np.zeros(num_rows, np.int64)
        return np.stack([none if one is None else one.astype(np.int64) for one in self.parts()], axis=1)

    def order(self, rows: np.ndarray) -> np.ndarray:
        """Rows with those first to last whose neighbours are looked for among the same others."""
        keys = [one[rows] for one in (self.different, self.same) if one is not None]
        return rows[np.lexsort(keys)] if keys else rows

    def groups(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Positions in ``rows``, and which rows may be neighbours of those there; None: all."""
        if self.same is None and self.different is None:
            yield np.arange(len(rows)), self.allowed
            return
        columns = self.columns(len(next(one for one in self.parts() if one is not None)))
        values, of_row = np.unique(columns[rows, 1:], axis=0, return_inverse=True)
        for number, (same, different) in enumerate(values):
            mask = np.ones(len(columns), bool) if self.allowed is None else self.allowed.copy()
            mask &= columns[:, 1] == same
            if self.different is not None:
                mask &= columns[:, 2] != different
            yield np.flatnonzero(of_row.ravel() == number), mask


class Searcher:
    """An actor that holds an index and answers for batches of rows."""

    def __init__(self, *, address: str, filters: Filters, k: int, threads: int, reporter: "Reporter") -> None:
        self.faiss = faiss_package()
        self.faiss.omp_set_num_threads(threads)
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "index.faiss")
            with storage.open_binary(address) as source, open(path, "wb") as file:
                shutil.copyfileobj(cast(BinaryIO, source), file)
            self.index = self.faiss.read_index(path)
        self.filters, self.k, self.reporter = filters, k, reporter

    def __call__(self, table: pa.Table) -> pa.Table:
        """``row`` and ``vector`` (binaries of float16) to ``row``, ``neighbours`` and ``similarities``; -1: none."""
        started = time.monotonic()
        rows = table.column("row").to_numpy()
        found, scores = search(self.index, unpacked(table.column("vector")), rows, self.filters, self.k)
        self.reporter.step(len(rows))
        self.reporter.spend({SEARCH: time.monotonic() - started})
        return pa.table({"row": rows, "neighbours": lists_of(found), "similarities": lists_of(scores)})


def search(
    index: Any, vectors: np.ndarray, rows: np.ndarray, filters: Filters, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers, int64, and cosines, float32, of the k nearest others of each row, ``(M, k)``, nearest first; -1: none.
    With conditions the index must be exact: an inverted file looks into cells that may hold none of those allowed.

    Args:
        vectors: of the rows, float16 ``(M, D)``. rows: their numbers in the index; -1: it is not in it.
    """
    faiss = faiss_package()
    neighbours, scores = np.full((len(rows), k), -1, np.int64), np.full((len(rows), k), np.nan, np.float32)
    for positions, mask in filters.groups(rows):
        options = {}
        if mask is not None:
            bits = np.packbits(mask, bitorder="little")
            options = {"params": faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bits))}
        near, found = index.search(vectors[positions].astype(np.float32), k + 1, **options)
        for at, own, ids, values in zip(positions, rows[positions], found, near, strict=True):
            keep = np.flatnonzero((ids != own) & (ids >= 0))[:k]
            # equal similarities in the order of the rows, whatever faiss makes of them
            keep = keep[np.lexsort((ids[keep], -values[keep]))]
            neighbours[at, : len(keep)], scores[at, : len(keep)] = ids[keep], np.minimum(values[keep], 1)
    return neighbours, scores
