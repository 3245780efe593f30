"""``score.precision: int8``: the bundle once more, with a network in 8-bit integers and a calibration of its own.

It is made once per output folder and bundle, in ``<out>/_int8/``, from the bundle's validation images: some of them say
which numbers occur between the layers, others whether the network predicts as well as in float32, and temperature and
thresholds are fitted on what it says of all of them. Where it predicts worse, nothing is scored.
"""

import concurrent.futures
import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import joblib
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pydantic

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
    from retailray.models.bundle import Bundle
    from retailray.models.calibration import Calibration
    from retailray.models.int8 import Int8Network

FOLDER = "_int8"  # in the output folder; catalogs that are folders leave such names out
MADE_OF = "int8_of"  # in what a bundle with such a network says of its data: the bundle that it was made of
RECIPE = 1  # of networks that are kept: another number makes them anew
COMPARED = 2_000  # validation images that float32 predicts too
FEWEST = 50  # of these
MOST_LOSS = 0.003  # of top-1, and of the mean probability of the right label
MOST_STRANGE = 0.05  # of these images, whose label in float32 is not the one that validation.parquet has


def wants_int8(config: ScoreConfig, meta: BundleMeta) -> bool:
    """Whether a network in 8-bit integers is to predict: it is asked for, or the bundle is one with such a network.

    Raises:
        ConfigError: another number format is asked for of such a bundle.
    """
    ready = MADE_OF in meta.data
    if ready and config.score.precision in ("float32", "bfloat16"):
        raise ConfigError(
            [
                f"score.precision {config.score.precision}: {config.model.uri} is calibrated for its network in 8-bit "
                "integers; score with the bundle that it was made of (int8_of in its bundle.json)"
            ]
        )
    return ready or config.score.precision == "int8"


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
        raise ConfigError(["8-bit integers (score.precision int8) are for CPUs, and cluster.use_gpu is true"])
    if meta.intervals is not None:
        raise ConfigError([f"score.precision int8 is for labels, and {config.model.uri} predicts numbers"])
    address = config.model.uri
    if MADE_OF not in meta.data:
        facts = f"{RECIPE} {meta.model_dump_json()} {digest}"
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
    """Validation rows: of the catalog, and of ``validation.parquet`` in the same order; their class, int64 ``(N,)``;
    the settings that the catalog is read with."""

    catalog: Catalog
    kept: pa.Table
    targets: np.ndarray
    section: CatalogSection


class _Predicted(NamedTuple):
    """Numbers (M,) of the rows whose image could be read, logits (M, C) and features (M, D) of the new network; of the
    first rows, logits (K, C) in float32."""

    at: np.ndarray
    logits: np.ndarray
    features: np.ndarray
    single: np.ndarray


def _make(uri: str, meta: BundleMeta, address: str) -> None:
    from retailray.execution.process import prepare_process
    from retailray.models.bundle import load_bundle, save_bundle
    from retailray.models.calibration import validation_table
    from retailray.models.int8 import IMAGES, openvino, quantize
    from retailray.models.predictor import pooled_pass

    openvino()  # before images are read
    rows = _validation_rows(uri, meta)
    _refuse_few(uri, len(rows.catalog))
    name = f"{meta.name}/{meta.version}"
    events.emit("int8", model=name, validation_images=len(rows.catalog), into=address, note="CPUs predict")
    prepare_process(joblib.cpu_count())
    bundle, spec = load_bundle(uri), DecodeSpec(meta.transform.scaling, limits_of(rows.section))
    some = [pixels for _, pixels in _images(rows, np.arange(min(IMAGES, len(rows.catalog))), spec)]
    if not some:
        _refuse_few(uri, 0)
    int8 = quantize(pooled_pass(bundle), np.concatenate(some))
    found = _predict(bundle, int8, rows, spec)
    num = len(found.single)
    _refuse_few(uri, num)
    _refuse_strangers(uri, rows.kept.take(found.at[:num]), found.single, meta)
    measured = _measures(found.single, found.logits[:num], rows.targets[found.at[:num]], temperature=meta.temperature)
    _refuse_a_worse_one(uri, measured)
    calibration = _calibrated(found, rows)
    groups = rows.catalog.rows.set_column(rows.catalog.rows.column_names.index("group"), "group", rows.kept["group"])
    used = in_order_of(pa.array(rows.catalog.column("row_id")[found.at]), groups, key="row_id")
    training = load_training_fingerprints(uri)
    changed = {"temperature": calibration.temperature, "data": meta.data | {MADE_OF: uri, "int8": measured}}
    save_bundle(
        address,
        meta.model_copy(update=changed),
        bundle.state,
        validation=validation_table(calibration, used, meta.labels),
        training_rows=None if training is None else pa.table({"image": training}),
        int8=int8,
    )
    events.emit("int8_measured", **measured)


