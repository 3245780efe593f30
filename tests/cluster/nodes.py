"""Several machines on this one: each node a `ray start` of its own, with its own ports and object store."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import requests

from tests.conftest import free_port

RAY = Path(sys.executable).parent / "ray"
STORE_BYTES = 150 * 2**20
# how long a node that says nothing is waited for: Ray's default is half a minute
HEALTH = {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "8"}


class Nodes:
    """A head that runs no work, and workers that come and go. Storage credentials are not in its environment."""

    def __init__(self, folder: Path, *, token: str | None = None, head_cpus: int = 0) -> None:
        self.folder, self.workers = folder, {}
        self.temp = f"/tmp/rr{os.getpid()}-{free_port()}"  # socket paths must be short
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))}
        self.env |= HEALTH | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RETAILRAY_TRACEBACK": "1"}
        if token:
            path = folder / "token"
            path.write_text(token)
            path.chmod(0o600)
            self.env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}
        port, dashboard = free_port(), free_port()
        self.address, self.dashboard = f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}"
        self.metrics_ports: dict[str, int] = {}
        self.head = self._start(
            "head", "--head", f"--port={port}", f"--dashboard-port={dashboard}", f"--temp-dir={self.temp}",
            "--include-dashboard=true", f"--num-cpus={head_cpus}",
        )  # fmt: skip
        self._wait(lambda: self._count() == 1, "the head")

    def _start(self, name: str, *arguments: str) -> subprocess.Popen:
        self.metrics_ports[name] = free_port()
        ports = [
            f"--metrics-export-port={self.metrics_ports[name]}",
            *(f"--{agent}-port={free_port()}" for agent in ("dashboard-agent-listen", "dashboard-agent-grpc")),
            f"--runtime-env-agent-port={free_port()}",
        ]
        command = [str(RAY), "start", "--block", "--node-ip-address=127.0.0.1", "--num-gpus=0", "--disable-usage-stats",
                   f"--object-store-memory={STORE_BYTES}", *ports, *arguments]  # fmt: skip
        if any(argument.startswith("--num-gpus") for argument in arguments):
            command.remove("--num-gpus=0")
        with (self.folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=self.env, start_new_session=True)

    def add(self, name: str, *, num_cpus: int = 2, num_gpus: int = 0, labels: str = "") -> None:
        labelled = [f"--labels={labels}"] if labels else []
        self.workers[name] = self._start(
            name,
            f"--address={self.address}",
            f"--num-cpus={num_cpus}",
            f"--num-gpus={num_gpus}",
            *labelled,
            f"--temp-dir={self.temp}{name}",  # a disk of its own: nodes clear away what others of one folder still use
        )
        self._wait(lambda: self._count() == 1 + len(self.workers), name)

    def kill(self, name: str) -> None:
        """SIGKILL to everything of a node, as when a machine goes away."""
        _kill_tree(self.workers.pop(name))

    def busy(self, title: str) -> dict[str, list[int]]:
        """Names of the workers with Ray processes of this title at work → their process ids."""
        found: dict[str, list[int]] = {}
        for name, process in self.workers.items():
            for child in psutil.Process(process.pid).children(recursive=True):
                try:
                    if title in " ".join(child.cmdline()):
                        found.setdefault(name, []).append(child.pid)
                except psutil.NoSuchProcess:
                    continue
        return found

    def files(self) -> list[Path]:
        """All that all nodes wrote: logs, packages."""
        return [path for path in Path("/tmp").glob(f"{Path(self.temp).name}*/**/*") if path.is_file()]

    def metrics(self) -> str:
        """What Prometheus would read from all nodes now."""
        texts = []
        for port in self.metrics_ports.values():
            try:
                texts.append(requests.get(f"http://127.0.0.1:{port}/metrics", timeout=5).text)
            except requests.exceptions.RequestException:
                continue
        return "\n".join(texts)

    def stop(self) -> None:
        for process in [*self.workers.values(), self.head]:
            _kill_tree(process)
        for folder in Path("/tmp").glob(f"{Path(self.temp).name}*"):
            shutil.rmtree(folder, ignore_errors=True)

    def _count(self) -> int:
        headers = {}
        if path := self.env.get("RAY_AUTH_TOKEN_PATH"):
            headers = {"Authorization": f"Bearer {Path(path).read_text()}"}
        try:
            found = requests.get(f"{self.dashboard}/nodes?view=summary", headers=headers, timeout=5).json()
        except (requests.exceptions.RequestException, ValueError):
            return 0
        return sum(node["raylet"].get("state") == "ALIVE" for node in found["data"]["summary"])

    def _wait(self, ready, what: str) -> None:
        deadline = time.monotonic() + 90
        while not ready():
            logs = "\n".join(path.read_text()[-2000:] for path in self.folder.glob("*.log"))
            assert time.monotonic() < deadline, f"{what} did not come up: {logs}"
            assert self.head.poll() is None if hasattr(self, "head") else True, logs
            time.sleep(0.3)


def _kill_tree(process: subprocess.Popen) -> None:
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return
    for member in [psutil.Process(process.pid), *family]:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait(10)
