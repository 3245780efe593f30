"""What every worker of a fit runs: a training loop, fed by its sources, checkpointed to the run's storage."""

import dataclasses
import time
from collections.abc import Mapping
from typing import cast

import torch

from retailray.config import TrainSection
from retailray.data.numeric_labels import spelled
from retailray.execution import Reporter, Worker
from retailray.execution.distributed import DistributedContext
from retailray.execution.process import prepare_process
from retailray.training.batches import (
    Augmentation,
    CachedDataset,
    StoredBatches,
    StreamedBatches,
    StreamedDataset,
    make_batching,
)
from retailray.training.best_epoch import Epoch
from retailray.training.cache import store
from retailray.training.loop import State, TrainingLoop
from retailray.training.network import Batches, Network, NetworkSpec
from retailray.training.numbers import TrueValues
from retailray.training.phases import ResolvedPhase

TOUCH_S = 600.0  # between two marks that a store is in use


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """All a worker needs to know. ``sources``: by split and phase, where rows are and the blocks they went through."""

    network_spec: NetworkSpec
    phases: list[ResolvedPhase]
    train: TrainSection
    augmentation: Augmentation
    class_weights: list[float] | None
    known: TrueValues | None
    sources: dict[str, list[tuple[CachedDataset | StreamedDataset, int]]]
    min_rows: int  # of a worker in one step
    threads: int
    reporter: Reporter
    tags: Mapping[str, object]  # said with every epoch


def work(config: FitConfig, worker: Worker) -> dict[str, object]:
    """Train; return the history, the calibration, and, of a test split, targets, top 5 classes and their scores."""
    prepare_process(config.threads)
    device = torch.device(worker.device)
    world = DistributedContext(worker.rank, worker.size, device)
    network = Network(config.network_spec.build(), config.network_spec, world, threads=config.threads)
    sources = _Sources(config, world, worker)
    loop = TrainingLoop(
        network,
        phases=config.phases,
        train=config.train,
        open_batches=sources.open,
        class_weights=torch.tensor(config.class_weights) if config.class_weights else None,
        known=config.known,
    )
    for split in config.sources:  # every store is mapped before the first epoch, and cannot be lost to us after
        for phase in config.phases:
            sources.open(split, phase)
    report, start = _Report(config, worker), cast(State | None, worker.last_state())
    codes = start.get("codes", {}) if start else {}
    for metrics in loop.epochs(start):
        codes = sources.failed(world)
        report(loop, metrics, codes)
    found = {"history": loop.progress.history, "best_epoch": loop.progress.best_epoch}
    calibration = loop.validator.calibration(config.sources)
    found |= {"calibration": calibration, "codes": codes}
    if "test" in config.sources:
        temperature = world.gather(calibration.temperature if calibration else 0.0)[0]  # rank 0 knows it
        found["test"] = tuple(part.numpy() for part in loop.validator.guesses("test", temperature))
    return found


def _told(metrics: Epoch) -> str:
    if "validation_mae" in metrics:
        return f"validation mean absolute error {spelled(metrics['validation_mae'])}"
    return f"validation top-1 {metrics['validation_top1']:.3f}"


class _Sources:
    """Opens the batches of a split for a phase; a store is mapped and a stream begun once."""

    def __init__(self, config: FitConfig, world: DistributedContext, worker: Worker) -> None:
        self.config, self.world, self.worker = config, world, worker
        self.opened: dict[tuple[str, str], Batches] = {}

    def open(self, split: str, phase: ResolvedPhase) -> tuple[Batches, int]:
        source, num_cached_blocks = self.config.sources[split][self.config.phases.index(phase)]
        key = (split, source.spec.key if isinstance(source, CachedDataset) else source.name)
        if key not in self.opened:
            self.opened[key] = self._make(split, source, num_cached_blocks)
        return self.opened[key], num_cached_blocks

    def _make(self, split: str, source: CachedDataset | StreamedDataset, num_cached_blocks: int) -> Batches:
        config = self.config
        batching = make_batching(split, config.train, self.world, min_rows=config.min_rows)
        plain = Augmentation("none", 0.0, config.augmentation.crop_px, config.augmentation.crop_px)
        mine = config.augmentation if split == "train" else plain
        if isinstance(source, StreamedDataset):
            return StreamedBatches(source, self.worker.shard(source.name), batching, mine)
        # kept activations are of augmented views already
        return StoredBatches(source, batching, mine if num_cached_blocks == 0 else None)

    def failed(self, world: DistributedContext) -> dict[str, int]:
        """Error codes of the training rows that the last epoch streamed; stores know theirs."""
        total: dict[str, int] = {}
        streams = [batches for (split, _), batches in self.opened.items() if split == "train"]
        mine = [batches.codes for batches in streams if isinstance(batches, StreamedBatches)]
        for codes in world.gather(mine[0] if mine else {}):
            for code, count in codes.items():
                total[code] = total.get(code, 0) + count
        return total


class _Report:
    """Tells the driver of every epoch, and leaves a checkpoint when one is due."""

    def __init__(self, config: FitConfig, worker: Worker) -> None:
        self.config, self.worker = config, worker
        self.saved_at = self.touched_at = time.monotonic()

    def __call__(self, loop: TrainingLoop, metrics: Epoch, codes: dict[str, int]) -> None:
        config, world = self.config, loop.world
        if world.rank == 0:
            total = sum(phase.epochs for phase in config.phases)
            config.reporter.event("epoch", {**config.tags, **metrics, "epochs": total})
            config.reporter.step(1, _told(metrics))
        due = time.monotonic() - self.saved_at >= config.train.checkpoint_interval_s
        # one clock decides, or workers would wait for each other in different places
        agreed = bool(world.sum(torch.tensor(float(due and world.rank == 0))).item())
        if not agreed and not loop.phase_is_over():
            return
        self.saved_at = time.monotonic()
        if world.rank == 0 and self.saved_at - self.touched_at > TOUCH_S:
            self.touched_at = self.saved_at
            for spec in {
                source.spec
                for by_stage in config.sources.values()
                for source, _ in by_stage
                if isinstance(source, CachedDataset)
            }:
                store.touch(spec)  # a worker that replaces this one must find it
        self.worker.report(metrics["epoch"], loop.state() | {"codes": codes} if world.rank == 0 else None)
