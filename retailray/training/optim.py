"""Optimizers, schedules and averaged weights over the trained part of a model."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from retailray.config import TrainSection
from retailray.errors import ModelError
from retailray.models.blocks import BlockSequence
from retailray.training.phases import ResolvedPhase

if TYPE_CHECKING:
    from retailray.training.loop import State


def make_optimizer(chain: BlockSequence, phase: ResolvedPhase, train: TrainSection) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov momentum, fused, over what the phase trains.

    Rates: the head's own; the backbone's in the last block and ``layer_decay`` of it from block to block downwards
    (ULMFiT's discriminative rates, arXiv 1801.06146). Decayed are the kernels and matrices of layers, and nothing else:
    no biases, normalisation layers, class tokens, position embeddings, tables of position biases and scales, as in the
    recipes of ViT, Swin (also its second version) and ConvNeXt.
    """
    groups = list(_groups(chain, phase, train))
    if train.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=train.momentum, nesterov=train.momentum > 0, fused=True)
    return torch.optim.AdamW(groups, fused=True)


def _groups(chain: BlockSequence, phase: ResolvedPhase, train: TrainSection) -> Iterator[dict[str, object]]:
    trained = [module for _, module in chain.blocks[phase.num_frozen_blocks :]]
    parts = [(phase.head_lr, chain.head)]
    parts += [(phase.backbone_lr * train.layer_decay**below, block) for below, block in enumerate(reversed(trained))]
    for rate, module in parts:
        decayed: list[nn.Parameter] = []
        spared: list[nn.Parameter] = []
        for name, parameter in module.named_parameters():
            (decayed if _is_decayed(name, parameter) else spared).append(parameter)
        for parameters, decay in ((decayed, train.weight_decay), (spared, 0.0)):
            if parameters:
                yield {"params": parameters, "lr": rate, "weight_decay": decay}


def _is_decayed(name: str, parameter: nn.Parameter) -> bool:
    # a layer calls its matrix `weight`, attention its three together `in_proj_weight`; what makes Swin v2's table of
    # position biases is a network of its own, and spared as the table is
    return parameter.ndim > 1 and name.endswith("weight") and "cpb_mlp" not in name


def make_schedule(optimizer: torch.optim.Optimizer, num_steps: int, warmup: float) -> LRScheduler:
    """Linear warm-up over a share of the steps, then a cosine to zero."""
    schedules = torch.optim.lr_scheduler
    rising = max(1, int(num_steps * warmup)) if warmup else 0
    fall = schedules.CosineAnnealingLR(optimizer, T_max=max(1, num_steps - rising))
    if not rising:
        return fall
    rise = schedules.LinearLR(optimizer, start_factor=1 / (rising + 1), total_iters=rising)
    return schedules.SequentialLR(optimizer, [rise, fall], milestones=[rising])


def load_optimizer(optimizer: torch.optim.Optimizer, schedule: LRScheduler, state: "State") -> None:
    """Continue from ``state["optimizer"]`` and ``state["schedule"]``, with the peak rates and decays of this config.

    They are unchanged, except in population based training, where a trial loads the state of another one and keeps
    its own rates.
    """
    own = [{name: group[name] for name in ("initial_lr", "weight_decay")} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(state["optimizer"])
    except ValueError as error:  # parameters are grouped in another way
        raise ModelError(
            f"the checkpoint was written by a version of retailray that trained in another way ({error}); start anew: "
            "leave train.resume or tune.resume out"
        ) from error
    schedule.load_state_dict(state["schedule"])
    for group, mine in zip(optimizer.param_groups, own, strict=True):
        group["lr"] *= mine["initial_lr"] / group["initial_lr"]
        group.update(mine)
    for part in getattr(schedule, "_schedulers", [schedule]):
        part.base_lrs = [mine["initial_lr"] for mine in own]


def make_average(module: nn.Module, decay: float) -> AveragedModel | None:
    """Exponential moving average of weights and buffers; None where ``decay`` is 0."""
    if not decay:
        return None
    average = get_ema_multi_avg_fn(decay)

    def update(kept: Any, current: Any, number: object) -> None:
        if kept[0].is_floating_point():
            average(kept, current, number)
            return
        for mine, other in zip(kept, current, strict=True):  # counters and indices have no average
            mine.copy_(other)

    return AveragedModel(module, multi_avg_fn=update, use_buffers=True)
