"""Sections about the cluster, its jobs and its manifests."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from retailray import storage
from retailray.config.base import Section, normalized


class ClusterSection(Section):
    """Where the work runs and how many resources it uses."""

    address: str | None = Field(
        None,
        description=(
            "Ray cluster to use, as host:port; for submit and doctor its dashboard, http://host:8265. Default: "
            "RAY_ADDRESS, else a local Ray."
        ),
    )
    engine: Literal["auto", "inline", "ray"] = Field(
        "auto",
        description=(
            "inline: in this process and its threads; ray: on Ray; auto: inline if the work is small, no cluster is "
            "named and one worker is enough, else on Ray."
        ),
    )
    num_workers: int | None = Field(
        None,
        ge=1,
        description=(
            "Number of training workers or predictors; default: one per GPU; without GPUs one training worker, and "
            "one predictor per two CPUs."
        ),
    )
    min_workers: int | None = Field(
        None,
        ge=1,
        description=("Continue training with at least this many workers when machines are lost; default: num_workers."),
    )
    use_gpu: bool | None = Field(None, description="Use GPUs; default: if the cluster has any.")
    gpus_per_predictor: float = Field(
        1.0, gt=0, le=1, description="Share of a GPU for each predictor, e.g. 0.5 for two predictors per GPU."
    )
    placement: Literal["pack", "spread"] = Field(
        "pack",
        description=("pack: training workers on as few machines as possible; spread: on as many machines as possible."),
    )
    request_cpus: int | None = Field(
        None,
        ge=1,
        description="Ask an autoscaling cluster for this many CPUs before the work starts, and wait for them.",
    )
    request_gpus: int | None = Field(
        None,
        ge=1,
        description="Ask an autoscaling cluster for this many GPUs before the work starts, and wait for them.",
    )
    resource_timeout_s: float = Field(
        600.0, gt=0, description="Maximum time to wait for requested or busy resources [s]."
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
    """How a command is submitted as a job. The command, its files and its settings are given as if it ran here."""

    id: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description=(
            "Submission id. If a job with this id and the same settings exists, it is followed and no job is started;"
            " default: a new id."
        ),
    )
    requirements: str | None = Field(
        None,
        description=(
            "File of pip requirements that the cluster installs for the job; default: the packages of the cluster."
        ),
    )
    python: str | None = Field(
        None, description="Python interpreter on the cluster; default: the one that runs Ray there."
    )
    allow_insecure: bool = Field(
        False,
        description=(
            "Send storage credentials even to a cluster without token authentication, where everybody who can reach "
            "the dashboard can read them."
        ),
    )
    unreachable_timeout_s: float = Field(
        120.0, gt=0, description="Stop following the job if the cluster does not answer for this long [s]."
    )


class KuberaySection(Section):
    """Kubernetes manifests of the same command, for --render kuberay."""

    name: str = Field(
        "retailray",
        pattern=r"^[a-z0-9]([a-z0-9-]{0,33}[a-z0-9])?$",
        description="Name prefix of the Kubernetes objects.",
    )
    image: str = Field("retailray:latest", description="Container image with Ray and retailray.")
    schedule: str = Field("0 2 * * *", description="Cron schedule, in the time zone of the Kubernetes controller.")
    service_account: str | None = Field(
        None,
        description=(
            "Kubernetes service account that may read and write the storage: through IRSA on AWS, workload identity on "
            "Google Cloud and Azure."
        ),
    )
    storage_secret: str | None = Field(
        None,
        description=(
            "Kubernetes secret with the storage's variables (AWS_*, AZURE_STORAGE_*), if no service account grants "
            "access."
        ),
    )
    token_secret: str = Field(
        "ray-auth-token", description="Kubernetes secret whose key auth_token holds Ray's authentication token."
    )
    cpu_workers: int = Field(
        8, ge=0, description="Maximum number of CPU workers; the cluster scales down to none when idle."
    )
    gpu_workers: int = Field(
        4, ge=0, description="Maximum number of GPU workers; the cluster scales down to none when idle."
    )
    cpus: int = Field(8, ge=1, description="CPUs per worker.")
    memory_gb: int = Field(32, ge=1, description="Memory per worker [GiB].")


class DoctorCatalog(Section):
    """A catalog that workers must be able to read."""

    uri: str | None = Field(None, description="Catalog file, folder or pattern to test.")

    _same = field_validator("uri")(normalized)


class DoctorModel(Section):
    """A model that workers must be able to read."""

    uri: str | None = Field(None, description="Bundle or registry alias to test.")

    _same = field_validator("uri")(normalized)


class DoctorSection(Section):
    """Limits of the cluster test."""

    min_free_gb: float = Field(5.0, ge=0, description="Minimum free disk space for Ray on each machine [GB].")
    max_skew_s: float = Field(
        5.0,
        gt=0,
        description=(
            "Maximum difference between the clocks of two machines; object stores refuse requests of clocks that are "
            "minutes off [s]."
        ),
    )
