"""Ray: Ray Data for streams, Ray Train for workers that train together, an actor for what tasks report."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import pyarrow as pa
import ray
import ray.data

from retailray.config import ClusterSection
from retailray.execution.executor import C, FitOptions, Function, T, Worker
from retailray.execution.launcher import run_trainer
from retailray.execution.progress_actor import ProgressActor, RayReporter
from retailray.execution.reporting import shown
from retailray.execution.resources import Capacity, Plan, wait_until_free
from retailray.execution.session import machines, ray_session, root_cause

UNIT_ROWS = 2048  # images a data task, at most


@contextlib.contextmanager
def ray_executor(section: ClusterSection) -> Iterator["RayExecutor"]:
    """A Ray session for the length of a ``with`` block (:func:`retailray.execution.session.ray_session`)."""
    with ray_session(section) as capacity:
        yield RayExecutor(capacity, len([node for node in ray.nodes() if node["Alive"]]))


class RayExecutor:
    """:class:`retailray.execution.executor.Executor` on the Ray that this process is connected to."""

    engine = "ray"
    chunk_rows = UNIT_ROWS

    def __init__(self, capacity: Capacity, num_nodes: int) -> None:
        self.capacity, self.num_nodes, self.machines = capacity, num_nodes, machines()

    def wait_until_free(self, plan: Plan, *, deadline_s: float) -> None:
        wait_until_free(plan, deadline_s=deadline_s)

    def stream(self, tables: Iterable[pa.Table], plan: Plan) -> "RayStream":
        # not from_arrow, which asks a task, and so a new process, for the size of every block
        return RayStream(ray.data.from_blocks(list(tables)), plan)

    def union(self, streams: Sequence[Any]) -> "RayStream":
        first, *others = streams
        if not others:
            return first
        return RayStream(first.dataset.union(*(other.dataset for other in others)), first.plan)

    @contextlib.contextmanager
    def in_order(self) -> Iterator[None]:
        options = ray.data.DataContext.get_current().execution_options
        options.preserve_order = True
        try:
            yield
        finally:
            options.preserve_order = False  # the context is the process's, and scoring has no use for the order

    def put(self, value: object) -> "RayReference":
        return RayReference(ray.put(value))

    def call(self, function: Callable[..., T], *arguments: object, cpus: float, gpus: float, **options: object) -> T:
        task = ray.remote(num_cpus=cpus, num_gpus=gpus)(function)
        return ray.get(task.remote(*arguments, **options))

    @contextlib.contextmanager
    def reporter(self, label: str, total: int, *, num_predictors: int = 0) -> "Iterator[RayReporter]":
        actor = pin_to_driver_node(ProgressActor).remote(label, num_predictors)
        with shown(lambda: ray.get(actor.take.remote()), label, total):
            yield RayReporter(actor)

    def shared(self, make: Callable[[], T]) -> T:
        return cast(T, RayShared(pin_to_driver_node(make).remote()))

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
        datasets = {name: stream.dataset for name, stream in streams.items()}
        return run_trainer(work, config, datasets, plan, options=options, checkpoints=checkpoints)

    def root_cause(self, error: Exception) -> str:
        return root_cause(error)


class RayStream:
    """A Ray Data dataset."""

    def __init__(self, dataset: ray.data.Dataset, plan: Plan) -> None:
        self.dataset, self.plan = dataset, plan

    def map(self, function: Function, arguments: dict[str, object], *, rows: int | None = None) -> "RayStream":
        mapped = self.dataset.map_batches(
            function, batch_format="pyarrow", batch_size=rows, fn_kwargs=arguments, num_cpus=self.plan.task_cpus
        )
        return RayStream(mapped, self.plan)

    def map_with(self, make: object, arguments: dict[str, object], *, rows: int | None = None) -> "RayStream":
        mapped = self.dataset.map_batches(
            make,
            fn_constructor_kwargs=arguments,
            compute=ray.data.ActorPoolStrategy(size=self.plan.num_actors),
            batch_format="pyarrow",
            batch_size=rows,
            num_cpus=self.plan.actor_cpus,
            num_gpus=self.plan.actor_gpus or None,
        )
        return RayStream(mapped, self.plan)

    def select(self, columns: Sequence[str]) -> "RayStream":
        return RayStream(self.dataset.select_columns(list(columns)), self.plan)

    def kept(self) -> "RayStream":
        return RayStream(self.dataset.materialize(), self.plan)

    def tables(self) -> Iterator[pa.Table]:
        tables = self.dataset.iter_batches(batch_size=None, batch_format="pyarrow")
        return (table for table in tables if table.num_rows)


class RayReference:
    """An object in Ray's store, as part of a cache key too: one object, one key."""

    def __init__(self, reference: ray.ObjectRef) -> None:
        self._reference = reference

    def get(self) -> object:
        return ray.get(self._reference)

    def __hash__(self) -> int:
        return hash(self._reference)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RayReference) and self._reference == other._reference


class RayShared:
    """An actor whose methods are called and waited for."""

    def __init__(self, actor: object) -> None:
        self.actor = actor

    def __getattr__(self, name: str) -> Callable[..., object]:
        if name.startswith("_") or name == "actor":  # while it is unpickled, there is no actor yet
            raise AttributeError(name)
        method = getattr(self.actor, name)
        return lambda *arguments: ray.get(method.remote(*arguments))


def pin_to_driver_node(actor: Callable[..., object]) -> Any:
    """``ray.remote(actor)`` on the driver's machine, without a CPU of its own: it is lost only when all is lost."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    # Ray puts an actor that needs no resources on any machine, whatever a soft strategy says
    return ray.remote(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False))(actor)
