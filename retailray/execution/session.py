"""One Ray for one command: a running cluster if one is named, else a local Ray that ends with the command."""

import contextlib
import json
import logging
import os
import secrets
import socket
import sys
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

from retailray import events
from retailray.config import ClusterSection
from retailray.errors import CapacityError, ConfigError
from retailray.execution.credentials import load_job_credentials, setup_hook
from retailray.execution.resources import Capacity, asked_for
from retailray.interrupts import interrupts_wait

CONNECT_S = 10.0
LONGEST_FOLDER = 40  # characters of the folder for temporary files, to which Ray adds some sixty
# in the messages of errors that may be over in a moment; writes and reads have been patient before they say so
FOR_THE_MOMENT = ["no answer", "SlowDown", "TimeoutError", "Connection reset"]
STALL_S = 600  # without one finished task, of actors that have no machine too; then Ray Data gives up with an error
# glibc, in every worker: blocks of up to 1 GB come from one heap that is not given back. The default maps and unmaps
# them (outside the main thread: always), and every step faults all of its activations' pages in again: an epoch of
# mobilenet_v2 took 1.8 times as long (benchmarks/overhead.py). Only a process that does not run yet can be told.
#
# OpenMP: a thread that waits for its siblings gives its core to others soon. By default it spins 300,000 times, and of
# two processes that run torch on the same cores a training step takes 4 times as long (benchmarks/spinning.py).
WORKER_ENV = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str((1 << 31) - 1),
    "GOMP_SPINCOUNT": "3000",
}
# what says of which kind a machine is
KIND_LABELS = ("ray.io/node-group", "ray.io/market-type", "ray.io/accelerator-type", "ray.io/region")


def prepare_environment(section: ClusterSection) -> None:
    """Settings that Ray reads when it is imported; the command line calls this before anything imports it.

    Raises:
        ConfigError: the address is a dashboard's. CapacityError: a job's storage credentials cannot be opened.
    """
    address = named_address(section)
    if names_dashboard(section):
        raise ConfigError(
            [
                f"cluster.address = {address!r} is a cluster's dashboard, which takes jobs: `retailray submit COMMAND` "
                "runs the same command there; a driver on one of the cluster's machines connects to host:6379"
            ]
        )
    load_job_credentials()
    os.environ.setdefault("GOMP_SPINCOUNT", WORKER_ENV["GOMP_SPINCOUNT"])  # torch reads it when it is imported
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # the default of 2 s delays every report
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if len(tempfile.gettempdir()) > LONGEST_FOLDER and os.access("/tmp", os.W_OK):
        os.environ.setdefault("RAY_TMPDIR", "/tmp")  # Ray's sockets lie there, and the system cuts longer addresses
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its C++ side writes over ours, past every Python logger
    # a process that has imported Ray already keeps the mode Ray read then; half a change would lock us out
    if not address and "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
        # a token of this process alone: no file in the home directory, and nobody else's jobs on our Ray
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def names_dashboard(section: ClusterSection) -> bool:
    """True where the address is a dashboard's, which takes jobs and no drivers."""
    return (named_address(section) or "").startswith(("http://", "https://"))


def named_address(section: ClusterSection) -> str | None:
    address = section.address or os.environ.get("RAY_ADDRESS")
    return None if address == "local" else address


@contextlib.contextmanager
def ray_session(section: ClusterSection) -> Iterator[Capacity]:
    """Connect to Ray for the length of a ``with`` block. A Ray that the caller has initialised is used as it is.

    Raises:
        CapacityError: the named cluster cannot be reached.
    """
    import ray

    ours = not ray.is_initialized()
    try:
        if ours:
            with interrupts_wait():
                _start(section)
        _set_up_libraries()
        with asked_for(section):
            _prefer_cpu_nodes()
            yield _capacity()
    finally:
        if ours:
            ray.shutdown()


