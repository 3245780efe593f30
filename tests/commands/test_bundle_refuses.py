"""What ``bundle`` refuses: one clear line with the first keys and the way out, and nothing is written."""

import json
import pickle

import pytest
import safetensors.torch
import timm
import torch
import torchvision
import transformers

from tests.commands.test_bundle import LABELS, directory

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=5).state_dict()


@pytest.fixture
def refused(retailray, tmp_path):
    """Run ``bundle`` and return its one line; files of the folder may be named."""
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))

    def run(**settings):
        defaults = {"bundle.arch": "resnet18", "bundle.labels": tmp_path / "labels.txt"}
        given = {name: value for name, value in (defaults | settings).items() if value is not None}
        code, _, err = retailray("bundle", **given, out=tmp_path / "out")
        assert code in (1, 2), err
        [line] = [one for one in err.strip().splitlines() if one.startswith("retailray bundle: ")]
        assert "Traceback" not in err
        assert "please report it" not in line
        assert not list((tmp_path / "out").rglob("bundle.json"))
        return line

    return run


WITHOUT_ARCH = {"bundle.arch": None, "bundle.labels": None}


def saved(folder, state, name="w.safetensors"):
    safetensors.torch.save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / name)
    return {"bundle.source": folder / name}


def test_tensors_that_are_missing_unknown_or_misshapen(refused, resnet, tmp_path):
    without = {name: tensor for name, tensor in resnet.items() if name != "layer1.0.conv1.weight"}
    assert "1 tensors missing, first layer1.0.conv1.weight" in refused(**saved(tmp_path, without))
    more = resnet | {"layer9.weight": torch.zeros(2)}
    assert "1 that the model does not have, first layer9.weight" in refused(**saved(tmp_path, more))
    misshapen = resnet | {"conv1.weight": torch.zeros(64, 3, 3, 3)}
    assert "conv1.weight (64, 3, 3, 3) for (64, 3, 7, 7)" in refused(**saved(tmp_path, misshapen))
    assert "does not fit resnet34" in refused(**saved(tmp_path, resnet), **{"bundle.arch": "resnet34"})


def test_weights_that_are_not_finite(refused, resnet, tmp_path):
    broken = resnet | {"conv1.weight": resnet["conv1.weight"] * float("nan")}
    assert "not finite" in refused(**saved(tmp_path, broken))


def test_labels_that_do_not_belong(refused, resnet, tmp_path):
    source = saved(tmp_path, resnet)
    (tmp_path / "four.txt").write_text("a\nb\nc\nd\n")
    line = refused(**source, **{"bundle.labels": tmp_path / "four.txt"})
    assert "the model has 5 outputs (fc.weight)" in line
    assert "has 4 labels" in line
    (tmp_path / "twice.txt").write_text("a\nb\na\nd\ne\n")
    assert "1 labels occur more than once, first 'a'" in refused(**source, **{"bundle.labels": tmp_path / "twice.txt"})
    (tmp_path / "empty.txt").write_text("a\nb\n\nd\ne\n")
    assert "label 3 is empty" in refused(**source, **{"bundle.labels": tmp_path / "empty.txt"})
    (tmp_path / "gap.json").write_text(json.dumps({"0": "a", "2": "b"}))
    assert "are not 0, 1, 2 and so on" in refused(**source, **{"bundle.labels": tmp_path / "gap.json"})
    (tmp_path / "no.json").write_text("{")
    assert "give one label a line, a JSON list" in refused(**source, **{"bundle.labels": tmp_path / "no.json"})
    (tmp_path / "no.csv").write_text("name,size\nx,1\n")
    assert "no column label" in refused(**source, **{"bundle.labels": tmp_path / "no.csv"})
    assert "has no labels: name a file with them" in refused(**source, **{"bundle.labels": None})
    assert "labels.txt" not in refused(**source, **{"bundle.labels": tmp_path / "nowhere.txt"})


def test_maps_that_cannot_be(refused, resnet, tmp_path):
    source = saved(tmp_path, resnet)
    for changes, words in {
        '{"bread": "Bread"}': "labels that the model does not have, first 'bread'",
        '{"eggs": "butter"}': "occur more than once, first 'butter'",
        '{"eggs": "e", "*": null}': "1 labels, and a classifier has two or more",
        '{"*": "rest"}': "can only drop",
    }.items():
        assert words in refused(**source, **{"bundle.label_map": changes})


def test_no_pickle_is_run(refused, tmp_path):
    class Touch:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"state_dict": Touch()}))
    torch.save({"state_dict": Touch()}, tmp_path / "zip.pth")
    torch.save(torchvision.models.resnet18(), tmp_path / "whole.pth")
    for name in ("evil.pth", "zip.pth", "whole.pth"):
        assert "not a plain state dict" in refused(**{"bundle.source": tmp_path / name})
    assert not (tmp_path / "touched").exists()


