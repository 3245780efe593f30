"""One S3-protocol server and one Ray for the whole session; everything real, nothing mocked."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# before anything imports Ray or s3fs, and inherited by every Ray worker
S3_ENV = {
    "AWS_ACCESS_KEY_ID": "test-key",
    "AWS_SECRET_ACCESS_KEY": "test-secret",
    "AWS_REGION": "us-east-1",
}
for name in ("AWS_ENDPOINT_URL", "AWS_SESSION_TOKEN", "RAY_ADDRESS"):
    os.environ.pop(name, None)
os.environ.update(S3_ENV)
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="retailray-tests-")  # what runs keep, unless they say where
os.environ["GOMP_SPINCOUNT"] = "3000"  # as the command line does, before torch is imported
os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"  # as the command line does for a Ray of its own
os.environ["RAY_AUTH_MODE"] = "disabled"  # tests start several Rays on this machine and connect to them by address
# a shell's background jobs ignore Ctrl-C, and so would the commands that tests start and interrupt
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# pytest's capture keeps stderr open anyway; Ray's own messages would hide the test that failed
os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"


def pytest_collection_modifyitems(items):
    """Marks follow from what a test uses, so that `make test-fast` leaves out what it says it leaves out.

    Files with the longest tests come first, so that no process is left with one of them at the end.
    """
    for item in items:
        if "s3_endpoint" in item.fixturenames:
            item.add_marker("s3")
        elif item.get_closest_marker("s3"):
            item.fixturenames.insert(0, "s3_endpoint")
        if "ray_session_cpus" in item.fixturenames:
            item.add_marker("ray")
    rank: dict[Path, int] = {}
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        own = 0 if item.path.name in NODES else 1 if "ray" in marks else 2 if marks & {"slow", "real"} else 3
        rank[item.path] = min(own, rank.get(item.path, own))
    items.sort(key=lambda item: rank[item.path])


NODES = ("test_jobs.py", "test_many_nodes.py", "test_placement.py")  # which share the machines of `nodes`


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file's tests run in one process, and so do the files that share what takes half a minute to start."""
    from xdist.scheduler import LoadFileScheduling

    class ByFixture(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "nodes" if Path(file).name in NODES else file

    return ByFixture(config, log)


_ports: set[int] = set()


def free_port() -> int:
    """A port that nobody listens at, another one each time: the system gives the same one twice now and then.

    Of a range of this test process's own, between those that Ray and the system give.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        port = random.randrange(20_000 + 3_000 * worker, 23_000 + 3_000 * worker)
        with socket.socket() as probe:
            if port not in _ports and probe.connect_ex(("127.0.0.1", port)):
                _ports.add(port)
                return port


def start_s3_server(log: Path, **env: str) -> tuple[subprocess.Popen, str]:
    """A moto server in a process of its own; returns it with its endpoint once it answers."""
    port = free_port()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "s3_server.py"), str(port)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **env},
        )
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return process, f"http://127.0.0.1:{port}"
        except OSError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
    raise TimeoutError(log.read_text())


@contextlib.contextmanager
def start_proxy(upstream: str, mode: str):
    """tests/fault_proxy.py in front of a server; its endpoint."""
    port = free_port()
    process = subprocess.Popen([sys.executable, str(ROOT / "tests" / "fault_proxy.py"), str(port), upstream, mode])
    try:
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory):
    process, endpoint = start_s3_server(tmp_path_factory.mktemp("s3") / "server.log")
    os.environ["AWS_ENDPOINT_URL_S3"] = endpoint
    yield endpoint
    process.terminate()
    process.wait(10)


@pytest.fixture
def bucket(s3_endpoint, request):
    """A new, empty bucket; its address without a trailing slash."""
    import s3fs

    name = f"t-{abs(hash(request.node.nodeid)) % 10**12}"
    s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True).mkdir(name)
    return f"s3://{name}"


@pytest.fixture(scope="module")
def google(tmp_path_factory):
    """A server of Google Cloud Storage's protocol, in this module's environment."""
    from tests.emulators import google_emulator

    yield from _in_environment(google_emulator(tmp_path_factory.mktemp("google") / "server.log"))


@pytest.fixture(scope="module")
def azure(tmp_path_factory):
    """A server of Azure Blob storage's protocol, in this module's environment."""
    from tests.emulators import azure_emulator, azurite_program

    if not azurite_program():
        pytest.skip("needs Azurite: npm install azurite, and RETAILRAY_AZURITE=node_modules/.bin/azurite-blob")
    yield from _in_environment(azure_emulator(tmp_path_factory.mktemp("azure") / "server.log"))


def _in_environment(server):
    with server as named, pytest.MonkeyPatch.context() as environment:
        for name, value in named.items():
            environment.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def ray_session_cpus(s3_endpoint):
    """The session's Ray, with four logical CPUs; commands called in this process use it."""
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield 4
    ray.shutdown()


@pytest.fixture
def retailray(capfd, request):
    """Run a command in this process: ``retailray("check", **{"catalog.uri": ...})`` → (exit code, stdout, stderr).

    On the session's Ray where a test asks for it, else without Ray.
    """
    from retailray.cli import main
    from tests.commands.helpers import words_of

    inline = "ray_session_cpus" not in request.fixturenames

    def run(command: str, **settings: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(words_of(command, settings, inline=inline))
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="session")
def small_catalog(tmp_path_factory):
    """A made-up catalog of 96 pictures with its planted faults: (folder, what was planted)."""
    from retailray.data.synthetic import write_catalog

    folder = tmp_path_factory.mktemp("catalog")
    return folder, write_catalog(str(folder), num_images=96, label_noise=0.05, seed=3)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A made-up catalog, weights for it, and the settings that all runs of a module share."""
    import safetensors.torch
    import torch

    from retailray.data.synthetic import write_catalog
    from retailray.models.backbones import build_model

    folder = tmp_path_factory.mktemp("shop")
    write_catalog(str(folder), num_images=120, label_noise=0.0, seed=5)
    for arch in ("resnet18", "squeezenet1_1"):
        torch.manual_seed(0)
        safetensors.torch.save_file(build_model(arch, 10).state_dict(), folder / f"{arch}.safetensors")
    return {
        "catalog.uri": folder / "catalog.csv",
        "catalog.group": "sku",
        "catalog.max_pixels": 20_000_000,
        "split.validation": 0.3,
        "transform.image_size": 32,
        "transform.resize_size": 36,
        "model.arch": "resnet18",
        "model.weights": folder / "{arch}.safetensors",
        "train.batch_size": 16,
        "train.precision": "float32",
        "train.cache_uri": folder / "cache",
    }


def save_untrained(folder, arch, *, seed=0):
    """A bundle of an untrained network for the made-up products at 32 px: (address, labels)."""
    from retailray.data.synthetic import PRODUCTS
    from retailray.models.backbones import IMAGENET_MEAN, IMAGENET_STD
    from retailray.models.bundle import BundleMeta, EvalTransform, save_bundle
    from retailray.models.weights import pretrained_model

    labels = sorted(PRODUCTS)
    model, _, _, backbone = pretrained_model(arch, "none", len(labels), seed=seed, image_size=32)
    transform = EvalTransform(resize_size=36, crop_size=32, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    meta = BundleMeta(name="untrained", version="1", arch=arch, labels=labels, transform=transform)
    # heads begin with small weights, and all confidences would be alike
    head = f"{backbone.head_name(model)}.weight"
    state = {name: tensor * 40 if name == head else tensor for name, tensor in model.state_dict().items()}
    save_bundle(str(folder / "bundle"), meta, state)
    return str(folder / "bundle"), labels


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory):
    """Of the smallest network, which asks for no torchvision."""
    return save_untrained(tmp_path_factory.mktemp("bundle"), "cnn1")


@pytest.fixture(scope="session")
def real_data():
    """(grocery folder, weights folder); set RETAILRAY_REAL_DATA to the folder that holds data/ and weights/."""
    where = os.environ.get("RETAILRAY_REAL_DATA")
    if not where:
        pytest.skip("needs real photos: set RETAILRAY_REAL_DATA to a folder with data/grocery and weights (CI does)")
    folder = Path(where)
    assert (folder / "data/grocery/train.csv").exists(), f"RETAILRAY_REAL_DATA = {where} has no data/grocery/train.csv"
    return folder / "data/grocery", folder / "weights"
