"""Manifests: fields of the published CRDs only, one truth for the settings, no secret, and a command that runs."""

import shlex

import pytest
import yaml

from retailray.cli import main
from retailray.config import arguments
from tests.cluster.kuberay_fields import KINDS, METADATA, REQUIRED, unknown

MODEL = "s3://shop/models/products@champion"
SETTINGS = {"catalog.uri": "s3://shop/catalog.csv", "model.uri": MODEL, "out": "s3://shop/scores"}


@pytest.fixture
def rendered(capfd, monkeypatch):
    """Objects by kind, of `retailray submit score --render kuberay` with these settings."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")

    def render(**settings):
        capfd.readouterr()
        arguments = [part for key, value in (SETTINGS | settings).items() for part in (f"--{key}", str(value))]
        assert main(["submit", "score", *arguments, "--render", "kuberay"]) == 0
        text = capfd.readouterr().out
        assert "planted-secret" not in text
        return {entry["kind"]: entry for entry in yaml.safe_load_all(text)}

    return render


def get(entry, path):
    for name in path.split("."):
        entry = entry[name]
    return entry


def test_only_fields_that_the_resources_have(rendered):
    objects = rendered(**{"kuberay.service_account": "scorer", "kuberay.storage_secret": "s3"})
    assert set(objects) == {kind for _, kind in KINDS}
    for kind, entry in objects.items():
        allowed = {"apiVersion": None, "kind": None, "metadata": METADATA} | KINDS[entry["apiVersion"], kind]
        assert unknown(entry, allowed, kind) == []
        for path in REQUIRED.get(kind, []):
            assert get(entry, path) is not None


def test_the_settings_are_the_commands_own(rendered, tmp_path):
    """What the ConfigMap holds is read by the same parser, to the same settings."""
    objects = rendered(**{"score.top_k": 3})
    job = objects["RayJob"]["spec"]
    name = shlex.split(job["entrypoint"])[-1].rsplit("/", 1)[-1]
    (tmp_path / name).write_text(objects["ConfigMap"]["data"][name])
    config = arguments.parse("score", ["--config", str(tmp_path / name)])
    assert (config.score.top_k, config.catalog.uri) == (3, SETTINGS["catalog.uri"])
    assert (config.cluster.request_cpus, config.cluster.request_gpus) == (8, 1), (
        "it starts from no workers, and must ask for some"
    )
    for changes in ({"kuberay.gpu_workers": 0}, {"cluster.use_gpu": "false"}):
        text = next(iter(rendered(**changes)["ConfigMap"]["data"].values()))
        assert "request_gpus" not in yaml.safe_load(text)["cluster"]
    assert objects["RayCronJob"]["spec"]["jobTemplate"] == job


def test_a_cluster_that_scales_itself_from_nothing_with_a_token(rendered):
    spec = rendered(**{"kuberay.gpu_workers": 3, "kuberay.cpu_workers": 5})["RayCluster"]["spec"]
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["authOptions"] == {"mode": "token", "secretName": "ray-auth-token"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert {name: (group["minReplicas"], group["maxReplicas"]) for name, group in groups.items()} == {
        "cpu": (0, 5), "gpu": (0, 3),
    }  # fmt: skip
    limits = groups["gpu"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "1"
    [only] = rendered(**{"kuberay.gpu_workers": 0})["RayCluster"]["spec"]["workerGroupSpecs"]
    assert only["groupName"] == "cpu"


def test_the_plain_cron_job_submits_with_the_token(rendered):
    pod = rendered(**{"kuberay.schedule": "30 1 * * *"})["CronJob"]["spec"]
    assert pod["schedule"] == "30 1 * * *"
    [container] = pod["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["command"][:3] == ["retailray", "submit", "score"]
    assert container["command"][-1] == "http://retailray-head-svc:8265"
    assert {entry["name"] for entry in container["env"]} == {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}
    assert "value" not in container["env"][1], "the token comes from a secret"


def test_a_night_asks_for_machines_too(capfd, tmp_path):
    (tmp_path / "night.yaml").write_text(
        "out: s3://shop/night\ncatalog: {uri: s3://shop/c.csv}\nmodel: {uri: s3://shop/m}\n"
    )
    assert main(["submit", "nightly", "--config", str(tmp_path / "night.yaml"), "--render", "kuberay"]) == 0
    objects = {entry["kind"]: entry for entry in yaml.safe_load_all(capfd.readouterr().out)}
    settings = yaml.safe_load(objects["ConfigMap"]["data"]["job.yaml"])
    assert (settings["cluster"]["request_cpus"], settings["cluster"]["request_gpus"]) == (8, 1)
    assert (settings["out"], settings["model"]["uri"]) == ("s3://shop/night", "s3://shop/m")
    assert objects["RayJob"]["spec"]["entrypoint"] == "python -m retailray nightly --config /etc/retailray/job.yaml"


def test_the_account_goes_along_where_a_role_gives_the_rest(rendered, monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "shopaccount")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "planted-secret")
    objects = rendered(**{"kuberay.service_account": "scorer"})
    named = {"name": "AZURE_STORAGE_ACCOUNT_NAME", "value": "shopaccount"}
    groups = objects["RayCluster"]["spec"]["workerGroupSpecs"]
    pods = [group["template"] for group in groups] + [objects["RayCluster"]["spec"]["headGroupSpec"]["template"]]
    pods.append(objects["CronJob"]["spec"]["jobTemplate"]["spec"]["template"])
    for pod in pods:
        assert named in pod["spec"]["containers"][0]["env"]
        assert pod["metadata"]["labels"] == {"azure.workload.identity/use": "true"}
