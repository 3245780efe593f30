"""``bundle``: what ``score`` then publishes is what the model's own library or script says of the same files."""

import csv
import json
import math
import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import timm
import torch
import torchvision
import transformers
from PIL import Image, ImageOps
from torch import nn
from torchvision.transforms import v2

from tests.commands.helpers import latest, read_json
from tests.models.test_other_libraries import HF

LABELS = ["almonds", "butter", "cocoa", "dates", "eggs"]
PROCESSORS = {
    "resnet": transformers.ConvNextImageProcessor(size={"shortest_edge": 56}, crop_pct=0.875),
    "convnext": transformers.ConvNextImageProcessor(size={"shortest_edge": 384}),
    "vit": transformers.ViTImageProcessor(size={"height": 64, "width": 64}),
    "deit": transformers.DeiTImageProcessor(
        size={"height": 73, "width": 73}, crop_size={"height": 64, "width": 64}, image_std=[0.2, 0.3, 0.25]
    ),
    "swin": transformers.ViTImageProcessor(size={"height": 64, "width": 64}, resample=3),
    "dinov2": transformers.BitImageProcessor(size={"shortest_edge": 71}, crop_size={"height": 56, "width": 56}),
    "mobilenet_v2": transformers.MobileNetV2ImageProcessor(
        size={"shortest_edge": 75}, crop_size={"height": 64, "width": 64}
    ),
    "efficientnet": transformers.EfficientNetImageProcessor(size={"height": 64, "width": 64}),
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """40 photos of odd sizes, JPEG and PNG, one turned by its EXIF; their names and labels in catalog.csv."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    with open(folder / "catalog.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "label"])
        for number in range(40):
            width, height = (int(side) for side in random.integers(60, 401, 2))
            coarse = random.integers(0, 256, (7, 7, 3), np.uint8)
            picture = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).copy()
            picture[::6, ::9] = random.integers(0, 256, 3, np.uint8)
            name = f"{number}.{'png' if number % 5 == 4 else 'jpg'}"
            exif = Image.Exif()
            if number == 7:
                exif[0x0112] = 6
            Image.fromarray(picture).save(folder / name, exif=exif, **({"quality": 92} if name.endswith("g") else {}))
            rows.writerow([name, LABELS[number % 5]])
    return folder


def spread(model, *, size=64):
    """Random weights whose logits differ as a trained model's do."""
    torch.manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            module.momentum = 1.0  # its statistics are those of the one batch below
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    with torch.no_grad():
        for module in layers:
            module.weight.normal_(0, 1.4 / math.sqrt(module.weight[0].numel()))
        layers[-1].bias.uniform_(-0.5, 0.5)
        model.train()(torch.randn(16, 3, size, size))
    return model.eval()


def directory(kind, folder):
    """A classifier in transformers' format, as save_pretrained leaves it."""
    settings = dict(HF[kind]) | ({"image_size": 64} if kind == "dinov2" else {})
    settings.pop("architectures", None)
    config = transformers.AutoConfig.for_model(kind, **settings, num_labels=len(LABELS))
    config.id2label = dict(enumerate(LABELS))
    config.label2id = {label: number for number, label in enumerate(LABELS)}
    classes = {"deit": transformers.DeiTForImageClassification}
    model = (
        classes[kind](config) if kind in classes else transformers.AutoModelForImageClassification.from_config(config)
    )
    spread(model).save_pretrained(folder)
    PROCESSORS[kind].save_pretrained(folder)
    return str(folder)


def scored(retailray, photos, bundle, out):
    """Probabilities ``(40, labels)`` as ``score`` publishes them, in the catalog's order."""
    settings = {"catalog.uri": photos / "catalog.csv", "model.uri": bundle, "score.precision": "float32"}
    code, _, err = retailray("score", **settings, **{"score.top_k": 50}, out=out)
    assert code == 0, err
    frame = pd.read_parquet(f"{latest(str(out))}/predictions").set_index("image")
    frame = frame.loc[pd.read_csv(photos / "catalog.csv").image]
    labels = read_json(f"{bundle}/bundle.json")["labels"]
    return np.array(
        [
            [dict(zip(row.topk_labels, row.topk_scores, strict=True))[label] for label in labels]
            for row in frame.itertuples()
        ]
    )


def bundled(retailray, out, **settings):
    code, _, err = retailray("bundle", **settings, out=out)
    assert code == 0, err
    return f"{latest(str(out))}/bundle"


def files_of(photos):
    return [photos / name for name in pd.read_csv(photos / "catalog.csv").image]


@pytest.mark.parametrize("kind", PROCESSORS)
def test_a_directory_of_transformers_scores_as_its_own_pipeline(kind, retailray, photos, tmp_path):
    source = directory(kind, tmp_path / "model")
    bundle = bundled(retailray, tmp_path / "bundles", **{"bundle.source": source})
    assert read_json(f"{bundle}/bundle.json")["labels"] == LABELS
    pipeline = transformers.pipeline("image-classification", model=source, device="cpu")
    found = scored(retailray, photos, bundle, tmp_path / "scores")
    assert found.max(1).std() > 0.02, "photos that all look alike would prove little"
    for row, answers in zip(found, pipeline([str(file) for file in files_of(photos)], top_k=5), strict=True):
        expected = {answer["label"]: answer["score"] for answer in answers}
        assert row == pytest.approx([expected[label] for label in LABELS], abs=1e-4)


def of_script(model, transform, photos):
    """What a plain script's evaluation says."""
    rows = []
    for file in files_of(photos):
        with Image.open(file) as image, torch.inference_mode():
            pixels = transform(ImageOps.exif_transpose(image).convert("RGB"))
            rows.append(torch.softmax(model(pixels[None]), 1)[0].numpy())
    return np.array(rows)


def test_a_model_that_a_plain_script_trained_scores_as_that_script_evaluates(retailray, photos, tmp_path):
    """torchvision's resnet18, trained for two steps, saved within a checkpoint of DistributedDataParallel."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=5)
    transform = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    table = pd.read_csv(photos / "catalog.csv").head(16)
    images = torch.stack([transform(Image.open(photos / name).convert("RGB")) for name in table.image])
    targets = torch.tensor([LABELS.index(label) for label in table.label])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), targets).backward()
        optimizer.step()
    state = {f"module.{name}": tensor for name, tensor in model.eval().state_dict().items()}
    torch.save({"epoch": 2, "model": state, "optimizer": optimizer.state_dict()}, tmp_path / "last.pth")
    (tmp_path / "labels.txt").write_text("\n".join(LABELS) + "\n")
    given = {
        "bundle.source": tmp_path / "last.pth",
        "bundle.arch": "resnet18",
        "bundle.labels": tmp_path / "labels.txt",
    }
    bundle = bundled(retailray, tmp_path / "bundles", **given)
    found = scored(retailray, photos, bundle, tmp_path / "scores")
    assert found == pytest.approx(of_script(model, transform, photos), abs=1e-4)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "vit_tiny_patch16_224", "repvgg_a0"])
def test_a_model_of_timm_scores_as_its_script_evaluates(name, retailray, photos, tmp_path):
    model = spread(timm.create_model(name, num_classes=5), size=224)
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    compiled = {f"_orig_mod.{name}": tensor for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(compiled, tmp_path / "w.safetensors")
    (tmp_path / "labels.json").write_text(json.dumps({label: number for number, label in enumerate(LABELS)}))
    given = {"bundle.source": tmp_path / "w.safetensors", "bundle.arch": f"timm:{name}"}
    bundle = bundled(retailray, tmp_path / "bundles", **given, **{"bundle.labels": tmp_path / "labels.json"})
    found = scored(retailray, photos, bundle, tmp_path / "scores")
    assert found == pytest.approx(of_script(model, transform, photos), abs=1e-4)


def test_a_transform_of_ones_own(retailray, photos, tmp_path):
    """Key by key in place of the library's: another size, stretched, bicubic, another normalisation."""
    model = spread(torchvision.models.resnet18(num_classes=5))
    torch.save(model.state_dict(), tmp_path / "w.pth")
    (tmp_path / "labels.csv").write_text("index,label\n" + "".join(f"{n},{one}\n" for n, one in enumerate(LABELS)))
    own = {"resize_size": 96, "crop_size": 96, "resize": "stretch", "interpolation": "bicubic", "mean": [0.4, 0.5, 0.6]}
    given = {"bundle.source": tmp_path / "w.pth", "bundle.arch": "resnet18", "bundle.labels": tmp_path / "labels.csv"}
    bundle = bundled(retailray, tmp_path / "bundles", **given, **{"bundle.transform": json.dumps(own)})
    transform = v2.Compose(
        [
            v2.Resize((96, 96), v2.InterpolationMode.BICUBIC),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.4, 0.5, 0.6], [0.229, 0.224, 0.225]),
        ]
    )
    found = scored(retailray, photos, bundle, tmp_path / "scores")
    assert found == pytest.approx(of_script(model, transform, photos), abs=1e-4)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A timm network, its weights and labels in files: settings of ``bundle``, and the model."""
    folder = tmp_path_factory.mktemp("tiny")
    model = spread(timm.create_model("resnet10t", num_classes=5))
    safetensors.torch.save_file(model.state_dict(), folder / "w.safetensors")
    (folder / "labels.txt").write_text("\n".join(LABELS))
    given = {"bundle.source": folder / "w.safetensors", "bundle.arch": "timm:resnet10t"}
    return given | {"bundle.labels": folder / "labels.txt"}, model


def test_labelled_images_measure_and_calibrate(retailray, photos, tiny, tmp_path):
    """Oracle: the plain bundle's probabilities, scored, give top-1, the loss and the temperature that minimises it."""
    plain = bundled(retailray, tmp_path / "plain", **tiny[0])
    settings = {"catalog.uri": photos / "catalog.csv"}
    bundle = bundled(retailray, tmp_path / "bundles", **tiny[0], **settings)
    meta = read_json(f"{bundle}/bundle.json")
    scores = scored(retailray, photos, plain, tmp_path / "scores")
    truth = pd.read_csv(photos / "catalog.csv").label.map(LABELS.index).to_numpy()
    assert meta["metrics"]["validation_rows"] == 40
    assert meta["metrics"]["validation_top1"] == pytest.approx((scores.argmax(1) == truth).mean())
    loss = -np.log(scores[np.arange(40), truth]).mean()
    assert meta["metrics"]["validation_loss"] == pytest.approx(loss, abs=0.02)  # bfloat16 where it is faster
    rows = (
        pd.read_parquet(f"{bundle}/validation.parquet").set_index("id").loc[pd.read_csv(photos / "catalog.csv").image]
    )
    assert set(rows.role) == {"temperature", "thresholds"}
    assert list(rows.label) == [LABELS[number] for number in truth]
    fitted = (rows.role == "temperature").to_numpy()

    def cross_entropy(temperature):
        logits = np.log(scores[fitted]) / temperature
        return -(logits - np.log(np.exp(logits).sum(1, keepdims=True)))[np.arange(fitted.sum()), truth[fitted]].mean()

    grid = np.geomspace(0.05, 20, 400)
    best = min(cross_entropy(one) for one in grid)
    assert cross_entropy(meta["temperature"]) == pytest.approx(best, abs=0.01)
    calibrated = scored(retailray, photos, bundle, tmp_path / "calibrated")
    assert calibrated[truth == 0].argmax(1).tolist() == scores[truth == 0].argmax(1).tolist()


