"""Torchvision's classification models, and the small baselines, by name."""

import dataclasses
import difflib
import os
import re
import urllib.error
from typing import Any

import torch
from torch import nn

from retailray.errors import ModelError
from retailray.interrupts import importing
from retailray.models.backbones import IMAGENET_MEAN, IMAGENET_STD, Weights
from retailray.models.blocks import BlockSequence
from retailray.models.cnn import NUM_CONVOLUTIONS, SmallCNN
from retailray.models.meta import EvalTransform

# torchvision's DenseNet files still have the dots of an older module layout
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$")
# GoogLeNet's and Inception's side heads, which fine-tuning leaves out
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")


def arch_names() -> list[str]:
    with importing():
        import torchvision

    return [*NUM_CONVOLUTIONS, *torchvision.models.list_models(module=torchvision.models)]


@dataclasses.dataclass(frozen=True)
class TorchvisionBackbone:
    """:class:`retailray.models.backbones.Backbone` of a name of torchvision's, or ``cnn1`` to ``cnn3``."""

    arch: str

    @property
    def config(self) -> dict[str, object]:
        return {}

    def build(self, num_classes: int, *, image_size: int) -> nn.Module:
        arch = self.arch
        if arch in NUM_CONVOLUTIONS:
            return SmallCNN(NUM_CONVOLUTIONS[arch], num_classes, image_size=image_size)
        self._check_name()
        import torchvision

        options: dict[str, object] = {}
        if arch in ("googlenet", "inception_v3"):
            # their ImageNet weights expect another normalisation, which the model makes from the usual one
            options = {"aux_logits": False, "init_weights": True, "transform_input": True}
        sizes: dict[str, dict[str, object]] = {
            "vit_": {"image_size": image_size},
            "maxvit_": {"input_size": (image_size, image_size)},
        }
        for prefix, size in sizes.items():
            options |= size if arch.startswith(prefix) else {}
        try:
            return torchvision.models.get_model(arch, weights=None, num_classes=num_classes, **options)
        except (AssertionError, ValueError) as error:
            raise ModelError(f"transform.image_size = {image_size}: {arch} cannot be built for it ({error})") from error

    def _check_name(self) -> None:
        if self.arch not in arch_names():
            near = difflib.get_close_matches(self.arch, arch_names(), n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"one of: {', '.join(arch_names())}"
            raise ModelError(f"model.arch = {self.arch!r}: there is no such model; {hint}")

    def blocks(self, model: nn.Module) -> BlockSequence:
        if isinstance(model, SmallCNN):
            return model.blocks()
        with importing():
            from retailray.models.torchvision_blocks import to_blocks

        return to_blocks(model)

    def head_name(self, model: nn.Module) -> str:
        return head_name(model)

    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return IMAGENET_MEAN, IMAGENET_STD

    def weights(self, name: str) -> Weights:
        weights = self._named(name)
        try:
            state = weights.get_state_dict(progress=False, check_hash=True)
        except (urllib.error.URLError, OSError) as error:
            folder = os.path.join(torch.hub.get_dir(), "checkpoints")
            raise ModelError(
                f"model.weights = {name!r}: cannot download {weights.url} ({error}). Without a network, put that file "
                f"into {folder} (TORCH_HOME moves it), or give the address of a .pth or .safetensors file as "
                "model.weights"
            ) from error
        transform = weights.transforms()
        return Weights(state, tuple(transform.mean), tuple(transform.std))

    def _named(self, name: str) -> Any:
        if self.arch in NUM_CONVOLUTIONS:
            raise ModelError(
                f"model.weights = {name!r}: {self.arch} has no pretrained weights; leave it out, or set it to none"
            )
        with importing():
            import torchvision

        self._check_name()
        choices = torchvision.models.get_model_weights(self.arch)
        try:
            return choices[name] if name != "DEFAULT" else choices.DEFAULT
        except KeyError as error:
            names = ", ".join([*choices.__members__, "none"])
            raise ModelError(
                f"model.weights = {name!r}: {self.arch} has {names}; an address has a / or ends in .pth or .safetensors"
            ) from error

    def eval_transform(self) -> EvalTransform:
        if self.arch in NUM_CONVOLUTIONS:
            raise ModelError(f"{self.arch} has no transform of its own: give bundle.transform")
        preset = self._named("DEFAULT").transforms()
        return EvalTransform(
            resize_size=preset.resize_size[0],
            crop_size=preset.crop_size[0],
            resize="shorter_side",
            interpolation=preset.interpolation.value,
            mean=tuple(preset.mean),
            std=tuple(preset.std),
        )

    def renamed(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if self.arch.startswith("densenet"):
            state = {_OLD_DENSENET.sub(r"\1\2", name): value for name, value in state.items()}
        return {name: value for name, value in state.items() if not name.startswith(_AUXILIARY)}


def head_name(model: nn.Module) -> str:
    """The last linear layer, or convolution (SqueezeNet)."""
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    linear = [name for name, module in layers if isinstance(module, nn.Linear)]
    return linear[-1] if linear else layers[-1][0]
