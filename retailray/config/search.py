"""The section of a search, and what may be searched."""

from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_serializer, model_validator

from retailray.config.base import Section

# what a search may draw: settings that change the model and leave the images, the seed and the rows what they are
TUNABLE = (
    "model.arch",
    "model.trainable",
    "transform.augment",
    "transform.random_erasing_prob",
    *(f"train.{name}" for name in ("batch_size", "optimizer", "momentum", "head_lr", "backbone_lr", "layer_decay")),
    *(f"train.{name}" for name in ("warmup_ratio", "weight_decay", "label_smoothing", "mixup", "ema_decay")),
    *(f"train.{name}" for name in ("class_weights", "patience")),
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
    keep_top_trials: int = Field(3, ge=1, description="the best trials whose weights stay under trials/")
    resume: bool = Field(False, description="go on with the unfinished search of the same settings under out, if any")
    seed: int = Field(0, ge=0, description="of what is drawn; all trials share train.seed")

    @field_validator("space")
    @classmethod
    def _known_settings(cls, space: dict[str, Domain]) -> dict[str, Domain]:
        unknown = sorted(set(space) - set(TUNABLE))
        if unknown:
            raise ValueError(f"{', '.join(unknown)} cannot be searched; these can: {', '.join(TUNABLE)}")
        return space
