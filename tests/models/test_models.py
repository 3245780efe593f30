"""Backbones, weights, bundles and prediction: torch only, no Ray."""

import io
import json
import re
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retailray.errors import ModelError
from retailray.models import precision
from retailray.models.backbones import build_model
from retailray.models.bundle import BundleMeta, EvalTransform, copy_bundle, load_bundle, save_bundle
from retailray.models.predictor import Predictor
from retailray.models.torchvision_backbone import arch_names, head_name
from retailray.models.weights import pretrained_model

TRANSFORM = EvalTransform(resize_size=36, crop_size=32, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))


ARCHS = [
    "resnet18",
    "mobilenet_v3_small",
    "squeezenet1_1",
    "shufflenet_v2_x0_5",
    "vit_b_16",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "convnext_tiny",
    "regnet_y_400mf",
]


@pytest.mark.parametrize("arch", ARCHS)
def test_the_head_makes_the_logits(arch):
    model = build_model(arch, 7)
    head = model.get_submodule(head_name(model))
    assert 7 in (getattr(head, "out_features", None), getattr(head, "out_channels", None))


@pytest.mark.parametrize("arch", ["mnasnet0_5", "googlenet", "densenet121"])
def test_plain_tensors_load_into_every_family(arch, tmp_path):
    source = build_model(arch, 1000)
    state = source.state_dict()
    if arch == "densenet121":  # the names in torchvision's own file
        state = {
            re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", name): value for name, value in state.items()
        }
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    model, *_ = pretrained_model(arch, str(tmp_path / "w.safetensors"), 5, seed=0)
    own = model.state_dict()
    head = head_name(model)
    for name, value in source.state_dict().items():
        assert name.startswith(head) or torch.equal(own[name], value), name


def test_unknown_arch_suggests():
    assert "resnet50" in arch_names()
    with pytest.raises(ModelError, match="did you mean resnet50"):
        build_model("resnet5O", 3)


def test_weights_from_every_kind_of_file(tmp_path):
    source = build_model("resnet18", 1000)
    state = source.state_dict()
    half = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    torch.save(half, tmp_path / "plain.pth")
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "wrapped.pth")
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    for name in ("plain.pth", "wrapped.pth", "w.safetensors"):
        model, mean, *_ = pretrained_model("resnet18", str(tmp_path / name), 5, seed=0)
        assert model.fc.out_features == 5
        assert torch.allclose(model.layer1[0].conv1.weight, source.layer1[0].conv1.weight, atol=1e-3)
        assert model.layer1[0].conv1.weight.dtype == torch.float32
        assert mean == (0.485, 0.456, 0.406)


def test_weights_that_do_not_fit_or_are_not_weights(tmp_path):
    torch.save(build_model("resnet34", 10).state_dict(), tmp_path / "r34.pth")
    torch.save(build_model("squeezenet1_0", 10).state_dict(), tmp_path / "squeeze.pth")
    (tmp_path / "html.pth").write_text("<html>")
    evil = io.BytesIO()
    torch.save({"w": print}, evil)
    (tmp_path / "pickle.pth").write_bytes(evil.getvalue())
    for name, words in {
        "squeeze.pth": "tensors missing, first bn1.bias",
        "r34.pth": "that the model does not have, first layer1.2",
        "html.pth": "not a plain state dict",
        "pickle.pth": "not a plain state dict",
    }.items():
        with pytest.raises(ModelError, match=words):
            pretrained_model("resnet18", str(tmp_path / name), 5, seed=0)
    with pytest.raises(ModelError, match="IMAGENET1K_V1"):
        pretrained_model("resnet18", "IMAGENET", 5, seed=0)


