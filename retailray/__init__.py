"""Distributed batch training and scoring of retail product images on Ray.

The commands as functions are :func:`check`, :func:`train`, :func:`tune`, :func:`evaluate`, :func:`score`,
:func:`study`, :func:`recommend`, :func:`forecast`, :func:`shoppers` and :func:`assortment` (:mod:`retailray.api`,
``docs/api.md``); settings are in :mod:`retailray.config`, exceptions in
:mod:`retailray.errors`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retailray.api import (
        assortment,
        check,
        evaluate,
        forecast,
        recommend,
        score,
        shoppers,
        study,
        train,
        tune,
    )
    from retailray.results import (
        AssortmentRun,
        CheckRun,
        EvaluateRun,
        ForecastRun,
        RecommendRun,
        Run,
        ScoreRun,
        ShoppersRun,
        StudyRun,
        TrainRun,
        TuneRun,
    )

__all__ = [
    "AssortmentRun",
    "CheckRun",
    "EvaluateRun",
    "ForecastRun",
    "RecommendRun",
    "Run",
    "ScoreRun",
    "ShoppersRun",
    "StudyRun",
    "TrainRun",
    "TuneRun",
    "assortment",
    "check",
    "evaluate",
    "forecast",
    "recommend",
    "score",
    "shoppers",
    "study",
    "train",
    "tune",
]


def __getattr__(name: str) -> object:
    """Import a function where it is used: ``import retailray`` alone takes no time."""
    if name in __all__:
        from retailray import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
