"""``shoppers``: figures of every shopper, groups that buy alike, who comes again, what is wanted more than offered."""

import dataclasses
import io
import json
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp

from retailray import events, storage
from retailray.config.command_configs import ShoppersConfig
from retailray.config.shop import ShoppersSection
from retailray.data.arrow_tables import parquet_bytes, rechunk
from retailray.data.interactions import Interactions, read_interactions, timestamp
from retailray.data.product_table import Categories, categories_of
from retailray.errors import CatalogError, NotFound
from retailray.reports.run_index import publish
from retailray.retrieval.vectors import of_products, read_vectors
from retailray.runs import RunDirectory
from retailray.segmentation.figures import bought, demand, favourites, figures, paid_returns, retention
from retailray.segmentation.report import write_shoppers_report
from retailray.segmentation.segments import Segments, find_segments, matched, tastes

SHOPPERS, SEGMENTS = "shoppers", "segments"
ROWS_PER_FILE = 1_000_000
BLOCK = 10_000  # shoppers at once
TOP = 5  # categories and products that are named of a segment


def shoppers(config: ShoppersConfig) -> str:
    """Write ``shoppers/``, ``segments/``, ``retention.parquet``, ``demand.parquet``, ``errors/``, ``report.html``.

    Returns the address of the run directory.

    Raises:
        CatalogError: a table or column is not there. ConfigError. RetailrayError.
    """
    watch = events.Stopwatch()
    with read_interactions(config.interactions) as interactions:
        given = config.shoppers.as_of
        as_of = timestamp(given, "shoppers.as_of") if given else interactions.day_after()
        table = figures(interactions, int(as_of.timestamp()))
        if not table.num_rows:
            raise CatalogError(f"{config.interactions.uri}: there is no row before shoppers.as_of = {as_of:%F}")
        run = RunDirectory(config)
        events.emit("start", command="shoppers", run=run.address, as_of=f"{as_of:%F}", **interactions.facts())
        facts = _published(config, interactions, table, as_of, run)
    publish(run, {"command": "shoppers", **facts, "seconds": watch.seconds})
    shown = {name: facts[name] for name in ("segments", "stability", "moved")}
    watch.summary("shoppers", num_images=table.num_rows, shoppers=table.num_rows, **shown, run=run.address)
    return run.address


def _published(  # long because each table comes from those before it
    config: ShoppersConfig, interactions: Interactions, table: pa.Table, as_of: pd.Timestamp, run: RunDirectory
) -> dict[str, Any]:
    end, names = int(as_of.timestamp()), interactions.products.texts()
    categories = categories_of(config.products, names)
    if returned := paid_returns(interactions, end):
        note = f"{returned} returns have a positive value, and add to money; write refunds as negative values"
        events.emit("warning", note=note)
    vectors = read_vectors(config.embeddings.uri, "auto") if config.embeddings.uri else None
    pictures = of_products(vectors, names, "purchases")[1][: len(names)] if vectors is not None else None
    rows, numbers = bought(interactions, end), table.column("shopper").to_numpy()
    segments = _find(config.shoppers, rows, numbers, categories, pictures)
    ids = interactions.shoppers.array().take(table.column("shopper").combine_chunks())
    before = _previous(config.out, config.interactions.shopper)
    segments, moved = _with_old_numbers(segments, ids, before)
    kept = favourites(rows, categories)
    styles = _style_affinity(rows, numbers, pictures)
    columns = {
        config.interactions.shopper: ids,
        **{name: table.column(name) for name in ("recency_days", "baskets", "money")},
        "favourite_categories": pa.array([kept.get(int(one), []) for one in numbers], pa.list_(pa.string())),
        "style_affinity": pa.array(styles, pa.float32(), from_pandas=True),
        "segment": pa.array(segments.of.astype(np.int32), mask=segments.of < 0),
    }
    of_shoppers = pa.table(columns).sort_by(config.interactions.shopper)
    for number, part in enumerate(rechunk([of_shoppers], ROWS_PER_FILE)):
        storage.write_bytes(run.path(SHOPPERS, f"part-{number:05d}.parquet"), parquet_bytes(part))
    of_segments = _segments_table(segments, table, rows, numbers, categories, interactions)
    run.write(f"{SEGMENTS}/part-00000.parquet", parquet_bytes(of_segments))
    cohorts, wanted = retention(interactions, end), demand(rows, categories)
    run.write("retention.parquet", parquet_bytes(cohorts))
    run.write("demand.parquet", parquet_bytes(wanted))
    run.write("errors/part-00000.parquet", parquet_bytes(interactions.bad.table()))
    facts: dict[str, Any] = {
        "as_of": f"{as_of:%F}",
        "shoppers": table.num_rows,
        "segments": segments.num,
        "without_purchase": int((segments.of < 0).sum()),
        "stability": segments.stability,
        "tried": segments.tried,
        "note": segments.note,
        "moved": moved,
        "interactions": interactions.facts(),
    }
    write_shoppers_report(
        run, config, facts, {"segments": of_segments, "retention": cohorts, "demand": wanted}, vectors
    )
    return facts


def _find(
    section: ShoppersSection, rows: pa.Table, numbers: np.ndarray, categories: Categories, pictures: np.ndarray | None
) -> Segments:
    """Segments of those who bought anything; who only returned something buys like nobody."""
    buys = np.isin(numbers, rows.column("shopper").to_numpy())
    values = tastes(rows, numbers[buys], categories.of, pictures) if buys.any() else np.zeros((0, 1))
    found = find_segments(values, num=section.segments, most=section.max_segments, seed=section.seed)
    return found.among(buys)


