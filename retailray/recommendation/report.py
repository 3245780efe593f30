"""The report of ``recommend``: how good each method was, and what some shoppers are recommended."""

from typing import Any

from retailray.config.command_configs import RecommendConfig
from retailray.reports import plots
from retailray.reports.page import render
from retailray.runs import RunDirectory

FAMILIES = ("popularity", "own_purchases", "neighbours")  # of several variants, of which the best is shown
GROUPS = {
    "all": "all products",
    "new": "products that the shopper had never bought",
    "unsold": "products that nobody had bought",
}


def write_recommend_report(
    run: RunDirectory, config: RecommendConfig, facts: dict[str, Any], examples: list[dict[str, Any]]
) -> None:
    """Write ``report.html`` into the run directory.

    Args:
        facts: what ``run.json`` says. examples: of some shoppers, ``name``, ``bought`` and ``recommended``.
    """
    group = "all" if facts["repeat"] else "new"
    shown = _shown(facts["measured"], group)
    tables = {}
    for name, title in GROUPS.items():
        rows = [{"method": method, **facts["measured"][method][name], **_whole(facts["measured"][method])}
                for method in shown if facts["measured"][method][name]["shoppers"]]  # fmt: skip
        if name == "unsold":  # the others know nothing of them, and are as good as chance
            rows = [row for row in rows if row["method"] == "content" or row["method"].startswith("popularity")]
        if rows:
            tables[title] = sorted(rows, key=lambda row: -row["ndcg"])
    rows = tables.get(GROUPS[group], [])
    chart = None
    if rows:
        chart = plots.measured_bars(
            [row["method"].replace("_", " ") for row in rows],
            [row["ndcg"] for row in rows],
            [row["ndcg_interval"] for row in rows],
            unit=f"NDCG@{config.recommend.top_k}, {GROUPS[group]}",
            chosen=facts["method"].replace("_", " "),
        )
    page = render(
        "recommend.html.j2",
        title="Recommendations",
        subtitle=config.interactions.uri,
        run_id=run.run_id,
        facts=facts,
        k=config.recommend.top_k,
        chart=chart,
        tables=tables,
        answers=_answers(facts),
        examples=examples,
    )
    run.write("report.html", page)


def _shown(measured: dict[str, dict[str, Any]], group: str) -> list[str]:
    """The best variant of each family, and all other methods."""

    def value(name: str) -> float:
        return (measured[name][group]["ndcg"] or 0) + (measured[name][group]["recall"] or 0)

    shown = [name for name in measured if not name.startswith(tuple(f"{family}_" for family in FAMILIES))]
    for family in FAMILIES:
        if names := [name for name in measured if name.startswith(f"{family}_")]:
            shown.append(max(names, key=value))
    return shown


def _whole(measured: dict[str, Any]) -> dict[str, Any]:
    return {"coverage": measured["coverage"], "novelty": measured["novelty_bits"]}


def _answers(facts: dict[str, Any]) -> list[tuple[bool, str]]:
    """What the figures say, in sentences; whether each is good news."""
    if facts["note"]:
        return [(False, f"{facts['note']}. Products are ranked by {facts['method'].replace('_', ' ')}.")]
    mean, bounds = facts["gain"]
    simplest = "how often the shopper bought each product" if facts["repeat"] else "popularity"
    method = facts["method"].replace("_", " ")
    if bounds and bounds[0] > 0:
        return [(True, f"Products are ranked by {method}. It is better than {simplest} (the simplest method): the mean "
                 f"of recall and NDCG is {mean:.3f} higher (95 %: {bounds[0]:.3f} to {bounds[1]:.3f}).")]  # fmt: skip
    return [(False, f"Nothing beats the simplest method, {simplest}, for certain. Products are ranked by {method}.")]
