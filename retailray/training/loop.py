"""The training loop of one worker, in torch alone. The same global batch, whatever the number of workers.

Losses are summed, divided by the global weight of the batch and reduced, so that no sample is dropped, repeated or
counted differently. An epoch depends on the state before it, the seed and its number alone, so that a run that went on
from a checkpoint ends where an uninterrupted one ends.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, TypedDict, cast

import torch
import torch.distributed

from retailray.config import TrainSection
from retailray.execution.state import read_state
from retailray.models.blocks import train_mode
from retailray.models.precision import spare_slow_gradients
from retailray.training.best_epoch import Epoch, TrainMeasures, best_epoch, epochs_since_better
from retailray.training.network import Batches, Network, TimedIterator
from retailray.training.numbers import TrueValues
from retailray.training.optim import load_optimizer
from retailray.training.phases import ResolvedPhase
from retailray.training.steps import PhaseSteps
from retailray.training.validation import Validator, validate


@dataclasses.dataclass
class Progress:
    """Where a fit stands: what a checkpoint holds besides weights and optimizer."""

    phase: int = 0
    phase_epochs: int = 0  # done in this phase
    best_epoch: int = 0
    history: list[Epoch] = dataclasses.field(default_factory=list)


class State(TypedDict, total=False):
    """What a checkpoint holds. ``codes``, ``over``: what the loop's callers add to it."""

    progress: dict[str, Any]  # the fields of Progress
    best: dict[str, torch.Tensor]
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, object]
    schedule: dict[str, object]
    average: dict[str, torch.Tensor] | None
    codes: dict[str, int]
    over: bool


def saved_state(folder: str) -> State | None:
    """What was saved in a folder, if anything was."""
    return cast(State | None, read_state(folder))


# (split, phase) → batches, and the number of blocks they went through
OpenBatches = Callable[[str, ResolvedPhase], tuple[Batches, int]]


