"""``promote`` and ``rollback``: which version ``@champion`` names, and why."""

from typing import Any

import numpy as np

from retailray import events, storage
from retailray.config import PromoteConfig, RollbackConfig
from retailray.data.catalog import Catalog
from retailray.data.numeric_labels import spelled
from retailray.data.splits import rows_of_split
from retailray.errors import CatalogError, ConfigError, GateFailed, ModelError
from retailray.evaluation.compare import measure, predict_both, products_of_both
from retailray.evaluation.number_comparison import are_of_numbers, measure_numbers, predict_both_numbers
from retailray.evaluation.trained_rows import CHALLENGER, CHAMPION, Side, side_of, trained_rows, warn_of_trained_rows
from retailray.models.meta import load_meta
from retailray.models.registry import history, move, parse_alias, resolve
from retailray.reports.run_index import publish
from retailray.runs import RunDirectory
from retailray.tracking import check_tracking, move_alias


def promote(config: PromoteConfig) -> dict[str, object]:
    """Let ``@champion`` name a registered version, if it is not worse than the champion on labelled rows. Where it is
    the champion, nothing is done.

    The decision and its numbers are in ``decision.json`` of a run directory, which the alias's history names.

    Raises:
        GateFailed: the gate said no; nothing moved.
        RetailrayError: see :mod:`retailray.errors`.
    """
    watch = events.Stopwatch()
    check_tracking(config.track)
    address = resolve(config.model.uri)
    folder, version = storage.parent(address), address.rsplit("/", 1)[-1]
    challenger = _registered(address, version)
    moves = history(folder, CHAMPION)
    now = moves[-1].version if moves else None
    if now == version:  # a move to itself would leave nothing to go back to
        move_alias(config.track, folder.rsplit("/", 1)[-1], CHAMPION, version)
        watch.summary("promote", num_images=0, champion=address, before=version, note="it is the champion already")
        return {"version": version, "champion": version, "passed": True, "problems": []}
    sides = {CHALLENGER: challenger} | ({CHAMPION: side_of(storage.join(folder, now))} if now else {})
    measure_of = "mae" if are_of_numbers(sides) else "top1"
    decision, run, num_rows = _decide(config, sides, now, watch)
    if decision["problems"]:
        raise GateFailed(
            f"{folder}@champion stays {now or 'unset'}: {'; '.join(decision['problems'])}; "
            f"see {run.path('decision.json')}"
        )
    made = move(
        folder,
        CHAMPION,
        version,
        reason=config.promote.reason or "promoted",
        evidence={"run": run.address, measure_of: decision[measure_of], "labelled": decision["labelled"]},
        seen=moves[-1].number if moves else 0,
    )
    move_alias(config.track, folder.rsplit("/", 1)[-1], CHAMPION, version)
    watch.summary(
        "promote",
        num_images=2 * num_rows,
        champion=f"{folder}/{version}",
        before=made.previous,
        **{measure_of: decision[measure_of][CHALLENGER]},
        difference=decision[measure_of]["difference"],
    )
    return decision


def _registered(address: str, version: str) -> Side:
    """The bundle at an address. Raises ModelError where it is no registered version."""
    side = side_of(address)
    if side.meta.version != version:
        raise ModelError(
            f"model.uri = {address}: not a registered version; `train` registers one as <registry>/<name>/<version> "
            "with model.registry and model.name"
        )
    return side


def _decide(
    config: PromoteConfig, sides: dict[str, Side], now: str | None, watch: events.Stopwatch
) -> tuple[dict[str, Any], RunDirectory, int]:
    """Measure both on rows that neither was trained on, and write ``decision.json``.

    ``now``: the champion's version.

    Returns:
        The decision, its run, and how many rows both could predict.

    Raises:
        CatalogError: there are no such rows.
    """
    of_numbers = sides[CHALLENGER].meta.intervals is not None
    if of_numbers and (config.promote.min_top1 or config.promote.level != "image"):
        raise ConfigError(["promote.min_top1 and promote.level are of labels, and these models predict numbers"])
    catalog = rows_of_split(config.catalog, config.split, config.promote.split, key="promote.split")
    if config.promote.level == "product" and not catalog.has_products:
        raise ConfigError(["promote.level = product: the catalog has no products; catalog.group names their column"])
    catalog, num_trained = _without_trained_rows(config, catalog, sides)
    run, challenger = RunDirectory(config), sides[CHALLENGER]
    told = {"run": run.address, "rows": len(catalog), "model": challenger.uri, "champion": now}
    events.emit("start", command="promote", **told)
    # without a champion it is compared with itself, which leaves the demands that do not ask for one
    against = sides | {CHAMPION: sides.get(CHAMPION, challenger)}
    if of_numbers:
        found, num_rows = _measured_numbers(config, catalog, against, run)
        problems = number_problems(config, found)
    else:
        found, num_rows = _measured(config, catalog, against, run)
        problems = gate_problems(config, found["levels"][config.promote.level])
    decision = {
        "version": challenger.meta.version,
        "champion": now,
        "passed": not problems,
        "problems": problems,
        "trained_on": num_trained,
        "level": config.promote.level,
        **found,
    }
    run.write_json("decision.json", decision)
    publish(run, {"command": "promote", **decision, "seconds": watch.seconds})
    return decision, run, num_rows


