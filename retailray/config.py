"""Every setting: its type, default, unit and one line of help.

Sections are frozen pydantic models; a verb's config is the set of sections it reads. ``arguments.py`` fills them.
"""

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator, model_serializer, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from retailray import storage

Finding = Literal[
    "errors",
    "missing",
    "orphans",
    "exact_duplicates",
    "near_duplicates",
    "leakage",
    "duplicate_ids",
    "empty_labels",
    "similar_labels",
    "small_classes",
    "imbalance",
]


def _normalized(value: str | None) -> str | None:
    """An address as every process understands it."""
    return storage.normalize(value) if value else value


class Section(BaseModel):
    model_config = {"extra": "forbid", "frozen": True}


class CatalogSection(Section):
    """Where the table is and which of its columns say what."""

    uri: str = Field(description="CSV, TSV, Parquet or JSONL file, a folder or pattern of them, or class folders")
    root: str | None = Field(None, description="where relative image paths start; default: the file's folder")
    image: str = Field("image", description="image column; file_name is tried when this default is absent")
    image_template: str = Field(
        "{image}", description="path from columns, e.g. images/{name}.jpg; {stem} is the catalog file's name"
    )
    label: str = Field("label", description="label column")
    label_map: dict[str, str] = Field({}, description='renames of labels as JSON, e.g. {"0": "PC"}')
    id: str | None = Field(None, description="id column; default: the image path")
    group: str | None = Field(None, description="product column; its images stay in one split; default: the id")
    split: str | None = Field(None, description="column that names the split: train, validation or test")
    validation_uri: str | None = Field(None, description="separate catalog for validation, same columns")
    test_uri: str | None = Field(None, description="separate catalog for test, same columns")
    allow: list[str] = Field(
        [],
        description="addresses that images may begin with besides catalog.root; default: any, but no files of the "
        "machine for a catalog that is elsewhere",
    )
    corrections: str | None = Field(
        None,
        description="labels that people gave, in place of the catalog's and the model's: a table of item_id and label "
        "(the review page's, Label Studio's CSV export), or a folder of them",
    )
    encoding: str = Field("utf-8", description="text encoding of CSV, TSV and JSONL")
    max_pixels: int = Field(50_000_000, ge=1, description="larger images become error rows, undecoded [pixels]")
    max_aspect_ratio: float = Field(20.0, ge=1, description="longer images become error rows [long side / short side]")

    @field_validator("label_map", mode="before")
    @classmethod
    def _labels_are_names(cls, value: Any) -> Any:
        # YAML reads the 0 of `0: PC` as a number
        return {str(old): str(new) for old, new in value.items()} if isinstance(value, dict) else value

    @field_validator("uri", "root", "validation_uri", "test_uri", "corrections")
    @classmethod
    def _same_in_every_process(cls, value: str | None) -> str | None:
        return storage.normalize(value) if value else value

    @field_validator("allow")
    @classmethod
    def _allowed_are_addresses(cls, values: list[str]) -> list[str]:
        # a folder means what is below it: /shop must not allow /shopping
        return [storage.normalize(value) + ("/" if value.endswith("/") else "") for value in values]


class SplitSection(Section):
    """Fractions of products held out, by a hash of the product: stable when rows are added."""

    validation: float = Field(0.15, ge=0, lt=1, description="share held out to choose the best epoch [fraction]")
    test: float = Field(0.0, ge=0, lt=1, description="share held out for evaluate [fraction]")
    folds: int | None = Field(
        None, ge=2, le=50, description="train and evaluate this many folds too (stratified, products together)"
    )
    seed: int = Field(0, ge=0, description="another seed, another split")


