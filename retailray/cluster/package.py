"""What a job takes along to a cluster: this code, the settings, nothing else."""

import json
import shutil
import tempfile
from pathlib import Path

import yaml

from retailray.cluster.environment import KEY_FILE
from retailray.config import VerbConfig
from retailray.provenance import TAKEN_ALONG, git_commit, version

HERE = Path(__file__).parents[1]  # the package
NIGHTLY = HERE.parent / "jobs" / "nightly.py"
CONFIG = "job.yaml"
# what is no part of the package stays here: checkouts, data, virtual environments; inside it, what Python leaves behind
LEFT = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")


def make_package(config: VerbConfig | None, files: list[bytes], key: bytes) -> Path:
    """A new folder with the package, the settings (resolved, or ``files`` as they are) and the key of the credentials.

    The files of a job that is no verb are named ``job-0.yaml``, ``job-1.yaml``, ...
    """
    folder = Path(tempfile.mkdtemp(prefix="retailray-job-"))
    shutil.copytree(HERE, folder / HERE.name, ignore=LEFT)
    taken = {"version": version("retailray"), "git_commit": git_commit()}
    (folder / HERE.name / TAKEN_ALONG.name).write_text(json.dumps(taken))
    if config is not None:
        # the job finds its cluster where Ray says, not where we found it
        settings = config.model_dump(mode="json", exclude={"cluster": {"address"}})
        (folder / CONFIG).write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
    for number, content in enumerate(files):
        (folder / f"job-{number}.yaml").write_bytes(content)
    if files:
        shutil.copytree(NIGHTLY.parent, folder / "jobs", ignore=LEFT)
    (folder / KEY_FILE).write_bytes(key)
    return folder


def size_of(folder: Path) -> int:
    """Bytes of all files, before they are zipped."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
