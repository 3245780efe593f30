"""Sections about models and how they are trained."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from retailray import storage
from retailray.config.base import Section, normalized


class ModelSection(Section):
    """Which model is fine-tuned, and under which name it is registered."""

    arch: str = Field("resnet50", description="torchvision classification model, or cnn1, cnn2, cnn3 (small baselines)")
    weights: str = Field(
        "DEFAULT",
        description="torchvision name (DEFAULT, IMAGENET1K_V1), address of .pth/.safetensors/bundle ({arch} in it: "
        "model.arch), or none",
    )
    trainable: str = Field(
        "last5",
        pattern=r"^(head|all|last[1-9]\d*)$",
        description="freeze depth: head, last1, last2, ... (the last blocks and the head) or all",
    )
    registry: str | None = Field(None, description="address under which bundles are registered; needs model.name")
    name: str | None = Field(None, description="registered name; the bundle becomes <registry>/<name>/<version>")

    _same = field_validator("registry")(normalized)

    @field_validator("weights")
    @classmethod
    def _same_file_in_every_process(cls, value: str) -> str:
        return storage.normalize(value) if "/" in value or "." in value else value  # else torchvision's name, or none

    @property
    def resolved_weights(self) -> str:
        return self.weights.replace("{arch}", self.arch)

    @model_validator(mode="before")
    @classmethod
    def _from_scratch(cls, given: Any) -> Any:
        """Without pretrained weights there is nothing to freeze."""
        if not isinstance(given, dict):
            return given
        scratch = {"weights": "none"} if given.get("arch") in ("cnn1", "cnn2", "cnn3") else {}
        given = scratch | given
        return ({"trainable": "all"} if given.get("weights") == "none" else {}) | given


class BundleSection(Section):
    """Which trained model is used."""

    uri: str = Field(description="a bundle: its directory, <registry>/<name>/<version> or <registry>/<name>@champion")

    _same = field_validator("uri")(normalized)


class Phase(Section):
    """A stretch of epochs with one freeze depth and one pair of rates; left-out rates are train's."""

    epochs: int = Field(ge=1)
    trainable: str = Field(pattern=r"^(head|all|last[1-9]\d*)$")
    head_lr: float | None = Field(None, gt=0)
    backbone_lr: float | None = Field(None, gt=0)


class TrainSection(Section):
    """Fine-tuning: first the head alone, then the last blocks, unless model.trainable or train.phases say otherwise."""

    epochs: int = Field(10, ge=1, description="passes over the training rows, all phases together")
    phases: list[Phase] = Field(
        [], description='JSON list in place of epochs: [{"epochs": 3, "trainable": "head", "head_lr": 0.01}, ...]'
    )
    batch_size: int = Field(64, ge=1, description="images a step, over all workers together")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="adamw, or sgd with momentum")
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd's")
    head_lr: float | None = Field(
        None,
        gt=0,
        description="peak learning rate of the head; default: 0.01 where nothing else is trained, else 0.003",
    )
    backbone_lr: float = Field(1e-3, gt=0, description="peak learning rate of the last block")
    layer_decay: float = Field(1.0, gt=0, le=1, description="rate of a block / rate of the next one towards the head")
    warmup_ratio: float = Field(
        0.1, ge=0, lt=1, description="rising part of a phase, before the cosine [fraction of steps]"
    )
    weight_decay: float = Field(1e-2, ge=0, description="spares biases and normalisation layers")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="cross-entropy's")
    mixup: float = Field(0.0, ge=0, description="alpha; mixes what enters the trained blocks; 0: off")
    cutmix: float = Field(0.0, ge=0, description="alpha; mixes pixels, so that frozen blocks run every time; 0: off")
    ema_decay: float = Field(0.0, ge=0, lt=1, description="decay a step of the averaged weights that are kept; 0: off")
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: weight each class by 1 / its number of training rows"
    )
    patience: int | None = Field(None, ge=1, description="epochs without a better train.metric that end a phase")
    metric: Literal["top1", "macro_f1", "loss"] = Field(
        "top1", description="of validation; the last epoch within one standard error of the best one is kept"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 where a short measurement says it is faster"
    )
    compile: bool = Field(False, description="torch.compile what is trained: minutes at the start, faster steps after")
    cache: Literal["auto", "off"] = Field(
        "auto", description="keep what frozen blocks compute (or decoded pixels) where size and time speak for it"
    )
    cache_uri: str | None = Field(
        None, description="where that is kept; default: ~/.cache/retailray, on a cluster of machines <out>/cache"
    )
    cache_gb: float = Field(20.0, gt=0, description="budget of that place; the least recently used goes first [GB]")
    num_views: int | None = Field(
        None,
        ge=1,
        description="fixed augmented views of an image under frozen blocks; default: 8, less to fit the budget",
    )
    checkpoint_interval_s: float = Field(
        10.0, ge=0, description="seconds between two checkpoints at least; 0: every epoch [s]"
    )
    max_failures: int = Field(3, ge=0, description="lost workers a run survives, each time from its last checkpoint")
    resume: bool = Field(False, description="go on with the unfinished run of the same settings under out, if any")
    seed: int = Field(0, ge=0, description="head initialisation, order, augmentation")

    _same = field_validator("cache_uri")(normalized)

    @property
    def depths(self) -> list[str]:
        return [phase.trainable for phase in self.phases]


class TrackSection(Section):
    """A copy of the results in MLflow (pip install 'retailray[mlflow]')."""

    uri: str | None = Field(None, description="address of an MLflow server; default: no copy")
    experiment: str = Field("retailray", description="MLflow's experiment")

    _same = field_validator("uri")(normalized)

    @model_validator(mode="after")
    def _experiment_needs_an_address(self) -> "TrackSection":
        if self.uri is None and self.experiment != "retailray":
            raise ValueError("track.experiment would be ignored: track.uri is not given")
        return self
