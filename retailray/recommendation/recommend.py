"""``recommend``: for every shopper the products that he or she is most likely to buy next."""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from retailray import events, storage
from retailray.config.command_configs import RecommendConfig
from retailray.config.shop import RecommendSection
from retailray.data.arrow_tables import parquet_bytes, rechunk
from retailray.data.bad_rows import matches
from retailray.data.interactions import DAY_S, Interactions, read_interactions, timestamp
from retailray.data.names import typed
from retailray.data.product_table import ProductTable, read_products
from retailray.errors import CatalogError, ConfigError, RetailrayError
from retailray.execution import plan_scoring, start_executor
from retailray.interrupts import applications
from retailray.recommendation.batches import digests_of, history_batches
from retailray.recommendation.fitting import digest, fit, model_key
from retailray.recommendation.recommender import BATCH_SHOPPERS, Recommender, Wish
from retailray.recommendation.report import write_recommend_report
from retailray.recommendation.state import (
    MODEL,
    RECOMMENDATIONS,
    SHOPPERS,
    Fitted,
    Previous,
    previous_rows,
    previous_run,
    write_fitted,
)
from retailray.reports.run_index import publish
from retailray.retrieval.vectors import read_vectors
from retailray.runs import RunDirectory

ROWS_PER_FILE = 1_000_000
KNOWN_SHARE = 0.9  # of the products, that fitted methods know; fewer are those of another table
SHOWN = 4  # shoppers in the report
_BOUGHT = """create table bought as select shopper, product, basket, max(time) as time from event
    where product >= 0 and (quantity > 0 or isnan(quantity)) and time < {end}
    group by shopper, product, basket, time // 86400"""


def recommend(config: RecommendConfig) -> str:
    """Write ``recommendations/``, ``errors/`` and ``report.html``; returns the address of the run directory.

    Raises:
        CatalogError: a table or column is not there. ConfigError. RetailrayError.
    """
    watch = events.Stopwatch()
    for package in ("implicit", "lightgbm"):
        applications(package)
    with read_interactions(config.interactions) as interactions:
        given = config.recommend.as_of
        as_of = timestamp(given, "recommend.as_of") if given else interactions.day_after()
        interactions.db.execute(_BOUGHT.format(end=int(as_of.timestamp())))
        num_shoppers = interactions.one("select count(distinct shopper) from bought")
        if not num_shoppers:
            raise CatalogError(f"{config.interactions.uri}: nobody bought anything before recommend.as_of = {as_of:%F}")
        run = RunDirectory(config)
        events.emit("start", command="recommend", run=run.address, as_of=f"{as_of:%F}", **interactions.facts())
        facts = _published(config, interactions, as_of, run)
    publish(run, {"command": "recommend", **facts, "seconds": watch.seconds})
    shown = ("shoppers", "scored", "reused", "method", "fitted_as_of")
    watch.summary("recommend", num_images=num_shoppers, **{name: facts[name] for name in shown}, run=run.address)
    return run.address


