"""The plots of a search: ``trials`` has one row per trial, ``epochs`` one per epoch of a trial."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.ticker import MaxNLocator

from retailray.reports.charts import ACCENT, EDGE, GREY, SECOND, SOFT, Chart, short, styled

SCALE = LinearSegmentedColormap.from_list("good", ["#dbe3ea", "#94b8b5", ACCENT])
NUM_BINS = 6  # of a learning rate in the heat map


@styled
def parallel_coordinates(trials: pd.DataFrame, settings: list[str], metric: str) -> Chart:
    """One line per trial through its settings to its result; the better, the darker."""
    columns = [*settings, metric]
    positions, ticks = zip(*(_place(trials[name]) for name in columns), strict=True)
    chart = Chart(1, width=max(6.4, 1.5 * len(columns)), height=3.6)
    (axes,) = chart.axes
    values = trials[metric].to_numpy(float)
    order = np.argsort(values)
    heights = np.column_stack(positions)
    lines = [np.column_stack([np.arange(len(columns)), heights[row]]) for row in order]
    norm = Normalize(np.nanmin(values), np.nanmax(values) + 1e-9)
    axes.add_collection(LineCollection(lines, array=values[order], cmap=SCALE, norm=norm, linewidths=1.2, alpha=0.85))
    axes.add_collection(LineCollection(lines[-1:], colors=SECOND, linewidths=2))
    for number, marks in enumerate(ticks):
        axes.axvline(number, color=EDGE, linewidth=1, zorder=0)
        for height, text in marks:
            axes.text(number - 0.03, height, short(text, 14), ha="right", va="center", fontsize=7, color=SOFT)
    ends = [f"trial {name}: {metric} {value:.4f}" for name, value in zip(trials.trial, values, strict=True)]
    chart.tell_points(axes, [len(columns) - 1] * len(ends), heights[:, -1], ends)
    axes.set_xlim(-0.5, len(columns) - 0.8)
    axes.set_ylim(-0.05, 1.05)
    axes.set_xticks(range(len(columns)), [name.split(".")[-1] for name in columns])
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    return chart


def _place(column: pd.Series) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Heights between 0 and 1 and what to write at some of them: names evenly, numbers by size or by magnitude."""
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(float, na_value=np.nan)
    if column.dtype == bool or np.isnan(numbers).all() or (np.isnan(numbers) & column.notna().to_numpy()).any():
        names = sorted(column.astype(str).unique(), key=_depth_order)
        levels = {name: (index + 0.5) / len(names) for index, name in enumerate(names)}
        marks = [(level, name) for name, level in levels.items()]
        return np.array([levels[name] for name in column.astype(str)]), marks
    known = numbers[~np.isnan(numbers)]
    by_magnitude = known.min() > 0 and known.max() / known.min() > 20
    scaled = np.log10(numbers) if by_magnitude else numbers
    low, high = np.nanmin(scaled), np.nanmax(scaled)
    heights = (scaled - low) / (high - low) if high > low else np.full(len(scaled), 0.5)
    ends = np.linspace(low, high, 4) if high > low else np.array([low])
    marks = [
        ((end - low) / (high - low) if high > low else 0.5, f"{10**end if by_magnitude else end:.3g}") for end in ends
    ]
    return np.where(np.isnan(heights), -0.04, heights), marks  # what means nothing for a trial lies at the bottom


def _depth_order(name: str) -> tuple[int, object]:
    """head, last1, last2, ..., last10, all; anything else by name."""
    known = {"head": 0, "all": 10**6}
    if name in known:
        return known[name], name
    digits = name.removeprefix("last")
    return (int(digits), name) if name.startswith("last") and digits.isdigit() else (10**7, name)


@styled
def depth_by_rate(trials: pd.DataFrame, depth: str, rate: str, metric: str) -> Chart:
    """The best result by freeze depth and learning rate, and from how many trials."""
    trials = trials[trials[rate].notna()]
    depths = sorted(trials[depth].astype(str).unique(), key=_depth_order)
    rates = trials[rate].to_numpy(float)
    edges = np.geomspace(rates.min(), rates.max() * 1.000001, NUM_BINS + 1)
    column = np.clip(np.digitize(rates, edges) - 1, 0, NUM_BINS - 1)
    best = np.full((len(depths), NUM_BINS), np.nan)
    counts = np.zeros(best.shape, int)
    for name, index, value in zip(trials[depth].astype(str), column, trials[metric].to_numpy(float), strict=True):
        cell = depths.index(name), index
        counts[cell] += 1
        best[cell] = np.nanmax([best[cell], value])
    chart = Chart(1, width=6.4, height=0.5 * len(depths) + 1.2)
    (axes,) = chart.axes
    image = axes.imshow(best, cmap=SCALE, aspect="auto")
    middle = (np.nanmin(best) + np.nanmax(best)) / 2
    for row, index in zip(*np.nonzero(counts), strict=True):
        colour = "white" if best[row, index] > middle else "black"
        text = f"{best[row, index]:.3f}\n{counts[row, index]} trial{'s' if counts[row, index] > 1 else ''}"
        axes.text(index, row, text, ha="center", va="center", fontsize=7, color=colour)
        told = f"{depths[row]}, {rate} from {edges[index]:.2g} to {edges[index + 1]:.2g}: {text.replace(chr(10), ', ')}"
        chart.tell_area(axes, (index - 0.5, row - 0.5), (1, 1), told)
    axes.set_yticks(range(len(depths)), depths)
    axes.set_xticks(np.arange(NUM_BINS + 1) - 0.5, [f"{edge:.2g}" for edge in edges])
    axes.set_xlabel(rate)
    axes.grid(visible=False)
    chart.figure.colorbar(image, ax=axes, pad=0.01, label=f"best {metric.removeprefix('validation_')}")
    return chart