def _start(section: ClusterSection) -> None:
    import ray

    address = named_address(section)
    quiet: dict[str, object] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address:
        _check_reachable(address)
        # credentials go by a hook: Ray writes env_vars to its logs on every machine
        hook = setup_hook()
        given = {"env_vars": dict(WORKER_ENV)} | ({"worker_process_setup_hook": hook} if hook else {})
        try:
            with _silent_stderr():
                ray.init(address=address, runtime_env=given, **quiet)
        except Exception as error:
            raise CapacityError(f"Ray at {address} cannot be used: {' '.join(str(error).split())[:300]}") from error
        return
    for name, value in WORKER_ENV.items():
        os.environ.setdefault(name, value)  # workers inherit it
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody takes this machine back
    try:
        with _silent_stderr():
            ray.init(address="local", include_dashboard=False, **quiet)
    except Exception as error:
        raise CapacityError(
            f"a local Ray could not be started: {' '.join(str(error).split())[:500]}; on a busy machine, run again, or "
            "work without Ray where a command can: --cluster.engine inline"
        ) from error


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Nothing on file descriptor 2: Ray's C++ side announces its log level there, and failures are exceptions."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as devnull:
        os.dup2(devnull.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _check_reachable(address: str) -> None:
    """Ray itself retries an address that does not answer for minutes, without a word."""
    host, _, port = address.rpartition("://")[2].partition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise CapacityError(
            f"no Ray answers at {address} ({error}); start one, correct RAY_ADDRESS or --cluster.address, "
            "or unset both to use a local Ray"
        ) from error


def _set_up_libraries() -> None:
    import ray.data

    for name in ("ray", "ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # ours count images, theirs operators
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = STALL_S
    context.execution_options.verbose_progress = False
    context.retried_map_errors = FOR_THE_MOMENT
    context.max_map_retries = 2


def root_cause(error: Exception) -> str:
    """One line for what Ray raised; it wraps what went wrong in a task or an actor in many ways."""
    from ray.data.exceptions import ExecutionTimeoutError

    if isinstance(error, ExecutionTimeoutError):
        return (
            f"nothing was done for {STALL_S // 60} minutes: no machine had room for a predictor or a task, or a store "
            "does not answer; `retailray doctor` looks at both"
        )
    return " ".join(str(error).split())[-400:]


def _prefer_cpu_nodes() -> None:
    """Where there are machines with GPUs and machines without, data tasks go to those without first.

    Ray Data spreads tasks over all machines alike, and the few CPUs beside a GPU would set the pace of those that feed
    it; Ray's own default strategy fills machines without GPUs first.
    """
    import ray
    import ray.data

    gpus = [
        node["Resources"].get("GPU", 0) > 0 for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")
    ]
    with warnings.catch_warnings():  # deprecated, and without a successor that prefers and does not insist
        warnings.simplefilter("ignore")
        context = ray.data.DataContext.get_current()
        context.scheduling_strategy = "DEFAULT" if any(gpus) and not all(gpus) else "SPREAD"


def machines() -> list[dict[str, object]]:
    """The cluster's machines by kind: how many, of how many CPUs and GPUs, and the labels that Ray's launchers set."""
    import ray

    kinds: dict[str, dict[str, Any]] = {}
    for node in ray.nodes():
        if node["Alive"]:
            labels = {name: value for name, value in node.get("Labels", {}).items() if name in KIND_LABELS}
            resources = {name.lower() + "s": node["Resources"].get(name, 0.0) for name in ("CPU", "GPU")}
            kind = resources | ({"labels": labels} if labels else {})
            kinds.setdefault(json.dumps(kind, sort_keys=True), {"count": 0, **kind})["count"] += 1
    return list(kinds.values())


def _capacity() -> Capacity:
    import ray

    total, free = ray.cluster_resources(), ray.available_resources()
    if free.get("CPU", 0) < total.get("CPU", 0) / 2:
        events.emit(
            "waiting",
            reason="most CPUs of the cluster are taken by others",
            free=free.get("CPU", 0),
            total=total["CPU"],
        )
    cpus = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    at_work = [count for count in cpus if count]
    return Capacity(
        num_cpus=total.get("CPU", 0),
        num_gpus=total.get("GPU", 0),
        object_store_bytes=total.get("object_store_memory", 0),
        num_machines=max(1, len(at_work)),
        machine_cpus=max(at_work, default=0.0),
    )
