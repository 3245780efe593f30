"""Sections about rows and pixels."""

import os
from typing import Any, Literal

from pydantic import Field, field_validator

from retailray import storage
from retailray.config.base import Section, normalized

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
    "label_conflicts",
    "labels_without_training_rows",
    "equal_folder_names",
    "unread_files",
]


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
        description="folders, buckets or hosts that images may lie in besides catalog.root and the catalog's own; "
        "private hosts, and folders that links lead to, must be named. Default for a local catalog: any store",
    )
    http_headers: dict[str, str] = Field(
        {},
        description="sent with requests for pictures on the web, as JSON; ${NAME} is taken from the environment, so "
        "that no secret is written down",
    )
    corrections: str | None = Field(
        None,
        description="labels that people gave, in place of the catalog's and the model's: a table of item_id and label "
        "(the review page's, Label Studio's CSV export), or a folder of them",
    )
    encoding: str = Field("utf-8", description="text encoding of CSV, TSV and JSONL; a byte order mark overrules it")
    delimiter: str | None = Field(
        None,
        min_length=1,
        max_length=1,
        description="what stands between values of CSV, or tab; default: found by parsing",
    )
    quoting: Literal["auto", "standard", "none"] = Field(
        "auto",
        description="what quote signs mean in CSV: auto refuses a quoted value that seems to swallow rows, standard "
        "trusts every quote, none takes quote signs as plain text",
    )
    columns: list[str] = Field([], description="names of the columns, in order, of a CSV without a header")
    folder_labels: Literal["leaf", "path"] = Field(
        "leaf", description="labels of class folders: the innermost folder's name, or its whole path (men/shoes)"
    )
    normalize_labels: bool = Field(
        False, description="merge labels that differ only in case, surrounding blanks or Unicode form, as lower case"
    )
    max_bytes: int = Field(
        storage.MAX_BYTES, ge=1, description="larger objects become error rows, and are not read to their end [bytes]"
    )
    max_pixels: int = Field(50_000_000, ge=1, description="larger images become error rows, undecoded [pixels]")
    max_aspect_ratio: float = Field(20.0, ge=1, description="longer images become error rows [long side / short side]")

    @field_validator("label_map", mode="before")
    @classmethod
    def _labels_are_names(cls, value: Any) -> Any:
        # YAML reads the 0 of `0: PC` as a number
        return {str(old): str(new) for old, new in value.items()} if isinstance(value, dict) else value

    @field_validator("delimiter", mode="before")
    @classmethod
    def _tab_has_a_name(cls, value: Any) -> Any:
        return "\t" if value in ("tab", "\\t") else value

    _same = field_validator("uri", "root", "validation_uri", "test_uri", "corrections")(normalized)

    @field_validator("allow")
    @classmethod
    def _allowed_are_addresses(cls, values: list[str]) -> list[str]:
        for value in values:
            if "*" in storage.place_of(value):
                raise ValueError(f"{value!r}: a host or bucket is named in full; patterns mean nothing here")
            absolute = storage.is_uri(value) or value.startswith(("/", "~", "file:"))
            if not absolute and not os.path.exists(value):
                raise ValueError(f"{value!r} is no folder here; a host is named as https://HOST, a bucket as s3://...")
        return [storage.normalize(value) for value in values]


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
    random_erasing_prob: float = Field(0.0, ge=0, le=1, description="random erasing of training images [probability]")

    @property
    def resolved_resize_size(self) -> int:
        return self.resize_size or round(self.image_size * 256 / 224)


class CheckSection(Section):
    """What counts as a finding, and which findings are a no."""

    fail_on: list[Finding] = Field([], description="findings that give exit 4, e.g. errors,leakage")
    min_images: int = Field(10, ge=1, description="a class with fewer is small [images]")
    max_imbalance: float = Field(100.0, ge=1, description="largest class / smallest class")
    near_distance: int = Field(
        3, ge=0, le=7, description="perceptual hashes this close are near duplicates [of 64 bits]"
    )
    samples: int = Field(8, ge=0, description="pictures a label in the report [images]")


class DemoSection(Section):
    """The made-up catalog."""

    num_images: int = Field(400, ge=60, description="pictures in the catalog, broken files apart [images]")
    seed: int = Field(0, ge=0, description="another seed, another catalog")
