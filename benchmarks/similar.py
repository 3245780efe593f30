"""How fast and how exact is `similar`, and does a fine-tuned model bring products of one class together?

    python -m benchmarks.similar [--rows 1000000] [--size 128] [--queries 4000]
    RETAILRAY_REAL_DATA=../shared python -m benchmarks.similar --model BUNDLE

Synthetic vectors in clusters of twenty: time and memory to build our index, queries a second and recall of ten
neighbours against all cosines, beside faiss alone: IndexFlatIP (all cosines in float32) and HNSW (M 32, efSearch 64).
With --model: the share of the five nearest test photos (2,485) that have the same class, and the same group.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import faiss
import numpy as np
import pandas as pd

from benchmarks.shop import photos, run, table
from retailray.retrieval.index import Filters, build_index, search

K = 10


def clusters(rows: int, size: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(rows // 20, size)).astype(np.float32)
    found = np.empty((rows, size), np.float16)
    for start in range(0, rows, 100_000):
        stop = min(rows, start + 100_000)
        part = centres[generator.integers(0, len(centres), stop - start)]
        part = part + 0.7 * generator.normal(size=part.shape).astype(np.float32)
        found[start:stop] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return found


def measured(
    name: str, build: Callable[[], Any], ask: Callable[[Any], np.ndarray], truth: np.ndarray
) -> dict[str, Any]:
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    index = build()
    built, asked = time.monotonic() - started, time.monotonic()
    found = ask(index)
    seconds = time.monotonic() - asked
    recall = np.mean([len(set(a) & set(b)) / K for a, b in zip(found, truth, strict=True)])
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6
    return {
        "index": name,
        "build, s": built,
        "queries/s": len(truth) / seconds,
        "recall@10": recall,
        "more memory, GB": more,
    }


def synthetic(rows: int, size: int, queries: int) -> None:
    vectors = clusters(rows, size)
    chosen = np.random.default_rng(1).choice(rows, queries, replace=False)
    asked = vectors[chosen].astype(np.float32)

    def flat() -> Any:
        index = faiss.IndexFlatIP(size)
        index.add(vectors.astype(np.float32))
        return index

    def hnsw() -> Any:
        index = faiss.IndexHNSWFlat(size, 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efSearch = 64
        index.add(vectors.astype(np.float32))
        return index

    truth = without_itself(flat().search(asked, K + 1)[1], chosen)
    ours = measured(
        "ours (ivf)",
        lambda: build_index(vectors, "ivf").index,
        lambda index: search(index, vectors[chosen], chosen, Filters(), K)[0],
        truth,
    )
    others = [
        measured(name, build, lambda index: without_itself(index.search(asked, K + 1)[1], chosen), truth)
        for name, build in (("faiss HNSW32", hnsw), ("faiss flat", flat))
    ]
    print(table([ours, *others]))


def without_itself(found: np.ndarray, own: np.ndarray) -> np.ndarray:
    return np.array([[other for other in ids if other != one][:K] for ids, one in zip(found, own, strict=True)])


def real(bundle: str) -> None:
    folder, _ = photos()
    work = Path(tempfile.mkdtemp())
    catalog = {"catalog.uri": folder / "test.csv", "catalog.image": "name", "catalog.id": "name"}
    catalog |= {"catalog.image_template": "images/{stem}/{name}.jpg", "catalog.label": "fine_name"}
    run("embed", **catalog, **{"model.uri": bundle, "out": work / "scores"})
    found = run("similar", **{"embeddings.uri": work / "scores", "similar.k": 5, "out": work / "similar"})[-1]["run"]
    pairs = duckdb.sql(f"from '{found}/similar/*.parquet'").df()
    photo = pd.read_csv(folder / "test.csv").set_index("name")
    row = {
        name: (photo[column][pairs.id].to_numpy() == photo[column][pairs.neighbour].to_numpy()).mean()
        for name, column in (("same class", "fine_name"), ("same group", "coarse_name"))
    }
    print(table([{"model": Path(bundle).parent.name} | row]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--queries", type=int, default=4_000)
    parser.add_argument("--model", help="a bundle whose embeddings of real photos are compared")
    arguments = parser.parse_args()
    if arguments.model:
        real(arguments.model)
    else:
        synthetic(arguments.rows, arguments.size, arguments.queries)


if __name__ == "__main__":
    main()
