"""Distributed batch training and scoring of retail product images on Ray.

The commands as functions: :func:`retailray.quality.check.check`, :func:`retailray.training.train.train`,
:func:`retailray.tuning.tune.tune`, :func:`retailray.evaluation.evaluate.evaluate`,
:func:`retailray.scoring.score.score`. Their settings are in :mod:`retailray.config`.
"""
