"""The thresholds of ``score.target_precision``, fitted on validation rows that chose nothing else."""

import numpy as np

from retailray import events
from retailray.config import ScoreSection
from retailray.errors import ModelError
from retailray.models.meta import EMBEDDING, load_validation
from retailray.models.thresholds import Promise, Validation, fit_promise


def read_validation(model_uri: str, section: ScoreSection) -> Validation | None:
    """What came of the bundle's validation rows, if it has them. Raises ModelError where they are asked for."""
    rows, target = load_validation(model_uri), section.target_precision
    if rows is not None and rows.num_rows and "role" in rows.column_names:
        names = {
            "labels": "label",
            "predicted": "pred_label",
            "scores": "pred_score",
            "groups": "group",
            "roles": "role",
        }
        columns = {field: rows.column(name).to_numpy() for field, name in names.items()}
        return Validation(**columns, embeddings=np.stack(rows.column(EMBEDDING).to_numpy()))
    if target:
        raise ModelError(
            f"score.target_precision = {target}: {model_uri} has no validation rows that a promise could rest on; "
            "train it again with this version, give `retailray bundle` a catalog.uri if it was trained elsewhere, or "
            "leave score.target_precision out"
        )
    return None


def make_promise(section: ScoreSection, validation: Validation | None) -> Promise | None:
    """Fit the thresholds of ``score.target_precision``; None where the bundle's own thresholds hold."""
    target = section.target_precision
    if not target or not validation:
        return None
    promise = fit_promise(validation, target_precision=target)
    found = promise.summary()
    events.emit("promise", **found)
    if not found["promised"]:
        events.emit(
            "warning",
            note=f"score.target_precision = {target}: no class reaches it, so nothing is accepted; a class needs "
            f"at least {promise.needed} products, all predicted right, among the validation rows "
            "held back for thresholds",
        )
    return promise
