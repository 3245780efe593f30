"""Every family as a chain of blocks: the cut is exact, frozen is frozen, docs/freeze-depth.md is true."""

import re
import typing
from pathlib import Path

import pytest
import torch
import torchvision

from retailray.errors import ModelError
from retailray.models.backbones import backbone_of, build_model
from retailray.models.blocks import freeze, train_mode
from retailray.models.cnn import NUM_CONVOLUTIONS, SmallCNN
from retailray.models.inference import fold_batch_norms
from retailray.models.torchvision_backbone import arch_names, head_name
from retailray.models.torchvision_blocks import FAMILIES

# one of every family and every branch of its code; the transformers want their own image size
FAMILY_ARCHS = {
    "resnet18": 64,
    "resnext50_32x4d": 64,
    "wide_resnet50_2": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "efficientnet_b0": 64,
    "efficientnet_v2_s": 64,
    "convnext_tiny": 64,
    "regnet_x_400mf": 64,
    "regnet_y_400mf": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_0": 64,
    "squeezenet1_1": 64,
    "densenet121": 64,
    "vgg11": 64,
    "vgg11_bn": 64,
    "alexnet": 96,
    "mnasnet0_5": 64,
    "googlenet": 64,
    "inception_v3": 128,
    "vit_b_32": 224,
    "swin_t": 64,
    "swin_v2_t": 64,
    "maxvit_t": 224,
    "cnn1": 32,
    "cnn2": 32,
    "cnn3": 32,
}


def test_every_architecture_is_of_a_known_family():
    for arch in arch_names():
        if arch not in NUM_CONVOLUTIONS:
            made = typing.get_type_hints(torchvision.models.get_model_builder(arch))["return"]
            assert made in FAMILIES, arch


LARGE = {"vgg11", "vgg11_bn", "wide_resnet50_2", "vit_b_32", "maxvit_t", "swin_t", "swin_v2_t", "convnext_tiny",
         "inception_v3", "googlenet", "densenet121", "efficientnet_v2_s"}  # fmt: skip


BFLOAT16_TOLERANCE = 0.05  # of a probability, stated in docs/scoring.md


def blocks_of(model):
    return backbone_of("cnn1" if isinstance(model, SmallCNN) else "resnet18").blocks(model)


def large_ones_slow(*archs):
    return [pytest.param(*arch, marks=[pytest.mark.slow] * (arch[0] in LARGE)) for arch in archs]


