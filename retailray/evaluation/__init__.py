"""What is in a catalog, how good a model is on it, and which of two models is the better one."""

from retailray.evaluation.check import check
from retailray.evaluation.compare import compare
from retailray.evaluation.evaluate import evaluate
from retailray.evaluation.metrics import classification_metrics
from retailray.evaluation.promote import promote, rollback

__all__ = ["check", "classification_metrics", "compare", "evaluate", "promote", "rollback"]
