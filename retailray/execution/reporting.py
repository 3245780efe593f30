"""Progress from tasks and workers to the driver's terminal, wherever they run."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from retailray import events
from retailray.background import Ended, beside

POLL_S = 0.3
EVERY_S = 10.0  # between two progress lines off a terminal

Taken = tuple[int, str, list[tuple[str, dict[str, object]]]]


class Meter(Protocol):
    """What else wants to know (:class:`retailray.execution.metrics.Meter`)."""

    def step(self, count: int) -> None: ...
    def decoded(self, count: int) -> None: ...
    def errors(self, by_code: dict[str, int]) -> None: ...
    def spend(self, seconds: dict[str, float]) -> None: ...
    def event(self, name: str, fields: dict[str, object]) -> None: ...
    def tick(self) -> None: ...


class Counter:
    """A :class:`retailray.execution.executor.Reporter` that the driver asks now and then; tells ``meter``, if any."""

    def __init__(self, meter: Meter | None = None) -> None:
        self._meter = meter
        self._lock = threading.Lock()
        self._steps, self._note = 0, ""
        self._events: list[tuple[str, dict[str, object]]] = []
        self._spent: dict[str, float] = {}

    def spend(self, seconds: dict[str, float]) -> None:
        with self._lock:
            for stage, more in seconds.items():
                self._spent[stage] = self._spent.get(stage, 0.0) + more
        if self._meter:
            self._meter.spend(seconds)

    def spent(self) -> dict[str, float]:
        return self._spent

    def step(self, count: int, note: str = "") -> None:
        with self._lock:
            self._steps, self._note = self._steps + count, note
        if self._meter:
            self._meter.step(count)

    def decoded(self, count: int) -> None:
        if self._meter:
            self._meter.decoded(count)

    def errors(self, by_code: dict[str, int]) -> None:
        if self._meter:
            self._meter.errors(by_code)

    def event(self, name: str, fields: dict[str, object]) -> None:
        with self._lock:
            self._events.append((name, fields))
        if self._meter:
            self._meter.event(name, fields)

    def take(self) -> Taken:
        """Steps so far, the latest note, and the events since the last call."""
        if self._meter:
            self._meter.tick()
        with self._lock:
            emitted, self._events = self._events, []
            return self._steps, self._note, emitted


@contextlib.contextmanager
def shown(take: Callable[[], Taken], label: str, total: int) -> Iterator[None]:
    """Show what ``take`` gives for the length of the block: a bar, or a line now and then."""

    def follow_progress(ended: Ended) -> None:
        with events.bar(label, total) as update:
            _follow(ended, take, update, label, total)

    with beside(follow_progress):
        yield


def _follow(
    ended: Ended, take: Callable[[], Taken], update: Callable[[int, str], object], label: str, total: int
) -> None:
    said = time.monotonic()
    finished = False
    while not finished:
        finished = ended(POLL_S)
        try:
            steps, note, emitted = take()
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            events.emit("warning", note=f"the run continues without progress reports: {reason}")
            return
        update(steps, note)
        for name, fields in emitted:
            events.emit(name, **fields)
        if not finished and not events.on_terminal() and time.monotonic() - said > EVERY_S:
            said = time.monotonic()
            events.emit("progress", done=steps, total=total, unit=label)
