"""``score.precision: int8``: the bundle once more, with a network in 8-bit integers and a calibration of its own.

It is made once per output folder and bundle, in ``<out>/int8/``, from the bundle's validation images: some of them say
which numbers occur between the layers, and all of them whether the network predicts as well as in float32. Where it
does not, nothing is scored. Temperature and thresholds are fitted on its own predictions.
"""

import concurrent.futures
import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import joblib
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retailray import events, storage
from retailray.config import CatalogSection, ScoreConfig
from retailray.data.access import access_of
from retailray.data.catalog import Catalog, read_catalog
from retailray.data.decoding import CHUNK_ROWS, CODE, PIXELS, DecodeSpec, decode_rows, pixels_to_numpy, transport_table
from retailray.data.images import limits_of
from retailray.data.row_ids import ROW_ID, in_order_of
from retailray.errors import ConfigError, ModelError, RetailrayError
from retailray.models.meta import (
    INT8_NUMBERS_NAME,
    MANIFEST_NAME,
    BundleMeta,
    load_meta,
    load_training_fingerprints,
    load_validation,
    read_manifest,
)

if TYPE_CHECKING:
    from retailray.models.predictor import Predictor

FOLDER = "int8"  # in the output folder
MOST_ROWS = 2_000  # validation images that are predicted
FEWEST_ROWS = 20
MOST_LOSS = 0.003  # of top-1, and of the mean probability of the right label


def with_int8(config: ScoreConfig, meta: BundleMeta, digest: str) -> tuple[ScoreConfig, BundleMeta, str]:
    """The same command with a bundle whose network is in 8-bit integers, which is made where there is none yet, what it
    says of itself, and the SHA-256 of that network; all as it is where a plan only is asked for and there is none.

    Args:
        digest: SHA-256 of the bundle's weights.

    Raises:
        ConfigError: settings contradict it. ModelError: a package is missing, validation images cannot be read, or
        the network predicts them worse. StorageError.
    """
    if config.cluster.use_gpu:
        raise ConfigError(["score.precision int8 is for CPUs, and cluster.use_gpu is true"])
    if meta.intervals is not None:
        raise ConfigError([f"score.precision int8 is for labels, and {config.model.uri} predicts numbers"])
    facts = f"{meta.model_dump_json()} {digest}"
    address = storage.join(config.out, FOLDER, hashlib.sha256(facts.encode()).hexdigest()[:16])
    if not storage.exists(storage.join(address, MANIFEST_NAME)):
        if config.score.plan_only:
            return config, meta, digest
        _make(config.model.uri, meta, address)
    changed = {
        "model": config.model.model_copy(update={"uri": address}),
        "cluster": config.cluster.model_copy(update={"use_gpu": False}),
    }
    return config.model_copy(update=changed), load_meta(address)[0], read_manifest(address)[INT8_NUMBERS_NAME]


class _Rows(NamedTuple):
    """Validation rows: of the catalog, with what each is used for, object ``(N,)``, and its class, int64 ``(N,)``."""

    catalog: Catalog
    section: CatalogSection
    roles: np.ndarray
    targets: np.ndarray


class _Predicted(NamedTuple):
    """``row_ids`` (M,) of the images that could be read, their logits (M, C) and features (M, D)."""

    row_ids: np.ndarray
    logits: np.ndarray
    features: np.ndarray


def _make(uri: str, meta: BundleMeta, address: str) -> None:  # long because each step needs what those before it found
    import torch

    from retailray.execution.process import prepare_process
    from retailray.models.bundle import load_bundle, save_bundle
    from retailray.models.calibration import calibrate, validation_table
    from retailray.models.embedding import sketch
    from retailray.models.int8 import IMAGES, openvino, quantize
    from retailray.models.predictor import Predictor, pooled_pass

    openvino()  # before images are read
    rows = _validation_rows(uri, meta)
    events.emit("int8", model=f"{meta.name}/{meta.version}", validation_images=len(rows.catalog), into=address)
    prepare_process(joblib.cpu_count())
    bundle = load_bundle(uri)
    spec = DecodeSpec(meta.transform.scaling, limits_of(rows.section))
    some = next(_images(rows.catalog.take(_spread(len(rows.catalog), IMAGES)), spec, rows.section, at_once=IMAGES))[1]
    int8 = quantize(pooled_pass(bundle), some)
    single = _predict(Predictor(bundle, precision="float32"), rows, spec)
    found = _predict(Predictor(bundle._replace(int8=int8)), rows, spec)
    at = np.searchsorted(rows.catalog.column("row_id"), found.row_ids)
    targets, roles = rows.targets[at], rows.roles[at]
    logits = torch.from_numpy(found.logits)
    calibration = calibrate(
        logits,
        torch.from_numpy(targets),
        sketch(torch.from_numpy(found.features)),
        torch.from_numpy(found.row_ids),
        roles,
    )
    measured = _measures(single.logits, found.logits, targets, temperature=meta.temperature)
    _refuse_a_worse_one(uri, measured)
    used = in_order_of(pa.array(found.row_ids), rows.catalog.rows, key="row_id")
    training = load_training_fingerprints(uri)
    changed = {"temperature": calibration.temperature, "data": meta.data | {"int8_of": uri, "int8": measured}}
    try:
        save_bundle(
            address,
            meta.model_copy(update=changed),
            bundle.state,
            validation=validation_table(calibration, used, meta.labels),
            training_rows=None if training is None else pa.table({"image": training}),
            int8=int8,
        )
    except ModelError:  # another run was as fast
        events.emit("warning", note=f"{address} was written by another run, and is used")
    events.emit("int8_measured", **measured)


