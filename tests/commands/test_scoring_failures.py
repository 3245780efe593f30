"""Bad nights: killed processes and a faulty store, all of them real; the table is that of a quiet night."""

import json
import signal
import time
import urllib.request

import pandas as pd
import psutil
import pytest
import s3fs

from retailray.cli import main
from retailray.data.synthetic import write_catalog
from tests.commands.helpers import events, latest, read_json, start_command, words_of
from tests.conftest import start_proxy

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow]
NUM_IMAGES = 360  # some six parts
STAMP = ["run_id", "scored_at"]


@pytest.fixture(scope="module")
def settings(s3_endpoint, small_bundle):
    fs = s3fs.S3FileSystem()
    fs.mkdir("night")
    write_catalog("s3://night/shop", num_images=60, label_noise=0.0, seed=9)
    source = pd.read_csv("s3://night/shop/catalog.csv", dtype=str)
    # the same pictures many times over, each time under a name of its own
    rows = [source.assign(copy=0)]
    sources = [f"night/shop/{image}" for image in source.image if fs.exists(f"night/shop/{image}")]
    for copy in range(1, NUM_IMAGES // len(source)):
        rows.append(source.assign(copy=copy, image=[f"{copy}/{image}" for image in source.image]))
    for copy in range(1, NUM_IMAGES // len(source)):
        fs.copy(sources, [name.replace("night/shop/", f"night/shop/{copy}/") for name in sources])
    with fs.open("night/shop/catalog.csv", "w") as file:
        pd.concat(rows).to_csv(file, index=False)
    return {
        "catalog.uri": "s3://night/shop/catalog.csv",
        "catalog.max_pixels": 20_000_000,
        "model.uri": small_bundle[0],
        "score.dedupe": "false",
        "score.max_error_rate": 1,
        "score.batch_size": 32,
        "score.precision": "float32",
    }


def tables(out):
    fs, run = s3fs.S3FileSystem(use_listings_cache=False), latest(out).removeprefix("s3://")
    found = []
    for folder, order in (("predictions", "image"), ("errors", "id")):
        parts = [pd.read_parquet(fs.open(name)) for name in fs.glob(f"{run}/{folder}/*.parquet")]
        found.append(pd.concat(parts).sort_values(order).reset_index(drop=True))
    return found


@pytest.fixture(scope="module")
def quiet_night(settings):
    assert main(words_of("score", settings | {"out": "s3://night/quiet"})) == 0
    return tables("s3://night/quiet")


def wait_for_parts(process, out, count):
    """Until so many parts of the run at work are committed."""
    fs = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
    deadline = time.monotonic() + 180
    while len(fs.glob(f"{out.removeprefix('s3://')}/run_id=*/scored/*.parquet")) < count:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def faulty_endpoint(s3_endpoint):
    with start_proxy(s3_endpoint, "random") as endpoint:
        yield endpoint


def assert_same_night(quiet_night, out):
    for quiet, killed in zip(quiet_night, tables(out), strict=True):
        columns = [name for name in quiet.columns if name not in STAMP]
        pd.testing.assert_frame_equal(quiet[columns], killed[columns], rtol=1e-4)


@pytest.mark.usefixtures("ray_session_cpus")
def test_a_killed_predictor_is_replaced_and_a_killed_driver_goes_on_from_what_is_committed(
    settings, quiet_night, retailray
):
    """Killed on a Ray of its own, resumed on another; the quiet night was one without."""
    out = "s3://night/killed"
    settings = settings | {"cluster.engine": "ray"}
    fs = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
    process = start_command("score", **settings, out=out)
    try:
        wait_for_parts(process, out, 1)
        family = psutil.Process(process.pid).children(recursive=True)
        [predictor] = [child for child in family if any("PredictBatch" in part for part in child.cmdline())]
        predictor.kill()
        wait_for_parts(process, out, 3)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    finally:
        process.kill()
    assert not fs.exists("night/killed/LATEST"), "nobody sees half a night"
    parts = fs.glob("night/killed/run_id=*/scored/*.parquet")
    committed = sum(len(pd.read_parquet(fs.open(name))) for name in parts)
    written = fs.cat(fs.glob("night/killed/run_id=*/config.yaml")[0])
    _, output, err = retailray("score", **settings, out=out, **{"score.plan_only": "true"})
    foreseen = events(output)[-1]
    assert foreseen["resumed"] > 0, err
    assert fs.cat(fs.glob("night/killed/run_id=*/config.yaml")[0]) == written, "a plan leaves the run as it is"
    code, output, err = retailray("score", **settings, out=out)
    assert code == 0, err
    assert_same_night(quiet_night, out)
    assert len(fs.glob("night/killed/run_id=*")) == 1, "the same run went on"
    told = events(output)
    assert told[0]["resumed"]
    plan = next(event for event in told if event["event"] == "plan")
    assert (plan["resumed"], plan["to_score"]) == (foreseen["resumed"], foreseen["to_score"])
    rows = read_json(f"{latest(out)}/run.json")["counts"]["rows"]
    assert committed > 0.15 * rows
    assert plan["to_score"] <= rows - committed + quiet_night[1].shape[0], "what was committed is not scored again"


def test_a_store_that_slows_down_resets_and_truncates_costs_no_row(settings, quiet_night, faulty_endpoint, monkeypatch):
    out = "s3://night/faulty"
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_S3", faulty_endpoint)
        process = start_command("score", **settings, out=out)
        _, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    with urllib.request.urlopen(f"{faulty_endpoint}/__faults") as answer:
        told = json.load(answer)
    assert told["requests"] > 300
    assert min(told["slow_down"], told["reset"], told["truncated"]) >= 1
    assert_same_night(quiet_night, out)
