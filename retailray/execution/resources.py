"""Who gets how many CPUs and GPUs, decided before anything starts.

Ray waits in silence for a CPU that its own actors hold. So actors together never take more than half of the CPUs:
there is always room for the tasks that feed them, on a cluster of one CPU too.
"""

import contextlib
import dataclasses
import glob
import os
import time
from collections.abc import Iterator, Mapping

from retailray import events
from retailray.config import ClusterSection, TuneSection
from retailray.errors import CapacityError

BATCHES_AN_ACTOR = 8  # at least, or a second predictor is not worth its start
RENEW_S = 15.0  # between two requests for the same machines
MAX_ACTORS_PER_CPU = 4  # more would only take turns on the same core


@dataclasses.dataclass(frozen=True)
class Capacity:
    """Resources in total, not what is free now. ``machine_cpus``: CPUs of the largest machine; 0: there is only one."""

    num_cpus: float
    num_gpus: float
    object_store_bytes: float
    num_machines: int = 1
    machine_cpus: float = 0.0
    place: str = "the Ray cluster"
    one_process: bool = False

    def threads(self, num_actors: int, *, packed: bool) -> int:
        """Threads an actor, if those that share a machine share its CPUs."""
        cpus = self.machine_cpus or self.num_cpus
        together = num_actors if packed else -(-num_actors // self.num_machines)
        return max(1, int(cpus // max(1, together)))


@dataclasses.dataclass(frozen=True)
class Plan:
    """``num_actors`` training workers or predictors, and what each of them and each data task reserves."""

    num_actors: int
    actor_cpus: float
    actor_gpus: float
    task_cpus: float
    torch_threads: int


def visible_gpus() -> int:
    """GPUs of this machine that this process may use, told without torch or Ray."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = glob.glob("/dev/nvidia[0-9]*")
    if named is None:
        return len(devices)
    return min(len(devices), len([name for name in named.split(",") if name.strip() not in ("", "-1")]))


def plan_training(capacity: Capacity, section: ClusterSection, *, most: int | None = None) -> Plan:
    """Data-parallel training workers: one per GPU, else one, unless ``cluster.num_workers`` says.

    ``most``: as many as the batch has enough rows for; a warning says which GPUs stay idle.
    """
    plan = _plan(capacity, section, default_on_cpu=1, packed=section.placement == "pack", useful=most)
    if not section.num_workers and plan.actor_gpus and plan.num_actors < int(capacity.num_gpus):
        events.emit(
            "warning",
            workers=plan.num_actors,
            gpus=int(capacity.num_gpus),
            note="train.batch_size has too few rows for more workers; raise it to use all GPUs",
        )
    if section.min_workers and section.min_workers > plan.num_actors:
        raise CapacityError(
            f"cluster.min_workers = {section.min_workers}, and {plan.num_actors} workers are planned; "
            "lower it, or raise cluster.num_workers"
        )
    return plan


def plan_scoring(capacity: Capacity, section: ClusterSection, *, num_images: int, batch_size: int) -> Plan:
    """A fixed pool of predictors: one a GPU, else one for every two CPUs, unless ``cluster.num_workers`` says.

    No more than have :data:`BATCHES_AN_ACTOR` batches each: starting a process and loading a model takes some seconds.
    """
    busy = max(1, -(-num_images // (BATCHES_AN_ACTOR * batch_size)))
    default = max(1, int(capacity.num_cpus // 2))
    return _plan(capacity, section, default_on_cpu=default, useful=busy, gpus_each=section.gpus_per_predictor)


@dataclasses.dataclass(frozen=True)
class TrialPlan:
    """``num_concurrent`` trials at once, and what each worker of each of them reserves and uses."""

    num_concurrent: int
    num_workers: int
    cpus: float
    gpus: float
    torch_threads: int


def plan_trials(capacity: Capacity, section: ClusterSection, tune: TuneSection) -> TrialPlan:
    """Trials of ``tune.workers_per_trial`` workers: one a GPU, else what the CPUs carry, unless ``tune`` says.

    More at once than fit wait for their turn. Raises CapacityError where not even one fits.
    """
    cpus, gpus, workers = capacity.num_cpus, capacity.num_gpus, tune.workers_per_trial
    use_gpu = section.use_gpu if section.use_gpu is not None else gpus >= 1
    gpu = (tune.gpus_per_worker or 1.0) if use_gpu else 0.0
    if tune.gpus_per_worker and not use_gpu:
        raise CapacityError(f"tune.gpus_per_worker = {tune.gpus_per_worker:g}, and no GPU is used; leave it out")
    if workers > 1 and gpu % 1:
        raise CapacityError(
            f"tune.gpus_per_worker = {gpu:g} with tune.workers_per_trial = {workers}: the workers of a trial cannot "
            "share a GPU (NCCL refuses); leave one of the two out"
        )
    carried = int(gpus / gpu / workers) if use_gpu else max(1, int(cpus // workers))
    wanted = tune.max_concurrent or max(1, carried)
    cpu = tune.cpus_per_worker or min(1.0, cpus / 2 / wanted / workers)
    fit = min(wanted, int(cpus / cpu / workers), int(gpus / gpu / workers) if gpu else wanted)
    if fit < 1:
        raise CapacityError(
            f"one trial reserves {workers} x ({cpu:g} CPUs, {gpu:g} GPUs), and the Ray cluster has {cpus:g} CPUs and "
            f"{gpus:g} GPUs; lower tune.workers_per_trial, tune.cpus_per_worker or tune.gpus_per_worker"
        )
    return TrialPlan(fit, workers, cpu, gpu, capacity.threads(fit * workers, packed=False))


def plan_reading(capacity: Capacity) -> Plan:
    """Tasks only: nothing is trained or predicted."""
    plan = _plan(capacity, ClusterSection(use_gpu=False), default_on_cpu=1)
    return dataclasses.replace(plan, num_actors=0, actor_cpus=0.0)


def _plan(
    capacity: Capacity,
    section: ClusterSection,
    *,
    default_on_cpu: int,
    useful: int | None = None,
    gpus_each: float = 1.0,
    packed: bool = False,
) -> Plan:
    """Raises CapacityError, with the numbers, for what could never start."""
    cpus, gpus = capacity.num_cpus, capacity.num_gpus
    if cpus <= 0:
        raise CapacityError(
            "the Ray cluster has no CPUs: nothing can be read or decoded; start it with --num-cpus, or where it scales "
            "itself from nothing, say how many to ask for with --cluster.request_cpus and --cluster.request_gpus"
        )
    use_gpu = section.use_gpu if section.use_gpu is not None else gpus >= 1
    if use_gpu and gpus < 1:
        raise CapacityError(
            f"cluster.use_gpu is true and {capacity.place} has 0 GPUs; start workers with GPUs or set it false"
        )
    # two shares of a GPU lie on one GPU, so what is left of each is lost
    on_gpus = int(gpus) * int(1 / gpus_each + 1e-9)
    limit = on_gpus if use_gpu else int(cpus * MAX_ACTORS_PER_CPU)
    default = on_gpus if use_gpu else default_on_cpu
    count = section.num_workers or (1 if capacity.one_process else min(default, useful or default))
    if count > limit:
        on_cpus = f"{cpus:g} CPUs, which carry {limit} at {MAX_ACTORS_PER_CPU} a CPU"
        what = f"{int(gpus)} GPUs{f', which carry {limit}' if gpus_each < 1 else ''}" if use_gpu else on_cpus
        raise CapacityError(
            f"cluster.num_workers = {count}, and {capacity.place} has {what}; lower it to {limit} or add nodes"
        )
    return Plan(
        num_actors=count,
        actor_cpus=min(1.0, cpus / 2 / count),
        actor_gpus=gpus_each if use_gpu else 0.0,
        # never the same as actor_cpus: Ray Data fuses a task stage into an actor stage when both reserve the same,
        # and decoding would then take turns with inference in one process
        task_cpus=0.9 * min(1.0, cpus / 2),
        torch_threads=capacity.threads(count, packed=packed),
    )


@contextlib.contextmanager
def asked_for(section: ClusterSection) -> Iterator[None]:
    """Ask a cluster that scales itself for ``request_cpus`` and ``request_gpus`` at once, and wait until it has them.

    The request is let go when they are there: work keeps machines from then on, and a job that is killed leaves nothing
    standing. There is one request for all of a cluster, so it is renewed: another job may have let go of its own.

    Raises:
        CapacityError: it did not come in ``resource_timeout_s``.
    """
    wanted = {"CPU": section.request_cpus or 0, "GPU": section.request_gpus or 0}
    if not any(wanted.values()):
        yield
        return
    import ray
    from ray.autoscaler.sdk import request_resources

    bundles = [{name: 1} for name, count in wanted.items() for _ in range(count)]
    try:
        started, said = time.monotonic(), 0.0
        while short := _short(ray.cluster_resources(), wanted):
            passed = time.monotonic() - started
            if passed > section.resource_timeout_s:
                raise CapacityError(
                    f"after cluster.resource_timeout_s = {section.resource_timeout_s:.0f} s the cluster has {short} of "
                    "what was asked for; it "
                    "does not scale itself, or not so far (max_workers), or the provider has no such machines now"
                )
            if passed >= said:
                request_resources(bundles=bundles)
                events.emit("waiting", reason="machines were asked for", have_of_wanted=short, seconds=passed)
                said = passed + RENEW_S
            time.sleep(0.5)
    finally:
        request_resources(bundles=[])
    yield


def _short(have: dict[str, float], wanted: Mapping[str, float]) -> dict[str, str]:
    """What there is too little of, in words."""
    return {name: f"{have.get(name, 0):g} of {need:g}" for name, need in wanted.items() if have.get(name, 0) < need}


def wait_until_free(plan: Plan, *, deadline_s: float) -> None:
    """Return when the cluster has free what a plan's actors and the first task reserve; say so while it has not.

    Raises:
        CapacityError: others still hold it when the deadline is over.
    """
    import ray

    asked = {"CPU": plan.actor_cpus * plan.num_actors + plan.task_cpus, "GPU": plan.actor_gpus * plan.num_actors}
    started, said = time.monotonic(), False
    while True:
        short = _short(ray.available_resources(), asked)
        if not short:
            return
        if time.monotonic() - started > deadline_s:
            raise CapacityError(
                f"after cluster.resource_timeout_s = {deadline_s:.0f} s the cluster still has too little "
                f"free: {short}; others hold it"
            )
        if not said:
            events.emit("waiting", reason="others hold what this command needs", free_of_needed=short)
            said = True
        time.sleep(0.5)
