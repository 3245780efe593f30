"""Pretrained weights: by torchvision's name, or by the address of a state dict, safetensors file or bundle of ours."""

import io
import os
import re
import urllib.error
from collections.abc import Callable
from typing import NamedTuple

import safetensors.torch
import torch
from torch import nn

from retailray import storage
from retailray.errors import ModelError
from retailray.interrupts import importing
from retailray.models.backbones import IMAGENET_MEAN, IMAGENET_STD, build_model, head_name, initialize_head, load_state
from retailray.models.bundle import load_bundle
from retailray.models.cnn import NUM_CONVOLUTIONS

# torchvision's DenseNet files still have the dots of an older module layout
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$")
_AUXILIARY = (
    "aux1.",
    "aux2.",
    "AuxLogits.",
)  # GoogLeNet's and Inception's side heads, which fine-tuning leaves out


class Pretrained(NamedTuple):
    """A model, and the mean and standard deviation of each channel that its input expects."""

    network: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]


def pretrained_model(arch: str, weights: str, num_classes: int, *, seed: int, image_size: int = 224) -> Pretrained:
    """A model with pretrained backbone and a fresh head.

    ``weights``: ``none``; an address that ends in ``.pth``, ``.pt`` or ``.safetensors``; the address of a bundle
    (contains ``/``); or a name that torchvision knows, downloaded by torchvision's own code unless staged.

    Raises:
        ModelError: no such architecture or weights, or they do not fit; says what is missing and how to stage.
        StorageError: the address cannot be read.
    """
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    torch.manual_seed(seed)  # weights none: the whole model is drawn here
    model = build_model(arch, num_classes, image_size=image_size)
    if weights != "none":
        if "/" in weights or weights.endswith((".pth", ".pt", ".safetensors")):
            state, mean, std = _from_address(arch, storage.normalize(weights))
        else:
            state, mean, std = _from_torchvision(arch, weights)
        _load_backbone(model, state, source=weights)
    initialize_head(model, seed=seed)
    return Pretrained(model, mean, std)


def _from_torchvision(arch: str, name: str) -> tuple[dict[str, torch.Tensor], tuple[float, ...], tuple[float, ...]]:
    if arch in NUM_CONVOLUTIONS:
        raise ModelError(f"model.weights = {name!r}: {arch} has no pretrained weights; leave it out, or set it to none")
    with importing():
        import torchvision

    choices = torchvision.models.get_model_weights(arch)
    try:
        weights = choices[name] if name != "DEFAULT" else choices.DEFAULT
    except KeyError as error:
        names = ", ".join([*choices.__members__, "none"])
        raise ModelError(
            f"model.weights = {name!r}: {arch} has {names}; an address has a / or ends in .pth or .safetensors"
        ) from error
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except (urllib.error.URLError, OSError) as error:
        folder = os.path.join(torch.hub.get_dir(), "checkpoints")
        raise ModelError(
            f"model.weights = {name!r}: cannot download {weights.url} ({error}). Without a network, put that file into "
            f"{folder} (TORCH_HOME moves it), or give the address of a .pth or .safetensors file as model.weights"
        ) from error
    transform = weights.transforms()
    return state, tuple(transform.mean), tuple(transform.std)


def _from_address(arch: str, address: str) -> tuple[dict[str, torch.Tensor], tuple[float, ...], tuple[float, ...]]:
    if address.endswith(".safetensors"):
        return _parse(address, safetensors.torch.load), IMAGENET_MEAN, IMAGENET_STD
    if address.endswith((".pth", ".pt")):
        return _parse(address, _load_pth), IMAGENET_MEAN, IMAGENET_STD
    bundle = load_bundle(address)
    if bundle.meta.arch != arch:
        raise ModelError(f"model.weights = {address}: the bundle is a {bundle.meta.arch}, model.arch is {arch}")
    return bundle.state, bundle.meta.transform.mean, bundle.meta.transform.std


def _parse(address: str, reader: Callable[[bytes], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    data = storage.read_bytes(address)
    try:
        return reader(data)
    except Exception as error:  # pickle, zip and safetensors readers each raise their own
        text = " ".join(str(error).split())[:300]
        raise ModelError(
            f"model.weights = {address}: not a plain state dict ({type(error).__name__}: {text})"
        ) from error


def _load_pth(data: bytes) -> dict[str, torch.Tensor]:
    """A state dict, bare or under ``state_dict`` or ``model``, as training scripts save it. Never unpickles code."""
    loaded = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise ValueError(f"expected names to tensors, found {type(loaded).__name__}")
    return {name.removeprefix("module."): value for name, value in loaded.items()}


def _load_backbone(model: nn.Module, state: dict[str, torch.Tensor], *, source: str) -> None:
    """Everything but the head must be there and fit; half-precision weights are widened."""
    if type(model).__name__ == "DenseNet":  # by name, which asks for no import of torchvision
        state = {_OLD_DENSENET.sub(r"\1\2", name): value for name, value in state.items()}
    head = f"{head_name(model)}."
    own = model.state_dict()
    wanted = {name for name in own if not name.startswith(head)}
    missing = sorted(wanted - state.keys())
    misfits = [
        f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
        for name in sorted(wanted - set(missing))
        if state[name].shape != own[name].shape
    ]
    # counters of BatchNorm are absent from old checkpoints and irrelevant to what a frozen layer computes
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    strange = sorted(name for name in state if name not in own and not name.startswith((head, *_AUXILIARY)))
    found = {"tensors missing": missing, "of another shape": misfits, "that the model does not have": strange}
    problems = [f"{len(names)} {what}, first {names[0]}" for what, names in found.items() if names]
    if problems:
        raise ModelError(f"model.weights = {source}: does not fit {type(model).__name__}: {'; '.join(problems)}")
    load_state(model, {name: state[name] for name in wanted & state.keys()}, strict=False)
