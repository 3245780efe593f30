"""Where Ray Train's workers begin.

A module of its own, beside nothing heavy: Ray Train's controller reads it too, a process that never trains, and every
fit waits for it before its workers start.
"""

import ray


def begin(loop_config: dict[str, object]) -> dict[str, object]:
    """``work`` and ``config``: references, which the controller passes on unread."""
    from retailray.interrupts import importing

    with importing():
        from retailray.execution.launcher import RayWorker

        work = ray.get(loop_config["work"])
    return work(ray.get(loop_config["config"]), RayWorker())
