"""The whole story on several nodes, submitted through Ray Jobs; machines go away in the middle; no secret is written.

The cluster has token authentication and no storage credentials of its own: they come with each job.
"""

import io
import re
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import s3fs
from PIL import Image

from tests.cluster.nodes import BUCKET, SECRET, TOKEN, Submitted, wait_for
from tests.commands.helpers import latest, read_json

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow]
TINY = {"transform.image_size": 32, "transform.resize_size": 36, "transform.augment": "none", "model.arch": "cnn1",
        "train.batch_size": 16, "train.precision": "float32", "split.validation": 0.3}  # fmt: skip


def test_the_doctor_looks_at_every_machine(nodes, shop):
    code, seen, err = Submitted(  # how full the disk of this machine is does not matter here
        nodes, "doctor",
        **{"catalog.uri": shop["catalog.uri"], "doctor.min_free_gb": 0.01, "out": f"s3://{BUCKET}/doctor"},
    ).end()  # fmt: skip
    assert code == 0, err
    checks = [event for event in seen if event["event"] == "check"]
    assert all(check["ok"] for check in checks)
    assert checks[0]["found"].endswith("token authentication: on")
    assert sum(check["name"].startswith("disk of") for check in checks) == 4
    assert sum(check["name"].startswith("clock of") for check in checks) == 5, "four machines and the dashboard"
    assert sum(check["name"].startswith("read catalog.uri from") for check in checks) == 4
    assert not [name for name in s3fs.S3FileSystem(use_listings_cache=False).find(BUCKET) if "/doctor" in name]


def test_training_survives_a_lost_machine(nodes, shop):
    """Two workers on two machines; one machine is killed after the second epoch, a third one takes its place."""
    job = Submitted(
        nodes, "train", **shop, **TINY, **{"cluster.num_workers": 2, "cluster.placement": "spread", "train.epochs": 30,
        "train.checkpoint_interval_s": 0, "out": f"s3://{BUCKET}/train"},
    )  # fmt: skip
    job.until("epoch", 2)
    at_work = nodes.busy("RayTrainWorker")
    assert len(at_work) == 2, "spread: on different machines"
    assert not nodes.busy("ray::ProgressActor"), "beside the driver, where no lost machine takes it along"
    nodes.kill(next(iter(at_work)))
    code, seen, err = job.end()
    nodes.add("d")
    assert code == 0, err
    epochs = [event["epoch"] for event in seen if event["event"] == "epoch"]
    assert epochs[:2] == [1, 2]
    assert set(epochs) == set(range(1, 31))
    run, fs = latest(f"s3://{BUCKET}/train"), s3fs.S3FileSystem(use_listings_cache=False)
    assert pd.read_csv(fs.open(f"{run}/history.csv")).epoch.tolist() == list(range(1, 31))
    made_by = read_json(f"{run}/run.json")["made_by"]
    assert made_by["libraries"]["ray"]
    assert {machine["cpus"]: machine["count"] for machine in made_by["machines"]} == {0.0: 1, 2.0: 3}


def test_a_search_survives_a_lost_machine(nodes, shop):
    job = Submitted(
        nodes, "tune", **shop, **TINY, **{"train.epochs": 20, "tune.trials": 3, "tune.scheduler": "none",
        "tune.max_concurrent": 2, "out": f"s3://{BUCKET}/tune"},
    )  # fmt: skip
    job.until("search")  # and not until a trial has ended: on a fast machine all of them may have
    nodes.kill(next(iter(wait_for(lambda: nodes.busy("SearchTrial"), "trial at work"))))
    code, seen, err = job.end()
    nodes.add("e")
    assert code == 0, err
    table = pd.read_parquet(
        s3fs.S3FileSystem(use_listings_cache=False).open(f"{latest(f's3://{BUCKET}/tune')}/trials.parquet")
    )
    assert table.status.tolist() == ["finished"] * 3
    assert seen[-1]["trials"] == 3


def test_scoring_survives_a_lost_machine(nodes, shop, small_bundle):
    """Every row once, and Prometheus can follow it."""
    fs = s3fs.S3FileSystem(use_listings_cache=False)
    images, files = 600, {}
    for number in range(images):
        values = np.random.default_rng(number).integers(0, 255, (8, 8, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(values).resize((64, 64)).save(buffer, "JPEG")
        files[f"{BUCKET}/tiny/{number}.jpg"] = b"broken" if number % 100 == 7 else buffer.getvalue()
    fs.pipe(files)
    fs.pipe_file(f"{BUCKET}/tiny.csv", ("image\n" + "".join(f"tiny/{n}.jpg\n" for n in range(images))).encode())
    out = f"s3://{BUCKET}/scores"
    job = Submitted(
        nodes, "score", **{"catalog.uri": f"s3://{BUCKET}/tiny.csv", "model.uri": small_bundle[0], "out": out,
        "score.batch_size": 8, "score.max_error_rate": 0.005, "cluster.num_workers": 2},
    )  # fmt: skip
    job.until("plan")
    wait_for(lambda: fs.glob(f"{BUCKET}/scores/run_id=*/scored/*"), "committed part")
    assert not nodes.busy("ray::ProgressActor") | nodes.busy("ray::Seen"), "beside the driver"
    nodes.kill(next(iter(nodes.busy("PredictBatch"))))
    scraped = []
    while job.process.poll() is None:  # metrics are of processes that are alive
        scraped.append(nodes.metrics())
        time.sleep(0.5)
    code, seen, err = job.end()
    assert code == 3, err  # 6 of 600 are broken, more than allowed
    done = next(event for event in seen if event["event"] == "summary")
    assert (done["scored"], done["failed"]) == (images - 6, 6)
    run = latest(out)
    rows = pd.concat(pd.read_parquet(fs.open(part)) for part in fs.glob(f"{run}/predictions/*"))
    assert len(rows) == rows.image.nunique() == images - 6
    stages = {stage["stage"] for stage in read_json(f"{run}/run.json")["stages"]}
    assert stages == {"fetch", "decode", "predict", "commit"}
    text = "\n".join(scraped)
    assert re.search(r'ray_retailray_errors_total\{.*code="not_an_image".*\} [1-6]', text)
    assert re.search(r'ray_retailray_done_total\{.*unit="images".*\} \d', text)
    assert re.search(r'ray_retailray_stage_seconds_total\{.*stage="predict".*\} \d', text)


def test_no_secret_is_written_anywhere(nodes, shop):
    """Neither the storage's nor Ray's: not in logs, configs, records, uploaded packages."""
    planted = (SECRET.encode(), TOKEN.encode())
    files = nodes.files()
    assert any(b"_RAY_PKG" in path.read_bytes().upper() for path in files if path.suffix == ".log"), "the right folder"
    assert any(b"RETAILRAY_SEALED_ENV" in path.read_bytes() for path in files), "Ray does log what it is given"
    assert not [path for path in files if any(secret in path.read_bytes() for secret in planted)]
    fs = s3fs.S3FileSystem(use_listings_cache=False)
    stored = [name for name in fs.find(BUCKET) if not name.endswith((".jpg", ".jpeg", ".png"))]
    assert len(stored) > 50
    assert not [name for name in stored if any(secret in fs.cat_file(name) for secret in planted)]
    assert not [
        path for path in Path(nodes.folder).glob("*.log") if any(secret in path.read_bytes() for secret in planted)
    ]
