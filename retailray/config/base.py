"""What all sections are."""

from pydantic import BaseModel

from retailray import storage


def normalized(value: str | None) -> str | None:
    """An address as every process understands it."""
    return storage.normalize(value) if value else value


class Section(BaseModel):
    model_config = {"extra": "forbid", "frozen": True}
