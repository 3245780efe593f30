"""What can be fine-tuned and served, behind one protocol: networks of torchvision, timm and Hugging Face.

``model.arch`` names one: ``resnet50`` or ``cnn2`` (torchvision's, and our small baselines), ``timm:NAME``, ``hf`` or
``hf:NAME`` (transformers; what the network is made of is in the config of its directory, which ``model.weights``
names).
"""

import hashlib
import importlib
import json
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from retailray.errors import ModelError
from retailray.interrupts import importing
from retailray.models.blocks import BlockSequence
from retailray.models.meta import EvalTransform

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
TIMM, HUGGING_FACE = "timm", "hf"  # before the colon of model.arch


class Weights(NamedTuple):
    """A state dict, and the mean and standard deviation of each channel that its network expects."""

    state: dict[str, torch.Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Backbone(Protocol):
    """A network that is not built yet. Small, and the same in every process."""

    @property
    def arch(self) -> str:
        """As ``model.arch`` names it."""

    @property
    def config(self) -> dict[str, object]:
        """What its library needs beside the name; kept in bundles."""

    def build(self, num_classes: int, *, image_size: int) -> nn.Module:
        """An untrained network: float ``(B, 3, H, W)`` to logits ``(B, num_classes)``.

        ``image_size`` [px] matters to those that see one size only, as most transformers do.

        Raises:
            ModelError: there is no such network, or not at this image size.
        """

    def blocks(self, model: nn.Module) -> BlockSequence:
        """The layers of a network that this backbone built, as named blocks and a head."""

    def head_name(self, model: nn.Module) -> str:
        """The dotted name of the layer that makes the logits."""

    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel, for tensors that come without a word of them."""

    def weights(self, name: str) -> Weights:
        """Pretrained weights by the library's own name; they may be downloaded.

        Raises:
            ModelError: there are none of that name, or they cannot be had; says how to stage them.
        """

    def eval_transform(self) -> EvalTransform:
        """What the library does to pictures before this network sees them.

        Raises:
            ModelError: it cannot be expressed.
        """

    def renamed(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A state dict of the library's, with the names that the network has now."""


def parse_arch(arch: str) -> tuple[str, str]:
    """The library and the name: ``("", "resnet50")``, ``("timm", "vit_tiny_patch16_224")``, ``("hf", "")``."""
    library, colon, name = arch.partition(":")
    if library == HUGGING_FACE:
        return HUGGING_FACE, name
    return (library, name) if colon else ("", arch)


def optional_package(name: str, *, extra: str) -> Any:
    """A package of an extra. Raises ModelError where it is not installed."""
    try:
        with importing():
            return importlib.import_module(name)
    except ImportError as error:
        raise ModelError(f"models of {name} need a package: pip install 'retailray[{extra}]' ({error})") from error


def described(backbone: "Backbone") -> str:
    """A name that tells networks apart whose ``arch`` is alike, as those of transformers are."""
    config = json.dumps(backbone.config, sort_keys=True)
    return backbone.arch if config == "{}" else f"{backbone.arch} {hashlib.sha256(config.encode()).hexdigest()[:12]}"


def plain_name(arch: str) -> str:
    """The name that a bundle has where nobody gave one; it may become part of an address."""
    return arch.replace(":", "-").replace("/", "-")


def backbone_of(arch: str, config: dict[str, object] | None = None) -> Backbone:
    """The backbone of a name. ``config``: of a network of transformers, as :attr:`Backbone.config` has it.

    Raises:
        ModelError: there is no such library, or a package is missing.
    """
    library, name = parse_arch(arch)
    if library == TIMM:
        from retailray.models.timm_backbone import TimmBackbone

        return TimmBackbone.of(arch, config or {})
    if library == HUGGING_FACE:
        from retailray.models.hf_backbone import HuggingFaceBackbone

        return HuggingFaceBackbone.of(arch, config or {})
    if library:
        raise ModelError(
            f"model.arch = {arch!r}: {library!r} is no library we know; write timm:NAME, hf, or a name of torchvision's"
        )
    from retailray.models.torchvision_backbone import TorchvisionBackbone

    return TorchvisionBackbone(name)


def build_model(arch: str, num_classes: int, *, image_size: int = 224) -> nn.Module:
    """An untrained network of a name. Raises ModelError as :meth:`Backbone.build` does."""
    return backbone_of(arch).build(num_classes, image_size=image_size)


def load_state(model: nn.Module, state: dict[str, torch.Tensor], *, strict: bool = True) -> None:
    """``load_state_dict`` for tensors that come without PyTorch's metadata (MNASNet asks for its version)."""
    with_metadata = model.state_dict()
    for name in with_metadata.keys() - state.keys():
        del with_metadata[name]
    with_metadata.update(state)
    model.load_state_dict(with_metadata, strict=strict)


def initialize_head(head: nn.Module, *, seed: int) -> None:
    """Fresh, seeded weights for the layer that makes the logits: zero bias, small normal weights, so that all classes
    start alike."""
    assert isinstance(head, nn.Linear | nn.Conv2d)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * 0.01)
        if head.bias is not None:
            head.bias.zero_()
