"""``score`` with a model that predicts numbers: what it refuses, and its report."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from retailray.config import CatalogSection, ScoreConfig
from retailray.data.fingerprints import fingerprints
from retailray.data.numeric_labels import numbers_in, spelled
from retailray.data.text_files import PIECE_ROWS
from retailray.errors import ConfigError
from retailray.models.meta import BundleMeta, load_training_fingerprints
from retailray.models.numbers import DISTRIBUTION, NumberRule
from retailray.reports import plots
from retailray.reports.page import error_summary, picture_facts, render, thumbnails
from retailray.runs import RunDirectory
from retailray.scoring.ledger import Ledger
from retailray.scoring.publishing import summarize
from retailray.scoring.report import of_drift, of_rows

SHOWN = 12  # rows with pictures
BARS = 40  # of the histogram
CHANCE = 3  # standard deviations; images of a product are alike, so that one of rows is too small


def refuse_settings(config: ScoreConfig) -> None:
    """Raise ConfigError where settings are of labels."""
    given = {
        "score.target_precision": config.score.target_precision is not None,
        "score.top_k": "top_k" in config.score.non_default_fields(),
        "score.review_rows": "review_rows" in config.score.non_default_fields(),
        "score.export": config.score.export != "none",
        "catalog.corrections": config.catalog.corrections is not None,
        "taxonomy.uri": config.taxonomy.uri is not None,
    }
    problems = [
        f"{name}: {config.model.uri} predicts numbers, and this setting is of labels; leave it out"
        for name, is_given in given.items()
        if is_given
    ]
    if problems:
        raise ConfigError(problems)


def write_numbers_report(
    run: RunDirectory,
    meta: BundleMeta,
    config: ScoreConfig,
    facts: Mapping[str, Any],
    ledger: Ledger,
    rule: NumberRule,
) -> dict[str, object]:
    """Write ``report.html``; returns what ``run.json`` says about the values.

    ``facts``: what else ``run.json`` says, and ``drift``.
    """
    seen = _Seen.of(ledger, rule, load_training_fingerprints(config.model.uri))
    summary, told, stages = summarize(ledger), seen.told(), facts["stages"]
    page = render(
        "score_numbers.html.j2",
        title="Scored catalog",
        subtitle=config.catalog.uri,
        run_id=run.run_id,
        meta=meta,
        model_uri=config.model.uri,
        counts=facts["counts"],
        values=told,
        answers=_answers(facts, told),
        histogram=plots.value_histogram(seen.histogram, seen.edges, meta.target),
        products=facts["products"],
        drift=facts["drift"],
        stages=stages,
        bottleneck=max(stages, key=lambda row: (row["utilisation"], row["seconds"]), default=None),
        cost=facts["cost"],
        times=facts["times"],
        source=facts.get("source"),
        sheets=[
            ("Furthest from the catalog's own value", _pictures(seen.furthest, config.catalog)),
            ("Least certain", _pictures(seen.widest, config.catalog)),
        ],
        errors=error_summary(summary["errors_by_code"], summary["examples"]),  # type: ignore[arg-type]
    )
    run.write("report.html", page)
    return {"values": told, "errors_by_code": summary["errors_by_code"]}


class _Seen:
    """What a report says about values; its memory use does not depend on how many there are."""

    def __init__(self, rule: NumberRule, trained_on: np.ndarray | None) -> None:
        self.rule, self.trained_on = rule, trained_on
        low, high = rule.intervals.lows[0], rule.intervals.highs[-1]
        self.edges = np.linspace(low, high, BARS + 1)
        self.histogram = np.zeros(BARS, np.int64)
        self.widest = self.furthest = pd.DataFrame()
        self.num_rows = self.num_labelled = self.num_within = self.num_trained = 0
        self.total = self.error = self.amount = 0.0

    @classmethod
    def of(cls, ledger: Ledger, rule: NumberRule, trained_on: np.ndarray | None) -> "_Seen":
        """``trained_on``: fingerprints of the images that the model was trained on, uint64 ``(N,)``; None: unknown."""
        seen = cls(rule, trained_on)
        rows = f"select row_id, id, uri, label, {', '.join(field.name for field in DISTRIBUTION)} from row_results"
        for table in ledger.batches(f"{rows} where code = '' order by row_id", PIECE_ROWS):
            own = table.select(["id", "uri", "label"]).to_pandas()
            seen.add(own.join(rule(table).to_pandas()))
        return seen

    def add(self, rows: pd.DataFrame) -> None:
        """``id, uri, label`` and the columns of :data:`NUMBER_SCHEMA`."""
        self.num_rows += len(rows)
        self.total += float(rows.pred_value.sum())
        self.histogram += np.histogram(rows.pred_value, self.edges)[0]
        rows = rows.assign(value=numbers_in(rows.label.to_numpy(object)), width=rows.pred_high - rows.pred_low)
        self.widest = pd.concat([self.widest, rows[rows.width > 0]]).nlargest(SHOWN, "width")
        known = rows[rows.value.notna()]
        if self.trained_on is not None and len(known):  # what the model says of them is no evidence
            trained = np.isin(fingerprints(known.uri.to_numpy(object)), self.trained_on)
            self.num_trained += int(trained.sum())
            known = known[~trained]
        known = known.assign(off=(known.pred_value - known.value).abs())
        self.num_labelled += len(known)
        self.num_within += int(known.value.between(known.pred_low, known.pred_high).sum())
        self.error += float(known.off.sum())
        self.amount += float(known.value.abs().sum())
        self.furthest = pd.concat([self.furthest, known[known.off > 0]]).nlargest(SHOWN, "off")

    def told(self) -> dict[str, object]:
        """For ``run.json``: of all rows, and of those whose label in the catalog is a number."""
        found: dict[str, object] = {"level": self.rule.level, "fitted_on": self.rule.num_products}
        found["intervals"] = self.rule.intervals.digest
        found["mean"] = self.total / self.num_rows if self.num_rows else None
        found |= {"labelled_rows": self.num_labelled}
        found["trained_on"] = self.num_trained if self.trained_on is not None else None
        if self.num_labelled:
            found["mae"] = self.error / self.num_labelled
            found["wape"] = self.error / self.amount if self.amount else None
            found["coverage"] = self.num_within / self.num_labelled
        return found


def _answers(facts: Mapping[str, Any], told: Mapping[str, Any]) -> list[tuple[bool, str]]:
    answers = [of_rows(facts["counts"])]
    if "mae" in told:
        new = " that the model was not trained on" if told["trained_on"] else ""
        if told["trained_on"] is None:
            new = " (nobody knows which of them the model was trained on)"
        text = f"Of {told['labelled_rows']:,} rows{new} the catalog has a value: predictions are "
        text += f"{spelled(told['mae'])} off on average, {told['coverage']:.1%} of the values lie in their interval, "
        wanted = told["level"] / 100
        chance = CHANCE * (wanted * (1 - wanted) / told["labelled_rows"]) ** 0.5
        answers.append((told["coverage"] > wanted - chance, f"{text}which is made for {told['level']} %."))
    return answers + of_drift(facts["drift"])


def _pictures(rows: pd.DataFrame, section: CatalogSection) -> Sequence[dict[str, object]]:
    if rows.empty:
        return ()
    return [
        {
            "picture": picture,
            "caption": f"{spelled(row.pred_value)} ({spelled(row.pred_low)} to {spelled(row.pred_high)})"
            f"{f', catalog {spelled(row.value)}' if row.value == row.value else ''} · {row.id}",
            "facts": picture_facts(
                id=row.id, predicted=row.pred_value, value_of_the_catalog=row.label, address=row.uri
            ),
        }
        for picture, row in zip(thumbnails(rows.uri.tolist(), section), rows.itertuples(), strict=True)
    ]