def _validation_rows(uri: str, meta: BundleMeta) -> _Rows:
    """Whole products, in an order by chance. Raises ModelError where the bundle does not say which they are, or their
    catalog cannot be read."""
    validation = load_validation(uri)
    settings = meta.config.get("catalog") or meta.data.get("calibration_catalog")
    if validation is None or "role" not in validation.column_names or not settings:
        raise ModelError(
            f"score.precision = int8: {uri} does not say which images it was validated on, and these are needed; train "
            "it again with this version (`retailray bundle` with catalog.uri, if it was trained elsewhere), or leave "
            "score.precision out"
        )
    try:
        section = CatalogSection(**settings)
        catalog = read_catalog(section, uri=section.validation_uri or section.uri)
    except (RetailrayError, pydantic.ValidationError) as error:
        raise ModelError(
            f"score.precision = int8 needs the validation images of {uri}, whose catalog cannot be read; make it "
            f"readable again, or leave score.precision out: {error}"
        ) from error
    known = validation.column("id").combine_chunks()
    catalog = catalog.select(pc.is_in(catalog.rows.column("id"), value_set=known).to_numpy())
    kept = validation.take(pc.index_in(catalog.rows.column("id"), value_set=known))
    _, group = np.unique(kept.column("group").to_numpy().astype(str), return_inverse=True)
    order = np.argsort(np.random.default_rng(0).permutation(len(group))[group], kind="stable")
    kept = kept.take(order)
    number = {label: index for index, label in enumerate(meta.labels)}
    targets = np.array([number[label] for label in kept.column("label").to_pylist()], np.int64)
    return _Rows(catalog.take(order), kept, targets, section)


