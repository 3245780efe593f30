"""Kubernetes manifests for KubeRay: a cluster that scales itself, a job, and two ways to run it on a schedule.

Fields are those of the ``ray.io/v1`` custom resources (tests/cluster/kuberay_fields.py names them and where they are
from). The RayCronJob needs KubeRay's feature gate of that name; the plain CronJob does the same by submitting to the
RayCluster, where that gate is not open.
"""

import importlib.metadata
import os
import shlex
from typing import Any

import yaml

from retailray.cluster.package import CONFIG
from retailray.config import COMMANDS, KuberaySection

DASHBOARD_PORT = 8265
PLAIN_ENV = ("AZURE_STORAGE_ACCOUNT_NAME", "GOOGLE_CLOUD_PROJECT")
CONFIG_FOLDER = "/etc/retailray"
IDLE_S = 600  # a machine that has nothing to do for so long is given back
HEAD = """\
# retailray on Kubernetes, made by `retailray submit {command} --render kuberay`. Needs the KubeRay operator.
#   kubectl create secret generic {token} --from-literal=auth_token="$(openssl rand -hex 32)"   # once
#   kubectl apply -f this-file    # or only the objects you want:
# Credentials: a service account (kuberay.service_account) that stands for a role of the cloud, by an annotation on it:
#   EKS eks.amazonaws.com/role-arn, GKE iam.gke.io/gcp-service-account, AKS azure.workload.identity/client-id
# ConfigMap   the settings
# RayCluster  stays up (its head; workers come and go); for `retailray submit` and the CronJob
# RayJob      one run on a cluster of its own, which ends with it
# RayCronJob  the RayJob by the clock (feature gate RayCronJob of the operator)
# CronJob     the same without that gate: submits to the RayCluster, and ends with the job's exit code
"""


