"""What a bundle says of the rows of a catalog, in the driver: for catalogs of labelled rows, which fit there."""

import pyarrow as pa

from retailray.config import CatalogSection
from retailray.data.access import access_of
from retailray.data.arrow_tables import gathered
from retailray.data.catalog import Catalog
from retailray.data.decoding import CHUNK_ROWS, DecodeSpec, blocks_of, decode_rows, transport_table
from retailray.data.images import limits_of
from retailray.data.row_ids import ROW_ID, in_order_of
from retailray.errors import RetailrayError
from retailray.execution import Executor, Plan
from retailray.models.meta import BundleMeta
from retailray.models.predicting import UNCALIBRATED, PredictorSettings, predict_stream

TOP_K = 5


def predict_catalog(
    section: CatalogSection,
    catalog: Catalog,
    uri: str,
    meta: BundleMeta,
    plan: Plan,
    executor: Executor,
    *,
    batch_size: int,
    also: tuple[pa.Field, ...] = (UNCALIBRATED,),
) -> pa.Table:
    """The transport columns and predictions of every row (null where it failed), in the catalog's order, with the
    columns ``also`` (:class:`retailray.models.predicting.PredictorSettings`).

    Raises:
        RetailrayError: a task or an actor failed for good.
    """
    spec = DecodeSpec(meta.transform.scaling, limits_of(section))
    table = transport_table(catalog)
    blocks = executor.stream(blocks_of(table, int(4 * executor.capacity.num_cpus)), plan)
    images = blocks.map(decode_rows, {"spec": spec, "access": access_of(section)}, rows=CHUNK_ROWS)
    try:
        with executor.reporter("images", len(catalog), num_predictors=plan.num_actors) as reporter:
            settings = PredictorSettings(uri, plan.actor_gpus > 0, plan.torch_threads, TOP_K, also=also)
            predicted = predict_stream(images, settings, batch_size=batch_size, reporter=reporter)
            found = gathered(predicted.tables())
    except Exception as error:
        raise RetailrayError(f"evaluation stopped: {executor.root_cause(error)}") from error
    return in_order_of(table.column(ROW_ID), found)