def _images(rows: _Rows, at: np.ndarray, spec: DecodeSpec) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Numbers of rows and pixels, uint8 ``(B, 3, H, W)``, of those whose image can be read."""
    catalog = rows.catalog.take(at)
    table, access = transport_table(catalog), access_of(rows.section)
    number = dict(zip(catalog.column("row_id").tolist(), at.tolist(), strict=True))
    cpus = joblib.cpu_count()
    starts = range(0, table.num_rows, CHUNK_ROWS)
    with concurrent.futures.ThreadPoolExecutor(cpus) as threads:
        for first in range(0, len(starts), 2 * cpus):  # not all of them wait in memory for what predicts
            parts = [table.slice(start, CHUNK_ROWS) for start in starts[first : first + 2 * cpus]]
            for part in threads.map(lambda one: decode_rows(one, spec=spec, access=access), parts):
                good = part.column(CODE).to_numpy() == ""
                if good.any():
                    names = part.column(ROW_ID).to_numpy()[good].tolist()
                    pixels = pixels_to_numpy(part.column(PIXELS), spec.size_px)[good]
                    yield np.array([number[name] for name in names], np.int64), pixels


def _predict(bundle: "Bundle", int8: "Int8Network", rows: _Rows, spec: DecodeSpec) -> _Predicted:
    """Both networks look at the same pixels."""
    from retailray.models.predictor import Predictor

    new, old = Predictor(bundle._replace(int8=int8)), Predictor(bundle, precision="float32")
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    single: list[np.ndarray] = []
    for at, pixels in _images(rows, np.arange(len(rows.catalog)), spec):
        parts.append((at, *new.outputs(pixels)))
        if sum(len(one) for one in single) < COMPARED:
            single.append(old.logits(pixels))
    at, logits, features = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return _Predicted(at, logits, features, np.concatenate(single))


def _calibrated(found: _Predicted, rows: _Rows) -> "Calibration":
    import torch

    from retailray.models.calibration import calibrate
    from retailray.models.embedding import sketch

    return calibrate(
        torch.from_numpy(found.logits),
        torch.from_numpy(rows.targets[found.at]),
        sketch(torch.from_numpy(found.features)),
        torch.from_numpy(rows.catalog.column("row_id")[found.at]),
        rows.kept.column("role").to_numpy()[found.at],
    )


def _refuse_few(uri: str, num: int) -> None:
    if num < FEWEST:
        raise ModelError(
            f"score.precision = int8: of {uri} {num} validation images are found that can be read, and {FEWEST} are "
            "needed to tell whether it predicts as well; leave score.precision out"
        )


def _refuse_strangers(uri: str, kept: pa.Table, logits: np.ndarray, meta: BundleMeta) -> None:
    """Where ids name other images than those that the bundle was validated on, nothing could be fitted on them."""
    number = {label: index for index, label in enumerate(meta.labels)}
    before = np.array([number[label] for label in kept.column("pred_label").to_pylist()])
    # of what was nearly as probable, rounding decides
    strange = logits.max(1) - logits[np.arange(len(logits)), before] > meta.temperature * np.log(2)
    if strange.mean() > MOST_STRANGE:
        raise ModelError(
            f"score.precision = int8: {strange.mean():.0%} of {len(strange)} validation images of {uri} are classified "
            "otherwise than when it was trained: the catalog has other images under their ids; leave score.precision "
            "out, or train again"
        )


def _measures(single: np.ndarray, int8: np.ndarray, targets: np.ndarray, *, temperature: float) -> dict[str, float]:
    """Of the logits ``(M, C)`` of both networks, at one temperature: top-1 accuracy, mean probability of the right
    label, and the standard errors of their differences, which come of the same images."""
    known = np.isfinite(single).all(1)  # the others count for nobody
    single, int8, targets = single[known], int8[known], targets[known]
    wrong = ~np.isfinite(int8).all(1)
    int8 = np.where(wrong[:, None], 0, int8)
    found: dict[str, float] = {"rows": len(targets)}
    each = []
    for name, logits in (("float32", single), ("int8", int8)):
        powers = np.exp((logits - logits.max(1, keepdims=True)) / temperature)
        right = powers[np.arange(len(targets)), targets] / powers.sum(1)
        ruined = wrong if name == "int8" else np.zeros(len(wrong), bool)
        right = np.where(ruined, 0, right)
        each.append((((logits.argmax(1) == targets) & ~ruined).astype(float), right))
        found |= {f"{name}_top1": float(each[-1][0].mean()), f"{name}_probability": float(right.mean())}
    for at, name in enumerate(("top1", "probability")):
        found[f"{name}_standard_error"] = float((each[0][at] - each[1][at]).std() / len(targets) ** 0.5)
    return found


def _refuse_a_worse_one(uri: str, measured: dict[str, float]) -> None:
    within = [
        measured[f"float32_{name}"] - measured[f"int8_{name}"] <= MOST_LOSS + measured[f"{name}_standard_error"]
        for name in ("top1", "probability")  # nor where they are no numbers
    ]
    if not all(within):
        raise ModelError(
            f"score.precision = int8: on {measured['rows']} validation images of {uri} top-1 accuracy falls from "
            f"{measured['float32_top1']:.4f} in float32 to {measured['int8_top1']:.4f}, and the mean probability of "
            f"the right label from {measured['float32_probability']:.4f} to {measured['int8_probability']:.4f}; "
            f"{100 * MOST_LOSS:g} points are allowed, and what chance explains (a standard error of "
            f"{measured['top1_standard_error']:.4f} and {measured['probability_standard_error']:.4f}). Nothing was "
            "scored; leave score.precision out"
        )
