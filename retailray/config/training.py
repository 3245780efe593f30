"""Sections about models and how they are trained."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from retailray import storage
from retailray.config.base import Section, normalized

# names of networks that normalise by LayerNorm, in all three libraries
WITH_LAYER_NORM = (
    *("beit", "caformer", "cait", "coatnet", "crossvit", "gcvit", "resmlp", "tnt", "visformer", "volo"),
    *("convformer", "convnext", "davit", "deit", "dino", "eva", "flexivit", "hiera"),
    *("maxvit", "maxxvit", "mixer", "mvit", "pvt", "samvit", "siglip", "swin", "twins", "vit", "xcit"),
)
WITHOUT_LAYER_NORM = ("efficientnet", "mobilenet", "regnet", "resnet", "resnext")


class BackboneSection(Section):
    """A pretrained model of which nothing is trained."""

    arch: str | None = Field(None, description="Model whose features are used, as for `train`.")
    weights: str = Field("DEFAULT", description="Its weights, as for `train`.")

    @field_validator("weights")
    @classmethod
    def _same_file_in_every_process(cls, value: str) -> str:
        return normalized_weights(value)


def normalized_weights(value: str) -> str:
    """An address as every process understands it; a library's own name, or none, as it is."""
    return storage.normalize(value) if "/" in value or "." in value else value


class ModelSection(Section):
    """The model to fine-tune, and the name to register it under."""

    arch: str = Field(
        "resnet50",
        description=(
            "Name of a torchvision classification model; timm:NAME, a model of timm; hf or hf:NAME, a model of Hugging "
            "Face's transformers, whose directory model.weights names; or cnn1, cnn2, cnn3 (small baselines)."
        ),
    )
    task: Literal["classification", "regression"] = Field(
        "classification",
        description=(
            "What is learned: classification, the label as one of many; regression, the label as a number (a price, a "
            "weight, sales), which catalog.label names."
        ),
    )
    weights: str = Field(
        "DEFAULT",
        description=(
            "Initial weights: a name of the library (DEFAULT, IMAGENET1K_V1), which may be downloaded; the address of "
            "a .pth file, a .safetensors file, a directory of transformers or a bundle ({arch} is replaced by the name "
            "in model.arch); or none."
        ),
    )
    trainable: str = Field(
        "last5",
        pattern=r"^(head|all|last[1-9]\d*)$",
        description=(
            "Freeze depth, i.e. what is trained: head; last1, last2, ... (the head and the last blocks); all."
        ),
    )
    registry: str | None = Field(None, description="Address of the model registry; requires model.name.")
    name: str | None = Field(
        None, description="Name in the registry; the bundle is registered as <registry>/<name>/<version>."
    )

    _same = field_validator("registry")(normalized)

    @field_validator("weights")
    @classmethod
    def _same_file_in_every_process(cls, value: str) -> str:
        return normalized_weights(value)

    @property
    def is_pretrained_with_layer_norm(self) -> bool:
        """Whether the backbone is one that is fine-tuned with low learning rates; what Hugging Face has is, unless its
        name says otherwise: its own scripts begin with such a rate."""
        library, _, name = self.arch.rpartition(":")
        kind = name.rpartition("/")[2].lower()
        if library == "hf" or (not library and name == "hf"):  # under a name of the user's own
            return self.weights != "none" and not kind.startswith(WITHOUT_LAYER_NORM)
        return self.weights != "none" and kind.startswith(WITH_LAYER_NORM)

    @property
    def resolved_weights(self) -> str:
        return self.weights.replace("{arch}", self.arch.rpartition(":")[2])

    @model_validator(mode="before")
    @classmethod
    def _from_scratch(cls, given: object) -> object:
        """Without pretrained weights there is nothing to freeze."""
        if not isinstance(given, dict):
            return given
        scratch = {"weights": "none"} if given.get("arch") in ("cnn1", "cnn2", "cnn3") else {}
        given = scratch | given
        return ({"trainable": "all"} if given.get("weights") == "none" else {}) | given


class BundleSection(Section):
    """The trained model to use."""

    uri: str = Field(description="Bundle: its directory, <registry>/<name>/<version> or <registry>/<name>@champion.")

    _same = field_validator("uri")(normalized)


class Phase(Section):
    """A stretch of epochs with one freeze depth and one pair of rates; left-out rates are train's."""

    epochs: int = Field(ge=1)
    trainable: str = Field(pattern=r"^(head|all|last[1-9]\d*)$")
    head_lr: float | None = Field(None, gt=0)
    backbone_lr: float | None = Field(None, gt=0)


