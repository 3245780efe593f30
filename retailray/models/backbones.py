"""Torchvision's classification models, and the small baselines, by name, with a head of our own size."""

import difflib

import torch
from torch import nn

from retailray.errors import ModelError
from retailray.interrupts import importing
from retailray.models.cnn import NUM_CONVOLUTIONS, SmallCNN

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def arch_names() -> list[str]:
    with importing():
        import torchvision

    return [*NUM_CONVOLUTIONS, *torchvision.models.list_models(module=torchvision.models)]


def build_model(arch: str, num_classes: int, *, image_size: int = 224) -> nn.Module:
    """An untrained model with ``num_classes`` outputs: float ``(B, 3, H, W)`` to logits ``(B, num_classes)``.

    ``image_size`` [px] matters to models that see one size only: the transformers and the small baselines.

    Raises:
        ModelError: there is no such model, or not at this image size.
    """
    if arch in NUM_CONVOLUTIONS:
        return SmallCNN(NUM_CONVOLUTIONS[arch], num_classes, image_size=image_size)
    if arch not in arch_names():
        near = difflib.get_close_matches(arch, arch_names(), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"one of: {', '.join(arch_names())}"
        raise ModelError(f"model.arch = {arch!r}: there is no such model; {hint}")
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


def load_state(model: nn.Module, state: dict[str, torch.Tensor], *, strict: bool = True) -> None:
    """``load_state_dict`` for tensors that come without PyTorch's metadata (MNASNet asks for its version)."""
    with_metadata = model.state_dict()
    for name in with_metadata.keys() - state.keys():
        del with_metadata[name]
    with_metadata.update(state)
    model.load_state_dict(with_metadata, strict=strict)


def head_name(model: nn.Module) -> str:
    """The dotted name of the layer that makes the logits: the last linear one, or convolution (SqueezeNet)."""
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    linear = [name for name, module in layers if isinstance(module, nn.Linear)]
    return linear[-1] if linear else layers[-1][0]


def initialize_head(model: nn.Module, *, seed: int) -> None:
    """Fresh, seeded weights for the head: zero bias, small normal weights, so that all classes start alike."""
    head = model.get_submodule(head_name(model))
    assert isinstance(head, nn.Linear | nn.Conv2d)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * 0.01)
        if head.bias is not None:
            head.bias.zero_()
