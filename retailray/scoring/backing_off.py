"""Rows that are not accepted as a class, accepted as an ancestor of it in the taxonomy."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retailray.config import ScoreConfig
from retailray.data.taxonomy import BETWEEN, LABEL_PATHS, Taxonomy
from retailray.models.backing_off import Backing, back_off, taxonomy_of_model
from retailray.models.meta import BundleMeta, Thresholds
from retailray.models.probabilities import rows_of
from retailray.models.thresholds import Validation
from retailray.scoring.ledger import Ledger

PATH_COLUMNS = pa.schema([("label_path", pa.string()), ("depth", pa.int32())])
_AT_ONCE = 8192
_ROWS = """
    select row_id, classes, probabilities from row_results
    where decision in ('review', 'abstain') and corrected_in is null and classes is not null
"""


def taxonomy_of_run(config: ScoreConfig, meta: BundleMeta) -> Taxonomy | None:
    """The taxonomy by which rows are decided; None where nobody asked for one.

    Labels that are paths in the catalog of training are asked for by ``score.target_precision`` alone: many catalogs
    have such labels, and few of their readers expect answers that are no classes.
    """
    taxonomy = taxonomy_of_model(config.taxonomy.uri, meta)
    asked = config.score.target_precision or (taxonomy and taxonomy.source != LABEL_PATHS)
    return taxonomy if asked else None


def accept_ancestors(
    ledger: Ledger,
    config: ScoreConfig,
    meta: BundleMeta,
    taxonomy: Taxonomy,
    thresholds: Thresholds,
    validation: Validation | None,
) -> dict[str, object]:
    """Let rows be accepted as the deepest ancestor that is probable enough, and give all rows ``label_path`` and
    ``depth``.

    ``pred_label`` of such a row is the ancestor's name, ``pred_score`` its probability; ``topk_labels`` still has the
    classes.

    Returns:
        How many were accepted as a class and at each depth, and what is promised there.
    """
    target = config.score.target_precision
    backing = back_off(taxonomy, meta.labels, thresholds, validation, target)
    before = ledger.one("select count(*) from row_results where decision = 'accept' and corrected_in is null")
    ledger.add_paths(_paths(taxonomy, meta.labels, backing))
    counts: Counter[int] = Counter()
    for table in _found(ledger, backing):
        counts.update(table.column("depth").to_pylist())
        ledger.insert("ancestors", table, "select row_id, label, score, path, depth from piece")
    ledger.accept_ancestors()
    scored = ledger.one("select count(*) from row_results where code = ''")
    return {
        "accepted_as_class": before,
        "accepted_as_ancestor": sum(counts.values()),
        "by_depth": {str(depth): count for depth, count in sorted(counts.items())},
        "share_before": before / scored if scored else None,
        "share": (before + sum(counts.values())) / scored if scored else None,
        "promises": [
            {"depth": level.depth, **promise.summary()}
            for (level, _), promise in zip(backing.levels, backing.promises, strict=False)
        ],
    }


def _paths(taxonomy: Taxonomy, labels: list[str], backing: Backing) -> pa.Table:
    """Of classes, and of ancestors, which people may name in corrections."""
    paths = {label: taxonomy.paths.get(label, (label,)) for label in labels}
    rows = {label: (BETWEEN.join(path), len(path)) for label, path in paths.items()}
    for level, _ in backing.levels:
        for label, name in zip(level.labels, level.names, strict=True):
            rows.setdefault(label, (name, level.depth))
    columns = {"label": list(rows), "path": [path for path, _ in rows.values()]}
    return pa.table(columns | {"depth": pa.array([depth for _, depth in rows.values()], pa.int32())})


def _found(ledger: Ledger, backing: Backing) -> Iterator[pa.Table]:
    """``row_id, label, score, path, depth`` of rows that an ancestor accepts."""
    if not backing.levels:
        return
    for batch in ledger.batches(_ROWS, _AT_ONCE):
        classes, probabilities = rows_of(batch.column("classes")), rows_of(batch.column("probabilities"))
        at, node, score = backing.accepted(classes[:, 0], classes, probabilities)
        rows = np.flatnonzero(at >= 0)
        if not len(rows):
            continue
        levels = [(backing.levels[at[row]][0], node[row]) for row in rows]
        yield pa.table(
            {
                "row_id": pc.take(batch.column("row_id"), pa.array(rows)),
                "label": [level.labels[number] for level, number in levels],
                "score": score[rows].astype(np.float32),
                "path": [level.names[number] for level, number in levels],
                "depth": np.array([level.depth for level, _ in levels], np.int32),
            }
        )