def test_torchvision_names_load_staged_files_and_say_how_to_stage(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    # the download itself, closed: a proxy that refuses at once, on this machine
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(ModelError) as caught:
        pretrained_model("squeezenet1_0", "IMAGENET1K_V1", 5, seed=0)
    assert str(tmp_path / "hub" / "checkpoints") in str(caught.value)
    assert "squeezenet1_0-b66bff10.pth" in str(caught.value)
    source = build_model("squeezenet1_0", 1000)
    staged = tmp_path / "hub" / "checkpoints" / "squeezenet1_0-b66bff10.pth"
    staged.parent.mkdir(parents=True, exist_ok=True)
    torch.save(source.state_dict(), staged)
    model, *_ = pretrained_model("squeezenet1_0", "IMAGENET1K_V1", 5, seed=0)
    assert torch.equal(model.features[0].weight, source.features[0].weight)


@pytest.mark.real
def test_real_weights_by_torchvisions_name(real_data, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    source = real_data[1] / "mobilenet_v2-imagenet.pth"
    shutil.copy(source, tmp_path / "hub" / "checkpoints" / "mobilenet_v2-b0353104.pth")
    by_name, mean, *_ = pretrained_model("mobilenet_v2", "IMAGENET1K_V1", 81, seed=0)
    by_address, *_ = pretrained_model("mobilenet_v2", str(source), 81, seed=0)
    assert mean == pytest.approx((0.485, 0.456, 0.406))
    for name, value in by_name.state_dict().items():
        assert torch.equal(value, by_address.state_dict()[name])


@settings(max_examples=5, deadline=None)
@given(labels=st.lists(st.text(min_size=1), min_size=2, max_size=6, unique=True), temperature=st.floats(0.1, 9))
def test_a_bundle_survives_a_round_trip(tmp_path_factory, labels, temperature):
    address = str(tmp_path_factory.mktemp("b") / "bundle")
    model = build_model("squeezenet1_1", len(labels)).eval()
    meta = BundleMeta(
        name="n",
        version="v",
        arch="squeezenet1_1",
        labels=labels,
        transform=TRANSFORM,
        temperature=temperature,
    )
    save_bundle(address, meta, model.state_dict())
    loaded = load_bundle(address)
    assert loaded.meta == meta
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.build()(images), model(images))


def test_bundles_are_immutable_and_verified(small_bundle, tmp_path):
    address = str(tmp_path / "registry" / "name" / "1")
    copy_bundle(small_bundle[0], address)
    assert load_bundle(address).meta == load_bundle(small_bundle[0]).meta
    with pytest.raises(ModelError, match="never overwritten"):
        copy_bundle(small_bundle[0], address)
    meta = tmp_path / "registry" / "name" / "1" / "bundle.json"
    changed = json.loads(meta.read_text()) | {"temperature": 2.0}
    meta.write_text(json.dumps(changed))
    with pytest.raises(ModelError, match="not what MANIFEST says"):
        load_bundle(address)
    with pytest.raises(ModelError, match="MANIFEST"):
        load_bundle(str(tmp_path))
    with pytest.raises(ModelError, match="was never set"):
        load_bundle(str(tmp_path / "registry" / "name@champion"))


def test_the_predictor_equals_the_model(small_bundle):
    bundle = load_bundle(small_bundle[0])
    images = np.random.default_rng(0).integers(0, 255, (3, 3, 32, 32), dtype=np.uint8)
    images.setflags(write=False)
    probabilities = Predictor(bundle, precision="float32")(images)
    transform = bundle.meta.transform
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (transform.mean, transform.std))
    with torch.no_grad():
        expected = torch.softmax(bundle.build()((torch.tensor(images) / 255 - mean) / std), 1).numpy()
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    rounded = Predictor(bundle, precision="bfloat16")(images)
    np.testing.assert_allclose(rounded, expected, atol=0.05)


def choose(model, arch="resnet18"):
    passes = precision.under_autocast(model, torch.device("cpu"))
    return precision.choose_precision(passes, what=arch, size_px=32, device=torch.device("cpu"))


def test_precision_is_one_of_two(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert choose(build_model("resnet18", 2).eval()) in ("float32", "bfloat16")


@pytest.mark.parametrize(
    ("half", "chosen", "rounds"), [(20.0, "float32", 2), (1.1, "float32", 6), (0.5, "bfloat16", 6)]
)
def test_precision_is_measured_once_a_machine_and_on_few_images_where_that_is_clear(
    monkeypatch, tmp_path, half, chosen, rounds
):
    """Kind of fault: every command of a machine that emulates bfloat16 spends twenty seconds to find it out again."""
    asked = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(
        precision, "_time", lambda model, images, name: asked.append(name) or (1.0 if name == "float32" else half)
    )
    model = build_model("resnet18", 2)
    assert [choose(model), choose(model)] == [chosen, chosen]
    assert asked == ["float32", "bfloat16"] * rounds
    choose(model, "resnet34")
    assert len(asked) == 4 * rounds, "another model is measured for itself"
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc")
    assert choose(model) == chosen, "nothing can be kept there, and that is no error"
