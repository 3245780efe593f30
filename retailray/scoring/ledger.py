"""What is known of every image and what is left to do: joins in DuckDB, on the driver's disk and in bounded memory.

A *ledger row* tells what became of one image address: what identified its content, and its prediction or its error.
Runs commit ledger rows part by part while they score (``scored/``) and leave all of theirs when they publish
(``ledger/``), so that a first run, a resumed one and an incremental one are one question: which images of the catalog
have no ledger row of this model and of the content that is there now?
"""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from retailray.data.corrections import SCHEMA as CORRECTIONS_SCHEMA
from retailray.errors import ERROR_CODES
from retailray.models.meta import EMBEDDING, Thresholds
from retailray.scoring.formats import LEDGER_SCHEMA, RESPELLED
from retailray.scoring.staging import StagedCatalog

RESUMED, PUBLISHED = 0, 1  # origins of what is known: this run before it was interrupted, the run that LATEST names
_COLUMNS = ", ".join(LEDGER_SCHEMA.names)
_RESULT = ", ".join(name for name in LEDGER_SCHEMA.names if name not in ("uri", "identity", "sha256"))
_RETRIED = ", ".join(f"'{code}'" for code, (stage, _) in ERROR_CODES.items() if stage == "fetch")
_FINAL_CODES = ", ".join(f"'{code}'" for code, (stage, _) in ERROR_CODES.items() if stage != "fetch")
# a result that is final for its content: a prediction, or an error that is not fetched again
_FINAL = f"(pred_label is not null or error_code not in ('', {_RETRIED}))"


@dataclasses.dataclass(frozen=True)
class PlanCounts:
    """Of a run, in catalog rows; ``gone`` in images of the published run that no row names any more."""

    rows: int
    to_score: int
    resumed: int
    reused: int
    unchanged: int
    gone: int
    refused: int
    images: int
    num_bytes: int | None


@dataclasses.dataclass(frozen=True)
class Reuse:
    """Which earlier results are reused.

    Attributes:
        rescore: ``errors`` or ``all`` are scored again.
        environment: errors are reused only if they are of this one
            (:func:`retailray.provenance.inference_environment`); None: of any.
        device: kind of device that errors of the model must be of; None: any.
        embeddings: predictions without an embedding are made again.
    """

    rescore: str | None = None
    environment: str | None = None
    device: str | None = None
    embeddings: bool = False


EVERYTHING = Reuse()


_LABEL_OF_PRODUCT = """arg_min(label, row_id) filter (where label <> '') over (partition by "group")"""


_PRODUCT_LABELS = pa.schema([("product", pa.string()), ("told", pa.string())])


