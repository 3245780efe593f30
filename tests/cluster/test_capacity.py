import pytest
import yaml

from retailray.cluster import Capacity, plan_scoring, plan_training
from retailray.config import ClusterSection
from retailray.errors import CapacityError


def scoring(capacity, section, num_images=10**6):
    return plan_scoring(capacity, section, num_images=num_images, batch_size=64)


@pytest.mark.parametrize("cpus", [1, 2, 3, 4, 16, 96])
@pytest.mark.parametrize("plan", [scoring, plan_training])
@pytest.mark.parametrize("workers", [None, 1, 2, 4])
def test_actors_leave_room_for_the_tasks_that_feed_them(cpus, plan, workers):
    made = plan(Capacity(cpus, 0, 1e9), ClusterSection(num_workers=workers))
    assert made.num_actors * made.actor_cpus + made.task_cpus <= cpus
    assert made.task_cpus != made.actor_cpus, "Ray Data would fuse decoding into the predictor"
    assert made.num_actors == workers or workers is None
    assert made.actor_gpus == 0


def test_one_actor_a_gpu():
    capacity = Capacity(16, 4, 1e9)
    assert scoring(capacity, ClusterSection()).num_actors == 4
    assert plan_training(capacity, ClusterSection()).actor_gpus == 1
    assert scoring(capacity, ClusterSection(use_gpu=False)).num_actors == 8


@pytest.mark.parametrize(("images", "asked", "actors"), [(1, None, 1), (512, None, 1), (513, None, 2), (100, 3, 3)])
def test_no_more_predictors_than_are_worth_their_start(images, asked, actors):
    section = ClusterSection(num_workers=asked)
    assert scoring(Capacity(16, 4, 1e9), section, images).num_actors == actors


@pytest.mark.parametrize(
    ("capacity", "section", "words"),
    [
        (Capacity(2, 0, 1), {"num_workers": 9}, "2 CPUs, which carry 8"),
        (Capacity(8, 2, 1), {"num_workers": 3}, "2 GPUs"),
        (Capacity(8, 0, 1), {"use_gpu": True}, "0 GPUs"),
        (Capacity(0, 0, 1), {}, "no CPUs"),
    ],
)
def test_what_cannot_fit_is_refused_with_the_numbers(capacity, section, words):
    with pytest.raises(CapacityError, match=words):
        plan_training(capacity, ClusterSection(**section))


def test_cluster_yaml_is_what_rays_launcher_takes(pytestconfig):
    import copy

    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((pytestconfig.rootpath / "cluster.yaml").read_text())
    validate_config(prepare_config(copy.deepcopy(config)))
    types = config["available_node_types"]
    assert config["head_node_type"] in types
    assert types[config["head_node_type"]]["resources"]["CPU"] == 0, "work stays off the head"
    assert sum(node["max_workers"] for node in types.values()) <= config["max_workers"]
    assert any(node["resources"].get("GPU") for node in types.values())
