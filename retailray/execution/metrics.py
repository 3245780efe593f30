"""What Prometheus sees of a run: through Ray, on every machine's metrics port, as ``ray_<name>``.

docs/grafana.json is a dashboard of these. They are set in one process of a run (ProgressActor, or the driver for
trials), so a late scrape loses nothing.
"""

import functools
import time
from typing import Any

WINDOW_S = 5.0  # over which rates and shares are taken
PREDICT_STAGE = "predict"

# name → (kind, what it says, its tags)
METRICS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "retailray_done_total": ("counter", "images, views or epochs that are done", ("unit",)),
    "retailray_per_second": ("gauge", "images, views or epochs a second, over the last seconds", ("unit",)),
    "retailray_errors_total": ("counter", "images that became error rows, by code", ("code",)),
    "retailray_stage_seconds_total": ("counter", "seconds that all processes of a stage worked", ("stage",)),
    "retailray_predictor_wait_share": ("gauge", "share of their time that predictors waited for images", ()),
    "retailray_queued_images": ("gauge", "images that are decoded and not yet predicted", ()),
    "retailray_epoch": ("gauge", "the last epoch that ended", ()),
    "retailray_loss": ("gauge", "mean loss of the last epoch", ("split",)),
    "retailray_top1": ("gauge", "validation top-1 of the last epoch", ()),
    "retailray_mae": ("gauge", "validation mean absolute error of the last epoch, of regression", ()),
    "retailray_trials": ("gauge", "trials of the search", ("status",)),
}


@functools.cache
def metric(name: str) -> Any:
    """The counter or gauge of this process (ray.util.metrics); Ray must be running."""
    from ray.util.metrics import Counter, Gauge

    kind, description, tags = METRICS[name]
    return {"counter": Counter, "gauge": Gauge}[kind](name, description=description, tag_keys=tags)


class Meter:
    """Turns what a run reports into metrics. ``num_predictors``: of its pool; 0 where it has none."""

    def __init__(self, unit: str, num_predictors: int) -> None:
        self.unit, self.num_predictors = unit, num_predictors
        self._decoded = self._done = 0
        self._predicting = 0.0
        self._window = (time.monotonic(), 0, 0.0)  # when it began, and what was done and spent by then

    def step(self, count: int) -> None:
        self._done += count
        if count:
            metric("retailray_done_total").inc(count, {"unit": self.unit})

    def decoded(self, count: int) -> None:
        self._decoded += count

    def errors(self, by_code: dict[str, int]) -> None:
        for code, count in by_code.items():
            metric("retailray_errors_total").inc(count, {"code": code})

    def spend(self, seconds: dict[str, float]) -> None:
        for stage, more in seconds.items():
            if more > 0:
                metric("retailray_stage_seconds_total").inc(more, {"stage": stage})
        self._predicting += seconds.get(PREDICT_STAGE, 0.0)

    def event(self, name: str, fields: dict[str, object]) -> None:
        if name != "epoch":
            return
        metric("retailray_epoch").set(fields["epoch"])
        for name in ("top1", "mae"):
            if (value := fields.get(f"validation_{name}")) is not None:
                metric(f"retailray_{name}").set(value)
        for split in ("train", "validation"):
            metric("retailray_loss").set(fields[f"{split}_loss"], {"split": split})

    def tick(self) -> None:
        """Update the rates; called once in a while."""
        now = time.monotonic()
        began, done, predicting = self._window
        passed = now - began
        if passed < WINDOW_S:
            return
        self._window = (now, self._done, self._predicting)
        metric("retailray_per_second").set((self._done - done) / passed, {"unit": self.unit})
        if self.num_predictors:
            busy = (self._predicting - predicting) / passed / self.num_predictors
            metric("retailray_predictor_wait_share").set(min(1.0, max(0.0, 1.0 - busy)))
        if self._decoded:
            metric("retailray_queued_images").set(max(0, self._decoded - self._done))
