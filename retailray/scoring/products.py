"""``products/``: one row for each product, from what the model says of its images."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retailray import storage
from retailray.data.arrow_tables import parquet_bytes, rechunk, run_starts
from retailray.errors import RetailrayError
from retailray.models.meta import BundleMeta, Thresholds
from retailray.models.numbers import NUMBER_SCHEMA, NumberRule
from retailray.models.probabilities import rows_of
from retailray.models.products import Combination, images_of
from retailray.runs import RunDirectory
from retailray.scoring.ledger import Ledger
from retailray.scoring.staging import StagedCatalog

PRODUCTS = "products"  # the folder
_OF_BOTH = ("num_images", "num_failed", "model_name", "model_version", "run_id")  # columns of labels and of numbers
COLUMNS = pa.schema(
    [
        ("pred_label", pa.string()),  # null where no image has a prediction
        ("pred_score", pa.float32()),
        ("num_images", pa.int64()),  # with a prediction
        ("num_failed", pa.int64()),
        ("agreement", pa.float32()),  # share of the images whose own label it is
        ("best_image", pa.string()),  # the image of which it is most probable, as the catalog writes it
        ("decision", pa.string()),
        *((name, pa.string()) for name in ("model_name", "model_version", "run_id")),
    ]
)
NUMBERS = pa.schema([*NUMBER_SCHEMA, *(COLUMNS.field(name) for name in COLUMNS.names if name in _OF_BOTH)])
# what people said of an image holds for its product, unless they said different things
_ROWS = """
    select product, row_id, image, code, model_label, classes, probabilities,
        case when corrected_in is not null then pred_label end as told from row_results order by product, row_id
"""
_CELLS = 8_000_000  # products times classes at once


@dataclasses.dataclass(frozen=True)
class ProductRules:
    """How a product gets its answer: the bundle's labels, the way of combining, thresholds of its score."""

    meta: BundleMeta
    combination: Combination
    thresholds: Thresholds


def write_products(
    run: RunDirectory, ledger: Ledger, catalog: StagedCatalog, rules: ProductRules, *, rows_per_file: int
) -> dict[str, object]:
    """Write a row for each product, its name first, and let the ledger know them as ``products``.

    Returns:
        ``products``, ``answered``, ``several_images`` (how many have them) and their ``decisions``.

    Raises:
        RetailrayError: images in the catalog are not those in the products.
    """
    decisions: Counter[str] = Counter()

    def keep(table: pa.Table) -> None:
        ledger.insert("products", table, "select product, pred_label, pred_score, decision, best from piece")
        decisions.update(table.column("decision").to_pylist())

    rows = _rows_by_product(ledger, len(rules.meta.labels))
    answers = _kept((_combined(some, rules) for some in rows), rows_per_file, keep)
    counts = _write_by_product(run, answers, catalog, ledger, rules.meta, COLUMNS)
    return counts | {"decisions": dict(sorted(decisions.items()))}


def write_numbers(
    run: RunDirectory, ledger: Ledger, catalog: StagedCatalog, meta: BundleMeta, rule: NumberRule, *, rows_per_file: int
) -> dict[str, object]:
    """The same of a model that predicts numbers: a product's distribution is the mean of those of its images.

    Returns:
        ``products``, ``answered`` and ``several_images``.
    """
    tables = (_numbers(rows, rule) for rows in _rows_by_product(ledger, len(rule.intervals)))
    return dict(_write_by_product(run, rechunk(tables, rows_per_file), catalog, ledger, meta, NUMBERS))


def _kept(tables: Iterator[pa.Table], rows_per_file: int, keep: Callable[[pa.Table], None]) -> Iterator[pa.Table]:
    for table in rechunk(tables, rows_per_file):
        keep(table)
        yield table


def _write_by_product(
    run: RunDirectory,
    answers: Iterator[pa.Table],
    catalog: StagedCatalog,
    ledger: Ledger,
    meta: BundleMeta,
    schema: pa.Schema,
) -> dict[str, int]:
    """Write ``answers``, a file each (``product`` and the columns of ``schema`` but for the model's), with the user's
    name of products.

    Returns:
        ``products``, ``answered`` and ``several_images`` (how many have them).

    Raises:
        RetailrayError: images in the catalog are not those in the products.
    """
    storage.remove_folder(run.path(PRODUCTS))  # of an earlier attempt of this run
    column = catalog.product_column or "product"
    kind = catalog.schema.field(column).type if column in catalog.schema.names else pa.string()
    # numbers where the user's column has numbers, and no row without a product stands under its id
    others = "select count(*) from rows where try_cast(product as bigint) is null"
    whole = pa.types.is_integer(kind) and not ledger.one(others)
    stamp = {"model_name": meta.name, "model_version": meta.version, "run_id": run.run_id}
    counts = Counter[str]()
    for number, table in enumerate(answers):
        num_images = pc.add(table.column("num_images"), table.column("num_failed"))
        counts.update(
            products=table.num_rows,
            answered=table.num_rows - table.column(schema.names[0]).null_count,
            several_images=pc.sum(pc.greater(num_images, 1)).as_py(),
            images=pc.sum(num_images).as_py(),
        )
        for name, value in stamp.items():
            table = table.append_column(name, pa.array([value] * table.num_rows))
        names = table.column("product")
        names = names.cast(kind) if whole else names
        table = table.select(schema.names).cast(schema).add_column(0, column, names)
        storage.write_bytes(run.path(PRODUCTS, f"part-{number:05d}.parquet"), parquet_bytes(table))
    if counts["images"] != catalog.num_rows:
        raise RetailrayError(
            f"{catalog.num_rows} rows went in and {counts['images']} are in products: nothing is published; this is a "
            "bug in retailray, please report it"
        )
    return {name: counts[name] for name in ("products", "answered", "several_images")}


