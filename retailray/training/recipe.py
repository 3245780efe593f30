"""Phases: which blocks are trained for how many epochs at which rates."""

import dataclasses

from retailray.config import TrainConfig
from retailray.models.blocks import Chain

# an eighth of the epochs goes to the head alone, so that its first gradients wreck no features; more, or a higher rate
# there, fits the head so well that the blocks learn less (benchmarks/quality.py)
HEAD_SHARE = 8
ONLY_HEAD_LR, HEAD_LR = 1e-2, 3e-3


@dataclasses.dataclass(frozen=True)
class Stage:
    """A phase with everything resolved.

    ``cut``: blocks before it are frozen. ``reads``: blocks before it are as they were when training began, so that what
    they compute can be kept; it only ever falls from phase to phase.
    """

    epochs: int
    trainable: str
    cut: int
    reads: int
    head_lr: float
    backbone_lr: float


def resolve(config: TrainConfig, chain: Chain) -> list[Stage]:
    """The stages of a run: ``train.phases``, or the head alone and then ``model.trainable`` (linear probing, then
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
    default = ONLY_HEAD_LR if {depth for _, depth, _, _ in wanted} == {"head"} else HEAD_LR
    stages: list[Stage] = []
    for epochs, trainable, head_lr, backbone_lr in wanted:
        cut = chain.cut(trainable)
        stages.append(
            Stage(
                epochs=epochs,
                trainable=trainable,
                cut=cut,
                reads=min([cut, *(stage.reads for stage in stages)]),
                head_lr=head_lr or train.head_lr or default,
                backbone_lr=backbone_lr or train.backbone_lr,
            )
        )
    return stages