def _measured_numbers(
    config: PromoteConfig, catalog: Catalog, sides: dict[str, Side], run: RunDirectory
) -> tuple[dict[str, Any], int]:
    """``labelled`` and ``mae``, and how many rows both could predict."""
    section = config.promote
    both = predict_both_numbers(config.catalog, catalog, sides, config.cluster, run, batch_size=section.batch_size)
    return measure_numbers(both, bootstrap=section.bootstrap), len(both)


def _measured(
    config: PromoteConfig, catalog: Catalog, against: dict[str, Side], run: RunDirectory
) -> tuple[dict[str, Any], int]:
    """``labelled`` and ``top1`` of the level that decides and of both ``levels``, and how many rows both predict."""
    both = predict_both(config.catalog, catalog, against, config.cluster, run, batch_size=config.promote.batch_size)
    found = measure(both, bootstrap=config.promote.bootstrap)
    levels = {"image": found}
    if catalog.has_products:
        levels["product"] = measure(products_of_both(both, against), bootstrap=config.promote.bootstrap)
    told = {name: {"labelled": one["labelled"], "top1": one.get("top1")} for name, one in levels.items()}
    return told[config.promote.level] | {"levels": told}, len(both)


def _without_trained_rows(config: PromoteConfig, catalog: Catalog, sides: dict[str, Side]) -> tuple[Catalog, int]:
    """Return the rows that neither model was trained on, and how many others there were.

    Held-out products may share a picture with trained ones; such rows are left out.

    Raises:
        CatalogError: the rows that were asked for are training rows, or none is left.
    """
    known = np.zeros(len(catalog), bool)
    for name, side in sides.items():
        trained = trained_rows(catalog, side)
        known |= trained
        if trained.any() and (config.promote.split in ("all", "train") or trained.all()):
            raise CatalogError(
                f"{config.catalog.uri}: the {name} ({side.meta.version}) was trained on {trained.sum()} of the "
                f"{len(catalog)} rows that would decide (promote.split = {config.promote.split}), "
                f"{catalog.column('id')[trained][0]} is one; decide on rows that neither model has seen: promote.split "
                "test with the split settings of training, or catalog.test_uri"
            )
        if side.trained_on is None:
            warn_of_trained_rows(catalog, {name: side})
    if known.any():
        note = "pictures that a model was trained on are left out of the decision"
        events.emit("warning", rows=len(catalog), trained_on=int(known.sum()), note=note)
    return catalog.select(~known), int(known.sum())


def gate_problems(config: PromoteConfig, found: dict[str, Any]) -> list[str]:
    """Why not; empty where nothing speaks against it."""
    gate, problems = config.promote, []
    if found["labelled"] < gate.min_rows:
        what = "products" if gate.level == "product" else "rows"
        problems.append(f"{found['labelled']} labelled {what}, promote.min_rows asks for {gate.min_rows}")
    if not found["labelled"]:
        return problems
    top1 = found["top1"]
    if top1[CHALLENGER] < gate.min_top1:
        problems.append(f"top-1 {top1[CHALLENGER]:.4f} is below promote.min_top1 = {gate.min_top1:g}")
    low, high = top1["interval"]
    if low < -gate.max_loss:
        problems.append(
            f"top-1 {top1[CHALLENGER]:.4f} against {top1[CHAMPION]:.4f}: the difference is {low:+.4f} to {high:+.4f} "
            f"(95 %), and promote.max_loss allows {-gate.max_loss:+g}"
        )
    return problems


def number_problems(config: PromoteConfig, found: dict[str, Any]) -> list[str]:
    """The same of bundles that predict numbers: ``promote.max_loss`` is a share of the champion's error."""
    gate, problems = config.promote, []
    if found["labelled"] < gate.min_rows:
        problems.append(f"{found['labelled']} rows with a number, promote.min_rows asks for {gate.min_rows}")
    if not found["labelled"]:
        return problems
    mae = found["mae"]
    if mae["interval"][1] > gate.max_loss * mae[CHAMPION]:
        low, high = mae["interval"]
        problems.append(
            f"mean absolute error {spelled(mae[CHALLENGER])} against {spelled(mae[CHAMPION])}: the difference is "
            f"{spelled(low)} to {spelled(high)} (95 %), and promote.max_loss allows {gate.max_loss:.1%} of the "
            "champion's error"
        )
    return problems


def rollback(config: RollbackConfig) -> str:
    """Let ``@champion`` name the version that it named before. Returns its address.

    Raises:
        ModelError: there is no version before.
        ConfigError: ``model.uri`` is no alias.
    """
    watch = events.Stopwatch()
    check_tracking(config.track)
    parsed = parse_alias(config.model.uri)
    if parsed is None:
        raise ConfigError([f"model.uri = {config.model.uri}: rollback moves an alias: <registry>/<name>@champion"])
    folder, alias = parsed
    moves = history(folder, alias)
    if not moves or moves[-1].previous is None:
        there = moves[-1].version if moves else "nothing"
        raise ModelError(f"{config.model.uri} names {there} and has no previous version")
    now, back = moves[-1], moves[-1].previous
    load_meta(storage.join(folder, back))  # it must still be there
    reason = config.rollback.reason or f"rolled back from {now.version}"
    move(folder, alias, back, reason=reason, evidence={"undone": now.number}, seen=now.number)
    move_alias(config.track, folder.rsplit("/", 1)[-1], alias, back)
    watch.summary("rollback", num_images=0, champion=f"{folder}/{back}", before=now.version)
    return storage.join(folder, back)
