"""A cluster that scales itself, by Ray's own autoscaler and its fake provider: from no machine up, and back."""

import io
import time

import numpy as np
import pandas as pd
import pytest
import s3fs
from PIL import Image

from tests.cluster.nodes import Nodes, Submitted, wait_for
from tests.commands.helpers import latest

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow]
HEAD_ID = "f" * 51 + "00000"
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
LAUNCHER = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
AUTOSCALING = {
    "cluster_name": "fake", "max_workers": 3, "upscaling_speed": 100.0, "idle_timeout_minutes": 0.3,
    "provider": {
        "type": "external", "module": PROVIDER, "gcs_address": "{gcs}", "use_node_id_as_ip": True,
        "disable_node_updaters": True, "disable_launch_config_check": True, "launch_multiple": True,
        "head_node_id": HEAD_ID,
    },
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "max_workers": 0, "node_config": {}},
        "cpu": {"resources": {"CPU": 2, "object_store_memory": 10**8}, "min_workers": 0, "max_workers": 3,
                "node_config": {}},
    },
    **{name: {} for name in ("auth", "docker", "head_node", "worker_nodes", "file_mounts")},
    **{f"{name}_commands": [] for name in LAUNCHER},
    "cluster_synced_files": [], "file_mounts_sync_continuously": False, "rsync_exclude": [], "rsync_filter": [],
}  # fmt: skip
ENV = {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1",
       "RAY_CLOUD_INSTANCE_ID": HEAD_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID}  # fmt: skip


@pytest.fixture(scope="module")
def scaling(tmp_path_factory, s3_endpoint):
    nodes = Nodes(tmp_path_factory.mktemp("scaling"), autoscaling=AUTOSCALING, env=ENV)
    yield nodes
    nodes.stop()


def test_from_no_machine_up_and_back(scaling, small_bundle, bucket):
    fs = s3fs.S3FileSystem(use_listings_cache=False)
    for number in range(40):
        values = np.random.default_rng(number).integers(0, 255, (32, 32, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(values).save(buffer, "JPEG")
        fs.pipe_file(f"{bucket}/{number}.jpg", buffer.getvalue())
    fs.pipe_file(f"{bucket}/catalog.csv", ("image\n" + "".join(f"{n}.jpg\n" for n in range(40))).encode())
    settings = {"catalog.uri": f"{bucket}/catalog.csv", "model.uri": small_bundle[0], "out": f"{bucket}/scores"}
    settings |= {"submit.allow_insecure": "true"}  # this cluster has no token
    assert scaling.count() == 1

    code, _, err = Submitted(scaling, "score", **settings).end()
    assert code == 1
    assert "--cluster.request_cpus" in err, "nothing is there, and nothing was asked for"

    job = Submitted(scaling, "score", **settings, **{"cluster.request_cpus": 4})
    waiting = job.until("waiting")
    assert waiting["have_of_wanted"] == {"CPU": "0 of 4"}
    wait_for(lambda: scaling.count() == 3, "two machines of two CPUs")
    code, seen, err = job.end()
    assert code == 0, err
    assert seen[-1]["scored"] == 40
    run = latest(f"{bucket}/scores")
    assert len(pd.concat(pd.read_parquet(fs.open(part)) for part in fs.glob(f"{run}/predictions/*"))) == 40
    started = time.monotonic()
    wait_for(lambda: scaling.count() == 1, "machines given back", seconds=120)
    assert time.monotonic() - started < 120

    code, _, err = Submitted(scaling, "score", **settings, **{"cluster.request_cpus": 40,
                             "cluster.resource_timeout_s": 3, "score.top_k": 2}).end()  # fmt: skip
    assert code == 1
    assert "of 40" in err
    assert "max_workers" in err