def _published(  # long because each step needs what those before it found
    config: RecommendConfig, interactions: Interactions, as_of: pd.Timestamp, run: RunDirectory
) -> dict[str, Any]:
    """Fit, recommend and write; what ``run.json`` says."""
    day, section = as_of.timestamp() / DAY_S, config.recommend
    vectors = read_vectors(config.embeddings.uri, "auto") if config.embeddings.uri else None
    previous = previous_run(config.out)
    key = model_key(config, vectors)
    if previous is not None and not (previous.fitted.key == key and _still_good(previous, interactions, day, section)):
        previous = None
    fitted = previous.fitted if previous is not None else fit(config, interactions, vectors, day, key)
    table = read_products(config.products) if config.products.uri else None
    wish = Wish(
        _allowed(config, fitted, table), _sold(interactions, fitted), section.top_k, section.repeat, section.unsold, day
    )
    kinds = [str(names.array().type) for names in (interactions.shoppers, interactions.products)]
    what = [section.top_k, section.repeat, section.unsold, wish.allowed.tobytes().hex()]
    rows_key = digest([key, fitted.as_of, *what, *kinds])
    write_fitted(run, fitted)
    digests = digests_of(interactions)
    names = interactions.shoppers.texts()
    unchanged: set[int] = set()
    if previous is not None and previous.key == rows_key:
        unchanged = {number for number, mark in digests.items() if previous.digests.get(names[number]) == mark}
    events.emit("plan", shoppers=len(digests), to_score=len(digests) - len(unchanged), method=fitted.method)
    rows = previous_rows(previous) if previous is not None and unchanged else None
    unchanged = unchanged if rows is not None else set()
    scored = _scored(config, interactions, fitted, wish, run, unchanged)
    found = _named(config, interactions, fitted, scored, rows, unchanged)
    counts = _write(run, found, config, len(digests))
    marks = pa.table({"shopper": [names[one] for one in digests], "digest": pa.array(digests.values(), pa.uint64())})
    run.write(SHOPPERS, parquet_bytes(marks))
    run.write("errors/part-00000.parquet", parquet_bytes(interactions.bad.table()))
    facts: dict[str, Any] = {
        "key": rows_key,
        "as_of": f"{as_of:%F}",
        "interactions": interactions.facts(),
        "shoppers": len(digests),
        "scored": len(digests) - len(unchanged),
        "reused": len(unchanged),
        "products": len(fitted.products),
        "allowed_products": int(wish.allowed.sum()),
        "repeat": section.repeat,
        "method": fitted.method,
        "fitted_as_of": str(pd.Timestamp(fitted.as_of, unit="D").date()),
        **counts,
        **fitted.facts,
    }
    write_recommend_report(run, config, facts, _examples(config, interactions, found))
    return facts


def _still_good(previous: Previous, interactions: Interactions, day: float, section: RecommendSection) -> bool:
    """True if fitted methods are young enough, and know nearly all products of the purchases."""
    young = 0 <= day - previous.fitted.as_of < section.refit_days
    names = interactions.products.texts()
    known = len(set(names) & set(previous.fitted.products))
    return young and known >= KNOWN_SHARE * len(names)


def _sold(interactions: Interactions, fitted: Fitted) -> np.ndarray:
    """bool ``(I,)``: what anybody has bought until now."""
    numbers = interactions.table("select distinct product from bought").column(0).to_pylist()
    names = interactions.products.texts()
    return np.isin(np.array(fitted.products, object), [names[number] for number in numbers])


def _allowed(config: RecommendConfig, fitted: Fitted, table: ProductTable | None) -> np.ndarray:
    """bool ``(I,)``, by ``recommend.where`` and ``interactions.exclude``. Raises ConfigError, CatalogError."""
    where, patterns = config.recommend.where, config.interactions.exclude
    found = np.array([not matches(name, patterns) for name in fitted.products], bool)
    if not where:
        return found
    if table is None:
        raise ConfigError(["recommend.where needs products.uri: the table whose columns it names"])
    return found & table.matching(where, fitted.products)


def _scored(  # many because what workers need comes from all of these
    config: RecommendConfig,
    interactions: Interactions,
    fitted: Fitted,
    wish: Wish,
    run: RunDirectory,
    unchanged: set[int],
) -> list[pa.Table]:
    """``shopper, product`` (numbers) ``, rank, score, reason``, by a pool of actors."""
    number = {name: at for at, name in enumerate(fitted.products)}
    products = np.array([number.get(name, -1) for name in interactions.products.texts()], np.int64)
    reference = np.full(len(interactions.shoppers), -1)
    rows = interactions.shoppers.find(fitted.reference)
    reference[rows[rows >= 0]] = np.flatnonzero(rows >= 0)
    total = interactions.one("select count(distinct shopper) from bought") - len(unchanged)
    if not total:
        return []
    with start_executor(config.cluster, num_images=total) as executor:
        run.machines = executor.machines
        on_cpus = config.cluster.model_copy(update={"use_gpu": False})
        plan = plan_scoring(executor.capacity, on_cpus, num_images=total, batch_size=BATCH_SHOPPERS)
        executor.wait_until_free(plan, deadline_s=config.cluster.resource_timeout_s)
        with executor.reporter("shoppers", total, num_predictors=plan.num_actors) as reporter:
            arguments = {"address": run.path(MODEL), "wish": wish, "threads": plan.torch_threads, "reporter": reporter}
            tables = rechunk(history_batches(interactions, products, reference, unchanged), BATCH_SHOPPERS)
            stream = executor.stream(tables, plan)
            try:
                return list(stream.map_with(Recommender, arguments, rows=BATCH_SHOPPERS).tables())
            except Exception as error:
                raise RetailrayError(
                    f"recommend stopped: {executor.root_cause(error)} (every machine needs retailray[applications])"
                ) from error


