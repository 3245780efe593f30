"""From settled tables to a published run: few large files, counted again from storage, then the pointer."""

import hashlib
import json
from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from retailray import storage
from retailray.config import CatalogSection
from retailray.data.arrow_tables import parquet_bytes, rechunk
from retailray.data.row_ids import ROW_ID, in_order_of
from retailray.data.text_files import PIECE_ROWS
from retailray.errors import ERROR_CODES, RetailrayError
from retailray.models.meta import BundleMeta
from retailray.models.numbers import DISTRIBUTION, NUMBER_SCHEMA, NumberRule
from retailray.models.predicting import PREDICTION_SCHEMA
from retailray.runs import RunDirectory
from retailray.scoring.backing_off import PATH_COLUMNS
from retailray.scoring.drift import BINS, binned
from retailray.scoring.formats import LEDGER_SCHEMA
from retailray.scoring.ledger import Ledger
from retailray.scoring.staging import StagedCatalog

LEDGER = "ledger"  # the folder of a published run's ledger rows
STAMP = ("model_name", "model_version", "run_id", "scored_at")
OUTPUT = (*PREDICTION_SCHEMA.names, "decision", *STAMP)  # the columns that are appended to the user's
# and these where people may correct: the model's own word, and who gave theirs, when and where (null if nobody did)
LINEAGE = {
    "model_label": pa.string(),
    "model_score": pa.float32(),
    **dict.fromkeys(("corrected_by", "corrected_at", "corrected_in"), pa.string()),
}
ERROR_SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "image", "stage", "error_code", "message")])
ERROR_EXAMPLES = 3  # a code, for the report
_OUTCOMES = (
    "select row_id, id, image, code, reason, decision, scored_at, reused, "
    f"{', '.join((*PREDICTION_SCHEMA.names, *PATH_COLUMNS.names, *LINEAGE))} from row_results order by row_id"
)


_NUMBERS = (
    "select row_id, id, image, code, reason, scored_at, reused, "
    f"{', '.join(field.name for field in DISTRIBUTION)} from row_results order by row_id"
)


def output_schema(section: CatalogSection, *, with_paths: bool, numbers: bool = False) -> pa.Schema:
    """The columns that are appended to the user's; ``with_paths``: of labels in a taxonomy; ``numbers``: of a model
    that predicts these."""
    if numbers:
        return pa.schema([*NUMBER_SCHEMA, *((name, pa.string()) for name in STAMP)])
    lineage = LINEAGE if section.corrections else {}
    paths = PATH_COLUMNS.names if with_paths else []
    kinds = {field.name: field.type for field in (*PREDICTION_SCHEMA, *PATH_COLUMNS)} | lineage
    return pa.schema([(name, kinds.get(name, pa.string())) for name in (*OUTPUT, *paths, *lineage)])


def write_tables(
    run: RunDirectory,
    ledger: Ledger,
    catalog: StagedCatalog,
    meta: BundleMeta,
    *,
    rows_per_file: int,
    schema: pa.Schema,
    rule: NumberRule | None = None,
) -> dict[str, int]:
    """Write ``predictions/`` (the user's columns and ``schema``), ``errors/`` and ``ledger/``.

    ``rule``: how numbers follow from the ledger's probabilities, of a model that predicts these.

    Returns:
        ``rows, scored, reused, failed``, counted from what was written.

    Raises:
        RetailrayError: rows in the catalog are not the rows that came out, or an id came out twice.
    """
    for folder in ("predictions", "errors", LEDGER):  # of an earlier attempt of this run, which did not end
        storage.remove_folder(run.path(folder))
    counts: Counter[str] = Counter()
    # run_id is this run's in all rows, as in the name of the directory, which many readers take for a column;
    # ledger/ has the run that looked at an image
    stamp = {"model_name": meta.name, "model_version": meta.version, "run_id": run.run_id}
    batches = ledger.batches(_NUMBERS if rule else _OUTCOMES, PIECE_ROWS)
    outcomes = rechunk((_with_numbers(rows, rule) for rows in batches) if rule else batches, rows_per_file)
    inputs = rechunk(catalog.input_pieces(), rows_per_file)
    for number, (found, own) in enumerate(zip(outcomes, inputs, strict=True)):
        own = in_order_of(found.column("row_id"), own).drop_columns([ROW_ID])
        failed = pc.not_equal(pc.fill_null(found.column("code"), "lost"), "")
        good, errors = found.filter(pc.invert(failed)), found.filter(failed)
        _write(
            run,
            "predictions",
            number,
            _predictions(own.filter(pc.invert(failed)), good, stamp, schema),
            good.column("id"),
        )
        _write(run, "errors", number, _errors(errors), errors.column("id"))
        reused = pc.sum(good.column("reused")).as_py() or 0
        counts.update(rows=found.num_rows, reused=reused, scored=good.num_rows - reused, failed=errors.num_rows)
    kept = f"select {', '.join(LEDGER_SCHEMA.names)} from image_results"
    for number, table in enumerate(rechunk(ledger.batches(kept, PIECE_ROWS), rows_per_file)):
        _write(run, LEDGER, number, table.cast(LEDGER_SCHEMA), table.column("uri"))
    _fill_gaps(run, catalog, schema)
    _account(run, ledger, catalog, counts)
    return {name: counts[name] for name in ("rows", "scored", "reused", "failed")}


