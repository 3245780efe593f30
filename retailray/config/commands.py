"""The commands: one record each, and the sections of settings that each reads.

To add one: a config class and a record here, and a thin file in ``jobs/``. The command line, its help, ``submit`` and
tests are derived from the records.
"""

import dataclasses
from typing import Literal

from pydantic import Field, model_validator

from retailray.config.catalog import CatalogSection, CheckSection, DemoSection, SplitSection
from retailray.config.cluster import (
    ClusterSection,
    DoctorCatalog,
    DoctorModel,
    DoctorSection,
    KuberaySection,
    SubmitSection,
)
from retailray.config.common import OF_PREDICTORS, CommandConfig, ignored_splits
from retailray.config.fine_tuning import TrainConfig, TuneConfig
from retailray.config.scoring import (
    CompareSection,
    EvaluateSection,
    NightlySection,
    PromoteSection,
    RollbackSection,
    ScoreSection,
)
from retailray.config.training import BundleSection, TrackSection

SCALING = frozenset({"cluster.request_cpus", "cluster.request_gpus", "cluster.resource_timeout_s"})


class CheckConfig(CommandConfig):
    unused = CommandConfig.unused | OF_PREDICTORS | {"split.folds"}
    catalog: CatalogSection
    split: SplitSection = SplitSection()
    check: CheckSection = CheckSection()

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "CheckConfig":
        if problems := ignored_splits(self.catalog, self.split):
            raise ValueError("; ".join(problems))
        return self


class EvaluateConfig(CommandConfig):
    unused = CommandConfig.unused | {"split.folds"}
    catalog: CatalogSection
    split: SplitSection = SplitSection()
    model: BundleSection
    evaluate: EvaluateSection = EvaluateSection()

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "EvaluateConfig":
        given = [f"catalog.{name}" for name in ("split", "validation_uri", "test_uri") if getattr(self.catalog, name)]
        defaults = SplitSection()
        given += [
            f"split.{name}"
            for name in SplitSection.model_fields
            if getattr(self.split, name) != getattr(defaults, name)
        ]
        if given and self.evaluate.split == "all":
            raise ValueError(
                f"{', '.join(given)} would be ignored: evaluate.split is all; set it to train, validation or test"
            )
        if problems := ignored_splits(self.catalog, self.split):
            raise ValueError("; ".join(problems))
        return self


class CompareConfig(CommandConfig):
    unused = CommandConfig.unused | {"split.folds"}
    catalog: CatalogSection
    split: SplitSection = SplitSection()
    model: BundleSection
    compare: CompareSection


class PromoteConfig(CommandConfig):
    unused = CommandConfig.unused | {"split.folds"}
    catalog: CatalogSection
    split: SplitSection = SplitSection()
    model: BundleSection
    promote: PromoteSection = PromoteSection()
    track: TrackSection = TrackSection()


class RollbackConfig(CommandConfig):
    unused = frozenset({"out", *(f"cluster.{name}" for name in ClusterSection.model_fields)})
    out: str = Field(".", description="Not used.")
    model: BundleSection
    rollback: RollbackSection = RollbackSection()
    track: TrackSection = TrackSection()


class ScoreConfig(CommandConfig):
    unused = CommandConfig.unused | {"catalog.split", "catalog.validation_uri", "catalog.test_uri"}
    catalog: CatalogSection
    model: BundleSection
    score: ScoreSection = ScoreSection()


class DemoConfig(CommandConfig):
    out: str = Field("demo-run", description="Folder for the catalog, the models and the reports.")
    demo: DemoSection = DemoSection()


class SubmitConfig(CommandConfig):
    unused = frozenset({"out", *(f"cluster.{name}" for name in ClusterSection.model_fields if name != "address")})
    out: str = Field(".", description="Setting of the submitted command.")
    detach: bool = Field(False, description="Submit the job, print its id and return.")
    render: Literal["kuberay"] | None = Field(None, description="Print Kubernetes manifests instead of submitting.")
    submit: SubmitSection = SubmitSection()
    kuberay: KuberaySection = KuberaySection()

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "SubmitConfig":
        given = [f"submit.{name}" for name in ("id", "requirements", "python") if getattr(self.submit, name)]
        given += ["detach"] if self.detach else []
        if self.render and given:
            raise ValueError(f"{', '.join(given)} would be ignored: render prints manifests, and submits nothing")
        return self


class NightlyConfig(CommandConfig):
    unused = CommandConfig.unused | {"split.folds", "score.plan_only"}
    out: str = Field(description="Folder for the results; run directories go to its subfolders checks and scores.")
    catalog: CatalogSection
    split: SplitSection = SplitSection()
    check: CheckSection = CheckSection()
    model: BundleSection
    score: ScoreSection = ScoreSection()
    nightly: NightlySection = NightlySection()

    @property
    def checks(self) -> bool:
        """Whether the catalog is checked before it is scored."""
        given = bool(self.check.non_default_fields())
        return given if self.nightly.check is None else self.nightly.check

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "NightlyConfig":
        problems = ignored_splits(self.catalog, self.split) if self.checks else []
        if not self.checks and (given := sorted(self.check.non_default_fields())):
            problems += [f"check.{name} would be ignored: nightly.check is false" for name in given]
        if problems:
            raise ValueError("; ".join(problems))
        return self