def _named(  # many because rows come from this run and from the one before
    config: RecommendConfig,
    interactions: Interactions,
    fitted: Fitted,
    scored: list[pa.Table],
    known: pa.Table | None,
    unchanged: set[int],
) -> pa.Table:
    """Recommendations in the order of the shoppers, under the names of the user's columns."""
    shoppers, names = interactions.shoppers.array(), (config.interactions.shopper, config.interactions.product)
    products, columns = _product_names(interactions, fitted), ["rank", "score", "reason"]
    tables = []
    for table in scored:
        named = [shoppers.take(table.column("shopper")), products.take(table.column("product"))]
        tables.append(pa.table([*named, *(table.column(name) for name in columns)], names=[*names, *columns]))
    if known is not None:
        mine = shoppers.take(pa.array(sorted(unchanged)))
        keep = pc.is_in(known.column(names[0]), value_set=mine.cast(known.schema.field(names[0]).type))
        tables.append(known.filter(keep).cast(tables[0].schema if tables else known.schema))
    return pa.concat_tables(tables).sort_by([(names[0], "ascending"), ("rank", "ascending")])


def _write(run: RunDirectory, found: pa.Table, config: RecommendConfig, num_shoppers: int) -> dict[str, int]:
    for number, part in enumerate(rechunk([found], ROWS_PER_FILE)):
        storage.write_bytes(run.path(RECOMMENDATIONS, f"part-{number:05d}.parquet"), parquet_bytes(part))
    if not found.num_rows:
        storage.write_bytes(run.path(RECOMMENDATIONS, "part-00000.parquet"), parquet_bytes(found))
    last = pc.sum(pc.equal(found.column("rank"), config.recommend.top_k)).as_py() or 0
    return {"recommended": found.num_rows, "with_too_few": num_shoppers - last}


def _examples(config: RecommendConfig, interactions: Interactions, found: pa.Table) -> list[dict[str, Any]]:
    """Of some shoppers, what they bought most and what they are recommended."""
    shopper, product = config.interactions.shopper, config.interactions.product
    names, products = interactions.shoppers.array(), interactions.products.array()
    distinct = found.column(shopper).unique()
    rows = np.unique(np.linspace(0, max(0, len(distinct) - 1), SHOWN).astype(int))[: len(distinct)]
    examples = []
    for name in distinct.take(pa.array(rows, pa.int64())).to_pylist():
        [number] = interactions.shoppers.find([str(name)])
        most = interactions.table(
            f"select product, count(*) as times from bought where shopper = {number} group by product "
            "order by times desc, product limit 6"
        )
        bought = zip(products.take(most.column("product")).to_pylist(), most.column("times").to_pylist(), strict=True)
        recommended = found.filter(pc.equal(found.column(shopper), name)).select([product, "reason"]).to_pylist()
        examples.append(
            {
                "name": names[int(number)].as_py(),
                "bought": [f"{one} ({times})" for one, times in bought],
                "recommended": [{"product": row[product], "reason": row["reason"]} for row in recommended],
            }
        )
    return examples


def _product_names(interactions: Interactions, fitted: Fitted) -> pa.Array:
    """Names of the fitted methods' products, of the type that the user's column has."""
    return typed(fitted.products, interactions.products.kind)
