"""How networks of timm are cut into blocks: by the class that timm builds them of.

Networks of other classes are one block and a head: they can be trained as a whole, or their head alone.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from retailray.models.blocks import Apply, BlockSequence, Named, body_and_head, chain_of, children


class _Part(nn.Module):
    """Some modules of a network, and what the network's own code does with them."""

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        function: Callable[[Any, torch.Tensor], torch.Tensor],
        *,
        parameters: bool,
    ) -> None:
        super().__init__()
        self.part = copy.copy(model)  # shallow: the same tensors
        self.part._modules = {name: module for name, module in model._modules.items() if name in names}
        if not parameters:
            self.part._parameters = {}
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.part, x)


class _WithRope(nn.Module):
    """A block of EVA, which is given the rotary positions of a picture of one size."""

    def __init__(self, block: nn.Module, rope: nn.Module) -> None:
        super().__init__()
        self.block, self.rope = block, rope

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x, rope=self.rope.get_embed())  # type: ignore[operator]


def to_blocks(model: nn.Module, head_name: str) -> BlockSequence:
    """The blocks and the head of a network of timm."""
    own = type(model)
    for kind in own.__mro__:
        blocks_of = FAMILIES.get(kind.__name__) if kind.__module__.startswith("timm.") else None
        # a class that is made of another may run its layers in another way
        alike = all(getattr(own, name) is getattr(kind, name, None) for name in ("forward_features", "forward_head"))
        if blocks_of and alike and (chain := blocks_of(model)):
            return chain
    return body_and_head(model, head_name)


def _stages(name: str, stages: nn.Module) -> Iterator[Named]:
    """The blocks of stages: of sequences, of stages that scale down first, and of RegNet's."""
    for key, stage in children(name, stages):
        parts = dict(stage.named_children())
        if set(parts) == {"downsample", "blocks"}:
            first, *others = children(f"{key}.blocks", parts["blocks"])
            yield first[0], nn.Sequential(parts["downsample"], first[1])
            yield from others
        elif type(stage).__name__ in ("Sequential", "RegStage"):
            yield from children(key, stage)
        else:
            yield key, stage


def _in_order(
    model: Any, *, stem: Sequence[str], stages: Sequence[Named], end: list[nn.Module], head: nn.Module
) -> BlockSequence:
    first = ("stem", nn.Sequential(*[getattr(model, name) for name in stem]))
    return chain_of([first, *stages], end, [head])


def _with_classifier_head(model: Any, stem: str, stages: Sequence[Named], last: nn.Module) -> BlockSequence | None:
    """Of networks that end with ``last`` and one of timm's classifier heads; None where its layer is a convolution."""
    head = model.head
    if not isinstance(head.fc, nn.Linear):
        return None
    pooled = [head.global_pool, head.drop, head.flatten]
    if hasattr(head, "norm"):
        pooled = [head.global_pool, head.norm, head.flatten, head.pre_logits, head.drop]
    return _in_order(model, stem=(stem,), stages=stages, end=[last, *pooled], head=head.fc)


def _resnet(model: Any) -> BlockSequence:
    stages = [
        named for name in ("layer1", "layer2", "layer3", "layer4") for named in children(name, getattr(model, name))
    ]
    return _in_order(
        model, stem=("conv1", "bn1", "act1", "maxpool"), stages=stages, end=[model.global_pool], head=model.fc
    )


def _efficientnet(model: Any) -> BlockSequence:
    end = [model.conv_head, model.bn2, model.global_pool]
    stages = list(_stages("blocks", model.blocks))
    return _in_order(model, stem=("conv_stem", "bn1"), stages=stages, end=end, head=model.classifier)


def _mobilenet(model: Any) -> BlockSequence:
    """MobileNet V3 and V4."""
    end = [model.global_pool, model.conv_head, model.norm_head, model.act2, model.flatten]
    stages = list(_stages("blocks", model.blocks))
    return _in_order(model, stem=("conv_stem", "bn1"), stages=stages, end=end, head=model.classifier)


