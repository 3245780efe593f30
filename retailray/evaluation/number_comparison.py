"""Two bundles that predict numbers, on the same rows: whose errors are smaller, and how sure that is."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from retailray.config import CatalogSection, ClusterSection
from retailray.data.catalog import Catalog
from retailray.data.decoding import CODE
from retailray.data.numeric_labels import numbers_in, spelled
from retailray.data.row_ids import ROW_ID
from retailray.errors import CatalogError, ModelError
from retailray.evaluation.trained_rows import CHALLENGER, CHAMPION, Side
from retailray.models.metrics import resampled_rows
from retailray.models.numbers import DISTRIBUTION, median_of
from retailray.models.predictions import predict_with_each
from retailray.reports.page import picture_facts, render, thumbnails
from retailray.runs import RunDirectory

PICTURES = 24


def are_of_numbers(sides: Mapping[str, Side]) -> bool:
    """Whether the bundles predict numbers. Raises ModelError where one does and another does not."""
    kinds = {side.meta.intervals is not None for side in sides.values()}
    if len(kinds) > 1:
        numbers = next(side.uri for side in sides.values() if side.meta.intervals is not None)
        labels = next(side.uri for side in sides.values() if side.meta.intervals is None)
        raise ModelError(f"{numbers} predicts numbers and {labels} predicts labels: they cannot be compared")
    return kinds.pop()


def predict_both_numbers(
    section: CatalogSection,
    catalog: Catalog,
    sides: Mapping[str, Side],
    cluster: ClusterSection,
    run: RunDirectory,
    *,
    batch_size: int,
) -> pd.DataFrame:
    """One row for every row that both could predict: ``row_id, id, uri, group``, ``value`` (NaN where the catalog has
    no number), ``challenger`` and ``champion``: what each predicts."""
    found = catalog.rows.select(["row_id", "id", "uri", "label", "group"]).to_pandas()
    found["value"] = numbers_in(found.pop("label").to_numpy(object))
    uris = {name: side.uri for name, side in sides.items()}
    for name, table in predict_with_each(
        section, cluster, catalog, uris, run, batch_size=batch_size, also=DISTRIBUTION
    ):
        good, intervals = table.filter(pc.equal(table.column(CODE), "")), sides[name].meta.intervals
        assert intervals is not None
        values = median_of(intervals, good).to_numpy()
        mine = pd.DataFrame({"row_id": good.column(ROW_ID).to_numpy(), name: values})
        found = found.merge(mine, on="row_id", validate="one_to_one")
    if found.empty:
        raise CatalogError(f"{catalog.uri}: no row could be predicted; see `retailray check`")
    return found


def measure_numbers(both: pd.DataFrame, *, bootstrap: int, seed: int = 0) -> dict[str, Any]:
    """``labelled``: rows with a number. ``mae``: the mean absolute error of each side, the ``difference`` (below 0 the
    challenger is better) with its 95 % ``interval`` by bootstrap over products, and as a share of the champion's error
    (``relative``; None where that is 0)."""
    rows = both[both.value.notna()]
    found: dict[str, Any] = {"labelled": len(rows)}
    if rows.empty:
        return found
    off = {name: (rows[name] - rows.value).abs().to_numpy() for name in (CHALLENGER, CHAMPION)}
    more = off[CHALLENGER] - off[CHAMPION]
    groups = rows.group.to_numpy(object)
    draws = [(times @ more) / times.sum() for times in resampled_rows(groups, bootstrap, seed)]
    before = float(off[CHAMPION].sum())
    found["mae"] = {
        CHALLENGER: float(off[CHALLENGER].mean()),
        CHAMPION: float(off[CHAMPION].mean()),
        "difference": float(more.mean()),
        "interval": np.quantile(draws, (0.025, 0.975)).tolist(),
        "relative": float(more.sum()) / before if before else None,
        "products": len(set(groups)),
    }
    return found


def write_number_comparison(
    run: RunDirectory, section: CatalogSection, names: Mapping[str, str], found: Mapping[str, Any], both: pd.DataFrame
) -> None:
    """Write ``report.html``, with pictures of what would change most. ``both``: see :func:`predict_both_numbers`."""
    most = np.argsort(-(both.challenger - both.champion).abs().to_numpy(), kind="stable")[:PICTURES]
    rows = both.iloc[most]
    pictures = [
        {
            "picture": picture,
            "caption": f"{spelled(row.champion)} → {spelled(row.challenger)} · {row.id}",
            "facts": picture_facts(
                id=row.id,
                value=None if row.value != row.value else row.value,
                champion=row.champion,
                challenger=row.challenger,
                address=row.uri,
            ),
        }
        for picture, row in zip(thumbnails(rows.uri.tolist(), section), rows.itertuples(), strict=True)
    ]
    page = render(
        "comparison_numbers.html.j2",
        title="Champion and challenger",
        subtitle=section.uri,
        run_id=run.run_id,
        names=names,
        found=found,
        answers=_answers(found),
        pictures=pictures,
    )
    run.write("report.html", page)


def _answers(found: Mapping[str, Any]) -> list[tuple[bool, str]]:
    """Who is better: whether that is good, and in a sentence."""
    if "mae" not in found:
        return [(False, "No row has a number as label, so nobody knows who is right.")]
    mae = found["mae"]
    low, high = mae["interval"]
    told = f"by {spelled(mae['difference'])} in the mean absolute error ({spelled(low)} to {spelled(high)})"
    if high < 0:
        return [(True, f"The challenger is better, {told}.")]
    if low > 0:
        return [(False, f"The challenger is worse, {told}.")]
    return [(False, f"The two cannot be told apart on these rows: they differ {told}.")]