class TransformSection(Section):
    """What happens to pixels. The eval transform travels inside the bundle."""

    image_size: int = Field(224, ge=8, le=2048, description="side of the square the model sees [px]")
    resize_size: int | None = Field(
        None,
        ge=8,
        le=4096,
        description="shorter side before the centre crop [px]; default: image_size * 256 / 224",
    )
    augment: Literal["none", "article", "standard"] = Field(
        "standard",
        description="none | article (rotation, shift, shear, flip) | standard (random resized crop, flip, colour)",
    )
    erasing: float = Field(0.0, ge=0, le=1, description="random erasing of training images [probability]")

    @property
    def resolved_resize_size(self) -> int:
        return self.resize_size or round(self.image_size * 256 / 224)


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

    @field_validator("uri")
    @classmethod
    def _same_in_every_process(cls, value: str) -> str:
        return storage.normalize(value)


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
    lr_decay: float = Field(1.0, gt=0, le=1, description="rate of a block / rate of the next one towards the head")
    warmup: float = Field(0.1, ge=0, lt=1, description="rising part of a phase, before the cosine [fraction of steps]")
    weight_decay: float = Field(1e-2, ge=0, description="spares biases and normalisation layers")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="cross-entropy's")
    mixup: float = Field(0.0, ge=0, description="alpha; mixes what enters the trained blocks; 0: off")
    cutmix: float = Field(0.0, ge=0, description="alpha; mixes pixels, so that frozen blocks run every time; 0: off")
    ema: float = Field(0.0, ge=0, lt=1, description="decay a step of the averaged weights that are kept; 0: off")
    balance: bool = Field(False, description="weigh classes by 1 / their number of training rows")
    patience: int | None = Field(None, ge=1, description="epochs without a better train.metric that end a phase")
    metric: Literal["top1", "macro_f1", "loss"] = Field("top1", description="validation metric of the best epoch")
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
    views: int | None = Field(
        None,
        ge=1,
        description="fixed augmented views of an image under frozen blocks; default: 8, less to fit the budget",
    )
    checkpoint_s: float = Field(10.0, ge=0, description="seconds between two checkpoints at least; 0: every epoch [s]")
    max_failures: int = Field(3, ge=0, description="lost workers a run survives, each time from its last checkpoint")
    resume: bool = Field(False, description="go on with the unfinished run of the same settings under out, if any")
    seed: int = Field(0, ge=0, description="head initialisation, order, augmentation")

    @field_validator("cache_uri")
    @classmethod
    def _same_in_every_process(cls, value: str | None) -> str | None:
        return storage.normalize(value) if value else value

    @property
    def depths(self) -> list[str]:
        return [phase.trainable for phase in self.phases]


# what a search may draw: settings that change the model and leave the images, the seed and the rows what they are
TUNABLE = (
    "model.arch",
    "model.trainable",
    "transform.augment",
    "transform.erasing",
    *(f"train.{name}" for name in ("batch_size", "optimizer", "momentum", "head_lr", "backbone_lr", "lr_decay")),
    *(f"train.{name}" for name in ("warmup", "weight_decay", "label_smoothing", "mixup", "ema", "balance", "patience")),
)


PASSES = ("model.arch", "model.trainable", "transform.augment", "transform.erasing")  # each asks for a pass of its own


class Domain(Section):
    """What one setting is drawn from: one of these kinds. A bare list is a choice."""

    model_config = {"extra": "forbid", "frozen": True, "populate_by_name": True}
    choice: list[Any] | None = Field(None, min_length=1)
    uniform: tuple[float, float] | None = None
    loguniform: tuple[float, float] | None = None
    integer: tuple[int, int] | None = Field(None, alias="int", description="both ends included")

    @model_validator(mode="before")
    @classmethod
    def _list_is_a_choice(cls, value: Any) -> Any:
        return {"choice": value} if isinstance(value, list) else value

    @model_validator(mode="after")
    def _one_kind(self) -> "Domain":
        given = self.dump()
        if len(given) != 1:
            raise ValueError("give one of choice, uniform, loguniform, int")
        [(kind, ends)] = given.items()
        if kind != "choice" and not ends[0] < ends[1]:
            raise ValueError(f"{kind} goes from a smaller to a larger number")
        if kind == "loguniform" and ends[0] <= 0:
            raise ValueError("loguniform is of positive numbers")
        return self

    @model_serializer
    def dump(self) -> dict[str, Any]:
        kinds = {"choice": self.choice, "uniform": self.uniform, "loguniform": self.loguniform, "int": self.integer}
        return {kind: value for kind, value in kinds.items() if value is not None}

    @property
    def corners(self) -> list[Any]:
        """The values that say whether all of them are allowed."""
        [(_, values)] = self.dump().items()
        return list(values)