def render(command: str, arguments: list[str], section: KuberaySection, settings: dict[str, Any]) -> str:
    """YAML of all objects. ``arguments``: what runs after ``python``; the file of ``settings`` has no folder there."""
    # the cluster starts from nothing, and Ray plans with what is there
    chosen = {key: value for key, value in settings.get("cluster", {}).items() if value is not None}
    wants_gpus = COMMANDS[command].uses_gpus and section.gpu_workers and chosen.get("use_gpu", True)
    cluster_settings = {"request_cpus": section.cpus} | ({"request_gpus": 1} if wants_gpus else {}) | chosen
    text = yaml.safe_dump(settings | {"cluster": cluster_settings}, sort_keys=False, allow_unicode=True)
    entrypoint = shlex.join(["python", *(f"{CONFIG_FOLDER}/{part}" if part == CONFIG else part for part in arguments)])
    cluster = _cluster(section)
    job = _job(section, cluster, entrypoint)
    name, labels = section.name, {"app.kubernetes.io/name": "retailray", "app.kubernetes.io/instance": section.name}
    objects = [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"{name}-config"}, "data": {CONFIG: text}},
        {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": name}, "spec": cluster},
        {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": f"{name}-{command}"}, "spec": job},
        {
            "apiVersion": "ray.io/v1",
            "kind": "RayCronJob",
            "metadata": {"name": f"{name}-{command}"},
            "spec": {"schedule": section.schedule, "jobTemplate": job},
        },
        {
            "apiVersion": "batch/v1",
            "kind": "CronJob",
            "metadata": {"name": f"{name}-{command}-submit"},
            "spec": _cron_job(section, command),
        },
    ]
    for entry in objects:
        entry["metadata"]["labels"] = labels  # type: ignore[index]
    documents = [yaml.dump(entry, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=1000) for entry in objects]
    return HEAD.format(command=command, token=section.token_secret) + "---\n" + "---\n".join(documents)


class _Plain(yaml.SafeDumper):
    """No anchors: what two objects share is written twice. Texts of several lines as they are read."""

    def ignore_aliases(self, data: object) -> bool:
        return True


_Plain.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def _cluster(section: KuberaySection) -> dict[str, object]:
    groups = [("cpu", section.cpu_workers, 0), ("gpu", section.gpu_workers, 1)]
    return {
        "rayVersion": importlib.metadata.version("ray"),
        # the operator gives the token to every pod, the autoscaler and the submitter
        "authOptions": {"mode": "token", "secretName": section.token_secret},
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {"idleTimeoutSeconds": IDLE_S, "upscalingMode": "Default"},
        "headGroupSpec": {
            # no work on the head: what brings it down brings all down
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
            "template": _pod(section, "ray-head", cpus=2, memory_gb=8, ports=[6379, DASHBOARD_PORT, 10001]),
        },
        "workerGroupSpecs": [
            {
                "groupName": name,
                "replicas": 0,
                "minReplicas": 0,
                "maxReplicas": most,
                "rayStartParams": {},
                "template": _pod(
                    section, "ray-worker", cpus=section.cpus, memory_gb=section.memory_gb, num_gpus=num_gpus
                ),
            }
            for name, most, num_gpus in groups
            if most
        ],
    }


def _pod(
    section: KuberaySection, name: str, *, cpus: int, memory_gb: int, num_gpus: int = 0, ports: list[int] | None = None
) -> dict[str, Any]:
    resources = {"cpu": str(cpus), "memory": f"{memory_gb}Gi"} | ({"nvidia.com/gpu": str(num_gpus)} if num_gpus else {})
    container: dict[str, object] = {
        "name": name,
        "image": section.image,
        "resources": {"limits": resources, "requests": resources},
        "volumeMounts": [{"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True}],
    }
    if ports:
        container["ports"] = [{"containerPort": port} for port in ports]
    # which account is meant is no secret, and no role says it
    named = [{"name": name, "value": os.environ[name]} for name in PLAIN_ENV if name in os.environ]
    if named:
        container["env"] = named
    if section.storage_secret:
        container["envFrom"] = [{"secretRef": {"name": section.storage_secret}}]
    spec: dict[str, object] = {
        "containers": [container],
        "volumes": [{"name": "config", "configMap": {"name": f"{section.name}-config"}}],
    }
    if section.service_account:
        spec["serviceAccountName"] = section.service_account
    if num_gpus:
        spec["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    # AKS gives its identity to pods with this label, other clouds do not look at it
    labels = {"metadata": {"labels": {"azure.workload.identity/use": "true"}}} if section.service_account else {}
    return {**labels, "spec": spec}


def _job(section: KuberaySection, cluster: dict[str, object], entrypoint: str) -> dict[str, object]:
    return {
        "entrypoint": entrypoint,
        "rayClusterSpec": cluster,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 600,
        "backoffLimit": 0,  # a run that failed continues when it is applied again; a second cluster is a decision
    }


def _cron_job(section: KuberaySection, command: str) -> dict[str, object]:
    address = f"http://{section.name}-head-svc:{DASHBOARD_PORT}"
    pod = _pod(section, "submit", cpus=1, memory_gb=2)
    [container] = pod["spec"]["containers"]
    container["command"] = [
        "retailray",
        "submit",
        command,
        "--config",
        f"{CONFIG_FOLDER}/{CONFIG}",
        "--cluster.address",
        address,
    ]
    token = {"secretKeyRef": {"name": section.token_secret, "key": "auth_token"}}
    own = [{"name": "RAY_AUTH_MODE", "value": "token"}, {"name": "RAY_AUTH_TOKEN", "valueFrom": token}]
    container["env"] = [*container.get("env", []), *own]
    pod["spec"]["restartPolicy"] = "Never"
    return {
        "schedule": section.schedule,
        "concurrencyPolicy": "Forbid",  # a run that takes too long is not overtaken by the next
        "jobTemplate": {"spec": {"backoffLimit": 0, "template": pod}},
    }
