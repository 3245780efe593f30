"""The training loop of one worker, in torch alone. The same global batch, whatever the number of workers.

Losses are summed, divided by the global weight of the batch and reduced, so that no sample is dropped, repeated or
counted differently. An epoch depends on the state before it, the seed and its number alone, so that a run that went on
from a checkpoint ends where an uninterrupted one ends.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Container, Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.transforms import v2

from retailray.config import TrainSection
from retailray.execution.distributed import DistributedContext
from retailray.models.blocks import batch_norms, freeze, to_blocks, train_mode
from retailray.models.calibration import Calibration, calibrate
from retailray.models.embedding import SIZE, sketch
from retailray.models.precision import autocast, spare_slow_gradients
from retailray.models.predictor import Normalize
from retailray.training.best_epoch import best_epoch, epochs_since_better
from retailray.training.optim import load_optimizer, make_average, make_optimizer, make_schedule
from retailray.training.phases import MIN_BATCHNORM_ROWS, ResolvedPhase
from retailray.training.rows import SPLIT_OF_ROLE

CALIBRATION_ROWS = 50_000  # validation rows that the temperature is fitted on, at most
TOP_K = 5
LOGITS_BYTES = 256 << 20  # memory limit of the logits that fit the temperature; they are copied several times


@dataclasses.dataclass
class Progress:
    """Where a fit stands: what a checkpoint holds besides weights and optimizer."""

    phase: int = 0
    phase_epochs: int = 0  # done in this phase
    best_epoch: int = 0
    history: list[dict[str, object]] = dataclasses.field(default_factory=list)


# (split, phase) → batches, and the number of blocks they went through
Open = Callable[[str, ResolvedPhase], tuple[Any, int]]


class TrainingLoop:
    """Fits one model through its phases.

    Args:
        model: its weights are the starting point; trained in place.
        open_batches: gives the batches of ``train``, ``validation`` or ``test`` for a phase.
        class_weights: float ``(C,)``, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        num_classes: int,
        normalize: Normalize,
        phases: list[ResolvedPhase],
        train: TrainSection,
        precision: str,
        world: DistributedContext,
        open_batches: Open,
        class_weights: torch.Tensor | None = None,
        loader_workers: int = 0,
    ) -> None:
        self.world, self.device, self.train, self.phases = world, world.device, train, phases
        self.model = model.to(self.device).to(memory_format=torch.channels_last)
        self.chain = to_blocks(self.model)
        spare_slow_gradients(self.chain.suffix(phases[-1].num_cached_blocks), device=self.device, precision=precision)
        self.normalize, self.num_classes = normalize.to(self.device), num_classes
        self.precision, self.open_batches, self.loader_workers = precision, open_batches, loader_workers
        self.class_weights = class_weights.to(self.device) if class_weights is not None else None
        self.progress = Progress()
        self.best: dict[str, torch.Tensor] = {}

    # -- the run ------------------------------------------------------------------------------------------------------

    def epochs(self, start: dict[str, Any] | None) -> Iterator[dict[str, object]]:
        """Run all phases, from the state of a checkpoint if there is one; the best weights are in the model then.

        Yields:
            The measures of every epoch when it is over; the state is then :meth:`state`.
        """
        self.best = self._named(self.chain.suffix(self.phases[-1].num_cached_blocks))
        if start:
            self.progress = Progress(**start["progress"])
            self.best = start["best"]
            self._load(self.best)
            self._load(start["weights"])
        while self.progress.phase < len(self.phases):
            self._enter(self.phases[self.progress.phase])
            if start and self.progress.phase_epochs:
                self._restore(start)
            start = None
            while not self.phase_is_over():
                yield self._epoch()
            self._load(self.best)
            if self.progress.phase + 1 == len(self.phases):
                return
            self.progress.phase += 1
            self.progress.phase_epochs = 0

    def state(self) -> dict[str, object]:
        """Return everything that :meth:`epochs` needs to continue from here, for ``torch.save``."""
        return {
            "progress": dataclasses.asdict(self.progress),
            "best": self.best,
            "weights": self._named(self.suffix),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "average": self.average.state_dict() if self.average else None,
        }

    @torch.no_grad()
    def outputs(self, name: str, *, limit: int | None = None) -> tuple[torch.Tensor, ...]:
        """Logits ``(N, C)``, targets ``(N,)``, embeddings ``(N, SIZE)`` and row ids ``(N,)`` of a split.

        On rank 0 of all ranks, elsewhere of its own.

        ``limit``: return about this many of the rows, evenly spread.
        """
        self.model.eval()
        batches, num_cached_blocks = self.open_batches(name, self.phases[-1])
        every = max(1, -(-batches.num_steps * self.train.batch_size // limit)) if limit else 1
        none = torch.zeros(0, dtype=torch.int64)
        kept, seen = _Rows(torch.zeros(0, self.num_classes), none, torch.zeros(0, SIZE), none), 0
        for _, (values, target, weight, row_ids) in self._moved(batches, None):
            found = torch.nonzero(weight > 0).flatten()
            usable = found[-seen % every :: every]
            seen += len(found)
            features, logits = self._forward(values, num_cached_blocks)
            kept.add(logits[usable], target[usable], sketch(features[usable]), row_ids[usable])
        gathered = self.world.gather_to_first(kept.all())
        return tuple(map(torch.cat, zip(*gathered, strict=True)))

    @torch.no_grad()
    def guesses(self, name: str, temperature: float) -> tuple[torch.Tensor, ...]:
        """Targets ``(N,)``, the best five classes ``(N, 5)`` and their calibrated scores, of a split, on rank 0.

        The size of the result does not depend on the number of classes.
        """
        self.model.eval()
        batches, num_cached_blocks = self.open_batches(name, self.phases[-1])
        num = min(TOP_K, self.num_classes)
        none = torch.zeros(0, dtype=torch.int64)
        kept = _Rows(none, none.reshape(0, num), torch.zeros(0, num))
        for _, (values, target, weight, _) in self._moved(batches, None):
            usable = weight > 0
            scores, classes = (self._forward(values, num_cached_blocks)[1][usable] / temperature).softmax(1).topk(num)
            kept.add(target[usable], classes, scores)
        gathered = self.world.gather_to_first(kept.all())
        return tuple(map(torch.cat, zip(*gathered, strict=True)))

    def calibration(self, splits: Container[str]) -> Calibration | None:
        """Calibrate on the validation rows of each role, on rank 0; None elsewhere.

        ``splits``: those that there are batches of.
        """
        found, roles = [], []
        limit = min(CALIBRATION_ROWS, LOGITS_BYTES // (4 * self.num_classes * len(SPLIT_OF_ROLE)))
        for role, name in SPLIT_OF_ROLE.items():
            if name in splits:
                found.append(self.outputs(name, limit=limit))
                roles += [role] * len(found[-1][1])
        if self.world.rank:
            return None
        logits, targets, embeddings, row_ids = map(torch.cat, zip(*found, strict=True))
        return calibrate(logits, targets, embeddings, row_ids, np.array(roles, dtype=object))

    # -- phases -------------------------------------------------------------------------------------------------------

    def _enter(self, phase: ResolvedPhase) -> None:
        self.phase = phase
        freeze(self.chain, phase.num_frozen_blocks)
        self.train_batches, self.num_cached_blocks = self.open_batches("train", phase)
        self.validation_batches, self.validation_cached_blocks = self.open_batches("validation", phase)
        self.suffix = self.chain.suffix(phase.num_frozen_blocks)
        self.frozen = self.chain.run(self.num_cached_blocks, phase.num_frozen_blocks)
        self.norms = batch_norms(self.chain, phase.num_frozen_blocks)
        self.average = make_average(self.suffix, self.train.ema_decay)
        self.optimizer = make_optimizer(self.chain, phase, self.train)
        steps = self.train_batches.num_steps * phase.epochs
        self.schedule = make_schedule(self.optimizer, steps, self.train.warmup_ratio)
        stepped: nn.Module = torch.compile(self.suffix) if self.train.compile else self.suffix  # type: ignore[assignment]
        if self.world.size > 1:
            stepped = DistributedDataParallel(stepped, device_ids=[self.device] if self.device.type == "cuda" else None)
        self.stepped = stepped
        self.mixers = self._make_mixers()

    def _restore(self, start: dict[str, Any]) -> None:
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

    def load_progress(self, state: dict[str, Any]) -> None:
        """Take the history and the best weights of a :meth:`state`, to look at and not to continue from."""
        self.progress, self.best = Progress(**state["progress"]), state["best"]
        self._load(self.best)

    def _named(self, part: nn.Module) -> dict[str, torch.Tensor]:
        """Copies of the tensors of a part of the model, on the CPU, under the model's own names."""
        names = {id(tensor): name for name, tensor in self.model.state_dict(keep_vars=True).items()}
        return {names[id(tensor)]: tensor.detach().cpu().clone() for tensor in part.state_dict(keep_vars=True).values()}

    def _load(self, tensors: dict[str, torch.Tensor]) -> None:
        target = self.model.state_dict()
        with torch.no_grad():
            for name, value in tensors.items():
                target[name].copy_(value)

    # -- an epoch -----------------------------------------------------------------------------------------------------

    def _epoch(self) -> dict[str, object]:
        started = time.monotonic()
        progress = self.progress
        epoch = len(progress.history) + 1
        metrics: dict[str, object] = {"epoch": epoch, "phase": progress.phase + 1, "trainable": self.phase.trainable}
        metrics |= self._train_epoch(epoch)
        trained = time.monotonic() - started
        with self._averaged():
            metrics |= self._validate()
            metrics |= {"precision": self.precision, "train_seconds": trained, "seconds": time.monotonic() - started}
            progress.history.append(metrics)
            if best_epoch(progress.history, self.train.metric) is metrics:
                progress.best_epoch = epoch
                self.best |= self._named(self.suffix)
        progress.phase_epochs += 1
        return metrics

    def _train_epoch(self, epoch: int) -> dict[str, object]:
        torch.manual_seed((self.train.seed * 100_003 + epoch) * 1_009 + self.world.rank)  # dropout and mixing
        self.model.eval()
        train_mode(self.chain, self.phase.num_frozen_blocks)
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        for num_rows, (values, target, weight, _) in self._moved(self.train_batches, epoch):
            with self._norms_of_few(num_rows):
                sums += self._step(values, target, weight)
        loss_sum, correct, count = self.world.sum(sums).tolist()
        return {
            "train_loss": loss_sum / max(count, 1),
            "train_top1": correct / max(count, 1),
            "train_rows": int(count),
        }

    @contextlib.contextmanager
    def _norms_of_few(self, num_rows: int) -> Iterator[None]:
        """Let BatchNorm keep its running statistics in a step of too few rows, where rows of a stream have failed."""
        few = num_rows < MIN_BATCHNORM_ROWS
        for norm in self.norms if few else []:
            norm.eval()
        yield
        for norm in self.norms if few else []:
            norm.train()

    def _step(self, values: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """One optimizer step on this worker's part of a global batch; (loss sum, correct, rows)."""
        soft = nn.functional.one_hot(target, self.num_classes).float()
        mixed = "cutmix" in self.mixers and ("mixup" not in self.mixers or bool(torch.rand(()) < 0.5))
        if mixed:
            values, soft = self.mixers["cutmix"](values, target)
        with torch.no_grad(), autocast(self.device, self.precision):
            inputs = self.frozen(self._enter_blocks(values, self.num_cached_blocks))
        if "mixup" in self.mixers and not mixed:
            inputs, soft = _mix(self.mixers["mixup"], inputs, target)
        with autocast(self.device, self.precision):
            logits = self.stepped(inputs).float()
        losses = nn.functional.cross_entropy(logits, soft, reduction="none", label_smoothing=self.train.label_smoothing)
        share = weight if self.class_weights is None else weight * (soft @ self.class_weights)
        # DistributedDataParallel averages gradients over workers; the batch's mean wants their sum
        total = self.world.sum(share.sum()).clamp(min=1e-12)
        loss = (losses * share).sum() * self.world.size / total
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        if self.average:
            self.average.update_parameters(self.suffix)
        correct = (logits.argmax(1) == target) * weight
        return torch.stack([(losses * weight).sum(), correct.sum(), weight.sum()]).detach().double()

    def _make_mixers(self) -> dict[str, Any]:
        """torchvision's mixup (on whatever enters the trained blocks: manifold mixup, arXiv 1806.05236) and cutmix."""
        mixers: dict[str, object] = {}
        if self.train.mixup:
            mixers["mixup"] = v2.MixUp(alpha=self.train.mixup, num_classes=self.num_classes)
        if self.train.cutmix:
            assert self.num_cached_blocks == 0, "cutmix mixes pixels"
            mixers["cutmix"] = v2.CutMix(alpha=self.train.cutmix, num_classes=self.num_classes)
        return mixers

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

    @torch.no_grad()
    def _validate(self) -> dict[str, object]:
        self.model.eval()
        if self.world.size > 1:  # every worker validates its share with the model that rank 0 will save
            for buffer in self.suffix.buffers():
                torch.distributed.broadcast(buffer, 0)
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        counts = torch.zeros(3, self.num_classes, dtype=torch.float64, device=self.device)
        for _, (values, target, weight, _) in self._moved(self.validation_batches, None):
            _, logits = self._forward(values, self.validation_cached_blocks)
            losses = nn.functional.cross_entropy(logits, target, reduction="none")
            guess = logits.argmax(1)
            correct = (guess == target) * weight
            sums += torch.stack([(losses * weight).sum(), correct.sum(), weight.sum()]).double()
            for row, (labels, amount) in enumerate(((target, correct), (guess, weight), (target, weight))):
                counts[row].index_add_(0, labels, amount.double())
        loss_sum, right, count = self.world.sum(sums).tolist()
        hits, guessed, support = self.world.sum(counts)
        f1 = 2 * hits / (guessed + support).clamp(min=1)
        return {
            "validation_loss": loss_sum / max(count, 1),
            "validation_top1": right / max(count, 1),
            "validation_macro_f1": float(f1[support > 0].mean()) if count else 0.0,
            "validation_rows": int(count),
        }

    # -- tensors ------------------------------------------------------------------------------------------------------

    def _moved(self, batches: Any, epoch: int | None) -> Iterator[tuple[int, tuple[torch.Tensor, ...]]]:
        """How many rows of weight, counted where it costs no wait for a GPU, and the batch on the device."""
        pin = self.device.type == "cuda"
        for batch in batches.epoch(epoch, num_workers=self.loader_workers, pin=pin):
            yield int((batch[2] > 0).sum()), tuple(part.to(self.device, non_blocking=True) for part in batch)

    def _enter_blocks(self, values: torch.Tensor, num_cached_blocks: int) -> torch.Tensor:
        """Pixels are normalised; kept activations are taken as they are, in the precision of the pass."""
        if num_cached_blocks == 0:
            return self.normalize(values)
        values = values.float() if self.precision == "float32" else values
        return values.contiguous(memory_format=torch.channels_last) if values.ndim == 4 else values

    def _forward(self, values: torch.Tensor, num_cached_blocks: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What enters the head, and logits, float ``(B, C)``."""
        with autocast(self.device, self.precision):
            features = self.chain.run(num_cached_blocks, len(self.chain.blocks))(
                self._enter_blocks(values, num_cached_blocks)
            )
            return features, self.chain.head(features).float()


class _Rows:
    """Rows of several tensors on the CPU, in a block each that doubles where it is full.

    Small tensors that are kept between the large ones of every batch would split the heap, which then cannot be used
    again.
    """

    def __init__(self, *empty: torch.Tensor) -> None:
        self._blocks, self._size = list(empty), 0

    def add(self, *values: torch.Tensor) -> None:
        end = self._size + len(values[0])
        for number, (block, value) in enumerate(zip(self._blocks, values, strict=True)):
            if end > len(block):
                larger = torch.empty(2 * end, *block.shape[1:], dtype=block.dtype)
                larger[: self._size] = block[: self._size]
                self._blocks[number] = block = larger
            block[self._size : end] = value
        self._size = end

    def all(self) -> tuple[torch.Tensor, ...]:
        return tuple(block[: self._size] for block in self._blocks)


def _mix(mixer: Any, inputs: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """torchvision mixes images ``(B, C, H, W)``; features and tokens take that form for it."""
    mixed, soft = mixer(inputs.reshape(len(inputs), -1, 1, 1) if inputs.ndim != 4 else inputs, target)
    return mixed.reshape(inputs.shape), soft
