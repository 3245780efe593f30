"""A catalog on the driver's disk: read once, piece by piece, so that memory use does not depend on its size."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from retailray.config import CatalogSection
from retailray.data.arrow_tables import LosslessTypes, to_schema, unify_schemas
from retailray.data.catalog import CatalogReader, Source
from retailray.data.columns import Piece, meaningful_columns
from retailray.data.decoding import COLUMN_PREFIX, ROW_ID
from retailray.errors import CatalogError

# columns of a catalog row that scoring needs
MEANING = ("row_id", "id", "image", "uri", "label", "group", "file", "line", "denied_reason", "fault_code")


@dataclasses.dataclass(frozen=True)
class StagedCatalog:
    """``rows``: a Parquet file of :data:`MEANING`; ``inputs``: the user's own columns and :data:`ROW_ID`, in files of
    one schema each, and whether each was read as text and is to be typed. ``schema``: of the user's columns, all files
    together."""

    uri: str
    rows: Path
    inputs: list[tuple[Path, bool]]
    num_rows: int
    schema: pa.Schema
    types: LosslessTypes
    source: Source | None
    labels_of_products: dict[str, str] | None  # see CatalogReader.labels_of_products

    @property
    def product_column(self) -> str | None:
        """The user's name of what makes rows one product; None where every row is a product of its own."""
        return self.source.product_column if self.source else None

    def raw_pieces(self) -> Iterator[pa.Table]:
        """The same as they were read: columns of CSV are text, and a file has its own columns alone."""
        for path, _ in self.inputs:
            with pq.ParquetFile(path, pre_buffer=False) as file:
                for batch in file.iter_batches():
                    yield pa.Table.from_batches([batch])

    def input_pieces(self) -> Iterator[pa.Table]:
        """The user's columns with their types, and :data:`ROW_ID` last, in ascending order of row ids."""
        schema = self.schema.append(pa.field(ROW_ID, pa.int64()))
        for path, untyped in self.inputs:
            with pq.ParquetFile(path, pre_buffer=False) as file:
                for batch in file.iter_batches():
                    table = pa.Table.from_batches([batch])
                    yield to_schema(self.types.cast(table) if untyped else table, schema)


def stage_catalog(section: CatalogSection, folder: Path, *, reserved: Sequence[str]) -> StagedCatalog:
    """Read the catalog into ``folder``.

    Raises:
        CatalogError: it cannot be used, or has columns with names that are ``reserved`` for the output.
        StorageError: the address cannot be reached.
    """
    reader = CatalogReader(section, needs_label=False)
    types = LosslessTypes(keep_text=meaningful_columns(section))
    inputs: list[tuple[Path, bool]] = []
    schemas: list[pa.Schema] = []
    writer: pq.ParquetWriter | None = None
    num_rows = 0
    with pq.ParquetWriter(folder / "rows.parquet", _rows_schema()) as rows_writer:
        for piece in reader.pieces():
            table = piece.table.append_column(ROW_ID, piece.rows.column("row_id"))
            if writer is None or not table.schema.equals(schemas[-1]) or piece.untyped != inputs[-1][1]:
                _refuse_collisions(section.uri, piece, reserved)
                if writer:
                    writer.close()
                inputs.append((folder / f"input-{len(inputs):05d}.parquet", piece.untyped))
                schemas.append(table.schema)
                writer = pq.ParquetWriter(inputs[-1][0], schemas[-1])
            writer.write_table(table)
            if piece.untyped:
                types.look(piece.table)
            rows_writer.write_table(piece.rows.select(list(MEANING)).cast(_rows_schema()))
            num_rows += piece.table.num_rows
    assert writer is not None  # a catalog without rows is a CatalogError
    writer.close()
    schema = _common_schema(section.uri, schemas, inputs, types)
    return StagedCatalog(
        section.uri,
        folder / "rows.parquet",
        inputs,
        num_rows,
        schema,
        types,
        reader.source(),
        reader.labels_of_products(),
    )


def _common_schema(
    uri: str, schemas: Sequence[pa.Schema], inputs: Sequence[tuple[Path, bool]], types: LosslessTypes
) -> pa.Schema:
    """Of the user's columns of all files. Raises CatalogError where files disagree."""
    try:
        typed = [
            types.cast(schema.empty_table()).schema if untyped else schema
            for schema, (_, untyped) in zip(schemas, inputs, strict=True)
        ]
        schema = unify_schemas(typed)
    except pa.ArrowException as error:
        raise CatalogError(f"{uri}: its files disagree on column types ({error})") from error
    return schema.remove(schema.get_field_index(ROW_ID))


def _rows_schema() -> pa.Schema:
    kinds = {"row_id": pa.int64(), "line": pa.int64()}
    return pa.schema([(name, kinds.get(name, pa.string())) for name in MEANING])


def _refuse_collisions(uri: str, piece: Piece, reserved: Sequence[str]) -> None:
    taken = [name for name in piece.table.column_names if name in reserved or name.startswith(COLUMN_PREFIX)]
    if taken:
        raise CatalogError(f"{uri}: columns {', '.join(taken)} have names that the output uses; rename them")
