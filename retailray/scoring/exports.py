"""Answers for people: one row a record, for spreadsheets, or in the layout that the shop reads back."""

import contextlib
import csv
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from retailray import events
from retailray.data.cells import part_of_label
from retailray.data.paths import column_of
from retailray.data.pictures import ADDRESS, INDEX, ITEM_ID
from retailray.data.row_ids import ROW_ID
from retailray.data.spreadsheets import safe_text
from retailray.data.text_files import PIECE_ROWS
from retailray.errors import ConfigError
from retailray.runs import RunDirectory
from retailray.scoring.ledger import Ledger
from retailray.scoring.staging import StagedCatalog

Export = Literal["none", "csv", "xlsx", "layout"]
ANSWER = ("answer_label", "answer_score", "answer_decision", "num_images")  # appended to the user's columns
FAILURE = ("error_code", "error_message")
SHEETS = {"answers": "Answers", "errors": "Errors", "to_review": "To review"}
MAX_SHEET_ROWS = 1_048_576 - 1  # of Excel, without the head
# what a person said of the record, else the answer of its product where the catalog has products (else a record has one
# picture), where an ancestor in a taxonomy is for a person to make exact; an error where no picture of the record has a
# prediction
_ANSWERS = """
    with pictures as (
        select r.row_id, r.product, case when r.corrected_in is not null then r.pred_label end as told,
            r.pred_label, r.pred_score,
            case when r.is_ancestor then 'review' else r.decision end as decision,
            r.code, r.reason, r.label, {key} as key
        from row_results r join read_parquet('{rows}') c using (row_id)
    ), found as (
        select min(row_id) as row_id, count(*) as num_images, count(pred_label) as scored,
            arg_min(label, row_id) filter (where label <> '') as known_label, min(product) as product,
            case when count(distinct told) = 1 then min(told) end as told,
            arg_max(pred_label, pred_score) as best_label, max(pred_score) as best_score,
            arg_max(decision, pred_score) as best_decision,
            arg_min(code, row_id) filter (where code <> '') as error_code,
            arg_min(reason, row_id) filter (where code <> '') as error_message
        from pictures group by key
    )
    select row_id, num_images, coalesce(told, p.label, best_label) as answer_label,
        case when told is not null then 1.0 else coalesce(p.score, best_score) end as answer_score,
        case when scored = 0 then 'error' when told is not null then 'accept'
            else coalesce(p.decision, best_decision) end as answer_decision,
        coalesce(known_label, '') as known_label, error_code, error_message
    from found left join products p using (product)
"""


def check_export(export: Export, catalog: StagedCatalog) -> None:
    """Raise ConfigError where a layout is asked for, and no column says which product an answer is of."""
    if export == "layout":
        columns_of_layout(catalog)


def write_export(run: RunDirectory, ledger: Ledger, catalog: StagedCatalog, export: Export, folder: Path) -> list[str]:
    """Write ``export/`` into the run directory; names of the files.

    ``csv``: ``answers.csv``, ``errors.csv`` and ``to_review.csv``; ``xlsx``: ``catalog.xlsx`` with a sheet each;
    ``layout``: a file with the source's key and label columns, a row a product, to be imported by what exported it.
    Text that would be a formula is text to a spreadsheet; in ``layout`` every value is as it was.
    """
    if export == "none":
        return []
    if export == "layout":
        return [_write_layout(run, ledger, catalog, folder)]
    records = _records(ledger, catalog)
    columns = [field.name for field in catalog.schema if field.name not in (ITEM_ID, INDEX, ADDRESS)]
    return (_write_csv if export == "csv" else _write_xlsx)(run, columns, records, folder)


def _key_of(catalog: StagedCatalog) -> str:
    """What has one answer: a record; or a product, where a layout says that several records are one (Shopify)."""
    several = catalog.source and catalog.labels_of_products is not None and not catalog.source.section.id
    return 'c."group"' if several else "(c.file, c.line)"


def _answers(catalog: StagedCatalog) -> str:
    """The query of one row a record (or product), in the order of the source."""
    return _ANSWERS.format(key=_key_of(catalog), rows=str(catalog.rows).replace("'", "''"))


