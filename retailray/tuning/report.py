"""The report of a search: the best trials, what led to them, and what they cost."""

import dataclasses
from collections.abc import Mapping, Sequence

import pandas as pd

from retailray.config import TuneConfig
from retailray.reports import plots as shared_plots
from retailray.reports.charts import Chart
from retailray.reports.page import render
from retailray.runs import RunDirectory
from retailray.training.best_epoch import Epoch
from retailray.training.verdict import Verdict
from retailray.tuning import plots

SHOWN = 20  # trials in the table of the page; trials.csv has all
DEPTH, RATE, ARCH = "model.trainable", "train.head_lr", "model.arch"


@dataclasses.dataclass(frozen=True)
class Best:
    """The best trial: its epochs, what they say, and what its bundle was measured to reach."""

    history: Sequence[Epoch]
    epoch: int  # that was kept
    verdict: Verdict
    verified: Mapping[str, object]


def write_search_report(
    run: RunDirectory,
    config: TuneConfig,
    trials: pd.DataFrame,
    epochs: Sequence[Mapping[str, object]],
    backbones: Mapping[str, Mapping[str, float]],
    best: Best,
) -> None:
    """Write ``report.html``. ``trials``: one row per trial, best first; ``epochs``: one row per epoch of a trial."""
    metric = f"validation_{config.train.metric}"
    settings = list(config.space)
    usable = trials[trials[metric].notna()]
    page = render(
        "search.html.j2",
        title=f"Search: {len(trials)} trials",
        subtitle=f"{config.catalog.uri} · {config.tune.searcher} draws, {config.tune.scheduler} stops · "
        f"{config.train.epochs} epochs at most",
        run_id=run.run_id,
        metric=metric,
        settings=settings,
        best=usable.iloc[0].to_dict(),
        shown=[_cells(row, settings) for row in trials.head(SHOWN).to_dict("records")],
        num_trials=len(trials),
        counts={str(name): int(count) for name, count in trials.status.value_counts().items()},
        num_epochs=len(epochs),
        seconds=float(trials.seconds.sum()),
        verified=best.verified,
        verdict=best.verdict,
        curves=shared_plots.curves(best.history, best.epoch),
        signals=shared_plots.training_signals(best.history),
        backbones=backbones,
        plots=_plots(usable, pd.DataFrame(epochs), settings, metric, backbones),
    )
    run.write("report.html", page)


def _plots(
    trials: pd.DataFrame,
    epochs: pd.DataFrame,
    settings: list[str],
    metric: str,
    backbones: Mapping[str, Mapping[str, float]],
) -> list[tuple[str, Chart]]:
    """Titles and pictures; those that have something to show."""
    found = [("Settings and results", plots.parallel_coordinates(trials, settings, metric))]
    if DEPTH in settings and RATE in settings and metric != "validation_loss":
        found.append(("Freeze depth and learning rate", plots.depth_by_rate(trials, DEPTH, RATE, metric)))
    if ARCH in settings:
        found.append(("Which backbone", plots.backbones_by_speed(trials, metric, ARCH, backbones)))
    found.append(("Learning curves", plots.learning_curves(epochs, trials, metric)))
    found.append(("What accuracy costs", plots.accuracy_by_cost(trials, metric)))
    return found


def _cells(row: Mapping[str, object], settings: list[str]) -> dict[str, object]:
    """A row of the table with its settings as short text."""
    texts = []
    for name in settings:
        value = row[name]
        texts.append("–" if pd.isna(value) else f"{value:.3g}" if isinstance(value, float) else str(value))
    return {**row, "settings": texts}
