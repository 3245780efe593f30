"""What is known before anything is sent: what is refused, what is packed, what is sealed."""

import http.server
import json
import os
import subprocess
import sys
import threading

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from retailray import storage
from retailray.cli import main
from retailray.cluster.jobs import Cluster
from retailray.cluster.output import Lines
from retailray.cluster.package import make_package, size_of
from retailray.cluster.request import parse
from retailray.config import arguments
from retailray.errors import CapacityError, ConfigError
from retailray.execution import credentials
from retailray.storage.opening import store_of

SCORE = ["--catalog.uri=s3://shop/c.csv", "--model.uri=s3://shop/m", "--out=s3://shop/o"]


def test_all_that_is_wrong_is_said_before_anything_is_sent():
    with pytest.raises(ConfigError) as refused:
        parse("score", ["--catalog.uriii=x", "--submit.id=no spaces", "--score.top_k=0", "--out=o"])
    text = str(refused.value)
    assert "did you mean catalog.uri" in text
    assert "submit.id" in text
    assert "score.top_k" in text
    assert "model.uri: required" in text


@pytest.mark.parametrize("command", ["submit", "scoer", "attach"])
def test_what_is_no_command_is_not_submitted(command):
    with pytest.raises(ConfigError, match="one of: demo, check"):
        parse(command, [])


def test_one_file_serves_the_command_and_its_submission(tmp_path):
    file = tmp_path / "night.yaml"
    file.write_text(
        "catalog: {uri: s3://shop/c.csv}\nmodel: {uri: s3://shop/m}\nout: s3://shop/o\n"
        "cluster: {address: 'http://head:8265', num_workers: 3}\nsubmit: {id: tonight}\nkuberay: {image: ours}\n"
    )
    asked = parse("score", ["--config", str(file), "--detach"])
    assert (asked.submit.submit.id, asked.submit.detach, asked.submit.cluster.address) == (
        "tonight",
        True,
        "http://head:8265",
    )
    assert asked.settings["cluster"]["num_workers"] == 3
    assert "address" not in asked.settings["cluster"]
    other = parse("score", ["--config", str(file), "--score.top_k", "3"])
    assert asked.digest != other.digest
    assert asked.digest == parse("score", ["--config", str(file), "--cluster.address", "http://elsewhere:8265"]).digest


def test_a_package_is_this_code_and_the_settings_and_nothing_else(tmp_path):
    asked = parse("score", SCORE)
    folder = make_package(asked.settings, b"key")
    assert {path.name for path in folder.iterdir()} == {"retailray", "job.yaml", credentials.KEY_FILE}
    kinds = {path.suffix for path in (folder / "retailray").rglob("*") if path.is_file()}
    assert kinds <= {".py", ".j2", ".js", ".yaml", ".typed", ".json", ""}
    assert size_of(folder) < 2_000_000
    assert arguments.parse("score", ["--config", str(folder / "job.yaml")]) == arguments.parse("score", SCORE)


def test_what_is_sealed_is_opened_by_who_has_the_key_and_the_token_only(monkeypatch):
    values, key = {"AWS_SECRET_ACCESS_KEY": "planted"}, credentials.new_key()
    sealed = credentials.encrypt_credentials(values, key, token="the token")
    assert "planted" not in sealed
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the token")
    assert credentials.decrypt_credentials(sealed, key) == values
    with pytest.raises(CapacityError, match="another Ray token"):
        credentials.decrypt_credentials(sealed, credentials.new_key())
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another token")
    with pytest.raises(CapacityError, match="another Ray token"):
        credentials.decrypt_credentials(sealed, key)
    assert credentials.decrypt_credentials(credentials.encrypt_credentials(values, key, token=None), key) == values


def test_a_driver_takes_what_came_with_its_job(monkeypatch, tmp_path):
    key = credentials.new_key()
    (tmp_path / credentials.KEY_FILE).write_bytes(key)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_REGION", "here")
    monkeypatch.setenv(credentials.SEALED, credentials.encrypt_credentials({"AWS_REGION": "there"}, key, token=None))
    credentials.load_job_credentials()
    assert os.environ["AWS_REGION"] == "there"


