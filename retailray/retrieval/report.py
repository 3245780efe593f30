"""The report of ``similar``: figures, some rows with their neighbours as pictures, near duplicates."""

from typing import Any

import numpy as np
import pyarrow as pa

from retailray.config import SimilarConfig
from retailray.reports import plots
from retailray.reports.page import picture_facts, render, thumbnails
from retailray.retrieval.filters import catalog_of
from retailray.retrieval.vectors import Vectors
from retailray.runs import RunDirectory

SHOWN, NEIGHBOURS, PAIRS = 12, 5, 12


def write_similar_report(  # many because a page shows all that was found
    run: RunDirectory,
    config: SimilarConfig,
    vectors: Vectors,
    neighbours: np.ndarray,
    scores: np.ndarray,
    pairs: pa.Table,
    facts: dict[str, Any],
) -> None:
    """Write ``report.html`` into the run directory. Pictures are shown of runs, whose catalog says what may be read."""
    rows = np.unique(np.linspace(0, len(vectors) - 1, SHOWN).astype(int)) if len(vectors) else np.zeros(0, int)
    number = {name: at for at, name in enumerate(vectors.ids.to_pylist())} if pairs.num_rows else {}
    shown = [[number[row["id"]], number[row["neighbour"]]] for row in pairs.slice(0, PAIRS).to_pylist()]
    groups = [[int(row), *neighbours[row][neighbours[row] >= 0][:NEIGHBOURS].tolist()] for row in rows]
    pictures = _pictures(vectors, sorted({row for group in (*groups, *shown) for row in group}))
    near = [
        [_shown(vectors, pictures, row, float(score)) for row in pair]
        for pair, score in zip(shown, pairs.column("similarity").to_pylist(), strict=False)
    ]
    found = scores[:, 0][np.isfinite(scores[:, 0])]
    page = render(
        "similar.html.j2",
        title=f"Similar {facts['level']}s",
        subtitle=config.embeddings.uri,
        run_id=run.run_id,
        facts=facts,
        k=config.similar.k,
        limit=config.similar.near_duplicates,
        histogram=plots.similarities(found) if len(found) else None,
        groups=[_group(vectors, pictures, group, scores) for group in groups],
        near=near,
    )
    run.write("report.html", page)


def _pictures(vectors: Vectors, rows: list[int]) -> dict[int, str | None]:
    if vectors.run is None or not rows:
        return {}
    uris = vectors.images.take(pa.array(rows)).to_pylist()
    return dict(zip(rows, thumbnails(uris, catalog_of(vectors.run)), strict=True))


def _group(
    vectors: Vectors, pictures: dict[int, str | None], group: list[int], scores: np.ndarray
) -> list[dict[str, Any]]:
    """A row, and its neighbours in their order."""
    row, *others = group
    near = [_shown(vectors, pictures, other, float(scores[row, rank])) for rank, other in enumerate(others)]
    return [_shown(vectors, pictures, row, None), *near]


def _shown(vectors: Vectors, pictures: dict[int, str | None], row: int, score: float | None) -> dict[str, Any]:
    name, address = vectors.ids[row].as_py(), vectors.images[row].as_py()
    caption = name if score is None else f"{score:.2f} · {name}"
    return {
        "picture": pictures.get(row),
        "caption": caption,
        "facts": picture_facts(id=name, similarity=score, address=address),
    }
