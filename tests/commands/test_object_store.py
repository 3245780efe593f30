"""Stores that do not answer, refuse, or are not there: one clear line, exit 1, within 20 seconds."""

import os
import socket
import subprocess
import sys
import threading
import time

import boto3
import pytest

from tests.conftest import S3_ENV, free_port, start_s3_server

pytestmark = pytest.mark.s3


def check(uri="s3://shop/catalog.csv", out="s3://shop/out", **env):
    """The installed command in a process of its own; (exit code, stderr, seconds)."""
    environment = {**os.environ, **S3_ENV, **env}
    started = time.monotonic()
    command = [sys.executable, "-m", "retailray", "check", "--catalog.uri", uri, "--out", out]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr, time.monotonic() - started


def assert_one_line(code, err, *words):
    assert code == 1
    assert len(err.strip().splitlines()) == 1, err
    for word in words:
        assert word in err


def test_nobody_listens():
    endpoint = f"http://127.0.0.1:{free_port()}"
    code, err, seconds = check(AWS_ENDPOINT_URL_S3=endpoint)
    assert_one_line(code, err, endpoint, "AWS_ENDPOINT_URL_S3")
    assert seconds < 20  # a promise of the command, far above its usual 5 s


def test_a_store_that_accepts_and_never_answers():
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept = []
        threading.Thread(target=lambda: kept.append(server.accept()), daemon=True).start()
        code, err, seconds = check(AWS_ENDPOINT_URL_S3=f"http://127.0.0.1:{server.getsockname()[1]}")
    assert_one_line(code, err, "no answer within")
    assert seconds < 60, "it would have waited for minutes"


def test_wrong_bucket_and_missing_object(bucket, s3_endpoint):
    code, err, _ = check("s3://no-such-bucket/c.csv", AWS_ENDPOINT_URL_S3=s3_endpoint)
    assert_one_line(code, err, "s3://no-such-bucket/c.csv: not found")
    code, err, _ = check(f"{bucket}/c.csv", AWS_ENDPOINT_URL_S3=s3_endpoint)
    assert_one_line(code, err, f"{bucket}/c.csv: not found")


def test_an_out_that_cannot_be_written_is_said_before_any_work(tmp_path, s3_endpoint):
    (tmp_path / "c.csv").write_text("image,label\na.jpg,b\n")
    code, err, _ = check(str(tmp_path / "c.csv"), "s3://no-such-bucket/o", AWS_ENDPOINT_URL_S3=s3_endpoint)
    assert_one_line(code, err, "s3://no-such-bucket/o")
    (tmp_path / "file").write_text("")
    code, err, _ = check(str(tmp_path / "c.csv"), str(tmp_path / "file" / "o"))
    assert_one_line(code, err, str(tmp_path / "file"))


def test_wrong_credentials(tmp_path):
    """A server that checks signatures: the first actions, which make the user, are free."""
    process, endpoint = start_s3_server(tmp_path / "log", INITIAL_NO_AUTH_ACTION_COUNT="2")
    try:
        options = {"endpoint_url": endpoint, "region_name": "us-east-1"}
        session = boto3.Session("any", "any")
        session.client("iam", **options).create_user(UserName="u")
        session.client("iam", **options).create_access_key(UserName="u")
        code, err, seconds = check(AWS_ENDPOINT_URL_S3=endpoint)
    finally:
        process.terminate()
        process.wait(10)
    assert_one_line(code, err, "access denied", "AWS_SECRET_ACCESS_KEY")
    assert seconds < 60, "it would have waited for minutes"


def test_no_credentials(s3_endpoint, tmp_path):
    environment = {"AWS_ENDPOINT_URL_S3": s3_endpoint, "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    code, err, _ = check(HOME=str(tmp_path), AWS_EC2_METADATA_DISABLED="true", **environment)
    assert_one_line(code, err, "AWS_ACCESS_KEY_ID")