def test_no_code_of_a_directory_is_run(refused, tmp_path):
    folder = tmp_path / "model"
    directory("vit", folder)
    (folder / "modeling_mine.py").write_text(f"open({str(tmp_path / 'touched')!r}, 'w')")
    config = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoModelForImageClassification": "modeling_mine.Mine"}
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": auto_map}))
    line = refused(**WITHOUT_ARCH, **{"bundle.source": folder})
    assert "auto_map" in line
    assert "modeling_mine.Mine" in line
    (folder / "config.json").write_text(json.dumps(config))
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    processor |= {"auto_map": {"AutoImageProcessor": "modeling_mine.Mine"}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    assert "auto_map" in refused(**WITHOUT_ARCH, **{"bundle.source": folder})
    assert not (tmp_path / "touched").exists()


def test_directories_that_are_none(refused, tmp_path):
    folder = tmp_path / "model"
    directory("vit", folder)
    config = (folder / "config.json").read_text()
    for text, words in {
        "[": "config.json is not JSON",
        "[]": "not an object",
        json.dumps(json.loads(config) | {"model_type": "nothing"}): "nothing",
        json.dumps(json.loads(config) | {"id2label": {"0": "a", "1": "a", "2": "b", "3": "c", "4": "d"}}): "more than",
        json.dumps(json.loads(config) | {"hidden_size": 64}): "does not fit|cannot read|of another shape",
        " " * (17 << 20): "such a file is read up to",
    }.items():
        (folder / "config.json").write_text(text)
        line = refused(**WITHOUT_ARCH, **{"bundle.source": folder})
        assert any(one in line for one in words.split("|")), line
    (folder / "config.json").write_text(config)
    (folder / "model.safetensors").unlink()
    assert "cannot read this directory" in refused(**WITHOUT_ARCH, **{"bundle.source": folder})
    (folder / "config.json").unlink()
    assert "no config.json" in refused(**WITHOUT_ARCH, **{"bundle.source": folder})
    assert "nowhere" in refused(**WITHOUT_ARCH, **{"bundle.source": tmp_path / "nowhere"})


@pytest.mark.parametrize(
    "changes",
    [
        {"size": {"height": 64, "width": 48}},
        {"size": {"shortest_edge": 64}},
        {"do_resize": False},
        {"do_center_crop": True, "crop_size": {"height": 80, "width": 80}},
        {
            "size": {"shortest_edge": 32, "longest_edge": 64},
            "do_center_crop": True,
            "crop_size": {"height": 32, "width": 32},
        },
        {"resample": 4},
    ],
    ids=str,
)
def test_transforms_that_cannot_be_expressed(refused, tmp_path, changes):
    folder = tmp_path / "model"
    directory("vit", folder)
    settings = json.loads((folder / "preprocessor_config.json").read_text()) | changes
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    line = refused(**WITHOUT_ARCH, **{"bundle.source": folder})
    assert "cannot be expressed" in line
    assert "give bundle.transform" in line


def test_a_transform_that_is_given_stands_in_for_one_that_cannot_be_expressed(retailray, tmp_path):
    folder = tmp_path / "model"
    directory("vit", folder)
    (folder / "preprocessor_config.json").unlink()
    own = {"resize_size": 64, "crop_size": 64, "resize": "stretch", "mean": [0.5] * 3, "std": [0.5] * 3}
    short = {"bundle.source": folder, "bundle.transform": json.dumps(own)}
    code, _, err = retailray("bundle", **short, out=tmp_path / "out")
    assert code == 1
    assert "with bundle.transform that has interpolation too it can be" in err
    settings = {"bundle.source": folder, "bundle.transform": json.dumps(own | {"interpolation": "bilinear"})}
    code, _, err = retailray("bundle", **settings, out=tmp_path / "out")
    assert code == 0, err


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"crop_size": "wide"}, "bundle.transform: crop_size"),
        ({"side": 3}, "bundle.transform: side"),
        ({"crop_size": 300}, "pictures are not padded"),
        ({"crop_size": -3}, "bundle.transform: crop_size"),
        ({"resize_size": 10**6}, "bundle.transform: resize_size"),
        ({"interpolation": "cubic"}, "bundle.transform: interpolation"),
        ({"mean": [0.5]}, "three numbers"),
        ({"std": [0.5, 0, 0.5]}, "above 0"),
    ],
    ids=str,
)
def test_transforms_that_are_none(refused, resnet, tmp_path, own, words):
    assert words in refused(**saved(tmp_path, resnet), **{"bundle.transform": json.dumps(own)})


def test_what_the_source_does_not_say(refused, resnet, tmp_path):
    source = saved(tmp_path, resnet)
    assert "set bundle.arch" in refused(**source, **{"bundle.arch": None})
    assert "must be a directory of transformers" in refused(**source, **{"bundle.arch": "hf"})
    assert "bundle.arch = 'resnet1B': there is no such model; did you mean resnet18" in refused(
        **source, **{"bundle.arch": "resnet1B"}
    )
    small = json.dumps({"crop_size": 8, "resize_size": 8})
    line = refused(**source, **{"bundle.arch": "timm:vit_tiny_patch16_224", "bundle.transform": small})
    assert "bundle.transform: crop_size = 8: timm:vit_tiny_patch16_224 cannot be built" in line