class TuneSection(Section):
    """Searching for the best settings of train. A trial takes train.epochs at most."""

    trials: int = Field(32, ge=1, description="how many; searcher grid has one for every combination instead")
    space: dict[str, Domain] = Field(
        {},
        description='JSON: {"train.head_lr": {"loguniform": [1e-4, 1e-2]}, "model.trainable": ["head", "last2"], ...}; '
        "kinds: choice (or a list), uniform, loguniform, int; default: freeze depth and both learning rates",
    )
    searcher: Literal["random", "grid", "optuna"] = Field("random", description="optuna: its TPE, after random trials")
    scheduler: Literal["asha", "median", "pbt", "none"] = Field(
        "asha", description="what stops poor trials early; pbt: they go on from better ones, with other rates"
    )
    grace_epochs: int = Field(1, ge=1, description="that no trial is stopped before; pbt: between two exchanges")
    reduction: int = Field(3, ge=2, description="asha lets the best 1 / this go on at 1, 3, 9, ... times grace_epochs")
    max_concurrent: int | None = Field(
        None, ge=1, description="trials at once; default: one a GPU, else what the CPUs carry"
    )
    workers_per_trial: int = Field(1, ge=1, description="data-parallel workers in each trial")
    cpus_per_worker: float | None = Field(
        None, gt=0, description="default: what leaves half of the CPUs free, 1 at most"
    )
    gpus_per_worker: float | None = Field(None, gt=0, le=1, description="fractions share a GPU; default: 1 with GPUs")
    max_epochs: int | None = Field(None, ge=1, description="of all trials together; then the search ends")
    time_budget_s: float | None = Field(None, gt=0, description="then the search ends [s]")
    keep: int = Field(3, ge=1, description="the best trials whose weights stay under trials/")
    resume: bool = Field(False, description="go on with the unfinished search of the same settings under out, if any")
    seed: int = Field(0, ge=0, description="of what is drawn; all trials share train.seed")

    @field_validator("space")
    @classmethod
    def _known_settings(cls, space: dict[str, Domain]) -> dict[str, Domain]:
        unknown = sorted(set(space) - set(TUNABLE))
        if unknown:
            raise ValueError(f"{', '.join(unknown)} cannot be searched; these can: {', '.join(TUNABLE)}")
        return space


class EvaluateSection(Section):
    """Measuring."""

    split: Literal["all", "train", "validation", "test"] = Field("all", description="which rows of the catalog")
    bootstrap: int = Field(1000, ge=0, description="resamples behind the 95 % intervals; 0 for none")
    batch_size: int = Field(64, ge=1, description="images a forward pass")


class CompareSection(Section):
    """A challenger (model.uri) against another bundle on the same rows."""

    against: str = Field(description="the bundle it is compared with: directory, version or <registry>/<name>@champion")
    split: Literal["all", "train", "validation", "test"] = Field("all", description="which rows of the catalog")
    bootstrap: int = Field(2000, ge=100, description="resamples of rows behind the 95 % interval of the difference")
    batch_size: int = Field(64, ge=1, description="images a forward pass")

    @field_validator("against")
    @classmethod
    def _same_in_every_process(cls, value: str) -> str:
        return storage.normalize(value)


class PromoteSection(Section):
    """The gate before @champion: the challenger is not worse on labelled rows."""

    split: Literal["all", "train", "validation", "test"] = Field("all", description="which rows of the catalog decide")
    max_loss: float = Field(
        0.01, ge=0, lt=1, description="top-1 that the challenger may lose at the lower end of the 95 % interval"
    )
    min_top1: float = Field(0.0, ge=0, le=1, description="top-1 that it must reach in any case [fraction]")
    min_rows: int = Field(100, ge=1, description="labelled rows that the decision needs")
    bootstrap: int = Field(2000, ge=100, description="resamples of rows behind the interval")
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


class CheckSection(Section):
    """What counts as a finding, and which findings are a no."""

    fail_on: list[Finding] = Field([], description="findings that give exit 4, e.g. errors,leakage")
    min_images: int = Field(10, ge=1, description="a class with fewer is small [images]")
    max_imbalance: float = Field(100.0, ge=1, description="largest class / smallest class")
    near_distance: int = Field(
        3, ge=0, le=7, description="perceptual hashes this close are near duplicates [of 64 bits]"
    )
    samples: int = Field(8, ge=0, description="pictures a label in the report [images]")


class TrackSection(Section):
    """A copy of the results in MLflow (pip install 'retailray[mlflow]')."""

    uri: str | None = Field(None, description="address of an MLflow server; default: no copy")
    experiment: str = Field("retailray", description="MLflow's experiment")

    _same = field_validator("uri")(_normalized)

    @model_validator(mode="after")
    def _experiment_needs_an_address(self) -> "TrackSection":
        if self.uri is None and self.experiment != "retailray":
            raise ValueError("track.experiment would be ignored: track.uri is not given")
        return self


