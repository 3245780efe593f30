"""What people said a row's label is: read from the files that the review page saves and Label Studio exports."""

import hashlib
from typing import Any

import pandas as pd
import pyarrow as pa

from retailray import events, storage
from retailray.data.arrow_tables import as_text
from retailray.data.spreadsheets import without_apostrophe
from retailray.data.tables import stream_records, table_files, table_suffix
from retailray.errors import CatalogError

# our names, and those of Label Studio's CSV export where they differ
COLUMNS = {"item_id": (), "label": (), "sha256": (), "reviewer": ("annotator",), "reviewed_at": ("updated_at",)}
REQUIRED = ("item_id", "label")
EARLIEST = pd.Timestamp.min.tz_localize("UTC")
SCHEMA = pa.schema([(name, pa.string()) for name in (*COLUMNS, "file")])


def read_corrections(uri: str) -> pa.Table:
    """The last word on every item: a row each of :data:`SCHEMA`, '' where a file does not say.

    Where several rows name an item, the one with the latest ``reviewed_at`` (ISO 8601, in UTC where it names no zone)
    holds, among equals the last one of the last file by name. Rows without a label say nothing.

    Args:
        uri: a CSV, TSV, Parquet or JSONL file, or a folder or pattern of them; a folder may be empty.

    Raises:
        CatalogError: a file has no ``item_id`` or no ``label`` column. StorageError: it cannot be read.
    """
    if table_suffix(uri):
        storage.check_readable(uri)  # a folder may have nothing in it yet, a file that is named is meant to be there
    files = table_files(uri)
    if not files:
        events.emit("warning", corrections=uri, note="it contains no table; no label is corrected")
    found: dict[str, tuple[pd.Timestamp, dict[str, str]]] = {}
    for file in files:
        for table in (records.table for records in stream_records(file, encoding="utf-8")):
            rows = _rows(file, table)
            for row, at in zip(rows, _moments(file, rows), strict=True):
                if row["label"] and (row["item_id"] not in found or at >= found[row["item_id"]][0]):
                    found[row["item_id"]] = at, row
    return pa.Table.from_pylist([row for _, row in found.values()], SCHEMA)


def correct(rows: pa.Table, corrections: pa.Table, access: storage.Access) -> tuple[pa.Table, int]:
    """The rows of a catalog (``id, uri, label`` and more) with the labels that people gave; of how many rows they are.

    What was said of another picture does not hold: where a correction has a ``sha256``, the image is read and compared.
    """
    said = {row["item_id"]: row for row in corrections.to_pylist()}
    columns = ("id", "uri", "denied_reason", "label")
    ids, uris, denied_reasons, labels = (rows.column(name).to_pylist() for name in columns)
    known = [at for at, item in enumerate(ids) if item in said]
    asked = [at for at in known if said[ids[at]]["sha256"] and uris[at] and not denied_reasons[at]]
    outdated = {
        asked[number]
        for number, data in storage.fetch_in_turn([uris[at] for at in asked], access)
        if isinstance(data, bytes) and hashlib.sha256(data).hexdigest() != said[ids[asked[number]]]["sha256"]
    }
    for at in set(known) - outdated:
        labels[at] = said[ids[at]]["label"]
    events.emit("corrections", read=corrections.num_rows, rows=len(known) - len(outdated), outdated=len(outdated))
    return rows.set_column(rows.column_names.index("label"), "label", pa.array(labels, pa.string())), len(known)


def warn_of_strangers(corrections: pa.Table, num_known: int) -> None:
    """Say so where people's work would be lost without a word: not one correction is of a row that there is."""
    if corrections.num_rows and not num_known:
        item, file = corrections.column("item_id")[0].as_py(), corrections.column("file")[0].as_py()
        events.emit(
            "warning",
            corrections=file,
            note=f"none of {corrections.num_rows} corrections names a row of the catalog (the first one: {item!r}); "
            "item_id is compared with what catalog.id says, the image path by default",
        )


def _moments(file: str, rows: list[dict[str, object]]) -> list[pd.Timestamp]:
    """When each row was said; before all others where it does not say."""
    told = pd.Series([row["reviewed_at"] for row in rows], dtype=str)
    # pandas takes "now" and "today" too
    moments = pd.to_datetime(told.where(told.str[:1].str.isdigit()), format="ISO8601", utc=True, errors="coerce")
    unread = told[moments.isna() & (told != "")]
    if len(unread):
        events.emit(
            "warning",
            corrections=file,
            note=f"reviewed_at = {unread.iloc[0]!r} is no ISO 8601 time ({len(unread)} rows): others count as later",
        )
    return [EARLIEST if pd.isna(at) else at for at in moments]


def _rows(file: str, table: pa.Table) -> list[dict[str, Any]]:
    names = {}
    for name, others in COLUMNS.items():
        names[name] = next((own for own in (name, *others) if own in table.column_names), None)
    missing = [name for name in REQUIRED if names[name] is None]
    if missing:
        raise CatalogError(
            f"{file}: corrections need the columns {' and '.join(REQUIRED)}; it has {', '.join(table.column_names)}"
        )
    columns = {}
    for name, own in names.items():
        try:
            texts = as_text(table.column(own)).to_pylist() if own else [""] * table.num_rows
            columns[name] = list(map(without_apostrophe, texts))
        except (TypeError, pa.ArrowException) as error:
            raise CatalogError(f"{file}: column {own!r} of corrections: {error}") from error
    keys = list(columns)
    return [dict(zip(keys, values, strict=True), file=file) for values in zip(*columns.values(), strict=True)]
