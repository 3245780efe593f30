"""Distributed batch training and scoring of retail product images on Ray.

The commands as functions: :func:`retailray.quality.check`, :func:`retailray.training.train`,
:func:`retailray.evaluation.evaluate`, :func:`retailray.scoring.score.score`; their settings in :mod:`retailray.config`.
"""
