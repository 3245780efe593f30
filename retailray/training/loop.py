"""What every training worker runs. The same global batch, whatever the number of workers.

Every shard has the same number of rows: rows that failed or that only pad have weight 0. Losses are summed, divided by
the global weight of the batch and reduced, so that no sample is dropped, repeated or counted differently.
"""

import dataclasses
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.train
import ray.train.torch
import safetensors.torch
import torch
import torch.distributed
from torch import nn

from retailray.data.pipeline import CODE, OURS, PIXELS, pixels_to_numpy
from retailray.data.transforms import Augment, make_augment
from retailray.errors import ERROR_CODES
from retailray.models.backbones import build_model, freeze_backbone, head_name, load_state, train_mode
from retailray.models.bundle import WEIGHTS_NAME, state_to_bytes
from retailray.models.precision import autocast, choose_precision
from retailray.models.predictor import Normalize

TARGET = OURS + "target"
_CODES = list(ERROR_CODES)


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """All a worker needs to know. ``state_ref`` refers to the initial weights as safetensors bytes."""

    arch: str
    num_classes: int
    state_ref: Any
    mean: tuple[float, ...]
    std: tuple[float, ...]
    trainable: str
    epochs: int
    batch_size: int  # global
    train_rows: int  # a worker, padding included
    head_lr: float
    backbone_lr: float
    weight_decay: float
    label_smoothing: float
    precision: str
    seed: int
    augment: str
    source_px: int  # side of the training pixels as they arrive
    crop_px: int  # side of what the model sees
    threads: int
    relay: Any  # actor that takes events for the driver


def train_loop(loop_config: dict[str, Any]) -> list[dict[str, Any]]:
    """Train; report every epoch, with a checkpoint when it is the best so far; return the history."""
    config: LoopConfig = loop_config["config"]
    torch.set_num_threads(min(config.threads, os.cpu_count() or 1))
    return _Worker(config).fit()


