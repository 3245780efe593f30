"""The section of ``bundle``: a classifier that was trained elsewhere."""

from pydantic import Field, JsonValue, field_validator

from retailray.config.base import Section, normalized


class OwnModelSection(Section):
    """The classifier that becomes a bundle."""

    source: str = Field(
        description=(
            "Weights (.safetensors, .pth), or a directory of transformers or timm (config.json, model.safetensors, "
            "preprocessor_config.json); on disk or in object storage."
        )
    )
    arch: str | None = Field(
        None,
        description=(
            "What the weights are of: a name of a torchvision classification model, or timm:NAME; a directory says it "
            "itself."
        ),
    )
    labels: str | None = Field(
        None,
        description=(
            "File with the labels in the order of the outputs: one a line, a JSON list, id2label or class_to_idx, or a "
            "CSV file with a column label; default: what the directory says."
        ),
    )
    label_map: dict[str, str | None] = Field(
        {},
        description=(
            'Renames or drops labels, as JSON, e.g. {"n02123045": "cat", "n02124075": null, "*": null}; null drops a '
            "label, * stands for all that are not named."
        ),
    )
    transform: dict[str, JsonValue] = Field(
        {},
        description=(
            "What is done to pictures, as JSON, in place of what the directory or the library says: resize_size, "
            "crop_size [px], resize (shorter_side, stretch, central_square), interpolation, mean, std, cut."
        ),
    )
    registry: str | None = Field(None, description="Address of the model registry; requires bundle.name.")
    name: str | None = Field(
        None, description="Name in the registry; the bundle is registered as <registry>/<name>/<version>."
    )

    _same = field_validator("source", "labels", "registry")(normalized)

    @field_validator("label_map", mode="before")
    @classmethod
    def _labels_are_names(cls, value: object) -> object:
        # YAML reads the 0 of `0: PC` as a number
        if not isinstance(value, dict):
            return value
        return {str(old): None if new is None else str(new) for old, new in value.items()}
