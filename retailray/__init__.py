"""Distributed batch training and scoring of retail product images on Ray.

The commands as functions are :func:`check`, :func:`train`, :func:`tune`, :func:`evaluate`, :func:`score` and
:func:`study` (:mod:`retailray.api`, ``docs/api.md``); settings are in :mod:`retailray.config`, exceptions in
:mod:`retailray.errors`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retailray.api import check, evaluate, score, study, train, tune
    from retailray.results import CheckRun, EvaluateRun, Run, ScoreRun, StudyRun, TrainRun, TuneRun

__all__ = [
    "CheckRun",
    "EvaluateRun",
    "Run",
    "ScoreRun",
    "StudyRun",
    "TrainRun",
    "TuneRun",
    "check",
    "evaluate",
    "score",
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