def test_a_promise_needs_a_catalog_and_says_so(retailray, photos, tiny, tmp_path):
    plain = bundled(retailray, tmp_path / "plain", **tiny[0])
    wanted = {"catalog.uri": photos / "catalog.csv", "model.uri": plain, "score.target_precision": 0.9}
    code, _, err = retailray("score", **wanted, out=tmp_path / "scores")
    assert code == 1
    assert "give `retailray bundle` a catalog.uri" in err
    bundle = bundled(retailray, tmp_path / "bundles", **tiny[0], **{"catalog.uri": photos / "catalog.csv"})
    assert retailray("score", **wanted | {"model.uri": bundle}, out=tmp_path / "scores")[0] == 0


def test_other_commands_take_it_like_any_bundle(retailray, photos, tiny, tmp_path):
    """evaluate, compare, promote from a registry, and train from its weights."""
    catalog = {"catalog.uri": photos / "catalog.csv"}
    named = {"bundle.registry": tmp_path / "registry", "bundle.name": "pantry"}
    bundle = bundled(retailray, tmp_path / "bundles", **tiny[0], **catalog, **named)
    version = read_json(f"{bundle}/bundle.json")["version"]
    registered = tmp_path / "registry/pantry" / version
    assert retailray("evaluate", **catalog, **{"model.uri": registered}, out=tmp_path / "evaluations")[0] == 0
    top1 = read_json(f"{latest(str(tmp_path / 'evaluations'))}/metrics.json")["top1"]
    assert top1 == pytest.approx(read_json(f"{bundle}/bundle.json")["metrics"]["validation_top1"], abs=0.03)
    against = {"model.uri": bundle, "compare.baseline": registered}
    assert retailray("compare", **catalog, **against, out=tmp_path / "comparisons")[0] == 0
    asked = {"model.uri": registered, "promote.split": "all", "promote.min_rows": 10}
    assert retailray("promote", **catalog, **asked, out=tmp_path / "promotions")[0] == 0
    small = {"transform.image_size": 64, "train.epochs": 1, "split.validation": 0.4, "split.seed": 1}
    start = {"model.arch": "timm:resnet10t", "model.weights": f"{tmp_path}/registry/pantry@champion"}
    code, _, err = retailray("train", **catalog, **small, **start, out=tmp_path / "runs")
    assert code == 0, err
    assert read_json(f"{latest(str(tmp_path / 'runs'))}/bundle/bundle.json")["arch"] == "timm:resnet10t"


