"""What a bundle says of itself; without torch, for those who only ask."""

import hashlib
import io
import math
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pydantic

from retailray import storage
from retailray.data.scaling import Scaling
from retailray.errors import ModelError, StorageError
from retailray.models.intervals import Intervals
from retailray.models.registry import resolve

SCHEMA_VERSION = 1
META_NAME, WEIGHTS_NAME, MANIFEST_NAME, CARD_NAME = "bundle.json", "model.safetensors", "MANIFEST", "README.md"
VALIDATION_NAME, TRAINING_NAME = "validation.parquet", "training_rows.parquet"
INT8_NETWORK_NAME, INT8_NUMBERS_NAME = "int8.xml", "int8.bin"  # see retailray.models.int8
EPOCH, TEMPERATURE, THRESHOLDS = ROLES = ("epoch", "temperature", "thresholds")  # what a validation row is used for
EMBEDDING = "embedding"  # a column: see retailray.models.embedding


class _Part(pydantic.BaseModel):
    model_config = {"extra": "forbid", "frozen": True}


class EvalTransform(_Part):
    """Resized and cut as :class:`retailray.data.images.Scaling` says, then (x / 255 - mean) / std a channel."""

    resize_size: int = pydantic.Field(ge=1, le=8192)
    crop_size: int = pydantic.Field(ge=1, le=8192)
    resize: Literal["central_square", "shorter_side", "stretch"] = "central_square"
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"] = "bilinear"
    cut: Literal["nearest", "down"] = "nearest"
    resized_by: Literal["pillow", "torchvision"] = "pillow"
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @pydantic.field_validator("mean", "std")
    @classmethod
    def _one_a_channel(cls, values: tuple[float, ...], info: pydantic.ValidationInfo) -> tuple[float, ...]:
        if len(values) != 3 or not all(map(math.isfinite, values)) or (info.field_name == "std" and min(values) <= 0):
            raise ValueError(f"three numbers, one a channel{', above 0' if info.field_name == 'std' else ''}")
        return values

    @pydantic.model_validator(mode="after")
    def _can_be_done(self) -> "EvalTransform":
        if self.resized_by == "torchvision" and self.interpolation in ("box", "hamming"):
            raise ValueError(f"interpolation {self.interpolation} needs resized_by: pillow")
        return self

    @property
    def scaling(self) -> Scaling:
        return Scaling(self.resize_size, self.crop_size, self.resize, self.interpolation, self.cut, self.resized_by)


class Thresholds(_Part):
    """Scores from ``accept`` on are accepted, below ``abstain`` nothing is claimed, between them a person looks.

    ``per_class``: in place of ``accept`` for predictions of these labels.
    """

    accept: float = 0.8
    abstain: float = 0.2
    per_class: dict[str, float] = {}


class BundleMeta(_Part):
    schema_version: int = SCHEMA_VERSION
    name: str
    version: str
    arch: str
    backbone: dict[str, Any] = {}  # what builds the network beside arch: see retailray.models.backbones.Backbone.config
    labels: list[str]
    intervals: Intervals | None = None  # of numbers, which model.task: regression learned; labels are their names
    taxonomy: dict[str, list[str]] = {}  # of each label its path, from the root down to itself; empty: unknown
    transform: EvalTransform
    temperature: float = 1.0
    thresholds: Thresholds = Thresholds()
    metrics: dict[str, object] = {}
    data: dict[str, Any] = {}
    config: dict[str, Any] = {}
    created_at: str = ""
    git_commit: str | None = None
    libraries: dict[str, str] = {}

    @property
    def target(self) -> str:
        """What numbers are of: the column that was learned."""
        return str((self.config.get("catalog") or {}).get("label") or "label")


def load_meta(address: str) -> tuple[BundleMeta, str]:
    """What ``bundle.json`` says, verified, and the SHA-256 of the weights as MANIFEST has it.

    Raises:
        ModelError: not a bundle, not whole, changed since it was written, or of a schema we do not know.
        StorageError: the address cannot be reached.
    """
    address = resolve(address)
    storage.check_readable(address)
    sums = read_manifest(address)
    data = verified(address, META_NAME, sums)
    try:
        meta = BundleMeta.model_validate_json(data)
        digest = sums[WEIGHTS_NAME]
    except (KeyError, pydantic.ValidationError) as error:
        raise ModelError(f"{address}: cannot be read as a bundle of schema {SCHEMA_VERSION}: {error}") from error
    if meta.schema_version != SCHEMA_VERSION:
        raise ModelError(f"{address}: bundle schema {meta.schema_version}, this version reads {SCHEMA_VERSION}")
    return meta, digest


def load_validation(address: str) -> pa.Table | None:
    """``id, group, role`` (of :data:`ROLES`), ``label, pred_label`` (text), ``pred_score`` (float32), ``embedding``
    (list of float32), ``classes`` and ``probabilities`` (:mod:`retailray.models.probabilities`) and, of numbers,
    ``value`` (float64) of the rows that the bundle was validated on, if kept; old bundles lack columns."""
    address = resolve(address)
    sums = read_manifest(address)
    if VALIDATION_NAME not in sums:
        return None
    return pa.parquet.read_table(io.BytesIO(verified(address, VALIDATION_NAME, sums)))


def load_training_fingerprints(address: str) -> np.ndarray | None:
    """Return the fingerprints (:mod:`retailray.data.fingerprints`) of the addresses of the images that a bundle was
    trained on, uint64 ``(N,)``; None for old bundles."""
    address = resolve(address)
    sums = read_manifest(address)
    if TRAINING_NAME not in sums:
        return None
    return pa.parquet.read_table(io.BytesIO(verified(address, TRAINING_NAME, sums))).column("image").to_numpy()


def read_manifest(address: str) -> dict[str, str]:
    """File names and their SHA-256 sums. Raises ModelError."""
    try:
        manifest = storage.read_bytes(storage.join(address, MANIFEST_NAME)).decode()
    except StorageError as error:
        raise ModelError(
            f"{address}: not a whole bundle: it has no MANIFEST. `train` leaves one at <out>/run_id=.../bundle"
        ) from error
    return {name: digest for digest, _, name in (line.partition("  ") for line in manifest.splitlines())}


def verified(address: str, name: str, sums: dict[str, str]) -> bytes:
    """The bytes of a bundle's file. Raises ModelError where they are not those of MANIFEST. StorageError."""
    data = storage.read_bytes(storage.join(address, name))
    if hashlib.sha256(data).hexdigest() != sums.get(name):
        raise ModelError(f"{address}: {name} is not what MANIFEST says: it was changed or damaged")
    return data
