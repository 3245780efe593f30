"""What a scoring run leaves while it works: the columns of predictions and ledger rows, the names of its files.

A module of its own, beside nothing heavy: every task and every predictor reads it before it can begin.
"""

import pyarrow as pa

from retailray.models.predicting import EMBEDDING_FIELD, FEATURES_FIELD, PREDICTION_SCHEMA
from retailray.models.probabilities import CLASSES_FIELD, PROBABILITIES_FIELD

RESPELLED = b"respelled"  # in the metadata of ledger rows whose addresses were written in another way
LEDGER_SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("identity", pa.string()),  # of the listing before it was read; null where the store has none
        ("sha256", pa.string()),  # of its bytes; null where they could not be read
        *PREDICTION_SCHEMA,
        EMBEDDING_FIELD,
        CLASSES_FIELD,
        PROBABILITIES_FIELD,
        FEATURES_FIELD,  # with score.embeddings alone
        # these are null where it failed, and where it equals another image by its sha256
        ("error_code", pa.string()),  # '' where it did not fail
        ("message", pa.string()),
        ("run_id", pa.string()),  # of the run that looked at it
        ("scored_at", pa.string()),  # when it was inferred, or failed
        ("environment", pa.string()),  # retailray.provenance.inference_environment where that was
        ("device", pa.string()),  # cpu or cuda
    ]
)
SCORED, TODO = "scored", "todo"  # folders of a run at work: committed parts, and the images that it is to score