def test_labels_are_renamed_and_dropped(retailray, photos, tiny, tmp_path):
    """Oracle: the softmax of the script's logits over the labels that are kept."""
    changes = json.dumps({"eggs": "Eggs, free range", "almonds": "Almonds", "dates": None})
    bundle = bundled(retailray, tmp_path / "bundles", **tiny[0], **{"bundle.label_map": changes})
    assert read_json(f"{bundle}/bundle.json")["labels"] == ["Almonds", "butter", "cocoa", "Eggs, free range"]
    whole = scored(retailray, photos, bundled(retailray, tmp_path / "whole", **tiny[0]), tmp_path / "all")
    found = scored(retailray, photos, bundle, tmp_path / "scores")
    kept = whole[:, [0, 1, 2, 4]]
    assert found == pytest.approx(kept / kept.sum(1, keepdims=True), abs=1e-4)
    two = bundled(
        retailray, tmp_path / "two", **tiny[0], **{"bundle.label_map": '{"butter": "b", "eggs": "e", "*": null}'}
    )
    assert read_json(f"{two}/bundle.json")["labels"] == ["b", "e"]


def test_sources_and_labels_in_object_storage(retailray, photos, bucket, tmp_path):
    from retailray import storage

    source = directory("vit", tmp_path / "model")
    for file in (tmp_path / "model").iterdir():
        storage.write_bytes(f"{bucket}/models/vit/{file.name}", file.read_bytes())
    near = scored(
        retailray, photos, bundled(retailray, tmp_path / "near", **{"bundle.source": source}), tmp_path / "one"
    )
    far = bundled(retailray, tmp_path / "far", **{"bundle.source": f"{bucket}/models/vit"})
    assert (scored(retailray, photos, far, tmp_path / "two") == near).all()