def _records(ledger: Ledger, catalog: StagedCatalog) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The user's columns of every record, as they were read, and its answer; both are read once, in one order."""
    batches = ledger.batches(_answers(catalog) + " order by row_id", PIECE_ROWS)
    ahead = next(batches, None)
    for piece in catalog.raw_pieces():
        mine: list[pa.Table] = []
        last = piece.column(ROW_ID)[-1]
        while ahead is not None and ahead.column("row_id")[0].as_py() <= last.as_py():
            inside = pc.less_equal(ahead.column("row_id"), last)
            mine.append(ahead.filter(inside))
            rest = ahead.filter(pc.invert(inside))
            ahead = rest if rest.num_rows else next(batches, None)
        if mine:
            answers = pa.concat_tables(mine)
            places = pc.index_in(answers.column("row_id"), value_set=piece.column(ROW_ID).combine_chunks())
            own = piece.take(places).drop_columns([ROW_ID]).to_pylist()
            yield from zip(own, answers.to_pylist(), strict=True)


def _kinds(answer: dict[str, Any]) -> list[str]:
    """The tables in which a record stands."""
    if answer["answer_decision"] == "error":
        return ["errors"]
    return ["answers"] if answer["answer_decision"] == "accept" else ["answers", "to_review"]


def _row(kind: str, columns: Sequence[str], own: dict[str, Any], answer: dict[str, Any]) -> list[object]:
    names = FAILURE if kind == "errors" else ANSWER
    told = [round(value, 4) if isinstance(value, float) else value for value in (answer[name] for name in names)]
    return [_text(own.get(name)) for name in columns] + told


def _text(value: object) -> object:
    if value is None:
        return ""
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list | dict) else value


def _write_csv(
    run: RunDirectory, columns: Sequence[str], records: Iterable[tuple[Any, Any]], folder: Path
) -> list[str]:
    with contextlib.ExitStack() as files:
        writers = {}
        for kind in SHEETS:  # UTF-8 with a mark by which Excel knows it
            file = files.enter_context((folder / f"{kind}.csv").open("w", encoding="utf-8-sig", newline=""))
            writers[kind] = csv.writer(file)
            writers[kind].writerow([safe_text(name) for name in (*columns, *(FAILURE if kind == "errors" else ANSWER))])
        for own, answer in records:
            for kind in _kinds(answer):
                writers[kind].writerow([safe_text(value) for value in _row(kind, columns, own, answer)])
    return [_upload(run, folder / f"{kind}.csv") for kind in SHEETS]


def _upload(run: RunDirectory, path: Path) -> str:
    run.write_file(f"export/{path.name}", path)
    return f"export/{path.name}"


def _write_xlsx(
    run: RunDirectory, columns: Sequence[str], records: Iterable[tuple[Any, Any]], folder: Path
) -> list[str]:
    from openpyxl import Workbook
    from openpyxl.cell import WriteOnlyCell

    book = Workbook(write_only=True)
    sheets = {kind: book.create_sheet(title) for kind, title in SHEETS.items()}
    counts: Counter[str] = Counter()

    def cells(sheet: Any, values: Iterable[object]) -> list[Any]:
        made = []
        for value in values:
            cell = WriteOnlyCell(sheet, value=_for_a_cell(value))
            if isinstance(value, str):
                cell.data_type = "s"  # never a formula
            made.append(cell)
        return made

    for kind, sheet in sheets.items():
        sheet.append(cells(sheet, (*columns, *(FAILURE if kind == "errors" else ANSWER))))
    for own, answer in records:
        for kind in _kinds(answer):
            counts[kind] += 1
            if counts[kind] <= MAX_SHEET_ROWS:
                sheets[kind].append(cells(sheets[kind], _row(kind, columns, own, answer)))
    for kind, count in counts.items():
        if count > MAX_SHEET_ROWS:
            note = f"a sheet holds {MAX_SHEET_ROWS} rows; {count - MAX_SHEET_ROWS} of {kind} are left out: use csv"
            events.emit("warning", note=note)
    book.save(folder / "catalog.xlsx")
    return [_upload(run, folder / "catalog.xlsx")]


