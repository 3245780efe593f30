"""Phases: which blocks are trained for how many epochs at which rates, and how few rows a step may have."""

import dataclasses
from collections.abc import Sequence

from retailray import events
from retailray.config import TrainConfig
from retailray.errors import ConfigError
from retailray.models.blocks import BlockSequence, batch_norms
from retailray.training.batches import num_steps

# an eighth of the epochs goes to the head alone, so that its first gradients wreck no features; more, or a higher rate
# there, fits the head so well that the blocks learn less (benchmarks/quality.py)
HEAD_SHARE = 8
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
    rates = config.default_rates
    default_head = rates.only_head if only_head else rates.head
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
                backbone_lr=backbone_lr or train.backbone_lr or rates.backbone,
                trains_batch_norm=bool(batch_norms(chain, frozen)),
            )
        )
    return phases


def told_rates(phases: Sequence[ResolvedPhase]) -> list[dict[str, float]]:
    """The learning rates of each phase, as a ``start`` event has them."""
    return [{"head": phase.head_lr, "backbone": phase.backbone_lr} for phase in phases]