def _style_affinity(rows: pa.Table, shoppers: np.ndarray, pictures: np.ndarray | None) -> np.ndarray:
    """How alike the pictures are of what each shopper buys: length of their mean, 0 to 1; NaN where there is none."""
    if pictures is None:
        return np.full(len(shoppers), np.nan)
    at = np.searchsorted(shoppers, rows.column("shopper").to_numpy())
    product, times = rows.column("product").to_numpy(), rows.column("times").to_numpy().astype(float)
    times = np.where(np.asarray(pictures.any(1))[product], times, 0)
    weights = sp.csr_matrix((times, (at, product)), shape=(len(shoppers), len(pictures)))
    counts, lengths = np.asarray(weights.sum(1)).ravel(), np.zeros(len(shoppers))
    for first in range(0, len(shoppers), BLOCK):  # not of all at once, which would take gigabytes
        lengths[first : first + BLOCK] = np.linalg.norm(weights[first : first + BLOCK] @ pictures, axis=1)
    return np.where(counts > 0, np.minimum(1, lengths / np.maximum(counts, 1e-9)), np.nan)


def _previous(out: str, shopper: str) -> dict[str, int] | None:
    """By shopper (text), the segment that the run before put him or her into."""
    try:
        address = storage.join(out, storage.read_bytes(storage.join(out, "LATEST")).decode().strip())
        if json.loads(storage.read_bytes(storage.join(address, "run.json"))).get("command") != "shoppers":
            return None
        names = sorted(storage.list_files(storage.join(address, SHOPPERS)))
        table = pa.concat_tables([pq.read_table(io.BytesIO(storage.read_bytes(name))) for name in names])
        ids = table.column(shopper).cast(pa.string()).to_pylist()
        pairs = zip(ids, table.column("segment").to_pylist(), strict=True)
        return {name: segment for name, segment in pairs if segment is not None}
    except NotFound:
        return None
    except (KeyError, ValueError, pa.ArrowException) as error:
        events.emit("warning", note=f"the run before cannot be read ({error}); segments are numbered anew")
        return None


def _with_old_numbers(segments: Segments, ids: pa.Array, before: dict[str, int] | None) -> tuple[Segments, int | None]:
    """Segments that are those of the run before have their numbers; how many shoppers are in another one now."""
    if before is None:
        return segments, None
    texts = ids.cast(pa.string()).to_pylist()
    known = np.array([text in before for text in texts]) & (segments.of >= 0)
    then = np.array([before.get(text, 0) for text in texts], np.int64)
    same = np.full(segments.num, -1)
    found_again = matched(then[known], segments.of[known])
    same[: len(found_again)] = np.where(found_again < segments.num, found_again, -1)
    free = iter(sorted(set(range(segments.num)) - set(same.tolist())))
    number = np.array([one if one >= 0 else next(free) for one in same.tolist()])
    found = dataclasses.replace(segments, of=np.where(segments.of >= 0, number[segments.of], -1))
    return found, int((found.of[known] != then[known]).sum())


def _segments_table(  # many because a segment is described by all that is known
    segments: Segments,
    table: pa.Table,
    rows: pa.Table,
    numbers: np.ndarray,
    categories: Categories,
    interactions: Interactions,
) -> pa.Table:
    """A row per segment: ``segment, shoppers, share``, medians of the figures, and the categories and products that it
    buys more than others do, the most typical first."""
    of_row = segments.of[np.searchsorted(numbers, rows.column("shopper").to_numpy())]
    product, times = rows.column("product").to_numpy(), rows.column("times").to_numpy()
    num_products = len(interactions.products)
    sold = np.zeros((segments.num, num_products))
    np.add.at(sold, (of_row, product), times)
    names = interactions.products.texts()
    frame = table.to_pandas().assign(segment=segments.of)
    found = []
    for at in range(segments.num):
        mine = frame[frame.segment == at]
        by_category = np.zeros((2, len(categories.names)))
        for row, values in enumerate((sold[at], sold.sum(0))):
            known = categories.of >= 0
            by_category[row] = np.bincount(categories.of[known], values[known], minlength=len(categories.names))
        found.append(
            {
                "segment": at,
                "shoppers": len(mine),
                "share": len(mine) / max(1, int((segments.of >= 0).sum())),
                "recency_days": float(mine.recency_days.median()),
                "baskets": float(mine.baskets.median()),
                "money": float(mine.money.median()) if mine.money.notna().any() else None,
                "categories": [categories.names[one] for one in _typical(by_category[0], by_category[1])],
                "products": [names[one] for one in _typical(sold[at], sold.sum(0))],
            }
        )
    return pa.Table.from_pylist(found)


def _typical(mine: np.ndarray, all_of_them: np.ndarray) -> list[int]:
    """Of what a segment buys often, what it buys more often than others do: share times the logarithm of the lift."""
    if not mine.any():
        return []
    share, usual = mine / mine.sum(), all_of_them / max(1e-9, all_of_them.sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        worth = np.where(share > 0, share * np.log(share / usual), -np.inf)
    return [int(one) for one in np.argsort(-worth, kind="stable")[:TOP] if worth[one] > 0]
