"""What a cluster's machines say of themselves: versions, storage, disks, clocks, GPUs; each fault with its remedy."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import os
import platform
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from retailray import storage
from retailray.config import DoctorConfig
from retailray.errors import RetailrayError
from retailray.provenance import version

LIBRARIES = ("ray", "torch", "torchvision", "pyarrow")
AT_ONCE = 200  # machines that are asked together
NODE_S = 60.0  # for the answer of one machine
CLIENT = "RETAILRAY_CLIENT_VERSIONS"  # of the machine that submitted this
STORAGE = (
    "give the workers the same role or credentials, endpoint and region as here, and use object storage or a folder "
    "that all machines share; see docs/cluster.md"
)
INSTALL = "install the same versions on both sides: pip install -c constraints.txt ."


@dataclasses.dataclass(frozen=True)
class Check:
    """``found`` is what was seen; ``fix``, where it is not ``ok``, what to do."""

    name: str
    ok: bool
    found: str
    fix: str = ""


def versions() -> dict[str, str]:
    """Return the versions of Python and the libraries of this process that must agree between machines."""
    found = {name: version(name) for name in LIBRARIES}
    return {"python": platform.python_version(), **found}


def compare_versions(here: dict[str, str], there: dict[str, str], where: str) -> Check:
    """Python to its minor version (pickles), libraries exactly."""
    minor = [".".join(side["python"].split(".")[:2]) for side in (here, there)]
    differ = {name: (here[name], there.get(name, "missing")) for name in here if name != "python"}
    wrong = [f"{name} {ours} here, {theirs} there" for name, (ours, theirs) in differ.items() if ours != theirs]
    wrong += [f"python {minor[0]} here, {minor[1]} there"] if minor[0] != minor[1] else []
    found = ", ".join(wrong) or ", ".join(f"{name} {number}" for name, number in there.items())
    return Check(f"versions on {where}", not wrong, found, INSTALL)


def examine(config: DoctorConfig) -> list[Check]:
    """All checks of the Ray that ``config.cluster`` means, from a driver on it."""
    from retailray.execution.session import ray_session

    with ray_session(config.cluster) as capacity:
        seen = f"{capacity.num_cpus:g} CPUs, {capacity.num_gpus:g} GPUs"
        fix = "start workers, or ask for them: --cluster.request_cpus"
        checks = [Check("cluster", capacity.num_cpus > 0, seen, fix)]
        if CLIENT in os.environ:
            checks.append(compare_versions(json.loads(os.environ[CLIENT]), versions(), "the cluster's head"))
        with _marker(config.out) as (marker, problem):
            if marker:
                checks.append(Check("write out from the driver", not problem, problem or "works", STORAGE))
            machines = _ask_machines(config, marker)
        for machine in machines:
            checks += _of_machine(config, machine, machine["name"])
        return checks


@contextlib.contextmanager
def _marker(out: str) -> Iterator[tuple[str, str]]:
    """The address of a small file for every machine to see in the block, and what kept us from writing it, if any."""
    if not out:
        yield "", ""
        return
    address = storage.join(out, f".doctor-{uuid.uuid4().hex[:8]}")
    problem = _tried(lambda: storage.write_bytes(address, b"retailray doctor", deadline_s=storage.DEADLINE_S))
    try:
        yield address, problem
    finally:
        _tried(lambda: storage.remove_file(address))


def _ask_machines(config: DoctorConfig, marker: str) -> list[dict[str, Any]]:
    """What a task on each machine says, or ``{"error": ...}``; machines that take no tasks (CPU 0) are asked too."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    addresses = {
        "what the driver wrote to out": marker,
        "catalog.uri": config.catalog.uri,
        "model.uri": config.model.uri,
    }
    readable = {key: value for key, value in addresses.items() if value}
    probe = ray.remote(num_cpus=0, max_retries=0)(look_around)

    def ask(node: dict[str, Any]) -> dict[str, object]:
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        expected = node["Resources"].get("GPU", 0)
        try:
            asked = probe.options(scheduling_strategy=strategy, num_gpus=0).remote(readable, config.out)
            told = ray.get(asked, timeout=NODE_S)
            told["skew_s"] = _skew(strategy)
        except Exception as error:  # a machine that does not answer is an answer
            told = {"error": " ".join(str(error).split())[:200]}
        return {"name": node["NodeManagerHostname"] + "/" + node["NodeID"][:6], "expected_gpus": expected, **told}

    alive = [node for node in ray.nodes() if node["Alive"]]
    with concurrent.futures.ThreadPoolExecutor(min(AT_ONCE, len(alive))) as pool:
        return list(pool.map(ask, alive))