def _regnet(model: Any) -> BlockSequence | None:
    stages = [named for name in ("s1", "s2", "s3", "s4") for named in children(name, getattr(model, name))]
    return _with_classifier_head(model, "stem", stages, model.final_conv)


def _convnext(model: Any) -> BlockSequence | None:
    return _with_classifier_head(model, "stem", list(_stages("stages", model.stages)), model.norm_pre)


def _swin(model: Any) -> BlockSequence | None:
    return _with_classifier_head(model, "patch_embed", list(_stages("layers", model.layers)), model.norm)


def _densenet(model: Any) -> BlockSequence:
    features = dict(model.features.named_children())
    blocks = [name for name in features if name.startswith(("denseblock", "transition"))]
    names = list(features)
    before, after = names[: names.index(blocks[0])], names[names.index(blocks[-1]) + 1 :]
    stem = ("stem", nn.Sequential(*[features[name] for name in before]))
    end = [*(features[name] for name in after), model.global_pool, model.head_drop]
    return chain_of([stem, *((f"features.{name}", features[name]) for name in blocks)], end, [model.classifier])


def _mixer(model: Any) -> BlockSequence:
    mean = [Apply(_mean_of_tokens)] if model.global_pool == "avg" else []
    blocks = children("blocks", model.blocks)
    return _in_order(model, stem=("stem",), stages=blocks, end=[model.norm, *mean, model.head_drop], head=model.head)


def _vit(model: Any) -> BlockSequence:
    """ViT, DeiT, DINOv2 and others of timm's VisionTransformer, with one head."""
    stem = _Part(model, ("patch_embed", "pos_drop", "patch_drop", "norm_pre"), _vit_tokens, parameters=True)
    end = _Part(model, ("norm", "attn_pool", "fc_norm", "head_drop"), _vit_pooled, parameters=False)
    return chain_of([("tokens", stem), *children("blocks", model.blocks)], [end], [model.head])


def _eva(model: Any) -> BlockSequence | None:
    if getattr(model, "rope_mixed", False) or (model.rope is not None and any(True for _ in model.rope.parameters())):
        return None  # positions that all blocks learn together
    stem = _Part(model, ("patch_embed", "pos_drop", "rope", "norm_pre"), _eva_tokens, parameters=True)
    end = _Part(model, ("norm", "attn_pool", "fc_norm", "head_drop"), _vit_pooled, parameters=False)
    blocks = children("blocks", model.blocks)
    if model.rope is not None:
        blocks = [(name, _WithRope(block, model.rope)) for name, block in blocks]
    return chain_of([("tokens", stem), *blocks], [end], [model.head])


def _vit_tokens(model: Any, x: torch.Tensor) -> torch.Tensor:
    return model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x))))


def _eva_tokens(model: Any, x: torch.Tensor) -> torch.Tensor:
    return model.norm_pre(model._pos_embed(model.patch_embed(x))[0])


def _vit_pooled(model: Any, x: torch.Tensor) -> torch.Tensor:
    return model.head_drop(model.fc_norm(model.pool(model.norm(x))))


def _mean_of_tokens(x: torch.Tensor) -> torch.Tensor:
    return x.mean(1)


FAMILIES: dict[str, Callable[[Any], BlockSequence | None]] = {
    "ResNet": _resnet,  # ResNeXt, SE-ResNet and others too
    "EfficientNet": _efficientnet,  # EfficientNet V2 and lite, MobileNet V2, MNASNet and others
    "MobileNetV3": _mobilenet,
    "RegNet": _regnet,
    "ConvNeXt": _convnext,
    "SwinTransformer": _swin,
    "DenseNet": _densenet,
    "MlpMixer": _mixer,
    "VisionTransformer": _vit,
    "Eva": _eva,
}
