import json
from pathlib import Path

import pytest
import yaml

from retailray.cli import main
from retailray.config import COMMANDS, arguments
from retailray.config.base import RENAMED
from retailray.errors import ConfigError

# six levels of ten aliases each
ALIASES = "a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 7))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 7))
CHECK = ["--catalog.uri", "/c.csv", "--out", "/o"]


def problems(command, *argv):
    with pytest.raises(ConfigError) as caught:
        arguments.parse(command, argv)
    return caught.value.problems


def test_all_problems_are_reported_together(tmp_path):
    file = tmp_path / "night.yaml"
    file.write_text("train: {epochs: -1, batchsize: 4}\nfoo: 1\n")
    found = "\n".join(
        problems(
            "train",
            "--config",
            str(file),
            "--train.head_lr",
            "fast",
            "--train.epoch",
            "3",
            "--score.top_k",
            "2",
        )
    )
    assert "train.epochs = -1 (" in found
    assert str(file) in found
    assert "train.batchsize" in found
    assert "did you mean train.batch_size?" in found
    assert 'train.head_lr = "fast" (command line)' in found
    assert "did you mean train.epochs?" in found
    assert "score.top_k (command line): train does not read it" in found
    assert "foo (" in found
    assert "out: required" in found
    assert "catalog.uri: required" in found


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"demo", "submit", "doctor"}))  # which need nothing
def test_what_is_required_is_named_as_it_is_called(command, capsys):
    """And what the errors ask for is all there is to give."""
    asked = [problem.removesuffix(": required and not given") for problem in problems(command)]
    with pytest.raises(SystemExit):
        arguments.parse(command, ["--help"])
    shown = capsys.readouterr().out
    for key in asked:
        assert f"--{key} " in shown
    values = {"study.models": '[{"name": "one", "model": {"arch": "cnn1"}}]'}
    given = [part for key in asked for part in (f"--{key}", values.get(key, "/x"))]
    given += {"forecast": ["--sales.uri", "/x"]}.get(command, [])  # or interactions.uri: one of two is required
    assert arguments.parse(command, given)


@pytest.mark.parametrize(
    ("command", "key", "value", "missing"),
    [
        ("train", "train.phases", '[{"epochs": 3}]', "train.phases.0.trainable"),
        ("tune", "tune.space", '{"train.head_lr": {"loguniform": [0.001]}}', "tune.space.train.head_lr.loguniform"),
    ],
)
def test_what_is_missing_inside_of_a_value_is_named_beside_all_else(command, key, value, missing):
    found = problems(command, f"--{key}", value, "--out", "/o")
    assert "catalog.uri: required and not given" in found
    assert any(missing in problem for problem in found), found


def test_exit_code_is_2_and_nothing_is_written(tmp_path, capsys):
    assert main(["check", "--out", str(tmp_path / "o"), "--catalog.url", "x"]) == 2
    assert "did you mean catalog.uri?" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_unknown_command(capsys):
    assert main(["chek"]) == 2
    assert "check" in capsys.readouterr().err


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_key_of_an_older_version_names_the_new_one(old, new, tmp_path):
    """On the command line and in a file; the new name is a key of the same command."""
    readers = [name for name, command in COMMANDS.items() if new in arguments.known_keys(command.config)]
    assert readers
    path = tmp_path / "old.yaml"
    section, _, name = old.partition(".")
    path.write_text(f"{section}: {{{name}: 1}}\n")
    for given in ([f"--{old}=1"], ["--config", str(path)]):
        assert any(problem.startswith(old) and new in problem for problem in problems(readers[0], *given))


def test_a_renamed_key_of_a_search_space_names_the_new_one():
    space = json.dumps({"train.lr_decay": [0.5, 0.8]})
    assert "train.lr_decay is train.layer_decay now" in problems("tune", *CHECK, "--tune.space", space)[0]


@pytest.mark.parametrize("token", ["--", "--=x", "-x", "x"])
def test_what_is_no_setting_is_named_as_it_was_written(token):
    assert problems("check", *CHECK, token)[0].startswith(f"unexpected argument {token!r}")


