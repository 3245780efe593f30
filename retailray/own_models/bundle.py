"""``bundle``: any image classifier becomes a bundle, measured and calibrated where there are labelled images."""

from retailray import events, storage
from retailray.config import BundleConfig
from retailray.data.catalog import Catalog
from retailray.data.taxonomy import taxonomy_of
from retailray.models.backbones import plain_name
from retailray.models.bundle import BundleMeta, new_version, save_bundle
from retailray.models.meta import TEMPERATURE
from retailray.own_models.calibrating import Calibrated, calibrate_on, calibration_rows
from retailray.own_models.sources import OwnModel, read_source
from retailray.provenance import provenance
from retailray.reports.run_index import publish
from retailray.runs import RunDirectory
from retailray.training.bundles import register


def make_bundle(config: BundleConfig) -> str:
    """Write ``bundle/`` of a classifier that was trained elsewhere.

    Returns:
        Its address.

    Raises:
        ModelError: the source is no classifier that can be served. CatalogError: no row can be used.
        StorageError: an address cannot be read or written. RetailrayError: see :mod:`retailray.errors`.
    """
    watch = events.Stopwatch()
    own = read_source(config.bundle)
    catalog = calibration_rows(config, own.labels) if config.catalog.uri else None
    run = RunDirectory(config)
    events.emit(
        "start",
        command="bundle",
        run=run.address,
        arch=own.backbone.arch,
        labels=len(own.labels),
        rows=0 if catalog is None else len(catalog),
        transform=own.transform.model_dump(mode="json"),
    )
    meta, found = _meta(config, own, catalog), None
    if catalog is not None:
        draft = run.path("uncalibrated")
        try:
            save_bundle(draft, meta, own.state)
            found = calibrate_on(config, catalog, draft, own.labels, run)
        finally:
            storage.remove_folder(draft)
        meta = _calibrated(config, meta, found)
    bundle = run.path("bundle")
    save_bundle(bundle, meta, own.state, validation=found.validation if found else None)
    registered = register(config.bundle.registry, bundle, meta)
    facts: dict[str, object] = {"source": config.bundle.source, "arch": meta.arch, "labels": len(meta.labels)}
    facts |= {"calibrated": meta.data["calibrated"], **meta.metrics, "bundle": bundle, **registered}
    publish(run, {"command": "bundle", **facts, "model_version": meta.version, "seconds": watch.seconds})
    way = "more labelled products (five or more)" if found else "catalog.uri with labelled images"
    note = {} if meta.data["calibrated"] else {"note": f"not calibrated: {way} would calibrate it"}
    watch.summary("bundle", num_images=len(catalog) if catalog else 0, **facts, **note)
    return bundle


def _meta(config: BundleConfig, own: OwnModel, catalog: Catalog | None) -> BundleMeta:
    taxonomy = taxonomy_of(config.taxonomy.uri, [catalog] if catalog else [], own.labels)
    return BundleMeta(
        name=config.bundle.name or plain_name(own.backbone.arch),
        version=new_version(own.state),
        arch=own.backbone.arch,
        backbone=own.backbone.config,
        labels=own.labels,
        taxonomy=taxonomy.kept() if taxonomy else {},
        transform=own.transform,
        data={"source": config.bundle.source, "calibrated": False}
        | ({"taxonomy_from": taxonomy.source} if taxonomy else {}),
        **provenance(),
    )


def _calibrated(config: BundleConfig, meta: BundleMeta, found: Calibrated) -> BundleMeta:
    return meta.model_copy(
        update={
            "temperature": found.calibration.temperature,
            "metrics": found.metrics,
            "data": meta.data
            | {
                "source": config.bundle.source,
                "calibrated": bool(found.calibration.num_rows()[TEMPERATURE]),
                "calibrated_on": config.catalog.uri,
                "calibration_catalog": config.catalog.model_dump(mode="json", exclude={"http_headers"}),
                "validation_rows_used_for": found.calibration.num_rows(),
            },
        }
    )
