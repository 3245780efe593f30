"""The report of a study: who wins and how sure that is, every model's curves, mistakes, and the catalog itself."""

import io
import json
import posixpath
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from retailray import storage
from retailray.config import StudyConfig
from retailray.data.access import access_of
from retailray.data.catalog import Catalog
from retailray.data.decoding import CODE, PIXELS, DecodeSpec, decode_rows, pixels_to_numpy, transport_table
from retailray.data.images import limits_of, to_jpeg
from retailray.data.scaling import Scaling
from retailray.data.transforms import draw_seed, make_augment
from retailray.models.metrics import confused_pairs, confusion
from retailray.reports import plots as shared_plots
from retailray.reports.charts import Chart
from retailray.reports.page import data_uri, picture_facts, render, thumbnails
from retailray.runs import RunDirectory, latest_run
from retailray.studies import plots
from retailray.studies.fits import DivergedFit, Fit
from retailray.studies.statistics import Comparison

AUGMENTED, VIEWS = 6, 4  # pictures that are shown augmented, and how often each
PAIRS, PICTURES_A_PAIR = 6, 3
MAX_PAIRS = 45  # of models


def write_study_report(
    run: RunDirectory,
    config: StudyConfig,
    every: tuple[Sequence[Fit], Sequence[DivergedFit]],
    predictions: pd.DataFrame,
    compared: Comparison,
    train: Catalog,
) -> None:
    """Write ``report.html`` into the run directory. ``every``: the fits that are compared, and those that diverged;
    ``train``: the training rows."""
    fits, diverged = every
    best = next(iter(compared.accuracies))
    of_best = predictions[predictions.model == best]
    bars = plots.accuracy_bars(compared.accuracies, winner=compared.winner, baseline=compared.baseline)
    page = render(
        "study.html.j2",
        title="Study",
        subtitle=f"{config.catalog.uri} · {config.transform.image_size} px · augment {config.transform.augment} · "
        f"{config.train.epochs} epochs",
        run_id=run.run_id,
        compared=compared,
        best=best,
        num_seeds=config.study.seeds,
        num_tested=predictions.row_id.nunique(),
        models=[_model(name, fits, compared) for name in compared.accuracies],
        diverged=diverged,
        pairs=compared.pairs[:MAX_PAIRS],
        accuracy=bars,
        confusion=_confusion(of_best),
        confused=[_pair(of_best, *pair, config=config) for pair in _pairs(of_best)],
        augmented=_augmented(config, train),
        **_catalog(run, train),
    )
    run.write("report.html", page)


def _confusion(of_best: pd.DataFrame) -> Chart | None:
    """The confusion matrix of all seeds together; None where it has too many labels to be read."""
    matrix, labels = confusion(of_best.label.to_numpy(object), of_best.pred_label.to_numpy(object))
    if len(labels) > shared_plots.MAX_CONFUSION:
        return None
    return shared_plots.confusion(matrix.toarray(), labels)


def _catalog(run: RunDirectory, train: Catalog) -> dict[str, object]:
    """What the study's check found, and what the training rows are."""
    check = storage.join("check", posixpath.basename(latest_run(run.path("check"))))
    images = pd.read_parquet(io.BytesIO(storage.read_bytes(run.path(check, "images.parquet"))))
    readable = images[images.error_code == ""]
    sizes = plots.picture_sizes(readable.width.to_numpy(float), readable.height.to_numpy(float))
    labels = shared_plots.label_bars(Counter(train.column("label")), "training rows")
    return {
        "check": json.loads(storage.read_bytes(run.path(check, "check.json"))),
        "check_report": f"{check}/report.html",
        "labels_plot": labels,
        "sizes": sizes,
    }


def _model(name: str, fits: Sequence[Fit], compared: Comparison) -> dict[str, Any]:
    """What the report says of one model."""
    mine = [fit for fit in fits if fit.model.name == name]
    verdicts = Counter(fit.verdict.name for fit in mine)
    usual = verdicts.most_common(1)[0][0]
    curves = plots.learning_curves([fit.history for fit in mine], [fit.best["epoch"] for fit in mine])
    accuracy = compared.accuracies[name]
    return {
        "name": name,
        "arch": mine[0].model.model.arch,
        "accuracy": accuracy,
        "spread": float(np.std(accuracy.by_seed, ddof=1)) if len(mine) > 1 else None,
        "verdicts": ", ".join(f"{verdict} ({count} of {len(mine)})" for verdict, count in verdicts.most_common()),
        "text": next(fit.verdict.text for fit in mine if fit.verdict.name == usual),
        "seed": next(fit.seed for fit in mine if fit.verdict.name == usual),
        "parameters": mine[0].num_parameters,
        "megabytes": mine[0].num_bytes / 1e6,
        "seconds": float(np.mean([fit.seconds for fit in mine])),
        "images_per_s": float(np.mean([fit.images_per_s for fit in mine])),
        "curves": curves,
        "signals": shared_plots.training_signals(mine[0].history),
    }


def _pairs(of_best: pd.DataFrame) -> list[tuple[str, str, int]]:
    return confused_pairs(of_best.label.to_numpy(object), of_best.pred_label.to_numpy(object), limit=PAIRS)


def _pair(of_best: pd.DataFrame, truth: str, guess: str, count: int, *, config: StudyConfig) -> dict[str, object]:
    """Pictures of one kind of mistake, those first that most seeds make."""
    mistakes = of_best[(of_best.label == truth) & (of_best.pred_label == guess)]
    by_row = mistakes.groupby(["row_id", "uri", "id"], as_index=False).seed.count().sort_values("seed", ascending=False)
    shown = by_row.head(PICTURES_A_PAIR)
    pictures = thumbnails(shown.uri.tolist(), config.catalog)
    captions = [
        f"{row.seed} of {config.study.seeds} seeds · {posixpath.basename(row.id)}" for row in shown.itertuples()
    ]
    members = [
        {
            "picture": one,
            "caption": caption,
            "facts": picture_facts(id=row.id, label=truth, predicted=guess, seeds=row.seed, address=row.uri),
        }
        for one, caption, row in zip(pictures, captions, shown.itertuples(), strict=True)
    ]
    return {"truth": truth, "guess": guess, "count": count, "members": members}


def _augmented(config: StudyConfig, train: Catalog) -> list[dict[str, object]]:
    """Training pictures beside augmented views of them, as the models see them; none without augmentation."""
    transform = config.transform
    augment = make_augment(transform.augment, transform.image_size, random_erasing_prob=transform.random_erasing_prob)
    if not augment:
        return []
    import torch  # not before it is known to be wanted

    chosen = train.take(np.linspace(0, len(train) - 1, min(AUGMENTED, len(train))).astype(int))
    size = transform.image_size if transform.augment == "none" else transform.resolved_resize_size
    spec = DecodeSpec(Scaling(size, size), limits_of(config.catalog))
    decoded = decode_rows(transport_table(chosen), spec=spec, access=access_of(config.catalog))
    pixels = pixels_to_numpy(decoded.column(PIXELS), size)
    margin = (size - transform.image_size) // 2
    shown: list[dict[str, object]] = []
    for number, code in enumerate(decoded.column(CODE).to_pylist()):
        if code:
            continue
        views = augment(
            torch.from_numpy(pixels[[number] * VIEWS].copy()), [draw_seed("study", number, v) for v in range(VIEWS)]
        )
        plain = pixels[number][:, margin : margin + transform.image_size, margin : margin + transform.image_size]
        shown.append({"plain": data_uri(to_jpeg(plain)), "views": [data_uri(to_jpeg(view)) for view in views.numpy()]})
    return shown
