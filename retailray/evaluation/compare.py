"""``compare``: two bundles on the same rows: which is better where labels say, and what would change for everybody."""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from retailray import events
from retailray.config import CatalogSection, ClusterSection, CompareConfig
from retailray.data.arrow_tables import parquet_bytes
from retailray.data.catalog import Catalog
from retailray.data.decoding import COLUMN_PREFIX
from retailray.data.splits import rows_of_split
from retailray.errors import CatalogError
from retailray.evaluation.comparison_report import write_comparison_report
from retailray.evaluation.number_comparison import (
    are_of_numbers,
    measure_numbers,
    predict_both_numbers,
    write_number_comparison,
)
from retailray.evaluation.products import FIELDS, answers_of_products
from retailray.evaluation.trained_rows import CHALLENGER, CHAMPION, Side, side_of, warn_of_trained_rows
from retailray.models.metrics import resampled_rows
from retailray.models.predictions import predict_with_each
from retailray.models.products import choose_for
from retailray.models.thresholds import validation_of
from retailray.reports.run_index import publish
from retailray.runs import RunDirectory

FLIPS = 10_000  # random signs behind a p-value


def compare(config: CompareConfig) -> dict[str, object]:
    """Predict every row with both bundles; write ``comparison.json``, ``changes.parquet``, ``report.html``.

    Returns:
        What ``comparison.json`` holds.

    Raises:
        RetailrayError: see :mod:`retailray.errors`.
    """
    watch = events.Stopwatch()
    sides = {CHALLENGER: side_of(config.model.uri), CHAMPION: side_of(config.compare.baseline)}
    of_numbers = are_of_numbers(sides)
    catalog = rows_of_split(config.catalog, config.split, config.compare.split, key="compare.split", needs_label=False)
    warn_of_trained_rows(catalog, sides)
    run = RunDirectory(config)
    names = {name: f"{side.meta.name}/{side.meta.version}" for name, side in sides.items()}
    events.emit("start", command="compare", run=run.address, rows=len(catalog), **names)
    if of_numbers:
        return _compare_numbers(config, catalog, sides, run, names, watch)
    both = predict_both(config.catalog, catalog, sides, config.cluster, run, batch_size=config.compare.batch_size)
    found = {"rows": len(catalog), "both": len(both), **measure(both, bootstrap=config.compare.bootstrap)}
    if catalog.has_products:
        found["products"] = measure(products_of_both(both, sides), bootstrap=config.compare.bootstrap)
    found |= {name: {"uri": side.uri, "version": side.meta.version} for name, side in sides.items()}
    changed = both[both.champion_label != both.challenger_label]
    run.write_json("comparison.json", found)
    run.write("changes.parquet", parquet_bytes(_table(changed)))
    write_comparison_report(run, config.catalog, names, found, changed)
    told = {key: found[key] for key in ("rows", "both", "changed", "labelled")}
    told |= {key: value for key, value in found.get("top1", {}).items() if not isinstance(value, list)}
    publish(run, {"command": "compare", **told, "seconds": watch.seconds})
    watch.summary("compare", num_images=2 * len(both), **told, report=run.path("report.html"))
    return found


def _compare_numbers(
    config: CompareConfig,
    catalog: Catalog,
    sides: dict[str, Side],
    run: RunDirectory,
    names: dict[str, str],
    watch: events.Stopwatch,
) -> dict[str, object]:
    """The same of bundles that predict numbers."""
    section = config.compare
    both = predict_both_numbers(config.catalog, catalog, sides, config.cluster, run, batch_size=section.batch_size)
    found = {"rows": len(catalog), "both": len(both), **measure_numbers(both, bootstrap=section.bootstrap)}
    found |= {name: {"uri": side.uri, "version": side.meta.version} for name, side in sides.items()}
    run.write_json("comparison.json", found)
    changes = both.assign(change=both.challenger - both.champion).drop(columns="row_id")
    run.write("changes.parquet", parquet_bytes(pa.Table.from_pandas(changes, preserve_index=False)))
    write_number_comparison(run, config.catalog, names, found, both)
    told = {key: found[key] for key in ("rows", "both", "labelled")}
    told |= {f"mae_{key}": value for key, value in found.get("mae", {}).items() if not isinstance(value, list)}
    publish(run, {"command": "compare", **told, "seconds": watch.seconds})
    watch.summary("compare", num_images=2 * len(both), **told, report=run.path("report.html"))
    return found


def predict_both(
    section: CatalogSection,
    catalog: Catalog,
    sides: dict[str, Side],
    cluster: ClusterSection,
    run: RunDirectory,
    *,
    batch_size: int,
) -> pd.DataFrame:
    """One row for every row that both could predict: ``row_id, id, uri, label, group``, and label and score by each
    side; where the catalog has products, with the columns of which their labels are made."""
    frames = []
    uris, also = {name: side.uri for name, side in sides.items()}, FIELDS if catalog.has_products else ()
    for name, table in predict_with_each(section, cluster, catalog, uris, run, batch_size=batch_size, also=also):
        frame = table.to_pandas().rename(columns=lambda column: column.removeprefix(COLUMN_PREFIX)).set_index("row_id")
        good = frame[frame.error_code == ""]
        names = {"pred_label": f"{name}_label", "pred_score": f"{name}_score"}
        names |= {field.name: f"{name}_{field.name}" for field in also}
        frames.append(good[list(names)].rename(columns=names))
    rows = catalog.rows.select(["row_id", "id", "uri", "label", "group"]).to_pandas().set_index("row_id")
    both = rows.join(frames, how="inner").sort_index().reset_index()
    if both.empty:
        raise CatalogError(f"{catalog.uri}: no row could be predicted; see `retailray check`")
    return both


