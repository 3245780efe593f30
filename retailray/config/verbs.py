"""What each verb reads: the sections of its config, and what must agree between them."""

from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from retailray.config.base import normalized
from retailray.config.catalog import CatalogSection, CheckSection, DemoSection, SplitSection, TransformSection
from retailray.config.cluster import (
    ClusterSection,
    DoctorCatalog,
    DoctorModel,
    DoctorSection,
    KuberaySection,
    SubmitSection,
)
from retailray.config.scoring import CompareSection, EvaluateSection, PromoteSection, RollbackSection, ScoreSection
from retailray.config.search import PASSES, Domain, TuneSection
from retailray.config.training import BundleSection, ModelSection, TrackSection, TrainSection

SCALING = frozenset({"cluster.ask_cpus", "cluster.ask_gpus", "cluster.wait_s"})

# keys of the cluster that those have a use for who hold a pool of predictors, or training workers
OF_PREDICTORS, OF_WORKERS = (
    frozenset({"cluster.gpus_per_predictor"}),
    frozenset({"cluster.min_workers", "cluster.placement"}),
)


class VerbConfig(BaseSettings):
    """What every verb reads. A subclass adds the sections of one verb."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, cli_avoid_json=True, cli_hide_none_type=True, cli_enforce_required=False
    )
    # keys of shared sections that a verb has no use for: refused on the command line, left alone in shared files
    unused: ClassVar[frozenset[str]] = OF_WORKERS
    out: str = Field(description="where results go; a run directory is made in it")
    cluster: ClusterSection = ClusterSection()

    _same = field_validator("out")(normalized)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)  # environment variables such as OUT must not leak into a run


def _ignored_splits(catalog: CatalogSection, split: SplitSection) -> list[str]:
    """Settings about splits that others overrule."""
    problems = []
    # a value that is the default is no wish: configs that were saved resolved have them all
    given = {name for name, field in SplitSection.model_fields.items() if getattr(split, name) != field.default}
    given -= {"folds"}
    for name in ("validation", "test"):
        if getattr(catalog, f"{name}_uri") and name in given:
            problems.append(f"split.{name} would be ignored: catalog.{name}_uri names the {name} rows")
        if getattr(catalog, f"{name}_uri") and catalog.split:
            problems.append(f"catalog.{name}_uri and catalog.split both say which rows are {name}; give one")
    if catalog.split and given - ({"seed"} if split.folds else set()):
        problems.append("split.* would be ignored: catalog.split names the column that says the split")
    return problems


class CheckConfig(VerbConfig):
    unused = VerbConfig.unused | OF_PREDICTORS | {"split.folds"}
    catalog: CatalogSection
    split: SplitSection = SplitSection()
    check: CheckSection = CheckSection()

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "CheckConfig":
        if problems := _ignored_splits(self.catalog, self.split):
            raise ValueError("; ".join(problems))
        return self


class TrainConfig(VerbConfig):
    unused = OF_PREDICTORS
    catalog: CatalogSection
    split: SplitSection = SplitSection()
    transform: TransformSection = TransformSection()
    model: ModelSection = ModelSection()
    train: TrainSection = TrainSection()
    track: TrackSection = TrackSection()

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "TrainConfig":
        problems = _ignored_splits(self.catalog, self.split) + self._ignored_training()
        if (self.model.registry is None) != (self.model.name is None):
            problems.append("model.registry and model.name go together: one is given and the other is not")
        if self.transform.resolved_resize_size < self.transform.image_size:
            problems.append("transform.resize_size must be at least transform.image_size")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _ignored_training(self) -> list[str]:
        train = self.train
        # a value that is the default is no wish: configs that were saved resolved have them all
        changed = {name: getattr(train, name) != field.default for name, field in TrainSection.model_fields.items()}
        given = {name for name in train.model_fields_set if changed[name]}
        depths = train.depths or [self.model.trainable]
        problems = []
        if train.phases and "epochs" in given:
            problems.append("train.epochs would be ignored: train.phases has its own")
        if train.phases and self.model.trainable not in (ModelSection.model_fields["trainable"].default, "all"):
            problems.append("model.trainable would be ignored: train.phases has its own")
        if set(depths) == {"head"}:
            ignored = sorted({"backbone_lr", "lr_decay"} & given)
            problems += [f"train.{name} would be ignored: only the head is trained" for name in ignored]
        for name in ("head_lr", "backbone_lr"):
            if name in given and train.phases and all(getattr(phase, name) for phase in train.phases):
                problems.append(f"train.{name} would be ignored: every phase has its own")
        if "views" in given and (train.cutmix or set(depths) == {"all"}):
            why = "train.cutmix mixes pixels" if train.cutmix else "nothing is frozen"
            problems.append(f"train.views would be ignored: {why}, and pixels are augmented anew in every epoch")
        if train.optimizer != "sgd" and "momentum" in given:
            problems.append(f"train.momentum would be ignored: train.optimizer is {train.optimizer}")
        if train.cache == "off":
            ignored = sorted({"cache_uri", "cache_gb", "views"} & given)
            problems += [f"train.{name} would be ignored: train.cache is off" for name in ignored]
        if (train.views or 1) > 1 and self.transform.augment == "none" and not self.transform.erasing:
            problems.append(f"train.views = {train.views} would all be the same: transform.augment is none")
        return problems


class TuneConfig(TrainConfig):
    unused = OF_PREDICTORS | OF_WORKERS | {"train.resume", "train.cache", "split.folds", "cluster.num_workers"}
    tune: TuneSection = TuneSection()

    @property
    def space(self) -> dict[str, Domain]:
        """What is searched: as given, or freeze depth and learning rates."""
        if self.tune.space:
            return self.tune.space
        rates = {
            "train.head_lr": Domain(loguniform=(3e-4, 3e-2)),
            "train.backbone_lr": Domain(loguniform=(1e-4, 3e-3)),
        }
        if self.model.weights == "none" or self.train.phases:  # nothing to freeze, or frozen as the phases say
            return rates
        return {"model.trainable": Domain(choice=["head", "last1", "last2", "last5"])} | rates

    def trial(self, drawn: dict[str, Any], **pinned: Any) -> TrainConfig:
        """What a trial is: these settings with the drawn ones, less those that would mean nothing beside them.

        Raises:
            ValidationError: a drawn value is not allowed.
        """
        values, defaults = self._merged(drawn | pinned), TrainSection()
        for name in self._idle(values):
            values["train"][name] = getattr(defaults, name)
        return TrainConfig(**values)

    def effective(self, drawn: dict[str, Any]) -> dict[str, Any]:
        """Drawn settings as their types have them; None for those that mean nothing beside the others."""
        trial, idle = self.trial(drawn), {f"train.{name}" for name in self._idle(self._merged(drawn))}
        found = {}
        for key in drawn:
            section, _, name = key.partition(".")
            found[key] = None if key in idle else getattr(getattr(trial, section), name)
        return found

    def _merged(self, drawn: dict[str, Any]) -> dict[str, Any]:
        values = self.model_dump(exclude={"tune"})
        for key, value in drawn.items():
            section, _, name = key.partition(".")
            values[section][name] = value
        return values

    @staticmethod
    def _idle(values: dict[str, Any]) -> list[str]:
        """Settings of train that others of these values overrule."""
        train, transform = values["train"], values["transform"]
        depths = {phase["trainable"] for phase in train["phases"]} or {values["model"]["trainable"]}
        idle = ["backbone_lr", "lr_decay"] if depths == {"head"} else []
        idle += [] if train["optimizer"] == "sgd" else ["momentum"]
        still = transform["augment"] == "none" and not transform["erasing"]
        return idle + (["views"] if still or depths == {"all"} or train["cutmix"] else [])

    @model_validator(mode="after")
    def _every_corner_of_the_space_is_allowed(self) -> "TuneConfig":
        problems = []
        if self.tune.scheduler == "pbt" and self.tune.searcher != "random":
            problems.append(f"tune.scheduler pbt draws at random; tune.searcher {self.tune.searcher} would be ignored")
        for key, domain in self.space.items():
            if key in PASSES and domain.choice is None:
                problems.append(f"tune.space: {key} needs a choice, found {domain.dump()}")
                continue
            if self.tune.searcher == "grid" and domain.choice is None:
                problems.append(f"tune.space: searcher grid needs a choice for {key}, found {domain.dump()}")
            for value in domain.corners:
                try:
                    self.trial({key: value})
                except ValidationError as error:
                    reasons = "; ".join(detail["msg"].removeprefix("Value error, ") for detail in error.errors())
                    problems.append(f"tune.space: {key} = {value!r}: {reasons}")
        if problems:
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
        if problems := _ignored_splits(self.catalog, self.split):
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
