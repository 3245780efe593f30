"""Fine-tuning: Ray Data computes what stays the same once, Ray Train's workers train the rest on it."""

from retailray.config import TrainConfig, TuneConfig


def train(config: TrainConfig) -> str:
    """See :func:`retailray.training.trainer.train`, which workers and tasks that live in this package do without."""
    from retailray.training import trainer

    return trainer.train(config)


def tune(config: TuneConfig) -> str:
    """See :func:`retailray.training.search.search.tune`."""
    from retailray.training.search import search

    return search.tune(config)


__all__ = ["train", "tune"]
