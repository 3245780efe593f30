"""Answers for people: one row a record, for spreadsheets, or in the layout that the shop reads back."""

import csv
import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from retailray import events
from retailray.data.cells import part_of_label
from retailray.data.paths import column_of
from retailray.data.pictures import ADDRESS, INDEX, ITEM_ID
from retailray.data.row_ids import ROW_ID
from retailray.data.spreadsheets import safe_text
from retailray.errors import ConfigError
from retailray.runs import RunDirectory
from retailray.scoring.ledger import Ledger
from retailray.scoring.staging import StagedCatalog

Export = Literal["none", "csv", "xlsx", "layout"]
ANSWER = ("answer_label", "answer_score", "answer_decision", "num_images")  # appended to the user's columns
FAILURE = ("error_code", "error_message")
SHEETS = {"answers": "Answers", "errors": "Errors", "to_review": "To review"}
MAX_SHEET_ROWS = 1_048_576 - 1  # of Excel, without the head
# of the pictures of one record or product: the accepted label where all accepted pictures agree, else a person looks
_ANSWERS = """
    with pictures as (
        select r.row_id, r.pred_label, r.pred_score, r.decision, r.code, r.reason, r.label, {key} as key
        from row_results r join read_parquet('{rows}') c using (row_id)
    ), found as (
        select min(row_id) as row_id, count(*) as num_images, count(pred_label) as scored,
            count(distinct pred_label) filter (where decision = 'accept') as accepted,
            min(pred_label) filter (where decision = 'accept') as accepted_label,
            max(pred_score) filter (where decision = 'accept') as accepted_score,
            arg_min(label, row_id) filter (where label <> '') as known_label,
            arg_max(pred_label, pred_score) as best_label, max(pred_score) as best_score,
            arg_max(decision, pred_score) as best_decision,
            arg_min(code, row_id) filter (where code <> '') as error_code,
            arg_min(reason, row_id) filter (where code <> '') as error_message
        from pictures group by key
    )
    select row_id, num_images, case when accepted = 1 then accepted_label else best_label end as answer_label,
        case when accepted = 1 then accepted_score else best_score end as answer_score,
        case when scored = 0 then 'error' when accepted = 1 then 'accept' when accepted > 1 then 'review'
            else best_decision end as answer_decision, coalesce(known_label, '') as known_label, error_code,
        error_message
    from found order by row_id
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
        return [_write_layout(run, ledger, catalog)]
    records = _records(catalog, _answers(ledger, catalog, _key_of(catalog)))
    columns = [field.name for field in catalog.schema if field.name not in (ITEM_ID, INDEX, ADDRESS)]
    return _write_csv(run, columns, records) if export == "csv" else _write_xlsx(run, columns, records, folder)


def _key_of(catalog: StagedCatalog) -> str:
    """What has one answer: a record; or a product, where a layout says that several records are one (Shopify)."""
    several = catalog.source and catalog.labels_of_products is not None and not catalog.source.section.id
    return 'c."group"' if several else "(c.file, c.line)"


def _answers(ledger: Ledger, catalog: StagedCatalog, key: str) -> pa.Table:
    return ledger.table(_ANSWERS.format(key=key, rows=str(catalog.rows).replace("'", "''")))


def _records(catalog: StagedCatalog, answers: pa.Table) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The user's columns of every record, as they were read, and its answer."""
    for piece in catalog.raw_pieces():
        mine = answers.filter(pc.is_in(answers.column("row_id"), value_set=piece.column(ROW_ID).combine_chunks()))
        if not mine.num_rows:
            continue
        places = pc.index_in(mine.column("row_id"), value_set=piece.column(ROW_ID).combine_chunks())
        own = piece.take(places).drop_columns([ROW_ID]).to_pylist()
        yield from zip(own, mine.to_pylist(), strict=True)


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


def _write_csv(run: RunDirectory, columns: Sequence[str], records: Iterable[tuple[Any, Any]]) -> list[str]:
    texts = {kind: io.StringIO() for kind in SHEETS}
    writers = {kind: csv.writer(text) for kind, text in texts.items()}
    for kind, writer in writers.items():
        writer.writerow([safe_text(name) for name in (*columns, *(FAILURE if kind == "errors" else ANSWER))])
    for own, answer in records:
        for kind in _kinds(answer):
            writers[kind].writerow([safe_text(value) for value in _row(kind, columns, own, answer)])
    for kind, text in texts.items():
        run.write(f"export/{kind}.csv", "\ufeff" + text.getvalue())  # by which Excel knows UTF-8
    return [f"export/{kind}.csv" for kind in SHEETS]


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
    path = folder / "catalog.xlsx"
    book.save(path)
    run.write("export/catalog.xlsx", path.read_bytes())
    return ["export/catalog.xlsx"]


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


def _write_layout(run: RunDirectory, ledger: Ledger, catalog: StagedCatalog) -> str:
    """Accepted answers in the source's own words, and what the source says of all others; nothing of products of which
    neither is known."""
    key, label = columns_of_layout(catalog)
    assert catalog.source
    cells = _cells_by_label(ledger, catalog, label)
    section = catalog.source.section
    how = section.label_separator, section.label_list_separator
    answers = _answers(ledger, catalog, _key_of(catalog))
    own_cells = _own_cells(catalog, key, label)
    delimiter = catalog.source.head.delimiter
    # a feed's quotation marks are text
    options: dict[str, Any] = {"quoting": csv.QUOTE_NONE, "quotechar": None} if delimiter == "\t" else {}
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n", **options)
    writer.writerow([key, label])
    for own, answer in _records(catalog, answers):
        name = str(_text(own.get(key)))
        cell = own_cells.get(name, "")
        if answer["answer_decision"] == "accept" and answer["answer_label"] != answer["known_label"]:
            told = cells.get(answer["answer_label"], answer["answer_label"])
            part = part_of_label(cell, *how)  # other categories stay
            cell = cell.replace(part, told, 1) if part else told
        if name and cell:
            writer.writerow([" ".join(one.split("\t")) if delimiter == "\t" else one for one in (name, cell)])
    file = f"export/layout.{'tsv' if delimiter == chr(9) else 'csv'}"
    run.write(file, text.getvalue())
    return file


def _own_cells(catalog: StagedCatalog, key: str, column: str) -> dict[str, str]:
    """What the source says of each product: its first cell that is not empty."""
    found: dict[str, str] = {}
    for piece in catalog.raw_pieces():
        pairs = zip(piece.column(key).to_pylist(), piece.column(column).to_pylist(), strict=True)
        for name, cell in pairs:
            if text := str(_text(cell)):
                found.setdefault(str(_text(name)), text)
    return found


def _cells_by_label(ledger: Ledger, catalog: StagedCatalog, column: str) -> dict[str, str]:
    """How the source writes each label, most often: as a path, say (``Shop > Mugs``)."""
    labels = ledger.table("select row_id, label from rows where label <> ''")
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    assert catalog.source
    how = catalog.source.section.label_separator, catalog.source.section.label_list_separator
    for piece in catalog.raw_pieces():
        mine = labels.filter(pc.is_in(labels.column("row_id"), value_set=piece.column(ROW_ID).combine_chunks()))
        places = pc.index_in(mine.column("row_id"), value_set=piece.column(ROW_ID).combine_chunks())
        cells = piece.column(column).take(places).to_pylist()
        for cell, label in zip(cells, mine.column("label").to_pylist(), strict=True):
            if cell:
                seen[label][part_of_label(str(_text(cell)), *how)] += 1
    return {label: counts.most_common(1)[0][0] for label, counts in seen.items()}