class TrainSection(Section):
    """Fine-tuning. By default the head is trained first, then the head and the last blocks."""

    epochs: int = Field(10, ge=1, description="Number of epochs, all phases together.")
    phases: list[Phase] = Field(
        [],
        description=(
            'Phases instead of epochs and model.trainable, as JSON: [{"epochs": 3, "trainable": "head", "head_lr": '
            "0.01}, ...]."
        ),
    )
    batch_size: int = Field(64, ge=1, description="Images per optimizer step, over all workers together.")
    device_batch_size: int | None = Field(
        None,
        ge=1,
        description=(
            "Images per forward and backward pass of a worker, where its share of train.batch_size does not fit in "
            "memory: the gradients of several passes are added. BatchNorm sees each pass alone; default: off."
        ),
    )
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="Optimizer: adamw, or sgd with Nesterov momentum.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of sgd.")
    head_lr: float | None = Field(
        None,
        gt=0,
        description=(
            "Peak learning rate of the head; default: 0.01 if only the head is trained, else 0.003, and more if "
            "train.batch_size is above 64: in proportion with sgd, by its square root with adamw."
        ),
    )
    backbone_lr: float | None = Field(
        None,
        gt=0,
        description=(
            "Peak learning rate of the last block of the backbone; default: 0.001, of pretrained ConvNeXt, ViT, Swin "
            "and MaxViT 0.00005, and more if train.batch_size is above 64, like train.head_lr."
        ),
    )
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description=(
            "Factor from the learning rate of a block to that of the block below it; 1: the same rate for all blocks."
        ),
    )
    warmup_ratio: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Share of the steps of a phase with rising learning rate, before the cosine decay [fraction].",
    )
    weight_decay: float = Field(
        1e-2,
        ge=0,
        description="Weight decay of kernels and matrices; none for biases, normalization, positions and scales.",
    )
    clip_grad_norm: float | None = Field(
        None,
        gt=0,
        description="Scale all gradients of a step together down to this norm where theirs is larger; default: off.",
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Label smoothing of the cross-entropy loss.")
    mixup: float = Field(0.0, ge=0, description="Alpha of mixup, applied to the input of the trained blocks; 0: off.")
    cutmix: float = Field(
        0.0,
        ge=0,
        description=(
            "Alpha of CutMix, applied to pixels, so that activations of frozen blocks cannot be cached; 0: off."
        ),
    )
    ema_decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description=(
            "Decay per step of an exponential moving average of the weights; the averaged weights are evaluated and "
            "saved. 0: off."
        ),
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: weight each class by 1 / its number of training rows."
    )
    patience: int | None = Field(
        None,
        ge=1,
        description=("Early stopping: end a phase after this many epochs without a better train.metric; default: off."),
    )
    metric: Literal["top1", "macro_f1", "loss", "mae"] = Field(
        "top1",
        description=(
            "Validation metric that chooses the epoch: of top1 and macro_f1 the last one within one standard error of "
            "the best, of loss and mae (mean absolute error, for regression, where it is the default) the best."
        ),
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Number format of training. auto: bfloat16 if a short measurement shows it to be faster."
    )
    compile: bool = Field(
        False, description="Use torch.compile for the trained part: minutes at the start, faster steps afterwards."
    )
    cache: Literal["auto", "off"] = Field(
        "auto",
        description=(
            "auto: cache activations of frozen blocks, or decoded pixels, if they fit the budget and save time; off: "
            "decode images in every epoch."
        ),
    )
    cache_uri: str | None = Field(
        None,
        description=("Folder of the cache; default: ~/.cache/retailray, on a cluster of several machines <out>/cache."),
    )
    cache_gb: float = Field(
        20.0, gt=0, description="Size limit of the cache; least recently used entries are evicted first [GB]."
    )
    num_views: int | None = Field(
        None,
        ge=1,
        description=(
            "Number of fixed augmented views per image in the cache; default: 8, or fewer to fit train.cache_gb."
        ),
    )
    checkpoint_interval_s: float = Field(
        10.0, ge=0, description="Minimum time between two checkpoints; 0: a checkpoint after every epoch [s]."
    )
    max_failures: int = Field(
        3, ge=0, description="Number of worker failures that a run recovers from, each time from its last checkpoint."
    )
    resume: bool = Field(
        False, description="Continue the unfinished run with the same settings under out, if there is one."
    )
    seed: int = Field(
        0, ge=0, description="Random seed of the head's initial weights, the order of rows and the augmentation."
    )

    _same = field_validator("cache_uri")(normalized)

    @property
    def depths(self) -> list[str]:
        return [phase.trainable for phase in self.phases]


class TrackSection(Section):
    """Copy of the results to MLflow (pip install 'retailray[mlflow]')."""

    uri: str | None = Field(None, description="Address of an MLflow server; default: no copy.")
    experiment: str = Field("retailray", description="Name of the MLflow experiment.")

    _same = field_validator("uri")(normalized)

    @model_validator(mode="after")
    def _experiment_needs_an_address(self) -> "TrackSection":
        if self.uri is None and self.experiment != "retailray":
            raise ValueError("track.experiment would be ignored: track.uri is not given")
        return self
