"""How each family of torchvision's classification models is cut into blocks."""

from collections.abc import Callable, Iterator

import torch
import torchvision.models as tv
from torch import nn

from retailray.errors import ModelError
from retailray.models.blocks import Apply, BlockSequence, Named, chain_of, children


class _Tokens(nn.Module):
    """ViT's patches, class token and positions: ``(B, 3, H, W)`` to ``(B, T, D)``."""

    def __init__(self, model: tv.VisionTransformer) -> None:
        super().__init__()
        self.conv_proj, self.class_token = model.conv_proj, model.class_token
        self.pos_embedding, self.dropout = model.encoder.pos_embedding, model.encoder.dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches = self.conv_proj(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1), patches], dim=1)
        return self.dropout(tokens + self.pos_embedding)


def to_blocks(model: nn.Module) -> BlockSequence:
    """The blocks and the head of a model of torchvision's."""
    for family, blocks_of in FAMILIES.items():
        if isinstance(model, family):
            return blocks_of(model)
    raise ModelError(f"{type(model).__name__} is of no family whose blocks are known: {list(FAMILIES)}")


def _flat(name: str, module: nn.Module) -> list[Named]:
    """The children of a sequence; a child that is a plain sequence of blocks itself is opened."""
    return [
        named
        for key, child in children(name, module)
        for named in (children(key, child) if type(child) is nn.Sequential else [(key, child)])
    ]


def _by_layers(name: str, layers: nn.Sequential, kinds: tuple[type[nn.Module], ...]) -> Iterator[Named]:
    """Groups of a flat sequence, each beginning with a layer of ``kinds`` (a leading dropout goes with it)."""
    group: list[nn.Module] = []
    start = 0
    for index, layer in enumerate(layers):
        if isinstance(layer, kinds) and any(isinstance(member, kinds) for member in group):
            yield f"{name}.{start}", nn.Sequential(*group)
            group, start = [], index
        group.append(layer)
    if group:
        yield f"{name}.{start}", nn.Sequential(*group)


def _resnet(model: tv.ResNet) -> BlockSequence:
    stem = ("stem", nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool))
    stages = [
        named for name in ("layer1", "layer2", "layer3", "layer4") for named in children(name, getattr(model, name))
    ]
    return chain_of([stem, *stages], [model.avgpool, nn.Flatten()], [model.fc])


def _features_and_classifier(model: tv.MobileNetV2 | tv.MobileNetV3 | tv.EfficientNet) -> BlockSequence:
    """MobileNet V2 and V3, EfficientNet: the classifier's own hidden layer, where there is one, is a block."""
    *hidden, dropout, linear = model.classifier
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    chain = chain_of(_flat("features", model.features), pooled, [dropout, linear])
    blocks = [*chain.blocks, ("classifier.0", nn.Sequential(*hidden))] if hidden else chain.blocks
    return BlockSequence(blocks, chain.head)


def _convnext(model: tv.ConvNeXt) -> BlockSequence:
    norm, flatten, linear = model.classifier
    stages: list[Named] = []
    for name, stage in children("features", model.features):
        # a stage is a sequence of CNBlocks; stem and downsampling are sequences of layers, and blocks of their own
        stages += children(name, stage) if hasattr(next(stage.children()), "block") else [(name, stage)]
    return chain_of(stages, [model.avgpool, norm, flatten], [linear])


def _regnet(model: tv.RegNet) -> BlockSequence:
    stages = [named for name, stage in children("trunk_output", model.trunk_output) for named in children(name, stage)]
    return chain_of([("stem", model.stem), *stages], [model.avgpool, nn.Flatten()], [model.fc])


def _shufflenet(model: tv.ShuffleNetV2) -> BlockSequence:
    stem = ("stem", nn.Sequential(model.conv1, model.maxpool))
    stages = [named for name in ("stage2", "stage3", "stage4") for named in children(name, getattr(model, name))]
    return chain_of([stem, *stages, ("conv5", model.conv5)], [Apply(_mean)], [model.fc])


def _squeezenet(model: tv.SqueezeNet) -> BlockSequence:
    # each Fire with the pooling after it; the head is a convolution, pooled after it
    groups = list(_by_layers("features", model.features, (nn.Conv2d, tv.squeezenet.Fire)))
    return BlockSequence(groups, nn.Sequential(model.classifier, nn.Flatten()))


