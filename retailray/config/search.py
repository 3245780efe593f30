"""The section of a search, and what may be searched."""

from typing import Any, Literal

from pydantic import ConfigDict, Field, JsonValue, field_validator, model_serializer, model_validator

from retailray.config.base import RENAMED, Section

# what a search may draw: settings that change the model and leave the images, the seed and the rows what they are
TUNABLE = (
    "model.arch",
    "model.trainable",
    "transform.augment",
    "transform.random_erasing_prob",
    *(f"train.{name}" for name in ("batch_size", "optimizer", "momentum", "head_lr", "backbone_lr", "layer_decay")),
    *(f"train.{name}" for name in ("warmup_ratio", "weight_decay", "label_smoothing", "mixup", "ema_decay")),
    *(f"train.{name}" for name in ("class_weights", "patience", "clip_grad_norm")),
)

PASSES = (
    "model.arch",
    "model.trainable",
    "transform.augment",
    "transform.random_erasing_prob",
)  # each asks for a pass of its own


class Domain(Section):
    """What one setting is drawn from: one of these kinds. A bare list is a choice."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
    choice: list[JsonValue] | None = Field(None, min_length=1)
    uniform: tuple[float, float] | None = None
    loguniform: tuple[float, float] | None = None
    integer: tuple[int, int] | None = Field(None, alias="int", description="both ends included")

    @model_validator(mode="before")
    @classmethod
    def _list_is_a_choice(cls, value: object) -> object:
        return {"choice": value} if isinstance(value, list) else value

    @model_validator(mode="after")
    def _one_kind(self) -> "Domain":
        given = self.dump()
        if len(given) != 1:
            raise ValueError("give one of choice, uniform, loguniform, int")
        [(kind, ends)] = given.items()
        if kind != "choice" and not ends[0] < ends[1]:
            raise ValueError(f"{kind} needs a smaller number, then a larger one")
        if kind == "loguniform" and ends[0] <= 0:
            raise ValueError("loguniform needs positive numbers")
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
    """Hyperparameter search over settings of train. A trial runs for train.epochs at most."""

    trials: int = Field(
        32, ge=1, description="Number of trials; with searcher grid every combination is tried instead."
    )
    space: dict[str, Domain] = Field(
        {},
        description=(
            'Search space as JSON: {"train.head_lr": {"loguniform": [1e-4, 1e-2]}, "model.trainable": ["head", '
            '"last2"], ...}. Kinds: choice (or a list), uniform, loguniform, int. Default: freeze depth and both '
            "learning rates."
        ),
    )
    searcher: Literal["random", "grid", "optuna"] = Field(
        "random",
        description=(
            "How settings are drawn. random; grid: every combination; optuna: after some random trials, near those "
            "that did well (TPE)."
        ),
    )
    scheduler: Literal["asha", "median", "pbt", "none"] = Field(
        "asha",
        description=(
            "How poor trials are stopped early. asha: successive halving; median: below the median of the others; "
            "pbt: population based training, poor trials continue from better ones; none."
        ),
    )
    grace_epochs: int = Field(
        1, ge=1, description="Epochs before a trial can be stopped; with pbt: epochs between two exchanges."
    )
    reduction: int = Field(
        3,
        ge=2,
        description=(
            "Reduction factor of asha: the best 1 / reduction of the trials continue after 1, 3, 9, ... times "
            "grace_epochs."
        ),
    )
    max_concurrent: int | None = Field(
        None,
        ge=1,
        description=(
            "Maximum number of trials at the same time; default: one per GPU, else as many as the CPUs can run."
        ),
    )
    workers_per_trial: int = Field(1, ge=1, description="Data-parallel workers per trial.")
    cpus_per_worker: float | None = Field(
        None,
        gt=0,
        description="CPUs per worker; default: half of the CPUs divided by the number of workers, but at most 1.",
    )
    gpus_per_worker: float | None = Field(
        None, gt=0, le=1, description="GPUs per worker; a fraction shares a GPU; default: 1 if there are GPUs."
    )
    max_epochs: int | None = Field(
        None, ge=1, description="End the search after this many epochs of all trials together; default: no limit."
    )
    time_budget_s: float | None = Field(
        None, gt=0, description="End the search after this time [s]; default: no limit."
    )
    keep_top_trials: int = Field(3, ge=1, description="Number of best trials whose weights are kept under trials/.")
    resume: bool = Field(
        False, description="Continue the unfinished search with the same settings under out, if there is one."
    )
    seed: int = Field(0, ge=0, description="Random seed of the search; all trials train with train.seed.")

    @field_validator("space")
    @classmethod
    def _known_settings(cls, space: dict[str, Domain]) -> dict[str, Domain]:
        unknown = sorted(set(space) - set(TUNABLE))
        if renamed := [f"{name} is {RENAMED[name]} now" for name in unknown if name in RENAMED]:
            raise ValueError("; ".join(renamed))
        if unknown:
            raise ValueError(f"{', '.join(unknown)} cannot be searched; these can: {', '.join(TUNABLE)}")
        return space