def test_some_keys_of_a_transform_leave_the_others_as_they_were(retailray, tmp_path):
    source = directory("deit", tmp_path / "model")
    whole = read_json(f"{bundled(retailray, tmp_path / 'whole', **{'bundle.source': source})}/bundle.json")["transform"]
    own = {"resize_size": 80, "crop_size": 64, "mean": [0.4] * 3, "std": [0.3] * 3}
    given = {"bundle.source": source, "bundle.transform": json.dumps(own)}
    assert read_json(f"{bundled(retailray, tmp_path / 'own', **given)}/bundle.json")["transform"] == whole | own
    assert whole["resize"] == "stretch"
    assert whole["interpolation"] == "bicubic"


def test_a_directory_that_timm_saved_with_settings_of_its_own(retailray, photos, tmp_path):
    """Its pooling and activation are built; the file of the weights may be pytorch_model.bin."""
    model = spread(timm.create_model("resnet10t", num_classes=5, global_pool="max", act_layer="silu"))
    facts = {"label_names": LABELS}
    timm.models.save_for_hf(model, str(tmp_path / "hub"), model_config=facts, safe_serialization=False)
    assert (tmp_path / "hub/pytorch_model.bin").exists()
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    bundle = bundled(retailray, tmp_path / "bundles", **{"bundle.source": tmp_path / "hub"})
    found = scored(retailray, photos, bundle, tmp_path / "scores")
    assert found == pytest.approx(of_script(model, transform, photos), abs=1e-4)


