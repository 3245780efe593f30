"""What a record says of the code that made it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from retailray.config import DemoConfig
from retailray.provenance import git_commit
from retailray.runs import RunDirectory

PACKAGE = Path(__file__).parents[1] / "retailray"


def git(folder, *arguments):
    """What git prints; None where it refuses, as for a folder without a repository."""
    who = {f"GIT_{role}_{what}": "a@b.example" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, env=os.environ | who)
    return done.stdout.strip() if done.returncode == 0 else None


@pytest.mark.slow  # a process of its own
def test_the_commit_is_of_this_code_and_of_no_repository_around_it(tmp_path):
    """A package that is installed inside of somebody's checkout has no commit."""
    assert git_commit() == git(PACKAGE.parent, "rev-parse", "HEAD")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", "theirs")
    assert git(tmp_path, "rev-parse", "HEAD")
    shutil.copytree(PACKAGE, tmp_path / "site-packages" / "retailray")
    code = "from retailray.provenance import git_commit; print(git_commit())"
    told = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "site-packages", capture_output=True, text=True)
    assert told.stdout == "None\n", told.stderr


def test_a_run_names_the_machines_that_it_ran_on_and_those_of_no_other(tmp_path):
    """Kind of fault: machines that were kept by the process stood in the records of later runs."""
    first, second = (RunDirectory(DemoConfig(out=str(tmp_path / name))) for name in ("first", "second"))
    first.machines = [{"count": 1, "cpus": 2.0, "gpus": 0.0}]
    for run in (first, second):
        run.publish({})
    found = [json.loads(Path(run.path("run.json")).read_text())["made_by"]["machines"] for run in (first, second)]
    assert found == [[{"count": 1, "cpus": 2.0, "gpus": 0.0}], []]
