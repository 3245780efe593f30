"""Pretrained weights by a library's own name, or by an address: state dict, directory of Hugging Face, bundle."""

from typing import NamedTuple

import torch
from torch import nn

from retailray import storage
from retailray.errors import ModelError
from retailray.models.backbones import (
    HUGGING_FACE,
    Backbone,
    Weights,
    backbone_of,
    initialize_head,
    load_state,
    parse_arch,
)
from retailray.models.blocks import BlockSequence
from retailray.models.bundle import load_bundle
from retailray.models.meta import META_NAME, WEIGHTS_NAME, load_meta
from retailray.models.positions import fitted_positions
from retailray.models.state_dicts import ENDINGS, misfits, read_state


class Pretrained(NamedTuple):
    """A network of a backbone, and the mean and standard deviation of each channel that its input expects."""

    network: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    backbone: Backbone

    @property
    def chain(self) -> BlockSequence:
        return self.backbone.blocks(self.network)


def pretrained_model(arch: str, weights: str, num_classes: int, *, seed: int, image_size: int = 224) -> Pretrained:
    """A model with pretrained backbone and a fresh head.

    ``weights``: ``none``; an address that ends in ``.pth``, ``.pt``, ``.bin`` or ``.safetensors``; the address of a
    directory with ``model.safetensors`` (of transformers where ``arch`` is ``hf``) or of a bundle (contains ``/``); or
    a name that the library knows, downloaded by its own code unless staged.

    Raises:
        ModelError: no such architecture or weights, or they do not fit; says what is missing and how to stage.
        StorageError: the address cannot be read.
    """
    torch.manual_seed(seed)  # weights none: the whole model is drawn here
    backbone = find_backbone(arch, weights)
    model = backbone.build(num_classes, image_size=image_size)
    if weights == "none":
        found = Weights({}, *backbone.normalization())
    else:
        found = _read(backbone, weights)
        _load_backbone(backbone, model, found.state, source=weights)
    initialize_head(model.get_submodule(backbone.head_name(model)), seed=seed)
    return Pretrained(model, found.mean, found.std, backbone)


def find_backbone(arch: str, weights: str) -> Backbone:
    """The backbone of ``model.arch``; what a network of transformers is made of is found with its ``weights``.

    Raises:
        ModelError: there is no such library or directory. StorageError: the address cannot be read.
    """
    library, name = parse_arch(arch)
    if library != HUGGING_FACE:
        return backbone_of(arch)
    if _is_bundle(weights):
        return backbone_of(arch, load_meta(weights)[0].backbone)
    from retailray.models.hf_backbone import HuggingFaceBackbone, downloaded

    if is_address(weights):
        return HuggingFaceBackbone.read(arch, storage.normalize(weights))
    if weights == "DEFAULT" and name:
        return HuggingFaceBackbone.read(arch, downloaded(name))
    raise ModelError(
        f"model.weights = {weights!r}: with model.arch = {arch!r} it must be the address of a directory of "
        "transformers (config.json, model.safetensors, preprocessor_config.json) or of a bundle; with hf:NAME, DEFAULT "
        "downloads it"
    )


def is_address(weights: str) -> bool:
    return "/" in weights or weights.endswith(ENDINGS)


def _is_bundle(weights: str) -> bool:
    if not is_address(weights) or weights.endswith(ENDINGS):
        return False
    address = storage.normalize(weights)
    return "@" in address or storage.exists(storage.join(address, META_NAME))


def _read(backbone: Backbone, weights: str) -> Weights:
    address = storage.normalize(weights)
    if not is_address(weights):
        return backbone.weights(weights)
    if address.endswith(ENDINGS):
        return Weights(read_state(address, setting="model.weights"), *backbone.normalization())
    of_hugging_face = parse_arch(backbone.arch)[0] == HUGGING_FACE
    if not _is_bundle(weights):
        if of_hugging_face:
            return backbone.weights(address)
        if storage.exists(file := storage.join(address, WEIGHTS_NAME)):  # a directory as the hub has it
            return Weights(read_state(file, setting="model.weights"), *backbone.normalization())
    bundle = load_bundle(address)
    # a network of transformers is what the bundle's own config says, under whatever name
    if not of_hugging_face and bundle.meta.arch != backbone.arch:
        raise ModelError(
            f"model.weights = {address}: the bundle is a {bundle.meta.arch}, model.arch is {backbone.arch}"
        )
    return Weights(bundle.state, bundle.meta.transform.mean, bundle.meta.transform.std)


def _load_backbone(backbone: Backbone, model: nn.Module, state: dict[str, torch.Tensor], *, source: str) -> None:
    """Everything but the head must be there and fit; half-precision weights are widened."""
    head = f"{backbone.head_name(model)}."
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(head)}
    state = {name: tensor for name, tensor in backbone.renamed(state).items() if not name.startswith(head)}
    state = fitted_positions(state, own)
    if problems := misfits(state, own):
        raise ModelError(f"model.weights = {source}: does not fit {backbone.arch}: {'; '.join(problems)}")
    load_state(model, {name: state[name] for name in own.keys() & state.keys()}, strict=False)
