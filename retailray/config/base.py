"""The base class of all sections of settings."""

from pydantic import BaseModel

from retailray import storage


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
