"""Fields of KubeRay's custom resources (ray.io/v1) and of the Kubernetes objects in them, as far as ours may use them.

Source: the Go types behind the published CRDs, ray-project/kuberay ray-operator/apis/ray/v1/ (raycluster_types.go,
rayjob_types.go, raycronjob_types.go; authOptions with mode and secretName: v1.5 and later), and the Kubernetes API
reference for pods, config maps and cron jobs. A value of None: any mapping of texts, or a leaf.
"""

from typing import Any

RESOURCES = {"limits": None, "requests": None}
ENV = [{"name": None, "value": None, "valueFrom": {"secretKeyRef": {"name": None, "key": None}}}]
CONTAINER = {
    "name": None, "image": None, "command": None, "env": ENV, "envFrom": [{"secretRef": {"name": None}}],
    "ports": [{"containerPort": None, "name": None}], "resources": RESOURCES,
    "volumeMounts": [{"name": None, "mountPath": None, "readOnly": None}],
}  # fmt: skip
POD = {
    "containers": [CONTAINER], "volumes": [{"name": None, "configMap": {"name": None}}], "serviceAccountName": None,
    "tolerations": [{"key": None, "operator": None, "effect": None}], "restartPolicy": None, "nodeSelector": None,
}  # fmt: skip
TEMPLATE = {"metadata": None, "spec": POD}
CLUSTER = {
    "rayVersion": None,
    "authOptions": {"mode": None, "secretName": None},
    "enableInTreeAutoscaling": None,
    "autoscalerOptions": {
        "idleTimeoutSeconds": None, "upscalingMode": None, "image": None, "imagePullPolicy": None, "env": ENV,
        "resources": RESOURCES, "version": None,
    },
    "headServiceAnnotations": None,
    "suspend": None,
    "headGroupSpec": {
        "serviceType": None, "headService": None, "enableIngress": None, "rayStartParams": None, "template": TEMPLATE,
    },
    "workerGroupSpecs": [{
        "groupName": None, "replicas": None, "minReplicas": None, "maxReplicas": None, "numOfHosts": None,
        "rayStartParams": None, "template": TEMPLATE, "scaleStrategy": None, "idleTimeoutSeconds": None,
    }],
}  # fmt: skip
JOB = {
    "activeDeadlineSeconds": None, "backoffLimit": None, "rayClusterSpec": CLUSTER, "submitterPodTemplate": TEMPLATE,
    "metadata": None, "clusterSelector": None, "submitterConfig": None, "managedBy": None, "deletionStrategy": None,
    "entrypoint": None, "runtimeEnvYAML": None, "jobId": None, "submissionMode": None, "entrypointResources": None,
    "entrypointNumCpus": None, "entrypointNumGpus": None, "ttlSecondsAfterFinished": None,
    "shutdownAfterJobFinishes": None, "suspend": None,
}  # fmt: skip
METADATA = {"name": None, "namespace": None, "labels": None, "annotations": None}
KINDS: dict[tuple[str, str], dict[str, Any]] = {
    ("v1", "ConfigMap"): {"data": None},
    ("ray.io/v1", "RayCluster"): {"spec": CLUSTER},
    ("ray.io/v1", "RayJob"): {"spec": JOB},
    ("ray.io/v1", "RayCronJob"): {"spec": {"schedule": None, "jobTemplate": JOB, "suspend": None}},
    ("batch/v1", "CronJob"): {
        "spec": {
            "schedule": None, "concurrencyPolicy": None, "timeZone": None, "suspend": None,
            "jobTemplate": {"spec": {"backoffLimit": None, "template": TEMPLATE}},
        }
    },
}  # fmt: skip
REQUIRED = {
    "RayCluster": ["spec.headGroupSpec.rayStartParams", "spec.headGroupSpec.template"],
    "RayJob": ["spec.entrypoint", "spec.rayClusterSpec.headGroupSpec.template"],
    "RayCronJob": ["spec.schedule", "spec.jobTemplate.entrypoint"],
    "CronJob": ["spec.schedule", "spec.jobTemplate.spec.template.spec.restartPolicy"],
}


def unknown(value: Any, allowed: Any, at: str) -> list[str]:
    """Paths of fields that are not of the resource."""
    if allowed is None:
        return []
    if isinstance(allowed, list):
        return [found for number, item in enumerate(value) for found in unknown(item, allowed[0], f"{at}[{number}]")]
    if not isinstance(value, dict):
        return [f"{at} is no mapping"]
    found = [f"{at}.{name}" for name in value if name not in allowed]
    for name in value:
        if name in allowed:
            found += unknown(value[name], allowed[name], f"{at}.{name}")
    return found