def _densenet(model: tv.DenseNet) -> BlockSequence:
    features = dict(model.features.named_children())
    stem = [("stem", nn.Sequential(*[features.pop(name) for name in ("conv0", "norm0", "relu0", "pool0")]))]
    norm = features.pop("norm5")
    end = [norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return chain_of(
        [*stem, *((f"features.{name}", block) for name, block in features.items())], end, [model.classifier]
    )


def _vgg(model: tv.VGG | tv.AlexNet) -> BlockSequence:
    chain = chain_of(_by_layers("features", model.features, (nn.Conv2d,)), [model.avgpool, nn.Flatten()], [])
    *hidden, last = model.classifier
    dense = list(_by_layers("classifier", nn.Sequential(*hidden), (nn.Linear,)))
    return BlockSequence([*chain.blocks, *dense], nn.Sequential(last))


def _mnasnet(model: tv.MNASNet) -> BlockSequence:
    stem = ("stem", nn.Sequential(*model.layers[:8]))
    stacks = [named for index in range(8, 14) for named in children(f"layers.{index}", model.layers[index])]
    return chain_of(
        [stem, *stacks, ("layers.14", nn.Sequential(*model.layers[14:]))], [Apply(_mean)], [*model.classifier]
    )


def _inception(model: tv.GoogLeNet | tv.Inception3) -> BlockSequence:
    """GoogLeNet and Inception v3, without their auxiliary heads."""
    blocks: list[Named] = []
    for name, child in model.named_children():
        if name in ("avgpool", "dropout", "fc"):
            continue
        if name.startswith("maxpool"):  # goes with the convolution before it
            before, last = blocks.pop()
            blocks.append((before, nn.Sequential(last, child)))
        else:
            blocks.append((name, child))
    first, stem = blocks[0]
    blocks[0] = (first, nn.Sequential(Apply(model._transform_input), stem))
    return chain_of(blocks, [model.avgpool, nn.Flatten()], [model.dropout, model.fc])


def _vit(model: tv.VisionTransformer) -> BlockSequence:
    end = [model.encoder.ln, Apply(_first)]
    layers = children("encoder.layers", model.encoder.layers)
    return chain_of([("tokens", _Tokens(model)), *layers], end, [model.heads])


def _swin(model: tv.SwinTransformer) -> BlockSequence:
    first, *stages = children("features", model.features)
    blocks = [
        named
        for name, stage in stages
        for named in (children(name, stage) if type(stage) is nn.Sequential else [(name, stage)])
    ]
    return chain_of([first, *blocks], [model.norm, model.permute, model.avgpool, model.flatten], [model.head])


def _maxvit(model: tv.MaxVit) -> BlockSequence:
    layers: list[Named] = []
    for name, block in children("blocks", model.blocks):
        assert isinstance(block.layers, nn.Module)
        layers += children(name, block.layers)
    *hidden, last = model.classifier
    return chain_of([("stem", model.stem), *layers], hidden, [last])


def _mean(x: torch.Tensor) -> torch.Tensor:
    return x.mean([2, 3])


def _first(x: torch.Tensor) -> torch.Tensor:
    return x[:, 0]


FAMILIES: dict[type[nn.Module], Callable[..., BlockSequence]] = {
    tv.ResNet: _resnet,  # ResNeXt and Wide ResNet too
    tv.MobileNetV2: _features_and_classifier,
    tv.MobileNetV3: _features_and_classifier,
    tv.EfficientNet: _features_and_classifier,
    tv.ConvNeXt: _convnext,
    tv.RegNet: _regnet,
    tv.ShuffleNetV2: _shufflenet,
    tv.SqueezeNet: _squeezenet,
    tv.DenseNet: _densenet,
    tv.VGG: _vgg,
    tv.AlexNet: _vgg,
    tv.MNASNet: _mnasnet,
    tv.GoogLeNet: _inception,
    tv.Inception3: _inception,
    tv.VisionTransformer: _vit,
    tv.SwinTransformer: _swin,
    tv.MaxVit: _maxvit,
}
