"""What the driver knows of every trial: the table of the search, while it grows and when it is done."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from ray import tune
from rich.table import Table

from retailray import progress, storage
from retailray.training.loop import TOUCH_S
from retailray.training.search.shared import Shared
from retailray.training.search.trial import STATE, WORST, effective, score_of

SHOWN = 12  # best trials in the live table


class Ledger(tune.Callback):
    """Hears of every epoch of every trial; keeps the weights of the best ones and removes those of the others."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.rows: dict[str, dict[str, Any]] = {}  # by Tune's name of the trial, in the order of their beginnings
        self.num_epochs = 0
        self.touched_at = time.monotonic()
        self.show: Any = None

    # -- what Tune calls ----------------------------------------------------------------------------------------------

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if trial.trial_id not in self.rows:
            self.rows[trial.trial_id] = {
                "trial": trials.index(trial) + 1,
                "status": "running",
                "drawn": dict(trial.config),
                "history": [],
                "score": WORST,
                "seconds": 0.0,
                "message": "",
            }

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        row = self.rows[trial.trial_id]
        row["drawn"] = dict(trial.config)  # population-based training changes them
        row |= {"score": result["score"], "seconds": result["train_seconds_total"], "key": result["key"]}
        row["finished"] = result["finished"]
        if not row["history"] or row["history"][-1]["epoch"] < result["epoch"]:  # else told again after a failure
            row["history"].append({name: result[name] for name in result if name in HISTORY})
            self.num_epochs += 1
        if self.show:
            self.show()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        row = self.rows[trial.trial_id]
        row["status"] = "finished" if row.get("finished") else "stopped"
        if time.monotonic() - self.touched_at > TOUCH_S:
            self.touched_at = time.monotonic()
            self.shared.touch()
        self._say(row)
        self.prune()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        row = self.rows[trial.trial_id]
        text = (trial.get_error() and str(trial.get_error())) or trial.error_msg or ""
        lines = [line for line in text.strip().splitlines() if line.strip()]
        row |= {"status": "failed", "message": lines[-1].strip() if lines else "no message"}
        self._say(row)

    # -- what we make of it -------------------------------------------------------------------------------------------

    def _say(self, row: dict[str, Any]) -> None:
        progress.emit(
            "trial",
            trial=row["trial"],
            of=self.shared.config.tune.trials if self.shared.config.tune.searcher != "grid" else None,
            status=row["status"],
            **{self.metric: self.value(row)},
            epochs=len(row["history"]),
            seconds=row["seconds"],
            **self.settings(row),
            **({"message": row["message"]} if row["message"] else {}),
        )

    @property
    def metric(self) -> str:
        return f"validation_{self.shared.config.train.metric}"

    def value(self, row: dict[str, Any]) -> float | None:
        """The metric of the best epoch."""
        best = self.best_epoch(row)
        return best[self.metric] if best else None

    def best_epoch(self, row: dict[str, Any]) -> dict[str, Any] | None:
        metric = self.shared.config.train.metric
        usable = [epoch for epoch in row["history"] if score_of(epoch, metric) > WORST]
        return max(usable, key=lambda epoch: (score_of(epoch, metric), -epoch["validation_loss"]), default=None)

    def settings(self, row: dict[str, Any]) -> dict[str, Any]:
        return effective(self.shared.config.trial(row["drawn"]), row["drawn"])

    def ranked(self) -> list[dict[str, Any]]:
        """Trials that measured something, the best one first; of equals that with the lower loss, then the earlier."""
        found = [(row, best) for row in self.rows.values() if (best := self.best_epoch(row))]
        found.sort(key=lambda pair: (-pair[0]["score"], pair[1]["validation_loss"], pair[0]["trial"]))
        return [row for row, _ in found]

    def prune(self) -> None:
        """Keep the weights of ``tune.keep`` trials, and of those that still run."""
        ranked = self.ranked()
        kept = {row["key"] for row in ranked[: self.shared.config.tune.keep]}
        kept |= {row["key"] for row in ranked if row["status"] == "running"}
        for row in ranked:
            if row["key"] not in kept and not row.get("pruned"):
                storage.remove_file(storage.join(self.shared.records, row["key"], STATE))
                row["pruned"] = True

    def table(self) -> Table:
        """The best trials and how many there are of each kind, for a terminal."""
        counts: dict[str, int] = {}
        for row in self.rows.values():
            counts[row["status"]] = counts.get(row["status"], 0) + 1
        names = list(self.shared.config.space)
        said = ", ".join(f"{count} {status}" for status, count in counts.items())
        table = Table(title=f"{said}; {self.num_epochs} epochs", title_justify="left", box=None)
        for name in ("trial", "status", self.metric, "epochs", "seconds", *(name.split(".")[-1] for name in names)):
            table.add_column(name, no_wrap=True)
        for row in self.ranked()[:SHOWN]:
            settings = self.settings(row)
            shown = ["–" if settings[name] is None else _short(settings[name]) for name in names]
            value = f"{self.value(row):.4f}"
            table.add_row(
                str(row["trial"]), row["status"], value, str(len(row["history"])), f"{row['seconds']:.1f}", *shown
            )
        return table

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """A live table on a terminal for the length of the block."""
        with progress.live() as update:
            said = 0.0

            def show() -> None:
                nonlocal said
                if time.monotonic() - said > 0.2:
                    said = time.monotonic()
                    update(self.table())

            self.show = show if progress.on_terminal() else None
            try:
                yield
            finally:
                self.show = None


HISTORY = {
    "epoch",
    "phase",
    "trainable",
    "train_loss",
    "train_top1",
    "train_rows",
    "validation_loss",
    "validation_top1",
    "validation_macro_f1",
    "validation_rows",
    "seconds",
}


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
