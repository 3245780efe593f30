"""Networks of timm and of transformers: blocks, bundles, positions, and what is refused. Random weights, no Ray."""

import copy
import json
import re
import sys
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
import transformers

from retailray.errors import ModelError
from retailray.models.backbones import IMAGENET_MEAN, IMAGENET_STD, backbone_of
from retailray.models.blocks import batch_norms, freeze, train_mode
from retailray.models.bundle import BundleMeta, EvalTransform, load_bundle, save_bundle
from retailray.models.weights import pretrained_model
from retailray.training.optim import make_optimizer

TIMM = {
    "resnet18": 64,
    "convnext_atto": 64,
    "efficientnet_lite0": 64,
    "tf_efficientnetv2_b0": 64,
    "mobilenetv4_conv_small_050": 64,
    "regnetx_002": 64,
    "densenet121": 64,
    "vit_tiny_patch16_224": 64,
    "deit_tiny_patch16_224": 48,
    "swin_tiny_patch4_window7_224": 224,
    "eva02_tiny_patch14_224": 56,
    "vit_small_patch14_dinov2": 56,
    "mixer_s32_224": 64,
    # of families that are one block and a head; the head of the second is a convolution
    "ghostnet_050": 64,
    "resnetv2_50": 64,
}
SMALL = {"num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
HF = {
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 1, 1], "layer_type": "basic"},
    "convnext": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 1, 1]},
    "vit": SMALL | {"image_size": 64},
    "deit": SMALL | {"image_size": 64, "architectures": ["DeiTForImageClassification"]},
    "swin": {"embed_dim": 16, "depths": [1, 2, 1], "num_heads": [1, 2, 4], "window_size": 4, "image_size": 64},
    "dinov2": {"num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 2, "image_size": 70, "patch_size": 14},
    "mobilenet_v2": {"depth_multiplier": 0.35, "image_size": 64},
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320, "image_size": 64},
    "beit": SMALL | {"image_size": 64},  # one block and a head
}
SIZES = {"dinov2": 56}
ONE_BLOCK = ("timm:ghostnet_050", "timm:resnetv2_50", "hf:beit")
ALL = [f"timm:{name}" for name in TIMM] + [f"hf:{kind}" for kind in HF]


def backbone(arch):
    library, _, name = arch.partition(":")
    return backbone_of(arch, HF[name] | {"model_type": name} if library == "hf" else None)


def size_of(arch):
    library, _, name = arch.partition(":")
    return SIZES.get(name, 64) if library == "hf" else TIMM[name]


