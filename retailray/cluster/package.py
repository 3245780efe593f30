"""What a job takes along to a cluster: this code, the settings, nothing else."""

import json
import shutil
import tempfile
from pathlib import Path

import yaml

from retailray.execution.credentials import KEY_FILE
from retailray.provenance import TAKEN_ALONG, git_commit, version

PACKAGE = Path(__file__).parents[1]  # the package
CONFIG = "job.yaml"
# what is no part of the package stays here: checkouts, data, virtual environments; inside it, what Python leaves behind
LEFT = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")


def make_package(settings: dict[str, object], key: bytes) -> Path:
    """A new folder with the package, the settings and the key of the credentials."""
    folder = Path(tempfile.mkdtemp(prefix="retailray-job-"))
    shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=LEFT)
    taken = {"version": version("retailray"), "git_commit": git_commit()}
    (folder / PACKAGE.name / TAKEN_ALONG.name).write_text(json.dumps(taken))
    (folder / CONFIG).write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
    (folder / KEY_FILE).write_bytes(key)
    return folder


def size_of(folder: Path) -> int:
    """Bytes of all files, before they are zipped."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
