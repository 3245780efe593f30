"""Batch scoring: a whole catalog through a fixed pool of predictors, published when every row is accounted for."""

from retailray.scoring.predicting import predict_dataset
from retailray.scoring.score import score

__all__ = ["predict_dataset", "score"]
