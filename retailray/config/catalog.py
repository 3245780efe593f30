"""Sections about rows and pixels."""

import json
import os
from typing import Literal

from pydantic import Field, field_validator

from retailray import storage
from retailray.config.base import Section, normalized

WHITESPACE = "whitespace"  # any number of blanks and tabs, as a delimiter

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
    "label_errors",
    "labels_without_training_rows",
    "product_labels",
    "several_labels",
    "equal_folder_names",
    "unread_files",
]


class CatalogSection(Section):
    """The catalog: where the table is and what its columns mean."""

    uri: str = Field(
        description=(
            "Catalog to read: a CSV, TSV, Parquet or JSON Lines file, a folder or glob pattern of such files, a JSON "
            "document, an XML feed, a ZIP or tar archive, WebDataset shards, or a folder with one subfolder of images "
            "per class."
        )
    )
    format: str = Field(
        "auto",
        description=(
            "Layout of the catalog, which sets the other catalog settings that are not given: auto (recognised by its "
            "columns), none, the name of a known layout (docs/catalogs.md), or a YAML file with one."
        ),
    )
    root: str | None = Field(
        None, description="Folder that relative image paths start from; default: the folder of the catalog file."
    )
    image: str = Field(
        "image",
        description=(
            "Column with the address or path of the image, or several of them; if the default column is absent, "
            "file_name is tried. Cells may hold several addresses or a list. Nested values: column.key.0; * stands "
            "for any characters."
        ),
    )
    image_separator: str | None = Field(
        None,
        min_length=1,
        description=(
            "Text between several addresses in one cell; default: found, where each part looks like an address."
        ),
    )
    without_image: Literal["error", "count"] = Field(
        "error",
        description=(
            "What becomes of a record without an image whose product (catalog.group) has images in other records: "
            "an error row, or it is only counted."
        ),
    )
    image_template: str = Field(
        "{image}",
        description=(
            "Builds the image path from columns, e.g. images/{name}.jpg; {stem} is the name of the catalog file "
            "without suffix."
        ),
    )
    label: str = Field("label", description="Column with the class label; nested values: column.key.0.")
    label_separator: str | None = Field(
        None, min_length=1, description="Text between the levels of a label that is a path, e.g. > in Home > Mugs."
    )
    label_level: str = Field(
        "last",
        pattern=r"^(last|first|path|[1-9][0-9]?)$",
        description="Level of such a path that is the label: last, first, a number from 1, or path (all of it).",
    )
    parent: str | None = Field(
        None, description="Column that names the parent of the label in a taxonomy, e.g. its category."
    )
    label_list_separator: str | None = Field(
        None, min_length=1, description="Text between several labels in one cell, the first of which counts."
    )
    several_labels: Literal["largest", "error"] = Field(
        "largest",
        description=(
            "Images with several categories in a COCO document: they take that of the largest box, or become error "
            "rows."
        ),
    )
    label_map: dict[str, str] = Field({}, description='Renames labels, as JSON, e.g. {"0": "PC"}.')
    id: str | None = Field(None, description="Column that identifies a row; default: the image path.")
    group: str | None = Field(
        None,
        description=(
            "Column that identifies the product. When rows are split by hash, all images of a product stay in one "
            "split; default: every row is a product of its own."
        ),
    )
    split: str | None = Field(None, description="Column that assigns rows to splits: train, validation or test.")
    validation_uri: str | None = Field(
        None, description="Separate catalog with the validation rows, with the same columns."
    )
    test_uri: str | None = Field(None, description="Separate catalog with the test rows, with the same columns.")
    allow: list[str] = Field(
        [],
        description=(
            "Folders, buckets or hosts (http://10.0.0.5:8080) that images may be read from besides catalog.root. "
            "Private hosts and targets of links must be listed. Default for a local catalog: every bucket, public "
            "host and absolute path; for others: their own bucket or host."
        ),
    )
    http_headers: dict[str, str] = Field(
        {},
        description=(
            "HTTP headers for images on the web, as JSON. ${NAME} is replaced by an environment variable, so that no "
            "secret is stored in the config."
        ),
    )
    corrections: str | None = Field(
        None,
        description=(
            "Corrected labels that replace those of the catalog and of the model: a table with the columns item_id "
            "and label (as exported by the review page or by Label Studio as CSV), or a folder of such tables."
        ),
    )
    encoding: str = Field(
        "utf-8", description="Text encoding of CSV, TSV and JSON Lines files; a byte order mark takes precedence."
    )
    delimiter: str | None = Field(
        None,
        min_length=1,
        description="Character between the values of a CSV file, tab, or whitespace; default (auto): detected.",
    )
    bad_lines: Literal["refuse", "error"] = Field(
        "refuse",
        description=(
            "What becomes of lines of a CSV file with too many or too few values: the file is refused with their "
            "numbers, or they become error rows."
        ),
    )
    skip_lines: int = Field(0, ge=0, description="Number of lines before the header of a CSV file.")
    quoting: Literal["auto", "standard", "none"] = Field(
        "auto",
        description=(
            "How quotation marks in CSV files are read. auto: refuse a quoted value that seems to contain further "
            "rows; standard: trust every quotation mark; none: treat them as text."
        ),
    )
    columns: list[str] = Field([], description="Column names, in order, of CSV files without a header.")
    folder_labels: Literal["leaf", "path"] = Field(
        "leaf", description="Labels of class folders: leaf (name of the innermost folder) or path (men/shoes)."
    )
    normalize_labels: bool = Field(
        False,
        description=(
            "Merge labels that differ only in case, surrounding blanks or Unicode form; the merged label is lower case."
        ),
    )
    max_bytes: int = Field(
        storage.MAX_BYTES,
        ge=1,
        description="Size limit per image file. Larger files become error rows and are not read completely [bytes].",
    )
    max_pixels: int = Field(
        50_000_000,
        ge=1,
        description="Size limit per image. Larger images become error rows and are not decoded [pixels].",
    )
    max_aspect_ratio: float = Field(
        20.0, ge=1, description="Limit for the long side divided by the short side. Images beyond it become error rows."
    )

    @field_validator("label_map", mode="before")
    @classmethod
    def _labels_are_names(cls, value: object) -> object:
        # YAML reads the 0 of `0: PC` as a number
        return {str(old): str(new) for old, new in value.items()} if isinstance(value, dict) else value

    @field_validator("delimiter", mode="before")
    @classmethod
    def _delimiters_have_names(cls, value: object) -> object:
        value = {"tab": "\t", "\\t": "\t", "auto": None}.get(str(value), value)
        if isinstance(value, str) and len(value) > 1 and value != WHITESPACE:
            raise ValueError(f"{value!r} is more than one character; use tab, whitespace or auto by name")
        return value

    @field_validator("image", mode="before")
    @classmethod
    def _columns_as_a_list(cls, value: object) -> object:
        return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value

    @field_validator("format")
    @classmethod
    def _format_files_are_addresses(cls, value: str) -> str:
        return storage.normalize(value) if value.lower().endswith((".yaml", ".yml")) else value

    @property
    def images(self) -> list[str]:
        """The columns that :attr:`image` names."""
        try:
            found = json.loads(self.image) if self.image.startswith("[") else None
        except ValueError:  # a column of that name
            found = None
        return [str(name) for name in found] if isinstance(found, list) else [self.image]

    _same = field_validator("uri", "root", "validation_uri", "test_uri", "corrections")(normalized)

    @field_validator("allow")
    @classmethod
    def _allowed_are_addresses(cls, values: list[str]) -> list[str]:
        for value in values:
            if "*" in storage.place_of(value):
                raise ValueError(f"{value!r}: patterns are not supported; name the host or bucket in full")
            absolute = storage.is_uri(value) or value.startswith(("/", "~", "file:"))
            if not absolute and not os.path.exists(value):
                raise ValueError(
                    f"{value!r} is not an existing folder; write a host as https://HOST and a bucket as s3://BUCKET"
                )
        return [storage.normalize(value) for value in values]


