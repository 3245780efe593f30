"""What a bundle says of the rows of a catalog, in the driver: for catalogs of labelled rows, which fit there."""

from collections.abc import Iterator, Mapping

import pyarrow as pa

from retailray.config import CatalogSection, ClusterSection
from retailray.data.access import access_of
from retailray.data.arrow_tables import gathered
from retailray.data.catalog import Catalog
from retailray.data.decoding import CHUNK_ROWS, DecodeSpec, blocks_of, decode_rows, transport_table
from retailray.data.images import limits_of
from retailray.data.row_ids import ROW_ID, in_order_of
from retailray.errors import RetailrayError
from retailray.execution import Executor, Plan, plan_scoring, start_executor
from retailray.models.meta import load_meta
from retailray.models.predicting import UNCALIBRATED, PredictorSettings, predict_stream
from retailray.runs import RunDirectory

TOP_K = 5


def predict_rows(  # many because it hands on what predict_catalog takes
    section: CatalogSection,
    cluster: ClusterSection,
    catalog: Catalog,
    uri: str,
    run: RunDirectory,
    *,
    batch_size: int,
    also: tuple[pa.Field, ...] = (UNCALIBRATED,),
    mirrored: bool = False,
) -> pa.Table:
    """:func:`predict_catalog` with an executor of its own, for commands that do nothing else with one."""
    tables = predict_with_each(
        section, cluster, catalog, {uri: uri}, run, batch_size=batch_size, also=also, mirrored=mirrored
    )
    [(_, table)] = tables
    return table


def predict_with_each(  # many because it hands on what predict_catalog takes
    section: CatalogSection,
    cluster: ClusterSection,
    catalog: Catalog,
    uris: Mapping[str, str],
    run: RunDirectory,
    *,
    batch_size: int,
    also: tuple[pa.Field, ...] = (UNCALIBRATED,),
    mirrored: bool = False,
) -> Iterator[tuple[str, pa.Table]]:
    """The same with several bundles, one after the other, on one executor: the name of each and its table."""
    with start_executor(cluster, num_images=len(catalog) * len(uris)) as executor:
        run.machines = executor.machines
        plan = plan_scoring(executor.capacity, cluster, num_images=len(catalog), batch_size=batch_size)
        executor.wait_until_free(plan, deadline_s=cluster.resource_timeout_s)
        for name, uri in uris.items():
            yield (
                name,
                predict_catalog(
                    section, catalog, uri, plan, executor, batch_size=batch_size, also=also, mirrored=mirrored
                ),
            )


def predict_catalog(  # many because predict_rows adds an executor to it
    section: CatalogSection,
    catalog: Catalog,
    uri: str,
    plan: Plan,
    executor: Executor,
    *,
    batch_size: int,
    also: tuple[pa.Field, ...] = (UNCALIBRATED,),
    mirrored: bool = False,
) -> pa.Table:
    """The transport columns and predictions of every row (null where it failed), in the catalog's order, with the
    columns ``also`` (:class:`retailray.models.predicting.PredictorSettings`).

    Raises:
        RetailrayError: a task or an actor failed for good.
    """
    spec = DecodeSpec(load_meta(uri)[0].transform.scaling, limits_of(section))
    table = transport_table(catalog)
    blocks = executor.stream(blocks_of(table, int(4 * executor.capacity.num_cpus)), plan)
    images = blocks.map(decode_rows, {"spec": spec, "access": access_of(section)}, rows=CHUNK_ROWS)
    try:
        with executor.reporter("images", len(catalog), num_predictors=plan.num_actors) as reporter:
            settings = PredictorSettings(
                uri, plan.actor_gpus > 0, plan.torch_threads, TOP_K, also=also, mirrored=mirrored
            )
            predicted = predict_stream(images, settings, batch_size=batch_size, reporter=reporter)
            found = gathered(predicted.tables())
    except Exception as error:
        raise RetailrayError(f"evaluation stopped: {executor.root_cause(error)}") from error
    return in_order_of(table.column(ROW_ID), found)