class DoctorConfig(CommandConfig):
    unused = frozenset({f"cluster.{name}" for name in ClusterSection.model_fields} - SCALING - {"cluster.address"})
    out: str = Field("", description="Folder that workers must be able to write to; default: not tested.")
    catalog: DoctorCatalog = DoctorCatalog()
    model: DoctorModel = DoctorModel()
    doctor: DoctorSection = DoctorSection()


@dataclasses.dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: the word on the command line.
        summary: one line for the list of commands.
        config: what it reads; its function takes an instance (``submit``: the arguments).
        function: ``module:function``, imported when the command runs, so that ``--help`` and bad input answer at once.
        example: arguments for the end of ``--help``.
        after_interrupt: what the user can do after Ctrl-C.
        uses_gpus: whether a cluster that scales itself is asked for a GPU.
    """

    name: str
    summary: str
    config: type[CommandConfig]
    function: str
    example: str = ""
    after_interrupt: str = "only run directories with a _SUCCESS file are complete"
    uses_gpus: bool = False


COMMANDS = {
    command.name: command
    for command in (
        Command(
            "demo",
            "run the whole pipeline on a generated catalog, in a few minutes",
            DemoConfig,
            "retailray.demo:run_demo",
            example="--out demo-run",
        ),
        Command(
            "check",
            "find what is wrong with a catalog: broken images, duplicates, leakage, bad labels",
            CheckConfig,
            "retailray.quality.check:check",
            example="--catalog.uri s3://shop/catalog.csv --out s3://shop/checks",
        ),
        Command(
            "train",
            "fine-tune a pretrained torchvision model on a labelled catalog",
            TrainConfig,
            "retailray.training.train:train",
            example="--catalog.uri catalog.csv --model.arch resnet50 --model.weights weights.pth --out runs",
            after_interrupt="the same command with --train.resume continues from the last checkpoint",
            uses_gpus=True,
        ),
        Command(
            "tune",
            "search freeze depth, learning rates and other settings of train",
            TuneConfig,
            "retailray.tuning.tune:tune",
            example="--catalog.uri catalog.csv --model.arch resnet50 --model.weights weights.pth --tune.trials 20 "
            "--out searches",
            after_interrupt="the same command with --tune.resume continues; finished trials are kept",
            uses_gpus=True,
        ),
        Command(
            "evaluate",
            "measure the accuracy of a bundle on a labelled catalog",
            EvaluateConfig,
            "retailray.evaluation.evaluate:evaluate",
            example="--catalog.uri catalog.csv --model.uri models/shop@champion --evaluate.split test --out reports",
            uses_gpus=True,
        ),
        Command(
            "compare",
            "compare two bundles on the same rows: which is better, which predictions change",
            CompareConfig,
            "retailray.evaluation.compare:compare",
            example="--catalog.uri catalog.csv --model.uri models/shop/v2 --compare.baseline models/shop@champion "
            "--out comparisons",
            uses_gpus=True,
        ),
        Command(
            "promote",
            "make a model version @champion if it is not worse than the present one",
            PromoteConfig,
            "retailray.evaluation.promote:promote",
            example="--catalog.uri catalog.csv --model.uri models/shop/v2 --out promotions",
            uses_gpus=True,
        ),
        Command(
            "rollback",
            "make the version before @champion again",
            RollbackConfig,
            "retailray.evaluation.promote:rollback",
            example="--model.uri models/shop@champion",
        ),
        Command(
            "score",
            "classify a whole catalog and publish the tables",
            ScoreConfig,
            "retailray.scoring.score:score",
            example="--catalog.uri s3://shop/catalog.csv --model.uri s3://shop/models/shop@champion "
            "--out s3://shop/scores",
            after_interrupt="the same command continues; images that are scored are not scored again",
            uses_gpus=True,
        ),
        Command(
            "nightly",
            "check (if asked for), plan and score a catalog, with one exit code",
            NightlyConfig,
            "retailray.nightly:nightly",
            example="--config night.yaml",
            after_interrupt="the same command continues; images that are scored are not scored again",
            uses_gpus=True,
        ),
        Command(
            "submit",
            "run any command as a job of a running cluster; attach to, stop and list jobs",
            SubmitConfig,
            "retailray.cluster.submit:submit",
        ),
        Command(
            "doctor",
            "test whether a cluster is ready: versions, storage, GPUs, disks, clocks",
            DoctorConfig,
            "retailray.cluster.doctor:doctor",
            example="--cluster.address http://head:8265 --catalog.uri s3://shop/catalog.csv --out s3://shop/runs",
        ),
    )
}
