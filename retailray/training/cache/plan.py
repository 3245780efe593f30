"""Decide what is cached: activations of frozen blocks or decoded pixels, by predicted size and time."""

import dataclasses
import itertools
import math

from retailray.config import TrainConfig
from retailray.training.measure import Measurement
from retailray.training.phases import ResolvedPhase

DEFAULT_VIEWS = 8  # more bring little: benchmarks/quality.py has the table
READ_BYTES_S = 1e9  # from a memory-mapped file, most of it in the page cache
MAX_CUTS = 3  # depths that are cached at once: more save little, and their combinations grow fast


@dataclasses.dataclass(frozen=True)
class CachePlan:
    """What is cached.

    Attributes:
        views: augmented views of every training image.
        cuts: numbers of first blocks whose output is cached, ascending.
        pixels: whether decoded images are cached.
        num_bytes: size of the cache.
        why: the reason, for the ``cache`` event.
    """

    views: int
    cuts: tuple[int, ...]
    pixels: bool
    num_bytes: int
    why: str

    def num_cached_blocks(self, phase: ResolvedPhase) -> int | None:
        """Return how many blocks the cached inputs of a phase went through; 0: pixels; None: nothing is cached."""
        usable = [cut for cut in self.cuts if cut <= phase.num_cached_blocks]
        return max(usable) if usable else 0 if self.pixels else None


@dataclasses.dataclass(frozen=True)
class Rows:
    """``train``: rows that are cached in every view, from pixels with a side of ``source_px``. ``plain``: rows that are
    cached once, as validation sees them."""

    train: int
    plain: int
    source_px: int


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a cache may lie. ``budget``: in bytes. ``num_workers``: that fill it, and that train. ``store_bytes_s``: at
    which the object store takes and gives it; None: it is a folder of the machine."""

    budget: int
    num_workers: int = 1
    store_bytes_s: float | None = None


def plan_cache(
    config: TrainConfig,
    phases: list[ResolvedPhase],
    measured: Measurement,
    *,
    rows: Rows,
    place: Place,
) -> CachePlan:
    """Choose, among the sets of at most :data:`MAX_CUTS` depths that fit the budget, the one with the least predicted
    time."""
    train, budget = config.train, place.budget
    if train.cache == "off":
        return CachePlan(1, (), False, 0, "train.cache is off")
    costs = _Costs(config, phases, measured, rows, place)
    depths = [] if train.cutmix else sorted({phase.num_cached_blocks for phase in phases if phase.num_cached_blocks})
    sets = [chosen for size in range(min(MAX_CUTS, len(depths)) + 1) for chosen in itertools.combinations(depths, size)]
    feasible = [(costs.seconds(cuts), -len(cuts), cuts) for cuts in sets if costs.num_bytes(cuts) <= budget]
    seconds, _, cuts = min(feasible)
    views, used = costs.views(cuts), costs.num_bytes(cuts)
    notes = ["train.cutmix mixes pixels, so frozen blocks run every time"] if train.cutmix else []
    if cuts:
        notes.append(
            f"cached after {' and '.join(map(str, cuts))} frozen blocks, {views} view(s), {_gb(used)}: "
            f"frozen blocks take {seconds:.0f} s in all instead of {costs.seconds(()):.0f} s"
        )
    notes += [costs.why_not(cut, cuts) for cut in depths if cut not in cuts]
    uncovered = [phase for phase in phases if not any(cut <= phase.num_cached_blocks for cut in cuts)]
    pixel_bytes = 3 * (rows.train * rows.source_px**2 + rows.plain * config.transform.image_size**2)
    pixels = bool(uncovered) and used + pixel_bytes <= budget
    if uncovered:
        cached = f"decoded pixels are cached: {_gb(pixel_bytes)}"
        over = f"decoded pixels are streamed every epoch: {_gb(pixel_bytes)} are over the budget of {_gb(budget)}"
        notes.append(cached if pixels else over)
    return CachePlan(views, cuts, pixels, used + (pixel_bytes if pixels else 0), "; ".join(notes))


@dataclasses.dataclass(frozen=True)
class _Costs:
    """Predicted size and time of caching the output of some numbers of frozen blocks (``cuts``, ascending)."""

    config: TrainConfig
    phases: list[ResolvedPhase]
    measured: Measurement
    rows: Rows
    place: Place

    def views(self, cuts: tuple[int, ...]) -> int:
        """Return train.num_views; else at most the epochs that read them, halved until they fit the budget."""
        if self.config.transform.augment == "none" and not self.config.transform.random_erasing_prob:
            return 1
        if self.config.train.num_views:
            return self.config.train.num_views
        epochs = sum(phase.epochs for phase in self.phases if any(cut <= phase.num_cached_blocks for cut in cuts))
        views = min(DEFAULT_VIEWS, max(1, epochs))
        while views > 1 and self._size(cuts, views) > self.place.budget:
            views //= 2
        return views

    def why_not(self, cut: int, cuts: tuple[int, ...]) -> str:
        """Why the output of ``cut`` blocks is not cached beside that of ``cuts``."""
        budget = self.place.budget
        if self.num_bytes((cut,)) > budget:
            return f"{cut} frozen blocks: {_gb(self.num_bytes((cut,)))} are over the budget of {_gb(budget)}"
        if len(cuts) == MAX_CUTS:
            return f"{cut} frozen blocks: {MAX_CUTS} depths are cached at most"
        if self.num_bytes(tuple(sorted((*cuts, cut)))) > budget:
            return f"{cut} frozen blocks do not fit into the budget of {_gb(budget)} beside the others"
        return f"keeping the output of {cut} frozen blocks would save no time"

    def num_bytes(self, cuts: tuple[int, ...]) -> int:
        return self._size(cuts, self.views(cuts))

    def _size(self, cuts: tuple[int, ...], views: int) -> int:
        return sum(self._row_bytes(cut) for cut in cuts) * (self.rows.train * views + self.rows.plain)

    def _row_bytes(self, cut: int) -> int:
        return (2 if self.measured.precision == "bfloat16" else 4) * math.prod(self.measured.shapes[cut])

    def seconds(self, cuts: tuple[int, ...]) -> float:
        """Return seconds in frozen blocks over all epochs: filling, reading back, and blocks that are not cached.

        Workers share the rows of all of these; what lies in an object store goes there once and to every machine.
        """
        rows = self.rows.train + self.rows.plain
        total = (
            self.measured.seconds[max(cuts)] * (self.rows.train * self.views(cuts) + self.rows.plain) if cuts else 0.0
        )
        for phase in self.phases:
            source = max([cut for cut in cuts if cut <= phase.num_cached_blocks], default=0)
            blocks = (self.measured.seconds[phase.num_cached_blocks] if phase.num_cached_blocks else 0.0) - (
                self.measured.seconds[source] if source else 0.0
            )
            reading = self._row_bytes(source) / READ_BYTES_S if source else 0.0
            total += phase.epochs * rows * (max(0.0, blocks) + reading)
        travelling = 2 * self.num_bytes(cuts) / self.place.store_bytes_s if self.place.store_bytes_s else 0.0
        return total / self.place.num_workers + travelling


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.2f} GB"


def describe(plan: CachePlan) -> dict[str, object]:
    """Return the fields of the ``cache`` event."""
    return {
        "activations_after_blocks": list(plan.cuts),
        "views": plan.views,
        "pixels": plan.pixels,
        "gb": round(plan.num_bytes / 1e9, 3),
        "why": plan.why,
    }
