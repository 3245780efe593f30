"""Phases: which blocks are trained for how many epochs at which rates, and how few rows a step may have."""

import dataclasses
from collections.abc import Sequence

from retailray import events
from retailray.config import TrainConfig, TrainSection
from retailray.errors import ConfigError
from retailray.models.blocks import BlockSequence, batch_norms
from retailray.training.batches import num_steps

# an eighth of the epochs goes to the head alone, so that its first gradients wreck no features; more, or a higher rate
# there, fits the head so well that the blocks learn less (benchmarks/quality.py)
HEAD_SHARE = 8
ONLY_HEAD_LR, HEAD_LR = 1e-2, 3e-3
BACKBONE_LR = 1e-3  # of convolutional networks (benchmarks/quality.py), and of all that are trained from random weights
# of pretrained networks with LayerNorm: the recipes of ConvNeXt for fine-tuning (arXiv 2201.03545, appendix A.2) and of
# Hugging Face's image classification for ViT and Swin
LAYER_NORM_LR = 5e-5
RATES_BATCH_SIZE = 64  # that default rates are for
MIN_BATCHNORM_ROWS = 8  # of a worker in one step: the statistics of fewer are noise


@dataclasses.dataclass(frozen=True)
class ResolvedPhase:
    """A phase with everything resolved.

    Attributes:
        num_frozen_blocks: the first blocks, which are not trained.
        num_cached_blocks: the first blocks that are still as they were when training began, so that what they compute
            can be cached; never more than in the phase before.
    """

    epochs: int
    trainable: str
    num_frozen_blocks: int
    num_cached_blocks: int
    head_lr: float
    backbone_lr: float
    trains_batch_norm: bool = False


def min_rows(phases: Sequence[ResolvedPhase]) -> int:
    """Rows that each worker needs in every step of these phases."""
    return MIN_BATCHNORM_ROWS if any(phase.trains_batch_norm for phase in phases) else 1


def num_passes(num_rows: int, device_batch_size: int | None) -> int:
    """In how many forward and backward passes a worker takes its rows of a step (``train.device_batch_size``)."""
    return max(1, -(-num_rows // device_batch_size)) if device_batch_size else 1


def check_batch_size(
    phases: Sequence[ResolvedPhase],
    *,
    batch_sizes: Sequence[int],
    num_workers: int,
    num_rows: int,
    device_batch_size: int | None = None,
) -> None:
    """Refuse what would give a worker too few rows in a step or in one of its passes, or none.

    Args:
        batch_sizes: that fits may have. num_rows: training rows. num_workers: data-parallel workers of one fit.

    Raises:
        ConfigError: with the numbers and what to set.
    """
    needed, batch_size = min_rows(phases), min(batch_sizes)
    why = f"BatchNorm of the trained blocks needs {needed} rows" if needed > 1 else "each needs a row"
    head = ", or train the head alone (model.trainable head)" if needed > 1 else ""
    if batch_size < needed * num_workers:
        fewer = f", or lower cluster.num_workers to {batch_size // needed}" if batch_size >= needed else ""
        raise ConfigError(
            [
                f"train.batch_size = {batch_size} on {num_workers} workers leaves {batch_size / num_workers:.3g} rows "
                f"per worker and step, and {why}: raise train.batch_size to {needed * num_workers}{fewer}{head}"
            ]
        )
    if num_rows < needed * num_workers:
        fewer = f", or lower cluster.num_workers to {num_rows // needed}" if num_rows >= needed else ""
        raise ConfigError(
            [
                f"{num_rows} training rows leave {num_rows / num_workers:.3g} rows for each of {num_workers} workers, "
                f"and {why}: add rows{fewer}{head}"
            ]
        )
    # of a little more than one pass, each of two passes gets half
    share = _largest_share(max(batch_sizes), num_workers, num_rows, needed)
    if device_batch_size and device_batch_size < min(share, 2 * needed - 1):
        raise ConfigError(
            [
                f"train.device_batch_size = {device_batch_size} leaves as few as {(device_batch_size + 1) // 2} rows "
                f"for a forward pass, and {why}: raise it to {min(share, 2 * needed)}{head}"
            ]
        )
    if device_batch_size and device_batch_size >= share:
        note = f"train.device_batch_size = {device_batch_size} changes nothing: a worker's share of a batch is {share}"
        events.emit("warning", note=note)


def _rate_factor(train: TrainSection) -> float:
    """From the default rates to those of a larger batch, which takes fewer steps that are less noisy.

    In proportion with SGD (Goyal et al. 2017, arXiv 1706.02677), by the square root with AdamW (Malladi et al. 2022,
    arXiv 2205.10287); after a warm-up either way (``train.warmup_ratio``).
    """
    larger = max(1.0, train.batch_size / RATES_BATCH_SIZE)
    return larger if train.optimizer == "sgd" else larger**0.5


def _largest_share(batch_size: int, num_workers: int, num_rows: int, needed: int) -> int:
    """Rows of a worker in one step: where each needs some, steps may be fewer, and larger than was asked for."""
    largest_step = -(-num_rows // num_steps(num_rows, batch_size, num_workers, needed))
    return -(-max(batch_size, largest_step) // num_workers)


def resolve(config: TrainConfig, chain: BlockSequence) -> list[ResolvedPhase]:
    """The phases of a run: ``train.phases``, or the head alone and then ``model.trainable`` (linear probing, then
    fine-tuning: Kumar et al. 2022, arXiv 2202.10054).

    Raises:
        ModelError: a depth that the model does not have.
    """
    train = config.train
    if train.phases:
        wanted = [(phase.epochs, phase.trainable, phase.head_lr, phase.backbone_lr) for phase in train.phases]
    else:
        alone = train.epochs // HEAD_SHARE if config.model.weights != "none" else 0
        depth = config.model.trainable
        if depth == "head" or not alone:
            wanted = [(train.epochs, depth, None, None)]
        else:
            wanted = [(alone, "head", None, None), (train.epochs - alone, depth, None, None)]
    only_head = {depth for _, depth, _, _ in wanted} == {"head"}
    factor = _rate_factor(train)
    default_head = factor * (ONLY_HEAD_LR if only_head else HEAD_LR)
    low = config.model.is_pretrained_with_layer_norm and train.optimizer == "adamw"  # which these recipes train with
    default_backbone = factor * (LAYER_NORM_LR if low else BACKBONE_LR)
    phases: list[ResolvedPhase] = []
    for epochs, trainable, head_lr, backbone_lr in wanted:
        frozen = chain.num_frozen_blocks(trainable)
        phases.append(
            ResolvedPhase(
                epochs=epochs,
                trainable=trainable,
                num_frozen_blocks=frozen,
                num_cached_blocks=min([frozen, *(phase.num_cached_blocks for phase in phases)]),
                head_lr=head_lr or train.head_lr or default_head,
                backbone_lr=backbone_lr or train.backbone_lr or default_backbone,
                trains_batch_norm=bool(batch_norms(chain, frozen)),
            )
        )
    return phases
