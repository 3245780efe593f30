"""The base class of all command configs."""

from collections.abc import Iterable, Mapping
from typing import ClassVar, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from retailray.config.base import normalized
from retailray.config.catalog import CatalogSection, SplitSection
from retailray.config.cluster import ClusterSection

# cluster.* settings used only by commands that run predictors (first) or training workers (second)
OF_PREDICTORS, OF_WORKERS = (
    frozenset({"cluster.gpus_per_predictor"}),
    frozenset({"cluster.min_workers", "cluster.placement"}),
)


class CommandConfig(BaseSettings):
    """What every command reads. A subclass adds the sections of one command."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, cli_avoid_json=True, cli_hide_none_type=True, cli_enforce_required=False
    )
    # keys of shared sections that the command does not use: refused on the command line, ignored in shared files
    unused: ClassVar[frozenset[str]] = OF_WORKERS
    out: str = Field(description="Folder for the results. Each run creates a run directory in it.")
    cluster: ClusterSection = ClusterSection()

    _same = field_validator("out")(normalized)

    def problems(self) -> list[str]:
        """Return the settings that contradict each other, or that others make mean nothing: a sentence each."""
        return []

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        if problems := self.problems():
            raise ValueError("; ".join(problems))
        return self

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


def taken_names(columns: Mapping[str, str], ours: Iterable[str]) -> list[str]:
    """Return the problems with columns of the user (by their keys) that would stand in a table beside ours.

    Args:
        ours: names of our columns.
    """
    taken = set(ours)
    problems = [
        f"{key} = {name}: the table that is written has a column of this name; rename yours"
        for key, name in columns.items()
        if name in taken
    ]
    if len(set(columns.values())) < len(columns):
        problems.append(f"{' and '.join(columns)} name the same column")
    return problems


def ignored_splits(catalog: CatalogSection, split: SplitSection) -> list[str]:
    """Return the problems with split settings that other settings overrule."""
    problems = []
    given = split.non_default_fields() - {"folds"}
    for name in ("validation", "test"):
        if getattr(catalog, f"{name}_uri") and name in given:
            problems.append(f"split.{name} would be ignored: catalog.{name}_uri names the {name} rows")
        if getattr(catalog, f"{name}_uri") and catalog.split:
            problems.append(f"catalog.{name}_uri and catalog.split both say which rows are {name}; give one")
    if catalog.split and given - ({"seed"} if split.folds else set()):
        problems.append("split.* would be ignored: catalog.split names the column that says the split")
    return problems