def test_a_catalog_of_other_labels(refused, resnet, tmp_path):
    (tmp_path / "catalog.csv").write_text("image,label\na.jpg,bread\n")
    line = refused(**saved(tmp_path, resnet), **{"catalog.uri": tmp_path / "catalog.csv"})
    assert "no row has a label of the model (almonds" in line
    assert "bundle.label_map renames" in line


def test_a_directory_without_an_image_classifier(refused, tmp_path):
    config = transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    assert "bert" in refused(**WITHOUT_ARCH, **{"bundle.source": tmp_path / "bert"}).lower()


def test_an_index_of_weights_that_is_none_or_leads_elsewhere(refused, tmp_path):
    folder = tmp_path / "model"
    directory("vit", folder)
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    for text, words in {
        "{": "is no index of weights",
        "[]": "is no index of weights",
        '{"weight_map": {"a": 5}}': "is no index of weights",
        '{"weight_map": {"a": "../w.safetensors"}}': "names '../w.safetensors'",
        '{"weight_map": {"a": "model.py"}}': "names 'model.py'",
        '{"weight_map": {"a": "lost.safetensors"}}': "names 'lost.safetensors'",
    }.items():
        (folder / "model.safetensors.index.json").write_text(text)
        assert words in refused(**WITHOUT_ARCH, **{"bundle.source": folder})


def test_files_of_odd_kinds(refused, resnet, tmp_path):
    """Names that are numbers, lines that end as on an old Mac, a config of timm that says nothing."""
    torch.save({0: torch.zeros(2)}, tmp_path / "numbers.pth")
    assert "names that are not text" in refused(**{"bundle.source": tmp_path / "numbers.pth"})
    (tmp_path / "mac.csv").write_bytes(b"label\ra\rb\r")
    assert "has 2 labels" in refused(**saved(tmp_path, resnet), **{"bundle.labels": tmp_path / "mac.csv"})
    folder = tmp_path / "timm"
    folder.mkdir()
    config = {"architecture": "resnet10t", "label_names": LABELS}
    (folder / "config.json").write_text(json.dumps(config | {"pretrained_cfg": None}))
    assert "neither model.safetensors nor" in refused(**WITHOUT_ARCH, **{"bundle.source": folder})
    saved(folder, resnet, "model.safetensors")
    assert "pretrained_cfg" in refused(**WITHOUT_ARCH, **{"bundle.source": folder})
    (folder / "config.json").write_text(json.dumps(config | {"pretrained_cfg": {"input_size": [3, 64, 64]}}))
    assert "does not say how pictures are prepared" in refused(**WITHOUT_ARCH, **{"bundle.source": folder})
    assert "leave it out" in refused(**{"bundle.source": folder, "bundle.arch": "timm:resnet18", "bundle.labels": None})


def test_a_config_of_timm_that_asks_for_more_than_a_network(refused, resnet, tmp_path):
    facts = {"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.5] * 3}
    config = {"architecture": "resnet10t", "label_names": LABELS, "pretrained_cfg": facts}
    saved(tmp_path, resnet, "model.safetensors")
    for own in ({"checkpoint_path": "/etc/passwd"}, {"pretrained": True}, {"in_chans": 4}):
        (tmp_path / "config.json").write_text(json.dumps(config | {"model_args": own}))
        assert f"its config has {next(iter(own))} = " in refused(**WITHOUT_ARCH, **{"bundle.source": tmp_path})
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_args": {"no_such_argument": 1}}))
    assert "cannot be built" in refused(**WITHOUT_ARCH, **{"bundle.source": tmp_path})


def test_positions_of_another_size_are_not_guessed_away(refused, retailray, tmp_path):
    state = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=96).state_dict()
    source = saved(tmp_path, state) | {"bundle.arch": "timm:vit_tiny_patch16_224"}
    line = refused(**source)
    assert "pos_embed is (1, 37, 192), and pictures of 224 px need (1, 197, 192)" in line
    assert "say which by bundle.transform" in line
    sizes = json.dumps({"resize_size": 96, "crop_size": 96})
    given = source | {"bundle.labels": tmp_path / "labels.txt", "bundle.transform": sizes}
    assert retailray("bundle", **given, out=tmp_path / "right")[0] == 0


def test_kernels_of_others_are_not_asked_for(retailray, tmp_path):
    """``attn_implementation`` can name code on the hub; neither the network nor the bundle's config keeps it."""
    folder = tmp_path / "model"
    directory("vit", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attn_implementation": "somebody/kernel"}))
    assert retailray("bundle", **{"bundle.source": folder}, out=tmp_path / "out")[0] == 0
    assert "somebody" not in next((tmp_path / "out").rglob("bundle.json")).read_text()
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "x"}}))
    code, _, err = retailray("bundle", **{"bundle.source": folder}, out=tmp_path / "other")
    assert code == 1
    assert "before quantization" in err