def test_settings_that_would_be_ignored_are_refused():
    base = ["--catalog.uri", "/c.csv", "--out", "/o"]
    assert (
        "split.validation" in problems("train", *base, "--split.validation", "0.2", "--catalog.validation_uri", "/v")[0]
    )
    assert "split.*" in problems("train", *base, "--split.seed", "2", "--catalog.split", "s")[0]
    frozen = [*base, "--model.trainable", "head", "--train.backbone_lr", "0.1"]
    assert "train.backbone_lr would be ignored: only the head" in problems("train", *frozen)[0]
    phases = ["--train.phases", '[{"epochs": 2, "trainable": "head"}]']
    assert "train.epochs would be" in problems("train", *base, *phases, "--train.epochs", "3")[0]
    assert "model.trainable would be" in problems("train", *base, *phases, "--model.trainable", "last2")[0]
    assert "train.momentum would be" in problems("train", *base, "--train.momentum", "0.5")[0]
    assert "train.num_views would be" in problems("train", *base, "--train.cache", "off", "--train.num_views", "2")[0]
    still = ["--transform.augment", "none", "--train.num_views", "2"]
    assert "would all be the same" in problems("train", *base, *still)[0]
    assert "model.trainable" in problems("train", *base, "--model.trainable", "last0")[0]
    assert "model.name" in problems("train", *base, "--model.registry", "/r")[0]
    assert (
        "it belongs to check, train, tune, study, evaluate"
        in problems("score", *base, "--model.uri", "/b", "--catalog.split", "s")[0]
    )
    both = "both say which rows"
    assert both in problems("check", *base, "--catalog.split", "s", "--catalog.validation_uri", "/v")[0]
    assert "split.*" in problems("check", *base, "--split.test", "0.2", "--catalog.split", "s")[0]
    assert "split.test" in problems("train", *base, "--split.test", "0.2", "--catalog.test_uri", "/t")[0]
    evaluate = ["evaluate", *base, "--model.uri", "/b"]
    assert "evaluate.split is all" in problems(*evaluate, "--catalog.test_uri", "/t")[0]
    assert arguments.parse("evaluate", [*evaluate[1:], "--split.test", "0.2", "--evaluate.split", "test"])