def _skew(strategy: object) -> float:
    """Its clock less ours [s], by the quickest of three questions, half of whose time is the way there."""
    import ray

    ask = ray.remote(num_cpus=0)(_now).options(scheduling_strategy=strategy)
    best = (float("inf"), 0.0)
    for _ in range(3):
        sent = time.time()
        theirs = ray.get(ask.remote(), timeout=NODE_S)
        took = time.time() - sent
        best = min(best, (took, theirs - (sent + took / 2)))
    return best[1]


def _now() -> float:
    return time.time()


def look_around(readable: dict[str, str], out: str) -> dict[str, object]:
    """What a worker sees of its machine and of the storage. Runs on every machine."""
    free = shutil.disk_usage(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()).free
    told: dict[str, Any] = {"versions": versions(), "free_gb": free / 1e9, "storage": {}}
    for key, address in readable.items():
        told["storage"][f"read {key}"] = _tried(functools.partial(_read, address))
    if out:
        told["storage"]["write out"] = _tried(lambda: _write(out))
    try:
        import torch

        told["gpus"] = torch.cuda.device_count()
    except Exception as error:  # a broken driver raises whatever it likes
        told["gpus"], told["torch"] = 0, f"{type(error).__name__}: {error}"
    return told


def _read(address: str) -> None:
    from retailray.models.registry import resolve

    storage.check_readable(resolve(address) if "@" in address else address)


def _write(out: str) -> None:
    """Something small is written, read back and removed."""
    address, content = storage.join(out, f".doctor-{uuid.uuid4().hex[:8]}"), b"written by retailray doctor"
    storage.put_if_absent(address, content)
    try:
        if not storage.is_exclusive(address, content):
            raise RetailrayError(
                f"{out}: the store ignores the conditions of writes, so two concurrent runs cannot be prevented; "
                "update the store, or write to another one"
            )
        if storage.read_bytes(address) != content:
            raise RetailrayError(f"{address}: reading back returned other bytes than were written")
    finally:
        storage.remove_file(address)


def _tried(action: Callable[[], None]) -> str:
    """Return the error as one line, or an empty text if ``action`` succeeded."""
    try:
        action()
    except RetailrayError as error:
        return str(error)
    return ""


def _of_machine(config: DoctorConfig, told: dict[str, Any], name: str) -> list[Check]:
    if "error" in told:
        fix = "look at its raylet's log; a machine that cannot start workers holds up every run"
        return [Check(f"{name} answers", False, told["error"], fix)]
    free, limits = told["free_gb"], config.doctor
    checks = [
        compare_versions(versions(), told["versions"], name),
        Check(
            f"disk of {name}",
            free >= limits.min_free_gb,
            f"{free:.1f} GB free",
            f"at least {limits.min_free_gb:g} GB (doctor.min_free_gb): larger disks, or RAY_TMPDIR on another one",
        ),
        Check(
            f"clock of {name}",
            abs(told["skew_s"]) <= limits.max_skew_s,
            f"{told['skew_s']:+.2f} s",
            "run an NTP client (chrony) there; object stores refuse requests that are minutes off",
        ),
    ]
    for what, problem in told["storage"].items():
        checks.append(Check(f"{what} from {name}", not problem, problem or "works", STORAGE))
    expected = int(told["expected_gpus"])
    if expected or told["gpus"]:
        fix = "torch sees fewer GPUs than Ray was told of: check the driver (nvidia-smi) and the container's runtime"
        checks.append(
            Check(f"GPUs of {name}", told["gpus"] >= expected, f"Ray has {expected}, torch sees {told['gpus']}", fix)
        )
    return checks
