"""Workers that train together, by Ray Train."""

import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import ray
import ray.data
import ray.train

from retailray import storage
from retailray.errors import RetailrayError
from retailray.execution.entry import begin
from retailray.execution.executor import C, FitOptions
from retailray.execution.resources import Plan
from retailray.execution.state import read_state, write_state


def run_trainer(
    work: Callable[[C, Any], dict[str, object]],
    config: C,
    datasets: dict[str, ray.data.Dataset],
    plan: Plan,
    *,
    options: FitOptions,
    checkpoints: str,
) -> tuple[dict[str, object], dict[str, object]]:
    """What :meth:`retailray.execution.executor.Executor.fit` says."""
    import ray.train.torch

    storage_filesystem, storage_path = storage.arrow_filesystem(checkpoints)
    low, most = options.min_workers, plan.num_actors
    scaling = ray.train.ScalingConfig(
        num_workers=most if low is None or low == most else (low, most),
        use_gpu=plan.actor_gpus > 0,
        placement_strategy=options.placement.upper(),
        resources_per_worker={"CPU": plan.actor_cpus} | ({"GPU": plan.actor_gpus} if plan.actor_gpus else {}),
    )
    run_config = ray.train.RunConfig(
        name="fit",
        storage_path=storage_path,
        storage_filesystem=storage_filesystem,
        failure_config=ray.train.FailureConfig(max_failures=options.max_failures),
        checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
    )
    execution_options = ray.data.DataContext.get_current().execution_options
    trainer = ray.train.torch.TorchTrainer(
        begin,
        train_loop_config={"work": ray.put(work), "config": ray.put(config)},
        datasets=datasets,
        dataset_config=ray.train.DataConfig(datasets_to_split="all", execution_options=execution_options),
        scaling_config=scaling,
        run_config=run_config,
    )
    result = _run(trainer)
    with result.checkpoint.as_directory() as folder:
        return result.return_value, read_state(folder) or {}


def _run(trainer: "ray.train.torch.TorchTrainer") -> ray.train.Result:
    """``trainer.fit()`` with its failures in one line, and Ctrl-C as everywhere else."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        return trainer.fit()
    except SystemExit as error:  # how Ray Train's own handler ends an interrupted fit
        raise KeyboardInterrupt from error
    except ray.train.TrainingFailedError as error:
        raise RetailrayError(f"training failed: {_root_cause(error)}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)  # Ray Train leaves its own behind


def _root_cause(error: BaseException) -> str:
    """The first line a person can use out of Ray Train's nested failures."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        error = next(iter(failures.values()))
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().splitlines()[-1] if str(error).strip() else 'no message'}"


class RayWorker:
    """:class:`retailray.execution.executor.Worker` in a process of Ray Train."""

    def __init__(self) -> None:
        import ray.train.torch

        context = ray.train.get_context()
        self.rank, self.size = context.get_world_rank(), context.get_world_size()
        self.device = str(ray.train.torch.get_device())

    def shard(self, name: str) -> "RayShard":
        return RayShard(ray.train.get_dataset_shard(name))

    def last_state(self) -> dict[str, object] | None:
        checkpoint = ray.train.get_checkpoint()
        if not checkpoint:
            return None
        with checkpoint.as_directory() as folder:
            return read_state(folder)

    def report(self, epoch: int, state: Mapping[str, object] | None) -> None:
        if state is None:
            ray.train.report({"epoch": epoch})
            return
        with tempfile.TemporaryDirectory() as folder:
            write_state(folder, state)
            ray.train.report({"epoch": epoch}, checkpoint=ray.train.Checkpoint.from_directory(folder))


class RayShard:
    """:class:`retailray.execution.executor.Shard` of a Ray Data dataset."""

    def __init__(self, iterator: ray.data.DataIterator) -> None:
        self._iterator = iterator

    def batches(self, rows: int, *, shuffle_rows: int = 0, seed: int = 0) -> Iterator[pa.Table]:
        shuffle: dict[str, object] = {}
        if shuffle_rows:
            shuffle = {"local_shuffle_buffer_size": shuffle_rows, "local_shuffle_seed": seed}
        return iter(
            self._iterator.iter_batches(
                batch_size=rows, batch_format="pyarrow", prefetch_batches=2, drop_last=False, **shuffle
            )
        )