class Ledger:
    """The tables of one run; see :meth:`plan` and :meth:`resolve_results`."""

    def __init__(self, folder: Path, catalog: StagedCatalog, *, memory_gb: float) -> None:
        self.not_listed: list[dict[str, Any]] = []  # folders whose listing was given up, with the numbers
        options: dict[str, Any] = {
            "memory_limit": f"{memory_gb}GB",
            "temp_directory": str(folder / "spill"),
        }
        self._db = duckdb.connect(str(folder / "ledger.duckdb"), config=options)
        self._db.execute("set preserve_insertion_order = false")  # nothing here relies on it, and it costs memory
        # a label that stands on one row of a product holds for its rows that have none
        known = catalog.labels_of_products
        told = pa.table({"product": list(known or {}), "told": list((known or {}).values())}, _PRODUCT_LABELS)
        self._db.register("product_labels", told)
        labels = f"coalesce(nullif(label, ''), {_LABEL_OF_PRODUCT}, told, '')" if known is not None else "label"
        self._db.execute(
            f"""
            create table rows as
            select row_id, id, image, uri, "group" as product, {labels} as label, code, case code
                when '' then '' when 'empty_path' then 'the image column is empty'
                when 'duplicate_id' then 'an earlier row has this id' else denied_reason end ||
                case when code = '' then '' else ' (' || file || ' line ' || line || ')' end as message
            from (
                select *, case when fault_code <> '' then fault_code when uri = '' then 'empty_path'
                    when denied_reason <> '' then 'not_allowed'
                    when row_number() over (partition by id order by row_id) > 1 then 'duplicate_id' else '' end as code
                from read_parquet(?) left join product_labels on product = "group")
            """,
            [str(catalog.rows)],
        )
        self._db.execute(
            "create table images as select uri, min(row_id) as first_row from rows where code = '' group by 1"
        )
        self._db.execute("create table listed (uri varchar, identity varchar, size bigint)")
        self._db.register("ledger_columns", LEDGER_SCHEMA.empty_table())
        self._db.execute("create table known as select 0 as origin, true as usable, * from ledger_columns")
        self._db.execute("create table fresh as from ledger_columns")
        self._db.register("correction_columns", CORRECTIONS_SCHEMA.empty_table())
        self._db.execute("create table corrections as from correction_columns")
        # products: where the catalog has them; best: the row_id of the best image. absent: images that no store has
        columns = "product varchar, label varchar, score float, decision varchar, best bigint"
        self._db.execute(f"create table products ({columns}); create table absent (uri varchar)")

    def one(self, query: str, *values: object) -> Any:
        """The one value that a query gives."""
        [(value,)] = self._db.execute(query, list(values)).fetchall()
        return value

    def query(self, query: str, **values: object) -> list[tuple[Any, ...]]:
        """The rows of a query whose parameters are named."""
        return self._db.execute(query, values).fetchall()

    def table(self, query: str) -> pa.Table:
        return self._db.sql(query).to_arrow_table()

    def counts(self, query: str) -> dict[Any, int]:
        """The first column by the second."""
        found = self.table(query)
        return dict(zip(found.column(0).to_pylist(), found.column(1).to_pylist(), strict=True))

    def batches(self, query: str, batch_rows: int) -> Iterator[pa.Table]:
        """The rows of a query, never all of them in memory."""
        # a cursor of its own: a connection takes no other query while rows are being read from it
        with self._db.cursor() as cursor:
            for batch in cursor.sql(query).to_arrow_reader(batch_rows):
                if batch.num_rows:
                    yield pa.Table.from_batches([batch])

    def add_known(self, pieces: Iterable[pa.Table], *, origin: int, usable: bool, reuse: Reuse = EVERYTHING) -> None:
        """Ledger rows of earlier runs; ``usable``: of the same model and transform; ``reuse``: which of those hold."""
        error = f"error_code in ({_FINAL_CODES})"
        anew = ["true"] if reuse.rescore == "all" else [error] if reuse.rescore == "errors" else []
        if reuse.environment:
            anew.append(f"{error} and environment is distinct from '{reuse.environment}'")
        if reuse.device:
            anew.append(f"error_code = 'predict_failed' and device is distinct from '{reuse.device}'")
        if reuse.embeddings:
            anew.append("pred_label is not null and features is null")
        kept = " and ".join([str(usable), *(f"not ({condition})" for condition in anew)])
        respelled = False
        for piece in pieces:
            respelled |= RESPELLED in (piece.schema.metadata or {})
            # runs of older versions lack columns
            piece = pa.concat_tables([LEDGER_SCHEMA.empty_table(), piece], promote_options="default")
            self.insert("known", piece, f"select {origin}, {kept}, {_COLUMNS} from piece")
        if respelled:  # two spellings of one image were two images then
            newest = "partition by origin, uri order by identity is null, scored_at desc"
            self._db.execute(f"create or replace table known as from known qualify row_number() over ({newest}) = 1")

    def add_fresh(self, pieces: Iterable[pa.Table]) -> None:
        """Ledger rows that this attempt has committed."""
        for piece in pieces:
            self.insert("fresh", piece, f"select {_COLUMNS} from piece")

    def add_corrections(self, said: pa.Table) -> None:
        """What :func:`retailray.data.corrections.read_corrections` found."""
        self.insert("corrections", said, f"select {', '.join(CORRECTIONS_SCHEMA.names)} from piece")

    def insert(self, target: str, piece: pa.Table, query: str) -> None:
        """Add to the table ``target`` what a query gives of ``piece``."""
        self._db.register("piece", piece)
        self._db.execute(f"insert into {target} {query}")
        self._db.unregister("piece")

    def plan(self) -> PlanCounts:
        """Divide the images into ``done`` and ``todo``."""
        usable = "select * from known where usable"  # a copy takes no result of another model
        self._db.execute(
            f"""
            create table done as
            select k.* from ({self._resolved(usable, f"({usable})")}) k
            semi join images using (uri) left join listed l using (uri)
            where {_FINAL} and (l.identity = k.identity or (
                    l.identity is null and k.identity is null and k.origin = {RESUMED}))
              or k.error_code = 'not_found' and uri in (from absent)
            qualify row_number() over (partition by uri order by k.origin) = 1
            """
        )
        self._db.execute(
            f"""
            create table todo as
            select uri, first_row, l.identity, l.size, k.sha256 as known_sha256 from images
            left join listed l using (uri)
            left join (select uri, sha256 from known where usable and origin = {PUBLISHED} and {_FINAL}) k using (uri)
            anti join done using (uri)
            """
        )
        one, rows = self.one, "select count(*) from rows"
        with_origin = f"{rows} join done using (uri) where code = '' and origin = ?"
        return PlanCounts(
            rows=one(rows),
            to_score=one(f"{rows} semi join todo using (uri) where code = ''"),
            resumed=one(with_origin, RESUMED),
            reused=one(with_origin, PUBLISHED),
            unchanged=one(
                f"{rows} join listed l using (uri) join known k using (uri) "
                f"where code = '' and l.identity = k.identity and k.origin = {PUBLISHED}"
            ),
            gone=one(f"select count(*) from known anti join images using (uri) where origin = {PUBLISHED}"),
            refused=one(f"{rows} where code <> ''"),
            images=one("select count(*) from todo"),
            num_bytes=one("select sum(size) from todo"),
        )

    def forget_published(self) -> None:
        """After :meth:`plan`: leave the previous run, of whose results none is usable, out of all comparisons."""
        self._db.execute(f"delete from known where origin = {PUBLISHED}")

    def todo(self, batch_rows: int) -> Iterator[pa.Table]:
        """``uri, identity, size, known_sha256`` of the images to score, in the catalog's order."""
        return self.batches("select uri, identity, size, known_sha256 from todo order by first_row", batch_rows)

    def resolve_results(self, thresholds: Thresholds) -> None:
        """Join all that is known now with the catalog: ``image_results`` an image, ``row_results`` a row, each once.

        An image that equals another takes its result; if that other never came, it fails and is tried next time.
        """
        # long because it is one statement of SQL
        everything = f"select 0 as origin, {_COLUMNS} from fresh union all select origin, {_COLUMNS} from done"
        sources = (
            f"select 0 as origin, {_COLUMNS} from fresh union all select origin, {_COLUMNS} from known where usable"
        )
        self._db.execute(f"create table image_results as {self._resolved(everything, f'({sources})')}")
        self._db.execute(
            """
            update image_results set error_code = 'fetch_failed',
                message = 'the image that this one equals was not scored; the next run tries again'
            where pred_label is null and error_code = ''
            """
        )
        self._db.execute(
            f"""
            create table row_results as
            select r.row_id, r.id, r.image, r.uri, r.product, r.label,
                case when r.code = '' then o.error_code else r.code end as code,
                case when r.code = '' then o.message else r.message end as reason,
                coalesce(c.label, o.pred_label) as pred_label,
                case when c.label is null then o.pred_score else 1.0::float end as pred_score,
                o.topk_labels, o.topk_scores, o.pred_label as model_label, o.pred_score as model_score,
                o.{EMBEDDING}, o.classes, o.probabilities, o.features, o.sha256, o.run_id, o.scored_at,
                case when c.label is not null then 'accept'
                     when o.pred_score < $abstain then 'abstain'
                     when o.pred_score >= coalesce(t.accept, $accept) then 'accept'
                     when o.pred_score is not null then 'review' end as decision, o.origin = {PUBLISHED} as reused,
                c.reviewer as corrected_by, c.reviewed_at as corrected_at, c.file as corrected_in,
                s.item_id is not null and c.item_id is null and o.pred_label is not null as outdated,
                null::varchar as label_path, null::integer as depth, false as is_ancestor
            from rows r left join image_results o on r.uri = o.uri and r.code = ''
            left join (select unnest($labels::varchar[]) as label, unnest($values::double[]) as accept) t
                on o.pred_label = t.label
            left join corrections s on s.item_id = r.id
            -- what people said of another picture holds no longer
            left join corrections c on c.item_id = r.id and o.pred_label is not null and c.sha256 in ('', o.sha256)
            """,
            {
                "accept": thresholds.accept,
                "abstain": thresholds.abstain,
                "labels": list(thresholds.per_class),
                "values": list(thresholds.per_class.values()),
            },
        )

    def add_paths(self, paths: pa.Table) -> None:
        """The path of each label (``label, path, depth``), for :meth:`accept_ancestors`."""
        self._db.register("piece", paths)
        self._db.execute("create table paths as from piece")
        self._db.execute(
            "create table ancestors (row_id bigint, label varchar, score float, path varchar, depth integer)"
        )
        self._db.unregister("piece")

    def accept_ancestors(self) -> None:
        """Accept the rows of ``ancestors`` as these, and give every row a path; labels that people gave and no path
        names are roots. A new table, since updates in place are all held in memory."""
        self._db.execute(
            """
            create table resolved as
            select r.* exclude (label_path, depth, is_ancestor) replace (
                    coalesce(a.label, r.pred_label) as pred_label, coalesce(a.score, r.pred_score) as pred_score,
                    case when a.row_id is null then r.decision else 'accept' end as decision),
                coalesce(a.path, p.path, r.pred_label) as label_path,
                coalesce(a.depth, p.depth, case when r.pred_label is not null then 1 end)::integer as depth,
                a.row_id is not null as is_ancestor
            from row_results r left join ancestors a using (row_id) left join paths p on p.label = r.pred_label
            """
        )
        self._db.execute("drop table row_results; alter table resolved rename to row_results")

    @staticmethod
    def _resolved(rows: str, sources: str) -> str:
        """Return SQL for ``rows``; a row with a SHA-256 but no result takes that of the same SHA-256 in ``sources``."""
        taken = ", ".join(
            f"case when k.pred_label is null and k.error_code = '' and s.sha256 is not null then s.{name} "
            f"else k.{name} end as {name}"
            for name in ("origin", *_RESULT.split(", "))
        )
        return f"""
            select k.uri, k.identity, k.sha256, {taken} from ({rows}) k left join (
                select * from {sources} where sha256 is not null and {_FINAL}
                qualify row_number() over (partition by sha256 order by origin, uri) = 1
            ) s on k.sha256 = s.sha256 and k.pred_label is null and k.error_code = ''
        """

    def close(self) -> None:
        self._db.close()