def _validation_rows(uri: str, meta: BundleMeta) -> _Rows:
    """Raises ModelError where the bundle does not say which they are, or they are not found."""
    validation, settings = load_validation(uri), meta.config.get("catalog") or meta.data.get("calibration_catalog")
    if validation is None or "role" not in validation.column_names or not settings:
        raise ModelError(
            f"score.precision = int8: {uri} does not say which images it was validated on, and these are needed; train "
            "it again with this version, or leave score.precision out"
        )
    section = CatalogSection(**settings)
    try:
        catalog = read_catalog(section, uri=section.validation_uri or section.uri)
    except RetailrayError as error:
        raise ModelError(
            f"score.precision = int8 needs the validation images of {uri}, whose catalog cannot be read: {error}"
        ) from error
    known = validation.column("id").combine_chunks()
    kept = catalog.select(np.isin(catalog.column("id"), known.to_numpy(zero_copy_only=False)))
    kept = kept.take(_spread(len(kept), MOST_ROWS))
    at = pc.index_in(kept.rows.column("id"), value_set=known).to_numpy()
    number = {label: index for index, label in enumerate(meta.labels)}
    targets = np.array([number[label] for label in validation.column("label").take(at).to_pylist()], np.int64)
    return _Rows(kept, section, validation.column("role").take(at).to_numpy(), targets)


def _spread(num: int, most: int) -> np.ndarray:
    """Of ``num`` rows the numbers of at most ``most``, evenly."""
    return np.unique(np.linspace(0, max(0, num - 1), min(num, most)).astype(np.int64))


def _images(
    catalog: Catalog, spec: DecodeSpec, section: CatalogSection, *, at_once: int = CHUNK_ROWS
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Row ids and pixels, uint8 ``(B, 3, H, W)``, of the images that can be read. Raises ModelError: of none."""
    table, access, none = transport_table(catalog), access_of(section), True
    parts = [table.slice(at, CHUNK_ROWS) for at in range(0, table.num_rows, CHUNK_ROWS)]
    with concurrent.futures.ThreadPoolExecutor(joblib.cpu_count()) as threads:
        held: list[tuple[np.ndarray, np.ndarray]] = []
        for number, part in enumerate(threads.map(lambda one: decode_rows(one, spec=spec, access=access), parts)):
            good = part.column(CODE).to_numpy() == ""
            pixels = pixels_to_numpy(part.column(PIXELS), spec.size_px)[good]
            if len(pixels):
                held.append((part.column(ROW_ID).to_numpy()[good], pixels))
            if held and (number == len(parts) - 1 or sum(len(one) for one, _ in held) >= at_once):
                none = False
                ids, pixels = (np.concatenate(columns) for columns in zip(*held, strict=True))
                held = []
                yield ids, pixels
    if none:
        raise ModelError(
            "score.precision = int8: none of the validation images of the bundle can be read any more; leave "
            "score.precision out, or train again"
        )


def _predict(predictor: "Predictor", rows: _Rows, spec: DecodeSpec) -> _Predicted:
    parts = [(ids, *predictor.outputs(pixels)) for ids, pixels in _images(rows.catalog, spec, rows.section)]
    return _Predicted(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _measures(single: np.ndarray, int8: np.ndarray, targets: np.ndarray, *, temperature: float) -> dict[str, float]:
    """Of the logits ``(M, C)`` of both networks, at one temperature: top-1 accuracy, mean probability of the right
    label, and the standard errors of their differences, which come of the same images."""
    found: dict[str, float] = {"rows": len(targets)}
    each = []
    for name, logits in (("float32", single), ("int8", int8)):
        powers = np.exp((logits - logits.max(1, keepdims=True)) / temperature)
        right = powers[np.arange(len(targets)), targets] / powers.sum(1)
        each.append(((logits.argmax(1) == targets).astype(float), right))
        found |= {f"{name}_top1": float(each[-1][0].mean()), f"{name}_probability": float(right.mean())}
    for at, name in enumerate(("top1", "probability")):
        found[f"{name}_standard_error"] = float((each[0][at] - each[1][at]).std() / len(targets) ** 0.5)
    return found


def _refuse_a_worse_one(uri: str, measured: dict[str, float]) -> None:
    num = measured["rows"]
    if num < FEWEST_ROWS:
        raise ModelError(
            f"score.precision = int8: {uri} has {num} validation images that can be read, and {FEWEST_ROWS} are needed "
            "to tell whether it predicts as well; leave score.precision out"
        )
    within = [
        measured[f"float32_{name}"] - measured[f"int8_{name}"] <= MOST_LOSS + measured[f"{name}_standard_error"]
        for name in ("top1", "probability")  # nor where they are no numbers
    ]
    if not all(within):
        raise ModelError(
            f"score.precision = int8: on {num} validation images of {uri} top-1 accuracy falls from "
            f"{measured['float32_top1']:.4f} in float32 to {measured['int8_top1']:.4f}, and the mean probability of "
            f"the right label from {measured['float32_probability']:.4f} to {measured['int8_probability']:.4f}; "
            f"{100 * MOST_LOSS:g} points are allowed, and what chance explains (a standard error of "
            f"{measured['top1_standard_error']:.4f} and {measured['probability_standard_error']:.4f}). Nothing was "
            "scored; leave score.precision out"
        )
