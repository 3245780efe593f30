"""The cluster files are what Ray's launcher and the clouds take, and right where no validation looks."""

import copy
import importlib.metadata
import json
import sys
from pathlib import Path

import pytest
import yaml

FILES = {"aws": "cluster.yaml", "gcp": "deploy/gcp.yaml", "azure": "deploy/azure.yaml"}
# of EC2's RunInstances, those that a Ray node may set; the launcher's schema takes any word here
EC2 = {"InstanceType", "ImageId", "InstanceMarketOptions", "IamInstanceProfile", "BlockDeviceMappings",
       "MetadataOptions", "SubnetIds", "SecurityGroupIds", "KeyName", "EbsOptimized", "Placement"}  # fmt: skip
# that Ray's node providers read
PROVIDER = {
    "aws": {"type", "region", "availability_zone", "cache_stopped_nodes", "use_internal_ips", "security_group"},
    "gcp": {"type", "region", "availability_zone", "project_id", "cache_stopped_nodes"},
    "azure": {"type", "location", "resource_group", "availability_zone", "msi_name", "msi_resource_group",
              "cache_stopped_nodes"},
}  # fmt: skip


@pytest.fixture(params=sorted(FILES))
def cloud(request):
    return request.param


def read(cloud):
    return yaml.safe_load((Path(__file__).parents[2] / FILES[cloud]).read_text())


@pytest.fixture
def config(cloud):
    return read(cloud)


def is_spot(node):
    said = json.dumps(node["node_config"])
    return any(word in said for word in ('"MarketType": "spot"', '"provisioningModel": "SPOT"', '"priority": "Spot"'))


def test_rays_launcher_takes_it(config):
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(config)))


def test_it_says_what_rays_validation_does_not_look_at(config, cloud):
    assert set(config["provider"]) <= PROVIDER[cloud]
    types = config["available_node_types"]
    for name, node in types.items():
        assert node["min_workers"] == 0, f"{name}: nothing runs, and costs, when there is nothing to do"
    assert sum(node["max_workers"] for node in types.values()) <= config["max_workers"]


def test_clouds_have_the_same_kinds_of_machines(config):
    aws = read("aws")
    facts = [
        {
            name: (is_spot(node), node["max_workers"], node.get("priority"), node["resources"].get("GPU"))
            for name, node in one["available_node_types"].items()
        }
        for one in (aws, config)
    ]
    assert facts[0] == facts[1]
    same = ("cluster_name", "max_workers", "upscaling_speed", "idle_timeout_minutes", "docker", "head_node_type",
            "rsync_exclude", "head_start_ray_commands", "worker_start_ray_commands")  # fmt: skip
    assert {name: config[name] for name in same} == {name: aws[name] for name in same}
    assert aws["file_mounts"].items() <= config["file_mounts"].items()


def test_nodes_of_aws_are_what_ec2_takes():
    for name, node in read("aws")["available_node_types"].items():
        assert set(node["node_config"]) <= EC2, name


def test_nodes_of_google_are_what_compute_engine_takes():
    """By the description of its interface that comes with Google's client."""
    import googleapiclient

    described = Path(googleapiclient.__file__).parent / "discovery_cache/documents/compute.v1.json"
    schemas = json.loads(described.read_text())["schemas"]

    def check(value, schema, where):
        schema = schemas[schema["$ref"]] if "$ref" in schema else schema
        kind = schema["type"]
        if kind == "array":
            assert isinstance(value, list), where
            for number, one in enumerate(value):
                check(one, schema["items"], f"{where}[{number}]")
        elif "properties" in schema:
            assert set(value) <= set(schema["properties"]), f"{where}: {set(value) - set(schema['properties'])}"
            for name, one in value.items():
                check(one, schema["properties"][name], f"{where}.{name}")
        else:
            types = {"string": str, "integer": int, "boolean": bool, "number": float, "object": dict}
            # 64 bits are texts in JSON, and Google's client writes numbers as such
            assert isinstance(value, types[kind]) or schema.get("format") == "int64", f"{where}: {value!r} is no {kind}"
            assert value in schema.get("enum", [value]), f"{where}: {value!r}"

    for name, node in read("gcp")["available_node_types"].items():
        check(node["node_config"], {"$ref": "Instance"}, name)