def test_too_few_products_do_not_calibrate_and_are_told(retailray, photos, tiny, tmp_path):
    pd.read_csv(photos / "catalog.csv").head(4).to_csv(photos / "few.csv", index=False)
    code, out, _ = retailray("bundle", **tiny[0], **{"catalog.uri": photos / "few.csv"}, out=tmp_path)
    assert code == 0
    assert "more labelled products" in out
    folder = f"{latest(str(tmp_path))}/bundle"
    assert not read_json(f"{folder}/bundle.json")["data"]["calibrated"]
    assert "Confidences are not calibrated." in Path(folder, "README.md").read_text()


def test_a_directory_of_timm_on_the_hub(retailray, photos, tiny, tmp_path):
    """config.json with architecture, label names and the transform; model.safetensors."""
    _, model = tiny
    folder = tmp_path / "hub"
    folder.mkdir()
    safetensors.torch.save_file(model.state_dict(), folder / "model.safetensors")
    config = {"architecture": "resnet10t", "num_classes": 5, "label_names": LABELS}
    config["pretrained_cfg"] = {"input_size": [3, 96, 96], "crop_pct": 1.0, "mean": [0.5] * 3, "std": [0.25] * 3}
    config["pretrained_cfg"] |= {"interpolation": "bicubic", "crop_mode": "center"}
    (folder / "config.json").write_text(json.dumps(config))
    bundle = bundled(retailray, tmp_path / "bundles", **{"bundle.source": folder})
    transform = timm.data.create_transform(
        (3, 96, 96), crop_pct=1.0, mean=[0.5] * 3, std=[0.25] * 3, interpolation="bicubic"
    )
    found = scored(retailray, photos, bundle, tmp_path / "scores")
    assert found == pytest.approx(of_script(model, transform, photos), abs=1e-4)


LINES = re.findall(
    r"^\| .* \| `retailray (.*)` \|$", (Path(__file__).parents[2] / "docs/models.md").read_text(), re.MULTILINE
)


@pytest.fixture(scope="module")
def typed(photos, tmp_path_factory):
    """A folder with the files that the guide names."""
    folder = tmp_path_factory.mktemp("typed")
    directory("vit", folder / "vit-shop")
    torch.save(torchvision.models.resnet18(num_classes=5).state_dict(), folder / "last.pth")
    model = timm.create_model("resnet10t", num_classes=5)
    (folder / "timm-shop").mkdir()
    for name in ("timm.safetensors", "timm-shop/model.safetensors"):
        safetensors.torch.save_file(model.state_dict(), folder / name)
    config = {"architecture": "resnet10t", "label_names": LABELS, "pretrained_cfg": {"input_size": [3, 64, 64]}}
    config["pretrained_cfg"] |= {"mean": [0.5] * 3, "std": [0.5] * 3}
    (folder / "timm-shop/config.json").write_text(json.dumps(config))
    (folder / "labels.txt").write_text("\n".join(LABELS))
    (folder / "classes.json").write_text(json.dumps(LABELS))
    rows = pd.read_csv(photos / "catalog.csv")
    rows.assign(image=[str(photos / name) for name in rows.image]).to_csv(folder / "labelled.csv", index=False)
    return folder


def test_the_guide_has_a_line_for_every_source():
    assert len(LINES) == 12


@pytest.mark.parametrize("line", LINES)
def test_every_line_of_the_guide_works(line, typed, bucket, capfd, monkeypatch, tmp_path):
    from retailray import storage
    from retailray.cli import main

    for file in (typed / "vit-shop").iterdir():
        storage.write_bytes(f"{bucket}/models/vit-shop/{file.name}", file.read_bytes())
    monkeypatch.chdir(typed)
    words = shlex.split(line.replace("s3://shop/", f"{bucket}/").replace("--out ", f"--out {tmp_path}/"))
    small = ["--train.epochs", "1", "--split.validation", "0.4"] if words[0] == "train" else []
    assert main([*words, *small, "--cluster.engine", "inline"]) == 0, capfd.readouterr().err
    assert list(tmp_path.rglob("bundle/MANIFEST"))
