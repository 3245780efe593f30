"""Ctrl-C: exit 130, one line, nothing published, no process left; a killed worker too many is a clear error."""

import signal
import time

import psutil
import pytest

from tests.commands.helpers import start_command

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def training(started, small_catalog, out, engine):
    settings = {
        "catalog.uri": small_catalog[0] / "catalog.csv",
        "catalog.max_pixels": 20_000_000,
        "model.arch": "resnet18",
        "model.weights": "none",
        "transform.image_size": 64,
        "train.epochs": 500,
        "train.max_failures": 0,
        "train.cache_uri": out / "cache",
        "cluster.engine": engine,
    }
    process = start_command("train", **settings, out=out)
    started.append(process)
    return process


@pytest.fixture
def started():
    """Processes to end with the test, however it ends."""
    processes = []
    yield processes
    for process in processes:
        process.kill()


def wait_for_epoch(process):
    for line in process.stdout:
        if '"event": "epoch"' in line:
            return
    raise AssertionError(process.stderr.read())


@pytest.mark.parametrize("engine", ["inline", "ray"])
def test_ctrl_c_while_training(started, small_catalog, tmp_path, engine):
    process = training(started, small_catalog, tmp_path, engine)
    wait_for_epoch(process)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) > 3 or engine == "inline"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.count("\n") == 1
    assert "interrupted" in err
    assert not (tmp_path / "LATEST").exists()
    assert not list(tmp_path.glob("*/_SUCCESS"))
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive


@pytest.mark.parametrize(("engine", "seconds"), [("inline", 0.3), ("ray", 3)])
def test_ctrl_c_while_starting(started, small_catalog, tmp_path, engine, seconds):
    process = training(started, small_catalog, tmp_path, engine)
    assert '"event": "start"' in process.stdout.readline()
    time.sleep(seconds)  # into the start of Ray, and somewhat further
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.count("\n") == 1


def test_a_worker_killed_more_often_than_allowed_is_one_clear_line(started, small_catalog, tmp_path):
    process = training(started, small_catalog, tmp_path, "ray")
    wait_for_epoch(process)
    workers = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if any("RayTrainWorker" in part for part in child.cmdline())
    ]
    assert len(workers) == 1
    workers[0].kill()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    # Ray adds its own word about the dead process before ours
    assert err.splitlines()[-1].startswith("retailray train: training failed:")
    assert "Traceback" not in err
    assert not (tmp_path / "LATEST").exists()
