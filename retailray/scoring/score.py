"""``score``: classify every row of a catalog and publish tables in which every row is found once.

In order: read the catalog to the driver's disk, list the images, ask the ledger what is known of them, infer the rest,
join, count, publish. A first run, a resumed run and a run on a catalog with few changes are the same command.
"""

import dataclasses
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retailray import events, storage
from retailray.config import EmbedConfig, ScoreConfig
from retailray.data.catalog import corrections_of
from retailray.data.corrections import warn_of_strangers
from retailray.data.taxonomy import Taxonomy
from retailray.data.text_files import PIECE_ROWS
from retailray.errors import ConfigError, GateFailed, StorageError, TooManyRowErrors
from retailray.models.agreement import known_agreement
from retailray.models.meta import THRESHOLDS, BundleMeta, Thresholds, load_meta
from retailray.models.numbers import NumberRule
from retailray.models.products import choose_for
from retailray.models.registry import resolve_alias
from retailray.models.thresholds import acceptance_curve
from retailray.reports.review_page import write_review_page
from retailray.reports.run_index import write_run_index
from retailray.runs import RunDirectory
from retailray.scoring.backing_off import accept_ancestors, taxonomy_of_run
from retailray.scoring.drift import Drift, changed_labels, measure_drift, outlier_model_of, references
from retailray.scoring.embeddings import write_embeddings
from retailray.scoring.exports import check_export, write_export
from retailray.scoring.formats import SCORED, TODO
from retailray.scoring.int8 import MADE_OF, wants_int8, with_int8
from retailray.scoring.ledger import Ledger
from retailray.scoring.numbers import refuse_settings, write_numbers_report
from retailray.scoring.planning import embeddings_of, keep_agreement, make_plan, plan_fields, scoring_key
from retailray.scoring.previous_run import PLAN, interrupted, last_published, read_part, remove_old
from retailray.scoring.products import PRODUCTS, ProductRules, write_numbers, write_products
from retailray.scoring.promises import make_product_promise, make_promise, read_validation
from retailray.scoring.publishing import output_schema, summarize, write_tables
from retailray.scoring.report import Findings, write_score_report
from retailray.scoring.review import make_queue, write_queue
from retailray.scoring.staging import StagedCatalog
from retailray.storage.lease import Lease, acquire_lease, lease_owner

if TYPE_CHECKING:
    from retailray.scoring.inference import Inferred

CHANGED = 24  # products whose label changed, and kinds of change, in the report


def score(config: ScoreConfig) -> str:
    """Score a catalog with a bundle and publish a run directory.

    Returns:
        The address of the run directory; '' for a plan only.

    Raises:
        TooManyRowErrors: done, but more rows failed than ``score.max_error_rate``.
        RetailrayError: nothing was published; see :mod:`retailray.errors`.
    """
    watch = events.Stopwatch()
    config = resolve_alias(config)
    meta, digest = load_meta(config.model.uri)
    if meta.intervals is not None:
        refuse_settings(config)
    elif "level" in config.score.non_default_fields():
        raise ConfigError([f"score.level: {config.model.uri} predicts labels, and this setting is of numbers"])
    int8 = wants_int8(config, meta)
    folder = Path(tempfile.mkdtemp(prefix="retailray-"))
    try:
        if config.score.plan_only:
            if int8:
                config, meta, digest = with_int8(config, meta, digest)
            return _print_plan(config, meta, scoring_key(meta, digest, config), folder, watch)
        with acquire_lease(config.out) as lease:
            if int8:
                config, meta, digest = with_int8(config, meta, digest)
            key, taxonomy = scoring_key(meta, digest, config), taxonomy_of_run(config, meta)
            run = RunDirectory(config, run_id=interrupted(config, key))
            lease.run_id = run.run_id
            name = f"{meta.name}/{meta.version}"
            events.emit("start", command="score", run=run.address, model=name, resumed=run.resumed)
            kind = _ScoringRun if meta.intervals is None else _NumbersRun
            kind(config, meta, key, run, lease, watch, taxonomy).perform(folder)
            return run.address
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def embed(config: EmbedConfig) -> str:
    """:func:`score` with ``score.embeddings``."""
    section = config.score.model_copy(update={"embeddings": True})
    return score(config.model_copy(update={"score": section}))


