"""Sections about what is done with a trained model."""

from typing import Literal

from pydantic import Field, field_validator

from retailray.config.base import Section, normalized


class EvaluateSection(Section):
    """Measuring."""

    split: Literal["all", "train", "validation", "test"] = Field("all", description="which rows of the catalog")
    bootstrap: int = Field(1000, ge=0, description="resamples behind the 95 % intervals; 0 for none")
    batch_size: int = Field(64, ge=1, description="images a forward pass")


class CompareSection(Section):
    """A challenger (model.uri) against another bundle on the same rows."""

    baseline: str = Field(
        description="the bundle it is compared with: directory, version or <registry>/<name>@champion"
    )
    split: Literal["all", "train", "validation", "test"] = Field("all", description="which rows of the catalog")
    bootstrap: int = Field(2000, ge=100, description="resamples of products behind the 95 % interval of the difference")
    batch_size: int = Field(64, ge=1, description="images a forward pass")

    _same = field_validator("baseline")(normalized)


class PromoteSection(Section):
    """The gate before @champion: the challenger is not worse on labelled rows."""

    split: Literal["all", "train", "validation", "test"] = Field(
        "test", description="which rows of the catalog decide; rows that a model was trained on are refused"
    )
    max_loss: float = Field(
        0.01, ge=0, lt=1, description="top-1 that the challenger may lose at the lower end of the 95 % interval"
    )
    min_top1: float = Field(0.0, ge=0, le=1, description="top-1 that it must reach in any case [fraction]")
    min_rows: int = Field(100, ge=1, description="labelled rows that the decision needs")
    bootstrap: int = Field(2000, ge=100, description="resamples of products behind the interval")
    batch_size: int = Field(64, ge=1, description="images a forward pass")
    reason: str = Field("", description="kept in the alias's history")


class RollbackSection(Section):
    """Back to the version before."""

    reason: str = Field("", description="kept in the alias's history")


class ScoreSection(Section):
    """Scoring a whole catalog."""

    top_k: int = Field(5, ge=1, description="classes listed in topk_labels and topk_scores")
    batch_size: int = Field(64, ge=1, description="images a forward pass")
    max_error_rate: float = Field(0.05, ge=0, le=1, description="more failed rows than this: exit 3 [fraction]")
    target_precision: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="accept what is right so often, by class, as the bundle's validation rows say; default: the "
        "bundle's thresholds [fraction]",
    )
    max_drift: float | None = Field(
        None,
        gt=0,
        description="exit 4 after publishing where labels, confidences or embeddings moved further, "
        "beyond what chance makes of so few rows, against last night or the "
        "bundle's validation rows [population stability index; 0.1 is little, 0.25 much]; default: no gate",
    )
    gate_validation_labels: bool = Field(
        False,
        description="let score.max_drift also judge labels against the bundle's validation rows, which are a selection "
        "and not the catalog",
    )
    rescore: Literal["errors", "all"] | None = Field(
        None,
        description="score again what the previous run published: errors, all; default: only what is new or changed, "
        "and errors that another version of the code or of its libraries met",
    )
    review_rows: int = Field(300, ge=0, description="rows of review/, pictures among them, the most useful first")
    price_per_cpu_hour: float = Field(0.0, ge=0, description="for the report: what a CPU of the cluster costs [money]")
    price_per_gpu_hour: float = Field(0.0, ge=0, description="for the report: what a GPU of the cluster costs [money]")
    publish_on_errors: bool = Field(True, description="false: too many failed rows leave LATEST where it is")
    rows_per_file: int = Field(100_000, ge=1, description="catalog rows behind a Parquet part")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 where the first night measures it to be faster; later nights keep to it"
    )
    dedupe: bool = Field(True, description="images of equal bytes are inferred once")
    plan_only: bool = Field(False, description="say what a run would do, and do nothing")
    keep_runs: int | None = Field(
        None, ge=1, description="complete runs that stay under out, LATEST's among them; default: all"
    )
    memory_gb: float = Field(0.25, ge=0.1, description="of the driver's joins; beyond it they use its disk [GB]")