@styled
def learning_curves(epochs: pd.DataFrame, trials: pd.DataFrame, metric: str) -> Chart:
    """Every trial's metric by epoch; those that were stopped end in a dot, the best one is marked."""
    chart = Chart(1, width=6.4, height=3.4)
    (axes,) = chart.axes
    status = dict(zip(trials.trial, trials.status, strict=True))
    best = trials.trial.iloc[0]
    for trial, rows in epochs[epochs.trial.isin(status)].groupby("trial"):
        stopped = status[trial] != "finished"
        colour, width, order = (GREY, 0.8, 1) if stopped else (ACCENT, 1, 2)
        if trial == best:
            colour, width, order = SECOND, 2, 3
        axes.plot(rows.epoch, rows[metric], color=colour, linewidth=width, alpha=0.9, zorder=order)
        if stopped or len(rows) == 1:
            axes.plot(rows.epoch.iloc[-1], rows[metric].iloc[-1], ".", color=colour, markersize=4, zorder=order)
        last = rows.iloc[-1]
        told = f"trial {trial}, {status[trial]} after {last.epoch} epochs: {last[metric]:.4f}"
        chart.tell_points(axes, [last.epoch], [last[metric]], [told])
    marks = ((SECOND, 2, f"best (trial {best})"), (ACCENT, 1, "ran to its end"), (GREY, 0.8, "stopped early"))
    for colour, width, name in marks:
        axes.plot([], [], color=colour, linewidth=width, label=name)
    axes.legend(frameon=False, fontsize=8, loc="lower right" if not metric.endswith("loss") else "upper right")
    axes.set_xlabel("epoch")
    axes.set_ylabel(metric)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return chart


@styled
def accuracy_by_cost(trials: pd.DataFrame, metric: str) -> Chart:
    """What trials reached in how many seconds of training; nothing reached more in less along the line."""
    chart = Chart(1, width=6.4, height=3.2)
    (axes,) = chart.axes
    for status, colour in (("stopped", GREY), ("finished", ACCENT)):
        part = trials[trials.status == status]
        axes.plot(part.seconds, part[metric], "o", color=colour, markersize=4, alpha=0.8, label=status)
        told = [f"trial {row.trial}: {getattr(row, metric):.4f} in {row.seconds:.1f} s" for row in part.itertuples()]
        chart.tell_points(axes, part.seconds, part[metric], told)
    _frontier(
        axes, trials.seconds.to_numpy(float), trials[metric].to_numpy(float), more_is_better=metric[-4:] != "loss"
    )
    if trials.seconds.max() > 20 * max(trials.seconds.min(), 1e-3):
        axes.set_xscale("log")
    axes.set_xlabel("seconds of training")
    axes.set_ylabel(metric)
    axes.legend(frameon=False, fontsize=8)
    return chart


@styled
def backbones_by_speed(
    trials: pd.DataFrame, metric: str, arch: str, backbones: Mapping[str, Mapping[str, float]]
) -> Chart:
    """The best result of every backbone against its speed; the larger the dot, the larger the model."""
    chart = Chart(1, width=6.4, height=3.4)
    (axes,) = chart.axes
    better = max if not metric.endswith("loss") else min
    points = [
        (name, one["images_per_s"], better(trials.loc[trials[arch] == name, metric]), one["parameters"])
        for name, one in backbones.items()
        if (trials[arch] == name).any()
    ]
    speeds, values = np.array([point[1] for point in points]), np.array([point[2] for point in points], float)
    largest = max(point[3] for point in points)
    for name, speed, value, parameters in points:
        dot = axes.scatter(speed, value, s=40 + 400 * parameters / largest, color=ACCENT, alpha=0.7, linewidths=0)
        chart.tell(dot, f"{name}: best {metric} {value:.4f}, {speed:.1f} images/s, {parameters / 1e6:.1f} M parameters")
        text = f"{short(name)}, {parameters / 1e6:.1f} M"
        axes.annotate(text, (speed, value), xytext=(0, 14), textcoords="offset points", ha="center", fontsize=8)
    _frontier(axes, -speeds, values, more_is_better=better is max, flip=True)
    axes.margins(0.25)
    axes.set_xlabel("images/s of the whole model, where the search ran")
    axes.set_ylabel(f"best {metric}")
    return chart


def _frontier(axes: Axes, cost: np.ndarray, value: np.ndarray, *, more_is_better: bool, flip: bool = False) -> None:
    """A step line through what nothing cheaper beats."""
    order = np.lexsort((-value if more_is_better else value, cost))
    kept: list[int] = []
    for index in order:
        if not kept or (value[index] > value[kept[-1]] if more_is_better else value[index] < value[kept[-1]]):
            kept.append(index)
    line = cost[kept] * (-1 if flip else 1)
    axes.step(line, value[kept], where="post", color=SECOND, linewidth=1, linestyle="--", zorder=0)