class TrainingLoop:
    """Fits one model through its phases.

    Args:
        network: its weights are the starting point; trained in place.
        open_batches: gives the batches of ``train``, ``validation`` or ``test`` for a phase.
        class_weights: float ``(C,)``, or None.
        known: the true values of the rows, where labels are numbers.
    """

    def __init__(
        self,
        network: Network,
        *,
        phases: list[ResolvedPhase],
        train: TrainSection,
        open_batches: OpenBatches,
        class_weights: torch.Tensor | None = None,
        known: TrueValues | None = None,
    ) -> None:
        self.network, self.world, self.device = network, network.world, network.device
        self.train, self.phases, self.open_batches = train, phases, open_batches
        trained = network.chain.suffix(phases[-1].num_cached_blocks)
        spare_slow_gradients(trained, device=self.device, precision=network.precision)
        self.class_weights = class_weights.to(self.device) if class_weights is not None else None
        self.numbers = known.on(self.device) if known else None
        self.progress = Progress()
        self.best: dict[str, torch.Tensor] = {}
        self.validator = Validator(network, open_batches, phases[-1])

    # -- the run ------------------------------------------------------------------------------------------------------

    def epochs(self, start: State | None) -> Iterator[Epoch]:
        """Run all phases, from the state of a checkpoint if there is one; the best weights are in the model then.

        Yields:
            The measures of every epoch when it is over; the state is then :meth:`state`.
        """
        self.best = self.network.named(self.network.chain.suffix(self.phases[-1].num_cached_blocks))
        if start:
            self.progress = Progress(**start["progress"])
            self.best = start["best"]
            self.network.load(self.best)
            self.network.load(start["weights"])
        while self.progress.phase < len(self.phases):
            self._enter(self.phases[self.progress.phase])
            if start and self.progress.phase_epochs:
                self._restore(start)
            start = None
            while not self.phase_is_over():
                yield self._epoch()
            self.network.load(self.best)
            if self.progress.phase + 1 == len(self.phases):
                return
            self.progress.phase += 1
            self.progress.phase_epochs = 0

    def state(self) -> State:
        """Return everything that :meth:`epochs` needs to continue from here, for ``torch.save``."""
        return {
            "progress": dataclasses.asdict(self.progress),
            "best": self.best,
            "weights": self.network.named(self.steps.suffix),
            "optimizer": self.steps.optimizer.state_dict(),
            "schedule": self.steps.schedule.state_dict(),
            "average": self.steps.average.state_dict() if self.steps.average else None,
        }

    # -- phases -------------------------------------------------------------------------------------------------------

    def _enter(self, phase: ResolvedPhase) -> None:
        self.phase = phase
        self.train_batches, num_cached_blocks = self.open_batches("train", phase)
        self.validation_batches, self.validation_cached_blocks = self.open_batches("validation", phase)
        self.steps = PhaseSteps(
            self.network,
            self.train,
            phase,
            num_cached_blocks=num_cached_blocks,
            num_steps=self.train_batches.num_steps * phase.epochs,
            class_weights=self.class_weights,
            numbers=self.numbers,
        )

    def _restore(self, start: State) -> None:
        load_optimizer(self.steps.optimizer, self.steps.schedule, start)
        if self.steps.average and start["average"]:
            self.steps.average.load_state_dict(start["average"])

    def phase_is_over(self) -> bool:
        progress, patience = self.progress, self.train.patience
        without = min(progress.phase_epochs, epochs_since_better(progress.history, self.train.metric))
        return progress.phase_epochs >= self.phase.epochs or (patience is not None and without >= patience)

    @property
    def is_over(self) -> bool:
        """Whether the last epoch of the last phase is done."""
        return self.progress.phase + 1 == len(self.phases) and self.phase_is_over()

    def load_progress(self, state: State) -> None:
        """Take the history and the best weights of a :meth:`state`, to look at and not to continue from."""
        self.progress, self.best = Progress(**state["progress"]), state["best"]
        self.network.load(self.best)

    # -- an epoch -----------------------------------------------------------------------------------------------------

    def _epoch(self) -> Epoch:
        started = time.monotonic()
        progress = self.progress
        epoch = len(progress.history) + 1
        measured = self._train_epoch(epoch)
        trained = time.monotonic() - started
        with self.steps.averaged():
            if self.world.size > 1:  # every worker validates its share with the model that rank 0 will save
                for buffer in self.steps.suffix.buffers():
                    torch.distributed.broadcast(buffer, 0)
            validated = validate(self.network, self.validation_batches, self.validation_cached_blocks, self.numbers)
            metrics: Epoch = {
                "epoch": epoch,
                "phase": progress.phase + 1,
                "trainable": self.phase.trainable,
                **measured,
                **validated,
                "precision": self.network.precision,
                "train_seconds": trained,
                "seconds": time.monotonic() - started,
            }
            progress.history.append(metrics)
            if best_epoch(progress.history, self.train.metric) is metrics:
                progress.best_epoch = epoch
                self.best |= self.network.named(self.steps.suffix)
        progress.phase_epochs += 1
        return metrics

    def _train_epoch(self, epoch: int) -> TrainMeasures:
        torch.manual_seed((self.train.seed * 100_003 + epoch) * 1_009 + self.world.rank)  # dropout and mixing
        self.network.model.eval()
        train_mode(self.network.chain, self.phase.num_frozen_blocks)
        sums = torch.zeros(5, dtype=torch.float64, device=self.device)
        batches, rate = TimedIterator(self.network.batches(self.train_batches, epoch)), 0.0
        for num_rows, (values, target, weight, row_ids) in batches:
            with self.steps.norms_of_few(num_rows):
                rate = max(rate, self.steps.highest_rate)
                sums += self.steps.step(values, target, weight, row_ids)
        loss_sum, correct, count, norms, errors = self.world.sum(sums).tolist()
        right = correct / max(count, 1)
        told: TrainMeasures = {
            "train_loss": loss_sum / max(count, 1),
            "train_rows": int(count),
            "lr": rate,
            "grad_norm": norms / self.world.size / self.train_batches.num_steps,  # all workers have the same gradients
            "data_wait_seconds": batches.seconds,
        }
        return told | ({"train_mae": errors / max(count, 1)} if self.numbers else {"train_top1": right})