def products_of_both(both: pd.DataFrame, sides: dict[str, Side]) -> pd.DataFrame:
    """One row for each product of :func:`predict_both`: ``group, label``, and label and score by each side, which
    combines images in the way that its own validation rows chose."""
    products = pd.DataFrame()
    for name, side in sides.items():
        columns = {f"{name}_{field.name}": field.name for field in FIELDS}
        images = both[["group", "label", *columns]].rename(columns=columns)
        choice = choose_for(validation_of(side.uri), side.meta.labels)
        answers = answers_of_products(images, side.meta.labels, choice.combination)
        products[["group", "label"]] = answers[["group", "label"]]
        products[[f"{name}_label", f"{name}_score"]] = answers[["pred_label", "pred_score"]]
    return products


def measure(both: pd.DataFrame, *, bootstrap: int, seed: int = 0) -> dict[str, Any]:
    """How many labels change, and on labelled rows how right each side is and how sure the difference."""
    changed = both.champion_label != both.challenger_label
    moves = both[changed].groupby(["champion_label", "challenger_label"]).size().sort_values(ascending=False)
    found: dict[str, object] = {
        "changed": int(changed.sum()),
        "labelled": int((both.label != "").sum()),
        "changes": [{"from": old, "to": new, "rows": int(count)} for (old, new), count in moves.items()],
    }
    labelled = both[both.label != ""]
    if labelled.empty:
        return found
    right = {name: (labelled.label == labelled[f"{name}_label"]).to_numpy() for name in (CHALLENGER, CHAMPION)}
    top1 = paired(right[CHALLENGER], right[CHAMPION], labelled.group.to_numpy(object), bootstrap=bootstrap, seed=seed)
    return found | {"top1": top1, "per_class": _per_class(labelled, right)}


def paired(
    challenger: np.ndarray, champion: np.ndarray, groups: np.ndarray, *, bootstrap: int, seed: int
) -> dict[str, object]:
    """Two classifiers on the same rows.

    Args:
        challenger, champion: bool ``(N,)``, right or not. groups: product names ``(N,)``, object.

    Returns:
        top-1 of each, their ``difference`` with its 95 % ``interval`` (bootstrap over products), the rows that only one
        gets right, and a p-value for 'both are equally good': whole products change sides at random (with one row per
        product this is McNemar's test), exact where no product counts for more than one row.
    """
    difference = challenger.astype(np.int8) - champion.astype(np.int8)
    draws = [(times @ difference) / times.sum() for times in resampled_rows(groups, bootstrap, seed)]
    _, of_row = np.unique(groups.astype(object), return_inverse=True)
    of_product = np.bincount(of_row, difference)
    return {
        CHALLENGER: float(challenger.mean()),
        CHAMPION: float(champion.mean()),
        "difference": float(difference.mean()),
        "interval": np.quantile(draws, (0.025, 0.975)).tolist(),
        "only_challenger": int((difference > 0).sum()),
        "only_champion": int((difference < 0).sum()),
        "products": len(of_product),
        "p_value": sign_flip_p_value(of_product, seed),
    }


def sign_flip_p_value(of_product: np.ndarray, seed: int) -> float:
    """How often the sum of products' differences, each with a random sign, is as far from zero as it is."""
    nonzero = of_product[of_product != 0]
    if not len(nonzero):
        return 1.0
    if (np.abs(nonzero) == 1).all():
        import scipy.stats  # which takes a second, and nothing else here wants it

        return float(scipy.stats.binomtest(int((nonzero > 0).sum()), len(nonzero), 0.5).pvalue)
    # products that differ as much are alike: how many of them are positive is all that their signs say
    rounded = np.abs(nonzero).round(9)
    observed = abs(float(np.sign(nonzero) @ rounded))
    sizes, counts = np.unique(rounded, return_counts=True)
    generator = np.random.default_rng(seed)
    at_once = max(1, 1_000_000 // len(sizes))  # numbers in memory
    further = 0
    for start in range(0, FLIPS, at_once):
        positive = generator.binomial(counts, 0.5, (min(at_once, FLIPS - start), len(sizes)))
        further += int((np.abs((2 * positive - counts) @ sizes) >= observed - 1e-6).sum())
    return (1 + further) / (1 + FLIPS)


def _per_class(labelled: pd.DataFrame, right: dict[str, np.ndarray]) -> list[dict[str, object]]:
    """Recall by class, the largest change first."""
    frame = pd.DataFrame({"label": labelled.label.to_numpy(), **right})
    grouped = frame.groupby("label").agg(rows=("label", "size"), **{name: (name, "mean") for name in right})
    grouped["difference"] = grouped[CHALLENGER] - grouped[CHAMPION]
    order = grouped.difference.abs().sort_values(ascending=False, kind="stable").index
    return [{"label": label, **row} for label, row in grouped.loc[order].to_dict("index").items()]


def _table(changed: pd.DataFrame) -> pa.Table:
    told = [name for name in changed.columns if not name.endswith(tuple(f"_{field.name}" for field in FIELDS))]
    return pa.Table.from_pandas(changed[told], preserve_index=False)
