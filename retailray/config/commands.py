"""What each verb reads: the sections of its config, and what must agree between them."""

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
from retailray.config.common import OF_PREDICTORS, VerbConfig, ignored_splits
from retailray.config.fine_tuning import TrainConfig, TuneConfig
from retailray.config.scoring import CompareSection, EvaluateSection, PromoteSection, RollbackSection, ScoreSection
from retailray.config.training import BundleSection, TrackSection

SCALING = frozenset({"cluster.ask_cpus", "cluster.ask_gpus", "cluster.wait_s"})


class CheckConfig(VerbConfig):
    unused = VerbConfig.unused | OF_PREDICTORS | {"split.folds"}
    catalog: CatalogSection
    split: SplitSection = SplitSection()
    check: CheckSection = CheckSection()

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "CheckConfig":
        if problems := ignored_splits(self.catalog, self.split):
            raise ValueError("; ".join(problems))
        return self


class EvaluateConfig(VerbConfig):
    unused = VerbConfig.unused | {"split.folds"}
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


class CompareConfig(VerbConfig):
    unused = VerbConfig.unused | {"split.folds"}
    catalog: CatalogSection
    split: SplitSection = SplitSection()
    model: BundleSection
    compare: CompareSection


class PromoteConfig(VerbConfig):
    unused = VerbConfig.unused | {"split.folds"}
    catalog: CatalogSection
    split: SplitSection = SplitSection()
    model: BundleSection
    promote: PromoteSection = PromoteSection()
    track: TrackSection = TrackSection()


class RollbackConfig(VerbConfig):
    unused = frozenset({"out", *(f"cluster.{name}" for name in ClusterSection.model_fields)})
    out: str = Field(".", description="not used")
    model: BundleSection
    rollback: RollbackSection = RollbackSection()
    track: TrackSection = TrackSection()


class ScoreConfig(VerbConfig):
    unused = VerbConfig.unused | {"catalog.split", "catalog.validation_uri", "catalog.test_uri"}
    catalog: CatalogSection
    model: BundleSection
    score: ScoreSection = ScoreSection()


class DemoConfig(VerbConfig):
    out: str = Field("demo-run", description="folder for the catalog, the models and the reports")
    demo: DemoSection = DemoSection()


class SubmitConfig(VerbConfig):
    unused = frozenset({"out", *(f"cluster.{name}" for name in ClusterSection.model_fields if name != "address")})
    out: str = Field(".", description="the verb's")
    detach: bool = Field(False, description="submit, say the id, and leave")
    render: Literal["kuberay"] | None = Field(None, description="print manifests in place of submitting")
    submit: SubmitSection = SubmitSection()
    kuberay: KuberaySection = KuberaySection()

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "SubmitConfig":
        given = [f"submit.{name}" for name in ("id", "requirements", "python") if getattr(self.submit, name)]
        given += ["detach"] if self.detach else []
        if self.render and given:
            raise ValueError(f"{', '.join(given)} would be ignored: render prints manifests, and submits nothing")
        return self


class DoctorConfig(VerbConfig):
    unused = frozenset({f"cluster.{name}" for name in ClusterSection.model_fields} - SCALING - {"cluster.address"})
    out: str = Field("", description="where workers must be able to write; default: that is not tried")
    catalog: DoctorCatalog = DoctorCatalog()
    model: DoctorModel = DoctorModel()
    doctor: DoctorSection = DoctorSection()


VERBS: dict[str, type[VerbConfig]] = {
    "demo": DemoConfig,
    "check": CheckConfig,
    "train": TrainConfig,
    "tune": TuneConfig,
    "evaluate": EvaluateConfig,
    "compare": CompareConfig,
    "promote": PromoteConfig,
    "rollback": RollbackConfig,
    "score": ScoreConfig,
    "submit": SubmitConfig,
    "doctor": DoctorConfig,
}
