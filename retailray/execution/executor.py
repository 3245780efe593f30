"""What commands ask of the place where their work runs; :mod:`inline_backend` and :mod:`ray_backend` answer.

The functions that do the work are the same objects in both. They take Arrow tables and their arguments, and know
nothing of where they run.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from retailray.events import Reporter
from retailray.execution.resources import Capacity, Plan

T = TypeVar("T")
C = TypeVar("C")
Function = Callable[..., pa.Table | Iterator[pa.Table]]


class Reference(Protocol):
    """A value that is sent once, and read where it is wanted."""

    def get(self) -> Any: ...
    def __hash__(self) -> int: ...


class Shard(Protocol):
    """A worker's share of a stream, read again in every epoch."""

    def batches(self, rows: int, *, shuffle_rows: int = 0, seed: int = 0) -> Iterator[pa.Table]:
        """Tables of ``rows`` rows (the last one may have fewer), drawn from a buffer of ``shuffle_rows``."""


class Stream(Protocol):
    """Arrow tables on their way through functions; nothing happens before :meth:`tables` is read."""

    def map(self, function: Function, arguments: dict[str, object], *, rows: int | None = None) -> "Stream":
        """``function(table, **arguments)`` for tables of ``rows`` rows (None: as they come), several at once."""

    def map_with(
        self, make: Callable[..., object], arguments: dict[str, object], *, rows: int | None = None
    ) -> "Stream":
        """``make(**arguments)`` once for each of the plan's actors, then its ``__call__(table)``."""

    def select(self, columns: Sequence[str]) -> "Stream": ...

    def kept(self) -> "Stream":
        """Computed now and held in memory, for those who read it several times."""

    def tables(self) -> Iterator[pa.Table]:
        """What comes out, in any order, without empty tables."""


class Worker(Protocol):
    """One of the processes that train together."""

    rank: int
    size: int
    device: str

    def shard(self, name: str) -> Shard: ...

    def last_state(self) -> dict[str, object] | None:
        """What was reported last, by this run or by one that was interrupted."""

    def report(self, epoch: int, state: Mapping[str, object] | None) -> None:
        """Every worker calls this; ``state``, of rank 0, is kept for :meth:`last_state`."""


@dataclasses.dataclass(frozen=True)
class FitOptions:
    """``max_failures``: of workers before a fit is given up. ``min_workers``: it continues with as few as these when
    machines leave; None: with all. ``placement``: pack or spread."""

    max_failures: int
    min_workers: int | None
    placement: str


class Executor(Protocol):
    """One command's machines. ``num_nodes``: those that must share what is written to disk."""

    engine: str
    capacity: Capacity
    num_nodes: int
    machines: list[dict[str, object]]  # by kind: how many, and the CPUs and GPUs of each
    chunk_rows: int  # rows of a unit of work, at most

    def wait_until_free(self, plan: Plan, *, deadline_s: float) -> None:
        """Return when there is room for the plan. Raises CapacityError when it is not there in time."""

    def stream(self, tables: Iterable[pa.Table], plan: Plan) -> Stream: ...

    def union(self, streams: Sequence[Stream]) -> Stream: ...

    def in_order(self) -> contextlib.AbstractContextManager[None]:
        """Streams that are read inside keep their order."""

    def put(self, value: object) -> Reference: ...

    def call(self, function: Callable[..., T], *arguments: object, cpus: float, gpus: float, **options: object) -> T:
        """Call a function once, on a machine that has so much free."""

    def reporter(
        self, label: str, total: int, *, num_predictors: int = 0
    ) -> contextlib.AbstractContextManager[Reporter]:
        """What is reported is shown for the length of the block: a bar, or a line now and then."""

    def shared(self, make: Callable[[], T]) -> T:
        """One object for all tasks; calls of its methods return what it returns."""

    def fit(
        self,
        work: Callable[[C, Worker], dict[str, object]],
        config: C,
        streams: dict[str, Stream],
        plan: Plan,
        *,
        options: FitOptions,
        checkpoints: str,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """``work(config, worker)`` in every worker: what rank 0 returned, and the last state that it reported.

        Args:
            checkpoints: an address that all nodes can write; a fit that finds a state there continues from it.

        Raises:
            RetailrayError: a worker failed more often than is allowed; the first line of its reason.
        """

    def root_cause(self, error: Exception) -> str:
        """One line for what went wrong in a task or an actor."""
