"""Where there are machines with GPUs and machines without, decoding goes to those without first."""

import threading
import time

import pytest

from tests.cluster.nodes import Nodes, Submitted

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, s3_endpoint):
    """A machine without a GPU, and one that says it has one (torch finds none, so nothing is asked to use it)."""
    nodes = Nodes(tmp_path_factory.mktemp("mixed"))
    nodes.add("cpu", num_cpus=4)
    nodes.add("gpu", num_cpus=4, num_gpus=1)
    yield nodes
    nodes.stop()


def test_decoders_leave_the_cpus_beside_gpus_alone(mixed, small_catalog, small_bundle, tmp_path):
    job = Submitted(
        mixed, "score", **{"catalog.uri": small_catalog[0] / "catalog.csv", "catalog.max_pixels": 20_000_000,
        "model.uri": small_bundle[0], "score.max_error_rate": 1, "score.batch_size": 8, "cluster.use_gpu": "false",
        "cluster.num_workers": 1, "out": tmp_path},
    )  # fmt: skip
    seen: set[str] = set()
    over = threading.Event()

    def watch():
        while not over.is_set():
            seen.update(mixed.busy("read_units"))
            time.sleep(0.05)

    watching = threading.Thread(target=watch)
    watching.start()
    code, events, err = job.end()
    over.set()
    watching.join()
    assert code == 0, err
    assert events[-1]["rows"] == small_catalog[1]["num_rows"]
    assert seen == {"cpu"}
