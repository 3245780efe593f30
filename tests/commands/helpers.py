"""Read what commands leave, with other programs' readers."""

import hashlib
import json
import os
import subprocess
import sys

import fsspec

INLINE = ("check", "train", "evaluate", "compare", "promote", "score")  # what runs without Ray too


def latest(out: str) -> str:
    """The run directory that LATEST names, checked to be complete."""
    fs, path = fsspec.core.url_to_fs(out, **({"use_listings_cache": False} if out.startswith("s3") else {}))
    run = f"{out}/{fs.cat_file(f'{path}/LATEST').decode()}"
    assert fs.exists(f"{run}/_SUCCESS".removeprefix("s3://"))
    return run


def read_json(address: str) -> dict:
    with fsspec.open(address) as file:
        return json.load(file)


def read_text(address: str) -> str:
    with fsspec.open(address, "rt") as file:
        return file.read()


def events(stdout: str) -> list[dict]:
    """Every line of standard output off a terminal is JSON."""
    return [json.loads(line) for line in stdout.splitlines()]


def words_of(command: str, settings: dict[str, object], *, inline: bool = True) -> list[str]:
    """The words of a command; in this process where the settings do not ask for more."""
    if (
        inline
        and command in INLINE
        and "cluster.engine" not in settings
        and settings.get("cluster.num_workers", 1) == 1
    ):
        settings = settings | {"cluster.engine": "inline"}
    return [command, *[part for key, value in settings.items() for part in (f"--{key}", str(value))]]


def start_command(command: str, *flags: str, **settings: object) -> subprocess.Popen:
    """A command in a process of its own, with a Ray of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
    arguments = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    words = [sys.executable, "-m", "retailray", command, *arguments, *flags]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def rename_labels(bundle):
    """Let a bundle take its labels for others, with sums that are right."""
    meta = json.loads((bundle / "bundle.json").read_text())
    meta["labels"] = meta["labels"][1:] + meta["labels"][:1]
    (bundle / "bundle.json").write_text(json.dumps(meta))
    lines = (bundle / "MANIFEST").read_text().splitlines()
    names = [line.split("  ")[1] for line in lines]
    sums = [hashlib.sha256((bundle / name).read_bytes()).hexdigest() for name in names]
    (bundle / "MANIFEST").write_text("".join(f"{digest}  {name}\n" for digest, name in zip(sums, names, strict=True)))
