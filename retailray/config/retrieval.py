"""Sections about what is done with embeddings."""

from typing import Literal

from pydantic import Field, field_validator

from retailray.config.base import Section, normalized


class EmbeddingsSection(Section):
    """Embeddings of images or products."""

    uri: str = Field(
        description=(
            "Run directory of `score` or `embed` with score.embeddings, or its out (the run that LATEST names); or a "
            "folder of Parquet files with id and embedding."
        )
    )

    _same = field_validator("uri")(normalized)


class SimilarSection(Section):
    """Nearest neighbours by cosine similarity."""

    k: int = Field(10, ge=1, le=1000, description="Number of neighbours of each.")
    level: Literal["auto", "image", "product"] = Field(
        "auto", description="What is compared. auto: products, if the run has embeddings of products, else images."
    )
    index: Literal["auto", "exact", "ivf"] = Field(
        "auto",
        description=(
            "How neighbours are found. exact: by comparing with all; ivf: with those of the nearest cells of an "
            "inverted file, as many that 99 % of the true ten are found; auto: exact up to 100,000."
        ),
    )
    same: str | None = Field(None, description="Only neighbours with the same value in this column, e.g. category.")
    different: str | None = Field(None, description="Only neighbours with another value in this column, e.g. brand.")
    where: dict[str, str] = Field(
        {}, description='Only neighbours with these values, as JSON: {"in_stock": "true"}; columns of the catalog.'
    )
    near_duplicates: float = Field(
        0.98, gt=0, le=1, description="List pairs from this cosine similarity on as near duplicates [0 to 1]."
    )
