"""How networks of transformers are cut into blocks: by the type that their config names.

Networks of other types are one block and a head: they can be trained as a whole, or their head alone.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from retailray.models.blocks import Apply, BlockSequence, Named, body_and_head, chain_of, children


class Classifier(nn.Module):
    """A network of transformers as others are: float ``(B, 3, H, W)`` to logits ``(B, C)``."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        for module in network.modules():  # of pretraining; no picture is masked here, so that it would get no gradient
            if "mask_token" in module._parameters:
                module.register_parameter("mask_token", None)

    @property
    def model_type(self) -> str:
        return self.network.config.model_type  # type: ignore[union-attr, return-value]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(pixel_values=x).logits


class _SwinTokens(nn.Module):
    """Swin's patch embeddings, without the height and width of their feature map."""

    def __init__(self, embeddings: nn.Module) -> None:
        super().__init__()
        self.embeddings = embeddings

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.embeddings(x)[0]


class _SwinLayer(nn.Module):
    """A layer of Swin, or the downsampling after it, with the height and width of the feature map that enters it."""

    def __init__(self, layer: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.layer, self.size = layer, size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.layer(x, self.size)
        return found[0] if isinstance(found, tuple) else found


def to_blocks(model: Classifier, head_name: str) -> BlockSequence:
    """The blocks and the head of a network of transformers."""
    blocks_of = FAMILIES.get(model.model_type)
    return blocks_of(model.network) if blocks_of else body_and_head(model, head_name)


def _stages(name: str, stages: nn.Module) -> list[Named]:
    """The layers of stages, of which the first scales down where its stage does."""
    found: list[Named] = []
    for key, stage in children(name, stages):
        parts = dict(stage.named_children())
        first, *others = children(f"{key}.layers", parts["layers"])
        before = list(parts["downsampling_layer"].children()) if "downsampling_layer" in parts else []
        found += [(first[0], nn.Sequential(*before, first[1])), *others]
    return found


def _resnet(model: Any) -> BlockSequence:
    base = model.resnet
    flatten, linear = model.classifier
    stages = _stages("stages", base.encoder.stages)
    return chain_of([("embedder", base.embedder), *stages], [base.pooler, flatten], [linear])


def _convnext(model: Any) -> BlockSequence:
    base = model.convnext
    stages = _stages("stages", base.encoder.stages)
    end = [Apply(_mean_of_pixels), base.layernorm]
    return chain_of([("embeddings", base.embeddings), *stages], end, [model.classifier])


def _mobilenet_v2(model: Any) -> BlockSequence:
    base = model.mobilenet_v2
    end = [base.conv_1x1, base.pooler, nn.Flatten()]
    blocks = [("conv_stem", base.conv_stem), *children("layer", base.layer)]
    return chain_of(blocks, end, [model.dropout, model.classifier])


def _efficientnet(model: Any) -> BlockSequence:
    base = model.efficientnet
    encoder = base.encoder
    end = [encoder.top_conv, encoder.top_bn, encoder.top_activation, base.pooler, nn.Flatten()]
    blocks = [("embeddings", base.embeddings), *children("blocks", encoder.blocks)]
    return chain_of(blocks, end, [model.dropout, model.classifier])


def _transformer(name: str, pool: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any], BlockSequence]:
    """Tokens, layers, a norm: ``name`` is the network's attribute in its classifier."""

    def blocks_of(model: Any) -> BlockSequence:
        base = getattr(model, name)
        layers = base.layers if hasattr(base, "layers") else base.encoder.layer
        end: Sequence[nn.Module] = [base.layernorm, Apply(pool)]
        return chain_of([("embeddings", base.embeddings), *children("layers", layers)], end, [model.classifier])

    return blocks_of


def _swin(model: Any) -> BlockSequence:
    base = model.swin
    stage: Any
    size = tuple(base.embeddings.patch_grid)
    layers: list[Named] = [("embeddings", _SwinTokens(base.embeddings))]
    for key, stage in children("layers", base.encoder.layers):
        *before, (last, layer) = [
            (name, _SwinLayer(one, size)) for name, one in children(f"{key}.blocks", stage.blocks)
        ]
        down = [] if stage.downsample is None else [_SwinLayer(stage.downsample, size)]
        layers += [*before, (last, nn.Sequential(layer, *down))]
        size = tuple((side + 1) // 2 for side in size) if down else size
    return chain_of(layers, [base.layernorm, Apply(_mean_of_tokens)], [model.classifier])


def _first(x: torch.Tensor) -> torch.Tensor:
    return x[:, 0]


def _first_and_mean(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x[:, 0], x[:, 1:].mean(1)], 1)


def _mean_of_pixels(x: torch.Tensor) -> torch.Tensor:
    return x.mean([-2, -1])


def _mean_of_tokens(x: torch.Tensor) -> torch.Tensor:
    return x.mean(1)


FAMILIES: dict[str, Callable[[Any], BlockSequence]] = {
    "resnet": _resnet,
    "convnext": _convnext,
    "mobilenet_v2": _mobilenet_v2,
    "efficientnet": _efficientnet,
    "vit": _transformer("vit", _first),
    "deit": _transformer("deit", _first),
    "dinov2": _transformer("dinov2", _first_and_mean),
    "swin": _swin,
}
