"""``doctor``: is the cluster fit for work? Asked before any money is spent on finding out.

With the address of a dashboard (``http://host:8265``) it looks at it from here and then runs itself as a job on the
cluster; with none, or a Ray address, it asks that Ray's machines directly. Each check that fails says how to mend it.
"""

import os
from typing import Any

from retailray import progress
from retailray.cluster.health import INSTALL, Check, examine
from retailray.cluster.jobs import Cluster
from retailray.cluster.submit import Request, send
from retailray.config import DoctorConfig, SubmitConfig
from retailray.errors import GateFailed
from retailray.provenance import version


def doctor(config: DoctorConfig) -> None:
    """Report every check.

    Raises:
        GateFailed: at least one failed. JobEnded: the same, where it ran as a job.
        RetailrayError: the cluster could not be asked.
    """
    watch = progress.Stopwatch()
    address = config.cluster.address or os.environ.get("RAY_ADDRESS") or ""
    if address.startswith(("http://", "https://")):
        _ask_there(config, address.rstrip("/"))
        return
    checks = examine(config)
    for check in checks:
        _say(check)
    failed = [check.name for check in checks if not check.ok]
    watch.summary("doctor", num_images=0, checks=len(checks), failed=len(failed))
    if failed:
        raise GateFailed(
            f"{len(failed)} of {len(checks)} checks failed, with how to mend each above: {'; '.join(failed)}"
        )


def _ask_there(config: DoctorConfig, address: str) -> None:
    """What can be seen of the cluster from here; then this verb as a job there, whose exit code is ours."""
    submission = SubmitConfig(cluster=config.cluster.model_copy(update={"address": address}))
    cluster = Cluster(address, patience_s=submission.submit.patience_s)
    theirs, ours = cluster.ask("/api/version").get("ray_version", "unknown"), version("ray")
    _say(Check("dashboard", True, f"{address} answers; token authentication: {'on' if cluster.token else 'off'}"))
    skew_ok = abs(cluster.skew_s) <= config.doctor.max_skew_s + 1  # it tells whole seconds
    _say(Check("clock of the dashboard", skew_ok, f"{cluster.skew_s:+.0f} s", "run an NTP client on both sides"))
    _say(Check("Ray here and there", theirs == ours, f"{ours} here, {theirs} there", INSTALL))
    send(Request("doctor", submission, config, []))


def _say(check: Check) -> None:
    fix: dict[str, Any] = {} if check.ok else {"fix": check.fix}
    progress.emit("check", name=check.name, ok=check.ok, found=check.found, **fix)
