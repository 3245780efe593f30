"""No silent wait: on a Ray of one CPU, named by RAY_ADDRESS, every command runs or says what it lacks."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.commands.helpers import events, latest, read_json
from tests.conftest import free_port

pytestmark = [pytest.mark.ray, pytest.mark.slow]
SCRIPTS = Path(sys.executable).parent


@pytest.fixture(scope="module")
def one_cpu_ray(tmp_path_factory):
    """The address of `ray start --head --num-cpus=1`, a Ray of its own."""
    port = free_port()
    folder = tmp_path_factory.mktemp("r")
    command = [SCRIPTS / "ray", "start", "--head", "--block", f"--port={port}", "--num-cpus=1", "--num-gpus=0",
               "--include-dashboard=false", "--disable-usage-stats", f"--temp-dir=/tmp/rr{os.getpid()}"]  # fmt: skip
    with (folder / "ray.log").open("wb") as log:
        process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log)
    address = f"127.0.0.1:{port}"
    for _ in range(60):
        status = subprocess.run([SCRIPTS / "ray", "status", f"--address={address}"], capture_output=True)
        if status.returncode == 0:
            break
        assert process.poll() is None, (folder / "ray.log").read_text()
        time.sleep(1)
    else:
        raise TimeoutError((folder / "ray.log").read_text())
    yield address
    # nothing of it is needed any more, and ending it gently takes half a minute
    for child in [*psutil.Process(process.pid).children(recursive=True), process]:
        child.kill()
    process.wait(10)


def run_job(address, command, *arguments, timeout=240):
    """jobs/COMMAND.py, as `ray job submit` runs it."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(root / "jobs" / f"{command}.py"), *map(str, arguments)],
        env={**os.environ, "RAY_ADDRESS": address},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    return done.returncode, done.stdout, done.stderr


def test_every_kind_of_work_runs_on_one_cpu(one_cpu_ray, small_catalog, tmp_path):
    """Tasks alone; tasks, workers that train together and what reports; tasks and predictors."""
    catalog = ["--catalog.uri", small_catalog[0] / "catalog.csv", "--catalog.max_pixels", 20_000_000]
    code, out, err = run_job(one_cpu_ray, "check", *catalog, "--out", tmp_path / "check")
    assert code == 0, err
    assert events(out)[-1]["rows"] == small_catalog[1]["num_rows"]
    recipe = [
        "--model.arch",
        "cnn1",
        "--train.epochs",
        1,
        "--transform.image_size",
        32,
        "--transform.augment",
        "none",
    ]
    code, out, err = run_job(
        one_cpu_ray, "train", *catalog, *recipe, "--cluster.num_workers", 2, "--out", tmp_path / "train"
    )
    assert code == 0, err
    assert read_json(f"{latest(str(tmp_path / 'train'))}/run.json")["num_workers"] == 2
    bundle = events(out)[-1]["bundle"]
    score = ["--model.uri", bundle, "--score.max_error_rate", 1, "--out", tmp_path / "score"]
    code, out, err = run_job(one_cpu_ray, "score", *catalog, *score)
    assert code == 0, err
    assert events(out)[-1]["failed"] == small_catalog[1]["num_broken"]


def test_what_does_not_fit_is_said_at_once(one_cpu_ray, small_catalog, small_bundle, tmp_path):
    arguments = [
        "--catalog.uri",
        small_catalog[0] / "catalog.csv",
        "--model.uri",
        small_bundle[0],
        "--out",
        tmp_path,
    ]
    code, _, err = run_job(one_cpu_ray, "score", *arguments, "--cluster.num_workers", 5)
    assert code == 1
    assert "cluster.num_workers = 5" in err
    assert "1 CPUs, which carry 4" in err


def test_an_address_where_no_ray_is(small_catalog, tmp_path):
    address = f"127.0.0.1:{free_port()}"
    code, _, err = run_job(
        address, "check", "--catalog.uri", small_catalog[0] / "catalog.csv", "--out", tmp_path, timeout=60
    )
    assert code == 1
    assert f"no Ray answers at {address}" in err
    assert len(err.strip().splitlines()) == 1