def _for_a_cell(value: object) -> str | float | None:
    """What XML can hold, of 32,767 characters at most, as Excel demands."""
    if not isinstance(value, str):
        return value if isinstance(value, bool | int | float) else str(value)
    return "".join(sign for sign in value if sign in "\t\n\r" or sign >= " ")[:32_767]


def columns_of_layout(catalog: StagedCatalog) -> tuple[str, str]:
    """The columns that say which product a row is of, and its label. Raises ConfigError where there are none."""
    section = catalog.source.section if catalog.source else None
    key = section and (section.id or section.group)
    columns = catalog.schema.names
    if not section or not key or column_of(str(key), columns) != (key, []):
        raise ConfigError(
            ["score.export = layout: name the column that identifies a product, with catalog.id or catalog.group"]
        )
    if column_of(section.label, columns) != (section.label, []):
        raise ConfigError([f"score.export = layout: there is no column {section.label!r} to write labels into"])
    return str(key), section.label


def _write_layout(run: RunDirectory, ledger: Ledger, catalog: StagedCatalog, folder: Path) -> str:
    """Accepted answers in the source's own words, and what the source says of all others; nothing of products of which
    neither is known."""
    key, label = columns_of_layout(catalog)
    assert catalog.source
    section = catalog.source.section
    how = section.label_separator, section.label_list_separator
    own = "read_parquet('{}')".format(_own_cells(catalog, key, label, folder).replace("'", "''"))
    written = _cells_by_label(ledger, own, how)
    answers = f"""
        with cells as (select name, arg_min(cell, row_id) filter (where cell <> '') as cell from {own} group by name)
        select name, cells.cell, answer_label, answer_decision, known_label
        from ({_answers(catalog)}) join {own} using (row_id) left join cells using (name) order by row_id
    """
    tabs = catalog.source.head.delimiter == "\t"
    # a feed's quotation marks are text
    options: dict[str, Any] = {"quoting": csv.QUOTE_NONE, "quotechar": None} if tabs else {}
    path = folder / f"layout.{'tsv' if tabs else 'csv'}"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=catalog.source.head.delimiter, lineterminator="\n", **options)
        writer.writerow([key, label])
        for answer in (row for batch in ledger.batches(answers, PIECE_ROWS) for row in batch.to_pylist()):
            name, cell = answer["name"], answer["cell"] or ""
            if answer["answer_decision"] == "accept" and answer["answer_label"] != answer["known_label"]:
                told = written.get(answer["answer_label"], answer["answer_label"])
                part = part_of_label(cell, *how)  # other categories stay
                cell = cell.replace(part, told, 1) if part else told
            if name and cell:
                writer.writerow([" ".join(one.split("\t")) if tabs else one for one in (name, cell)])
    return _upload(run, path)


def _own_cells(catalog: StagedCatalog, key: str, column: str, folder: Path) -> str:
    """A Parquet file of what the source says in every row: ``row_id``, product (``name``) and ``cell``; its path."""
    path = folder / "own_cells.parquet"
    schema = pa.schema([("row_id", pa.int64()), ("name", pa.string()), ("cell", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for piece in catalog.raw_pieces():
            texts = [[str(_text(value)) for value in piece.column(name).to_pylist()] for name in (key, column)]
            writer.write_table(pa.table([piece.column(ROW_ID), *map(pa.array, texts)], schema))
    return str(path)


def _cells_by_label(ledger: Ledger, own: str, how: tuple[str | None, str | None]) -> dict[str, str]:
    """How the source writes each label, most often: as a path, say (``Shop > Mugs``)."""
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    query = f"""
        select label, cell, count(*) as times, min(row_id) as first from rows join {own} using (row_id)
        where label <> '' and cell <> '' group by all order by first
    """
    for row in (row for batch in ledger.batches(query, PIECE_ROWS) for row in batch.to_pylist()):
        seen[row["label"]][part_of_label(row["cell"], *how)] += row["times"]
    return {label: counts.most_common(1)[0][0] for label, counts in seen.items()}
