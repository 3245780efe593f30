"""The plots of the reports. One style: few lines, direct labels, one accent colour; values where one points at them."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from retailray.models.thresholds import AcceptanceCurve
from retailray.reports.charts import ACCENT, GREY, SECOND, SOFT, Chart, short, styled

MAX_BARS = 30
METRICS = {"top1": "accuracy (top-1)", "mae": "mean absolute error", "loss": "loss (cross-entropy)"}  # of an epoch
MAX_DOTS = 1_000  # of a scatter plot
TOLD_POINTS = 60  # of a long curve
MAX_CONFUSION = 100  # labels of a confusion matrix


@styled
def label_bars(counts: Mapping[str, int], unit: str) -> Chart:
    """Rows a label, largest first; the middle is left out where there are more than :data:`MAX_BARS`."""
    items = sorted(counts.items(), key=lambda item: -item[1])
    if len(items) > MAX_BARS:
        left_out = len(items) - MAX_BARS
        half = MAX_BARS // 2
        items = [*items[:half], (f"… {left_out} more …", 0), *items[-half:]]
    chart = Chart(1, width=6.4, height=max(1.6, 0.22 * len(items) + 0.6))
    (axes,) = chart.axes
    names, values = [short(name) for name, _ in items], [value for _, value in items]
    bars = axes.barh(range(len(items)), values, color=ACCENT, height=0.7)
    axes.bar_label(bars, labels=[str(value) if value else "" for value in values], padding=3, fontsize=8, color=SOFT)
    for bar, (name, value) in zip(bars, items, strict=True):
        chart.tell(bar, f"{name}: {value} {unit}")
    axes.set_yticks(range(len(items)), names)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(unit)
    axes.margins(y=0.01)
    return chart


@styled
def size_distributions(width: np.ndarray, height: np.ndarray) -> Chart:
    """Width, height and aspect ratio of images [px]."""
    chart = Chart(3, width=9.6, height=2.4)
    for ax, values, title in zip(
        chart.axes, (width, height, width / height), ("width [px]", "height [px]", "width / height"), strict=True
    ):
        # one shape is drawn in a third of the time
        counts, edges, _ = ax.hist(values, bins=30, color=ACCENT, histtype="stepfilled")
        for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
            chart.tell_area(ax, (low, 0), (high - low, np.max(counts)), f"{low:.4g} to {high:.4g}: {count:.0f} images")
        ax.axvline(float(np.median(values)), color=SECOND, linewidth=1)
        ax.set_title(f"{title}: median {np.median(values):.4g}")
        ax.set_ylabel("images")
    return chart


@styled
def curves(history: Sequence[Mapping[str, Any]], best_epoch: int) -> Chart:
    """Accuracy (of numbers the mean absolute error) and loss by epoch, the best epoch and the beginnings of phases
    marked."""
    chart = Chart(2, width=9.6, height=3.0)
    epochs = [row["epoch"] for row in history]
    begins = [row["epoch"] for before, row in itertools.pairwise(history) if row["phase"] != before["phase"]]
    for ax, metric in zip(chart.axes, ("mae" if "train_mae" in history[0] else "top1", "loss"), strict=True):
        for split, colour in (("train", GREY), ("validation", ACCENT)):
            values = [row[f"{split}_{metric}"] for row in history]
            ax.plot(epochs, values, color=colour, marker="o", markersize=3, label=split)
            told = [f"epoch {epoch}, {split}: {value:.4f}" for epoch, value in zip(epochs, values, strict=True)]
            chart.tell_points(ax, epochs, values, told)
        for number, epoch in enumerate(begins):
            ax.axvline(epoch - 0.5, color=GREY, linewidth=1, linestyle=":", label=None if number else "next phase")
        ax.axvline(best_epoch, color=SECOND, linewidth=1, linestyle="--", label=f"best epoch ({best_epoch})")
        ax.set_title(METRICS[metric])
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend(frameon=False, fontsize=8)
    return chart


@styled
def training_signals(history: Sequence[Mapping[str, Any]]) -> Chart:
    """Learning rate, norm of the gradients, and the share of training in which batches were waited for, by epoch."""
    chart = Chart(3, width=9.6, height=2.2)
    epochs = [row["epoch"] for row in history]
    waited = [100 * row["data_wait_seconds"] / max(row["train_seconds"], 1e-9) for row in history]
    for ax, values, title in zip(
        chart.axes,
        ([row["lr"] for row in history], [row["grad_norm"] for row in history], waited),
        ("learning rate, highest", "norm of the gradients", "waiting for data [%]"),
        strict=True,
    ):
        ax.plot(epochs, values, color=ACCENT, marker="o", markersize=3)
        told = [f"epoch {epoch}: {value:.4g}" for epoch, value in zip(epochs, values, strict=True)]
        chart.tell_points(ax, epochs, values, told)
        ax.set_ylim(0, max([1e-9, *filter(math.isfinite, values)]) * 1.1)  # gradients can overflow
        ax.set_title(title)
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return chart


@styled
def trends(panels: Mapping[str, Sequence[tuple[str, float]]]) -> Chart:
    """Figures by run, the newest last; a panel each. ``panels``: (run id, value) by title."""
    chart = Chart(len(panels), width=3.2 * len(panels), height=1.9)
    for axes, (title, values) in zip(chart.axes, panels.items(), strict=True):
        places, heights = list(range(len(values))), [value for _, value in values]
        axes.plot(places, heights, color=ACCENT, marker="o", markersize=3)
        chart.tell_points(axes, places, heights, [f"{run_id}: {value:.6g}" for run_id, value in values])
        axes.set_xticks([])
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=all(isinstance(value, int) for value in heights)))
        axes.margins(y=0.15)
        axes.set_title(title)
    return chart


@styled
def confusion(matrix: np.ndarray, labels: Sequence[str]) -> Chart:
    """Rows are the truth, normalised to 1; columns the prediction. Numbers only where they can be read."""
    size = len(labels)
    side = min(12.5, max(3.6, 0.16 * size + 2.4))
    chart = Chart(1, width=side + 0.8, height=side)
    (axes,) = chart.axes
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="BuGn", vmin=0, vmax=1)
    font = 8 if size <= 20 else max(5, 8 - 0.05 * size)
    axes.set_xticks(range(size), [short(label) for label in labels], rotation=90, fontsize=font)
    axes.set_yticks(range(size), [short(label) for label in labels], fontsize=font)
    axes.grid(visible=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("truth")
    for row, column in zip(*np.nonzero(matrix), strict=True):
        if size <= 15:
            # not the page's ink, which is light on a dark page
            colour = "white" if shares[row, column] > 0.5 else "black"
            text = str(matrix[row, column])
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
        told = f"{labels[row]}, predicted {labels[column]}: {matrix[row, column]} ({shares[row, column]:.0%})"
        chart.tell_area(axes, (column - 0.5, row - 0.5), (1, 1), told)
    chart.figure.colorbar(image, ax=axes, shrink=0.4, pad=0.01, label="share of the true class")
    return chart


@styled
def reliability(confidences: Mapping[str, np.ndarray], correct: np.ndarray, *, bins: int = 10) -> Chart:
    """Accuracy by confidence, a panel each; on the diagonal the model knows what it knows."""
    chart = Chart(len(confidences), width=3.4 * len(confidences), height=3.2)
    edges = np.linspace(0, 1, bins + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    for axes, (title, confidence) in zip(chart.axes, confidences.items(), strict=True):
        which = np.clip(np.digitize(confidence, edges) - 1, 0, bins - 1)
        means = [correct[which == index].mean() if (which == index).any() else np.nan for index in range(bins)]
        bars = axes.bar(centres, means, width=1 / bins * 0.9, color=ACCENT)
        for bar, low, high, mean, count in zip(
            bars, edges[:-1], edges[1:], means, np.bincount(which, minlength=bins), strict=True
        ):
            chart.tell(bar, f"confidence {low:.1f} to {high:.1f}: {mean:.1%} of {count} right")
        axes.plot([0, 1], [0, 1], color=SECOND, linewidth=1, linestyle="--")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_title(title)
        axes.set_xlabel("confidence")
        axes.set_ylabel("accuracy")
    return chart


@styled
def similarities(values: np.ndarray) -> Chart:
    """How alike rows are to their nearest neighbour: cosines, float ``(N,)``."""
    chart = Chart(1, width=6.4, height=2.6)
    (axes,) = chart.axes
    counts, edges = np.histogram(values, bins=40)
    bars = axes.bar((edges[:-1] + edges[1:]) / 2, counts, width=0.9 * (edges[1] - edges[0]), color=ACCENT)
    for bar, low, high, count in zip(bars, edges[:-1], edges[1:], counts, strict=True):
        chart.tell(bar, f"similarity {low:.2f} to {high:.2f}: {count}")
    axes.set_xlabel("similarity of the nearest neighbour")
    axes.set_ylabel("rows")
    return chart


def score_histogram(counts: np.ndarray, thresholds: Mapping[str, float]) -> Chart:
    """How confident the predictions are, with the decision thresholds."""
    chart = Chart(1, width=6.4, height=2.6)
    (axes,) = chart.axes
    edges = np.linspace(0, 1, len(counts) + 1)
    bars = axes.bar((edges[:-1] + edges[1:]) / 2, counts, width=0.9 / len(counts), color=ACCENT)
    for bar, low, high, count in zip(bars, edges[:-1], edges[1:], counts, strict=True):
        chart.tell(bar, f"confidence {low:.2f} to {high:.2f}: {count} images")
    for name, value in thresholds.items():
        axes.axvline(value, color=SECOND, linewidth=1, linestyle="--")
        axes.annotate(
            f" {name} {value:g}",
            (value, 1),
            xycoords=("data", "axes fraction"),
            fontsize=8,
            color=SECOND,
            va="top",
        )
    axes.set_xlabel("pred_score")
    axes.set_ylabel("images")
    return chart


@styled
def value_histogram(counts: np.ndarray, edges: np.ndarray, what: str) -> Chart:
    """Predicted numbers: images ``(K,)`` between edges ``(K + 1,)``."""
    chart = Chart(1, width=6.4, height=2.6)
    (axes,) = chart.axes
    bars = axes.bar((edges[:-1] + edges[1:]) / 2, counts, width=0.9 * np.diff(edges), color=ACCENT)
    for bar, low, high, count in zip(bars, edges[:-1], edges[1:], counts, strict=True):
        chart.tell(bar, f"{low:.4g} to {high:.4g}: {count} images")
    axes.set_xlabel(f"predicted {short(what)}")
    axes.set_ylabel("images")
    return chart


@styled
def acceptance(curve: AcceptanceCurve, target: float | None) -> Chart:
    """How right what is accepted is, against how much of it is accepted, with a 95 % band."""
    chart = Chart(1, width=6.4, height=2.8)
    (axes,) = chart.axes
    axes.fill_between(100 * curve.share, 100 * curve.low, 100 * curve.high, color=ACCENT, alpha=0.2, linewidth=0)
    axes.plot(100 * curve.share, 100 * curve.precision, color=ACCENT)
    shown = np.unique(np.linspace(0, len(curve.share) - 1, TOLD_POINTS).astype(int))
    told = [
        f"accepting {curve.share[at]:.0%}: precision {curve.precision[at]:.1%} "
        f"({curve.low[at]:.1%} to {curve.high[at]:.1%}), from a confidence of {curve.confidence[at]:.2f}"
        for at in shown
    ]
    chart.tell_points(axes, 100 * curve.share[shown], 100 * curve.precision[shown], told)
    if target:
        axes.axhline(100 * target, color=SECOND, linewidth=1, linestyle="--")
    axes.set_xlim(0, 100)
    axes.set_xlabel("accepted automatically [% of validation rows]")
    axes.set_ylabel("precision [%]")
    return chart


@styled
def predicted_numbers(truth: np.ndarray, predicted: np.ndarray, what: str) -> Chart:
    """Predicted beside true values, both ``(N,)``, with the line on which they are equal; of many a sample."""
    chart = Chart(1, width=4.6, height=4.2)
    (axes,) = chart.axes
    shown = np.random.default_rng(0).permutation(len(truth))[:MAX_DOTS]
    ends = [float(min(truth.min(), predicted.min())), float(max(truth.max(), predicted.max()))]
    axes.plot(ends, ends, color=GREY, linewidth=1)
    axes.scatter(truth[shown], predicted[shown], s=9, color=ACCENT, alpha=0.45, linewidths=0)
    axes.set_xlabel(f"true {short(what)}")
    axes.set_ylabel(f"predicted {short(what)}")
    return chart


@styled
def measured_bars(  # many because a bar has a value, an interval and a name
    names: Sequence[str],
    values: Sequence[float],
    intervals: Sequence[tuple[float, float] | None],
    *,
    unit: str,
    chosen: str,
) -> Chart:
    """A measure of several methods with 95 % intervals, the best first; the chosen one in the accent colour."""
    chart = Chart(1, width=6.4, height=max(1.6, 0.24 * len(names) + 0.6))
    (axes,) = chart.axes
    colours = [ACCENT if name == chosen else GREY for name in names]
    bars = axes.barh(range(len(names)), values, color=colours, height=0.7)
    for at, (bar, name, value, bounds) in enumerate(zip(bars, names, values, intervals, strict=True)):
        told = f"{name}: {value:.4f}"
        if bounds:
            axes.plot(bounds, [at, at], color=SOFT, linewidth=1)
            told += f" (95 %: {bounds[0]:.4f} to {bounds[1]:.4f})"
        axes.annotate(f"{value:.3f}", (max(bounds or (value,)), at), xytext=(4, 0), textcoords="offset points",
                      va="center", fontsize=8, color=SOFT)  # fmt: skip
        chart.tell(bar, told)
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(unit)
    axes.margins(x=0.12, y=0.01)
    return chart


@styled
def forecast(  # many because a forecast has bounds
    past: Sequence[str], sold: np.ndarray, dates: Sequence[str], expected: np.ndarray, low: np.ndarray, high: np.ndarray
) -> Chart:
    """Sales of the last periods, and those that are expected with their interval."""
    chart = Chart(1, width=4.6, height=2.2)
    (axes,) = chart.axes
    at, next_at = np.arange(len(past)), len(past) + np.arange(len(dates))
    axes.plot(at, sold, color=GREY, linewidth=1.5)
    chart.tell_points(
        axes, at, np.nan_to_num(sold), [f"{day}: {value:.0f}" for day, value in zip(past, sold, strict=True)]
    )
    if np.isfinite(low).all():
        axes.fill_between(next_at, low, high, color=ACCENT, alpha=0.2, linewidth=0)
    axes.plot(next_at, expected, color=ACCENT, marker="o", markersize=3)
    told = [
        f"{day}: {value:.1f} ({a:.1f} to {b:.1f})" for day, value, a, b in zip(dates, expected, low, high, strict=True)
    ]
    chart.tell_points(axes, next_at, expected, told)
    names = [*past, *dates]
    ticks = sorted({0, max(0, len(past) - 1), len(names) - 1})
    axes.set_xticks(ticks, [names[at] if at < max(1, len(past)) else "" for at in ticks])
    axes.set_ylim(bottom=0)
    axes.set_ylabel("units")
    return chart
