"""What ``train`` and ``tune`` read, and which of their settings would mean nothing beside others."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError, model_validator

from retailray.config.base import Section
from retailray.config.catalog import CatalogSection, SplitSection, TaxonomySection, TransformSection
from retailray.config.common import OF_PREDICTORS, OF_WORKERS, CommandConfig, ignored_splits
from retailray.config.learning_rates import Rates, default_rates
from retailray.config.search import PASSES, Domain, TuneSection
from retailray.config.training import ModelSection, TrackSection, TrainSection


class TrainConfig(CommandConfig):
    unused = OF_PREDICTORS
    catalog: CatalogSection
    split: SplitSection = SplitSection()
    transform: TransformSection = TransformSection()
    model: ModelSection = ModelSection()
    taxonomy: TaxonomySection = TaxonomySection()
    train: TrainSection = TrainSection()
    track: TrackSection = TrackSection()

    @property
    def default_rates(self) -> Rates:
        """Where neither ``train`` nor a phase of it gives one."""
        return default_rates(
            is_pretrained_with_layer_norm=self.model.is_pretrained_with_layer_norm,
            optimizer=self.train.optimizer,
            batch_size=self.train.batch_size,
        )

    def problems(self) -> list[str]:
        problems = ignored_splits(self.catalog, self.split) + self._ignored_training() + self._of_task()
        if (self.model.registry is None) != (self.model.name is None):
            problems.append("model.registry and model.name go together: one is given and the other is not")
        if self.transform.resolved_resize_size < self.transform.image_size:
            problems.append("transform.resize_size must be at least transform.image_size")
        return problems

    @model_validator(mode="before")
    @classmethod
    def _metric_of_task(cls, given: Any) -> Any:
        """Of numbers the mean absolute error chooses the epoch, unless another metric is named."""
        if not isinstance(given, dict) or _given(given, "model", "task") != "regression":
            return given
        if _given(given, "train", "metric") is not None:
            return given
        train = given.get("train")
        if isinstance(train, TrainSection):
            return given | {"train": train.model_copy(update={"metric": "mae"})}
        return given | {"train": {**(train or {}), "metric": "mae"}}

    def _of_task(self) -> list[str]:
        """What the task does not know."""
        train = self.train
        if self.model.task == "classification":
            return ["train.metric mae is for model.task regression"] if train.metric == "mae" else []
        problems = []
        if train.metric not in ("loss", "mae"):
            problems.append(f"train.metric {train.metric} is of classes: with model.task regression give mae or loss")
        if train.class_weights != "none":
            problems.append("train.class_weights balanced is of classes: leave it out with model.task regression")
        if train.label_smoothing:
            problems.append("train.label_smoothing is of classes: leave it out with model.task regression")
        if self.taxonomy.uri:
            problems.append("taxonomy.uri is of classes: leave it out with model.task regression")
        if self.split.folds:
            problems.append("split.folds measures classes: leave it out with model.task regression")
        return problems

    def _ignored_training(self) -> list[str]:
        train = self.train
        given = train.non_default_fields()
        depths = train.depths or [self.model.trainable]
        problems = []
        if train.phases and "epochs" in given:
            problems.append("train.epochs would be ignored: train.phases has its own")
        if train.phases and self.model.trainable not in (ModelSection.model_fields["trainable"].default, "all"):
            problems.append("model.trainable would be ignored: train.phases has its own")
        if set(depths) == {"head"}:
            ignored = sorted({"backbone_lr", "layer_decay"} & given)
            problems += [f"train.{name} would be ignored: only the head is trained" for name in ignored]
        for name in ("head_lr", "backbone_lr"):
            if name in given and train.phases and all(getattr(phase, name) for phase in train.phases):
                problems.append(f"train.{name} would be ignored: every phase has its own")
        if "num_views" in given and (train.cutmix or set(depths) == {"all"}):
            why = "train.cutmix mixes pixels" if train.cutmix else "nothing is frozen"
            problems.append(f"train.num_views would be ignored: {why}, and pixels are augmented anew in every epoch")
        if train.optimizer != "sgd" and "momentum" in given:
            problems.append(f"train.momentum would be ignored: train.optimizer is {train.optimizer}")
        if train.cache == "off":
            ignored = sorted({"cache_uri", "cache_gb", "num_views"} & given)
            problems += [f"train.{name} would be ignored: train.cache is off" for name in ignored]
        if (train.num_views or 1) > 1 and self.transform.augment == "none" and not self.transform.random_erasing_prob:
            problems.append(f"train.num_views = {train.num_views} would all be the same: transform.augment is none")
        return problems


class TuneConfig(TrainConfig):
    unused = OF_PREDICTORS | OF_WORKERS | {"train.resume", "train.cache", "split.folds", "cluster.num_workers"}
    tune: TuneSection = TuneSection()

    @property
    def space(self) -> dict[str, Domain]:
        """What is searched: as given, or freeze depth and learning rates."""
        if self.tune.space:
            return self.tune.space
        default = self.default_rates
        rates = {
            "train.head_lr": Domain(loguniform=(default.head / 10, default.head * 10)),
            "train.backbone_lr": Domain(loguniform=(default.backbone / 10, default.backbone * 3)),
        }
        if self.model.weights == "none" or self.train.phases:  # nothing to freeze, or frozen as the phases say
            return rates
        return {"model.trainable": Domain(choice=["head", "last1", "last2", "last5"])} | rates

    def trial(self, drawn: Mapping[str, object], **pinned: object) -> TrainConfig:
        """What a trial is: these settings with the drawn ones, less those that would mean nothing beside them.

        Raises:
            ValidationError: a drawn value is not allowed.
        """
        values, defaults = self._merged({**drawn, **pinned}), TrainSection()
        for name in idle_settings(values):
            values["train"][name] = getattr(defaults, name)
        return TrainConfig(**values)

    def effective(self, drawn: Mapping[str, object]) -> dict[str, object]:
        """Drawn settings as their types have them; None for those that mean nothing beside the others."""
        trial, idle = self.trial(drawn), {f"train.{name}" for name in idle_settings(self._merged(drawn))}
        found = {}
        for key in drawn:
            section, _, name = key.partition(".")
            found[key] = None if key in idle else getattr(getattr(trial, section), name)
        return found

    def _merged(self, drawn: Mapping[str, object]) -> dict[str, Any]:
        values = self.model_dump(exclude={"tune"})
        for key, value in drawn.items():
            section, _, name = key.partition(".")
            values[section][name] = value
        return values

    def problems(self) -> list[str]:
        """Those of ``train``; where there are none, the values at the ends of the space that are not allowed."""
        if self.model.task == "regression":
            return ["model.task regression is for train, evaluate and score: a search compares accuracies"]
        if problems := super().problems():
            return problems
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
        return problems


def _given(values: dict[str, Any], section: str, name: str) -> Any:
    """What is given for a setting, in a section that is a dict or made already; None: nothing."""
    found = values.get(section)
    if isinstance(found, Section):
        return getattr(found, name) if name in found.model_fields_set else None
    return found.get(name) if isinstance(found, dict) else None


def idle_settings(values: dict[str, Any]) -> list[str]:
    """Settings of train that others of these values overrule."""
    train, transform = values["train"], values["transform"]
    depths = {phase["trainable"] for phase in train["phases"]} or {values["model"]["trainable"]}
    idle = ["backbone_lr", "layer_decay"] if depths == {"head"} else []
    idle += [] if train["optimizer"] == "sgd" else ["momentum"]
    still = transform["augment"] == "none" and not transform["random_erasing_prob"]
    return idle + (["num_views"] if still or depths == {"all"} or train["cutmix"] else [])
