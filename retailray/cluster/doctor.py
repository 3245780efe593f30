"""``doctor``: is the cluster fit for work? Asked before any money is spent on finding out.

With the address of a dashboard (``http://host:8265``) it looks at it from here and then runs itself as a job on the
cluster; with none, or a Ray address, it asks that Ray's machines directly. Each check that fails says how to mend it.
"""

from retailray import events
from retailray.cluster.health import INSTALL, Check, examine
from retailray.cluster.request import Request, settings_of
from retailray.cluster.submit import connect, send
from retailray.config import DoctorConfig, SubmitConfig
from retailray.errors import GateFailed
from retailray.execution.session import names_dashboard
from retailray.provenance import version


def doctor(config: DoctorConfig) -> None:
    """Report every check.

    Raises:
        GateFailed: at least one failed. JobEnded: the same, where it ran as a job.
        RetailrayError: the cluster could not be asked.
    """
    if names_dashboard(config.cluster):
        _ask_there(config)
        return
    watch = events.Stopwatch()
    checks = examine(config)
    failed = [check.name for check in checks if not _say(check)]
    watch.summary("doctor", num_images=0, checks=len(checks), failed=len(failed))
    _gate(failed)


def _ask_there(config: DoctorConfig) -> None:
    """What can be seen of the cluster from here; then this command as a job there, whose exit code is ours."""
    submission = SubmitConfig(cluster=config.cluster)
    cluster = connect(submission)
    theirs, ours = cluster.ask("/api/version").get("ray_version", "unknown"), version("ray")
    token = "on" if cluster.token else "off"
    skew_ok = abs(cluster.skew_s) <= config.doctor.max_skew_s + 1  # it tells whole seconds
    checks = [
        Check("dashboard", True, f"{cluster.address} answers; token authentication: {token}"),
        Check("clock of the dashboard", skew_ok, f"{cluster.skew_s:+.0f} s", "run an NTP client on both sides"),
        Check("Ray here and there", theirs == ours, f"{ours} here, {theirs} there", INSTALL),
    ]
    failed = [check.name for check in checks if not _say(check)]
    send(Request("doctor", submission, settings_of(config)), cluster)
    _gate(failed)


def _gate(failed: list[str]) -> None:
    if failed:
        raise GateFailed(f"{len(failed)} checks failed; the events above say how to fix each: {'; '.join(failed)}")


def _say(check: Check) -> bool:
    fix: dict[str, object] = {} if check.ok else {"fix": check.fix}
    events.emit("check", name=check.name, ok=check.ok, found=check.found, **fix)
    return check.ok
