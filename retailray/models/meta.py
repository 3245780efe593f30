"""What a bundle says of itself; without torch, for those who only ask."""

import hashlib
from typing import Any

import pydantic

from retailray import storage
from retailray.errors import ModelError, StorageError

SCHEMA_VERSION = 1
META_NAME, WEIGHTS_NAME, MANIFEST_NAME = "bundle.json", "model.safetensors", "MANIFEST"


class _Part(pydantic.BaseModel):
    model_config = {"extra": "forbid", "frozen": True}


class EvalTransform(_Part):
    """Shorter side to ``resize_size``, central square of ``crop_size`` [px], then (x / 255 - mean) / std a channel."""

    resize_size: int
    crop_size: int
    interpolation: str = "bilinear"
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Thresholds(_Part):
    """Scores from ``accept`` on are accepted, below ``abstain`` nothing is claimed, between them a person looks."""

    accept: float = 0.8
    abstain: float = 0.2


class BundleMeta(_Part):
    schema_version: int = SCHEMA_VERSION
    name: str
    version: str
    arch: str
    labels: list[str]
    transform: EvalTransform
    temperature: float = 1.0
    thresholds: Thresholds = Thresholds()
    metrics: dict[str, Any] = {}
    data: dict[str, Any] = {}
    config: dict[str, Any] = {}
    created_at: str = ""
    git_commit: str | None = None
    libraries: dict[str, str] = {}


def load_meta(address: str) -> tuple[BundleMeta, str]:
    """What ``bundle.json`` says, verified, and the SHA-256 of the weights as MANIFEST has it.

    Raises:
        ModelError: not a bundle, not whole, changed since it was written, or of a schema we do not know.
        StorageError: the address cannot be reached.
    """
    if "@" in address.rsplit("/", 1)[-1]:
        raise ModelError(
            f"model.uri = {address}: aliases need `retailray promote`, which this version does not have yet; "
            "name a version: <registry>/<name>/<version>"
        )
    storage.check_readable(address)
    try:
        manifest = storage.read_bytes(storage.join(address, MANIFEST_NAME)).decode()
    except StorageError as error:
        raise ModelError(
            f"{address}: not a whole bundle: it has no MANIFEST. `train` leaves one at <out>/run_id=.../bundle"
        ) from error
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in manifest.splitlines())}
    data = storage.read_bytes(storage.join(address, META_NAME))
    if hashlib.sha256(data).hexdigest() != sums.get(META_NAME):
        raise ModelError(f"{address}: {META_NAME} is not what MANIFEST says: it was changed or damaged")
    try:
        meta = BundleMeta.model_validate_json(data)
        digest = sums[WEIGHTS_NAME]
    except (KeyError, pydantic.ValidationError) as error:
        raise ModelError(f"{address}: cannot be read as a bundle of schema {SCHEMA_VERSION}: {error}") from error
    if meta.schema_version != SCHEMA_VERSION:
        raise ModelError(f"{address}: bundle schema {meta.schema_version}, this version reads {SCHEMA_VERSION}")
    return meta, digest
