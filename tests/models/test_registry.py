"""Aliases: moved by one of many, in order, with a history that other programs can read."""

import concurrent.futures
import json

import pytest

from retailray import storage
from retailray.errors import ModelError
from retailray.models.registry import history, move, parse_alias, resolve


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def folder(request, tmp_path):
    return str(tmp_path / "mugs") if request.param == "local" else f"{request.getfixturevalue('bucket')}/models/mugs"


def test_an_alias_names_what_it_was_moved_to_last(folder):
    with pytest.raises(ModelError, match=r"@champion was never set.*promote"):
        resolve(f"{folder}@champion")
    move(folder, "champion", "v1", reason="first", evidence={"top1": 0.8}, seen=0)
    move(folder, "champion", "v2", reason="better", evidence={}, seen=1)
    move(folder, "challenger", "v3", reason="new", evidence={}, seen=0)
    assert resolve(f"{folder}@champion") == f"{folder}/v2"
    assert resolve(f"{folder}@challenger") == f"{folder}/v3"
    assert resolve(f"{folder}/v1") == f"{folder}/v1"
    first, second = history(folder, "champion")
    assert (first.previous, second.previous, first.evidence) == (None, "v1", {"top1": 0.8})
    files = sorted(storage.list_files(f"{folder}/.aliases/champion"))
    assert json.loads(storage.read_bytes(files[1]))["reason"] == "better"


def test_one_of_many_movers_wins_and_the_others_are_told(folder):
    def attempt(number):
        try:
            return move(folder, "champion", f"v{number}", reason="race", evidence={}, seen=0).version
        except ModelError as error:
            return str(error)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(attempt, range(8)))
    won = [answer for answer in answers if answer.startswith("v")]
    assert len(won) == 1
    assert all("meanwhile" in answer for answer in answers if answer not in won)
    assert resolve(f"{folder}@champion") == f"{folder}/{won[0]}"


def test_what_is_an_alias():
    assert parse_alias("s3://b/models/mugs@champion") == ("s3://b/models/mugs", "champion")
    assert parse_alias("s3://b/models/mugs/20260101T000000Z-1a2b") is None
    assert parse_alias("/home/me@work/models/mugs/v1") is None
