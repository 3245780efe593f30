"""A model as a list of blocks and a head, cut anywhere between them: what is frozen, what is trained.

Running the blocks in order and then the head equals running the model (tested for every family). The blocks hold the
model's own layers, so state dicts, optimizers and gradients see one model. The last block ends with what the family
pools and normalises; the head is the layer that makes the logits, with the dropout before it.
"""

import copy
import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from retailray.errors import ModelError

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


def eval_mode(chain: BlockSequence) -> None:
    """As the network serves. A block that shares its layers with the network has a mode of its own."""
    for _, block in chain.blocks:
        block.eval()
    chain.head.eval()


def batch_norms(chain: BlockSequence, cut: int) -> list[nn.Module]:
    """The BatchNorm layers of the blocks from ``cut`` on and of the head, which learn from the rows of a batch."""
    return [module for module in chain.suffix(cut).modules() if isinstance(module, _BatchNorm)]


class Apply(nn.Module):
    """A function of tensors as a layer."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def chain_of(blocks: Iterable[Named], end: Sequence[nn.Module], head: Sequence[nn.Module]) -> BlockSequence:
    """``end`` closes the last block."""
    *before, (name, last) = blocks
    return BlockSequence([*before, (name, nn.Sequential(last, *end))], nn.Sequential(*head))


def body_and_head(model: nn.Module, head_name: str) -> BlockSequence:
    """One block, which is all of the network but the layer of that name, and a head, which is that layer.

    For networks whose layers are not known to us: the head is trained alone, or all of it. The block is the network's
    own forward with nothing in the head's place.
    """
    layer = model.get_submodule(head_name)
    head = nn.Sequential(layer)
    if isinstance(layer, nn.Conv2d):  # of one pixel; what flattens its logits now flattens what enters it
        head = nn.Sequential(nn.Unflatten(1, (layer.in_channels, 1, 1)), layer, nn.Flatten())
    return BlockSequence([("body", _without(model, head_name.split(".")))], head)


def _without(module: nn.Module, path: list[str]) -> nn.Module:
    """The same module with the same tensors, in which the layer at the end of the path hands on what it is given."""
    shallow = copy.copy(module)
    first, *rest = path
    child = module.get_submodule(first)
    shallow._modules = dict(module._modules) | {first: _without(child, rest) if rest else nn.Identity()}
    return shallow


def children(name: str, module: nn.Module) -> list[Named]:
    """The children of a module, named after it."""
    return [(f"{name}.{key}", child) for key, child in module.named_children()]
