"""What ``study`` reads: several models, the seeds of each, and what they share."""

import os
from collections import Counter

import yaml
from pydantic import Field, ValidationError, model_validator

from retailray import storage
from retailray.config.base import Section
from retailray.config.catalog import CatalogSection, SplitSection, TransformSection
from retailray.config.cluster import ClusterSection
from retailray.config.common import OF_PREDICTORS, OF_WORKERS, CommandConfig, ignored_splits
from retailray.config.fine_tuning import TrainConfig, idle_settings
from retailray.config.training import ModelSection, Phase, TrainSection
from retailray.config.yaml_files import load_yaml
from retailray.errors import StorageError


class StudyModel(Section):
    """One model of a study; rates and phases that are left out are train's."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_. -]*$", description="Name in tables and plots, e.g. cnn2 or resnet50 head."
    )
    config: str | None = Field(
        None,
        description=(
            "Config file of train to take the model, the phases and the rates from, such as best.yaml of a tune; what "
            "is given here takes precedence."
        ),
    )
    model: ModelSection = Field(description="Architecture, initial weights and freeze depth, as for train.")
    phases: list[Phase] = Field(
        [], description="Phases instead of model.trainable; their epochs together must be train.epochs."
    )
    head_lr: float | None = Field(None, gt=0, description="Peak learning rate of the head.")
    backbone_lr: float | None = Field(None, gt=0, description="Peak learning rate of the last block of the backbone.")

    @model_validator(mode="before")
    @classmethod
    def _from_config(cls, values: object) -> object:
        if not isinstance(values, dict) or not values.get("config"):
            return values
        return _settings_of(storage.normalize(os.path.expanduser(str(values["config"])))) | values


def _settings_of(address: str) -> dict[str, object]:
    """Model, phases and rates of a config file of ``train``. Raises ValueError."""
    try:
        found = load_yaml(storage.read_bytes(address))
    except (StorageError, yaml.YAMLError) as error:
        raise ValueError(f"config = {address}: {error}") from error
    model, train = (found.get(name) if isinstance(found, dict) else None for name in ("model", "train"))
    if not isinstance(model, dict) or not isinstance(train, dict):
        raise ValueError(f"config = {address}: it has no sections model and train; name best.yaml of a tune")
    model = {name: value for name, value in model.items() if name not in ("registry", "name")}
    rates = ["head_lr"] if model.get("trainable") == "head" and not train.get("phases") else ["head_lr", "backbone_lr"]
    return {"model": model, **{name: train[name] for name in ("phases", *rates) if train.get(name)}}


class StudySection(Section):
    """Several models on the same rows, each trained with several seeds, and compared on the test rows."""

    models: list[StudyModel] = Field(
        min_length=1,
        description=(
            "The models, as a list in the config file: {name: cnn2, model: {arch: cnn2}}, {name: resnet50 head, model: "
            "{arch: resnet50, weights: weights.pth, trainable: head}}, ..."
        ),
    )
    weights: str | None = Field(
        None,
        description=(
            "Initial weights of the models that name none themselves, as for model.weights ({arch} is replaced by "
            "the model's)."
        ),
    )
    seeds: int = Field(3, ge=1, description="Fits of every model, with the seeds train.seed, train.seed + 1 and so on.")
    bootstrap: int = Field(2000, ge=100, description="Number of resamples behind the 95 % intervals.")
    samples: int = Field(4, ge=0, description="Sample pictures of every label in the report; 0: none.")
    max_concurrent: int | None = Field(
        None, ge=1, description="Maximum number of fits at the same time on Ray; default: one per GPU, else per CPU."
    )
    resume: bool = Field(
        False, description="Continue the unfinished study with the same settings under out, if there is one."
    )


class StudyConfig(CommandConfig):
    unused = OF_PREDICTORS | OF_WORKERS | {"train.phases", "train.resume", "split.folds", "cluster.num_workers"}
    catalog: CatalogSection
    split: SplitSection = SplitSection()
    transform: TransformSection = TransformSection()
    train: TrainSection = TrainSection()
    study: StudySection

    def fit(self, model: StudyModel, number: int, *, out: str, resume: bool = False) -> TrainConfig:
        """What ``train`` reads to fit one model with one seed in this process. ``number``: of the fit, from 0.

        Raises:
            ValidationError: settings contradict each other.
        """
        rates = {name: value for name in ("head_lr", "backbone_lr") if (value := getattr(model, name)) is not None}
        given = {"seed": self.train.seed + number, "resume": resume, **rates}
        if model.phases:
            given |= {"phases": model.phases, "epochs": TrainSection().epochs}
        start = model.model
        if self.study.weights and start.weights == ModelSection.model_fields["weights"].default:
            start = ModelSection(**start.model_dump() | {"weights": self.study.weights})
        train = self.train.model_copy(update=given)
        values = {"train": train.model_dump(), "model": start.model_dump(), "transform": self.transform.model_dump()}
        idle = {name: getattr(TrainSection(), name) for name in idle_settings(values)}  # beside what this model is
        return TrainConfig(
            out=out,
            catalog=self.catalog,
            split=self.split,
            transform=self.transform,
            model=start,
            train=train.model_copy(update={name: value for name, value in idle.items() if name not in rates}),
            cluster=ClusterSection(engine="inline", use_gpu=self.cluster.use_gpu),
        )

    def problems(self) -> list[str]:
        problems = ignored_splits(self.catalog, self.split)
        counts = Counter(model.name for model in self.study.models)
        problems += [f"study.models: the name {name!r} is given {n} times" for name, n in counts.items() if n > 1]
        for model in self.study.models:
            if model.model.task == "regression":
                problems.append(f"study.models: {model.name}: model.task regression is for train, evaluate and score")
                continue
            epochs = sum(phase.epochs for phase in model.phases)
            if model.phases and epochs != self.train.epochs:
                problems.append(
                    f"study.models: {model.name}: its phases have {epochs} epochs, and train.epochs is "
                    f"{self.train.epochs}; all models of a study train for as long"
                )
            try:
                self.fit(model, 0, out=self.out)
            except ValidationError as error:
                said = "; ".join(detail["msg"].removeprefix("Value error, ") for detail in error.errors())
                reasons = [reason for reason in said.split("; ") if reason not in problems]
                problems += [f"study.models: {model.name}: {'; '.join(reasons)}"] if reasons else []
        return problems