def _print_plan(config: ScoreConfig, meta: BundleMeta, key: str, folder: Path, watch: events.Stopwatch) -> str:
    with_paths = taxonomy_of_run(config, meta) is not None
    reserved = output_schema(config.catalog, with_paths=with_paths, numbers=meta.intervals is not None).names
    before, resumed = last_published(config.out), interrupted(config, key)
    if resumed and lease_owner(config.out):
        events.emit("warning", run_id=resumed, note="this run is active; its committed results are not counted")
        resumed = None
    _, ledger, plan = make_plan(config, key, folder, resumed=resumed, before=before, reserved=reserved)
    ledger.close()
    rate = before[1].get("images_per_s") if before else None
    told = plan_fields(plan) | {"bytes": plan.num_bytes, "estimated_s": plan.images / rate if rate else None}
    watch.summary("score", num_images=0, plan_only=True, **told)
    return ""


class _ScoringRun:
    """One run, from its plan to its tables, its report and its pointer."""

    def __init__(
        self,
        config: ScoreConfig,
        meta: BundleMeta,
        key: str,
        run: RunDirectory,
        lease: Lease,
        watch: events.Stopwatch,
        taxonomy: Taxonomy | None,
    ) -> None:
        self.config, self.meta, self.key, self.run = config, meta, key, run
        self.lease, self.watch, self.taxonomy = lease, watch, taxonomy
        numbers = meta.intervals is not None
        self.schema = output_schema(config.catalog, with_paths=taxonomy is not None, numbers=numbers)
        self.rule = NumberRule.of(config.model.uri, meta, level=config.score.level) if numbers else None
        self.validation = read_validation(config.model.uri, config.score)
        self.said = corrections_of(config.catalog)
        self.before = last_published(config.out)
        self.comparable = self.before is not None and _is_comparable(self.before[1], meta)

    def perform(self, folder: Path) -> None:
        """``folder``: on this machine, for the catalog and the ledger."""
        config, run, watch = self.config, self.run, self.watch
        resumed, reserved = run.run_id if run.resumed else None, self.schema.names
        known = {"resumed": resumed, "before": self.before, "reserved": reserved}
        catalog, ledger, plan = make_plan(config, self.key, folder, **known)
        if self.before and not self.comparable:
            ledger.forget_published()
        check_export(config.score.export, catalog)
        run.write_json(PLAN, {"scoring_key": self.key, **dataclasses.asdict(plan)})
        events.emit("plan", **plan_fields(plan))
        keep_agreement(config, run, self.key, self.before)
        times = {"planning": watch.seconds}
        inferred = self._infer(ledger, plan.images) if plan.images else None  # else Ray is not started, nor imported
        times["inference"] = watch.seconds - times["planning"]
        thresholds, decided = self._decide(ledger)
        self.lease.check()
        rows_per_file = config.score.rows_per_file
        counts = write_tables(
            run, ledger, catalog, self.meta, rows_per_file=rows_per_file, schema=self.schema, rule=self.rule
        )
        facts: dict[str, Any] = {
            "counts": counts,
            "plan": plan_fields(plan),
            "not_listed": ledger.not_listed,
            **({"source": catalog.source.facts()} if catalog.source and not catalog.source.is_plain else {}),
            **({} if self.rule else {"thresholds": thresholds.model_dump()}),
            **decided,
            "times": times,
            "images_per_s": plan.images / times["inference"] if plan.images else None,
        }
        facts |= self._of_inference(inferred, times["inference"]) | {"products": self._products(ledger, catalog)}
        facts["embeddings_of"] = embeddings_of(config, self.before)
        facts["embeddings"] = write_embeddings(run, ledger, catalog, self.meta, config.score)
        facts |= self._report(ledger, facts)
        facts["exported"] = write_export(run, ledger, catalog, config.score.export, folder)
        if self.said is not None:
            warn_of_strangers(self.said, ledger.one("select count(*) from corrections semi join rows on item_id = id"))
        ledger.close()
        self.lease.check()
        self._publish(facts)

    def _infer(self, ledger: Ledger, num_images: int) -> "Inferred":
        from retailray.scoring.inference import infer

        inferred = infer(self.config, self.meta, self.run, ledger.todo(PIECE_ROWS), num_images)
        ledger.add_fresh(map(read_part, inferred.parts))
        return inferred

    def _decide(self, ledger: Ledger) -> tuple[Thresholds, dict[str, object]]:
        """Join results and catalog and decide on every row: as a class, else as an ancestor of it where there is a
        taxonomy; returns thresholds and what ``run.json`` tells."""
        if self.said is not None:
            ledger.add_corrections(self.said)
        promise = make_promise(self.config.score, self.validation)
        thresholds = promise.thresholds(self.meta.thresholds.abstain) if promise else self.meta.thresholds
        ledger.resolve_results(thresholds)
        told: dict[str, object] = {"promise": promise.summary() if promise else None, "taxonomy": None}
        if self.taxonomy is None:
            return thresholds, told
        levels = accept_ancestors(ledger, self.config, self.meta, self.taxonomy, thresholds, self.validation)
        events.emit("taxonomy", **{name: value for name, value in levels.items() if name != "promises"})
        return thresholds, told | {"taxonomy": levels}

    def _products(self, ledger: Ledger, catalog: StagedCatalog) -> dict[str, object] | None:
        """Write ``products/``, where the catalog has products; returns what ``run.json`` tells."""
        if catalog.product_column is None:
            storage.remove_folder(self.run.path(PRODUCTS))
            return None
        return self._answers_of_products(ledger, catalog)

    def _answers_of_products(self, ledger: Ledger, catalog: StagedCatalog) -> dict[str, object]:
        section, meta = self.config.score, self.meta
        choice = choose_for(self.validation, meta.labels)
        promise = make_product_promise(section, self.validation, meta.labels, choice.combination)
        thresholds = promise.thresholds(meta.thresholds.abstain) if promise else meta.thresholds
        rules = ProductRules(meta, choice.combination, thresholds)
        counts = write_products(self.run, ledger, catalog, rules, rows_per_file=section.rows_per_file)
        told = {"combination": choice.summary(), "promise": promise.summary() if promise else None}
        events.emit("products", combination=choice.combination.told(), **counts)
        return counts | {"thresholds": thresholds.model_dump()} | told

    def _of_inference(self, inferred: "Inferred | None", seconds: float) -> dict[str, object]:
        return {
            "forward_pass": ", ".join(known_agreement(self.run.address).known.values()) if inferred else None,
            "not_deduplicated": inferred.not_deduplicated if inferred else 0,
            "stages": inferred.stages() if inferred else [],
            "cost": _cost(self.config, inferred, seconds),
            **({"int8": self.meta.data["int8"]} if MADE_OF in self.meta.data else {}),
        }

    def _report(self, ledger: Ledger, facts: dict[str, Any]) -> dict[str, object]:
        """Write ``review/`` and ``report.html``; returns what else ``run.json`` tells."""
        config, run, meta = self.config, self.run, self.meta
        held_out = self.validation.of_role(THRESHOLDS) if self.validation else None
        found, summaries = summarize(ledger), references(ledger, self.validation)
        findings = Findings(
            curve=acceptance_curve(held_out) if held_out and len(held_out.scores) else None,
            drift=measure_drift(ledger, summaries),
            changed=changed_labels(ledger, limit=CHANGED),
            queue=make_queue(ledger, outlier_model_of(summaries), limit=config.score.review_rows),
            labels_before=self.before[1]["labels"] if self.before and self.comparable else None,
        )
        write_queue(run, findings.queue, meta)
        write_review_page(run, findings.queue, meta.labels, f"{meta.name}/{meta.version}", config.catalog)
        facts["times"]["in all"] = self.watch.seconds
        write_score_report(run, meta, config, facts | found, findings)
        kept = ("errors_by_code", "labels", "decisions", "label_agreement", "corrected", "outdated")
        return {
            "drift": [dataclasses.asdict(row) for row in findings.drift],
            "labels_changed": findings.changed["count"],
            "review": len(findings.queue),
            **{name: found[name] for name in kept},
        }

    def _publish(self, facts: dict[str, Any]) -> None:
        """Mark the run complete, move the pointer, clear away.

        Raises:
            TooManyRowErrors: too many rows failed; all is written.
            GateFailed: the predictions drifted; all is published.
        """
        config, run, counts = self.config, self.run, facts["counts"]
        rate = counts["failed"] / counts["rows"]
        too_many = rate > config.score.max_error_rate
        pointed = not too_many or config.score.publish_on_errors
        summary = {
            "command": "score",
            "catalog": config.catalog.uri,
            "model_uri": config.model.uri,
            "model_name": self.meta.name,
            "model_version": self.meta.version,
            "scoring_key": self.key,
            **facts,
            "published": pointed,
            "seconds": self.watch.seconds,
        }
        run.publish(summary, pointer=pointed, alone=True, clear=(SCORED, TODO))
        if config.score.keep_runs and pointed:
            try:
                remove_old(config, run)
            except StorageError as error:  # the results are published, and the next run tries again
                note = f"old runs could not be removed, score.keep_runs = {config.score.keep_runs}: {error}"
                events.emit("warning", note=note)
        write_run_index(run)
        self.watch.summary("score", num_images=counts["scored"], **counts, run=run.address)
        if too_many:
            where = "the results are published" if pointed else f"LATEST still names the run before, see {run.address}"
            codes = sorted(facts["errors_by_code"].items(), key=lambda item: -item[1])[:3]
            most = ", ".join(f"{count} {code}" for code, count in codes)
            raise TooManyRowErrors(
                f"{counts['failed']} of {counts['rows']} rows failed ({rate:.1%}), more than score.max_error_rate = "
                f"{config.score.max_error_rate:.1%}: {most}; {where}, the reasons are in {run.path('errors')}"
            )
        _gate(config, facts["drift"], run)


