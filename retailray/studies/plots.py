"""The plots of a study, in the style of all reports."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator, PercentFormatter

from retailray.reports.charts import ACCENT, GREY, INK, SECOND, Chart, short, styled
from retailray.reports.plots import METRICS
from retailray.studies.statistics import Accuracy
from retailray.training.best_epoch import Epoch

MAX_MARKS = 1000  # that a page draws one by one


@styled
def accuracy_bars(accuracies: Mapping[str, Accuracy], *, winner: str | None, baseline: float) -> Chart:
    """Test accuracy of every model with its 95 % interval; a dot for every seed."""
    chart = Chart(1, width=7.2, height=0.42 * len(accuracies) + 1.0)
    (axes,) = chart.axes
    axes.axvline(baseline, color=INK, linewidth=1, linestyle=":")
    for at, (name, one) in enumerate(accuracies.items()):
        (bar,) = axes.barh(at, one.top1, height=0.6, color=ACCENT if name == winner else GREY)
        chart.tell(bar, f"{name}: {one.top1:.1%} ({one.interval[0]:.1%} to {one.interval[1]:.1%})")
        axes.plot(one.interval, [at, at], color=INK, linewidth=1.5)
        axes.plot(one.by_seed, [at] * len(one.by_seed), "o", color=SECOND, markersize=3.5)
        told = [f"{name}, seed {number}: {value:.1%}" for number, value in enumerate(one.by_seed, 1)]
        chart.tell_points(axes, one.by_seed, [at] * len(one.by_seed), told)
    axes.set_yticks(range(len(accuracies)), [short(name) for name in accuracies])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("top-1 on the test rows")
    return chart


@styled
def learning_curves(histories: Sequence[Sequence[Epoch]], best_epochs: Sequence[int]) -> Chart:
    """Accuracy and loss of one model, training and validation; a line for every seed, a dot where it was kept."""
    chart = Chart(2, width=9.6, height=2.4)
    for axes, metric in zip(chart.axes, ("top1", "loss"), strict=True):
        for number, (history, best) in enumerate(zip(histories, best_epochs, strict=True)):
            epochs = [row["epoch"] for row in history]
            for split, colour in (("train", GREY), ("validation", ACCENT)):
                values = [row[f"{split}_{metric}"] for row in history]  # type: ignore[literal-required]
                axes.plot(epochs, values, color=colour, linewidth=1.2, label=None if number else split)
                name = f"seed {number + 1}, {split}"
                told = [f"{name}, epoch {at}: {value:.4f}" for at, value in zip(epochs, values, strict=True)]
                chart.tell_points(axes, epochs, values, told)
            kept = history[best - 1][f"validation_{metric}"]  # type: ignore[literal-required]
            axes.plot([best], [kept], "o", color=SECOND, markersize=4, label=None if number else "kept epoch")
        axes.set_title(METRICS[metric])
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, fontsize=8)
    return chart


@styled
def picture_sizes(width: np.ndarray, height: np.ndarray) -> Chart:
    """Width against height of the pictures [px], float ``(N,)`` each, and their means."""
    chart = Chart(1, width=4.8, height=3.6)
    (axes,) = chart.axes
    axes.scatter(width, height, s=9, color=ACCENT, alpha=0.4, linewidths=0, rasterized=len(width) > MAX_MARKS)
    axes.axvline(width.mean(), color=SECOND, linewidth=1, linestyle="--")
    axes.axhline(height.mean(), color=SECOND, linewidth=1, linestyle="--")
    axes.set_title(f"means: {width.mean():.0f} x {height.mean():.0f} px")
    axes.set_xlabel("width [px]")
    axes.set_ylabel("height [px]")
    return chart
