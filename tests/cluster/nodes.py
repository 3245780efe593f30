"""Several machines on this one: each node a `ray start` of its own, with its own ports and object store."""

import contextlib
import json
import os
import pty
import queue
import secrets
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import requests

from tests.conftest import free_port

RAY = Path(sys.executable).parent / "ray"
TOKEN = secrets.token_hex(32)
SECRET = f"planted-{secrets.token_hex(12)}"  # the S3 server takes any
BUCKET = "many-nodes"
STORE_BYTES = 150 * 2**20
# how long a node that says nothing is waited for: Ray's default is half a minute
HEALTH = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "8",
    "RAY_metrics_report_interval_ms": "1000",  # of its default of ten seconds a short run may leave nothing
}


class Nodes:
    """A head that runs no work, and workers that come and go. Storage credentials are not in its environment."""

    def __init__(
        self, folder: Path, *, token: str | None = None, autoscaling: dict | None = None, env: dict | None = None
    ) -> None:
        """``autoscaling``: Ray's configuration of it, with ``{gcs}`` where this head's address belongs."""
        self.folder, self.workers = folder, {}
        self.temp = f"/tmp/rr{os.getpid()}-{free_port()}"  # socket paths must be short
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))}
        self.env |= HEALTH | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RETAILRAY_TRACEBACK": "1"}
        if token:
            path = folder / "token"
            path.write_text(token)
            path.chmod(0o600)
            self.env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}
        self.env |= env or {}
        port, dashboard = free_port(), free_port()
        self.address, self.dashboard = f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}"
        self.metrics_ports: dict[str, int] = {}
        self.head = self._start(
            "head", "--head", f"--port={port}", f"--dashboard-port={dashboard}", f"--temp-dir={self.temp}",
            "--include-dashboard=true", "--num-cpus=0", *self._autoscaling(autoscaling),
        )  # fmt: skip
        self._wait(lambda: self.count() == 1, "the head")

    def _autoscaling(self, config: dict | None) -> list[str]:
        if config is None:
            return []
        path = self.folder / "autoscaling.json"
        path.write_text(json.dumps(config).replace("{gcs}", self.address))
        return [f"--autoscaling-config={path}"]

    def _start(self, name: str, *arguments: str) -> subprocess.Popen:
        self.metrics_ports[name] = free_port()
        ports = [
            f"--metrics-export-port={self.metrics_ports[name]}",
            *(f"--{agent}-port={free_port()}" for agent in ("dashboard-agent-listen", "dashboard-agent-grpc")),
            f"--runtime-env-agent-port={free_port()}",
        ]
        command = [str(RAY), "start", "--block", "--node-ip-address=127.0.0.1", "--num-gpus=0", "--disable-usage-stats",
                   "--include-log-monitor=false",  # nobody here has workers' logs shown to a driver
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
        self._wait(lambda: self.count() == 1 + len(self.workers), name)

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

    def count(self) -> int:
        """Nodes that are alive, the head among them."""
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


def users_environment(nodes: Nodes) -> dict[str, str]:
    """Of one who submits: the token's file and the storage environment."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    key = nodes.folder.parent / f"{nodes.folder.name}-google.json"  # of whom nothing is asked here
    key.write_text(json.dumps({"type": "service_account", "private_key": SECRET}))
    env |= {"AWS_SECRET_ACCESS_KEY": SECRET, "AZURE_STORAGE_ACCOUNT_KEY": SECRET}
    env |= {"GOOGLE_APPLICATION_CREDENTIALS": str(key)}
    return env | {name: nodes.env[name] for name in ("RAY_AUTH_TOKEN_PATH",) if name in nodes.env}


class Terminal:
    """`retailray submit ...` on a terminal of its own, as a person has it: what is typed, what is shown."""

    def __init__(self, nodes: Nodes, *arguments: str) -> None:
        command = [sys.executable, "-m", "retailray", "submit", *arguments, "--cluster.address", nodes.dashboard]
        self.pid, self.screen = pty.fork()
        if not self.pid:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # those who run the tests in the background ignore it
            os.execve(command[0], command, users_environment(nodes))
        self.shown = ""

    def type(self, keys: str) -> None:
        os.write(self.screen, keys.encode())

    def until(self, text: str, seconds: float = 180) -> None:
        """Until this is shown, after what was shown before."""
        self.shown, deadline = "", time.monotonic() + seconds
        while text not in self.shown:
            assert time.monotonic() < deadline, f"no {text!r} in {self.shown!r}"
            if select.select([self.screen], [], [], 1)[0]:
                self.shown += os.read(self.screen, 65536).decode(errors="replace")

    def exit_code(self) -> int:
        with contextlib.suppress(OSError):  # the end of the other side
            while os.read(self.screen, 65536):
                pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


class Submitted:
    """`retailray submit COMMAND`, as its user starts it: the token's file and the storage environment, nothing else."""

    def __init__(self, nodes, command, *flags, address=None, **settings):
        env = users_environment(nodes)
        arguments = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
        words = [command] if command == "doctor" else ["submit", command]  # the doctor submits itself
        line = [sys.executable, "-m", "retailray", *words, *flags, *arguments]
        line += ["--cluster.address", address or nodes.dashboard]
        self.process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
        self.events: list[dict] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._errors: list[str] = []
        # read by threads all the time: communicate() does not know of what an iterator has read ahead
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._read_lines, self._read_errors)]
        for reader in self._readers:
            reader.start()

    def _read_lines(self):
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _read_errors(self):
        self._errors.append(self.process.stderr.read())

    def until(self, name, count=1):
        """The event of this name, when it comes for the ``count``-th time."""
        while line := self._lines.get(timeout=600):
            self.events.append(json.loads(line))
            count -= self.events[-1]["event"] == name
            if not count:
                return self.events[-1]
        self._lines.put(None)
        raise AssertionError(f"no {name}: {self.events[-3:]}, {self.end()[2][-2000:]}")

    def end(self, timeout=600):
        """(exit code, all events, standard error)"""
        code = self.process.wait(timeout)
        for reader in self._readers:
            reader.join(timeout=30)
        while line := self._lines.get(timeout=30):
            self.events.append(json.loads(line))
        self._lines.put(None)
        return code, self.events, self._errors[0]


def wait_for(look, what, seconds=180):
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.1)
    return found
