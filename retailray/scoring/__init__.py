"""Batch scoring: a whole catalog through a fixed pool of predictors, published when every row is accounted for.

The verb is :func:`retailray.scoring.score.score`. It is not imported here: the tasks that fetch and decode live in this
package and start a process each, which should not read what only the driver needs.
"""

from retailray.scoring.predicting import UNCALIBRATED, predict_stream

__all__ = ["UNCALIBRATED", "predict_stream"]
