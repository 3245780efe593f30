"""A model as a list of blocks and a head, cut anywhere between them: what is frozen, what is trained.

Running the blocks in order and then the head equals running the model (every family of torchvision is tested). The
blocks hold the model's own layers, so state dicts, optimizers and gradients see one model. The last block ends with
what the family pools and normalises; the head is the layer that makes the logits, with the dropout before it.
"""

import dataclasses
import re

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from retailray.errors import ModelError
from retailray.interrupts import importing
from retailray.models.cnn import SmallCNN

TRAINABLE = re.compile(r"head|all|last[1-9]\d*")
Named = tuple[str, nn.Module]


@dataclasses.dataclass(frozen=True)
class BlockSequence:
    """``blocks`` from the pixels up, each with its name; then ``head``: ``(B, ...)`` to logits ``(B, num_classes)``."""

    blocks: list[Named]
    head: nn.Module

    def num_frozen_blocks(self, trainable: str) -> int:
        """How many blocks stay frozen under ``head``, ``last1``, ``last2``, ... or ``all``.

        Raises:
            ModelError: the model has fewer blocks.
        """
        assert TRAINABLE.fullmatch(trainable), trainable
        if trainable in ("head", "all"):
            return len(self.blocks) if trainable == "head" else 0
        wanted = int(trainable.removeprefix("last"))
        if wanted > len(self.blocks):
            raise ModelError(
                f"model.trainable or train.phases: {trainable!r}, and the model has {len(self.blocks)} blocks "
                f"({', '.join(name for name, _ in self.blocks)}); last{len(self.blocks)} is all of it"
            )
        return len(self.blocks) - wanted

    def run(self, start: int, stop: int) -> nn.Sequential:
        """Blocks ``start`` to ``stop``, without the head."""
        return nn.Sequential(*[module for _, module in self.blocks[start:stop]])

    def suffix(self, start: int) -> nn.Sequential:
        """Blocks from ``start`` on, and the head."""
        return nn.Sequential(*[module for _, module in self.blocks[start:]], self.head)


def freeze(chain: BlockSequence, cut: int) -> None:
    """Only the head and the blocks from ``cut`` on take gradients. Pair with :func:`train_mode`."""
    for index, (_, block) in enumerate(chain.blocks):
        block.requires_grad_(index >= cut)
    chain.head.requires_grad_(True)


def train_mode(chain: BlockSequence, cut: int) -> None:
    """Training mode for what is trained; what is frozen stays as it serves, its BatchNorm and dropout in eval."""
    for index, (_, block) in enumerate(chain.blocks):
        block.train(index >= cut)
    chain.head.train()


def batch_norms(chain: BlockSequence, cut: int) -> list[nn.Module]:
    """The BatchNorm layers of the blocks from ``cut`` on and of the head, which learn from the rows of a batch."""
    return [module for module in chain.suffix(cut).modules() if isinstance(module, _BatchNorm)]


def to_blocks(model: nn.Module) -> BlockSequence:
    """The blocks and the head of a model of :func:`retailray.models.backbones.build_model`."""
    if isinstance(model, SmallCNN):
        return _cnn(model)
    with importing():
        from retailray.models.families import FAMILIES
    for family, blocks_of in FAMILIES.items():
        if isinstance(model, family):
            return blocks_of(model)
    raise ModelError(f"{type(model).__name__} is of no family whose blocks are known: {list(FAMILIES)}")


def _cnn(model: SmallCNN) -> BlockSequence:
    return BlockSequence(
        [*children("convolutions", model.convolutions), ("dense", model.dense)], nn.Sequential(model.head)
    )


def children(name: str, module: nn.Module) -> list[Named]:
    """The children of a module, named after it."""
    return [(f"{name}.{key}", child) for key, child in module.named_children()]
