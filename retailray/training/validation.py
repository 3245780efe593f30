"""What a model says of rows that it is not trained on: measures of an epoch, logits, calibration. In torch alone."""

from collections.abc import Container
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from retailray.models.blocks import eval_mode
from retailray.models.calibration import Calibration, calibrate
from retailray.models.embedding import SIZE, sketch
from retailray.training.best_epoch import ValidationMeasures
from retailray.training.network import Batches, Network
from retailray.training.numbers import Measure
from retailray.training.rows import SPLIT_OF_ROLE

if TYPE_CHECKING:
    from retailray.training.loop import OpenBatches
    from retailray.training.phases import ResolvedPhase

CALIBRATION_ROWS = 50_000  # validation rows that the temperature is fitted on, at most
TOP_K = 5
LOGITS_BYTES = 256 << 20  # memory limit of the logits that fit the temperature; they are copied several times


@torch.no_grad()
def validate(
    network: Network, batches: Batches, num_cached_blocks: int, numbers: Measure | None = None
) -> ValidationMeasures:
    """Loss, top-1, macro F1 (of ``numbers`` how far predictions are off) and the number of rows, over all workers."""
    eval_mode(network.chain)
    sums = torch.zeros(5, dtype=torch.float64, device=network.device)
    counts = torch.zeros(3, network.num_classes, dtype=torch.float64, device=network.device)
    for _, (values, target, weight, row_ids) in network.batches(batches, None):
        _, logits = network.forward(values, num_cached_blocks)
        losses = nn.functional.cross_entropy(logits, target, reduction="none")
        guess = logits.argmax(1)
        correct = (guess == target) * weight
        sums[:3] += torch.stack([(losses * weight).sum(), correct.sum(), weight.sum()]).double()
        if numbers:
            sums[3] += (numbers.errors(logits, row_ids) * weight).sum()
            sums[4] += (numbers.values(row_ids).abs() * weight).sum()
        for row, (labels, amount) in enumerate(((target, correct), (guess, weight), (target, weight))):
            counts[row].index_add_(0, labels, amount.double())
    loss_sum, right, count, errors, amount = network.world.sum(sums).tolist()
    hits, guessed, support = network.world.sum(counts)
    found: ValidationMeasures = {"validation_loss": loss_sum / max(count, 1), "validation_rows": int(count)}
    if numbers:
        wape: ValidationMeasures = {"validation_wape": errors / amount} if amount else {}  # type: ignore[typeddict-item]
        return found | {"validation_mae": errors / max(count, 1)} | wape
    f1 = 2 * hits / (guessed + support).clamp(min=1)
    macro_f1 = float(f1[support > 0].mean()) if count else 0.0
    return found | {"validation_top1": right / max(count, 1), "validation_macro_f1": macro_f1}


class Validator:
    """Runs whole splits through the model with its current weights; batches are those of the last phase."""

    def __init__(self, network: Network, open_batches: "OpenBatches", phase: "ResolvedPhase") -> None:
        self._network, self._open, self._phase = network, open_batches, phase

    @torch.no_grad()
    def outputs(self, name: str, *, limit: int | None = None) -> tuple[torch.Tensor, ...]:
        """Logits ``(N, C)``, targets ``(N,)``, embeddings ``(N, SIZE)`` and row ids ``(N,)`` of a split.

        On rank 0 of all ranks, elsewhere of its own.

        ``limit``: return about this many of the rows, evenly spread.
        """
        eval_mode(self._network.chain)
        batches, num_cached_blocks = self._open(name, self._phase)
        every = max(1, -(-batches.num_rows // limit)) if limit else 1
        none = torch.zeros(0, dtype=torch.int64)
        kept, seen = _Rows(torch.zeros(0, self._network.num_classes), none, torch.zeros(0, SIZE), none), 0
        for _, (values, target, weight, row_ids) in self._network.batches(batches, None):
            found = torch.nonzero(weight > 0).flatten()
            usable = found[-seen % every :: every]
            seen += len(found)
            features, logits = self._network.forward(values, num_cached_blocks)
            kept.add(logits[usable], target[usable], sketch(features[usable]), row_ids[usable])
        gathered = self._network.world.gather_to_first(kept.all())
        return tuple(map(torch.cat, zip(*gathered, strict=True)))

    @torch.no_grad()
    def guesses(self, name: str, temperature: float) -> tuple[torch.Tensor, ...]:
        """Targets ``(N,)``, the best five classes ``(N, 5)`` and their calibrated scores, those of the targets,
        float ``(N,)``, and row ids ``(N,)``, of a split, on rank 0.

        The size of the result does not depend on the number of classes.
        """
        eval_mode(self._network.chain)
        batches, num_cached_blocks = self._open(name, self._phase)
        num = min(TOP_K, self._network.num_classes)
        none = torch.zeros(0, dtype=torch.int64)
        kept = _Rows(none, none.reshape(0, num), torch.zeros(0, num), torch.zeros(0), none)
        for _, (values, target, weight, row_ids) in self._network.batches(batches, None):
            usable = weight > 0
            _, logits = self._network.forward(values, num_cached_blocks)
            probabilities = (logits[usable] / temperature).softmax(1)
            scores, classes = probabilities.topk(num)
            own = probabilities.gather(1, target[usable][:, None]).flatten()
            kept.add(target[usable], classes, scores, own, row_ids[usable])
        gathered = self._network.world.gather_to_first(kept.all())
        return tuple(map(torch.cat, zip(*gathered, strict=True)))

    def calibration(self, splits: Container[str]) -> Calibration | None:
        """Calibrate on the validation rows of each role, on rank 0; None elsewhere.

        ``splits``: those that there are batches of.
        """
        found, roles = [], []
        limit = min(CALIBRATION_ROWS, LOGITS_BYTES // (4 * self._network.num_classes * len(SPLIT_OF_ROLE)))
        for role, name in SPLIT_OF_ROLE.items():
            if name in splits:
                found.append(self.outputs(name, limit=limit))
                roles += [role] * len(found[-1][1])
        if self._network.world.rank:
            return None
        logits, targets, embeddings, row_ids = map(torch.cat, zip(*found, strict=True))
        return calibrate(logits, targets, embeddings, row_ids, np.array(roles, dtype=object))


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