def built(arch, classes=5):
    torch.manual_seed(0)
    model = backbone(arch).build(classes, image_size=size_of(arch)).eval()
    for module in model.modules():  # statistics that folding and freezing could get wrong
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize("arch", ALL)
def test_blocks_then_head_are_the_librarys_own_forward(arch):
    """At every cut; and every parameter belongs to one block or to the head."""
    model = built(arch)
    chain = backbone(arch).blocks(model)
    assert (len(chain.blocks) > 3) == (arch not in ONE_BLOCK), [name for name, _ in chain.blocks]
    images = torch.rand(2, 3, size_of(arch), size_of(arch))
    own = model.network(pixel_values=images).logits if arch.startswith("hf:") else model(images)
    with torch.no_grad():
        values = images
        for cut, (_, block) in enumerate(chain.blocks):
            if cut in (0, 1, len(chain.blocks) // 2, len(chain.blocks) - 1):
                assert (chain.suffix(cut)(values) - own).abs().max() <= 1e-5, cut
            values = block(values)
        assert (chain.head(values) - own).abs().max() <= 1e-5
    parts = [*(block for _, block in chain.blocks), chain.head]
    found = [id(parameter) for part in parts for parameter in part.parameters()]
    assert len(found) == len(set(found))
    assert set(found) == {id(parameter) for parameter in model.parameters()}


@pytest.mark.parametrize("arch", ALL)
def test_all_that_is_trained_gets_a_gradient(arch):
    """Else DistributedDataParallel waits for gradients that never come."""
    model = built(arch)
    chain = backbone(arch).blocks(model)
    freeze(chain, 0)
    train_mode(chain, 0)
    images = torch.rand(4, 3, size_of(arch), size_of(arch))
    torch.nn.functional.cross_entropy(chain.suffix(0)(images), torch.tensor([0, 1, 2, 3])).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("arch", ALL)
def test_frozen_blocks_take_no_gradient_and_keep_their_statistics(arch):
    model = built(arch)
    chain = backbone(arch).blocks(model)
    cut = len(chain.blocks) - 1 if len(chain.blocks) > 1 else 1
    before = copy.deepcopy(model.state_dict())
    freeze(chain, cut)
    train_mode(chain, cut)
    images = torch.rand(4, 3, size_of(arch), size_of(arch))
    loss = torch.nn.functional.cross_entropy(chain.suffix(0)(images), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    for _, block in chain.blocks[:cut]:
        assert all(parameter.grad is None for parameter in block.parameters())
    assert all(parameter.grad is not None for parameter in chain.head.parameters())
    frozen = {id(tensor) for tensor in chain.run(0, cut).state_dict(keep_vars=True).values()}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in frozen:
            assert torch.equal(tensor, before[name]), name
    moved = batch_norms(chain, cut)
    assert not moved or any((norm.num_batches_tracked > 0) for norm in moved)


@pytest.mark.parametrize(
    "arch", ["timm:vit_tiny_patch16_224", "timm:swin_tiny_patch4_window7_224", "hf:vit", "hf:swin"]
)
def test_tokens_positions_and_norms_do_not_decay(arch):
    from retailray.config import TrainSection
    from tests.training.test_loop import phase

    chain = backbone(arch).blocks(built(arch))
    every = dict(phase().__dict__) | {"num_frozen_blocks": 0}
    groups = make_optimizer(chain, type(phase())(**every), TrainSection()).param_groups
    decayed = {id(parameter) for group in groups if group["weight_decay"] for parameter in group["params"]}
    for part in (*(block for _, block in chain.blocks), chain.head):
        for name, parameter in part.named_parameters():
            word = any(word in name for word in ("pos_embed", "position_", "cls_token", "relative_position", "norm"))
            assert (id(parameter) in decayed) == (parameter.ndim > 1 and not word), name


@pytest.mark.parametrize(
    "arch", ["timm:resnet18", "timm:vit_tiny_patch16_224", "hf:vit", "hf:efficientnet", "hf:dinov2"]
)
def test_a_bundle_read_back_is_what_was_written(arch, tmp_path):
    model, size = built(arch), size_of(arch)
    transform = EvalTransform(resize_size=size, crop_size=size, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    meta = BundleMeta(
        name="x",
        version="1",
        arch=arch,
        backbone=backbone(arch).config,
        labels=list("abcde"),
        transform=transform,
    )
    save_bundle(str(tmp_path / "bundle"), meta, model.state_dict())
    bundle = load_bundle(str(tmp_path / "bundle"))
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(bundle.build()(images), model(images))


@pytest.mark.parametrize(("arch", "size"), [("timm:vit_tiny_patch16_224", 96), ("timm:deit_tiny_patch16_224", 96)])
def test_positions_are_interpolated_as_timm_does(arch, size, tmp_path):
    """Weights of one picture size in a network of another: the positions are those of timm's own function."""
    from timm.layers import resample_abs_pos_embed

    source = built(arch)
    safetensors.torch.save_file(source.state_dict(), tmp_path / "w.safetensors")
    larger = pretrained_model(arch, str(tmp_path / "w.safetensors"), 7, seed=0, image_size=size).network
    expected = resample_abs_pos_embed(source.pos_embed, new_size=[size // 16] * 2, num_prefix_tokens=1)
    assert torch.allclose(larger.pos_embed, expected, atol=1e-5)


def test_timms_normalisation_comes_with_its_names(tmp_path):
    model = timm.create_model("tf_efficientnet_lite2", num_classes=4)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "w.safetensors")
    found = pretrained_model("timm:tf_efficientnet_lite2", str(tmp_path / "w.safetensors"), 9, seed=0, image_size=64)
    assert found.mean == found.std == (0.5, 0.5, 0.5)
    own = found.network.state_dict()
    assert all(
        torch.equal(own[name], tensor) for name, tensor in model.state_dict().items() if "classifier" not in name
    )
    transform = backbone_of("timm:tf_efficientnet_lite2").eval_transform()
    assert (transform.crop_size, transform.resize_size, transform.interpolation) == (260, 292, "bicubic")


@pytest.mark.parametrize(
    ("arch", "words"),
    {
        "timm:resnet5O": "did you mean timm:resnet50",
        "tim:resnet50": "write timm:NAME, hf, or a name of torchvision's",
        "timm:deit_tiny_distilled_patch16_224": "several heads",
        "hf:vit": "no model_type",
    }.items(),
)
def test_names_that_are_none(arch, words):
    with pytest.raises(ModelError, match=words):
        backbone_of(arch).build(3, image_size=224)


@pytest.mark.parametrize(("arch", "extra"), [("timm:resnet18", "timm"), ("hf:vit", "hf")])
def test_an_extra_that_is_not_installed_is_named(arch, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, {"timm": "timm", "hf": "transformers"}[extra], None)
    with pytest.raises(ModelError, match=rf"pip install 'retailray\[{extra}\]'"):
        backbone(arch).build(3, image_size=224)


def test_a_network_of_one_picture_size_says_so():
    with pytest.raises(ModelError, match=r"image_size = 8: timm:.* cannot be built"):
        backbone_of("timm:vit_tiny_patch16_224").build(3, image_size=8)


def test_weights_of_names_say_how_to_do_without_a_network(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # as the variable of that name does
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="Without a network, give the address"):
        pretrained_model("timm:resnet18", "DEFAULT", 3, seed=0)
    with pytest.raises(ModelError, match="Without a network, give the address of the directory"):
        pretrained_model("hf:nobody/nothing", "DEFAULT", 3, seed=0)
    with pytest.raises(ModelError, match="address of a directory of transformers"):
        pretrained_model("hf", "DEFAULT", 3, seed=0)


def test_a_backbone_without_a_head_is_fine_tuned_from(tmp_path):
    """What the hub has of DINOv2 and of ViT's pretraining; and a processor that ``bundle`` would refuse."""
    source = transformers.ViTModel(transformers.ViTConfig(**HF["vit"]), add_pooling_layer=True)
    source.save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 64, "width": 48}, image_mean=[0.3] * 3).save_pretrained(tmp_path)
    found = pretrained_model("hf", str(tmp_path), 3, seed=0, image_size=64)
    own = found.network.network.vit.state_dict()
    kept = {name: tensor for name, tensor in source.state_dict().items() if not name.startswith("pooler")}
    assert all(torch.equal(own[name], tensor) for name, tensor in kept.items())
    assert found.mean == pytest.approx((0.3,) * 3)


def test_networks_with_batch_norm_are_tried_as_they_serve():
    backbone_of("timm:visformer_tiny").build(3, image_size=64)


def test_a_directory_of_transformers_is_fine_tuned_from(tmp_path):
    """Its weights but for the head, its mean and standard deviation, its positions at another size."""
    config = transformers.ViTConfig(**HF["vit"], num_labels=11)
    source = transformers.ViTForImageClassification(config)
    source.save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 64, "width": 64}, image_std=[0.25] * 3).save_pretrained(tmp_path)
    found = pretrained_model("hf", str(tmp_path), 3, seed=0, image_size=64)
    own = found.network.network.state_dict()
    for name, tensor in source.state_dict().items():
        assert name.startswith("classifier") or torch.equal(own[name], tensor), name
    assert found.std == pytest.approx((0.25,) * 3)
    assert json.loads(json.dumps(found.backbone.config))["hidden_size"] == 32
    larger = pretrained_model("hf", str(tmp_path), 3, seed=0, image_size=96).network
    assert larger(torch.rand(1, 3, 96, 96)).shape == (1, 3)


@pytest.mark.slow
def test_the_tables_in_the_docs_are_true():
    text = (Path(__file__).parents[2] / "docs/freeze-depth.md").read_text()
    rows = re.findall(r"^\| `((?:timm|hf):\w+)` \| (\d+) \| (.*?) \|$", text, re.MULTILINE)
    assert len(rows) >= 19
    for arch, count, names in rows:
        library, _, name = arch.partition(":")
        if library == "timm":
            found = backbone_of(arch)
            size = timm.get_pretrained_cfg(name).input_size[-1]
        else:  # of the size that its config has by itself
            found, size = backbone_of(arch, {"model_type": name}), 224
        with torch.device("meta"):
            chain = found.blocks(found.build(5, image_size=size))
        named = re.findall(r"`([^`]+)`", names)
        assert len(chain.blocks) == int(count), arch
        assert (named[0], named[-1]) == (chain.blocks[0][0], chain.blocks[-1][0]), arch
