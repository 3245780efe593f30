"""Ctrl-C: exit 130, one line, nothing published, no process left; a killed worker too many is a clear error."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.commands.helpers import latest, ray_processes, run_beside, start_command, words_of

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def settings_of(small_catalog, out, engine):
    """A training that does not end by itself."""
    return {
        "catalog.uri": small_catalog[0] / "catalog.csv",
        "catalog.max_pixels": 20_000_000,
        "model.arch": "cnn1",
        "transform.image_size": 32,
        "transform.augment": "none",
        "train.epochs": 100_000,
        "train.max_failures": 0,
        "train.cache_uri": small_catalog[0] / "cache",  # filled once for all of these
        "cluster.engine": engine,
        "out": out,
    }


def training(started, small_catalog, out, engine, **changes):
    process = start_command("train", **settings_of(small_catalog, out, engine) | changes)
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


def test_ctrl_c_while_training(started, small_catalog, tmp_path):
    """On Ray, where a worker is killed and the run resumed: :mod:`tests.commands.test_fine_tuning`."""
    process = training(started, small_catalog, tmp_path, "inline")
    wait_for_epoch(process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.count("\n") == 1
    assert "interrupted" in err
    assert not (tmp_path / "LATEST").exists()
    assert not list(tmp_path.glob("*/_SUCCESS"))


@pytest.mark.parametrize(("engine", "seconds"), [("inline", 0.3), ("ray", 3)])
def test_ctrl_c_while_starting(started, small_catalog, tmp_path, engine, seconds):
    vision = (
        {"model.arch": "resnet18", "model.weights": "none", "transform.augment": "standard"}
        if engine == "inline"
        else {}
    )
    process = training(started, small_catalog, tmp_path, engine, **vision)
    assert '"event": "start"' in process.stdout.readline()
    time.sleep(seconds)  # into the start of Ray, and somewhat further
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.count("\n") == 1


NOTEBOOK = """
import json, os, signal, sys, threading, time
import psutil
from retailray.cli import main

command, out, interrupted = json.loads(sys.argv[1]), sys.argv[2], threading.Event()

def interrupt():
    while not any(name.endswith(".parquet") for _, _, names in os.walk(out) for name in names):
        time.sleep(0.01)  # until the first images are committed
    os.kill(os.getpid(), signal.SIGINT)
    interrupted.set()

def foreign(thread):  # Arrow's own threads that have called Python once are never forgotten
    return thread is not threading.main_thread() and not isinstance(thread, threading._DummyThread)

threading.Thread(target=interrupt, daemon=True).start()
codes = [main(command)]
interrupted.wait(60)
codes += [main(command), main([*command[:-3], "inline", "--out", command[-1] + "-again"])]
deadline = time.monotonic() + 30
while any(map(foreign, threading.enumerate())) or psutil.Process().children(recursive=True):
    if time.monotonic() > deadline:
        break
    time.sleep(0.2)
left = [thread.name for thread in threading.enumerate() if foreign(thread)]
left += [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
print(json.dumps({"codes": codes, "left": left}), file=sys.stderr)
"""


@pytest.mark.parametrize("engine", ["inline", "ray"])
def test_a_run_in_a_notebook_is_interrupted_and_repeated_and_leaves_nothing(
    engine, small_catalog, small_bundle, tmp_path
):
    """Three runs in one process: one interrupted, the same again, and one that nothing interrupts, without Ray.

    No thread and no process outlives them. The folder for temporary files is a long one: the addresses of Ray's
    sockets, which lie there, would be longer than the system takes.
    """
    deep = tmp_path / ("long" * 20) / ("folder" * 10)
    deep.mkdir(parents=True)
    settings = {"catalog.uri": small_catalog[0] / "catalog.csv", "catalog.max_pixels": 20_000_000}
    settings |= {"model.uri": small_bundle[0], "score.max_error_rate": 1, "score.batch_size": 8}
    words = [*words_of("score", settings), "--cluster.engine", engine, "--out", str(tmp_path / "out")]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
    environment["TMPDIR"] = str(deep)
    done = subprocess.run([sys.executable, "-c", NOTEBOOK, json.dumps(words), tmp_path / "out"],
                          capture_output=True, text=True, timeout=500, env=environment)  # fmt: skip
    found = json.loads(done.stderr.splitlines()[-1])
    assert found == {"codes": [130, 0, 0], "left": []}, done.stderr
    once, twice = (
        sorted(row for path in Path(latest(str(tmp_path / out))).glob("predictions/*")
               for row in pq.ParquetFile(path).read(["image"]).column(0).to_pylist())
        for out in ("out", "out-again")
    )  # fmt: skip
    assert once == twice
    assert len(once) == len(set(once)) > 50


@pytest.mark.usefixtures("ray_session_cpus")
def test_a_worker_killed_more_often_than_allowed_is_one_clear_line(small_catalog, tmp_path, capfd):
    words = words_of("train", settings_of(small_catalog, tmp_path, "ray"))

    def interfere(heard):
        heard.until("epoch", 2)
        [worker] = ray_processes("RayTrainWorker")
        worker.kill()

    capfd.readouterr()
    code, _ = run_beside(words, interfere)
    err = capfd.readouterr().err
    assert code == 1
    # Ray adds its own word about the dead process before ours
    assert err.splitlines()[-1].startswith("retailray train: training failed:")
    assert "Traceback" not in err
    assert not (tmp_path / "LATEST").exists()