class _Worker:
    def __init__(self, config: LoopConfig) -> None:
        self.config = config
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self.plain = self._build()
        self.precision = self._agree_on_precision()
        self.model = ray.train.torch.prepare_model(self.plain, move_to_device=False)
        self.normalize = Normalize(config.mean, config.std).to(self.device)
        self.augment = make_augment(config.augment, config.crop_px)
        self.local_batch = max(1, -(-config.batch_size // self.world))
        steps = -(-config.train_rows // self.local_batch)
        self.optimizer, self.schedule = make_optimizer(self.plain, config, steps * config.epochs)

    def _build(self) -> nn.Module:
        config = self.config
        model = build_model(config.arch, config.num_classes)
        load_state(model, safetensors.torch.load(ray.get(config.state_ref)))
        if config.trainable == "head":
            freeze_backbone(model)
        return model.to(self.device).to(memory_format=torch.channels_last)

    def _agree_on_precision(self) -> str:
        if self.config.precision != "auto":
            return self.config.precision
        chosen = choose_precision(self.plain, size_px=self.config.crop_px, device=self.device)
        vote = self._sum(torch.tensor([float(chosen == "bfloat16")]))
        return "bfloat16" if vote.item() > self.world / 2 else "float32"

    def _sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over all workers."""
        if self.world == 1:
            return values
        values = values.to(self.device)
        torch.distributed.all_reduce(values)
        return values.cpu()

    def fit(self) -> list[dict[str, Any]]:
        history: list[dict[str, Any]] = []
        best = (-1.0, 0.0)
        for epoch in range(1, self.config.epochs + 1):
            started = time.monotonic()
            metrics = self._train_epoch(epoch) | self._validate()
            seconds = time.monotonic() - started
            metrics |= {"epoch": epoch, "precision": self.precision, "seconds": seconds}
            score = (metrics["validation_top1"], -metrics["validation_loss"])
            history.append(metrics)
            if self.rank == 0:
                self.config.relay.event.remote("epoch", {**metrics, "epochs": self.config.epochs})
                self.config.relay.step.remote(1, f"validation top-1 {metrics['validation_top1']:.3f}")
            self._report(metrics, with_checkpoint=score > best)
            best = max(best, score)
        return history

    def _train_epoch(self, epoch: int) -> dict[str, Any]:
        torch.manual_seed(self.config.seed * 100_003 + epoch * 1_009 + self.rank)
        train_mode(self.plain)
        sums = torch.zeros(3, dtype=torch.float64)
        codes = torch.zeros(len(_CODES), dtype=torch.float64)
        size = self.config.source_px
        for table in self._batches("train", shuffle_seed=self.config.seed + epoch):
            images, target, weight = self._unpack(table, size, self.augment)
            logits = self._forward(images)
            losses = nn.functional.cross_entropy(
                logits, target, reduction="none", label_smoothing=self.config.label_smoothing
            )
            total = self._sum(weight.sum().cpu()).clamp(min=1)
            # DistributedDataParallel averages gradients over workers; the batch's mean wants their sum
            loss = (losses * weight).sum() * self.world / total.to(self.device)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            sums += _tally(losses, logits, target, weight)
            if epoch == 1:
                codes += _count_codes(table)
        loss_sum, correct, count = self._sum(sums).tolist()
        metrics = {
            "train_loss": loss_sum / max(count, 1),
            "train_top1": correct / max(count, 1),
            "train_rows": int(count),
        }
        if epoch == 1:
            counted = self._sum(codes).int().tolist()
            metrics["errors_by_code"] = {code: n for code, n in zip(_CODES, counted, strict=True) if n}
        return metrics

    @torch.no_grad()
    def _validate(self) -> dict[str, Any]:
        self.plain.eval()
        if self.world > 1:  # every worker validates its share with the model that rank 0 will save
            for buffer in self.plain.buffers():
                torch.distributed.broadcast(buffer, 0)
        sums = torch.zeros(3, dtype=torch.float64)
        for table in self._batches("validation"):
            images, target, weight = self._unpack(table, self.config.crop_px, None)
            with autocast(self.device, self.precision):
                logits = self.plain(self.normalize(images)).float()
            losses = nn.functional.cross_entropy(logits, target, reduction="none")
            sums += _tally(losses, logits, target, weight)
        loss_sum, correct, count = self._sum(sums).tolist()
        return {
            "validation_loss": loss_sum / max(count, 1),
            "validation_top1": correct / max(count, 1),
            "validation_rows": int(count),
        }

    def _batches(self, name: str, *, shuffle_seed: int | None = None) -> Iterator[pa.Table]:
        shuffle: dict[str, Any] = {}
        if shuffle_seed is not None:
            shuffle = {"local_shuffle_buffer_size": 8 * self.local_batch, "local_shuffle_seed": shuffle_seed}
        shard = ray.train.get_dataset_shard(name)
        yield from shard.iter_batches(
            batch_size=self.local_batch,
            batch_format="pyarrow",
            prefetch_batches=2,
            drop_last=False,
            **shuffle,
        )

    def _unpack(
        self, table: pa.Table, size: int, augment: Augment | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Images uint8 ``(B, 3, S, S)``, targets int64 ``(B,)``, weights float32 ``(B,)``."""
        images = torch.from_numpy(np.array(pixels_to_numpy(table.column(PIXELS), size)))
        if augment:
            images = augment(images)
        target = torch.from_numpy(table.column(TARGET).to_numpy().astype(np.int64))
        usable = np.array([not code for code in table.column(CODE).to_pylist()])
        weight = torch.from_numpy(usable.astype(np.float32)) * (target >= 0)
        if self.device.type == "cuda":
            images = images.pin_memory()
        return images, target.clamp(min=0).to(self.device), weight.to(self.device)

    def _forward(self, images: torch.Tensor) -> torch.Tensor:
        with autocast(self.device, self.precision):
            return self.model(self.normalize(images)).float()

    def _report(self, metrics: dict[str, Any], *, with_checkpoint: bool) -> None:
        if not with_checkpoint or self.rank != 0:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, WEIGHTS_NAME).write_bytes(state_to_bytes(self.plain.state_dict()))
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def make_optimizer(model: nn.Module, config: LoopConfig, num_steps: int) -> tuple[torch.optim.Optimizer, Any]:
    """AdamW over what is trainable, head and backbone with rates of their own: a tenth of warm-up, then a cosine."""
    head = f"{head_name(model)}."
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = config.head_lr if name.startswith(head) else config.backbone_lr
            groups.setdefault(rate, []).append(parameter)
    parts = [{"params": parameters, "lr": rate} for rate, parameters in groups.items()]
    optimizer = torch.optim.AdamW(parts, weight_decay=config.weight_decay)
    warm_up = max(1, num_steps // 10)
    schedules = torch.optim.lr_scheduler
    rise = schedules.LinearLR(optimizer, start_factor=1 / (warm_up + 1), total_iters=warm_up)
    fall = schedules.CosineAnnealingLR(optimizer, T_max=max(1, num_steps - warm_up))
    return optimizer, schedules.SequentialLR(optimizer, [rise, fall], milestones=[warm_up])


def _tally(losses: torch.Tensor, logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    correct = (logits.argmax(1) == target) * weight
    return torch.stack([(losses * weight).sum(), correct.sum(), weight.sum()]).detach().double().cpu()


def _count_codes(table: pa.Table) -> torch.Tensor:
    counts = torch.zeros(len(_CODES), dtype=torch.float64)
    for code in table.column(CODE).to_pylist():
        if code in ERROR_CODES:
            counts[_CODES.index(code)] += 1
    return counts
