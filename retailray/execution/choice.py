"""Which back end a command gets, and why."""

import contextlib
import sys
from collections.abc import Iterator

from retailray import events
from retailray.config import ClusterSection
from retailray.errors import CapacityError
from retailray.execution.executor import Executor
from retailray.execution.resources import visible_gpus
from retailray.execution.session import named_address

# a local Ray takes some ten seconds to start its processes, in which this process reads, decodes and predicts thousands
# of images; and threads share what Python itself does, which processes do not. With two CPUs that never pays
# (benchmarks/backends.py): threads score 284 images a second, Ray's processes 240
INLINE_IMAGES, FEW_CPUS = 10_000, 2


@contextlib.contextmanager
def start_executor(section: ClusterSection, *, num_images: int, needs_ray: str | None = None) -> Iterator[Executor]:
    """The machines of one command, for the length of a ``with`` block; an event says which back end, and why.

    Args:
        num_images: that are to be read, all passes together.
        needs_ray: what of the command runs on Ray alone.

    Raises:
        CapacityError: a cluster that is named cannot be reached; or ``cluster.engine`` is inline, and what is asked for
            needs Ray.
    """
    why = needs_ray or _why_ray(section)
    if section.engine == "inline" and why:
        raise CapacityError(f"cluster.engine = inline, and {why}; remove one of the two settings")
    if section.engine == "ray":
        why = "cluster.engine says so"
    elif not why and section.engine == "auto":
        why = why_many(num_images)
    events.emit("engine", engine="ray" if why else "inline", why=why or "little is to do, and no cluster is named")
    # each back end is imported where it is used: Ray alone takes a second
    if why:
        from retailray.execution.ray_backend import ray_executor

        with ray_executor(section) as on_ray:
            yield on_ray
    else:
        from retailray.execution.inline_backend import inline_executor

        with inline_executor() as here:
            yield here


@contextlib.contextmanager
def executor_for_reading(on_ray: Executor, section: ClusterSection, *, num_images: int) -> Iterator[Executor]:
    """Where a search reads its images: in this process where they are few, else where its trials run.

    Processes that read, decode and run frozen blocks start more slowly than this one does all that for a few images.
    """
    little = section.engine == "auto" and not why_many(num_images) and not _asks_for_ray(section)
    # other machines could not read what this one keeps, and memory of a GPU that it holds would be missing in trials
    if not little or on_ray.num_nodes > 1 or on_ray.capacity.num_gpus:
        yield on_ray
        return
    from retailray.execution.inline_backend import inline_executor

    with inline_executor() as executor:
        yield executor


def why_many(num_images: int) -> str | None:
    """The reason to start Ray for this number of images; None if there is none."""
    import joblib

    cpus = joblib.cpu_count()
    return f"there are {num_images} images, and {cpus} CPUs" if num_images > INLINE_IMAGES and cpus > FEW_CPUS else None


def _why_ray(section: ClusterSection) -> str | None:
    """What of the settings and of this process asks for Ray."""
    if asked := _asks_for_ray(section):
        return asked
    if visible_gpus() > 1 and section.use_gpu is not False and not section.num_workers:
        return f"this machine has {visible_gpus()} GPUs"
    ray = sys.modules.get("ray")
    if ray and ray.is_initialized() and section.engine == "auto":
        return "this process is connected to a Ray already"
    return None


def _asks_for_ray(section: ClusterSection) -> str | None:
    """What of the settings asks for Ray."""
    address = section.address if section.engine == "inline" else named_address(section)
    if address and address != "local":
        return f"a cluster is named: {address}"
    if (section.num_workers or 1) > 1:
        return f"cluster.num_workers = {section.num_workers}"
    for name in ("request_cpus", "request_gpus"):
        if count := getattr(section, name):
            return f"cluster.{name} = {count}"
    return None
