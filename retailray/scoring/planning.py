"""What is left to do: the catalog, the stores' listings, and the ledgers of earlier runs."""

import dataclasses
import glob
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from retailray import storage
from retailray.config import ClusterSection, ScoreConfig
from retailray.data.images import DECODER_VERSION
from retailray.models.agreement import COMPILED, FORWARD_PASS, PARTLY, Agreement, known_agreement
from retailray.models.meta import BundleMeta
from retailray.models.probabilities import KEPT
from retailray.provenance import inference_environment
from retailray.runs import RunDirectory, address_of
from retailray.scoring.formats import SCORED
from retailray.scoring.image_identities import add_identities
from retailray.scoring.ledger import PUBLISHED, RESUMED, Ledger, PlanCounts, Reuse
from retailray.scoring.previous_run import Published, read_parts
from retailray.scoring.publishing import LEDGER
from retailray.scoring.staging import StagedCatalog, stage_catalog


def scoring_key(meta: BundleMeta, weights_digest: str, config: ScoreConfig) -> str:
    """A digest of all that a prediction depends on besides the image; thresholds are none of it.

    Errors depend on our code and on library versions too: see :func:`_reuse`.
    """
    parts = {
        "weights": weights_digest,
        "arch": meta.arch,
        "labels": meta.labels,
        "transform": meta.transform.model_dump(),
        "temperature": meta.temperature,
        "top_k": config.score.top_k,  # of numbers always the same
        "kept_classes": KEPT,
        "precision": config.score.precision,
        "limits": [config.catalog.max_pixels, config.catalog.max_aspect_ratio],
        "decoder": DECODER_VERSION,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def make_plan(
    config: ScoreConfig,
    key: str,
    folder: Path,
    *,
    resumed: str | None,
    before: Published | None,
    reserved: Sequence[str],
) -> tuple[StagedCatalog, Ledger, PlanCounts]:
    """Read the catalog, the stores' listings and the ledgers of before, and say what is left to do.

    ``reserved``: names of columns that the output has.
    """
    catalog = stage_catalog(config.catalog, folder, reserved=reserved)
    ledger = Ledger(folder, catalog, memory_gb=config.score.memory_gb)
    add_identities(ledger)
    reuse = _reuse(config)
    if resumed:
        committed = storage.join(address_of(config.out, resumed), SCORED)
        own = dataclasses.replace(reuse, rescore=None)  # what this run itself has made anew
        ledger.add_known(read_parts(committed), origin=RESUMED, usable=True, reuse=own)
    if before:
        address, summary = before
        usable = summary.get("scoring_key") == key
        if config.score.embeddings:  # of the size that is asked for now
            usable &= summary.get("embeddings_of") == embeddings_of(config, before)
        ledger.add_known(read_parts(storage.join(address, LEDGER)), origin=PUBLISHED, usable=usable, reuse=reuse)
    return catalog, ledger, ledger.plan()


def embeddings_of(config: ScoreConfig, before: Published | None) -> str | None:
    """The size of the embeddings that the ledger has, for ``run.json``; those of a run that asks for none are what is
    left of earlier runs'. None: it has none."""
    if config.score.embeddings:
        return str(config.score.embedding_size or "all")
    return before[1].get("embeddings_of") if before else None


def _reuse(config: ScoreConfig) -> Reuse:
    """Errors hold for the code, the library versions and the kind of device that met them."""
    section = config.score
    return Reuse(section.rescore, inference_environment(), _expected_device(config.cluster), section.embeddings)


def _expected_device(section: ClusterSection) -> str:
    """The kind of device that will predict, or ``unknown``: a cluster's is not known before it is asked for."""
    if section.use_gpu is not None:
        return "cuda" if section.use_gpu else "cpu"
    if section.address or os.environ.get("RAY_ADDRESS"):
        return "unknown"
    return "cuda" if glob.glob("/dev/nvidia[0-9]*") else "cpu"


def keep_agreement(config: ScoreConfig, run: RunDirectory, key: str, before: Published | None) -> None:
    """Predict in the number format of the previous run, and compiled if it was: old and new rows are comparable.

    A run that was not compiled binds no other: it may have had too few images for it.
    """
    if not before or before[1].get("scoring_key") != key:
        return
    kept = known_agreement(before[0]).known
    if kept.pop(FORWARD_PASS, None) in (COMPILED, PARTLY) and config.score.compile == "auto":
        kept[FORWARD_PASS] = COMPILED
    for name, value in kept.items():
        Agreement(run.address).propose(name, value)


def plan_fields(plan: PlanCounts) -> dict[str, object]:
    return {name: value for name, value in dataclasses.asdict(plan).items() if name != "num_bytes"}
