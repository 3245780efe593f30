"""Sections about what is done with a trained model."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from retailray.config.base import Section, normalized


class EvaluateSection(Section):
    """How a model is evaluated."""

    split: Literal["all", "train", "validation", "test"] = Field("all", description="Rows of the catalog to evaluate.")
    bootstrap: int = Field(
        1000, ge=0, description="Number of bootstrap samples for the 95 % confidence intervals; 0: no intervals."
    )
    batch_size: int = Field(64, ge=1, description="Images per forward pass.")
    level: int = Field(
        80,
        ge=1,
        le=99,
        description="Of numbers (model.task regression): share that should lie in the interval [%].",
    )


class CompareSection(Section):
    """Comparison of model.uri with a baseline on the same rows."""

    baseline: str = Field(description="Bundle to compare with: a directory, a version or <registry>/<name>@champion.")
    split: Literal["all", "train", "validation", "test"] = Field(
        "all", description="Rows of the catalog to compare on."
    )
    bootstrap: int = Field(
        2000,
        ge=100,
        description="Number of bootstrap samples (of products) for the 95 % confidence interval of the difference.",
    )
    batch_size: int = Field(64, ge=1, description="Images per forward pass.")

    _same = field_validator("baseline")(normalized)


class PromoteSection(Section):
    """Conditions for a model version to become @champion."""

    split: Literal["all", "train", "validation", "test"] = Field(
        "test", description="Rows of the catalog to compare on; rows that a model was trained on are refused."
    )
    max_loss: float = Field(
        0.01,
        ge=0,
        lt=1,
        description=(
            "Largest tolerated drop of top-1 accuracy from the champion, at the lower end of the 95 % confidence "
            "interval [fraction]; of numbers the largest rise of the mean absolute error, as a share of the champion's."
        ),
    )
    level: Literal["image", "product"] = Field(
        "image",
        description=(
            "What is compared: images one by one, or products, each with one answer from its images (catalog.group)."
        ),
    )
    min_top1: float = Field(0.0, ge=0, le=1, description="Minimum top-1 accuracy [fraction].")
    min_rows: int = Field(100, ge=1, description="Minimum number of labelled rows, or products: see promote.level.")
    bootstrap: int = Field(
        2000, ge=100, description="Number of bootstrap samples (of products) for the confidence interval."
    )
    batch_size: int = Field(64, ge=1, description="Images per forward pass.")
    reason: str = Field("", description="Why the alias is moved, for the history of the registry.")


class RollbackSection(Section):
    """Return of @champion to the previous version."""

    reason: str = Field("", description="Why the alias is moved, for the history of the registry.")


class ScoreSection(Section):
    """How a catalog is scored."""

    top_k: int = Field(5, ge=1, description="Number of classes in topk_labels and topk_scores.")
    batch_size: int = Field(64, ge=1, description="Images per forward pass.")
    max_error_rate: float = Field(
        0.05, ge=0, le=1, description="Exit with code 3 if a larger share of rows fails [fraction]."
    )
    target_precision: float | None = Field(
        None,
        gt=0,
        lt=1,
        description=(
            "Accept predictions so that this share of the accepted ones of each class is right, estimated on the "
            "validation rows of the bundle as a lower bound [fraction]; default: the thresholds of the bundle."
        ),
    )
    max_drift: float | None = Field(
        None,
        gt=0,
        description=(
            "Exit with code 4, after publishing, if labels, confidences or embeddings drift further than this from "
            "the previous run or from the validation rows, beyond what chance explains [population stability index; "
            "0.1 is small, 0.25 is large]; default: no limit."
        ),
    )
    gate_validation_labels: bool = Field(
        False,
        description=(
            "Let score.max_drift also compare labels with the validation rows, which are a selection of the catalog."
        ),
    )
    rescore: Literal["errors", "all"] | None = Field(
        None,
        description=(
            "Score again what the previous run published. errors: the failed rows; all: every row. Default: only new "
            "and changed images, and errors of another version of the code or its libraries."
        ),
    )
    review_rows: int = Field(
        300, ge=0, description="Number of rows, with images, on the review page; the most useful come first."
    )
    price_per_cpu_hour: float = Field(
        0.0, ge=0, description="Price of a CPU hour, for the cost estimate in the report."
    )
    price_per_gpu_hour: float = Field(
        0.0, ge=0, description="Price of a GPU hour, for the cost estimate in the report."
    )
    publish_on_errors: bool = Field(
        True, description="Move LATEST to this run even if more rows fail than score.max_error_rate."
    )
    rows_per_file: int = Field(100_000, ge=1, description="Rows per Parquet file.")
    precision: Literal["auto", "float32", "bfloat16", "int8"] = Field(
        "auto",
        description=(
            "Number format of the forward pass. auto: bfloat16 if the first run measures it to be faster; later runs "
            "use the same. int8: 8-bit integers on CPUs, with retailray[int8], if the validation images of the bundle "
            "are predicted as well (see docs/scoring.md)."
        ),
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description=(
            "Compile the forward pass with torch.compile, which needs a C++ compiler. auto: on CPUs, if that saves "
            "more time than it takes, as measured once per machine and model; runs after a compiled one compile."
        ),
    )
    level: int = Field(
        80,
        ge=1,
        le=99,
        description=(
            "Of numbers (model.task regression): share that should lie between pred_low and pred_high, fitted on the "
            "validation rows of the bundle [%]."
        ),
    )
    embeddings: bool = Field(
        False,
        description=(
            "Publish embeddings/ too: what the model makes of each image before its last layer, for `similar`. Images "
            "that have none yet are scored again, once."
        ),
    )
    embedding_size: int | None = Field(
        None,
        ge=8,
        le=8192,
        description=(
            "With score.embeddings: project them on this number of fixed random directions, which keep similarities "
            "nearly; default: all numbers of the model (512 of resnet18, 2048 of resnet50)."
        ),
    )
    dedupe: bool = Field(True, description="Run inference once for images with equal bytes.")
    plan_only: bool = Field(False, description="Print what a run would do, and stop.")
    export: Literal["none", "csv", "xlsx", "layout"] = Field(
        "none",
        description=(
            "Also write the answers for people, one row for each record of the source: csv, xlsx (sheets for answers, "
            "errors and doubtful rows), or layout (the columns that the shop needs to import accepted labels)."
        ),
    )
    keep_runs: int | None = Field(
        None,
        ge=1,
        description="Number of complete run directories to keep under out, including that of LATEST; default: all.",
    )
    memory_gb: float = Field(
        0.25, ge=0.1, description="Memory for joins on the driver; larger joins spill to its disk [GB]."
    )

    @model_validator(mode="after")
    def _int8_is_not_compiled(self) -> "ScoreSection":
        if self.precision == "int8" and self.compile == "on":
            raise ValueError("score.compile on would be ignored: with score.precision int8 OpenVINO predicts")
        return self


class NightlySection(Section):
    """Steps of the nightly job."""

    check: bool | None = Field(
        None,
        description="Check every image before scoring; default: if a setting of check differs from its default.",
    )