class _NumbersRun(_ScoringRun):
    """The same of a model that predicts numbers: nothing is accepted or waits for people."""

    def _decide(self, ledger: Ledger) -> tuple[Thresholds, dict[str, object]]:
        ledger.resolve_results(self.meta.thresholds)
        return self.meta.thresholds, {}

    def _answers_of_products(self, ledger: Ledger, catalog: StagedCatalog) -> dict[str, object]:
        section = self.config.score
        rule = NumberRule.of(self.config.model.uri, self.meta, level=section.level, by_product=True)
        counts = write_numbers(self.run, ledger, catalog, self.meta, rule, rows_per_file=section.rows_per_file)
        events.emit("products", **counts)
        return counts

    def _report(self, ledger: Ledger, facts: dict[str, Any]) -> dict[str, object]:
        """Write ``report.html``; returns what else ``run.json`` tells."""
        assert self.rule
        drift = measure_drift(ledger, references(ledger, self.validation), numbers=True)
        facts["times"]["in all"] = self.watch.seconds
        found = write_numbers_report(self.run, self.meta, self.config, facts | {"drift": drift}, ledger, self.rule)
        return {"drift": [dataclasses.asdict(row) for row in drift], **found}


def _is_comparable(before: dict[str, Any], meta: BundleMeta) -> bool:
    """Whether the predictions of a run are of the same kind: of labels, or of numbers cut into the same intervals."""
    digest = before.get("values", {}).get("intervals")
    return digest == (meta.intervals.digest if meta.intervals is not None else None)


def _gate(config: ScoreConfig, drift: list[dict[str, Any]], run: RunDirectory) -> None:
    limit = config.score.max_drift
    far = [
        f"{row.what} compared with the {row.reference}: {row.psi:.3f} (up to {row.expected_psi:.3f} by chance)"
        for row in (Drift(**fields) for fields in drift)
        if limit and row.psi_above_noise > limit and (row.gates or config.score.gate_validation_labels)
    ]
    if far:
        raise GateFailed(
            f"population stability index over score.max_drift = {limit:g}: {'; '.join(far)}; the results are "
            f"published, see {run.path('report.html')}"
        )


def _cost(config: ScoreConfig, inferred: "Inferred | None", seconds: float) -> dict[str, float] | None:
    """What the cluster cost while it was held, by the prices of the config; None without prices or without Ray."""
    rates = config.score.price_per_cpu_hour, config.score.price_per_gpu_hour
    if inferred is None or not any(rates):
        return None
    total = seconds / 3600 * (inferred.num_cpus * rates[0] + inferred.num_gpus * rates[1])
    return {
        "total": total,
        "per_million_images": total / inferred.num_images * 1e6,
        "cpus": inferred.num_cpus,
        "gpus": inferred.num_gpus,
    }
