"""Rows that are not accepted as a class, accepted as an ancestor of it in the taxonomy."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retailray.config import ScoreConfig
from retailray.data.taxonomy import BETWEEN, Taxonomy
from retailray.models.backing_off import Backing, back_off
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
    before = ledger.one("select count(*) from row_results where decision = 'accept'")
    ledger.add_paths(_paths(taxonomy, meta.labels))
    counts: Counter[int] = Counter()
    for table in _found(ledger, backing):
        counts.update(table.column("depth").to_pylist())
        ledger.accept_as(table)
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


def _paths(taxonomy: Taxonomy, labels: list[str]) -> pa.Table:
    paths = [taxonomy.paths.get(label, (label,)) for label in labels]
    columns = {"label": labels, "path": [BETWEEN.join(path) for path in paths], "depth": [len(path) for path in paths]}
    return pa.table(columns)


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
        paths = [backing.levels[at[row]][0].names[node[row]] for row in rows]
        yield pa.table(
            {
                "row_id": pc.take(batch.column("row_id"), pa.array(rows)),
                "label": [path.rsplit(BETWEEN, 1)[-1] for path in paths],
                "score": score[rows].astype(np.float32),
                "path": paths,
                "depth": np.array([backing.levels[at[row]][0].depth for row in rows], np.int32),
            }
        )
