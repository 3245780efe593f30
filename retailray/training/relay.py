"""Epoch events from a training worker to the terminal of the driver, wherever in the cluster the worker is."""

import threading
from typing import Any

import ray

from retailray import progress

POLL_S = 0.3


class Relay:
    def __init__(self) -> None:
        self._events: list[tuple[str, dict[str, Any]]] = []

    def put(self, name: str, fields: dict[str, Any]) -> None:
        self._events.append((name, fields))

    def take(self) -> list[tuple[str, dict[str, Any]]]:
        events, self._events = self._events, []
        return events


def make_relay() -> Any:
    return ray.remote(num_cpus=0)(Relay).remote()


def follow(relay: Any, stop: threading.Event, epochs: int) -> None:
    """Print events until ``stop`` is set and nothing is left; run it in a thread."""
    with progress.bar("epochs", epochs) as update:
        update(0, "starting workers")
        finished = False
        while not finished:
            finished = stop.wait(POLL_S)
            for name, fields in ray.get(relay.take.remote()):
                update(fields["epoch"], f"validation top-1 {fields['validation_top1']:.3f}")
                progress.emit(name, **fields)
