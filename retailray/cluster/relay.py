"""Progress from tasks and workers to the driver's terminal, wherever in the cluster they run."""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

from retailray import progress
from retailray.cluster.metrics import Meter

POLL_S = 0.3
EVERY_S = 10.0  # between two progress lines off a terminal


class Relay:
    """An actor that takes steps, seconds, errors and events, for the driver, when it asks, and for Prometheus."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._steps, self._note = 0, ""
        self._events: list[tuple[str, dict[str, Any]]] = []
        self._spent: dict[str, float] = {}

    def spend(self, seconds: dict[str, float]) -> None:
        """So many more seconds of some process went into these stages."""
        self._meter.spend(seconds)
        for stage, more in seconds.items():
            self._spent[stage] = self._spent.get(stage, 0.0) + more

    def spent(self) -> dict[str, float]:
        return self._spent

    def step(self, count: int, note: str = "") -> None:
        """So many more of the bar's units are done."""
        self._steps, self._note = self._steps + count, note
        self._meter.step(count)

    def decoded(self, count: int) -> None:
        """So many more images wait for a predictor."""
        self._meter.decoded(count)

    def errors(self, by_code: dict[str, int]) -> None:
        """So many more images became error rows."""
        self._meter.errors(by_code)

    def event(self, name: str, fields: dict[str, Any]) -> None:
        self._events.append((name, fields))
        self._meter.event(name, fields)

    def take(self) -> tuple[int, str, list[tuple[str, dict[str, Any]]]]:
        """Steps so far, the latest note, and the events since the last call."""
        self._meter.tick()
        events, self._events = self._events, []
        return self._steps, self._note, events


def beside_driver(actor: type) -> Any:
    """``ray.remote(actor)`` on the driver's machine, without a CPU of its own: it is lost only when all is lost."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    # Ray puts an actor that needs no resources on any machine, whatever a soft strategy says
    return ray.remote(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False))(actor)


@contextlib.contextmanager
def relay_progress(label: str, total: int, *, num_predictors: int = 0) -> Iterator[Any]:
    """An actor handle of :class:`Relay`, followed for the length of the block: a bar, or a line now and then."""
    relay = beside_driver(Relay).remote(Meter(label, num_predictors))
    stop = threading.Event()
    follower = threading.Thread(target=_follow, args=(relay, stop, label, total), daemon=True)
    follower.start()
    try:
        yield relay
    finally:
        stop.set()
        follower.join(timeout=5)


def _follow(relay: Any, stop: threading.Event, label: str, total: int) -> None:
    import ray

    said = time.monotonic()
    with progress.bar(label, total) as update:
        finished = False
        while not finished:
            finished = stop.wait(POLL_S)
            try:
                steps, note, events = ray.get(relay.take.remote())
            except ray.exceptions.RayError as error:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                progress.emit("warning", note=f"the run goes on, its progress is told no more: {reason}")
                return
            update(steps, note)
            for name, fields in events:
                progress.emit(name, **fields)
            if not finished and not progress.on_terminal() and time.monotonic() - said > EVERY_S:
                said = time.monotonic()
                progress.emit("progress", done=steps, total=total, unit=label)
