"""The report of a training run: curves, epochs, what it was trained on."""

from collections.abc import Mapping, Sequence

from retailray.config import TrainConfig
from retailray.models.meta import BundleMeta
from retailray.reports import plots
from retailray.reports.page import error_summary, render
from retailray.runs import RunDirectory
from retailray.training.best_epoch import Epoch
from retailray.training.fit import FitResult
from retailray.training.verdict import Verdict


def write_training_report(
    run: RunDirectory,
    meta: BundleMeta,
    config: TrainConfig,
    history: Sequence[Epoch],
    verdict: Verdict,
    result: FitResult,
    folds: Mapping[str, object] | None,
) -> None:
    """Write ``curves.png`` and ``report.html`` into the run directory."""
    best = history[result.best_epoch - 1]
    curves = plots.curves(history, best["epoch"])
    run.write("curves.png", curves.png())
    page = render(
        "training.html.j2",
        title=f"Training {config.model.arch}",
        subtitle=f"{config.catalog.uri} · weights {config.model.weights} · {_phases(history)} · "
        f"{config.transform.image_size} px · augment {config.transform.augment}",
        run_id=run.run_id,
        best=best,
        verdict=verdict,
        history=history,
        folds=folds,
        num_labels=len(meta.labels),
        numbers=meta.intervals is not None,
        used_for=meta.data["validation_rows_used_for"],
        curves=curves,
        signals=plots.training_signals(history),
        labels=plots.label_bars(meta.data["labels"], "training rows") if meta.intervals is None else None,
        errors=error_summary(result.errors_by_code, {}),
    )
    run.write("report.html", page)


def _phases(history: Sequence[Epoch]) -> str:
    """``2 epochs of head, 8 of last2``."""
    depths: dict[int, list[str]] = {}
    for row in history:
        depths.setdefault(row["phase"], []).append(row["trainable"])
    return "epochs: " + ", ".join(f"{len(names)} of {names[0]}" for names in depths.values())
