"""Judging: catalogs (``check``) and models (``evaluate``)."""

from retailray.evaluation.check import check
from retailray.evaluation.evaluate import evaluate

__all__ = ["check", "evaluate"]