def test_files_merge_in_order_and_the_command_line_wins(tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text(
        "out: /a\ncatalog: {uri: /c.csv, label: kind, split: part, label_map: {0: PC, 1: bag}}\n"
        "train: {epochs: 3, seed: 1}\ncheck:"
    )
    second.write_text("train: {epochs: 4}\nscore: {top_k: 2}  # another command's; one file may serve the whole night")
    config = arguments.parse("train", ["--config", str(first), "--config", str(second), "--train.seed", "9"])
    assert (config.out, config.train.epochs, config.train.seed) == ("/a", 4, 9)
    assert config.catalog.label_map == {"0": "PC", "1": "bag"}
    score = arguments.parse("score", ["--config", str(second), *CHECK, "--model.uri", "/b"])
    assert score.score.top_k == 2
    shared = arguments.parse("score", ["--config", str(first), "--model.uri", "/b"])
    assert (shared.catalog.uri, shared.catalog.split) == ("/c.csv", None)


def test_values_of_every_kind():
    argv = [*CHECK, "--check.fail_on", "errors,leakage", "--catalog.label_map", json.dumps({"0": "PC"})]
    config = arguments.parse("check", [*argv, "--cluster.use_gpu=false", "--check.max_imbalance", "2.5"])
    assert config.check.fail_on == ["errors", "leakage"]
    assert config.catalog.label_map == {"0": "PC"}
    assert config.cluster.use_gpu is False
    assert config.check.max_imbalance == 2.5
    assert "--out needs a value" in problems("check", "--catalog.uri", "/c", "--out")[0]
    assert "fail_on" in problems("check", *CHECK, "--check.fail_on", "nonsense")[0]


def test_the_environment_does_not_leak_in(monkeypatch):
    monkeypatch.setenv("OUT", "/wrong")
    monkeypatch.setenv("CATALOG__URI", "/wrong")
    assert len(problems("check")) == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_key_with_help(command, capsys):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    for key in arguments.known_keys(COMMANDS[command].config):
        assert f"--{key}" in text
    for field in COMMANDS[command].config.model_fields.values():
        for inner in getattr(field.annotation, "model_fields", {"": field}).values():
            assert inner.description


def test_help_lists_what_a_setting_takes(capsys):
    """Kind of fault: a list of many names is called "name,...", and nobody says which names there are."""
    assert main(["check", "--help"]) == 0
    text = capsys.readouterr().out
    findings = {"exact_duplicates", "labels_without_training_rows", "unread_files"}
    assert findings <= {word.strip(",.") for word in text.split()}


def test_resolved_config_round_trips(tmp_path):
    config = arguments.parse("train", [*CHECK, "--catalog.label_map", '{"a": "b"}', "--train.epochs", "2"])
    file = tmp_path / "resolved.yaml"
    dumped = config.model_dump(mode="json")
    file.write_text(yaml.safe_dump(dumped))
    assert arguments.parse("train", ["--config", str(file)]) == config


def test_a_password_in_an_address_is_refused_and_not_repeated(capsys):
    arguments_ = ["--catalog.uri", "https://me:hush-hush@shop/catalog.csv", "--out", "s3://a:hush-hush@b/c"]
    assert main(["check", *arguments_]) == 2
    err = capsys.readouterr().err
    assert err.count("a password in an address") == 2
    assert "hush-hush" not in err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("catalog: [1, 2]\n", "catalog ({file}): a section with settings is expected, found a list"),
        ("catalog: shop.csv\n", "catalog ({file}): a section with settings is expected, found a text"),
        ("score: 3\n", "score ({file}): a section with settings is expected, found a number"),
        ("catalog:\n  uri: a.csv\n  id: x\n  uri: b.csv\n", "'uri' is given twice, in lines 2 and 4"),
        ("out: a\nout: b\n", "'out' is given twice, in lines 1 and 2"),
        ("catalog: {uri: a.csv, max_aspect_ratio: .inf}\n", "catalog.max_aspect_ratio"),
        ("catalog: {uri: a.csv, max_bytes: .inf}\n", "catalog.max_bytes"),
        ("score: {max_error_rate: .nan}\n", "score.max_error_rate"),
        ("catalog: &x\n  uri: *x\n", "an alias (*name) refers to a value that contains it"),
        (ALIASES, "values after expanding aliases (*name); the limit is 100000"),
        (MERGES, "values after expanding aliases (*name); the limit is 100000"),
        (f"catalog: {{uri: a.csv, max_bytes: {'9' * 5000}x}}\n", "... (5003 characters)"),
        (
            "catalog: {uri: a.csv, allow: ['127.0.0.1:80']}\n",
            "'127.0.0.1:80' is not an existing folder; write a host as http",
        ),
        ("catalog: {uri: a.csv, allow: ['https://*.example.com']}\n", "patterns are not supported"),
    ],
)
def test_what_yaml_takes_and_we_do_not(text, words, tmp_path):
    """Kind of fault: a setting is ignored, or endless, since YAML has no objection."""
    file = tmp_path / "night.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        arguments.parse("score", ["--config", str(file), "--out", "o", "--model.uri", "m"])
    assert words.format(file=file) in " ".join(caught.value.problems)
    assert max(map(len, caught.value.problems)) < 1000


@pytest.mark.parametrize("text", ["out: a\nout: b\n", "catalog: [1]\n", "\tout: a\n", "out: \xff\n"])
def test_what_could_not_be_read_is_not_missed_as_well(text, tmp_path):
    """Kind of fault: after the error that matters, others that are none."""
    file = tmp_path / "night.yaml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        arguments.parse("check", ["--config", str(file)])
    assert len(caught.value.problems) == 1


def test_the_reference_page_is_up_to_date():
    """Kind of fault: a page that describes the settings of an older version."""
    from retailray.config.reference import reference

    page = (Path(__file__).parents[2] / "docs/reference.md").read_text()
    assert page == reference(), "python -m retailray.config.reference > docs/reference.md"
    assert all(f"`{key}`" in page for command in COMMANDS.values() for key in arguments.known_keys(command.config))
