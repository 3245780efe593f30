"""``index.html`` below an ``out``: its runs with their main figures and links to their reports, and their trend."""

import concurrent.futures
import json
from collections.abc import Sequence
from typing import Any

import yaml

from retailray import events, storage
from retailray.errors import StorageError
from retailray.reports.page import render
from retailray.runs import RunDirectory, run_names

SHOWN = 60  # runs, the newest: one request each, however many years of nights there are
READERS = 16  # requests at once
# what a table of a command's runs shows, and where it stands in run.json; those that are shares are shown in per cent
FIGURES: dict[str, dict[str, str]] = {
    "check": {"rows": "num_rows", "readable": "num_images_ok", "findings": "num_findings"},
    "train": {
        "validation top-1": "validation_top1",
        "validation error": "validation_mae",
        "labels": "num_labels",
        "model": "model_name",
    },
    "tune": {"top-1 of the best trial": "verified_top1", "trials": "trials", "best trial": "best_trial"},
    "evaluate": {
        "top-1": "top1",
        "macro F1": "macro_f1",
        "mean absolute error": "mae",
        "images": "num_rows",
        "model": "model_version",
    },
    "compare": {
        "difference": "difference",
        "difference of errors": "mae_difference",
        "labels changed": "changed",
        "rows": "rows",
    },
    "promote": {"version": "version", "passed": "passed"},
    "score": {
        "rows": "counts.rows",
        "failed": "counts.failed",
        "reused": "counts.reused",
        "accepted": "decisions.accept",
        "labels changed": "labels_changed",
        "model": "model_version",
    },
    "export": {"model": "model_version", "largest difference": "largest_difference"},
    "study": {"top-1 of the best": "top1", "winner": "winner"},
    "forecast": {"products": "products", "method": "method", "coverage": "coverage"},
    "shoppers": {"shoppers": "shoppers", "segments": "segments", "in another segment": "moved"},
    "assortment": {"products": "products", "shown": "shown", "segments": "segments"},
    "recommend": {"shoppers": "shoppers", "new recommendations": "scored", "method": "method"},
}
TREND = {
    "check": ["readable", "findings"],
    "train": ["validation top-1", "validation error"],
    "tune": ["top-1 of the best trial"],
    "evaluate": ["top-1", "macro F1", "mean absolute error"],
    "score": ["rows", "failed", "accepted"],
    "study": ["top-1 of the best"],
}
SHARES = frozenset({"validation_top1", "verified_top1", "top1", "macro_f1", "difference"})


def publish(run: RunDirectory, summary: dict[str, object], **options: Any) -> None:
    """:meth:`RunDirectory.publish`, and the page of all runs below the same ``out``."""
    run.publish(summary, **options)
    write_run_index(run)


def write_run_index(run: RunDirectory) -> None:
    """Write ``<out>/index.html``; a warning where that fails, since nothing is lost with it."""
    try:
        names = run_names(run.out)
        with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
            runs = list(pool.map(lambda name: _read(run.out, name), names[:SHOWN]))
        page = render(
            "index.html.j2",
            title="Runs",
            subtitle=run.out,
            run_id="",
            tables=_tables([one for one in runs if one]),
            num_older=max(0, len(names) - SHOWN),
        )
        storage.write_bytes(storage.join(run.out, "index.html"), page.encode())
    except StorageError as error:
        events.emit("warning", note=f"the page of all runs could not be written: {error}")


def _read(out: str, name: str) -> dict[str, Any] | None:
    """What a run says of itself; of one that is not complete, its command alone; None where it is no run of ours."""
    try:
        record = json.loads(storage.read_bytes(storage.join(out, name, "run.json")))
        ours = isinstance(record, dict) and {"command", "run_id"} <= record.keys()
        return record | {"name": name} if ours else None
    except (StorageError, ValueError):
        pass
    try:
        settings = yaml.safe_load(storage.read_bytes(storage.join(out, name, "config.yaml")))
    except (StorageError, yaml.YAMLError):
        return None
    return {"name": name, "run_id": name.removeprefix("run_id="), "command": ""} if settings else None


def _tables(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A table a command: heads, rows with cells, and the trend of its figures, oldest first, where there is one."""
    tables = []
    for command in dict.fromkeys(run["command"] for run in runs):
        mine = [run for run in runs if run["command"] == command]
        figures = FIGURES.get(command, {})
        # numbers have no accuracy, and labels no error
        figures = {name: path for name, path in figures.items() if any(_value(run, path) is not None for run in mine)}
        tables.append(
            {
                "command": command or "not complete",
                "heads": list(figures),
                "rows": [_row(run, figures) for run in mine],
                "trend": _trend(command, figures, mine[::-1]),
            }
        )
    return tables


def _row(run: dict[str, Any], figures: dict[str, str]) -> dict[str, Any]:
    seconds = run.get("seconds")
    return {
        "name": run["name"],
        "run_id": run["run_id"],
        "started": str(run.get("started_at", ""))[:16].replace("T", " "),
        "seconds": f"{seconds:.1f}" if isinstance(seconds, float) else "",
        "complete": bool(run["command"]),
        "cells": [_text(_value(run, path), path) for path in figures.values()],
    }


def _value(run: dict[str, Any], path: str) -> Any:
    value: Any = run
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    # a decision that no row has is not named; of numbers there are none
    decided = path.startswith("decisions.") and run["command"] and "values" not in run
    return 0 if value is None and decided else value


def _text(value: object, path: str) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{100 * value:.1f} %" if path in SHARES else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _trend(command: str, figures: dict[str, str], runs: Sequence[dict[str, Any]]) -> object:
    """A chart with a panel for every figure; None for a single run."""
    panels: dict[str, list[tuple[str, float]]] = {}
    for name in filter(figures.__contains__, TREND.get(command, [])):
        path = figures[name]
        scale = 100 if path in SHARES else 1
        values = [(run["run_id"], _value(run, path)) for run in runs]
        known = [(run_id, scale * value) for run_id, value in values if isinstance(value, int | float)]
        if len(known) > 1:
            panels[f"{name} [%]" if scale == 100 else name] = known
    if not panels:
        return None
    from retailray.reports import plots  # matplotlib takes a second, which a first run does not need

    return plots.trends(panels)
