"""What tasks and workers tell, in a process that Prometheus reads.

A module of its own, beside nothing heavy: the actor's process imports it, and a run waits for it.
"""

from typing import Any

import ray

from retailray.execution.metrics import Meter
from retailray.execution.reporting import Counter


class ProgressActor(Counter):
    """The actor behind :class:`RayReporter`; Prometheus reads its process."""

    def __init__(self, label: str, num_predictors: int) -> None:
        super().__init__(Meter(label, num_predictors))


class RayReporter:
    """Tells an actor, and does not wait for it; :meth:`spent` does."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def step(self, count: int, note: str = "") -> None:
        self._actor.step.remote(count, note)

    def decoded(self, count: int) -> None:
        self._actor.decoded.remote(count)

    def errors(self, by_code: dict[str, int]) -> None:
        self._actor.errors.remote(by_code)

    def spend(self, seconds: dict[str, float]) -> None:
        self._actor.spend.remote(seconds)

    def event(self, name: str, fields: dict[str, object]) -> None:
        self._actor.event.remote(name, fields)

    def spent(self) -> dict[str, float]:
        """Nothing where the actor was lost with its machine: all is committed then."""
        try:
            return ray.get(self._actor.spent.remote())
        except ray.exceptions.RayError:
            return {}