def test_the_keys_of_every_cloud_go_along_and_googles_by_its_content(monkeypatch, tmp_path, capsys):
    """Other machines do not have the file that is named, and the key is not to lie there as one."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    text = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    names = {"type": "service_account", "client_email": "scorer@shop.iam", "token_uri": "https://none"}
    (tmp_path / "key.json").write_text(json.dumps(names | {"private_key": text}))
    for name in [name for name in os.environ if name.startswith(("GOOGLE", "STORAGE_EMULATOR", "AZURE_STORAGE"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", "sv=1&sig=2")
    values = credentials.storage_environment()
    assert values["AZURE_STORAGE_SAS_TOKEN"] == "sv=1&sig=2"
    assert "GOOGLE_APPLICATION_CREDENTIALS" not in values
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    found = store_of("gs://shop/a")[0].fs.credentials.credentials
    assert found.service_account_email == "scorer@shop.iam"
    monkeypatch.delenv(storage.GOOGLE_KEY)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    assert storage.GOOGLE_KEY not in credentials.storage_environment(), "runs on other clouds go on"
    assert "none.json cannot be read" in capsys.readouterr().out
    (tmp_path / "none.json").write_text(json.dumps({"type": "external_account"}))
    assert storage.GOOGLE_KEY not in credentials.storage_environment(), "it names files of this machine"


@given(st.text(alphabet="ab\n{", max_size=60), st.lists(st.integers(0, 60), max_size=8), st.integers(1, 7))
def test_every_line_once_however_often_the_stream_begins_anew(text, breaks, size):
    shown: list[str] = []
    lines = Lines(shown.append)
    for until in breaks:  # each time from the beginning, in pieces, up to where it breaks
        for start in range(0, min(until, len(text)), size):
            lines.take(text[start : min(start + size, until)], offset=start)
    lines.take(text)
    lines.close()
    assert "\n".join(shown) == text.removesuffix("\n")


def test_events_are_passed_on_and_the_rest_is_not_mixed_with_them(capfd):
    from retailray.cluster.submit import _show

    event = json.dumps({"event": "epoch", "epoch": 3})
    for line in ("INFO something of Ray's", event, "[1, 2]", ""):
        _show(line)
    out, err = capfd.readouterr()
    assert out.splitlines() == [event]
    assert err.splitlines() == ["INFO something of Ray's", "[1, 2]", ""]


def test_a_setting_without_a_value_is_not_the_text_true():
    with pytest.raises(ConfigError, match=r"--model\.uri needs a value"):
        parse("score", ["--model.uri", "--out=s3://b/o", "--catalog.uri=s3://b/c.csv"])


def test_the_nightly_job_is_checked_and_resolved_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "night.yaml").write_text(
        "out: scores\ncatalog: {uri: c.csv, label_map: {0: PC}}\nmodel: {uri: m}\ncheck: {fail_on: [errors]}\n"
        "cluster: {address: 'http://head:8265', request_cpus: 4}\nsubmit: {id: tonight}\n"
    )
    asked = parse("nightly", ["--config", "night.yaml"])
    assert asked.entrypoint == ["-m", "retailray", "nightly", "--config", "job.yaml"]
    asked_for = {
        "out": str(tmp_path / "scores"),
        "catalog": {"uri": str(tmp_path / "c.csv"), "label_map": {"0": "PC"}},
        "model": {"uri": str(tmp_path / "m")},
        "check": {"fail_on": ["errors"]},
        "cluster": {"request_cpus": 4},
    }
    assert asked.settings["out"] == asked_for.pop("out")
    for section, values in asked_for.items():
        assert asked.settings[section] | values == asked.settings[section]
    assert "address" not in asked.settings["cluster"]
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(asked.settings))
    assert parse("nightly", ["--config", str(again)]).settings == asked.settings, "as the job reads it"
    (tmp_path / "night.yaml").write_text("out: scores\ncatalog: {uri: c.csv}\nscore: {top_k: 0}\n")
    with pytest.raises(ConfigError) as refused:
        parse("nightly", ["--config", "night.yaml"])
    assert {"score.top_k", "model.uri"} <= {problem.split(" ")[0].rstrip(":") for problem in refused.value.problems}
    with pytest.raises(ConfigError, match=r"nope\.yaml"):
        parse("nightly", ["--config", "nope.yaml"])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--render=kuberay", "--detach", "--submit.id=x"], "submit.id, detach would be ignored"),
        (["--submit.requirements=/nope.txt"], "there is no such file"),
        (["--cluster.address=http://me:hush@head:8265"], "a password in an address"),
        (["--config=s3://me:hush@b/night.yaml"], "a password in an address"),
    ],
)
def test_what_would_be_ignored_or_leak_is_refused(flags, words):
    with pytest.raises(ConfigError, match=words) as refused:
        parse("score", [*SCORE, *flags])
    assert "hush" not in str(refused.value)


def test_what_an_id_stands_for_is_the_code_too(tmp_path):
    file = tmp_path / "requirements.txt"
    file.write_text("one==1\n")
    first = parse("score", [*SCORE, f"--submit.requirements={file}"]).digest
    file.write_text("one==2\n")
    assert parse("score", [*SCORE, f"--submit.requirements={file}"]).digest != first


def test_ray_is_not_imported_before_the_cluster_said_how_it_authenticates():
    """Ray reads RAY_AUTH_MODE when it is imported."""
    code = "import sys, retailray.cluster.submit, retailray.cluster.doctor; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("answers", "found"),
    [
        (
            [None, {}, {"cmdline": []}, {"cmdline": ["raylet", "--python_worker_command=/v/bin/python x.py"]}],
            "/v/bin/python",
        ),
        ([{"cmdline": ["raylet"]}], "python"),
    ],
)
def test_the_interpreter_of_a_cluster_that_has_just_started(answers, found):
    """Kind of fault: submitted in a cluster's first seconds, a job runs with another Python than the cluster's."""
    waiting = list(answers)

    class Dashboard(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            head = waiting.pop(0) if len(waiting) > 1 else waiting[0]
            nodes = [] if head is None else [head | {"raylet": {"isHeadNode": True}}]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"data": {"summary": nodes}}).encode())

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Dashboard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        cluster = Cluster.__new__(Cluster)
        cluster.address, cluster.token = f"http://127.0.0.1:{server.server_port}", None
        assert cluster.python() == found
        server.shutdown()


def test_a_dashboard_in_the_environment_stops_drivers_and_nobody_else(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    assert main(["check", "--catalog.uri", str(tmp_path / "c.csv"), "--out", str(tmp_path / "out")]) == 2
    assert "`retailray submit COMMAND`" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["rollback", "--model.uri", f"{tmp_path}/products@champion"]) == 1
    assert "names nothing" in capsys.readouterr().err
