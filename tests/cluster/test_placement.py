"""Where there are machines with GPUs and machines without, decoding goes to those without first."""

import threading
import time

import pytest
import s3fs

from tests.cluster.nodes import BUCKET, Submitted

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow]


def test_decoders_leave_the_cpus_beside_gpus_alone(nodes, shop, small_bundle):
    """One machine says that it has a GPU; torch finds none, so nothing is asked to use it."""
    nodes.add("gpu", num_cpus=4, num_gpus=1)
    out = f"s3://{BUCKET}/placed"
    job = Submitted(
        nodes, "score", **shop, **{"model.uri": small_bundle[0], "score.max_error_rate": 1, "score.batch_size": 8,
        "cluster.use_gpu": "false", "cluster.num_workers": 1, "out": out},
    )  # fmt: skip
    seen: set[str] = set()
    over = threading.Event()

    def watch():
        while not over.is_set():
            seen.update(nodes.busy("read_units"))
            time.sleep(0.05)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        code, events, err = job.end()
    finally:
        over.set()
        watching.join()
        nodes.kill("gpu")
    assert code == 0, err
    assert events[-1]["rows"] == events[-1]["scored"] + events[-1]["failed"] > 90
    assert seen
    assert "gpu" not in seen
    assert s3fs.S3FileSystem(use_listings_cache=False).exists(f"{BUCKET}/placed/LATEST")