@pytest.mark.parametrize(("arch", "size"), large_ones_slow(*FAMILY_ARCHS.items()))
def test_prefix_then_suffix_is_the_model(arch, size):
    torch.manual_seed(0)
    model = build_model(arch, 5, image_size=size).eval()
    chain = blocks_of(model)
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        whole = model(images)
        values = images
        for cut, (_, block) in enumerate(chain.blocks):
            if cut in (1, len(chain.blocks) // 2, len(chain.blocks) - 1):
                assert torch.equal(chain.suffix(cut)(values), whole), cut
            values = block(values)
        assert torch.equal(chain.head(values), whole)
    # the same layers, every one once; and the head is the layer that makes the logits
    owned = [id(tensor) for tensor in chain.suffix(0).state_dict(keep_vars=True).values()]
    assert sorted(owned) == sorted(id(tensor) for tensor in model.state_dict(keep_vars=True).values())
    head = {id(parameter) for parameter in chain.head.parameters()}
    assert head == {id(parameter) for parameter in model.get_submodule(head_name(model)).parameters()}


@pytest.mark.parametrize(("arch", "size"), large_ones_slow(*FAMILY_ARCHS.items()))
def test_folded_batch_norms_change_no_prediction(arch, size):
    """Statistics as after training: those of a new network, zero and one, would hide a fold that forgets them."""
    torch.manual_seed(0)
    model = build_model(arch, 5, image_size=size).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
    chain = blocks_of(model)
    for parameter in chain.head.parameters():  # some begin with zeros
        torch.nn.init.normal_(parameter, std=0.05)
    body = chain.run(0, len(chain.blocks)).eval()
    folded = fold_batch_norms(body)
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        expected = chain.head(body(images))
        found = chain.head(folded(images))
    assert found.numpy() == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = chain.head(folded(images)).float()
    scale = 3 / expected.std()  # logits as far apart as a trained network's
    probabilities = [(logits * scale).softmax(1).numpy() for logits in (expected, half)]
    assert probabilities[1] == pytest.approx(probabilities[0], abs=BFLOAT16_TOLERANCE)
    norms = [sum(isinstance(one, torch.nn.BatchNorm2d) for one in part.modules()) for part in (body, folded)]
    if arch.startswith(("resnet", "mobilenet", "efficientnet", "regnet", "mnasnet", "vgg11_bn")):
        assert norms[1] == 0 < norms[0]
    assert norms[1] <= norms[0]


@pytest.mark.parametrize(
    "arch", large_ones_slow(("mobilenet_v2",), ("densenet121",), ("vgg11_bn",), ("convnext_tiny",), ("cnn3",))
)
@pytest.mark.parametrize("trainable", ["head", "last1", "last2"])
def test_frozen_means_frozen(arch, trainable):
    torch.manual_seed(0)
    model = build_model(arch, 4, image_size=64)
    chain = blocks_of(model)
    cut = chain.num_frozen_blocks(trainable)
    freeze(chain, cut)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    for _ in range(2):
        model.train()  # whatever others call
        train_mode(chain, cut)
        assert not any(module.training for _, block in chain.blocks[:cut] for module in block.modules())
        chain.suffix(0)(torch.rand(4, 3, 64, 64)).sum().backward()
        optimizer.step()
    after = model.state_dict()
    frozen = {id(tensor) for tensor in chain.run(0, cut).state_dict(keep_vars=True).values()}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in frozen:
            assert torch.equal(before[name], after[name]), name
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed
    running = [name for name in changed if "running" in name]
    names = {id(tensor): name for name, tensor in model.state_dict(keep_vars=True).items()}
    trained = {names[key] for key in map(id, chain.suffix(cut).state_dict(keep_vars=True).values())}
    assert set(running) <= trained


def test_all_trainable_is_plain_training():
    model = build_model("mobilenet_v2", 4)
    chain = blocks_of(model)
    freeze(chain, chain.num_frozen_blocks("all"))
    train_mode(chain, chain.num_frozen_blocks("all"))
    assert all(module.training for _, block in chain.blocks for module in block.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_depth_that_is_not_there_names_what_is():
    chain = blocks_of(build_model("mobilenet_v2", 4))
    assert (
        chain.num_frozen_blocks("head"),
        chain.num_frozen_blocks("last2"),
        chain.num_frozen_blocks("last19"),
        chain.num_frozen_blocks("all"),
    ) == (19, 17, 0, 0)
    with pytest.raises(ModelError, match=r"'last20', and the model has 19 blocks \(features.0, .*last19 is all"):
        chain.num_frozen_blocks("last20")


@pytest.mark.slow
def test_the_table_in_the_docs_is_true():
    text = (Path(__file__).parents[2] / "docs/freeze-depth.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (.*?) \|$", text, re.MULTILINE)
    assert {arch for arch, _, _ in rows} == set(FAMILY_ARCHS)
    for arch, count, names in rows:
        chain = blocks_of(build_model(arch, 5, image_size=FAMILY_ARCHS[arch]))
        assert len(chain.blocks) == int(count), arch
        named = re.findall(r"`([^`]+)`", names)
        assert named[-1] == chain.blocks[-1][0], arch
        assert named[0] == chain.blocks[0][0], arch


def test_a_baseline_needs_room_for_its_convolutions():
    with pytest.raises(ModelError, match="image_size = 8: too small for 3"):
        build_model("cnn3", 2, image_size=8)