def _with_numbers(rows: pa.Table, rule: NumberRule) -> pa.Table:
    """With what is predicted in place of the probabilities that it follows from; null where a row failed."""
    good = pc.fill_null(pc.equal(rows.column("code"), ""), False).to_numpy()
    found = rule(rows.filter(pa.array(good))).take(pa.array(good.cumsum() - 1, mask=~good))
    rows = rows.drop_columns([field.name for field in DISTRIBUTION])
    for field, values in zip(NUMBER_SCHEMA, found.columns, strict=True):
        rows = rows.append_column(field, values)
    return rows


def _predictions(inputs: pa.Table, found: pa.Table, stamp: dict[str, str], schema: pa.Schema) -> pa.Table:
    for field in schema:
        told = stamp.get(field.name)
        values = pa.array([told] * found.num_rows, pa.string()) if told is not None else found.column(field.name)
        inputs = inputs.append_column(field.name, values.cast(field.type))
    return inputs


def _errors(found: pa.Table) -> pa.Table:
    codes = found.column("code").to_pylist()
    columns = {
        "id": found.column("id"),
        "image": found.column("image"),
        "stage": [ERROR_CODES[code][0] if code in ERROR_CODES else "" for code in codes],
        "error_code": codes,
        "message": found.column("reason"),
    }
    return pa.table(columns, ERROR_SCHEMA)


def _write(run: RunDirectory, folder: str, number: int, table: pa.Table, names: pa.ChunkedArray) -> None:
    if table.num_rows:
        ids = hashlib.sha256(json.dumps(names.to_pylist()).encode()).hexdigest()[:12]
        storage.write_bytes(run.path(folder, f"part-{number:05d}-{ids}.parquet"), parquet_bytes(table))


def _fill_gaps(run: RunDirectory, catalog: StagedCatalog, schema: pa.Schema) -> None:
    """Parts without rows, so that readers find a table with columns where there is nothing to tell."""
    predictions = pa.schema([*catalog.schema, *schema])
    for folder, columns in (("predictions", predictions), ("errors", ERROR_SCHEMA)):
        if not storage.list_files(run.path(folder)):
            storage.write_bytes(run.path(folder, "part-empty.parquet"), parquet_bytes(columns.empty_table()))


def _account(run: RunDirectory, ledger: Ledger, catalog: StagedCatalog, counts: Counter[str]) -> None:
    """rows in catalog = scored + reused + failed, on storage as in memory, or nothing is published."""
    written = {
        folder: sum(rows_of(name) for name in storage.list_files(run.path(folder)))
        for folder in ("predictions", "errors")
    }
    lost = ledger.one("select count(*) from row_results where code is null")
    twice = ledger.one("select count(*) - count(distinct id) from row_results where code = ''")
    right = {"predictions": counts["scored"] + counts["reused"], "errors": counts["failed"]}
    if counts["rows"] != catalog.num_rows or written != right or lost or twice:
        raise RetailrayError(
            f"{catalog.num_rows} rows went in and {counts['rows']} came out: {written} were written, {right} expected, "
            f"{lost} without a result, {twice} duplicate ids: nothing is published; this is a bug in retailray, "
            "please report it"
        )


def rows_of(name: str) -> int:
    """Rows of a Parquet file on storage, by its footer."""
    with storage.open_binary(name) as file:
        return pq.ParquetFile(file).metadata.num_rows


def summarize(ledger: Ledger) -> dict[str, object]:
    """What the report and ``run.json`` tell of all rows; its size is bounded by labels and codes."""
    good, failed = "from row_results where code = ''", "from row_results where code <> ''"
    labelled = ledger.one(f"select count(*) {good} and label <> ''")
    agreeing = ledger.one(f"select count(*) {good} and label = model_label")
    bins = ledger.counts(f"select {binned('model_score')}, count(*) {good} group by 1")
    examples: dict[str, list[dict[str, str]]] = {}
    for row in ledger.table(
        f"select id, image, code as error_code, reason as message {failed} "
        f"qualify row_number() over (partition by code order by row_id) <= {ERROR_EXAMPLES} order by row_id"
    ).to_pylist():
        examples.setdefault(row["error_code"], []).append(row)
    return {
        "labels": ledger.counts(f"select pred_label, count(*) {good} group by 1 order by 2 desc, 1"),
        "decisions": ledger.counts(f"select decision, count(*) {good} group by 1 order by 1"),
        "errors_by_code": ledger.counts(f"select code, count(*) {failed} group by 1 order by 1"),
        "label_agreement": agreeing / labelled if labelled else None,
        "histogram": [bins.get(at, 0) for at in range(BINS)],
        "corrected": ledger.one("select count(*) from row_results where corrected_in is not null"),
        "outdated": ledger.one("select count(*) from row_results where outdated"),
        "examples": examples,
    }
