"""``compare``: two bundles on the same rows: which is better where labels say, and what would change for everybody."""

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import scipy.stats

from retailray import progress
from retailray.cluster import plan_scoring, ray_session, wait_until_free
from retailray.config import CatalogSection, ClusterSection, CompareConfig, SplitSection
from retailray.data.catalog import Catalog, read_catalog
from retailray.data.pipeline import OURS
from retailray.data.splits import read_splits
from retailray.data.tables import parquet_bytes
from retailray.errors import CatalogError
from retailray.evaluation.predictions import predict_catalog
from retailray.models.meta import BundleMeta, load_meta
from retailray.models.registry import resolve
from retailray.reports.comparison import write_comparison_report
from retailray.runs import RunDirectory

CHALLENGER, CHAMPION = "challenger", "champion"


@dataclasses.dataclass(frozen=True)
class Side:
    """One of the two bundles."""

    uri: str
    meta: BundleMeta


def compare(config: CompareConfig) -> dict[str, Any]:
    """Predict every row with both bundles; write ``comparison.json``, ``changes.parquet``, ``report.html``.

    Returns:
        What ``comparison.json`` holds.

    Raises:
        RetailrayError: see :mod:`retailray.errors`.
    """
    watch = progress.Stopwatch()
    sides = {CHALLENGER: _side(config.model.uri), CHAMPION: _side(config.compare.against)}
    catalog = rows_of(config.catalog, config.split, config.compare.split)
    run = RunDirectory(config)
    names = {name: f"{side.meta.name}/{side.meta.version}" for name, side in sides.items()}
    progress.emit("start", verb="compare", run=run.address, rows=len(catalog), **names)
    both = predict_both(config.catalog, catalog, sides, config.cluster, batch_size=config.compare.batch_size)
    found = {"rows": len(catalog), "both": len(both), **measure(both, bootstrap=config.compare.bootstrap)}
    found |= {name: {"uri": side.uri, "version": side.meta.version} for name, side in sides.items()}
    changed = both[both.champion_label != both.challenger_label]
    run.write_json("comparison.json", found)
    run.write("changes.parquet", parquet_bytes(_table(changed)))
    write_comparison_report(run, config.catalog.uri, names, found, changed)
    told = {key: found[key] for key in ("rows", "both", "changed", "labelled")}
    told |= {key: value for key, value in found.get("top1", {}).items() if not isinstance(value, list)}
    run.publish({"verb": "compare", **told, "seconds": watch.seconds})
    watch.summary("compare", num_images=2 * len(both), **told, report=run.path("report.html"))
    return found


def _side(uri: str) -> Side:
    address = resolve(uri)
    return Side(address, load_meta(address)[0])


def rows_of(section: CatalogSection, split: SplitSection, wanted: str) -> Catalog:
    """The rows of one split, or all. Raises CatalogError where it has none."""
    if wanted == "all":
        return read_catalog(section, needs_label="label" in section.given())
    splits = read_splits(section, split)
    if wanted not in splits:
        there = ", ".join(f"{name} ({len(part)})" for name, part in splits.items())
        raise CatalogError(f"{section.uri}: split {wanted} has no rows; there are {there}")
    return splits[wanted]


def predict_both(
    section: CatalogSection, catalog: Catalog, sides: dict[str, Side], cluster: ClusterSection, *, batch_size: int
) -> pd.DataFrame:
    """A row for every row that both could predict: ``id, uri, label``, and label and score by each side."""
    frames = []
    with ray_session(cluster) as capacity:
        plan = plan_scoring(capacity, cluster, num_images=len(catalog), batch_size=batch_size)
        wait_until_free(plan, deadline_s=cluster.wait_s)
        for name, side in sides.items():
            table = predict_catalog(section, catalog, side.uri, side.meta, plan, capacity, batch_size=batch_size)
            frame = table.to_pandas().rename(columns=lambda column: column.removeprefix(OURS)).set_index("row_id")
            good = frame[frame.error_code == ""]
            frames.append(good[["pred_label", "pred_score"]].add_prefix(f"{name}_"))
            frames[-1].columns = [f"{name}_label", f"{name}_score"]
    both = good[["id", "uri", "label"]].join(frames, how="inner").sort_index().reset_index()
    if both.empty:
        raise CatalogError(f"{catalog.uri}: no row could be predicted; see `retailray check`")
    return both


def measure(both: pd.DataFrame, *, bootstrap: int, seed: int = 0) -> dict[str, Any]:
    """How many labels change, and on labelled rows how right each side is and how sure the difference."""
    changed = both.champion_label != both.challenger_label
    moves = both[changed].groupby(["champion_label", "challenger_label"]).size().sort_values(ascending=False)
    found: dict[str, Any] = {
        "changed": int(changed.sum()),
        "labelled": int((both.label != "").sum()),
        "changes": [{"from": old, "to": new, "rows": int(count)} for (old, new), count in moves.items()],
    }
    labelled = both[both.label != ""]
    if labelled.empty:
        return found
    right = {name: (labelled.label == labelled[f"{name}_label"]).to_numpy() for name in (CHALLENGER, CHAMPION)}
    return found | {"top1": paired(right[CHALLENGER], right[CHAMPION], bootstrap=bootstrap, seed=seed),
                    "per_class": _per_class(labelled, right)}  # fmt: skip


def paired(challenger: np.ndarray, champion: np.ndarray, *, bootstrap: int, seed: int) -> dict[str, Any]:
    """Two classifiers on the same rows.

    Args:
        challenger, champion: bool ``(N,)``, right or not.

    Returns:
        top-1 of each, their ``difference`` with its 95 % ``interval`` (bootstrap over rows), the rows that only one
        gets right, and McNemar's exact p-value for 'both are equally good'.
    """
    difference = challenger.astype(np.int8) - champion.astype(np.int8)
    only_challenger, only_champion = int((difference > 0).sum()), int((difference < 0).sum())
    # rows are of three kinds, so a resample of them is a draw of three numbers
    kinds = np.array([only_challenger, only_champion, len(difference) - only_challenger - only_champion])
    drawn = np.random.default_rng(seed).multinomial(len(difference), kinds / len(difference), size=bootstrap)
    differences = (drawn[:, 0] - drawn[:, 1]) / len(difference)
    disagreeing = only_challenger + only_champion
    test = scipy.stats.binomtest(only_challenger, disagreeing, 0.5).pvalue if disagreeing else 1.0
    return {
        CHALLENGER: float(challenger.mean()),
        CHAMPION: float(champion.mean()),
        "difference": float(difference.mean()),
        "interval": np.quantile(differences, (0.025, 0.975)).tolist(),
        "only_challenger": only_challenger,
        "only_champion": only_champion,
        "mcnemar_p": float(test),
    }


def _per_class(labelled: pd.DataFrame, right: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Recall by class, the largest change first."""
    frame = pd.DataFrame({"label": labelled.label.to_numpy(), **right})
    grouped = frame.groupby("label").agg(rows=("label", "size"), **{name: (name, "mean") for name in right})
    grouped["difference"] = grouped[CHALLENGER] - grouped[CHAMPION]
    order = grouped.difference.abs().sort_values(ascending=False, kind="stable").index
    return [{"label": label, **row} for label, row in grouped.loc[order].to_dict("index").items()]


def _table(changed: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(changed, preserve_index=False)
