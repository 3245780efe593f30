"""What is worth keeping: the activations of frozen blocks, or decoded pixels, by predicted size and time."""

import dataclasses
from typing import Any

from retailray.config import TrainConfig
from retailray.training.measure import Measurement
from retailray.training.recipe import Stage

DEFAULT_VIEWS = 8  # more bring little: benchmarks/quality.py has the table
READ_BYTES_S = 1e9  # from a memory-mapped file, most of it in the page cache


@dataclasses.dataclass(frozen=True)
class CachePlan:
    """``cuts``: numbers of blocks whose output is kept; ``pixels``: decoded images are kept. ``why`` is for people."""

    views: int
    cuts: tuple[int, ...]
    pixels: bool
    num_bytes: int
    why: str

    def reads(self, stage: Stage) -> int | None:
        """The blocks that a stage's inputs went through; 0: kept pixels; None: nothing is kept for it."""
        kept = [cut for cut in self.cuts if cut <= stage.reads]
        return max(kept) if kept else 0 if self.pixels else None


def plan_cache(
    config: TrainConfig,
    stages: list[Stage],
    measured: Measurement,
    *,
    num_train: int,
    num_plain: int,
    budget: int,
    source_px: int,
) -> CachePlan:
    """Decide under ``budget`` [bytes]: ``num_train`` rows in every view, ``num_plain`` as validation sees them."""
    train = config.train
    if train.cache == "off":
        return CachePlan(1, (), False, 0, "train.cache is off")
    augmented = config.transform.augment != "none" or config.transform.erasing > 0
    wanted = sorted({stage.reads for stage in stages if stage.reads})
    notes: list[str] = []
    if wanted and train.cutmix:
        notes.append("train.cutmix mixes pixels, so frozen blocks run every time")
        wanted = []
    epochs = {cut: sum(stage.epochs for stage in stages if stage.reads == cut) for cut in wanted}
    views = (train.views or min(DEFAULT_VIEWS, max(epochs.values(), default=1))) if augmented else 1

    def row_bytes(cut: int) -> int:
        size = 2 if measured.precision == "bfloat16" else 4
        for side in measured.shapes[cut]:
            size *= side
        return size

    def total(cuts: list[int], views: int) -> int:
        return sum(row_bytes(cut) for cut in cuts) * (num_train * views + num_plain)

    for cut in list(wanted):
        direct = epochs[cut] * (num_train + num_plain) * measured.seconds[cut]
        passes = (num_train * min(views, epochs[cut]) + num_plain) * measured.seconds[cut]
        reading = epochs[cut] * num_train * row_bytes(cut) / READ_BYTES_S
        if passes + reading > direct:
            notes.append(
                f"{cut} frozen blocks take {direct:.0f} s in all, keeping their output {passes + reading:.0f} s"
            )
            wanted.remove(cut)
    while wanted and views > 1 and train.views is None and total(wanted, views) > budget:
        views //= 2
    while wanted and total(wanted, views) > budget:
        largest = max(wanted, key=row_bytes)
        notes.append(f"{largest} frozen blocks: {_gb(total([largest], views))} are over the budget of {_gb(budget)}")
        wanted.remove(largest)
    used = total(wanted, views)
    uncovered = [stage for stage in stages if not any(cut <= stage.reads for cut in wanted)]
    pixel_bytes = 3 * (num_train * source_px**2 + num_plain * config.transform.image_size**2)
    pixels = bool(uncovered) and used + pixel_bytes <= budget
    if wanted:
        saved = sum(epochs[cut] * (num_train + num_plain) * measured.seconds[cut] for cut in wanted)
        once = (num_train * views + num_plain) * measured.seconds[max(wanted)]
        notes.append(
            f"kept after {_list(wanted)} frozen blocks, {views} view(s), {_gb(used)}: "
            f"one pass of {once:.0f} s instead of {saved:.0f} s over all epochs"
        )
    if uncovered:
        notes.append(
            f"decoded pixels are kept: {_gb(pixel_bytes)}"
            if pixels
            else f"decoded pixels are streamed every epoch: {_gb(pixel_bytes)} are over the budget of {_gb(budget)}"
        )
    return CachePlan(views, tuple(wanted), pixels, used + (pixel_bytes if pixels else 0), "; ".join(notes))


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.2f} GB"


def _list(values: list[int]) -> str:
    return " and ".join(map(str, values))


def describe(plan: CachePlan) -> dict[str, Any]:
    """The fields of the event that says what was decided."""
    return {
        "activations_after_blocks": list(plan.cuts),
        "views": plan.views,
        "pixels": plan.pixels,
        "gb": round(plan.num_bytes / 1e9, 3),
        "why": plan.why,
    }
