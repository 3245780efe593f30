"""What made a result: versions, the commit of this code, the machines."""

import datetime
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# our code between the bytes of an image and its prediction or error
INFERENCE_CODE = (
    "data/containers/gif.py",
    "data/containers/jpeg.py",
    "data/containers/lengths.py",
    "data/containers/png.py",
    "data/image_files.py",
    "data/images.py",
    "data/scaling.py",
    "data/decoding.py",
    "models/int8.py",
    "models/predictor.py",
    "models/predicting.py",
    "scoring/chunks.py",
)
EXTRA_LIBRARIES = ("timm", "transformers")  # told where they are installed
LIBRARIES = ("retailray", "ray", "torch", "torchvision", "pillow", "numpy", "pyarrow")


# written into the package of a submitted job: version and commit of the machine that submitted it
TAKEN_ALONG = Path(__file__).parent / "SUBMITTED.json"


def version(name: str) -> str:
    """Return the installed version of a package; in a submitted job, retailray's version where it was submitted."""
    if name == "retailray" and TAKEN_ALONG.is_file():
        return json.loads(TAKEN_ALONG.read_text())["version"]
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def libraries() -> dict[str, str]:
    extra = {name: found for name in EXTRA_LIBRARIES if (found := version(name)) != "unknown"}
    return {name: version(name) for name in LIBRARIES} | extra


@functools.cache
def git_commit() -> str | None:
    """The commit of this code; None outside of a git checkout (an installed wheel, a container without git)."""
    if TAKEN_ALONG.is_file():
        return json.loads(TAKEN_ALONG.read_text())["git_commit"]
    root = Path(__file__).resolve().parents[1]
    command = ["git", "-C", str(root), "rev-parse", "--show-toplevel", "HEAD"]
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return None
    found = result.stdout.splitlines()
    # git looks upwards: an installed wheel may lie in a checkout of somebody else's
    return found[1] if result.returncode == 0 and Path(found[0]) == root else None


@functools.cache
def inference_environment() -> str:
    """What an image's error depends on besides its bytes and the model: our code and the versions that it runs on."""
    digest = hashlib.sha256()
    for name in INFERENCE_CODE:
        digest.update((Path(__file__).parent / name).read_bytes())
    versions = [f"{name}={version(name)}" for name in ("pillow", "pillow-heif", "torch", "torchvision")]
    versions += [f"{name}={version(name)}" for name in EXTRA_LIBRARIES]
    return " ".join([f"code={digest.hexdigest()[:16]}", *versions])


def provenance() -> dict[str, object]:
    """For a bundle: UTC time, commit, versions of the libraries."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"created_at": now, "git_commit": git_commit(), "libraries": libraries()}


def this_machine() -> dict[str, object]:
    """The machine of this process: no name and no address of it, which are nobody's business in a published record."""
    return {"cpu": _cpu_model(), "cpus": os.cpu_count(), "system": platform.platform(terse=True)}


def made_by(machines: Sequence[dict[str, object]]) -> dict[str, object]:
    """For ``run.json``: versions, the machine of the driver, and those that the work ran on, by kind."""
    return {
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "libraries": libraries(),
        "driver": this_machine(),
        "machines": list(machines),
        "command": Path(sys.argv[0]).name,
    }


@functools.cache
def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