def _rows_by_product(ledger: Ledger, num_classes: int) -> Iterator[pa.Table]:
    """The rows of some products at a time."""
    return _whole_products(ledger.batches(_ROWS, max(64, _CELLS // num_classes)))


def _whole_products(batches: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Rows ordered by product, cut between products only."""
    kept: list[pa.Table] = []
    for batch in batches:
        names = batch.column("product").combine_chunks()
        first = pc.index(pc.equal(names, names[-1]), True).as_py()  # of the last product, which may go on
        if kept and first == 0 and kept[-1].column("product")[-1] == names[0]:
            kept.append(batch)
            continue
        whole = pa.concat_tables([*kept, batch.slice(0, first)])
        if whole.num_rows:
            yield whole
        kept = [batch.slice(first)]
    if kept:
        yield pa.concat_tables(kept)


def _numbers(table: pa.Table, rule: NumberRule) -> pa.Table:
    """One row for each product of rows that lie product by product."""
    return _by_product(table, lambda images, product: rule.of_products(images, _starts(product)))


def _starts(product: np.ndarray) -> np.ndarray:
    """Where each begins in numbers of products that lie together."""
    return np.flatnonzero(np.diff(product, prepend=-1))


def _combined(table: pa.Table, rules: ProductRules) -> pa.Table:
    """One row for each product of rows that lie product by product; with ``best``, the row of the best image."""
    answers = _by_product(table, lambda images, product: _of_images(images, product, rules))
    decision = pc.fill_null(answers.column("decision"), "abstain")
    return answers.set_column(answers.column_names.index("decision"), "decision", decision)


def _by_product(table: pa.Table, answer: Callable[[pa.Table, np.ndarray], pa.Table]) -> pa.Table:
    """``product``, ``num_images, num_failed`` and what ``answer`` says of the images that have a prediction, given the
    number of the product of each; null where none has."""
    names = table.column("product").combine_chunks()
    starts = run_starts(names)
    product = np.repeat(np.arange(len(starts)), np.diff(starts, append=table.num_rows))
    predicted = pc.is_valid(table.column("model_label")).to_numpy()
    num_images = np.bincount(product[predicted], minlength=len(starts))
    found = answer(table.filter(pa.array(predicted)), product[predicted])
    where = np.where(num_images > 0, np.cumsum(num_images > 0) - 1, -1)
    answers = found.take(pa.array(where, mask=where < 0))
    for name, values in {
        "product": names.take(pa.array(starts)),
        "num_images": pa.array(num_images),
        "num_failed": pa.array(np.bincount(product[~predicted], minlength=len(starts))),
    }.items():
        answers = answers.append_column(name, values)
    return answers


def _of_images(images: pa.Table, product: np.ndarray, rules: ProductRules) -> pa.Table:
    """Answers of the products that have a prediction, in their order; ``product``: the numbers of theirs, ascending."""
    labels, num = np.array(rules.meta.labels, object), images.num_rows
    starts = _starts(product)
    of_image = np.repeat(np.arange(len(starts)), np.diff(starts, append=num))
    classes, probabilities = (rows_of(images.column(name)) for name in ("classes", "probabilities"))
    found = rules.combination(
        images_of(classes, probabilities, len(labels)),
        np.arange(num),
        starts,
        num_classes=len(labels),
    )
    chosen = found.argmax(1)
    said = _said(images.column("told"), of_image)
    predicted, scores = labels[chosen], found.max(1)
    decisions = _decisions(predicted, scores, rules.thresholds)
    for at, label in said.items():
        predicted[at], scores[at], decisions[at] = label, 1.0, "accept"
    likely = np.where(classes == chosen[of_image][:, None], probabilities, 0).sum(1)
    likely -= 2 * pc.is_valid(images.column("told")).to_numpy()  # nobody is asked twice
    best = pa.array(np.lexsort((-likely, of_image))[starts])
    same = images.column("model_label").to_numpy() == predicted[of_image]
    return pa.table(
        {
            "pred_label": pa.array(predicted, pa.string()),
            "pred_score": pa.array(scores, pa.float32()),
            "agreement": pa.array(np.bincount(of_image, same) / np.bincount(of_image), pa.float32()),
            "best_image": images.column("image").take(best),
            "best": images.column("row_id").take(best),
            "decision": pa.array(decisions, pa.string()),
        }
    )


def _said(told: pa.ChunkedArray, of_image: np.ndarray) -> dict[int, str]:
    """Labels that people gave to images hold for their products, unless they gave different ones."""
    known = pc.is_valid(told).to_numpy()
    labels: dict[int, set[str]] = {}
    for product, label in zip(of_image[known].tolist(), told.drop_null().to_pylist(), strict=True):
        labels.setdefault(product, set()).add(label)
    return {product: min(given) for product, given in labels.items() if len(given) == 1}


def _decisions(predicted: np.ndarray, scores: np.ndarray, thresholds: Thresholds) -> np.ndarray:
    accept = np.array([thresholds.per_class.get(label, thresholds.accept) for label in predicted.tolist()])
    found = np.where(scores >= accept, "accept", "review")
    return np.where(scores >= thresholds.abstain, found, "abstain").astype(object)