class CalibrationCatalog(CatalogSection):
    """Labelled images that a model was not trained on, to measure and calibrate it; none by default."""

    uri: str = Field("", description="Catalog file, folder or pattern with labelled images; default: none.")


class SplitSection(Section):
    """Random splits by product: stable when rows are added."""

    validation: float = Field(
        0.15,
        ge=0,
        lt=1,
        description=(
            "Share of products held out for validation: half of them choose the best epoch, the rest fits temperature"
            " and thresholds [fraction]."
        ),
    )
    test: float = Field(0.0, ge=0, lt=1, description="Share of products held out as the test split [fraction].")
    folds: int | None = Field(
        None,
        ge=2,
        le=50,
        description="Also run cross-validation with this number of stratified folds; products are not divided.",
    )
    seed: int = Field(0, ge=0, description="Random seed of the splits.")


class TransformSection(Section):
    """Image preprocessing and augmentation. The evaluation transform is saved with the model."""

    image_size: int = Field(224, ge=8, le=2048, description="Side of the square image that the model receives [px].")
    resize_size: int | None = Field(
        None,
        ge=8,
        le=4096,
        description="Length of the shorter side before the centre crop [px]; default: image_size * 256 / 224.",
    )
    augment: Literal["none", "article", "standard"] = Field(
        "standard",
        description=(
            "Augmentation of training images. none; article: rotation, shift, shear and flip, as in the article that "
            "this project began with; standard: random resized crop, flip and colour jitter."
        ),
    )
    random_erasing_prob: float = Field(
        0.0, ge=0, le=1, description="Probability of random erasing for a training image [0 to 1]."
    )

    @property
    def resolved_resize_size(self) -> int:
        return self.resize_size or round(self.image_size * 256 / 224)


