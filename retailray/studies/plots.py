"""The plots of a study, in the style of all reports."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator, PercentFormatter

from retailray.reports.plots import ACCENT, GREY, SECOND, new_figure, png, short, styled
from retailray.studies.statistics import Accuracy
from retailray.training.best_epoch import Epoch


@styled
def accuracy_bars(accuracies: Mapping[str, Accuracy], *, winner: str | None, baseline: float) -> bytes:
    """Test accuracy of every model with its 95 % interval; a dot for every seed."""
    figure, (axes,) = new_figure(1, width=7.2, height=0.42 * len(accuracies) + 1.0)
    axes.axvline(baseline, color="#334155", linewidth=1, linestyle=":")
    for at, (name, one) in enumerate(accuracies.items()):
        axes.barh(at, one.top1, height=0.6, color=ACCENT if name == winner else GREY)
        axes.plot(one.interval, [at, at], color="#334155", linewidth=1.5)
        axes.plot(one.by_seed, [at] * len(one.by_seed), "o", color=SECOND, markersize=3.5)
    axes.set_yticks(range(len(accuracies)), [short(name) for name in accuracies])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("top-1 on the test rows")
    return png(figure)


@styled
def learning_curves(histories: Sequence[Sequence[Epoch]], best_epochs: Sequence[int]) -> bytes:
    """Accuracy and loss of one model, training and validation; a line for every seed, a dot where it was kept."""
    figure, panels = new_figure(2, width=9.6, height=2.4)
    for axes, metric, title in zip(panels, ("top1", "loss"), ("accuracy (top-1)", "loss (cross-entropy)"), strict=True):
        for number, (history, best) in enumerate(zip(histories, best_epochs, strict=True)):
            epochs = [row["epoch"] for row in history]
            for split, colour in (("train", GREY), ("validation", ACCENT)):
                values = [row[f"{split}_{metric}"] for row in history]  # type: ignore[literal-required]
                axes.plot(epochs, values, color=colour, linewidth=1.2, label=None if number else split)
            kept = history[best - 1][f"validation_{metric}"]  # type: ignore[literal-required]
            axes.plot([best], [kept], "o", color=SECOND, markersize=4, label=None if number else "kept epoch")
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, fontsize=8)
    return png(figure)


@styled
def picture_sizes(width: np.ndarray, height: np.ndarray) -> bytes:
    """Width against height of the pictures [px], float ``(N,)`` each, and their means."""
    figure, (axes,) = new_figure(1, width=4.8, height=3.6)
    axes.scatter(width, height, s=9, color=ACCENT, alpha=0.4, linewidths=0)
    axes.axvline(width.mean(), color=SECOND, linewidth=1, linestyle="--")
    axes.axhline(height.mean(), color=SECOND, linewidth=1, linestyle="--")
    axes.set_title(f"means: {width.mean():.0f} x {height.mean():.0f} px")
    axes.set_xlabel("width [px]")
    axes.set_ylabel("height [px]")
    return png(figure)
