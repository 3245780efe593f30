"""``check``: read a whole catalog in parallel and say what is in it and what is wrong with it."""

import contextlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import pandas as pd
import pyarrow as pa

from retailray import events, storage
from retailray.config import CheckConfig
from retailray.data.access import access_of
from retailray.data.arrow_tables import gathered, parquet_bytes
from retailray.data.catalog import Catalog, concat_rows, count_labels, source_facts, visible_images
from retailray.data.class_folders import unread_suffixes
from retailray.data.columns import with_split
from retailray.data.decoding import CHUNK_ROWS, CODE, MESSAGE, URI, blocks_of, error_rows, transport_table
from retailray.data.images import limits_of
from retailray.data.listing import files_below
from retailray.data.row_ids import ROW_ID, in_order_of
from retailray.data.splits import read_splits
from retailray.errors import GateFailed, StorageError
from retailray.execution import plan_reading, start_executor
from retailray.quality.findings import ADVICE, Result, find_problems
from retailray.quality.label_errors import features_model, find_label_errors
from retailray.quality.report import write_check_report
from retailray.quality.scan import FACTS, scan_rows
from retailray.reports.run_index import publish
from retailray.runs import RunDirectory


def check(config: CheckConfig) -> dict[str, object]:
    """Check every row and image; write ``check.json``, ``report.html``, ``images.parquet`` and ``errors/``.

    Returns:
        What ``check.json`` holds.

    Raises:
        GateFailed: a finding that ``check.fail_on`` names was made; the report is written.
        RetailrayError: the catalog or the store cannot be read.
    """
    watch = events.Stopwatch()
    # without a word about labels, a catalog that has none is fine: it is there to be scored
    splits = read_splits(config.catalog, config.split, needs_label="label" in config.catalog.non_default_fields())
    run = RunDirectory(config)
    num_rows = sum(map(len, splits.values()))
    events.emit("start", command="check", run=run.address, rows=num_rows)
    _warn_without_validation(config, splits)
    model_uri = features_model(config, run) if config.check.label_errors else None
    table = pa.concat_tables([transport_table(part) for part in splits.values()])
    scanned = _scan(config, table, run)
    orphans, not_listed = find_orphans(table.column(URI).to_pylist())
    scan = _frame(splits, scanned)
    labels = count_labels(scan.label.to_numpy())
    unread = unread_suffixes(config.catalog)
    several = max((part.source.counts.several_labels for part in splits.values() if part.source), default=0)
    results = find_problems(
        scan,
        labels,
        orphans=orphans,
        unread=unread,
        class_folders=_is_class_folders(splits),
        section=config.check,
        several_labels=several,
    )
    run.write("images.parquet", parquet_bytes(pa.Table.from_pandas(scan, preserve_index=False)))
    run.write("errors/part-0.parquet", parquet_bytes(error_rows(scanned)))
    ranked = None
    if model_uri:
        ranked = find_label_errors(config, concat_rows(list(splits.values())), scan, model_uri, run)
        results.append(_label_errors(ranked, scan))
    report = _summarize(scan, results, labels, orphans) | {"unread_files": unread, "not_listed": not_listed}
    report |= source_facts(splits.values())
    _write_settings(run, splits)
    run.write_json("check.json", report)
    write_check_report(run, config, scan, report, results, ranked)
    _publish(run, config, report, results, watch)
    _gate(results, config.check.fail_on, run)
    return report


def _warn_without_validation(config: CheckConfig, splits: dict[str, Catalog]) -> None:
    if "validation" not in splits and config.split.validation:
        note = "no product falls into the validation split, and training needs one: raise split.validation"
        events.emit("warning", rows={name: len(part) for name, part in splits.items()}, note=note)


def _label_errors(ranked: pd.DataFrame, scan: pd.DataFrame) -> Result:
    """The finding; its examples are numbers of rows of the scan."""
    number = dict(zip(scan.row_id.tolist(), scan.index.tolist(), strict=True))
    suspicious = ranked[ranked.suspicious]
    examples = [[number[row]] for row in suspicious.row_id.head(8).tolist()]
    return Result("label_errors", len(suspicious), ADVICE["label_errors"], examples)


def _publish(
    run: RunDirectory,
    config: CheckConfig,
    report: dict[str, Any],
    results: Sequence[Result],
    watch: events.Stopwatch,
) -> None:
    num_rows, num_ok = report["num_rows"], report["num_images_ok"]
    found = {result.name: result.count for result in results if result.count}
    told = {"catalog": config.catalog.uri, "num_rows": num_rows, "num_images_ok": num_ok}
    told |= {"source": report["source"]} if "source" in report else {}
    told |= {"num_findings": sum(found.values()), "findings": found, "seconds": watch.seconds}
    publish(run, {"command": "check", **told})
    watch.summary(
        "check",
        num_images=num_rows,
        rows=num_rows,
        ok=num_ok,
        failed=num_rows - num_ok,
        errors_by_code=report["errors_by_code"],
        findings=found,
        report=run.path("report.html"),
    )


def _write_settings(run: RunDirectory, splits: dict[str, Catalog]) -> None:
    """Write ``catalog.yaml``, for ``--config``, where the catalog was recognised or cells were divided."""
    source = next((part.source for part in splits.values() if part.source), None)
    if source and not source.is_plain:
        run.write("catalog.yaml", source.settings_file())


