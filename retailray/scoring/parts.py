"""Prediction rows to Parquet parts, written whole by the tasks that hold them, and a tally for the driver."""

import hashlib
import json
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retailray import storage
from retailray.data.pipeline import CODE, ID, IMAGE, LABEL, OURS, ROW, URI, error_rows
from retailray.data.tables import parquet_bytes
from retailray.scoring.predicting import PREDICTION_SCHEMA

REVIEW_ROWS = 1000  # the queue a team can look at in a morning; the rest is in predictions/ by its decision
SCORE_BINS = 20
ERROR_EXAMPLES = 3  # a code and part, for the report


def write_part(table: pa.Table, *, address: str, input_columns: list[str], stamp: dict[str, Any]) -> pa.Table:
    """Write one part of predictions and one of errors; return a one-row table with its tally as JSON.

    The name of a part is made of the rows in it: a task that is retried writes the same file again.
    """
    failed = pc.not_equal(table.column(CODE), "")
    predicted = table.filter(pc.invert(failed))
    errors = error_rows(table)
    rows = json.dumps(sorted(zip(table.column(ROW).to_pylist(), table.column(ID).to_pylist(), strict=True)))
    name = f"part-{hashlib.sha256(rows.encode()).hexdigest()[:16]}.parquet"
    if predicted.num_rows:
        output = predicted.select([*input_columns, *PREDICTION_SCHEMA.names])
        _write(storage.join(address, "predictions", name), stamped(output, stamp))
    if errors.num_rows:
        _write(storage.join(address, "errors", name), errors)
    return pa.table({"tally": [json.dumps(_tally(predicted, errors))]})


def write_empty(address: str, kind: str, schema: pa.Schema) -> None:
    """A part without rows, so that readers find a table with columns where there is nothing to tell."""
    _write(storage.join(address, kind, "part-empty.parquet"), schema.empty_table())


def stamped(table: pa.Table, stamp: dict[str, Any]) -> pa.Table:
    """Append columns that have one value for all rows."""
    for name, value in stamp.items():
        table = table.append_column(name, pa.array([value] * table.num_rows, pa.scalar(value).type))
    return table


def _write(address: str, table: pa.Table) -> None:
    storage.write_bytes(address, parquet_bytes(table))


def _tally(predicted: pa.Table, errors: pa.Table) -> dict[str, Any]:
    scores = predicted.column("pred_score").to_numpy()
    histogram, _ = np.histogram(scores, bins=SCORE_BINS, range=(0, 1))
    doubtful = predicted.filter(pc.not_equal(predicted.column("decision"), "accept"))
    doubtful = doubtful.sort_by("pred_score").slice(0, REVIEW_ROWS)
    columns = [ID, IMAGE, URI, *PREDICTION_SCHEMA.names]
    review = doubtful.select(columns).rename_columns([name.removeprefix(OURS) for name in columns]).to_pylist()
    examples: dict[str, list[dict[str, str]]] = {}
    for row in errors.to_pylist():
        if len(examples.setdefault(row["error_code"], [])) < ERROR_EXAMPLES:
            examples[row["error_code"]].append(row)
    labelled = predicted.filter(pc.not_equal(predicted.column(LABEL), ""))
    agreeing = pc.sum(pc.equal(labelled.column(LABEL), labelled.column("pred_label"))).as_py() or 0
    return {
        "labelled": labelled.num_rows,
        "agreeing": agreeing,
        "scored": predicted.num_rows,
        "failed": errors.num_rows,
        "labels": Counter(predicted.column("pred_label").to_pylist()),
        "decisions": Counter(predicted.column("decision").to_pylist()),
        "codes": Counter(errors.column("error_code").to_pylist()),
        "histogram": histogram.tolist(),
        "review": review,
        "examples": examples,
    }


class Totals:
    """The tallies of all parts, added up; memory is bounded by labels, codes and :data:`REVIEW_ROWS`."""

    def __init__(self) -> None:
        self.scored = self.failed = self.labelled = self.agreeing = 0
        self.labels: Counter[str] = Counter()
        self.decisions: Counter[str] = Counter()
        self.codes: Counter[str] = Counter()
        self.histogram = np.zeros(SCORE_BINS, np.int64)
        self.review: list[dict[str, Any]] = []
        self.examples: dict[str, list[dict[str, str]]] = {}

    @property
    def label_agreement(self) -> float | None:
        """Share of the rows with a label that the model agrees with; None where no row has one."""
        return self.agreeing / self.labelled if self.labelled else None

    def add(self, tally: dict[str, Any]) -> None:
        self.scored += tally["scored"]
        self.failed += tally["failed"]
        self.labelled += tally["labelled"]
        self.agreeing += tally["agreeing"]
        self.labels.update(tally["labels"])
        self.decisions.update(tally["decisions"])
        self.codes.update(tally["codes"])
        self.histogram += np.array(tally["histogram"])
        self.review = sorted(self.review + tally["review"], key=lambda row: row["pred_score"])[:REVIEW_ROWS]
        for code, rows in tally["examples"].items():
            self.examples[code] = (self.examples.get(code, []) + rows)[:ERROR_EXAMPLES]
