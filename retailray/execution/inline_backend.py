"""This process and its threads: Pillow, hashing, object-store clients and torch release the interpreter's lock."""

import contextlib
import functools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

import joblib
import numpy as np
import psutil
import pyarrow as pa

from retailray.data.arrow_tables import rechunk
from retailray.execution.executor import C, FitOptions, Function, T, Worker
from retailray.execution.reporting import Counter, shown
from retailray.execution.resources import Capacity, Plan, visible_gpus
from retailray.execution.state import read_state, write_state
from retailray.interrupts import importing

CHUNK_ROWS = 64  # a unit of work: about 10 MB of pixels
AHEAD = 2  # units a thread, that may wait for the one that reads them
KEPT_SHARE = 0.3  # of the memory that is free, for streams that are kept; as large as Ray's object store


@contextlib.contextmanager
def inline_executor() -> Iterator["InlineExecutor"]:
    """Threads for the length of a ``with`` block; what has not begun when it ends never begins."""
    executor = InlineExecutor()
    try:
        yield executor
    finally:
        executor.pool.shutdown(wait=True, cancel_futures=True)


class InlineExecutor:
    """:class:`retailray.execution.executor.Executor` in this process."""

    engine = "inline"
    num_nodes = 1
    chunk_rows = CHUNK_ROWS

    def __init__(self) -> None:
        cpus = joblib.cpu_count()
        free = KEPT_SHARE * psutil.virtual_memory().available
        self.capacity = Capacity(float(cpus), float(visible_gpus()), free, place="this machine", one_process=True)
        self.machines: list[dict[str, object]] = [
            {"count": 1, "cpus": self.capacity.num_cpus, "gpus": self.capacity.num_gpus}
        ]
        self.threads = cpus
        self.pool = ThreadPoolExecutor(cpus, thread_name_prefix="retailray")

    def wait_until_free(self, plan: Plan, *, deadline_s: float) -> None:
        """Nobody else holds this process."""

    def stream(self, tables: Iterable[pa.Table], plan: Plan) -> "InlineStream":
        held = list(tables)
        return InlineStream(lambda: iter(held), self.pool, AHEAD * self.threads)

    def union(self, streams: Sequence[Any]) -> "InlineStream":
        tables = lambda: (table for stream in streams for table in stream.tables())  # noqa: E731
        return InlineStream(tables, self.pool, AHEAD * self.threads)

    def in_order(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def put(self, value: object) -> "Held":
        return Held(value)

    def call(self, function: Callable[..., T], *arguments: object, cpus: float, gpus: float, **options: object) -> T:
        return function(*arguments, **options)

    @contextlib.contextmanager
    def reporter(self, label: str, total: int, *, num_predictors: int = 0) -> Iterator[Counter]:
        counter = Counter()
        with shown(counter.take, label, total):
            yield counter

    def shared(self, make: Callable[[], T]) -> T:
        return cast(T, _Locked(make()))

    def fit(
        self,
        work: Callable[[C, Worker], dict[str, object]],
        config: C,
        streams: dict[str, Any],
        plan: Plan,
        *,
        options: FitOptions,
        checkpoints: str,
    ) -> tuple[dict[str, object], dict[str, object]]:
        worker = InlineWorker(streams, checkpoints, "cuda" if plan.actor_gpus else "cpu")
        found = work(config, worker)
        state = worker.last_state()
        assert state, "the last epoch of a stage leaves one"
        return found, state

    def root_cause(self, error: Exception) -> str:
        return " ".join(str(error).split())[-400:] or type(error).__name__


class InlineStream:
    """Tables that are made as they are read; functions run ahead in threads, in the tables' order."""

    def __init__(self, source: Callable[[], Iterator[pa.Table]], pool: ThreadPoolExecutor, ahead: int) -> None:
        self._source, self._pool, self._ahead_of_reader = source, pool, ahead

    def _then(self, source: Callable[[], Iterator[pa.Table]]) -> "InlineStream":
        return InlineStream(source, self._pool, self._ahead_of_reader)

    def map(self, function: Function, arguments: dict[str, object], *, rows: int | None = None) -> "InlineStream":
        one = functools.partial(_applied, function, arguments)
        return self._then(lambda: self._ahead(one, _in_parts(self._source(), rows)))

    def map_with(
        self, make: Callable[..., Any], arguments: dict[str, object], *, rows: int | None = None
    ) -> "InlineStream":
        def run() -> Iterator[pa.Table]:
            with importing():  # of torch
                actor = make(**arguments)
            yield from map(actor, _in_parts(self._source(), rows))

        return self._then(run)

    def select(self, columns: Sequence[str]) -> "InlineStream":
        return self._then(lambda: (table.select(list(columns)) for table in self._source()))

    def kept(self) -> "InlineStream":
        held = list(self._source())
        return self._then(lambda: iter(held))

    def tables(self) -> Iterator[pa.Table]:
        return (table for table in self._source() if table.num_rows)

    def batches(self, rows: int, *, shuffle_rows: int = 0, seed: int = 0) -> Iterator[pa.Table]:
        """As :class:`retailray.execution.executor.Shard`: of one worker, all there is."""
        tables = self.tables()
        return rechunk(_shuffled(tables, shuffle_rows, seed) if shuffle_rows else tables, rows)

    def _ahead(self, function: Callable[[pa.Table], list[pa.Table]], tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        waiting: deque[Future[list[pa.Table]]] = deque()
        try:
            for table in tables:
                waiting.append(self._pool.submit(function, table))
                if len(waiting) >= self._ahead_of_reader:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _applied(function: Function, arguments: dict[str, object], table: pa.Table) -> list[pa.Table]:
    found = function(table, **arguments)
    return [found] if isinstance(found, pa.Table) else list(found)


def _in_parts(tables: Iterator[pa.Table], rows: int | None) -> Iterator[pa.Table]:
    return tables if rows is None else rechunk(tables, rows)


def _shuffled(tables: Iterator[pa.Table], buffer_rows: int, seed: int) -> Iterator[pa.Table]:
    """Rows in an order drawn within a buffer: half of a full one leaves at a time."""
    draw = np.random.default_rng(seed)
    held: list[pa.Table] = []

    def drawn() -> pa.Table:
        together = pa.concat_tables(held)
        return together.take(draw.permutation(together.num_rows))

    for table in tables:
        held.append(table)
        if sum(part.num_rows for part in held) >= 2 * buffer_rows:
            mixed = drawn()
            yield mixed.slice(0, buffer_rows)
            held = [mixed.slice(buffer_rows)]
    if held:
        yield drawn()


class Held:
    """:class:`retailray.execution.executor.Reference` to what is in this process anyway."""

    def __init__(self, value: object) -> None:
        self._value = value

    def get(self) -> object:
        return self._value


class _Locked:
    """One thread at a time in the methods of an object."""

    def __init__(self, inner: object) -> None:
        self._inner, self._lock = inner, threading.Lock()

    def __getattr__(self, name: str) -> Callable[..., object]:
        method = getattr(self._inner, name)

        def locked(*arguments: object) -> object:
            with self._lock:
                return method(*arguments)

        return locked


class InlineWorker:
    """:class:`retailray.execution.executor.Worker`: the only one."""

    rank, size = 0, 1

    def __init__(self, streams: dict[str, InlineStream], checkpoints: str, device: str) -> None:
        self.device = device
        self._streams, self._checkpoints = streams, checkpoints

    def shard(self, name: str) -> InlineStream:
        return self._streams[name]

    def last_state(self) -> dict[str, object] | None:
        return read_state(self._checkpoints)

    def report(self, epoch: int, state: Mapping[str, object] | None) -> None:
        if state is not None:
            write_state(self._checkpoints, state)
