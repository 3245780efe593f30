"""The plots of the reports, as PNG bytes. One style: few lines, direct labels, one accent colour."""

import functools
import io
import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import matplotlib  # and no pyplot: how figures are shown is the program's that imports us, a notebook's say
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from retailray.models.thresholds import AcceptanceCurve

ACCENT, SECOND, GREY = "#0f766e", "#d97706", "#94a3b8"
_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#cbd5e1",
    "axes.labelcolor": "#334155",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": "#475569",
    "ytick.color": "#475569",
    "axes.grid": True,
    "grid.color": "#eef2f6",
    "axes.axisbelow": True,
    "figure.constrained_layout.use": True,
}
MAX_BARS = 30
MAX_CONFUSION = 100  # labels of a confusion matrix


P = ParamSpec("P")
R = TypeVar("R")


def styled(plot: Callable[P, R]) -> Callable[P, R]:
    """Our style for one plot, and the caller's (a notebook's, say) left as it is."""

    @functools.wraps(plot)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        with matplotlib.rc_context(_STYLE):
            return plot(*args, **kwargs)

    return wrapper


def new_figure(columns: int, *, width: float, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), dpi=144)
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():  # names in scripts that matplotlib's font lacks are boxes, and no news
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


@styled
def label_bars(counts: Mapping[str, int], unit: str) -> bytes:
    """Rows a label, largest first; the middle is left out where there are more than :data:`MAX_BARS`."""
    items = sorted(counts.items(), key=lambda item: -item[1])
    if len(items) > MAX_BARS:
        left_out = len(items) - MAX_BARS
        half = MAX_BARS // 2
        items = [*items[:half], (f"… {left_out} more …", 0), *items[-half:]]
    figure, (axes,) = new_figure(1, width=6.4, height=max(1.6, 0.22 * len(items) + 0.6))
    names, values = [short(name) for name, _ in items], [value for _, value in items]
    bars = axes.barh(range(len(items)), values, color=ACCENT, height=0.7)
    axes.bar_label(
        bars, labels=[str(value) if value else "" for value in values], padding=3, fontsize=8, color="#475569"
    )
    axes.set_yticks(range(len(items)), names)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(unit)
    axes.margins(y=0.01)
    return png(figure)


@styled
def size_distributions(width: np.ndarray, height: np.ndarray) -> bytes:
    """Width, height and aspect ratio of images [px]."""
    figure, axes = new_figure(3, width=9.6, height=2.4)
    for ax, values, title in zip(
        axes, (width, height, width / height), ("width [px]", "height [px]", "width / height"), strict=True
    ):
        ax.hist(values, bins=30, color=ACCENT, histtype="stepfilled")  # one shape, drawn in a third of the time
        ax.axvline(float(np.median(values)), color=SECOND, linewidth=1)
        ax.set_title(f"{title}: median {np.median(values):.4g}")
        ax.set_ylabel("images")
    return png(figure)


@styled
def curves(history: Sequence[Mapping[str, Any]], best_epoch: int) -> bytes:
    """Accuracy and loss by epoch, the best epoch and the beginnings of phases marked."""
    figure, axes = new_figure(2, width=9.6, height=3.0)
    epochs = [row["epoch"] for row in history]
    begins = [row["epoch"] for before, row in itertools.pairwise(history) if row["phase"] != before["phase"]]
    for ax, metric, title in zip(axes, ("top1", "loss"), ("accuracy (top-1)", "loss (cross-entropy)"), strict=True):
        for split, colour in (("train", GREY), ("validation", ACCENT)):
            values = [row[f"{split}_{metric}"] for row in history]
            ax.plot(epochs, values, color=colour, marker="o", markersize=3, label=split)
        for number, epoch in enumerate(begins):
            ax.axvline(epoch - 0.5, color=GREY, linewidth=1, linestyle=":", label=None if number else "next phase")
        ax.axvline(best_epoch, color=SECOND, linewidth=1, linestyle="--", label=f"best epoch ({best_epoch})")
        ax.set_title(title)
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend(frameon=False, fontsize=8)
    return png(figure)


