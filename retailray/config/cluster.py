"""Sections about the cluster, its jobs and its manifests."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from retailray import storage
from retailray.config.base import Section, normalized


class ClusterSection(Section):
    """Ray."""

    address: str | None = Field(
        None,
        description="running cluster, host:port; for submit and doctor its dashboard, http://host:8265; default: "
        "RAY_ADDRESS, else a local Ray",
    )
    engine: Literal["auto", "inline", "ray"] = Field(
        "auto",
        description="where the work runs: inline in this process and its threads, or on Ray; auto: inline where little "
        "is to do, no cluster is named and one worker is enough",
    )
    num_workers: int | None = Field(
        None, ge=1, description="training workers or predictors; default: one a GPU, else what the CPUs carry"
    )
    min_workers: int | None = Field(
        None, ge=1, description="train goes on with as few as these when machines leave; default: num_workers"
    )
    use_gpu: bool | None = Field(None, description="default: if the cluster has one")
    gpus_per_predictor: float = Field(
        1.0, gt=0, le=1, description="share of a GPU that a predictor takes; 0.5: two on each [GPUs]"
    )
    placement: Literal["pack", "spread"] = Field(
        "pack", description="training workers on as few machines as carry them, or on as many as there are"
    )
    request_cpus: int | None = Field(
        None, ge=1, description="ask a cluster that scales itself for so many at once, and wait for them [CPUs]"
    )
    request_gpus: int | None = Field(None, ge=1, description="likewise [GPUs]")
    resource_timeout_s: float = Field(
        600.0, gt=0, description="how long to wait for what was asked for, or is held by others [s]"
    )

    @field_validator("address")
    @classmethod
    def _no_password(cls, value: str | None) -> str | None:
        return storage.normalize(value) if value and storage.is_uri(value) else value

    @model_validator(mode="after")
    def _range_of_workers(self) -> "ClusterSection":
        if self.num_workers and self.min_workers and self.min_workers > self.num_workers:
            raise ValueError(f"min_workers = {self.min_workers} is more than num_workers = {self.num_workers}")
        return self


class SubmitSection(Section):
    """A job of a running cluster. The command, its files and its settings are given as if it ran here."""

    id: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="submission id; given again with the same settings it follows the job that has it and starts "
        "none; default: made anew",
    )
    requirements: str | None = Field(
        None, description="pip requirements that the cluster installs for the job; default: what it has"
    )
    python: str | None = Field(
        None, description="the cluster's interpreter; default: the one that its Ray runs on, as its dashboard tells"
    )
    allow_insecure: bool = Field(
        False,
        description="send storage credentials to a cluster without token authentication too, where everybody who "
        "reaches its dashboard can read them",
    )
    unreachable_timeout_s: float = Field(
        120.0, gt=0, description="how long the cluster may give no answer before following the job is given up [s]"
    )


class KuberaySection(Section):
    """Kubernetes manifests for the same command (--render kuberay)."""

    name: str = Field("retailray", pattern=r"^[a-z0-9]([a-z0-9-]{0,33}[a-z0-9])?$", description="of the objects")
    image: str = Field("retailray:latest", description="an image with Ray and retailray in it")
    schedule: str = Field("0 2 * * *", description="of the two cron objects, in the controller's time zone")
    service_account: str | None = Field(None, description="that may read and write the storage (IRSA and its kin)")
    storage_secret: str | None = Field(
        None, description="Kubernetes secret with AWS_* variables, where no service account has the rights"
    )
    token_secret: str = Field("ray-auth-token", description="Kubernetes secret whose auth_token is Ray's token")
    cpu_workers: int = Field(8, ge=0, description="most machines that read and decode; none run when idle")
    gpu_workers: int = Field(4, ge=0, description="most machines with a GPU; none run when idle")
    cpus: int = Field(8, ge=1, description="of a worker [CPUs]")
    memory_gb: int = Field(32, ge=1, description="of a worker [GiB]")


class DoctorCatalog(Section):
    """What workers must be able to read."""

    uri: str | None = Field(None, description="catalog file, folder or pattern")

    _same = field_validator("uri")(normalized)


class DoctorModel(Section):
    """What workers must be able to read."""

    uri: str | None = Field(None, description="a bundle, or an alias of a registry")

    _same = field_validator("uri")(normalized)


class DoctorSection(Section):
    """Limits."""

    min_free_gb: float = Field(5.0, ge=0, description="free on the disk of each machine's Ray folder [GB]")
    max_skew_s: float = Field(5.0, gt=0, description="between the clocks of two machines; stores refuse minutes [s]")