class TaxonomySection(Section):
    """A tree of labels, for answers at the level that is sure."""

    uri: str | None = Field(
        None,
        description=(
            "File with the taxonomy: lines of paths as Google and Shopify publish them (3237 - A > B), or CSV with the "
            "columns child and parent; default: what the catalog of training said (catalog.parent, "
            "catalog.label_separator)."
        ),
    )

    _same = field_validator("uri")(normalized)


class CheckSection(Section):
    """Data quality checks, and which findings fail the command."""

    fail_on: list[Finding] = Field(
        [], description="Findings that make the command exit with code 4, e.g. errors,leakage."
    )
    min_images: int = Field(10, ge=1, description="Report classes with fewer images than this as small.")
    max_imbalance: float = Field(
        100.0,
        ge=1,
        description="Report imbalance if the largest class is more than this many times the size of the smallest.",
    )
    near_distance: int = Field(
        3,
        ge=0,
        le=7,
        description=(
            "Report images as near duplicates if their perceptual hashes differ in at most this many of 64 bits."
        ),
    )
    samples: int = Field(8, ge=0, description="Number of sample images per label in the report.")
    label_errors: bool = Field(
        False,
        description=(
            "Rank all labels by how suspicious they are: heads on the features of model.arch with model.weights (or of "
            "check.model) say how probable each is, none of them fitted on the row or on a copy of its picture."
        ),
    )
    model: str | None = Field(
        None,
        description=(
            "Bundle whose features label_errors uses, in place of model.arch; one that was trained on these labels "
            "knows their errors by heart."
        ),
    )

    _same = field_validator("model")(normalized)


class DemoSection(Section):
    """The generated catalog of the demo."""

    num_images: int = Field(400, ge=60, description="Number of images, not counting the broken files.")
    seed: int = Field(0, ge=0, description="Random seed of the catalog.")
