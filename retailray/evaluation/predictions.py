"""What a bundle says of the rows of a catalog, in the driver: for catalogs of labelled rows, which fit there."""

import pyarrow as pa
import ray

from retailray.cluster import Capacity, Plan, relay_progress, why
from retailray.config import CatalogSection
from retailray.data.catalog import Catalog
from retailray.data.images import Limits
from retailray.data.pipeline import DecodeSpec, image_dataset, transport_table
from retailray.data.row_ids import ROW_ID, in_order_of
from retailray.errors import RetailrayError
from retailray.models.meta import BundleMeta
from retailray.scoring import UNCALIBRATED, predict_dataset


def predict_catalog(
    section: CatalogSection,
    catalog: Catalog,
    uri: str,
    meta: BundleMeta,
    plan: Plan,
    capacity: Capacity,
    *,
    batch_size: int,
) -> pa.Table:
    """The transport columns and predictions of every row (null where it failed), in the catalog's order, with the
    uncalibrated confidence.

    Raises:
        RetailrayError: a task or an actor failed for good.
    """
    limits = Limits(section.max_pixels, section.max_aspect_ratio)
    spec = DecodeSpec(meta.transform.resize_size, meta.transform.crop_size, limits)
    table = transport_table(catalog)
    images = image_dataset(table, spec, task_cpus=plan.task_cpus, num_blocks=int(4 * capacity.num_cpus))
    try:
        with relay_progress("images", len(catalog), num_predictors=plan.num_actors) as relay:
            predicted = predict_dataset(
                images,
                bundle_uri=uri,
                plan=plan,
                batch_size=batch_size,
                top_k=5,
                relay=relay,
                also=[UNCALIBRATED],
            )
            parts = [part for part in ray.get(predicted.to_arrow_refs()) if part.num_rows]
    except Exception as error:
        raise RetailrayError(f"evaluation stopped: {why(error)}") from error
    return in_order_of(table.column(ROW_ID), pa.concat_tables(parts))
