"""The state of a step, read from the JSON of its JobSet, its Job and its pods."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from higgsc.emit.objects import Manifest
from higgsc.launch.scheduler import JobStatus

_STEP = "jobset.sigs.k8s.io/replicatedjob-name"


def is_over(jobset: Manifest) -> bool:
    """Whether a JobSet has ended, well or not, or is being deleted."""
    if "deletionTimestamp" in jobset["metadata"]:
        return True
    return _condition(jobset, "Completed") is not None or _condition(jobset, "Failed") is not None


def step_status(jobset: Manifest, children: Sequence[Manifest], step: str) -> JobStatus:
    """What the cluster says of a step.

    Args:
        jobset: The JobSet.
        children: Its Jobs and pods, those of all steps.
        step: The step.
    """
    status = jobset.get("status", {})
    rows: list[dict[str, Any]] = status.get("replicatedJobsStatus", [])
    counts = next((row for row in rows if row["name"] == step), {})
    mine = [child for child in children if child["metadata"].get("labels", {}).get(_STEP) == step]
    jobs = [child["status"] for child in mine if child["kind"] == "Job"]
    started = min((at for job in jobs if (at := _seconds(job.get("startTime"))) is not None), default=None)
    ended = max((at for job in jobs if (at := _seconds(job.get("completionTime"))) is not None), default=None)
    restarts = int(status.get("restarts", 0))
    hosts = sorted({node for child in mine if (node := child.get("spec", {}).get("nodeName")) is not None})
    nodes = ",".join(hosts) or None
    failure = _condition(jobset, "Failed")
    if counts.get("succeeded") or _condition(jobset, "Completed") is not None:
        return JobStatus(phase="done", word="Complete", started=started, ended=ended, restarts=restarts, nodes=nodes)
    if failure is not None and counts.get("failed"):
        reason = "; ".join([*_pod_failures(mine), failure.get("message", "")]).strip("; ") or None
        return JobStatus(phase="failed", word="Failed", reason=reason, started=started, restarts=restarts, nodes=nodes)
    if failure is not None:
        return JobStatus(phase="cancelled", word="Failed", reason="a step before it failed", restarts=restarts)
    if counts.get("ready"):
        return JobStatus(phase="running", word="Ready", started=started, restarts=restarts, nodes=nodes)
    if "deletionTimestamp" in jobset["metadata"] and not counts.get("active"):
        return JobStatus(phase="cancelled", word="Deleted", restarts=restarts)
    if counts.get("suspended") or jobset["spec"].get("suspend"):
        return JobStatus(phase="waiting", word="Suspended", reason=_queue(jobset), restarts=restarts)
    if counts.get("active"):
        reason = next(_troubles(mine), "its pods are starting")
        return JobStatus(phase="waiting", word="Active", reason=reason, started=started, restarts=restarts, nodes=nodes)
    if counts.get("failed"):
        return JobStatus(phase="waiting", word="Restarting", reason=next(_pod_failures(mine), None), restarts=restarts)
    return JobStatus(phase="waiting", word="NotStarted", reason=_before(jobset, step))


def _condition(thing: Manifest, kind: str) -> dict[str, Any] | None:
    """The condition of that type if it is true."""
    conditions: list[dict[str, Any]] = thing.get("status", {}).get("conditions", [])
    return next((found for found in conditions if found["type"] == kind and found["status"] == "True"), None)


def _queue(jobset: Manifest) -> str:
    queue = jobset["metadata"].get("labels", {}).get("kueue.x-k8s.io/queue-name")
    return f"waits in the queue {queue}" if queue else "suspended"


def _before(jobset: Manifest, step: str) -> str | None:
    for job in jobset["spec"]["replicatedJobs"]:
        if job["name"] == step and job.get("dependsOn"):
            return f"after {job['dependsOn'][0]['name']}"
    return None


def _troubles(children: Sequence[Manifest]) -> Iterator[str]:
    """Why pods do not run: no node takes them, or a container cannot start."""
    for pod in (child for child in children if child["kind"] == "Pod"):
        for condition in pod["status"].get("conditions", ()):
            if condition["type"] == "PodScheduled" and condition["status"] == "False":
                yield f"{condition.get('reason', 'not scheduled')}: {condition.get('message', '')}".rstrip(": ")
        for container in pod["status"].get("containerStatuses", ()):
            waiting = container.get("state", {}).get("waiting", {})
            if waiting.get("reason", "ContainerCreating") != "ContainerCreating":
                yield f"{waiting['reason']}: {waiting.get('message', '')}".rstrip(": ")


def _pod_failures(children: Sequence[Manifest]) -> Iterator[str]:
    """How containers ended that did not end well."""
    for pod in (child for child in children if child["kind"] == "Pod"):
        for container in pod["status"].get("containerStatuses", ()):
            ending = container.get("state", {}).get("terminated")
            if ending is not None and ending.get("exitCode"):
                yield f"{pod['metadata']['name']} ended with {ending['exitCode']} ({ending.get('reason', 'Error')})"


def _seconds(time: str | None) -> float | None:
    """RFC 3339 as seconds since the epoch."""
    return datetime.fromisoformat(time).timestamp() if time else None
