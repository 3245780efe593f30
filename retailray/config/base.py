"""The base class of all sections of settings."""

from pydantic import BaseModel

from retailray import storage

# keys of 0.2.0 → what they are called now
RENAMED = {
    "transform.erasing": "transform.random_erasing_prob",
    "train.lr_decay": "train.layer_decay",
    "train.warmup": "train.warmup_ratio",
    "train.ema": "train.ema_decay",
    "train.balance": "train.class_weights",
    "train.views": "train.num_views",
    "train.checkpoint_s": "train.checkpoint_interval_s",
    "tune.keep": "tune.keep_top_trials",
    "compare.against": "compare.baseline",
    "cluster.ask_cpus": "cluster.request_cpus",
    "cluster.ask_gpus": "cluster.request_gpus",
    "cluster.wait_s": "cluster.resource_timeout_s",
    "submit.patience_s": "submit.unreachable_timeout_s",
}


def normalized(value: str | None) -> str | None:
    """Return an address in its canonical form, absolute if it is a path."""
    return storage.normalize(value) if value else value


class Section(BaseModel):
    model_config = {"extra": "forbid", "frozen": True, "allow_inf_nan": False}

    def non_default_fields(self) -> set[str]:
        """Return the names of the settings that differ from their defaults.

        Not pydantic's ``model_fields_set``: a config that was saved resolved sets all of them, and means the same.
        """
        fields = type(self).model_fields.items()
        return {name for name, field in fields if getattr(self, name) != field.get_default(call_default_factory=True)}
