"""Conditions on neighbours, by columns of the catalog that was scored."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from retailray import storage
from retailray.config import CatalogSection, SimilarSection
from retailray.data.catalog import CatalogReader
from retailray.errors import CatalogError, ConfigError
from retailray.retrieval.index import Filters
from retailray.retrieval.vectors import Vectors


def catalog_of(run: str) -> CatalogSection:
    """What a scoring run was told of its catalog."""
    config = yaml.safe_load(storage.read_bytes(storage.join(run, "config.yaml")))
    return CatalogSection.model_validate(config["catalog"])


def read_filters(section: SimilarSection, vectors: Vectors) -> Filters:
    """The conditions of ``similar.same``, ``.different`` and ``.where``, by the catalog as it is now.

    A product has the values of its first row.

    Raises:
        ConfigError: the embeddings are no run's, so that no catalog is known. CatalogError: there is no such column.
    """
    columns = [name for name in (section.same, section.different, *section.where) if name]
    if not columns:
        return Filters()
    if vectors.run is None:
        raise ConfigError(
            ["similar.same, .different and .where need a run of `score` as embeddings.uri: its catalog has the columns"]
        )
    values = _columns(catalog_of(vectors.run), list(dict.fromkeys(columns)), vectors)
    allowed = None
    if section.where:
        allowed = np.all([values[name] == wanted for name, wanted in section.where.items()], axis=0)
    same, different = (
        # the same text, the same number in every run
        pd.util.hash_array(values[name].astype(object)).view(np.int64) if name else None
        for name in (section.same, section.different)
    )
    return Filters(allowed, same, different)


def _text(column: pa.ChunkedArray, name: str, uri: str) -> pa.ChunkedArray:
    if pa.types.is_nested(column.type):
        raise CatalogError(f"{uri}: the column {name!r} (similar) holds lists or objects; conditions compare texts")
    return pc.fill_null(pc.cast(column, pa.string()), "")


def _columns(section: CatalogSection, names: list[str], vectors: Vectors) -> dict[str, np.ndarray]:
    """Text ``(N,)`` by column, in the order of the vectors; '' where the catalog no longer has the row."""
    reader = CatalogReader(section, needs_label=False)
    parts = []
    for piece in reader.pieces():
        missing = [name for name in names if name not in piece.table.column_names]
        if missing:
            there = ", ".join(piece.table.column_names[:10])
            raise CatalogError(f"{section.uri}: it has no column {missing[0]!r} (similar); there are {there}")
        keys = piece.rows.column("group" if vectors.level == "product" else "id")
        texts = [_text(piece.table.column(name), name, section.uri) for name in names]
        parts.append(pa.table([keys.cast(pa.string()), *texts], names=["key", *names]))
    found = pa.concat_tables(parts)
    place = pc.index_in(vectors.ids, value_set=found.column("key").combine_chunks())
    rows = found.take(place)
    return {name: pc.fill_null(rows.column(name), "").to_numpy() for name in names}