class ClusterSection(Section):
    """Ray."""

    address: str | None = Field(
        None,
        description="running cluster, host:port; for submit and doctor its dashboard, http://host:8265; default: "
        "RAY_ADDRESS, else a local Ray",
    )
    num_workers: int | None = Field(
        None, ge=1, description="training workers or predictors; default: one a GPU, else what the CPUs carry"
    )
    min_workers: int | None = Field(
        None, ge=1, description="train goes on with as few as these when machines leave; default: num_workers"
    )
    use_gpu: bool | None = Field(None, description="default: if the cluster has one")
    gpus_per_predictor: float = Field(
        1.0, gt=0, le=1, description="share of a GPU that a predictor takes; 0.5: two on each [GPUs]"
    )
    placement: Literal["pack", "spread"] = Field(
        "pack", description="training workers on as few machines as carry them, or on as many as there are"
    )
    ask_cpus: int | None = Field(
        None, ge=1, description="ask a cluster that scales itself for so many at once, and wait for them [CPUs]"
    )
    ask_gpus: int | None = Field(None, ge=1, description="likewise [GPUs]")
    wait_s: float = Field(600.0, gt=0, description="how long to wait for what was asked for, or is held by others [s]")

    @model_validator(mode="after")
    def _range_of_workers(self) -> "ClusterSection":
        if self.num_workers and self.min_workers and self.min_workers > self.num_workers:
            raise ValueError(f"min_workers = {self.min_workers} is more than num_workers = {self.num_workers}")
        return self


class DemoSection(Section):
    """The made-up catalog."""

    num_images: int = Field(400, ge=60, description="pictures in the catalog, broken files apart [images]")
    seed: int = Field(0, ge=0, description="another seed, another catalog")


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

    @field_validator("out")
    @classmethod
    def _same_in_every_process(cls, value: str) -> str:
        return storage.normalize(value)

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


class SubmitSection(Section):
    """A job of a running cluster. The verb, its files and its settings are given as if it ran here."""

    id: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="submission id; given again with the same settings it follows the job that has it and starts "
        "none; default: made anew",
    )
    requirements: str | None = Field(
        None, description="pip requirements that the cluster installs for the job; default: what it has"
    )
    python: str | None = Field(
        None, description="the cluster's interpreter; default: the one that its Ray runs on, as its dashboard tells"
    )
    patience_s: float = Field(
        120.0, gt=0, description="how long the cluster may give no answer before following the job is given up [s]"
    )


class KuberaySection(Section):
    """Kubernetes manifests for the same command (--render kuberay)."""

    name: str = Field("retailray", pattern=r"^[a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?$", description="of the objects")
    image: str = Field("retailray:latest", description="an image with Ray and retailray in it")
    schedule: str = Field("0 2 * * *", description="of the two cron objects, in the controller's time zone")
    service_account: str | None = Field(None, description="that may read and write the storage (IRSA and its kin)")
    storage_secret: str | None = Field(
        None, description="Kubernetes secret with AWS_* variables, where no service account has the rights"
    )
    token_secret: str = Field("ray-auth-token", description="Kubernetes secret whose auth_token is Ray's token")
    cpu_workers: int = Field(8, ge=0, description="most machines that read and decode; none run when idle")
    gpu_workers: int = Field(4, ge=0, description="most machines with a GPU; none run when idle")
    cpus: int = Field(8, ge=1, description="of a worker [CPUs]")
    memory_gb: int = Field(32, ge=1, description="of a worker [GiB]")


class SubmitConfig(VerbConfig):
    unused = frozenset({"out", *(f"cluster.{name}" for name in ClusterSection.model_fields if name != "address")})
    out: str = Field(".", description="the verb's")
    detach: bool = Field(False, description="submit, say the id, and leave")
    render: Literal["kuberay"] | None = Field(None, description="print manifests in place of submitting")
    submit: SubmitSection = SubmitSection()
    kuberay: KuberaySection = KuberaySection()


class DoctorCatalog(Section):
    """What workers must be able to read."""

    uri: str | None = Field(None, description="catalog file, folder or pattern")

    _same = field_validator("uri")(_normalized)


class DoctorModel(Section):
    """What workers must be able to read."""

    uri: str | None = Field(None, description="a bundle, or an alias of a registry")

    _same = field_validator("uri")(_normalized)


class DoctorSection(Section):
    """Limits."""

    min_free_gb: float = Field(5.0, ge=0, description="free on the disk of each machine's Ray folder [GB]")
    max_skew_s: float = Field(5.0, gt=0, description="between the clocks of two machines; stores refuse minutes [s]")


class DoctorConfig(VerbConfig):
    unused = frozenset({f"cluster.{name}" for name in ClusterSection.model_fields} - SCALING - {"cluster.address"})
    out: str = Field("doctor", description="where workers must be able to write")
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