def test_google_is_bootstrapped(monkeypatch, tmp_path):
    """Ray's own preparation of `ray up` and Google's client, up to the answers that the network would give."""
    import httplib2
    from ray.autoscaler._private.gcp.config import bootstrap_gcp
    from ray.autoscaler._private.util import prepare_config

    asked = []

    def answer(self, uri, method="GET", body=None, headers=None, **_):
        asked.append(f"{method} {uri.partition('?')[0]}")
        project = {"projectId": "your-project", "lifecycleState": "ACTIVE", "name": "your-project"}
        found = (
            {"items": [{"selfLink": "https://compute/subnet", "name": "default", "network": "default"}]}
            if "subnetworks" in uri
            else {"bindings": [], "etag": "x"}
            if "IamPolicy" in uri
            else {"email": "ray-autoscaler-sa-v1@your-project.iam.gserviceaccount.com", "projectId": "your-project"}
            if "serviceAccounts" in uri
            else project
        )
        return httplib2.Response({"status": 200, "content-type": "application/json"}), json.dumps(found).encode()

    monkeypatch.setattr(httplib2.Http, "request", answer)
    (tmp_path / "key").write_text("a key")
    config = read("gcp")
    config["auth"]["ssh_private_key"] = str(tmp_path / "key")
    config["provider"]["gcp_credentials"] = {"type": "credentials_token", "credentials": "token"}
    ready = bootstrap_gcp(prepare_config(config))
    types = ready["available_node_types"]
    assert types["gpu"]["node_config"]["networkInterfaces"][0]["subnetwork"] == "https://compute/subnet"
    assert types["gpu"]["node_config"]["serviceAccounts"][0]["email"].startswith("retailray-worker@")
    assert any("setIamPolicy" in one for one in asked)


def test_nodes_of_azure_are_what_rays_template_takes():
    import ray.autoscaler._private._azure as azure

    template = json.loads((Path(azure.__file__).parent / "azure-vm-template.json").read_text())["parameters"]
    types = {"string": str, "int": int, "object": dict, "bool": bool}
    for name, node in read("azure")["available_node_types"].items():
        for key, value in node["node_config"]["azure_arm_parameters"].items():
            if key != "availability_zone":  # which Ray reads itself
                assert isinstance(value, types[template[key]["type"]]), f"{name}: {key} = {value!r}"


def test_the_head_carries_no_work_and_is_not_spot(config):
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"]["CPU"] == 0
    assert not is_spot(head)


def test_spot_comes_first_and_on_demand_is_there_when_it_does_not(config):
    gpus = [node for node in config["available_node_types"].values() if node["resources"].get("GPU")]
    by_market = {node["labels"]["ray.io/market-type"]: node for node in gpus}
    assert by_market["spot"]["priority"] > by_market["on-demand"]["priority"]
    assert is_spot(by_market["spot"])
    assert not is_spot(by_market["on-demand"])
    assert "RAY_enable_autoscaler_v2=1" in " ".join(config["head_start_ray_commands"]), "who reads the priorities"


def test_every_process_has_the_token_and_no_machine_has_keys(config, cloud):
    token = "/home/ray/.ray/auth_token"
    assert token in config["file_mounts"]
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        starts = [command for command in commands if "ray start" in command]
        assert len(starts) == 1
        assert f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={token}" in starts[0]
    workers = [node for name, node in config["available_node_types"].items() if name != "head"]
    if cloud == "aws":
        assert all("IamInstanceProfile" in node["node_config"] for node in config["available_node_types"].values())
    elif cloud == "gcp":
        assert all("serviceAccounts" in node["node_config"] for node in workers)
    else:
        assert config["provider"]["msi_name"]
    text = yaml.safe_dump(config)
    assert not any(word in text for word in ("AWS_", "AZURE_STORAGE", "GOOGLE_APPLICATION", "KeyName"))
    assert "--dashboard-host=127.0.0.1" in " ".join(config["head_start_ray_commands"])


def test_image_and_code_are_of_the_tested_versions(config, cloud):
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    assert config["docker"]["image"] == f"rayproject/ray:{importlib.metadata.version('ray')}-{python}-gpu"
    extra = {"aws": "", "gcp": "[gcs]", "azure": "[azure]"}[cloud]
    assert f"/home/ray/retailray{extra}" in " ".join(config["setup_commands"])
