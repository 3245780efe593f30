"""The training loop of one worker, in torch alone. The same global batch, whatever the number of workers.

Losses are summed, divided by the global weight of the batch and reduced, so that no sample is dropped, repeated or
counted differently. An epoch depends on the state before it, the seed and its number alone, so that a run that went on
from a checkpoint ends where an uninterrupted one ends.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, TypedDict, cast

import torch
import torch.distributed
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from retailray.config import TrainSection
from retailray.execution.state import read_state
from retailray.models.blocks import batch_norms, freeze, train_mode
from retailray.models.precision import autocast, spare_slow_gradients
from retailray.training.best_epoch import Epoch, TrainMeasures, best_epoch, epochs_since_better
from retailray.training.mixing import Mixing
from retailray.training.network import Batches, Network, TimedIterator
from retailray.training.optim import load_optimizer, make_average, make_optimizer, make_schedule
from retailray.training.phases import MIN_BATCHNORM_ROWS, ResolvedPhase, num_passes
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
    """

    def __init__(
        self,
        network: Network,
        *,
        phases: list[ResolvedPhase],
        train: TrainSection,
        open_batches: OpenBatches,
        class_weights: torch.Tensor | None = None,
    ) -> None:
        self.network, self.world, self.device = network, network.world, network.device
        self.train, self.phases, self.open_batches = train, phases, open_batches
        trained = network.chain.suffix(phases[-1].num_cached_blocks)
        spare_slow_gradients(trained, device=self.device, precision=network.precision)
        self.class_weights = class_weights.to(self.device) if class_weights is not None else None
        self.progress = Progress()
        self.best: dict[str, torch.Tensor] = {}
        self.validator = Validator(network, open_batches, phases[-1], train.batch_size)

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
            "weights": self.network.named(self.suffix),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "average": self.average.state_dict() if self.average else None,
        }

    # -- phases -------------------------------------------------------------------------------------------------------

    def _enter(self, phase: ResolvedPhase) -> None:
        self.phase = phase
        freeze(self.network.chain, phase.num_frozen_blocks)
        self.train_batches, self.num_cached_blocks = self.open_batches("train", phase)
        self.validation_batches, self.validation_cached_blocks = self.open_batches("validation", phase)
        self.suffix = self.network.chain.suffix(phase.num_frozen_blocks)
        self.frozen = self.network.chain.run(self.num_cached_blocks, phase.num_frozen_blocks)
        self.norms = batch_norms(self.network.chain, phase.num_frozen_blocks)
        self.average = make_average(self.suffix, self.train.ema_decay)
        self.optimizer = make_optimizer(self.network.chain, phase, self.train)
        steps = self.train_batches.num_steps * phase.epochs
        self.schedule = make_schedule(self.optimizer, steps, self.train.warmup_ratio)
        stepped: nn.Module = torch.compile(self.suffix) if self.train.compile else self.suffix  # type: ignore[assignment]
        if self.world.size > 1:
            stepped = DistributedDataParallel(stepped, device_ids=[self.device] if self.device.type == "cuda" else None)
        self.stepped = stepped
        self.mixing = Mixing(self.train, self.network.num_classes, self.num_cached_blocks)

    def _restore(self, start: State) -> None:
        load_optimizer(self.optimizer, self.schedule, start)
        if self.average and start["average"]:
            self.average.load_state_dict(start["average"])

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
        with self._averaged():
            if self.world.size > 1:  # every worker validates its share with the model that rank 0 will save
                for buffer in self.suffix.buffers():
                    torch.distributed.broadcast(buffer, 0)
            validated = validate(self.network, self.validation_batches, self.validation_cached_blocks)
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
                self.best |= self.network.named(self.suffix)
        progress.phase_epochs += 1
        return metrics

    def _train_epoch(self, epoch: int) -> TrainMeasures:
        torch.manual_seed((self.train.seed * 100_003 + epoch) * 1_009 + self.world.rank)  # dropout and mixing
        self.network.model.eval()
        train_mode(self.network.chain, self.phase.num_frozen_blocks)
        sums = torch.zeros(4, dtype=torch.float64, device=self.device)
        batches, rate = TimedIterator(self.network.batches(self.train_batches, epoch)), 0.0
        for num_rows, (values, target, weight, _) in batches:
            with self._norms_of_few(num_rows):
                rate = max(rate, *(group["lr"] for group in self.optimizer.param_groups))
                sums += self._step(values, target, weight)
        loss_sum, correct, count, norms = self.world.sum(sums).tolist()
        return {
            "train_loss": loss_sum / max(count, 1),
            "train_top1": correct / max(count, 1),
            "train_rows": int(count),
            "lr": rate,
            "grad_norm": norms / self.world.size / self.train_batches.num_steps,  # all workers have the same gradients
            "data_wait_seconds": batches.seconds,
        }

    @contextlib.contextmanager
    def _norms_of_few(self, num_rows: int) -> Iterator[None]:
        """Let BatchNorm keep its running statistics in a step of too few rows, where rows of a stream have failed."""
        few = num_rows // num_passes(num_rows, self.train.device_batch_size) < MIN_BATCHNORM_ROWS
        for norm in self.norms if few else []:
            norm.eval()
        yield
        for norm in self.norms if few else []:
            norm.train()

    def _step(self, values: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """One optimizer step on this worker's part of a global batch; (loss sum, correct, rows, gradients' norm)."""
        soft = nn.functional.one_hot(target, self.network.num_classes).float()
        mixing = self.mixing.draw()
        if mixing == "cutmix":
            values, soft = self.mixing.images(values, target)
        inputs = self._run_frozen(values)
        if mixing == "mixup":
            inputs, soft = self.mixing.features(inputs, target)
        share = weight if self.class_weights is None else weight * (soft @ self.class_weights)
        self.optimizer.zero_grad(set_to_none=True)
        logits, losses = self._add_gradients(inputs, soft, share)
        norm = self._clip_gradients()
        self.optimizer.step()
        self.schedule.step()
        if self.average:
            self.average.update_parameters(self.suffix)
        correct = (logits.argmax(1) == target) * weight
        return torch.stack([(losses * weight).sum(), correct.sum(), weight.sum(), norm]).detach().double()

    def _passes(self, values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """A worker's part of a batch in as few even pieces as ``train.device_batch_size`` allows."""
        return values.tensor_split(num_passes(len(values), self.train.device_batch_size))

    def _run_frozen(self, values: torch.Tensor) -> torch.Tensor:
        """What enters the trained blocks, whole, since mixup mixes a batch; its pieces are freed on return."""
        with torch.no_grad(), autocast(self.device, self.network.precision):
            found = [
                self.frozen(self.network.enter_blocks(some, self.num_cached_blocks)) for some in self._passes(values)
            ]
        return torch.cat(found) if len(found) > 1 else found[0]  # cat of one tensor would copy it

    def _add_gradients(
        self, inputs: torch.Tensor, soft: torch.Tensor, share: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Forward and backward, pass by pass; what enters the trained blocks to logits ``(B, C)`` and losses ``(B,)``.

        The gradients of all passes add up to those of the mean loss over the global batch.
        """
        # DistributedDataParallel averages gradients over workers; the batch's mean wants their sum
        scale = self.world.size / self.world.sum(share.sum()).clamp(min=1e-12)
        passes = list(zip(self._passes(inputs), self._passes(soft), self._passes(share), strict=True))
        found = []
        for number, (some, wanted, weights) in enumerate(passes, 1):
            with self._reduced(in_this_pass=number == len(passes)):
                with autocast(self.device, self.network.precision):
                    logits = self.stepped(some).float()
                losses = nn.functional.cross_entropy(
                    logits, wanted, reduction="none", label_smoothing=self.train.label_smoothing
                )
                ((losses * weights).sum() * scale).backward()
            found.append((logits.detach(), losses.detach()))
        logits, losses = (torch.cat(parts) for parts in zip(*found, strict=True))
        return logits, losses

    def _reduced(self, *, in_this_pass: bool) -> contextlib.AbstractContextManager[None]:
        """Workers add their gradients up once a step, in the last pass of each."""
        if in_this_pass or not isinstance(self.stepped, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.stepped.no_sync()

    def _clip_gradients(self) -> torch.Tensor:
        """The norm of all gradients, float scalar, before they are scaled down to ``train.clip_grad_norm``.

        All workers have the same gradients here, so that they scale them alike.
        """
        parameters = [one for one in self.suffix.parameters() if one.grad is not None]
        norm = nn.utils.get_total_norm([one.grad for one in parameters if one.grad is not None])
        if self.train.clip_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.train.clip_grad_norm, norm)
        return norm

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """With averaged weights in the model's place, where there are any."""
        if not self.average:
            yield
            return
        kept = {name: value.clone() for name, value in self.suffix.state_dict().items()}
        self.suffix.load_state_dict(self.average.module.state_dict())
        try:
            yield
        finally:
            self.suffix.load_state_dict(kept)
