"""Where Ray Train's workers begin.

A module of its own, beside nothing heavy: Ray Train's controller reads it too, a process that never trains, and every
fit waits for it before its workers start.
"""

from typing import Any

import ray


def train_loop(loop_config: dict[str, Any]) -> dict[str, Any]:
    """``config``: a reference to a :class:`retailray.training.loop.FitConfig`; the controller passes it on unread."""
    from retailray.training.loop import work

    return work(ray.get(loop_config["config"]))