@styled
def training_signals(history: Sequence[Mapping[str, Any]]) -> bytes:
    """Learning rate, norm of the gradients, and the share of training in which batches were waited for, by epoch."""
    figure, axes = new_figure(3, width=9.6, height=2.2)
    epochs = [row["epoch"] for row in history]
    waited = [100 * row["data_wait_seconds"] / max(row["train_seconds"], 1e-9) for row in history]
    for ax, values, title in zip(
        axes,
        ([row["lr"] for row in history], [row["grad_norm"] for row in history], waited),
        ("learning rate, highest", "norm of the gradients", "waiting for data [%]"),
        strict=True,
    ):
        ax.plot(epochs, values, color=ACCENT, marker="o", markersize=3)
        ax.set_ylim(0, max([1e-9, *filter(math.isfinite, values)]) * 1.1)  # gradients can overflow
        ax.set_title(title)
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return png(figure)


@styled
def confusion(matrix: np.ndarray, labels: Sequence[str]) -> bytes:
    """Rows are the truth, normalised to 1; columns the prediction. Numbers only where they can be read."""
    size = len(labels)
    side = min(12.5, max(3.6, 0.16 * size + 2.4))
    figure, (axes,) = new_figure(1, width=side + 0.8, height=side)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="BuGn", vmin=0, vmax=1)
    font = 8 if size <= 20 else max(5, 8 - 0.05 * size)
    axes.set_xticks(range(size), [short(label) for label in labels], rotation=90, fontsize=font)
    axes.set_yticks(range(size), [short(label) for label in labels], fontsize=font)
    axes.grid(visible=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("truth")
    if size <= 15:
        for row in range(size):
            for column in range(size):
                if matrix[row, column]:
                    colour = "white" if shares[row, column] > 0.5 else "#334155"
                    axes.text(
                        column,
                        row,
                        str(matrix[row, column]),
                        ha="center",
                        va="center",
                        fontsize=8,
                        color=colour,
                    )
    figure.colorbar(image, ax=axes, shrink=0.4, pad=0.01, label="share of the true class")
    return png(figure)


@styled
def reliability(confidences: Mapping[str, np.ndarray], correct: np.ndarray, *, bins: int = 10) -> bytes:
    """Accuracy by confidence, a panel each; on the diagonal the model knows what it knows."""
    figure, panels = new_figure(len(confidences), width=3.4 * len(confidences), height=3.2)
    edges = np.linspace(0, 1, bins + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    for axes, (title, confidence) in zip(panels, confidences.items(), strict=True):
        which = np.clip(np.digitize(confidence, edges) - 1, 0, bins - 1)
        means = [correct[which == index].mean() if (which == index).any() else np.nan for index in range(bins)]
        axes.bar(centres, means, width=1 / bins * 0.9, color=ACCENT)
        axes.plot([0, 1], [0, 1], color=SECOND, linewidth=1, linestyle="--")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_title(title)
        axes.set_xlabel("confidence")
        axes.set_ylabel("accuracy")
    return png(figure)


@styled
def score_histogram(counts: np.ndarray, thresholds: Mapping[str, float]) -> bytes:
    """How confident the predictions are, with the decision thresholds."""
    figure, (axes,) = new_figure(1, width=6.4, height=2.6)
    edges = np.linspace(0, 1, len(counts) + 1)
    axes.bar((edges[:-1] + edges[1:]) / 2, counts, width=0.9 / len(counts), color=ACCENT)
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
    return png(figure)


@styled
def acceptance(curve: AcceptanceCurve, target: float | None) -> bytes:
    """How right what is accepted is, against how much of it is accepted, with a 95 % band."""
    figure, (axes,) = new_figure(1, width=6.4, height=2.8)
    axes.fill_between(100 * curve.share, 100 * curve.low, 100 * curve.high, color=ACCENT, alpha=0.2, linewidth=0)
    axes.plot(100 * curve.share, 100 * curve.precision, color=ACCENT)
    if target:
        axes.axhline(100 * target, color=SECOND, linewidth=1, linestyle="--")
    axes.set_xlim(0, 100)
    axes.set_xlabel("accepted automatically [% of validation rows]")
    axes.set_ylabel("precision [%]")
    return png(figure)


def short(text: str, length: int = 26) -> str:
    # matplotlib reads $ as mathematics
    return (text if len(text) <= length else text[: length - 1] + "…").replace("$", r"\$")
