"""A catalog on the driver's disk: read once, piece by piece, so that its size is the disk's matter and not memory's."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retailray.config import CatalogSection
from retailray.data.catalog import Piece, meaningful_columns, stream_catalog
from retailray.data.pipeline import OURS
from retailray.data.tables import LosslessTypes
from retailray.errors import CatalogError

MEANING = ("id", "image", "uri", "label", "file", "line", "refused")  # what is kept of a row's meaning, and ``row``


@dataclasses.dataclass(frozen=True)
class StagedCatalog:
    """``rows``: a Parquet file of :data:`MEANING` and ``row`` (int64, from 0); ``inputs``: the user's own columns in
    the same order, in files of one schema each, and whether it was read as text and is to be typed. ``schema``: of the
    user's columns, all files together."""

    uri: str
    rows: Path
    inputs: list[tuple[Path, bool]]
    num_rows: int
    schema: pa.Schema
    types: LosslessTypes

    def input_pieces(self) -> Iterator[pa.Table]:
        """The user's columns in order, with their types."""
        for path, untyped in self.inputs:
            with pq.ParquetFile(path, pre_buffer=False) as file:
                for batch in file.iter_batches():
                    table = pa.Table.from_batches([batch])
                    yield self._of_all(self.types.cast(table) if untyped else table)

    def _of_all(self, table: pa.Table) -> pa.Table:
        if table.schema.equals(self.schema):
            return table
        together = pa.concat_tables([self.schema.empty_table(), table], promote_options="permissive")
        return together.select(self.schema.names).cast(self.schema)


def stage_catalog(section: CatalogSection, folder: Path, *, reserved: Sequence[str]) -> StagedCatalog:
    """Read the catalog into ``folder``.

    Raises:
        CatalogError: it cannot be used, or has columns with names that are ``reserved`` for the output.
        StorageError: the address cannot be reached.
    """
    types = LosslessTypes(keep_text=meaningful_columns(section))
    inputs: list[tuple[Path, bool]] = []
    schemas: list[pa.Schema] = []
    writer: pq.ParquetWriter | None = None
    num_rows = 0
    with pq.ParquetWriter(folder / "rows.parquet", _rows_schema()) as rows_writer:
        for piece in stream_catalog(section, needs_label=False):
            if writer is None or not piece.table.schema.equals(schemas[-1]) or piece.untyped != inputs[-1][1]:
                _refuse_collisions(section.uri, piece, reserved)
                if writer:
                    writer.close()
                inputs.append((folder / f"input-{len(inputs):05d}.parquet", piece.untyped))
                schemas.append(piece.table.schema)
                writer = pq.ParquetWriter(inputs[-1][0], schemas[-1])
            writer.write_table(piece.table)
            if piece.untyped:
                types.look(piece.table)
            rows_writer.write_table(_numbered(piece.rows, num_rows))
            num_rows += piece.table.num_rows
    assert writer is not None  # a catalog without rows is a CatalogError
    writer.close()
    try:
        typed = [
            types.cast(schema.empty_table()).schema if untyped else schema
            for schema, (_, untyped) in zip(schemas, inputs, strict=True)
        ]
        schema = pa.unify_schemas(typed, promote_options="permissive")
    except pa.ArrowException as error:
        raise CatalogError(f"{section.uri}: its files disagree on column types ({error})") from error
    return StagedCatalog(section.uri, folder / "rows.parquet", inputs, num_rows, schema, types)


def _rows_schema() -> pa.Schema:
    kinds = {"line": pa.int64()}
    return pa.schema([("row", pa.int64()), *((name, kinds.get(name, pa.string())) for name in MEANING)])


def _numbered(rows: pa.Table, first: int) -> pa.Table:
    numbers = pa.array(np.arange(first, first + rows.num_rows))
    return rows.select(list(MEANING)).add_column(0, "row", numbers).cast(_rows_schema())


def _refuse_collisions(uri: str, piece: Piece, reserved: Sequence[str]) -> None:
    taken = [name for name in piece.table.column_names if name in reserved or name.startswith(OURS)]
    if taken:
        raise CatalogError(f"{uri}: columns {', '.join(taken)} have names that the output uses; rename them")
