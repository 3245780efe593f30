"""What a person or a program sees while a command runs.

On a terminal: lines for people and, from Ray Data and the training loop, progress bars. Elsewhere: one JSON line an
event on standard output. The last line is always the summary: counts, seconds, images/s.
"""

import contextlib
import dataclasses
import datetime
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table


@dataclasses.dataclass
class _State:
    """Of the command that this process runs: one for all its threads, as standard output is."""

    own: TextIO | None = None  # where events go in place of standard output
    run_id: str | None = None
    run: str | None = None  # the address of the run that began last
    live: Progress | Live | None = None  # lines printed while a bar is shown must go through it


_state = _State()


@contextlib.contextmanager
def own_stdout(instead: TextIO | None = None) -> Iterator[None]:
    """Keep standard output for events alone: whatever else prints (Ray does) goes to standard error.

    ``instead``: where events go in its place.
    """
    _state.own, _state.run = instead or sys.stdout, None
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _state.own = _state.run_id = None


def stream() -> TextIO:
    """Standard output, also where it is kept for events."""
    return _state.own or sys.stdout


def on_terminal() -> bool:
    return stream().isatty()


def emit(event: str, **fields: object) -> None:
    """Report one event: a JSON line, or on a terminal a readable one. Floats are rounded to four digits."""
    fields = {key: round(value, 4) if isinstance(value, float) else value for key, value in fields.items()}
    if not on_terminal():
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        stamp = {"time": now} | ({"run_id": _state.run_id} if _state.run_id else {})
        print(json.dumps({"event": event, **stamp, **fields}, default=str), file=stream(), flush=True)
        return
    _print_event(event, fields)


def pass_on(line: str, event: dict[str, Any]) -> None:
    """Report what another process reported as this line."""
    if on_terminal():
        _print_event(event["event"], {key: value for key, value in event.items() if key not in ("event", "time")})
    else:
        print(line, file=stream(), flush=True)


def bind(run_id: str, address: str) -> None:
    """Put a run's id on every line from here on, to the end of the command."""
    _state.run_id, _state.run = run_id, address


def last_run() -> str | None:
    """The address of the run that this process began last."""
    return _state.run


@contextlib.contextmanager
def nested_run() -> Iterator[None]:
    """Let a run within another put its own id on its lines, and the outer one's id on those after it.

    If the inner run fails, :func:`last_run` is still the inner one.
    """
    outer_id, outer = _state.run_id, _state.run
    try:
        yield
        _state.run = outer
    finally:
        _state.run_id = outer_id


def _print_event(event: str, fields: dict[str, object]) -> None:
    text = "  ".join(f"[dim]{key}[/] {escape(str(value))}" for key, value in fields.items())
    console = _state.live.console if _state.live else Console(file=stream(), highlight=False)
    console.print(f"[bold cyan]{event:<9}[/] {text}", soft_wrap=True)


@contextlib.contextmanager
def bar(label: str, total: int) -> Iterator[Callable[..., None]]:
    """A progress bar on a terminal; yields a function that sets (completed, note). Silent elsewhere."""
    if not on_terminal():
        yield lambda completed, note="": None
        return
    columns = (
        TextColumn("[bold cyan]{task.description:<9}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    console = Console(file=stream(), highlight=False)
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=console, transient=True) as progress:
        task = progress.add_task(label, total=total, note="")
        _state.live = progress
        try:
            yield lambda completed, note="": progress.update(task, completed=completed, note=note)
        finally:
            _state.live = None


@contextlib.contextmanager
def live() -> Iterator[Callable[[Table], None]]:
    """A renderable below the printed lines of a terminal; yields a function that sets it. Silent elsewhere."""
    if not on_terminal():
        yield lambda renderable: None
        return
    with Live(console=Console(file=stream(), highlight=False), transient=True) as shown:
        _state.live = shown
        try:
            yield shown.update
        finally:
            _state.live = None


class Reporter(Protocol):
    """Takes what tasks and workers have to tell, wherever they run; the driver shows it."""

    def step(self, count: int, note: str = "") -> None:
        """Add ``count`` finished units."""

    def decoded(self, count: int) -> None:
        """Add ``count`` decoded images that wait for a predictor."""

    def errors(self, by_code: dict[str, int]) -> None:
        """So many more images became error rows."""

    def spend(self, seconds: dict[str, float]) -> None:
        """So many more seconds of some process went into these stages."""

    def event(self, name: str, fields: dict[str, object]) -> None:
        """Something that a person should see at once."""

    def spent(self) -> dict[str, float]:
        """Seconds by stage so far; empty where nobody counts them any more."""


class Stopwatch:
    """Seconds since it was made, for the summary line."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def summary(self, command: str, *, num_images: int, **counts: object) -> None:
        """The last line of every command."""
        seconds = self.seconds
        emit("summary", command=command, **counts, seconds=seconds, images_per_s=num_images / max(seconds, 1e-9))
