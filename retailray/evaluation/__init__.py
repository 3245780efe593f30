"""Judging: catalogs (``check``) and models (``evaluate``)."""

from retailray.evaluation.check import check
from retailray.evaluation.evaluate import evaluate
from retailray.evaluation.metrics import classification_metrics

__all__ = ["check", "classification_metrics", "evaluate"]
