"""Optimizer steps of one phase, in torch alone: the same global batch, whatever the number of workers and passes."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from retailray.config import TrainSection
from retailray.models.blocks import batch_norms, freeze
from retailray.models.precision import autocast
from retailray.training.mixing import Mixing
from retailray.training.network import Network
from retailray.training.numbers import Measure
from retailray.training.optim import make_average, make_optimizer, make_schedule
from retailray.training.phases import MIN_BATCHNORM_ROWS, ResolvedPhase, num_passes


class PhaseSteps:
    """What a phase trains, and what changes it: optimizer, schedule, averaged weights.

    Args:
        num_cached_blocks: the first blocks, which what comes in has been through.
        num_steps: of all epochs of the phase.
        class_weights: float ``(C,)`` on the device, or None.
        numbers: how far predictions are from the truth, where labels are numbers.
    """

    def __init__(
        self,
        network: Network,
        train: TrainSection,
        phase: ResolvedPhase,
        *,
        num_cached_blocks: int,
        num_steps: int,
        class_weights: torch.Tensor | None,
        numbers: Measure | None = None,
    ) -> None:
        self.numbers = numbers
        self.network, self.world, self.device, self.train = network, network.world, network.device, train
        self.num_cached_blocks, self.class_weights = num_cached_blocks, class_weights
        freeze(network.chain, phase.num_frozen_blocks)
        self.suffix = network.chain.suffix(phase.num_frozen_blocks)
        self.frozen = network.chain.run(num_cached_blocks, phase.num_frozen_blocks)
        self.norms = batch_norms(network.chain, phase.num_frozen_blocks)
        self.average = make_average(self.suffix, train.ema_decay)
        self.optimizer = make_optimizer(network.chain, phase, train)
        self.schedule = make_schedule(self.optimizer, num_steps, train.warmup_ratio)
        stepped: nn.Module = torch.compile(self.suffix) if train.compile else self.suffix  # type: ignore[assignment]
        if self.world.size > 1:
            stepped = DistributedDataParallel(stepped, device_ids=[self.device] if self.device.type == "cuda" else None)
        self.stepped = stepped
        self.mixing = Mixing(train, network.num_classes, num_cached_blocks)

    @property
    def highest_rate(self) -> float:
        """The highest learning rate of the next step."""
        return max(group["lr"] for group in self.optimizer.param_groups)

    @contextlib.contextmanager
    def norms_of_few(self, num_rows: int) -> Iterator[None]:
        """Let BatchNorm keep its running statistics in a step of too few rows, where rows of a stream have failed."""
        few = num_rows // num_passes(num_rows, self.train.device_batch_size) < MIN_BATCHNORM_ROWS
        for norm in self.norms if few else []:
            norm.eval()
        yield
        for norm in self.norms if few else []:
            norm.train()

    def step(
        self, values: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, row_ids: torch.Tensor
    ) -> torch.Tensor:
        """One optimizer step on this worker's part of a global batch; (loss sum, correct, rows, gradients' norm, sum of
        absolute errors, of numbers)."""
        soft = nn.functional.one_hot(target, self.network.num_classes).float()
        mixing = self.mixing.draw()
        if mixing == "cutmix":
            values, soft = self.mixing.images(values, target)
        inputs = self._run_frozen(values)
        if mixing == "mixup":
            inputs, soft = self.mixing.features(inputs, target)
        if self.numbers:
            soft = soft @ self.numbers.near
        share = weight if self.class_weights is None else weight * (soft @ self.class_weights)
        self.optimizer.zero_grad(set_to_none=True)
        logits, losses = self._add_gradients(inputs, soft, share)
        norm = self._clip_gradients()
        self.optimizer.step()
        self.schedule.step()
        if self.average:
            self.average.update_parameters(self.suffix)
        correct = (logits.argmax(1) == target) * weight
        errors = (self.numbers.errors(logits, row_ids) * weight).sum() if self.numbers else norm.new_zeros(())
        sums = [(losses * weight).sum(), correct.sum(), weight.sum(), norm, errors]
        return torch.stack([one.detach().double() for one in sums])

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

        Losses are cross-entropies, to which the ranked probability score is added where labels are numbers.

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
                more = self.numbers.ranked_score(logits, wanted) if self.numbers else 0.0
                (((losses + more) * weights).sum() * scale).backward()
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
    def averaged(self) -> Iterator[None]:
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