def _scan(config: CheckConfig, table: pa.Table, run: RunDirectory) -> pa.Table:
    """What is found at every row's address, in the order of the rows."""
    with start_executor(config.cluster, num_images=table.num_rows) as executor:
        run.machines = executor.machines
        plan = plan_reading(executor.capacity)
        executor.wait_until_free(plan, deadline_s=config.cluster.resource_timeout_s)
        with executor.reporter("images", table.num_rows) as reporter:
            arguments = {"limits": limits_of(config.catalog), "access": access_of(config.catalog), "reporter": reporter}
            blocks = executor.stream(blocks_of(table, int(4 * executor.capacity.num_cpus)), plan)
            found = gathered(blocks.map(scan_rows, arguments, rows=CHUNK_ROWS).tables())
    return in_order_of(table.column(ROW_ID), found)


def _gate(results: Sequence[Result], fail_on: Sequence[str], run: RunDirectory) -> None:
    found = [f"{result.name} ({result.count})" for result in results if result.count and result.name in fail_on]
    if found:
        raise GateFailed(f"check.fail_on: found {', '.join(found)}; see {run.path('report.html')}")


def _frame(splits: dict[str, Catalog], scanned: pa.Table) -> pd.DataFrame:
    """One row per catalog row: what it means, and what was found at its address, joined by row id."""
    rows = pa.concat_tables([with_split(part.rows, name) for name, part in splits.items()])
    scanned = in_order_of(rows.column("row_id"), scanned)
    for name, column in (("error_code", CODE), ("message", MESSAGE), *((field.name, field.name) for field in FACTS)):
        rows = rows.append_column(name, scanned.column(column))
    frame = rows.to_pandas()
    for field in FACTS:
        kind = {"uint64": "UInt64", "int64": "Int64", "int32": "Int32"}.get(str(field.type), "object")
        frame[field.name] = pd.array(rows.column(field.name).to_pylist(), dtype=kind)
    return frame


def _is_class_folders(splits: dict[str, Catalog]) -> bool:
    """Whether rows come from class folders and not from a table."""
    return all(part.rows.column("file")[0].as_py().endswith("/") for part in splits.values())


def find_orphans(uris: Sequence[str]) -> tuple[list[str], list[str]]:
    """Images below the folder that all rows of one store have in common, which no row names; and those of these folders
    that hold too much else to be listed. Not for http(s)."""
    named = {uri for uri in uris if uri}
    by_store: dict[str, list[str]] = defaultdict(list)
    for uri in named:
        scheme, _, path = uri.rpartition("://")
        if scheme not in ("http", "https"):
            by_store[f"{scheme}://{path.split('/')[0]}" if scheme else ""].append(uri)
    orphans: list[str] = []
    not_listed: list[str] = []
    for members in by_store.values():
        folders = [storage.parent(uri).split("/") for uri in members]
        first, last = min(folders), max(folders)
        depth = next(
            (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b),
            min(len(first), len(last)),
        )
        folder = "/".join(first[:depth])
        if not folder.strip("/"):  # never the whole disk
            continue
        with contextlib.suppress(StorageError):  # what cannot be listed is an error row already
            files = files_below(folder, len(named))
            if files is None:
                not_listed.append(folder)
            else:
                orphans += [name for name in visible_images(folder, files) if name not in named]
    forms = {form for uri in named for form in storage.other_unicode_forms(uri)}  # which reading finds as well
    return sorted(name for name in orphans if name not in forms), not_listed


def _summarize(
    scan: pd.DataFrame, results: Sequence[Result], labels: dict[str, int], orphans: Sequence[str]
) -> dict[str, Any]:
    count = {result.name: result.count for result in results}
    ok = scan[scan.error_code == ""]

    def spread(name: str) -> dict[str, float]:
        values = ok[name].astype(float)
        return {} if ok.empty else {"min": values.min(), "median": values.median(), "max": values.max()}

    return {
        "num_rows": len(scan),
        "num_images_ok": len(ok),
        "num_missing": count["missing"],
        "num_orphans": count["orphans"],
        "num_exact_duplicates": count["exact_duplicates"],
        "num_near_duplicates": count["near_duplicates"],
        "num_leaks": count["leakage"],
        "num_labels": len(labels),
        "labels": labels,
        "splits": scan.split.value_counts().to_dict(),
        "errors_by_code": dict(Counter(scan.error_code[scan.error_code != ""])),
        "formats": ok.format.value_counts().to_dict(),
        "modes": ok["mode"].value_counts().to_dict(),
        "width": spread("width"),
        "height": spread("height"),
        "num_bytes": int(ok.num_bytes.sum()),
        "findings": [
            {
                "name": result.name,
                "count": result.count,
                "advice": result.advice,
                "examples": [_example(example, scan) for example in result.examples],
            }
            for result in results
            if result.count
        ],
        "orphans": list(orphans[:100]),
    }


def _example(example: object, scan: pd.DataFrame) -> object:
    """Groups of row numbers become groups of ids; texts stay."""
    return example if isinstance(example, str) else scan.id.iloc[example].tolist()
