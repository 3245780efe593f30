"""What the driver knows of every trial: the table of the search, while it grows and when it is done."""

import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

from ray import tune
from ray.exceptions import RayActorError
from ray.tune.experiment import Trial
from rich.table import Table

from retailray import events, storage
from retailray.execution.metrics import metric
from retailray.execution.state import STATE
from retailray.training.best_epoch import Epoch, best_epoch, measure_of, score_of
from retailray.training.worker import TOUCH_S
from retailray.tuning.shared_inputs import Shared
from retailray.tuning.trial import write_record

SHOWN = 12  # best trials in the live table


@dataclasses.dataclass
class Row:
    """One trial. ``key``: of its record. ``recorded``: it had ended before this search. ``lost``: its process died."""

    trial: int
    drawn: dict[str, object]
    status: str = "running"
    history: list[Epoch] = dataclasses.field(default_factory=list)
    key: str | None = None
    recorded: bool = False
    finished: bool = False
    message: str = ""
    lost: bool = False
    pruned: bool = False

    @property
    def epochs(self) -> int:
        return self.history[-1]["epoch"] if self.history else 0

    @property
    def seconds(self) -> float:
        """Of training and validation, in all epochs."""
        return sum(epoch["seconds"] for epoch in self.history)


class TrialsTable(tune.Callback):
    """Hears of every epoch of every trial; keeps the weights of the best ones and removes those of the others."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.rows: dict[str, Row] = {}  # by Tune's name of the trial, in the order of their beginnings
        self.touched_at = time.monotonic()
        self.show: Callable[[], None] | None = None
        self.interrupted = False  # by Ctrl-C; the next step of Tune ends the search

    # -- what Tune calls ----------------------------------------------------------------------------------------------

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: object) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self._note(trials)

    def _note(self, trials: list[Trial]) -> None:
        """Note new trials as they were drawn, which is not the order in which they start or are tried again.

        Tune draws within a step, and a trial can fail in the same one.
        """
        if len(trials) == len(self.rows):
            return
        for trial in trials:
            if trial.trial_id not in self.rows:
                self.rows[trial.trial_id] = Row(len(self.rows) + 1, dict(trial.config))

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: object
    ) -> None:
        self._note(trials)
        row = self.rows[trial.trial_id]
        row.drawn = dict(trial.config)  # population-based training changes them
        row.key, row.finished, row.recorded = result["key"], result["finished"], result["recorded"]
        first = result["rows"][0]["epoch"]  # a trial that is tried again tells what it told before
        row.history = [epoch for epoch in row.history if epoch["epoch"] < first] + result["rows"]
        if time.monotonic() - self.touched_at > TOUCH_S:
            self.touched_at = time.monotonic()
            self.shared.touch()
        self._count()
        if self.show:
            self.show()

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        self._note(trials)
        row = self.rows[trial.trial_id]
        row.status = "finished" if row.finished else "stopped"
        if row.status == "stopped" and row.key and not (row.recorded or self.shared.is_population):
            folder = storage.join(self.shared.records, row.key)
            write_record(folder, drawn=row.drawn, finished=False, history=row.history)
        self._say(row)
        self.prune()

    def end(self) -> None:
        """The search is over: what still ran was stopped by a budget."""
        for row in self.rows.values():
            if row.status == "running":
                row.status = "stopped"
                self._say(row)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        error = trial.get_pickled_error() or trial.get_error()
        lines = [line for line in str(error).splitlines() if line.strip()]
        self._note(trials)
        row = self.rows[trial.trial_id]
        row.status, row.message = "failed", lines[-1].strip() if lines else "no message"
        row.lost = isinstance(error, RayActorError)
        self._say(row)

    # -- what we make of it -------------------------------------------------------------------------------------------

    def _count(self) -> None:
        """Tell Prometheus how many trials there are of each status."""
        statuses = collections.Counter(row.status for row in self.rows.values())
        for status in ("running", "finished", "stopped", "failed"):
            metric("retailray_trials").set(statuses[status], {"status": status})

    def _say(self, row: Row) -> None:
        self._count()
        events.emit(
            "trial",
            trial=row.trial,
            of=self.shared.config.tune.trials if self.shared.config.tune.searcher != "grid" else None,
            status=row.status,
            **{self.metric: self.value(row)},
            epochs=row.epochs,
            seconds=row.seconds,
            **self.settings(row),
            **({"message": row.message} if row.message else {}),
        )

    @property
    def num_epochs(self) -> int:
        return sum(len(row.history) for row in self.rows.values())

    @property
    def lost(self) -> int:
        """Trials whose process died where Tune does not try again: while it was made ready for them."""
        return sum(row.lost for row in self.rows.values())

    @property
    def metric(self) -> str:
        return f"validation_{self.shared.config.train.metric}"

    def value(self, row: Row) -> float | None:
        """The metric of the best epoch."""
        best = self.best_epoch(row)
        return measure_of(best, self.shared.config.train.metric) if best else None

    def best_epoch(self, row: Row) -> Epoch | None:
        return best_epoch(row.history, self.shared.config.train.metric)

    def settings(self, row: Row) -> dict[str, object]:
        return self.shared.config.effective(row.drawn)

    def ranked(self) -> list[Row]:
        """Trials that measured something, the best one first; of equals that with the lower loss, then the earlier."""
        found = [(row, best) for row in self.rows.values() if (best := self.best_epoch(row))]
        metric = self.shared.config.train.metric
        found.sort(key=lambda pair: (-score_of(pair[1], metric), pair[1]["validation_loss"], pair[0].trial))
        return [row for row, _ in found]

    def prune(self, *, again: bool = False) -> None:
        """Keep the weights of ``tune.keep_top_trials`` trials, and of those that still run.

        ``again``: a trial that a budget stopped may have saved them after they were removed.
        """
        kept = {row.key for row in self.ranked()[: self.shared.config.tune.keep_top_trials]}
        kept |= {row.key for row in self.rows.values() if row.status == "running"}
        for row in self.rows.values():
            if row.key and row.key not in kept and (again or not row.pruned):
                storage.remove_file(storage.join(self.shared.records, row.key, STATE))
                row.pruned = True

    def table(self) -> Table:
        """The best trials and how many there are of each kind, for a terminal."""
        counts: dict[str, int] = {}
        for row in self.rows.values():
            counts[row.status] = counts.get(row.status, 0) + 1
        names = list(self.shared.config.space)
        said = ", ".join(f"{count} {status}" for status, count in counts.items())
        table = Table(title=f"{said}; {self.num_epochs} epochs", title_justify="left", box=None)
        for name in ("trial", "status", self.metric, "epochs", "seconds", *(name.split(".")[-1] for name in names)):
            table.add_column(name, no_wrap=True)
        for row in self.ranked()[:SHOWN]:
            settings = self.settings(row)
            shown = ["–" if settings[name] is None else _short(settings[name]) for name in names]
            value = f"{self.value(row):.4f}"
            counted = str(row.epochs), f"{row.seconds:.1f}"
            table.add_row(str(row.trial), row.status, value, *counted, *shown)
        return table

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """A live table on a terminal for the length of the block."""
        with events.live() as update:
            said = 0.0

            def show() -> None:
                nonlocal said
                if time.monotonic() - said > 0.2:
                    said = time.monotonic()
                    update(self.table())

            self.show = show if events.on_terminal() else None
            try:
                yield
            finally:
                self.show = None


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
