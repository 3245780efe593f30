"""cluster.yaml is what Ray's launcher takes, and what its validation does not look at is right too."""

import copy
import importlib.metadata
import sys

import pytest
import yaml

# of EC2's RunInstances, those that a Ray node may set; the launcher's schema takes any word here
EC2 = {"InstanceType", "ImageId", "InstanceMarketOptions", "IamInstanceProfile", "BlockDeviceMappings",
       "MetadataOptions", "SubnetIds", "SecurityGroupIds", "KeyName", "EbsOptimized", "Placement"}  # fmt: skip
AWS = {"type", "region", "availability_zone", "cache_stopped_nodes", "use_internal_ips", "security_group"}


@pytest.fixture(scope="module")
def config(pytestconfig):
    return yaml.safe_load((pytestconfig.rootpath / "cluster.yaml").read_text())


def test_rays_launcher_takes_it(config):
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(config)))


def test_it_says_what_rays_validation_does_not_look_at(config):
    assert set(config["provider"]) <= AWS
    types = config["available_node_types"]
    for name, node in types.items():
        assert set(node["node_config"]) <= EC2, name
        assert node["min_workers"] == 0, f"{name}: nothing runs, and costs, when there is nothing to do"
        assert "KeyName" not in node["node_config"]
    assert sum(node["max_workers"] for node in types.values()) <= config["max_workers"]


def test_the_head_carries_no_work_and_is_not_spot(config):
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"]["CPU"] == 0
    assert "InstanceMarketOptions" not in head["node_config"]


def test_spot_comes_first_and_on_demand_is_there_when_it_does_not(config):
    types = config["available_node_types"]
    gpus = {name: node for name, node in types.items() if node["resources"].get("GPU")}
    by_market = {node["labels"]["ray.io/market-type"]: node for node in gpus.values()}
    assert by_market["spot"]["priority"] > by_market["on-demand"]["priority"]
    assert "InstanceMarketOptions" in by_market["spot"]["node_config"]
    assert "InstanceMarketOptions" not in by_market["on-demand"]["node_config"]
    assert "RAY_enable_autoscaler_v2=1" in " ".join(config["head_start_ray_commands"]), "who reads the priorities"


def test_every_process_has_the_token_and_no_machine_has_keys(config):
    token = "/home/ray/.ray/auth_token"
    assert token in config["file_mounts"]
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        starts = [command for command in commands if "ray start" in command]
        assert len(starts) == 1
        assert f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={token}" in starts[0]
    assert all("IamInstanceProfile" in node["node_config"] for node in config["available_node_types"].values())
    assert "AWS_" not in yaml.safe_dump(config)
    assert "--dashboard-host=127.0.0.1" in " ".join(config["head_start_ray_commands"])


def test_image_and_code_are_of_the_tested_versions(config):
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    assert config["docker"]["image"] == f"rayproject/ray:{importlib.metadata.version('ray')}-{python}-gpu"
