"""A bundle: all that is needed to serve a model, in one directory, written once and never changed.

``bundle.json`` says what it is, ``model.safetensors`` holds the weights, ``README.md`` is its model card, ``MANIFEST``
has their SHA-256 sums and is written last, so that a bundle with a MANIFEST is whole.
"""

import datetime
import hashlib
from typing import NamedTuple

import pyarrow as pa
import safetensors
import safetensors.torch
import torch
from torch import nn

from retailray import storage
from retailray.data.arrow_tables import parquet_bytes
from retailray.errors import ModelError
from retailray.models.backbones import Backbone, backbone_of, load_state
from retailray.models.card import model_card
from retailray.models.int8 import Int8Network
from retailray.models.meta import (
    CARD_NAME,
    INT8_NETWORK_NAME,
    INT8_NUMBERS_NAME,
    MANIFEST_NAME,
    META_NAME,
    TRAINING_NAME,
    VALIDATION_NAME,
    WEIGHTS_NAME,
    BundleMeta,
    EvalTransform,
    Thresholds,
    load_meta,
    read_manifest,
    verified,
)
from retailray.models.registry import resolve

__all__ = [
    "Bundle",
    "BundleMeta",
    "EvalTransform",
    "Thresholds",
    "copy_bundle",
    "load_bundle",
    "load_meta",
    "new_version",
    "save_bundle",
    "state_to_bytes",
]


class Bundle(NamedTuple):
    """``state`` holds the tensors of ``model.safetensors`` on the CPU; ``int8`` is the network that predicts in its
    place on CPUs, where there is one (:mod:`retailray.scoring.int8`)."""

    meta: BundleMeta
    state: dict[str, torch.Tensor]
    int8: Int8Network | None = None

    def build(self) -> nn.Module:
        """The model in eval mode, float32, on the CPU."""
        meta = self.meta
        model = self.backbone.build(len(meta.labels), image_size=meta.transform.crop_size)
        load_state(model, self.state)
        return model.eval()

    @property
    def backbone(self) -> Backbone:
        return backbone_of(self.meta.arch, self.meta.backbone)


def new_version(state: dict[str, torch.Tensor]) -> str:
    """A version that sorts by time and tells weights apart: ``20260101T020304Z-1a2b3c4d``."""
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    return f"{stamp}-{hashlib.sha256(state_to_bytes(state)).hexdigest()[:8]}"


def state_to_bytes(state: dict[str, torch.Tensor]) -> bytes:
    """Tensors on any device as a safetensors file."""
    # clones, because safetensors refuses tensors that share memory
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()})


def save_bundle(
    address: str,
    meta: BundleMeta,
    state: dict[str, torch.Tensor],
    *,
    validation: pa.Table | None = None,
    training_rows: pa.Table | None = None,
    int8: Int8Network | None = None,
) -> None:
    """Write a bundle to a new directory.

    ``validation``: see :func:`retailray.models.meta.load_validation`. ``training_rows``: ``image`` (uint64), see
    :func:`retailray.models.meta.load_training_fingerprints`. ``int8``: see :class:`Bundle`.

    Raises:
        ModelError: there is a bundle already; versions are immutable.
        StorageError: the address cannot be written.
    """
    if storage.exists(storage.join(address, MANIFEST_NAME)):
        raise ModelError(f"{address}: there is a bundle already, and bundles are never overwritten")
    files = {
        META_NAME: meta.model_dump_json(indent=2).encode(),
        WEIGHTS_NAME: state_to_bytes(state),
        CARD_NAME: model_card(meta).encode(),
        **{
            name: parquet_bytes(table)
            for name, table in ((VALIDATION_NAME, validation), (TRAINING_NAME, training_rows))
            if table is not None
        },
        **(dict(zip((INT8_NETWORK_NAME, INT8_NUMBERS_NAME), int8, strict=True)) if int8 else {}),
    }
    for name, data in files.items():
        storage.write_bytes(storage.join(address, name), data)
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items())
    storage.write_bytes(storage.join(address, MANIFEST_NAME), sums.encode())


def copy_bundle(source: str, target: str) -> None:
    """Register: copy a bundle to a new address, MANIFEST last. Raises ModelError, StorageError."""
    if storage.exists(storage.join(target, MANIFEST_NAME)):
        raise ModelError(f"{target}: there is a bundle already, and bundles are never overwritten")
    for name in (*read_manifest(source), MANIFEST_NAME):
        storage.write_bytes(storage.join(target, name), storage.read_bytes(storage.join(source, name)))


def load_bundle(address: str) -> Bundle:
    """Read a bundle and verify its sums.

    Raises:
        ModelError: not a bundle, not whole, changed since it was written, or of a schema we do not know.
        StorageError: the address cannot be reached.
    """
    address = resolve(address)  # once: it may be moved at any time
    meta, _ = load_meta(address)
    sums = read_manifest(address)
    data = verified(address, WEIGHTS_NAME, sums)
    try:
        state = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise ModelError(f"{address}: {WEIGHTS_NAME} cannot be read: {error}") from error
    if INT8_NUMBERS_NAME not in sums:
        return Bundle(meta, state)
    return Bundle(
        meta, state, Int8Network(*(verified(address, name, sums) for name in (INT8_NETWORK_NAME, INT8_NUMBERS_NAME)))
    )
